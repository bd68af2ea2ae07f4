//! What a client writes, as it travels in an entry's payload, and what applying it yields.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{Lsn, planted};

/// Writes in one [`Op`].
pub const WRITES_MAX: usize = 16_384;

/// Bytes of a key.
pub const KEY_MAX: usize = 1024;

/// Bytes of a media type.
pub const CONTENT_TYPE_MAX: usize = 255;

/// Versions in one [`Versions::Of`].
pub const VERSIONS_MAX: usize = 1024;

/// The layout of ops that is written.
const OP_VERSION: u8 = 1;

/// The layout of answers that is written.
const ANSWER_VERSION: u8 = 1;

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

/// Why something is not an [`Op`] or an [`Answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// Bytes are missing.
    #[error("an operation is cut off")]
    Truncated,
    /// There are bytes after its end.
    #[error("an operation has {0} bytes after its end")]
    Trailing(usize),
    /// Written by a later release.
    #[error("an operation has version {0}, which this release does not know: run a later one")]
    Version(u8),
    /// A tag that means nothing.
    #[error("an operation has an unknown {0}")]
    Tag(&'static str),
    /// None, or more than [`WRITES_MAX`].
    #[error("an operation cannot have {0} writes: 1 to 16384 are possible")]
    Writes(usize),
    /// Empty or longer than [`KEY_MAX`].
    #[error("a key cannot be {0} bytes long: 1 to 1024 are possible")]
    KeyLength(usize),
    /// Longer than [`CONTENT_TYPE_MAX`].
    #[error("a content type cannot be {0} bytes long: 255 is the most")]
    ContentTypeLength(usize),
    /// Not UTF-8.
    #[error("a {0} is not UTF-8")]
    Utf8(&'static str),
    /// More than [`VERSIONS_MAX`].
    #[error("a condition cannot name {0} versions: 1024 is the most")]
    Versions(usize),
    /// The same key in two writes.
    #[error("write {0} has the key of another write of the same operation")]
    RepeatedKey(usize),
}

impl Op {
    /// Whether it keeps its bounds: what [`Op::decode`] accepts.
    ///
    /// # Errors
    /// The first bound that is broken.
    pub fn check(&self) -> Result<(), OpError> {
        if !(1..=WRITES_MAX).contains(&self.writes.len()) {
            return Err(OpError::Writes(self.writes.len()));
        }
        for write in &self.writes {
            if !(1..=KEY_MAX).contains(&write.key.len()) {
                return Err(OpError::KeyLength(write.key.len()));
            }
            utf8(&write.key, "key")?;
            if let Action::Put { content_type, .. } = &write.action {
                if content_type.len() > CONTENT_TYPE_MAX {
                    return Err(OpError::ContentTypeLength(content_type.len()));
                }
                utf8(content_type, "content type")?;
            }
            for versions in [&write.condition.matches, &write.condition.matches_none] {
                match versions {
                    Some(Versions::Of(of)) if of.len() > VERSIONS_MAX => {
                        return Err(OpError::Versions(of.len()));
                    }
                    _ => {}
                }
            }
        }
        no_key_twice(&self.writes)
    }

    /// Its bytes. An op that [`Op::check`] refuses gives bytes that [`Op::decode`] refuses.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.size_hint());
        out.put_u8(OP_VERSION);
        out.put_u32_le(u32::try_from(self.writes.len()).unwrap_or(u32::MAX));
        for write in &self.writes {
            put_short(&mut out, &write.key);
            match &write.action {
                Action::Delete => out.put_u8(0),
                Action::Put { value, content_type } => {
                    out.put_u8(1);
                    put_short(&mut out, content_type);
                    out.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
                    out.put_slice(value);
                }
            }
            put_versions(&mut out, write.condition.matches.as_ref());
            put_versions(&mut out, write.condition.matches_none.as_ref());
        }
        out.freeze()
    }

    /// Reads it back. Keys and values share the memory of `bytes`.
    ///
    /// # Errors
    /// Where a bound is broken, or the bytes are no op of this release.
    pub fn decode(mut bytes: Bytes) -> Result<Op, OpError> {
        let version = u8_of(&mut bytes)?;
        if version != OP_VERSION {
            return Err(OpError::Version(version));
        }
        let count = bytes.try_get_u32_le().map_err(|_| OpError::Truncated)? as usize;
        if !(1..=WRITES_MAX).contains(&count) {
            return Err(OpError::Writes(count));
        }
        // Every write takes some bytes, so the count cannot ask for more memory than they justify.
        if bytes.len() / WRITE_MIN < count {
            return Err(OpError::Truncated);
        }
        let mut writes = Vec::with_capacity(count);
        for _ in 0..count {
            writes.push(take_write(&mut bytes)?);
        }
        if !bytes.is_empty() {
            return Err(OpError::Trailing(bytes.len()));
        }
        let op = Op { writes };
        op.check()?;
        Ok(op)
    }

    fn size_hint(&self) -> usize {
        let of = |w: &Write| match &w.action {
            Action::Delete => w.key.len() + 16,
            Action::Put { value, content_type } => {
                w.key.len() + value.len() + content_type.len() + 16
            }
        };
        5 + self.writes.iter().map(of).sum::<usize>()
    }
}

/// A delete of an empty key without conditions: key length, action, two conditions.
const WRITE_MIN: usize = 2 + 1 + 1 + 1;

impl Answer {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(14);
        out.put_u8(ANSWER_VERSION);
        match self {
            Answer::Done { existed } => {
                out.put_u8(0);
                out.put_u8(u8::from(*existed));
            }
            Answer::Refused { index, version } => {
                out.put_u8(1);
                out.put_u32_le(*index);
                out.put_u64_le(version.0);
            }
        }
        out.freeze()
    }

    /// Reads it back.
    ///
    /// # Errors
    /// Where the bytes are no answer of this release.
    pub fn decode(mut bytes: &[u8]) -> Result<Answer, OpError> {
        let cut = |_| OpError::Truncated;
        let version = bytes.try_get_u8().map_err(cut)?;
        if version != ANSWER_VERSION {
            return Err(OpError::Version(version));
        }
        let answer = match bytes.try_get_u8().map_err(cut)? {
            0 => match bytes.try_get_u8().map_err(cut)? {
                0 => Answer::Done { existed: false },
                1 => Answer::Done { existed: true },
                _ => return Err(OpError::Tag("flag")),
            },
            1 => Answer::Refused {
                index: bytes.try_get_u32_le().map_err(cut)?,
                version: Lsn(bytes.try_get_u64_le().map_err(cut)?),
            },
            _ => return Err(OpError::Tag("answer")),
        };
        if bytes.is_empty() { Ok(answer) } else { Err(OpError::Trailing(bytes.len())) }
    }
}

/// A length in 16 bits; one that does not fit becomes one that no bound allows.
fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

fn put_versions(out: &mut BytesMut, versions: Option<&Versions>) {
    match versions {
        None => out.put_u8(0),
        Some(Versions::Of(of))
            if of.is_empty() && planted::is(planted::Planted::EmptyListAsAbsent) =>
        {
            out.put_u8(0);
        }
        Some(Versions::Any) => out.put_u8(1),
        Some(Versions::Of(of)) => {
            out.put_u8(2);
            out.put_u16_le(u16::try_from(of.len()).unwrap_or(u16::MAX));
            for version in of {
                out.put_u64_le(version.0);
            }
        }
    }
}

fn take_write(bytes: &mut Bytes) -> Result<Write, OpError> {
    let len = u16_of(bytes)?;
    if !(1..=KEY_MAX).contains(&len) {
        return Err(OpError::KeyLength(len));
    }
    let key = take(bytes, len)?;
    let action = match u8_of(bytes)? {
        0 => Action::Delete,
        1 => {
            let len = u16_of(bytes)?;
            if len > CONTENT_TYPE_MAX {
                return Err(OpError::ContentTypeLength(len));
            }
            let content_type = take(bytes, len)?;
            let len = bytes.try_get_u32_le().map_err(|_| OpError::Truncated)? as usize;
            Action::Put { value: take(bytes, len)?, content_type }
        }
        _ => return Err(OpError::Tag("action")),
    };
    let condition =
        Condition { matches: take_versions(bytes)?, matches_none: take_versions(bytes)? };
    Ok(Write { key, action, condition })
}

fn take_versions(bytes: &mut Bytes) -> Result<Option<Versions>, OpError> {
    match u8_of(bytes)? {
        0 => Ok(None),
        1 => Ok(Some(Versions::Any)),
        2 => {
            let count = u16_of(bytes)?;
            if count > VERSIONS_MAX {
                return Err(OpError::Versions(count));
            }
            let mut of = take(bytes, count * 8)?;
            Ok(Some(Versions::Of((0..count).map(|_| Lsn(of.get_u64_le())).collect())))
        }
        _ => Err(OpError::Tag("condition")),
    }
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, OpError> {
    if bytes.len() < len { Err(OpError::Truncated) } else { Ok(bytes.split_to(len)) }
}

fn u8_of(bytes: &mut Bytes) -> Result<u8, OpError> {
    bytes.try_get_u8().map_err(|_| OpError::Truncated)
}

fn u16_of(bytes: &mut Bytes) -> Result<usize, OpError> {
    bytes.try_get_u16_le().map(usize::from).map_err(|_| OpError::Truncated)
}

fn utf8(bytes: &[u8], what: &'static str) -> Result<(), OpError> {
    std::str::from_utf8(bytes).map(|_| ()).map_err(|_| OpError::Utf8(what))
}

fn no_key_twice(writes: &[Write]) -> Result<(), OpError> {
    // Most batches come in order already, which costs one comparison a write.
    if writes.windows(2).all(|w| w[0].key < w[1].key) {
        return Ok(());
    }
    let mut seen = std::collections::BTreeSet::new();
    match writes.iter().position(|w| !seen.insert(&w.key)) {
        Some(index) => Err(OpError::RepeatedKey(index)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, mutations};

    fn put(key: &'static str, value: &'static [u8], content_type: &'static str) -> Write {
        Write {
            key: Bytes::from_static(key.as_bytes()),
            action: Action::Put {
                value: Bytes::from_static(value),
                content_type: Bytes::from_static(content_type.as_bytes()),
            },
            condition: Condition::default(),
        }
    }

    fn delete(key: &'static str, condition: Condition) -> Write {
        Write { key: Bytes::from_static(key.as_bytes()), action: Action::Delete, condition }
    }

    fn single() -> Op {
        Op { writes: vec![put("k", b"value", "text/plain")] }
    }

    /// Every action, every kind of condition, keys out of order.
    fn full() -> Op {
        let all = [None, Some(Versions::Any), Some(Versions::Of(vec![])), of(&[1, u64::MAX])];
        let mut writes = vec![put("z", b"", "")];
        for (i, matches) in all.iter().enumerate() {
            for (j, matches_none) in all.iter().enumerate() {
                let key = Bytes::from(format!("k{i}{j}"));
                let condition =
                    Condition { matches: matches.clone(), matches_none: matches_none.clone() };
                writes.push(Write { key, action: Action::Delete, condition });
            }
        }
        Op { writes }
    }

    fn of(versions: &[u64]) -> Option<Versions> {
        Some(Versions::Of(versions.iter().map(|v| Lsn(*v)).collect()))
    }

    const ANSWERS: [Answer; 3] = [
        Answer::Done { existed: false },
        Answer::Done { existed: true },
        Answer::Refused { index: 258, version: Lsn(0x0102_0304_0506) },
    ];

    #[test]
    fn bytes_are_frozen() {
        insta::assert_snapshot!("op_single", hex(&single().encode()));
        insta::assert_snapshot!("op_full", hex(&full().encode()));
        let answers: Vec<_> =
            ANSWERS.iter().map(|a| format!("{a:?}\n{}", hex(&a.encode()))).collect();
        insta::assert_snapshot!("answers", answers.join("\n\n"));
    }

    #[test]
    fn ops_come_back_without_a_copy() {
        for op in [single(), full()] {
            op.check().expect("within its bounds");
            let bytes = op.encode();
            let memory = bytes.as_ptr_range();
            let back = Op::decode(bytes.clone()).expect("what was encoded");
            assert_eq!(back, op);
            for write in &back.writes {
                assert!(memory.contains(&write.key.as_ptr()), "a key was copied");
            }
        }
    }

    #[test]
    fn answers_come_back() {
        for answer in ANSWERS {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn damage_never_panics_and_never_breaks_a_bound() {
        for op in [single(), full()] {
            mutations(&op.encode(), |damaged| {
                if let Ok(op) = Op::decode(damaged.clone()) {
                    op.check().expect("decode keeps the bounds");
                    assert_eq!(op.encode(), damaged, "two encodings of one op");
                }
            });
        }
        for answer in ANSWERS {
            mutations(&answer.encode(), |damaged| {
                if let Ok(answer) = Answer::decode(&damaged) {
                    assert_eq!(answer.encode(), damaged, "two encodings of one answer");
                }
            });
        }
    }

    #[test]
    fn every_bound_is_kept_at_both_ends() {
        let refused = |op: Op, error: OpError| {
            assert_eq!(op.check(), Err(error));
            assert!(Op::decode(op.encode()).is_err(), "{error} was decoded");
        };
        let key = |len: usize| {
            let mut op = single();
            op.writes[0].key = Bytes::from(vec![b'k'; len]);
            op
        };
        let content_type = |len: usize| {
            let mut op = single();
            op.writes[0].action =
                Action::Put { value: Bytes::new(), content_type: Bytes::from(vec![b't'; len]) };
            op
        };
        let versions = |len: usize| {
            let mut op = single();
            op.writes[0].condition.matches = Some(Versions::Of(vec![Lsn(1); len]));
            op
        };
        let many = |count: usize| Op {
            writes: (0..count)
                .map(|i| Write {
                    key: Bytes::from(format!("{i}")),
                    ..delete("", Condition::default())
                })
                .collect(),
        };
        for fine in [
            key(1),
            key(KEY_MAX),
            content_type(CONTENT_TYPE_MAX),
            versions(VERSIONS_MAX),
            many(WRITES_MAX),
        ] {
            assert_eq!(Op::decode(fine.encode()), Ok(fine));
        }
        refused(many(0), OpError::Writes(0));
        refused(many(WRITES_MAX + 1), OpError::Writes(WRITES_MAX + 1));
        for len in [0, KEY_MAX + 1, 1 << 16, (1 << 16) + 1] {
            refused(key(len), OpError::KeyLength(len));
        }
        for len in [CONTENT_TYPE_MAX + 1, 1 << 16] {
            refused(content_type(len), OpError::ContentTypeLength(len));
        }
        for len in [VERSIONS_MAX + 1, 1 << 16] {
            refused(versions(len), OpError::Versions(len));
        }
        let none = Condition::default;
        let twice = vec![delete("a", none()), delete("b", none()), delete("a", none())];
        refused(Op { writes: twice }, OpError::RepeatedKey(2));
        let mut op = single();
        op.writes[0].key = Bytes::from_static(b"\xff");
        refused(op, OpError::Utf8("key"));
    }

    #[test]
    fn other_versions_and_trailing_bytes_are_named() {
        let mut bytes = single().encode().to_vec();
        bytes.push(0);
        assert_eq!(Op::decode(Bytes::from(bytes.clone())), Err(OpError::Trailing(1)));
        bytes[0] = 2;
        assert_eq!(Op::decode(Bytes::from(bytes)), Err(OpError::Version(2)));
        assert_eq!(Answer::decode(&[2, 0, 0]), Err(OpError::Version(2)));
        assert_eq!(Answer::decode(&[1, 0, 0, 0]), Err(OpError::Trailing(1)));
    }
}
