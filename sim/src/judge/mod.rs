//! The judge: sees every step of every node, every apply, and every call and answer of clients,
//! and hands the oracles what each needs. It knows of no runtime: whoever drives the nodes tells it.

mod clients;
mod end;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use highwater_core::{
    Config, GroupId, GroupView, Lsn, NodeId, RoleView, Term, Verified, Watermarks,
};
use highwater_wire::op::Op;
use tokio::sync::Notify;

use crate::{
    oracles::{
        answers::Answers,
        audits::Audits,
        catalog::Catalog,
        commit_rule::CommitRule,
        committed_log::CommittedLog,
        durable_log::DurableLog,
        election_safety::ElectionSafety,
        fencing::Fencing,
        histories::Histories,
        leadership::Leadership,
        linearizability::RealTime,
        liveness::Standing,
        log_matching::LogMatching,
        once::Once,
        outcomes::{OpId, Outcomes},
        pruning::Pruning,
        quarantine::Quarantine,
        reference::Reference,
        roots::Roots,
        sessions::Sessions,
        single_vote::SingleVote,
        slots::{self, Slots},
        stall::Stall,
        state_machine::StateMachine,
        streams::History,
        watermarks::WatermarkOrder,
    },
    trace::shared_digest,
    world::World,
};

pub(crate) use crate::oracles::{durable_log::Found, quarantine::Harm};

/// Which process of which node.
pub(crate) type ProcessId = (NodeId, u64);

/// What a call began with.
#[derive(Clone, Debug)]
struct Open {
    group: Option<GroupId>,
    /// Known to be committed.
    floor: Lsn,
    /// The node's process, and what it had shown.
    process: ProcessId,
    shown: Lsn,
    /// What was known of the slot that it is about.
    slot: slots::Before,
    /// The op that it asks for was applied somewhere.
    applied: bool,
    /// The replica was out of service then, since it differs.
    condemned: bool,
}

#[derive(Default)]
struct State {
    /// Of each node's present process.
    configs: BTreeMap<NodeId, Config>,
    voters: usize,
    /// The last process of each node.
    processes: BTreeMap<NodeId, u64>,

    logs: BTreeMap<NodeId, DurableLog>,
    copies: BTreeMap<NodeId, DurableLog>,
    elections: ElectionSafety,
    votes: SingleVote,
    leadership: Leadership,
    matching: LogMatching,
    commits: CommitRule,
    committed: CommittedLog,
    fencing: Fencing,
    machine: StateMachine,
    pruning: Pruning,
    marks: WatermarkOrder,
    harms: Quarantine,
    stall: Stall,
    standings: BTreeMap<(NodeId, GroupId), Standing>,
    /// What was last seen of each node's replicas, in order.
    glances: BTreeMap<NodeId, Vec<Glance>>,
    /// Nothing is to be said or written any more.
    silent: bool,

    references: BTreeMap<GroupId, Reference>,
    effective: BTreeMap<GroupId, History>,
    time: RealTime,
    histories: Histories,
    sessions: Sessions,
    outcomes: Outcomes,
    answers: Answers,
    catalog: Catalog,
    slots: Slots,
    once: Once,
    /// Of a keyed op: how often it was asked for, and who led when it first was.
    attempts: BTreeMap<OpId, (u64, Option<NodeId>)>,
    /// Who led when a slot's consumer was last told of it.
    slot_leaders: BTreeMap<String, NodeId>,
    roots: Roots,
    audits: Audits,
    open: BTreeMap<u64, Open>,
    /// Every op as its client asked for it, and what was known then.
    asked: BTreeMap<OpId, (Op, Lsn)>,
    /// Writes under way, by group.
    writing: BTreeMap<GroupId, u64>,
    unknown: BTreeSet<OpId>,
    calls: u64,
}

/// The oracles of one run.
pub(crate) struct Judge {
    pub(crate) world: Arc<World>,
    state: Mutex<State>,
    /// Told whenever a group has a new leader.
    pub(crate) elected: Notify,
}

fn op_id(payload: &Bytes) -> OpId {
    OpId(shared_digest(payload))
}

/// A replica at a glance.
#[derive(PartialEq, Eq)]
struct Glance {
    process: u64,
    group: GroupId,
    term: Term,
    role: RoleView,
    leader: Option<NodeId>,
    watermarks: Watermarks,
    quarantined: bool,
    verified: Option<Verified>,
}

impl Glance {
    fn of(process: u64, view: &GroupView<'_>) -> Glance {
        Glance {
            process,
            group: view.group,
            term: view.term,
            role: view.role,
            leader: view.leader,
            watermarks: view.watermarks,
            quarantined: view.quarantined.is_some(),
            verified: view.verified,
        }
    }
}

impl Judge {
    pub(crate) fn new(world: Arc<World>, nodes: &[NodeId]) -> Judge {
        let logs = nodes.iter().map(|node| (*node, DurableLog::default())).collect();
        let state = State { voters: nodes.len(), logs, ..State::default() };
        Judge { world, state: Mutex::new(state), elected: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- what the harness does ---

    /// Harm is done to a node: what follows from it is no finding. To be told before the node starts
    /// again.
    pub(crate) fn allow(&self, node: NodeId, harm: Harm) {
        self.lock().harms.harmed(node, harm);
    }

    /// A node's state of a group is changed behind its back.
    pub(crate) fn tampered(&self, node: NodeId, group: GroupId, how: String) {
        let mut state = self.lock();
        state.harms.harmed(node, Harm::StateDamaged);
        state.audits.tampered(node, group, how);
    }

    /// What a node's state of a group was is gone: dropped at its start, or replaced.
    pub(crate) fn drops_state(&self, node: NodeId, group: GroupId) {
        self.lock().audits.is_gone(node, Some(group));
    }

    /// What was done to these nodes' states, and is not found.
    pub(crate) fn undetected(&self, nodes: &[NodeId]) -> Vec<String> {
        self.lock().audits.undetected(nodes)
    }

    /// Whether a node holds something in its states alone.
    pub(crate) fn has_pruned(&self, node: NodeId) -> bool {
        let state = self.lock();
        let log = state.logs.get(&node);
        let logs = state.machine.groups().into_iter().filter_map(|group| log?.log(group));
        logs.map(|log| log.base().lsn).any(|base| base > Lsn(0))
    }

    /// Whether a node's states are all in service, and what they were, as far as anybody knows.
    pub(crate) fn holds_states(&self, node: NodeId) -> bool {
        let state = self.lock();
        let mut of = state.standings.range((node, GroupId(0))..=(node, GroupId(u64::MAX)));
        of.clone().next().is_some()
            && of.all(|(_, standing)| !standing.quarantined)
            && state.audits.undetected(&[node]).is_empty()
    }

    /// A process's disk has failed it: calls ended in errors.
    pub(crate) fn erred(&self, process: ProcessId) {
        self.lock().harms.failed(process);
    }

    /// A node's disk was wiped.
    pub(crate) fn wiped(&self, node: NodeId) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(log) = state.logs.get_mut(&node) {
            log.becomes(DurableLog::default());
            state.harms.harmed(node, Harm::Wiped);
            state.audits.is_gone(node, None);
        }
    }

    /// A copy of a node's disk was taken, of what was durable then.
    pub(crate) fn copied(&self, node: NodeId) {
        let mut state = self.lock();
        if let Some(log) = state.logs.get(&node).cloned() {
            state.copies.insert(node, log);
            state.audits.copied(node);
        }
    }

    /// A node's disk holds what its copy held.
    pub(crate) fn rolled_back(&self, node: NodeId) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let (Some(copy), Some(log)) = (state.copies.remove(&node), state.logs.get_mut(&node)) {
            log.becomes(copy);
            state.harms.harmed(node, Harm::RolledBack);
            state.audits.rolled_back(node);
        }
    }

    /// From now on nothing is wrong any more; or something is again.
    pub(crate) fn calm(&self, calm: bool) {
        let now_ns = self.world.now_ns();
        self.lock().stall.calm(calm, now_ns);
    }

    /// All is equal everywhere, and nobody asks for anything: from now on no group says or writes
    /// anything. Or clients may go on.
    pub(crate) fn silence(&self, silent: bool) {
        self.lock().silent = silent;
    }

    // --- what the harness asks ---

    /// Databases that clients know to stand.
    pub(crate) fn databases(&self) -> Vec<(String, GroupId)> {
        self.lock().catalog.all().map(|(name, group)| (name.to_owned(), group)).collect()
    }

    /// Who leads a database's group, as far as anybody knows.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.lock().elections.latest(group)
    }

    /// The last LSN that was applied anywhere.
    pub(crate) fn last_applied(&self, group: GroupId) -> Lsn {
        self.lock().machine.last(group)
    }

    /// Calls made, and writes acknowledged.
    pub(crate) fn tally(&self) -> (u64, u64) {
        let state = self.lock();
        (state.calls, state.outcomes.acks() as u64)
    }
}
