//! The bytes of **history files**, and which there are. A history file holds what counted of one
//! segment when it was sealed, sorted by group and LSN. It is written once, whole.
//!
//! It is a run of **blocks**, then a **footer**. A block holds entries of one group that follow each
//! other:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 4 | `HWHB` |
//! | 4 | 4 | checksum of everything from 8 to the end, begun with that of the incarnation |
//! | 8 | 1 | version: 1 |
//! | 9 | 1 | how the entry frames are stored: 0 as they are, 1 as an LZ4 block |
//! | 10 | 2 | zero |
//! | 12 | 4 | length of what is stored |
//! | 16 | 4 | length of the entry frames |
//! | 20 | 4 | number of entries |
//! | 24 | 8 | segment |
//! | 32 | 8 | group |
//! | 40 | 8 | first LSN |
//! | 48 | … | what is stored |
//!
//! The footer has a row for each group, in order: group (8), first LSN (8), last LSN (8), number of
//! blocks (4), number of terms (4), then for each block its first LSN (8), offset (8), length (4) and
//! zero (4), then for each term its first LSN in the file (8) and the term (8). At the end of the file:
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 8 | where the footer begins |
//! | 8 | 4 | number of rows |
//! | 12 | 4 | version: 1 |
//! | 16 | 8 | segment |
//! | 24 | 16 | incarnation |
//! | 40 | 4 | checksum of the footer and of this up to here |
//! | 44 | 4 | zero |
//! | 48 | 8 | `HWHIST01` |

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{GroupId, Incarnation, Lsn, Term};
use highwater_wire::entry::ENTRY_MAX;

use super::{format::Salt, table::Table};
use crate::disk::Disk;

/// Where history files are.
pub(crate) const HISTORY: &str = "history";
/// One that is being written, or written anew.
pub(crate) const SEALING: &str = "history/sealing.tmp";
pub(crate) const MENDING: &str = "history/mending.tmp";

const BLOCK_MAGIC: [u8; 4] = *b"HWHB";
const END_MAGIC: [u8; 8] = *b"HWHIST01";
const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;
pub(crate) const BLOCK_HEADER: usize = 48;
const ROW: usize = 32;
const ROW_BLOCK: usize = 24;
const ROW_TERM: usize = 16;
const END: usize = 56;
/// Entry frames of a block at most: they come to less than one frame more than is aimed at.
const BODY_MAX: usize = 2 * ENTRY_MAX;
/// Footers in the cache; each holds an open file.
const CACHED: usize = 32;
/// Damaged blocks that are remembered.
const DAMAGED_MAX: usize = 4096;

/// A history file: which segment it is of, and the how manieth of that.
pub(crate) type FileId = (u64, u32);

/// The path of a history file within the data directory.
pub(crate) fn file_name((segment, n): FileId) -> String {
    format!("{HISTORY}/{segment:012}-{n:04}")
}

/// The history file of this name (without the directory).
pub(crate) fn parse_name(name: &str) -> Option<FileId> {
    let (segment, n) = name.split_once('-')?;
    let id = (segment.parse().ok()?, n.parse().ok()?);
    (file_name(id).strip_prefix(HISTORY)? == format!("/{name}")).then_some(id)
}

/// A group's part of a history file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) group: GroupId,
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    pub(crate) blocks: Vec<BlockAt>,
    /// The first LSN of each term in it.
    pub(crate) terms: Vec<(Lsn, Term)>,
}

/// Where a block is. It ends before the next one of its group, or with the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockAt {
    pub(crate) first: Lsn,
    pub(crate) at: u64,
    pub(crate) len: u32,
}

impl Part {
    /// The block that holds `lsn`, and its last LSN.
    pub(crate) fn block(&self, lsn: Lsn) -> Option<(BlockAt, Lsn)> {
        let at = self.blocks.partition_point(|block| block.first <= lsn).checked_sub(1)?;
        (lsn <= self.last).then(|| (self.blocks[at], self.last_of(at)))
    }

    pub(crate) fn last_of(&self, block: usize) -> Lsn {
        self.blocks.get(block + 1).map_or(self.last, |next| next.first.prev())
    }
}

/// What a block is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) segment: u64,
    pub(crate) group: GroupId,
    pub(crate) first: Lsn,
}

/// A block of entry frames.
pub(crate) fn encode_block(salt: Salt, of: Subject, entries: u32, frames: &[u8]) -> Bytes {
    let packed = lz4_flex::block::compress(frames);
    let smaller = packed.len() < frames.len();
    let stored = if smaller { &packed[..] } else { frames };
    let mut out = BytesMut::with_capacity(BLOCK_HEADER + stored.len());
    out.put_slice(&BLOCK_MAGIC);
    out.put_u32_le(0); // the checksum, below
    out.put_u8(VERSION);
    out.put_u8(if smaller { LZ4 } else { PLAIN });
    out.put_u16_le(0);
    out.put_u32_le(stored.len() as u32);
    out.put_u32_le(frames.len() as u32);
    out.put_u32_le(entries);
    out.put_u64_le(of.segment);
    out.put_u64_le(of.group.0);
    out.put_u64_le(of.first.0);
    out.put_slice(stored);
    let sum = salt.sum(&out[8..]);
    out[4..8].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

/// The entry frames of a block, or why they can't be read.
pub(crate) fn decode_block(salt: Salt, of: Subject, block: &Bytes) -> Result<Bytes, &'static str> {
    let mut at = block.get(..BLOCK_HEADER).ok_or("a block is cut off")?;
    if at[..4] != BLOCK_MAGIC {
        return Err("there is no block");
    }
    at.advance(4);
    if at.get_u32_le() != salt.sum(&block[8..]) {
        return Err("a block's checksum does not match");
    }
    let (version, codec) = (at.get_u8(), at.get_u8());
    at.advance(2);
    let (stored, len) = (at.get_u32_le() as usize, at.get_u32_le() as usize);
    at.advance(4);
    let found = Subject {
        segment: at.get_u64_le(),
        group: GroupId(at.get_u64_le()),
        first: Lsn(at.get_u64_le()),
    };
    if found != of || stored != block.len() - BLOCK_HEADER || len > BODY_MAX {
        return Err("a block stands where it was not written to");
    }
    let stored = block.slice(BLOCK_HEADER..);
    match (version, codec) {
        (VERSION, PLAIN) => Ok(stored),
        (VERSION, LZ4) => lz4_flex::block::decompress(&stored, len)
            .ok()
            .filter(|frames| frames.len() == len)
            .map(Bytes::from)
            .ok_or("a block can't be unpacked"),
        _ => Err("a block was written by a later release"),
    }
}

/// What stands at the end of a file whose blocks take `at` bytes.
pub(crate) fn encode_footer(
    incarnation: Incarnation,
    segment: u64,
    at: u64,
    parts: &[Part],
) -> Bytes {
    let mut out = BytesMut::new();
    for part in parts {
        out.put_u64_le(part.group.0);
        out.put_u64_le(part.first.0);
        out.put_u64_le(part.last.0);
        out.put_u32_le(part.blocks.len() as u32);
        out.put_u32_le(part.terms.len() as u32);
        for block in &part.blocks {
            out.put_u64_le(block.first.0);
            out.put_u64_le(block.at);
            out.put_u32_le(block.len);
            out.put_u32_le(0);
        }
        for (lsn, term) in &part.terms {
            out.put_u64_le(lsn.0);
            out.put_u64_le(term.0);
        }
    }
    out.put_u64_le(at);
    out.put_u32_le(parts.len() as u32);
    out.put_u32_le(u32::from(VERSION));
    out.put_u64_le(segment);
    out.put_u128_le(incarnation.0);
    let sum = crc32c::crc32c(&out);
    out.put_u32_le(sum);
    out.put_u32_le(0);
    out.put_slice(&END_MAGIC);
    out.freeze()
}

/// Why a history file says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FooterFault {
    /// Torn or damaged, or another one.
    Damage(&'static str),
    /// Intact, but from a later release.
    Later,
}

impl FooterFault {
    pub(crate) fn what(self) -> &'static str {
        match self {
            FooterFault::Damage(what) => what,
            FooterFault::Later => "it was written by a later release",
        }
    }
}

/// Reads a file's footer. The outer error is the disk's.
pub(crate) async fn read_footer<D: Disk>(
    disk: &D,
    file: &D::File,
    incarnation: Incarnation,
    segment: u64,
) -> io::Result<Result<Vec<Part>, FooterFault>> {
    let damage = |what| Ok(Err(FooterFault::Damage(what)));
    let bytes = disk.len(file).await?;
    let Some(end_at) = bytes.checked_sub(END as u64) else {
        return damage("the file is cut off");
    };
    let end = disk.read_at(file, end_at, END).await?;
    if end.len() < END || end[48..] != END_MAGIC {
        return damage("there is no footer");
    }
    let mut at = &end[..];
    let (footer_at, rows) = (at.get_u64_le(), at.get_u32_le());
    let (version, found) = (at.get_u32_le(), at.get_u64_le());
    let (whose, sum) = (Incarnation(at.get_u128_le()), at.get_u32_le());
    if footer_at > end_at {
        return damage("the footer does not fit its file");
    }
    let footer = disk.read_at(file, footer_at, (end_at - footer_at) as usize).await?;
    if sum != crc32c::crc32c_append(crc32c::crc32c(&footer), &end[..40]) {
        return damage("the footer's checksum does not match");
    }
    if version != u32::from(VERSION) {
        return Ok(Err(FooterFault::Later));
    }
    if (found, whose) != (segment, incarnation) {
        return damage("the file is another one");
    }
    Ok(decode_rows(&footer, rows, footer_at)
        .ok_or(FooterFault::Damage("the footer does not add up")))
}

fn decode_rows(mut at: &[u8], rows: u32, blocks_end: u64) -> Option<Vec<Part>> {
    if at.len() / ROW < rows as usize {
        return None;
    }
    let mut parts: Vec<Part> = Vec::with_capacity(rows as usize);
    for _ in 0..rows {
        if at.len() < ROW {
            return None;
        }
        let group = GroupId(at.get_u64_le());
        let (first, last) = (Lsn(at.get_u64_le()), Lsn(at.get_u64_le()));
        let (blocks, terms) = (at.get_u32_le() as usize, at.get_u32_le() as usize);
        if at.len() < blocks * ROW_BLOCK + terms * ROW_TERM {
            return None;
        }
        let block = |at: &mut &[u8]| {
            let block =
                BlockAt { first: Lsn(at.get_u64_le()), at: at.get_u64_le(), len: at.get_u32_le() };
            at.advance(4);
            block
        };
        let blocks: Vec<_> = (0..blocks).map(|_| block(&mut at)).collect();
        let terms: Vec<_> =
            (0..terms).map(|_| (Lsn(at.get_u64_le()), Term(at.get_u64_le()))).collect();
        let sound = parts.last().is_none_or(|before| before.group < group)
            && first <= last
            && blocks.first().is_some_and(|block| block.first == first)
            && blocks.is_sorted_by(|one, next| one.first < next.first)
            && blocks.iter().all(|block| {
                block.first <= last
                    && block.at.checked_add(u64::from(block.len)) <= Some(blocks_end)
            })
            && terms.first().is_some_and(|(lsn, _)| *lsn == first);
        if !sound {
            return None;
        }
        parts.push(Part { group, first, last, blocks, terms });
    }
    at.is_empty().then_some(parts)
}

/// LSNs of a group, from one to another.
pub(crate) type Range = (GroupId, Lsn, Lsn);

/// An open history file and its footer.
pub(crate) type Open<F> = (Arc<F>, Arc<Vec<Part>>);

/// A history file none of whose entries count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dead {
    /// The newest segment when that was found.
    pub(crate) found: u64,
    /// The file's length.
    pub(crate) bytes: u64,
}

impl Dead {
    /// Whether two headers know of it once `active` is the newest segment.
    pub(crate) fn goes_at(&self, active: u64) -> bool {
        self.found + 2 <= active
    }
}

/// The history files there are.
pub(crate) struct History<F> {
    /// Those of segments that are not in use any more, or are sealed: what each holds, by group.
    pub(crate) files: BTreeMap<FileId, Vec<Range>>,
    /// Every segment up to this one is sealed.
    pub(crate) sealed: u64,
    /// Files that an earlier run left of segments that are still in use.
    pub(crate) stale: Vec<FileId>,
    /// Files none of whose entries count.
    pub(crate) dead: BTreeMap<FileId, Dead>,
    /// Blocks that can't be read.
    pub(crate) damaged: BTreeMap<FileId, BTreeSet<Range>>,
    cache: BTreeMap<FileId, (Open<F>, u64)>,
    clock: u64,
}

impl<F> History<F> {
    pub(crate) fn new(
        files: BTreeMap<FileId, Vec<Range>>,
        stale: Vec<FileId>,
        sealed: u64,
    ) -> Self {
        History {
            files,
            sealed,
            stale,
            dead: BTreeMap::new(),
            damaged: BTreeMap::new(),
            cache: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The files of a segment.
    pub(crate) fn of(&self, segment: u64) -> impl Iterator<Item = (FileId, &[Range])> {
        let files = self.files.range((segment, 0)..=(segment, u32::MAX));
        files.map(|(id, ranges)| (*id, &ranges[..]))
    }

    /// The file that holds an entry of a segment, and up to where it does.
    pub(crate) fn find(&self, segment: u64, group: GroupId, lsn: Lsn) -> Option<(FileId, Lsn)> {
        self.of(segment).find_map(|(id, ranges)| {
            let at = ranges.binary_search_by_key(&group, |range| range.0).ok()?;
            let (_, first, last) = ranges[at];
            (first <= lsn && lsn <= last).then_some((id, last))
        })
    }

    /// Whether nothing that this file holds counts any more.
    pub(crate) fn is_dead(&self, id: FileId, table: &Table) -> bool {
        self.files.get(&id).is_some_and(|ranges| {
            ranges.iter().all(|(group, first, last)| {
                let span = table.group(*group).and_then(|known| known.span_in(id.0));
                span.is_none_or(|span| span.last < *first || *last < span.first)
            })
        })
    }

    pub(crate) fn cached(&mut self, id: FileId) -> Option<Open<F>> {
        self.clock += 1;
        let (open, used) = self.cache.get_mut(&id)?;
        *used = self.clock;
        Some(open.clone())
    }

    /// The least recently used one goes.
    pub(crate) fn cache(&mut self, id: FileId, open: Open<F>) {
        self.clock += 1;
        self.cache.insert(id, (open, self.clock));
        let oldest = self.cache.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
        if let Some(oldest) = oldest.filter(|_| self.cache.len() > CACHED) {
            self.cache.remove(&oldest);
        }
    }

    /// A file is gone, or is another one now.
    pub(crate) fn forget(&mut self, id: FileId) {
        self.cache.remove(&id);
        self.damaged.remove(&id);
    }

    /// A block can't be read.
    pub(crate) fn note_damage(&mut self, id: FileId, block: Range) {
        if self.damaged.values().map(BTreeSet::len).sum::<usize>() >= DAMAGED_MAX {
            self.damaged.clear();
        }
        self.damaged.entry(id).or_default().insert(block);
    }

    /// Whether an entry of a file is in a block that can't be read.
    pub(crate) fn lacks(&self, id: FileId, group: GroupId, lsn: Lsn) -> bool {
        self.damaged.get(&id).is_some_and(|blocks| {
            blocks.iter().any(|(id, first, last)| *id == group && *first <= lsn && lsn <= *last)
        })
    }
}

/// What each part of a file holds.
pub(crate) fn ranges(parts: &[Part]) -> Vec<Range> {
    parts.iter().map(|part| (part.group, part.first, part.last)).collect()
}
