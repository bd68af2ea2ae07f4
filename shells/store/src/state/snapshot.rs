//! Snapshots: a group's state at one LSN as a file of its own, for replicas that no log can bring up
//! to date. Whoever has the state **seals** one: it reads what its last flush left, in one moment of
//! the file, and writes it to `<group>.snap`. Whoever needs one gets it block by block into
//! `<group>.part`, goes on where it was after any break, makes a state of it beside its own
//! (`<group>.next`), and **installs** that: one rename, durable, and the old state is gone.
//!
//! A snapshot is a run of **blocks**; each is its content's length (u32) and CRC-32C (u32, continued
//! with the block's number, u64), then the content. The first one is the **head**; the others are rows,
//! LZ4-compressed behind their length (u32). After them come the offsets of the blocks (u64 each), and
//! a trailer: where those begin (u64), how many (u32), their CRC-32C (u32), `HWSNAPIX`. `<group>.part`
//! is a prefix of that.
//!
//! The head: `HWSNAP01`, u32 version = 1, u64 group, u64 LSN, u64 term, u128 incarnation of the
//! maker, u64 LSN up to which refused operations are forgotten, the sums of the state's leaves. A row: u8 0 record or 1 control, u16 length of the key, the
//! key, u32 length, and the row as it is in the state. Records come in order of keys.
//!
//! What is installed was checked three times: each block, each record against its leaf, and all of
//! them against the sums.

use std::{
    io,
    sync::{Arc, Weak},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use highwater_core::{GroupId, Incarnation, Lsn, Position, Term};
use highwater_wire::peer::SnapshotId;
use redb::StorageBackend;

use super::{
    States,
    error::StateError,
    layout::{self, Mark},
    leaf::{Leaves, SUMS_LEN, Sums},
    open::{guarded, io_error},
    slot::Slot,
    table::{Reader, RowBatch, RowKind, Table, TableError},
};

const MAGIC: [u8; 8] = *b"HWSNAP01";
const TRAILER_MAGIC: [u8; 8] = *b"HWSNAPIX";
const VERSION: u32 = 1;
const HEAD: usize = 8 + 4 + 8 + 8 + 8 + 16 + 8 + SUMS_LEN;
const FRAME: u64 = 8;
const TRAILER: u64 = 24;
/// Rows are gathered into blocks of about so many bytes, before they are compressed.
const BLOCK: usize = 256 << 10;
/// The longest block: one record of the largest size, and more.
pub const SNAPSHOT_BLOCK_MAX: usize = 20 << 20;
/// A part is fsynced after so many bytes: that much is fetched again after a power cut, at most.
const SYNC_EVERY: u64 = 4 << 20;
/// So many bytes of rows make one transaction of a state that is being made.
const COMMIT_EVERY: usize = 8 << 20;
/// The cache of a state that is being made: a transaction's pages fit into the half that they may take.
const MAKE_CACHE: usize = 4 * COMMIT_EVERY;

/// Why there is no snapshot, or no more of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state can't be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state is not durable up to where it is wanted.
    #[error("the state is durable up to LSN {durable} only, not {above}")]
    Behind {
        /// So far.
        durable: Lsn,
        /// What was asked for.
        above: Lsn,
    },
    /// A file of it is not as it was written.
    #[error("the snapshot is damaged: {file}: {what}")]
    Damaged {
        /// Within the directory of states.
        file: String,
        /// What is wrong.
        what: &'static str,
    },
    /// It is not what was asked for.
    #[error("the snapshot is not the one that was begun")]
    Other,
    /// The operating system refused.
    #[error("the snapshot {file} can't be kept: {source}")]
    Io {
        /// Within the directory of states.
        file: String,
        /// What it said.
        source: io::Error,
    },
}

pub(super) fn snap_name(group: GroupId) -> String {
    format!("{group}.snap")
}

fn part_name(group: GroupId) -> String {
    format!("{group}.part")
}

fn next_name(group: GroupId) -> String {
    format!("{group}.next")
}

pub(super) fn failed(file: &str) -> impl Fn(io::Error) -> SnapshotError + use<> {
    let file = file.to_owned();
    move |source| SnapshotError::Io { file: file.clone(), source }
}

pub(super) fn damaged(file: &str, what: &'static str) -> SnapshotError {
    SnapshotError::Damaged { file: file.to_owned(), what }
}

/// A block's checksum.
fn sum(number: u32, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(content), &u64::from(number).to_le_bytes())
}

/// What a snapshot says of itself.
#[derive(Clone, Debug)]
struct Head {
    group: GroupId,
    id: SnapshotId,
    pruned: Lsn,
    sums: Sums,
}

impl Head {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD);
        out.put_slice(&MAGIC);
        out.put_u32_le(VERSION);
        out.put_u64_le(self.group.0);
        out.put_u64_le(self.id.at.lsn.0);
        out.put_u64_le(self.id.at.term.0);
        out.put_u128_le(self.id.maker.0);
        out.put_u64_le(self.pruned.0);
        out.put_slice(&self.sums.encode());
        out.freeze()
    }

    fn decode(mut at: &[u8]) -> Option<Head> {
        if at.len() != HEAD || at[..8] != MAGIC {
            return None;
        }
        at.advance(8);
        if at.get_u32_le() != VERSION {
            return None;
        }
        let (group, lsn) = (GroupId(at.get_u64_le()), Lsn(at.get_u64_le()));
        let at_position = Position { term: Term(at.get_u64_le()), lsn };
        let maker = Incarnation(at.get_u128_le());
        let pruned = Lsn(at.get_u64_le());
        let sums = Sums::decode(at).ok()?;
        Some(Head { group, id: SnapshotId { at: at_position, maker }, pruned, sums })
    }
}

/// A file that blocks are appended to.
pub(super) struct Blocks {
    file: Box<dyn StorageBackend>,
    /// Where the next block begins.
    end: u64,
    /// How long the file is made.
    len: u64,
    offsets: Vec<u64>,
}

impl Blocks {
    pub(super) fn new(file: Box<dyn StorageBackend>) -> Blocks {
        Blocks { file, end: 0, len: 0, offsets: Vec::new() }
    }

    /// The content of a block that was appended, checked; `None` where there is none of that number
    /// yet.
    pub(super) fn content(&self, file: &str, number: u32) -> Result<Option<Bytes>, SnapshotError> {
        let at = number as usize;
        let Some(from) = self.offsets.get(at).copied() else { return Ok(None) };
        let to = self.offsets.get(at + 1).copied().unwrap_or(self.end);
        let mut frame = vec![0; (to - from) as usize];
        self.file.read(from, &mut frame).map_err(failed(file))?;
        let content = take_frame(number, frame.into());
        content.map(Some).ok_or_else(|| damaged(file, "a block does not match its checksum"))
    }

    fn append(&mut self, content: &[u8]) -> io::Result<()> {
        let number = self.offsets.len() as u32;
        let mut frame = BytesMut::with_capacity(FRAME as usize + content.len());
        frame.put_u32_le(content.len() as u32);
        frame.put_u32_le(sum(number, content));
        frame.put_slice(content);
        self.offsets.push(self.end);
        self.write(&frame)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.end + bytes.len() as u64;
        if end > self.len {
            self.len = end.max(2 * self.len);
            self.file.set_len(self.len)?;
        }
        self.file.write(self.end, bytes)?;
        self.end = end;
        Ok(())
    }

    /// The index and the trailer; all of it durable.
    fn finish(mut self) -> io::Result<()> {
        let begins = self.end;
        let mut tail = BytesMut::with_capacity(8 * self.offsets.len() + TRAILER as usize);
        for offset in &self.offsets {
            tail.put_u64_le(*offset);
        }
        let sum = crc32c::crc32c(&tail);
        tail.put_u64_le(begins);
        tail.put_u32_le(self.offsets.len() as u32);
        tail.put_u32_le(sum);
        tail.put_slice(&TRAILER_MAGIC);
        self.write(&tail)?;
        self.file.set_len(self.end)?;
        self.file.sync_data()
    }
}

/// Gathers rows into blocks.
pub(super) struct Gatherer {
    pub(super) blocks: Blocks,
    rows: BytesMut,
}

impl Gatherer {
    pub(super) fn new(blocks: Blocks) -> Gatherer {
        Gatherer { blocks, rows: BytesMut::with_capacity(2 * BLOCK) }
    }

    pub(super) fn take(&mut self, kind: RowKind, key: &[u8], row: &[u8]) -> io::Result<()> {
        self.rows.put_u8(kind as u8);
        self.rows.put_u16_le(key.len() as u16);
        self.rows.put_slice(key);
        self.rows.put_u32_le(row.len() as u32);
        self.rows.put_slice(row);
        if self.rows.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let content = lz4_flex::block::compress_prepend_size(&self.rows);
        self.rows.clear();
        self.blocks.append(&content)
    }
}

/// A snapshot that others may have.
pub struct Sealed {
    file: Box<dyn StorageBackend>,
    name: String,
    id: SnapshotId,
    /// What it is of; a state that is dropped takes it along.
    slot: Weak<Slot>,
    /// Where blocks begin, and where the last one ends.
    offsets: Vec<u64>,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Sealed {
    fn open(
        group: GroupId,
        name: String,
        file: Box<dyn StorageBackend>,
        slot: &Arc<Slot>,
    ) -> Result<Sealed, SnapshotError> {
        let io = failed(&name);
        let len = file.len().map_err(&io)?;
        let torn = || damaged(&name, "its end is missing");
        let mut trailer = [0; TRAILER as usize];
        let at = len.checked_sub(TRAILER).ok_or_else(torn)?;
        file.read(at, &mut trailer).map_err(&io)?;
        let mut rest = &trailer[..];
        let (begins, count) = (rest.get_u64_le(), rest.get_u32_le());
        let index_sum = rest.get_u32_le();
        let fits = begins.checked_add(8 * u64::from(count)) == Some(at);
        if rest != TRAILER_MAGIC || !fits || count == 0 {
            return Err(torn());
        }
        let mut index = vec![0; 8 * count as usize];
        file.read(begins, &mut index).map_err(&io)?;
        if crc32c::crc32c(&index) != index_sum {
            return Err(damaged(&name, "its index does not match its checksum"));
        }
        let mut offsets: Vec<u64> = index.chunks_exact(8).map(|mut at| at.get_u64_le()).collect();
        offsets.push(begins);
        if !offsets.is_sorted_by(|a, b| a + FRAME <= *b) {
            return Err(damaged(&name, "its index is out of order"));
        }
        let id = SnapshotId { at: Position::default(), maker: Incarnation::default() };
        let mut sealed = Sealed { file, name, id, slot: Arc::downgrade(slot), offsets };
        let head = Head::decode(&sealed.block(0)?).filter(|head| head.group == group);
        let head = head.ok_or_else(|| damaged(&sealed.name, "its head can't be read"))?;
        sealed.id = head.id;
        Ok(sealed)
    }

    /// Which it is.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// How many blocks it has; at least 1.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.offsets.len() as u32 - 1
    }

    /// How long they are together, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offsets.last().copied().unwrap_or_default()
    }

    /// The content of a block, checked.
    ///
    /// # Errors
    /// Where there is no such block, or it can't be read as it was written.
    pub fn block(&self, number: u32) -> Result<Bytes, SnapshotError> {
        let at = number as usize;
        let (Some(from), Some(to)) = (self.offsets.get(at), self.offsets.get(at + 1)) else {
            return Err(SnapshotError::Other);
        };
        let mut frame = vec![0; (to - from) as usize];
        self.file.read(*from, &mut frame).map_err(failed(&self.name))?;
        let content = take_frame(number, frame.into());
        content.ok_or_else(|| damaged(&self.name, "a block does not match its checksum"))
    }
}

/// The content of a whole frame.
fn take_frame(number: u32, mut frame: Bytes) -> Option<Bytes> {
    if frame.len() < FRAME as usize {
        return None;
    }
    let (len, checksum) = (frame.get_u32_le() as usize, frame.get_u32_le());
    (frame.len() == len && sum(number, &frame) == checksum).then_some(frame)
}

/// A snapshot that is being received.
pub struct Incoming {
    group: GroupId,
    name: String,
    blocks: Blocks,
    id: SnapshotId,
    synced: u64,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Incoming {
    /// Which it is.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The number of the next block.
    #[must_use]
    pub fn next(&self) -> u32 {
        self.blocks.offsets.len() as u32
    }

    /// How much of it is here, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.end
    }

    /// Takes the next block.
    ///
    /// # Errors
    /// Where it can't be kept.
    pub fn take(&mut self, content: &[u8]) -> Result<(), SnapshotError> {
        let io = failed(&self.name);
        self.blocks.append(content).map_err(&io)?;
        if self.blocks.end - self.synced >= SYNC_EVERY {
            self.blocks.file.sync_data().map_err(&io)?;
            self.synced = self.blocks.end;
        }
        Ok(())
    }
}

impl States {
    /// A snapshot of a group at `above` or later: the one that was made last, if it will do, else a
    /// new one of what the last flush left. Blocks for as long as that takes to read and write.
    ///
    /// # Errors
    /// Where the state is not durable so far, can't be read, or can't be written.
    pub fn seal(
        &self,
        group: GroupId,
        above: Lsn,
        maker: Incarnation,
    ) -> Result<Sealed, SnapshotError> {
        let name = snap_name(group);
        let slot = self.slot(group);
        if let Some(file) = self.files.open(&name).map_err(failed(&name))?
            && let Ok(sealed) = Sealed::open(group, name.clone(), file, &slot)
            && sealed.id.at.lsn >= above
            && self.vouches_for(&sealed)
        {
            return Ok(sealed);
        }
        let behind = |durable| SnapshotError::Behind { durable, above };
        let Some(table) = self.open(&slot)? else { return Err(behind(Lsn(0))) };
        let (reader, mark, sums) = guarded(&slot, "reading", || {
            let reader = table.begin_read()?.read()?;
            let (mark, sums) = (reader.mark()?, reader.sums()?);
            Ok((reader, mark, sums))
        })?;
        if mark.at.lsn < above {
            return Err(behind(mark.at.lsn));
        }
        let id = SnapshotId { at: mark.at, maker };
        let file = self.files.create_temp(&name).map_err(failed(&name))?;
        self.write_snapshot(&slot, &reader, &Head { group, id, pruned: mark.pruned, sums }, file)?;
        self.files.publish(&name).map_err(failed(&name))?;
        let file = self.files.open(&name).map_err(failed(&name))?;
        let file = file.ok_or_else(|| damaged(&name, "it has vanished"))?;
        let sealed = Sealed::open(group, name, file, &slot)?;
        if !self.vouches_for(&sealed) {
            // The state was dropped meanwhile, which left nothing for this to be removed with.
            self.unseal(group)?;
            return Err(SnapshotError::Other);
        }
        Ok(sealed)
    }

    /// Whether a snapshot is of the state that is in service.
    pub fn vouches_for(&self, sealed: &Sealed) -> bool {
        sealed.slot.upgrade().is_some_and(|slot| slot.read().is_ok() && self.is_current(&slot))
    }

    fn write_snapshot(
        &self,
        slot: &Slot,
        reader: &Reader,
        head: &Head,
        file: Box<dyn StorageBackend>,
    ) -> Result<(), SnapshotError> {
        let name = snap_name(head.group);
        let io = failed(&name);
        let mut blocks = Blocks::new(file);
        blocks.append(&head.encode()).map_err(&io)?;
        let mut gatherer = Gatherer::new(blocks);
        let mut refused = None;
        guarded(slot, "reading", || {
            reader.each_row(|kind, key, row| match gatherer.take(kind, key, row) {
                Ok(()) => true,
                Err(error) => {
                    refused = Some(error);
                    false
                }
            })
        })?;
        match refused {
            Some(error) => Err(io(error)),
            None => {
                gatherer.flush().map_err(&io)?;
                gatherer.blocks.finish().map_err(&io)
            }
        }
    }

    /// Removes the snapshot that others may have.
    ///
    /// # Errors
    /// Where it can't be removed.
    pub fn unseal(&self, group: GroupId) -> Result<(), SnapshotError> {
        let name = snap_name(group);
        self.files.remove(&name).map_err(failed(&name))
    }

    /// What was received of a snapshot before a break, up to the first damage; `None` where there is
    /// nothing.
    ///
    /// # Errors
    /// Where the operating system refuses.
    pub fn resume(&self, group: GroupId) -> Result<Option<Incoming>, SnapshotError> {
        let name = part_name(group);
        let io = failed(&name);
        let Some(file) = self.files.open(&name).map_err(&io)? else { return Ok(None) };
        let len = file.len().map_err(&io)?;
        let mut blocks = Blocks { len, ..Blocks::new(file) };
        let mut id = None;
        loop {
            let (at, number) = (blocks.end, blocks.offsets.len() as u32);
            let mut frame = [0; FRAME as usize];
            if at + FRAME > len || blocks.file.read(at, &mut frame).is_err() {
                break;
            }
            let size =
                FRAME + u64::from(u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]));
            if at + size > len || size > SNAPSHOT_BLOCK_MAX as u64 {
                break;
            }
            let mut whole = vec![0; size as usize];
            if blocks.file.read(at, &mut whole).is_err() {
                break;
            }
            let Some(content) = take_frame(number, whole.into()) else { break };
            if number == 0 {
                id = Head::decode(&content).filter(|head| head.group == group).map(|head| head.id);
                if id.is_none() {
                    break;
                }
            }
            blocks.offsets.push(at);
            blocks.end = at + size;
        }
        let synced = blocks.end;
        Ok(id.map(|id| Incoming { group, name, blocks, id, synced }))
    }

    /// Begins to receive a snapshot, with its first block; what there was of another one is gone.
    ///
    /// # Errors
    /// Where that is no head of the snapshot that it is said to be, or it can't be kept.
    pub fn receive(
        &self,
        group: GroupId,
        id: SnapshotId,
        first: &[u8],
    ) -> Result<Incoming, SnapshotError> {
        let name = part_name(group);
        let head = Head::decode(first).filter(|head| head.group == group && head.id == id);
        head.ok_or(SnapshotError::Other)?;
        let file = self.files.create_temp(&name).map_err(failed(&name))?;
        self.files.publish(&name).map_err(failed(&name))?;
        let mut incoming = Incoming { group, name, blocks: Blocks::new(file), id, synced: 0 };
        incoming.take(first)?;
        Ok(incoming)
    }

    /// Makes a state of a snapshot of which all blocks are here, beside the one in use: durable,
    /// checked, and ready to be [installed](States::install).
    ///
    /// # Errors
    /// Where it is damaged; then it is gone, and is to be received anew. Or where it can't be
    /// written.
    pub fn prepare(&self, incoming: Incoming) -> Result<Position, SnapshotError> {
        let Incoming { group, name, blocks, id, .. } = incoming;
        let made = self.make_next(group, &name, &blocks);
        drop(blocks);
        // What the disk refused now, it may take later.
        if !matches!(made, Err(SnapshotError::Io { .. })) {
            self.files.remove(&name).map_err(failed(&name))?;
        }
        made.map(|()| id.at)
    }

    fn make_next(&self, group: GroupId, name: &str, blocks: &Blocks) -> Result<(), SnapshotError> {
        let next = next_name(group);
        let leaves = Leaves::of(group);
        let file = self.files.create_temp(&next).map_err(failed(&next))?;
        let bad = |what| damaged(name, what);
        let made = |error| match error {
            TableError::Row(..) => bad("a record is not what its leaf says"),
            TableError::Redb(error) => {
                SnapshotError::Io { file: next.clone(), source: io::Error::other(error) }
            }
            TableError::Empty => bad("there is nothing in it"),
        };
        let table = Table::create(self.backend(file), MAKE_CACHE, leaves).map_err(&made)?;
        let mut head: Option<Head> = None;
        let mut rows = RowBatch::default();
        for number in 0.. {
            let Some(content) = blocks.content(name, number)? else { break };
            if number == 0 {
                head = Head::decode(&content);
                continue;
            }
            take_rows(&content, &mut rows).ok_or_else(|| bad("a block's rows can't be read"))?;
            if rows.bytes() >= COMMIT_EVERY {
                table.fill(&mut rows).map_err(&made)?;
            }
        }
        table.fill(&mut rows).map_err(&made)?;
        let head = head.ok_or_else(|| bad("its head can't be read"))?;
        if rows.sums() != &head.sums {
            return Err(bad("its records are not what their sums say"));
        }
        table
            .complete(Mark { group, at: head.id.at, pruned: head.pruned }, &head.sums)
            .map_err(&made)?;
        if table.close() {
            let source = io::Error::other("a write or fsync failed");
            return Err(SnapshotError::Io { file: next, source });
        }
        self.files.publish(&next).map_err(failed(&next))
    }

    /// What the state stands at that was [prepared](States::prepare) and not installed; `None` where there
    /// is none that can be used.
    ///
    /// # Errors
    /// Where the operating system refuses.
    pub fn prepared(&self, group: GroupId) -> Result<Option<Position>, SnapshotError> {
        let next = next_name(group);
        let Some(file) = self.files.open(&next).map_err(failed(&next))? else { return Ok(None) };
        let mark = || {
            let table = Arc::new(Table::open(file, 1 << 20, Leaves::of(group))?);
            table.begin_read()?.read()?.mark()
        };
        Ok(mark().ok().filter(|mark| mark.group == group).map(|mark| mark.at))
    }

    /// Puts the state that was [prepared](States::prepare) in the place of a group's, in one moment,
    /// durably. What was in memory of the old one is gone; reads that are under way end on it.
    ///
    /// # Errors
    /// When the file can't be renamed: the group is out of service.
    pub fn install(&self, group: GroupId) -> Result<(), StateError> {
        let old = self.slot(group);
        let _turn = old.turn();
        let _flushing = old.flushing();
        let _opening = old.opening();
        let (next, name) = (next_name(group), layout::file_name(group));
        if let Err(source) = self.files.rename(&next, &name) {
            let error = io_error(group, "installing", source);
            old.fail(error.to_string(), false);
            return Err(error);
        }
        self.release(group);
        self.replace(group, old.succeeded());
        Ok(())
    }
}

/// Takes a block's rows apart; `None` where they are none.
pub(super) fn take_rows(content: &[u8], rows: &mut RowBatch) -> Option<()> {
    let (size, _) = lz4_flex::block::uncompressed_size(content).ok()?;
    if size > SNAPSHOT_BLOCK_MAX {
        return None;
    }
    let mut bytes = Bytes::from(lz4_flex::block::decompress_size_prepended(content).ok()?);
    if bytes.len() != size {
        return None;
    }
    while bytes.has_remaining() {
        let kind = (bytes.remaining() >= 3).then(|| bytes.get_u8())?;
        let len = usize::from(bytes.get_u16_le());
        let key = (bytes.remaining() >= len + 4).then(|| bytes.split_to(len))?;
        let len = bytes.get_u32_le() as usize;
        let row = (bytes.remaining() >= len).then(|| bytes.split_to(len))?;
        rows.take(kind, key, row)?;
    }
    Some(())
}
