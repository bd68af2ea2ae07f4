//! Carries the plan's faults out, each at its time, and their ends. After the healing nothing more
//! goes wrong. What has no meaning where there are no bytes is skipped: a crash at a call to redb's
//! storage backend, and what only the swarm does to disks, processes and single links. Damage is of
//! entries that can't be read, not of what a start finds. Everything heals in the end.

use highwater_core::NodeId;

use super::{
    agenda::now_ns,
    cluster::{Cluster, Event},
    net::Cut,
};
use crate::{
    plan::{Crash, Fault, Fuse, Moment, Side, Target},
    stats::Seen,
};

const MS: u64 = 1_000_000;

/// What no run of the fast loop can see: it has no files and no datagrams, and no state is damaged.
pub(super) const NEVER: [Seen; 14] = [
    Seen::Streamed,
    Seen::StreamPruned,
    Seen::StreamResumed,
    Seen::CrashInLongWrite,
    Seen::CrashAtStateCall,
    Seen::LostName,
    Seen::TailCut,
    Seen::SegmentRolled,
    Seen::TornWrite,
    Seen::TornSubset,
    Seen::StateRebuilt,
    Seen::RealQuic,
    Seen::QuicReconnected,
    Seen::DatagramLost,
];

impl Cluster {
    /// Ends every fault; none follows.
    pub(super) fn heal(&mut self) {
        self.world.fault(0, || "healed".to_owned());
        self.network.heal();
        self.awaiting_election.clear();
        for node in self.plan.clone().nodes.iter() {
            let machine = self.machine_mut(*node);
            (machine.fuse, machine.fuse_at_start, machine.steps_left) = (None, None, None);
            machine.slowness = 1;
            if let Some(process) = machine.process.as_ref().map(|process| process.id) {
                self.resume(*node, process);
            }
        }
    }

    /// The plan's n-th fault strikes.
    pub(super) fn strike(&mut self, nth: usize) {
        if self.course.is_healed() {
            return;
        }
        let plan = self.plan.clone();
        let (_, fault) = &plan.faults[nth];
        self.world.fault(0, || format!("{fault:?}"));
        match fault {
            Fault::Crash { target, crash, moment, down_ms, again, .. } => {
                let node = self.resolve(*target);
                let machine = self.machine_mut(node);
                machine.down_ms = Some(*down_ms);
                if let Some(fuse) = again.filter(has_meaning) {
                    machine.fuse_at_start = Some(fuse);
                }
                self.crash_at(node, *crash, *moment);
            }
            Fault::PowerCutAll { after_election_us: None, down_ms } => self.cut_power(down_ms),
            Fault::PowerCutAll { after_election_us: Some(us), down_ms } => {
                self.awaiting_election.push((us * 1_000, down_ms.clone()));
            }
            Fault::Pause { target, ms } => {
                let node = self.resolve(*target);
                self.pause(node, *ms);
            }
            Fault::Split { side, ms } => {
                let others: Vec<NodeId> =
                    plan.nodes.iter().copied().filter(|n| !side.contains(n)).collect();
                let links = [pairs(side, &others), pairs(&others, side)].concat();
                self.cut(links, Cut::BothWays, *ms);
            }
            Fault::Isolate { target, side, ms } => self.isolate(*target, *side, *ms),
            Fault::OneWay { from, to, ms } => self.cut(vec![(*from, *to)], Cut::OneWay, *ms),
            Fault::Weather { weather, ms } => {
                self.network.set_weather(*weather);
                self.agenda.after(ms * MS, Event::Clear);
            }
            Fault::SlowDisk { target, times, ms } => {
                let node = self.resolve(*target);
                self.machine_mut(node).slowness = *times;
                self.agenda.after(ms * MS, Event::Hasten(node));
            }
            Fault::Drift { node, ppm } => {
                self.machine_mut(*node).clock.drift(now_ns(), *ppm);
                self.world.saw(Seen::ClockDrift);
                self.rewake(*node);
            }
            Fault::JumpWall { node, ms } => {
                self.machine_mut(*node).clock.jump_wall(*ms);
                self.world.saw(Seen::WallJump);
                self.world.saw_times(Seen::WallBack, u64::from(*ms < 0));
            }
            Fault::Partial { shape, order, ms } => {
                self.cut(shape.deaf(order), Cut::Partial(*shape), *ms);
            }
            Fault::Drain { .. }
            | Fault::Flap { .. }
            | Fault::Narrow { .. }
            | Fault::StuckDisk { .. }
            | Fault::SyncError { .. }
            | Fault::FullDisk { .. }
            | Fault::ReadError { .. }
            | Fault::Wipe { .. }
            | Fault::Tamper { .. }
            | Fault::Copy { .. }
            | Fault::RollBack { .. } => {}
            Fault::Damage { target, down_ms, .. } => {
                let node = self.resolve(*target);
                self.machine_mut(node).down_ms = Some(*down_ms);
                if self.crash(node, Crash::Power) {
                    self.damage(node);
                }
            }
        }
    }

    /// Some committed entries of a node can't be read any more: if possible, ones that its next start
    /// needs. All other nodes have good copies, so that a majority has.
    fn damage(&mut self, node: NodeId) {
        if self.plan.nodes.iter().any(|node| !self.machine(*node).oplog.is_whole()) {
            return;
        }
        let databases = self.judge.databases();
        let committed =
            databases.iter().map(|(_, group)| (*group, self.judge.last_applied(*group)));
        let committed: Vec<_> = committed.collect();
        let machine = self.machine_mut(node);
        let ranges = committed.into_iter().filter_map(|(group, committed)| {
            let first = machine.states.get(&group)?.applied().next();
            let last = committed.min(machine.oplog.last(group));
            (first <= last).then_some((group, first.0, last.0))
        });
        let ranges: Vec<_> = ranges.collect();
        let Some((group, first, last)) = (!ranges.is_empty()).then(|| *machine.rng.pick(&ranges))
        else {
            return;
        };
        let from = machine.rng.range(first, last);
        let to = machine.rng.range(from, last.min(from + 20));
        machine.oplog.damage(group, from..=to);
        self.world.fault(node.0, || format!("damages {from}..={to} of {group:?}"));
    }

    fn resolve(&self, target: Target) -> NodeId {
        let nodes = &self.plan.nodes;
        let leader = |n: u64| {
            let databases = self.judge.databases();
            let at = (n as usize).checked_rem(databases.len())?;
            self.judge.leader(databases[at].1)
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

    fn crash_at(&mut self, node: NodeId, crash: Crash, moment: Moment) {
        match moment {
            Moment::Now => {
                self.crash(node, crash);
            }
            Moment::Call(fuse) if has_meaning(&fuse) => {
                self.machine_mut(node).fuse = Some((fuse, crash));
            }
            Moment::Call(_) => {}
            // A driver awaits once for each step.
            Moment::Await(n) => self.machine_mut(node).steps_left = Some((n, crash)),
        }
    }

    /// Some node has begun to lead: the power cuts that waited for that are due.
    pub(super) fn elected(&mut self) {
        for (after_ns, down_ms) in std::mem::take(&mut self.awaiting_election) {
            self.world.saw(Seen::CrashAfterElection);
            self.agenda.after(after_ns, Event::CutPower { down_ms });
        }
    }

    /// The power goes everywhere.
    pub(super) fn cut_power(&mut self, down_ms: &[u64]) {
        if self.course.is_healed() {
            return;
        }
        let mut all = true;
        for (node, ms) in self.plan.clone().nodes.iter().zip(down_ms) {
            self.machine_mut(*node).down_ms = Some(*ms);
            all &= self.crash(*node, Crash::Power);
        }
        self.world.saw_times(Seen::PowerCutAll, u64::from(all));
    }

    fn isolate(&mut self, target: Target, side: Side, ms: u64) {
        let node = self.resolve(target);
        let mut databases = self.judge.databases().into_iter();
        if databases.any(|(_, group)| self.judge.leader(group) == Some(node)) {
            self.world.saw(Seen::LeaderIsolated);
        }
        let others: Vec<NodeId> = self.plan.nodes.iter().copied().filter(|n| *n != node).collect();
        let (out, back) = (pairs(&[node], &others), pairs(&others, &[node]));
        let (links, cut) = match side {
            Side::Both => ([out, back].concat(), Cut::BothWays),
            Side::Out => (out, Cut::OneWay),
            Side::In => (back, Cut::OneWay),
        };
        self.cut(links, cut, ms);
    }

    fn cut(&mut self, links: Vec<(NodeId, NodeId)>, cut: Cut, ms: u64) {
        self.network.cut(&links, cut);
        self.agenda.after(ms * MS, Event::Mend { links, cut });
    }

    pub(super) fn clear_weather(&mut self) {
        if !self.course.is_healed() {
            self.network.set_weather(self.plan.weather);
        }
    }
}

fn has_meaning(fuse: &Fuse) -> bool {
    !matches!(fuse, Fuse::StateCall(_))
}

fn pairs(from: &[NodeId], to: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect()
}
