//! Snapshots for clients: every record of a database at one LSN. Nothing here is asynchronous but the
//! wait for a place and a bookmark: what is read from disk is for whoever has a thread that may block.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use highwater_core::{GroupId, Lsn, Root};
use highwater_store::state::{Export, SnapshotError, States};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    api::{Bookmark, Consistency, Error, Listed},
    deadline::Deadline,
    driver::Command,
    handle::{Handle, listed_of, refuse_when_ending, state_error},
    shared::Shared,
};

/// Snapshots of a node at a time: each takes as much of the disk as the records of its database do,
/// compressed.
pub(crate) const SNAPSHOTS_MAX: usize = 4;

/// A place among the snapshots of a node, for a database whose state may be read.
pub struct SnapshotPlace {
    group: GroupId,
    node: Node,
    permit: OwnedSemaphorePermit,
}

/// Every record of a database at one LSN. Its place, and its room on the disk, are free once it is
/// dropped.
pub struct Snapshot {
    export: Export,
    node: Node,
    _permit: OwnedSemaphorePermit,
}

/// The node, as far as it is needed: whoever reads slowly must not keep states open that the node
/// has let go of.
struct Node {
    states: Weak<States>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl std::fmt::Debug for SnapshotPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a place for a snapshot of {:?}", self.group)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.export.fmt(f)
    }
}

impl Handle {
    /// A place for a snapshot of a database, once the bookmark, where there is one, is applied here.
    ///
    /// # Errors
    /// [`Error::Busy`] where as many snapshots as may be are under way; [`Error::Behind`] where the
    /// bookmark is not applied in time. All are definite.
    pub async fn snapshot(
        &self,
        database: &str,
        bookmark: Option<Bookmark>,
        timeout: Duration,
    ) -> Result<SnapshotPlace, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        self.await_readable(group, Consistency::Local(bookmark), deadline).await?;
        let permit = self.snapshots.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let node = Node {
            states: Arc::downgrade(&self.states),
            shared: self.shared.clone(),
            commands: self.commands.clone(),
        };
        Ok(SnapshotPlace { group, node, permit })
    }
}

impl SnapshotPlace {
    /// Takes the snapshot of what is applied now. Blocks.
    ///
    /// # Errors
    /// Where the state can't be read, or the disk gives no file.
    pub fn take(self) -> Result<Snapshot, Error> {
        let SnapshotPlace { group, node, permit } = self;
        let export = node.with(group, |states| states.export(group))?;
        Ok(Snapshot { export, node, _permit: permit })
    }
}

impl Snapshot {
    /// Everything up to here is in it, and nothing after.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.export.lsn()
    }

    /// Copies some more of the state, so that it need not be held, and tells whether there is still
    /// more. Blocks on the disk. To be called until there is not, however slowly the records are taken
    /// meanwhile.
    ///
    /// # Errors
    /// Where the state can't be read, or there is no room for the copy.
    pub fn fill(&mut self) -> Result<bool, Error> {
        self.node.with(self.export.group(), |states| self.export.fill(states))
    }

    /// The next records in byte order of keys: a few hundred KiB of them, but at least one; `None`
    /// where no more are copied. Blocks on the disk.
    ///
    /// # Errors
    /// Where the copy is damaged, the database is not in service here any more, or the node ends.
    pub fn take_next(&mut self) -> Result<Option<Vec<Listed>>, Error> {
        let next = self.node.with(self.export.group(), |states| self.export.next(states))?;
        Ok(next.map(|records| records.into_iter().map(listed_of).collect()))
    }

    /// How many records there were, and their root, once all are given.
    ///
    /// # Errors
    /// Where those are not all that the state had.
    pub fn end(&self) -> Result<(u64, Root), Error> {
        let root =
            self.export.root().map_err(|error| self.node.error(self.export.group(), error))?;
        Ok((self.export.records(), root))
    }
}

impl Node {
    fn with<T>(
        &self,
        group: GroupId,
        act: impl FnOnce(&States) -> Result<T, SnapshotError>,
    ) -> Result<T, Error> {
        refuse_when_ending(&self.shared)?;
        let gone = || Error::NotReady(String::from("this node is stopping"));
        let states = self.states.upgrade().ok_or_else(gone)?;
        act(&states).map_err(|error| self.error(group, error))
    }

    fn error(&self, group: GroupId, error: SnapshotError) -> Error {
        match error {
            SnapshotError::State(error) => state_error(&self.commands, group, &error),
            error => Error::NotReady(error.to_string()),
        }
    }
}
