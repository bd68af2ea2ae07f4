//! What travels between two nodes: the core's messages, and the drivers' own.

use bytes::Bytes;
use highwater_core::{
    GroupId, Incarnation, Lsn, Message, NodeId, OnceKey, Outcome, Position, Reject, SlotOutcome,
    SlotSettings, Term, Verified,
};

/// One message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Between the cores.
    Core(Message),
    /// "Carry this out as the leader, within this long": forwarded at most once.
    Forward {
        /// The sender's name for it; unique within its boot.
        id: u64,
        /// What is left of the client's deadline, in microseconds, when it was sent.
        budget_us: u64,
        /// What.
        request: ForwardRequest,
    },
    /// The answer to a [`PeerMessage::Forward`].
    ForwardReply {
        /// The sender's name for it.
        id: u64,
        /// The outcome.
        reply: ForwardReply,
    },
    /// "Give me a snapshot of this group", or its next block.
    SnapshotAsk {
        /// Whose.
        group: GroupId,
        /// What.
        ask: SnapshotAsk,
    },
    /// A block of it.
    SnapshotBlock {
        /// Whose.
        group: GroupId,
        /// Of which snapshot.
        id: SnapshotId,
        /// Which block.
        number: u32,
        /// How many there are.
        blocks: u32,
        /// How long all of them are, in bytes.
        bytes: u64,
        /// Its content.
        content: Bytes,
    },
    /// There is no snapshot to be had here.
    SnapshotNone {
        /// Whose.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// "How do you stand?"
    StatusQuery {
        /// The sender's name for it.
        id: u64,
    },
    /// The answer.
    StatusReply {
        /// The sender's name for it.
        id: u64,
        /// How it stands.
        status: NodeStatus,
    },
}

/// Which snapshot of a group: blocks of two different ones are never put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotId {
    /// What it stands at.
    pub at: Position,
    /// The data directory that made it.
    pub maker: Incarnation,
}

/// What is wanted of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotAsk {
    /// The first block of one that stands here or later.
    Above(Lsn),
    /// A block of this one; of another one its first, if this is not to be had any more.
    Block {
        /// Which snapshot.
        id: SnapshotId,
        /// Which block.
        number: u32,
        /// Where another one must stand at least.
        above: Lsn,
    },
}

/// What a node asks of a leader for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardRequest {
    /// Append an encoded [`Op`](crate::op::Op).
    Propose {
        /// Where.
        group: GroupId,
        /// The op.
        payload: Bytes,
        /// Has it take effect once at most.
        once: Option<OnceKey>,
    },
    /// Create a database.
    CreateDatabase {
        /// Its name.
        name: String,
    },
    /// Hand leadership over.
    Transfer {
        /// Of which group.
        group: GroupId,
        /// To whom.
        to: NodeId,
    },
    /// Do something with a slot.
    Slot {
        /// Where.
        group: GroupId,
        /// Its name.
        name: String,
        /// What.
        ask: SlotAsk,
    },
}

/// What is asked of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAsk {
    /// That there is one, with these settings.
    Create(SlotSettings),
    /// To note that its consumer has everything up to here.
    Ack(Lsn),
    /// That there is none.
    Delete,
}

/// What the leader answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardReply {
    /// Committed and applied.
    Applied {
        /// Where.
        lsn: Lsn,
        /// In which term.
        term: Term,
        /// With which result.
        outcome: Outcome,
        /// It is the result of an earlier request with the same key.
        replayed: bool,
    },
    /// The database is there.
    Created {
        /// Its group.
        group: GroupId,
        /// It stood before.
        existed: bool,
    },
    /// Leadership is handed over.
    Transferred {
        /// The new term.
        term: Term,
    },
    /// Committed and applied.
    Slot {
        /// The first LSN that the log still has.
        first: Lsn,
        /// What came of it.
        outcome: SlotOutcome,
    },
    /// Definite: no effect, now or later.
    Rejected(Reject),
    /// It reached the log, and its outcome was not known in time.
    Unknown,
}

/// How a node stands, for the cluster view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its software version.
    pub version: String,
    /// Where its HTTP listens (`host:port`).
    pub http: String,
    /// Its state as http-api.md names them.
    pub state: String,
    /// Whether its data directory is the one that was founded.
    pub voter: bool,
    /// Its topology epoch.
    pub epoch: u64,
    /// Its groups, in order of id.
    pub groups: Vec<GroupStatus>,
}

/// How one replica stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which group.
    pub group: GroupId,
    /// Its term here.
    pub term: Term,
    /// The leader as seen here.
    pub leader: Option<NodeId>,
    /// Last LSN in its log.
    pub appended: Lsn,
    /// fsynced here.
    pub durable: Lsn,
    /// Known to be committed here.
    pub committed: Lsn,
    /// Applied here.
    pub applied: Lsn,
    /// Durable in the materialized state here.
    pub checkpointed: Lsn,
    /// About how many bytes are known to be committed and not applied here.
    pub lag_bytes: u64,
    /// Microseconds for which it has not been caught up.
    pub lag_us: u64,
    /// Quarantined here, and why.
    pub quarantined: Option<String>,
    /// What its state hashed to at the last audit at which a majority had the same.
    pub verified: Option<Verified>,
    /// How often it was found to differ from a majority, since the node was started.
    pub divergences: u64,
    /// The first LSN that its log has, or will have.
    pub first: Lsn,
    /// It waits for a snapshot, or puts it in place: so much of that is here.
    pub rebootstrapping: Option<Received>,
}

/// How much of a snapshot is here, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Of its file.
    pub bytes: u64,
    /// The length of that; zero as long as it is not known.
    pub of: u64,
}

/// Who opens a connection between nodes, told by both sides first. The transport checks the
/// cluster by certificate and by this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster.
    pub cluster: highwater_core::ClusterId,
    /// The sender.
    pub peer: highwater_core::Peer,
    /// Where the sender's HTTP listens, for the cluster view.
    pub http: String,
}
