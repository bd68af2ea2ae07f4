//! The bytes of the oplog, and nothing but bytes: segment headers, block headers, frames.
//!
//! All numbers are little endian; every checksum is CRC-32C. A **segment** is a file: a header,
//! then blocks, each starting at a multiple of 4096 (a **sector**).
//!
//! **Segment header**, padded with zeros to whole sectors:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 8 | `HWOPLOG1` |
//! | 8 | 4 | checksum of everything from 12 to the end |
//! | 12 | 4 | version: 3 |
//! | 16 | 4 | length, without the padding |
//! | 20 | 4 | flags: 1 the table lists every group, 2 there is a formation, 4 the log is in doubt, 8 up to a bound, 16 entries that were fsynced were lost and cut right before this segment, 32 perhaps votes as well |
//! | 24 | 8 | segment sequence: 1, 2, 3 … |
//! | 32 | 8 | epoch in which it was written |
//! | 40 | 8 | sequence of the segment's first block |
//! | 48 | 8 | where the blocks of the segment before end |
//! | 56 | 16 | incarnation of the data directory |
//! | 72 | 8 | length of the file |
//! | 80 | 4 | founding members |
//! | 84 | 4 | rows of the group table |
//! | 88 | 8 | up to which group the log is in doubt; 0 without a bound |
//! | 96 | 4 | boots met |
//! | 100 | 4 | zero |
//! | 104 | 8 | the first segment in use |
//! | 112 | … | members: node (8), incarnation (16) |
//! | … | … | boots: node (8), incarnation (16), boot counter (8), nonce (8) |
//! | … | … | rows, in order of group |
//!
//! A row: group (8), term (8), voted-for node (8), its incarnation (16), checkpointed LSN (8), first
//! LSN (8; 0 for none) and last LSN (8) that the segment before holds of the group (the group's last
//! LSN where it holds none), flags (4; 1 there is a vote, 2 the group is sound), number of terms (4),
//! the last entry's stamp (8), number of acknowledgements (4), zero (4), the base: term (8) and LSN
//! (8), then the terms within that range: the first LSN of each that is in it (8), term (8), and what
//! members have acknowledged: node (8), incarnation (16), term (8), LSN (8).
//!
//! Version 2 has no first segment (all are in use; members follow at 104), and rows without a base,
//! which is zero then, and without a term that had started before. Version 1 has neither bound nor
//! boots (members follow at 88), and rows without stamp and acknowledgements either. They are read,
//! and written no more.
//!
//! **Block header**, 64 bytes, followed by the body and zeros up to the next sector:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 4 | `HWBK` |
//! | 4 | 4 | checksum of everything from 8 to 64, begun with that of the incarnation |
//! | 8 | 1 | version: 1 |
//! | 9 | 1 | kind: 0 data, 1 opening, 2 closing marker, 3 entries, 4 mended |
//! | 10 | 2 | zero |
//! | 12 | 4 | length of the body |
//! | 16 | 8 | segment sequence |
//! | 24 | 8 | block sequence: rises by one from block to block, through all segments |
//! | 32 | 8 | epoch |
//! | 40 | 8 | `synced_upto`: the highest block known to be fsynced when this one was written |
//! | 48 | 4 | checksum of the body |
//! | 52 | 4 | frames in the body |
//! | 56 | 8 | the block's own offset in the file |
//!
//! A block of kind 3 holds entries and hints only: whoever loses one has lost no vote. One of kind 4
//! was damaged and is written anew: with the entries that count, and none of the rest.
//!
//! The body is a run of frames: [entry frames](highwater_wire::entry) and **control frames**, which
//! share their first ten bytes: length (4), checksum of everything from 8 on (4), version 1 (1),
//! kind (1), zeros (6), then
//!
//! | kind | body |
//! | --- | --- |
//! | 129 vote state | group (8), term (8), 1 with a vote or 0 (8), node (8), incarnation (16) |
//! | 130 formation | members (8), for each: node (8), incarnation (16) |
//! | 131 checkpointed | group (8), LSN (8) |
//! | 132 boot | node (8), incarnation (16), boot counter (8), nonce (8) |
//! | 133 acknowledged | group (8), node (8), incarnation (16), term (8), LSN (8) |
//! | 134 sound | group (8), commit mark (8) |
//! | 135 filler | zeros |
//! | 136 base | group (8), and the base: term (8), LSN (8), last effective LSN (8), bytes (8) |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{
    Base, Boot, Doubt, Formation, GroupId, Hlc, Incarnation, Lsn, Member, NodeId, Position, Record,
    Term,
};
use highwater_wire::entry::{self, EntryError};

/// What every block and header is aligned to, in bytes.
pub(crate) const SECTOR: u64 = 4096;
/// Length of a block's header.
pub(crate) const BLOCK_HEADER: usize = 64;
/// Length of a segment header without what follows in lists.
const SEGMENT_HEADER: usize = 112;
/// The same in versions 2 and 1.
const SEGMENT_HEADER_2: usize = 104;
const SEGMENT_HEADER_1: usize = 88;
const MEMBER: usize = 24;
/// Length of one boot.
pub(crate) const BOOT_LEN: usize = MEMBER + 16;
/// Length of a row without its terms and acknowledgements.
pub(crate) const ROW: usize = 88 + BASE_LEN;
/// The same in versions 2 and 1.
const ROW_2: usize = 88;
const ROW_1: usize = 72;
/// Length of one term of a row.
pub(crate) const ROW_TERM: usize = 16;
/// Length of a base.
const BASE_LEN: usize = 32;
/// Length of one acknowledgement of a row.
pub(crate) const ROW_ACKED: usize = MEMBER + 16;
const CONTROL_HEADER: usize = 16;

const SEGMENT_MAGIC: [u8; 8] = *b"HWOPLOG1";
const BLOCK_MAGIC: [u8; 4] = *b"HWBK";
/// Of blocks and frames.
const VERSION: u8 = 1;
/// Of segment headers.
pub(crate) const SEGMENT_VERSION: u32 = 3;
const COMPLETE: u32 = 1;
const FORMED: u32 = 2;
const DOUBT: u32 = 4;
const BOUND: u32 = 8;
const LOST: u32 = 16;
const LOST_VOTES: u32 = 32;
const ROW_VOTE: u32 = 1;
const ROW_SOUND: u32 = 2;

const HARD_STATE: u8 = 129;
const FORMATION: u8 = 130;
const CHECKPOINTED: u8 = 131;
const BOOT: u8 = 132;
const ACKED: u8 = 133;
const SOUND: u8 = 134;
const FILLER: u8 = 135;
const BASE: u8 = 136;
/// Founding members at most.
const MEMBERS_MAX: usize = 128;

/// `len` rounded up to whole sectors.
pub(crate) fn padded(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}

/// A group in a segment header's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) group: GroupId,
    pub(crate) term: Term,
    pub(crate) vote: Option<Member>,
    pub(crate) checkpointed: Lsn,
    /// What the segment before holds of the group; 0 where it holds nothing.
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    /// The terms of `first..=last`: the first LSN of each in that range.
    pub(crate) terms: Vec<(Lsn, Term)>,
    pub(crate) sound: bool,
    /// The last entry's stamp; 0 where it is not known.
    pub(crate) hlc: Hlc,
    pub(crate) acked: Vec<(Member, Term, Lsn)>,
    /// The group's log begins after this, which may be above what older segments hold.
    pub(crate) base: Base,
}

/// What was lost for good with the end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Entries that may have been acknowledged, and no vote.
    Entries,
    /// Perhaps votes as well: the data directory counts for nothing any more.
    Votes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The version it was read in. It is written in the latest.
    pub(crate) version: u32,
    pub(crate) segment: u64,
    /// The first segment in use: those before it hold nothing that counts, and may be gone.
    pub(crate) oldest: u64,
    pub(crate) epoch: u64,
    pub(crate) first_block: u64,
    pub(crate) prev_end: u64,
    pub(crate) incarnation: Incarnation,
    /// The file's length.
    pub(crate) bytes: u64,
    pub(crate) complete: bool,
    /// What was cut from the end of the log right before this segment.
    pub(crate) lost: Option<Loss>,
    pub(crate) doubt: Option<Doubt>,
    pub(crate) formation: Option<Formation>,
    pub(crate) boots: Vec<(Member, Boot)>,
    pub(crate) rows: Vec<Row>,
}

/// Why bytes are not a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderFault {
    /// Blank, torn or damaged.
    #[error("{0}")]
    Invalid(&'static str),
    /// Intact, but from a later release.
    #[error("the segment has version {0}, which this release does not know")]
    Version(u32),
}

/// How long a segment header says it is; `None` where it is none. `max` bounds it.
pub(crate) fn header_len(first: &[u8], max: u64) -> Option<usize> {
    let mut bytes = first.get(..SEGMENT_HEADER_1)?;
    if bytes[..8] != SEGMENT_MAGIC {
        return None;
    }
    bytes.advance(16);
    let len = bytes.get_u32_le();
    (len as usize >= SEGMENT_HEADER_1 && u64::from(len) <= max).then_some(len as usize)
}

/// How much a segment header lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeaderSize {
    pub(crate) members: usize,
    pub(crate) boots: usize,
    pub(crate) rows: usize,
    pub(crate) terms: usize,
    pub(crate) acked: usize,
}

impl HeaderSize {
    /// The length of such a header, padded.
    pub(crate) fn bytes(self) -> u64 {
        let lists = self.members * MEMBER + self.boots * BOOT_LEN;
        let table = self.rows * ROW + self.terms * ROW_TERM + self.acked * ROW_ACKED;
        padded((SEGMENT_HEADER + lists + table) as u64)
    }
}

impl SegmentHeader {
    /// The header's bytes, padded.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&SEGMENT_MAGIC);
        out.put_u32_le(0); // the checksum, below
        out.put_u32_le(SEGMENT_VERSION);
        out.put_u32_le(0); // the length, below
        out.put_u32_le(self.flags());
        out.put_u64_le(self.segment);
        out.put_u64_le(self.epoch);
        out.put_u64_le(self.first_block);
        out.put_u64_le(self.prev_end);
        out.put_u128_le(self.incarnation.0);
        out.put_u64_le(self.bytes);
        let members = self.formation.as_ref().map_or(&[][..], |f| &f.members);
        out.put_u32_le(members.len() as u32);
        out.put_u32_le(self.rows.len() as u32);
        out.put_u64_le(self.doubt.and_then(|doubt| doubt.bound).unwrap_or_default().0);
        out.put_u32_le(self.boots.len() as u32);
        out.put_u32_le(0);
        out.put_u64_le(self.oldest);
        for member in members {
            put_member(&mut out, *member);
        }
        for (member, boot) in &self.boots {
            put_member(&mut out, *member);
            out.put_u64_le(boot.counter);
            out.put_u64_le(boot.nonce);
        }
        for row in &self.rows {
            row.encode(&mut out);
        }
        let len = out.len();
        out[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        let sum = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        out.resize(padded(len as u64) as usize, 0);
        out.freeze()
    }

    /// How many bytes it takes in its file, with the padding.
    pub(crate) fn len(&self) -> u64 {
        let (fixed, row) = match self.version {
            1 => (SEGMENT_HEADER_1, ROW_1),
            2 => (SEGMENT_HEADER_2, ROW_2),
            _ => (SEGMENT_HEADER, ROW),
        };
        let members = self.formation.as_ref().map_or(0, |formation| formation.members.len());
        let lists = |of: &Row| row + of.terms.len() * ROW_TERM + of.acked.len() * ROW_ACKED;
        let rows: usize = self.rows.iter().map(lists).sum();
        padded((fixed + members * MEMBER + self.boots.len() * BOOT_LEN + rows) as u64)
    }

    fn flags(&self) -> u32 {
        let lost = match self.lost {
            None => 0,
            Some(Loss::Entries) => LOST,
            Some(Loss::Votes) => LOST | LOST_VOTES,
        };
        let doubt = match self.doubt {
            None => 0,
            Some(Doubt { bound: None }) => DOUBT,
            Some(Doubt { bound: Some(_) }) => DOUBT | BOUND,
        };
        let complete = if self.complete { COMPLETE } else { 0 };
        let formed = if self.formation.is_some() { FORMED } else { 0 };
        complete | formed | doubt | lost
    }

    /// Takes a header apart. `bytes` is as long as [`header_len`] says.
    pub(crate) fn decode(bytes: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        let invalid = HeaderFault::Invalid("the segment header's checksum does not match");
        let mut at = bytes.get(8..).filter(|at| at.len() + 8 >= SEGMENT_HEADER_1).ok_or(invalid)?;
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Invalid("there is no segment header"));
        }
        if at.get_u32_le() != crc32c::crc32c(&bytes[12..]) {
            return Err(invalid);
        }
        let version = at.get_u32_le();
        if !(1..=SEGMENT_VERSION).contains(&version) {
            return Err(HeaderFault::Version(version));
        }
        at.advance(4);
        let flags = at.get_u32_le();
        let (segment, epoch) = (at.get_u64_le(), at.get_u64_le());
        let (first_block, prev_end) = (at.get_u64_le(), at.get_u64_le());
        let (incarnation, length) = (Incarnation(at.get_u128_le()), at.get_u64_le());
        let (members, rows) = (at.get_u32_le(), at.get_u32_le());
        let unsound = HeaderFault::Invalid("the segment header's table does not add up");
        let fixed = [SEGMENT_HEADER_1, SEGMENT_HEADER_2, SEGMENT_HEADER][version as usize - 1];
        if bytes.len() < fixed {
            return Err(unsound);
        }
        let (mut bound, mut boots, mut oldest) = (0, 0, 1);
        if version > 1 {
            (bound, boots) = (at.get_u64_le(), at.get_u32_le());
            at.advance(4);
        }
        if version > 2 {
            oldest = at.get_u64_le();
        }
        let members = get_members(&mut at, u64::from(members)).ok_or(unsound)?;
        let boots = get_boots(&mut at, boots).ok_or(unsound)?;
        let rows = get_rows(at, rows, version).ok_or(unsound)?;
        let lost = if flags & LOST_VOTES != 0 { Loss::Votes } else { Loss::Entries };
        let bound = (flags & BOUND != 0).then_some(Lsn(bound));
        Ok(SegmentHeader {
            version,
            segment,
            oldest,
            epoch,
            first_block,
            prev_end,
            incarnation,
            bytes: length,
            complete: flags & COMPLETE != 0,
            lost: (flags & LOST != 0).then_some(lost),
            doubt: (flags & DOUBT != 0).then_some(Doubt { bound }),
            formation: (flags & FORMED != 0).then_some(Formation { members }),
            boots,
            rows,
        })
    }
}

impl Row {
    /// Whether two rows say the same. A stamp is not always known.
    pub(crate) fn agrees(&self, other: &Row) -> bool {
        let hlc = if self.hlc == Hlc(0) || other.hlc == Hlc(0) { other.hlc } else { self.hlc };
        Row { hlc, ..self.clone() } == *other
    }

    fn encode(&self, out: &mut BytesMut) {
        let vote = if self.vote.is_some() { ROW_VOTE } else { 0 };
        let sound = if self.sound { ROW_SOUND } else { 0 };
        out.put_u64_le(self.group.0);
        out.put_u64_le(self.term.0);
        put_member(out, self.vote.unwrap_or_default());
        out.put_u64_le(self.checkpointed.0);
        out.put_u64_le(self.first.0);
        out.put_u64_le(self.last.0);
        out.put_u32_le(vote | sound);
        out.put_u32_le(self.terms.len() as u32);
        out.put_u64_le(self.hlc.0);
        out.put_u32_le(self.acked.len() as u32);
        out.put_u32_le(0);
        put_base(out, &self.base);
        for (lsn, term) in &self.terms {
            out.put_u64_le(lsn.0);
            out.put_u64_le(term.0);
        }
        for (member, term, lsn) in &self.acked {
            put_member(out, *member);
            out.put_u64_le(term.0);
            out.put_u64_le(lsn.0);
        }
    }
}

fn get_rows(mut at: &[u8], rows: u32, version: u32) -> Option<Vec<Row>> {
    let len = match version {
        1 => ROW_1,
        2 => ROW_2,
        _ => ROW,
    };
    if at.len() / len < rows as usize {
        return None;
    }
    let mut table = Vec::with_capacity(rows as usize);
    for _ in 0..rows {
        if at.len() < len {
            return None;
        }
        let (group, term) = (GroupId(at.get_u64_le()), Term(at.get_u64_le()));
        let vote = get_member(&mut at);
        let checkpointed = Lsn(at.get_u64_le());
        let (first, last) = (Lsn(at.get_u64_le()), Lsn(at.get_u64_le()));
        let (flags, terms) = (at.get_u32_le(), at.get_u32_le() as usize);
        let (mut hlc, mut acked) = (Hlc(0), 0);
        if version > 1 {
            (hlc, acked) = (Hlc(at.get_u64_le()), at.get_u32_le() as usize);
            at.advance(4);
        }
        let base = if version > 2 { get_base(&mut at) } else { Base::default() };
        if at.len() / ROW_TERM < terms {
            return None;
        }
        let terms = (0..terms).map(|_| (Lsn(at.get_u64_le()), Term(at.get_u64_le()))).collect();
        if at.len() / ROW_ACKED < acked {
            return None;
        }
        let acked = (0..acked)
            .map(|_| (get_member(&mut at), Term(at.get_u64_le()), Lsn(at.get_u64_le())))
            .collect();
        let vote = (flags & ROW_VOTE != 0).then_some(vote);
        let sound = flags & ROW_SOUND != 0;
        table.push(Row {
            group,
            term,
            vote,
            checkpointed,
            first,
            last,
            terms,
            sound,
            hlc,
            acked,
            base,
        });
    }
    at.is_empty().then_some(table)
}

fn get_boots(at: &mut &[u8], count: u32) -> Option<Vec<(Member, Boot)>> {
    if at.len() / BOOT_LEN < count as usize {
        return None;
    }
    Some((0..count).map(|_| get_boot(at)).collect())
}

/// `at` holds enough.
fn get_boot(at: &mut &[u8]) -> (Member, Boot) {
    let member = get_member(at);
    (member, Boot { counter: at.get_u64_le(), nonce: at.get_u64_le() })
}

fn put_member(out: &mut BytesMut, member: Member) {
    out.put_u64_le(member.node.0);
    out.put_u128_le(member.incarnation.0);
}

/// `at` holds enough.
fn get_member(at: &mut &[u8]) -> Member {
    Member { node: NodeId(at.get_u64_le()), incarnation: Incarnation(at.get_u128_le()) }
}

fn get_members(at: &mut &[u8], count: u64) -> Option<Vec<Member>> {
    if count > MEMBERS_MAX as u64 || ((at.len() / MEMBER) as u64) < count {
        return None;
    }
    Some((0..count).map(|_| get_member(at)).collect())
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// It carries frames of any sort.
    Data = 0,
    /// The first of an epoch: written at each start, after everything before it was fsynced.
    Opening = 1,
    /// Says what is fsynced. Not counted: the next block takes its place and its sequence.
    Marker = 2,
    /// It carries entries and hints, and nothing that a vote depends on.
    Entries = 3,
    /// It was damaged, and carries again the entries that count. Never in the newest segment.
    Mended = 4,
}

impl BlockKind {
    const ALL: [BlockKind; 5] = [
        BlockKind::Data,
        BlockKind::Opening,
        BlockKind::Marker,
        BlockKind::Entries,
        BlockKind::Mended,
    ];

    /// Whether a block of this kind that can't be read may have held a vote.
    pub(crate) fn may_hold_votes(self) -> bool {
        self == BlockKind::Data
    }
}

/// Whether a vote may be lost with this record: whom this node voted for, or who votes at all.
pub(crate) fn is_vote(record: &Record) -> bool {
    matches!(record, Record::HardState { .. } | Record::Formation(_))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) kind: BlockKind,
    pub(crate) body_len: u32,
    pub(crate) segment: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) synced_upto: u64,
    pub(crate) body_sum: u32,
    pub(crate) frames: u32,
    pub(crate) offset: u64,
}

/// Why bytes are not the block that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockFault {
    /// Blank, torn, damaged, or another one.
    Damage(&'static str),
    /// Intact, but from a later release.
    Later(&'static str),
}

/// What block headers' checksums begin with, so that those of another data directory never match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) fn of(incarnation: Incarnation) -> Salt {
        Salt(crc32c::crc32c(&incarnation.0.to_le_bytes()))
    }

    /// A checksum that begins with it.
    pub(crate) fn sum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

impl BlockHeader {
    pub(crate) fn encode(&self, salt: Salt) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        let mut at = &mut out[8..];
        at.put_u8(VERSION);
        at.put_u8(self.kind as u8);
        at.put_u16_le(0);
        at.put_u32_le(self.body_len);
        at.put_u64_le(self.segment);
        at.put_u64_le(self.sequence);
        at.put_u64_le(self.epoch);
        at.put_u64_le(self.synced_upto);
        at.put_u32_le(self.body_sum);
        at.put_u32_le(self.frames);
        at.put_u64_le(self.offset);
        out[..4].copy_from_slice(&BLOCK_MAGIC);
        let sum = crc32c::crc32c_append(salt.0, &out[8..]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Takes a header apart; says why where it is none.
    pub(crate) fn decode(bytes: &[u8], salt: Salt) -> Result<BlockHeader, BlockFault> {
        let bytes = bytes.get(..BLOCK_HEADER).ok_or(BlockFault::Damage("a block is cut off"))?;
        if bytes[..4] != BLOCK_MAGIC {
            return Err(BlockFault::Damage("there is no block"));
        }
        let mut at = &bytes[4..];
        if at.get_u32_le() != crc32c::crc32c_append(salt.0, &bytes[8..]) {
            return Err(BlockFault::Damage("a block header's checksum does not match"));
        }
        if at.get_u8() != VERSION {
            return Err(BlockFault::Later("the version of a block"));
        }
        let Some(kind) = BlockKind::ALL.get(usize::from(at.get_u8())).copied() else {
            return Err(BlockFault::Later("the kind of a block"));
        };
        at.advance(2);
        let header = BlockHeader {
            kind,
            body_len: at.get_u32_le(),
            segment: at.get_u64_le(),
            sequence: at.get_u64_le(),
            epoch: at.get_u64_le(),
            synced_upto: at.get_u64_le(),
            body_sum: at.get_u32_le(),
            frames: at.get_u32_le(),
            offset: at.get_u64_le(),
        };
        if header.synced_upto >= header.sequence {
            return Err(BlockFault::Damage("a block claims to be synced before it was written"));
        }
        Ok(header)
    }

    /// Header and body, without the padding.
    pub(crate) fn len(&self) -> u64 {
        BLOCK_HEADER as u64 + u64::from(self.body_len)
    }
}

/// Why a block's body holds something that is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// An entry frame.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A frame does not end where it says.
    #[error("a frame is cut off")]
    Truncated,
    /// A control frame.
    #[error("a control frame is damaged: its checksum does not match")]
    Checksum,
    /// Intact, but from a later release.
    #[error("a control frame has version {0}, which this release does not know: run a later one")]
    Version(u8),
    /// Intact, but from a later release.
    #[error("a control frame is of kind {0}, which this release does not know: run a later one")]
    Kind(u8),
    /// Intact, but senseless.
    #[error("a control frame's content does not add up")]
    Content,
}

impl FrameError {
    /// Whether the frame is intact, but written by a later release.
    pub(crate) fn later(&self) -> bool {
        match self {
            FrameError::Version(_) | FrameError::Kind(_) => true,
            FrameError::Entry(error) => matches!(
                error,
                EntryError::Version(_) | EntryError::Kind(_) | EntryError::Unsupported(_)
            ),
            _ => false,
        }
    }
}

/// How many bytes a record's frame takes.
pub(crate) fn frame_len(record: &Record) -> usize {
    match record {
        Record::Append { entry, .. } => entry::ENTRY_HEADER + entry.payload.len(),
        Record::HardState { .. } => CONTROL_HEADER + 24 + MEMBER,
        Record::Formation(formation) => CONTROL_HEADER + 8 + formation.members.len() * MEMBER,
        Record::Checkpointed { .. } | Record::Sound { .. } => CONTROL_HEADER + 16,
        Record::Base { .. } => CONTROL_HEADER + 8 + BASE_LEN,
        Record::Boot { .. } => CONTROL_HEADER + BOOT_LEN,
        Record::Acked { .. } => CONTROL_HEADER + MEMBER + 24,
    }
}

/// Appends a record's frame.
pub(crate) fn encode_record(record: &Record, out: &mut BytesMut) {
    match record {
        Record::Append { group, entry } => entry::encode_entry(*group, entry, out),
        Record::HardState { group, term, vote } => control(HARD_STATE, record, out, |out| {
            out.put_u64_le(group.0);
            out.put_u64_le(term.0);
            out.put_u64_le(u64::from(vote.is_some()));
            put_member(out, vote.unwrap_or_default());
        }),
        Record::Formation(formation) => control(FORMATION, record, out, |out| {
            assert!(formation.members.len() <= MEMBERS_MAX, "a formation of too many members");
            out.put_u64_le(formation.members.len() as u64);
            for member in &formation.members {
                put_member(out, *member);
            }
        }),
        Record::Checkpointed { group, lsn } => control(CHECKPOINTED, record, out, |out| {
            out.put_u64_le(group.0);
            out.put_u64_le(lsn.0);
        }),
        Record::Base { group, base } => control(BASE, record, out, |out| {
            out.put_u64_le(group.0);
            put_base(out, base);
        }),
        Record::Boot { member, boot } => control(BOOT, record, out, |out| {
            put_member(out, *member);
            out.put_u64_le(boot.counter);
            out.put_u64_le(boot.nonce);
        }),
        Record::Acked { group, member, term, lsn } => control(ACKED, record, out, |out| {
            out.put_u64_le(group.0);
            put_member(out, *member);
            out.put_u64_le(term.0);
            out.put_u64_le(lsn.0);
        }),
        Record::Sound { group, committed } => control(SOUND, record, out, |out| {
            out.put_u64_le(group.0);
            out.put_u64_le(committed.0);
        }),
    }
}

fn control(kind: u8, record: &Record, out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32_le(frame_len(record) as u32);
    out.put_u32_le(0); // the checksum, below
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_bytes(0, 6);
    body(out);
    let sum = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Appends a frame of `len` bytes that says nothing.
pub(crate) fn encode_filler(len: usize, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(len as u32);
    out.put_u32_le(0); // the checksum, below
    out.put_u8(VERSION);
    out.put_u8(FILLER);
    out.resize(start + len, 0);
    let sum = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peeked {
    pub(crate) len: usize,
    /// Group, LSN and term, where it is an entry.
    pub(crate) entry: Option<(GroupId, Lsn, Term)>,
}

/// Looks at a frame without checking it, to find the way through a body that was checked as a
/// whole.
pub(crate) fn peek(body: &[u8]) -> Result<Peeked, FrameError> {
    let mut at = body.get(..CONTROL_HEADER).ok_or(FrameError::Truncated)?;
    let len = at.get_u32_le() as usize;
    if len < CONTROL_HEADER || len > body.len() {
        return Err(FrameError::Truncated);
    }
    at.advance(5);
    if at.get_u8() >= HARD_STATE {
        return Ok(Peeked { len, entry: None });
    }
    let mut at = body.get(16..40).ok_or(FrameError::Truncated)?;
    let entry = (GroupId(at.get_u64_le()), Lsn(at.get_u64_le()), Term(at.get_u64_le()));
    Ok(Peeked { len, entry: Some(entry) })
}

/// Takes one frame off the front of a body; `None` for one that says nothing. An entry's payload
/// shares the body's memory.
pub(crate) fn decode_record(body: &mut Bytes) -> Result<Option<Record>, FrameError> {
    let Peeked { len, entry } = peek(body)?;
    if entry.is_some() {
        let (group, entry) = entry::decode_entry(body)?;
        return Ok(Some(Record::Append { group, entry }));
    }
    let frame = body.split_to(len);
    let mut at = &frame[4..];
    if at.get_u32_le() != crc32c::crc32c(&frame[8..]) {
        return Err(FrameError::Checksum);
    }
    let (version, kind) = (at.get_u8(), at.get_u8());
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let body = &frame[CONTROL_HEADER..];
    match kind {
        HARD_STATE => hard_state(body),
        FORMATION => formation(body),
        CHECKPOINTED => group_lsn(body).map(|(group, lsn)| Record::Checkpointed { group, lsn }),
        BASE => base(body),
        BOOT => boot(body),
        ACKED => acked(body),
        SOUND => group_lsn(body).map(|(group, committed)| Record::Sound { group, committed }),
        FILLER => return Ok(None),
        _ => return Err(FrameError::Kind(kind)),
    }
    .ok_or(FrameError::Content)
    .map(Some)
}

fn hard_state(mut at: &[u8]) -> Option<Record> {
    if at.len() != 24 + MEMBER {
        return None;
    }
    let (group, term) = (GroupId(at.get_u64_le()), Term(at.get_u64_le()));
    let voted = at.get_u64_le() != 0;
    let member = get_member(&mut at);
    Some(Record::HardState { group, term, vote: voted.then_some(member) })
}

fn formation(mut at: &[u8]) -> Option<Record> {
    let count = at.try_get_u64_le().ok()?;
    let members = get_members(&mut at, count)?;
    at.is_empty().then_some(Record::Formation(Formation { members }))
}

fn group_lsn(mut at: &[u8]) -> Option<(GroupId, Lsn)> {
    (at.len() == 16).then(|| (GroupId(at.get_u64_le()), Lsn(at.get_u64_le())))
}

fn base(mut at: &[u8]) -> Option<Record> {
    if at.len() != 8 + BASE_LEN {
        return None;
    }
    let group = GroupId(at.get_u64_le());
    Some(Record::Base { group, base: get_base(&mut at) })
}

fn put_base(out: &mut BytesMut, base: &Base) {
    out.put_u64_le(base.position.term.0);
    out.put_u64_le(base.position.lsn.0);
    out.put_u64_le(base.effective.0);
    out.put_u64_le(base.bytes);
}

/// `at` has [`BASE_LEN`] bytes at least.
fn get_base(at: &mut &[u8]) -> Base {
    let position = Position { term: Term(at.get_u64_le()), lsn: Lsn(at.get_u64_le()) };
    Base { position, effective: Lsn(at.get_u64_le()), bytes: at.get_u64_le() }
}

fn boot(mut at: &[u8]) -> Option<Record> {
    if at.len() != BOOT_LEN {
        return None;
    }
    let (member, boot) = get_boot(&mut at);
    Some(Record::Boot { member, boot })
}

fn acked(mut at: &[u8]) -> Option<Record> {
    if at.len() != MEMBER + 24 {
        return None;
    }
    let group = GroupId(at.get_u64_le());
    let member = get_member(&mut at);
    let (term, lsn) = (Term(at.get_u64_le()), Lsn(at.get_u64_le()));
    Some(Record::Acked { group, member, term, lsn })
}
