//! Exports: every record of a group at one LSN, for readers outside. What memory holds is looked at,
//! and the file is read as of the same moment. Both are copied, as fast as the disk goes, into a file
//! of blocks without a name, and are given from there, as slowly as they are taken: so a slow reader
//! holds neither memory, nor what redb would overwrite. The file's room is free once the export is
//! dropped, or the process ends.
//!
//! What is given was checked twice: each block and each record as it is read back, and all records
//! together against the sums that the state had at that LSN.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, Root};

use super::{
    Below, States, StoredListed, StoredRecord,
    error::StateError,
    leaf::{Leaf, Leaves, Sums},
    open::guarded,
    overlay::{Overlays, PageRange},
    slot::Slot,
    snapshot::{Blocks, Gatherer, SnapshotError, damaged, failed, take_rows},
    table::{LIST_BYTES_MAX, Reader, RowBatch, RowKind, Sink, TableError, merge, read_row},
};

/// Records are copied so many at a time, and 16 MiB of values at most.
const PAGE: usize = 1_000;

/// Numbers the files, so that no two have one name for the moment that they have one.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Every record of a group at one LSN, on its way out.
pub struct Export {
    group: GroupId,
    lsn: Lsn,
    leaves: Leaves,
    /// What it is of. A state that is dropped takes it along.
    slot: Weak<Slot>,
    /// The file's name, for messages.
    name: String,
    copied: Gatherer,
    /// What is not copied yet; `None` once everything is.
    source: Option<Source>,
    /// Of the state at that LSN.
    sums: Sums,
    /// Blocks that were given.
    blocks: u32,
    records: u64,
    /// Of the records that were given.
    given: Sums,
}

/// A state in one moment.
struct Source {
    overlays: Overlays,
    reader: Option<Reader>,
    /// Everything up to this key is copied.
    after: Option<Bytes>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Export { group, lsn, .. } = self;
        write!(f, "the records of {group:?} at {lsn:?}")
    }
}

impl States {
    /// Every record of a group at what is applied now.
    ///
    /// # Errors
    /// When the state cannot be read or is being rebuilt, or no file can be made.
    pub fn export(&self, group: GroupId) -> Result<Export, SnapshotError> {
        let slot = self.slot(group);
        let (lsn, (overlays, sums), reader) = self.look(&slot, |memory| {
            ((memory.overlays.records(), memory.sums.clone()), Below::Records)
        })?;
        slot.check_whole(lsn)?;
        let name = format!("{group}-{}.export", MADE.fetch_add(1, Ordering::Relaxed));
        let file = self.files.scratch(&name).map_err(failed(&name))?;
        Ok(Export {
            group,
            lsn,
            leaves: slot.leaves,
            slot: Arc::downgrade(&slot),
            name,
            copied: Gatherer::new(Blocks::new(file)),
            source: Some(Source { overlays, reader, after: None }),
            sums,
            blocks: 0,
            records: 0,
            given: Sums::default(),
        })
    }
}

/// Copies a page of rows, as they lie there: they are checked when they are given.
struct Copier<'a> {
    to: &'a mut Gatherer,
    rows: usize,
    last: Option<Bytes>,
    /// Why no more was copied.
    refused: Option<io::Error>,
}

impl Copier<'_> {
    fn copy(&mut self, key: Bytes, row: &[u8]) {
        self.refused = self.to.take(RowKind::Record, &key, row).err();
        self.rows += 1;
        self.last = Some(key);
    }

    fn is_full(&self) -> bool {
        self.rows >= PAGE || self.refused.is_some()
    }
}

impl Sink for Copier<'_> {
    fn take(&mut self, key: Bytes, record: StoredRecord, leaf: Leaf) -> bool {
        if self.is_full() {
            return false;
        }
        let row = record.row(leaf);
        let mut bytes = vec![0; row.len()];
        row.write(&mut bytes);
        self.copy(key, &bytes);
        true
    }

    fn take_row(&mut self, _: &Reader, key: &[u8], row: &[u8]) -> Result<bool, TableError> {
        if self.is_full() {
            return Ok(false);
        }
        self.copy(Bytes::copy_from_slice(key), row);
        Ok(true)
    }
}

impl Export {
    /// Whose records.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Everything up to here is in them, and nothing after.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// How many were given so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Copies a page more of the state, and tells whether there is still more. Until there is not,
    /// the export holds memory, and room in the state's file.
    ///
    /// # Errors
    /// When the state cannot be read or is not in service any more, or there is no room for the copy.
    pub fn fill(&mut self, states: &States) -> Result<bool, SnapshotError> {
        let slot = self.in_service(states)?;
        let Some(source) = &mut self.source else { return Ok(false) };
        let range = PageRange::new(b"", source.after.as_deref());
        let layer = source.overlays.page(&range, PAGE + 1, LIST_BYTES_MAX);
        let mut copier = Copier { to: &mut self.copied, rows: 0, last: None, refused: None };
        let more = guarded(&slot, "reading", || {
            merge(layer, source.reader.as_ref(), &range, &mut copier)
        })?;
        let (last, refused) = (copier.last, copier.refused);
        let io = failed(&self.name);
        if let Some(error) = refused {
            return Err(io(error));
        }
        match last {
            Some(last) if more => source.after = Some(last),
            _ => {
                self.copied.flush().map_err(&io)?;
                self.source = None;
            }
        }
        Ok(self.source.is_some())
    }

    /// The next records in byte order of keys: a few hundred KiB of them, but at least one; `None`
    /// where no more are copied.
    ///
    /// # Errors
    /// When they are not what was copied, or the state that they are of is not in service any more.
    pub fn next(&mut self, states: &States) -> Result<Option<Vec<StoredListed>>, SnapshotError> {
        self.in_service(states)?;
        let content = self.copied.blocks.content(&self.name, self.blocks)?;
        let Some(content) = content else { return Ok(None) };
        let bad = || damaged(&self.name, "a block's rows can't be read");
        let mut rows = RowBatch::default();
        take_rows(&content, &mut rows).ok_or_else(bad)?;
        let mut records = Vec::new();
        for (key, bytes) in rows.into_records() {
            let row = read_row(self.leaves, &key, &bytes).map_err(|_| bad())?;
            self.given.change(&key, None, Some(row.leaf));
            let (content_type, value) =
                (bytes.slice_ref(row.content_type), bytes.slice_ref(row.value));
            let record = StoredRecord { version: row.version, content_type, value };
            records.push(StoredListed { key, size: record.value.len() as u64, record });
        }
        self.blocks += 1;
        self.records += records.len() as u64;
        Ok(Some(records))
    }

    /// The root of the records that were given, once those are all that the state had.
    ///
    /// # Errors
    /// When they are not.
    pub fn root(&self) -> Result<Root, SnapshotError> {
        if self.source.is_some() || self.given != self.sums {
            return Err(damaged(&self.name, "its records are not what their sums say"));
        }
        Ok(self.leaves.root(self.lsn, &self.given))
    }

    /// What it is of, while that may be read.
    fn in_service(&self, states: &States) -> Result<Arc<Slot>, StateError> {
        let slot = self.slot.upgrade().ok_or_else(|| StateError::OutOfService {
            group: self.group,
            reason: "another state has taken its place: ask again".into(),
            loss: false,
        })?;
        if !states.is_current(&slot) {
            return Err(slot.succeeded_meanwhile());
        }
        drop(slot.read()?);
        Ok(slot)
    }
}
