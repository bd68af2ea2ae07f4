//! The payload of a [`Kind::Slot`](crate::Kind::Slot) entry: what happens to slots, and the log time
//! at which it does. `docs/FORMATS.md` has the bytes.

use alloc::{string::String, vec::Vec};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{SlotCause, SlotLimits, SlotSettings, SlotStart};
use crate::types::Lsn;

/// The longest name of a slot, in bytes.
pub const SLOT_NAME_MAX: usize = 63;

const VERSION: u8 = 1;

/// What one entry says of slots. Without a change it is a tick: log time goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotEntry {
    /// Log time, as the leader that appended the entry counted it.
    pub time_ms: u64,
    /// In this order.
    pub changes: Vec<SlotChange>,
}

/// What happens to one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotChange {
    /// It comes into being, unless it stands.
    Create {
        /// Its name.
        name: String,
        /// As asked.
        settings: SlotSettings,
    },
    /// Its consumer lives, and has everything up to here.
    Ack {
        /// Its name.
        name: String,
        /// Up to here.
        lsn: Lsn,
    },
    /// It ceases to be.
    Delete {
        /// Its name.
        name: String,
    },
    /// It is past a limit, as the leader saw it: void where it has moved since.
    Invalidate {
        /// Its name.
        name: String,
        /// Which limit.
        cause: SlotCause,
        /// The confirmed position that the leader saw.
        confirmed: Lsn,
        /// The last sign of life that the leader saw, in log time.
        alive_ms: u64,
    },
}

impl SlotChange {
    /// The slot that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            SlotChange::Create { name, .. }
            | SlotChange::Ack { name, .. }
            | SlotChange::Delete { name }
            | SlotChange::Invalidate { name, .. } => name,
        }
    }
}

impl SlotEntry {
    /// Its bytes.
    ///
    /// # Panics
    /// With more than 65,535 changes, or a name that is empty or too long.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64_le(self.time_ms);
        let count = u16::try_from(self.changes.len());
        out.put_u16_le(count.expect("one entry's changes are bounded"));
        for change in &self.changes {
            match change {
                SlotChange::Create { name, settings } => {
                    out.put_u8(1);
                    put_name(&mut out, name);
                    put_settings(&mut out, settings);
                }
                SlotChange::Ack { name, lsn } => {
                    out.put_u8(2);
                    put_name(&mut out, name);
                    out.put_u64_le(lsn.0);
                }
                SlotChange::Delete { name } => {
                    out.put_u8(3);
                    put_name(&mut out, name);
                }
                SlotChange::Invalidate { name, cause, confirmed, alive_ms } => {
                    out.put_u8(4);
                    put_name(&mut out, name);
                    out.put_u8(*cause as u8);
                    out.put_u64_le(confirmed.0);
                    out.put_u64_le(*alive_ms);
                }
            }
        }
        out.freeze()
    }

    /// What these bytes say; `None` where they are no such payload.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<SlotEntry> {
        if get_u8(&mut bytes)? != VERSION {
            return None;
        }
        let time_ms = get_u64(&mut bytes)?;
        let count = get_u16(&mut bytes)?;
        let changes: Option<Vec<SlotChange>> = (0..count).map(|_| change(&mut bytes)).collect();
        Some(SlotEntry { time_ms, changes: changes? }).filter(|_| bytes.is_empty())
    }
}

fn change(bytes: &mut Bytes) -> Option<SlotChange> {
    let tag = get_u8(bytes)?;
    let name = get_name(bytes)?;
    Some(match tag {
        1 => SlotChange::Create { name, settings: get_settings(bytes)? },
        2 => SlotChange::Ack { name, lsn: Lsn(get_u64(bytes)?) },
        3 => SlotChange::Delete { name },
        4 => SlotChange::Invalidate {
            name,
            cause: SlotCause::from_u8(get_u8(bytes)?)?,
            confirmed: Lsn(get_u64(bytes)?),
            alive_ms: get_u64(bytes)?,
        },
        _ => return None,
    })
}

pub(super) fn get_u8(bytes: &mut Bytes) -> Option<u8> {
    bytes.has_remaining().then(|| bytes.get_u8())
}

pub(super) fn get_u16(bytes: &mut Bytes) -> Option<u16> {
    (bytes.remaining() >= 2).then(|| bytes.get_u16_le())
}

pub(super) fn get_u32(bytes: &mut Bytes) -> Option<u32> {
    (bytes.remaining() >= 4).then(|| bytes.get_u32_le())
}

pub(super) fn get_u64(bytes: &mut Bytes) -> Option<u64> {
    (bytes.remaining() >= 8).then(|| bytes.get_u64_le())
}

pub(super) fn put_name(out: &mut BytesMut, name: &str) {
    assert!((1..=SLOT_NAME_MAX).contains(&name.len()), "a slot's name has a bounded length");
    out.put_u8(name.len() as u8);
    out.put_slice(name.as_bytes());
}

pub(super) fn get_name(bytes: &mut Bytes) -> Option<String> {
    let len = usize::from(get_u8(bytes)?);
    if !(1..=SLOT_NAME_MAX).contains(&len) || bytes.remaining() < len {
        return None;
    }
    String::from_utf8(bytes.split_to(len).to_vec()).ok()
}

pub(super) fn put_settings(out: &mut BytesMut, settings: &SlotSettings) {
    match settings.from {
        SlotStart::Earliest => out.put_u8(0),
        SlotStart::Latest => out.put_u8(1),
        SlotStart::After(lsn) => {
            out.put_u8(2);
            out.put_u64_le(lsn.0);
        }
    }
    let SlotLimits { lag_bytes, lag_ops, idle_ms } = settings.limits;
    for limit in [lag_bytes, lag_ops, idle_ms] {
        match limit {
            None => out.put_u8(0),
            Some(limit) => {
                out.put_u8(1);
                out.put_u64_le(limit);
            }
        }
    }
}

pub(super) fn get_settings(bytes: &mut Bytes) -> Option<SlotSettings> {
    let from = match get_u8(bytes)? {
        0 => SlotStart::Earliest,
        1 => SlotStart::Latest,
        2 => SlotStart::After(Lsn(get_u64(bytes)?)),
        _ => return None,
    };
    let mut limit = || match get_u8(bytes)? {
        0 => Some(None),
        1 => get_u64(bytes).map(Some),
        _ => None,
    };
    let limits = SlotLimits { lag_bytes: limit()?, lag_ops: limit()?, idle_ms: limit()? };
    Some(SlotSettings { from, limits })
}

#[cfg(test)]
mod tests {
    use alloc::{borrow::ToOwned, format, vec};

    use super::*;

    fn all() -> SlotEntry {
        let limits = SlotLimits { lag_bytes: Some(4096), lag_ops: None, idle_ms: Some(60_000) };
        let name = || "search".to_owned();
        SlotEntry {
            time_ms: 77_000,
            changes: vec![
                SlotChange::Create {
                    name: name(),
                    settings: SlotSettings { from: SlotStart::After(Lsn(9)), limits },
                },
                SlotChange::Create { name: "a".to_owned(), settings: SlotSettings::default() },
                SlotChange::Ack { name: name(), lsn: Lsn(300) },
                SlotChange::Delete { name: name() },
                SlotChange::Invalidate {
                    name: name(),
                    cause: SlotCause::IdleTimeout,
                    confirmed: Lsn(300),
                    alive_ms: 12,
                },
            ],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(16).fold(String::new(), |out, row| {
            let row = row.iter().fold(String::new(), |row, byte| row + &format!("{byte:02x}"));
            out + &row + "\n"
        })
    }

    #[test]
    fn bytes_are_frozen() {
        let tick = SlotEntry { time_ms: 5, changes: vec![] };
        insta::assert_snapshot!("tick", hex(&tick.encode()));
        insta::assert_snapshot!("changes", hex(&all().encode()));
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        assert_eq!(SlotEntry::decode(all().encode()), Some(all()));
    }

    #[test]
    fn neither_more_nor_less_is_read() {
        let whole = all().encode();
        for len in 0..whole.len() {
            assert_eq!(SlotEntry::decode(whole.slice(..len)), None, "{len} bytes of it");
        }
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert_eq!(SlotEntry::decode(longer.freeze()), None, "a byte too much");
    }

    #[test]
    fn nonsense_is_refused() {
        // The version, a tag, a name's length, a byte of a name, a start, whether there is a limit.
        for (at, value) in [(0, 2), (11, 5), (12, 0), (12, 64), (13, 0xff), (19, 3), (28, 2)] {
            let mut bytes = BytesMut::from(&all().encode()[..]);
            bytes[at] = value;
            assert_eq!(SlotEntry::decode(bytes.freeze()), None, "{value} at {at}");
        }
    }
}
