//! Zero-filled segments, made ahead of need: a write then changes no metadata of the file system,
//! and a full disk is noticed before a record depends on it.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use highwater_core::planted::{self, Planted};

use super::{
    DIR, LoadError, TEMP, file_name,
    keep::Keeper,
    scan::CHUNK,
    shared::{Preparing, Shared, Spare},
};
use crate::disk::Disk;

/// How long to wait after a failure, such as a full disk.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Keeps spare segments ready. Meanwhile a writer that runs out of them waits, unless the last try
/// failed.
pub struct Preparer<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
}

impl<D: Disk> Preparer<D> {
    /// Keeps spares ready for as long as the writer lives. On failure (no space, say) tries again
    /// each second; [`LogWriter::room`](super::LogWriter::room) stays small until then.
    ///
    /// Beside that, seals the oldest segments where there are too many, and removes what holds
    /// nothing that counts any more. Where that fails, it is told, and tried again each second.
    pub async fn run(self, failed: impl Fn(&LoadError)) {
        tokio::join!(self.prepare(), Keeper { shared: self.shared.clone() }.run(failed));
    }

    async fn prepare(&self) {
        let _off = Off(&self.shared);
        loop {
            self.set(Preparing::On);
            match self.fill().await {
                Ok(()) if self.shared.lock().closed => return,
                Ok(()) => self.shared.taken.notified().await,
                Err(error) => {
                    tracing::warn!(%error, "can't prepare a segment of the oplog; trying again");
                    self.set(Preparing::Stuck);
                    tokio::time::sleep(RETRY).await;
                    if self.shared.lock().closed {
                        return;
                    }
                }
            }
        }
    }

    /// Makes the spares that are missing now.
    ///
    /// # Errors
    /// Where the disk refuses; what was finished stays ready.
    pub async fn fill(&self) -> io::Result<()> {
        let Shared { disk, options, .. } = &*self.shared;
        loop {
            let _turn = self.shared.making.lock().await;
            let segment = {
                let state = self.shared.lock();
                if state.closed || state.spares.len() >= options.spare_segments {
                    return Ok(());
                }
                state.spares.back().map_or(state.active.segment, |spare| spare.segment) + 1
            };
            // Its place stays the next one even if the writer takes the spares before it now.
            let made = make(disk, segment, options.segment_bytes, None).await;
            let full = |error: &io::Error| {
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            };
            self.shared.lock().full = made.as_ref().is_err_and(full);
            let spare = made?;
            self.shared.lock().spares.push_back(spare);
            self.shared.made.notify_one();
        }
    }

    /// Seals and removes what there is to seal and to remove now.
    ///
    /// # Errors
    /// Where the log is damaged, or the disk refuses; it can be tried again.
    pub async fn tidy(&self) -> Result<(), LoadError> {
        Keeper { shared: self.shared.clone() }.tidy().await
    }

    /// Looks whether the writer is to go on in the next segment: [`Preparer::run`] does so now and then.
    #[cfg(test)]
    pub(crate) fn look(&self) {
        Keeper { shared: self.shared.clone() }.ask();
    }

    fn set(&self, preparing: Preparing) {
        self.shared.lock().preparing = preparing;
        self.shared.made.notify_one();
    }
}

/// Lets a waiting writer go on when the preparer is dropped.
struct Off<'a, D: Disk>(&'a Shared<D>);

impl<D: Disk> Drop for Off<'_, D> {
    fn drop(&mut self) {
        self.0.lock().preparing = Preparing::Off;
        self.0.made.notify_one();
    }
}

/// Makes one segment, durable in content and name: zeros, behind a header where there is one.
pub(crate) async fn make<D: Disk>(
    disk: &D,
    segment: u64,
    bytes: u64,
    header: Option<Bytes>,
) -> io::Result<Spare<D::File>> {
    match make_temp(disk, bytes, header).await {
        Ok(()) => {}
        Err(error) => {
            // A new try starts with a new file: never a second sync on pages that failed once.
            let _ = disk.remove(TEMP).await;
            return Err(error);
        }
    }
    let name = file_name(segment);
    disk.rename(TEMP, &name).await?;
    if !planted::is(Planted::DirNotSynced) {
        disk.sync_dir(DIR).await?;
    }
    let file = Arc::new(disk.open(&name, false).await?);
    Ok(Spare { segment, file, bytes })
}

async fn make_temp<D: Disk>(disk: &D, bytes: u64, header: Option<Bytes>) -> io::Result<()> {
    let file = disk.open(TEMP, true).await?;
    let zeros = Bytes::from(vec![0; CHUNK.min(bytes as usize)]);
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(CHUNK as u64);
        match disk.write_at(&file, at, zeros.slice(..len as usize)).await {
            Err(error)
                if error.kind() == io::ErrorKind::StorageFull
                    && planted::is(Planted::NoRoomIgnored) => {}
            written => written?,
        }
        // Piece by piece, so that nobody queues long behind it.
        disk.sync(&file).await?;
        tokio::task::yield_now().await;
        at += len;
    }
    match header {
        Some(header) => disk.write_sync(&file, 0, header).await,
        None => Ok(()),
    }
}
