//! Puts good copies of damaged entries in place: in memory at first, and into the segment, where the
//! damage was, once everything that is missing there is at hand.

use std::{collections::BTreeMap, io};

use bytes::{BufMut, Bytes, BytesMut};
use highwater_core::{Entry, GroupId, Lsn, Record, Term};

use super::{
    LogReader,
    damage::{Damage, Hole},
    file_name,
    format::{
        BLOCK_HEADER, BlockHeader, BlockKind, Salt, encode_filler, encode_record, frame_len, padded,
    },
    shared::State,
    table,
};
use crate::disk::Disk;

/// Copies of entries that can't be read where they belong.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    entries: BTreeMap<(GroupId, Lsn), Entry>,
    bytes: usize,
}

impl Patches {
    /// Keeps a copy. At most about `max` bytes are kept; what is forgotten can be had again.
    fn put(&mut self, group: GroupId, entry: Entry, max: usize) {
        if self.bytes + entry.weight() > max {
            *self = Patches::default();
        }
        self.bytes += entry.weight();
        if let Some(before) = self.entries.insert((group, entry.lsn), entry) {
            self.bytes -= before.weight();
        }
    }

    pub(crate) fn get(&self, group: GroupId, lsn: Lsn, term: Term) -> Option<&Entry> {
        self.entries.get(&(group, lsn)).filter(|entry| entry.term == term)
    }

    /// Entries from `from` on, up to `to` at most, as far as there are copies, about `max_bytes`.
    pub(crate) fn run(
        &self,
        group: GroupId,
        known: &table::Group,
        from: Lsn,
        to: Lsn,
        max_bytes: usize,
    ) -> Vec<Entry> {
        let mut run: Vec<Entry> = Vec::new();
        let mut left = max_bytes;
        let mut next = from;
        while next <= to && (run.is_empty() || left > 0) {
            let term = known.term_at(next);
            let Some(entry) = term.and_then(|term| self.get(group, next, term)) else { break };
            left = left.saturating_sub(entry.weight());
            run.push(entry.clone());
            next = next.next();
        }
        run
    }

    /// They can be read where they belong.
    pub(crate) fn forget(&mut self, group: GroupId, first: Lsn, last: Lsn) {
        let within = (group, first)..=(group, last);
        let keys: Vec<_> = self.entries.range(within).map(|(key, _)| *key).collect();
        for key in keys {
            self.bytes -= self.entries.remove(&key).map_or(0, |entry| entry.weight());
        }
    }

    #[cfg(all(test, not(madsim)))]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<D: Disk> LogReader<D> {
    /// Takes good copies of entries that [`LoadError::Damaged`](super::LoadError::Damaged) named as
    /// missing: loads find them from now on. Once all that is missing in a segment is there, it is
    /// written where the damage is, unless the log's writer is still in that segment. Nothing else
    /// is changed, and entries that are not missing are ignored. To be called by one task at a time.
    ///
    /// # Errors
    /// Where the disk refuses. The copies stay, and the next call tries again.
    pub async fn mend(&self, group: GroupId, entries: Vec<Entry>) -> io::Result<()> {
        let damaged: Vec<(u64, bool)> = {
            let state = &mut *self.shared.lock();
            let max = self.shared.options.segment_bytes as usize;
            for entry in entries {
                if lacks(state, group, &entry) {
                    state.patches.put(group, entry, max);
                }
            }
            let older = state.damaged.range(..state.active.segment);
            older.map(|(segment, damage)| (*segment, damage.active)).collect()
        };
        for (segment, grew) in damaged {
            if grew {
                self.index(segment).await?;
            }
            self.mend_segment(segment).await?;
        }
        self.mend_history().await
    }

    /// Writes what is missing in a segment that is no longer written to, if all of it is there.
    pub(crate) async fn mend_segment(&self, segment: u64) -> io::Result<()> {
        let blocks = {
            let state = self.shared.lock();
            let damage = state.damaged.get(&segment).filter(|damage| !damage.active);
            let Some(damage) = damage else { return Ok(()) };
            blocks(&state, self.shared.salt, segment, damage)
        };
        let Some(blocks) = blocks else { return Ok(()) };
        let disk = &self.shared.disk;
        let file = disk.open(&file_name(segment), false).await?;
        for (at, block) in blocks {
            disk.write_at(&file, at, block).await?;
        }
        disk.sync(&file).await?;
        // Read it all again: the copies go once the segment is whole.
        self.index(segment).await
    }
}

/// Whether this entry counts, and can't be read.
fn lacks<F>(state: &State<F>, group: GroupId, entry: &Entry) -> bool {
    let Some(known) = state.table.group(group) else { return false };
    let Some(span) = known.span(entry.lsn) else { return false };
    let missing = if state.segments.contains_key(&span.segment) {
        let Some(damage) = state.damaged.get(&span.segment) else { return false };
        let mut gaps = damage.gaps.iter().filter(|gap| gap.group == group);
        gaps.any(|gap| gap.first <= entry.lsn && entry.lsn <= gap.last)
    } else {
        let file = state.history.find(span.segment, group, entry.lsn);
        file.is_some_and(|(id, _)| state.history.lacks(id, group, entry.lsn))
    };
    missing && known.term_at(entry.lsn) == Some(entry.term)
}

/// What to write where, so that the segment is whole; `None` as long as something is missing, or
/// what is missing can't be told apart.
fn blocks<F>(
    state: &State<F>,
    salt: Salt,
    segment: u64,
    damage: &Damage,
) -> Option<Vec<(u64, Bytes)>> {
    let room = |hole: &Hole| (hole.end - hole.at) as usize - BLOCK_HEADER;
    let mut rooms: Vec<usize> = damage.holes.iter().map(room).collect();
    let mut bodies: Vec<Vec<Record>> = damage.holes.iter().map(|_| Vec::new()).collect();
    // What belongs into one place for certain comes before what may be spread over several.
    let (certain, spread): (Vec<_>, Vec<_>) =
        damage.gaps.iter().partition(|gap| gap.holes.len() == 1);
    for gap in certain.into_iter().chain(spread) {
        let known = state.table.group(gap.group)?;
        let mut hole = gap.holes.start;
        for lsn in (gap.first.0..=gap.last.0).map(Lsn) {
            if known.span(lsn).is_none_or(|span| span.segment != segment) {
                continue; // It was replaced meanwhile.
            }
            let entry = state.patches.get(gap.group, lsn, known.term_at(lsn)?)?.clone();
            let record = Record::Append { group: gap.group, entry };
            while gap.holes.contains(&hole) && rooms[hole] < frame_len(&record) {
                hole += 1;
            }
            if !gap.holes.contains(&hole) {
                return None;
            }
            rooms[hole] -= frame_len(&record);
            bodies[hole].push(record);
        }
    }
    damage
        .holes
        .iter()
        .zip(&bodies)
        .map(|(hole, records)| Some((hole.at, block(salt, segment, hole, records)?)))
        .collect()
}

/// A block that takes exactly the place of the damaged one, with its sequence and epoch.
fn block(salt: Salt, segment: u64, hole: &Hole, records: &[Record]) -> Option<Bytes> {
    let (sequence, epoch) = hole.block?;
    let place = (hole.end - hole.at) as usize;
    let mut body = BytesMut::with_capacity(place);
    for record in records {
        encode_record(record, &mut body);
    }
    if padded((BLOCK_HEADER + body.len()) as u64) as usize != place {
        encode_filler(place - BLOCK_HEADER - body.len(), &mut body);
    }
    let header = BlockHeader {
        kind: BlockKind::Mended,
        body_len: body.len() as u32,
        segment,
        sequence,
        epoch,
        // The whole segment was fsynced before the next one was begun.
        synced_upto: sequence - 1,
        body_sum: crc32c::crc32c(&body),
        frames: records.len() as u32,
        offset: hole.at,
    };
    let mut out = BytesMut::with_capacity(place);
    out.put_slice(&header.encode(salt));
    out.put_slice(&body);
    out.resize(place, 0);
    Some(out.freeze())
}
