//! What the gateways (HTTP, later QUIC clients) ask of a node, and what they get: typed, with the
//! outcome classified as `semantics.md` 2 demands. Everything here is transport-neutral.

use std::time::Duration;

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, NodeId, Resyncs, SlotCause, SlotState, Term, Verified};
use highwater_wire::peer::NodeStatus;

/// A committed and applied write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The database's group.
    pub group: GroupId,
    /// Its LSN, which is also the version of every record it wrote.
    pub lsn: Lsn,
    /// The term it was appended in.
    pub term: Term,
    /// Whether the first key of the op existed before.
    pub existed: bool,
    /// Whether it is that of an earlier request with the same key.
    pub replayed: bool,
}

/// A position that a client hands over to read its own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// The group.
    pub group: GroupId,
    /// The term at `lsn`.
    pub term: Term,
    /// Read nothing older.
    pub lsn: Lsn,
}

/// From where a read may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// After a quorum round that began after the read arrived.
    Linearizable,
    /// From this node's applied state, once the bookmark (where there is one) is applied here.
    Local(Option<Bookmark>),
}

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The LSN of its last write.
    pub version: Lsn,
    /// Its media type; empty where none was given.
    pub content_type: Bytes,
    /// Its bytes.
    pub value: Bytes,
}

/// An answered read of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// The database's group.
    pub group: GroupId,
    /// What this node had applied when it answered.
    pub applied: Lsn,
    /// The term of the group here.
    pub term: Term,
    /// The record, if there is one.
    pub record: Option<Record>,
}

/// Which records to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only keys with this prefix.
    pub prefix: Bytes,
    /// Only keys after this one, exclusive.
    pub after: Option<Bytes>,
    /// At most so many; 1 or more.
    pub limit: usize,
    /// Whether values are wanted; without them `value` is empty.
    pub values: bool,
}

/// One listed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: Bytes,
    /// The value's length in bytes.
    pub size: u64,
    /// The record; its value is empty unless values were asked for.
    pub record: Record,
}

/// An answered list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The database's group.
    pub group: GroupId,
    /// What this node had applied.
    pub applied: Lsn,
    /// The term of the group here.
    pub term: Term,
    /// In byte order of keys.
    pub records: Vec<Listed>,
    /// Whether there is more after the last one.
    pub more: bool,
}

/// A slot: a consumer's durable place in a database's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its name.
    pub name: String,
    /// Its consumer has everything up to here.
    pub confirmed: Lsn,
    /// Effective ops after that.
    pub lag_ops: u64,
    /// Their bytes.
    pub lag_bytes: u64,
    /// For how long the first of them has been waiting, in milliseconds of log time.
    pub lag_ms: u64,
    /// How it stands.
    pub state: SlotState,
    /// Whether a stream of this node reads for it.
    pub connected: bool,
    /// Milliseconds of log time until it is invalidated for want of a sign of life; `None` once it is.
    pub expires_in_ms: Option<u64>,
}

/// Why a call did not succeed. Each one but [`Error::Unknown`] is definite: it had no effect and
/// will have none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// After a read index on the system group.
    #[error("there is no such database")]
    NoSuchDatabase,
    /// There is no such node in the cluster.
    #[error("there is no such node")]
    NoSuchNode,
    /// A precondition did not hold when the write was applied.
    #[error("the precondition of write {index} did not hold: the record's version is {version}")]
    Refused {
        /// Which write of the op.
        index: u32,
        /// The record's version; 0 where it does not exist.
        version: Lsn,
        /// The refused op's own LSN.
        lsn: Lsn,
        /// Whether that is of an earlier request with the same key.
        replayed: bool,
    },
    /// Another request had the same key.
    #[error("the key was used for another request")]
    KeyMismatch,
    /// As many keys are remembered as may be.
    #[error("too many keys are remembered")]
    KeysFull,
    /// The bookmark names a group that is not the database's.
    #[error("the bookmark is of a database that was made anew")]
    Recreated,
    /// The bookmark is not applied here within the deadline.
    #[error("this node has applied {applied} and is behind what was asked for")]
    Behind {
        /// What is applied here.
        applied: Lsn,
    },
    /// A stream was asked to begin above what is committed.
    #[error("it is above what is committed, which is {committed}")]
    OutOfRange {
        /// The commit mark.
        committed: Lsn,
    },
    /// It is before what the log still has.
    #[error("the log goes back to {first}")]
    LogPruned {
        /// The first LSN that the log still has.
        first: Lsn,
    },
    /// There is no such slot.
    #[error("there is no such slot")]
    NoSuchSlot,
    /// There is a slot of that name, with other settings.
    #[error("the slot stands with other settings")]
    SlotDiffers,
    /// The slot holds nothing back any more: its consumer may have missed what is gone.
    #[error("the slot is invalidated, the log goes back to {first}")]
    SlotInvalidated {
        /// Why.
        cause: SlotCause,
        /// The first LSN that the log still has.
        first: Lsn,
    },
    /// No leader could be reached within the deadline.
    #[error("no leader was found within the deadline")]
    NoLeader {
        /// The last known one.
        leader: Option<NodeId>,
    },
    /// This node is starting, forming, quarantined or halted.
    #[error("this node is not ready: {0}")]
    NotReady(String),
    /// This node is shutting down.
    #[error("this node is draining")]
    Draining,
    /// The disk of the leader is full.
    #[error("the disk of the leader is full")]
    StorageFull,
    /// A bound is reached.
    #[error("too many requests are under way")]
    Busy,
    /// The op is larger than the core takes.
    #[error("the operation is too large")]
    TooLarge,
    /// A write that may or may not take effect.
    #[error("the outcome is not known: it may or may not take effect")]
    Unknown,
    /// A bug; before the request was admitted.
    #[error("internal error: {0}")]
    Internal(String),
}

/// One database in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: GroupId,
}

/// A node as another one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// Its QUIC address as configured.
    pub address: String,
    /// Since its last sign of life; `None` for the answering node itself.
    pub last_contact: Option<Duration>,
    /// Its own word; `None` where it did not answer in time.
    pub status: Option<NodeStatus>,
}

/// The cluster as one node sees it, in one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The cluster's id, as hex.
    pub cluster: String,
    /// Rises with every change of topology that this node saw.
    pub epoch: u64,
    /// In order of id.
    pub nodes: Vec<NodeView>,
    /// In order of name.
    pub databases: Vec<DatabaseInfo>,
}

/// How this node stands by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Its state as http-api.md names them.
    pub state: String,
    /// Why it is not ready; empty where it is.
    pub reasons: Vec<String>,
}

/// Counters and gauges, in the terms of `binary.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// fsyncs of the oplog.
    pub oplog_syncs: u64,
    /// Writes acknowledged to clients of this node with quorum durability.
    pub writes_acked: u64,
    /// Writes answered with the outcome of an earlier request with the same key.
    pub writes_replayed: u64,
    /// Elections that this node started.
    pub elections: u64,
    /// Failed applies.
    pub apply_errors: u64,
    /// Bytes of states that the scrub has read.
    pub scrubbed_bytes: u64,
    /// Passes of the scrub that found something.
    pub scrub_failures: u64,
    /// Bytes of snapshots that came from other nodes.
    pub snapshot_bytes_received: u64,
    /// Bytes of snapshots that went to other nodes.
    pub snapshot_bytes_given: u64,
    /// One row a group of this node.
    pub groups: Vec<GroupMetrics>,
}

/// One group's gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMetrics {
    /// Which.
    pub group: GroupId,
    /// The database; `system` for the system group.
    pub database: String,
    /// Whether this node leads it.
    pub leader: bool,
    /// In the order: first, appended, durable, committed, applied, checkpointed.
    pub watermarks: [(&'static str, u64); 6],
    /// The last root that a majority agreed on, this replica with it.
    pub verified: Option<Verified>,
    /// How often this replica was found to differ.
    pub divergences: u64,
    /// When the scrub has last read all of its state, by the wall clock, in milliseconds.
    pub scrubbed_ms: Option<u64>,
    /// How often a replica that was behind was brought up to date.
    pub resyncs: Resyncs,
    /// Its slots, where they are known here.
    pub slots: Option<SlotCounts>,
}

/// How many slots of a database are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Within their limits.
    pub active: u64,
    /// Past three quarters of one.
    pub at_risk: u64,
    /// Of no use any more.
    pub invalidated: u64,
}
