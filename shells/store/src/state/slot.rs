//! One group's state in this process: what is in memory of it, and its file while that is open.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
    atomic::{AtomicU64, Ordering},
};

use highwater_core::{
    GroupId, Lsn,
    planted::{self, Planted},
};

use super::{
    error::StateError,
    layout,
    leaf::{Leaves, Sums},
    overlay::Overlays,
    scrub::Pass,
    table::Table,
};

/// A group. Locks are taken in the order of the fields; `memory` is never held during IO.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) group: GroupId,
    pub(super) leaves: Leaves,
    /// Held by whoever changes the active generation: apply and freeze.
    turn: Mutex<()>,
    /// Held while the file's content changes, and while the scrub reads it. The scrub's pass, which
    /// takes the changes in.
    flushing: Mutex<Option<Pass>>,
    /// Held while the file is opened or closed.
    opening: Mutex<()>,
    memory: RwLock<Memory>,
    used: AtomicU64,
    /// What must be applied before it is read.
    whole_from: AtomicU64,
    /// It is being rebuilt, from nothing.
    rebuilding: bool,
}

/// What is in memory of a group.
#[derive(Debug)]
pub(super) struct Memory {
    /// Why it is out of service, if it is, and whether that was a loss.
    failed: Option<(String, bool)>,
    pub(super) file: File,
    /// Whether the file may hold records.
    pub(super) has_records: bool,
    /// What the file holds.
    pub(super) durable: Lsn,
    /// Which operations were refused up to here is not known any more.
    pub(super) pruned: Lsn,
    /// What the file and the overlays hold together.
    pub(super) applied: Lsn,
    pub(super) overlays: Overlays,
    /// Of everything that is applied.
    pub(super) sums: Sums,
}

/// A group's file.
#[derive(Debug)]
pub(super) enum File {
    /// Not looked for yet: `applied` is not known.
    Unknown,
    /// There is none: nothing was flushed yet.
    Absent,
    /// There is one, not open now.
    Closed,
    /// Open.
    Open(Arc<Table>),
}

impl Slot {
    pub(super) fn new(group: GroupId) -> Slot {
        Slot {
            group,
            leaves: Leaves::of(group),
            turn: Mutex::new(()),
            flushing: Mutex::new(None),
            opening: Mutex::new(()),
            memory: RwLock::new(Memory {
                failed: None,
                file: File::Unknown,
                has_records: false,
                durable: Lsn(0),
                pruned: Lsn(0),
                applied: Lsn(0),
                overlays: Overlays::default(),
                sums: Sums::default(),
            }),
            used: AtomicU64::new(0),
            whole_from: AtomicU64::new(0),
            rebuilding: false,
        }
    }

    /// One whose state is being rebuilt, from nothing.
    pub(super) fn blank(group: GroupId) -> Slot {
        let slot = Slot { rebuilding: true, ..Slot::new(group) };
        unpoison(slot.memory.write()).file = File::Absent;
        slot.set_whole_from(Lsn(u64::MAX));
        slot
    }

    /// One whose file another one has taken the place of. What must be applied before it is read must
    /// be still.
    pub(super) fn succeeded(&self) -> Slot {
        let slot = Slot { rebuilding: self.rebuilding, ..Slot::new(self.group) };
        slot.set_whole_from(Lsn(self.whole_from.load(Ordering::Relaxed)));
        slot
    }

    /// Reads are refused until this is applied.
    pub(super) fn set_whole_from(&self, lsn: Lsn) {
        self.whole_from.store(lsn.0, Ordering::Relaxed);
    }

    /// Whether what is applied may be read.
    pub(super) fn check_whole(&self, applied: Lsn) -> Result<(), StateError> {
        let upto = Lsn(self.whole_from.load(Ordering::Relaxed));
        if applied >= upto || planted::is(Planted::ServedWhileRebuilding) {
            return Ok(());
        }
        let group = self.group;
        if self.rebuilding {
            return Err(StateError::Rebuilding { group, applied });
        }
        let file = layout::file_name(group);
        Err(StateError::Gap { group, file, applied, first: upto.next() })
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        unpoison(self.turn.lock())
    }

    pub(super) fn flushing(&self) -> MutexGuard<'_, Option<Pass>> {
        unpoison(self.flushing.lock())
    }

    pub(super) fn opening(&self) -> MutexGuard<'_, ()> {
        unpoison(self.opening.lock())
    }

    /// Reads the memory.
    ///
    /// # Errors
    /// [`StateError::OutOfService`] since the group failed, or since a call panicked while it
    /// changed the memory.
    pub(super) fn read(&self) -> Result<RwLockReadGuard<'_, Memory>, StateError> {
        let memory = self.memory.read().map_err(|_| self.panicked())?;
        match &memory.failed {
            None => Ok(memory),
            Some((reason, loss)) => Err(self.out_of_service(reason.clone(), *loss)),
        }
    }

    /// As [`Slot::read`], to change it.
    pub(super) fn write(&self) -> Result<RwLockWriteGuard<'_, Memory>, StateError> {
        let memory = self.memory.write().map_err(|_| self.panicked())?;
        match &memory.failed {
            None => Ok(memory),
            Some((reason, loss)) => Err(self.out_of_service(reason.clone(), *loss)),
        }
    }

    /// Takes the group out of service, for the first reason given.
    pub(super) fn fail(&self, reason: String, loss: bool) {
        let mut memory = unpoison(self.memory.write());
        memory.failed.get_or_insert((reason, loss));
    }

    /// Notes that the file is used, so that it is not the next one to be closed.
    pub(super) fn touch(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    /// When it was used last.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Closes the file unless it is in use, and calls `closed` before it can be opened again.
    /// Nothing is lost: what a flush made durable stays, and the overlays stay in memory.
    pub(super) fn close(&self, closed: impl FnOnce()) {
        let _opening = match self.opening.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let table = {
            let mut memory = unpoison(self.memory.write());
            match std::mem::replace(&mut memory.file, File::Closed) {
                File::Open(table) => match Arc::try_unwrap(table) {
                    Ok(table) => table,
                    Err(shared) => {
                        memory.file = File::Open(shared);
                        return;
                    }
                },
                other => {
                    memory.file = other;
                    return;
                }
            }
        };
        if table.close() {
            self.fail("its file could not be closed: a write or fsync failed".into(), false);
        }
        closed();
    }

    /// Another state has taken its place.
    pub(super) fn succeeded_meanwhile(&self) -> StateError {
        self.out_of_service("another state has just taken its place: ask again".into(), false)
    }

    fn panicked(&self) -> StateError {
        let reason = "a call panicked while it changed the state, which is a bug";
        self.out_of_service(reason.into(), false)
    }

    fn out_of_service(&self, reason: String, loss: bool) -> StateError {
        StateError::OutOfService { group: self.group, reason, loss }
    }
}

/// A lock whose data stays whole when a holder panics.
pub(super) fn unpoison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}
