//! Carries the plan out: each fault at its time, and its end. After the healing nothing more goes
//! wrong.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use highwater_core::NodeId;
use tokio::sync::mpsc;

use crate::{
    cluster::Cluster,
    net::Cut,
    plan::{Crash, Fault, Moment, Side, Target, Weather},
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
}

impl Faults {
    pub(crate) fn new(cluster: Arc<Cluster>, tasks: Arc<Tasks>) -> Faults {
        Faults { cluster, tasks, healed: Arc::default() }
    }

    fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Ends every fault; none follows.
    pub(crate) fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
        self.cluster.world.fault(0, || "healed".to_owned());
        self.cluster.heal();
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
        self.cluster.world.fault(0, || format!("{fault:?}"));
        let text = format!("{fault:?}");
        self.cluster.world.tell(|story| story.fault_begins(text.clone()));
        let world = self.cluster.world.clone();
        self.carry_out(fault).await;
        world.tell(|story| story.fault_ends(&text));
    }

    async fn carry_out(self, fault: Fault) {
        match fault {
            Fault::Crash { target, crash, moment, down_ms, again } => {
                let node = self.resolve(target);
                if let Some(fuse) = again {
                    self.cluster.machine(node).disk.set_fuse_at_start(fuse);
                }
                self.crash(node, crash, moment, down_ms);
            }
            Fault::PowerCutAll { after_election_us, down_ms } => {
                self.power_cut_all(after_election_us, &down_ms).await;
            }
            Fault::Pause { target, ms } => self.pause(target, ms).await,
            Fault::Split { side, ms } => {
                let others: Vec<NodeId> =
                    self.nodes().iter().copied().filter(|n| !side.contains(n)).collect();
                let links = [pairs(&side, &others), pairs(&others, &side)].concat();
                self.cut(links, Cut::BothWays, ms).await;
            }
            Fault::Isolate { target, side, ms } => self.isolate(target, side, ms).await,
            Fault::OneWay { from, to, ms } => self.cut(vec![(from, to)], Cut::OneWay, ms).await,
            Fault::Weather { weather, ms } => self.weather(weather, ms).await,
            Fault::SlowDisk { target, times, ms } => {
                let disk = &self.cluster.machine(self.resolve(target)).disk;
                disk.slow_down(times);
                pause_ms(ms).await;
                disk.slow_down(1);
            }
            Fault::Drift { node, ppm } => {
                self.cluster.machine(node).clock.drift(ppm);
                self.cluster.world.saw(Seen::ClockDrift);
            }
            Fault::JumpWall { node, ms } => {
                self.cluster.machine(node).clock.jump_wall(ms);
                self.cluster.world.saw(Seen::WallJump);
            }
            Fault::Damage { target, down_ms } => {
                let node = self.resolve(target);
                self.cluster.set_down_ms(node, down_ms);
                if self.cluster.crash(node, Crash::Power) {
                    self.cluster.machine(node).disk.damage();
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
            pause_ms(ms).await;
            self.cluster.resume(node);
        }
    }

    async fn isolate(&self, target: Target, side: Side, ms: u64) {
        let node = self.resolve(target);
        let mut databases = self.cluster.judge.databases().into_iter();
        if databases.any(|(_, group)| self.cluster.judge.leader(group) == Some(node)) {
            self.cluster.world.saw(Seen::LeaderIsolated);
        }
        let others: Vec<NodeId> = self.nodes().iter().copied().filter(|n| *n != node).collect();
        let (out, back) = (pairs(&[node], &others), pairs(&others, &[node]));
        let (links, cut) = match side {
            Side::Both => ([out, back].concat(), Cut::BothWays),
            Side::Out => (out, Cut::OneWay),
            Side::In => (back, Cut::OneWay),
        };
        self.cut(links, cut, ms).await;
    }

    async fn cut(&self, links: Vec<(NodeId, NodeId)>, cut: Cut, ms: u64) {
        for (from, to) in &links {
            self.cluster.network.cut(*from, *to, cut);
        }
        pause_ms(ms).await;
        for (from, to) in &links {
            self.cluster.network.mend(*from, *to, cut);
        }
    }

    async fn weather(&self, weather: Weather, ms: u64) {
        self.cluster.network.set_weather(weather);
        pause_ms(ms).await;
        if !self.is_healed() {
            self.cluster.network.set_weather(self.cluster.plan.weather);
        }
    }
}

fn pairs(from: &[NodeId], to: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect()
}
