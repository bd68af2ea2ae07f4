//! What the driver tells its handles without being asked: routes, the catalog, and whether it runs.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use highwater_core::{GroupId, NodeId, Term};
use tokio::sync::watch;

/// Read by many handles, written by one driver.
pub(crate) struct Shared {
    routes: Mutex<Routes>,
    /// Counts changes of `routes`; handles wait on it.
    changed: watch::Sender<u64>,
    draining: AtomicBool,
    /// fsyncs of the oplog.
    pub(crate) syncs: AtomicU64,
    /// Writes acknowledged through this node's handles.
    pub(crate) acked: AtomicU64,
    /// Applies that failed.
    pub(crate) apply_errors: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Routes {
    /// Each group's term and leader, as seen here.
    pub(crate) leaders: BTreeMap<GroupId, (Term, Option<NodeId>)>,
    /// The catalog applied here.
    pub(crate) databases: BTreeMap<String, GroupId>,
    /// Why the node halted.
    pub(crate) halted: Option<String>,
}

impl Shared {
    pub(crate) fn new() -> Shared {
        Shared {
            routes: Mutex::default(),
            changed: watch::Sender::new(0),
            draining: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            apply_errors: AtomicU64::new(0),
        }
    }

    pub(crate) fn routes(&self) -> MutexGuard<'_, Routes> {
        // The map is whole after any panic: each change is one insertion.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the routes and wakes whoever waits for that.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Routes)) {
        change(&mut self.routes());
        self.changed.send_modify(|n| *n += 1);
    }

    /// To be taken before looking at the routes, so that no change is missed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
