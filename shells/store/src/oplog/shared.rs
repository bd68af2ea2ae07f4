//! What writer, readers and preparer of one log share. No IO happens under its lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use highwater_core::{
    Incarnation,
    planted::{self, Planted},
};
use tokio::sync::{Mutex as Turns, Notify};

use super::{
    OplogOptions,
    damage::Damage,
    format::{SEGMENT_VERSION, Salt, SegmentHeader},
    history::History,
    index::{Cache, SegmentIndex},
    mend::Patches,
    scan::Expect,
    table::Table,
};
use crate::disk::Disk;

pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) options: OplogOptions,
    pub(crate) incarnation: Incarnation,
    pub(crate) salt: Salt,
    state: Mutex<State<D::File>>,
    /// A spare was taken, or the writer is gone.
    pub(crate) taken: Notify,
    /// A segment was begun, or the writer is gone.
    pub(crate) rolled: Notify,
    /// A spare is ready, or there will be none for now; or the writer is to go on in the next segment.
    pub(crate) made: Notify,
    /// Held while a segment is made: one at a time, and no two of one number.
    pub(crate) making: Turns<()>,
}

pub(crate) struct State<F> {
    pub(crate) table: Table,
    /// Every segment in use, the active one included.
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) retired: Retired,
    pub(crate) history: History<F>,
    pub(crate) active: Active<F>,
    pub(crate) cache: Cache<F>,
    /// What is known to be damaged, by segment.
    pub(crate) damaged: BTreeMap<u64, Arc<Damage>>,
    /// Good copies of what is damaged.
    pub(crate) patches: Patches,
    /// In order; each follows the one before, the first follows the active segment.
    pub(crate) spares: VecDeque<Spare<F>>,
    pub(crate) preparing: Preparing,
    /// The disk had no room for the last spare.
    pub(crate) full: bool,
    pub(crate) moving: Moving,
    /// The writer is gone: nothing needs preparing any more.
    pub(crate) closed: bool,
}

/// Where a segment's blocks are and what the first of them is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) epoch: u64,
    pub(crate) first_block: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The log can begin here: the header lists every group.
    pub(crate) begins: bool,
    /// The file's length.
    pub(crate) bytes: u64,
}

impl Segment {
    /// A segment without blocks so far, as its header says.
    pub(crate) fn of(header: &SegmentHeader, start: u64) -> Segment {
        Segment {
            epoch: header.epoch,
            first_block: header.first_block,
            start,
            end: start,
            begins: header.segment == 1 || header.complete && header.version == SEGMENT_VERSION,
            bytes: header.bytes,
        }
    }
}

/// Segments that hold nothing that counts any more.
#[derive(Clone, Debug)]
pub(crate) struct Retired {
    /// The first segment in use, as the newest header says.
    pub(crate) oldest: u64,
    /// As the header before it says: what is before this one can go. The newest header may yet be
    /// lost.
    pub(crate) removable: u64,
    /// Files of segments that are not in use any more, and that are still there, with their lengths.
    pub(crate) files: BTreeMap<u64, u64>,
}

/// The segment that is written to.
pub(crate) struct Active<F> {
    pub(crate) segment: u64,
    pub(crate) file: Arc<F>,
    pub(crate) index: SegmentIndex,
    /// What is being written just now, and where.
    pub(crate) pending: Option<(u64, Bytes)>,
}

/// A zero-filled segment: durable, under its final name, without a header.
pub(crate) struct Spare<F> {
    pub(crate) segment: u64,
    pub(crate) file: Arc<F>,
    pub(crate) bytes: u64,
}

// By hand: a derived one would ask that the file can be cloned.
impl<F> Clone for Spare<F> {
    fn clone(&self) -> Spare<F> {
        Spare { segment: self.segment, file: self.file.clone(), bytes: self.bytes }
    }
}

/// What the preparer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preparing {
    /// It does not run.
    Off,
    /// Spares that are missing are on their way.
    On,
    /// The last try failed; the next one comes later.
    Stuck,
}

/// Whether the writer goes on in the next segment before this one is full, for the sake of the
/// headers that let what is dead go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    /// It stays.
    No,
    /// Soon: what is left of the segment is not room any more.
    Soon,
    /// That was told. What was admitted before is written meanwhile.
    Told,
    /// As soon as it is idle.
    Now,
}

impl<F> State<F> {
    /// Where the log may begin from the next header on: at the last complete table that is not after
    /// the first segment that holds something that counts and is not sealed.
    pub(crate) fn next_oldest(&self, options: &OplogOptions) -> u64 {
        let mut sealed = self.history.sealed;
        if planted::is(Planted::RecycledBeforeSealed) {
            sealed = sealed.max(self.active.segment.saturating_sub(options.segments_max as u64));
        }
        let needed = self.table.first_needed(sealed).unwrap_or(self.active.segment);
        let begins = self.segments.range(..=needed).rev().find(|(_, segment)| segment.begins);
        begins.map_or(self.retired.oldest, |(segment, _)| *segment)
    }

    /// Whether one or two more headers free a segment's bytes more than their segments take: then a
    /// spare fits afterwards, where none did. What two segments that were begun for this leave behind is
    /// never worth another one.
    pub(crate) fn is_worth_moving(&self, options: &OplogOptions) -> bool {
        let cost = |nth: usize| match self.spares.get(nth) {
            Some(spare) => spare.bytes,
            None if self.full => options.small(&self.table),
            None => options.segment_bytes,
        };
        let next = self.active.segment + 1;
        let dead = |at: u64| {
            let active = self.active.segment;
            // Where it could have gone before, it is no header that it waits for.
            let gone = self.history.dead.values();
            let gone = gone.filter(move |dead| dead.goes_at(at) && !dead.goes_at(active));
            gone.map(|dead| dead.bytes).sum::<u64>()
        };
        let retired: u64 =
            self.retired.files.range(self.retired.removable..).map(|(_, bytes)| bytes).sum();
        let unused = self.segments.range(..self.next_oldest(options));
        let unused: u64 = unused.map(|(_, segment)| segment.bytes).sum();
        let least = options.segment_bytes;
        retired + dead(next) >= cost(0) + least
            || retired + unused + dead(next + 1) >= cost(0) + cost(1) + least
    }

    /// A segment was begun whose header says that the log begins with `oldest`.
    pub(crate) fn retire(&mut self, oldest: u64) {
        let kept = self.segments.split_off(&oldest);
        for (segment, bounds) in std::mem::replace(&mut self.segments, kept) {
            self.cache.forget(segment);
            self.damaged.remove(&segment);
            self.retired.files.insert(segment, bounds.bytes);
        }
        self.retired.removable = std::mem::replace(&mut self.retired.oldest, oldest);
    }
}

impl<D: Disk> Shared<D> {
    pub(crate) fn new(
        disk: D,
        options: OplogOptions,
        incarnation: Incarnation,
        state: State<D::File>,
    ) -> Self {
        let salt = Salt::of(incarnation);
        let (taken, rolled, made) = (Notify::new(), Notify::new(), Notify::new());
        let state = Mutex::new(state);
        let making = Turns::new(());
        Shared { disk, options, incarnation, salt, state, taken, rolled, made, making }
    }

    /// A panic under the lock is a bug that ends the node; readers may still look.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<D::File>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first block of a segment.
    pub(crate) fn expect(&self, segment: u64, bounds: Segment) -> Expect {
        let (sequence, epoch) = (bounds.first_block, bounds.epoch);
        Expect { salt: self.salt, segment, sequence, epoch }
    }
}
