//! The materialized state: every group's records, as the applied prefix of its oplog leaves them.
//!
//! # Shape
//! A group's state is a bounded in-memory **overlay** over one redb file. [`States::apply`] changes
//! the overlay only; [`States::freeze`] sets it aside and begins a new one; [`States::flush`] moves
//! what was set aside into the file, in one durable transaction that carries the LSN it stands at
//! and the core's control writes. So the file always holds exactly the prefix that its mark names,
//! and what a crash takes from memory is applied again from the oplog. Reads merge the active
//! overlay over the frozen one over the file.
//!
//! ```text
//!   apply ─▶ active overlay ──freeze──▶ frozen overlay ──flush──▶ <group>.redb
//!                  ▲                          ▲                        ▲
//!   get, list ─────┴───────── merged ─────────┴────────────────────────┘
//! ```
//!
//! # The file
//! `<group>.redb`, made at the first flush under `<group>.redb.tmp`, committed, renamed, the
//! directory fsynced. Every transaction is `Durability::Immediate` with quick repair. redb's pages
//! go through checksummed blocks on their way to the file (see `checked.rs`), since redb verifies
//! nothing on ordinary reads. Integers are little endian.
//!
//! | table | key | row |
//! | --- | --- | --- |
//! | `records` | the record's key | u64 version, u128 leaf, u8 length of content type, content type, value |
//! | `control` | as the core gives it | as the core gives it |
//! | `meta` | `mark` | u32 format = 2, u64 group, u64 applied LSN |
//! | `meta` | `sums` | 256 times u128: the sum of the leaves in each bucket of keys |
//!
//! # Leaves, sums and roots
//! Each record has a leaf, a hash of all of it, and the state the sums of those (see `leaf.rs`). A
//! record that is read from the file is checked against its leaf, whoever reads it; the
//! [scrub](States::scrub) reads everything, and compares the sums. At an
//! [`Audit`](highwater_core::Kind::Audit) entry, the outcome is the root of the state as it is there.
//!
//! # Who bounds it
//! The core: it asks for a checkpoint once a group has applied so much, and for the largest one's
//! when all groups have. An overlay's keys and values are slices of the payloads that brought them.
//!
//! # Files that are open
//! At most [`StateOptions::open_max`], the least recently used one being closed for the next; a
//! group that is not used costs a map entry, one that was used its sums: 4 KiB. All caches together take at most
//! [`StateOptions::cache_bytes`].
//!
//! This module knows nothing of consensus: that entries are committed is its caller's word.

mod apply;
mod checked;
mod error;
mod export;
mod files;
mod key;
mod layout;
mod leaf;
mod open;
mod overlay;
mod room;
mod scrub;
mod slot;
mod snapshot;
mod table;
#[cfg(any(test, madsim))]
mod tamper;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use highwater_core::{
    Entry, GroupId, Lsn, Outcome, Position,
    planted::{self, Planted},
};
/// What a [`StateFiles`] hands out.
pub use redb::StorageBackend;

use self::{
    apply::{Answers, Prior, Run, Target},
    layout::RecordRow,
    leaf::Leaf,
    open::{Place, guarded},
    overlay::{Before, Cell, Frozen, PageRange},
    room::{Patient, Room},
    slot::{File, Memory, Slot, unpoison},
    table::{LIST_BYTES_MAX, Reader},
};
pub use self::{
    error::StateError,
    export::Export,
    files::StateFiles,
    scrub::Scrubbed,
    snapshot::{Incoming, SNAPSHOT_BLOCK_MAX, Sealed, SnapshotError},
};
#[cfg(not(madsim))]
pub use files::RealFiles;
#[cfg(any(test, madsim))]
pub use tamper::{Tamper, tamper};

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The LSN of its last write.
    pub version: Lsn,
    /// Its media type; empty where none was given.
    pub content_type: Bytes,
    /// Its bytes.
    pub value: Bytes,
}

impl StoredRecord {
    fn row(&self, leaf: Leaf) -> RecordRow<'_> {
        let StoredRecord { version, content_type, value } = self;
        RecordRow { version: *version, leaf, content_type, value }
    }
}

/// A listed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredListed {
    /// The key.
    pub key: Bytes,
    /// The value's length in bytes.
    pub size: u64,
    /// The record; its value is empty unless values were asked for.
    pub record: StoredRecord,
}

/// The bounds of [`States`].
#[derive(Clone, Copy, Debug)]
pub struct StateOptions {
    /// State files open at a time; at least 1. Briefly exceeded when more are in use at once.
    pub open_max: usize,
    /// All their caches together, in bytes.
    pub cache_bytes: usize,
}

impl Default for StateOptions {
    fn default() -> StateOptions {
        StateOptions { open_max: 256, cache_bytes: 128 << 20 }
    }
}

/// Control writes, and what they stand at.
pub type Control = (Position, Vec<(Bytes, Bytes)>);

/// What a state is to be made durable at, and what goes with it.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// What is applied.
    pub at: Position,
    /// Outcomes of refused operations up to here are forgotten.
    pub pruned: Lsn,
    /// The core's control writes.
    pub control: Vec<(Bytes, Bytes)>,
}

/// What counts of a file, beside what memory knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    Records,
    File,
}

/// The state of every group of a node. All calls may come from any thread; calls on different
/// groups do not wait for each other's IO.
pub struct States {
    files: Box<dyn StateFiles>,
    options: StateOptions,
    answers: Answers,
    groups: Mutex<BTreeMap<GroupId, Arc<Slot>>>,
    open: Mutex<BTreeMap<GroupId, Place>>,
    clock: AtomicU64,
    /// Where flushes wait for it.
    room: Option<Arc<Room>>,
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").field("options", &self.options).finish_non_exhaustive()
    }
}

impl States {
    /// The states whose files are there. Opens none of them.
    ///
    /// # Errors
    /// When the directory of the files cannot be [settled](StateFiles::settle).
    pub fn new(files: Box<dyn StateFiles>, options: StateOptions) -> io::Result<States> {
        files.settle()?;
        Ok(States {
            files,
            options,
            answers: Answers::new(),
            groups: Mutex::default(),
            open: Mutex::default(),
            clock: AtomicU64::new(0),
            room: None,
        })
    }

    /// Has a flush that finds the disk full wait until there is room, its thread with it. Else it
    /// fails, and the group is out of service: which is better where another node can take over.
    #[must_use]
    pub fn waiting_for_room(self) -> States {
        States { room: Some(Arc::default()), ..self }
    }

    /// Whether a flush waits for room.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.is_lacking())
    }

    /// Returns when [`States::lacks_room`] may have changed, or shortly after. For one listener.
    pub async fn room_changed(&self) {
        match &self.room {
            Some(room) => room.changed().await,
            None => std::future::pending().await,
        }
    }

    fn backend(&self, inner: Box<dyn StorageBackend>) -> Box<dyn StorageBackend> {
        match self.room.clone() {
            Some(room) => Box::new(Patient { inner, room }),
            None => inner,
        }
    }

    /// What is applied of a group: after a start, what its file holds.
    ///
    /// # Errors
    /// When the file cannot be opened or read, which is never taken for absence.
    pub fn applied(&self, group: GroupId) -> Result<Lsn, StateError> {
        self.known(&self.slot(group))
    }

    /// The system group's control writes as its last flush left them, in order of keys, and the
    /// LSN they stand at.
    ///
    /// # Errors
    /// When the file cannot be opened or read, which is never taken for absence.
    pub fn system_control(&self) -> Result<Control, StateError> {
        let slot = self.slot(GroupId::SYSTEM);
        let Some(table) = self.open(&slot)? else { return Ok((Position::default(), Vec::new())) };
        guarded(&slot, "reading", || {
            let reader = table.begin_read()?.read()?;
            Ok((reader.mark()?.at, reader.control()?))
        })
    }

    /// Those of a group's control writes whose keys have one of these prefixes, as its last flush
    /// left them, and the LSN they stand at.
    ///
    /// # Errors
    /// When the file cannot be opened or read, which is never taken for absence.
    pub fn control(&self, group: GroupId, prefixes: &[Bytes]) -> Result<Control, StateError> {
        let slot = self.slot(group);
        let Some(table) = self.open(&slot)? else { return Ok((Position::default(), Vec::new())) };
        guarded(&slot, "reading", || {
            let reader = table.begin_read()?.read()?;
            let mut rows = Vec::new();
            for prefix in prefixes {
                reader.control_rows(prefix, &mut rows)?;
            }
            Ok((reader.mark()?.at, rows))
        })
    }

    /// Applies a run of committed entries, and returns the outcome of each among them that
    /// [has one](highwater_core::Kind::has_outcome), in order. Entries that the state holds already are skipped, with default outcomes.
    ///
    /// # Errors
    /// Nothing is applied when the run does not follow what is applied, or when the file cannot be
    /// read. At an operation that cannot be decoded the run ends: what came before it is applied.
    pub fn apply(&self, group: GroupId, entries: &[Entry]) -> Result<Vec<Outcome>, StateError> {
        let slot = self.slot(group);
        let _turn = slot.turn();
        let applied = self.known(&slot)?;
        let run = Run::read(applied, entries).map_err(|(applied, first)| StateError::Gap {
            group,
            file: layout::file_name(group),
            applied,
            first,
        })?;
        let priors = self.priors(&slot, &run)?;
        let mut priors = &priors[..];

        let mut outcomes = vec![Outcome::default(); run.skipped];
        outcomes.reserve(run.steps.len());
        let mut guard = slot.write()?;
        let memory = &mut *guard;
        let mut target = Target {
            active: &mut memory.overlays.active,
            sums: &mut memory.sums,
            leaves: slot.leaves,
            answers: &self.answers,
        };
        let mut refused = Vec::new();
        for (lsn, step) in run.steps {
            let outcome = target.take(lsn, step, &mut priors);
            refused.extend(outcome.refused.then_some(lsn));
            outcomes.push(outcome);
        }
        memory.overlays.refused.extend(refused);
        memory.applied = run.upto;
        drop(guard);
        match run.undecodable {
            None => Ok(outcomes),
            Some((lsn, source)) => Err(StateError::Undecodable { group, lsn, source }),
        }
    }

    /// Sets the active overlay aside, to be flushed together with a checkpoint's control writes, and
    /// begins a new one. The system group has no operations and its entries are the core's own to apply:
    /// for that group, the checkpoint is taken as the word that they are.
    ///
    /// # Errors
    /// Unless exactly the checkpoint's LSN is applied and nothing waits to be flushed; nothing is changed then.
    pub fn freeze(&self, group: GroupId, checkpoint: Checkpoint) -> Result<(), StateError> {
        let Checkpoint { at, pruned, control } = checkpoint;
        let lsn = at.lsn;
        let slot = self.slot(group);
        let _turn = slot.turn();
        self.known(&slot)?;
        let mut memory = slot.write()?;
        if let Some(frozen) = &memory.overlays.frozen {
            return Err(StateError::FlushPending { group, frozen: frozen.at.lsn });
        }
        let is_applied = match group {
            GroupId::SYSTEM => lsn >= memory.applied,
            _ => lsn == memory.applied,
        };
        if !is_applied {
            return Err(StateError::NotApplied { group, lsn, applied: memory.applied });
        }
        memory.applied = lsn;
        // Before any row is gone.
        memory.pruned = pruned.max(memory.pruned);
        let overlay = std::mem::take(&mut memory.overlays.active);
        let refused = std::mem::take(&mut memory.overlays.refused);
        let sums = memory.sums.clone();
        memory.overlays.frozen =
            Some(Arc::new(Frozen { at, pruned, overlay, refused, control, sums }));
        Ok(())
    }

    /// Makes the frozen overlay durable, while applies and reads go on, and returns the LSN that
    /// the file holds now. Without a frozen overlay it only tells.
    ///
    /// # Errors
    /// When writing fails: the group is out of service until the node is started again, since
    /// nobody knows what a failed fsync left.
    pub fn flush(&self, group: GroupId) -> Result<Lsn, StateError> {
        let slot = self.slot(group);
        let mut pass = slot.flushing();
        self.known(&slot)?;
        let frozen = {
            let memory = slot.read()?;
            match &memory.overlays.frozen {
                Some(frozen) => frozen.clone(),
                None => return Ok(memory.durable),
            }
        };
        let (created, _opening) = match self.open(&slot)? {
            Some(table) => {
                let mut upto = frozen.at;
                if planted::is(Planted::CheckpointNewer) {
                    upto.lsn = slot.read()?.applied;
                }
                guarded(&slot, "flushing", || table.commit(group, &frozen, upto, pass.as_mut()))?;
                (None, None)
            }
            // Held until the new file is in the group's memory, so that it is not closed before.
            None => {
                let opening = slot.opening();
                (Some(self.create(&slot, &frozen)?), Some(opening))
            }
        };

        let has_records = frozen.overlay.values().any(|cell| cell.record().is_some());
        let mut memory = slot.write()?;
        if let Some(table) = created {
            memory.file = File::Open(table);
        }
        memory.has_records |= has_records;
        memory.durable = frozen.at.lsn;
        // From here on the file shows what the overlay did; readers took both under this lock.
        memory.overlays.frozen = None;
        if planted::is(Planted::OverlayDropped) {
            memory.overlays.active.clear();
        }
        Ok(frozen.at.lsn)
    }

    /// Drops a group's state, in memory and durably on disk: what was damaged is applied again, from
    /// the first entry. Until [`States::reopen`] says how far, and that is applied, reads are refused.
    ///
    /// # Errors
    /// When the file cannot be removed; the group stays out of service.
    pub fn reset(&self, group: GroupId) -> Result<(), StateError> {
        let old = self.slot(group);
        let _turn = old.turn();
        let _flushing = old.flushing();
        let _opening = old.opening();
        old.fail("its state is being rebuilt".into(), false);
        let name = layout::file_name(group);
        // First what others may get of it.
        self.files
            .remove(&snapshot::snap_name(group))
            .map_err(|source| open::io_error(group, "removing a snapshot", source))?;
        self.files.remove(&name).map_err(|source| open::io_error(group, "removing", source))?;
        self.release(group);
        self.replace(group, Slot::blank(group));
        Ok(())
    }

    /// Takes a group out of service at once, to be [reset](States::reset): its state is not what the
    /// others' are.
    pub fn condemn(&self, group: GroupId, reason: &str) {
        self.slot(group).fail(reason.into(), true);
    }

    /// The oplog says that the state stands at least at `lsn`: a file that does not was lost, or
    /// replaced by an older copy.
    pub fn expect(&self, group: GroupId, lsn: Lsn) {
        self.slot(group).set_whole_from(lsn);
    }

    /// A state that was [reset](States::reset) may be read once it stands at `upto`.
    pub fn reopen(&self, group: GroupId, upto: Lsn) {
        self.slot(group).set_whole_from(upto);
    }

    /// What is applied, and the record of a key at exactly that prefix.
    ///
    /// # Errors
    /// When the file cannot be read, the record in it is damaged, or the state is being rebuilt.
    pub fn get(
        &self,
        group: GroupId,
        key: &[u8],
    ) -> Result<(Lsn, Option<StoredRecord>), StateError> {
        let slot = self.slot(group);
        let (applied, cell, reader) = self.look(&slot, |memory| {
            let cell = memory.overlays.get(key).cloned();
            let below = if cell.is_none() { Below::Records } else { Below::Nothing };
            (cell, below)
        })?;
        let record = match (cell, reader) {
            (Some(Cell::Record(record, _)), _) => Some(record),
            (Some(Cell::Gone), _) | (None, None) => None,
            (None, Some(reader)) => guarded(&slot, "reading", || reader.get(key))?,
        };
        slot.check_whole(applied)?;
        Ok((applied, record))
    }

    /// What is applied, and of exactly that prefix the records whose keys have a prefix and come
    /// after a key, in byte order, at most `limit` of them; and whether there is more after the
    /// last one. Ends early, with more, at about 16 MiB of values (64 MiB read, without values);
    /// at least one record comes.
    ///
    /// # Errors
    /// When the file cannot be read, a record in it is damaged, or the state is being rebuilt.
    pub fn list(
        &self,
        group: GroupId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        values: bool,
    ) -> Result<(Lsn, Vec<StoredListed>, bool), StateError> {
        let slot = self.slot(group);
        let range = PageRange::new(prefix, after);
        let bytes_max = if values { LIST_BYTES_MAX } else { usize::MAX };
        let (applied, layer, reader) = self.look(&slot, |memory| {
            (memory.overlays.page(&range, limit.saturating_add(1), bytes_max), Below::Records)
        })?;
        let (records, more) = guarded(&slot, "reading", || {
            table::page(layer, reader.as_ref(), &range, limit, values)
        })?;
        slot.check_whole(applied)?;
        Ok((applied, records, more))
    }

    /// What is applied, where it may be read.
    ///
    /// # Errors
    /// When the file cannot be opened or read, or the state is being rebuilt.
    pub fn readable(&self, group: GroupId) -> Result<Lsn, StateError> {
        let slot = self.slot(group);
        let applied = self.known(&slot)?;
        slot.check_whole(applied)?;
        Ok(applied)
    }

    /// Which of the applied operations in a range of LSNs, both ends included, were refused.
    ///
    /// # Errors
    /// When the file cannot be read, the state is being rebuilt, or that is not known any more since the
    /// log is pruned.
    pub fn refused(&self, group: GroupId, from: Lsn, to: Lsn) -> Result<BTreeSet<Lsn>, StateError> {
        let slot = self.slot(group);
        let (applied, mut refused, reader) =
            self.look(&slot, |memory| (memory.overlays.refused_within(from, to), Below::File))?;
        let pruned = slot.read()?.pruned;
        if from <= pruned {
            return Err(StateError::Pruned { group, first: pruned.next() });
        }
        if let Some(reader) = reader {
            refused.extend(guarded(&slot, "reading", || reader.refused(from, to))?);
        }
        slot.check_whole(applied)?;
        Ok(refused)
    }

    /// The priors of a run, one for each write; none at all where no record can be there.
    fn priors(&self, slot: &Arc<Slot>, run: &Run) -> Result<Vec<Before>, StateError> {
        let keys = run.keys().count();
        if keys == 0 {
            return Ok(Vec::new());
        }
        let (_, known, reader) = self.look(slot, |memory| {
            if !memory.has_records && memory.overlays.frozen.is_none() {
                return (vec![Prior::Known(None); keys], Below::Nothing);
            }
            let known = run.priors(&memory.overlays);
            let below = known.iter().any(|prior| matches!(prior, Prior::InFile));
            (known, if below { Below::Records } else { Below::Nothing })
        })?;
        let resolve = |(prior, key): (Prior, &Bytes)| match (prior, &reader) {
            (Prior::Known(before), _) => Ok(before),
            (Prior::InFile, _) if planted::is(Planted::PriorsFromMemory) => Ok(None),
            (Prior::InFile, None) => Ok(None),
            (Prior::InFile, Some(reader)) => reader.before(key),
        };
        let known = known.into_iter().zip(run.keys());
        guarded(slot, "reading", || known.map(resolve).collect())
    }

    /// Looks at a group's memory and, where `look` says that the file counts as well, begins to
    /// read the file as of the same moment. `None` where it holds nothing that counts.
    fn look<T>(
        &self,
        slot: &Arc<Slot>,
        mut look: impl FnMut(&Memory) -> (T, Below),
    ) -> Result<(Lsn, T, Option<Reader>), StateError> {
        // Held from one round to the next, so that nobody closes the file in between.
        let mut _held = None;
        loop {
            {
                let memory = slot.read()?;
                if !matches!(memory.file, File::Unknown) {
                    let (seen, below) = look(&memory);
                    let is_empty = match below {
                        Below::Nothing => true,
                        Below::Records => !memory.has_records,
                        Below::File => matches!(memory.file, File::Absent),
                    };
                    if is_empty {
                        return Ok((memory.applied, seen, None));
                    }
                    if let File::Open(table) = &memory.file {
                        // Under the lock: a flush that ends takes the frozen overlay away under it.
                        let moment = table.begin_read();
                        let applied = memory.applied;
                        drop(memory);
                        self.touch(slot);
                        let reader = guarded(slot, "reading", || moment?.read())?;
                        return Ok((applied, seen, Some(reader)));
                    }
                }
            }
            _held = self.open(slot)?;
        }
    }

    fn slot(&self, group: GroupId) -> Arc<Slot> {
        let mut groups = unpoison(self.groups.lock());
        groups.entry(group).or_insert_with(|| Arc::new(Slot::new(group))).clone()
    }

    /// Whether a group's state is still this one.
    fn is_current(&self, slot: &Arc<Slot>) -> bool {
        unpoison(self.groups.lock()).get(&slot.group).is_none_or(|now| Arc::ptr_eq(now, slot))
    }

    fn replace(&self, group: GroupId, slot: Slot) {
        unpoison(self.groups.lock()).insert(group, Arc::new(slot));
    }

    fn touch(&self, slot: &Slot) {
        slot.touch(self.clock.fetch_add(1, Ordering::Relaxed));
    }
}
