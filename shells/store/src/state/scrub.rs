//! The scrub: everything in a state file is read again, a little at a time, though nobody asks for
//! it. A pass has three parts:
//!
//! 1. Every **block** is compared with its checksum, beneath redb's cache. One that does not match may
//!    be of a page that is not in use: a crash may tear such a page. It makes the file suspect, and a
//!    suspect file is closed, so that what comes next is read from disk.
//! 2. Every **control row** is read.
//! 3. Every **record** is read and compared with its leaf, and at the end the sum of all leaves with
//!    the sums that the file keeps.
//!
//! Each step has a read transaction of its own. Between two steps the file may be flushed to: a flush
//! tells the pass which records change among those that it has walked, so that the sums are exact.
//! Steps and flushes exclude each other.
//!
//! What the operating system has in memory is read from there: damage beneath it shows once it has
//! forgotten that.

use std::sync::Arc;

use bytes::Bytes;
use highwater_core::{
    GroupId,
    planted::{self, Planted},
};
use redb::Error;

use super::{
    States,
    error::StateError,
    layout::BadRow,
    leaf::{Leaf, Sums},
    open::guarded,
    slot::{File, Slot},
    table::{Reader, Table, TableError},
};

/// What a step of the scrub did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// About how many bytes it read.
    pub bytes: usize,
    /// The pass is done: the file holds what was written, all of it. The next step begins another.
    pub done: bool,
}

/// How far a pass has come.
#[derive(Debug, Default)]
pub(super) struct Pass {
    part: Part,
    suspect: bool,
    /// The leaves of the records that it has walked, as they are now.
    seen: Sums,
}

#[derive(Debug)]
enum Part {
    /// From this block on.
    Blocks(u64),
    /// The file is suspect: it is to be closed first.
    Close,
    /// After this key.
    Control(Option<Bytes>),
    Records(Option<Bytes>),
}

impl Default for Part {
    fn default() -> Part {
        Part::Blocks(0)
    }
}

impl Pass {
    /// Whether a change of this record is to be [taken in](Pass::take_in).
    pub(super) fn has_walked(&self, key: &[u8]) -> bool {
        matches!(&self.part, Part::Records(Some(last)) if key <= last.as_ref())
    }

    /// A record changes behind it.
    pub(super) fn take_in(&mut self, key: &[u8], before: Option<Leaf>, now: Option<Leaf>) {
        self.seen.change(key, before, now);
    }
}

impl States {
    /// Takes the next step of a pass over a group's file, of about so many bytes. `None` where there
    /// is no file, or the state is being rebuilt.
    ///
    /// # Errors
    /// When the file cannot be read, or anything in it is not what was written: the group is out of
    /// service then.
    pub fn scrub(&self, group: GroupId, bytes_max: usize) -> Result<Option<Scrubbed>, StateError> {
        let slot = self.slot(group);
        let mut turn = slot.flushing();
        let mut pass = turn.take().unwrap_or_default();
        let applied = self.known(&slot)?;
        let table = if slot.check_whole(applied).is_ok() { self.open(&slot)? } else { None };
        let Some(table) = table else { return Ok(None) };
        let skips = planted::is(Planted::ScrubSkips) && !matches!(pass.part, Part::Blocks(_));
        let step = match &mut pass.part {
            _ if skips => Scrubbed { bytes: 0, done: true },
            Part::Blocks(next) => {
                let verified = guarded(&slot, "scrubbing", || {
                    Ok(table.blocks().verify(*next, bytes_max).map_err(Error::Io)?)
                })?;
                pass.suspect |= !verified.sound;
                pass.part = match verified.next {
                    Some(next) => Part::Blocks(next),
                    None if pass.suspect => Part::Close,
                    None => Part::Control(None),
                };
                Scrubbed { bytes: verified.bytes, done: false }
            }
            Part::Close => {
                drop(table);
                slot.close(|| self.release(group));
                // Whoever has it open will have done soon.
                if matches!(slot.read()?.file, File::Closed) {
                    pass.part = Part::Control(None);
                }
                Scrubbed { bytes: 0, done: false }
            }
            Part::Control(after) => {
                let reader = reader(&slot, &table)?;
                let walk = || reader.walk_control(after.as_deref(), bytes_max);
                let (last, bytes) = guarded(&slot, "scrubbing", walk)?;
                pass.part = match last {
                    Some(_) => Part::Control(last),
                    None => Part::Records(None),
                };
                Scrubbed { bytes, done: false }
            }
            Part::Records(after) => {
                let reader = reader(&slot, &table)?;
                let seen = &mut pass.seen;
                let walk = || {
                    let show = |key: &[u8], leaf| seen.change(key, None, Some(leaf));
                    reader.walk_records(after.as_deref(), bytes_max, show)
                };
                let (last, bytes) = guarded(&slot, "scrubbing", walk)?;
                let done = last.is_none();
                if done {
                    guarded(&slot, "scrubbing", || compare(&reader, &pass.seen))?;
                }
                pass.part = Part::Records(last);
                Scrubbed { bytes, done }
            }
        };
        if !step.done {
            *turn = Some(pass);
        }
        Ok(Some(step))
    }
}

fn reader(slot: &Slot, table: &Arc<Table>) -> Result<Reader, StateError> {
    guarded(slot, "scrubbing", || table.begin_read()?.read())
}

/// Whether what was seen is what the file says it holds.
fn compare(reader: &Reader, seen: &Sums) -> Result<(), TableError> {
    if reader.sums()? == *seen {
        return Ok(());
    }
    let what = "the sums of its records, which are not what they add up to,";
    Err(TableError::Row(BadRow::Damaged, what.into()))
}
