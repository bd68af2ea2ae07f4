//! Chaos over bare nodes: seeded faults and a workload while oracles look on (safety), then all but
//! a minority heals and everything must converge in bounded time (liveness).
//!
//! `CORE_SEEDS=A..B` runs those seeds instead of the default ones, and `CORE_SEED=N` one;
//! `CORE_TRACE=roles,votes,appends` shows what happened in those that failed (the topics are those of
//! the scenarios).

mod cluster;

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cluster::{Cluster, Delays, Host, MS, Rng};
#[cfg(madsim)]
use highwater_core::planted::Planted;
use highwater_core::{
    Config, GroupId, Held, Input, Lsn, Node, NodeId, Reply, Request, RequestId, RoleView,
    SlotLimits, SlotSettings, SlotStart, SlotState,
};

/// What a seed may do.
#[derive(Debug)]
struct Faults {
    crashes: bool,
    partitions: bool,
    one_way: bool,
    losses: bool,
    pauses: bool,
    disks: bool,
    wipes: bool,
    /// A data directory is restored from an older copy.
    rollbacks: bool,
    /// The end of a log is damaged.
    tears: bool,
    /// Entries can't be read.
    damage: bool,
    /// The state of a group is lost.
    lost_states: bool,
    quarantine: bool,
    bad_loads: bool,
    transfers: bool,
    drains: bool,
    room: bool,
    halts: bool,
    clocks: bool,
    /// After the chaos, a minority stays broken for good.
    broken: bool,
}

/// Names of slots, in every group.
const SLOTS: [&str; 3] = ["s0", "s1", "s2"];

struct Chaos {
    cluster: Cluster,
    rng: Rng,
    faults: Faults,
    /// Nodes whose data directory was wiped or rolled back: they count no more.
    lost: Vec<NodeId>,
    /// Of these, the ones that must find out by themselves.
    rolled_back: Vec<NodeId>,
    drained: Vec<NodeId>,
    quarantined: Option<NodeId>,
    down: BTreeMap<NodeId, u64>,
    counts: BTreeMap<&'static str, u64>,
    /// Keyed writes that were made: the op and its key.
    keyed: VecDeque<(GroupId, String, String)>,
}

fn config(rng: &mut Rng) -> Config {
    let mut config = Config::default();
    if rng.permille(700) {
        config.append_entries_max = rng.between(1, 8) as usize;
        config.append_bytes_max = rng.between(100, 1000) as usize;
        config.inflight_messages_max = rng.between(1, 5) as usize;
        config.inflight_bytes_max = rng.between(100, 2000) as usize;
        config.apply_entries_max = rng.between(1, 5) as usize;
    }
    if rng.permille(700) {
        config.tail_bytes_max = rng.below(2000) as usize;
        config.tails_bytes_max = rng.below(4000) as usize;
    }
    if rng.permille(500) {
        config.checkpoint_bytes = rng.between(100, 3000) as usize;
        config.dirty_bytes_max = rng.between(100, 6000) as usize;
    }
    if rng.permille(300) {
        config.uncommitted_bytes_max = rng.between(300, 3000) as usize;
        config.reads_max = rng.between(1, 10) as usize;
        config.confirm_groups_max = 1;
        config.slots_max = 2;
        config.slot_requests_max = rng.between(3, 10) as usize;
        config.once_max = rng.between(1, 10) as usize;
    }
    if rng.permille(600) {
        config.retention_bytes = rng.between(1, 8000);
    }
    if rng.permille(100) {
        config.retention_ms = rng.between(300, 2000);
    }
    config.once_window_ms = rng.between(100, 3000);
    config.slot_ack_us = rng.below(20_000);
    config.slot_tick_us = rng.between(50, 1000) * MS;
    config.slot_grace_us = rng.below(500) * MS;
    config.slot_idle_ms = 3000;
    config.audit_us = 400_000;
    config
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let mut rng = Rng::new(seed);
        let count = *rng.pick(&[3, 3, 3, 3, 3, 5, 5, 5, 1]);
        let config = config(&mut rng);
        let mut cluster = Cluster::new(rng.next(), count, config);
        cluster.chaotic = true;
        let slow = rng.permille(300);
        cluster.delays = Delays {
            sync: (50, if slow { 60 * MS } else { 2 * MS }),
            load: (50, 5 * MS),
            apply: (10, if slow { 20 * MS } else { MS }),
            checkpoint: (100, 50 * MS),
        };
        let mut on = |permille| rng.permille(permille);
        let faults = Faults {
            crashes: on(600),
            partitions: on(500),
            one_way: on(400),
            losses: on(500),
            pauses: on(300),
            disks: on(300),
            wipes: on(250),
            rollbacks: on(300),
            tears: on(300),
            damage: on(300),
            lost_states: on(300),
            quarantine: on(150),
            bad_loads: on(200),
            transfers: on(300),
            drains: on(200),
            room: on(150),
            halts: on(150),
            clocks: on(200),
            broken: on(300),
        };
        Chaos {
            cluster,
            rng,
            faults,
            lost: Vec::new(),
            rolled_back: Vec::new(),
            drained: Vec::new(),
            quarantined: None,
            down: BTreeMap::new(),
            counts: BTreeMap::new(),
            keyed: VecDeque::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn any(&mut self) -> NodeId {
        let ids = self.cluster.ids();
        *self.rng.pick(&ids)
    }

    fn minority(&self) -> usize {
        (self.cluster.hosts.len() - 1) / 2
    }

    // --- workload ---

    fn work(&mut self) {
        let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
        let group = *self.rng.pick(&groups);
        let leader = self.cluster.leader(group);
        let any = self.any();
        let node = if self.rng.permille(850) { leader.unwrap_or(any) } else { any };
        let key = self.rng.below(4);
        let (old, new) = (self.rng.below(3), self.rng.below(3));
        match self.rng.below(100) {
            0..2 if groups.len() < 4 => {
                let name = format!("db{}", self.rng.below(3));
                let expires = self.cluster.deadline_of(node, 1000 * MS);
                self.cluster.request(node, Request::CreateDatabase { name, expires });
            }
            0..25 => {
                self.cluster.request(any, Request::Read { group });
            }
            _ if group == GroupId::SYSTEM => {}
            25..36 => self.work_on_slots(node, group),
            36..46 => self.work_once(node, group),
            46..60 => {
                self.cluster.propose(node, group, &format!("cas k{key} v{old} v{new}"));
            }
            60..65 => {
                for n in 0..20 {
                    self.cluster.propose(node, group, &format!("put k{key} v{n}"));
                }
            }
            65..67 => {
                let fill = "x".repeat(self.rng.below(3000) as usize);
                self.cluster.propose(node, group, &format!("put big {fill}"));
            }
            67..70 => {
                let open = self.cluster.oracle.asked.iter().next();
                if let Some((id, asked)) = open {
                    let (id, node) = (*id, asked.node);
                    self.cluster.cancel(node, id);
                }
            }
            _ => {
                self.cluster.propose(node, group, &format!("put k{key} v{new}"));
            }
        }
    }

    /// A keyed write: a new one, one that was made before, or at times another one with its key.
    fn work_once(&mut self, node: NodeId, group: GroupId) {
        let known = self.keyed.len() as u64;
        let (of, op, key) = match self.rng.below(10) {
            0..4 if known > 0 => self.keyed[self.rng.below(known) as usize].clone(),
            4 if known > 0 => {
                let (of, _, key) = self.keyed[self.rng.below(known) as usize].clone();
                (of, "put k0 v9".to_owned(), key)
            }
            n => {
                let (key, value) = (self.rng.below(4), self.rng.below(3));
                let old = self.rng.below(3);
                let op = match n.is_multiple_of(2) {
                    true => format!("put k{key} v{value}"),
                    false => format!("cas k{key} v{old} v{value}"),
                };
                let key = format!("key{}", self.cluster.next_request);
                self.keyed.push_back((group, op.clone(), key.clone()));
                if self.keyed.len() > 12 {
                    self.keyed.pop_front();
                }
                (group, op, key)
            }
        };
        let node = if of == group { node } else { self.cluster.leader(of).unwrap_or(node) };
        self.cluster.propose_once(node, of, &op, &key);
    }

    /// A consumer comes, goes on, or goes.
    fn work_on_slots(&mut self, node: NodeId, group: GroupId) {
        let name = (*self.rng.pick(&SLOTS)).to_owned();
        let expires = self.cluster.deadline_of(node, 1000 * MS);
        // Mostly what is there; at times what is not committed yet, or never will be.
        let committed = self.cluster.oracle.committed(group).0;
        let lsn = Lsn(self.rng.below(committed + 1 + committed / 20));
        let near = Lsn(committed.saturating_sub(self.rng.below(4)));
        let request = match self.rng.below(20) {
            0..3 => {
                let mut limit = |bound| self.rng.permille(300).then(|| self.rng.between(1, bound));
                let (lag_ops, lag_bytes) = (limit(200), limit(20_000));
                // Those that are silent are gone before all is to be still.
                let limits = SlotLimits { lag_ops, lag_bytes, idle_ms: limit(2000) };
                let starts = [SlotStart::Earliest, SlotStart::Latest, SlotStart::After(lsn)];
                let settings = SlotSettings { from: *self.rng.pick(&starts), limits };
                Request::CreateSlot { group, name, settings, expires }
            }
            3 => Request::DeleteSlot { group, name, expires },
            4..12 => Request::AckSlot { group, name, lsn: near, expires },
            _ => Request::AckSlot { group, name, lsn, expires },
        };
        self.cluster.request(node, request);
    }

    // --- faults ---

    fn crash(&mut self, id: NodeId) {
        if self.cluster.node(id).is_none() {
            return;
        }
        let unsynced = self.cluster.host(id).disk.unsynced() as u64;
        let keep = if self.rng.permille(500) { self.rng.below(unsynced + 1) } else { 0 };
        self.cluster.crash(id, keep as usize);
        let back = self.cluster.time + self.rng.below(1500) * MS;
        self.down.insert(id, back);
        self.drained.retain(|n| *n != id);
    }

    fn restart_due(&mut self) {
        let due: Vec<NodeId> = self
            .down
            .iter()
            .filter(|(_, at)| **at <= self.cluster.time)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.down.remove(&id);
            self.cluster.start(id);
        }
    }

    fn fault(&mut self) {
        let id = self.any();
        let other = self.any();
        match self.rng.below(18) {
            0 | 1 if self.faults.crashes => {
                self.count("crash");
                self.crash(id);
            }
            2 if self.faults.crashes && self.rng.permille(200) => {
                self.count("power cut");
                for id in self.cluster.ids() {
                    self.crash(id);
                }
            }
            3 if self.faults.partitions => {
                self.count("isolation");
                for peer in self.cluster.ids() {
                    self.cluster.net.link(id, peer).cut = true;
                    self.cluster.net.link(peer, id).cut = true;
                }
            }
            4 if self.faults.partitions && id != other => {
                self.count("cut link");
                self.cluster.net.link(id, other).cut = true;
                self.cluster.net.link(other, id).cut = true;
            }
            5 if self.faults.one_way => {
                self.count("one way");
                if self.rng.permille(500) {
                    self.cluster.net.link(id, other).cut = true;
                } else {
                    let deaf = self.rng.permille(500);
                    for peer in self.cluster.ids() {
                        let (from, to) = if deaf { (peer, id) } else { (id, peer) };
                        self.cluster.net.link(from, to).cut = true;
                    }
                }
            }
            6 | 7 => self.cluster.net.heal(),
            8 if self.faults.losses => {
                self.count("bad links");
                let loss = self.rng.below(300);
                let twice = self.rng.below(200);
                let delay = self.rng.between(1, 80) * MS;
                for from in self.cluster.ids() {
                    for to in self.cluster.ids() {
                        let link = self.cluster.net.link(from, to);
                        link.loss_permille = loss;
                        link.twice_permille = twice;
                        link.delay_us = (100, delay);
                    }
                }
            }
            9 if self.faults.pauses => {
                self.count("pause");
                let until = self.cluster.time + self.rng.below(1500) * MS;
                self.cluster.pause(id, until);
            }
            10 if self.faults.disks => {
                self.count("stuck disk");
                let host = self.cluster.host_mut(id);
                host.disk.stuck = !host.disk.stuck;
                self.unstick_if_free(id);
            }
            11 | 16 | 17 => self.rare_fault(id, other),
            12 if self.faults.transfers => {
                self.count("transfer");
                let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
                let group = *self.rng.pick(&groups);
                let node = self.cluster.leader(group).unwrap_or(id);
                self.cluster.request(node, Request::Transfer { group, to: other });
            }
            13 if self.faults.room => {
                self.count("room");
                let bytes = if self.rng.permille(600) { 6 << 20 } else { 1 << 40 };
                let bytes = if self.rng.permille(300) { self.rng.below(5 << 20) } else { bytes };
                self.cluster.host_mut(id).disk.room = bytes;
                self.cluster.input(id, Input::Room { bytes });
            }
            14 if self.faults.halts && self.cluster.node(id).is_some() => {
                self.count("halt");
                self.cluster.input(id, Input::StorageFailed { reason: "EIO".to_owned() });
                self.cluster.run_for(MS);
                self.crash(id);
            }
            15 if self.faults.clocks => {
                self.count("clock jump");
                let jump = self.rng.below(7_200_000) as i64 - 3_600_000;
                self.cluster.host_mut(id).clock.wall_ms += jump;
            }
            _ => {}
        }
    }

    fn unstick_if_free(&mut self, id: NodeId) {
        let disk = &mut self.cluster.host_mut(id).disk;
        if !disk.stuck {
            disk.syncing = 0;
            self.cluster.begin_sync(id);
        }
    }

    fn rare_fault(&mut self, id: NodeId, other: NodeId) {
        match self.rng.below(7) {
            // Before it is formed everywhere, a wipe may be of the only copy.
            0 if self.faults.wipes && self.may_lose(id) && self.is_formed() => {
                self.count("wipe");
                self.crash(id);
                self.cluster.wipe(id);
                self.lost.push(id);
            }
            1 if self.faults.quarantine
                && self.lost.is_empty()
                && self.in_doubt().is_empty()
                && self.minority() > 0
                && self.quarantined.is_none_or(|q| q == id) =>
            {
                self.count("quarantine");
                self.quarantined = Some(id);
                let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
                let group = *self.rng.pick(&groups);
                if group != GroupId::SYSTEM {
                    self.cluster.poisoned.insert((id, group));
                }
            }
            2 if self.faults.drains
                && self.cluster.node(id).is_some()
                && self.drained.is_empty()
                && self.minority() > 0 =>
            {
                self.count("drain");
                self.drained.push(id);
                self.cluster.request(id, Request::Drain);
            }
            3 if self.faults.rollbacks && self.may_lose(id) && self.is_remembered(id) => {
                self.count("rollback");
                self.crash(id);
                self.cluster.host_mut(id).restore();
                self.lost.push(id);
                self.rolled_back.push(id);
            }
            4 if self.faults.tears && self.may_lose(id) && self.has_older_copy(id) => {
                self.count("tear");
                self.crash(id);
                self.cluster.host_mut(id).tear();
            }
            5 if self.faults.damage && self.others_whole(id) => self.damage(id, other),
            6 if self.faults.lost_states && self.quarantined.is_none() => {
                let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
                let group = *self.rng.pick(&groups);
                if !self.others_hold(id, group) {
                    return;
                }
                self.count("lost state");
                self.cluster.lose_state(id, group);
            }
            _ => {}
        }
    }

    // --- disks ---

    /// Whether one more data directory may be lost, this one: with those that are lost, or not to be
    /// relied on at present, it is a minority, and what it holds can be read elsewhere.
    fn may_lose(&self, id: NodeId) -> bool {
        let resolved = self.rolled_back.iter().all(|n| self.cluster.fenced.contains(n));
        let in_doubt = self.in_doubt();
        self.quarantined.is_none()
            && resolved
            && !self.lost.contains(&id)
            && !in_doubt.contains(&id)
            && self.lost.len() + in_doubt.len() < self.minority()
            && self.others_whole(id)
            && self.cluster.names.keys().all(|group| self.others_hold(id, *group))
    }

    /// Whether a group can be had from others: once a log is pruned, no other log replaces a state.
    fn others_hold(&self, id: NodeId, group: GroupId) -> bool {
        let mut others = self.cluster.hosts.iter().filter(|(other, _)| **other != id);
        let pruned = |host: &Host| {
            let log = host.disk.durable.groups.get(&group);
            log.map(|log| log.base.position.lsn).unwrap_or_default()
        };
        self.cluster.hosts.values().all(|host| pruned(host) == Lsn(0))
            || others.all(|(other, host)| self.lost.contains(other) || host.disk.holds(group))
                && self.cluster.hosts.len() > 1
    }

    fn is_formed(&self) -> bool {
        self.cluster.hosts.values().all(|h| h.disk.durable.formation.is_some())
    }

    fn in_doubt(&self) -> Vec<NodeId> {
        let groups = || self.cluster.names.keys();
        let doubtful =
            self.cluster.hosts.iter().filter(|(_, host)| host.disk.is_in_doubt(groups()));
        doubtful.map(|(id, _)| *id).filter(|id| !self.lost.contains(id)).collect()
    }

    fn others_whole(&self, id: NodeId) -> bool {
        self.cluster.hosts.iter().all(|(other, host)| *other == id || host.disk.is_whole())
    }

    fn has_older_copy(&self, id: NodeId) -> bool {
        let host = self.cluster.host(id);
        let member = host.member();
        host.copy.as_ref().is_some_and(|copy| {
            copy.incarnation == member.incarnation && copy.disk.durable.formation.is_some()
        })
    }

    /// Whether so many members remember more than a node's copy holds that it meets one of them
    /// before it votes.
    fn is_remembered(&self, id: NodeId) -> bool {
        let host = self.cluster.host(id);
        let member = host.member();
        let Some(copy) = host.copy.as_ref().filter(|c| c.incarnation == member.incarnation) else {
            return false;
        };
        let remembers = |(other, peer): &(&NodeId, &Host)| {
            let log = &peer.disk.durable;
            let boot = log.boots.get(&member).is_some_and(|b| b.counter > copy.boot.counter);
            let acked = log.groups.iter().any(|(group, log)| {
                let held = copy.disk.durable.groups.get(group);
                let (term, last) = held.map(|h| (h.term, h.last())).unwrap_or_default();
                log.acked.get(&member).is_some_and(|(t, l)| *t > term || (*t == term && *l > last))
            });
            **other != id && !self.lost.contains(other) && (boot || acked)
        };
        let count = self.cluster.hosts.len();
        self.cluster.hosts.iter().filter(remembers).count() >= count - count / 2
    }

    /// Some entries of a node can't be read any more. Another one has them, or they are not committed.
    fn damage(&mut self, id: NodeId, other: NodeId) {
        if id == other || self.lost.contains(&other) || self.in_doubt().contains(&other) {
            return;
        }
        let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
        let group = *self.rng.pick(&groups);
        let log = |id| {
            let groups = &self.cluster.host(id).disk.durable.groups;
            groups.get(&group).cloned().unwrap_or_default()
        };
        let (mine, theirs) = (log(id), log(other));
        let pruned = mine.base.position.lsn.max(theirs.base.position.lsn).0;
        let same = |lsn: &u64| {
            let term = mine.term_at(Lsn(*lsn));
            term.is_some() && term == theirs.term_at(Lsn(*lsn))
        };
        let shared = pruned + (pruned + 1..).take_while(same).count() as u64;
        let committed = self.cluster.oracle.committed(group).0;
        let beyond = (committed.max(shared), mine.last().0);
        // Whoever has to make way for it is missing for that long.
        let uncommitted = self.may_lose(id) && self.rng.permille(300);
        let (after, last) = if uncommitted { beyond } else { (pruned, committed.min(shared)) };
        if last <= after {
            return;
        }
        self.count("damage");
        let from = self.rng.between(after + 1, last);
        let to = self.rng.between(from, last.min(from + 20));
        self.cluster.host_mut(id).disk.damage(group, Lsn(from), Lsn(to));
        if self.rng.permille(500) {
            let to = self.rng.between(from, to);
            self.cluster.input(id, Input::Damaged { group, from: Lsn(from), to: Lsn(to) });
        }
    }

    // --- phases ---

    fn chaos(&mut self) {
        self.cluster.start_all();
        let spread = self.rng.between(1, 60);
        let until = 7000 * MS;
        let quiet = self.rng.between(300, 1200) * MS;
        while self.cluster.time < until {
            let step = self.rng.between(1, 2 * spread) * MS;
            self.cluster.run_for(step);
            self.restart_due();
            if self.cluster.time > quiet && self.rng.permille(spread * 10) {
                self.fault();
            }
            if self.rng.permille(30) {
                let id = self.any();
                self.cluster.host_mut(id).copy();
            }
            for _ in 0..self.rng.below(4) {
                self.work();
            }
        }
    }

    /// Heals all but what stays broken; the nodes that must converge.
    fn heal(&mut self) -> Vec<NodeId> {
        self.cluster.net.heal();
        self.cluster.load_fails_permille = 0;
        self.cluster.poisoned.clear();
        self.cluster.delays = Delays::default();
        let mut broken: Vec<NodeId> = Vec::new();
        let lost = self.lost.len() + self.in_doubt().len();
        let spare = self.minority() - lost.min(self.minority());
        let whole = self.cluster.hosts.values().all(|host| host.disk.is_whole());
        let lose = if self.quarantined.is_some() || !whole { 0 } else { spare };
        let in_doubt = self.in_doubt();
        if self.faults.broken {
            while broken.len() < lose {
                let id = self.any();
                let lost = self.lost.contains(&id) || in_doubt.contains(&id);
                if !broken.contains(&id) && !lost {
                    broken.push(id);
                }
            }
        }
        for id in self.cluster.ids() {
            let host = self.cluster.host_mut(id);
            host.disk.stuck = false;
            host.disk.room = 1 << 40;
            host.busy_until = 0;
            if self.drained.contains(&id) {
                self.cluster.crash(id, 0);
            }
            if self.cluster.node(id).is_none() {
                self.cluster.start(id);
            }
            self.unstick_if_free(id);
            self.cluster.input(id, Input::Room { bytes: 1 << 40 });
        }
        for id in &broken {
            // Mute, deaf, cut off, or dead.
            let how = self.rng.below(4);
            for peer in self.cluster.ids() {
                self.cluster.net.link(*id, peer).cut = how != 1;
                self.cluster.net.link(peer, *id).cut = how != 0;
            }
            if how == 3 {
                self.cluster.crash(*id, 0);
            }
        }
        self.cluster.ids().into_iter().filter(|id| !broken.contains(id)).collect()
    }

    /// Whether a group on a node must keep up.
    fn counts(&self, id: NodeId, group: GroupId) -> bool {
        let view = self.cluster.node(id).and_then(|n| n.group(group));
        view.is_some_and(|v| v.quarantined.is_none())
    }

    fn all_led(&self, alive: &[NodeId]) -> bool {
        let groups: Vec<_> = self.cluster.names.keys().copied().collect();
        groups.iter().all(|group| {
            let leader = self.cluster.leader(*group).filter(|l| alive.contains(l));
            leader.is_some()
                && alive.iter().all(|id| {
                    let view = self.cluster.node(*id).and_then(|n| n.group(*group));
                    view.is_some_and(|v| v.leader == leader)
                })
        })
    }

    /// As every leader knows it, once it has applied all, and every replica that knows its slots.
    fn no_slot_is_valid(&self, alive: &[NodeId]) -> bool {
        self.cluster.names.keys().all(|group| {
            let Some(leader) = self.cluster.leader(*group) else { return false };
            let nodes = alive.iter().filter_map(|id| self.cluster.node(*id));
            let knows = |node: &Node| {
                let marks = node.group(*group).map(|view| view.watermarks);
                marks.is_some_and(|marks| marks.applied() == marks.appended())
            };
            self.cluster.node(leader).is_some_and(knows)
                && nodes.filter_map(|node| node.slots(*group)).all(|v| v.horizon.is_none())
        })
    }

    /// As every replica that knows its keys knows it.
    fn no_key_is_remembered(&self, alive: &[NodeId]) -> bool {
        self.cluster.names.keys().all(|group| {
            let nodes = alive.iter().filter_map(|id| self.cluster.node(*id));
            nodes.filter_map(|node| node.remembered(*group)).all(|view| view.keys.is_empty())
        })
    }

    /// Every replica has and has applied what the leader has.
    fn all_equal(&self, alive: &[NodeId]) -> bool {
        self.cluster.names.keys().all(|group| {
            let Some(leader) = self.cluster.leader(*group) else { return false };
            let marks = |id: NodeId| {
                self.cluster.node(id).and_then(|n| n.group(*group)).map(|v| v.watermarks)
            };
            let Some(led) = marks(leader) else { return false };
            led.committed() == led.appended()
                && alive.iter().all(|id| {
                    marks(*id).is_some_and(|m| {
                        m.appended() == led.appended()
                            && m.committed() == led.committed()
                            && m.durable() == led.durable()
                            && (!self.counts(*id, *group) || m.applied() == led.applied())
                    })
                })
        })
    }

    fn demand(&mut self, alive: &[NodeId], what: &str, span: u64, holds: impl Fn(&Chaos) -> bool) {
        let until = self.cluster.time + span;
        while !holds(self) {
            assert!(self.cluster.time < until, "L1: {what}; alive {alive:?}\n{}", self.status());
            self.cluster.run_for(10 * MS);
        }
    }

    fn demand_answers(&mut self, alive: &[NodeId], wanted: Vec<RequestId>) {
        self.demand(alive, "requests are served", 10_000 * MS, |c| {
            wanted.iter().all(|id| {
                let reply = c.cluster.replies.get(id);
                assert!(
                    !matches!(reply, Some(Reply::Rejected(_))),
                    "L1: {id:?} {reply:?}\n{}",
                    c.status()
                );
                reply.is_some()
            })
        });
    }

    fn status(&self) -> String {
        let mut out = String::new();
        for (id, host) in &self.cluster.hosts {
            let views = host.node.iter().flat_map(|n| n.groups().map(move |view| (n, view)));
            for (node, view) in views {
                out += &format!(
                    "{id:?} {:?} {:?} {:?} leader {:?} {:?} quarantined {:?} matched {:?}\n",
                    view.group,
                    view.term,
                    view.role,
                    view.leader,
                    view.watermarks,
                    view.quarantined,
                    node.matched(view.group)
                );
            }
        }
        out
    }

    fn run(&mut self) {
        if self.faults.bad_loads {
            self.cluster.load_fails_permille = 200;
        }
        self.chaos();
        self.converge();
    }

    fn converge(&mut self) {
        let alive = self.heal();
        let span = 10_000 * MS;
        self.demand(&alive, "every group is led", span, |c| c.all_led(&alive));
        // Without another write: what was lost on the way is said again.
        self.demand(&alive, "every replica is equal", span, |c| c.all_equal(&alive));
        // What was asked last has been taken up by now.
        self.cluster.run_for(500 * MS);
        // Nobody acknowledges any more: log time, which goes on, ends every slot.
        self.demand(&alive, "idle slots are invalidated", span, |c| c.no_slot_is_valid(&alive));
        let none = |c: &Chaos| c.no_key_is_remembered(&alive);
        self.demand(&alive, "keys are forgotten", span, none);
        self.demand(&alive, "every replica is equal", span, |c| c.all_equal(&alive));
        // What is too old goes, too.
        self.cluster.run_for((2000 + 4 * self.cluster.config.retention_ms) * MS);
        let before = self.cluster.talk + self.cluster.writes;
        self.cluster.run_for(1000 * MS);
        assert!(self.all_led(&alive), "L2: a healthy cluster keeps its leaders\n{}", self.status());
        let talk = self.cluster.talk + self.cluster.writes - before;
        let broken = alive.len() < self.cluster.hosts.len();
        assert!(broken || talk == 0, "L3: an idle group costs no message and no write: {talk}");
        let mut wanted: Vec<RequestId> = Vec::new();
        for group in self.cluster.names.keys().copied().collect::<Vec<_>>() {
            let Some(leader) = self.cluster.leader(group) else { continue };
            if group != GroupId::SYSTEM {
                wanted.push(self.cluster.propose(leader, group, "put last one"));
                for name in SLOTS {
                    let (name, expires) = (name.to_owned(), self.cluster.deadline_of(leader, span));
                    let delete = Request::DeleteSlot { group, name, expires };
                    wanted.push(self.cluster.request(leader, delete));
                }
            }
            for id in &alive {
                if self.counts(*id, group) {
                    wanted.push(self.cluster.request(*id, Request::Read { group }));
                }
            }
        }
        self.demand_answers(&alive, wanted);
        let mut wanted = Vec::new();
        for group in self.cluster.names.keys().copied().collect::<Vec<_>>() {
            let Some(leader) = self.cluster.leader(group) else { continue };
            if group != GroupId::SYSTEM {
                let (name, settings) = (SLOTS[0].to_owned(), SlotSettings::default());
                let expires = self.cluster.deadline_of(leader, span);
                let create = Request::CreateSlot { group, name, settings, expires };
                wanted.push(self.cluster.request(leader, create));
            }
        }
        self.demand_answers(&alive, wanted);
        self.demand(&alive, "every replica is equal again", span, |c| c.all_equal(&alive));
        let slots = |id: &NodeId| {
            let node = self.cluster.node(*id)?;
            let groups = node.databases().filter(|(_, group)| self.counts(*id, *group));
            Some(groups.filter_map(|(_, group)| node.slots(group)).collect::<Vec<_>>())
        };
        for view in alive.iter().filter_map(slots).flatten() {
            let made =
                view.slots.iter().any(|s| s.name == SLOTS[0] && s.state == SlotState::Active);
            assert!(made, "S4: every replica has what was created last: {view:?}");
        }
        self.demand(&alive, "idle slots are invalidated", span, |c| c.no_slot_is_valid(&alive));
        for (group, name) in &self.cluster.names {
            assert!(self.cluster.oracle.committed(*group) > Lsn(0), "{name} has entries");
        }
        let leads = |id: &NodeId| {
            let node = self.cluster.node(*id);
            node.is_some_and(|n| n.groups().any(|v| v.role == RoleView::Leader))
        };
        assert!(!self.lost.iter().any(leads), "F1: a node that has lost its disk does not lead");
        for id in &self.rolled_back {
            assert!(self.cluster.fenced.contains(id), "F5: {id:?} finds that it was rolled back");
        }
        for id in &self.cluster.fenced {
            assert!(self.rolled_back.contains(id), "F5: {id:?} was not rolled back");
        }
        assert!(self.in_doubt().is_empty(), "F6: what was in doubt is sound");
        self.cluster.run_for(2000 * MS);
        for id in &alive {
            let Some(node) = self.cluster.node(*id) else { continue };
            if node.groups().all(|v| v.quarantined.is_none()) {
                // Who is broken for good never says what it remembers.
                let recalls = if broken { 0 } else { node.held().recalls };
                let held = Held { tail_bytes: 0, dirty_bytes: 0, recalls, ..node.held() };
                assert_eq!(held, Held::default(), "B1: nothing is forgotten on {id:?}");
            }
        }
        if !broken && self.lost.is_empty() && self.quarantined.is_none() {
            self.star();
        }
    }

    /// Everybody hears one node, and only that one: it is the only one that can lead for long. Every
    /// group takes writes within a bounded time.
    fn star(&mut self) {
        let hub = self.any();
        for from in self.cluster.ids() {
            for to in self.cluster.ids() {
                self.cluster.net.link(from, to).cut = from != hub && to != hub;
            }
        }
        let groups: Vec<GroupId> = self.cluster.names.keys().copied().collect();
        let until = self.cluster.time + 10_000 * MS;
        for group in groups.into_iter().filter(|group| *group != GroupId::SYSTEM) {
            let mut wanted = None;
            let done = |c: &Cluster, id: Option<RequestId>| {
                id.is_some_and(|id| matches!(c.replies.get(&id), Some(Reply::Applied { .. })))
            };
            while !done(&self.cluster, wanted) {
                let late = self.cluster.time > until;
                assert!(!late, "L4: {hub:?} is heard by all\n{}", self.status());
                if let Some(leader) = self.cluster.leader(group) {
                    wanted = Some(self.cluster.propose(leader, group, "put k star"));
                }
                self.cluster.run_for(300 * MS);
            }
        }
    }
}

#[derive(Default)]
struct Totals {
    counts: BTreeMap<&'static str, u64>,
    acknowledged: u64,
    reads: u64,
    steps: u64,
}

fn run(seed: u64, totals: &Mutex<Totals>) {
    let mut chaos = Chaos::new(seed);
    if let Ok(topics) = std::env::var("CORE_TRACE") {
        chaos.cluster.trace.on = true;
        chaos.cluster.trace.topics = topics.split(',').map(str::to_owned).collect();
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| chaos.run())) {
        println!("{:?}\n{}", chaos.faults, chaos.cluster.trace.lines.join("\n"));
        resume_unwind(panic);
    }
    let mut totals = totals.lock().expect("no poison");
    for (what, n) in &chaos.counts {
        *totals.counts.entry(what).or_default() += n;
    }
    for (what, n) in &chaos.cluster.oracle.rejected {
        *totals.counts.entry(what).or_default() += n;
    }
    for (what, n) in &chaos.cluster.oracle.slots.told {
        *totals.counts.entry(what).or_default() += n;
    }
    for (what, n) in &chaos.cluster.oracle.once.told {
        *totals.counts.entry(what).or_default() += n;
    }
    totals.acknowledged += chaos.cluster.oracle.acknowledged;
    totals.reads += chaos.cluster.oracle.reads;
    totals.steps += chaos.cluster.steps;
}

fn seeds() -> std::ops::Range<u64> {
    let parse = |text: &str| text.trim().parse::<u64>().expect("a seed is a number");
    if let Ok(one) = std::env::var("CORE_SEED") {
        let seed = parse(&one);
        return seed..seed + 1;
    }
    match std::env::var("CORE_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("CORE_SEEDS=A..B");
            parse(from)..parse(to)
        }
        Err(_) => 0..DEFAULT_SEEDS,
    }
}

/// As many as take seconds in a debug build.
const DEFAULT_SEEDS: u64 = 120;

#[test]
fn chaos_then_convergence() {
    let seeds = seeds();
    #[cfg(madsim)]
    let planted = std::env::var("CORE_PLANTED").ok().map(|n| {
        let planted = Planted::ALL.into_iter().find(|p| n == format!("{p:?}"));
        planted.expect("a planted fault")
    });
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Totals::default());
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                #[cfg(madsim)]
                highwater_core::planted::set(planted);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed, &totals))).is_err() {
                        failed.lock().expect("no poison").push(seed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().expect("no poison");
    println!(
        "{} steps, {} writes, {} reads, {:?}",
        totals.steps, totals.acknowledged, totals.reads, totals.counts
    );
    let failed = failed.into_inner().expect("no poison");
    assert!(failed.is_empty(), "replay with CORE_SEED=n: {failed:?}");
    assert!(totals.acknowledged > 0 && totals.reads > 0, "the workload did something");
}
