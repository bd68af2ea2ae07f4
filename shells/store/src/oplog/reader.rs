//! Reads entries back, while the writer goes on.

use std::sync::Arc;

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Lsn, Term};
use highwater_wire::entry;

use super::{
    LoadError, file_name,
    format::{BlockFault, BlockKind, Peeked, peek},
    history::{self, FileId},
    index::Run,
    scan::{Block, CHUNK, Cursor, Expect},
    sealed::{Unread, Wanted},
    shared::{Segment, Shared, State},
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
    to: Lsn,
    truncations: u64,
    /// Where terms start, from that of the first entry on.
    terms: Vec<(Lsn, Term)>,
    source: Source<F>,
}

enum Source<F> {
    /// Good copies of damaged entries.
    Patched(Vec<Entry>),
    /// The file, the part of the index that matters, and what is being written just now. Whether
    /// the index knows of damage.
    Indexed {
        bounds: Segment,
        file: Arc<F>,
        run: Run,
        pending: Option<(u64, Bytes)>,
        damaged: bool,
    },
    Unindexed,
    /// A history file.
    Sealed(FileId),
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
        let mut indexed = false;
        loop {
            let plan = self.plan(group, from, to, max_bytes)?;
            let segment = plan.segment;
            let (bounds, file, run, pending, damaged) = match plan.source {
                Source::Patched(entries) => return Ok(entries),
                Source::Sealed(id) => {
                    let (to, terms) = (plan.to, &plan.terms[..]);
                    let wanted = Wanted { group, from, to, terms, max_bytes };
                    let read = self.load_sealed(id, &wanted).await;
                    if self.truncations(group) != plan.truncations {
                        continue;
                    }
                    return read.map_err(|Unread { offset, what, block }| LoadError::Damaged {
                        file: history::file_name(id),
                        offset,
                        what,
                        missing: self.missing_sealed(segment, block),
                    });
                }
                Source::Indexed { bounds, file, run, pending, damaged } => {
                    (bounds, file, run, pending, damaged)
                }
                Source::Unindexed => {
                    self.look_at(segment).await?;
                    indexed = true;
                    continue;
                }
            };
            let cursor = Cursor::new(&self.shared.disk, &file, bounds.start, bounds.end)
                .with_pending(pending)
                .with_chunk(max_bytes.saturating_add(max_bytes / 4).clamp(CHUNK_MIN, CHUNK));
            let expect = self.shared.expect(segment, bounds);
            let (terms, entries) = (plan.terms, Vec::new());
            let mut load =
                Load { group, next: from, left: max_bytes, terms, entries, cursor, expect };
            let fault = load.follow(&run).await.err();
            // Entries that were replaced meanwhile must not go out.
            if self.truncations(group) != plan.truncations {
                continue;
            }
            match fault {
                None => return Ok(load.entries),
                Some(_) if !load.entries.is_empty() => return Ok(load.entries),
                Some(Fault { offset, what }) if indexed || (damaged && run.is_empty()) => {
                    let missing = self.missing(segment, (group, from, plan.to));
                    return Err(LoadError::Damaged {
                        file: file_name(segment),
                        offset,
                        what,
                        missing,
                    });
                }
                // Look at all of it, and find a way around the damage.
                Some(_) => {
                    self.look_at(segment).await?;
                    indexed = true;
                }
            }
        }
    }

    /// Indexes a segment. Where a block is damaged that nothing is missing of, mends it at once.
    async fn look_at(&self, segment: u64) -> Result<(), LoadError> {
        self.index(segment).await?;
        if let Err(error) = self.mend_segment(segment).await {
            tracing::warn!(%error, segment, "a segment of the oplog can't be mended");
        }
        Ok(())
    }

    fn plan(
        &self,
        group: GroupId,
        from: Lsn,
        to: Lsn,
        max_bytes: usize,
    ) -> Result<Plan<D::File>, LoadError> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let known = state.table.group(group);
        let last = known.map_or(Lsn(0), |known| known.last);
        let first = known.map_or(Lsn(1), |known| known.base.position.lsn.next());
        if from < first {
            return Err(LoadError::Pruned { from, first });
        }
        let span = known.and_then(|known| Some((known, known.span(from)?)));
        let (Some((known, span)), true) = (span, from <= to) else {
            return Err(LoadError::OutOfRange { from, last });
        };
        let mut to = to.min(span.last);
        let (truncations, terms) = (known.truncations, known.terms_within(from, to));
        let segment = span.segment;
        let patched = state.patches.run(group, known, from, to, max_bytes);
        let source = if !patched.is_empty() {
            Source::Patched(patched)
        } else if let Some(bounds) = state.segments.get(&segment).copied() {
            state.in_segment(segment, bounds, group, from, to)
        } else if let Some((id, last)) = state.history.find(segment, group, from) {
            to = to.min(last);
            Source::Sealed(id)
        } else {
            return Err(LoadError::OutOfRange { from, last });
        };
        Ok(Plan { segment, to, truncations, terms, source })
    }

    fn truncations(&self, group: GroupId) -> u64 {
        self.shared.lock().table.group(group).map_or(0, |known| known.truncations)
    }
}

impl<F> State<F> {
    /// Where to read entries of a segment.
    fn in_segment(
        &mut self,
        segment: u64,
        bounds: Segment,
        group: GroupId,
        from: Lsn,
        to: Lsn,
    ) -> Source<F> {
        let damaged = self.damaged.contains_key(&segment);
        if segment == self.active.segment {
            let run = self.active.index.run(group, from, to);
            let (file, pending) = (self.active.file.clone(), self.active.pending.clone());
            return Source::Indexed { bounds, file, run, pending, damaged };
        }
        match self.cache.get(segment) {
            Some((file, index)) => {
                let run = index.run(group, from, to);
                Source::Indexed { bounds, file, run, pending: None, damaged }
            }
            None => Source::Unindexed,
        }
    }
}

/// What keeps a load from going on.
struct Fault {
    offset: u64,
    what: String,
}

fn fault(offset: u64, what: impl ToString) -> Fault {
    Fault { offset, what: what.to_string() }
}

/// A load under way in one segment.
struct Load<'a, D: Disk> {
    group: GroupId,
    /// The next LSN wanted.
    next: Lsn,
    /// Bytes still wanted.
    left: usize,
    /// Where terms start, from that of the first entry on.
    terms: Vec<(Lsn, Term)>,
    entries: Vec<Entry>,
    cursor: Cursor<'a, D>,
    expect: Expect,
}

impl<D: Disk> Load<'_, D> {
    async fn follow(&mut self, run: &Run) -> Result<(), Fault> {
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
            return Err(fault(self.cursor.at(), "an entry is missing"));
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.left == 0 && !self.entries.is_empty()
    }

    /// The next block, wherever in the segment's life it was written.
    async fn next_block(&mut self) -> Result<Block, Fault> {
        let at = self.cursor.at();
        let unread = |error| fault(at, format!("it can't be read: {error}"));
        if let Some(header) = self.cursor.peek(self.expect.salt).await.map_err(unread)? {
            (self.expect.sequence, self.expect.epoch) = (header.sequence, header.epoch);
        }
        match self.cursor.next(&mut self.expect).await.map_err(unread)? {
            Ok(block) if block.header.kind != BlockKind::Marker => Ok(block),
            Ok(_) => Err(fault(at, "a block is missing")),
            Err(BlockFault::Damage(what)) => Err(fault(at, what)),
            Err(BlockFault::Later(what)) => Err(fault(at, format!("{what} is unknown"))),
        }
    }

    /// Takes the entries that are wanted out of a block, beginning at a frame, up to an LSN.
    fn take(&mut self, body: &Bytes, from: usize, end: Lsn, block: u64) -> Result<(), Fault> {
        let before = self.entries.len();
        let mut taken = 0;
        let mut at = from;
        while at < body.len() && self.next < end && !self.done() {
            let Peeked { len, entry } = peek(&body[at..]).map_err(|error| fault(block, error))?;
            let (start, wanted) = (at, entry.filter(|(group, ..)| *group == self.group));
            at += len;
            let Some((_, lsn, term)) = wanted else { continue };
            if lsn < self.next && self.entries.is_empty() {
                continue; // Before the range, after the point.
            }
            if lsn != self.next || !self.is_of(lsn, term) {
                return Err(fault(block, format!("LSN {} is missing", self.next)));
            }
            let mut frame = body.slice(start..at);
            let (_, entry) =
                entry::decode_entry(&mut frame).map_err(|error| fault(block, error))?;
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

    /// Whether the entry that counts at `lsn` is of this term: only that one is the same on every
    /// node.
    fn is_of(&self, lsn: Lsn, term: Term) -> bool {
        let started = self.terms.partition_point(|(first, _)| *first <= lsn);
        started > 0 && self.terms[started - 1].1 == term
    }
}
