//! An entry as bytes: the same frame in the oplog and in an append message.
//!
//! All numbers are little endian. `docs/FORMATS.md` draws it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{Entry, GroupId, Hlc, Kind, Lsn, Term};

/// Length of the header before the payload, in bytes.
pub const ENTRY_HEADER: usize = 64;

/// The longest frame, header included, in bytes.
pub const ENTRY_MAX: usize = 20 << 20;

/// The layout that is written. The length and the checksum keep their place in every version.
const VERSION: u8 = 1;

/// Where the checksummed part begins.
const CHECKED_FROM: usize = 8;

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The frame is longer than what there is.
    #[error("an entry frame of {need} bytes is cut off after {have}")]
    Truncated {
        /// Bytes that the frame takes; at least the header.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// The length is outside `64..=ENTRY_MAX`.
    #[error("an entry frame cannot be {0} bytes long")]
    Length(u32),
    /// Damaged.
    #[error("an entry frame is damaged: its checksum does not match")]
    Checksum,
    /// Intact, but written by a later release.
    #[error("an entry frame has version {0}, which this release does not know: run a later one")]
    Version(u8),
    /// Intact, but of a kind from a later release.
    #[error("an entry is of kind {0}, which this release does not know: run a later one")]
    Kind(u8),
    /// Intact, but uses a codec, a flag or a key from a later release.
    #[error("an entry uses {0}, which this release does not know: run a later one")]
    Unsupported(&'static str),
    /// LSN 0 stands for "before the first entry": no entry has it.
    #[error("an entry has LSN 0")]
    Lsn,
}

/// Appends the frame of `entry` to `out`.
///
/// # Panics
/// If the frame would be longer than [`ENTRY_MAX`]: the core admits no such payload.
pub fn encode_entry(group: GroupId, entry: &Entry, out: &mut BytesMut) {
    let len = ENTRY_HEADER + entry.payload.len();
    assert!(len <= ENTRY_MAX, "an entry of {len} bytes was admitted");
    out.reserve(len);
    let start = out.len();
    out.put_u32_le(len as u32);
    out.put_u32_le(0); // the checksum, below
    out.put_u8(VERSION);
    out.put_u8(entry.kind as u8);
    out.put_u8(0); // codec: as it is
    out.put_u8(0); // flags
    out.put_u32_le(0); // key: not encrypted
    out.put_u64_le(group.0);
    out.put_u64_le(entry.lsn.0);
    out.put_u64_le(entry.term.0);
    out.put_u64_le(entry.prev_term.0);
    out.put_u64_le(entry.hlc.0);
    out.put_u64_le(entry.origin);
    out.put_slice(&entry.payload);
    let sum = crc32c::crc32c(&out[start + CHECKED_FROM..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Takes one frame off the front of `frame`. The payload shares its memory.
///
/// # Errors
/// Where it is damaged, cut off or of a later release; `frame` is then as it was.
pub fn decode_entry(frame: &mut Bytes) -> Result<(GroupId, Entry), EntryError> {
    let have = frame.len();
    let Some(mut header) = frame.get(..ENTRY_HEADER) else {
        return Err(EntryError::Truncated { need: ENTRY_HEADER, have });
    };
    let stated = header.get_u32_le();
    let len = stated as usize;
    if !(ENTRY_HEADER..=ENTRY_MAX).contains(&len) {
        return Err(EntryError::Length(stated));
    }
    let sum = header.get_u32_le();
    let Some(checked) = frame.get(CHECKED_FROM..len) else {
        return Err(EntryError::Truncated { need: len, have });
    };
    if crc32c::crc32c(checked) != sum {
        return Err(EntryError::Checksum);
    }
    let version = header.get_u8();
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    let kind = header.get_u8();
    let kind = Kind::from_u8(kind).ok_or(EntryError::Kind(kind))?;
    if header.get_u8() != 0 {
        return Err(EntryError::Unsupported("a codec"));
    }
    if header.get_u8() != 0 {
        return Err(EntryError::Unsupported("a flag"));
    }
    if header.get_u32_le() != 0 {
        return Err(EntryError::Unsupported("an encryption key"));
    }
    let group = GroupId(header.get_u64_le());
    let lsn = Lsn(header.get_u64_le());
    if lsn == Lsn(0) {
        return Err(EntryError::Lsn);
    }
    let term = Term(header.get_u64_le());
    let prev_term = Term(header.get_u64_le());
    let hlc = Hlc(header.get_u64_le());
    let origin = header.get_u64_le();
    let mut whole = frame.split_to(len);
    let payload = whole.split_off(ENTRY_HEADER);
    Ok((group, Entry { lsn, term, prev_term, hlc, origin, kind, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex, mutations};

    fn entry(kind: Kind, payload: &'static [u8]) -> Entry {
        Entry {
            lsn: Lsn(0x0102_0304),
            term: Term(7),
            prev_term: Term(6),
            hlc: Hlc(0x0199_aabb_ccdd_0001),
            origin: 0xfeed_face_cafe_beef,
            kind,
            payload: Bytes::from_static(payload),
        }
    }

    fn encoded(entry: &Entry) -> Bytes {
        let mut out = BytesMut::new();
        encode_entry(GroupId(9), entry, &mut out);
        out.freeze()
    }

    #[test]
    fn bytes_are_frozen() {
        insta::assert_snapshot!("op", hex(&encoded(&entry(Kind::Op, b"payload"))));
        insta::assert_snapshot!("term_start", hex(&encoded(&entry(Kind::TermStart, b""))));
        insta::assert_snapshot!("create", hex(&encoded(&entry(Kind::CreateDatabase, b"orders"))));
        insta::assert_snapshot!("slot", hex(&encoded(&entry(Kind::Slot, b"slots"))));
        insta::assert_snapshot!("once", hex(&encoded(&entry(Kind::Once, b"payload"))));
        insta::assert_snapshot!("audit", hex(&encoded(&entry(Kind::Audit, b""))));
    }

    #[test]
    fn frames_come_back_one_by_one_without_a_copy() {
        let entries = [entry(Kind::Op, b"one"), entry(Kind::TermStart, b"")];
        let mut out = BytesMut::new();
        for e in &entries {
            encode_entry(GroupId(3), e, &mut out);
        }
        let mut frames = out.freeze();
        let all = frames.as_ptr_range();
        for e in &entries {
            let (group, back) = decode_entry(&mut frames).expect("an intact frame");
            assert_eq!((group, &back), (GroupId(3), e));
            if !e.payload.is_empty() {
                assert!(all.contains(&back.payload.as_ptr()), "the payload was copied");
            }
        }
        assert!(frames.is_empty());
        assert_eq!(
            decode_entry(&mut frames),
            Err(EntryError::Truncated { need: ENTRY_HEADER, have: 0 })
        );
    }

    #[test]
    fn every_flip_and_cut_is_an_error_and_leaves_the_input() {
        for whole in [encoded(&entry(Kind::Op, b"payload")), encoded(&entry(Kind::TermStart, b""))]
        {
            mutations(&whole, |damaged| {
                let mut left = damaged.clone();
                assert!(decode_entry(&mut left).is_err());
                assert_eq!(left, damaged);
            });
        }
    }

    /// A frame from a later release is told apart from a damaged one.
    #[test]
    fn later_releases_are_named() {
        let with = |at: usize, value: u8| {
            let mut bytes = encoded(&entry(Kind::Op, b"x")).to_vec();
            bytes[at] = value;
            let sum = crc32c::crc32c(&bytes[8..]).to_le_bytes();
            bytes[4..8].copy_from_slice(&sum);
            decode_entry(&mut Bytes::from(bytes)).expect_err("a later release's frame")
        };
        assert_eq!(with(8, 2), EntryError::Version(2));
        assert_eq!(with(9, 99), EntryError::Kind(99));
        assert_eq!(with(10, 1), EntryError::Unsupported("a codec"));
        assert_eq!(with(11, 1), EntryError::Unsupported("a flag"));
        assert_eq!(with(15, 1), EntryError::Unsupported("an encryption key"));
    }

    #[test]
    fn a_length_is_checked_before_it_is_used() {
        for len in [0u32, 63, ENTRY_MAX as u32 + 1, u32::MAX] {
            let mut bytes = encoded(&entry(Kind::Op, b"x")).to_vec();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            assert_eq!(decode_entry(&mut Bytes::from(bytes)), Err(EntryError::Length(len)));
        }
    }
}
