//! The scrub: reads every database's state again, a little at a time, so that damage is found though
//! nobody asks for what it struck. What it finds is lost, as if a reader had found it.

#[cfg(not(madsim))]
use std::sync::mpsc;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use highwater_core::GroupId;
use highwater_store::state::{Scrubbed, StateError, States};
use tokio::sync::mpsc::WeakUnboundedSender;

use crate::{env::Clock, shared::Shared, workers::StateJob};

/// How much one step reads, about: what a flush may have to wait for.
const STEP_BYTES: usize = 256 << 10;
/// What a step costs at least, since it may open a file.
const STEP_COST: u64 = 16 << 10;

/// How fast states are scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPace {
    /// Over all databases; 0 for no scrub at all.
    pub bytes_per_s: u64,
    /// From the end of one round through all databases to the begin of the next, in milliseconds.
    pub pause_ms: u64,
}

impl Default for ScrubPace {
    fn default() -> ScrubPace {
        ScrubPace { bytes_per_s: 4 << 20, pause_ms: 60_000 }
    }
}

/// Goes round, database by database.
pub(crate) struct Scrubber<C> {
    pub(crate) pace: ScrubPace,
    pub(crate) clock: C,
    pub(crate) states: Arc<States>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) jobs: WeakUnboundedSender<StateJob>,
    /// The group that it is at; `None` between two rounds.
    pub(crate) at: Option<GroupId>,
}

impl<C: Clock> Scrubber<C> {
    /// Takes the next step; how long to wait before the one after it.
    fn step(&mut self) -> Duration {
        let Some(group) = self.at else {
            self.at = Some(GroupId::SYSTEM);
            return Duration::from_millis(self.pace.pause_ms);
        };
        let mut bytes = 0;
        match self.states.scrub(group, STEP_BYTES) {
            Ok(Some(step)) => {
                bytes = step.bytes as u64;
                self.shared.scrub.read(group, step, self.clock.now().wall_ms);
                if step.done {
                    self.go_on();
                }
            }
            Ok(None) => self.go_on(),
            Err(error) => {
                self.failed(group, &error);
                self.go_on();
            }
        }
        let cost = bytes.max(STEP_COST);
        Duration::from_micros(cost.saturating_mul(1_000_000) / self.pace.bytes_per_s.max(1))
    }

    /// To the next group of the catalog applied here.
    fn go_on(&mut self) {
        let routes = self.shared.routes();
        self.at = routes.databases.values().copied().filter(|group| Some(*group) > self.at).min();
    }

    fn failed(&self, group: GroupId, error: &StateError) {
        // Whoever took it out of service has said so.
        if matches!(error, StateError::OutOfService { .. }) {
            return;
        }
        tracing::error!(%group, %error, "the scrub found a state that is not what was written");
        self.shared.scrub.failed();
        if let (true, Some(jobs)) = (error.is_loss(), self.jobs.upgrade()) {
            let reason = format!("found by the scrub: {error}");
            let _ = jobs.send(StateJob::Lost { group, reason });
        }
    }
}

/// Ends the scrub when it is dropped.
pub(crate) struct Scrubbing {
    #[cfg(not(madsim))]
    _stop: mpsc::Sender<()>,
    #[cfg(madsim)]
    task: tokio::task::JoinHandle<()>,
}

impl<C: Clock> Scrubber<C> {
    /// Starts it, unless its pace is to stand still. It has a thread of its own, since redb blocks.
    #[cfg(not(madsim))]
    pub(crate) fn start(mut self) -> Option<Scrubbing> {
        let (_stop, stopped) = mpsc::channel();
        let goes_on =
            move |pause| stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout);
        (self.pace.bytes_per_s > 0).then(|| {
            std::thread::spawn(move || while goes_on(self.step()) {});
            Scrubbing { _stop }
        })
    }

    /// In the simulator it is a task.
    #[cfg(madsim)]
    pub(crate) fn start(mut self) -> Option<Scrubbing> {
        let run = async move {
            loop {
                tokio::time::sleep(self.step()).await;
            }
        };
        Some(Scrubbing { task: tokio::spawn(run) })
    }
}

#[cfg(madsim)]
impl Drop for Scrubbing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of it, for metrics.
#[derive(Default)]
pub(crate) struct Progress(Mutex<Counts>);

/// So much was read; so many passes ended, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) bytes: u64,
    pub(crate) failures: u64,
    /// When each group's last pass was done, in milliseconds of the wall clock.
    pub(crate) done_ms: BTreeMap<GroupId, u64>,
}

impl Progress {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers are whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, group: GroupId, step: Scrubbed, now_ms: u64) {
        let mut counts = self.counts();
        counts.bytes += step.bytes as u64;
        if step.done {
            counts.done_ms.insert(group, now_ms);
        }
    }

    fn failed(&self) {
        self.counts().failures += 1;
    }

    pub(crate) fn get(&self) -> Counts {
        self.counts().clone()
    }
}
