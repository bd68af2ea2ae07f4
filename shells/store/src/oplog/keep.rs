//! Removes segments that hold nothing that counts any more.
//!
//! They are removed, not used again: a spare must be blank from end to end, so that a lost header can
//! be told from one that never was, and making an old segment blank costs as much as a new one.

use std::{io, sync::Arc};

use super::{DIR, file_name, prepare::RETRY, shared::Shared};
use crate::disk::Disk;

/// Keeps the log as short as it can be, beside the writer.
pub(crate) struct Keeper<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
}

impl<D: Disk> Keeper<D> {
    /// For as long as the writer lives. On failure tries again.
    pub(crate) async fn run(self) {
        while !self.shared.lock().closed {
            match self.tidy().await {
                Ok(()) => self.shared.rolled.notified().await,
                Err(error) => {
                    tracing::warn!(%error, "the oplog can't be made shorter; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Does what there is to do now.
    pub(crate) async fn tidy(&self) -> io::Result<()> {
        self.remove().await
    }

    /// Removes the segments of which two headers say that they are not in use. Any of them may be
    /// left by a crash: none is looked at again.
    async fn remove(&self) -> io::Result<()> {
        let Shared { disk, .. } = &*self.shared;
        let removable = {
            let state = self.shared.lock();
            let retired = &state.retired;
            retired.files.range(..retired.removable).copied().collect::<Vec<_>>()
        };
        for segment in &removable {
            match disk.remove(&file_name(*segment)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.shared.lock().retired.files.remove(segment);
        }
        if removable.is_empty() { Ok(()) } else { disk.sync_dir(DIR).await }
    }
}
