//! Child processes that never outlive this one, and whose words are kept.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::scratch::Scratch;

/// Variables that a child gets from this process; no other one can change what is tested.
const INHERITED: [&str; 5] = ["PATH", "HOME", "TMPDIR", "LANG", "LLVM_PROFILE_FILE"];

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel kills a child when the thread that spawned it ends, not the process; so one thread
/// spawns them all, and lives as long as the process.
static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::spawn(move || {
        for (mut command, reply) in queue {
            let _ = reply.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Spawns from the thread that outlives every test.
///
/// # Errors
/// As [`Command::spawn`].
///
/// # Panics
/// Never, unless the spawner is gone.
pub fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    let spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    spawner.send((command, reply)).expect("the spawner lives");
    drop(spawner);
    answer.recv().expect("the spawner answers")
}

/// Whether a program is there to run.
#[must_use]
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What to run, and in which surroundings.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Programs that exec the next one: `ip netns exec …`, `unshare …`.
    pub wrapper: Vec<OsString>,
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Variables beside the few that are inherited.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub dir: Option<PathBuf>,
}

impl Recipe {
    /// A program with arguments.
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Recipe {
        Recipe {
            wrapper: Vec::new(),
            argv: argv.into_iter().map(|part| part.as_ref().to_owned()).collect(),
            env: BTreeMap::new(),
            dir: None,
        }
    }

    /// Runs it through another program.
    #[must_use]
    pub fn within<S: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Recipe {
        self.wrapper = wrapper.into_iter().map(|part| part.as_ref().to_owned()).collect();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Recipe {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Recipe {
        self.dir = Some(dir.to_owned());
        self
    }

    fn command(&self) -> Command {
        let mut argv = self.wrapper.clone();
        if has("setpriv") {
            argv.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
        }
        argv.extend(self.argv.iter().cloned());
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("RUST_BACKTRACE", "1").envs(&self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Starts it; what it prints is appended to two files.
    ///
    /// # Panics
    /// Where it can't be started.
    #[must_use]
    pub fn start(&self, stdout: &Path, stderr: &Path) -> Process {
        let open = |path: &Path| -> File {
            OpenOptions::new().create(true).append(true).open(path).expect("a log file")
        };
        let mut command = self.command();
        command.stdout(open(stdout)).stderr(open(stderr));
        let child = spawn(command).unwrap_or_else(|error| panic!("{:?}: {error}", self.argv));
        Process { child }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// Where it can't be started, or does not end within `within`.
    #[must_use]
    pub fn run(&self, within: Duration) -> Output {
        let scratch = Scratch::new("run");
        let (out, err) = (scratch.join("out"), scratch.join("err"));
        let mut process = self.start(&out, &err);
        let status = process.wait(within);
        let read = |path| String::from_utf8_lossy(&fs::read(path).expect("output")).into_owned();
        let (stdout, stderr) = (read(out), read(err));
        let Some(status) = status else {
            process.kill();
            panic!("{:?} did not end within {within:?}\n{stdout}\n{stderr}", self.argv);
        };
        Output { status, stdout, stderr }
    }
}

/// What a finished program left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Its exit code; `None` where a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless it exited with 0.
    ///
    /// # Panics
    /// Where it did not.
    #[must_use]
    pub fn ok(self) -> Output {
        assert!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        self
    }
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end; `None` where it still runs after `within`.
    ///
    /// # Panics
    /// Where it can't be waited for.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of this process") {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it runs (or is paused).
    pub fn is_alive(&mut self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to any process; one that is gone gets none.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and not a zombie.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the name, which stands in parentheses and may hold anything.
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X') | None)
}
