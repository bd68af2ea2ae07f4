//! Where state files live: a directory of redb files, as a trait for the simulator's sake.

use std::io;

use redb::StorageBackend;

/// The directory of state files. Names are plain file names.
pub trait StateFiles: Send + Sync + 'static {
    /// Opens a published file; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be opened, which must never be told as `None`.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn StorageBackend>>>;

    /// Makes an empty file under the temporary name of `name`, or empties the one that is there.
    /// The backend stays good after [`StateFiles::publish`].
    ///
    /// # Errors
    /// When the file cannot be made.
    fn create_temp(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Makes an empty file that has no name any more: its room is free again when the backend is
    /// dropped, or the process ends. Each `name` is used once at a time.
    ///
    /// # Errors
    /// When the file cannot be made.
    fn scratch(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = self.create_temp(name)?;
        self.publish(name)?;
        self.remove(name)?;
        Ok(file)
    }

    /// Gives a temporary file its name and makes that durable: rename, then fsync of the
    /// directory. The file's content is durable already.
    ///
    /// # Errors
    /// When either fails; the file may then be found under either name.
    fn publish(&self, name: &str) -> io::Result<()>;

    /// Gives a published file another name, which may be taken, and makes that durable. Whoever has the
    /// other file open keeps it.
    ///
    /// # Errors
    /// When either fails; the file may then be found under either name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a published file, if it is there, durably. Whoever has it open keeps it.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Removes what a crash left of temporary files, and makes durable which others there are: an
    /// earlier process may have died between giving a file its name and making that durable, and
    /// what is written to the file would be lost with its name. To be called before any is opened.
    ///
    /// # Errors
    /// When the directory cannot be read, a file not be removed, or that not be made durable.
    fn settle(&self) -> io::Result<()>;
}

#[cfg(not(madsim))]
pub use real::RealFiles;

#[cfg(not(madsim))]
mod real {
    use std::{
        fs::{self, File, OpenOptions},
        io,
        path::{Path, PathBuf},
    };

    use redb::{StorageBackend, backends::FileBackend};

    use super::StateFiles;

    const TEMP: &str = ".tmp";

    /// [`StateFiles`] over a directory of the machine. redb's own backend locks each open file, so
    /// that a second process is refused.
    #[derive(Debug)]
    pub struct RealFiles {
        dir: PathBuf,
    }

    impl RealFiles {
        /// Opens the directory, and makes it, durably, where it is missing.
        ///
        /// # Errors
        /// When the directory cannot be made or made durable.
        pub fn open(dir: impl Into<PathBuf>) -> io::Result<RealFiles> {
            let dir = dir.into();
            if !dir.is_dir() {
                fs::create_dir(&dir)?;
                let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
                sync_dir(parent.unwrap_or(Path::new(".")))?;
            }
            Ok(RealFiles { dir })
        }

        fn temp(&self, name: &str) -> PathBuf {
            self.dir.join(format!("{name}{TEMP}"))
        }
    }

    impl StateFiles for RealFiles {
        fn open(&self, name: &str) -> io::Result<Option<Box<dyn StorageBackend>>> {
            match OpenOptions::new().read(true).write(true).open(self.dir.join(name)) {
                Ok(file) => backend(file).map(Some),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            }
        }

        fn create_temp(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            backend(options.open(self.temp(name))?)
        }

        /// A crash in between leaves a temporary file, which the next start removes.
        fn scratch(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
            let file = self.create_temp(name)?;
            fs::remove_file(self.temp(name))?;
            Ok(file)
        }

        fn publish(&self, name: &str) -> io::Result<()> {
            fs::rename(self.temp(name), self.dir.join(name))?;
            sync_dir(&self.dir)
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.dir.join(from), self.dir.join(to))?;
            sync_dir(&self.dir)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            match fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
            sync_dir(&self.dir)
        }

        fn settle(&self) -> io::Result<()> {
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().ends_with(TEMP) {
                    fs::remove_file(entry.path())?;
                }
            }
            sync_dir(&self.dir)
        }
    }

    fn backend(file: File) -> io::Result<Box<dyn StorageBackend>> {
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn sync_dir(dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}
