//! The words of the protocol as types: who (nodes, members, boots), where (groups, LSNs, terms),
//! and when (monotonic and wall time, both handed in by the shell).

use core::fmt;

macro_rules! number {
    ($(#[$meta:meta])* $name:ident, $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u64);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// A node's number within its cluster: `1..=N`, given by the operator.
    NodeId, "n"
);
number!(
    /// A replication group. [`GroupId::SYSTEM`] holds the control plane; every other group's id is
    /// the LSN of its create entry in the system group, so it is never reused.
    GroupId, "g"
);
number!(
    /// A position in a group's oplog: 1, 2, 3 … without holes. 0 means "before the first entry".
    Lsn, "l"
);
number!(
    /// An election term. 0 means "no term yet".
    Term, "t"
);
number!(
    /// Names a [`Persist`](crate::Effect::Persist) effect. Rises by one with each; completed in order.
    WriteId, "w"
);
number!(
    /// Names a [`Load`](crate::Effect::Load) effect.
    LoadId, "load"
);
number!(
    /// Names a request of the shell; chosen by the shell, unique within a run.
    RequestId, "r"
);
number!(
    /// A hybrid logical clock stamp: 48 bits of wall milliseconds, then a 16-bit counter
    /// (Kulkarni et al., 2014). It orders writes between clusters, and only that.
    Hlc, "h"
);

impl GroupId {
    /// The control plane's group: catalog and members.
    pub const SYSTEM: GroupId = GroupId(0);
}

impl Lsn {
    /// The LSN after this one. The last one stays, which only a peer's nonsense names.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0.saturating_add(1))
    }

    /// The LSN before this one; `Lsn(0)` stays.
    #[must_use]
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl Term {
    /// More than a cluster can reach by elections: whoever speaks of a higher one is mistaken.
    pub(crate) const MAX: Term = Term(u64::MAX / 2);

    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0.saturating_add(1))
    }
}

impl Hlc {
    /// The first stamp of a wall millisecond.
    #[must_use]
    pub fn at(wall_ms: u64) -> Hlc {
        Hlc(wall_ms.min(u64::MAX >> 16) << 16)
    }

    /// The stamp after this one. The last one stays.
    #[must_use]
    pub fn next(self) -> Hlc {
        Hlc(self.0.saturating_add(1))
    }

    /// This stamp, or the highest one that a clock which shows `wall_ms` believes: no other clock is
    /// more than `ahead_ms` fast.
    pub(crate) fn believed(self, wall_ms: u64, ahead_ms: u64) -> Hlc {
        self.min(Hlc::at(wall_ms.saturating_add(ahead_ms)))
    }
}

/// A cluster's random identity, made by `init`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What everything that a database holds hashes to: equal where the states are, at an LSN.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub u128);

impl Root {
    /// As the outcome of an [`Audit`](crate::Kind::Audit) entry carries it.
    #[must_use]
    pub fn encode(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// From such an outcome; `None` where it carries none.
    #[must_use]
    pub fn decode(answer: &[u8]) -> Option<Root> {
        Some(Root(u128::from_le_bytes(answer.try_into().ok()?)))
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A data directory's identity: 48 bits of the wall milliseconds at which it was made, then 80
/// random bits. A wiped directory gets a new, higher one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{:x}", self.0)
    }
}

/// What counts for a quorum: a node with the data directory it had when it joined.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.node, self.incarnation)
    }
}

/// One start of a process on a data directory. The counter is durable and rises with each start;
/// the nonce tells two starts from the same (rolled-back) counter apart.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot {
    /// Rises with each start of the data directory.
    pub counter: u64,
    /// Random, made at each start.
    pub nonce: u64,
}

impl fmt::Debug for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.counter)
    }
}

/// The sender of a message, as the transport vouches for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Node and data directory.
    pub member: Member,
    /// Which start of it.
    pub boot: Boot,
}

/// Microseconds on the node's own monotonic clock.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant plus `micros`.
    #[must_use]
    pub fn plus(self, micros: u64) -> Instant {
        Instant(self.0.saturating_add(micros))
    }

    /// Microseconds since `earlier`; 0 if it lies in the future.
    #[must_use]
    pub fn since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}ms", self.0 / 1000, self.0 % 1000)
    }
}

/// The time of one step. Only `mono` decides anything; `wall_ms` feeds the HLC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub mono: Instant,
    /// Unix time in milliseconds.
    pub wall_ms: u64,
}
