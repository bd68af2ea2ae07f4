//! The machines of one run, and everything that happens to them, event by event.

use std::sync::Arc;

use bytes::Bytes;
use highwater_core::{Effect, Entry, GroupId, Input, Lsn, NodeId};
use highwater_store::state::Checkpoint;

use super::{
    agenda::{Agenda, now_ns},
    calls::Calls,
    course::Course,
    driver::{Arrival, Pass},
    machine::{DiskCall, Machine, Process, Stage},
    net::{Cut, Network, Parcel},
    state::State,
};
use crate::{
    drift::Drifting,
    judge::{Found, Judge},
    plan::{Crash, Plan},
    rng::Rng,
    stats::Seen,
    trace::Kind,
    world::World,
};

/// What is to happen.
pub(super) enum Event {
    /// A machine is switched on.
    Start(NodeId),
    /// A process has done one of the syncs of its start.
    Booted {
        node: NodeId,
        process: u64,
    },
    /// A process looks at what has arrived, or at its deadlines.
    Wake {
        node: NodeId,
        process: u64,
    },
    Arrive(Box<Parcel>),
    /// A sync of the oplog is done; or the machine dies in the middle of it.
    Synced {
        node: NodeId,
        process: u64,
        dies: Option<Crash>,
    },
    /// Something else that was asked for is done.
    Done {
        node: NodeId,
        process: u64,
        input: Box<Input>,
    },
    /// The state's worker comes to a run of entries, or to a checkpoint.
    Apply {
        node: NodeId,
        process: u64,
        group: GroupId,
        entries: Vec<Entry>,
    },
    Freeze {
        node: NodeId,
        process: u64,
        group: GroupId,
        checkpoint: Checkpoint,
    },
    /// A checkpoint is durable.
    Flushed {
        node: NodeId,
        process: u64,
        group: GroupId,
        checkpoint: Checkpoint,
    },
    /// A snapshot takes the place of the state.
    Install {
        node: NodeId,
        process: u64,
        group: GroupId,
        prefixes: Vec<Bytes>,
    },
    /// A call has waited long enough.
    Call {
        call: u64,
        turn: u64,
    },
    /// A caller's patience may have ended.
    Patience {
        caller: usize,
    },
    /// A caller goes on.
    Caller(usize),
    /// The course of the run goes on.
    Course(u64),
    /// The next fault of the plan strikes.
    Strike(usize),
    /// A fault ends.
    Resume {
        node: NodeId,
        process: u64,
    },
    Mend {
        links: Vec<(NodeId, NodeId)>,
        cut: Cut,
    },
    Clear,
    Hasten(NodeId),
    CutPower {
        down_ms: Vec<u64>,
    },
}

/// The core checks what a step touches; every so many steps it checks everything.
const CHECK_EVERY: u64 = 64;
/// Syncs that a start takes: of the identity, and of the oplog.
const BOOT_SYNCS: u64 = 2;
/// The state takes so long for a run of entries, and to make a checkpoint durable.
const APPLY_NS: u64 = 20_000;
const FLUSH_NS: u64 = 3_000_000;

/// The cluster of one run.
pub(super) struct Cluster {
    pub(super) world: Arc<World>,
    pub(super) plan: Arc<Plan>,
    pub(super) judge: Judge,
    pub(super) agenda: Agenda<Event>,
    pub(super) network: Network,
    machines: Vec<Machine>,
    processes: u64,
    pub(super) calls: Calls,
    pub(super) course: Course,
    /// Power cuts that wait for an election: how long after it.
    pub(super) awaiting_election: Vec<(u64, Vec<u64>)>,
    /// Kept between passes, for its memory.
    pass: Pass,
}

impl Cluster {
    /// A cluster of machines that are off.
    pub(super) fn new(world: Arc<World>, plan: Arc<Plan>) -> Cluster {
        let seed = world.seed;
        let mut clocks = Rng::stream(seed, "clocks", 0);
        let machine = |node: &NodeId| {
            let drift_ppm = clocks.range(0, 400) as i64 - 200;
            let wall_offset_ms = clocks.range(0, 20_000) as i64 - 10_000;
            Machine::new(*node, seed, Drifting::new(drift_ppm, wall_offset_ms))
        };
        Cluster {
            judge: Judge::new(world.clone(), &plan.nodes),
            agenda: Agenda::new(),
            network: Network::new(seed, plan.weather),
            machines: plan.nodes.iter().map(machine).collect(),
            processes: 0,
            calls: Calls::default(),
            course: Course::new(&plan, seed),
            awaiting_election: Vec::new(),
            pass: Pass::default(),
            world,
            plan,
        }
    }

    pub(super) fn machine(&self, node: NodeId) -> &Machine {
        &self.machines[node.0 as usize - 1]
    }

    pub(super) fn machine_mut(&mut self, node: NodeId) -> &mut Machine {
        &mut self.machines[node.0 as usize - 1]
    }

    /// The process of a node, if it is that one.
    pub(super) fn process(&mut self, node: NodeId, id: u64) -> Option<&mut Process> {
        self.machine_mut(node).process.as_mut().filter(|process| process.id == id)
    }

    /// The process that runs on a node: not one that still boots.
    pub(super) fn running(&self, node: NodeId) -> Option<&Process> {
        self.machine(node).process.as_ref().filter(|process| process.driver().is_some())
    }

    /// Whether a node takes calls.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.running(node).is_some()
    }

    /// Runs until the course is done, something is found, or the time asked for is reached.
    pub(super) fn run(&mut self, until_ns: u64) {
        self.begin();
        while !self.course.is_done() && !self.world.has_failed() && now_ns() < until_ns {
            let Some(event) = self.agenda.next() else { return };
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(node) => self.start(node),
            Event::Booted { node, process } => self.booted(node, process),
            Event::Wake { node, process } => self.woken(node, process),
            Event::Arrive(parcel) => self.arrive(*parcel),
            Event::Synced { node, process, dies } => self.synced(node, process, dies),
            Event::Done { node, process, input } => {
                self.deliver(node, process, Arrival::Done(*input));
            }
            Event::Apply { node, process, group, entries } => {
                self.apply(node, process, group, &entries);
            }
            Event::Freeze { node, process, group, checkpoint } => {
                self.freeze(node, process, group, checkpoint);
            }
            Event::Flushed { node, process, group, checkpoint } => {
                if self.process(node, process).is_some() {
                    let Checkpoint { at, pruned, control } = checkpoint;
                    let states = &mut self.machine_mut(node).states;
                    states.entry(group).or_default().flushed(at, pruned, control);
                    let input = Input::Checkpointed { group, lsn: at.lsn };
                    self.deliver(node, process, Arrival::Done(input));
                }
            }
            Event::Install { node, process, group, prefixes } => {
                self.install(node, process, group, &prefixes);
            }
            Event::Call { call, turn } => self.wake_call(call, turn),
            Event::Patience { caller } => self.look_after(caller),
            Event::Caller(caller) => self.caller_goes_on(caller),
            Event::Course(turn) => self.course_goes_on(turn),
            Event::Strike(nth) => self.strike(nth),
            Event::Resume { node, process } => self.resume(node, process),
            Event::Mend { links, cut } => self.network.mend(&links, cut),
            Event::Clear => self.clear_weather(),
            Event::Hasten(node) => self.machine_mut(node).slowness = 1,
            Event::CutPower { down_ms } => self.cut_power(&down_ms),
        }
    }

    // --- life and death ---

    /// Starts a process, unless one runs.
    fn start(&mut self, node: NodeId) {
        if self.machine(node).process.is_some() {
            return;
        }
        self.processes += 1;
        let process = self.processes;
        self.world
            .event(Kind::Process, node.0, process, 0, 0, || format!("starts as process {process}"));
        let machine = self.machine_mut(node);
        machine.process = Some(Process::new(process, BOOT_SYNCS));
        if let Some(fuse) = machine.fuse_at_start.take() {
            machine.fuse = Some((fuse, Crash::Power));
        }
        self.boot(node, process);
    }

    /// The next sync of a start.
    fn boot(&mut self, node: NodeId, process: u64) {
        let machine = self.machine_mut(node);
        let ns = machine.disk_ns(200, 2_500);
        match machine.burns(DiskCall::Sync) {
            None => self.agenda.after(ns, Event::Booted { node, process }),
            Some(crash) => {
                self.agenda.after(ns / 2, Event::Synced { node, process, dies: Some(crash) });
            }
        }
    }

    fn booted(&mut self, node: NodeId, id: u64) {
        let Some(process) = self.process(node, id) else { return };
        let Stage::Boots(left) = &mut process.stage else { return };
        if *left == BOOT_SYNCS {
            *left -= 1;
            self.machine_mut(node).count_boot();
            return self.boot(node, id);
        }
        let plan = self.plan.clone();
        match self.machine_mut(node).recover(now_ns(), &plan.nodes, &plan.first.core) {
            Err(error) => {
                self.world.fail("recovery", format!("{node:?} does not start: {error}"));
            }
            Ok((driver, found)) => {
                self.judge.recovered(
                    (node, id),
                    &plan.first.core,
                    &Found {
                        incarnation: driver.me().member.incarnation,
                        members: found.formation.as_ref().map(|formation| &formation.members[..]),
                        groups: &found.groups,
                        boots: &found.boots,
                        doubt: found.doubt,
                    },
                );
                self.world.event(Kind::Process, node.0, id, found.groups.len() as u64, 0, || {
                    let last: Vec<_> =
                        found.groups.iter().map(|g| (g.group, g.term, g.last)).collect();
                    format!("recovered {last:?}")
                });
                if let Some(process) = self.process(node, id) {
                    process.stage = Stage::Runs(Box::new(driver));
                }
                self.step(node);
            }
        }
    }

    /// Ends a process. Whether there was one.
    pub(super) fn crash(&mut self, node: NodeId, crash: Crash) -> bool {
        let machine = self.machine_mut(node);
        let Some(process) = machine.process.take() else { return false };
        let (unsynced, kept) = machine.crash(crash);
        let down_ms = machine.down_ms.take();
        let down_ms = down_ms.unwrap_or_else(|| machine.rng.heavy(10, 2_000));
        if let Stage::Boots(BOOT_SYNCS) = process.stage
            && machine.rng.percent(50)
        {
            machine.count_boot();
        }
        self.world.saw_times(Seen::CrashInRecovery, u64::from(process.driver().is_none()));
        self.world.saw_times(Seen::LostUnsynced, u64::from(kept < unsynced));
        self.world.saw_times(Seen::TornWrite, u64::from(0 < kept && kept < unsynced));
        self.world.saw(match crash {
            Crash::Kill => Seen::ProcessKilled,
            Crash::Power => Seen::PowerCut,
        });
        self.world.fault(node.0, || format!("{crash:?}: {kept} of {unsynced} records stay"));
        self.agenda.after(down_ms * 1_000_000, Event::Start(node));
        self.silence_calls(process.id);
        true
    }

    /// Holds a process still, for a while.
    pub(super) fn pause(&mut self, node: NodeId, ms: u64) {
        let machine = self.machine_mut(node);
        let Some(process) = machine.process.as_mut().filter(|process| !process.paused) else {
            return;
        };
        process.paused = true;
        let process = process.id;
        machine.pauses += 1;
        self.world.saw(Seen::Paused);
        self.agenda.after(ms * 1_000_000, Event::Resume { node, process });
    }

    pub(super) fn resume(&mut self, node: NodeId, id: u64) {
        let Some(process) = self.process(node, id) else { return };
        if !std::mem::take(&mut process.paused) {
            return;
        }
        for (call, turn) in std::mem::take(&mut process.held) {
            self.wake_call(call, turn);
        }
        self.step(node);
    }

    // --- a process ---

    /// Something arrives at a process.
    pub(super) fn deliver(&mut self, node: NodeId, id: u64, arrival: Arrival) {
        if let Arrival::Done(input) = &arrival {
            self.judge.takes((node, id), std::slice::from_ref(input));
        }
        if let Some(driver) = self.process(node, id).and_then(Process::driver_mut) {
            driver.push(arrival);
            self.step(node);
        }
    }

    fn arrive(&mut self, parcel: Parcel) {
        let node = parcel.to;
        let runs = self.running(node).map(|process| process.id);
        if self.network.arrives(&self.world, &parcel, runs) {
            let Parcel { from, process, message, .. } = parcel;
            self.deliver(node, process, Arrival::Message(from, message));
        }
    }

    fn woken(&mut self, node: NodeId, id: u64) {
        if let Some(process) = self.process(node, id) {
            if process.wakes_ns <= now_ns() {
                process.wakes_ns = u64::MAX;
            }
            self.step(node);
        }
    }

    /// A clock has changed its pace: deadlines come at other times.
    pub(super) fn rewake(&mut self, node: NodeId) {
        if let Some(process) = self.machine_mut(node).process.as_mut() {
            process.wakes_ns = u64::MAX;
            self.step(node);
        }
    }

    /// Lets a process take a step if it is due, and sees to it that it is woken for the next one.
    fn step(&mut self, node: NodeId) {
        let at_ns = now_ns();
        let machine = &mut self.machines[node.0 as usize - 1];
        let Some(process) = machine.process.as_mut().filter(|process| !process.paused) else {
            return;
        };
        let Stage::Runs(driver) = &mut process.stage else { return };
        let Some(due) = driver.deadline() else { return };
        let due_ns = machine.clock.at_ns(due).max(process.busy_until_ns);
        if due_ns > at_ns {
            if due_ns < process.wakes_ns {
                process.wakes_ns = due_ns;
                self.agenda.at(due_ns, Event::Wake { node, process: process.id });
            }
            return;
        }
        if let Some((left, crash)) = &mut machine.steps_left {
            if *left == 0 {
                let crash = *crash;
                self.world.saw(Seen::CrashAtAwait);
                self.crash(node, crash);
                return;
            }
            *left -= 1;
        }
        process.busy_until_ns = at_ns + machine.step_ns;
        process.steps += 1;
        let (id, steps) = ((node, process.id), process.steps);
        let mut pass = std::mem::take(&mut self.pass);
        driver.pass(machine.clock.now(at_ns), &mut pass, |core, effects| {
            if steps.is_multiple_of(CHECK_EVERY) {
                self.judge.inspects(id, core);
            }
            self.judge.step(id, core, effects);
        });
        let me = driver.me();
        self.carry_out(id, me, &mut pass);
        self.pass = pass;
        self.step(node);
    }

    fn carry_out(&mut self, (node, id): (NodeId, u64), me: highwater_core::Peer, pass: &mut Pass) {
        for (to, message) in pass.sends.drain(..) {
            let Some(process) = self.running(to).map(|process| process.id) else { continue };
            let agenda = &mut self.agenda;
            self.network.send(&self.world, me, (to, process), message, |at_ns, parcel| {
                agenda.at(at_ns, Event::Arrive(Box::new(parcel)));
            });
        }
        for job in pass.jobs.drain(..) {
            // One of them may be its last.
            if self.process(node, id).is_some() {
                self.job(node, id, job);
            }
        }
        if std::mem::take(&mut pass.elected) {
            self.elected();
        }
        // Calls go on once all this is done, as they would on a runtime.
        let answers = std::mem::take(&mut pass.answers);
        let parked = match self.process(node, id) {
            Some(process) if std::mem::take(&mut pass.routes_changed) => {
                std::mem::take(&mut process.parked)
            }
            _ => Vec::new(),
        };
        for (call, answer) in answers {
            self.call_answered(call, answer);
        }
        for (call, turn) in parked {
            self.reroute_call(call, turn);
        }
    }

    fn job(&mut self, node: NodeId, process: u64, job: Effect) {
        match job {
            Effect::Persist { write, records } => {
                let count = records.len() as u64;
                self.world.event(Kind::LogWrite, node.0, write.0, count, 0, || {
                    format!("{write:?}: {count} records")
                });
                self.machine_mut(node).oplog.write(write, records);
                if !self.dies_at(node, process, DiskCall::Other) {
                    self.begin_sync(node, process);
                }
            }
            Effect::Load { load, group, from, to, max_bytes } => {
                let machine = self.machine_mut(node);
                let entries = machine.oplog.load(group, from, to, max_bytes);
                let ns = machine.disk_ns(5, 40);
                let input = Box::new(if entries.is_empty() {
                    self.judge.erred((node, process));
                    Input::LoadFailed { load, reason: "damaged".to_owned() }
                } else {
                    Input::Loaded { load, entries }
                });
                self.agenda.after(ns, Event::Done { node, process, input });
                self.dies_at(node, process, DiskCall::Other);
            }
            Effect::Mend { group, entries } => {
                self.world.saw(Seen::Mended);
                self.machine_mut(node).oplog.mend(group, &entries);
            }
            Effect::ReadControl { group, prefixes, .. } => {
                let at_ns = self.state_job_ns(node, process);
                let state = self.machine_mut(node).states.get(&group);
                let (at, rows) = state.map(|s| s.control_rows(&prefixes)).unwrap_or_default();
                let input = Box::new(Input::Control { group, at, rows });
                self.agenda.at(at_ns, Event::Done { node, process, input });
            }
            Effect::Apply { group, entries } => {
                let at_ns = self.state_job_ns(node, process);
                self.agenda.at(at_ns, Event::Apply { node, process, group, entries });
            }
            Effect::Checkpoint { group, at, pruned, control } => {
                let at_ns = self.state_job_ns(node, process);
                let checkpoint = Checkpoint { at, pruned, control };
                self.agenda.at(at_ns, Event::Freeze { node, process, group, checkpoint });
            }
            Effect::Bootstrap { group, from, above } => {
                let input = Box::new(self.snapshot(node, group, from, above));
                let ns = self.machine_mut(node).disk_ns(2_000, 50_000);
                self.agenda.after(ns, Event::Done { node, process, input });
            }
            Effect::Install { group, prefixes, .. } => {
                let at_ns = self.state_job_ns(node, process);
                self.agenda.at(at_ns, Event::Install { node, process, group, prefixes });
            }
            Effect::Halt { reason } => {
                self.world.fail("halt", format!("{node:?} ended by itself: {reason}"));
            }
            Effect::Fence { reason, .. } => {
                self.world.fail("halt", format!("{node:?} is fenced: {reason}"));
            }
            other => unreachable!("not a job of the machine's: {other:?}"),
        }
    }

    /// The machine dies at this call to its disk, if its fuse says so. Whether it does.
    fn dies_at(&mut self, node: NodeId, process: u64, call: DiskCall) -> bool {
        let crash = match self.process(node, process) {
            Some(_) => self.machine_mut(node).burns(call),
            None => return true,
        };
        if let Some(crash) = crash {
            self.world.saw(Seen::CrashAtLogCall);
            self.crash(node, crash);
        }
        crash.is_some()
    }

    fn begin_sync(&mut self, node: NodeId, process: u64) {
        let machine = self.machine_mut(node);
        if !machine.oplog.begin_sync() {
            return;
        }
        let ns = machine.disk_ns(210, 2_600);
        let dies = machine.burns(DiskCall::Sync);
        self.world.saw_times(Seen::SlowIo, u64::from(ns >= 20_000_000));
        // It dies in the middle.
        let ns = if dies.is_some() { ns / 2 } else { ns };
        self.agenda.after(ns, Event::Synced { node, process, dies });
    }

    fn synced(&mut self, node: NodeId, process: u64, dies: Option<Crash>) {
        if self.process(node, process).is_none() {
            return;
        }
        if let Some(crash) = dies {
            self.world.saw(Seen::CrashInSync);
            self.crash(node, crash);
            return;
        }
        let last = self.machine_mut(node).oplog.end_sync();
        self.begin_sync(node, process);
        if let Some(write) = last {
            self.world.event(Kind::Sync, node.0, write.0, 0, 0, || format!("{write:?}"));
            self.deliver(node, process, Arrival::Done(Input::Persisted { write }));
        }
    }

    // --- the state ---

    /// When the state's worker comes to its next job.
    fn state_job_ns(&mut self, node: NodeId, process: u64) -> u64 {
        let at_ns = now_ns();
        self.process(node, process).map_or(at_ns, |process| {
            process.applied_ns = process.applied_ns.max(at_ns) + APPLY_NS;
            process.applied_ns
        })
    }

    fn apply(&mut self, node: NodeId, id: u64, group: GroupId, entries: &[Entry]) {
        let Some(process) = self.process(node, id) else { return };
        let behind = std::mem::take(&mut process.behind);
        let outcomes =
            self.machine_mut(node).states.entry(group).or_default().apply(group, entries);
        self.judge.applied((node, id), group, entries, &outcomes);
        let upto = entries.last().map(|entry| entry.lsn).unwrap_or_default();
        let input = Input::Applied { group, upto, outcomes };
        self.deliver(node, id, Arrival::Done(input));
        for (call, turn) in behind {
            self.wake_call(call, turn);
        }
    }

    /// A snapshot is made and travels in one moment, where its donor runs and can be reached.
    fn snapshot(&mut self, node: NodeId, group: GroupId, from: NodeId, above: Lsn) -> Input {
        let reached = self.is_up(from) && self.network.reaches(node, from);
        let held = self.machine(from).states.get(&group).filter(|_| reached).map(State::snapshot);
        match held.filter(|state| state.checkpointed().lsn >= above) {
            Some(state) => {
                let at = state.checkpointed();
                self.machine_mut(node).snapshots.insert(group, state);
                Input::SnapshotReady { group, at }
            }
            None => Input::SnapshotFailed { group, reason: "it has none".to_owned() },
        }
    }

    fn install(&mut self, node: NodeId, id: u64, group: GroupId, prefixes: &[Bytes]) {
        if self.process(node, id).is_none() {
            return;
        }
        let machine = self.machine_mut(node);
        let state = machine.snapshots.remove(&group).expect("what is installed is ready");
        let (at, rows) = state.control_rows(prefixes);
        machine.states.insert(group, state);
        self.deliver(node, id, Arrival::Done(Input::Control { group, at, rows }));
    }

    fn freeze(&mut self, node: NodeId, id: u64, group: GroupId, checkpoint: Checkpoint) {
        let (at_ns, lsn) = (now_ns(), checkpoint.at.lsn);
        let applied = self.machine_mut(node).states.entry(group).or_default().applied();
        let Some(process) = self.process(node, id) else { return };
        // After a restart the state may be ahead of what the core has replayed: durable already.
        if group != GroupId::SYSTEM && applied > lsn {
            let input = Input::Checkpointed { group, lsn };
            return self.deliver(node, id, Arrival::Done(input));
        }
        process.flushed_ns = process.flushed_ns.max(at_ns) + FLUSH_NS;
        let at_ns = process.flushed_ns;
        self.agenda.at(at_ns, Event::Flushed { node, process: id, group, checkpoint });
    }
}
