//! What writer, readers and preparer of one log share. No IO happens under its lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{
    OplogOptions,
    damage::Damage,
    format::Salt,
    index::{Cache, SegmentIndex},
    mend::Patches,
    scan::Expect,
    table::Table,
};
use crate::disk::Disk;

pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) options: OplogOptions,
    pub(crate) salt: Salt,
    state: Mutex<State<D::File>>,
    /// A spare was taken, or the writer is gone.
    pub(crate) taken: Notify,
    /// A spare is ready, or there will be none for now.
    pub(crate) made: Notify,
}

pub(crate) struct State<F> {
    pub(crate) table: Table,
    /// Every segment in use, the active one included.
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) active: Active<F>,
    pub(crate) cache: Cache<F>,
    /// What is known to be damaged, by segment.
    pub(crate) damaged: BTreeMap<u64, Arc<Damage>>,
    /// Good copies of what is damaged.
    pub(crate) patches: Patches,
    /// In order; each follows the one before, the first follows the active segment.
    pub(crate) spares: VecDeque<Spare<F>>,
    pub(crate) preparing: Preparing,
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

impl<D: Disk> Shared<D> {
    pub(crate) fn new(disk: D, options: OplogOptions, salt: Salt, state: State<D::File>) -> Self {
        let (taken, made) = (Notify::new(), Notify::new());
        Shared { disk, options, salt, state: Mutex::new(state), taken, made }
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
