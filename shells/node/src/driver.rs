//! The loop that feeds the core and carries out its effects. It owns the core, every deadline, and
//! the requests under way; it decides nothing that the core decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use highwater_core::{
    Effect, GroupId, Input, Instant, Node, NodeId, Notice, Peer, Reject, Reply, Request, RequestId,
};
use highwater_wire::peer::{ForwardReply, ForwardRequest, PeerMessage};
use tokio::sync::{
    mpsc::{Receiver, UnboundedReceiver, UnboundedSender},
    oneshot,
};

use crate::{
    api::{Metrics, NodeView, Readiness},
    env::{Clock, Inbound, Transport},
    shared::Shared,
    status,
    workers::{LoadJob, StateJob},
};

/// How many inputs of one source one step takes at most.
const INPUTS_MAX: usize = 4096;
/// Requests under way; beyond: busy.
const REQUESTS_MAX: usize = 65_536;

/// What handles ask of the driver.
pub(crate) enum Command {
    /// A request to the core; `None` is answered when the budget is spent.
    Request {
        request: Ask,
        budget: Duration,
        reply: oneshot::Sender<Option<Reply>>,
    },
    /// A request for another node's core; `None` when its outcome can't be known.
    Forward {
        to: NodeId,
        group: GroupId,
        request: ForwardRequest,
        budget: Duration,
        reply: oneshot::Sender<Option<ForwardReply>>,
    },
    /// How every node stands; those that are silent have no status.
    Cluster {
        budget: Duration,
        reply: oneshot::Sender<Vec<NodeView>>,
    },
    Readiness {
        reply: oneshot::Sender<Readiness>,
    },
    Metrics {
        reply: oneshot::Sender<Metrics>,
    },
    /// End the loop.
    Stop,
}

/// A [`Request`] whose deadline is still a budget.
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
    /// the node starts anew. The reason is for the operator.
    Fenced(String),
}

/// Who waits for a request of this node's core.
enum Waiter {
    Local(oneshot::Sender<Option<Reply>>),
    Peer { peer: Peer, id: u64 },
}

/// A request that another node carries out for us.
struct Forwarded {
    to: NodeId,
    group: GroupId,
    reply: oneshot::Sender<Option<ForwardReply>>,
}

/// A cluster view that is being gathered.
struct Gathering {
    missing: BTreeSet<NodeId>,
    views: BTreeMap<NodeId, NodeView>,
    reply: oneshot::Sender<Vec<NodeView>>,
}

/// What a deadline of the driver is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Request(RequestId),
    Forward(u64),
    Gathering(u64),
}

pub(crate) struct Driver<C, T> {
    hands: Hands<C, T>,
    now: Instant,
    next_id: u64,
    waiters: BTreeMap<RequestId, (Instant, Waiter)>,
    forwarded: BTreeMap<u64, (Instant, Forwarded)>,
    gathering: BTreeMap<u64, Gathering>,
    due: BTreeSet<(Instant, Due)>,
    /// The latest start of each node that has spoken.
    peers: BTreeMap<NodeId, Peer>,
    outgoing: Vec<(NodeId, PeerMessage)>,
    /// Why this data directory needs a new incarnation.
    fenced: Option<String>,
}

/// What the driver listens to.
pub(crate) struct Sources {
    pub(crate) completions: UnboundedReceiver<Input>,
    pub(crate) inbound: Receiver<Inbound>,
    pub(crate) commands: Receiver<Command>,
}

/// What the driver is made of.
pub(crate) struct Hands<C, T> {
    pub(crate) clock: C,
    pub(crate) node: Node,
    pub(crate) transport: T,
    pub(crate) shared: Arc<Shared>,
    pub(crate) about: status::About,
    pub(crate) log: UnboundedSender<(highwater_core::WriteId, Vec<highwater_core::Record>)>,
    pub(crate) loads: UnboundedSender<LoadJob>,
    pub(crate) state: UnboundedSender<StateJob>,
    #[cfg(madsim)]
    pub(crate) observer: Option<Arc<dyn crate::Observer>>,
}

impl<C: Clock, T: Transport> Driver<C, T> {
    pub(crate) fn new(hands: Hands<C, T>) -> Driver<C, T> {
        Driver {
            now: hands.clock.now().mono,
            hands,
            next_id: 0,
            waiters: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            gathering: BTreeMap::new(),
            due: BTreeSet::new(),
            peers: BTreeMap::new(),
            outgoing: Vec::new(),
            fenced: None,
        }
    }

    /// Runs until the node is told to stop or halts.
    pub(crate) async fn run(mut self, mut sources: Sources) -> Exit {
        let mut inputs = Vec::new();
        let mut effects = Vec::new();
        let mut alarm = Alarm::default();
        loop {
            self.step(&mut inputs, &mut effects);
            if let Some(reason) = self.fenced.take() {
                return Exit::Fenced(reason);
            }
            if let Some(reason) = self.hands.node.halted() {
                let reason = reason.to_owned();
                self.hands.shared.update(|routes| routes.halted = Some(reason.clone()));
                return Exit::Halted(reason);
            }
            let at = self.next_deadline();
            tokio::select! {
                biased;
                Some(input) = sources.completions.recv() => inputs.push(input),
                Some(inbound) = sources.inbound.recv() => self.on_inbound(inbound, &mut inputs),
                command = sources.commands.recv() => match command {
                    Some(Command::Stop) | None => return Exit::Drained,
                    Some(command) => self.on_command(command, &mut inputs),
                },
                () = alarm.wait(&self.hands.clock, at) => {}
            }
            self.now = self.hands.clock.now().mono;
            for _ in 0..INPUTS_MAX {
                let Ok(input) = sources.completions.try_recv() else { break };
                inputs.push(input);
            }
            for _ in 0..INPUTS_MAX {
                let Ok(inbound) = sources.inbound.try_recv() else { break };
                self.on_inbound(inbound, &mut inputs);
            }
            for _ in 0..INPUTS_MAX {
                match sources.commands.try_recv() {
                    Ok(Command::Stop) => return Exit::Drained,
                    Ok(command) => self.on_command(command, &mut inputs),
                    Err(_) => break,
                }
            }
            self.expire(&mut inputs);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let core = self.hands.node.deadline().map(|(at, _)| at);
        let own = self.due.first().map(|(at, _)| *at);
        core.into_iter().chain(own).min()
    }

    fn step(&mut self, inputs: &mut Vec<Input>, effects: &mut Vec<Effect>) {
        let now = self.hands.clock.now();
        self.now = now.mono;
        self.hands.node.step(now, inputs.drain(..), effects);
        #[cfg(madsim)]
        if let Some(observer) = &self.hands.observer {
            observer.step(&self.hands.node, effects);
        }
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        if !self.outgoing.is_empty() {
            self.hands.transport.send(std::mem::take(&mut self.outgoing));
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            // A worker that is gone has said why, or the node is ending.
            Effect::Persist { write, records } => drop(self.hands.log.send((write, records))),
            Effect::Load { load, group, from, to, max_bytes } => {
                drop(self.hands.loads.send(LoadJob { load, group, from, to, max_bytes }));
            }
            Effect::Apply { group, entries } => {
                drop(self.hands.state.send(StateJob::Apply { group, entries }));
            }
            Effect::Checkpoint { group, lsn, control } => {
                drop(self.hands.state.send(StateJob::Checkpoint { group, lsn, control }));
            }
            Effect::Send { to, message } => self.outgoing.push((to, PeerMessage::Core(message))),
            Effect::Reply { request, reply } => self.answer(request, Some(reply)),
            Effect::Leader { group, term, leader } => self.on_leader(group, term, leader),
            Effect::Notice(notice) => log_notice(&notice),
            // The oplog's own copy stays damaged until it can be mended in place.
            Effect::Mend { .. } => {}
            Effect::Fence { reason } => self.fenced = Some(reason),
            Effect::Halt { reason } => tracing::error!(%reason, "this node halts"),
        }
    }

    fn on_leader(&mut self, group: GroupId, term: highwater_core::Term, leader: Option<NodeId>) {
        tracing::debug!(%group, %term, ?leader, "leader");
        let node = &self.hands.node;
        self.hands.shared.update(|routes| {
            routes.leaders.insert(group, (term, leader));
            if routes.databases.len() < node.databases().count() {
                routes.databases = node.databases().map(|(n, g)| (n.to_owned(), g)).collect();
            }
        });
        // What a silent leader held has an outcome that nobody will tell us.
        let lost: Vec<u64> = self
            .forwarded
            .iter()
            .filter(|(_, (_, f))| f.group == group && leader != Some(f.to))
            .filter(|(_, (_, f))| !self.hands.node.is_alive(f.to))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.answer_forwarded(id, None);
        }
    }

    // --- requests of this node's core ---

    fn admit(&mut self, ask: Ask, budget: Duration, waiter: Waiter, inputs: &mut Vec<Input>) {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let expires = self.now.plus(micros(budget));
        if self.waiters.len() >= REQUESTS_MAX {
            return self.tell(waiter, Some(Reply::Rejected(Reject::Busy)));
        }
        self.waiters.insert(id, (expires, waiter));
        self.due.insert((expires, Due::Request(id)));
        inputs.push(Input::Request { id, request: request_of(ask, expires) });
    }

    fn answer(&mut self, id: RequestId, reply: Option<Reply>) {
        if let Some((expires, waiter)) = self.waiters.remove(&id) {
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

    fn expire(&mut self, inputs: &mut Vec<Input>) {
        while let Some((at, due)) = self.due.first().copied() {
            if at > self.now {
                return;
            }
            self.due.remove(&(at, due));
            match due {
                Due::Request(id) => {
                    inputs.push(Input::Cancel { id });
                    self.answer(id, None);
                }
                Due::Forward(id) => self.answer_forwarded(id, None),
                Due::Gathering(id) => self.finish_gathering(id),
            }
        }
    }

    // --- requests of other nodes' cores ---

    fn forward(
        &mut self,
        to: NodeId,
        budget: Duration,
        request: ForwardRequest,
        forwarded: Forwarded,
    ) {
        if self.forwarded.len() >= REQUESTS_MAX {
            let busy = ForwardReply::Rejected(Reject::Busy);
            return drop(forwarded.reply.send(Some(busy)));
        }
        self.next_id += 1;
        let id = self.next_id;
        let expires = self.now.plus(micros(budget));
        self.forwarded.insert(id, (expires, forwarded));
        self.due.insert((expires, Due::Forward(id)));
        let budget_us = micros(budget);
        self.outgoing.push((to, PeerMessage::Forward { id, budget_us, request }));
    }

    fn answer_forwarded(&mut self, id: u64, reply: Option<ForwardReply>) {
        if let Some((expires, forwarded)) = self.forwarded.remove(&id) {
            self.due.remove(&(expires, Due::Forward(id)));
            drop(forwarded.reply.send(reply));
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
            let lost = self.forwarded.iter().filter(|(_, (_, f))| f.to == node);
            for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.answer_forwarded(id, None);
            }
        }
        true
    }

    fn on_inbound(&mut self, inbound: Inbound, inputs: &mut Vec<Input>) {
        let Inbound { from, message } = inbound;
        let node = from.member.node;
        if !self.note_sender(from) {
            return;
        }
        match message {
            PeerMessage::Core(message) => inputs.push(Input::Message { from, message }),
            PeerMessage::Forward { id, budget_us, request } => {
                let waiter = Waiter::Peer { peer: from, id };
                let budget = Duration::from_micros(budget_us);
                self.admit(Ask::Forwardable(request), budget, waiter, inputs);
            }
            PeerMessage::ForwardReply { id, reply } => {
                if self.forwarded.get(&id).is_some_and(|(_, f)| f.to == node) {
                    self.answer_forwarded(id, Some(reply));
                }
            }
            PeerMessage::StatusQuery { id } => {
                let status =
                    self.hands.about.node_status(&self.hands.node, self.hands.shared.is_draining());
                self.outgoing.push((node, PeerMessage::StatusReply { id, status }));
            }
            PeerMessage::StatusReply { id, status } => {
                let Some(gathering) = self.gathering.get_mut(&id) else { return };
                if gathering.missing.remove(&node) {
                    if let Some(view) = gathering.views.get_mut(&node) {
                        view.status = Some(status);
                    }
                    if gathering.missing.is_empty() {
                        self.finish_gathering(id);
                    }
                }
            }
        }
    }

    // --- commands ---

    fn on_command(&mut self, command: Command, inputs: &mut Vec<Input>) {
        match command {
            Command::Request { request, budget, reply } => {
                self.admit(request, budget, Waiter::Local(reply), inputs);
            }
            Command::Forward { to, group, request, budget, reply } => {
                self.forward(to, budget, request, Forwarded { to, group, reply });
            }
            Command::Cluster { budget, reply } => self.gather(budget, reply),
            Command::Readiness { reply } => {
                let draining = self.hands.shared.is_draining();
                drop(reply.send(self.hands.about.readiness(&self.hands.node, draining)));
            }
            Command::Metrics { reply } => {
                let mut metrics = status::metrics(&self.hands.node);
                metrics.oplog_syncs = self.hands.shared.syncs.load(Ordering::Relaxed);
                metrics.writes_acked = self.hands.shared.acked.load(Ordering::Relaxed);
                metrics.apply_errors = self.hands.shared.apply_errors.load(Ordering::Relaxed);
                drop(reply.send(metrics));
            }
            Command::Stop => {}
        }
    }

    fn gather(&mut self, budget: Duration, reply: oneshot::Sender<Vec<NodeView>>) {
        self.next_id += 1;
        let id = self.next_id;
        let views = self.hands.about.views(&self.hands.node, self.hands.shared.is_draining());
        let missing: BTreeSet<NodeId> =
            views.iter().filter(|(_, v)| v.status.is_none()).map(|(node, _)| *node).collect();
        for node in &missing {
            self.outgoing.push((*node, PeerMessage::StatusQuery { id }));
        }
        self.gathering.insert(id, Gathering { missing, views, reply });
        self.due.insert((self.now.plus(micros(budget)), Due::Gathering(id)));
        if self.gathering.get(&id).is_some_and(|g| g.missing.is_empty()) {
            self.finish_gathering(id);
        }
    }

    fn finish_gathering(&mut self, id: u64) {
        if let Some(gathering) = self.gathering.remove(&id) {
            drop(gathering.reply.send(gathering.views.into_values().collect()));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn request_of(ask: Ask, expires: Instant) -> Request {
    match ask {
        Ask::Forwardable(ForwardRequest::Propose { group, payload }) => {
            Request::Propose { group, payload, expires }
        }
        Ask::Forwardable(ForwardRequest::CreateDatabase { name }) => {
            Request::CreateDatabase { name, expires }
        }
        Ask::Forwardable(ForwardRequest::Transfer { group, to }) => Request::Transfer { group, to },
        Ask::Read { group } => Request::Read { group },
        Ask::Drain => Request::Drain,
    }
}

/// The core's answer, as it goes to the node that forwarded the request.
pub(crate) fn forward_reply_of(reply: Option<Reply>) -> ForwardReply {
    match reply {
        Some(Reply::Applied { lsn, term, outcome }) => ForwardReply::Applied { lsn, term, outcome },
        Some(Reply::Created { group, existed }) => ForwardReply::Created { group, existed },
        Some(Reply::Transferred { term }) => ForwardReply::Transferred { term },
        Some(Reply::Rejected(reject)) => ForwardReply::Rejected(reject),
        // A read is never forwarded; its answer could only be a bug, and is no promise.
        Some(Reply::Readable { .. }) | None => ForwardReply::Unknown,
    }
}

fn log_notice(notice: &Notice) {
    match notice {
        Notice::Formed { member: true } => tracing::info!("the cluster is formed; this node votes"),
        Notice::Formed { member: false } => tracing::warn!(
            "the cluster was formed with another data directory of this node: it follows and \
             serves local reads, but does not vote until it is replaced through membership"
        ),
        Notice::Quarantined { group, reason } => tracing::error!(
            %group, %reason,
            "a database is quarantined on this node: it is not served from here; others are not \
             affected"
        ),
        Notice::Sound { group } => {
            tracing::warn!(%group, "a group that had lost the end of its log holds it again: it votes");
        }
        Notice::Unreadable { group, from, to, reason } => {
            tracing::error!(%group, %from, %to, %reason, "entries can't be read: peers are asked");
        }
        Notice::Mended { group, from, to } => {
            tracing::warn!(%group, %from, %to, "damaged entries were fetched from a peer");
        }
        Notice::PeerFault { node, reason } => {
            tracing::warn!(%node, reason, "a peer sent what no correct node sends; dropped");
        }
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
