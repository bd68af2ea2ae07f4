//! The disk, as the oplog needs it. The real one is thin; the simulator's loses and tears what was
//! not synced.

use std::{future::Future, io};

use bytes::Bytes;

#[cfg(not(madsim))]
mod real;
#[cfg(not(madsim))]
pub use real::{DirError, RealDisk};

/// A directory of files. Names are plain file names or one level deep (`oplog/00000001`).
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file. Dropping it closes it.
    type File: Send + Sync + 'static;

    /// Names of the files in a directory (`""` is the top), sorted. A directory that does not
    /// exist is empty.
    fn list(&self, dir: &str) -> impl Future<Output = io::Result<Vec<String>>> + Send;
    /// Makes a directory unless it stands, durably.
    fn create_dir(&self, dir: &str) -> impl Future<Output = io::Result<()>> + Send;
    /// Opens a file for reading and writing; with `create`, makes it where it is missing.
    fn open(&self, name: &str, create: bool)
    -> impl Future<Output = io::Result<Self::File>> + Send;
    /// The file's length.
    fn len(&self, file: &Self::File) -> impl Future<Output = io::Result<u64>> + Send;
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    fn read_at(
        &self,
        file: &Self::File,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = io::Result<Bytes>> + Send;
    /// Writes all of `data` at `offset`, extending the file where needed. Volatile until a sync.
    fn write_at(
        &self,
        file: &Self::File,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes everything written to the file durable (fdatasync).
    fn sync(&self, file: &Self::File) -> impl Future<Output = io::Result<()>> + Send;
    /// [`Disk::write_at`], then [`Disk::sync`], in one go: the oplog's commit.
    fn write_sync(
        &self,
        file: &Self::File,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// Renames a file over another; durable after [`Disk::sync_dir`] of its directory.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>> + Send;
    /// Removes a file; durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>> + Send;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, dir: &str) -> impl Future<Output = io::Result<()>> + Send;
}
