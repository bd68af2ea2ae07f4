//! The judge: sees every step of every node, every apply, and every call and answer of clients,
//! and hands the oracles what each needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use highwater_core::{
    Effect, Entry, GroupId, GroupMessage, GroupView, Kind as EntryKind, Lsn, Message, NodeId,
    Outcome, Record, RecoveredGroup, RoleView, Term, Watermarks,
};
use highwater_node::api::{Consistency, Error, Got};
use highwater_wire::op::{Answer, Op, Versions};
use tokio::sync::Notify;

use crate::{
    history::{Ask, Call, Told},
    oracles::{
        catalog::Catalog,
        commit::{Commits, Committed},
        durable_log::DurableLog,
        election_safety::{ElectionSafety, SingleVote},
        linearizability::{self, RealTime},
        liveness::{Standing, unsettled},
        log::Mark,
        log_matching::LogMatching,
        outcomes::{OpId, Outcomes},
        reference::Reference,
        state_machine::{StateMachine, holds_all},
        watermarks::{Marks, WatermarkOrder, is_known},
    },
    stats::Seen,
    trace::{Kind, digest, shared_digest},
    world::World,
};

/// Which process of which node.
pub(crate) type ProcessId = (NodeId, u64);

/// What a call began with.
#[derive(Clone, Debug)]
struct Open {
    group: Option<GroupId>,
    floor: Lsn,
    /// Of a write.
    op: Option<OpId>,
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
        }
    }
}

#[derive(Default)]
struct State {
    voters: usize,
    logs: BTreeMap<NodeId, DurableLog>,
    elections: ElectionSafety,
    votes: SingleVote,
    matching: LogMatching,
    commits: Commits,
    committed: Committed,
    machine: StateMachine,
    marks: WatermarkOrder,
    references: BTreeMap<GroupId, Reference>,
    time: RealTime,
    outcomes: Outcomes,
    catalog: Catalog,
    open: BTreeMap<u64, Open>,
    /// What was known when an op was asked for.
    floors: BTreeMap<OpId, Lsn>,
    /// Writes under way, by group.
    writing: BTreeMap<GroupId, u64>,
    unknown: BTreeSet<OpId>,
    standings: BTreeMap<(NodeId, GroupId), Standing>,
    /// What was last seen of each node's replicas, in order.
    glances: BTreeMap<NodeId, Vec<Glance>>,
    calls: u64,
}

/// The oracles of one run.
pub(crate) struct Judge {
    world: Arc<World>,
    state: Mutex<State>,
    /// Told whenever a group has a new leader.
    pub(crate) elected: Notify,
}

fn op_id(payload: &Bytes) -> OpId {
    OpId(shared_digest(payload))
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

    // --- nodes ---

    /// A process has recovered its oplog.
    pub(crate) fn recovered(&self, node: NodeId, formed: bool, groups: &[RecoveredGroup]) {
        let mut state = self.lock();
        state.standings.retain(|(n, _), _| *n != node);
        if let Some(log) = state.logs.get_mut(&node) {
            match log.recovers(formed, groups) {
                Ok(lost) => self.world.saw_times(Seen::LostRecords, u64::from(lost > 0)),
                Err(broken) => self.world.fail("durable log", broken.on(node)),
            }
        }
    }

    /// A process's core made a step.
    pub(crate) fn step<'a>(
        &self,
        process: ProcessId,
        groups: impl Iterator<Item = GroupView<'a>>,
        effects: &[Effect],
    ) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for effect in effects {
            self.effect(state, process.0, effect);
        }
        // Most steps change nothing of most groups.
        let mut glances = std::mem::take(state.glances.entry(process.0).or_default());
        let mut known = 0;
        for view in groups {
            let glance = Glance::of(process.1, &view);
            match glances.get_mut(known) {
                Some(before) if *before == glance => {}
                Some(before) => {
                    *before = glance;
                    self.view(state, process, &view);
                }
                None => {
                    glances.push(glance);
                    self.view(state, process, &view);
                }
            }
            known += 1;
        }
        glances.truncate(known);
        state.glances.insert(process.0, glances);
    }

    fn effect(&self, state: &mut State, node: NodeId, effect: &Effect) {
        match effect {
            Effect::Persist { records, .. } => self.persist(state, node, records),
            Effect::Send { to, message: Message::Group { group, term, message } } => {
                self.sends(state, node, *to, (*group, *term), message);
            }
            Effect::Load { .. } => self.world.saw(Seen::Loaded),
            Effect::Leader { group, term, leader } => {
                let leader = leader.unwrap_or_default();
                self.world.event(Kind::Leader, node.0, group.0, term.0, leader.0, || {
                    format!("{group:?} {term:?}: follows {leader:?}")
                });
            }
            Effect::Notice(notice) => {
                self.world.event(Kind::Process, node.0, 0, 0, 0, || format!("{notice:?}"));
                if let highwater_core::Notice::PeerFault { node: peer, reason } = notice {
                    let what = format!("{node:?} says that {peer:?} misbehaves: {reason}");
                    self.world.fail("peer fault", what);
                }
                if let highwater_core::Notice::Rebuilding { group, .. } = notice {
                    state.machine.begins_anew(node, *group);
                    state.marks.loses_state(node, *group);
                }
                if let highwater_core::Notice::Mended { .. } = notice {
                    self.world.saw(Seen::Mended);
                }
                if let highwater_core::Notice::Rebuilt { .. } = notice {
                    self.world.saw(Seen::StateRebuilt);
                }
                if let highwater_core::Notice::Quarantined { group, reason } = notice {
                    let what = format!("{node:?} quarantines {group:?}: {reason}");
                    self.world.fail("quarantine", what);
                }
            }
            _ => {}
        }
    }

    fn persist(&self, state: &mut State, node: NodeId, records: &[Record]) {
        let Some(log) = state.logs.get_mut(&node) else { return };
        match log.writes(records) {
            Ok(truncated) => self.world.saw_times(Seen::Truncated, u64::from(truncated)),
            Err(broken) => self.world.fail("durable log", broken.on(node)),
        }
        for record in records {
            if let Record::Append { group, entry } = record {
                let has = state.matching.has(*group, entry.lsn, Mark::of(entry));
                self.world.check("log matching", has);
                if entry.kind == EntryKind::Op {
                    let op = op_id(&entry.payload);
                    state.outcomes.logged(op, *group, entry.lsn, entry.term);
                }
            }
        }
    }

    fn sends(
        &self,
        state: &mut State,
        node: NodeId,
        to: NodeId,
        (group, term): (GroupId, Term),
        message: &GroupMessage,
    ) {
        let Some(log) = state.logs.get_mut(&node) else { return };
        let candidate = match message {
            GroupMessage::VoteReply { granted: true } => to,
            GroupMessage::Vote { .. } => node,
            GroupMessage::AppendAccepted { durable, .. } => {
                return self.world.check("durable log", log.reports(group, *durable));
            }
            _ => return,
        };
        log.votes(group, term, candidate);
        let verdict = state.votes.votes(node, group, term, candidate);
        self.world.check("single vote", verdict);
    }

    fn view(&self, state: &mut State, process: ProcessId, view: &GroupView<'_>) {
        let (node, group) = (process.0, view.group);
        let now = Marks {
            appended: view.watermarks.appended(),
            durable: view.watermarks.durable(),
            committed: view.watermarks.committed(),
            applied: view.watermarks.applied(),
            checkpointed: view.watermarks.checkpointed(),
        };
        let old = match state.marks.stands(process, group, now) {
            Ok(old) => old,
            Err(what) => return self.world.fail("watermarks", what),
        };
        let standing = Standing {
            term: view.term,
            leader: view.leader,
            appended: now.appended,
            applied: now.applied,
            quarantined: view.quarantined.is_some(),
        };
        state.standings.insert((node, group), standing);
        self.world.saw_times(Seen::Checkpointed, u64::from(now.checkpointed > old.checkpointed));
        if now.durable > old.durable
            && let Some(log) = state.logs.get_mut(&node)
        {
            self.world.check("durable log", log.reports(group, now.durable));
        }
        let leads = view.role == RoleView::Leader;
        if leads {
            self.leads(state, node, group, view.term);
        }
        if now.committed > old.committed {
            self.commits(state, node, (group, view.term), now.committed, leads);
        }
    }

    fn leads(&self, state: &mut State, node: NodeId, group: GroupId, term: Term) {
        match state.elections.leads(group, term, node) {
            Err(what) => return self.world.fail("election safety", what),
            Ok(false) => return,
            Ok(true) => {}
        }
        self.elected.notify_waiters();
        self.world.event(Kind::Leader, node.0, group.0, term.0, 1, || {
            format!("{group:?} {term:?}: leads")
        });
        if let Some(log) = state.logs.get(&node).and_then(|log| log.log(group)) {
            let complete = state.commits.leads(group, term, |lsn| log.term_at(lsn));
            self.world.check("leader completeness", complete);
        }
        let changed = state.elections.leader_before(group, term).is_some_and(|old| old != node);
        if changed && group != GroupId::SYSTEM {
            self.world.saw(Seen::LeaderChange);
            if state.writing.get(&group).is_some_and(|n| *n > 0) {
                self.world.saw(Seen::LeaderChangeUnderLoad);
            }
        }
    }

    fn commits(
        &self,
        state: &mut State,
        node: NodeId,
        (group, term): (GroupId, Term),
        upto: Lsn,
        leads: bool,
    ) {
        let Some(log) = state.logs.get(&node).and_then(|log| log.log(group)) else { return };
        let knows = state.committed.knows(group, upto, |lsn| log.term_at(lsn));
        self.world.check("committed log", knows);
        if !leads {
            return;
        }
        let entry_term = log.term_at(upto).unwrap_or_default();
        let holders = state.logs.values().filter(|l| l.holds(group, upto, entry_term)).count();
        let verdict =
            state.commits.commits((group, term), (upto, entry_term), holders, state.voters);
        self.world.check("commit rule", verdict);
    }

    /// A process has applied a run of entries. `outcomes` has one for each op.
    pub(crate) fn applied(
        &self,
        process: ProcessId,
        group: GroupId,
        entries: &[Entry],
        outcomes: &[Outcome],
    ) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut outcomes = outcomes.iter();
        for entry in entries {
            let outcome = match entry.kind {
                EntryKind::Op => outcomes.next(),
                _ => None,
            };
            self.entry_applied(state, process, group, entry, outcome);
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.world.event(Kind::Applied, process.0.0, group.0, last.lsn.0, first.lsn.0, || {
                format!("{group:?} {:?}..={:?}", first.lsn, last.lsn)
            });
        }
    }

    fn entry_applied(
        &self,
        state: &mut State,
        process: ProcessId,
        group: GroupId,
        entry: &Entry,
        outcome: Option<&Outcome>,
    ) {
        let lsn = entry.lsn;
        // What the state held already is skipped, with a default outcome.
        let outcome = outcome.filter(|o| **o != Outcome::default());
        let fresh = state.machine.applies(process, group, (lsn, Mark::of(entry)), outcome);
        match fresh {
            Err(what) => return self.world.fail("state-machine safety", what),
            Ok(false) => return,
            Ok(true) => {}
        }
        if entry.kind != EntryKind::Op {
            return;
        }
        let Ok(op) = Op::decode(entry.payload.clone()) else {
            return self.world.fail("reference", format!("{lsn:?} of {group:?} holds no op"));
        };
        let due = state.references.entry(group).or_default().apply(lsn, &op);
        if let Some(outcome) = outcome {
            let refused = matches!(due, Answer::Refused { .. });
            if outcome.refused != refused || Answer::decode(&outcome.answer).ok() != Some(due) {
                let what = format!("{lsn:?} of {group:?} yields {outcome:?}, due is {due:?}");
                self.world.fail("reference", what);
            }
        }
        let id = op_id(&entry.payload);
        let once = state.outcomes.applied(id, group, (lsn, entry.term), due);
        self.world.check("outcomes", once);
        if let Some(floor) = state.floors.get(&id) {
            let verdict = linearizability::write_is_after(*floor, group, lsn);
            self.world.check("linearizability", verdict);
        }
    }

    // --- clients ---

    /// A client calls.
    pub(crate) fn calls(&self, call: &Call) {
        let mut state = self.lock();
        state.calls += 1;
        let group = state.catalog.group(&call.database);
        let floor = group.map(|group| state.time.floor(group)).unwrap_or_default();
        let op = match &call.ask {
            Ask::Write(op) => Some(OpId(digest(&op.encode()))),
            _ => None,
        };
        state.open.insert(call.id, Open { group, floor, op });
        let mut digest_of = digest(call.database.as_bytes());
        if let Some(id) = op {
            digest_of ^= id.0;
            state.floors.insert(id, floor);
            if let Some(group) = group {
                *state.writing.entry(group).or_default() += 1;
            }
        }
        self.world.event(Kind::Call, call.node.0, call.id, floor.0, digest_of, || {
            format!("#{} {} {}", call.id, call.database, call.ask.brief())
        });
    }

    /// A client has its answer.
    pub(crate) fn told(&self, call: &Call, told: &Told) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let node = call.node.0;
        self.world.event(Kind::Return, node, call.id, 0, told.digest(), || {
            format!("#{} {}", call.id, told.brief())
        });
        let Some(open) = state.open.remove(&call.id) else { return };
        if let Some(group) = open.group
            && open.op.is_some()
        {
            *state.writing.entry(group).or_default() -= 1;
        }
        if let Told::Failed(Error::NoSuchDatabase) = told
            && call.ask != Ask::Create
        {
            let denied = state.catalog.denied(&call.database, open.group.is_some());
            self.world.check("catalog", denied);
        }
        let led_here = open.group.is_some_and(|g| state.elections.latest(g) == Some(call.node));
        match (&call.ask, told) {
            (Ask::Write(op), told) => {
                let id = open.op.unwrap_or(OpId(0));
                self.write_told(state, id, op, told, led_here);
            }
            (Ask::Get(key, consistency), Told::Got(got)) => {
                self.got(state, key, *consistency, &open, got, led_here);
            }
            (Ask::List(query, consistency), Told::Listed(page)) => {
                let lists = state.references.entry(page.group).or_default().lists(query, page);
                self.world.check("reference", lists);
                self.world.saw(Seen::Listed);
                self.read(state, *consistency, &open, (page.group, page.applied), led_here);
            }
            (Ask::Create, Told::Created(group, existed)) => {
                let stands = state.catalog.stands(&call.database, *group, *existed);
                self.world.check("catalog", stands);
            }
            (Ask::Transfer(_), Told::Transferred) => self.world.saw(Seen::Transferred),
            (_, Told::Failed(Error::Behind { .. })) => self.world.saw(Seen::Behind),
            _ => {}
        }
    }

    fn write_told(&self, state: &mut State, id: OpId, op: &Op, told: &Told, led_here: bool) {
        let world = &self.world;
        match told {
            Told::Written(receipt) => {
                world.check("outcomes", state.outcomes.acked(id, receipt));
                state.time.learns(receipt.group, receipt.lsn);
                world.saw(Seen::WriteAcked);
                world.saw_times(Seen::WriteForwarded, u64::from(!led_here));
                world.saw_times(Seen::Batch, u64::from(op.writes.len() > 1));
                let swap = |w: &highwater_wire::op::Write| {
                    matches!(w.condition.matches, Some(Versions::Of(_)))
                };
                world.saw_times(Seen::Swapped, u64::from(op.writes.iter().any(swap)));
            }
            Told::Failed(Error::Refused { index, version, lsn }) => {
                world.saw(Seen::Refused);
                let group = state.outcomes.group_of(id).unwrap_or_default();
                let verdict = state.outcomes.refused(id, group, *lsn, (*index, *version));
                world.check("outcomes", verdict);
                state.time.learns(group, *lsn);
            }
            Told::Failed(Error::Unknown) | Told::Silence => {
                world.saw(Seen::WriteUnknown);
                state.unknown.insert(id);
            }
            Told::Failed(_) => {
                world.saw(Seen::WriteFailed);
                let committed = &state.committed;
                let is_dead = |group, lsn, term| committed.is_dead(group, lsn, term);
                match state.outcomes.failed(id, is_dead) {
                    Ok(logged) => world.saw_times(Seen::SupersededWrite, u64::from(logged)),
                    Err(what) => world.fail("outcomes", what),
                }
            }
            other => world.fail("outcomes", format!("a write was answered by {other:?}")),
        }
    }

    fn got(
        &self,
        state: &mut State,
        key: &[u8],
        consistency: Consistency,
        open: &Open,
        got: &Got,
        led_here: bool,
    ) {
        let reads = state.references.entry(got.group).or_default().reads(key, got);
        self.world.check("reference", reads);
        self.read(state, consistency, open, (got.group, got.applied), led_here);
    }

    fn read(
        &self,
        state: &mut State,
        consistency: Consistency,
        open: &Open,
        (group, applied): (GroupId, Lsn),
        led_here: bool,
    ) {
        let world = &self.world;
        if open.group.is_some_and(|known| known != group) {
            world.fail("catalog", format!("{:?} is answered as {group:?}", open.group));
        }
        world.check("watermarks", is_known(applied, state.machine.last(group)));
        let verdict = match consistency {
            Consistency::Linearizable => {
                world.saw(Seen::LinearizableRead);
                world.saw_times(Seen::FollowerIndexRead, u64::from(!led_here));
                linearizability::read_is_after(open.floor, group, applied)
            }
            Consistency::Local(None) => {
                world.saw(Seen::LocalRead);
                Ok(())
            }
            Consistency::Local(Some(bookmark)) => {
                world.saw(Seen::BookmarkRead);
                linearizability::bookmark_holds(bookmark.lsn, group, applied)
            }
        };
        world.check("linearizability", verdict);
        state.time.learns(group, applied);
    }

    // --- the end ---

    /// Why the cluster has not settled; empty once it has.
    pub(crate) fn unsettled(&self, nodes: &[NodeId]) -> Vec<String> {
        let state = self.lock();
        unsettled(nodes, &state.machine.groups(), &state.standings)
    }

    /// The last LSN that was applied anywhere.
    pub(crate) fn last_applied(&self, group: GroupId) -> Lsn {
        self.lock().machine.last(group)
    }

    /// Databases that clients know to stand.
    pub(crate) fn databases(&self) -> Vec<(String, GroupId)> {
        self.lock().catalog.all().map(|(name, group)| (name.to_owned(), group)).collect()
    }

    /// Who leads a database's group, as far as anybody knows.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.lock().elections.latest(group)
    }

    /// Calls made, and writes acknowledged.
    pub(crate) fn tally(&self) -> (u64, u64) {
        let state = self.lock();
        (state.calls, state.outcomes.acks() as u64)
    }

    /// The last checks, once the cluster has settled.
    pub(crate) fn finish(&self) {
        let state = self.lock();
        let took_effect = state.unknown.iter().filter(|op| state.outcomes.took_effect(**op));
        self.world.saw_times(Seen::UnknownTookEffect, took_effect.count() as u64);
        for (node, log) in &state.logs {
            for group in state.machine.groups() {
                let holds = holds_all(*node, group, &state.machine, |lsn| log.log(group)?.at(lsn));
                self.world.check("state-machine safety", holds);
            }
        }
        let stay = |group, lsn| state.machine.at(group, lsn).map(|mark| mark.term);
        self.world.check("durability", state.outcomes.all_acked_stay(stay));
    }
}
