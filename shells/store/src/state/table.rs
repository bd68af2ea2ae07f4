//! One open state file: the only place that knows redb's transactions.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, Position, control, planted};
use redb::{
    Builder, Database, Durability, Error, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    ReadableTable, ReadableTableMetadata, StorageBackend, WriteTransaction,
};

use super::{
    StoredListed, StoredRecord,
    checked::{Blocks, Checked},
    layout::{BadRow, CONTROL, MARK, META, Mark, RECORDS, RecordRow, SUMS},
    leaf::{Leaf, Leaves, Sums},
    overlay::{Before, Cell, Frozen, Layer, PageRange},
    scrub::Pass,
};

/// A list stops after so many bytes of values, since they are all in memory at once.
pub(super) const LIST_BYTES_MAX: usize = 16 << 20;
/// A list without values stops after reading so many bytes of them.
const LIST_READ_MAX: usize = 64 << 20;

/// What went wrong in a file, before it is known whose it is.
#[derive(Debug)]
pub(super) enum TableError {
    Redb(Error),
    /// There is no content where there must be some.
    Empty,
    /// A row, by its name, cannot be read.
    Row(BadRow, String),
}

impl<E: Into<Error>> From<E> for TableError {
    fn from(error: E) -> TableError {
        TableError::Redb(error.into())
    }
}

type Result<T> = std::result::Result<T, TableError>;

/// An open redb database.
#[derive(Debug)]
pub(super) struct Table {
    database: Database,
    failed: Arc<AtomicBool>,
    /// Beneath redb, and beneath its cache.
    blocks: Blocks,
    leaves: Leaves,
}

impl Table {
    /// Opens a database. `cache` bounds redb's cache, in bytes.
    pub(super) fn open(
        backend: Box<dyn StorageBackend>,
        cache: usize,
        leaves: Leaves,
    ) -> Result<Table> {
        let (backend, failed) = Checked::new(backend);
        // redb would take it for a new one.
        if backend.len().map_err(Error::Io)? == 0 {
            return Err(TableError::Empty);
        }
        Table::with(backend, failed, cache, leaves)
    }

    /// Makes a database in an empty file.
    pub(super) fn create(
        backend: Box<dyn StorageBackend>,
        cache: usize,
        leaves: Leaves,
    ) -> Result<Table> {
        let (backend, failed) = Checked::new(backend);
        Table::with(backend, failed, cache, leaves)
    }

    fn with(
        backend: Checked,
        failed: Arc<AtomicBool>,
        cache: usize,
        leaves: Leaves,
    ) -> Result<Table> {
        let blocks = backend.blocks();
        let database = Builder::new().set_cache_size(cache).create_with_backend(backend)?;
        Ok(Table { database, failed, blocks, leaves })
    }

    /// The blocks beneath it.
    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Closes the database, and tells whether any write or sync failed meanwhile.
    pub(super) fn close(self) -> bool {
        drop(self.database);
        self.failed.load(Ordering::Acquire)
    }

    /// Makes a frozen generation durable: its records in order of keys, its control writes, its sums
    /// and its LSN, `upto`, in one transaction. A pass of the scrub takes in what changes behind it.
    pub(super) fn commit(
        &self,
        group: GroupId,
        frozen: &Frozen,
        upto: Position,
        mut pass: Option<&mut Pass>,
    ) -> Result<()> {
        let mark = Mark { group, at: upto, pruned: frozen.pruned }.encode();
        if planted::is(planted::Planted::AppliedApart) {
            let apart = self.begin_write()?;
            apart.open_table(META)?.insert(MARK, mark.as_slice())?;
            apart.commit()?;
        }
        let transaction = self.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (key, cell) in &frozen.overlay {
                if let Some(pass) = pass.as_mut().filter(|pass| pass.has_walked(key)) {
                    let row = records.get(&key[..])?;
                    let before =
                        row.map(|row| read_row(self.leaves, key, row.value()).map(|r| r.leaf));
                    pass.take_in(key, before.transpose()?, cell.leaf());
                }
                match cell {
                    Cell::Record(record, leaf) => {
                        let row = record.row(*leaf);
                        let mut space = records.insert_reserve(&key[..], row.len())?;
                        row.write(space.as_mut());
                    }
                    Cell::Gone if planted::is(planted::Planted::DeleteNotFlushed) => {}
                    Cell::Gone => drop(records.remove(&key[..])?),
                }
            }
            let mut control = transaction.open_table(CONTROL)?;
            for (key, value) in &frozen.control {
                control.insert(key.as_ref(), value.as_ref())?;
            }
            if frozen.pruned > Lsn(0) {
                let (from, to) =
                    (control::refused_key(Lsn(0)), control::refused_key(frozen.pruned));
                control.retain_in::<&[u8], _>(from.as_ref()..=to.as_ref(), |_, _| false)?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(MARK, mark.as_slice())?;
            meta.insert(SUMS, frozen.sums.encode().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction> {
        let mut transaction = self.database.begin_write()?;
        let durability = match planted::is(planted::Planted::CheckpointNotSynced) {
            false => Durability::Immediate,
            true => Durability::None,
        };
        transaction.set_durability(durability)?;
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Adds rows to a state that is being made: not durable before it is [complete](Self::complete).
    pub(super) fn fill(&self, rows: &mut RowBatch) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (key, row) in &rows.records {
                let leaf = read_row(self.leaves, key, row)?.leaf;
                rows.sums.change(key, None, Some(leaf));
                records.insert(key.as_ref(), row.as_ref())?;
            }
            let mut control = transaction.open_table(CONTROL)?;
            for (key, row) in &rows.control {
                control.insert(key.as_ref(), row.as_ref())?;
            }
        }
        transaction.commit()?;
        rows.records.clear();
        rows.control.clear();
        rows.bytes = 0;
        Ok(())
    }

    /// Makes a state durable whose rows are all there.
    pub(super) fn complete(&self, mark: Mark, sums: &Sums) -> Result<()> {
        let transaction = self.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(MARK, mark.encode().as_slice())?;
            meta.insert(SUMS, sums.encode().as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Begins to read what is committed now. Does no IO.
    pub(super) fn begin_read(self: &Arc<Table>) -> Result<Moment> {
        let transaction = self.database.begin_read()?;
        Ok(Moment { transaction, table: self.clone() })
    }
}

/// In which table a row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RowKind {
    Record = 0,
    Control = 1,
}

/// Rows on their way into a state that is being made.
#[derive(Default)]
pub(super) struct RowBatch {
    records: Vec<(Bytes, Bytes)>,
    control: Vec<(Bytes, Bytes)>,
    bytes: usize,
    /// Of all records so far.
    sums: Sums,
}

impl RowBatch {
    /// `None` where there is no such table.
    pub(super) fn take(&mut self, kind: u8, key: Bytes, row: Bytes) -> Option<()> {
        self.bytes += key.len() + row.len();
        match kind {
            0 => self.records.push((key, row)),
            1 => self.control.push((key, row)),
            _ => return None,
        }
        Some(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The records' keys and rows, as they came.
    pub(super) fn into_records(self) -> Vec<(Bytes, Bytes)> {
        self.records
    }
}

/// A moment of a file that nothing was read of yet.
pub(super) struct Moment {
    transaction: ReadTransaction,
    table: Arc<Table>,
}

impl Moment {
    pub(super) fn read(self) -> Result<Reader> {
        let records = self.transaction.open_table(RECORDS)?;
        Ok(Reader { records, transaction: self.transaction, table: self.table })
    }
}

/// One moment of a file. Short-lived: while it stands, redb cannot reuse what is overwritten.
pub(super) struct Reader {
    transaction: ReadTransaction,
    records: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// Kept open.
    table: Arc<Table>,
}

impl Reader {
    /// What the file says of itself.
    pub(super) fn mark(&self) -> Result<Mark> {
        let meta = self.transaction.open_table(META)?;
        match meta.get(MARK)? {
            Some(row) => {
                Mark::decode(row.value()).map_err(|bad| TableError::Row(bad, "its mark".into()))
            }
            None => Err(TableError::Row(BadRow::Damaged, "its mark, which is missing,".into())),
        }
    }

    /// The sums of all records' leaves.
    pub(super) fn sums(&self) -> Result<Sums> {
        let bad = |bad| TableError::Row(bad, "the sums of its records".into());
        let meta = self.transaction.open_table(META)?;
        match meta.get(SUMS)? {
            Some(row) => Sums::decode(row.value()).map_err(bad),
            None => Err(bad(BadRow::Damaged)),
        }
    }

    /// Whether there is any record.
    pub(super) fn has_records(&self) -> Result<bool> {
        Ok(!self.records.is_empty()?)
    }

    /// Every row, as it lies there: control rows, then records, each in order of keys; for as long as
    /// they are wanted.
    pub(super) fn each_row(
        &self,
        mut wants: impl FnMut(RowKind, &[u8], &[u8]) -> bool,
    ) -> Result<()> {
        for row in self.transaction.open_table(CONTROL)?.iter()? {
            let (key, value) = row?;
            if !wants(RowKind::Control, key.value(), value.value()) {
                return Ok(());
            }
        }
        for row in self.records.iter()? {
            let (key, value) = row?;
            if !wants(RowKind::Record, key.value(), value.value()) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Every control row, in order of keys.
    pub(super) fn control(&self) -> Result<Vec<(Bytes, Bytes)>> {
        let mut rows = Vec::new();
        for row in self.transaction.open_table(CONTROL)?.iter()? {
            let (key, value) = row?;
            let copy = Bytes::copy_from_slice;
            rows.push((copy(key.value()), copy(value.value())));
        }
        Ok(rows)
    }

    /// The refused operations in a range of LSNs, both ends included.
    pub(super) fn refused(&self, from: Lsn, to: Lsn) -> Result<Vec<Lsn>> {
        let (first, last) = (control::refused_key(from), control::refused_key(to));
        let table = self.transaction.open_table(CONTROL)?;
        let rows = table.range::<&[u8]>(first.as_ref()..=last.as_ref())?;
        let mut refused = Vec::new();
        for row in rows {
            refused.extend(control::refused_lsn(row?.0.value()));
        }
        Ok(refused)
    }

    /// The control rows whose keys have a prefix, in order of keys.
    pub(super) fn control_rows(&self, prefix: &[u8], rows: &mut Vec<(Bytes, Bytes)>) -> Result<()> {
        for row in self.transaction.open_table(CONTROL)?.range::<&[u8]>(prefix..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let copy = Bytes::copy_from_slice;
            rows.push((copy(key.value()), copy(value.value())));
        }
        Ok(())
    }

    /// One record.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<StoredRecord>> {
        let Some(row) = self.records.get(key)? else { return Ok(None) };
        let row = self.read_row(key, row.value())?;
        Ok(Some(StoredRecord {
            version: row.version,
            content_type: Bytes::copy_from_slice(row.content_type),
            value: Bytes::copy_from_slice(row.value),
        }))
    }

    /// What is there of a key.
    pub(super) fn before(&self, key: &[u8]) -> Result<Before> {
        let Some(row) = self.records.get(key)? else { return Ok(None) };
        let row = self.read_row(key, row.value())?;
        Ok(Some((row.version, row.leaf)))
    }

    fn read_row<'a>(&self, key: &[u8], row: &'a [u8]) -> Result<RecordRow<'a>> {
        read_row(self.table.leaves, key, row)
    }

    /// Reads records after a key, about so many bytes of them, and shows the leaf of each; the last
    /// key, and how many bytes. `None` at the end.
    pub(super) fn walk_records(
        &self,
        after: Option<&[u8]>,
        bytes_max: usize,
        mut show: impl FnMut(&[u8], Leaf),
    ) -> Result<(Option<Bytes>, usize)> {
        walk(&self.records, after, bytes_max, |key, row| {
            show(key, self.read_row(key, row)?.leaf);
            Ok(())
        })
    }

    /// The same of the control rows: they are read, and that is all.
    pub(super) fn walk_control(
        &self,
        after: Option<&[u8]>,
        bytes_max: usize,
    ) -> Result<(Option<Bytes>, usize)> {
        walk(&self.transaction.open_table(CONTROL)?, after, bytes_max, |_, _| Ok(()))
    }
}

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

fn walk(
    rows: &Rows,
    after: Option<&[u8]>,
    bytes_max: usize,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<(Option<Bytes>, usize)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut bytes = 0;
    for row in rows.range::<&[u8]>((from, Bound::Unbounded))? {
        let (key, row) = row?;
        take(key.value(), row.value())?;
        bytes += key.value().len() + row.value().len();
        if bytes >= bytes_max {
            return Ok((Some(Bytes::copy_from_slice(key.value())), bytes));
        }
    }
    Ok((None, bytes))
}

/// A page of what is in memory and of what is in the file below it (`None`: nothing), and whether there
/// is more after it.
pub(super) fn page(
    layer: Layer,
    below: Option<&Reader>,
    range: &PageRange,
    limit: usize,
    values: bool,
) -> Result<(Vec<StoredListed>, bool)> {
    let mut page = Page { limit, values, records: Vec::new(), bytes: 0, read: 0 };
    let more = merge(layer, below, range, &mut page)?;
    Ok((page.records, more))
}

/// Takes records in order of keys, until it is full.
pub(super) trait Sink {
    /// Takes a record from memory, unless it is full.
    fn take(&mut self, key: Bytes, record: StoredRecord, leaf: Leaf) -> bool;

    /// Takes a row from the file, unless it is full.
    fn take_row(&mut self, reader: &Reader, key: &[u8], row: &[u8]) -> Result<bool>;
}

/// Merges what is in memory with what is in the file below it (`None`: nothing), and tells whether
/// there is more than was taken.
pub(super) fn merge(
    layer: Layer,
    below: Option<&Reader>,
    range: &PageRange,
    sink: &mut impl Sink,
) -> Result<bool> {
    let mut rows = match below {
        Some(reader) => Some(reader.records.range::<&[u8]>((range.from, Bound::Unbounded))?),
        None => None,
    };
    let mut next_row = || -> Result<_> {
        let Some(row) = rows.as_mut().and_then(Iterator::next) else { return Ok(None) };
        let row = row?;
        Ok(Some(row).filter(|(key, _)| key.value().starts_with(range.prefix)))
    };
    let mut cells = layer.cells.into_iter().peekable();
    let mut row = next_row()?;
    if planted::is(planted::Planted::PageSkipsFirst) && matches!(range.from, Bound::Excluded(_)) {
        row = next_row()?;
    }
    loop {
        let cell_first = match (cells.peek(), &row) {
            // What memory knows from here on was not copied: it may hide rows.
            (None, _) if !layer.complete => return Ok(true),
            (None, None) => return Ok(false),
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some((cell, _)), Some((key, _))) => {
                if **cell == *key.value() {
                    row = next_row()?;
                    continue;
                }
                **cell < *key.value()
            }
        };
        let taken = if cell_first {
            match cells.next() {
                Some((key, Cell::Record(record, leaf))) => sink.take(key.into(), record, leaf),
                _ => true,
            }
        } else if let (Some((key, value)), Some(reader)) = (&row, below) {
            let taken = sink.take_row(reader, key.value(), value.value())?;
            row = next_row()?;
            taken
        } else {
            true
        };
        if !taken {
            return Ok(true);
        }
    }
}

/// A page while it fills.
struct Page {
    limit: usize,
    values: bool,
    records: Vec<StoredListed>,
    bytes: usize,
    read: usize,
}

impl Sink for Page {
    fn take(&mut self, key: Bytes, record: StoredRecord, _: Leaf) -> bool {
        let size = record.value.len();
        if self.is_full(size) {
            return false;
        }
        let value = if self.values { record.value } else { Bytes::new() };
        self.push(key, size, StoredRecord { value, ..record });
        true
    }

    fn take_row(&mut self, reader: &Reader, key: &[u8], row: &[u8]) -> Result<bool> {
        let row = reader.read_row(key, row)?;
        let size = row.value.len();
        if self.is_full(size) {
            return Ok(false);
        }
        let value = if self.values { Bytes::copy_from_slice(row.value) } else { Bytes::new() };
        let content_type = Bytes::copy_from_slice(row.content_type);
        self.read += size;
        let record = StoredRecord { version: row.version, content_type, value };
        self.push(Bytes::copy_from_slice(key), size, record);
        Ok(true)
    }
}

impl Page {
    fn is_full(&self, size: usize) -> bool {
        let bytes = if self.values { self.bytes + size } else { 0 };
        let over = bytes > LIST_BYTES_MAX || self.read > LIST_READ_MAX;
        self.records.len() >= self.limit || (over && !self.records.is_empty())
    }

    fn push(&mut self, key: Bytes, size: usize, record: StoredRecord) {
        self.bytes += record.value.len();
        self.records.push(StoredListed { key, size: size as u64, record });
    }
}

/// A record from its row, if it is what its leaf says.
pub(super) fn read_row<'a>(leaves: Leaves, key: &[u8], row: &'a [u8]) -> Result<RecordRow<'a>> {
    let read = RecordRow::read(row).and_then(|row| {
        let leaf = leaves.leaf(key, row.version, row.content_type, row.value);
        if leaf == row.leaf { Ok(row) } else { Err(BadRow::Damaged) }
    });
    read.map_err(|bad| {
        let key = String::from_utf8_lossy(key);
        TableError::Row(bad, format!("the record of key {key:?}"))
    })
}
