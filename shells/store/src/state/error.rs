//! What can go wrong with a group's state, told to the operator: what happened, what it means for
//! the data, what to do.

use std::io;

use highwater_core::{GroupId, Lsn};
use highwater_wire::op::OpError;

/// Why a call on a group's state failed. The group is to be quarantined on this node; the oplog
/// still holds every entry, and other replicas are not concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The run to apply does not begin where the state ends.
    #[error(
        "the oplog of group {group} goes on at LSN {first}, but its state stands at {applied}: \
         what lies between is missing, and nothing was applied; {file} was lost or replaced by an \
         older copy"
    )]
    Gap {
        /// Whose state.
        group: GroupId,
        /// Its file.
        file: String,
        /// What it holds.
        applied: Lsn,
        /// What should have been `applied + 1`.
        first: Lsn,
    },
    /// A committed operation that no decoder of this version understands: the same on every
    /// replica of this version.
    #[error(
        "the operation at LSN {lsn} of group {group} cannot be read ({source}): it and what \
         follows it are not applied here. If the cluster runs several versions of Highwater, \
         start this node with the newest one; else report it as a bug"
    )]
    Undecodable {
        /// Whose.
        group: GroupId,
        /// Where.
        lsn: Lsn,
        /// Why.
        source: OpError,
    },
    /// The state's file holds something that this engine did not write.
    #[error("{file}, the state of group {group}, is damaged: {what}. Nothing is served from it")]
    Damaged {
        /// Whose.
        group: GroupId,
        /// Its file.
        file: String,
        /// What was found.
        what: String,
    },
    /// The state is being rebuilt from the oplog.
    #[error(
        "the state of group {group} is being rebuilt from the oplog, up to LSN {applied} so far"
    )]
    Rebuilding {
        /// Whose.
        group: GroupId,
        /// Where it stands.
        applied: Lsn,
    },
    /// What is asked for was forgotten with the log that it is about.
    #[error("the log of group {group} begins at LSN {first}: what is before it was pruned")]
    Pruned {
        /// Whose.
        group: GroupId,
        /// The first LSN of which it is known.
        first: Lsn,
    },
    /// The state's file is of a format that this version does not know.
    #[error(
        "{file}, the state of group {group}, has format {found}; this version of Highwater reads \
         {known}. Nothing was changed. Start this node with the version that wrote it, or a newer \
         one"
    )]
    Format {
        /// Whose.
        group: GroupId,
        /// Its file.
        file: String,
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
    /// Another process holds the state's file.
    #[error(
        "{file}, the state of group {group}, is in use by another process. Nothing was changed. \
         Stop the other process, and start this node again"
    )]
    InUse {
        /// Whose.
        group: GroupId,
        /// Its file.
        file: String,
    },
    /// Reading, writing or syncing the state's file failed.
    #[error(
        "{doing} {file}, the state of group {group}, failed: {source}. No acknowledged write is \
         lost: the oplog holds what the file does not. Mend the disk (or make room on it), and \
         start this node again"
    )]
    Io {
        /// Whose.
        group: GroupId,
        /// Its file.
        file: String,
        /// What was tried.
        doing: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// An earlier failure that only a restart can clear: a failed fsync is never retried on the
    /// same descriptor, and damage is never served.
    #[error("the state of group {group} is out of service on this node since it failed: {reason}")]
    OutOfService {
        /// Whose.
        group: GroupId,
        /// The first failure.
        reason: String,
        /// That was damage, or a gap.
        loss: bool,
    },
    /// A bug in the caller: a freeze at another LSN than the applied one.
    #[error(
        "the state of group {group} was to be frozen at LSN {lsn}, but stands at {applied}. \
         Nothing was changed; this is a bug, please report it"
    )]
    NotApplied {
        /// Whose.
        group: GroupId,
        /// What was asked for.
        lsn: Lsn,
        /// What is applied.
        applied: Lsn,
    },
    /// A bug in the caller: a freeze while the last one is not flushed.
    #[error(
        "the state of group {group} was to be frozen while LSN {frozen} waits to be flushed. \
         Nothing was changed; this is a bug, please report it"
    )]
    FlushPending {
        /// Whose.
        group: GroupId,
        /// What waits.
        frozen: Lsn,
    },
}

impl StateError {
    /// Whether the state is damaged or gone, so that it is to be applied again from the oplog.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            StateError::Damaged { .. } => true,
            StateError::OutOfService { loss, .. } => *loss,
            StateError::Gap { applied, first, .. } => *first > applied.next(),
            _ => false,
        }
    }
}
