//! Directories and namespaces that are gone when the test is, however it ends.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::process::spawn;

/// Runs on when this process has died, also by SIGKILL, and then does what it was told.
const REAPER: &str = r#"
trap '' HUP INT TERM
while IFS= read -r line; do all="$all
$line"; done
sleep 0.2
eval "$all" >/dev/null 2>&1
"#;

/// Its input ends with this process; it is never waited for, since it comes after.
static REAP: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let mut command = Command::new("sh");
    command.args(["-c", REAPER]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    Mutex::new(spawn(command).expect("a shell"))
});

/// Has a shell command run once this process is gone.
pub fn at_exit(command: &str) {
    assert!(!command.contains('\n'), "one line");
    let mut reaper = REAP.lock().unwrap_or_else(PoisonError::into_inner);
    let input = reaper.stdin.as_mut().expect("a pipe");
    writeln!(input, "{command}").expect("the reaper lives");
}

/// A new directory on the disk that the build is on; removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    ///
    /// # Panics
    /// Where that is not possible.
    #[must_use]
    pub fn new(name: &str) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let exe = std::env::current_exe().expect("this program has a path");
        // target/<profile>[/deps]/program: a real disk, where /tmp may be memory.
        let base = exe.ancestors().nth(2).unwrap_or(Path::new("/tmp")).join("tmp");
        let path = base.join(format!("{name}-{}-{next}", process::id()));
        fs::create_dir_all(&path).expect("a scratch directory");
        at_exit(&format!("rm -rf '{}'", path.display()));
        Scratch(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What still writes there is gone soon; else the reaper has it.
        let _ = fs::remove_dir_all(&self.0);
    }
}
