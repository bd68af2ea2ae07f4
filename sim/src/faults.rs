//! Carries the plan out: each fault at its time, and its end. After the healing nothing more goes
//! wrong.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use highwater_core::NodeId;
use highwater_store::state::{Tamper, tamper};
use tokio::sync::mpsc;

use crate::{
    cluster::Cluster,
    judge::Harm,
    net::Cut,
    plan::{Broken, Crash, Fault, Moment, Part, Side, Target, Where, Wound},
    run::Tasks,
    stats::Seen,
    timer::{now_ns, pause_ms, pause_ns, until},
};

/// The faults of one run.
#[derive(Clone)]
pub(crate) struct Faults {
    cluster: Arc<Cluster>,
    tasks: Arc<Tasks>,
    healed: Arc<AtomicBool>,
    /// While a disk is rolled back: nothing else goes wrong.
    held: Arc<AtomicBool>,
}

/// How long a rolled-back disk waits for a moment at which its peers will be met.
const CALM_WAIT_MS: u64 = 5_000;
/// How long a node takes at most to have its answers, once it runs in a calm network.
const ANSWERS_MS: u64 = 1_500;

impl Faults {
    pub(crate) fn new(cluster: Arc<Cluster>, tasks: Arc<Tasks>) -> Faults {
        Faults { cluster, tasks, healed: Arc::default(), held: Arc::default() }
    }

    fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Ends every fault, except that some nodes stay broken for good; none follows. The nodes that
    /// are whole.
    pub(crate) fn heal(&self) -> Vec<NodeId> {
        self.healed.store(true, Ordering::Relaxed);
        self.cluster.world.fault(0, || "healed".to_owned());
        self.cluster.heal();
        self.note_mended();
        let broken = &self.cluster.plan.broken;
        let without = self.cluster.atlas.dispensable(broken.iter().map(|(node, _)| *node));
        for (node, how) in broken.iter().filter(|(node, _)| without.contains(node)) {
            self.cluster.world.fault(node.0, || format!("stays broken: {how:?}"));
            self.break_for_good(*node, *how);
        }
        self.nodes().iter().copied().filter(|node| !without.contains(node)).collect()
    }

    fn break_for_good(&self, node: NodeId, how: Broken) {
        match how {
            Broken::Dead => self.cluster.bury(node),
            Broken::Paused => {
                if !self.cluster.pause(node) {
                    self.cluster.bury(node);
                }
            }
            Broken::Slow(times) => self.cluster.machine(node).disk.slow_down(times),
            Broken::Cut(side) => {
                let (links, cut) = self.around(node, side);
                links.iter().for_each(|(from, to)| self.cluster.network.cut(*from, *to, cut));
            }
        }
    }

    /// The core of the cluster has converged.
    pub(crate) fn converged(&self, whole: &[NodeId]) {
        let world = &self.cluster.world;
        let broken = self.cluster.plan.broken.iter().filter(|(node, _)| !whole.contains(node));
        for (_, how) in broken {
            world.saw(match how {
                Broken::Dead => Seen::LivedWithDead,
                Broken::Cut(Side::Both) => Seen::LivedWithCut,
                Broken::Cut(_) => Seen::LivedWithOneWay,
                Broken::Paused => Seen::LivedWithPaused,
                Broken::Slow(_) => Seen::LivedWithSlow,
            });
        }
        world.saw_times(Seen::Healed, u64::from(whole.len() == self.nodes().len()));
    }

    /// Starts machines again some time after their process ended.
    pub(crate) async fn restart(self, mut endings: mpsc::UnboundedReceiver<(NodeId, u64)>) {
        while let Some((node, down_ms)) = endings.recv().await {
            let cluster = self.cluster.clone();
            self.tasks.spawn(async move {
                pause_ms(down_ms).await;
                cluster.start(node);
            });
        }
    }

    /// Lets the plan's faults strike, from now on.
    pub(crate) async fn strike(self) {
        let begun = now_ns();
        for (at_ms, fault) in &self.cluster.plan.faults {
            until(begun + at_ms * 1_000_000).await;
            if self.is_healed() {
                return;
            }
            self.tasks.spawn(self.clone().apply(fault.clone()));
        }
    }

    async fn apply(self, fault: Fault) {
        if self.held.load(Ordering::Relaxed) {
            return;
        }
        self.cluster.world.fault(0, || format!("{fault:?}"));
        let text = format!("{fault:?}");
        self.cluster.world.tell(|story| story.fault_begins(text.clone()));
        let world = self.cluster.world.clone();
        self.carry_out(fault).await;
        world.tell(|story| story.fault_ends(&text));
    }

    async fn carry_out(self, fault: Fault) {
        match fault {
            Fault::Crash { .. }
            | Fault::PowerCutAll { .. }
            | Fault::Pause { .. }
            | Fault::Drain { .. } => self.to_process(fault).await,
            Fault::Split { .. }
            | Fault::Isolate { .. }
            | Fault::OneWay { .. }
            | Fault::Partial { .. }
            | Fault::Flap { .. }
            | Fault::Narrow { .. }
            | Fault::Weather { .. } => self.to_network(fault).await,
            Fault::Drift { node, ppm } => {
                self.cluster.machine(node).clock.drift(ppm);
                self.cluster.world.saw(Seen::ClockDrift);
            }
            Fault::JumpWall { node, ms } => {
                self.cluster.machine(node).clock.jump_wall(ms);
                self.cluster.world.saw(Seen::WallJump);
                self.cluster.world.saw_times(Seen::WallBack, u64::from(ms < 0));
            }
            _ => self.to_disk(fault).await,
        }
    }

    async fn to_process(&self, fault: Fault) {
        match fault {
            Fault::Crash { target, crash, moment, down_ms, again, limits } => {
                let node = self.resolve(target);
                if let Some(fuse) = again {
                    self.cluster.machine(node).disk.set_fuse_at_start(fuse);
                }
                self.cluster.set_limits(node, limits);
                self.crash(node, crash, moment, down_ms);
            }
            Fault::PowerCutAll { after_election_us, down_ms } => {
                self.power_cut_all(after_election_us, &down_ms).await;
            }
            Fault::Pause { target, ms } => self.pause(target, ms).await,
            Fault::Drain { target, down_ms } => {
                let node = self.resolve(target);
                if self.cluster.drain(node) {
                    self.cluster.set_down_ms(node, down_ms);
                }
            }
            _ => {}
        }
    }

    async fn to_network(&self, fault: Fault) {
        match fault {
            Fault::Split { side, ms } => {
                let others: Vec<NodeId> =
                    self.nodes().iter().copied().filter(|n| !side.contains(n)).collect();
                let links = [pairs(&side, &others), pairs(&others, &side)].concat();
                self.cut(&links, Cut::BothWays, ms).await;
            }
            Fault::Isolate { target, side, ms } => self.isolate(target, side, ms).await,
            Fault::OneWay { from, to, ms } => self.cut(&[(from, to)], Cut::OneWay, ms).await,
            Fault::Partial { shape, order, ms } => {
                self.cut(&shape.deaf(&order), Cut::Partial(shape), ms).await;
            }
            Fault::Flap { one, other, gone_ms, back_ms, ms } => {
                let ends = now_ns() + ms * 1_000_000;
                while now_ns() < ends && !self.is_healed() {
                    self.cut(&[(one, other), (other, one)], Cut::Flap, gone_ms).await;
                    pause_ms(back_ms).await;
                }
            }
            Fault::Narrow { target, bytes_per_ms, ms } => {
                let node = self.resolve(target);
                self.cluster.network.narrow(node, Some(bytes_per_ms));
                if self.lasts(ms).await {
                    self.cluster.network.narrow(node, None);
                }
            }
            Fault::Weather { weather, ms } => {
                self.cluster.network.set_weather(weather);
                if self.lasts(ms).await {
                    self.cluster.network.set_weather(self.cluster.plan.weather);
                }
            }
            _ => {}
        }
    }

    async fn to_disk(&self, fault: Fault) {
        let cluster = &self.cluster;
        let disk = |node: NodeId| &cluster.machine(node).disk;
        match fault {
            Fault::SlowDisk { target, times, ms } => {
                let disk = disk(self.resolve(target));
                disk.slow_down(times);
                if self.lasts(ms).await {
                    disk.slow_down(1);
                }
            }
            Fault::StuckDisk { target, ms } => {
                disk(self.resolve(target)).stick(now_ns() + ms * 1_000_000);
            }
            Fault::SyncError { target, part, down_ms } => {
                let node = self.resolve(target);
                cluster.set_down_ms(node, down_ms);
                disk(node).fail_sync(part);
            }
            Fault::FullDisk { target, part, ms } => {
                let disk = disk(self.resolve(target));
                disk.set_full(part, true);
                if self.lasts(ms).await {
                    disk.set_full(part, false);
                }
            }
            Fault::ReadError { target, part, ms, restart } => {
                let node = self.resolve(target);
                disk(node).fail_reads(part, now_ns() + ms * 1_000_000);
                if restart {
                    cluster.crash(node, Crash::Kill);
                }
            }
            Fault::Damage { target, wound, down_ms } => {
                self.damage(self.resolve(target), wound, down_ms);
            }
            Fault::Tamper { target, sums, random, down_ms } => {
                let what = if sums { Tamper::Sums } else { Tamper::Record };
                self.tamper(self.resolve(target), what, random, down_ms);
            }
            Fault::Wipe { target, down_ms } => self.wipe(self.resolve(target), down_ms),
            Fault::Copy { node } => {
                disk(node).copy();
                cluster.judge.copied(node);
            }
            Fault::RollBack { node, down_ms } => self.roll_back(node, down_ms).await,
            _ => {}
        }
    }

    /// Waits; whether the fault is still to be taken back then, since nobody has healed everything.
    async fn lasts(&self, ms: u64) -> bool {
        pause_ms(ms).await;
        !self.is_healed()
    }

    // --- what the atlas has a say in ---

    fn damage(&self, node: NodeId, wound: Wound, down_ms: u64) {
        let (cluster, atlas) = (&self.cluster, &self.cluster.atlas);
        let disk = &cluster.machine(node).disk;
        let of_log = !matches!(wound.place, Where::State | Where::Identity);
        self.note_mended();
        let of_state = wound.place == Where::State;
        let costs = of_log || of_state && cluster.judge.has_pruned(node);
        if disk.is_damaged() || costs && !atlas.may_lose(node) {
            return;
        }
        cluster.set_down_ms(node, down_ms);
        if cluster.crash(node, Crash::Power) && disk.damage(wound) {
            let harm = if of_log { Harm::LogDamaged } else { Harm::StateDamaged };
            cluster.judge.allow(node, harm);
            if of_log {
                atlas.hurt(node);
            } else if of_state {
                self.loses_state(node);
            }
        }
    }

    /// A node's state is not what it was.
    fn loses_state(&self, node: NodeId) {
        if self.cluster.judge.has_pruned(node) {
            self.cluster.atlas.goes_stale(node);
        }
    }

    fn tamper(&self, node: NodeId, what: Tamper, random: u64, down_ms: u64) {
        let cluster = &self.cluster;
        let disk = &cluster.machine(node).disk;
        let groups = cluster.judge.databases();
        let Some(nth) = (random as usize).checked_rem(groups.len()) else { return };
        let group = groups[nth].1;
        self.note_mended();
        cluster.set_down_ms(node, down_ms);
        if !disk.is_damaged()
            && (!cluster.judge.has_pruned(node) || cluster.atlas.may_lose(node))
            && disk.is_untroubled(Part::State)
            && cluster.crash(node, Crash::Power)
            && tamper(&disk.same_handle().state_files(), group, what, random)
        {
            cluster.world.saw(Seen::Tampered);
            cluster.world.fault(node.0, || format!("changes {what:?} of {group:?}"));
            cluster.judge.tampered(node, group, format!("{what:?}"));
            self.loses_state(node);
        }
    }

    fn wipe(&self, node: NodeId, down_ms: u64) {
        self.note_mended();
        if !self.cluster.atlas.may_lose(node) {
            return;
        }
        self.cluster.set_down_ms(node, down_ms);
        if self.cluster.crash(node, Crash::Power) && self.cluster.machine(node).disk.wipe() {
            self.cluster.wiped(node);
        }
    }

    async fn roll_back(&self, node: NodeId, down_ms: u64) {
        let cluster = &self.cluster;
        let waits = now_ns() + CALM_WAIT_MS * 1_000_000;
        self.note_mended();
        while !self.are_met(node) {
            pause_ms(50).await;
            if now_ns() > waits || self.is_healed() {
                return;
            }
        }
        if !cluster.atlas.may_lose(node) || self.held.swap(true, Ordering::Relaxed) {
            return;
        }
        cluster.calm();
        cluster.set_down_ms(node, down_ms);
        if cluster.crash(node, Crash::Power) && cluster.machine(node).disk.roll_back() {
            cluster.atlas.lose(node);
            cluster.judge.rolled_back(node);
            let waits = now_ns() + (down_ms + CALM_WAIT_MS) * 1_000_000;
            while !cluster.is_well(node) && now_ns() < waits {
                pause_ms(50).await;
            }
            pause_ms(ANSWERS_MS).await;
        }
        if !self.is_healed() {
            cluster.network.set_weather(cluster.plan.weather);
        }
        self.held.store(false, Ordering::Relaxed);
    }

    /// Whether a node that starts now meets all others.
    fn are_met(&self, node: NodeId) -> bool {
        let mut others = self.nodes().iter().filter(|n| **n != node);
        self.cluster.network.is_whole() && others.all(|n| self.cluster.is_well(*n))
    }

    /// Tells the atlas where nothing is left of damage.
    fn note_mended(&self) {
        for node in self.nodes() {
            if !self.cluster.machine(*node).disk.is_damaged() {
                self.cluster.atlas.heals(*node);
                if self.cluster.judge.holds_states(*node) {
                    self.cluster.atlas.freshens(*node);
                }
            }
        }
    }

    fn nodes(&self) -> &[NodeId] {
        self.cluster.nodes()
    }

    fn resolve(&self, target: Target) -> NodeId {
        let nodes = self.nodes();
        let leader = |n: u64| {
            let databases = self.cluster.judge.databases();
            let at = (n as usize).checked_rem(databases.len())?;
            self.cluster.judge.leader(databases[at].1)
        };
        match target {
            Target::Node(node) => node,
            Target::Leader(n) => leader(n).unwrap_or(nodes[n as usize % nodes.len()]),
            Target::Follower(n) => {
                let after =
                    leader(n).unwrap_or(nodes[0]).0 as usize + n as usize % (nodes.len() - 1);
                nodes[after % nodes.len()]
            }
        }
    }

    fn crash(&self, node: NodeId, crash: Crash, moment: Moment, down_ms: u64) {
        self.cluster.set_down_ms(node, down_ms);
        match moment {
            Moment::Now => {
                self.cluster.crash(node, crash);
            }
            Moment::Call(fuse) => self.cluster.machine(node).disk.set_fuse(fuse, crash),
            Moment::Await(n) => self.cluster.set_await_fuse(node, n, crash),
        }
    }

    async fn power_cut_all(&self, after_election_us: Option<u64>, down_ms: &[u64]) {
        if let Some(us) = after_election_us {
            self.cluster.judge.elected.notified().await;
            pause_ns(us * 1_000).await;
            if self.is_healed() {
                return;
            }
            self.cluster.world.saw(Seen::CrashAfterElection);
        }
        let mut all = true;
        for (node, ms) in self.nodes().iter().zip(down_ms) {
            self.cluster.set_down_ms(*node, *ms);
            all &= self.cluster.crash(*node, Crash::Power);
        }
        self.cluster.world.saw_times(Seen::PowerCutAll, u64::from(all));
    }

    async fn pause(&self, target: Target, ms: u64) {
        let node = self.resolve(target);
        if self.cluster.pause(node) {
            self.cluster.world.saw(Seen::Paused);
            if self.lasts(ms).await {
                self.cluster.resume(node);
            }
        }
    }

    async fn isolate(&self, target: Target, side: Side, ms: u64) {
        let node = self.resolve(target);
        let mut databases = self.cluster.judge.databases().into_iter();
        if databases.any(|(_, group)| self.cluster.judge.leader(group) == Some(node)) {
            self.cluster.world.saw(Seen::LeaderIsolated);
        }
        let (links, cut) = self.around(node, side);
        self.cut(&links, cut, ms).await;
    }

    /// The links of one node.
    fn around(&self, node: NodeId, side: Side) -> (Vec<(NodeId, NodeId)>, Cut) {
        let others: Vec<NodeId> = self.nodes().iter().copied().filter(|n| *n != node).collect();
        let (out, back) = (pairs(&[node], &others), pairs(&others, &[node]));
        match side {
            Side::Both => ([out, back].concat(), Cut::BothWays),
            Side::Out => (out, Cut::OneWay),
            Side::In => (back, Cut::OneWay),
        }
    }

    async fn cut(&self, links: &[(NodeId, NodeId)], cut: Cut, ms: u64) {
        for (from, to) in links {
            self.cluster.network.cut(*from, *to, cut);
        }
        if self.lasts(ms).await {
            for (from, to) in links {
                self.cluster.network.mend(*from, *to, cut);
            }
        }
    }
}

fn pairs(from: &[NodeId], to: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect()
}
