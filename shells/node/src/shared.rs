//! What the driver tells its handles without being asked: routes, the catalog, and whether it runs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use highwater_core::{GroupId, NodeId, Term};
use highwater_wire::peer::Received;
use tokio::sync::{Notify, Semaphore};

use crate::{feed::Feeds, scrub, slots::Consumers, stream::STREAMS_MAX};

/// Read by many handles, written by one driver.
pub(crate) struct Shared {
    routes: Mutex<Routes>,
    /// Counts changes of `routes` and of `draining`; handles wait on it.
    changed: Arc<Pulse>,
    draining: AtomicBool,
    /// What streams follow.
    pub(crate) feeds: Feeds,
    /// Who reads for slots.
    pub(crate) consumers: Consumers,
    /// Streams that may still be opened.
    pub(crate) streams: Arc<Semaphore>,
    /// What the scrub has read.
    pub(crate) scrub: scrub::Progress,
    /// fsyncs of the oplog.
    pub(crate) syncs: AtomicU64,
    /// Writes acknowledged through this node's handles.
    pub(crate) acked: AtomicU64,
    /// Of those and of refused ones: with the outcome of an earlier request.
    pub(crate) replayed: AtomicU64,
    /// Applies that failed.
    pub(crate) apply_errors: AtomicU64,
    /// Bytes of snapshots that came from other nodes, and that went to them.
    pub(crate) snapshot_received: AtomicU64,
    pub(crate) snapshot_given: AtomicU64,
    /// Snapshots that are being received.
    transfers: Mutex<BTreeMap<GroupId, Received>>,
}

/// Counts, and wakes in the order of waiting. tokio's `watch` draws the order in which it wakes
/// from a generator that no seed governs: a simulation that uses it does not replay.
#[derive(Default)]
pub(crate) struct Pulse {
    count: AtomicU64,
    beat: Notify,
}

/// Waits for beats: for changes of the routes and the node's end, or for what a feed gets.
pub(crate) struct Changes {
    pulse: Arc<Pulse>,
    seen: u64,
}

impl Pulse {
    pub(crate) fn beat(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.beat.notify_waiters();
    }
}

impl Changes {
    /// From now on.
    pub(crate) fn of(pulse: Arc<Pulse>) -> Changes {
        let seen = pulse.count.load(Ordering::Acquire);
        Changes { pulse, seen }
    }

    /// Returns at the first change since this was made or returned before.
    pub(crate) async fn changed(&mut self) {
        loop {
            let beat = self.pulse.beat.notified();
            let count = self.pulse.count.load(Ordering::Acquire);
            if count != self.seen {
                self.seen = count;
                return;
            }
            beat.await;
        }
    }
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
            changed: Arc::default(),
            draining: AtomicBool::new(false),
            feeds: Feeds::default(),
            consumers: Consumers::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            scrub: scrub::Progress::default(),
            syncs: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
            apply_errors: AtomicU64::new(0),
            snapshot_received: AtomicU64::new(0),
            snapshot_given: AtomicU64::new(0),
            transfers: Mutex::default(),
        }
    }

    pub(crate) fn routes(&self) -> MutexGuard<'_, Routes> {
        // The map is whole after any panic: each change is one insertion.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the routes and wakes whoever waits for that.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Routes)) {
        change(&mut self.routes());
        self.changed.beat();
    }

    /// How much of a snapshot is here; `None`: it is not being received any more.
    pub(crate) fn note_transfer(&self, group: GroupId, received: Option<Received>) {
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Some(received) => drop(transfers.insert(group, received)),
            None => drop(transfers.remove(&group)),
        }
    }

    /// How much is here of the snapshots that are being received.
    pub(crate) fn transfers(&self) -> BTreeMap<GroupId, Received> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be taken before looking at the routes, so that no change is missed.
    pub(crate) fn watch(&self) -> Changes {
        Changes::of(self.changed.clone())
    }

    /// Whoever waits for routes learns of it as well: no leader is coming for them.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.changed.beat();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
