//! What clients ask and are told.

use highwater_core::{GroupId, Lsn, NodeId, OnceKey};
use highwater_node::api::{Consistency, Error, Got, ListQuery, Page};
use highwater_wire::{
    op::{Op, Versions},
    peer::SlotAsk,
};

use super::{Judge, Open, State, op_id};
use crate::{
    history::{Ask, Call, Told},
    oracles::{
        audits::Audits, linearizability, roots::root, sessions, slots, streams::Streamed,
        watermarks::is_known,
    },
    stats::Seen,
    trace::{Kind, digest},
};

impl Judge {
    /// A client calls.
    pub(crate) fn calls(&self, call: &Call) {
        let mut state = self.lock();
        state.calls += 1;
        let group = state.catalog.group(&call.database);
        let floor = group.map(|group| state.time.floor(group)).unwrap_or_default();
        let process = (call.node, state.processes.get(&call.node).copied().unwrap_or_default());
        let shown = group.map(|group| state.sessions.floor(process, group)).unwrap_or_default();
        let slot = match &call.ask {
            Ask::Slot(name, SlotAsk::Ack(lsn)) => {
                state.slots.asks(&call.database, name, Some(*lsn))
            }
            Ask::Slot(name, _) | Ask::Consume(name, _) => {
                state.slots.asks(&call.database, name, None)
            }
            _ => slots::Before::default(),
        };
        if let Ask::Slot(name, SlotAsk::Delete) = &call.ask {
            state.slots.leaves(&call.database, name);
        }
        let op = call.ask.op().map(|op| op_id(&op.encode()));
        let applied = op.is_some_and(|id| state.outcomes.group_of(id).is_some());
        let condemned = group.is_some_and(|group| state.audits.is_condemned(process, group));
        let open = Open { group, floor, process, shown, slot, applied, condemned };
        state.open.insert(call.id, open);
        state.answers.calls(call.id);
        state.histories.calls(call);
        let mut digest_of = digest(call.database.as_bytes());
        if let (Some(op), Some(id)) = (call.ask.op(), op) {
            digest_of ^= id.0;
            // A retry is the same operation, which began with the first attempt.
            state.asked.entry(id).or_insert((op.clone(), floor));
            if let Some(once) = call.ask.once() {
                state.once.asks(&call.database, once);
                let leader = group.and_then(|group| state.elections.latest(group));
                state.attempts.entry(id).or_insert((0, leader)).0 += 1;
            }
            if let Some(group) = group {
                *state.writing.entry(group).or_default() += 1;
            }
        }
        self.world.event(Kind::Call, call.node.0, call.id, floor.0, digest_of, || {
            format!("#{} {} {}", call.id, call.database, call.ask.brief())
        });
        self.world.tell(|story| story.calls(call, group, floor));
    }

    /// A client has its answer.
    pub(crate) fn told(&self, call: &Call, told: &Told) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let node = call.node.0;
        self.world.event(Kind::Return, node, call.id, 0, told.digest(), || {
            format!("#{} {}", call.id, told.brief())
        });
        self.world.tell(|story| story.told(call, told));
        self.world.check("answers", state.answers.told(call.id));
        let Some(open) = state.open.remove(&call.id) else { return };
        state.histories.told(call, told);
        if let (Some(group), Told::Got(_) | Told::Listed(_) | Told::Streamed(_)) =
            (open.group, told)
            && open.condemned
            && state.audits.is_condemned(open.process, group)
        {
            self.world.check("audits", Audits::served(call.node, group));
        }
        if let Some(group) = open.group
            && call.ask.op().is_some()
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
            (Ask::Write(op), told) => self.write_told(state, op, told, led_here),
            (Ask::Once(op, once), told) => {
                self.once_told(state, (call, op, once), &open, told);
                self.write_told(state, op, told, led_here);
            }
            (Ask::Get(key, consistency), Told::Got(got)) => {
                self.got(state, key, *consistency, &open, got, led_here);
            }
            (Ask::List(query, consistency), Told::Listed(page)) => {
                let lists = state.references.entry(page.group).or_default().lists(query, page);
                self.world.check("reference", lists.map_err(|broken| broken.on(call.node)));
                self.world.saw(Seen::Listed);
                self.whole(state, call.node, query, page);
                self.read(state, *consistency, &open, (page.group, page.applied), led_here);
            }
            (Ask::Create, Told::Created(group, existed)) => {
                let stands = state.catalog.stands(&call.database, *group, *existed);
                self.world.check("catalog", stands);
            }
            (Ask::Changes(..), Told::Streamed(streamed)) => self.streamed(state, &open, streamed),
            (Ask::Consume(name, _), Told::Streamed(streamed)) => {
                let (slots, at) = (&mut state.slots, (open.slot, Lsn(0)));
                let kept = slots.is_at(&call.database, name, at, streamed.after);
                self.world.check("slots", kept.map_err(|b| b.on(call.node).of(streamed.group)));
                self.world.saw(Seen::SlotRead);
                self.streamed(state, &open, streamed);
            }
            (Ask::Slot(name, ask), told) => self.slot_told(state, (call, name), ask, &open, told),
            (Ask::Consume(name, _), Told::Failed(error)) => {
                self.slot_denied(state, (call, name), error);
            }
            (Ask::Changes(after, _), Told::Failed(Error::LogPruned { first })) => {
                let denied = state.pruning.denies(open.group, *after, *first);
                self.world.check("pruning", denied.map_err(|broken| broken.on(call.node)));
                self.world.saw(Seen::StreamPruned);
            }
            (Ask::Transfer(_), Told::Transferred) => self.world.saw(Seen::Transferred),
            (_, Told::Failed(Error::Behind { .. })) => self.world.saw(Seen::Behind),
            _ => {}
        }
    }

    /// What became of a question to a slot.
    fn slot_told(
        &self,
        state: &mut State,
        (call, name): (&Call, &str),
        ask: &SlotAsk,
        open: &Open,
        told: &Told,
    ) {
        let (world, database) = (&self.world, &call.database);
        let leader = open.group.and_then(|group| state.elections.latest(group));
        if let (Told::Slot(_), Some(leader)) = (told, leader) {
            let before = state.slot_leaders.insert(format!("{database}/{name}"), leader);
            let outlived = before.is_some_and(|before| before != leader);
            world.saw_times(Seen::SlotOutlived, u64::from(outlived));
        }
        let verdict = match (ask, told) {
            (SlotAsk::Create(_), Told::Slot(Some(at))) => {
                world.saw(Seen::SlotCreated);
                state.slots.stands(database, name, *at);
                state.slots.is_at(database, name, (open.slot, Lsn(0)), *at)
            }
            (SlotAsk::Ack(lsn), Told::Slot(Some(at))) => {
                world.saw(Seen::SlotAcked);
                state.slots.is_at(database, name, (open.slot, *lsn), *at)
            }
            (SlotAsk::Delete, Told::Slot(None)) => {
                world.saw(Seen::SlotDeleted);
                state.slots.left(database, name);
                Ok(())
            }
            (_, Told::Failed(error)) => return self.slot_denied(state, (call, name), error),
            (_, Told::Silence) => Ok(()),
            (_, other) => return world.fail("slots", format!("{ask:?} is answered by {other:?}")),
        };
        world.check("slots", verdict.map_err(|broken| broken.on(call.node)));
    }

    fn slot_denied(&self, state: &mut State, (call, name): (&Call, &str), error: &Error) {
        let lost =
            matches!(error, Error::NoSuchSlot | Error::SlotDiffers | Error::SlotInvalidated { .. })
                || matches!((&call.ask, error), (Ask::Consume(..), Error::LogPruned { .. }));
        if lost {
            let denied = state.slots.denied(&call.database, name, &error.to_string());
            self.world.check("slots", denied.map_err(|broken| broken.on(call.node)));
        }
    }

    fn streamed(&self, state: &mut State, open: &Open, streamed: &Streamed) {
        let Streamed { group, after, upto, changes } = streamed;
        let world = &self.world;
        world.saw(Seen::Streamed);
        world.saw_times(Seen::StreamResumed, u64::from(*after > Lsn(0) && !changes.is_empty()));
        world.check("watermarks", is_known(*upto, state.machine.last(*group)));
        let shows = state.effective.entry(*group).or_default().shows(streamed);
        world.check("streams", shows.map_err(|broken| broken.on(open.process.0)));
        if open.group.is_some_and(|known| known != *group) {
            world.fail("catalog", format!("{:?} is answered as {group:?}", open.group));
        }
    }

    /// What became of a keyed write.
    fn once_told(
        &self,
        state: &mut State,
        (call, op, once): (&Call, &Op, &OnceKey),
        open: &Open,
        told: &Told,
    ) {
        let (world, id) = (&self.world, op_id(&op.encode()));
        let (group, lsn, replayed) = match told {
            Told::Written(receipt) => (Some(receipt.group), receipt.lsn, receipt.replayed),
            Told::Failed(Error::Refused { lsn, replayed, .. }) => {
                (state.outcomes.group_of(id), *lsn, *replayed)
            }
            Told::Failed(Error::KeyMismatch) => {
                world.saw(Seen::OnceMismatch);
                let denied = state.once.denied(&call.database, once);
                return world.check("once", denied.map_err(|broken| broken.on(call.node)));
            }
            _ => return,
        };
        let group = group.unwrap_or_default();
        let answered = state.once.answered(group, once, lsn);
        world.check("once", answered.map_err(|broken| broken.on(call.node)));
        world.saw(Seen::OnceAnswered);
        if replayed {
            world.saw(if open.applied { Seen::OnceReplayed } else { Seen::OnceJoined });
            let first = state.attempts.get(&id).and_then(|(_, leader)| *leader);
            let other = first.is_some() && first != state.elections.latest(group);
            world.saw_times(Seen::OnceOutlived, u64::from(other));
        }
    }

    fn write_told(&self, state: &mut State, op: &Op, told: &Told, led_here: bool) {
        let id = op_id(&op.encode());
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
            Told::Failed(Error::Refused { index, version, lsn, .. }) => {
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
            // Another attempt may have reached a log.
            Told::Failed(_) if state.attempts.get(&id).is_some_and(|(n, _)| *n > 1) => {}
            Told::Failed(error) => {
                world.saw(Seen::WriteFailed);
                world.saw_times(Seen::RefusedFull, u64::from(*error == Error::StorageFull));
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
        self.world.check("reference", reads.map_err(|broken| broken.on(open.process.0)));
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
                sessions::bookmark_holds(bookmark.lsn, group, applied)
            }
        };
        let oracle = match consistency {
            Consistency::Linearizable => "linearizability",
            Consistency::Local(_) => "sessions",
        };
        world.check(oracle, verdict.map_err(|broken| broken.on(open.process.0)));
        let shows = state.sessions.shows(open.process, group, open.shown, applied);
        world.check("sessions", shows);
        state.time.learns(group, applied);
    }

    /// Compares the states that are read whole.
    fn whole(&self, state: &mut State, node: NodeId, query: &ListQuery, page: &Page) {
        let Some(root) = root(query, page) else { return };
        match state.roots.shows(node, (page.group, page.applied), root) {
            Ok(compared) => self.world.saw_times(Seen::RootsCompared, u64::from(compared)),
            Err(broken) => self.world.fail("roots", broken),
        }
    }
}
