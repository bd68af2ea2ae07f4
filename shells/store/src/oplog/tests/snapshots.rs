//! The bytes on disk are frozen: a difference here is a format change and needs a new version.

use bytes::{Bytes, BytesMut};
use highwater_core::{Base, Boot, Doubt, Formation, GroupId, Hlc, Lsn, Record, Term};

use super::model::{INCARNATION, base_at, member};
use crate::oplog::format::{
    BlockFault, BlockHeader, BlockKind, FrameError, HeaderFault, HeaderSize, Loss, Row, Salt,
    SegmentHeader, decode_record, encode_filler, encode_record, frame_len, header_len,
};

pub(super) fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn header() -> SegmentHeader {
    let row = |group, vote, first, terms| Row {
        group: GroupId(group),
        term: Term(7),
        vote,
        checkpointed: Lsn(3),
        first: Lsn(first),
        last: Lsn(20),
        terms,
        sound: group == 0,
        hlc: Hlc::at(0x0199),
        acked: vec![(member(2), Term(7), Lsn(19))],
        base: base_at(Term(4), Lsn(9)),
    };
    SegmentHeader {
        version: 3,
        oldest: 2,
        segment: 5,
        epoch: 3,
        first_block: 99,
        prev_end: 0x3f_0000,
        incarnation: INCARNATION,
        bytes: 4 << 20,
        complete: true,
        lost: Some(Loss::Votes),
        doubt: Some(Doubt { bound: Some(Lsn(17)) }),
        formation: Some(Formation { members: vec![member(1), member(2)] }),
        boots: vec![(member(1), Boot { counter: 3, nonce: 4 })],
        rows: vec![
            row(0, Some(member(2)), 10, vec![(Lsn(10), Term(5)), (Lsn(15), Term(7))]),
            row(17, None, 0, Vec::new()),
        ],
    }
}

#[test]
fn segment_header() {
    let encoded = header().encode();
    let len = header_len(&encoded, 1 << 20).expect("a header");
    insta::assert_snapshot!("segment_header", hex(&encoded[..len]));
    assert_eq!(SegmentHeader::decode(&encoded[..len]), Ok(header()));
    assert!(encoded[len..].iter().all(|byte| *byte == 0) && encoded.len() == 4096);
    let size = HeaderSize { members: 2, boots: 1, rows: 2, terms: 2, acked: 2 };
    assert_eq!((encoded.len() as u64, header().len()), (size.bytes(), size.bytes()));
    for at in 0..len {
        let mut damaged = encoded[..len].to_vec();
        damaged[at] ^= 1;
        assert!(SegmentHeader::decode(&damaged).is_err(), "a flip at {at} went unseen");
    }
    assert_eq!(header_len(&encoded, len as u64 - 1), None);
    let mut later = encoded[..len].to_vec();
    later[12] = 4;
    let sum = crc32c::crc32c(&later[12..]).to_le_bytes();
    later[8..12].copy_from_slice(&sum);
    assert_eq!(SegmentHeader::decode(&later), Err(HeaderFault::Version(4)));
    for (lost, doubt) in [
        (None, None),
        (None, Some(Doubt { bound: None })),
        (Some(Loss::Entries), Some(Doubt { bound: None })),
    ] {
        let header = SegmentHeader { lost, doubt, ..header() };
        assert_eq!(SegmentHeader::decode(&header.encode()[..len]), Ok(header));
    }
}

/// As the first release wrote it.
#[test]
fn segment_header_version_1() {
    let hex = "48574f504c4f47311c7b6e210100000038010000030000000500000000000000\
               0300000000000000630000000000000000003f00000000003412f0debc9a7856\
               3412000000009901000040000000000002000000020000000100000000000000\
               0700000000000000000001000000000002000000000000000700000000000000\
               0000020000000000000000000000000007000000000000000200000000000000\
               0700000000000000000002000000000003000000000000000a00000000000000\
               140000000000000001000000020000000a000000000000000500000000000000\
               0f00000000000000070000000000000011000000000000000700000000000000\
               0000000000000000000000000000000000000000000000000300000000000000\
               000000000000000014000000000000000000000000000000";
    let bytes = unhex(hex);
    assert_eq!(header_len(&bytes, 1 << 20), Some(bytes.len()));
    let mut expected = header();
    (expected.version, expected.oldest) = (1, 1);
    (expected.lost, expected.doubt) = (None, None);
    expected.boots.clear();
    for row in &mut expected.rows {
        (row.sound, row.hlc) = (false, Hlc(0));
        row.acked.clear();
        row.base = Base::default();
    }
    assert_eq!(SegmentHeader::decode(&bytes), Ok(expected));
}

/// Before groups had a base.
#[test]
fn segment_header_version_2() {
    let hex = "48574f504c4f47310a41fce802000000e00100003f0000000500000000000000\
               0300000000000000630000000000000000003f00000000003412f0debc9a7856\
               3412000000009901000040000000000002000000020000001100000000000000\
               0100000000000000010000000000000007000000000000000000010000000000\
               0200000000000000070000000000000000000200000000000100000000000000\
               0700000000000000000001000000000003000000000000000400000000000000\
               0000000000000000070000000000000002000000000000000700000000000000\
               000002000000000003000000000000000a000000000000001400000000000000\
               0300000002000000000099010000000001000000000000000a00000000000000\
               05000000000000000f0000000000000007000000000000000200000000000000\
               0700000000000000000002000000000007000000000000001300000000000000\
               1100000000000000070000000000000000000000000000000000000000000000\
               0000000000000000030000000000000000000000000000001400000000000000\
               0000000000000000000099010000000001000000000000000200000000000000\
               0700000000000000000002000000000007000000000000001300000000000000";
    let bytes = unhex(hex);
    assert_eq!(header_len(&bytes, 1 << 20), Some(bytes.len()));
    let mut expected = header();
    (expected.version, expected.oldest) = (2, 1);
    for row in &mut expected.rows {
        row.base = Base::default();
    }
    assert_eq!(SegmentHeader::decode(&bytes), Ok(expected));
}

#[test]
fn block_header() {
    let salt = Salt::of(INCARNATION);
    let header = BlockHeader {
        kind: BlockKind::Opening,
        body_len: 0x0102,
        segment: 5,
        sequence: 99,
        epoch: 3,
        synced_upto: 98,
        body_sum: 0xdead_beef,
        frames: 4,
        offset: 0x5000,
    };
    let encoded = header.encode(salt);
    insta::assert_snapshot!("block_header", hex(&encoded));
    assert_eq!(BlockHeader::decode(&encoded, salt), Ok(header));
    for at in 0..encoded.len() * 8 {
        let mut damaged = encoded;
        damaged[at / 8] ^= 1 << (at % 8);
        let decoded = BlockHeader::decode(&damaged, salt);
        assert!(matches!(decoded, Err(BlockFault::Damage(_))), "a flip at {at} went unseen");
    }
    let other = Salt::of(highwater_core::Incarnation(1));
    assert!(BlockHeader::decode(&encoded, other).is_err(), "another node's block fits");
    let mut later = encoded;
    later[8] = 2;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&INCARNATION.0.to_le_bytes()), &later[8..]);
    later[4..8].copy_from_slice(&sum.to_le_bytes());
    assert!(matches!(BlockHeader::decode(&later, salt), Err(BlockFault::Later(_))));
}

#[test]
fn control_frames() {
    let records = [
        Record::HardState { group: GroupId(3), term: Term(9), vote: Some(member(2)) },
        Record::HardState { group: GroupId(3), term: Term(10), vote: None },
        Record::Formation(Formation { members: vec![member(1), member(2), member(3)] }),
        Record::Checkpointed { group: GroupId(3), lsn: Lsn(77) },
        Record::Boot { member: member(2), boot: Boot { counter: 5, nonce: 6 } },
        Record::Acked { group: GroupId(3), member: member(2), term: Term(9), lsn: Lsn(78) },
        Record::Sound { group: GroupId(3), committed: Lsn(79) },
        Record::Base { group: GroupId(3), base: base_at(Term(9), Lsn(70)) },
    ];
    let mut out = BytesMut::new();
    for record in &records {
        let before = out.len();
        encode_record(record, &mut out);
        assert_eq!(out.len() - before, frame_len(record));
    }
    encode_filler(40, &mut out);
    insta::assert_snapshot!("control_frames", hex(&out));
    let encoded = out.freeze();
    let mut body = encoded.clone();
    for record in &records {
        assert_eq!(decode_record(&mut body), Ok(Some(record.clone())));
    }
    assert_eq!(decode_record(&mut body), Ok(None));
    assert!(body.is_empty());
    let one = &encoded[..frame_len(&records[0])];
    for at in 0..one.len() * 8 {
        let mut damaged = one.to_vec();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(decode_record(&mut Bytes::from(damaged)).is_err(), "a flip at {at} went unseen");
    }
    for len in 0..one.len() {
        let mut short = encoded.slice(..len);
        assert_eq!(decode_record(&mut short), Err(FrameError::Truncated));
    }
}
