//! Walks the blocks of one segment, checking everything, changing nothing.

use std::io;

use bytes::Bytes;
use highwater_core::planted::{self, Planted};

use super::format::{
    BLOCK_HEADER, BlockFault, BlockHeader, BlockKind, HeaderFault, SECTOR, Salt, SegmentHeader,
    header_len, padded,
};
use crate::disk::Disk;

/// How much of a file is read at once, in bytes.
pub(crate) const CHUNK: usize = 1 << 20;
/// ... and this at first.
const CHUNK_FIRST: usize = 32 << 10;

/// Reads a segment's header. The outer error is the disk's.
pub(crate) async fn read_header<D: Disk>(
    disk: &D,
    file: &D::File,
    bytes: u64,
) -> io::Result<Result<SegmentHeader, HeaderFault>> {
    let first = disk.read_at(file, 0, SECTOR as usize).await?;
    let Some(len) = header_len(&first, bytes) else {
        return Ok(Err(HeaderFault::Invalid("there is no segment header")));
    };
    if len <= first.len() {
        return Ok(SegmentHeader::decode(&first[..len]));
    }
    let whole = disk.read_at(file, 0, len).await?;
    Ok(SegmentHeader::decode(&whole))
}

/// A block that is what and where it should be.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) header: BlockHeader,
    pub(crate) body: Bytes,
}

/// What the next block must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    pub(crate) salt: Salt,
    pub(crate) segment: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

impl Expect {
    fn check(&self, header: &BlockHeader, offset: u64) -> Result<(), &'static str> {
        if header.segment != self.segment || header.offset != offset {
            return Err("a block stands where it was not written to");
        }
        if header.sequence != self.sequence {
            return Err("a block is missing");
        }
        // A mended block may stand for an opening one.
        let opener = matches!(header.kind, BlockKind::Opening | BlockKind::Mended);
        let opens = opener && header.epoch > self.epoch;
        let belongs = header.epoch == self.epoch || opens;
        if !belongs && !planted::is(Planted::WrongEpochAccepted) {
            return Err("a block is left over from before a restart");
        }
        Ok(())
    }
}

/// Walks from block to block.
pub(crate) struct Cursor<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    /// What is being written just now, and where: the file may not have it yet.
    pending: Option<(u64, Bytes)>,
    /// Where the next block starts.
    at: u64,
    end: u64,
    window: Bytes,
    window_at: u64,
    /// How much to read next, and at most.
    next: usize,
    chunk: usize,
}

impl<'a, D: Disk> Cursor<'a, D> {
    /// From `at` up to `end`, offsets in the file.
    pub(crate) fn new(disk: &'a D, file: &'a D::File, at: u64, end: u64) -> Cursor<'a, D> {
        Cursor {
            disk,
            file,
            pending: None,
            at,
            end,
            window: Bytes::new(),
            window_at: 0,
            next: CHUNK_FIRST,
            chunk: CHUNK,
        }
    }

    /// Reads from here on what is being written at this offset.
    pub(crate) fn with_pending(mut self, pending: Option<(u64, Bytes)>) -> Cursor<'a, D> {
        self.pending = pending;
        self
    }

    /// Reads so much at once, in the end: what is taken from it keeps all of it in memory.
    pub(crate) fn with_chunk(mut self, chunk: usize) -> Cursor<'a, D> {
        self.chunk = chunk;
        self
    }

    /// Where the next block starts, or the one that was refused.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on up to another end; `pending` is what is being written now.
    pub(crate) fn extend(&mut self, end: u64, pending: Option<(u64, Bytes)>) {
        (self.end, self.pending) = (end, pending);
    }

    /// Where blocks end at the latest.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Goes on at another block.
    pub(crate) fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// At least `len` bytes at `self.at`, less only at the end.
    async fn fetch(&mut self, len: usize) -> io::Result<Bytes> {
        let skip = self.at.checked_sub(self.window_at).map(|skip| skip as usize);
        if let Some(skip) = skip
            && skip + len <= self.window.len()
        {
            return Ok(self.window.slice(skip..));
        }
        let mut upto = self.end;
        if let Some((start, pending)) = &self.pending {
            if let Some(skip) = self.at.checked_sub(*start) {
                return Ok(pending.slice((skip as usize).min(pending.len())..));
            }
            upto = upto.min(*start);
        }
        let left = upto.saturating_sub(self.at);
        // Few blocks are wanted mostly.
        let chunk = self.next.min(self.chunk);
        self.next = chunk.saturating_mul(2);
        let want = (len.max(chunk) as u64).min(left);
        let need = (len as u64).min(left);
        let read = self.disk.read_at(self.file, self.at, want as usize).await;
        self.window = match read {
            // Something further on may be what can't be read.
            Err(_) if need < want => self.disk.read_at(self.file, self.at, need as usize).await?,
            read => read?,
        };
        self.window_at = self.at;
        Ok(self.window.clone())
    }

    /// The header of the block here, or why there is none.
    pub(crate) async fn head(&mut self, salt: Salt) -> io::Result<Result<BlockHeader, BlockFault>> {
        let head = self.fetch(BLOCK_HEADER).await?;
        Ok(BlockHeader::decode(&head, salt))
    }

    /// The header of the block here, if there is one.
    pub(crate) async fn peek(&mut self, salt: Salt) -> io::Result<Option<BlockHeader>> {
        Ok(self.head(salt).await?.ok())
    }

    /// Goes on at the next block of this segment that has an intact header, behind the one expected
    /// here; `None` if there is none, and the cursor stays.
    pub(crate) async fn resync(&mut self, expect: &Expect) -> io::Result<Option<BlockHeader>> {
        let from = self.at;
        loop {
            self.at += SECTOR;
            if self.at >= self.end {
                self.at = from;
                return Ok(None);
            }
            if let Some(header) = self.peek(expect.salt).await?
                && header.offset == self.at
                && header.segment == expect.segment
                && header.sequence > expect.sequence
            {
                return Ok(Some(header));
            }
        }
    }

    /// The next block, or why there is none; the cursor then stays. The outer error is the disk's.
    /// `expect` moves on with the block.
    pub(crate) async fn next(
        &mut self,
        expect: &mut Expect,
    ) -> io::Result<Result<Block, BlockFault>> {
        let damage = |what| Ok(Err(BlockFault::Damage(what)));
        if self.at + BLOCK_HEADER as u64 > self.end {
            return damage("there is no block");
        }
        let head = self.fetch(BLOCK_HEADER).await?;
        let header = match BlockHeader::decode(&head, expect.salt) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(what) = expect.check(&header, self.at) {
            return damage(what);
        }
        if self.at + header.len() > self.end {
            return damage("a block does not fit its segment");
        }
        let len = header.len() as usize;
        let whole = if head.len() < len { self.fetch(len).await? } else { head };
        let Some(body) = whole.get(BLOCK_HEADER..len) else {
            return damage("a block is cut off");
        };
        if crc32c::crc32c(body) != header.body_sum {
            return damage("a block's checksum does not match");
        }
        let body = whole.slice(BLOCK_HEADER..len);
        // A marker's place is the next block's.
        if header.kind != BlockKind::Marker {
            self.at += padded(header.len());
            expect.sequence += 1;
            expect.epoch = header.epoch;
        }
        Ok(Ok(Block { header, body }))
    }
}

/// What lies from the end of a segment's blocks on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rest {
    /// The highest `synced_upto` of the block headers there; `None` where there are none.
    pub(crate) synced_upto: Option<u64>,
    /// Whole sectors that are not blank: start and end.
    pub(crate) used: Vec<(u64, u64)>,
}

/// Looks at every sector from `at` to `end`. A block header there is believed if it is where it
/// was written to and its sequence could have come that far; `expect` is the next block's.
pub(crate) async fn rest<D: Disk>(
    disk: &D,
    file: &D::File,
    at: u64,
    end: u64,
    expect: &Expect,
) -> io::Result<Rest> {
    let mut rest = Rest::default();
    let mut offset = at;
    while offset < end {
        let want = (CHUNK as u64).min(end - offset);
        let chunk = disk.read_at(file, offset, want as usize).await?;
        if chunk.is_empty() {
            break;
        }
        for (n, sector) in chunk.chunks(SECTOR as usize).enumerate() {
            if *sector == BLANK[..sector.len()] {
                continue;
            }
            let place = offset + n as u64 * SECTOR;
            match rest.used.last_mut() {
                Some((_, upto)) if *upto == place => *upto += SECTOR,
                _ => rest.used.push((place, place + SECTOR)),
            }
            if let Ok(header) = BlockHeader::decode(sector, expect.salt)
                && header.segment == expect.segment
                && header.offset == place
                && header.sequence >= expect.sequence
                && header.sequence - expect.sequence <= (place - at) / SECTOR
            {
                rest.synced_upto = rest.synced_upto.max(Some(header.synced_upto));
            }
        }
        offset += chunk.len() as u64;
    }
    Ok(rest)
}

/// The sequence of the first block of a segment whose header is not there; `None` where no block
/// is.
pub(crate) async fn first_block<D: Disk>(
    disk: &D,
    file: &D::File,
    bytes: u64,
    salt: Salt,
    segment: u64,
) -> io::Result<Option<u64>> {
    let mut cursor = Cursor::new(disk, file, 0, bytes);
    let expect = Expect { salt, segment, sequence: 0, epoch: 0 };
    Ok(cursor.resync(&expect).await?.map(|header| header.sequence))
}

static BLANK: [u8; SECTOR as usize] = [0; SECTOR as usize];

/// Whether everything from `at` to `end` is zero.
pub(crate) async fn is_blank<D: Disk>(
    disk: &D,
    file: &D::File,
    at: u64,
    end: u64,
) -> io::Result<bool> {
    let mut offset = at;
    while offset < end {
        let want = (CHUNK as u64).min(end - offset);
        let chunk = disk.read_at(file, offset, want as usize).await?;
        if chunk.is_empty() {
            break;
        }
        if chunk.chunks(SECTOR as usize).any(|sector| *sector != BLANK[..sector.len()]) {
            return Ok(false);
        }
        offset += chunk.len() as u64;
    }
    Ok(true)
}
