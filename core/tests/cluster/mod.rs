//! A cluster of bare nodes in virtual time: a network with rules for each link, a disk for each
//! node that loses what was not fsynced, a tiny state machine, and oracles that look on. A run is a
//! function of its seed.
#![allow(dead_code, reason = "each test binary uses its own part of the harness")]

mod disk;
mod host;
mod net;
mod once;
mod oracle;
mod rng;
mod slots;
mod state;
pub(crate) mod text;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use highwater_core::{
    Config, Effect, GroupId, Input, Instant, Lsn, Member, Message, Node, NodeId, OnceKey, Peer,
    Position, Request, RequestId, RoleView, control::refused_lsn,
};

pub(crate) use host::Host;
pub(crate) use net::Net;
pub(crate) use oracle::Oracle;
pub(crate) use rng::Rng;
use state::State;

/// Microseconds.
pub(crate) const MS: u64 = 1000;

/// How long things take on every node, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    pub(crate) sync: (u64, u64),
    pub(crate) load: (u64, u64),
    pub(crate) apply: (u64, u64),
    pub(crate) checkpoint: (u64, u64),
}

impl Default for Delays {
    fn default() -> Delays {
        Delays { sync: (100, 100), load: (100, 100), apply: (10, 10), checkpoint: (200, 200) }
    }
}

enum Event {
    /// A deadline of a node, or the end of its pause.
    Wake {
        node: NodeId,
        run: u64,
    },
    Deliver {
        from: Peer,
        to: NodeId,
        run: u64,
        message: Message,
    },
    Synced {
        node: NodeId,
        run: u64,
    },
    /// A checkpoint is durable; the node is told later.
    Frozen {
        node: NodeId,
        run: u64,
        group: GroupId,
        lsn: Lsn,
        pruned: Lsn,
        state: State,
        control: Control,
    },
    /// A snapshot takes the place of the state, durably; the node is told later.
    Installed {
        node: NodeId,
        run: u64,
        group: GroupId,
        prefixes: Vec<Bytes>,
    },
    Input {
        node: NodeId,
        run: u64,
        input: Input,
    },
}

type Control = Vec<(Bytes, Bytes)>;

/// What is shown of a run.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) on: bool,
    pub(crate) topics: BTreeSet<String>,
    pub(crate) lines: Vec<String>,
    /// Of groups, only this one is shown.
    pub(crate) only: Option<String>,
    /// The time that is shown as 0.
    pub(crate) origin: u64,
}

pub(crate) struct Cluster {
    pub(crate) time: u64,
    pub(crate) rng: Rng,
    pub(crate) config: Config,
    pub(crate) delays: Delays,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    pub(crate) net: Net,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    /// Names of databases.
    pub(crate) names: BTreeMap<GroupId, String>,
    /// The same requests, loads and so on are answered at random times and in random batches.
    pub(crate) chaotic: bool,
    /// Whether what holds between nodes is checked: not where members lie.
    pub(crate) trusting: bool,
    /// Of a thousand loads for followers, this many fail.
    pub(crate) load_fails_permille: u64,
    /// Groups on nodes whose next run fails to apply.
    pub(crate) poisoned: BTreeSet<(NodeId, GroupId)>,
    /// Groups whose state is lost, until the node says that it begins anew.
    lost_states: BTreeSet<(NodeId, GroupId)>,
    /// The answers that came, by request.
    pub(crate) replies: BTreeMap<RequestId, highwater_core::Reply>,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(crate) next_request: u64,
    /// Messages that were sent, but heartbeats.
    pub(crate) talk: u64,
    /// Writes to any disk.
    pub(crate) writes: u64,
    pub(crate) steps: u64,
    /// That were given.
    pub(crate) snapshots: u64,
    /// Nodes whose data directories lost their membership.
    pub(crate) fenced: Vec<NodeId>,
}

impl Cluster {
    /// Blank nodes, not started yet.
    pub(crate) fn new(seed: u64, count: u64, config: Config) -> Cluster {
        let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let hosts = nodes.iter().map(|id| (*id, Host::new(*id, nodes.clone()))).collect();
        Cluster {
            time: 0,
            rng: Rng::new(seed),
            config,
            delays: Delays::default(),
            hosts,
            net: Net::default(),
            oracle: Oracle::default(),
            trace: Trace::default(),
            names: BTreeMap::from([(GroupId::SYSTEM, "sys".to_owned())]),
            chaotic: false,
            trusting: true,
            load_fails_permille: 0,
            poisoned: BTreeSet::new(),
            lost_states: BTreeSet::new(),
            replies: BTreeMap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            next_request: 0,
            talk: 0,
            writes: 0,
            steps: 0,
            snapshots: 0,
            fenced: Vec::new(),
        }
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub(crate) fn host(&self, id: NodeId) -> &Host {
        &self.hosts[&id]
    }

    pub(crate) fn host_mut(&mut self, id: NodeId) -> &mut Host {
        self.hosts.get_mut(&id).expect("a node of the cluster")
    }

    /// A node that runs.
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.hosts[&id].node.as_ref()
    }

    // --- processes ---

    pub(crate) fn start(&mut self, id: NodeId) {
        let seed = self.rng.next();
        let (time, config, chaotic) = (self.time, self.config.clone(), self.chaotic);
        let mono = if chaotic { self.rng.below(1 << 40) } else { time };
        let rate = if chaotic { self.rng.between(950, 1050) } else { 1000 };
        let host = self.host_mut(id);
        host.start(time, mono, rate, seed, config);
        self.oracle.restarted(id);
        self.wake(id);
    }

    pub(crate) fn start_all(&mut self) {
        for id in self.ids() {
            self.start(id);
        }
    }

    /// The process is gone, and the power: of what was not fsynced, `keep` records are found later.
    pub(crate) fn crash(&mut self, id: NodeId, keep: usize) {
        self.host_mut(id).crash(keep);
        self.lost_states.retain(|(node, _)| *node != id);
        self.oracle.restarted(id);
    }

    /// The data directory of a node that does not run is made anew.
    pub(crate) fn wipe(&mut self, id: NodeId) {
        let time = self.time;
        self.host_mut(id).wipe(time);
    }

    /// The process does not run until then; what arrives waits.
    pub(crate) fn pause(&mut self, id: NodeId, until: u64) {
        let host = self.host_mut(id);
        host.busy_until = host.busy_until.max(until);
        let run = host.run;
        self.push(until, Event::Wake { node: id, run });
    }

    // --- requests ---

    pub(crate) fn request(&mut self, node: NodeId, request: Request) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        if self.node(node).is_some() {
            self.oracle.asked(id, node, request.clone());
            self.host_mut(node).inbox.push(Input::Request { id, request });
            self.wake(node);
        }
        id
    }

    /// Proposes an op whose payload is made unique.
    pub(crate) fn propose(&mut self, node: NodeId, group: GroupId, op: &str) -> RequestId {
        let payload = Bytes::from(format!("{op} #{}", self.next_request + 1));
        let expires = self.deadline_of(node, 3_600_000 * MS);
        self.request(node, Request::Propose { group, payload, once: None, expires })
    }

    /// Proposes an op with a key: the same op with the same key is the same request.
    pub(crate) fn propose_once(
        &mut self,
        node: NodeId,
        group: GroupId,
        op: &str,
        key: &str,
    ) -> RequestId {
        let payload = Bytes::from(format!("{op} #{key}"));
        let mut digest = [0; 16];
        let end = op.len().min(16);
        digest[..end].copy_from_slice(&op.as_bytes()[..end]);
        let once = Some(OnceKey { key: Bytes::copy_from_slice(key.as_bytes()), digest });
        let expires = self.deadline_of(node, 3_600_000 * MS);
        self.request(node, Request::Propose { group, payload, once, expires })
    }

    /// An instant of a node's own clock, so far from now.
    pub(crate) fn deadline_of(&self, node: NodeId, after: u64) -> Instant {
        self.hosts[&node].clock.now(self.time).mono.plus(after)
    }

    pub(crate) fn cancel(&mut self, node: NodeId, id: RequestId) {
        self.input(node, Input::Cancel { id });
    }

    /// Tells a node something, now.
    pub(crate) fn input(&mut self, node: NodeId, input: Input) {
        if self.node(node).is_some() {
            self.host_mut(node).inbox.push(input);
            self.wake(node);
        }
    }

    /// A message out of nowhere.
    pub(crate) fn forge(&mut self, from: NodeId, to: NodeId, message: Message) {
        let from = self.hosts[&from].peer();
        self.input(to, Input::Message { from, message });
    }

    // --- time ---

    fn push(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.time), self.sequence), event);
    }

    fn wake(&mut self, node: NodeId) {
        let run = self.hosts[&node].run;
        self.push(self.time, Event::Wake { node, run });
    }

    pub(crate) fn run_for(&mut self, span: u64) {
        let until = self.time + span;
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= until) {
            self.next_event();
        }
        self.time = until;
    }

    /// Runs until that holds, or time is up; whether it holds.
    pub(crate) fn run_until(&mut self, span: u64, holds: impl Fn(&Cluster) -> bool) -> bool {
        let until = self.time + span;
        while !holds(self) {
            match self.events.first_key_value() {
                Some(((at, _), _)) if *at <= until => self.next_event(),
                _ => {
                    self.time = until;
                    return holds(self);
                }
            }
        }
        true
    }

    /// Lets happen what happens at this very moment.
    pub(crate) fn flush(&mut self) {
        self.run_for(0);
    }

    fn next_event(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else { return };
        self.time = at;
        match event {
            Event::Wake { node, run } => {
                if self.hosts[&node].run == run {
                    self.step(node);
                }
            }
            Event::Deliver { from, to, run, message } => {
                self.arrive(to, run, Input::Message { from, message });
            }
            Event::Input { node, run, input } => self.arrive(node, run, input),
            Event::Synced { node, run } => {
                let host = self.host_mut(node);
                if host.run == run && !host.disk.stuck {
                    let write = host.disk.end_sync();
                    self.begin_sync(node);
                    if let Some(write) = write {
                        self.arrive(node, run, Input::Persisted { write });
                    }
                }
            }
            Event::Frozen { node, run, group, lsn, pruned, state, control } => {
                if self.hosts[&node].run == run {
                    let disk = &mut self.host_mut(node).disk;
                    disk.states.insert(group, state);
                    let rows = disk.control.entry(group).or_default();
                    rows.extend(control);
                    rows.retain(|key, _| refused_lsn(key).is_none_or(|lsn| lsn > pruned));
                    let at = self.time + self.delay(self.delays.checkpoint);
                    let input = Input::Checkpointed { group, lsn };
                    self.push(at, Event::Input { node, run, input });
                }
            }
            Event::Installed { node, run, group, prefixes } => {
                if self.hosts[&node].run == run {
                    let host = self.host_mut(node);
                    let (state, rows) = host.disk.snapshots.remove(&group).expect("it was ready");
                    let at = state.at();
                    let asked = rows_of(&rows, &prefixes);
                    host.states.insert(group, state.clone());
                    host.disk.states.insert(group, state);
                    host.disk.control.insert(group, rows);
                    let input = Input::Control { group, at, rows: asked };
                    let after = self.time + self.delay(self.delays.checkpoint);
                    self.push(after, Event::Input { node, run, input });
                }
            }
        }
    }

    fn delay(&mut self, (low, high): (u64, u64)) -> u64 {
        self.rng.between(low, high)
    }

    fn arrive(&mut self, node: NodeId, run: u64, input: Input) {
        if self.hosts[&node].run != run || self.node(node).is_none() {
            return;
        }
        self.host_mut(node).inbox.push(input);
        // A busy process takes what has come meanwhile at once.
        if self.chaotic && self.rng.permille(100) {
            let until = self.time + self.rng.below(2 * MS);
            self.pause(node, until);
        }
        self.step(node);
    }

    pub(crate) fn begin_sync(&mut self, node: NodeId) {
        if self.host_mut(node).disk.begin_sync() {
            let run = self.hosts[&node].run;
            let at = self.time + self.delay(self.delays.sync);
            self.push(at, Event::Synced { node, run });
        }
    }

    // --- a step ---

    fn step(&mut self, id: NodeId) {
        let time = self.time;
        let Some(host) = self.hosts.get_mut(&id) else { return };
        if host.busy_until > time {
            return;
        }
        let now = host.clock.now(time);
        let inputs = std::mem::take(&mut host.inbox);
        let Some(node) = &mut host.node else { return };
        let due = node.deadline().is_some_and(|(at, _)| at <= now.mono);
        if inputs.is_empty() && !due && host.stepped {
            return;
        }
        host.stepped = true;
        let before = if self.trace.on { views(node) } else { BTreeMap::new() };
        let shown = if self.trace.on { inputs.clone() } else { Vec::new() };
        let cancelled: Vec<RequestId> = inputs
            .iter()
            .filter_map(|i| if let Input::Cancel { id } = i { Some(*id) } else { None })
            .collect();
        let mut effects = Vec::new();
        node.step(now, inputs, &mut effects);
        node.check();
        self.steps += 1;
        self.show_step(id, shown, &before, &effects);
        self.observe(id);
        for effect in effects.iter().filter(|_| self.trusting) {
            let host = &self.hosts[&id];
            let Some(node) = &host.node else { break };
            self.oracle.effect(node, host.member(), &host.disk, effect);
        }
        for request in cancelled {
            self.oracle.asked.remove(&request);
        }
        for effect in effects {
            self.carry_out(id, effect);
        }
        let host = self.host_mut(id);
        let run = host.run;
        if let Some((at, _)) = host.node.as_ref().and_then(Node::deadline) {
            let at = host.clock.time_of(at).max(host.busy_until);
            if host.wakes_at != Some(at) || at <= time {
                host.wakes_at = Some(at);
                self.push(at, Event::Wake { node: id, run });
            }
        }
    }

    fn observe(&mut self, id: NodeId) {
        let Some(node) = &self.hosts[&id].node else { return };
        for (name, group) in node.databases() {
            self.names.entry(group).or_insert_with(|| name.to_owned());
        }
        if !self.trusting {
            return;
        }
        let members = node.members();
        let hosts = &self.hosts;
        self.oracle.observe(id, node, |group, lsn, term| {
            let has = |member: &&Member| {
                let logs = hosts.get(&member.node).into_iter().flat_map(|h| h.durable(**member));
                let mut logs = logs.filter_map(|log| log.groups.get(&group));
                logs.any(|log| log.term_at(lsn) == Some(term))
            };
            members.iter().filter(has).count()
        });
    }

    fn carry_out(&mut self, id: NodeId, effect: Effect) {
        let run = self.hosts[&id].run;
        match effect {
            Effect::Persist { write, records } => {
                self.writes += 1;
                let host = self.host_mut(id);
                assert_eq!(write.0, host.written + 1, "E1: writes are numbered in order");
                host.written = write.0;
                host.disk.write(write, records);
                self.begin_sync(id);
            }
            Effect::Load { load, group, from, to, max_bytes } => {
                let found = self.hosts[&id].disk.written.load(group, from, to, max_bytes);
                let fails = self.rng.permille(self.load_fails_permille);
                let input = match found.filter(|_| !fails) {
                    Some(entries) => Input::Loaded { load, entries },
                    None => Input::LoadFailed { load, reason: "the disk can't be read".to_owned() },
                };
                let at = self.time + self.delay(self.delays.load);
                self.push(at, Event::Input { node: id, run, input });
            }
            Effect::Apply { group, .. }
            | Effect::Checkpoint { group, .. }
            | Effect::ReadControl { group, .. }
            | Effect::Install { group, .. }
                if self.lost_states.contains(&(id, group)) => {}
            Effect::Reopen { group, .. } => {
                self.lost_states.remove(&(id, group));
            }
            Effect::ReadControl { group, prefixes, lsn } => {
                let disk = &self.hosts[&id].disk;
                let stands_at = disk.states.get(&group).map(State::at).unwrap_or_default();
                if stands_at.lsn < lsn {
                    return self.lose_state(id, group);
                }
                let rows = disk.control.get(&group).map(|rows| rows_of(rows, &prefixes));
                let rows = rows.unwrap_or_default();
                // Stories take no chance at what is always the same.
                let quick = self.delays.apply.0;
                let after = if self.chaotic { self.delay(self.delays.load) } else { quick };
                let at = self.time + after;
                let input = Input::Control { group, at: stands_at, rows };
                self.push(at, Event::Input { node: id, run, input });
            }
            Effect::Apply { group, entries } => self.apply(id, group, entries),
            Effect::DropState { group, .. } => self.lose_state(id, group),
            Effect::Checkpoint { group, at: Position { lsn, term }, pruned, control } => {
                let mut state = self.hosts[&id].states.get(&group).cloned().unwrap_or_default();
                if group == GroupId::SYSTEM {
                    (state.applied, state.term) = (lsn, term);
                }
                let stands_there = state.applied > lsn || state.term == term;
                assert!(stands_there, "E5: a checkpoint names what is applied");
                // After a restart the state may be ahead of what the node knows to be committed.
                assert!(state.applied >= lsn, "E5: a checkpoint is of what is applied");
                let at = self.time + self.delay(self.delays.checkpoint);
                self.push(at, Event::Frozen { node: id, run, group, lsn, pruned, state, control });
            }
            Effect::Bootstrap { group, from, above } => self.bootstrap(id, group, from, above),
            Effect::Install { group, at, prefixes } => {
                let ready = self.hosts[&id].disk.snapshots.get(&group).map(|(state, _)| state.at());
                assert_eq!(ready, Some(at), "E6: what is installed is ready");
                let at = self.time + self.delay(self.delays.checkpoint);
                self.push(at, Event::Installed { node: id, run, group, prefixes });
            }
            Effect::Send { to, message } => self.send(id, to, message),
            Effect::Reply { request, reply } => {
                self.replies.insert(request, reply);
            }
            Effect::Mend { group, entries } => self.host_mut(id).disk.mend(group, &entries),
            Effect::Fence { .. } => {
                self.crash(id, 0);
                let time = self.time;
                self.host_mut(id).fence(time);
                self.fenced.push(id);
                self.start(id);
            }
            Effect::Leader { .. } | Effect::Notice(_) | Effect::Halt { .. } => {}
        }
    }

    /// A snapshot comes from what another node holds durably, unless that does not run or is cut off.
    fn bootstrap(&mut self, id: NodeId, group: GroupId, from: NodeId, above: Lsn) {
        let run = self.hosts[&id].run;
        let donor = &self.hosts[&from];
        let cut = self.net.link(id, from).cut || self.net.link(from, id).cut;
        let gone = donor.node.is_none() || self.lost_states.contains(&(from, group)) || cut;
        let held = donor.disk.states.get(&group).filter(|state| state.applied >= above && !gone);
        let rows = donor.disk.control.get(&group).cloned().unwrap_or_default();
        let input = match held.cloned() {
            Some(state) => {
                let at = state.at();
                self.snapshots += 1;
                self.host_mut(id).disk.snapshots.insert(group, (state, rows));
                Input::SnapshotReady { group, at }
            }
            None => Input::SnapshotFailed { group, reason: "it has none".to_owned() },
        };
        let at = self.time + self.delay(self.delays.checkpoint);
        self.push(at, Event::Input { node: id, run, input });
    }

    /// A group's state is damaged: it is dropped, and nothing that concerns it is answered.
    pub(crate) fn lose_state(&mut self, id: NodeId, group: GroupId) {
        let of_state = |input: &Input| {
            matches!(input, Input::Applied { group: g, .. } | Input::StateFailed { group: g, .. }
                | Input::Checkpointed { group: g, .. } | Input::Control { group: g, .. }
                if *g == group)
        };
        self.events.retain(|_, event| match event {
            Event::Input { node, input, .. } => *node != id || !of_state(input),
            Event::Frozen { node, group: g, .. } | Event::Installed { node, group: g, .. } => {
                *node != id || *g != group
            }
            _ => true,
        });
        let host = self.host_mut(id);
        host.inbox.retain(|input| !of_state(input));
        host.states.remove(&group);
        host.disk.states.remove(&group);
        host.disk.control.remove(&group);
        let open = self.node(id).is_some_and(|node| node.group(group).is_some());
        if open && self.lost_states.insert((id, group)) {
            self.oracle.lost_state(id, group);
            self.input(id, Input::StateLost { group, reason: "its file is damaged".to_owned() });
        }
    }

    fn apply(&mut self, id: NodeId, group: GroupId, entries: Vec<highwater_core::Entry>) {
        let upto = entries.last().map_or(Lsn(0), |e| e.lsn);
        let held = self.hosts[&id].states.get(&group).map_or(Lsn(0), |state| state.applied);
        if entries[0].lsn > held.next() {
            return self.lose_state(id, group);
        }
        let input = if self.poisoned.remove(&(id, group)) {
            Input::StateFailed { group, reason: "the state can't take it".to_owned() }
        } else {
            let host = self.hosts.get_mut(&id).expect("a node of the cluster");
            let state = host.states.entry(group).or_default();
            let outcomes: Vec<_> = entries.iter().filter_map(|e| state.apply(e)).collect();
            if self.trusting {
                self.oracle.applied(group, state);
                let told = entries.iter().filter(|e| e.kind.has_outcome()).zip(&outcomes);
                let ops = told.filter(|(e, _)| e.kind.is_op());
                let new: Vec<_> = ops.filter(|(e, _)| e.lsn > held).collect();
                for (entry, outcome) in &new {
                    self.oracle.once.applied(group, entry.lsn, outcome);
                }
                let effective = new.iter().filter(|(_, outcome)| !outcome.refused);
                self.oracle.slots.effective(group, effective.map(|(e, _)| *e));
            }
            Input::Applied { group, upto, outcomes }
        };
        let run = self.hosts[&id].run;
        let at = self.time + self.delay(self.delays.apply);
        self.push(at, Event::Input { node: id, run, input });
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        assert_ne!(from, to, "nobody sends to itself: {message:?}");
        self.talk += u64::from(!matches!(message, Message::Heartbeat { .. }));
        let run = self.hosts[&to].run;
        let up = self.hosts[&to].node.is_some();
        let delays = self.net.route(&mut self.rng, from, to, &message);
        if delays.is_empty() || !up {
            self.show_message(from, to, &message, "-x");
            return;
        }
        let peer = self.hosts[&from].peer();
        for delay in delays {
            let at = self.time + delay;
            let message = message.clone();
            self.push(at, Event::Deliver { from: peer, to, run, message });
        }
    }

    // --- what is shown ---

    pub(crate) fn name(&self, group: GroupId) -> String {
        self.names.get(&group).cloned().unwrap_or_else(|| format!("{group:?}"))
    }

    pub(crate) fn show(&mut self, topic: &str, line: &str) {
        let other = |only: &String| {
            let names = |name: &String| line.split([' ', ':', ',']).any(|word| word == name);
            self.names.values().any(|name| name != only && names(name)) && !names(only)
        };
        if self.trace.only.as_ref().is_some_and(other) {
            return;
        }
        if self.trace.on && self.trace.topics.contains(topic) {
            let ms = (self.time - self.trace.origin) / MS;
            self.trace.lines.push(format!("{ms:>6} ms  {line}"));
        }
    }

    fn show_message(&mut self, from: NodeId, to: NodeId, message: &Message, arrow: &str) {
        if self.trace.on {
            let text = text::message(&|g| self.name(g), message);
            self.show(text::topic(message), &format!("{from:?} {arrow} {to:?}  {text}"));
        }
    }

    fn show_step(
        &mut self,
        id: NodeId,
        inputs: Vec<Input>,
        before: &BTreeMap<GroupId, (String, Lsn)>,
        effects: &[Effect],
    ) {
        if !self.trace.on {
            return;
        }
        for input in inputs {
            if let Input::Message { from, message } = input {
                self.show_message(from.member.node, id, &message, "->");
            } else if let Some((topic, text)) = text::input(&|g| self.name(g), &input) {
                self.show(topic, &format!("{id:?} {text}"));
            }
        }
        let Some(node) = &self.hosts[&id].node else { return };
        let after = views(node);
        for (name, group) in node.databases() {
            self.names.entry(group).or_insert_with(|| name.to_owned());
        }
        for (group, (role, committed)) in after {
            let old = before.get(&group);
            if old.is_none_or(|(r, _)| *r != role) {
                self.show("roles", &format!("{id:?} {} {role}", self.name(group)));
            }
            if old.is_some_and(|(_, c)| *c != committed) {
                self.show("commits", &format!("{id:?} {} committed {committed}", self.name(group)));
            }
        }
        for effect in effects {
            if let Effect::Reply { request, reply } = effect {
                let text = text::reply(&|g| self.name(g), reply);
                self.show("replies", &format!("{id:?} {request:?} {text}"));
            } else if let Some((topic, text)) = text::effect(&|g| self.name(g), effect) {
                self.show(topic, &format!("{id:?} {text}"));
            }
        }
    }

    // --- looking ---

    /// The node that leads a group in the highest term, if one does.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        let leaders = self.hosts.iter().filter_map(|(id, host)| {
            let view = host.node.as_ref()?.group(group)?;
            (view.role == RoleView::Leader).then_some((view.term, *id))
        });
        leaders.max().map(|(_, id)| id)
    }

    pub(crate) fn group_named(&self, name: &str) -> Option<GroupId> {
        self.names.iter().find(|(_, n)| *n == name).map(|(group, _)| *group)
    }

    /// All that run know the leader of each group that they have.
    pub(crate) fn is_led(&self) -> bool {
        self.hosts
            .values()
            .filter_map(|h| h.node.as_ref())
            .all(|node| node.is_formed() && node.groups().all(|view| view.leader.is_some()))
    }
}

/// What a transcript shows of a node's groups: role and committed.
fn views(node: &Node) -> BTreeMap<GroupId, (String, Lsn)> {
    node.groups().map(|v| (v.group, (text::role(&v), v.watermarks.committed()))).collect()
}

/// The rows whose keys have one of these prefixes.
fn rows_of(rows: &disk::Rows, prefixes: &[Bytes]) -> Control {
    let asked = |key: &Bytes| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let rows = rows.iter().filter(|(key, _)| asked(key));
    rows.map(|(key, value)| (key.clone(), value.clone())).collect()
}
