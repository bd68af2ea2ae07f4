//! Indexes a segment around what can't be read in it, and tells what is missing.

use std::{io, sync::Arc};

use highwater_core::{GroupId, Lsn};

use super::{
    LogReader, file_name,
    format::{BlockKind, Peeked, padded, peek},
    index::{Gap, Point, SegmentIndex},
    scan::{Block, Cursor, Expect},
    shared::{Shared, State},
};
use crate::disk::Disk;

/// Damaged segments that are remembered.
const DAMAGED_MAX: usize = 16;

/// A damaged place between intact blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hole {
    /// From where to where, in the file.
    pub(crate) at: u64,
    pub(crate) end: u64,
    /// Sequence and epoch of the block that belongs here; `None` where that can't be told, or where
    /// it is more than one.
    pub(crate) block: Option<(u64, u64)>,
}

/// What is damaged in a segment.
#[derive(Debug)]
pub(crate) struct Damage {
    /// In the order of the file.
    pub(crate) holes: Vec<Hole>,
    pub(crate) gaps: Vec<Gap>,
    /// The segment was written to when this was found: it is to be looked at again.
    pub(crate) active: bool,
}

impl<D: Disk> LogReader<D> {
    /// Indexes a segment by a scan of it. Where that meets damage, or what was mended, by another one
    /// that checks every entry's term: what replaced it may be in the damage, and what was mended may
    /// stand somewhat before its old place.
    pub(crate) async fn index(&self, segment: u64) -> io::Result<()> {
        let shared = &*self.shared;
        let (file, bounds) = {
            let state = shared.lock();
            let Some(bounds) = state.segments.get(&segment).copied() else { return Ok(()) };
            let active = &state.active;
            ((active.segment == segment).then(|| active.file.clone()), bounds)
        };
        let file = match file {
            Some(file) => file,
            None => Arc::new(shared.disk.open(&file_name(segment), false).await?),
        };
        let bytes = shared.disk.len(&file).await?;
        let begin = |careful| Scan {
            shared,
            cursor: Cursor::new(&shared.disk, &file, bounds.start, bounds.start),
            expect: shared.expect(segment, bounds),
            index: SegmentIndex::new(bytes),
            holes: Vec::new(),
            careful,
            whole: true,
        };
        let mut scan = begin(false);
        loop {
            {
                let state = &mut *shared.lock();
                let end = state.segments.get(&segment).map_or(0, |bounds| bounds.end);
                if end <= scan.cursor.end() {
                    let Scan { index, holes, .. } = scan;
                    install(state, segment, file.clone(), index, holes);
                    return Ok(());
                }
                // The segment may be growing.
                let active = &state.active;
                let pending = active.pending.clone().filter(|_| active.segment == segment);
                scan.cursor.extend(end, pending);
            }
            scan.read_on().await;
            if !scan.careful && !scan.whole {
                scan = begin(true);
            }
        }
    }

    /// What a segment holds and can't be read, and of which there is no copy: `wanted` first.
    pub(crate) fn missing(
        &self,
        segment: u64,
        wanted: (GroupId, Lsn, Lsn),
    ) -> Vec<(GroupId, Lsn, Lsn)> {
        let state = self.shared.lock();
        let damage = state.damaged.get(&segment);
        let gaps = damage.map_or(&[][..], |damage| &damage.gaps);
        let mut missing: Vec<_> = gaps.iter().filter_map(|gap| still(&state, gap)).collect();
        let (group, from, _) = wanted;
        let asked = |(id, first, last): &(GroupId, Lsn, Lsn)| {
            *id == group && *first <= from && from <= *last
        };
        match missing.iter().position(asked) {
            Some(at) => missing.swap(0, at),
            None => missing.insert(0, wanted),
        }
        missing
    }
}

/// The part of a gap that there are no copies of.
fn still<F>(state: &State<F>, gap: &Gap) -> Option<(GroupId, Lsn, Lsn)> {
    let known = state.table.group(gap.group)?;
    let lacks = |lsn: &Lsn| {
        known.term_at(*lsn).is_some_and(|term| state.patches.get(gap.group, *lsn, term).is_none())
    };
    let mut lsns = (gap.first.0..=gap.last.0).map(Lsn);
    let first = lsns.by_ref().find(lacks)?;
    let last = lsns.rev().find(lacks).unwrap_or(first);
    Some((gap.group, first, last))
}

/// Enters the index of a segment, and what is damaged in it.
fn install<F>(
    state: &mut State<F>,
    segment: u64,
    file: Arc<F>,
    index: SegmentIndex,
    holes: Vec<Hole>,
) {
    let active = state.active.segment == segment;
    if holes.is_empty() {
        state.damaged.remove(&segment);
        let spans =
            state.table.groups().filter_map(|(id, group)| Some((id, group.span_in(segment)?)));
        for (group, span) in spans {
            state.patches.forget(group, span.first, span.last);
        }
    } else {
        let spans =
            state.table.groups().filter_map(|(id, group)| Some((id, group.span_in(segment)?)));
        let gaps = spans.flat_map(|(id, span)| index.gaps(id, span.first, span.last)).collect();
        let other = state.damaged.keys().find(|known| **known != segment).copied();
        if state.damaged.len() >= DAMAGED_MAX
            && let Some(other) = other
        {
            state.damaged.remove(&other);
        }
        state.damaged.insert(segment, Arc::new(Damage { holes, gaps, active }));
    }
    if active {
        state.active.index = index;
    } else {
        state.cache.put(segment, file, Arc::new(index));
    }
}

/// A scan under way.
struct Scan<'a, D: Disk> {
    shared: &'a Shared<D>,
    cursor: Cursor<'a, D>,
    expect: Expect,
    index: SegmentIndex,
    holes: Vec<Hole>,
    /// Only entries that count are indexed.
    careful: bool,
    /// Every block so far is as it was written at first.
    whole: bool,
}

impl<D: Disk> Scan<'_, D> {
    /// Up to the cursor's end, or, unless careful, to what asks for care.
    async fn read_on(&mut self) {
        while self.cursor.at() < self.cursor.end() && (self.careful || self.whole) {
            let at = self.cursor.at();
            match self.cursor.next(&mut self.expect).await {
                Ok(Ok(block)) if block.header.kind != BlockKind::Marker => {
                    self.whole &= block.header.kind != BlockKind::Mended;
                    self.note(at, &block);
                }
                _ => {
                    self.whole = false;
                    self.pass(at).await;
                }
            }
        }
    }

    fn note(&mut self, at: u64, block: &Block) {
        let state = self.careful.then(|| self.shared.lock());
        let mut frame = 0;
        while let Some(Ok(Peeked { len, entry })) = block.body.get(frame..).map(peek) {
            if let Some((group, lsn, term)) = entry {
                let counts = state.as_ref().is_none_or(|state| {
                    state.table.group(group).and_then(|group| group.term_at(lsn)) == Some(term)
                });
                if counts {
                    self.index.note(group, Point { lsn, block: at, frame: frame as u32 }, len);
                } else {
                    self.index.pass(group);
                }
            }
            frame += len;
        }
    }

    /// Passes over damage. What the disk can't read counts as such.
    async fn pass(&mut self, at: u64) {
        let Expect { salt, segment, sequence, epoch } = self.expect;
        let head = self.cursor.head(salt).await;
        let end = match head {
            Ok(Ok(header))
                if header.kind != BlockKind::Marker
                    && (header.segment, header.offset) == (segment, at)
                    && header.sequence == sequence
                    && at + padded(header.len()) <= self.cursor.end() =>
            {
                (self.expect.sequence, self.expect.epoch) = (sequence + 1, header.epoch);
                self.holes.push(Hole {
                    at,
                    end: at + padded(header.len()),
                    block: Some((sequence, header.epoch)),
                });
                at + padded(header.len())
            }
            _ => {
                let next = loop {
                    if let Ok(found) = self.cursor.resync(&self.expect).await {
                        break found;
                    }
                };
                let segments = &self.shared.lock().segments;
                let (end, next_sequence, epoch) = match next {
                    Some(next) if next.kind == BlockKind::Opening => {
                        (next.offset, Some(next.sequence), epoch)
                    }
                    Some(next) => (next.offset, Some(next.sequence), next.epoch),
                    None => {
                        let after = segments.get(&(segment + 1)).map(|next| next.first_block);
                        (self.cursor.end(), after, epoch)
                    }
                };
                let one = next_sequence == Some(sequence + 1);
                self.holes.push(Hole { at, end, block: one.then_some((sequence, epoch)) });
                if let Some(next) = next {
                    (self.expect.sequence, self.expect.epoch) = (next.sequence, next.epoch);
                }
                end
            }
        };
        self.index.hole();
        self.cursor.seek(end);
    }
}
