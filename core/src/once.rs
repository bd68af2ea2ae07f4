//! Exactly once for retries: what a group remembers of writes that came with a key. This is the pure
//! table, core-owned control state like the slots; `group/once.rs` feeds it and answers from it.
//!
//! A keyed write is an entry of its own kind ([`OnceEntry`]). When it is applied, the table remembers
//! its outcome, refused or not, until log time has reached what the entry says: so every replica
//! forgets at the same entry, whatever its own configuration. Nothing is forgotten before that.
//!
//! A checkpoint writes only the rows to which a record was added since the last one. Nothing is ever
//! erased from a row: at any LSN, what is forgotten is what has expired by the log time there, so that
//! a row that is read back is told apart by that alone. A row of which nothing is left is filled anew.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    config::Config,
    entry::Outcome,
    planted::{self, Planted},
    types::{Lsn, Term},
};

/// The longest key of a write, in bytes.
pub const ONCE_KEY_MAX: usize = 128;
/// Bytes of a request's digest.
const DIGEST: usize = 16;

const VERSION: u8 = 1;

/// What tells a write that is asked for again from a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnceKey {
    /// The client's name for it: 1 to [`ONCE_KEY_MAX`] bytes.
    pub key: Bytes,
    /// Of the whole request: another one with the same key is refused.
    pub digest: [u8; DIGEST],
}

impl OnceKey {
    /// Whether the key has a length that a key may have.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        (1..=ONCE_KEY_MAX).contains(&self.key.len())
    }
}

/// The payload of a [`Kind::Once`](crate::Kind::Once) entry: an operation that takes effect at most
/// once. `docs/FORMATS.md` has the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnceEntry {
    /// Log time, as the leader that appended the entry counted it.
    pub time_ms: u64,
    /// The log time at which its outcome is forgotten.
    pub expires_ms: u64,
    /// Its client's name for it.
    pub once: OnceKey,
    /// For the state machine.
    pub op: Bytes,
}

impl OnceEntry {
    /// Bytes of a payload before the operation, at most.
    pub(crate) const HEAD_MAX: usize = 1 + 8 + 8 + 1 + ONCE_KEY_MAX + DIGEST;

    /// Its bytes.
    ///
    /// # Panics
    /// With a key that is empty or too long.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(OnceEntry::HEAD_MAX + self.op.len());
        out.put_u8(VERSION);
        out.put_u64_le(self.time_ms);
        out.put_u64_le(self.expires_ms);
        put_key(&mut out, &self.once.key);
        out.put_slice(&self.once.digest);
        out.put_slice(&self.op);
        out.freeze()
    }

    /// What these bytes say; `None` where they are no such payload. Shares their memory.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<OnceEntry> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let time_ms = bytes.try_get_u64_le().ok()?;
        let expires_ms = bytes.try_get_u64_le().ok()?;
        let once = OnceKey { key: get_key(&mut bytes)?, digest: get_digest(&mut bytes)? };
        Some(OnceEntry { time_ms, expires_ms, once, op: bytes })
    }
}

fn put_key(out: &mut BytesMut, key: &[u8]) {
    assert!((1..=ONCE_KEY_MAX).contains(&key.len()), "a key has a bounded length");
    out.put_u8(key.len() as u8);
    out.put_slice(key);
}

fn get_key(bytes: &mut Bytes) -> Option<Bytes> {
    let len = usize::from(bytes.try_get_u8().ok()?);
    let fits = (1..=ONCE_KEY_MAX).contains(&len) && bytes.remaining() >= len;
    fits.then(|| bytes.split_to(len))
}

fn get_digest(bytes: &mut Bytes) -> Option<[u8; DIGEST]> {
    let mut digest = [0; DIGEST];
    bytes.try_copy_to_slice(&mut digest).ok()?;
    Some(digest)
}

/// What became of a keyed write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) digest: [u8; DIGEST],
    expires_ms: u64,
    pub(crate) lsn: Lsn,
    pub(crate) term: Term,
    pub(crate) outcome: Outcome,
}

/// The keyed writes that a replica remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedView<'a> {
    /// As of this LSN: what is applied, or more where the state was found ahead after a restart.
    pub lsn: Lsn,
    /// Log time as of that.
    pub time_ms: u64,
    /// In order of keys: each with the LSN of its entry.
    pub keys: Vec<(&'a [u8], Lsn)>,
}

/// Before the number of a row, as a big endian u32.
pub(crate) const CONTROL_PREFIX: &[u8] = b"once/";
/// Records that are put in one row.
const ROW_MAX: usize = 128;

/// Every keyed write of a group that is not forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Once {
    rows: BTreeMap<u32, BTreeMap<Bytes, Remembered>>,
    /// The row of each key.
    places: BTreeMap<Bytes, u32>,
    /// In the order in which they are forgotten.
    expiries: BTreeSet<(u64, Bytes)>,
    /// The row that is being filled, and how many were put in it.
    filling: Option<(u32, usize)>,
    /// Rows that the last checkpoint does not have as they are.
    dirty: BTreeSet<u32>,
}

impl Once {
    /// What became of the write with this key, unless that is to be forgotten at that log time.
    pub(crate) fn get(&self, key: &[u8], now_ms: u64) -> Option<&Remembered> {
        let row = self.places.get(key)?;
        self.rows[row].get(key).filter(|remembered| remembered.expires_ms > now_ms)
    }

    /// How many are not to be forgotten at that log time.
    pub(crate) fn len(&self, now_ms: u64) -> usize {
        let forgotten = self.expiries.iter().take_while(|(expires_ms, _)| *expires_ms <= now_ms);
        self.places.len() - forgotten.count()
    }

    /// All keys in order, each with the LSN of its entry.
    pub(crate) fn keys(&self) -> Vec<(&[u8], Lsn)> {
        self.places.iter().map(|(key, row)| (&key[..], self.rows[row][key].lsn)).collect()
    }

    /// A keyed write is applied, at the log time of its entry.
    pub(crate) fn take(
        &mut self,
        (lsn, term): (Lsn, Term),
        entry: &OnceEntry,
        time_ms: u64,
        outcome: Outcome,
    ) {
        self.forget(time_ms);
        let OnceKey { key, digest } = &entry.once;
        let early = planted::is(Planted::OnceForgottenEarly);
        let expires_ms = if early { time_ms + 1 } else { entry.expires_ms };
        let unkept = outcome.refused && planted::is(Planted::RefusalNotRemembered);
        if expires_ms <= time_ms || unkept {
            return;
        }
        // The entry's payload is not to be kept for it.
        let (key, digest) = (Bytes::copy_from_slice(key), *digest);
        // No leader appends a key that is remembered.
        if let Some(row) = self.remove(&key) {
            self.dirty.insert(row);
        }
        let row = self.row_to_fill();
        self.dirty.insert(row);
        self.insert(row, key, Remembered { digest, expires_ms, lsn, term, outcome });
    }

    /// Log time has risen.
    pub(crate) fn forget(&mut self, time_ms: u64) {
        while let Some((expires_ms, key)) = self.expiries.first().cloned()
            && expires_ms <= time_ms
        {
            self.remove(&key);
        }
    }

    fn insert(&mut self, row: u32, key: Bytes, remembered: Remembered) {
        self.expiries.insert((remembered.expires_ms, key.clone()));
        self.places.insert(key.clone(), row);
        self.rows.entry(row).or_default().insert(key, remembered);
    }

    fn remove(&mut self, key: &Bytes) -> Option<u32> {
        let row = self.places.remove(key)?;
        let records = self.rows.get_mut(&row)?;
        if let Some(remembered) = records.remove(key) {
            self.expiries.remove(&(remembered.expires_ms, key.clone()));
        }
        if records.is_empty() {
            self.rows.remove(&row);
        }
        Some(row)
    }

    fn row_to_fill(&mut self) -> u32 {
        let (row, taken) = match self.filling {
            Some((row, taken)) if taken < ROW_MAX => (row, taken),
            _ => {
                let unused = (0..).find(|row| !self.rows.contains_key(row));
                (unused.expect("rows are bounded"), 0)
            }
        };
        self.filling = Some((row, taken + 1));
        row
    }

    /// When log time is to be made part of the log again, at the latest, so that what expires is
    /// forgotten whoever leads; `None` while nothing is remembered.
    pub(crate) fn ticks_at(&self, time_ms: u64, config: &Config) -> Option<u64> {
        let every = (config.slot_tick_us / 1000).max(config.once_window_ms / 64);
        (!self.places.is_empty()).then(|| time_ms.saturating_add(every))
    }

    // --- checkpoints ---

    /// The control writes of a checkpoint that begins now.
    pub(crate) fn take_dirty(&mut self) -> Vec<(Bytes, Bytes)> {
        let dirty = core::mem::take(&mut self.dirty);
        if planted::is(Planted::OnceNotCheckpointed) {
            return Vec::new();
        }
        // Of a row that is gone, all that a checkpoint has of it has expired.
        let kept = dirty.into_iter().filter_map(|row| Some((row, self.rows.get(&row)?)));
        kept.map(|(row, records)| (row_key(row), encode_row(records))).collect()
    }

    /// The table from its rows, at the log time at which they stand; `None` where one can't be read.
    pub(crate) fn decode(rows: &[(Bytes, Bytes)], time_ms: u64) -> Option<Once> {
        let mut once = Once::default();
        for (key, value) in rows {
            let Some(row) = key.strip_prefix(CONTROL_PREFIX) else { continue };
            let row = u32::from_be_bytes(row.try_into().ok()?);
            for (key, remembered) in decode_row(value.clone())? {
                if remembered.expires_ms > time_ms {
                    if once.places.contains_key(&key) {
                        return None;
                    }
                    once.insert(row, key, remembered);
                }
            }
        }
        Some(once)
    }

    /// Invariants that hold between steps (docs/INVARIANTS.md).
    pub(crate) fn check(&self, time_ms: u64) {
        let first = self.expiries.first();
        let kept = first.is_none_or(|(expires_ms, _)| *expires_ms > time_ms);
        assert!(kept, "K4: what has expired is forgotten: {first:?} at {time_ms}");
        assert_eq!(self.expiries.len(), self.places.len(), "K4: each is forgotten some day");
        assert!(self.rows.len() <= self.places.len(), "K5: there is no row without a record");
    }
}

fn row_key(row: u32) -> Bytes {
    let mut key = BytesMut::from(CONTROL_PREFIX);
    key.put_u32(row);
    key.freeze()
}

fn encode_row(records: &BTreeMap<Bytes, Remembered>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u16_le(records.len() as u16);
    for (key, Remembered { digest, expires_ms, lsn, term, outcome }) in records {
        put_key(&mut out, key);
        out.put_slice(digest);
        out.put_u64_le(*expires_ms);
        out.put_u64_le(lsn.0);
        out.put_u64_le(term.0);
        out.put_u8(u8::from(outcome.refused));
        out.put_u32_le(outcome.answer.len() as u32);
        out.put_slice(&outcome.answer);
    }
    out.freeze()
}

fn decode_row(mut bytes: Bytes) -> Option<Vec<(Bytes, Remembered)>> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let count = bytes.try_get_u16_le().ok()?;
    let record = |_| {
        let key = Bytes::copy_from_slice(&get_key(&mut bytes)?);
        let digest = get_digest(&mut bytes)?;
        let expires_ms = bytes.try_get_u64_le().ok()?;
        let (lsn, term) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        let refused = match bytes.try_get_u8().ok()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let len = bytes.try_get_u32_le().ok()? as usize;
        let fits = bytes.remaining() >= len;
        let answer = fits.then(|| Bytes::copy_from_slice(&bytes.split_to(len)))?;
        let outcome = Outcome { refused, answer };
        Some((key, Remembered { digest, expires_ms, lsn: Lsn(lsn), term: Term(term), outcome }))
    };
    let records: Option<Vec<_>> = (0..count).map(record).collect();
    records.filter(|_| bytes.is_empty())
}

#[cfg(test)]
mod tests;
