//! Seals old segments, and removes segments and history files that hold nothing that counts any more.
//!
//! Segments are removed, not used again: a spare must be blank from end to end, so that a lost header can
//! be told from one that never was, and making an old segment blank costs as much as a new one.

use std::{io, sync::Arc, time::Duration};

use super::{
    DIR, LoadError, file_name,
    history::{self, Dead, HISTORY},
    prepare::RETRY,
    shared::{Moving, Shared},
};
use crate::disk::Disk;

/// A log whose segment has not changed for so long does not make itself shorter by what is written.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps the log as short as it can be, beside the writer.
pub(crate) struct Keeper<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
}

impl<D: Disk> Keeper<D> {
    /// For as long as the writer lives. On failure tries again, and tells of it.
    pub(crate) async fn run(self, failed: impl Fn(&LoadError)) {
        while !self.shared.lock().closed {
            match self.tidy().await {
                Ok(()) => {
                    tokio::select! {
                        biased;
                        () = self.shared.rolled.notified() => {}
                        () = tokio::time::sleep(LOOK) => self.ask(),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the oplog can't be made shorter; trying again");
                    failed(&error);
                    tokio::time::sleep(RETRY).await;
                    self.ask();
                }
            }
        }
    }

    /// Does what there is to do now.
    pub(crate) async fn tidy(&self) -> Result<(), LoadError> {
        self.let_go().await?;
        while let Some(segment) = self.overdue() {
            self.seal(segment).await?;
            // A busy writer may keep this going: what can go does not wait for its end.
            self.let_go().await?;
        }
        Ok(())
    }

    /// Removes what can go. What can't be removed does not keep the rest.
    async fn let_go(&self) -> io::Result<()> {
        let removed = self.remove().await;
        self.clear().await?;
        removed
    }

    /// Has the writer go on in the next segment where that makes the log shorter: what is dead goes
    /// only as headers are written, and nobody may write any more, be it for lack of room. Not before
    /// the writer has told how much less room there is, and was looked at again.
    pub(crate) fn ask(&self) {
        let state = &mut *self.shared.lock();
        let worth = state.is_worth_moving(&self.shared.options);
        let before = state.moving;
        state.moving = match before {
            _ if !worth => Moving::No,
            Moving::No | Moving::Soon => Moving::Soon,
            Moving::Told | Moving::Now => Moving::Now,
        };
        if (before, state.moving) != (Moving::No, Moving::No) {
            self.shared.made.notify_one();
        }
    }

    /// The next segment to seal, if there are too many.
    fn overdue(&self) -> Option<u64> {
        let state = self.shared.lock();
        let mut unsealed = state.segments.range(state.history.sealed + 1..);
        let max = self.shared.options.segments_max;
        unsealed.clone().nth(max).and_then(|_| unsealed.next()).map(|(segment, _)| *segment)
    }

    /// Removes history files that an earlier run left of segments that are in use, and those that
    /// hold nothing that counts: two headers must say so, which may know it from here on.
    async fn clear(&self) -> io::Result<()> {
        let files: Vec<_> = self.shared.lock().history.files.keys().copied().collect();
        for id in files {
            // One at a time: the writer must not wait for all of them.
            {
                let state = self.shared.lock();
                let known = state.history.dead.contains_key(&id);
                if known || !state.history.is_dead(id, &state.table) {
                    continue;
                }
            }
            // One that can't be looked at goes all the same.
            let bytes = len(&self.shared.disk, &history::file_name(id)).await.unwrap_or(0);
            let state = &mut *self.shared.lock();
            state.history.dead.insert(id, Dead { found: state.active.segment, bytes });
        }
        let gone = {
            let state = &mut *self.shared.lock();
            let (history, active) = (&mut state.history, state.active.segment);
            let dead = history.dead.iter().filter(|(_, dead)| dead.goes_at(active));
            let dead: Vec<_> = dead.map(|(id, _)| *id).collect();
            for id in &dead {
                history.files.remove(id);
                history.dead.remove(id);
                history.forget(*id);
            }
            history.stale.extend(dead);
            history.stale.clone()
        };
        for id in &gone {
            match self.shared.disk.remove(&history::file_name(*id)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if !gone.is_empty() {
            self.shared.disk.sync_dir(HISTORY).await?;
            self.shared.lock().history.stale.retain(|id| !gone.contains(id));
        }
        Ok(())
    }

    /// Removes the segments of which two headers say that they are not in use. Any of them may be
    /// left by a crash: none is looked at again.
    async fn remove(&self) -> io::Result<()> {
        let Shared { disk, .. } = &*self.shared;
        let removable = {
            let state = self.shared.lock();
            let retired = &state.retired;
            retired
                .files
                .range(..retired.removable)
                .map(|(segment, _)| *segment)
                .collect::<Vec<_>>()
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

/// The length of a file.
pub(crate) async fn len<D: Disk>(disk: &D, name: &str) -> io::Result<u64> {
    let file = disk.open(name, false).await?;
    disk.len(&file).await
}
