//! Snapshots on their way between nodes. Whoever needs one asks another node for the first block of one
//! that will do, and then for one block after the other, a few ahead of those that came; what was
//! received before a break, or a restart of either side, is not asked for again. Two workers do the reading and writing: the **donor** seals
//! and reads, the **receiver** keeps what comes and makes a state of it. The driver passes messages on,
//! and keeps the deadlines. Nothing here waits for anything but a disk.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use highwater_core::{GroupId, Incarnation, Input, Lsn, NodeId};
use highwater_store::state::{Incoming, Sealed, SnapshotError, States};
use highwater_wire::peer::{PeerMessage, Received, SnapshotAsk, SnapshotId};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::{env::Transport, shared::Shared, workers::Completions};

/// Questions that wait for the donor; more are dropped, and asked again.
const ASKS_MAX: usize = 64;
/// What waits for the receiver; a block that finds it full is asked for again.
const BLOCKS_MAX: usize = 16;
/// Of a snapshot so much is asked for ahead, in bytes, if the next blocks are as long as the last one.
const AHEAD_BYTES: usize = 2 << 20;
/// Snapshots that the donor keeps open.
const SEALED_MAX: usize = 16;

/// What the donor is to do.
pub(crate) enum DonorJob {
    /// A node asks for a part of a snapshot.
    Give { to: NodeId, group: GroupId, ask: SnapshotAsk },
    /// What nobody has asked for since the last time goes.
    Sweep,
}

/// What the receiver is to do.
pub(crate) enum ReceiverJob {
    /// A [`highwater_core::Effect::Bootstrap`].
    Fetch { group: GroupId, from: NodeId, above: Lsn },
    /// A block came from the node that was asked.
    Block { group: GroupId, id: SnapshotId, number: u32, blocks: u32, bytes: u64, content: Bytes },
    /// An answer is overdue.
    AskAgain { group: GroupId },
    /// It was given up.
    Forget { group: GroupId },
}

/// Who gives snapshots, and how fast.
pub(crate) struct Giver {
    /// Of what is made here.
    pub(crate) maker: Incarnation,
    /// That were there at the start, and may have left snapshots.
    pub(crate) groups: BTreeSet<GroupId>,
    /// At most, over all of them; 0: as fast as they are asked for.
    pub(crate) bytes_per_s: u64,
}

/// The way to both workers.
pub(crate) struct Transfers {
    pub(crate) donor: Sender<DonorJob>,
    pub(crate) receiver: Sender<ReceiverJob>,
}

/// Starts both workers; they end with their queues.
pub(crate) fn start(
    states: &Arc<States>,
    transport: &Arc<dyn Transport>,
    shared: &Arc<Shared>,
    done: Completions,
    giver: Giver,
) -> Transfers {
    let (donor, questions) = mpsc::channel(ASKS_MAX);
    let (receiver, jobs) = mpsc::channel(BLOCKS_MAX);
    let mut donates = Donor {
        states: states.clone(),
        transport: transport.clone(),
        shared: shared.clone(),
        sealed: BTreeMap::new(),
        unasked: giver.groups.clone(),
        asked: BTreeSet::new(),
        giver,
    };
    let mut receives = Receives {
        states: states.clone(),
        transport: transport.clone(),
        shared: shared.clone(),
        done,
        fetches: BTreeMap::new(),
    };
    spawn(questions, move |job| donates.run(job));
    spawn(jobs, move |job| {
        receives.run(job);
        Duration::ZERO
    });
    Transfers { donor, receiver }
}

/// Whoever runs a job says how long to rest after it. In production each worker has a thread of its
/// own: files block.
#[cfg(not(madsim))]
fn spawn<J: Send + 'static>(
    mut jobs: Receiver<J>,
    mut run: impl FnMut(J) -> Duration + Send + 'static,
) {
    std::thread::spawn(move || {
        while let Some(job) = jobs.blocking_recv() {
            std::thread::sleep(run(job));
        }
    });
}

/// In the simulator they are tasks, and time is modelled around what they do.
#[cfg(madsim)]
fn spawn<J: Send + 'static>(
    mut jobs: Receiver<J>,
    mut run: impl FnMut(J) -> Duration + Send + 'static,
) {
    tokio::spawn(async move {
        while let Some(job) = jobs.recv().await {
            tokio::time::sleep(Duration::from_micros(500)).await;
            tokio::time::sleep(run(job)).await;
        }
    });
}

/// Gives snapshots to others.
struct Donor {
    states: Arc<States>,
    transport: Arc<dyn Transport>,
    shared: Arc<Shared>,
    giver: Giver,
    sealed: BTreeMap<GroupId, Sealed>,
    /// Groups that may have a snapshot, and have not been asked for since the last sweep.
    unasked: BTreeSet<GroupId>,
    asked: BTreeSet<GroupId>,
}

impl Donor {
    /// How long to rest then, so that the pace is kept.
    fn run(&mut self, job: DonorJob) -> Duration {
        match job {
            DonorJob::Give { to, group, ask } => self.give(to, group, ask),
            DonorJob::Sweep => {
                self.sweep();
                Duration::ZERO
            }
        }
    }

    /// Removes what nobody has asked for in a while, and what a start before this one has left.
    fn sweep(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        for group in std::mem::replace(&mut self.unasked, asked) {
            self.sealed.remove(&group);
            if let Err(error) = self.states.unseal(group) {
                tracing::warn!(%group, %error, "a snapshot that nobody needs can't be removed");
            }
        }
    }

    fn give(&mut self, to: NodeId, group: GroupId, ask: SnapshotAsk) -> Duration {
        self.unasked.remove(&group);
        self.asked.insert(group);
        let message = self.block(group, ask).unwrap_or_else(|error| {
            self.sealed.remove(&group);
            let reason = error.to_string();
            tracing::warn!(%group, %to, reason, "no snapshot can be given");
            PeerMessage::SnapshotNone { group, reason }
        });
        let bytes = match &message {
            PeerMessage::SnapshotBlock { content, .. } => content.len() as u64,
            _ => 0,
        };
        self.transport.send(vec![(to, message)]);
        self.shared.snapshot_given.fetch_add(bytes, Relaxed);
        let nanos = (bytes * 1_000_000_000).checked_div(self.giver.bytes_per_s);
        Duration::from_nanos(nanos.unwrap_or_default())
    }

    fn block(&mut self, group: GroupId, ask: SnapshotAsk) -> Result<PeerMessage, SnapshotError> {
        let (id, number, above) = match ask {
            SnapshotAsk::Above(above) => (None, 0, above),
            SnapshotAsk::Block { id, number, above } => (Some(id), number, above),
        };
        let held = self.sealed.get(&group).filter(|sealed| self.states.vouches_for(sealed));
        let held = held.map(Sealed::id);
        let will_do = held.is_some_and(|held| match id {
            Some(id) => held == id,
            None => held.at.lsn >= above,
        });
        if !will_do {
            let sealed = self.states.seal(group, above, self.giver.maker)?;
            if self.sealed.len() >= SEALED_MAX {
                self.sealed.pop_first();
            }
            self.sealed.insert(group, sealed);
        }
        let Some(sealed) = self.sealed.get(&group) else { return Err(SnapshotError::Other) };
        // Of another one than was begun, the first block; of one that is there in whole, any.
        let same = id.is_none_or(|id| id == sealed.id());
        let number = if same { number.min(sealed.blocks() - 1) } else { 0 };
        Ok(PeerMessage::SnapshotBlock {
            group,
            id: sealed.id(),
            number,
            blocks: sealed.blocks(),
            bytes: sealed.bytes(),
            content: sealed.block(number)?,
        })
    }
}

/// A snapshot that is being received.
struct Fetch {
    from: NodeId,
    above: Lsn,
    incoming: Option<Incoming>,
    /// The next block to ask for.
    ask_next: u32,
    /// One came that is not the next: what was asked for since is lost.
    gap: bool,
}

impl Fetch {
    /// For all blocks before this one that were not asked for yet; for the first one where nothing has
    /// come.
    fn questions(&mut self, group: GroupId, end: u32) -> Vec<(NodeId, PeerMessage)> {
        let (from, above) = (self.from, self.above);
        let id = self.incoming.as_ref().map(Incoming::id);
        let ask = |number| match id {
            None => SnapshotAsk::Above(above),
            Some(id) => SnapshotAsk::Block { id, number, above },
        };
        let numbers = self.ask_next..end;
        self.ask_next = end.max(self.ask_next);
        numbers.map(|n| (from, PeerMessage::SnapshotAsk { group, ask: ask(n) })).collect()
    }
}

/// Receives snapshots.
struct Receives {
    states: Arc<States>,
    transport: Arc<dyn Transport>,
    shared: Arc<Shared>,
    done: Completions,
    fetches: BTreeMap<GroupId, Fetch>,
}

impl Receives {
    fn run(&mut self, job: ReceiverJob) {
        let (group, done) = match job {
            ReceiverJob::Fetch { group, from, above } => (group, self.fetch(group, from, above)),
            ReceiverJob::Block { group, id, number, blocks, bytes, content } => {
                (group, self.take(group, id, (number, blocks, bytes), &content))
            }
            ReceiverJob::AskAgain { group } => {
                self.ask(group);
                (group, Ok(()))
            }
            ReceiverJob::Forget { group } => {
                self.forget(group);
                (group, Ok(()))
            }
        };
        if let Err(error) = done {
            self.forget(group);
            let _ = self.done.send(Input::SnapshotFailed { group, reason: error.to_string() });
        }
    }

    fn forget(&mut self, group: GroupId) {
        self.fetches.remove(&group);
        self.shared.note_transfer(group, None);
    }

    fn fetch(&mut self, group: GroupId, from: NodeId, above: Lsn) -> Result<(), SnapshotError> {
        // It may be here since before a restart, in whole or in part.
        if let Some(at) = self.states.prepared(group)?.filter(|at| at.lsn >= above) {
            let _ = self.done.send(Input::SnapshotReady { group, at });
            return Ok(());
        }
        let incoming = self.states.resume(group)?.filter(|i| i.id().at.lsn >= above);
        if let Some(incoming) = &incoming {
            tracing::info!(%group, block = incoming.next(), "a snapshot is fetched on where it was");
        }
        self.fetches.insert(group, Fetch { from, above, incoming, ask_next: 0, gap: true });
        self.ask(group);
        Ok(())
    }

    /// Asks for what comes next, though it was asked for before; what comes after it only where that was
    /// lost as well.
    fn ask(&mut self, group: GroupId) {
        let Some(fetch) = self.fetches.get_mut(&group) else { return };
        let next = fetch.incoming.as_ref().map_or(0, Incoming::next);
        let asked = if std::mem::take(&mut fetch.gap) { next } else { fetch.ask_next };
        fetch.ask_next = next;
        let questions = fetch.questions(group, next + 1);
        fetch.ask_next = asked.max(next + 1);
        self.transport.send(questions);
    }

    fn take(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        (number, blocks, bytes): (u32, u32, u64),
        content: &[u8],
    ) -> Result<(), SnapshotError> {
        // All fetches share one queue.
        let share = (BLOCKS_MAX / 2 / self.fetches.len().max(1)).max(1);
        let Some(fetch) = self.fetches.get_mut(&group) else { return Ok(()) };
        self.shared.snapshot_received.fetch_add(content.len() as u64, Relaxed);
        match &mut fetch.incoming {
            Some(incoming) if incoming.id() == id => {
                match number.cmp(&incoming.next()) {
                    Ordering::Equal => incoming.take(content)?,
                    // Asked for only to learn that it is there in whole.
                    Ordering::Less if incoming.next() == blocks => {}
                    Ordering::Less => return Ok(()), // It came before.
                    Ordering::Greater => {
                        fetch.gap = true;
                        return Ok(());
                    }
                }
            }
            _ if number == 0 && id.at.lsn >= fetch.above => {
                fetch.incoming = Some(self.states.receive(group, id, content)?);
                (fetch.ask_next, fetch.gap) = (1, false);
            }
            // What was begun is not to be had any more.
            _ => {
                (fetch.incoming, fetch.gap) = (None, true);
                self.ask(group);
                return Ok(());
            }
        }
        let (received, next) = fetch.incoming.as_ref().map_or((0, 0), |i| (i.bytes(), i.next()));
        self.shared.note_transfer(group, Some(Received { bytes: received, of: bytes }));
        if next < blocks {
            let ahead = (AHEAD_BYTES / content.len().max(1)).clamp(1, share) as u32;
            let questions = fetch.questions(group, blocks.min(next.saturating_add(ahead)));
            self.transport.send(questions);
            return Ok(());
        }
        let incoming = fetch.incoming.take();
        self.forget(group);
        if let Some(incoming) = incoming {
            let at = self.states.prepare(incoming)?;
            let _ = self.done.send(Input::SnapshotReady { group, at });
        }
        Ok(())
    }
}
