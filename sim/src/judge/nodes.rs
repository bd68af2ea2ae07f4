//! What nodes do: starts, steps, applies.

use highwater_core::{
    Config, Effect, Entry, GroupId, GroupMessage, GroupView, Input, Kind as EntryKind, Lsn,
    Message, Node, NodeId, Notice, OnceEntry, Outcome, Record, RoleView, Root, Term, Verified,
    WriteId,
};
use highwater_wire::op::Answer;

use super::{Glance, Judge, ProcessId, State, op_id};
use crate::{
    oracles::{
        Verdict, bounds, broken,
        durable_log::{DurableLog, Found},
        leader_completeness,
        leadership::hands_over,
        linearizability,
        liveness::Standing,
        log::{Mark, ReplicaLog},
        persist_first, pruning,
        quarantine::{Harm, Reaction},
        repair::is_original,
        silence,
        watermarks::Marks,
    },
    stats::Seen,
    trace::Kind,
};

fn marks_of(view: &GroupView<'_>) -> Marks {
    Marks {
        pruned: view.watermarks.pruned(),
        appended: view.watermarks.appended(),
        durable: view.watermarks.durable(),
        committed: view.watermarks.committed(),
        applied: view.watermarks.applied(),
        checkpointed: view.watermarks.checkpointed(),
    }
}

/// Whether replicas have cause to differ.
fn differs(due: bool, node: NodeId, group: GroupId, lsn: Lsn) -> Verdict {
    if due {
        return Ok(());
    }
    let what =
        format!("{node:?} finds that replicas of {group:?} differ at {lsn:?}, without cause");
    Err(broken(what).on(node).of(group).at(lsn))
}

impl Judge {
    /// A process has recovered its oplog.
    pub(crate) fn recovered(&self, (node, process): ProcessId, config: &Config, found: &Found<'_>) {
        let mut guard = self.lock();
        let (state, world) = (&mut *guard, &self.world);
        state.processes.insert(node, process);
        state.configs.insert(node, config.clone());
        state.standings.retain(|(n, _), _| *n != node);
        state.stall.ends(node);
        state.fencing.starts(node, found);
        let checkpointed = found.groups.iter().map(|group| (group.group, group.checkpointed));
        state.sessions.starts((node, process), checkpointed);
        state.pruning.starts(node);
        state.machine.starts(node, found.groups.iter().map(|g| (g.group, g.checkpointed)));
        if let Some(members) = found.members {
            world.check("fencing", state.fencing.founded(members));
        }
        let damaged = state.harms.was(node, Harm::LogDamaged);
        let log = state.logs.entry(node).or_default();
        match log.recovers(found, damaged) {
            Ok(lost) => world.saw_times(Seen::LostRecords, u64::from(lost > 0)),
            Err(broken) => world.fail("durable log", broken.on(node)),
        }
    }

    /// A process's core made a step, with these effects.
    pub(crate) fn step(&self, process: ProcessId, core: &Node, effects: &[Effect]) {
        let mut guard = self.lock();
        let (state, node) = (&mut *guard, process.0);
        if let Some(log) = state.logs.get_mut(&node) {
            let completed = log.completed(core.durable_write());
            self.world.check("durable log", completed.map_err(|broken| broken.on(node)));
        }
        for effect in effects {
            self.effect(state, process, effect);
        }
        let serves = |group| core.group(group).is_some_and(|view| view.quarantined.is_none());
        let left = state.audits.steps(process, serves);
        // What the last step took in is carried out in no part, and seen by nobody.
        let ends = |effect: &Effect| matches!(effect, Effect::Fence { .. } | Effect::Halt { .. });
        if !effects.iter().any(ends) {
            self.world.check("audits", left);
            self.views(state, process, core);
        }
    }

    /// A process's core is about to take these in.
    pub(crate) fn takes(&self, process: ProcessId, inputs: &[Input]) {
        for input in inputs {
            match input {
                Input::Control { group, at, .. } => {
                    self.lock().pruning.is_durable(process.0, *group, at.lsn);
                }
                Input::Checkpointed { group, lsn } => {
                    self.lock().pruning.is_durable(process.0, *group, *lsn);
                }
                Input::StateLost { group, .. } => self.lock().pruning.is_gone(process.0, *group),
                Input::Message { from, message: Message::Group { group, term, message } } => {
                    let GroupMessage::Verified { lsn, root } = message else { continue };
                    let mut state = self.lock();
                    let stands = state.standings.get(&(process.0, *group));
                    let is_heard = |s: &Standing| {
                        s.term == *term && s.leader == Some(from.member.node) && !s.quarantined
                    };
                    if stands.is_some_and(is_heard) {
                        state.audits.hears(process, *group, (*lsn, *root));
                    }
                }
                _ => {}
            }
        }
    }

    /// Most steps change nothing of most groups.
    fn views(&self, state: &mut State, process: ProcessId, core: &Node) {
        let mut glances = std::mem::take(state.glances.entry(process.0).or_default());
        let mut known = 0;
        for view in core.groups() {
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

    /// A process's core is looked at as a whole, which takes longer.
    pub(crate) fn inspects(&self, (node, _): ProcessId, core: &Node) {
        core.check();
        let mut state = self.lock();
        let now_ns = self.world.now_ns();
        for view in core.groups() {
            let role = (view.term, view.role == RoleView::Leader);
            let marks = marks_of(&view);
            let stands = state.stall.stands((node, view.group), role, &marks, now_ns);
            self.world.check("stall", stands);
        }
        let Some(config) = state.configs.get(&node) else { return };
        let sizes = (core.groups().count(), state.voters - 1);
        self.world.check("bounds", bounds::holds(node, config, sizes, &core.held()));
    }

    fn effect(&self, state: &mut State, process: ProcessId, effect: &Effect) {
        let (node, world) = (process.0, &self.world);
        if let Some(config) = state.configs.get(&node) {
            world.check("bounds", bounds::does(node, config, effect));
        }
        if state.silent {
            world.check("silence", silence::does(node, effect));
        }
        match effect {
            Effect::Persist { write, records } => self.persist(state, node, *write, records),
            Effect::Send { to, message } => {
                world.check("fencing", state.fencing.speaks(node));
                if let Message::Group { group, term, message } = message {
                    self.sends(state, (node, *to), (*group, *term), message);
                }
            }
            Effect::Mend { group, entries } => {
                let log = state.logs.get(&node).and_then(|log| log.log(*group));
                let original = is_original(node, *group, entries, |lsn, _| log?.at(lsn));
                world.check("repair", original);
            }
            Effect::Reply { request, .. } => {
                world.check("answers", state.answers.answers(process, *request));
            }
            Effect::Load { .. } => world.saw(Seen::Loaded),
            Effect::Leader { group, term, leader } => {
                let leader = leader.unwrap_or_default();
                world.event(Kind::Leader, node.0, group.0, term.0, leader.0, || {
                    format!("{group:?} {term:?}: follows {leader:?}")
                });
            }
            Effect::Notice(notice) => {
                world.event(Kind::Process, node.0, 0, 0, 0, || format!("{notice:?}"));
                self.notice(state, process, notice);
            }
            Effect::Fence { reason, .. } => {
                let due = state.harms.is_due(process, Reaction::Fences);
                world.check("fencing", state.fencing.fences(node, due, reason));
            }
            _ => {}
        }
    }

    fn notice(&self, state: &mut State, process: ProcessId, notice: &Notice) {
        let node = process.0;
        let (reaction, group, reason) = match notice {
            Notice::PeerFault { node: peer, reason } => {
                if !state.harms.was(*peer, Harm::RolledBack) {
                    let what = format!("{node:?} says that {peer:?} misbehaves: {reason}");
                    self.world.fail("peer fault", what);
                }
                return;
            }
            Notice::Quarantined { group, reason } => (Reaction::Quarantines, *group, reason),
            Notice::Unreadable { group, reason, .. } => (Reaction::Mends, *group, reason),
            Notice::Rebuilding { group, reason } => {
                state.machine.begins_anew(node, *group);
                state.marks.loses_state(node, *group);
                state.audits.is_gone(node, Some(*group));
                let by_scrub = reason.starts_with("found by the scrub");
                self.world.saw_times(Seen::ScrubFound, u64::from(by_scrub));
                (Reaction::Rebuilds, *group, reason)
            }
            Notice::Rebuilt { group } => {
                let diverged = state.audits.returns(node, *group);
                self.world.saw_times(Seen::DivergedReturned, u64::from(diverged));
                return self.world.saw(Seen::StateRebuilt);
            }
            Notice::Diverged { group, lsn } => {
                state.audits.diverges(process, *group);
                let due = state.harms.was(node, Harm::StateDamaged);
                return self.world.check("audits", differs(due, node, *group, *lsn));
            }
            Notice::RootsDiffer { group, lsn } => {
                let due = state.logs.keys().any(|n| state.harms.was(*n, Harm::StateDamaged));
                return self.world.check("audits", differs(due, node, *group, *lsn));
            }
            Notice::Bootstrapped { group, at } => {
                let last = state.machine.last(*group);
                self.world.check("pruning", pruning::installs(node, *group, *at, last));
                state.machine.installs(process, *group, *at);
                return self.world.saw(Seen::Bootstrapped);
            }
            Notice::Pruned { .. } => return self.world.saw(Seen::Pruned),
            Notice::Bootstrapping { .. }
            | Notice::Formed { .. }
            | Notice::Sound { .. }
            | Notice::Mended { .. }
            | Notice::SlotAtRisk { .. }
            | Notice::SlotInvalidated { .. } => return,
        };
        let verdict =
            state.harms.reacts(process, reaction, reason).map_err(|broken| match notice {
                Notice::Unreadable { from, .. } => broken.of(group).at(*from),
                _ => broken.of(group),
            });
        self.world.check("quarantine", verdict);
    }

    fn persist(&self, state: &mut State, node: NodeId, write: WriteId, records: &[Record]) {
        for record in records {
            if let Record::Base { group, base } = record {
                let committed = state.committed.term_at(*group, base.position.lsn);
                let begins = state.pruning.begins(node, *group, base.position, committed);
                self.world.check("pruning", begins);
            }
        }
        let Some(log) = state.logs.get_mut(&node) else { return };
        match log.writes(write, records) {
            Ok(truncated) => self.world.saw_times(Seen::Truncated, u64::from(truncated)),
            Err(broken) => self.world.fail("durable log", broken.on(node)),
        }
        for record in records {
            match record {
                Record::Append { group, entry } => {
                    state.pruning.appends(*group, entry);
                    let has = state.matching.has(*group, entry.lsn, Mark::of(entry));
                    self.world.check("log matching", has.map_err(|broken| broken.on(node)));
                    if let Some(op) = entry.op() {
                        state.outcomes.logged(op_id(&op), *group, entry.lsn, entry.term);
                    }
                }
                Record::Formation(formation) => {
                    self.world.check("fencing", state.fencing.founded(&formation.members));
                }
                Record::Sound { group, committed } => state.fencing.sound(node, *group, *committed),
                _ => {}
            }
        }
    }

    fn sends(
        &self,
        state: &mut State,
        (node, to): (NodeId, NodeId),
        (group, term): (GroupId, Term),
        message: &GroupMessage,
    ) {
        let Some(log) = state.logs.get_mut(&node) else { return };
        let says = persist_first::says(log, (node, to), (group, term), message);
        self.world.check("persist first", says);
        let candidate = match message {
            GroupMessage::VoteReply { granted: true } => to,
            GroupMessage::Vote { .. } => node,
            GroupMessage::PreVoteReply { granted: true } => {
                let votes = state.fencing.votes(node, group, "promises its vote in");
                return self.world.check("fencing", votes.map_err(|broken| broken.term(term)));
            }
            GroupMessage::Fetched { entries, .. } => {
                let due = |lsn, term| state.matching.at(group, lsn, term);
                return self.world.check("repair", is_original(node, group, entries, due));
            }
            GroupMessage::TimeoutNow => {
                let Some(last) = log.log(group).map(ReplicaLog::last) else { return };
                let successor = state.logs.get(&to);
                let holds = successor.is_some_and(|log| {
                    log.holds(group, last.lsn, last.term) || log.held(group, last.lsn, last.term)
                });
                let verdict = hands_over(to, group, (last.lsn, last.term), holds);
                return self.world.check("leadership", verdict.map_err(|broken| broken.on(node)));
            }
            _ => return,
        };
        log.votes(group, term, candidate);
        let votes = state.fencing.votes(node, group, "votes in");
        self.world.check("fencing", votes.map_err(|broken| broken.term(term)));
        let verdict = state.votes.votes(node, group, term, candidate);
        self.world.check("single vote", verdict);
    }

    fn view(&self, state: &mut State, process: ProcessId, view: &GroupView<'_>) {
        let (node, group) = (process.0, view.group);
        let now = marks_of(view);
        let old = match state.marks.stands(process, group, now) {
            Ok(old) => old,
            Err(what) => return self.world.fail("watermarks", what),
        };
        if let Some(Verified { lsn, root, .. }) = view.verified {
            match state.audits.shows(node, (group, lsn), root) {
                Ok(news) => self.world.saw_times(Seen::AuditVerified, u64::from(news)),
                Err(broken) => self.world.fail("audits", broken),
            }
        }
        if group != GroupId::SYSTEM {
            let says = state.machine.says(process, group, now.applied);
            self.world.check("state-machine safety", says);
        }
        let standing = Standing {
            term: view.term,
            leader: view.leader,
            appended: now.appended,
            applied: now.applied,
            quarantined: view.quarantined.is_some(),
        };
        let before = state.standings.insert((node, group), standing);
        let led = before.is_some_and(|s| s.leader == Some(node) && s.term == view.term);
        self.world.saw_times(Seen::SteppedDown, u64::from(led && view.leader != Some(node)));
        self.world.saw_times(Seen::Checkpointed, u64::from(now.checkpointed > old.checkpointed));
        if now.durable > old.durable
            && let Some(log) = state.logs.get(&node)
        {
            let durable = persist_first::is_durable(log, node, group, now.durable);
            self.world.check("persist first", durable);
        }
        if let Some(leader) = view.leader {
            let follows = state.leadership.follows(node, (group, view.term), leader);
            self.world.check("leadership", follows);
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
        let votes = state.fencing.votes(node, group, "leads");
        self.world.check("fencing", votes.map_err(|broken| broken.term(term)));
        self.world.event(Kind::Leader, node.0, group.0, term.0, 1, || {
            format!("{group:?} {term:?}: leads")
        });
        if let Some(log) = state.logs.get(&node).and_then(|log| log.log(group)) {
            let before = state.commits.before(group, term);
            let term_at = |lsn| {
                let gone = lsn < log.base().lsn;
                if gone { state.committed.term_at(group, lsn) } else { log.term_at(lsn) }
            };
            let complete = leader_completeness::leads(group, term, before, term_at);
            self.world.check("leader completeness", complete.map_err(|broken| broken.on(node)));
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
        self.world.check("committed log", knows.map_err(|broken| broken.on(node)));
        if !leads {
            return;
        }
        let entry_term = log.term_at(upto).unwrap_or_default();
        let counts = |(node, log): &(&NodeId, &DurableLog)| {
            let holds = state.fencing.counts(**node) && log.holds(group, upto, entry_term);
            holds || log.held(group, upto, entry_term)
        };
        let holders = state.logs.iter().filter(counts).count();
        let verdict =
            state.commits.commits((group, term), (upto, entry_term), holders, state.voters);
        self.world.check("commit rule", verdict.map_err(|broken| broken.on(node)));
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
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.world.event(Kind::Applied, process.0.0, group.0, last.lsn.0, first.lsn.0, || {
                format!("{group:?} {:?}..={:?}", first.lsn, last.lsn)
            });
            self.world.tell(|story| story.applies(process.0, group, entries));
        }
        let mut outcomes = outcomes.iter();
        for entry in entries {
            let outcome = if entry.kind.has_outcome() { outcomes.next() } else { None };
            self.entry_applied(state, process, group, entry, outcome);
        }
    }

    fn audited(
        &self,
        state: &mut State,
        process: ProcessId,
        (group, lsn): (GroupId, Lsn),
        outcome: &Outcome,
    ) {
        let reference = state.references.entry(group).or_default();
        let due = state.audits.due((group, lsn), || reference.root(group, lsn));
        let verdict = match Root::decode(&outcome.answer) {
            Some(root) => state.audits.audited(process, (group, lsn), root, due),
            None => Err(broken(format!("{outcome:?} is no root")).of(group).at(lsn)),
        };
        self.world.check("audits", verdict);
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
        if let (EntryKind::Audit, Some(outcome)) = (entry.kind, outcome) {
            self.audited(state, process, (group, lsn), outcome);
        }
        let outcome = outcome.filter(|_| entry.kind == EntryKind::Op);
        let fresh = state.machine.applies(process, group, (lsn, Mark::of(entry)), outcome);
        match fresh {
            Err(what) => return self.world.fail("state-machine safety", what),
            Ok(false) => return,
            Ok(true) => {}
        }
        let Some(op) = entry.op() else { return };
        let id = op_id(&op);
        if entry.kind == EntryKind::Once
            && let Some(once) = OnceEntry::decode(entry.payload.clone())
        {
            self.world.check("once", state.once.applied(group, lsn, &once));
        }
        // As its client asked for it, not as the node reads it.
        let Some((op, floor)) = state.asked.get(&id) else {
            let what = format!("nobody asked for the op at {lsn:?} of {group:?}");
            return self.world.fail("reference", broken(what).of(group).at(lsn));
        };
        let due = state.references.entry(group).or_default().apply(lsn, op);
        if matches!(due, Answer::Done { .. }) {
            state.effective.entry(group).or_default().took_effect(lsn, op);
        }
        if let Some(outcome) = outcome {
            let refused = matches!(due, Answer::Refused { .. });
            if outcome.refused != refused || Answer::decode(&outcome.answer).ok() != Some(due) {
                let what = format!("{lsn:?} of {group:?} yields {outcome:?}, due is {due:?}");
                self.world.fail("reference", broken(what).on(process.0).of(group).at(lsn));
            }
        }
        let once = state.outcomes.applied(id, group, (lsn, entry.term), due);
        self.world.check("outcomes", once);
        let verdict = linearizability::write_is_after(*floor, group, lsn);
        self.world.check("linearizability", verdict);
    }
}
