//! The disk of production: a directory, three IO threads, and a lock that keeps other processes out.
//!
//! The commit path ([`Disk::write_sync`]) has a thread of its own, so that it never queues behind a
//! load or the filling of a spare segment; other syncs have one, so that no read waits for them.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Disk;

/// The file whose lock marks a data directory as in use.
const LOCK: &str = "lock";

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// Another process holds its lock.
    #[error(
        "the data directory {} is in use by another process: stop that process, or give this node \
         a directory of its own", .path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("the data directory {} can't be used ({what}): {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl From<DirError> for io::Error {
    fn from(error: DirError) -> io::Error {
        let kind = match &error {
            DirError::InUse { .. } => io::ErrorKind::ResourceBusy,
            DirError::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A data directory on a real file system. Cheap to clone; the lock is held until the last clone
/// is gone.
#[derive(Clone, Debug)]
pub struct RealDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Whether files may be changed; where not, no lock is held.
    writable: bool,
    commits: mpsc::Sender<Job>,
    syncs: mpsc::Sender<Job>,
    others: mpsc::Sender<Job>,
    /// Locked as long as it is open.
    _lock: Option<File>,
}

/// Which IO thread does a job.
#[derive(Clone, Copy)]
enum Lane {
    Commits,
    Syncs,
    Others,
}

impl RealDisk {
    /// Takes a directory into use; makes it where it is missing, and locks it.
    ///
    /// # Errors
    /// Where another process uses it, or the operating system refuses.
    pub fn open(dir: PathBuf) -> Result<RealDisk, DirError> {
        make(&dir).map_err(failed(&dir, "making it"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join(LOCK))
            .map_err(failed(&dir, "opening its lock file"))?;
        match lock.try_lock() {
            Ok(()) => RealDisk::start(dir, Some(lock)),
            Err(TryLockError::WouldBlock) => Err(DirError::InUse { path: dir }),
            Err(TryLockError::Error(source)) => Err(failed(&dir, "locking it")(source)),
        }
    }

    /// Opens a directory for looking only: takes no lock, and refuses every change.
    ///
    /// # Errors
    /// Where there is no such directory, or a thread can't be started.
    pub fn read_only(dir: PathBuf) -> Result<RealDisk, DirError> {
        let found = fs::metadata(&dir).map_err(failed(&dir, "opening it"))?;
        if !found.is_dir() {
            return Err(failed(&dir, "opening it")(io::ErrorKind::NotADirectory.into()));
        }
        RealDisk::start(dir, None)
    }

    fn start(dir: PathBuf, lock: Option<File>) -> Result<RealDisk, DirError> {
        let commits = worker("oplog-commit").map_err(failed(&dir, "starting a thread"))?;
        let syncs = worker("oplog-sync").map_err(failed(&dir, "starting a thread"))?;
        let others = worker("oplog-io").map_err(failed(&dir, "starting a thread"))?;
        let writable = lock.is_some();
        let inner = Inner { dir, writable, commits, syncs, others, _lock: lock };
        Ok(RealDisk { inner: Arc::new(inner) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.dir.join(name)
    }

    /// Runs one job on an IO thread and waits for it.
    async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more where the caller was dropped: the job counts as done anyway.
            let _ = done.send(job());
        });
        let lane = match lane {
            Lane::Commits => &self.inner.commits,
            Lane::Syncs => &self.inner.syncs,
            Lane::Others => &self.inner.others,
        };
        lane.send(job).map_err(|_| io::Error::other("the IO thread has ended"))?;
        answer.await.map_err(|_| io::Error::other("the IO thread gave up on a job"))?
    }

    /// [`RealDisk::run`] for what changes something.
    async fn change<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !self.inner.writable {
            return Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "the data directory was opened for looking only",
            ));
        }
        self.run(lane, job).await
    }
}

fn failed<'a>(dir: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> DirError + 'a {
    move |source| DirError::Io { path: dir.to_owned(), what, source }
}

/// Makes a directory and those above it, durably.
fn make(dir: &Path) -> io::Result<()> {
    let missing: Vec<_> = dir.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(dir)?;
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// An IO thread. It ends with the last sender.
fn worker(name: &str) -> io::Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        for job in jobs {
            job();
        }
    })?;
    Ok(sender)
}

fn read_fully(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; len];
    let mut have = 0;
    while have < len {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(have);
    Ok(buffer.into())
}

impl Disk for RealDisk {
    type File = Arc<File>;

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.path(dir);
        self.run(Lane::Others, move || {
            let entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn create_dir(&self, dir: &str) -> io::Result<()> {
        let (path, parent) = (self.path(dir), self.inner.dir.clone());
        self.change(Lane::Others, move || {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // Also where it stands: an earlier run may have died before this.
            File::open(parent)?.sync_all()
        })
        .await
    }

    async fn open(&self, name: &str, create: bool) -> io::Result<Arc<File>> {
        let (path, writable) = (self.path(name), self.inner.writable);
        let open = move || {
            let mut options = OpenOptions::new();
            options.read(true).write(writable).create(create).truncate(false);
            Ok(Arc::new(options.open(path)?))
        };
        if create {
            self.change(Lane::Others, open).await
        } else {
            self.run(Lane::Others, open).await
        }
    }

    async fn len(&self, file: &Arc<File>) -> io::Result<u64> {
        let file = file.clone();
        self.run(Lane::Others, move || Ok(file.metadata()?.len())).await
    }

    async fn read_at(&self, file: &Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = file.clone();
        self.run(Lane::Others, move || read_fully(&file, offset, len)).await
    }

    async fn write_at(&self, file: &Arc<File>, offset: u64, data: Bytes) -> io::Result<()> {
        let file = file.clone();
        self.change(Lane::Others, move || file.write_all_at(&data, offset)).await
    }

    async fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        let file = file.clone();
        self.change(Lane::Syncs, move || file.sync_data()).await
    }

    async fn write_sync(&self, file: &Arc<File>, offset: u64, data: Bytes) -> io::Result<()> {
        let file = file.clone();
        self.change(Lane::Commits, move || {
            file.write_all_at(&data, offset)?;
            // The buffer goes back to its owner before it is told.
            drop(data);
            file.sync_data()
        })
        .await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        self.change(Lane::Others, move || fs::rename(from, to)).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        self.change(Lane::Others, move || fs::remove_file(path)).await
    }

    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.path(dir);
        self.change(Lane::Syncs, move || File::open(path)?.sync_all()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("highwater-disk-{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[tokio::test]
    async fn files_live_as_the_trait_says() {
        let above = blank();
        let dir = above.join("a/b");
        let disk = RealDisk::open(dir).expect("a blank directory");
        assert!(disk.list("oplog").await.expect("absent is empty").is_empty());
        disk.create_dir("oplog").await.expect("makes it");
        disk.create_dir("oplog").await.expect("it stands");
        assert!(disk.open("oplog/a", false).await.is_err(), "only `create` makes a file");
        let file = disk.open("oplog/a", true).await.expect("makes it");
        disk.write_sync(&file, 2, Bytes::from_static(b"hello")).await.expect("writes");
        assert_eq!(disk.len(&file).await.expect("has a length"), 7);
        assert_eq!(&disk.read_at(&file, 0, 100).await.expect("reads")[..], b"\0\0hello");
        disk.rename("oplog/a", "oplog/b").await.expect("renames");
        disk.sync_dir("oplog").await.expect("syncs");
        let again = disk.open("oplog/b", true).await.expect("opens without cutting it");
        assert_eq!(disk.len(&again).await.expect("has a length"), 7);
        assert_eq!(disk.list("oplog").await.expect("lists"), ["b"]);
        assert_eq!(disk.list("").await.expect("lists files, not directories"), [LOCK]);
        disk.remove("oplog/b").await.expect("removes");
        assert!(disk.list("oplog").await.expect("lists").is_empty());
        fs::remove_dir_all(above).expect("cleans up");
    }

    #[tokio::test]
    async fn one_process_a_directory() {
        let dir = blank();
        let first = RealDisk::open(dir.clone()).expect("a blank directory");
        let error = RealDisk::open(dir.clone()).expect_err("in use");
        assert!(matches!(error, DirError::InUse { .. }), "{error}");
        let look = RealDisk::read_only(dir.clone()).expect("looking is free");
        assert_eq!(look.list("").await.expect("lists"), [LOCK]);
        assert!(look.open("x", true).await.is_err(), "looking changes nothing");
        assert!(look.create_dir("y").await.is_err(), "looking changes nothing");
        drop((first, look));
        RealDisk::open(dir.clone()).expect("free again");
        fs::remove_dir_all(dir).expect("cleans up");
    }
}
