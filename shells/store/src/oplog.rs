//! The oplog: one log a node, shared by all its groups; the only files that an acknowledgement waits
//! for. It owns the directory `oplog/` and knows nothing of consensus.
//!
//! The log is a chain of preallocated, zero-filled **segments** (files named by their sequence).
//! Each begins with a header that carries the table of every group that changed in the segment
//! before, so that start-up reads the headers and scans the newest segment only. After it come
//! **blocks**, which carry **frames**: entries and control records. The bytes are in
//! `oplog/format.rs` and in `docs/FORMATS.md`.
//!
//! # What is durable, and how that is known
//! - A [`LogWriter::write`] is one write and one fdatasync for all its records. It returns only
//!   after that, and there is never a second one under way.
//! - A segment's header is fsynced before the segment's first block is written. Hence a segment with
//!   a valid header vouches for every block of the segments before.
//! - Every block says up to which block the log was known to be fsynced when it was written
//!   (`synced_upto`). When the log falls idle, [`LogWriter::close_marker`] says the same of the last
//!   block, without a sync of its own.
//! - A failed write or sync ends the writer: nothing is ever tried again on the same file.
//!
//! # Where the log begins
//! A segment whose entries were all pruned or replaced is not in use any more. Each header names the
//! first segment in use: one whose header lists every group, so that nothing before it is needed. All
//! that the header goes by was fsynced before. Segments are removed once two headers say so, beside
//! the writer: the newest header may yet be lost, and the one before it must find what it names. A
//! segment in use that is missing is damage; one that is not in use may be there or not.
//!
//! Headers come as the log is written. Where it is not, for it is idle or the disk is full, the
//! [`Preparer`] asks the writer for up to two more, if they free a segment's bytes more than their
//! segments take: so what they leave behind is never worth another one. First the writer takes back
//! what is left of its segment from [`LogWriter::room`], and goes on later, when it is idle. Where the
//! disk has no room for a spare, it makes a small segment. No records are planned into that one before
//! it is the active one, so that it is never room that was promised.
//!
//! # History
//! Where more than [`OplogOptions::segments_max`] segments are in use, the oldest is **sealed**: what
//! counts of it is written into **history files**, sorted by group and LSN, and packed. Once they are
//! fsynced, with their names, the segment is not in use any more: the next header says so, and from
//! then on they serve in its place, also where an entry is replaced later. At a start, history of
//! segments that are in use does not count, for it may be in part; older history is put together from
//! the files' footers, in the order of segments, and with the headers it must leave no hole. A history
//! file none of whose entries count is removed once two headers were written since: pruning gives
//! room back. A block of it that can't be read is told, and once there are copies of what counts in
//! it, the file is written anew beside and renamed. A segment is not sealed as long as something that
//! counts in it can't be read.
//!
//! # Start-up
//! [`open`] looks for the first block of the newest segment that is not as it should be. Above the
//! highest `synced_upto` seen anywhere, the log ends there: that block and all that follow, intact
//! ones included, are a **torn tail**, promised to nobody, and are cut. What is kept but not known to
//! be fsynced is written once more and fsynced (a sync that failed in an earlier run has left the
//! pages clean, so that a sync alone would prove nothing). Then an **opening block** begins a new
//! **epoch**: only an opening block or a segment header raises the epoch, and no block of an epoch is
//! written before its opening block is durable. So whatever is left on the disk of the part that was
//! cut never fits again, even where a crash keeps the following blanking from being completed.
//!
//! # Damage at the end
//! At or below that `synced_upto` the block may have been acknowledged: the log has **lost** its end.
//! So it has where the newest segment's header is damaged, though blocks follow it. Then the log goes
//! on in a new segment, at the place of the first damaged block, and that segment's header says all
//! there is to say: that the log is **in doubt** from there on, and what could still be read behind
//! the damage of votes, the formation, starts met and acknowledgements. The segment is made whole
//! beside the log and renamed into place, so that a crash leaves the damage or the cut, never a log
//! that looks intact. What was lost stays in its file, unless that has the number of the new one.
//!
//! A block's kind says whether a vote may be in it, and a block's header has a checksum of its own.
//! So it is known whether a vote may be lost: where a block is gone that may have held one, or nothing
//! is known of it, the data directory is **fenced** first, durably ([`identity`](crate::identity)).
//! What can't be followed at all (a segment that is missing or has another length, damaged headers
//! in the middle or several of them, an unreadable identity) is refused, and nothing is changed.
//!
//! One hole is left: a block of the very last sync is damaged, *and* the process dies before the next
//! block or the closing marker reaches the disk. Such damage can't be told from a torn write and is
//! cut. It is outside the fault model.
//!
//! # Damage elsewhere
//! Start-up does not read older segments; later headers know their votes and terms. A
//! [`LogReader::load`] that meets damage, or a block that the disk can't read, scans the segment once
//! more, around the damage, and from then on reads everything else in it. An entry counts only if its
//! term is the one that the headers give its LSN: an older one may stand before the damage that
//! replaced it. What is missing is told, to be had from other nodes, and [`LogReader::mend`] takes it:
//! copies serve from memory, within a bound, until everything that is missing in the segment is
//! there; then the damaged blocks are written anew, where they were, with their sequences. Other
//! records that were in them are of no use any more. The writer leaves a segment that is found
//! damaged while it is written to, so that the next start need not cut it.
//!
//! # Bounds
//! A frame never spans blocks, a block never spans segments; the largest frame is
//! [`OplogOptions::frame_max`], somewhat less than half a segment. A segment header takes at most
//! half a segment: a segment that touches more groups than that allows ends early.

use std::{fmt, io};

use highwater_core::{Boot, Doubt, Formation, GroupId, Incarnation, Lsn, Member, RecoveredGroup};
use highwater_wire::entry::ENTRY_MAX;

use crate::{disk::Disk, identity::IdentityError};

mod cut;
mod damage;
mod format;
mod history;
mod index;
mod inspect;
mod keep;
mod mend;
mod prepare;
mod reader;
mod recover;
mod scan;
mod seal;
mod sealed;
mod shared;
mod table;
mod writer;

#[cfg(all(test, not(madsim)))]
pub(crate) mod tests;

pub use format::{BlockKind, FrameError, Loss};
pub use inspect::{BlockInfo, Found, HeaderInfo, HistoryInfo, Summary, inspect};
pub use prepare::Preparer;
pub use reader::LogReader;
pub use recover::open;
pub use writer::LogWriter;

/// Where the log's files are.
pub(crate) const DIR: &str = "oplog";
/// A segment that is being filled with zeros.
const TEMP: &str = "oplog/spare.tmp";

/// The path of a segment within the data directory.
fn file_name(segment: u64) -> String {
    format!("{DIR}/{segment:012}")
}

/// The sequence of the segment in a file of this name (without the directory).
fn parse_name(name: &str) -> Option<u64> {
    let digits = name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|segment| digits && *segment > 0)
}

/// The log's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OplogOptions {
    /// Length of a new segment: a multiple of 4096 between 64 KiB and 1 GiB. Segments of another
    /// length that stand already stay as they are.
    pub segment_bytes: u64,
    /// How many zero-filled segments to keep ready: at least 1.
    pub spare_segments: usize,
    /// About how many segments to keep at most: at least 2.
    pub segments_max: usize,
}

impl Default for OplogOptions {
    fn default() -> OplogOptions {
        OplogOptions { segment_bytes: 64 << 20, spare_segments: 2, segments_max: 16 }
    }
}

impl OplogOptions {
    /// The largest frame that may be written, in bytes: [`ENTRY_MAX`], or half a segment less
    /// 16 KiB. A group's entry takes 64 bytes beside its payload.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        ((self.segment_bytes / 2 - (16 << 10)) as usize).min(ENTRY_MAX)
    }

    /// A block grows up to this; a larger frame gets a block of its own. In bytes.
    fn block_target(&self) -> u64 {
        format::padded(self.segment_bytes / 256).min(256 << 10)
    }

    /// Bytes of frames that fit for certain into a segment of `bytes` whose blocks begin at
    /// `start`, however they are cut: the largest frame may just not fit, the last sector is the
    /// marker's, and blocks may be little more than half full.
    fn sure(&self, start: u64, bytes: u64) -> u64 {
        let lost = format::padded(self.frame_max() as u64) + 2 * format::SECTOR;
        let target = self.block_target();
        let waste = 2 * (format::SECTOR + format::BLOCK_HEADER as u64);
        bytes.saturating_sub(start + lost) * target / (target + waste)
    }

    /// Bytes of frames that fit for certain once all spares are there, and the active segment is
    /// full: nothing larger may be admitted, or it might wait for ever. (Many changed groups make
    /// long segment headers, and that less.)
    #[must_use]
    pub fn room(&self) -> u64 {
        self.spare_segments as u64 * self.sure(format::SECTOR, self.segment_bytes)
    }

    /// Every so many segments the header lists all groups, so that the log can begin there.
    fn complete_every(&self) -> u64 {
        (self.segments_max as u64 / 4).clamp(1, 16)
    }

    /// Length of a segment that is begun on a full disk, only for its header's sake. It is not room.
    fn small(&self, table: &table::Table) -> u64 {
        let header = format::padded(table.header_bound());
        (self.segment_bytes / 16).max(2 * header).max(4 * format::SECTOR)
    }

    /// The longest segment header, in bytes.
    fn header_max(&self) -> u64 {
        self.segment_bytes / 2
    }

    fn check(&self) -> Result<(), OpenError> {
        if !self.segment_bytes.is_multiple_of(format::SECTOR) {
            return Err(OpenError::Options("the segment size is no multiple of 4096"));
        }
        if !(64 << 10..=1 << 30).contains(&self.segment_bytes) {
            return Err(OpenError::Options("the segment size is not between 64 KiB and 1 GiB"));
        }
        if self.spare_segments == 0 {
            return Err(OpenError::Options("it needs at least one spare segment"));
        }
        if self.segments_max < 2 {
            return Err(OpenError::Options("it needs at least two segments"));
        }
        Ok(())
    }
}

/// An open log.
pub struct Opened<D: Disk> {
    /// Appends. There is one.
    pub writer: LogWriter<D>,
    /// Reads entries back, while the writer goes on.
    pub reader: LogReader<D>,
    /// Keeps segments ready; to be run beside the writer.
    pub preparer: Preparer<D>,
    /// What the log says.
    pub recovered: RecoveredLog,
    /// The node with its data directory: with a new incarnation, if the log has lost votes.
    pub member: Member,
}

impl<D: Disk> fmt::Debug for Opened<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("recovered", &self.recovered).finish_non_exhaustive()
    }
}

/// What was found at start-up, all of it durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// The founding configuration, if one was written.
    pub formation: Option<Formation>,
    /// Every group that the log knows, in order of id.
    pub groups: Vec<RecoveredGroup>,
    /// The last start of each member's data directory that this node has met.
    pub boots: Vec<(Member, Boot)>,
    /// Entries were lost that may have been acknowledged.
    pub doubt: Option<Doubt>,
    /// [`LogWriter::room`].
    pub room: u64,
    /// How much of a torn tail was cut, in bytes (whole sectors).
    pub cut_bytes: u64,
    /// What was lost for good at this start.
    pub lost: Option<Lost>,
}

/// What was fsynced at the end of the log, could not be read, and was cut: for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The first damage: the file, within the data directory.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// How much was cut, in bytes (whole sectors).
    pub bytes: u64,
    /// What was in it.
    pub loss: Loss,
}

/// Why a log does not open. Nothing was changed, except where the operating system failed midway.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Something that was fsynced is not as it was written, and is more than the end of the log.
    #[error(
        "the oplog is damaged: {file} at byte {offset}: {what}. This part was fsynced, and the log \
         can't be followed across it; the node does not start, and nothing was changed. \
         `highwater log verify DIR` shows the extent. Keep the directory; to give this copy up, \
         start the node with an empty data directory: it then follows without a vote until it is \
         replaced"
    )]
    Damaged {
        /// The file, within the data directory.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Something was written by a later release.
    #[error(
        "the oplog was written by a later release: {file} at byte {offset}: {what}. Nothing was \
         changed; run that release"
    )]
    Later {
        /// The file, within the data directory.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is unknown.
        what: String,
    },
    /// The directory once had a log, and has none.
    #[error(
        "the oplog is gone from the data directory: the node may have acknowledged writes and \
         votes that it no longer knows, so it does not start. Restore the directory `oplog`, or \
         start with an empty data directory to follow without a vote until this node is replaced"
    )]
    Missing,
    /// The log belongs to another data directory.
    #[error(
        "{file} belongs to another data directory (incarnation {found}, not {wanted}): nothing was \
         changed; the files of two nodes were mixed"
    )]
    OtherIncarnation {
        /// The file, within the data directory.
        file: String,
        /// Whose it is.
        found: Incarnation,
        /// Whose it should be.
        wanted: Incarnation,
    },
    /// The sizes asked for are out of bounds.
    #[error("the oplog can't be opened: {0}")]
    Options(&'static str),
    /// The file `identity` can't be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The operating system refused.
    #[error("the oplog can't be opened ({what}): {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Why records were not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// They do not fit. Nothing was written; the writer goes on.
    #[error(
        "the oplog has no room for {needed} bytes: nothing was written; free space on the file \
         system of the data directory"
    )]
    NoRoom {
        /// What the records take at least, in bytes.
        needed: u64,
    },
    /// A write or sync failed. How much of it is on the disk is unknown; the writer is dead.
    #[error(
        "the oplog can't be written: {0}. What is on the disk now is known only after a restart: \
         check the disk, then start the node again"
    )]
    Io(#[from] io::Error),
    /// An earlier write failed or was abandoned: the writer is dead.
    #[error("the oplog is closed: an earlier write to it failed")]
    Closed,
}

/// Why entries were not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The group has no such entry.
    #[error("the oplog ends at LSN {last} for this group, before LSN {from}")]
    OutOfRange {
        /// What was asked for.
        from: Lsn,
        /// The group's last LSN; 0 for an empty or unknown group.
        last: Lsn,
    },
    /// The group's log begins later: what precedes was pruned, or came as a snapshot.
    #[error("the oplog begins at LSN {first} for this group, after LSN {from}")]
    Pruned {
        /// What was asked for.
        from: Lsn,
        /// The first LSN that the log may hold.
        first: Lsn,
    },
    /// What was written can't be read as it was written. It can be had from other nodes, and put in
    /// place with [`LogReader::mend`].
    #[error(
        "the oplog is damaged: {file} at byte {offset}: {what}. `highwater log verify DIR` shows \
         the extent"
    )]
    Damaged {
        /// The file, within the data directory.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
        /// Everything that this file holds and that can't be read: of each group, from LSN to LSN.
        /// What was asked for comes first.
        missing: Vec<(GroupId, Lsn, Lsn)>,
    },
    /// The operating system refused.
    #[error("the oplog can't be read: {0}")]
    Io(#[from] io::Error),
}
