//! The driver's hands: the oplog's writer, its reader, and the state's two workers (apply, flush).
//! Each takes jobs in order and reports completions; none decides anything.

#[cfg(madsim)]
use std::time::Duration;
use std::{
    any::Any,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use highwater_core::{
    Entry, GroupId, Input, LoadId, Lsn, Outcome, Record, WriteId,
    planted::{self, Planted},
};
use highwater_store::{
    disk::Disk,
    oplog::{LoadError, LogReader, LogWriter},
    state::{Checkpoint, StateError, States},
};
use tokio::sync::{
    mpsc::{self, UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel},
    oneshot,
};

#[cfg(madsim)]
use crate::Observer;
use crate::shared::Shared;

/// Completions go to the driver. Unbounded, but each answers an effect, and the core bounds those.
pub(crate) type Completions = UnboundedSender<Input>;

/// Tells the driver when a worker ends, by a panic or not, while the driver goes on: without it,
/// the node would lead and complete nothing. The driver halts, as on a failed disk.
struct Vital {
    worker: &'static str,
    done: Completions,
}

impl Drop for Vital {
    fn drop(&mut self) {
        let reason = format!("{} has ended: this is a bug, unless the disk failed", self.worker);
        let _ = self.done.send(Input::StorageFailed { reason });
    }
}

/// How many queued writes one fsync covers at most.
const GROUP_COMMIT_MAX: usize = 1024;
/// A fsync takes no further write once it has this many bytes: the first ones would wait too long.
const GROUP_COMMIT_BYTES: usize = 4 << 20;

/// Makes records durable, in order, as many as are queued in one fsync.
pub(crate) async fn write_log<D: Disk>(
    mut writer: LogWriter<D>,
    mut jobs: UnboundedReceiver<(WriteId, Vec<Record>)>,
    done: Completions,
    shared: Arc<Shared>,
    states: Arc<States>,
) {
    let _vital = Vital { worker: "the oplog's writer", done: done.clone() };
    let mut queue = Vec::new();
    let mut room = 0;
    loop {
        let received = tokio::select! {
            biased;
            n = jobs.recv_many(&mut queue, GROUP_COMMIT_MAX) => Some(n),
            () = writer.room_grew() => None,
            () = states.room_changed() => None,
        };
        if received == Some(0) {
            return;
        }
        let mut queued = queue.drain(..).peekable();
        while let Some((mut write, mut records)) = queued.next() {
            let mut bytes: usize = records.iter().map(weight).sum();
            while let Some((next, more)) = queued.next_if(|_| bytes < GROUP_COMMIT_BYTES) {
                bytes += more.iter().map(weight).sum::<usize>();
                records.extend(more);
                write = next;
            }
            if let Err(error) = writer.write(records).await {
                // What a failed fsync left behind is unknown: nothing may be retried on it.
                let _ = done.send(Input::StorageFailed { reason: error.to_string() });
                return;
            }
            shared.syncs.store(writer.syncs(), Ordering::Relaxed);
            report_room(&writer, &states, &mut room, &done);
            let _ = done.send(Input::Persisted { write });
        }
        report_room(&writer, &states, &mut room, &done);
        if jobs.is_empty()
            && let Err(error) = writer.close_marker().await
        {
            let _ = done.send(Input::StorageFailed { reason: error.to_string() });
            return;
        }
    }
}

fn weight(record: &Record) -> usize {
    match record {
        Record::Append { entry, .. } => entry.weight(),
        Record::Formation(_)
        | Record::HardState { .. }
        | Record::Checkpointed { .. }
        | Record::Base { .. }
        | Record::Boot { .. }
        | Record::Acked { .. }
        | Record::Sound { .. } => Entry::OVERHEAD,
    }
}

fn report_room<D: Disk>(
    writer: &LogWriter<D>,
    states: &States,
    known: &mut u64,
    done: &Completions,
) {
    // What the state has no room for must not be taken on: nothing could be applied.
    let room = if states.lacks_room() { 0 } else { writer.room() };
    if room != *known {
        *known = room;
        let _ = done.send(Input::Room { bytes: room });
    }
}

/// For the oplog's reader.
pub(crate) enum ReadJob {
    /// A [`highwater_core::Effect::Load`].
    Load { load: LoadId, group: GroupId, from: Lsn, to: Lsn, max_bytes: usize },
    /// A [`highwater_core::Effect::Mend`].
    Mend { group: GroupId, entries: Vec<Entry> },
}

/// Reads entries back.
pub(crate) async fn read_log<D: Disk>(
    reader: LogReader<D>,
    mut jobs: UnboundedReceiver<ReadJob>,
    done: Completions,
) {
    let _vital = Vital { worker: "the oplog's reader", done: done.clone() };
    while let Some(job) = jobs.recv().await {
        let (load, read) = match job {
            ReadJob::Load { load, group, from, to, max_bytes } => {
                (load, reader.load(group, from, to, max_bytes).await)
            }
            ReadJob::Mend { group, entries } => {
                if let Err(error) = reader.mend(group, entries).await {
                    tracing::warn!(%error, %group, "the oplog can't be mended yet");
                }
                continue;
            }
        };
        let input = match read {
            Ok(entries) => Input::Loaded { load, entries },
            Err(error) => {
                tell_damage(&error, &done);
                Input::LoadFailed { load, reason: error.to_string() }
            }
        };
        if done.send(input).is_err() {
            return;
        }
    }
}

/// All of it: the oplog mends a segment once nothing in it is missing.
pub(crate) fn tell_damage(error: &LoadError, done: &Completions) {
    if let LoadError::Damaged { missing, .. } = error {
        for (group, from, to) in missing.iter().copied() {
            let _ = done.send(Input::Damaged { group, from, to });
        }
    }
}

/// What a stream wants of the history: entries from `from` on, at least one.
pub(crate) struct HistoryJob {
    pub(crate) group: GroupId,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    pub(crate) max_bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<Vec<Entry>, LoadError>>,
}

/// Reads history for streams, beside what the core reads: however much they read, it does not wait
/// for them.
pub(crate) async fn read_history<D: Disk>(
    reader: LogReader<D>,
    mut jobs: mpsc::Receiver<HistoryJob>,
    done: Completions,
) {
    while let Some(HistoryJob { group, from, to, max_bytes, reply }) = jobs.recv().await {
        let read = reader.load(group, from, to, max_bytes).await;
        if let Err(error) = &read {
            tell_damage(error, &done);
        }
        drop(reply.send(read));
    }
}

/// What the state is to do.
pub(crate) enum StateJob {
    /// A [`highwater_core::Effect::ReadControl`].
    ReadControl {
        group: GroupId,
        prefixes: Vec<Bytes>,
        lsn: Lsn,
    },
    Apply {
        group: GroupId,
        entries: Vec<Entry>,
    },
    Checkpoint {
        group: GroupId,
        checkpoint: Checkpoint,
    },
    /// A [`highwater_core::Effect::Install`].
    Install {
        group: GroupId,
        prefixes: Vec<Bytes>,
    },
    /// Somebody found the state damaged.
    Lost {
        group: GroupId,
        reason: String,
    },
    /// It begins anew: see [`highwater_core::Effect::Reopen`].
    Reopen {
        group: GroupId,
        upto: Lsn,
    },
}

/// What the flusher is to do.
enum FlushJob {
    /// What was frozen at this LSN.
    Flush(GroupId, Lsn),
    /// Drop the state, which is lost.
    Reset(GroupId, String),
}

/// Why something could not be done with a group's state.
struct Failure {
    reason: String,
    /// It is damaged or gone: it is applied again.
    loss: bool,
}

/// The state's workers. Damage ends in one place, whoever finds it: the applier takes no job for the
/// group any more, the flusher, after all flushes before, drops the state and tells the core, and the
/// core's [`StateJob::Reopen`] makes jobs count again. So no completion is told of what is gone.
pub(crate) struct StateWorker {
    pub(crate) states: Arc<States>,
    pub(crate) done: Completions,
    pub(crate) shared: Arc<Shared>,
    #[cfg(madsim)]
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// The applier's part.
struct Applier {
    worker: Arc<StateWorker>,
    flushes: UnboundedSender<FlushJob>,
    /// Groups whose state is lost, until the core reopens them.
    lost: BTreeSet<GroupId>,
}

impl Applier {
    fn run(&mut self, job: StateJob) {
        match job {
            StateJob::ReadControl { group, .. }
            | StateJob::Apply { group, .. }
            | StateJob::Checkpoint { group, .. }
            | StateJob::Install { group, .. }
                if self.lost.contains(&group) => {}
            StateJob::ReadControl { group, prefixes, lsn } => {
                self.read_control(group, &prefixes, lsn);
            }
            StateJob::Apply { group, entries } => self.apply(group, &entries),
            StateJob::Checkpoint { group, checkpoint } => self.checkpoint(group, checkpoint),
            StateJob::Install { group, prefixes } => self.install(group, &prefixes),
            StateJob::Lost { group, reason } => self.lose(group, reason),
            StateJob::Reopen { group, upto } => {
                self.lost.remove(&group);
                self.worker.states.reopen(group, upto);
            }
        }
    }

    fn read_control(&mut self, group: GroupId, prefixes: &[Bytes], expected: Lsn) {
        match guarded(|| self.worker.states.control(group, prefixes)) {
            Ok((at, _)) if at.lsn < expected => {
                let reason = format!("it stands at {}, and was checkpointed at {expected}", at.lsn);
                self.lose(group, reason);
            }
            Ok((at, rows)) => {
                let _ = self.worker.done.send(Input::Control { group, at, rows });
            }
            Err(failure) => self.fail(group, failure),
        }
    }

    /// A snapshot takes the place of the state.
    fn install(&mut self, group: GroupId, prefixes: &[Bytes]) {
        let states = &self.worker.states;
        match guarded(|| states.install(group).and_then(|()| states.control(group, prefixes))) {
            Ok((at, rows)) => {
                let _ = self.worker.done.send(Input::Control { group, at, rows });
            }
            Err(failure) => self.fail(group, failure),
        }
    }

    fn apply(&mut self, group: GroupId, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        let upto = last.lsn;
        match guarded(|| self.worker.states.apply(group, entries)) {
            Ok(outcomes) => {
                #[cfg(madsim)]
                if let Some(observer) = &self.worker.observer {
                    observer.applied(group, entries, &outcomes);
                }
                self.worker.shared.feeds.applied(group, entries, &outcomes);
                let _ = self.worker.done.send(Input::Applied { group, upto, outcomes });
            }
            Err(_) if planted::is(Planted::ApplyFailureSkipped) => {
                let with_one = entries.iter().filter(|entry| entry.kind.has_outcome());
                let outcomes = with_one.map(|_| Outcome::default()).collect();
                let _ = self.worker.done.send(Input::Applied { group, upto, outcomes });
            }
            Err(failure) => self.fail(group, failure),
        }
    }

    /// Freezes what the flusher is to make durable.
    fn checkpoint(&mut self, group: GroupId, checkpoint: Checkpoint) {
        let (states, lsn) = (&self.worker.states, checkpoint.at.lsn);
        let frozen = guarded(|| {
            // After a restart the state may be ahead of what the core has replayed: durable already.
            if group != GroupId::SYSTEM && states.applied(group)? > lsn {
                return Ok(false);
            }
            states.freeze(group, checkpoint).map(|()| true)
        });
        match frozen {
            Ok(true) => drop(self.flushes.send(FlushJob::Flush(group, lsn))),
            Ok(false) => drop(self.worker.done.send(Input::Checkpointed { group, lsn })),
            Err(failure) => self.fail(group, failure),
        }
    }

    fn fail(&mut self, group: GroupId, failure: Failure) {
        if failure.loss {
            self.lose(group, failure.reason);
        } else {
            self.worker.failed(group, failure.reason);
        }
    }

    fn lose(&mut self, group: GroupId, reason: String) {
        if self.lost.insert(group) {
            let _ = self.flushes.send(FlushJob::Reset(group, reason));
        }
    }
}

impl StateWorker {
    fn run_flush(&self, job: FlushJob, jobs: &WeakUnboundedSender<StateJob>) {
        match job {
            FlushJob::Flush(group, lsn) => match guarded(|| self.states.flush(group)) {
                Err(_) if planted::is(Planted::FlushFailureIgnored) => {
                    drop(self.done.send(Input::Checkpointed { group, lsn }));
                }
                Ok(lsn) => drop(self.done.send(Input::Checkpointed { group, lsn })),
                Err(Failure { reason, loss: true }) => {
                    if let Some(jobs) = jobs.upgrade() {
                        let _ = jobs.send(StateJob::Lost { group, reason });
                    }
                }
                Err(failure) => self.failed(group, failure.reason),
            },
            FlushJob::Reset(group, reason) => match guarded(|| self.states.reset(group)) {
                Ok(()) => {
                    self.shared.apply_errors.fetch_add(1, Ordering::Relaxed);
                    let _ = self.done.send(Input::StateLost { group, reason });
                }
                Err(failure) => self.failed(group, failure.reason),
            },
        }
    }

    fn failed(&self, group: GroupId, reason: String) {
        self.shared.apply_errors.fetch_add(1, Ordering::Relaxed);
        let _ = self.done.send(Input::StateFailed { group, reason });
    }

    fn vital(&self, worker: &'static str) -> Vital {
        Vital { worker, done: self.done.clone() }
    }

    /// Starts both workers; they end with their queue.
    pub(crate) fn start(self) -> UnboundedSender<StateJob> {
        let (jobs, apply_jobs) = unbounded_channel();
        let (flushes, flush_jobs) = unbounded_channel();
        let worker = Arc::new(self);
        spawn_flusher(worker.clone(), flush_jobs, jobs.downgrade());
        spawn_applier(Applier { worker, flushes, lost: BTreeSet::new() }, apply_jobs);
        jobs
    }
}

/// Does something with one group's state; why it failed, where it did. A panic is such a failure:
/// it leaves that group's memory poisoned, and the others' untouched.
fn guarded<T>(act: impl FnOnce() -> Result<T, StateError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => {
            done.map_err(|error| Failure { reason: error.to_string(), loss: error.is_loss() })
        }
        Err(panic) => {
            let reason = format!("a bug, please report it: {}", said(panic.as_ref()));
            Err(Failure { reason, loss: false })
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

/// In production each worker has a thread of its own: redb blocks.
#[cfg(not(madsim))]
fn spawn_applier(mut applier: Applier, mut jobs: UnboundedReceiver<StateJob>) {
    std::thread::spawn(move || {
        let _vital = applier.worker.vital("the applier of operations");
        while let Some(job) = jobs.blocking_recv() {
            applier.run(job);
        }
    });
}

#[cfg(not(madsim))]
fn spawn_flusher(
    worker: Arc<StateWorker>,
    mut flushes: UnboundedReceiver<FlushJob>,
    jobs: WeakUnboundedSender<StateJob>,
) {
    std::thread::spawn(move || {
        let _vital = worker.vital("the flusher of states");
        while let Some(job) = flushes.blocking_recv() {
            worker.run_flush(job, &jobs);
        }
    });
}

/// In the simulator they are tasks: redb runs inline, and a flush's time is modelled around it.
#[cfg(madsim)]
fn spawn_applier(mut applier: Applier, mut jobs: UnboundedReceiver<StateJob>) {
    tokio::spawn(async move {
        let _vital = applier.worker.vital("the applier of operations");
        while let Some(job) = jobs.recv().await {
            tokio::time::sleep(Duration::from_micros(20)).await;
            applier.run(job);
        }
    });
}

#[cfg(madsim)]
fn spawn_flusher(
    worker: Arc<StateWorker>,
    mut flushes: UnboundedReceiver<FlushJob>,
    jobs: WeakUnboundedSender<StateJob>,
) {
    tokio::spawn(async move {
        let _vital = worker.vital("the flusher of states");
        while let Some(job) = flushes.recv().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
            worker.run_flush(job, &jobs);
        }
    });
}

#[cfg(all(test, not(madsim)))]
pub(crate) mod tests;
