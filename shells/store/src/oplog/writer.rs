//! Appends records: group commit, rolling to the next segment, the closing marker.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use highwater_core::{
    Incarnation, Record,
    planted::{self, Planted},
};

use super::{
    OplogOptions, WriteError,
    format::{
        BLOCK_HEADER, BlockHeader, BlockKind, SECTOR, SEGMENT_VERSION, SegmentHeader,
        encode_record, frame_len, is_vote, padded,
    },
    index::{Point, SegmentIndex},
    prepare,
    shared::{Moving, Preparing, Segment, Shared},
    table::{Planned, Table},
};
use crate::disk::Disk;

/// A larger buffer is not kept between writes, in bytes.
const BUFFER_KEPT: usize = 4 << 20;

/// Appends to the log. Not to be used again after an error other than
/// [`WriteError::NoRoom`]: it then refuses.
pub struct LogWriter<D: Disk> {
    shared: Arc<Shared<D>>,
    incarnation: Incarnation,
    file: Arc<D::File>,
    segment: u64,
    segment_bytes: u64,
    layout: Layout,
    /// The next block's.
    sequence: u64,
    epoch: u64,
    /// Every block up to here is fsynced.
    synced: u64,
    /// Whether the end of the log is on the disk already that nothing new was synced since.
    marked: bool,
    /// From when a write begins until it is durable.
    dead: bool,
    syncs: u64,
    buffer: BytesMut,
}

/// Where the next frame goes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The open block's offset in the segment, or the next one's.
    at: u64,
    /// Blocks end here at most. What follows is the marker's.
    limit: u64,
    /// Bytes in the open block's body; 0 where none is open.
    body: usize,
    /// A body grows up to this.
    body_target: usize,
    /// At most how long the next segment's header gets.
    table: u64,
    table_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Into the open block.
    Same,
    /// Into a new block.
    NewBlock,
    /// Into the next segment.
    NextSegment,
}

impl Layout {
    /// Places a record that makes the next header longer by `growth` at most.
    fn place(&mut self, record: &Record, growth: u64) -> Place {
        let len = frame_len(record);
        if self.table + growth > self.table_max {
            return Place::NextSegment;
        }
        let fits = |at: u64, body: usize| at + padded((BLOCK_HEADER + body) as u64) <= self.limit;
        let place = if self.body > 0
            && self.body + len <= self.body_target
            && fits(self.at, self.body + len)
        {
            self.body += len;
            Place::Same
        } else {
            let at = self.end();
            if !fits(at, len) {
                return Place::NextSegment;
            }
            (self.at, self.body) = (at, len);
            Place::NewBlock
        };
        self.table += growth;
        place
    }

    /// Where the block after the open one starts.
    fn end(&self) -> u64 {
        if self.body == 0 { self.at } else { self.at + padded((BLOCK_HEADER + self.body) as u64) }
    }
}

/// Where a recovered log goes on.
pub(crate) struct Resume<F> {
    pub(crate) incarnation: Incarnation,
    pub(crate) file: Arc<F>,
    pub(crate) segment: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) at: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
}

impl<D: Disk> LogWriter<D> {
    /// Goes on after a log whose every block is durable.
    pub(crate) fn resume(shared: Arc<Shared<D>>, from: Resume<D::File>) -> LogWriter<D> {
        let layout = layout(&shared, from.at, from.segment_bytes);
        LogWriter {
            shared,
            incarnation: from.incarnation,
            file: from.file,
            segment: from.segment,
            segment_bytes: from.segment_bytes,
            layout,
            sequence: from.sequence,
            epoch: from.epoch,
            synced: from.sequence - 1,
            marked: true,
            dead: false,
            syncs: 0,
            buffer: BytesMut::new(),
        }
    }

    /// Makes all records durable: when it returns `Ok`, they are fsynced, in order. One write and
    /// one fdatasync, unless they reach into another segment. Where segments get short and spares
    /// are on their way, it waits for them.
    ///
    /// # Errors
    /// [`WriteError::NoRoom`] before anything is written. After any other error an unknown part of
    /// the records is on the disk, and the writer refuses from then on; so it does if this future
    /// is dropped midway.
    ///
    /// # Panics
    /// If a frame is larger than [`OplogOptions::frame_max`](super::OplogOptions::frame_max), or an
    /// entry does not follow its group's log: the core is wrong then, and must not be believed.
    pub async fn write(&mut self, records: Vec<Record>) -> Result<(), WriteError> {
        if self.dead {
            return Err(WriteError::Closed);
        }
        if self.leaves_damage() {
            self.dead = true;
            self.roll().await?;
            self.dead = false;
        }
        let needed = self.plan_when_ready(&records).await?;
        self.dead = true;
        let mut rest = &records[..];
        while !rest.is_empty() {
            let staged = self.stage(rest, needed);
            rest = &rest[staged..];
            if staged > 0 {
                self.commit().await?;
            }
            if !rest.is_empty() {
                self.roll().await?;
            }
        }
        self.dead = false;
        Ok(())
    }

    /// Bytes of frames that fit into one write for certain, whatever their sizes. (Each further
    /// write takes up to 4096 more.) The caller counts on no more than that from then on: where it is
    /// less than before, the rest of the segment may soon be given up.
    #[must_use]
    pub fn room(&self) -> u64 {
        let mut state = self.shared.lock();
        let header = self.header_bound(&state.table);
        let spares: u64 =
            state.spares.iter().map(|spare| self.shared.options.sure(header, spare.bytes)).sum();
        let left = match state.moving {
            Moving::No => self.shared.options.sure(self.layout.at, self.segment_bytes),
            Moving::Soon => {
                state.moving = Moving::Told;
                0
            }
            Moving::Told | Moving::Now => 0,
        };
        left + spares
    }

    /// The sizes of this log.
    #[must_use]
    pub fn options(&self) -> OplogOptions {
        self.shared.options
    }

    /// Returns when [`LogWriter::room`] may have grown, or shortly after. For a shell that tells
    /// the core about room while nothing is written.
    pub async fn room_grew(&self) {
        self.shared.made.notified().await;
    }

    /// Says on the disk that everything is fsynced, without a sync of its own. To be called when
    /// the log falls idle; free where it was said already. Then the log goes on in the next segment,
    /// where that gives room back.
    ///
    /// # Errors
    /// As [`LogWriter::write`].
    pub async fn close_marker(&mut self) -> Result<(), WriteError> {
        if self.dead {
            return Err(WriteError::Closed);
        }
        if !self.marked {
            self.dead = true;
            let block = self.bare_block(BlockKind::Marker);
            self.shared.disk.write_at(&self.file, self.layout.at, block).await?;
            (self.dead, self.marked) = (false, true);
        }
        if self.shared.lock().moving == Moving::Now { self.move_on().await } else { Ok(()) }
    }

    /// Goes on in the next segment, although this one is not full. Without a spare, in a small one:
    /// what the disk has no room for is what this frees. It is made here and now, so that it never is a
    /// spare which records are planned into, and takes the header for certain. Where that fails,
    /// all is as before.
    async fn move_on(&mut self) -> Result<(), WriteError> {
        let shared = self.shared.clone();
        // The one who has it tells when there is a spare, or none.
        let Ok(_turn) = shared.making.try_lock() else { return Ok(()) };
        let small = {
            let mut state = shared.lock();
            if !state.is_worth_moving(&shared.options) {
                state.moving = Moving::No;
                return Ok(());
            }
            match state.spares.is_empty() {
                true if state.full => Some(shared.options.small(&state.table)),
                // One is on its way; or it can't be made, and what is left of this segment counts.
                true => {
                    if state.preparing == Preparing::Stuck {
                        state.moving = Moving::No;
                    }
                    return Ok(());
                }
                false => None,
            }
        };
        if let Some(bytes) = small {
            match prepare::make(&shared.disk, self.segment + 1, bytes, None).await {
                Ok(spare) => shared.lock().spares.push_back(spare),
                Err(error) => {
                    tracing::warn!(%error, "can't make a small segment of the oplog; trying again");
                    shared.lock().moving = Moving::Soon;
                    return Ok(());
                }
            }
        }
        self.dead = true;
        self.roll().await?;
        self.dead = false;
        Ok(())
    }

    /// How many fdatasyncs this writer made.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Begins this writer's epoch, durably; before anything else.
    pub(crate) async fn open_epoch(&mut self) -> Result<(), WriteError> {
        if self.layout.at + SECTOR > self.layout.limit {
            let segment = self.segment + 1;
            if self.shared.lock().spares.is_empty() {
                let Shared { disk, options, .. } = &*self.shared;
                let spare = match prepare::make(disk, segment, options.segment_bytes, None).await {
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        let small = options.small(&self.shared.lock().table);
                        prepare::make(disk, segment, small, None).await?
                    }
                    made => made?,
                };
                self.shared.lock().spares.push_back(spare);
            }
            // The new segment's header carries the epoch.
            return self.roll().await;
        }
        let block = self.bare_block(BlockKind::Opening);
        self.shared.disk.write_sync(&self.file, self.layout.at, block).await?;
        self.syncs += 1;
        self.synced = self.sequence;
        self.sequence += 1;
        self.layout.at += SECTOR;
        let mut state = self.shared.lock();
        if let Some(segment) = state.segments.get_mut(&self.segment) {
            segment.end = self.layout.at;
        }
        Ok(())
    }

    /// Where the next block goes: segment and offset.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.segment, self.layout.at)
    }

    /// Plans the write. As long as spares are on their way, waits for one not only where the
    /// records do not fit, but before the active segment gets short: so a fast writer is slowed
    /// down instead of running out of room.
    async fn plan_when_ready(&self, records: &[Record]) -> Result<u64, WriteError> {
        loop {
            let plan = self.plan(records);
            {
                let state = self.shared.lock();
                let awaited = state.preparing == Preparing::On
                    && state.spares.len() < self.shared.options.spare_segments;
                let left = self.layout.limit - self.layout.at;
                let short = state.spares.is_empty() && left < self.segment_bytes / 2;
                if !awaited || !(short || plan.is_err()) {
                    return plan;
                }
            }
            self.shared.made.notified().await;
        }
    }

    /// Whether to go on in the next segment, because this one is damaged. The new header then knows
    /// every vote in it, it can be mended, and the next start need not cut it.
    fn leaves_damage(&self) -> bool {
        let state = self.shared.lock();
        state.damaged.contains_key(&self.segment) && !state.spares.is_empty()
    }

    /// How long a new segment's header gets at most.
    fn header_bound(&self, table: &Table) -> u64 {
        table.complete_bound().min(padded(self.shared.options.header_max()))
    }

    /// Whether all records fit into this segment and the spares; how many bytes they take. Plans
    /// with the longest headers: shorter ones only leave more room.
    fn plan(&self, records: &[Record]) -> Result<u64, WriteError> {
        let state = self.shared.lock();
        let needed: u64 = records.iter().map(|record| frame_len(record) as u64).sum();
        let header_max = padded(self.shared.options.header_max());
        let mut planned = Planned::new(&state.table);
        let mut spares = state.spares.iter();
        let mut layout = Layout { table: state.table.header_bound(), ..self.layout };
        for record in records {
            let len = frame_len(record);
            assert!(
                len <= self.shared.options.frame_max(),
                "a frame of {len} bytes was admitted to an oplog whose bound is {}",
                self.shared.options.frame_max()
            );
            while layout.place(record, planned.growth(record)) == Place::NextSegment {
                let spare = spares.next().ok_or(WriteError::NoRoom { needed })?;
                let (header, table) = planned.roll();
                layout.at = header.min(header_max);
                layout.limit = limit(spare.bytes);
                layout.body = 0;
                layout.table = table;
            }
            planned.take(record);
        }
        Ok(needed)
    }

    /// Encodes as many records as the segment still takes, and enters them into table and index.
    fn stage(&mut self, records: &[Record], needed: u64) -> usize {
        let shared = self.shared.clone();
        let state = &mut *shared.lock();
        let start = self.layout.at;
        self.layout.table = state.table.header_bound();
        let most = self.layout.limit - start;
        self.buffer.reserve((needed + needed / 32 + 2 * SECTOR).min(most) as usize);
        let mut staged = 0;
        let mut block = BlockBuilder::default();
        for record in records {
            match self.layout.place(record, state.table.growth(record)) {
                Place::Same => {}
                Place::NewBlock => {
                    self.finish(&mut block);
                    block = BlockBuilder::begin(&mut self.buffer, self.layout.at);
                }
                Place::NextSegment => break,
            }
            if let Err(what) = state.table.apply(self.segment, record) {
                panic!("the oplog was handed a record out of order: {what}: {record:?}");
            }
            let frame = block.body_len(&self.buffer);
            encode_record(record, &mut self.buffer);
            if let Record::Append { group, entry } = record {
                let point = Point { lsn: entry.lsn, block: self.layout.at, frame };
                state.active.index.note(*group, point, frame_len(record));
            }
            block.frames += 1;
            block.votes |= is_vote(record);
            staged += 1;
        }
        self.finish(&mut block);
        (self.layout.at, self.layout.body) = (self.layout.end(), 0);
        if staged > 0 {
            state.active.pending = Some((start, self.buffer.split().freeze()));
            if let Some(segment) = state.segments.get_mut(&self.segment) {
                segment.end = self.layout.at;
            }
        }
        staged
    }

    /// Completes an open block in the buffer: header and padding.
    fn finish(&mut self, block: &mut BlockBuilder) {
        if block.frames == 0 {
            return;
        }
        let body = &self.buffer[block.start + BLOCK_HEADER..];
        // No block tells of one that is written together with it: either may be torn.
        let synced =
            if planted::is(Planted::SyncedUptoAhead) { self.sequence - 1 } else { self.synced };
        let header = BlockHeader {
            kind: if block.votes { BlockKind::Data } else { BlockKind::Entries },
            body_len: body.len() as u32,
            segment: self.segment,
            sequence: self.sequence,
            epoch: self.epoch,
            synced_upto: synced,
            body_sum: crc32c::crc32c(body),
            frames: block.frames,
            offset: block.offset,
        };
        let encoded = header.encode(self.shared.salt);
        self.buffer[block.start..block.start + BLOCK_HEADER].copy_from_slice(&encoded);
        self.buffer.resize(block.start + padded(header.len()) as usize, 0);
        self.sequence += 1;
        (block.frames, block.votes) = (0, false);
    }

    /// Writes and syncs what is staged.
    async fn commit(&mut self) -> Result<(), WriteError> {
        let pending = self.shared.lock().active.pending.clone();
        let Some((at, data)) = pending else { return Ok(()) };
        let len = data.len();
        let written = self.shared.disk.write_sync(&self.file, at, data).await;
        if written.is_err() && planted::is(Planted::FsyncRetried) {
            self.shared.disk.sync(&self.file).await?;
        } else {
            written?;
        }
        self.syncs += 1;
        self.synced = self.sequence - 1;
        self.marked = false;
        self.shared.lock().active.pending = None;
        if len > BUFFER_KEPT {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    /// Goes on in the next spare: its header is durable before the first block comes.
    async fn roll(&mut self) -> Result<(), WriteError> {
        let (spare, header) = {
            // It stays among the spares until it is the active segment: the preparer counts on
            // from the last of either, and must not make one of the same number meanwhile.
            let mut state = self.shared.lock();
            let spare = state.spares.front().ok_or(WriteError::NoRoom { needed: 0 })?.clone();
            let due = spare.segment.is_multiple_of(self.shared.options.complete_every());
            let complete = (due || state.moving == Moving::Now)
                && state.table.complete_bound() <= spare.bytes / 2;
            let header = SegmentHeader {
                version: SEGMENT_VERSION,
                segment: spare.segment,
                // All that is known so far is durable.
                oldest: state.next_oldest(&self.shared.options),
                epoch: self.epoch,
                first_block: self.sequence,
                prev_end: self.layout.at,
                incarnation: self.incarnation,
                bytes: spare.bytes,
                complete,
                lost: None,
                doubt: state.table.doubt,
                formation: state.table.formation.clone(),
                boots: state.table.boots(),
                rows: state.table.rows(self.segment, complete),
            };
            (spare, header)
        };
        let encoded = header.encode();
        let start = encoded.len() as u64;
        self.shared.disk.write_sync(&spare.file, 0, encoded).await?;
        self.syncs += 1;
        let mut state = self.shared.lock();
        state.segments.insert(spare.segment, Segment::of(&header, start));
        let index = SegmentIndex::new(spare.bytes);
        let index = std::mem::replace(&mut state.active.index, index);
        state.cache.put(self.segment, self.file.clone(), Arc::new(index));
        state.spares.pop_front();
        state.active.segment = spare.segment;
        state.active.file = spare.file.clone();
        state.retire(header.oldest);
        state.moving = Moving::No;
        drop(state);
        self.shared.taken.notify_one();
        self.shared.rolled.notify_one();
        self.file = spare.file;
        self.segment = spare.segment;
        self.segment_bytes = spare.bytes;
        self.layout = layout(&self.shared, start, spare.bytes);
        Ok(())
    }

    /// A block without a body, one sector long.
    fn bare_block(&self, kind: BlockKind) -> Bytes {
        let header = BlockHeader {
            kind,
            body_len: 0,
            segment: self.segment,
            sequence: self.sequence,
            epoch: self.epoch,
            synced_upto: self.synced,
            body_sum: crc32c::crc32c(&[]),
            frames: 0,
            offset: self.layout.at,
        };
        let mut sector = vec![0; SECTOR as usize];
        sector[..BLOCK_HEADER].copy_from_slice(&header.encode(self.shared.salt));
        sector.into()
    }
}

impl<D: Disk> Drop for LogWriter<D> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.taken.notify_one();
        self.shared.rolled.notify_one();
    }
}

/// The last sector is the closing marker's.
fn limit(segment_bytes: u64) -> u64 {
    segment_bytes - SECTOR
}

fn layout<D: Disk>(shared: &Shared<D>, at: u64, segment_bytes: u64) -> Layout {
    let options = &shared.options;
    Layout {
        at,
        limit: limit(segment_bytes),
        body: 0,
        body_target: options.block_target() as usize - BLOCK_HEADER,
        table: SECTOR,
        table_max: options.header_max(),
    }
}

/// A block that is being put together in the buffer.
#[derive(Default)]
struct BlockBuilder {
    /// Where it starts in the buffer.
    start: usize,
    /// Where it will stand in the segment.
    offset: u64,
    frames: u32,
    /// Whether a vote is among them.
    votes: bool,
}

impl BlockBuilder {
    fn begin(buffer: &mut BytesMut, offset: u64) -> BlockBuilder {
        let start = buffer.len();
        buffer.resize(start + BLOCK_HEADER, 0);
        BlockBuilder { start, offset, frames: 0, votes: false }
    }

    fn body_len(&self, buffer: &BytesMut) -> u32 {
        (buffer.len() - self.start - BLOCK_HEADER) as u32
    }
}
