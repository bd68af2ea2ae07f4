//! Reads entries back, while the writer goes on.

use std::{io, sync::Arc};

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Lsn};
use highwater_wire::entry;

use super::{
    LoadError, file_name,
    format::{BlockFault, BlockKind, peek},
    index::{Point, Run, SegmentIndex},
    scan::{Block, CHUNK, Cursor, Expect},
    shared::{Segment, Shared},
};
use crate::disk::Disk;

/// At least so much of a file is read at once, in bytes.
const CHUNK_MIN: usize = 64 << 10;

/// Reads entries back. Cheap to clone.
pub struct LogReader<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for LogReader<D> {
    fn clone(&self) -> Self {
        LogReader { shared: self.shared.clone() }
    }
}

/// What a load reads, decided in one moment.
struct Plan<F> {
    segment: u64,
    bounds: Segment,
    to: Lsn,
    truncations: u64,
    /// The file and the part of the index that matters; `None` where the segment is not indexed.
    found: Option<(Arc<F>, Run)>,
    pending: Option<(u64, Bytes)>,
}

impl<D: Disk> LogReader<D> {
    /// The group's entries from `from` on, up to `to` at most: contiguous, checked, about
    /// `max_bytes` in all, but at least one. Also what is written and not yet synced. Never an
    /// entry that had been replaced when this returns.
    ///
    /// # Errors
    /// Where the log holds no such entry, it is damaged, or it can't be read.
    pub async fn load(
        &self,
        group: GroupId,
        from: Lsn,
        to: Lsn,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LoadError> {
        loop {
            let plan = self.plan(group, from, to)?;
            let bounds = plan.bounds;
            let (file, run) = match plan.found {
                Some(found) => found,
                None => {
                    let (file, index) = self.index(plan.segment, bounds).await?;
                    (file, index.run(group, from, plan.to))
                }
            };
            let cursor = Cursor::new(&self.shared.disk, &file, bounds.start, bounds.end)
                .with_pending(plan.pending)
                .with_chunk(max_bytes.saturating_add(max_bytes / 4).clamp(CHUNK_MIN, CHUNK));
            let expect = self.expect(plan.segment, bounds);
            let mut load =
                Load { group, next: from, left: max_bytes, entries: Vec::new(), cursor, expect };
            load.follow(&run).await?;
            // Entries that were replaced meanwhile must not go out.
            if self.truncations(group) == plan.truncations {
                return Ok(load.entries);
            }
        }
    }

    fn plan(&self, group: GroupId, from: Lsn, to: Lsn) -> Result<Plan<D::File>, LoadError> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let known = state.table.group(group);
        let last = known.map_or(Lsn(0), |known| known.last);
        let span = known.and_then(|known| Some((known.truncations, known.span(from)?)));
        let bounds = span.and_then(|(_, span)| state.segments.get(&span.segment));
        let (Some((truncations, span)), Some(bounds), true) = (span, bounds, from <= to) else {
            return Err(LoadError::OutOfRange { from, last });
        };
        let to = to.min(span.last);
        let (segment, active) = (span.segment, &state.active);
        let (found, pending) = if segment == active.segment {
            let run = active.index.run(group, from, to);
            (Some((active.file.clone(), run)), active.pending.clone())
        } else {
            let cached = state.cache.get(segment);
            (cached.map(|(file, index)| (file, index.run(group, from, to))), None)
        };
        Ok(Plan { segment, bounds: *bounds, to, truncations, found, pending })
    }

    fn truncations(&self, group: GroupId) -> u64 {
        self.shared.lock().table.group(group).map_or(0, |known| known.truncations)
    }

    fn expect(&self, segment: u64, bounds: Segment) -> Expect {
        let (sequence, epoch) = (bounds.first_block, bounds.epoch);
        Expect { salt: self.shared.salt, segment, sequence, epoch }
    }

    /// Indexes an older segment, by one scan of it.
    async fn index(
        &self,
        segment: u64,
        bounds: Segment,
    ) -> Result<(Arc<D::File>, Arc<SegmentIndex>), LoadError> {
        let disk = &self.shared.disk;
        let file = Arc::new(disk.open(&file_name(segment), false).await?);
        let mut index = SegmentIndex::new(disk.len(&file).await?);
        let mut expect = self.expect(segment, bounds);
        let mut cursor = Cursor::new(disk, &file, bounds.start, bounds.end);
        while cursor.at() < bounds.end {
            let block = cursor.at();
            let found = checked(segment, block, cursor.next(&mut expect).await)?;
            let mut at = 0;
            while at < found.body.len() {
                let (len, entry) =
                    peek(&found.body[at..]).map_err(|e| damaged(segment, block, e.to_string()))?;
                if let Some((group, lsn)) = entry {
                    index.note(group, Point { lsn, block, frame: at as u32 }, len);
                }
                at += len;
            }
        }
        let index = Arc::new(index);
        self.shared.lock().cache.put(segment, file.clone(), index.clone());
        Ok((file, index))
    }
}

/// A load under way in one segment.
struct Load<'a, D: Disk> {
    group: GroupId,
    /// The next LSN wanted.
    next: Lsn,
    /// Bytes still wanted.
    left: usize,
    entries: Vec<Entry>,
    cursor: Cursor<'a, D>,
    expect: Expect,
}

impl<D: Disk> Load<'_, D> {
    async fn follow(&mut self, run: &Run) -> Result<(), LoadError> {
        for (point, end) in run {
            self.cursor.seek(point.block);
            let mut frame = point.frame as usize;
            while self.next < *end && !self.done() {
                let at = self.cursor.at();
                let block = self.next_block().await?;
                self.take(&block.body, frame, *end, at)?;
                frame = 0;
            }
        }
        if self.entries.is_empty() {
            let segment = self.expect.segment;
            return Err(damaged(segment, self.cursor.at(), "an entry is missing".to_owned()));
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.left == 0 && !self.entries.is_empty()
    }

    /// The next block, wherever in the segment's life it was written.
    async fn next_block(&mut self) -> Result<Block, LoadError> {
        let at = self.cursor.at();
        if let Some(header) = self.cursor.peek(self.expect.salt).await? {
            (self.expect.sequence, self.expect.epoch) = (header.sequence, header.epoch);
        }
        checked(self.expect.segment, at, self.cursor.next(&mut self.expect).await)
    }

    /// Takes the entries that are wanted out of a block, beginning at a frame, up to an LSN.
    fn take(&mut self, body: &Bytes, from: usize, end: Lsn, block: u64) -> Result<(), LoadError> {
        let segment = self.expect.segment;
        let before = self.entries.len();
        let mut taken = 0;
        let mut at = from;
        while at < body.len() && self.next < end && !self.done() {
            let (len, entry) =
                peek(&body[at..]).map_err(|e| damaged(segment, block, e.to_string()))?;
            let (start, wanted) = (at, entry.filter(|(group, _)| *group == self.group));
            at += len;
            let Some((_, lsn)) = wanted else { continue };
            if lsn < self.next && self.entries.is_empty() {
                continue; // Before the range, after the point.
            }
            if lsn != self.next {
                return Err(damaged(segment, block, format!("LSN {} is missing", self.next)));
            }
            let mut frame = body.slice(start..at);
            let (_, entry) = entry::decode_entry(&mut frame)
                .map_err(|error| damaged(segment, block, error.to_string()))?;
            self.left = self.left.saturating_sub(len);
            taken += len;
            self.next = lsn.next();
            self.entries.push(entry);
        }
        // Few entries must not keep a whole block in memory.
        if taken < body.len() / 2 {
            for entry in &mut self.entries[before..] {
                entry.payload = Bytes::copy_from_slice(&entry.payload);
            }
        }
        Ok(())
    }
}

fn damaged(segment: u64, offset: u64, what: String) -> LoadError {
    LoadError::Damaged { file: file_name(segment), offset, what }
}

fn checked(
    segment: u64,
    at: u64,
    block: io::Result<Result<Block, BlockFault>>,
) -> Result<Block, LoadError> {
    match block? {
        Ok(block) if block.header.kind != BlockKind::Marker => Ok(block),
        Ok(_) => Err(damaged(segment, at, "a block is missing".to_owned())),
        Err(BlockFault::Damage(what)) => Err(damaged(segment, at, what.to_owned())),
        Err(BlockFault::Later(what)) => Err(damaged(segment, at, format!("{what} is unknown"))),
    }
}
