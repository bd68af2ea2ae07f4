//! Reads sealed entries back, and mends history files.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use highwater_core::{Entry, GroupId, Lsn, Record, Term};
use highwater_wire::entry;

use super::{
    LogReader,
    format::{encode_record, peek},
    history::{
        BlockAt, FileId, HISTORY, MENDING, Open, Part, Range, Subject, decode_block, encode_block,
        file_name, read_footer,
    },
    seal::{Making, terms_within},
    shared::{Shared, State},
};
use crate::disk::Disk;

/// What of a history file is wanted.
pub(crate) struct Wanted<'a> {
    pub(crate) group: GroupId,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    /// Where terms start, from that of the first entry on.
    pub(crate) terms: &'a [(Lsn, Term)],
    pub(crate) max_bytes: usize,
}

/// What blocks of a file come to: by group and first LSN.
type Copies = BTreeMap<(GroupId, Lsn), Vec<Entry>>;

/// Why sealed entries can't be read.
pub(crate) struct Unread {
    pub(crate) offset: u64,
    pub(crate) what: String,
    /// What can't be read.
    pub(crate) block: Range,
}

impl<D: Disk> LogReader<D> {
    /// Entries of a history file from `from` on: at least one.
    pub(crate) async fn load_sealed(
        &self,
        id: FileId,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Entry>, Unread> {
        let Wanted { group, from, to, max_bytes, .. } = *wanted;
        let unread = |offset, block, what: String| Unread { offset, what, block };
        let none = (group, from, to);
        let (file, parts) = match self.shared.open_history(id).await {
            Ok(Ok(open)) => open,
            Ok(Err(what)) => return Err(unread(0, none, what.to_owned())),
            Err(error) => return Err(unread(0, none, format!("it can't be read: {error}"))),
        };
        let part = parts.iter().find(|part| part.group == group);
        let (mut entries, mut left) = (Vec::new(), max_bytes);
        let mut next = from;
        while next <= to && (entries.is_empty() || left > 0) {
            let Some((at, last)) = part.and_then(|part| part.block(next)) else {
                return Err(unread(0, none, format!("LSN {next} is missing")));
            };
            let of = Subject { segment: id.0, group, first: at.first };
            let read = self.shared.read_block(&file, at, of).await;
            let taken = read.and_then(|frames| {
                take(&frames, wanted, next, &mut left, &mut entries)?;
                Ok(())
            });
            match taken {
                Ok(()) => next = entries.last().map_or(next, |entry: &Entry| entry.lsn.next()),
                Err(_) if !entries.is_empty() => break,
                Err(what) => {
                    let block = (group, at.first, last);
                    self.shared.lock().history.note_damage(id, block);
                    return Err(unread(at.at, block, what));
                }
            }
        }
        Ok(entries)
    }

    /// What of a damaged block counts, and there is no copy of.
    pub(crate) fn missing_sealed(&self, segment: u64, block: Range) -> Vec<Range> {
        let state = self.shared.lock();
        let (group, ..) = block;
        let Some((first, last)) = counts(&state, segment, block) else { return Vec::new() };
        let known = state.table.group(group);
        let lacks = |lsn: &Lsn| {
            let term = known.and_then(|known| known.term_at(*lsn));
            term.is_some_and(|term| state.patches.get(group, *lsn, term).is_none())
        };
        let mut lsns = (first.0..=last.0).map(Lsn);
        let Some(first) = lsns.by_ref().find(lacks) else { return Vec::new() };
        vec![(group, first, lsns.rev().find(lacks).unwrap_or(first))]
    }

    /// Writes history files anew all of whose known damage there are copies of.
    pub(crate) async fn mend_history(&self) -> io::Result<()> {
        let whole: Vec<(FileId, Copies)> = {
            let state = self.shared.lock();
            let damaged = state.history.damaged.iter();
            damaged.filter_map(|(id, blocks)| Some((*id, copies(&state, *id, blocks)?))).collect()
        };
        for (id, copies) in whole {
            self.remake(id, &copies).await?;
        }
        Ok(())
    }

    /// Writes a file anew: these blocks of what there are copies of, the others as they are.
    async fn remake(&self, id: FileId, copies: &Copies) -> io::Result<()> {
        let shared = &*self.shared;
        let Ok((file, parts)) = shared.open_history(id).await? else { return Ok(()) };
        let mut making = Making::begin(shared, id, MENDING).await?;
        for part in parts.iter() {
            let Some((first, last)) = kept(part, copies) else { continue };
            making.part(part.group, last, terms_within(&part.terms, first, last));
            for at in &part.blocks {
                match copies.get(&(part.group, at.first)) {
                    Some(entries) => {
                        let Some(first) = entries.first().map(|entry| entry.lsn) else { continue };
                        let of = Subject { segment: id.0, group: part.group, first };
                        making.block(first, pack(shared, of, entries)).await?;
                    }
                    None => {
                        let block = shared.disk.read_at(&file, at.at, at.len as usize).await?;
                        making.block(at.first, block).await?;
                    }
                }
            }
        }
        let ranges = making.finish().await?;
        shared.disk.sync_dir(HISTORY).await?;
        let state = &mut *shared.lock();
        state.history.files.insert(id, ranges);
        state.history.forget(id);
        for ((group, _), entries) in copies {
            if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                state.patches.forget(*group, first.lsn, last.lsn);
            }
        }
        Ok(())
    }
}

impl<D: Disk> Shared<D> {
    /// A history file and its footer. The outer error is the disk's.
    async fn open_history(&self, id: FileId) -> io::Result<Result<Open<D::File>, &'static str>> {
        if let Some(open) = self.lock().history.cached(id) {
            return Ok(Ok(open));
        }
        let file = self.disk.open(&file_name(id), false).await?;
        match read_footer(&self.disk, &file, self.incarnation, id.0).await? {
            Ok(parts) => {
                let open = (Arc::new(file), Arc::new(parts));
                self.lock().history.cache(id, open.clone());
                Ok(Ok(open))
            }
            Err(fault) => Ok(Err(fault.what())),
        }
    }

    /// The frames of a block.
    async fn read_block(
        &self,
        file: &D::File,
        BlockAt { at, len, .. }: BlockAt,
        of: Subject,
    ) -> Result<Bytes, String> {
        let read = self.disk.read_at(file, at, len as usize).await;
        let block = read.map_err(|error| format!("it can't be read: {error}"))?;
        decode_block(self.salt, of, &block).map_err(str::to_owned)
    }
}

/// Takes the entries from `next` on out of a block.
fn take(
    frames: &Bytes,
    wanted: &Wanted<'_>,
    mut next: Lsn,
    left: &mut usize,
    entries: &mut Vec<Entry>,
) -> Result<(), String> {
    let mut at = 0;
    let before = entries.len();
    while at < frames.len() && next <= wanted.to && (entries.is_empty() || *left > 0) {
        let peeked = peek(&frames[at..]).map_err(|error| error.to_string())?;
        let mut frame = frames.slice(at..at + peeked.len);
        at += peeked.len;
        if peeked.entry.is_some_and(|(_, lsn, _)| lsn < next) {
            continue;
        }
        let (_, entry) = entry::decode_entry(&mut frame).map_err(|error| error.to_string())?;
        let started = wanted.terms.partition_point(|(first, _)| *first <= next);
        let term = started.checked_sub(1).map(|at| wanted.terms[at].1);
        if entry.lsn != next || term != Some(entry.term) {
            return Err(format!("LSN {next} is missing"));
        }
        *left = left.saturating_sub(peeked.len);
        next = next.next();
        entries.push(entry);
    }
    if entries.len() == before {
        return Err(format!("LSN {next} is missing"));
    }
    // Few entries must not keep a whole block in memory.
    let taken: usize = entries[before..].iter().map(Entry::weight).sum();
    if taken < frames.len() / 2 {
        for entry in &mut entries[before..] {
            entry.payload = Bytes::copy_from_slice(&entry.payload);
        }
    }
    Ok(())
}

/// The part of a block that counts.
fn counts<F>(state: &State<F>, segment: u64, (group, first, last): Range) -> Option<(Lsn, Lsn)> {
    let span = state.table.group(group)?.span_in(segment)?;
    let (first, last) = (first.max(span.first), last.min(span.last));
    (first <= last).then_some((first, last))
}

/// Copies of all that counts in these blocks; `None` as long as something is missing.
fn copies<F>(state: &State<F>, id: FileId, blocks: &BTreeSet<Range>) -> Option<Copies> {
    let mut copies = BTreeMap::new();
    for block in blocks {
        let (group, at, _) = *block;
        let Some((first, last)) = counts(state, id.0, *block) else {
            copies.insert((group, at), Vec::new());
            continue;
        };
        let known = state.table.group(group)?;
        let copy = |lsn| state.patches.get(group, lsn, known.term_at(lsn)?).cloned();
        let entries: Option<Vec<Entry>> = (first.0..=last.0).map(|lsn| copy(Lsn(lsn))).collect();
        copies.insert((group, at), entries?);
    }
    Some(copies)
}

/// What a part holds once these blocks are replaced, from where to where. Only what does not count
/// any more is left out, at either end.
fn kept(part: &Part, copies: &Copies) -> Option<(Lsn, Lsn)> {
    let of = |at: usize| {
        let (first, last) = (part.blocks[at].first, part.last_of(at));
        match copies.get(&(part.group, first)) {
            Some(entries) => Some((entries.first()?.lsn, entries.last()?.lsn)),
            None => Some((first, last)),
        }
    };
    let first = (0..part.blocks.len()).find_map(of)?.0;
    let last = (0..part.blocks.len()).rev().find_map(of)?.1;
    Some((first, last))
}

fn pack<D: Disk>(shared: &Shared<D>, of: Subject, entries: &[Entry]) -> Bytes {
    let mut frames = BytesMut::new();
    for entry in entries {
        encode_record(&Record::Append { group: of.group, entry: entry.clone() }, &mut frames);
    }
    encode_block(shared.salt, of, entries.len() as u32, &frames)
}
