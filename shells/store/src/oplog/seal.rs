//! Seals a segment: what counts of it is written into history files, sorted and packed.

use std::{collections::BTreeMap, io};

use bytes::{Bytes, BytesMut};
use highwater_core::{
    Entry, GroupId, Lsn, Record, Term,
    planted::{self, Planted},
};

use super::{
    LoadError, LogReader, file_name,
    format::{BlockKind, Peeked, Salt, encode_record, peek},
    history::{self, BlockAt, FileId, HISTORY, Part, Range, SEALING, Subject},
    keep::Keeper,
    scan::{CHUNK, Cursor},
    shared::Shared,
};
use crate::disk::Disk;

/// Entry frames of a block, unless one entry is larger. In bytes.
const BLOCK: usize = 64 << 10;
/// So much is held in memory at most before it is written: about as many bytes, or half a segment.
const HELD: u64 = 32 << 20;

impl<D: Disk> Keeper<D> {
    /// Seals a segment that is not written to any more: when this returns, its history files are
    /// durable.
    ///
    /// # Errors
    /// Where the segment is damaged, or the disk refuses. Nothing is changed then, but for files that
    /// do not count.
    pub(crate) async fn seal(&self, segment: u64) -> Result<(), LoadError> {
        let Shared { disk, .. } = &*self.shared;
        disk.create_dir(HISTORY).await?;
        let mut sealing = Sealing::of(&self.shared, segment);
        self.gather(&mut sealing).await?;
        // What a scan from end to end does not find in order: around damage, or where it was mended.
        let reader = LogReader { shared: self.shared.clone() };
        while let Some((group, from, to)) = sealing.next_left() {
            let entries = reader.load(group, from, to, CHUNK).await?;
            sealing.take_entries(group, entries);
            if sealing.next_left() == Some((group, from, to)) {
                // They were replaced meanwhile: the next try knows that from the start.
                return Err(io::Error::other("a segment changes while it is sealed").into());
            }
            if sealing.held >= sealing.held_max {
                sealing.write_out(&self.shared).await?;
            }
        }
        sealing.write_out(&self.shared).await?;
        if !sealing.files.is_empty() {
            disk.sync_dir(HISTORY).await?;
        }
        let mut state = self.shared.lock();
        state.history.stale.retain(|(of, _)| *of != segment);
        state.history.files.extend(sealing.files);
        state.history.sealed = segment;
        Ok(())
    }

    /// Reads the segment once, up to its end or to damage.
    async fn gather(&self, sealing: &mut Sealing) -> io::Result<()> {
        let shared = &*self.shared;
        let segment = sealing.segment;
        let Some(bounds) = shared.lock().segments.get(&segment).copied() else { return Ok(()) };
        let file = shared.disk.open(&file_name(segment), false).await?;
        let mut cursor = Cursor::new(&shared.disk, &file, bounds.start, bounds.end);
        let mut expect = shared.expect(segment, bounds);
        while cursor.at() < bounds.end {
            match cursor.next(&mut expect).await? {
                Ok(block) if block.header.kind != BlockKind::Marker => sealing.take(&block.body),
                _ => break,
            }
            if sealing.held >= sealing.held_max {
                sealing.write_out(shared).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// A segment that is being sealed.
struct Sealing {
    segment: u64,
    salt: Salt,
    parts: BTreeMap<GroupId, Growing>,
    /// Bytes of packed blocks and frames in memory, and how many at most.
    held: usize,
    held_max: usize,
    /// A group with so many of them gets a file of its own.
    large: usize,
    block: usize,
    /// What was written so far.
    files: BTreeMap<FileId, Vec<Range>>,
}

/// What a group has in the segment.
struct Growing {
    last: Lsn,
    /// The next LSN that is wanted.
    next: Lsn,
    /// Where terms start, from that of the first entry on.
    terms: Vec<(Lsn, Term)>,
    /// Packed blocks that are not written yet.
    packed: Vec<(Lsn, Bytes)>,
    bytes: usize,
    /// The block that grows: its first LSN, and its frames.
    first: Lsn,
    frames: BytesMut,
}

impl Sealing {
    fn of<D: Disk>(shared: &Shared<D>, segment: u64) -> Sealing {
        let state = shared.lock();
        let part = |(id, group): (GroupId, &super::table::Group)| {
            let span = group.span_in(segment)?;
            let growing = Growing {
                last: span.last,
                next: span.first,
                terms: group.terms_within(span.first, span.last),
                packed: Vec::new(),
                bytes: 0,
                first: span.first,
                frames: BytesMut::new(),
            };
            Some((id, growing))
        };
        let bytes = shared.options.segment_bytes;
        Sealing {
            segment,
            salt: shared.salt,
            parts: state.table.groups().filter_map(part).collect(),
            held: 0,
            held_max: HELD.min(bytes / 2) as usize,
            large: (bytes / 16) as usize,
            block: BLOCK.min(bytes as usize / 16),
            files: BTreeMap::new(),
        }
    }

    /// What is still to be found: of one group, from LSN to LSN.
    fn next_left(&self) -> Option<Range> {
        let mut left = self.parts.iter().filter(|(_, part)| part.next <= part.last);
        left.next().map(|(group, part)| (*group, part.next, part.last))
    }

    /// Takes entries that were read one by one: the next ones of a group.
    fn take_entries(&mut self, group: GroupId, entries: Vec<Entry>) {
        let mut frames = BytesMut::new();
        for entry in entries {
            encode_record(&Record::Append { group, entry }, &mut frames);
        }
        self.take(&frames.freeze());
    }

    /// Takes the entries that count out of a block's body, which was checked as a whole.
    fn take(&mut self, body: &Bytes) {
        let mut at = 0;
        while let Some(Ok(Peeked { len, entry })) = body.get(at..).map(peek) {
            if let Some((group, lsn, term)) = entry
                && let Some(part) = self.parts.get_mut(&group)
                && lsn == part.next
                && lsn <= part.last
                && part.term_at(lsn) == Some(term)
            {
                part.frames.extend_from_slice(&body[at..at + len]);
                part.next = lsn.next();
                self.held += len;
                if part.frames.len() >= self.block {
                    self.held -= part.frames.len();
                    self.held += part.pack(self.salt, self.segment, group);
                }
            }
            at += len;
        }
    }

    /// Writes what is held: each large group into a file of its own, the others into one.
    async fn write_out<D: Disk>(&mut self, shared: &Shared<D>) -> io::Result<()> {
        let mut files: Vec<Vec<Packed>> = Vec::new();
        let mut together = Vec::new();
        for (group, part) in &mut self.parts {
            part.pack(self.salt, self.segment, *group);
            let Some((first, _)) = part.packed.first() else { continue };
            let terms = part.terms_from(*first);
            let last = part.next.prev();
            let blocks = std::mem::take(&mut part.packed);
            let packed = Packed { group: *group, last, terms, blocks };
            match std::mem::take(&mut part.bytes) {
                bytes if bytes >= self.large => files.push(vec![packed]),
                _ => together.push(packed),
            }
        }
        files.push(together);
        self.held = 0;
        for parts in files.into_iter().filter(|parts| !parts.is_empty()) {
            let id = (self.segment, self.files.len() as u32);
            // It does not count before all are there.
            shared.lock().history.stale.push(id);
            let written = write_file(shared, id, parts).await;
            if written.is_err() {
                // What it takes may be what is missing.
                let _ = shared.disk.remove(SEALING).await;
            }
            self.files.insert(id, written?);
        }
        Ok(())
    }
}

async fn write_file<D: Disk>(
    shared: &Shared<D>,
    id: FileId,
    parts: Vec<Packed>,
) -> io::Result<Vec<Range>> {
    let mut making = Making::begin(shared, id, SEALING).await?;
    for Packed { group, last, terms, blocks } in parts {
        making.part(group, last, terms);
        for (first, block) in blocks {
            making.block(first, block).await?;
        }
    }
    making.finish().await
}

impl Growing {
    /// Packs the block that grows: how many bytes that takes.
    fn pack(&mut self, salt: Salt, segment: u64, group: GroupId) -> usize {
        if self.frames.is_empty() {
            return 0;
        }
        let of = Subject { segment, group, first: self.first };
        let entries = (self.next.0 - self.first.0) as u32;
        let block = history::encode_block(salt, of, entries, &self.frames);
        let len = block.len();
        self.packed.push((self.first, block));
        self.bytes += len;
        self.first = self.next;
        self.frames.clear();
        len
    }

    fn term_at(&self, lsn: Lsn) -> Option<Term> {
        let started = self.terms.partition_point(|(first, _)| *first <= lsn);
        Some(self.terms.get(started.checked_sub(1)?)?.1)
    }

    /// The terms from an entry on, before the next one that is wanted.
    fn terms_from(&self, first: Lsn) -> Vec<(Lsn, Term)> {
        terms_within(&self.terms, first, self.next.prev())
    }
}

/// Where terms start from `first` on, before or at `upto`; the first of them at `first`.
pub(crate) fn terms_within(terms: &[(Lsn, Term)], first: Lsn, upto: Lsn) -> Vec<(Lsn, Term)> {
    let start = terms.partition_point(|(lsn, _)| *lsn <= first).saturating_sub(1);
    let end = terms.partition_point(|(lsn, _)| *lsn <= upto);
    let within = terms.get(start..end).unwrap_or_default();
    within.iter().map(|(lsn, term)| ((*lsn).max(first), *term)).collect()
}

/// A group's part of a file that is to be written.
struct Packed {
    group: GroupId,
    last: Lsn,
    terms: Vec<(Lsn, Term)>,
    blocks: Vec<(Lsn, Bytes)>,
}

/// A history file that is being written.
pub(crate) struct Making<'a, D: Disk> {
    shared: &'a Shared<D>,
    id: FileId,
    temp: &'static str,
    file: D::File,
    /// What goes to the file next, and where.
    buffer: BytesMut,
    at: u64,
    parts: Vec<Part>,
}

impl<'a, D: Disk> Making<'a, D> {
    pub(crate) async fn begin(
        shared: &'a Shared<D>,
        id: FileId,
        temp: &'static str,
    ) -> io::Result<Making<'a, D>> {
        // Never a second sync on pages that failed once.
        match shared.disk.remove(temp).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = shared.disk.open(temp, true).await?;
        Ok(Making { shared, id, temp, file, buffer: BytesMut::new(), at: 0, parts: Vec::new() })
    }

    /// The blocks that follow are of this group.
    pub(crate) fn part(&mut self, group: GroupId, last: Lsn, terms: Vec<(Lsn, Term)>) {
        let first = terms.first().map_or(Lsn(0), |(lsn, _)| *lsn);
        self.parts.push(Part { group, first, last, blocks: Vec::new(), terms });
    }

    pub(crate) async fn block(&mut self, first: Lsn, block: Bytes) -> io::Result<()> {
        let (at, len) = (self.at + self.buffer.len() as u64, block.len() as u32);
        if let Some(part) = self.parts.last_mut() {
            part.blocks.push(BlockAt { first, at, len });
        }
        self.buffer.extend_from_slice(&block);
        // Piece by piece, so that nobody queues long behind it.
        if self.buffer.len() >= CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let data = self.buffer.split().freeze();
        let at = self.at;
        self.at += data.len() as u64;
        self.shared.disk.write_at(&self.file, at, data).await?;
        if planted::is(Planted::SealedWithoutSync) {
            return Ok(());
        }
        self.shared.disk.sync(&self.file).await
    }

    /// Makes it durable, and gives it its name; that is durable once the directory is synced.
    pub(crate) async fn finish(mut self) -> io::Result<Vec<Range>> {
        let Shared { disk, incarnation, .. } = self.shared;
        let at = self.at + self.buffer.len() as u64;
        let footer = history::encode_footer(*incarnation, self.id.0, at, &self.parts);
        self.buffer.extend_from_slice(&footer);
        self.flush().await?;
        disk.rename(self.temp, &history::file_name(self.id)).await?;
        Ok(history::ranges(&self.parts))
    }
}
