//! Looks at a whole log without changing it: for `highwater log verify` and `log dump`. Unlike
//! start-up it reads every block of every segment, goes on behind damage, and checks each segment's
//! group table against the records before it.

use std::io;

use bytes::Bytes;
use highwater_core::{Doubt, GroupId, Incarnation, Lsn, Record};

use super::{
    DIR, file_name,
    format::{
        BLOCK_HEADER, BlockFault, BlockHeader, BlockKind, HeaderFault, Loss, SECTOR, Salt,
        SegmentHeader, decode_record, frame_len,
    },
    history::{self, FileId, HISTORY, Subject},
    parse_name,
    scan::{Cursor, Expect, Rest, read_header, rest},
    table::Table,
};
use crate::disk::Disk;

/// Something that stands in the log, in the order of the log.
#[derive(Clone, Debug)]
pub enum Found {
    /// A segment and what its header says.
    Segment(HeaderInfo),
    /// A block.
    Block(BlockInfo),
    /// A frame of the block before.
    Frame {
        /// Where it starts in the file.
        offset: u64,
        /// How long it is, in bytes.
        len: usize,
        /// What it says.
        record: Record,
    },
    /// A history file and what it holds. The frames that follow are those of its blocks.
    History(HistoryInfo),
    /// A file that is not in use: a segment that holds nothing that counts any more, or history of one
    /// that is still there. It is about to be removed.
    Retired {
        /// The file, within the data directory.
        file: String,
    },
    /// A segment made ahead of need.
    Spare {
        /// The file, within the data directory.
        file: String,
    },
    /// A torn tail, never acknowledged: the next start cuts it.
    Torn {
        /// The file, within the data directory.
        file: String,
        /// Where it begins.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// How much is cut, in bytes.
        bytes: u64,
    },
    /// Something that was fsynced is not as it was written.
    Damage {
        /// The file, within the data directory.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// A segment's header.
#[derive(Clone, Debug)]
pub struct HeaderInfo {
    /// The file, within the data directory.
    pub file: String,
    /// Its sequence.
    pub segment: u64,
    /// The first segment in use when it was begun.
    pub oldest: u64,
    /// The epoch in which it was begun.
    pub epoch: u64,
    /// The sequence of its first block.
    pub first_block: u64,
    /// Where it begins, in bytes.
    pub blocks_at: u64,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// Whose it is.
    pub incarnation: Incarnation,
    /// Groups in its table.
    pub groups: usize,
    /// Whether these are all there are.
    pub complete: bool,
    /// How many of them begin after a base.
    pub based: usize,
    /// What was lost from the end of the segment before, for good, and cut.
    pub lost: Option<Loss>,
    /// Whether groups were in doubt when it was written, and which.
    pub doubt: Option<Doubt>,
    /// How many members' starts it remembers.
    pub boots: usize,
}

/// A history file's footer.
#[derive(Clone, Debug)]
pub struct HistoryInfo {
    /// The file, within the data directory.
    pub file: String,
    /// The segment that it was sealed from.
    pub segment: u64,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// How many blocks it has.
    pub blocks: usize,
    /// What it holds: of each group, from LSN to LSN.
    pub groups: Vec<(GroupId, Lsn, Lsn)>,
}

/// A block's header.
#[derive(Clone, Copy, Debug)]
pub struct BlockInfo {
    /// Where it starts in the file.
    pub offset: u64,
    /// What it is for.
    pub kind: BlockKind,
    /// Its sequence.
    pub sequence: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The highest block known to be fsynced when it was written.
    pub synced_upto: u64,
    /// Length of its body, in bytes.
    pub body_len: u32,
    /// Frames in it.
    pub frames: u32,
}

/// What an inspection saw in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segments with a header.
    pub segments: u64,
    /// History files with a footer.
    pub histories: u64,
    /// Blocks that are intact.
    pub blocks: u64,
    /// Frames that are intact.
    pub frames: u64,
    /// Bytes in intact frames.
    pub frame_bytes: u64,
    /// [`Found::Damage`]s. With any, the next start may cut the log, or refuse to open it.
    pub damages: u64,
    /// Bytes of a torn tail that the next start cuts.
    pub torn_bytes: u64,
    /// Whether groups are in doubt, and which.
    pub doubt: Option<Doubt>,
}

/// Tells everything that stands in the log of a data directory, and what is wrong with it.
///
/// # Errors
/// Where the disk can't be read. Damage is not an error here: it is told.
pub async fn inspect<D: Disk>(disk: &D, tell: &mut impl FnMut(Found)) -> io::Result<Summary> {
    let mut segments: Vec<u64> =
        disk.list(DIR).await?.iter().filter_map(|name| parse_name(name)).collect();
    segments.sort_unstable();
    let mut files = Vec::new();
    for segment in segments {
        let file = disk.open(&file_name(segment), false).await?;
        let bytes = disk.len(&file).await?;
        files.push((segment, bytes, read_header(disk, &file, bytes).await?));
    }
    let headers = || files.iter().filter_map(|(_, _, header)| header.as_ref().ok());
    let newest = headers().max_by_key(|header| header.segment);
    let (newest, oldest) = newest.map_or((0, 1), |newest| (newest.segment, newest.oldest));
    let incarnation = headers().map(|header| header.incarnation).next();
    let mut inspector = Inspector {
        disk,
        tell,
        summary: Summary::default(),
        table: None,
        folded: Some(Table::default()),
        salt: Salt::of(incarnation.unwrap_or_default()),
        sequence: 1,
        oldest,
    };
    for name in disk.list(HISTORY).await? {
        match history::parse_name(&name) {
            Some(id) if id.0 < oldest => {
                inspector.history(id, incarnation.unwrap_or_default()).await?;
            }
            Some(id) => (inspector.tell)(Found::Retired { file: history::file_name(id) }),
            None => {}
        }
    }
    let mut expected = oldest;
    for (at, (segment, bytes, header)) in files.iter().enumerate() {
        if *segment < oldest {
            (inspector.tell)(Found::Retired { file: file_name(*segment) });
            continue;
        }
        for missing in expected..(*segment).min(newest + 1) {
            inspector.damage(missing, 0, "the file is missing");
            (inspector.table, inspector.folded) = (None, None);
        }
        expected = segment + 1;
        if *segment > newest {
            inspector.spare(*segment, *bytes, header).await?;
            continue;
        }
        // Where its blocks end is told by the header after it.
        let end = files.get(at + 1).and_then(|(_, _, next)| Some(next.as_ref().ok()?.prev_end));
        let last = *segment == newest;
        inspector.segment(*segment, *bytes, header, if last { None } else { end }, last).await?;
    }
    Ok(inspector.summary)
}

struct Inspector<'a, D, T> {
    disk: &'a D,
    tell: &'a mut T,
    summary: Summary,
    /// What the records say so far; `None` once some were unreadable, up to the next header.
    table: Option<Table>,
    /// What the headers say so far; `None` once one was unreadable.
    folded: Option<Table>,
    salt: Salt,
    /// The next block's.
    sequence: u64,
    /// The first segment in use.
    oldest: u64,
}

impl<D: Disk, T: FnMut(Found)> Inspector<'_, D, T> {
    fn damage(&mut self, segment: u64, offset: u64, what: impl Into<String>) {
        self.damage_in(file_name(segment), offset, what);
    }

    fn damage_in(&mut self, file: String, offset: u64, what: impl Into<String>) {
        self.summary.damages += 1;
        (self.tell)(Found::Damage { file, offset, what: what.into() });
    }

    /// Reads a history file from end to end.
    async fn history(&mut self, id: FileId, incarnation: Incarnation) -> io::Result<()> {
        let name = history::file_name(id);
        let file = self.disk.open(&name, false).await?;
        let bytes = self.disk.len(&file).await?;
        let parts = match history::read_footer(self.disk, &file, incarnation, id.0).await? {
            Ok(parts) => parts,
            Err(fault) => {
                self.folded = None;
                self.damage_in(name, bytes, fault.what());
                return Ok(());
            }
        };
        self.summary.histories += 1;
        (self.tell)(Found::History(HistoryInfo {
            file: name.clone(),
            segment: id.0,
            bytes,
            blocks: parts.iter().map(|part| part.blocks.len()).sum(),
            groups: history::ranges(&parts),
        }));
        for part in &parts {
            let held = |table: &mut Table| table.hold(id.0, part.group, part.last, &part.terms);
            if let Some(Err(what)) = self.folded.as_mut().map(held) {
                self.folded = None;
                self.damage_in(name.clone(), bytes, what);
            }
            for (n, block) in part.blocks.iter().enumerate() {
                let of = Subject { segment: id.0, group: part.group, first: block.first };
                let read = self.disk.read_at(&file, block.at, block.len as usize).await?;
                let told = match history::decode_block(self.salt, of, &read) {
                    Ok(frames) => self.sealed(block.at, frames, block.first, part.last_of(n)),
                    Err(what) => Err(what.to_owned()),
                };
                if let Err(what) = told {
                    self.damage_in(name.clone(), block.at, what);
                }
            }
        }
        Ok(())
    }

    /// Tells the entries of a history file's block.
    fn sealed(
        &mut self,
        offset: u64,
        mut frames: Bytes,
        first: Lsn,
        last: Lsn,
    ) -> Result<(), String> {
        let mut next = first;
        self.summary.blocks += 1;
        while !frames.is_empty() {
            let record = decode_record(&mut frames).map_err(|error| error.to_string())?;
            let Some(record @ Record::Append { .. }) = record else {
                return Err("it holds something that is no entry".to_owned());
            };
            if !matches!(&record, Record::Append { entry, .. } if entry.lsn == next) {
                return Err(format!("LSN {next} is missing"));
            }
            next = next.next();
            let len = frame_len(&record);
            self.summary.frames += 1;
            self.summary.frame_bytes += len as u64;
            (self.tell)(Found::Frame { offset, len, record });
        }
        if next == last.next() { Ok(()) } else { Err(format!("LSN {next} is missing")) }
    }

    async fn spare(
        &mut self,
        segment: u64,
        bytes: u64,
        header: &Result<SegmentHeader, HeaderFault>,
    ) -> io::Result<()> {
        let file = self.disk.open(&file_name(segment), false).await?;
        let expect = Expect { salt: self.salt, segment, sequence: self.sequence, epoch: 0 };
        let found = rest(self.disk, &file, 0, bytes, &expect).await?;
        if let (Some(_), Err(fault)) = (found.synced_upto, header) {
            self.damage(segment, 0, fault.to_string());
        } else {
            (self.tell)(Found::Spare { file: file_name(segment) });
        }
        Ok(())
    }

    async fn segment(
        &mut self,
        segment: u64,
        bytes: u64,
        header: &Result<SegmentHeader, HeaderFault>,
        end: Option<u64>,
        last: bool,
    ) -> io::Result<()> {
        let header = match header {
            Ok(header) if header.segment == segment => header,
            Ok(_) => {
                self.damage(segment, 0, "the file holds the header of another segment");
                (self.table, self.folded) = (None, None);
                return Ok(());
            }
            Err(fault) => {
                self.damage(segment, 0, format!("{fault}; its blocks were not read"));
                (self.table, self.folded) = (None, None);
                return Ok(());
            }
        };
        self.summary.segments += 1;
        let start = header.len();
        (self.tell)(Found::Segment(HeaderInfo {
            file: file_name(segment),
            segment,
            oldest: header.oldest,
            epoch: header.epoch,
            first_block: header.first_block,
            blocks_at: start,
            bytes,
            incarnation: header.incarnation,
            groups: header.rows.len(),
            complete: header.complete,
            based: header.rows.iter().filter(|row| row.base.position.lsn > Lsn(0)).count(),
            lost: header.lost,
            doubt: header.doubt,
            boots: header.boots.len(),
        }));
        self.summary.doubt = header.doubt;
        self.check_header(segment, bytes, header);
        self.sequence = header.first_block;
        let file = self.disk.open(&file_name(segment), false).await?;
        let expect =
            Expect { salt: self.salt, segment, sequence: header.first_block, epoch: header.epoch };
        let cursor = Cursor::new(self.disk, &file, start, end.unwrap_or(bytes).min(bytes));
        let synced_upto = header.first_block - 1;
        Blocks { inspector: self, file: &file, cursor, expect, bytes, last, synced_upto }
            .walk()
            .await
    }

    fn check_header(&mut self, segment: u64, bytes: u64, header: &SegmentHeader) {
        if header.bytes != bytes {
            self.damage(segment, bytes, "the file's length is not what it was");
        }
        if Salt::of(header.incarnation) != self.salt {
            self.damage(segment, 0, "the segment belongs to another data directory");
        }
        self.check_table(segment, header);
        let Some(folded) = &mut self.folded else { return };
        let begins = segment == self.oldest;
        let fits = if begins { folded.begin(header) } else { folded.fold(header) };
        if let Err(what) = fits {
            self.folded = None;
            if self.table.is_none() {
                self.damage(segment, 0, what);
            }
        } else if self.table.is_none() && folded.hole().is_none() {
            self.table.clone_from(&self.folded);
        }
    }

    /// Whether a header says what the records before it come to.
    fn check_table(&mut self, segment: u64, header: &SegmentHeader) {
        if let Some(table) = &mut self.table {
            if header.first_block != self.sequence {
                self.damage(segment, 0, "the segment's first block does not follow the last one");
                return;
            }
            let rows = table.rows(segment - 1, header.complete);
            let agrees = if header.lost.is_some() {
                // It also says what could be saved from behind the cut.
                table.fold(header).is_ok()
            } else {
                table.formation == header.formation
                    && table.doubt == header.doubt
                    && table.boots() == header.boots
                    && rows.len() == header.rows.len()
                    && rows.iter().zip(&header.rows).all(|(row, told)| row.agrees(told))
            };
            if !agrees {
                self.damage(segment, 0, "the group table does not match the records before it");
            }
        }
    }

    fn frames(&mut self, segment: u64, block: u64, mut body: Bytes) {
        let len = body.len();
        while !body.is_empty() {
            let offset = block + (BLOCK_HEADER + len - body.len()) as u64;
            let record = match decode_record(&mut body) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    self.table = None;
                    return self.damage(segment, offset, error.to_string());
                }
            };
            if let Some(Err(what)) = self.table.as_mut().map(|table| table.apply(segment, &record))
            {
                self.table = None;
                self.damage(segment, offset, what);
            }
            if let (Record::Sound { group: GroupId::SYSTEM, committed }, Some(doubt)) =
                (&record, &mut self.summary.doubt)
            {
                doubt.bound = Some(*committed);
            }
            let len = frame_len(&record);
            self.summary.frames += 1;
            self.summary.frame_bytes += len as u64;
            (self.tell)(Found::Frame { offset, len, record });
        }
    }
}

/// The blocks of one segment.
struct Blocks<'a, 'b, D: Disk, T> {
    inspector: &'a mut Inspector<'b, D, T>,
    file: &'a D::File,
    cursor: Cursor<'a, D>,
    expect: Expect,
    bytes: u64,
    /// Whether the log ends in this segment.
    last: bool,
    synced_upto: u64,
}

impl<D: Disk, T: FnMut(Found)> Blocks<'_, '_, D, T> {
    async fn walk(mut self) -> io::Result<()> {
        let segment = self.expect.segment;
        loop {
            let at = self.cursor.at();
            if !self.last && at >= self.cursor.end() {
                break;
            }
            let what = match self.cursor.next(&mut self.expect).await? {
                Ok(block) => {
                    self.block(at, &block.header);
                    if block.header.kind == BlockKind::Mended {
                        // Not all that was written before the next segment's table.
                        self.inspector.table = None;
                    }
                    if block.header.kind != BlockKind::Marker {
                        self.inspector.frames(segment, at, block.body);
                        continue;
                    }
                    "a block is missing"
                }
                Err(BlockFault::Damage(what)) => what,
                Err(BlockFault::Later(what)) => {
                    let what = format!("{what} is unknown: it was written by a later release");
                    self.inspector.damage(segment, at, what);
                    break;
                }
            };
            if self.ends(at, what).await? || !self.skip(at, what).await? {
                break;
            }
        }
        self.inspector.sequence = self.expect.sequence;
        Ok(())
    }

    fn block(&mut self, offset: u64, header: &BlockHeader) {
        self.synced_upto = self.synced_upto.max(header.synced_upto);
        self.inspector.summary.blocks += u64::from(header.kind != BlockKind::Marker);
        (self.inspector.tell)(Found::Block(BlockInfo {
            offset,
            kind: header.kind,
            sequence: header.sequence,
            epoch: header.epoch,
            synced_upto: header.synced_upto,
            body_len: header.body_len,
            frames: header.frames,
        }));
    }

    /// Whether the log ends here, by the rule of start-up; tells of a torn tail.
    async fn ends(&mut self, at: u64, what: &str) -> io::Result<bool> {
        if !self.last {
            return Ok(false);
        }
        let Rest { synced_upto, used } =
            rest(self.inspector.disk, self.file, at, self.bytes, &self.expect).await?;
        self.synced_upto = self.synced_upto.max(synced_upto.unwrap_or(0));
        if self.expect.sequence <= self.synced_upto {
            return Ok(false);
        }
        let marker = match self.cursor.peek(self.expect.salt).await? {
            Some(header) if header.kind == BlockKind::Marker => SECTOR,
            _ => 0,
        };
        let bytes = used.iter().map(|(start, end)| end - start).sum::<u64>() - marker;
        if bytes > 0 {
            self.inspector.summary.torn_bytes += bytes;
            let (file, what) = (file_name(self.expect.segment), what.to_owned());
            (self.inspector.tell)(Found::Torn { file, offset: at, what, bytes });
        }
        Ok(true)
    }

    /// Tells of damage, and goes on at the next intact block header; `false` if there is none.
    async fn skip(&mut self, at: u64, what: &str) -> io::Result<bool> {
        self.inspector.table = None;
        let held = match self.cursor.peek(self.expect.salt).await? {
            Some(header) if header.offset == at && header.sequence == self.expect.sequence => {
                if header.kind.may_hold_votes() {
                    " (it may hold votes)"
                } else {
                    " (no votes)"
                }
            }
            _ => "",
        };
        let what = format!("{what}{held}");
        let found = self.cursor.resync(&self.expect).await?;
        let Some(header) = found else {
            self.inspector.damage(self.expect.segment, at, format!("{what}; nothing follows"));
            return Ok(false);
        };
        (self.expect.sequence, self.expect.epoch) = (header.sequence, header.epoch);
        let what =
            format!("{what}; the next intact block is {} at {}", header.sequence, header.offset);
        self.inspector.damage(self.expect.segment, at, what);
        Ok(true)
    }
}
