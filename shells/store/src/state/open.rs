//! Which state files are open: opening and making them, closing the least recently used, and the
//! share of the cache that each gets.

use std::{io, sync::Arc};

use highwater_core::{GroupId, Lsn};
use redb::{Error, StorageBackend};

use super::{
    StateOptions, States,
    error::StateError,
    layout::{self, BadRow},
    overlay::Frozen,
    slot::{File, Slot, unpoison},
    table::{Table, TableError},
};

/// The place that an open file takes.
#[derive(Debug)]
pub(super) struct Place {
    slot: Arc<Slot>,
    cache: usize,
}

impl States {
    /// What is applied of a group; looks for its file if nobody did yet.
    pub(super) fn known(&self, slot: &Arc<Slot>) -> Result<Lsn, StateError> {
        {
            let memory = slot.read()?;
            if !matches!(memory.file, File::Unknown) {
                return Ok(memory.applied);
            }
        }
        self.open(slot)?;
        Ok(slot.read()?.applied)
    }

    /// A group's file, opened if it is not; `None` where nothing was flushed yet.
    pub(super) fn open(&self, slot: &Arc<Slot>) -> Result<Option<Arc<Table>>, StateError> {
        let _opening = slot.opening();
        self.touch(slot);
        if !self.is_current(slot) {
            // The file of that name is not its own any more.
            return Err(slot.succeeded_meanwhile());
        }
        let expected = {
            let memory = slot.read()?;
            match &memory.file {
                File::Open(table) => return Ok(Some(table.clone())),
                File::Absent => return Ok(None),
                File::Closed => Some(memory.durable),
                File::Unknown => None,
            }
        };
        let group = slot.group;
        let name = layout::file_name(group);
        let backend =
            self.files.open(&name).map_err(|source| io_error(group, "opening", source))?;
        match (backend, expected) {
            (Some(backend), _) => self.open_backend(slot, backend, expected).map(Some),
            (None, None) => {
                slot.write()?.file = File::Absent;
                Ok(None)
            }
            (None, Some(_)) => Err(fail(slot, damaged(group, "it has vanished".into()))),
        }
    }

    /// Opens what was found, which must stand at `expected` if it was open before.
    fn open_backend(
        &self,
        slot: &Arc<Slot>,
        backend: Box<dyn StorageBackend>,
        expected: Option<Lsn>,
    ) -> Result<Arc<Table>, StateError> {
        let group = slot.group;
        let cache = self.reserve(slot);
        let opened = guarded(slot, "opening", || {
            let table = Arc::new(Table::open(self.backend(backend), cache, slot.leaves)?);
            let reader = table.begin_read()?.read()?;
            let mark = reader.mark()?;
            Ok((table, mark, reader.sums()?, reader.has_records()?))
        });
        let (table, mark, sums, has_records) = opened.inspect_err(|_| self.release(group))?;
        let strange = if mark.group != group {
            Some(format!("it is the state of group {}", mark.group))
        } else if expected.is_some_and(|lsn| lsn != mark.at.lsn) {
            Some(format!("it was replaced by one that stands at LSN {}", mark.at.lsn))
        } else {
            None
        };
        if let Some(what) = strange {
            self.release(group);
            return Err(fail(slot, damaged(group, what)));
        }
        let mut memory = slot.write()?;
        if expected.is_none() {
            memory.applied = mark.at.lsn;
            memory.durable = mark.at.lsn;
            memory.pruned = mark.pruned;
            memory.has_records = has_records;
            memory.sums = sums;
        }
        memory.file = File::Open(table.clone());
        Ok(table)
    }

    /// Makes a group's file, with a frozen overlay in it: it has its name only once that is
    /// durable. To be called with the slot's `opening` held.
    pub(super) fn create(
        &self,
        slot: &Arc<Slot>,
        frozen: &Frozen,
    ) -> Result<Arc<Table>, StateError> {
        let group = slot.group;
        let name = layout::file_name(group);
        let backend = self
            .files
            .create_temp(&name)
            .map_err(|source| fail(slot, io_error(group, "making", source)))?;
        let cache = self.reserve(slot);
        let made = guarded(slot, "making", || {
            let table = Table::create(self.backend(backend), cache, slot.leaves)?;
            table.commit(group, frozen, frozen.at, None)?;
            Ok(Arc::new(table))
        });
        let published = made.and_then(|table| match self.files.publish(&name) {
            Ok(()) => Ok(table),
            Err(source) => Err(fail(slot, io_error(group, "publishing", source))),
        });
        published.inspect_err(|_| self.release(group))
    }

    /// Takes a place for a file that is about to be open, closes others until they are few enough,
    /// and returns the share of the cache.
    fn reserve(&self, slot: &Arc<Slot>) -> usize {
        for victim in self.victims(slot) {
            victim.close(|| self.release(victim.group));
            if unpoison(self.open.lock()).len() <= self.options.open_max.max(1) {
                break;
            }
        }
        let mut open = unpoison(self.open.lock());
        let granted: usize = open.values().map(|place| place.cache).sum();
        let share = cache_share(&self.options, open.len(), granted);
        if let Some(place) = open.get_mut(&slot.group) {
            place.cache = share;
        }
        share
    }

    /// Takes the place; if that makes one file too many, returns the others, least recently used
    /// first.
    fn victims(&self, slot: &Arc<Slot>) -> Vec<Arc<Slot>> {
        let mut open = unpoison(self.open.lock());
        open.insert(slot.group, Place { slot: slot.clone(), cache: 0 });
        if open.len() <= self.options.open_max.max(1) {
            return Vec::new();
        }
        let mut others: Vec<_> =
            open.values().map(|p| &p.slot).filter(|s| s.group != slot.group).cloned().collect();
        others.sort_by_key(|slot| slot.used());
        others
    }

    pub(super) fn release(&self, group: GroupId) {
        unpoison(self.open.lock()).remove(&group);
    }
}

/// The cache of one more file: half of the budget is divided evenly, of the other half each file
/// gets a half of what is left, so that a node with few databases uses it well and one with
/// many stays within it. `open` counts the new one, `granted` does not.
fn cache_share(options: &StateOptions, open: usize, granted: usize) -> usize {
    let half = options.cache_bytes / 2;
    let even = half / options.open_max.max(1);
    let extra = granted.saturating_sub(even * open.saturating_sub(1));
    even + half.saturating_sub(extra) / 2
}

/// Takes a group out of service.
fn fail(slot: &Slot, error: StateError) -> StateError {
    slot.fail(error.to_string(), error.is_loss());
    error
}

/// Does something with a group's file, and takes the group out of service if that fails: nothing
/// touches the file after that.
pub(super) fn guarded<T>(
    slot: &Slot,
    doing: &'static str,
    act: impl FnOnce() -> Result<T, TableError>,
) -> Result<T, StateError> {
    act().map_err(|error| fail(slot, state_error(slot.group, doing, error)))
}

fn state_error(group: GroupId, doing: &'static str, error: TableError) -> StateError {
    match error {
        TableError::Empty => damaged(group, "it is empty".into()),
        TableError::Row(BadRow::Format(found), _) => {
            let file = layout::file_name(group);
            StateError::Format { group, file, found, known: layout::FORMAT }
        }
        TableError::Row(BadRow::Damaged, what) => damaged(group, format!("{what} cannot be read")),
        TableError::Redb(Error::DatabaseAlreadyOpen) => {
            StateError::InUse { group, file: layout::file_name(group) }
        }
        TableError::Redb(Error::Io(source)) => match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                damaged(group, source.to_string())
            }
            _ => io_error(group, doing, source),
        },
        TableError::Redb(error @ Error::PreviousIo) => {
            io_error(group, doing, io::Error::other(error))
        }
        TableError::Redb(error) => damaged(group, error.to_string()),
    }
}

fn damaged(group: GroupId, what: String) -> StateError {
    StateError::Damaged { group, file: layout::file_name(group), what }
}

pub(super) fn io_error(group: GroupId, doing: &'static str, source: io::Error) -> StateError {
    StateError::Io { group, file: layout::file_name(group), doing, source }
}
