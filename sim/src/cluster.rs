//! The machines and the processes on them: starting, ending, pausing, and asking. The order of a
//! crash is: fence the process, fence the disk, then kill, because what a killed task owns is still
//! dropped in order.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use highwater_core::{
    ClusterId, Config, Effect, Entry, GroupId, GroupMessage, Identity, Incarnation, Input, Member,
    Message, Node, NodeId, Notice, Outcome, Peer, Recovered,
};
use highwater_node::{
    Exit, Handle, Observer, Options, Parts, ScrubPace,
    env::{Inbound, Transport},
};
use highwater_quic::Quic;
use highwater_store::{
    identity::{self, IdentityError},
    oplog::{self, RecoveredLog},
    state::States,
};
use madsim::{runtime::Handle as Runtime, task::NodeId as MachineId};
use tokio::sync::mpsc;

use crate::{
    atlas::Atlas,
    clock::SimClock,
    disk::SimDisk,
    judge::{Found, Judge, ProcessId},
    net::{Network, Receiver, SimTransport},
    page::acts,
    plan::{Crash, Limits, Plan},
    quic::{self, Cabling},
    rng::Rng,
    stats::Seen,
    timer::{now_ns, until},
    trace::Kind,
    world::World,
};

const CLUSTER: ClusterId = ClusterId(0x5117);
/// Messages that wait for a node's driver.
const INBOUND_MAX: usize = 4_096;
/// Often enough to find what is damaged within a run.
const SCRUB: ScrubPace = ScrubPace { bytes_per_s: 4 << 20, pause_ms: 8_000 };
/// How long a process that is asked to stop may take for its leaderships.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// One process: a machine has one at a time, or none.
#[derive(Debug)]
pub(crate) struct Process {
    /// Where, and unique in the run.
    pub(crate) id: ProcessId,
    dead: AtomicBool,
}

impl Process {
    pub(crate) fn new(id: ProcessId) -> Arc<Process> {
        Arc::new(Process { id, dead: AtomicBool::new(false) })
    }

    /// From now on nothing it does counts.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether it has ended: nothing it does counts any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Running {
    process: Option<Arc<Process>>,
    /// Once it has started.
    handle: Option<Handle>,
    /// Its transport, if that is the real one.
    quic: Option<Quic>,
    paused: bool,
    /// How often it was paused.
    pauses: u64,
    /// After how many awaits of its driver the process ends.
    awaits_left: Option<(u64, Crash)>,
    /// Drawn before the crash.
    down_ms: Option<u64>,
    /// It was asked to stop.
    draining: bool,
}

/// A machine: its disk, its clock, and what runs on it.
pub(crate) struct Machine {
    id: Mutex<Option<MachineId>>,
    /// Its disk, through all restarts.
    pub(crate) disk: Arc<SimDisk>,
    /// Its clock.
    pub(crate) clock: SimClock,
    running: Mutex<Running>,
    rng: Mutex<Rng>,
    /// Which of the plan's limits hold for the next process; `None`: the first ones.
    limits: Mutex<Option<usize>>,
    /// Whose its data directory is, as the last start found it; `None` once it was wiped.
    member: Mutex<Option<Member>>,
    /// No process starts here any more.
    is_gone: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cluster of one run.
pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) network: Arc<Network>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) atlas: Arc<Atlas>,
    machines: BTreeMap<NodeId, Machine>,
    /// If the nodes talk by real QUIC.
    cabling: Option<Cabling>,
    runtime: Runtime,
    processes: Mutex<u64>,
    /// Told of each process that has ended, with how long its machine stays down.
    ended: mpsc::UnboundedSender<(NodeId, u64)>,
}

impl Cluster {
    /// A cluster of machines that are off.
    pub(crate) fn new(
        world: Arc<World>,
        plan: Arc<Plan>,
    ) -> (Arc<Cluster>, mpsc::UnboundedReceiver<(NodeId, u64)>) {
        let (ended, endings) = mpsc::unbounded_channel();
        let mut clocks = Rng::stream(world.seed, "clocks", 0);
        let machine = |node: &NodeId| {
            let drift_ppm = clocks.range(0, 400) as i64 - 200;
            let wall_offset_ms = clocks.range(0, 20_000) as i64 - 10_000;
            let machine = Machine {
                id: Mutex::new(None),
                disk: SimDisk::new(world.clone(), node.0),
                clock: SimClock::new(world.clone(), node.0, drift_ppm, wall_offset_ms),
                running: Mutex::default(),
                rng: Mutex::new(Rng::stream(world.seed, "machine", node.0)),
                limits: Mutex::default(),
                member: Mutex::default(),
                is_gone: AtomicBool::new(false),
            };
            (*node, machine)
        };
        let machines = plan.nodes.iter().map(machine).collect();
        let cabling = plan.quic.then(|| Cabling::new(CLUSTER, &plan.nodes)).and_then(|made| {
            made.inspect_err(|error| world.fail("harness", error.to_string())).ok()
        });
        let cluster = Arc::new(Cluster {
            network: Arc::new(Network::new(world.clone(), plan.weather)),
            judge: Arc::new(Judge::new(world.clone(), &plan.nodes)),
            atlas: Arc::new(Atlas::new(&plan.nodes)),
            machines,
            cabling,
            runtime: Runtime::current(),
            processes: Mutex::new(0),
            ended,
            world,
            plan,
        });
        for (node, machine) in &cluster.machines {
            let (node, weak) = (*node, Arc::downgrade(&cluster));
            machine.disk.on_fuse(move |crash| {
                if let Some(cluster) = weak.upgrade() {
                    cluster.crash(node, crash);
                }
            });
        }
        (cluster, endings)
    }

    /// A machine of the cluster.
    pub(crate) fn machine(&self, node: NodeId) -> &Machine {
        &self.machines[&node]
    }

    /// Every node, in order.
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.plan.nodes
    }

    // --- life and death ---

    /// Starts a process, unless one runs, or none is to.
    pub(crate) fn start(self: &Arc<Cluster>, node: NodeId) {
        let machine = self.machine(node);
        if machine.is_gone.load(Ordering::Relaxed) {
            return;
        }
        let process = {
            let mut running = lock(&machine.running);
            if running.process.is_some() {
                return;
            }
            let mut processes = lock(&self.processes);
            *processes += 1;
            let process = Process::new((node, *processes));
            running.process = Some(process.clone());
            process
        };
        self.world.event(Kind::Process, node.0, process.id.1, 0, 0, || {
            format!("starts as process {}", process.id.1)
        });
        self.world.tell(|story| story.starts(node));
        let mut id = lock(&machine.id);
        match *id {
            Some(id) => self.runtime.restart(id),
            None => {
                let weak = Arc::downgrade(self);
                let init = move || {
                    let weak = weak.clone();
                    async move {
                        if let Some(cluster) = weak.upgrade() {
                            cluster.run(node).await;
                        }
                    }
                };
                let name = format!("n{}", node.0);
                let started = self.runtime.create_node().name(name).init(init).build().id();
                acts::runs(started, node);
                *id = Some(started);
            }
        }
    }

    /// Ends a process. Whether there was one.
    pub(crate) fn crash(&self, node: NodeId, crash: Crash) -> bool {
        let machine = self.machine(node);
        // The last handle closes the state's files, which are calls to the disk: it goes once that is
        // fenced and nothing is locked.
        let (down_ms, _handle) = {
            let mut running = lock(&machine.running);
            let Some(process) = running.process.take() else { return false };
            process.die();
            let Running { paused, down_ms, handle, quic, .. } = std::mem::take(&mut *running);
            self.count_connections(quic);
            self.world.saw_times(Seen::CrashInRecovery, u64::from(handle.is_none()));
            if paused && let Some(id) = *lock(&machine.id) {
                // madsim drops the tasks of a paused node while it holds a lock.
                self.runtime.resume(id);
            }
            (down_ms, handle)
        };
        self.network.detach(node);
        let loss = machine.disk.fence(crash);
        self.world.saw(match crash {
            Crash::Kill => Seen::ProcessKilled,
            Crash::Power => Seen::PowerCut,
        });
        self.world.fault(node.0, || format!("{crash:?}: {loss:?}"));
        self.world.tell(|story| story.dies(node));
        if let Some(id) = *lock(&machine.id) {
            self.runtime.kill(id);
        }
        let down_ms = down_ms.unwrap_or_else(|| lock(&machine.rng).heavy(10, 2_000));
        let _ = self.ended.send((node, down_ms));
        true
    }

    /// Asks a process to stop. Whether there was one to ask.
    pub(crate) fn drain(&self, node: NodeId) -> bool {
        let machine = self.machine(node);
        let handle = {
            let mut running = lock(&machine.running);
            let Some(handle) = running.handle.clone().filter(|_| !running.paused) else {
                return false;
            };
            running.draining = true;
            handle
        };
        let id = *lock(&machine.id);
        if let Some(machine) = id.and_then(|id| self.runtime.get_node(id)) {
            drop(machine.spawn(async move { handle.drain(DRAIN_TIMEOUT).await }));
        }
        true
    }

    /// No process runs here any more, for good.
    pub(crate) fn bury(&self, node: NodeId) {
        self.machine(node).is_gone.store(true, Ordering::Relaxed);
        self.crash(node, Crash::Kill);
    }

    /// Sets the limits of the next process, by their place in the plan.
    pub(crate) fn set_limits(&self, node: NodeId, limits: Option<usize>) {
        *lock(&self.machine(node).limits) = limits;
    }

    /// Whether a process runs that has recovered, and is neither paused nor about to end.
    pub(crate) fn is_well(&self, node: NodeId) -> bool {
        let running = lock(&self.machine(node).running);
        running.handle.is_some() && !running.paused && !running.draining
    }

    /// Sets how long the machine stays down after its next crash.
    pub(crate) fn set_down_ms(&self, node: NodeId, ms: u64) {
        lock(&self.machine(node).running).down_ms = Some(ms);
    }

    /// The process ends at the n-th await of its driver from now.
    pub(crate) fn set_await_fuse(&self, node: NodeId, awaits: u64, crash: Crash) {
        lock(&self.machine(node).running).awaits_left = Some((awaits, crash));
    }

    /// Holds a process still. Whether there was one that ran.
    pub(crate) fn pause(&self, node: NodeId) -> bool {
        let machine = self.machine(node);
        let mut running = lock(&machine.running);
        if running.process.is_none() || running.paused {
            return false;
        }
        (running.paused, running.pauses) = (true, running.pauses + 1);
        self.world.tell(|story| story.paused(node, true));
        if let Some(id) = *lock(&machine.id) {
            self.runtime.pause(id);
        }
        true
    }

    /// Lets it go on.
    pub(crate) fn resume(&self, node: NodeId) {
        let machine = self.machine(node);
        let mut running = lock(&machine.running);
        let was_paused = std::mem::take(&mut running.paused);
        if was_paused {
            self.world.tell(|story| story.paused(node, false));
        }
        if was_paused && let Some(id) = *lock(&machine.id) {
            self.runtime.resume(id);
        }
    }

    /// Takes every fault back that lasts: fuses, slow disks, pauses, cut links.
    pub(crate) fn heal(&self) {
        self.calm();
        for (node, machine) in &self.machines {
            self.resume(*node);
            if machine.disk.has_erred() {
                // What a failing disk put out of service stays so until an operator starts it again.
                self.crash(*node, Crash::Kill);
            }
        }
    }

    /// ... except pauses.
    pub(crate) fn calm(&self) {
        self.network.heal();
        for machine in self.machines.values() {
            machine.disk.calm();
            lock(&machine.running).awaits_left = None;
        }
    }

    /// The run is over: nothing that is dropped from now on has any effect.
    pub(crate) fn end(&self) {
        for (node, machine) in &self.machines {
            let mut running = lock(&machine.running);
            if let Some(process) = running.process.take() {
                process.die();
            }
            self.count_connections(std::mem::take(&mut *running).quic);
            self.network.detach(*node);
            machine.disk.discard();
        }
    }

    /// Kills what still runs, so that its memory is freed. After [`Cluster::end`].
    pub(crate) fn kill_all(&self) {
        for machine in self.machines.values() {
            if let Some(id) = *lock(&machine.id) {
                self.runtime.resume(id);
                self.runtime.kill(id);
            }
        }
    }

    // --- a process ---

    async fn run(self: Arc<Cluster>, node: NodeId) {
        let Some(process) = lock(&self.machine(node).running).process.clone() else { return };
        let exit = match self.boot(&process).await {
            Ok(driver) => driver.await,
            // It died of a call that it could not finish: nothing it says counts.
            Err(_) if process.is_dead() => return,
            Err(what) => return self.start_failed(node, &what),
        };
        if process.is_dead() {
            return;
        }
        if let Exit::Fenced { beyond, .. } = exit
            && self.atlas.is_lost(node)
        {
            self.world.saw(Seen::RolledBack);
            if let Err(error) = self.renew(node, beyond).await
                && !process.is_dead()
                && !self.machine(node).disk.excuses_start()
            {
                self.world.fail("fence", format!("{node:?}: {error}"));
            }
        }
        if !process.is_dead() {
            self.ended(node, exit);
        }
    }

    /// Gives a data directory a new incarnation, as its server would.
    async fn renew(&self, node: NodeId, beyond: Incarnation) -> Result<(), IdentityError> {
        let machine = self.machine(node);
        let wall_ms = highwater_node::env::Clock::now(&machine.clock).wall_ms;
        let random = u128::from(lock(&machine.rng).next());
        identity::renew(&machine.disk.same_handle(), wall_ms, random, beyond).await.map(drop)
    }

    /// A process that was not killed has ended.
    fn ended(&self, node: NodeId, exit: Exit) {
        let machine = self.machine(node);
        match &exit {
            Exit::Drained if lock(&machine.running).draining => self.world.saw(Seen::Drained),
            Exit::Halted(_) if machine.disk.has_erred() => self.world.saw(Seen::Halted),
            Exit::Fenced { .. } if self.atlas.is_lost(node) => {}
            _ => {
                let what = format!("{node:?} ended by itself: {exit:?}");
                return self.world.fail("halt", what);
            }
        }
        self.world.fault(node.0, || format!("ends: {exit:?}"));
        self.crash(node, Crash::Kill);
    }

    fn start_failed(&self, node: NodeId, what: &str) {
        let disk = &self.machine(node).disk;
        if !disk.excuses_start() {
            return self.world.fail("recovery", format!("{node:?} does not start: {what}"));
        }
        self.world.saw(Seen::StartFailed);
        self.world.fault(node.0, || format!("refuses to start: {what}"));
        self.crash(node, Crash::Kill);
    }

    /// What a process does from its start until its driver runs.
    async fn boot(
        self: &Arc<Cluster>,
        process: &Arc<Process>,
    ) -> Result<impl Future<Output = Exit> + use<>, String> {
        let node = process.id.0;
        let machine = self.machine(node);
        let disk = machine.disk.handle();
        let (random, seed) = {
            let mut rng = lock(&machine.rng);
            machine.clock.restart(rng.below(1 << 40));
            (u128::from(rng.next()) << 64 | u128::from(rng.next()), rng.next())
        };
        let wall_ms = highwater_node::env::Clock::now(&machine.clock).wall_ms;
        let start = identity::open(&disk, CLUSTER, node, wall_ms, random)
            .await
            .map_err(|error| format!("identity: {error}"))?;
        let limits = self.limits_of(node);
        let opened = oplog::open(disk.clone(), &start, limits.oplog)
            .await
            .map_err(|error| format!("oplog: {error}"))?;
        let (member, boot) = (opened.member, start.boot);
        let found = &opened.recovered;
        self.world.saw_times(Seen::TailCut, u64::from(found.cut_bytes > 0));
        self.world.event(Kind::Process, node.0, process.id.1, found.cut_bytes, 0, || {
            let last: Vec<_> = found.groups.iter().map(|g| (g.group, g.term, g.last)).collect();
            format!("recovered {last:?}, cut {} bytes", found.cut_bytes)
        });
        self.world.tell(|story| story.recovers(node, &found.groups));
        self.recovered(process.id, &limits.core, member, found);
        let states = States::new(Box::new(disk.state_files()), limits.state)
            .map_err(|error| format!("states: {error}"))?;
        let states = Arc::new(states);
        let (deliver, inbound) = mpsc::channel(INBOUND_MAX);
        let (starts, nodes) = (start.starts, self.plan.nodes.clone());
        let identity = Identity { cluster: CLUSTER, member, boot, starts, nodes };
        let options = Options {
            core: limits.core.clone(),
            identity,
            seed,
            addresses: self.plan.nodes.iter().map(|n| (*n, format!("n{}", n.0))).collect(),
            http: format!("n{}", node.0),
            version: "simulated".to_owned(),
            scrub: SCRUB,
            snapshot_bytes_per_s: 0,
        };
        let transport = self.connect(process, Peer { member, boot }, deliver)?;
        let parts = Parts {
            clock: machine.clock.clone(),
            opened,
            states,
            transport,
            inbound,
            observer: Some(Arc::new(Watcher {
                judge: self.judge.clone(),
                atlas: self.atlas.clone(),
                world: self.world.clone(),
                disk: machine.disk.clone(),
                process: process.clone(),
                steps: AtomicU64::new(0),
            })),
        };
        let (handle, driver) =
            highwater_node::start(options, parts).map_err(|error| format!("start: {error}"))?;
        if !process.is_dead() {
            lock(&machine.running).handle = Some(handle);
        }
        Ok(Fused { cluster: self.clone(), process: process.clone(), driver: Box::pin(driver) })
    }

    /// Tells the atlas and the judge what a start has found.
    fn recovered(&self, id: ProcessId, core: &Config, member: Member, found: &RecoveredLog) {
        let node = member.node;
        let machine = self.machine(node);
        let fenced = lock(&machine.member).replace(member).is_some_and(|known| known != member);
        if fenced {
            self.world.saw(Seen::Fenced);
            self.atlas.lose(node);
        }
        self.atlas.recovers(node);
        let doubt = Recovered { doubt: found.doubt, ..Recovered::default() };
        if found.groups.iter().any(|group| doubt.is_in_doubt(group)) {
            self.world.saw(Seen::InDoubt);
            self.atlas.weakens(node);
        }
        let lost = Recovered { groups: found.groups.clone(), ..doubt }.lost_states();
        let replaced = machine.disk.take_replaced();
        let gone = replaced.into_iter().chain(lost.into_keys());
        gone.for_each(|group| self.judge.drops_state(node, group));
        let members = found.formation.as_ref().map(|formation| &formation.members[..]);
        let found = Found {
            incarnation: member.incarnation,
            members,
            groups: &found.groups,
            boots: &found.boots,
            doubt: found.doubt,
        };
        self.judge.recovered(id, core, &found);
    }

    /// A node's disk is blank.
    pub(crate) fn wiped(&self, node: NodeId) {
        *lock(&self.machine(node).member) = None;
        self.atlas.lose(node);
        self.judge.wiped(node);
    }

    fn limits_of(&self, node: NodeId) -> &Limits {
        let other = lock(&self.machine(node).limits).and_then(|n| self.plan.limits.get(n));
        self.world.saw_times(Seen::OtherLimits, u64::from(other.is_some()));
        other.unwrap_or(&self.plan.first)
    }

    /// Connects a process to the network, unless it is dead already.
    fn connect(
        &self,
        process: &Arc<Process>,
        identity: Peer,
        inbound: mpsc::Sender<Inbound>,
    ) -> Result<Arc<dyn Transport>, String> {
        let (node, id) = process.id;
        if process.is_dead() {
            return Err("it is dead".to_owned());
        }
        let Some(cabling) = &self.cabling else {
            self.network.attach(node, id, Receiver::Driver(inbound));
            let transport = SimTransport::new(self.network.clone(), identity, process.clone());
            return Ok(Arc::new(transport));
        };
        let mut rng = Rng::stream(self.world.seed, "quic", id);
        let (transport, quic) =
            quic::start(cabling, &self.network, process, identity, &mut rng, inbound)
                .map_err(|error| format!("quic: {error}"))?;
        lock(&self.machine(node).running).quic = Some(quic);
        Ok(transport)
    }

    fn count_connections(&self, quic: Option<Quic>) {
        let Some(counters) = quic.map(|quic| quic.counters()) else { return };
        self.world.saw_times(Seen::RealQuic, counters.connected);
        self.world.saw_times(Seen::QuicReconnected, counters.reconnected);
    }

    fn burn_await(&self, process: &Process) {
        let burnt = {
            let mut running = lock(&self.machine(process.id.0).running);
            match &mut running.awaits_left {
                Some((0, crash)) => Some(*crash),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some(crash) = burnt
            && !process.is_dead()
        {
            self.world.saw(Seen::CrashAtAwait);
            self.crash(process.id.0, crash);
        }
    }

    // --- clients ---

    /// Whether the node takes calls.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        lock(&self.machine(node).running).handle.is_some()
    }

    /// Makes a call within a node's process, as a gateway would. `None` where the process died or
    /// fell silent: what the call did is not known. Call it only where [`Cluster::is_up`].
    pub(crate) async fn ask<T, F>(
        &self,
        node: NodeId,
        timeout: Duration,
        call: impl FnOnce(Handle) -> F,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let machine = self.machine(node);
        let (handle, process, pauses) = {
            let running = lock(&machine.running);
            let ran = (!running.paused).then_some(running.pauses);
            (running.handle.clone()?, running.process.clone()?, ran)
        };
        let id = (*lock(&machine.id))?;
        let answer = self.runtime.get_node(id)?.spawn(call(handle));
        // A clock may be slow by a tenth; a call gets a second beyond its deadline.
        let patience_ns = timeout.as_nanos() as u64 * 10 / 8 + 1_000_000_000;
        tokio::select! {
            biased;
            answer = answer => answer.ok().filter(|_| !process.is_dead()),
            () = until(now_ns() + patience_ns) => {
                let running = lock(&machine.running);
                if !process.is_dead() && pauses == Some(running.pauses) {
                    let what = format!("a call to {node:?} did not end within {timeout:?}");
                    self.world.fail("deadline", what);
                }
                None
            }
        }
    }
}

/// Shows the judge what a process does, for as long as it lives.
struct Watcher {
    judge: Arc<Judge>,
    atlas: Arc<Atlas>,
    world: Arc<World>,
    disk: Arc<SimDisk>,
    process: Arc<Process>,
    steps: AtomicU64,
}

/// The core checks what a step touches; every so many steps it checks everything.
const CHECK_EVERY: u64 = 64;

impl Observer for Watcher {
    fn takes(&self, inputs: &[Input]) {
        if !self.process.is_dead() {
            self.judge.world.tell(|story| story.takes(self.process.id.0, inputs));
            if inputs.iter().any(|input| matches!(input, Input::Control { .. })) {
                let node = self.process.id.0;
                let replaced = self.disk.take_replaced();
                replaced.into_iter().for_each(|group| self.judge.drops_state(node, group));
            }
            self.judge.takes(self.process.id, inputs);
        }
    }

    fn step(&self, node: &Node, effects: &[Effect]) {
        if !self.process.is_dead() {
            let world = &self.judge.world;
            world.tell(|story| {
                let is_alive = |node_id| node.is_alive(node_id);
                story.steps(self.process.id.0, node.groups(), is_alive, effects);
            });
            if self.disk.has_erred() {
                self.judge.erred(self.process.id);
            }
            if self.steps.fetch_add(1, Ordering::Relaxed).is_multiple_of(CHECK_EVERY) {
                self.judge.inspects(self.process.id, node);
            }
            self.judge.step(self.process.id, node, effects);
            effects.iter().for_each(|effect| self.counts(effect));
            let process = self.process.id.0;
            if self.atlas.is_weak(process) && !node.groups().any(|group| group.in_doubt) {
                self.atlas.recovers(process);
            }
        }
    }

    fn applied(&self, group: GroupId, entries: &[Entry], outcomes: &[Outcome]) {
        if !self.process.is_dead() {
            self.judge.applied(self.process.id, group, entries, outcomes);
        }
    }
}

impl Watcher {
    /// Counts what a node does because of damage.
    fn counts(&self, effect: &Effect) {
        let node = self.process.id.0;
        let seen = match effect {
            Effect::Notice(Notice::Formed { member: false }) if self.atlas.is_lost(node) => {
                Seen::Wiped
            }
            Effect::Notice(Notice::Sound { .. }) => Seen::Sound,
            Effect::Notice(Notice::Mended { .. }) => Seen::Mended,
            Effect::Send { message: Message::Recall { .. }, .. } => Seen::Recalled,
            Effect::Send {
                message: Message::Group { message: GroupMessage::Fetch { .. }, .. },
                ..
            } => Seen::Fetch,
            _ => return,
        };
        self.world.saw(seen);
    }
}

/// A driver that may end at any of its awaits.
struct Fused {
    cluster: Arc<Cluster>,
    process: Arc<Process>,
    driver: Pin<Box<dyn Future<Output = Exit> + Send>>,
}

impl Future for Fused {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Exit> {
        self.cluster.burn_await(&self.process);
        if self.process.is_dead() {
            return Poll::Pending;
        }
        self.driver.as_mut().poll(cx)
    }
}
