//! The driver's hands: the oplog's writer, its reader, and the state's two workers (apply, flush).
//! Each takes jobs in order and reports completions; none decides anything.

#[cfg(madsim)]
use std::time::Duration;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Input, LoadId, Lsn, Record, WriteId};
use highwater_store::{
    disk::Disk,
    oplog::{LogReader, LogWriter},
    state::{StateError, States},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

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
) {
    let _vital = Vital { worker: "the oplog's writer", done: done.clone() };
    let mut queue = Vec::new();
    let mut room = 0;
    loop {
        let received = tokio::select! {
            biased;
            n = jobs.recv_many(&mut queue, GROUP_COMMIT_MAX) => Some(n),
            () = writer.room_grew() => None,
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
            report_room(&writer, &mut room, &done);
            let _ = done.send(Input::Persisted { write });
        }
        report_room(&writer, &mut room, &done);
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
        Record::Formation(_) | Record::HardState { .. } | Record::Checkpointed { .. } => {
            Entry::OVERHEAD
        }
    }
}

fn report_room<D: Disk>(writer: &LogWriter<D>, known: &mut u64, done: &Completions) {
    let room = writer.room();
    if room != *known {
        *known = room;
        let _ = done.send(Input::Room { bytes: room });
    }
}

/// A [`highwater_core::Effect::Load`].
pub(crate) struct LoadJob {
    pub(crate) load: LoadId,
    pub(crate) group: GroupId,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    pub(crate) max_bytes: usize,
}

/// Reads entries back.
pub(crate) async fn read_log<D: Disk>(
    reader: LogReader<D>,
    mut jobs: UnboundedReceiver<LoadJob>,
    done: Completions,
) {
    let _vital = Vital { worker: "the oplog's reader", done: done.clone() };
    while let Some(LoadJob { load, group, from, to, max_bytes }) = jobs.recv().await {
        let input = match reader.load(group, from, to, max_bytes).await {
            Ok(entries) => Input::Loaded { load, entries },
            Err(error) => Input::LoadFailed { load, reason: error.to_string() },
        };
        if done.send(input).is_err() {
            return;
        }
    }
}

/// What the state is to do.
pub(crate) enum StateJob {
    Apply { group: GroupId, entries: Vec<Entry> },
    Checkpoint { group: GroupId, lsn: Lsn, control: Vec<(Bytes, Bytes)> },
}

/// The state's workers.
pub(crate) struct StateWorker {
    pub(crate) states: Arc<States>,
    pub(crate) done: Completions,
    pub(crate) shared: Arc<Shared>,
    #[cfg(madsim)]
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl StateWorker {
    fn apply(&self, group: GroupId, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        let upto = last.lsn;
        let input = match guarded(|| self.states.apply(group, entries)) {
            Ok(outcomes) => {
                #[cfg(madsim)]
                if let Some(observer) = &self.observer {
                    observer.applied(group, entries, &outcomes);
                }
                Input::Applied { group, upto, outcomes }
            }
            Err(reason) => self.failed(group, reason),
        };
        let _ = self.done.send(input);
    }

    /// Freezes what a checkpoint is to hold; whether there is something to flush.
    fn freeze(&self, group: GroupId, lsn: Lsn, control: Vec<(Bytes, Bytes)>) -> bool {
        let frozen = guarded(|| {
            // After a restart the state may be ahead of what the core has replayed: durable already.
            if group != GroupId::SYSTEM && self.states.applied(group)? > lsn {
                return Ok(false);
            }
            self.states.freeze(group, lsn, control).map(|()| true)
        });
        let input = match frozen {
            Ok(true) => return true,
            Ok(false) => Input::Checkpointed { group, lsn },
            Err(reason) => self.failed(group, reason),
        };
        let _ = self.done.send(input);
        false
    }

    fn flush(&self, group: GroupId) {
        let input = match guarded(|| self.states.flush(group)) {
            Ok(lsn) => Input::Checkpointed { group, lsn },
            Err(reason) => self.failed(group, reason),
        };
        let _ = self.done.send(input);
    }

    fn failed(&self, group: GroupId, reason: String) -> Input {
        self.shared.apply_errors.fetch_add(1, Ordering::Relaxed);
        Input::StateFailed { group, reason }
    }

    fn vital(&self, worker: &'static str) -> Vital {
        Vital { worker, done: self.done.clone() }
    }

    /// Starts both workers; they end with their queue.
    pub(crate) fn start(self) -> UnboundedSender<StateJob> {
        let (jobs, apply_jobs) = unbounded_channel();
        let (flushes, flush_jobs) = unbounded_channel();
        let worker = Arc::new(self);
        spawn_flusher(worker.clone(), flush_jobs);
        spawn_applier(worker, apply_jobs, flushes);
        jobs
    }

    fn run(&self, job: StateJob, flushes: &UnboundedSender<GroupId>) {
        match job {
            StateJob::Apply { group, entries } => self.apply(group, &entries),
            StateJob::Checkpoint { group, lsn, control } => {
                if self.freeze(group, lsn, control) {
                    let _ = flushes.send(group);
                }
            }
        }
    }
}

/// Does something with one group's state; why it failed, where it did. A panic is such a failure:
/// it leaves that group's memory poisoned, and the others' untouched.
fn guarded<T>(act: impl FnOnce() -> Result<T, StateError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("a bug, please report it: {}", said(panic.as_ref()))),
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

/// In production each worker has a thread of its own: redb blocks.
#[cfg(not(madsim))]
fn spawn_applier(
    worker: Arc<StateWorker>,
    mut jobs: UnboundedReceiver<StateJob>,
    flushes: UnboundedSender<GroupId>,
) {
    std::thread::spawn(move || {
        let _vital = worker.vital("the applier of operations");
        while let Some(job) = jobs.blocking_recv() {
            worker.run(job, &flushes);
        }
    });
}

#[cfg(not(madsim))]
fn spawn_flusher(worker: Arc<StateWorker>, mut jobs: UnboundedReceiver<GroupId>) {
    std::thread::spawn(move || {
        let _vital = worker.vital("the flusher of states");
        while let Some(group) = jobs.blocking_recv() {
            worker.flush(group);
        }
    });
}

/// In the simulator they are tasks: redb runs inline, and a flush's time is modelled around it.
#[cfg(madsim)]
fn spawn_applier(
    worker: Arc<StateWorker>,
    mut jobs: UnboundedReceiver<StateJob>,
    flushes: UnboundedSender<GroupId>,
) {
    tokio::spawn(async move {
        let _vital = worker.vital("the applier of operations");
        while let Some(job) = jobs.recv().await {
            tokio::time::sleep(Duration::from_micros(20)).await;
            worker.run(job, &flushes);
        }
    });
}

#[cfg(madsim)]
fn spawn_flusher(worker: Arc<StateWorker>, mut jobs: UnboundedReceiver<GroupId>) {
    tokio::spawn(async move {
        let _vital = worker.vital("the flusher of states");
        while let Some(group) = jobs.recv().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
            worker.flush(group);
        }
    });
}

#[cfg(all(test, not(madsim)))]
mod tests;
