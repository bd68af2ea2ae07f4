//! Start-up: finds out what the log says, cuts a torn tail or what is lost, begins a new epoch. The
//! rules are in the [module above](super).

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
};

use bytes::Bytes;
use highwater_core::{
    Incarnation, Record,
    planted::{self, Planted},
};

use super::{
    DIR, FrameError, LogReader, LogWriter, Loss, Lost, OpenError, Opened, OplogOptions, Preparer,
    RecoveredLog, TEMP, WriteError,
    cut::{Behind, Cut, Place},
    file_name,
    format::{
        BlockFault, BlockKind, HeaderFault, SECTOR, SEGMENT_VERSION, Salt, SegmentHeader,
        decode_record, frame_len,
    },
    history::{self, FileId, FooterFault, HISTORY, History, Range},
    index::{Cache, Point, SegmentIndex},
    keep,
    mend::Patches,
    parse_name, prepare,
    scan::{CHUNK, Cursor, Expect, first_block, is_blank, read_header, rest},
    shared::{Active, Moving, Preparing, Retired, Segment, Shared, Spare, State},
    table::Table,
    writer::Resume,
};
use crate::{
    disk::Disk,
    identity::{self, Start},
};

/// A lost segment header may have been one sector long, and blocks follow right behind: this much
/// of the segment after the newest one is looked at. In bytes.
const ORPHAN_LOOK: u64 = 1 << 20;

pub(crate) fn io_failed(what: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { what, source }
}

pub(crate) fn damaged(segment: u64, offset: u64, what: impl Into<String>) -> OpenError {
    OpenError::Damaged { file: file_name(segment), offset, what: what.into() }
}

fn damaged_file(file: String, what: &str) -> OpenError {
    OpenError::Damaged { file, offset: 0, what: what.to_owned() }
}

/// A block whose checksum matches holds something that is no frame.
pub(crate) fn frame_failed(segment: u64, block: u64, error: &FrameError) -> OpenError {
    let (file, what) = (file_name(segment), error.to_string());
    if error.later() {
        OpenError::Later { file, offset: block, what }
    } else {
        OpenError::Damaged { file, offset: block, what }
    }
}

/// Opens the log of a data directory; makes it where the directory never had one. When this
/// returns, everything recovered is durable, and nothing that was cut can come back. Where votes may
/// be lost, the data directory is fenced before the log is cut: [`Opened::member`] is its new name.
///
/// # Errors
/// [`OpenError::Damaged`] and its like, without having changed anything; [`OpenError::Io`] at any
/// moment, after which it may simply be tried again.
pub async fn open<D: Disk>(
    disk: D,
    start: &Start,
    options: OplogOptions,
) -> Result<Opened<D>, OpenError> {
    options.check()?;
    let mut member = start.member;
    let mut lost = None;
    let mut found = survey(&disk, start.log).await?;
    if let Surveyed::Lost(mut cut) = found {
        if cut.is_alone() {
            // Nobody else has what is lost: an operator may yet mend the disk.
            return Err(cut.refused());
        }
        if cut.loss == Loss::Votes {
            member = identity::fence(&disk, start.spare).await?;
        }
        cut.carry_out(&disk, options).await?;
        let Cut { segment, offset, bytes, loss, .. } = cut;
        let (file, what) = (file_name(segment), cut.what.to_owned());
        lost = Some(Lost { file, offset, what, bytes, loss });
        found = survey(&disk, start.log).await?;
    }
    let (shared, writer, cut_bytes) = match found {
        Surveyed::Blank(survey) => create(disk, start.log, options, *survey).await?,
        Surveyed::Intact(found) => resume(disk, options, *found).await?,
        // It was cut, and is damaged again.
        Surveyed::Lost(cut) => return Err(cut.refused()),
    };
    let room = writer.room();
    let recovered = {
        let table = &shared.lock().table;
        RecoveredLog {
            formation: table.formation.clone(),
            groups: table.recovered(),
            boots: table.boots(),
            doubt: table.doubt,
            room,
            cut_bytes,
            lost,
        }
    };
    Ok(Opened {
        writer,
        reader: LogReader { shared: shared.clone() },
        preparer: Preparer { shared },
        recovered,
        member,
    })
}

/// A log as it is found.
enum Surveyed<F> {
    /// There is none yet.
    Blank(Box<Survey<F>>),
    /// All there is, but for a torn tail.
    Intact(Box<(Survey<F>, Newest<F>, Tail)>),
    /// Something at its end was fsynced and can't be read.
    Lost(Cut),
}

/// Finds out how the log is, and changes nothing of it.
async fn survey<D: Disk>(
    disk: &D,
    incarnation: Incarnation,
) -> Result<Surveyed<D::File>, OpenError> {
    let logged = identity::logged(disk).await?;
    let segments = segments(disk).await?;
    let oldest = first_in_use(disk, &segments).await?;
    let mut survey = Survey::new(incarnation, oldest);
    survey.look_back(disk).await?;
    for segment in segments {
        if segment < survey.retired.oldest {
            // Nothing depends on it.
            let bytes = keep::len(disk, &file_name(segment)).await.unwrap_or(0);
            survey.retired.files.insert(segment, bytes);
        } else {
            survey.look(disk, segment).await?;
        }
    }
    let Some(newest) = survey.newest.take() else {
        return match survey.orphan(disk, 1).await? {
            Some(orphan) if logged => survey.lost(disk, None, Some(orphan)).await,
            Some(_) => Err(survey.headless()),
            None if logged && survey.blank.is_empty() => Err(OpenError::Missing),
            None if logged => Err(survey.headless()),
            None => Ok(Surveyed::Blank(Box::new(survey))),
        };
    };
    let tail = Tail::scan(disk, &newest, &mut survey).await?;
    let orphan = survey.orphan(disk, newest.segment + 1).await?;
    survey.has_no_hole()?;
    let lost = tail.expect.sequence <= tail.synced_upto && !planted::is(Planted::CutBelowSynced);
    if lost || orphan.is_some() {
        return survey.lost(disk, Some((newest, tail)), orphan).await;
    }
    Ok(Surveyed::Intact(Box::new((survey, newest, tail))))
}

/// Goes on with a log that is as it was written.
async fn resume<D: Disk>(
    disk: D,
    options: OplogOptions,
    found: (Survey<D::File>, Newest<D::File>, Tail),
) -> Result<(Arc<Shared<D>>, LogWriter<D>, u64), OpenError> {
    let (mut survey, newest, tail) = found;
    if !planted::is(Planted::RecoveredNotSynced) {
        tail.keep(&disk, &newest).await?;
    }
    let spares = survey.spares(&disk, newest.segment, options).await?;
    let (segment, at) = (newest.segment, tail.at);
    let (file, incarnation) = (newest.file.clone(), survey.incarnation);
    let shared = survey.share(disk, options, newest, tail.index, spares);
    let mut writer = LogWriter::resume(
        shared.clone(),
        Resume {
            incarnation,
            file: file.clone(),
            segment,
            segment_bytes: tail.bytes,
            at,
            sequence: tail.expect.sequence,
            epoch: tail.expect.epoch + 1,
        },
    );
    begin(&mut writer).await?;
    let (now, blocks_end) = writer.place();
    let keep = if now == segment { blocks_end } else { at };
    wipe(&shared.disk, &file, &tail.used, keep).await.map_err(io_failed("cutting the tail"))?;
    identity::set_logged(&shared.disk).await?;
    Ok((shared, writer, tail.cut_bytes))
}

async fn begin<D: Disk>(writer: &mut LogWriter<D>) -> Result<(), OpenError> {
    let what = "beginning a new epoch";
    writer.open_epoch().await.map_err(|error| match error {
        WriteError::Io(source) => OpenError::Io { what, source },
        other => OpenError::Io { what, source: io::Error::other(other) },
    })
}

/// The segments there are, in order. Clears away what an earlier run left half-made.
async fn segments<D: Disk>(disk: &D) -> Result<Vec<u64>, OpenError> {
    disk.create_dir(DIR).await.map_err(io_failed("making its directory"))?;
    let names = disk.list(DIR).await.map_err(io_failed("listing its files"))?;
    if names.iter().any(|name| TEMP.strip_prefix(DIR).is_some_and(|temp| &temp[1..] == name)) {
        disk.remove(TEMP).await.map_err(io_failed("removing a half-made segment"))?;
    }
    // Also for what an earlier run renamed and did not live to sync.
    disk.sync_dir(DIR).await.map_err(io_failed("syncing its directory"))?;
    let mut segments: Vec<u64> = names.iter().filter_map(|name| parse_name(name)).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Where the log begins, as the newest header says: only from there on are segments looked at.
async fn first_in_use<D: Disk>(disk: &D, segments: &[u64]) -> Result<u64, OpenError> {
    let failed = || io_failed("reading a segment's header");
    for segment in segments.iter().rev() {
        let file = disk.open(&file_name(*segment), false).await.map_err(failed())?;
        let bytes = disk.len(&file).await.map_err(failed())?;
        match read_header(disk, &file, bytes).await.map_err(failed())? {
            Ok(header) if header.oldest <= *segment => return Ok(header.oldest),
            Ok(_) => return Err(damaged(*segment, 0, "the log begins after the segment")),
            Err(HeaderFault::Invalid(_)) => {}
            Err(HeaderFault::Version(version)) => return Err(later(*segment, version)),
        }
    }
    Ok(1)
}

fn later(segment: u64, version: u32) -> OpenError {
    let (file, what) = (file_name(segment), HeaderFault::Version(version).to_string());
    OpenError::Later { file, offset: 0, what }
}

/// Makes a log where there never was one.
async fn create<D: Disk>(
    disk: D,
    incarnation: Incarnation,
    options: OplogOptions,
    survey: Survey<D::File>,
) -> Result<(Arc<Shared<D>>, LogWriter<D>, u64), OpenError> {
    for left in &survey.blank {
        disk.remove(&file_name(left.segment)).await.map_err(io_failed("removing a spare"))?;
    }
    disk.sync_dir(DIR).await.map_err(io_failed("syncing its directory"))?;
    let what = "making its first segment";
    let spare =
        prepare::make(&disk, 1, options.segment_bytes, None).await.map_err(io_failed(what))?;
    let header = SegmentHeader {
        version: SEGMENT_VERSION,
        oldest: 1,
        segment: 1,
        epoch: 1,
        first_block: 1,
        prev_end: 0,
        incarnation,
        bytes: spare.bytes,
        complete: true,
        lost: None,
        doubt: None,
        formation: None,
        boots: Vec::new(),
        rows: Vec::new(),
    };
    let encoded = header.encode();
    let newest = Newest::of(header, spare.file.clone(), encoded.len() as u64);
    disk.write_sync(&spare.file, 0, encoded).await.map_err(io_failed(what))?;
    identity::set_logged(&disk).await?;
    let at = newest.start;
    let index = SegmentIndex::new(spare.bytes);
    let shared = survey.share(disk, options, newest, index, VecDeque::new());
    let writer = LogWriter::resume(
        shared.clone(),
        Resume {
            incarnation,
            file: spare.file,
            segment: 1,
            segment_bytes: spare.bytes,
            at,
            sequence: 1,
            epoch: 1,
        },
    );
    Ok((shared, writer, 0))
}

/// What the segment headers say.
struct Survey<F> {
    incarnation: Incarnation,
    table: Table,
    segments: BTreeMap<u64, Segment>,
    retired: Retired,
    history: BTreeMap<FileId, Vec<Range>>,
    /// History files that do not count.
    stale: Vec<FileId>,
    /// A history file that can't be read, and why.
    unread: Option<(String, &'static str)>,
    newest: Option<Newest<F>>,
    /// Files without a valid header, in order: spares, or damage.
    blank: Vec<BlankFile<F>>,
}

struct BlankFile<F> {
    segment: u64,
    file: F,
    bytes: u64,
    what: &'static str,
}

/// The last segment with a valid header.
struct Newest<F> {
    segment: u64,
    file: Arc<F>,
    bytes: u64,
    /// Where blocks begin.
    start: u64,
    header: SegmentHeader,
}

impl<F> Newest<F> {
    fn of(header: SegmentHeader, file: Arc<F>, start: u64) -> Newest<F> {
        Newest { segment: header.segment, file, bytes: header.bytes, start, header }
    }
}

impl<F: Send + Sync + 'static> Survey<F> {
    fn new(incarnation: Incarnation, oldest: u64) -> Survey<F> {
        Survey {
            incarnation,
            table: Table::default(),
            segments: BTreeMap::new(),
            retired: Retired { oldest, removable: 1, files: BTreeMap::new() },
            history: BTreeMap::new(),
            stale: Vec::new(),
            unread: None,
            newest: None,
            blank: Vec::new(),
        }
    }

    /// Takes in the next segment, in order.
    async fn look<D: Disk<File = F>>(&mut self, disk: &D, segment: u64) -> Result<(), OpenError> {
        let what = "reading a segment's header";
        let file = disk.open(&file_name(segment), false).await.map_err(io_failed(what))?;
        let bytes = disk.len(&file).await.map_err(io_failed(what))?;
        let header = match read_header(disk, &file, bytes).await.map_err(io_failed(what))? {
            Ok(header) => header,
            Err(HeaderFault::Invalid(what)) => {
                self.blank.push(BlankFile { segment, file, bytes, what });
                return Ok(());
            }
            Err(HeaderFault::Version(version)) => return Err(later(segment, version)),
        };
        // A segment is begun only after everything before it is durable.
        if let Some(blank) = self.blank.first() {
            return Err(damaged(blank.segment, 0, blank.what));
        }
        let expected =
            self.newest.as_ref().map_or(self.retired.oldest, |newest| newest.segment + 1);
        if segment != expected {
            return Err(damaged(expected, 0, "the file is missing"));
        }
        if header.incarnation != self.incarnation {
            return Err(OpenError::OtherIncarnation {
                file: file_name(segment),
                found: header.incarnation,
                wanted: self.incarnation,
            });
        }
        if header.segment != segment {
            return Err(damaged(segment, 0, "the file holds the header of another segment"));
        }
        if header.bytes != bytes || bytes % SECTOR != 0 || bytes < 4 * SECTOR {
            return Err(damaged(segment, bytes, "the file's length is not what it was"));
        }
        self.fold(&header).map_err(|what| damaged(segment, 0, what))?;
        let start = header.len();
        self.segments.insert(segment, Segment::of(&header, start));
        if let Some(before) = &self.newest {
            self.retired.removable = before.header.oldest;
        }
        self.newest = Some(Newest::of(header, Arc::new(file), start));
        Ok(())
    }

    /// Reads which history files there are, and what they hold. Those of segments that are in use do
    /// not count: not all of them may be there.
    async fn look_back<D: Disk<File = F>>(&mut self, disk: &D) -> Result<(), OpenError> {
        let failed = || io_failed("reading the footers of history files");
        let names = disk.list(HISTORY).await.map_err(failed())?;
        let mut ids: Vec<FileId> =
            names.iter().filter_map(|name| history::parse_name(name)).collect();
        ids.sort_unstable();
        for id in ids {
            if id.0 >= self.retired.oldest {
                self.stale.push(id);
                continue;
            }
            let name = history::file_name(id);
            let file = disk.open(&name, false).await.map_err(failed())?;
            let footer = history::read_footer(disk, &file, self.incarnation, id.0);
            let parts = match footer.await.map_err(failed())? {
                Ok(parts) => parts,
                Err(FooterFault::Later) => {
                    let what = FooterFault::Later.what().to_owned();
                    return Err(OpenError::Later { file: name, offset: 0, what });
                }
                // It may hold nothing that counts.
                Err(FooterFault::Damage(what)) => {
                    tracing::warn!(file = name, what, "a history file can't be read");
                    self.unread.get_or_insert((name, what));
                    continue;
                }
            };
            for part in &parts {
                let held = self.table.hold(id.0, part.group, part.last, &part.terms);
                held.map_err(|what| damaged_file(name.clone(), what))?;
            }
            self.history.insert(id, history::ranges(&parts));
        }
        Ok(())
    }

    /// Refuses a log of which something is missing.
    fn has_no_hole(&self) -> Result<(), OpenError> {
        let Some((group, from, to)) = self.table.hole() else { return Ok(()) };
        let missing = format!("LSN {from} to {to} of group {group} are missing");
        Err(match &self.unread {
            Some((file, what)) => damaged_file(file.clone(), &format!("{what}; {missing}")),
            None => damaged_file(HISTORY.to_owned(), &missing),
        })
    }

    /// Takes in what a header says of the segment before.
    fn fold(&mut self, header: &SegmentHeader) -> Result<(), &'static str> {
        let before = header.segment - 1;
        if let (Some(place), Some(newest)) = (self.segments.get_mut(&before), &self.newest) {
            let fits = (place.start..newest.bytes).contains(&header.prev_end);
            if !fits || header.first_block < place.first_block || header.epoch < place.epoch {
                return Err("the segment header does not follow the one before");
            }
            place.end = header.prev_end;
        }
        if self.newest.is_none() { self.table.begin(header) } else { self.table.fold(header) }
    }

    /// The first segment without a valid header has blocks, so it had one: its file, and the
    /// sequence of its first block. Only the segment after the newest one, `next`, may be like
    /// that.
    async fn orphan<D: Disk<File = F>>(
        &self,
        disk: &D,
        next: u64,
    ) -> Result<Option<(&BlankFile<F>, u64)>, OpenError> {
        let failed = || io_failed("looking at a spare segment");
        let mut orphan = None;
        for blank in &self.blank {
            let BlankFile { segment, file, bytes, what } = blank;
            if is_blank(disk, file, 0, (*bytes).min(ORPHAN_LOOK)).await.map_err(failed())? {
                continue;
            }
            let first = first_block(disk, file, *bytes, Salt::of(self.incarnation), *segment)
                .await
                .map_err(failed())?;
            match first {
                None => {}
                Some(first) if *segment == next => orphan = Some((blank, first)),
                Some(_) => return Err(damaged(*segment, 0, *what)),
            }
        }
        Ok(orphan)
    }

    /// Refuses a log without any valid header.
    fn headless(&self) -> OpenError {
        self.blank.first().map_or(OpenError::Missing, |first| damaged(first.segment, 0, first.what))
    }

    /// Finds out what is lost, and plans the cut: at the first damaged block of the newest segment,
    /// or at its end where the segment after it has lost its header.
    async fn lost<D: Disk<File = F>>(
        &self,
        disk: &D,
        newest: Option<(Newest<F>, Tail)>,
        orphan: Option<(&BlankFile<F>, u64)>,
    ) -> Result<Surveyed<F>, OpenError> {
        let mut place = Place { oldest: 1, ..Place::default() };
        let mut expect =
            Expect { salt: Salt::of(self.incarnation), segment: 0, sequence: 1, epoch: 0 };
        let mut synced_upto = 0;
        if let Some((newest, tail)) = &newest {
            (expect, synced_upto) = (tail.expect, tail.synced_upto);
            place = Place {
                segment: newest.segment,
                offset: tail.at,
                what: tail.fault,
                bytes: tail.cut_bytes,
                newest: newest.segment,
                end: tail.at,
                oldest: self.retired.oldest,
                sequence: 0,
            };
        }
        place.sequence = expect.sequence;
        // The segment without a header was begun when everything before its first block was synced.
        let begun = orphan.map_or(u64::MAX, |(_, first)| first);
        if begun < expect.sequence {
            return Err(self.headless());
        }
        if orphan.is_some() {
            synced_upto = synced_upto.max(begun - 1);
        }
        let mut behind = Behind::new(&expect, synced_upto);
        if let Some((newest, tail)) = &newest
            && expect.sequence < begun
        {
            behind.walk(disk, &newest.file, newest.segment, tail.at, newest.bytes).await?;
        }
        if let Some((blank, _)) = orphan {
            if newest.is_none() || expect.sequence == begun {
                (place.segment, place.offset, place.what) = (blank.segment, 0, blank.what);
            }
            place.bytes += blank.bytes;
            behind.walk(disk, &blank.file, blank.segment, SECTOR, blank.bytes).await?;
        }
        Cut::plan(self.incarnation, self.table.clone(), &place, &behind).map(Surveyed::Lost)
    }

    /// Makes spares of what has no header, blank from end to end; removes what does not fit.
    async fn spares<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        newest: u64,
        options: OplogOptions,
    ) -> Result<VecDeque<Spare<F>>, OpenError> {
        let failed = || io_failed("making a spare segment blank");
        let mut spares = VecDeque::new();
        let mut removed = false;
        for blank in std::mem::take(&mut self.blank) {
            let next = newest + 1 + spares.len() as u64;
            if blank.segment != next || blank.bytes != options.segment_bytes {
                disk.remove(&file_name(blank.segment)).await.map_err(failed())?;
                removed = true;
                continue;
            }
            let look = blank.bytes.min(ORPHAN_LOOK);
            if !is_blank(disk, &blank.file, 0, look).await.map_err(failed())? {
                let salt = Salt::of(self.incarnation);
                let expect = Expect { salt, segment: blank.segment, sequence: 0, epoch: 0 };
                let used =
                    rest(disk, &blank.file, 0, blank.bytes, &expect).await.map_err(failed())?.used;
                wipe(disk, &blank.file, &used, 0).await.map_err(failed())?;
            }
            let (segment, file, bytes) = (blank.segment, Arc::new(blank.file), blank.bytes);
            spares.push_back(Spare { segment, file, bytes });
        }
        if removed {
            disk.sync_dir(DIR).await.map_err(failed())?;
        }
        Ok(spares)
    }

    fn share<D: Disk<File = F>>(
        mut self,
        disk: D,
        options: OplogOptions,
        newest: Newest<F>,
        index: SegmentIndex,
        spares: VecDeque<Spare<F>>,
    ) -> Arc<Shared<D>> {
        let Newest { segment, file, start, header, .. } = newest;
        self.segments.entry(segment).or_insert_with(|| Segment::of(&header, start));
        let sealed = self.retired.oldest - 1;
        let state = State {
            table: self.table,
            history: History::new(self.history, self.stale, sealed),
            segments: self.segments,
            retired: self.retired,
            active: Active { segment, file, index, pending: None },
            cache: Cache::new(),
            damaged: BTreeMap::new(),
            patches: Patches::default(),
            spares,
            preparing: Preparing::Off,
            full: false,
            moving: Moving::No,
            closed: false,
        };
        Arc::new(Shared::new(disk, options, self.incarnation, state))
    }
}

/// The end of the log, in its newest segment.
struct Tail {
    /// The segment's length.
    bytes: u64,
    /// Where the next block goes, which it is, and why it is not there.
    at: u64,
    expect: Expect,
    fault: &'static str,
    /// Every block up to here was fsynced.
    synced_upto: u64,
    /// From where on what is kept is not known to be fsynced: up to `at`.
    unsynced: u64,
    index: SegmentIndex,
    /// Sectors from `at` on that are not blank.
    used: Vec<(u64, u64)>,
    cut_bytes: u64,
}

impl Tail {
    /// Reads the newest segment: every intact block into table and index, then what lies behind.
    async fn scan<D: Disk>(
        disk: &D,
        newest: &Newest<D::File>,
        survey: &mut Survey<D::File>,
    ) -> Result<Tail, OpenError> {
        let failed = || io_failed("reading the newest segment");
        let (segment, first_block) = (newest.segment, newest.header.first_block);
        let mut index = SegmentIndex::new(newest.bytes);
        let mut expect = Expect {
            salt: Salt::of(survey.incarnation),
            segment,
            sequence: first_block,
            epoch: newest.header.epoch,
        };
        let mut cursor = Cursor::new(disk, &newest.file, newest.start, newest.bytes);
        // The header was written once everything before it was synced.
        let mut synced_upto = first_block - 1;
        let mut blocks = Vec::new();
        let (fault, marked) = loop {
            let at = cursor.at();
            match cursor.next(&mut expect).await.map_err(failed())? {
                Ok(block) => {
                    synced_upto = synced_upto.max(block.header.synced_upto);
                    if block.header.kind == BlockKind::Marker {
                        break ("there is no block", true);
                    }
                    blocks.push((block.header.sequence, at));
                    take_in(&mut survey.table, &mut index, segment, at, block.body)?;
                }
                Err(BlockFault::Damage(what)) => {
                    if planted::is(Planted::TornTailKept)
                        && let Some(next) = cursor.resync(&expect).await.map_err(failed())?
                    {
                        (expect.sequence, expect.epoch) = (next.sequence, next.epoch);
                        continue;
                    }
                    break (what, false);
                }
                Err(BlockFault::Later(what)) => {
                    let (file, what) = (file_name(segment), format!("{what} is unknown"));
                    return Err(OpenError::Later { file, offset: at, what });
                }
            }
        };
        let at = cursor.at();
        let behind = rest(disk, &newest.file, at, newest.bytes, &expect).await.map_err(failed())?;
        synced_upto = synced_upto.max(behind.synced_upto.unwrap_or(0));
        // A header without a block behind it may never have been synced.
        let unsynced = match blocks.iter().find(|(sequence, _)| *sequence > synced_upto) {
            _ if blocks.is_empty() => 0,
            Some((_, at)) => *at,
            None => at,
        };
        let used: u64 = behind.used.iter().map(|(start, end)| end - start).sum();
        if let Some(place) = survey.segments.get_mut(&segment) {
            place.end = at;
        }
        Ok(Tail {
            bytes: newest.bytes,
            at,
            expect,
            fault,
            synced_upto,
            unsynced,
            index,
            used: behind.used,
            cut_bytes: used - if marked { SECTOR } else { 0 },
        })
    }

    /// Makes what is kept durable for certain.
    async fn keep<D: Disk>(&self, disk: &D, newest: &Newest<D::File>) -> Result<(), OpenError> {
        rewrite(disk, &newest.file, self.unsynced, self.at)
            .await
            .map_err(io_failed("making the end of the log durable"))
    }
}

/// Enters a block's frames into table and index.
fn take_in(
    table: &mut Table,
    index: &mut SegmentIndex,
    segment: u64,
    block: u64,
    mut body: Bytes,
) -> Result<(), OpenError> {
    let len = body.len();
    while !body.is_empty() {
        let frame = (len - body.len()) as u32;
        let Some(record) =
            decode_record(&mut body).map_err(|error| frame_failed(segment, block, &error))?
        else {
            continue;
        };
        table.apply(segment, &record).map_err(|what| damaged(segment, block, what))?;
        if let Record::Append { group, entry } = &record {
            index.note(*group, Point { lsn: entry.lsn, block, frame }, frame_len(&record));
        }
    }
    Ok(())
}

/// Writes a part of a file again as it is, and syncs: pages that a failed sync left clean go to
/// the disk after all.
async fn rewrite<D: Disk>(disk: &D, file: &D::File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let data = disk.read_at(file, at, (to - at).min(CHUNK as u64) as usize).await?;
        if data.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = data.len() as u64;
        disk.write_at(file, at, data).await?;
        at += len;
    }
    if from < to { disk.sync(file).await } else { Ok(()) }
}

/// Makes these parts of a file blank from `keep` on, durably.
async fn wipe<D: Disk>(disk: &D, file: &D::File, used: &[(u64, u64)], keep: u64) -> io::Result<()> {
    if planted::is(Planted::WrongEpochAccepted) {
        return Ok(());
    }
    let zeros = Bytes::from(vec![0; CHUNK]);
    let mut wiped = false;
    for (start, end) in used {
        let mut at = (*start).max(keep);
        while at < *end {
            let len = (end - at).min(CHUNK as u64);
            disk.write_at(file, at, zeros.slice(..len as usize)).await?;
            at += len;
            wiped = true;
        }
    }
    if wiped { disk.sync(file).await } else { Ok(()) }
}
