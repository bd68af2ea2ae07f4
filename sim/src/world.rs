//! What every part of one run shares: its trace, its counters, its first finding, the order of
//! events.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use highwater_core::{GroupId, Lsn, NodeId, Term};
use tokio::sync::Notify;

use crate::{
    oracles::Broken,
    page::story::Story,
    stats::{Seen, Stats},
    trace::{Event, Keep, Kind, Trace},
};

/// What a finding is about, as far as its oracle knows: where to look for its cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    /// On whose replicas it shows.
    pub(crate) nodes: Vec<NodeId>,
    /// Of which group.
    pub(crate) group: Option<GroupId>,
    /// In which term.
    pub(crate) term: Option<Term>,
    /// From which LSN to which, both included.
    pub(crate) lsns: Option<(Lsn, Lsn)>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Which oracle found it.
    pub(crate) oracle: &'static str,
    /// What it saw.
    pub(crate) what: String,
    /// What it is about.
    pub(crate) subject: Subject,
    /// When, in simulated nanoseconds.
    pub(crate) at_ns: u64,
}

/// The state that all parts of one run share.
#[derive(Debug)]
pub(crate) struct World {
    /// The run's seed.
    pub(crate) seed: u64,
    /// Nanoseconds of simulated time since the run began.
    now_ns: fn() -> u64,
    trace: Mutex<Trace>,
    tells: bool,
    stats: Mutex<Stats>,
    finding: Mutex<Option<Finding>>,
    order: AtomicU64,
    over: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(seed: u64, keep: Keep, now_ns: fn() -> u64) -> World {
        World {
            seed,
            now_ns,
            trace: Mutex::new(Trace::new(keep)),
            tells: keep.story,
            stats: Mutex::default(),
            finding: Mutex::default(),
            order: AtomicU64::new(1),
            over: Notify::new(),
        }
    }

    /// Notes an event in the trace.
    pub(crate) fn event(
        &self,
        kind: Kind,
        node: u64,
        a: u64,
        b: u64,
        digest: u64,
        detail: impl FnOnce() -> String,
    ) {
        let at_ns = (self.now_ns)();
        let event = Event { at_ns, kind: kind as u8, node: node as u8, a, b, digest };
        lock(&self.trace).add(event, detail);
    }

    /// Notes a fault, or the end of one.
    pub(crate) fn fault(&self, node: u64, what: impl FnOnce() -> String) {
        let what = what();
        let digest = crate::trace::digest(what.as_bytes());
        self.event(Kind::Fault, node, 0, 0, digest, || what);
    }

    /// Tells the story of the run more than its events do, if somebody is to read it.
    pub(crate) fn tell(&self, f: impl FnOnce(&mut Story)) {
        if self.tells
            && let Some(story) = lock(&self.trace).story()
        {
            story.now((self.now_ns)());
            f(story);
        }
    }

    /// Hands the story over, if one was kept.
    #[cfg(madsim)]
    pub(crate) fn take_story(&self) -> Option<Box<Story>> {
        lock(&self.trace).take_story()
    }

    /// Counts.
    pub(crate) fn saw(&self, seen: Seen) {
        self.saw_times(seen, 1);
    }

    /// Counts several.
    pub(crate) fn saw_times(&self, seen: Seen, n: u64) {
        if n > 0 {
            lock(&self.stats).add(seen, n);
        }
    }

    /// Simulated nanoseconds since the run began.
    pub(crate) fn now_ns(&self) -> u64 {
        (self.now_ns)()
    }

    /// The next number in the order of all events: what is numbered later came later.
    pub(crate) fn tick(&self) -> u64 {
        self.order.fetch_add(1, Ordering::Relaxed)
    }

    /// An oracle fires. The first one counts, and ends the run.
    pub(crate) fn fail(&self, oracle: &'static str, broken: impl Into<Broken>) {
        let mut finding = lock(&self.finding);
        if finding.is_none() {
            let Broken { what, subject } = broken.into();
            self.event(Kind::Fault, 0, 0, 0, 0, || format!("FINDING {oracle}: {what}"));
            self.tell(Story::finds);
            *finding = Some(Finding { oracle, what, subject, at_ns: (self.now_ns)() });
            self.over.notify_waiters();
        }
    }

    /// Fails with what a check has found, if anything.
    pub(crate) fn check(&self, oracle: &'static str, result: Result<(), impl Into<Broken>>) {
        if let Err(broken) = result {
            self.fail(oracle, broken);
        }
    }

    /// Returns once an oracle has fired.
    #[cfg(madsim)]
    pub(crate) async fn failed(&self) {
        let over = self.over.notified();
        if lock(&self.finding).is_none() {
            over.await;
        }
    }

    /// Whether an oracle has fired.
    pub(crate) fn has_failed(&self) -> bool {
        lock(&self.finding).is_some()
    }

    /// What was found, if anything.
    pub(crate) fn finding(&self) -> Option<Finding> {
        lock(&self.finding).clone()
    }

    /// What was counted.
    pub(crate) fn stats(&self) -> Stats {
        lock(&self.stats).clone()
    }

    /// The trace so far.
    pub(crate) fn trace<T>(&self, f: impl FnOnce(&Trace) -> T) -> T {
        f(&lock(&self.trace))
    }
}
