//! How much of its log a group keeps: core-owned control state, the same on every replica that has
//! applied the same. The leader proposes where the log is to begin (`group/retention.rs`); what comes
//! of that is judged at apply.
//!
//! Everything in the log counts here, refused operations and control entries too, since all of it
//! takes space. A log is cut only where the tally has a mark, so that the last effective operation
//! before the cut is known: a stream that begins there names it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    config::Config,
    entry::Position,
    slots::Tally,
    types::{Lsn, Term},
};

/// Marks are this dense: a cut leaves about a seventh more than what is to be kept.
const NEAR: u64 = 16;
/// Less than so many bytes are not worth the entry that prunes them.
const LEAST: u64 = 4096;
const VERSION: u8 = 1;

/// Where a log begins: the payload of a [`Kind::Prune`](crate::Kind::Prune) entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The last entry that is not in the log any more; zero for a log that was never cut.
    pub position: Position,
    /// The last effective operation up to there.
    pub effective: Lsn,
    /// The weight of all entries up to there.
    pub bytes: u64,
}

impl Base {
    pub(crate) const LEN: usize = 32;

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.position.lsn.0);
        out.put_u64_le(self.position.term.0);
        out.put_u64_le(self.effective.0);
        out.put_u64_le(self.bytes);
    }

    pub(crate) fn get(bytes: &mut Bytes) -> Option<Base> {
        (bytes.remaining() >= Base::LEN).then(|| {
            let (lsn, term) = (Lsn(bytes.get_u64_le()), Term(bytes.get_u64_le()));
            let position = Position { term, lsn };
            Base { position, effective: Lsn(bytes.get_u64_le()), bytes: bytes.get_u64_le() }
        })
    }

    /// The payload of the entry that says so.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(1 + Base::LEN);
        out.put_u8(VERSION);
        self.put(&mut out);
        out.freeze()
    }

    /// What these bytes say; `None` where they are no such payload.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<Base> {
        if bytes.len() != 1 + Base::LEN || bytes.get_u8() != VERSION {
            return None;
        }
        Base::get(&mut bytes).filter(|base| base.effective <= base.position.lsn)
    }
}

/// What a group's log keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retention {
    base: Base,
    /// Of all entries.
    tally: Tally<NEAR>,
    /// The last effective operation.
    effective: Lsn,
}

impl Retention {
    /// Where the log begins, as far as all replicas agree.
    pub(crate) fn base(&self) -> Base {
        self.base
    }

    /// What comes before the log where all that is applied is cut.
    pub(crate) fn whole(&self) -> Base {
        let bytes = self.tally.total().bytes;
        Base { position: Position::default(), effective: self.effective, bytes }
    }

    /// The last effective operation that is applied.
    pub(crate) fn effective(&self) -> Lsn {
        self.effective
    }

    /// An entry is applied.
    pub(crate) fn take(&mut self, lsn: Lsn, bytes: usize, effective: bool, time_ms: u64) {
        if effective {
            self.effective = lsn;
        }
        self.tally.add(lsn, bytes, time_ms, self.effective);
    }

    /// The log is to begin there. Whether it does that further on than before.
    pub(crate) fn cut(&mut self, base: Base) -> bool {
        let counted = base.bytes <= self.tally.total().bytes && base.effective <= self.effective;
        let rises = counted && base.position.lsn > self.base.position.lsn;
        if rises {
            self.base = base;
        }
        rises
    }

    /// The weight of what is kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.tally.total().bytes - self.base.bytes
    }

    /// Whether there is room to wait for followers that are behind: up to twice what is to be kept.
    pub(crate) fn is_patient(&self, config: &Config) -> bool {
        config.retention_bytes == 0 || self.kept_bytes() <= 2 * config.retention_bytes.max(LEAST)
    }

    /// Whether time alone will make something of the log too old.
    pub(crate) fn ages(&self, config: &Config) -> bool {
        config.retention_ms > 0 && self.effective > self.base.position.lsn
    }

    /// Where the log may begin now, at `bound` at most; the position's term is not known here. `None`
    /// where that is not worth an entry: a quarter more than is to be kept is.
    pub(crate) fn wants_cut(&self, config: &Config, now_ms: u64, bound: Lsn) -> Option<Base> {
        let beyond = |most: u64, used: u64| most > 0 && used > most.saturating_add(most / 4);
        let total = self.tally.total().bytes;
        let keeps = if config.retention_bytes == 0 { 0 } else { config.retention_bytes.max(LEAST) };
        let large = beyond(keeps, self.kept_bytes());
        let oldest = self.tally.time_after_lsn(self.base.position.lsn);
        let age = oldest.map_or(0, |then| now_ms.saturating_sub(then));
        let old = self.ages(config) && beyond(config.retention_ms, age);
        if !large && !old {
            return None;
        }
        let too_many = |bytes: u64| large && total - bytes >= keeps;
        let too_old = |ms: u64| old && now_ms.saturating_sub(ms) >= config.retention_ms;
        let mark = self.tally.last_mark(|mark| {
            mark.lsn <= bound && (too_many(mark.count.bytes) || too_old(mark.time_ms))
        })?;
        let position = Position { term: Term(0), lsn: mark.lsn };
        let base = Base { position, effective: mark.effective, bytes: mark.count.bytes };
        (mark.lsn > self.base.position.lsn).then_some(base)
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        self.base.put(out);
        out.put_u64_le(self.effective.0);
        self.tally.put(out);
    }

    pub(crate) fn get(bytes: &mut Bytes) -> Option<Retention> {
        let base = Base::get(bytes)?;
        let effective = Lsn((bytes.remaining() >= 8).then(|| bytes.get_u64_le())?);
        Some(Retention { base, effective, tally: Tally::get(bytes)? })
    }

    /// Invariants that hold between steps (docs/INVARIANTS.md).
    pub(crate) fn check(&self) {
        self.tally.check();
        assert!(self.base.bytes <= self.tally.total().bytes, "R1: what is cut was counted");
        assert!(self.base.effective <= self.effective, "R1: what is cut was applied");
    }
}
