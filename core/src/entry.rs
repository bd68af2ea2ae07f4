//! What the oplog is made of.

use bytes::Bytes;

use crate::{
    once::OnceEntry,
    retention::Base,
    types::{Boot, GroupId, Hlc, Lsn, Member, Term},
};

/// What an entry's payload means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A new leader's first entry; empty payload (Raft §8's no-op).
    TermStart = 1,
    /// A client's operation; the payload is the state machine's business.
    Op = 2,
    /// System group only: a database and its group come into being.
    CreateDatabase = 3,
    /// What happens to slots, and the log time at which it does: a
    /// [`SlotEntry`](crate::SlotEntry). The state machine has no part in it.
    Slot = 4,
    /// Where the log is to begin from now on: a [`Base`](crate::Base). The state machine has no part
    /// in it.
    Prune = 5,
    /// A client's operation that takes effect at most once: a [`OnceEntry`]. To the state machine it
    /// is an operation like any other.
    Once = 6,
    /// Every replica computes the [root](crate::Root) of its state here; empty payload. Changes
    /// nothing.
    Audit = 7,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Kind> {
        match n {
            1 => Some(Kind::TermStart),
            2 => Some(Kind::Op),
            3 => Some(Kind::CreateDatabase),
            4 => Some(Kind::Slot),
            5 => Some(Kind::Prune),
            6 => Some(Kind::Once),
            7 => Some(Kind::Audit),
            _ => None,
        }
    }

    /// Whether it brings the state machine an operation.
    #[must_use]
    pub fn is_op(self) -> bool {
        matches!(self, Kind::Op | Kind::Once)
    }

    /// Whether the state machine gives an [`Outcome`] for it.
    #[must_use]
    pub fn has_outcome(self) -> bool {
        self.is_op() || self == Kind::Audit
    }
}

/// One entry of a group's oplog. Cheap to clone: the payload is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub lsn: Lsn,
    /// The term of the leader that appended it.
    pub term: Term,
    /// The term of the entry before it (0 for the first).
    pub prev_term: Term,
    /// When, for federation only.
    pub hlc: Hlc,
    /// The cluster that wrote it first: the high 64 bits of its id.
    pub origin: u64,
    /// What the payload means.
    pub kind: Kind,
    /// Opaque to consensus.
    pub payload: Bytes,
}

impl Entry {
    /// What an entry weighs beside its payload, in every bound that is counted in bytes.
    pub const OVERHEAD: usize = 64;

    /// Its weight in bounds that are counted in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.payload.len() + Entry::OVERHEAD
    }

    /// The operation that it brings the state machine, if it brings one; nothing, which is none that
    /// can be read, where what surrounds it can't be.
    #[must_use]
    pub fn op(&self) -> Option<Bytes> {
        match self.kind {
            Kind::Op => Some(self.payload.clone()),
            Kind::Once => Some(
                OnceEntry::decode(self.payload.clone()).map(|once| once.op).unwrap_or_default(),
            ),
            Kind::TermStart | Kind::CreateDatabase | Kind::Slot | Kind::Prune | Kind::Audit => None,
        }
    }
}

/// How many of these entries make up at most so many bytes and are at most so many; at least one, if
/// there is one.
pub(crate) fn fitting<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    bytes_max: usize,
    entries_max: usize,
) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        let first = bytes == 0;
        bytes += entry.weight();
        first || bytes <= bytes_max
    };
    entries.take(entries_max.max(1)).take_while(fits).count()
}

/// The last entry of a log, or the one before an append: position and term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Compared first when two logs are compared (Raft §5.4.1).
    pub term: Term,
    /// Compared second.
    pub lsn: Lsn,
}

/// How the cluster was founded: decided once, by the lowest configured node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formation {
    /// Every founding node with the data directory it had then, in node order.
    pub members: alloc::vec::Vec<Member>,
}

/// What the oplog must make durable, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The founding configuration. Written once, before anything else.
    Formation(Formation),
    /// A group's vote state. The latest one counts.
    HardState {
        /// Whose.
        group: GroupId,
        /// The highest term this node has seen.
        term: Term,
        /// Whom it voted for in that term.
        vote: Option<Member>,
    },
    /// The next entry of a group. One at or below the group's last LSN replaces it and all that
    /// follow.
    Append {
        /// Whose.
        group: GroupId,
        /// What.
        entry: Entry,
    },
    /// A hint: the group's materialized state is durable up to here. A lower bound; it spares
    /// start-up from opening the state. The latest one counts: it falls where the state was dropped.
    Checkpointed {
        /// Whose.
        group: GroupId,
        /// Up to here.
        lsn: Lsn,
    },
    /// The group's log begins after this: what is at or below it was pruned, or came as a
    /// snapshot. Where the log has this very entry there, what follows it stays; else nothing of
    /// the log counts any more.
    Base {
        /// Whose.
        group: GroupId,
        /// What is not in the log any more.
        base: Base,
    },
    /// The last start of a member's data directory that this node has met. The latest one counts.
    Boot {
        /// Whose.
        member: Member,
        /// Which.
        boot: Boot,
    },
    /// The highest term, and the highest LSN in it, that a member has vouched for to this node in a
    /// group: by a vote, a confirmation, or a leader's commit mark. The latest one counts.
    Acked {
        /// In which group.
        group: GroupId,
        /// Who.
        member: Member,
        /// The term in which it did.
        term: Term,
        /// Up to here; 0 for a vote alone.
        lsn: Lsn,
    },
    /// A group that was in doubt holds again everything that this node may ever have acknowledged in
    /// it. Of the system group: only groups up to this LSN can be in doubt.
    Sound {
        /// Which.
        group: GroupId,
        /// Its commit mark then.
        committed: Lsn,
    },
}

/// The result of applying one operation, of [`Kind::Op`] or [`Kind::Once`]; or a [`Kind::Audit`]: of
/// that the answer is the [`Root`](crate::Root).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Its precondition did not hold: it keeps its LSN and changed nothing.
    pub refused: bool,
    /// For the client that asked; opaque here, identical on every replica.
    pub answer: Bytes,
}
