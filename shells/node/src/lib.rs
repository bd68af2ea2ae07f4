//! The driver of one node: feeds the core and carries out its effects; forwarding, deadlines and
//! the classification of outcomes. What the machine provides comes in through [`mod@env`].

pub mod api;
mod deadline;
mod driver;
pub mod env;
mod feed;
mod handle;
mod scrub;
mod shared;
mod slots;
mod snapshot;
mod status;
mod stream;
mod transfer;
mod workers;

use std::{collections::BTreeMap, future::Future, sync::Arc};

use bytes::Bytes;
use env::{Clock, Inbound, Transport};
use highwater_core::{
    Config, GroupId, Identity, Lsn, Node, NodeId, RecoverError, Recovered, RecoveredGroup,
};
use highwater_store::{
    disk::Disk,
    oplog::Opened,
    state::{StateError, States},
};
use tokio::sync::mpsc;

pub use driver::Exit;
pub use handle::Handle;
pub use scrub::ScrubPace;
pub use snapshot::{Snapshot, SnapshotPlace};
pub use stream::{Begin, Change, ChangeStream};

/// How the core's answers become a caller's: what is definite, and what is not known. For whoever
/// drives a core in another way.
pub mod outcome {
    pub use crate::{
        driver::forward_reply_of,
        handle::{Next, next_after, receipt_of},
    };
}

/// Who the node is and how it behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The core's bounds and periods.
    pub core: Config,
    /// Who it is.
    pub identity: Identity,
    /// Of the core's randomness.
    pub seed: u64,
    /// Every node's QUIC address, for the cluster view.
    pub addresses: BTreeMap<NodeId, String>,
    /// Where this node's HTTP listens, for the cluster view.
    pub http: String,
    /// The software's version.
    pub version: String,
    /// How fast states are scrubbed.
    pub scrub: ScrubPace,
    /// How fast snapshots are given to other nodes, all together; 0: as fast as they take them.
    pub snapshot_bytes_per_s: u64,
}

/// What the node is made of.
pub struct Parts<C, D: Disk, T> {
    /// Its clocks.
    pub clock: C,
    /// Its oplog, recovered.
    pub opened: Opened<D>,
    /// Its materialized state.
    pub states: Arc<States>,
    /// The way to other nodes.
    pub transport: T,
    /// What other nodes say.
    pub inbound: mpsc::Receiver<Inbound>,
    /// Sees every step, in the simulator.
    #[cfg(madsim)]
    pub observer: Option<Arc<dyn Observer>>,
}

/// Sees what a node does, in the simulator.
#[cfg(madsim)]
pub trait Observer: Send + Sync + 'static {
    /// Before every step of the core, with what it is about to take.
    fn takes(&self, inputs: &[highwater_core::Input]);
    /// After every step of the core, with the effects that it is about to carry out.
    fn step(&self, node: &Node, effects: &[highwater_core::Effect]);
    /// After every run that was applied.
    fn applied(
        &self,
        group: highwater_core::GroupId,
        entries: &[highwater_core::Entry],
        outcomes: &[highwater_core::Outcome],
    );
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system group's state can't be read.
    #[error("the control state can't be read: {0}")]
    State(#[from] StateError),
    /// What is on disk contradicts itself.
    #[error("the data directory contradicts itself: {0}")]
    Recover(#[from] RecoverError),
    /// The largest operation might never find room.
    #[error(
        "the oplog has room for {room} bytes for certain, an operation may take {needed}: make its \
         segments larger, or more of them spare"
    )]
    OplogTooSmall {
        /// In bytes.
        room: u64,
        /// In bytes: the largest payload, and what is kept back for votes.
        needed: u64,
    },
}

/// Requests that wait for the driver; more wait with their senders.
const COMMANDS_MAX: usize = 4096;

/// Streams that wait for the oplog's history; more wait with themselves.
const HISTORY_MAX: usize = 16;

/// Starts a node. The returned future drives it until it is drained or halts; nothing happens
/// before it is polled.
///
/// # Errors
/// Where what is on disk can't be used; nothing was changed.
pub fn start<C: Clock, D: Disk, T: Transport>(
    options: Options,
    parts: Parts<C, D, T>,
) -> Result<(Handle, impl Future<Output = Exit> + Send + 'static), StartError> {
    let Options { core, identity, seed, addresses, http, version, scrub, snapshot_bytes_per_s } =
        options;
    let Opened { writer, reader, preparer, recovered, .. } = parts.opened;
    let room = writer.options().room();
    let needed = core.reserve_bytes / 2 + core.payload_bytes_max as u64;
    if room < needed {
        return Err(StartError::OplogTooSmall { room, needed });
    }
    let (system_applied, system_control) =
        system_control(&parts.states, &recovered.groups, recovered.doubt.is_some())?;
    let known = recovered.groups.iter().map(|group| group.group).collect();
    let found = Recovered {
        formation: recovered.formation,
        groups: recovered.groups,
        system_control,
        system_applied,
        room: recovered.room,
        boots: recovered.boots,
        doubt: recovered.doubt,
    };
    let lost = found.lost_states();
    for (group, applied) in &lost {
        // It is applied again, as the oplog is repaired.
        parts.states.reset(*group)?;
        parts.states.reopen(*group, *applied);
    }
    for group in found.groups.iter().filter(|g| g.group != GroupId::SYSTEM) {
        if group.checkpointed > Lsn(0) && !lost.contains_key(&group.group) {
            parts.states.expect(group.group, group.checkpointed);
        }
    }
    let node = Node::recover(core, identity.clone(), seed, parts.clock.now(), found)?;
    let shared = Arc::new(shared::Shared::new());
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (history, history_jobs) = mpsc::channel(HISTORY_MAX);
    let handle = Handle::new(
        identity.member.node,
        identity.nodes.as_slice().into(),
        &identity.cluster.to_string(),
        commands,
        shared.clone(),
        parts.states.clone(),
        history,
    );
    let (done, completions) = mpsc::unbounded_channel();
    let (log, log_jobs) = mpsc::unbounded_channel();
    let (loads, load_jobs) = mpsc::unbounded_channel();
    let states = parts.states.clone();
    let worker = workers::StateWorker {
        states: parts.states,
        done: done.clone(),
        shared: shared.clone(),
        #[cfg(madsim)]
        observer: parts.observer.clone(),
    };
    let inbound = parts.inbound;
    let state = worker.start();
    let scrubber = scrub::Scrubber {
        pace: scrub,
        clock: parts.clock.clone(),
        states: states.clone(),
        shared: shared.clone(),
        jobs: state.downgrade(),
        at: None,
    };
    let transport = Arc::new(parts.transport);
    let outbox: Arc<dyn Transport> = transport.clone();
    let giver = transfer::Giver {
        maker: identity.member.incarnation,
        groups: known,
        bytes_per_s: snapshot_bytes_per_s,
    };
    let transfers = transfer::start(&states, &outbox, &shared, done.clone(), giver);
    let hands = driver::Hands {
        clock: parts.clock,
        node,
        transport,
        shared: shared.clone(),
        about: status::About { identity, addresses, http, version },
        log,
        loads,
        state,
        transfers,
        states: states.clone(),
        #[cfg(madsim)]
        observer: parts.observer,
    };
    let driver = async move {
        let scrubbing = scrubber.start();
        let writing =
            tokio::spawn(workers::write_log(writer, log_jobs, done.clone(), shared, states));
        let failed = done.clone();
        let preparing =
            tokio::spawn(preparer.run(move |error| workers::tell_damage(error, &failed)));
        tokio::spawn(workers::read_log(reader.clone(), load_jobs, done.clone()));
        let reading = tokio::spawn(workers::read_history(reader, history_jobs, done));
        let sources = driver::Sources { completions, inbound, commands: command_queue };
        let exit = driver::Driver::new(hands).run(sources).await;
        drop(scrubbing);
        // The driver's end closes the writer's queue: what is queued is written first.
        let _ = writing.await;
        preparing.abort();
        reading.abort();
        exit
    };
    Ok((handle, driver))
}

/// The system group's control writes and where they stand. Damaged ones, and ones that are ahead of an
/// oplog that has lost its end, are dropped: the core has them again from the oplog.
fn system_control(
    states: &States,
    groups: &[RecoveredGroup],
    in_doubt: bool,
) -> Result<(Lsn, Vec<(Bytes, Bytes)>), StateError> {
    let system = groups.iter().find(|group| group.group == GroupId::SYSTEM);
    let last = system.map_or(Lsn(0), |group| group.last);
    match states.system_control() {
        Ok((at, control)) if at.lsn <= last || !in_doubt => return Ok((at.lsn, control)),
        Ok((at, _)) => {
            tracing::warn!(applied = %at.lsn, %last, "the catalog is ahead of the oplog: it is rebuilt");
        }
        Err(error) if error.is_loss() => {
            tracing::error!(%error, "the catalog is damaged: it is rebuilt from the oplog");
        }
        Err(error) => return Err(error),
    }
    states.reset(GroupId::SYSTEM)?;
    Ok((Lsn(0), Vec::new()))
}
