//! The loop that feeds the core and carries out its effects. It owns the core, every deadline, and
//! the requests under way; it decides nothing that the core decides.

mod fetches;
mod notices;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fetches::Fetching;
use highwater_core::{
    Effect, GroupId, Incarnation, Input, Instant, Lsn, Node, NodeId, Notice, Peer, Reject, Reply,
    Request, RequestId, Term,
    planted::{self, Planted},
};
use highwater_store::state::{Checkpoint, States};
use highwater_wire::peer::{ForwardReply, ForwardRequest, NodeStatus, PeerMessage, SlotAsk};
use notices::log_notice;
use tokio::sync::{
    mpsc::{Receiver, UnboundedReceiver, UnboundedSender},
    oneshot,
};

use crate::{
    api::{Metrics, NodeView, Readiness},
    deadline::Deadline,
    env::{Clock, Inbound, Transport},
    shared::Shared,
    slots::Slots,
    status,
    stream::Bases,
    transfer::{DonorJob, Transfers},
    workers::{ReadJob, StateJob},
};

/// How many inputs of one source one step takes at most.
const INPUTS_MAX: usize = 4096;
/// Requests under way; beyond: busy.
const REQUESTS_MAX: usize = 65_536;
/// What a peer may ask for at most: the longest deadline that a client may set.
const PEER_BUDGET_MAX: Duration = Duration::from_secs(60);
/// How long a node that is to end waits for the answers under way.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long other nodes may take for the cluster view.
const CLUSTER_BUDGET: Duration = Duration::from_millis(500);
/// How old this node's own word on how it stands may be: to gather it walks every group.
const STATUS_AGE_MAX: Duration = Duration::from_millis(100);

/// What handles ask of the driver.
pub(crate) enum Command {
    /// A request to the core; `None` is answered when the deadline has passed.
    Request {
        request: Ask,
        deadline: Deadline,
        reply: oneshot::Sender<Option<Reply>>,
    },
    /// A request for another node's core; `None` when its outcome can't be known.
    Forward {
        to: NodeId,
        request: ForwardRequest,
        deadline: Deadline,
        reply: oneshot::Sender<Option<ForwardReply>>,
    },
    /// How every node stands; those that are silent have no status.
    Cluster {
        reply: ViewReply,
    },
    Readiness {
        reply: oneshot::Sender<Readiness>,
    },
    Metrics {
        reply: oneshot::Sender<Metrics>,
    },
    /// What is known to be committed here.
    Committed {
        group: GroupId,
        reply: oneshot::Sender<Lsn>,
    },
    /// Where a group's log begins: as far as all replicas agree, and here.
    Bases {
        group: GroupId,
        reply: oneshot::Sender<Bases>,
    },
    /// The slots as they are known here; `None` where they are not.
    Slots {
        group: GroupId,
        reply: oneshot::Sender<Option<Slots>>,
    },
    /// A read found a group's state damaged.
    Damaged {
        group: GroupId,
        reason: String,
    },
    /// End the loop.
    Stop,
}

type ViewReply = oneshot::Sender<Arc<Vec<NodeView>>>;

/// A [`Request`] without its deadline.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Forwardable(ForwardRequest),
    Read { group: GroupId },
    Drain,
}

/// Why the driver ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to.
    Drained,
    /// The node can't go on; the reason is for the operator.
    Halted(String),
    /// The data directory has lost votes or acknowledgements: it must get a new incarnation before
    /// the node starts anew.
    Fenced {
        /// For the operator.
        reason: String,
        /// Peers have met this one: only a later one is heard.
        beyond: Incarnation,
    },
}

impl Ask {
    /// The group whose oplog it may reach.
    fn writes_to(&self) -> Option<GroupId> {
        match self {
            Ask::Forwardable(
                ForwardRequest::Propose { group, .. } | ForwardRequest::Slot { group, .. },
            ) => Some(*group),
            Ask::Forwardable(ForwardRequest::CreateDatabase { .. }) => Some(GroupId::SYSTEM),
            Ask::Forwardable(ForwardRequest::Transfer { .. }) | Ask::Read { .. } | Ask::Drain => {
                None
            }
        }
    }
}

/// Who waits for a request of this node's core.
enum Waiter {
    Local(oneshot::Sender<Option<Reply>>),
    Peer { peer: Peer, id: u64 },
}

/// A request that this node's core has.
struct Waiting {
    expires: Instant,
    writes_to: Option<GroupId>,
    waiter: Waiter,
}

impl Waiting {
    fn is_abandoned(&self) -> bool {
        matches!(&self.waiter, Waiter::Local(sender) if sender.is_closed())
    }
}

/// A request that another node carries out for us.
struct Forwarded {
    expires: Instant,
    reply: oneshot::Sender<Option<ForwardReply>>,
}

/// A cluster view that is being gathered.
struct Gathering {
    id: u64,
    expires: Instant,
    missing: BTreeSet<NodeId>,
    views: BTreeMap<NodeId, NodeView>,
    replies: Vec<ViewReply>,
}

/// What a deadline of the driver is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Request(RequestId),
    Block(GroupId),
    Forward(NodeId, u64),
    Gathering,
    Sweep,
    Stop,
}

pub(crate) struct Driver<C, T> {
    hands: Hands<C, T>,
    now: Instant,
    next_id: u64,
    waiting: BTreeMap<RequestId, Waiting>,
    /// By the node that carries them out.
    forwarded: BTreeMap<NodeId, BTreeMap<u64, Forwarded>>,
    /// Snapshots that are being received.
    fetches: BTreeMap<GroupId, Fetching>,
    /// When abandoned calls were looked for.
    evicted: Instant,
    gathering: Option<Gathering>,
    /// Who wants the next view: it must not be older than the question.
    view_wanted: Vec<ViewReply>,
    /// This node's own, and when it was true.
    status: Option<(Instant, NodeStatus)>,
    due: BTreeSet<(Instant, Due)>,
    /// The latest start of each node that has spoken.
    peers: BTreeMap<NodeId, Peer>,
    outgoing: Vec<(NodeId, PeerMessage)>,
    stopping: Stopping,
    /// Why this data directory needs a new incarnation.
    fenced: Option<(String, Incarnation)>,
}

/// Whether the driver is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopping {
    No,
    /// Once what is under way has its answers.
    Soon,
    /// They did not come in time.
    Now,
}

/// What the driver listens to.
pub(crate) struct Sources {
    pub(crate) completions: UnboundedReceiver<Input>,
    pub(crate) inbound: Receiver<Inbound>,
    pub(crate) commands: Receiver<Command>,
}

/// What woke the driver.
enum Woken {
    Completed(Input),
    Arrived(Inbound),
    Asked(Command),
    /// No handle is left that could ask.
    Alone,
    Alarmed,
}

/// What the driver is made of.
pub(crate) struct Hands<C, T> {
    pub(crate) clock: C,
    pub(crate) node: Node,
    pub(crate) transport: T,
    pub(crate) shared: Arc<Shared>,
    pub(crate) about: status::About,
    pub(crate) log: UnboundedSender<(highwater_core::WriteId, Vec<highwater_core::Record>)>,
    pub(crate) loads: UnboundedSender<ReadJob>,
    pub(crate) state: UnboundedSender<StateJob>,
    pub(crate) transfers: Transfers,
    pub(crate) states: Arc<States>,
    #[cfg(madsim)]
    pub(crate) observer: Option<Arc<dyn crate::Observer>>,
}

impl<C: Clock, T: Transport> Driver<C, T> {
    pub(crate) fn new(hands: Hands<C, T>) -> Driver<C, T> {
        let now = hands.clock.now().mono;
        Driver {
            now,
            // An answer to a request of an earlier boot must not be taken for one of this boot.
            next_id: hands.about.identity.boot.nonce,
            hands,
            waiting: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            fetches: BTreeMap::new(),
            evicted: now,
            gathering: None,
            view_wanted: Vec::new(),
            status: None,
            due: BTreeSet::new(),
            peers: BTreeMap::new(),
            outgoing: Vec::new(),
            stopping: Stopping::No,
            fenced: None,
        }
    }

    /// Runs until the node is told to stop or halts.
    pub(crate) async fn run(mut self, mut sources: Sources) -> Exit {
        let mut inputs = Vec::new();
        let mut effects = Vec::new();
        let mut alarm = Alarm::default();
        let mut alone = false;
        self.await_sweep();
        let exit = loop {
            self.step(&mut inputs, &mut effects);
            if let Some((reason, beyond)) = self.fenced.take() {
                break Exit::Fenced { reason, beyond };
            }
            if let Some(reason) = self.hands.node.halted() {
                let reason = reason.to_owned();
                self.hands.shared.update(|routes| routes.halted = Some(reason.clone()));
                break Exit::Halted(reason);
            }
            if self.may_end() {
                break Exit::Drained;
            }
            let at = self.next_deadline();
            let woken = tokio::select! {
                biased;
                Some(input) = sources.completions.recv() => Woken::Completed(input),
                Some(inbound) = sources.inbound.recv() => Woken::Arrived(inbound),
                command = sources.commands.recv(), if !alone => {
                    command.map_or(Woken::Alone, Woken::Asked)
                }
                () = alarm.wait(&self.hands.clock, at) => Woken::Alarmed,
            };
            self.now = self.hands.clock.now().mono;
            match woken {
                Woken::Completed(input) => self.on_completed(input, &mut inputs),
                Woken::Arrived(inbound) => self.on_inbound(inbound, &mut inputs),
                Woken::Asked(command) => self.on_command(command, &mut inputs),
                Woken::Alone => {
                    alone = true;
                    self.stop();
                }
                Woken::Alarmed => {}
            }
            self.take_queued(&mut sources, &mut inputs);
            self.expire(&mut inputs);
        };
        self.give_up_all();
        exit
    }

    /// What else has come by now is part of the same step.
    fn take_queued(&mut self, sources: &mut Sources, inputs: &mut Vec<Input>) {
        for _ in 0..INPUTS_MAX {
            let Ok(input) = sources.completions.try_recv() else { break };
            self.on_completed(input, inputs);
        }
        for _ in 0..INPUTS_MAX {
            let Ok(inbound) = sources.inbound.try_recv() else { break };
            self.on_inbound(inbound, inputs);
        }
        for _ in 0..INPUTS_MAX {
            let Ok(command) = sources.commands.try_recv() else { break };
            self.on_command(command, inputs);
        }
    }

    // --- the end ---

    fn stop(&mut self) {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Soon;
            self.due.insert((self.now.plus(micros(STOP_GRACE)), Due::Stop));
        }
    }

    fn may_end(&self) -> bool {
        let is_idle = self.waiting.is_empty() && self.forwards() == 0;
        self.stopping == Stopping::Now || (self.stopping == Stopping::Soon && is_idle)
    }

    /// The driver ends: who waits still is told that the outcome is not known.
    fn give_up_all(&mut self) {
        let requests: Vec<RequestId> = self.waiting.keys().copied().collect();
        for id in requests {
            self.answer(id, None);
        }
        let nodes: Vec<NodeId> = self.forwarded.keys().copied().collect();
        for node in nodes {
            self.give_up_forwards(node);
        }
        self.send_outgoing();
    }

    // --- steps ---

    fn next_deadline(&self) -> Option<Instant> {
        let core = self.hands.node.deadline().map(|(at, _)| at);
        let own = self.due.first().map(|(at, _)| *at);
        core.into_iter().chain(own).min()
    }

    fn step(&mut self, inputs: &mut Vec<Input>, effects: &mut Vec<Effect>) {
        let now = self.hands.clock.now();
        self.now = now.mono;
        #[cfg(madsim)]
        if let Some(observer) = &self.hands.observer {
            observer.takes(inputs);
        }
        self.hands.node.step(now, inputs.drain(..), effects);
        #[cfg(madsim)]
        if let Some(observer) = &self.hands.observer {
            observer.step(&self.hands.node, effects);
        }
        self.carry_out_all(effects, inputs);
        self.give_up_on_silent();
        self.send_outgoing();
    }

    fn send_outgoing(&mut self) {
        if !self.outgoing.is_empty() {
            self.hands.transport.send(std::mem::take(&mut self.outgoing));
        }
    }

    fn carry_out_all(&mut self, effects: &mut Vec<Effect>, inputs: &mut Vec<Input>) {
        // Whoever gets an answer finds the routes that it rests on.
        self.publish_routes(effects);
        let quarantined: Vec<GroupId> = effects.iter().filter_map(quarantined_by).collect();
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        for group in quarantined {
            self.give_up_writes(group, inputs);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            // A worker that is gone has said so, which halts the node.
            Effect::Persist { write, records } => drop(self.hands.log.send((write, records))),
            Effect::Load { load, group, from, to, max_bytes } => {
                drop(self.hands.loads.send(ReadJob::Load { load, group, from, to, max_bytes }));
            }
            Effect::ReadControl { group, prefixes, lsn } => {
                drop(self.hands.state.send(StateJob::ReadControl { group, prefixes, lsn }));
            }
            Effect::Apply { group, entries } => {
                drop(self.hands.state.send(StateJob::Apply { group, entries }));
            }
            Effect::Checkpoint { group, at, pruned, control } => {
                let checkpoint = Checkpoint { at, pruned, control };
                drop(self.hands.state.send(StateJob::Checkpoint { group, checkpoint }));
            }
            Effect::Bootstrap { group, from, above } => self.fetch(group, from, above),
            Effect::Install { group, prefixes, .. } => {
                drop(self.hands.state.send(StateJob::Install { group, prefixes }));
            }
            Effect::Send { to, message } => self.outgoing.push((to, PeerMessage::Core(message))),
            Effect::Reply { request, reply } => self.answer(request, Some(reply)),
            // Its route is published before all else.
            Effect::Leader { group, term, leader } => {
                tracing::debug!(%group, %term, ?leader, "leader");
            }
            Effect::Notice(notice) => log_notice(&notice),
            Effect::Reopen { group, upto } => {
                drop(self.hands.state.send(StateJob::Reopen { group, upto }));
            }
            Effect::DropState { group, reason } => {
                // Readers don't wait for the workers.
                self.hands.states.condemn(group, &reason);
                drop(self.hands.state.send(StateJob::Lost { group, reason }));
            }
            Effect::Mend { group, entries } => {
                drop(self.hands.loads.send(ReadJob::Mend { group, entries }));
            }
            Effect::Fence { reason, beyond } => self.fenced = Some((reason, beyond)),
            Effect::Halt { reason } => tracing::error!(%reason, "this node halts"),
        }
    }

    fn publish_routes(&mut self, effects: &[Effect]) {
        let leaders: Vec<_> = effects.iter().filter_map(leader_of).collect();
        if leaders.is_empty() {
            return;
        }
        self.status = None;
        let node = &self.hands.node;
        self.hands.shared.update(|routes| {
            routes.leaders.extend(leaders);
            if routes.databases.len() < node.database_count() {
                routes.databases = node.databases().map(|(n, g)| (n.to_owned(), g)).collect();
            }
        });
    }

    // --- requests of this node's core ---

    fn admit(&mut self, ask: Ask, budget: Duration, waiter: Waiter, inputs: &mut Vec<Input>) {
        // However busy the node is, it can be told to hand over and end.
        if !matches!(ask, Ask::Drain) && !self.has_room(inputs) {
            return self.tell(waiter, Some(Reply::Rejected(Reject::Busy)));
        }
        let id = RequestId(self.fresh_id());
        let expires = self.now.plus(micros(budget));
        self.waiting.insert(id, Waiting { expires, writes_to: ask.writes_to(), waiter });
        self.due.insert((expires, Due::Request(id)));
        inputs.push(Input::Request { id, request: request_of(ask, expires) });
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Whether one more request may be under way, of either kind. Calls that were abandoned give
    /// their places up when there is no other; that walks all of them, so once a pass at most.
    fn has_room(&mut self, inputs: &mut Vec<Input>) -> bool {
        let is_full = |driver: &Self| driver.waiting.len() + driver.forwards() >= REQUESTS_MAX;
        if is_full(self) && self.evicted < self.now {
            self.evicted = self.now;
            self.evict_abandoned(inputs);
        }
        !is_full(self)
    }

    fn evict_abandoned(&mut self, inputs: &mut Vec<Input>) {
        let abandoned = self.waiting.iter().filter(|(_, waiting)| waiting.is_abandoned());
        for id in abandoned.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.cancel(id, inputs);
        }
        let forwarded = self.forwarded.iter().flat_map(|(to, all)| all.iter().map(|f| (*to, f)));
        let abandoned = forwarded.filter(|(_, (_, forwarded))| forwarded.reply.is_closed());
        for (to, id) in abandoned.map(|(to, (id, _))| (to, *id)).collect::<Vec<_>>() {
            self.answer_forwarded(to, id, None);
        }
    }

    /// Nobody waits for it any more; what was appended stays.
    fn cancel(&mut self, id: RequestId, inputs: &mut Vec<Input>) {
        inputs.push(Input::Cancel { id });
        self.answer(id, None);
    }

    fn answer(&mut self, id: RequestId, reply: Option<Reply>) {
        if let Some(Waiting { expires, waiter, .. }) = self.waiting.remove(&id) {
            self.due.remove(&(expires, Due::Request(id)));
            self.tell(waiter, reply);
        }
    }

    fn tell(&mut self, waiter: Waiter, reply: Option<Reply>) {
        match waiter {
            // A handle that has gone does not want to know.
            Waiter::Local(sender) => drop(sender.send(reply)),
            Waiter::Peer { peer, id } => {
                let node = peer.member.node;
                if self.peers.get(&node) == Some(&peer) {
                    let reply = forward_reply_of(reply);
                    self.outgoing.push((node, PeerMessage::ForwardReply { id, reply }));
                }
            }
        }
    }

    /// A quarantined group applies nothing here any more: what its writes came to is not known.
    fn give_up_writes(&mut self, group: GroupId, inputs: &mut Vec<Input>) {
        let lost = self.waiting.iter().filter(|(_, waiting)| waiting.writes_to == Some(group));
        for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.cancel(id, inputs);
        }
    }

    fn expire(&mut self, inputs: &mut Vec<Input>) {
        while let Some((at, due)) = self.due.first().copied() {
            if at > self.now {
                return;
            }
            self.due.remove(&(at, due));
            match due {
                Due::Request(id) => self.cancel(id, inputs),
                Due::Block(group) => self.block_is_late(group, inputs),
                Due::Forward(to, id) => self.answer_forwarded(to, id, None),
                Due::Gathering => self.finish_gathering(),
                Due::Sweep => self.sweep_snapshots(),
                Due::Stop => self.stopping = Stopping::Now,
            }
        }
    }

    // --- requests of other nodes' cores ---

    fn forward(
        &mut self,
        to: NodeId,
        request: ForwardRequest,
        budget: Duration,
        reply: oneshot::Sender<Option<ForwardReply>>,
        inputs: &mut Vec<Input>,
    ) {
        let refused = if !self.hands.node.is_alive(to) {
            // Nobody would answer; nothing was sent.
            Some(Reject::NotLeader { leader: None })
        } else if !self.has_room(inputs) {
            Some(Reject::Busy)
        } else {
            None
        };
        if let Some(reject) = refused {
            return drop(reply.send(Some(ForwardReply::Rejected(reject))));
        }
        let id = self.fresh_id();
        let budget_us = micros(budget);
        let expires = self.now.plus(budget_us);
        self.forwarded.entry(to).or_default().insert(id, Forwarded { expires, reply });
        self.due.insert((expires, Due::Forward(to, id)));
        self.outgoing.push((to, PeerMessage::Forward { id, budget_us, request }));
    }

    fn forwards(&self) -> usize {
        self.forwarded.values().map(BTreeMap::len).sum()
    }

    /// Answers what a node was to carry out for us, if it still waits.
    fn answer_forwarded(&mut self, to: NodeId, id: u64, reply: Option<ForwardReply>) {
        let forwarded = self.forwarded.get_mut(&to).and_then(|all| all.remove(&id));
        if let Some(Forwarded { expires, reply: sender }) = forwarded {
            self.due.remove(&(expires, Due::Forward(to, id)));
            drop(sender.send(reply));
        }
    }

    /// What a silent node has of ours has an outcome that nobody will tell us.
    fn give_up_on_silent(&mut self) {
        let node = &self.hands.node;
        let silent = self.forwarded.keys().filter(|to| !node.is_alive(**to));
        for to in silent.copied().collect::<Vec<_>>() {
            self.give_up_forwards(to);
        }
    }

    fn give_up_forwards(&mut self, to: NodeId) {
        for (id, Forwarded { expires, reply }) in self.forwarded.remove(&to).unwrap_or_default() {
            self.due.remove(&(expires, Due::Forward(to, id)));
            let again = planted::is(Planted::ForwardTwice);
            let reject = ForwardReply::Rejected(Reject::NotLeader { leader: None });
            drop(reply.send(again.then_some(reject)));
        }
    }

    // --- messages ---

    /// Whether a sender is the latest start of its node. What an earlier one was to carry out for
    /// us has an outcome that nobody will tell us.
    fn note_sender(&mut self, from: Peer) -> bool {
        let node = from.member.node;
        let age = |peer: &Peer| (peer.member.incarnation, peer.boot.counter);
        match self.peers.get(&node) {
            Some(known) if *known == from => return true,
            Some(known) if age(known) > age(&from) => return false,
            _ => {}
        }
        if self.peers.insert(node, from).is_some() {
            self.give_up_forwards(node);
        }
        true
    }

    fn on_inbound(&mut self, inbound: Inbound, inputs: &mut Vec<Input>) {
        let Inbound { from, message } = inbound;
        let node = from.member.node;
        let is_latest = self.note_sender(from);
        match message {
            // The core judges by itself what an earlier start may say: if a data directory was rolled
            // back, it must be told.
            PeerMessage::Core(message) => inputs.push(Input::Message { from, message }),
            _ if !is_latest => {}
            PeerMessage::Forward { id, budget_us, request } => {
                let waiter = Waiter::Peer { peer: from, id };
                let budget = Duration::from_micros(budget_us).min(PEER_BUDGET_MAX);
                self.admit(Ask::Forwardable(request), budget, waiter, inputs);
            }
            PeerMessage::ForwardReply { id, reply } => {
                self.answer_forwarded(node, id, Some(reply));
            }
            PeerMessage::SnapshotAsk { group, ask } => {
                // A donor that is busy is asked again.
                let job = DonorJob::Give { to: node, group, ask };
                let _ = self.hands.transfers.donor.try_send(job);
            }
            PeerMessage::SnapshotBlock { .. } | PeerMessage::SnapshotNone { .. } => {
                self.on_block(node, message, inputs);
            }
            PeerMessage::StatusQuery { id } => {
                let status = self.own_status();
                self.outgoing.push((node, PeerMessage::StatusReply { id, status }));
            }
            PeerMessage::StatusReply { id, status } => self.on_status(node, id, status),
        }
    }

    // --- commands ---

    fn on_command(&mut self, command: Command, inputs: &mut Vec<Input>) {
        match command {
            Command::Request { request, deadline, reply } => match deadline.left() {
                Some(budget) => self.admit(request, budget, Waiter::Local(reply), inputs),
                None => drop(reply.send(Some(Reply::Rejected(Reject::Expired)))),
            },
            Command::Forward { to, request, deadline, reply } => match deadline.left() {
                Some(budget) => self.forward(to, request, budget, reply, inputs),
                None => drop(reply.send(Some(ForwardReply::Rejected(Reject::Expired)))),
            },
            Command::Cluster { reply } => {
                self.view_wanted.push(reply);
                self.gather();
            }
            Command::Readiness { reply } => {
                let draining = self.hands.shared.is_draining();
                drop(reply.send(self.hands.about.readiness(&self.hands.node, draining)));
            }
            Command::Metrics { reply } => {
                let mut metrics = status::metrics(&self.hands.node);
                metrics.oplog_syncs = self.hands.shared.syncs.load(Ordering::Relaxed);
                metrics.writes_acked = self.hands.shared.acked.load(Ordering::Relaxed);
                metrics.writes_replayed = self.hands.shared.replayed.load(Ordering::Relaxed);
                metrics.snapshot_bytes_received =
                    self.hands.shared.snapshot_received.load(Ordering::Relaxed);
                metrics.snapshot_bytes_given =
                    self.hands.shared.snapshot_given.load(Ordering::Relaxed);
                metrics.apply_errors = self.hands.shared.apply_errors.load(Ordering::Relaxed);
                status::add_scrub(&mut metrics, &self.hands.shared.scrub.get());
                drop(reply.send(metrics));
            }
            Command::Committed { group, reply } => {
                let view = self.hands.node.group(group);
                let committed = view.map_or(Lsn(0), |view| view.watermarks.committed());
                let _ = reply.send(committed);
            }
            Command::Bases { group, reply } => {
                let here = self.hands.node.group(group).map(|view| view.base).unwrap_or_default();
                let agreed = self.hands.node.slots(group).map(|slots| slots.base);
                let _ = reply.send(Bases { agreed, here });
            }
            Command::Slots { group, reply } => {
                let view = self.hands.node.slots(group);
                let connected = |name: &str| self.hands.shared.consumers.is_connected(group, name);
                let _ = reply.send(view.map(|view| Slots::of(&view, connected)));
            }
            Command::Damaged { group, reason } => {
                drop(self.hands.state.send(StateJob::Lost { group, reason }));
            }
            Command::Stop => self.stop(),
        }
    }

    // --- the cluster view ---

    /// How this node stands; walks every group, so not for each who asks.
    fn own_status(&mut self) -> NodeStatus {
        if let Some((at, status)) = &self.status
            && self.now.since(*at) < micros(STATUS_AGE_MAX)
        {
            return status.clone();
        }
        let draining = self.hands.shared.is_draining();
        let transfers = self.hands.shared.transfers();
        let status = self.hands.about.node_status(&self.hands.node, &transfers, draining);
        self.status = Some((self.now, status.clone()));
        status
    }

    /// Asks every node how it stands, for all who want to know; one view at a time is gathered.
    fn gather(&mut self) {
        self.view_wanted.retain(|reply| !reply.is_closed());
        if self.gathering.is_some() || self.view_wanted.is_empty() {
            return;
        }
        let id = self.fresh_id();
        let own = self.own_status();
        let views = self.hands.about.views(&self.hands.node, own);
        let missing: BTreeSet<NodeId> =
            views.iter().filter(|(_, v)| v.status.is_none()).map(|(node, _)| *node).collect();
        for node in &missing {
            self.outgoing.push((*node, PeerMessage::StatusQuery { id }));
        }
        let expires = self.now.plus(micros(CLUSTER_BUDGET));
        let replies = std::mem::take(&mut self.view_wanted);
        let is_whole = missing.is_empty();
        self.due.insert((expires, Due::Gathering));
        self.gathering = Some(Gathering { id, expires, missing, views, replies });
        if is_whole {
            self.finish_gathering();
        }
    }

    fn on_status(&mut self, from: NodeId, id: u64, status: NodeStatus) {
        let Some(gathering) = self.gathering.as_mut().filter(|g| g.id == id) else { return };
        if !gathering.missing.remove(&from) {
            return;
        }
        if let Some(view) = gathering.views.get_mut(&from) {
            view.status = Some(status);
        }
        if gathering.missing.is_empty() {
            self.finish_gathering();
        }
    }

    fn finish_gathering(&mut self) {
        let Some(Gathering { expires, views, replies, .. }) = self.gathering.take() else { return };
        self.due.remove(&(expires, Due::Gathering));
        let views = Arc::new(views.into_values().collect());
        for reply in replies {
            drop(reply.send(Arc::clone(&views)));
        }
        self.gather();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn request_of(ask: Ask, expires: Instant) -> Request {
    match ask {
        Ask::Forwardable(ForwardRequest::Propose { group, payload, once }) => {
            Request::Propose { group, payload, once, expires }
        }
        Ask::Forwardable(ForwardRequest::CreateDatabase { name }) => {
            Request::CreateDatabase { name, expires }
        }
        Ask::Forwardable(ForwardRequest::Transfer { group, to }) => Request::Transfer { group, to },
        Ask::Forwardable(ForwardRequest::Slot { group, name, ask }) => match ask {
            SlotAsk::Create(settings) => Request::CreateSlot { group, name, settings, expires },
            SlotAsk::Ack(lsn) => Request::AckSlot { group, name, lsn, expires },
            SlotAsk::Delete => Request::DeleteSlot { group, name, expires },
        },
        Ask::Read { group } => Request::Read { group },
        Ask::Drain => Request::Drain,
    }
}

/// The core's answer, as it goes to the node that forwarded the request.
#[must_use]
pub fn forward_reply_of(reply: Option<Reply>) -> ForwardReply {
    match reply {
        Some(Reply::Applied { lsn, term, outcome, replayed }) => {
            ForwardReply::Applied { lsn, term, outcome, replayed }
        }
        Some(Reply::Created { group, existed }) => ForwardReply::Created { group, existed },
        Some(Reply::Transferred { term }) => ForwardReply::Transferred { term },
        Some(Reply::Slot { first, outcome, .. }) => ForwardReply::Slot { first, outcome },
        Some(Reply::Rejected(reject)) => ForwardReply::Rejected(reject),
        // Reads are not forwarded; an answer to one could only be a bug, and is no promise.
        None if planted::is(Planted::ExpiryAsRejection) => ForwardReply::Rejected(Reject::Expired),
        Some(Reply::Readable { .. } | Reply::Unknown) | None => ForwardReply::Unknown,
    }
}

fn leader_of(effect: &Effect) -> Option<(GroupId, (Term, Option<NodeId>))> {
    match effect {
        Effect::Leader { group, term, leader } => Some((*group, (*term, *leader))),
        _ => None,
    }
}

fn quarantined_by(effect: &Effect) -> Option<GroupId> {
    match effect {
        Effect::Notice(Notice::Quarantined { group, .. }) => Some(*group),
        _ => None,
    }
}

/// One timer, armed anew only when an earlier deadline comes up: a later one costs one idle wake.
#[derive(Default)]
struct Alarm {
    armed: Option<(Instant, Sleep)>,
}

type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Alarm {
    async fn wait<C: Clock>(&mut self, clock: &C, at: Option<Instant>) {
        let Some(at) = at else { return std::future::pending().await };
        if self.armed.as_ref().is_none_or(|(armed, _)| at < *armed) {
            let clock = clock.clone();
            self.armed = Some((at, Box::pin(async move { clock.sleep_until(at).await })));
        }
        if let Some((_, sleep)) = &mut self.armed {
            sleep.as_mut().await;
            self.armed = None;
        }
    }
}

#[cfg(all(test, not(madsim)))]
mod tests;
