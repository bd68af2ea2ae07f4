//! What a client writes, as it travels in an entry's payload, and what applying it yields.

use bytes::Bytes;
use highwater_core::Lsn;

/// One operation: all of it or nothing, one LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// In order; at least one; no key twice.
    pub writes: Vec<Write>,
}

/// One key of an [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// 1..=1024 bytes of UTF-8.
    pub key: Bytes,
    /// What happens to it.
    pub action: Action,
    /// What must hold before it, judged when the entry is applied.
    pub condition: Condition,
}

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The key gets this value.
    Put {
        /// The bytes.
        value: Bytes,
        /// Their media type as the client gave it; UTF-8, at most 255 bytes; empty where it gave
        /// none.
        content_type: Bytes,
    },
    /// The key is gone.
    Delete,
}

/// A precondition on a record's version; both parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The record exists and, unless [`Versions::Any`], has one of these versions.
    pub matches: Option<Versions>,
    /// The record does not exist or, unless [`Versions::Any`], has none of these versions.
    pub matches_none: Option<Versions>,
}

/// A set of versions of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Every one.
    Any,
    /// These; may be empty (which matches nothing).
    Of(Vec<Lsn>),
}

/// What applying an [`Op`] yields, identical on every replica: travels as
/// [`Outcome::answer`](highwater_core::Outcome).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took effect.
    Done {
        /// Whether the first write's key existed before.
        existed: bool,
    },
    /// A condition did not hold; nothing changed.
    Refused {
        /// Index of the first write whose condition failed.
        index: u32,
        /// That record's current version; 0 where it does not exist.
        version: Lsn,
    },
}
