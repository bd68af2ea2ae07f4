//! A full disk, where a flush waits for room: redb gives a database up at its first write that
//! fails, so it is shown a slow disk instead of a full one. Only writes wait. What a failed fsync
//! left is not known, whatever it failed for.

use std::{
    fmt, io,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use redb::{BackendError, StorageBackend};
use tokio::sync::Notify;

/// How long to wait before the next try.
const RETRY: Duration = Duration::from_secs(1);

/// Whether a flush waits for room.
#[derive(Debug, Default)]
pub(super) struct Room {
    lacking: AtomicBool,
    changed: Notify,
}

impl Room {
    pub(super) fn is_lacking(&self) -> bool {
        self.lacking.load(Ordering::Acquire)
    }

    /// Returns when [`Room::is_lacking`] may have changed, or shortly after. For one listener.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn set_lacking(&self, lacking: bool) {
        self.lacking.store(lacking, Ordering::Release);
        self.changed.notify_one();
    }

    /// Tries until it fails for another reason than room, or succeeds.
    fn until_there_is_some(&self, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut done = act();
        if lacks_room(&done) {
            tracing::warn!("the disk is full: the state waits for room, and writes are refused");
            self.set_lacking(true);
            while lacks_room(&done) {
                thread::sleep(RETRY);
                done = act();
            }
            self.set_lacking(false);
            tracing::info!("the state has found room");
        }
        done
    }
}

fn lacks_room(done: &io::Result<()>) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    done.as_ref().is_err_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

/// A state file whose writes wait for room.
pub(super) struct Patient {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) room: Arc<Room>,
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

type Edge = Bound<u64>;

impl StorageBackend for Patient {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room.until_there_is_some(|| self.inner.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room.until_there_is_some(|| self.inner.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
    fn try_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
