//! The driver of one process, without a runtime: what `shells/node` does around the core, in one
//! pass over what has arrived. It forwards at most once, keeps the budgets on the node's own clock,
//! and knows when an outcome can't be known.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{
    Effect, GroupId, Input, Instant, Message, Node, NodeId, Now, Peer, Reject, Reply, Request,
    RequestId, Term,
};
use highwater_node::outcome::forward_reply_of;
use highwater_wire::peer::{ForwardReply, ForwardRequest, PeerMessage};

/// Messages and completions that wait; further messages are lost.
const INBOX_MAX: usize = 4_096;

/// What a driver finds when it looks.
pub(super) enum Arrival {
    /// Something that it had asked for is done.
    Done(Input),
    /// Another node says something.
    Message(Peer, PeerMessage),
    /// A call asks this node's core.
    Ask { call: u64, ask: Ask, budget_us: u64 },
    /// A call asks another node's core.
    Forward { call: u64, to: NodeId, request: ForwardRequest, budget_us: u64 },
}

/// A request without its deadline.
pub(super) enum Ask {
    Forwardable(ForwardRequest),
    Read(GroupId),
}

/// What a call hears; `None` where the budget is spent, or the outcome can't be known.
#[derive(Debug)]
pub(super) enum Answer {
    Core(Option<Reply>),
    Peer(Option<ForwardReply>),
}

/// What a pass wants done.
#[derive(Default)]
pub(super) struct Pass {
    /// What the oplog and the state are to do.
    pub(super) jobs: Vec<Effect>,
    pub(super) sends: Vec<(NodeId, PeerMessage)>,
    pub(super) answers: Vec<(u64, Answer)>,
    /// Leaders or databases are not what they were.
    pub(super) routes_changed: bool,
    /// The node has begun to lead a group.
    pub(super) elected: bool,
}

enum Waiter {
    Call(u64),
    Peer { peer: Peer, id: u64 },
}

struct Forwarded {
    expires: Instant,
    to: NodeId,
    call: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Request(RequestId),
    Forward(u64),
}

/// The driver of one process.
pub(super) struct Driver {
    pub(super) node: Node,
    me: Peer,
    inbox: Vec<Arrival>,
    inputs: Vec<Input>,
    effects: Vec<Effect>,
    passed: bool,
    next_id: u64,
    waiting: BTreeMap<RequestId, (Instant, Waiter)>,
    forwarded: BTreeMap<u64, Forwarded>,
    due: BTreeSet<(Instant, Due)>,
    /// The latest start of each node that has spoken.
    peers: BTreeMap<NodeId, Peer>,
    leaders: BTreeMap<GroupId, (Term, Option<NodeId>)>,
    databases: BTreeMap<String, GroupId>,
    /// Counts changes of what calls are routed by.
    pub(super) changes: u64,
}

impl Driver {
    pub(super) fn new(node: Node, me: Peer) -> Driver {
        Driver {
            node,
            me,
            inbox: Vec::new(),
            inputs: Vec::new(),
            effects: Vec::new(),
            passed: false,
            next_id: me.boot.nonce,
            waiting: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            due: BTreeSet::new(),
            peers: BTreeMap::new(),
            leaders: BTreeMap::new(),
            databases: BTreeMap::new(),
            changes: 0,
        }
    }

    pub(super) fn me(&self) -> Peer {
        self.me
    }

    /// The leader of a group, as last told by the core.
    pub(super) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leaders.get(&group)?.1
    }

    /// Its term, as last told by the core.
    pub(super) fn term(&self, group: GroupId) -> Term {
        self.leaders.get(&group).map(|(term, _)| *term).unwrap_or_default()
    }

    /// A database's group, in the catalog applied here.
    pub(super) fn known(&self, database: &str) -> Option<GroupId> {
        self.databases.get(database).copied()
    }

    /// Something has arrived.
    pub(super) fn push(&mut self, arrival: Arrival) {
        if self.inbox.len() < INBOX_MAX || !matches!(arrival, Arrival::Message(..)) {
            self.inbox.push(arrival);
        }
    }

    /// When to pass at the latest, on the node's own clock.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if !self.passed || !self.inbox.is_empty() {
            return Some(Instant(0));
        }
        let core = self.node.deadline().map(|(at, _)| at);
        let own = self.due.first().map(|(at, _)| *at);
        core.into_iter().chain(own).min()
    }

    /// Takes what has arrived, steps the core, and says what is to be done. `observe` sees the
    /// core's effects before that, unless there is nothing to see.
    pub(super) fn pass(
        &mut self,
        now: Now,
        pass: &mut Pass,
        observe: impl FnOnce(&Node, &[Effect]),
    ) {
        self.passed = true;
        let mut inbox = std::mem::take(&mut self.inbox);
        for arrival in inbox.drain(..) {
            self.take(now.mono, arrival, pass);
        }
        // Keeps its memory.
        self.inbox = inbox;
        self.expire(now.mono, pass);
        let quiet = self.inputs.iter().all(is_heartbeat);
        self.node.step(now, self.inputs.drain(..), &mut self.effects);
        // Half of all passes only keep nodes aware of each other.
        if !(quiet && self.effects.iter().all(sends_heartbeat)) {
            observe(&self.node, &self.effects);
        }
        self.publish_routes(pass);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out(effect, pass);
        }
        self.effects = effects;
        self.give_up(pass, |driver, to| !driver.node.is_alive(to));
    }

    fn take(&mut self, now: Instant, arrival: Arrival, pass: &mut Pass) {
        match arrival {
            Arrival::Done(input) => self.inputs.push(input),
            Arrival::Message(from, message) => self.on_message(now, from, message, pass),
            Arrival::Ask { call, ask, budget_us } => {
                self.admit(now, ask, budget_us, Waiter::Call(call));
            }
            Arrival::Forward { call, to, request, budget_us } => {
                if !self.node.is_alive(to) {
                    // Nobody would answer; nothing was sent.
                    let reject = ForwardReply::Rejected(Reject::NotLeader { leader: None });
                    return pass.answers.push((call, Answer::Peer(Some(reject))));
                }
                let id = self.fresh_id();
                let expires = now.plus(budget_us);
                self.forwarded.insert(id, Forwarded { expires, to, call });
                self.due.insert((expires, Due::Forward(id)));
                pass.sends.push((to, PeerMessage::Forward { id, budget_us, request }));
            }
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    // --- requests ---

    fn admit(&mut self, now: Instant, ask: Ask, budget_us: u64, waiter: Waiter) {
        let id = RequestId(self.fresh_id());
        let expires = now.plus(budget_us);
        self.waiting.insert(id, (expires, waiter));
        self.due.insert((expires, Due::Request(id)));
        let request = match ask {
            Ask::Forwardable(ForwardRequest::Propose { group, payload, once }) => {
                Request::Propose { group, payload, once, expires }
            }
            Ask::Forwardable(ForwardRequest::CreateDatabase { name }) => {
                Request::CreateDatabase { name, expires }
            }
            Ask::Forwardable(ForwardRequest::Transfer { group, to }) => {
                Request::Transfer { group, to }
            }
            Ask::Forwardable(ForwardRequest::Slot { .. }) => unreachable!("nobody has slots here"),
            Ask::Read(group) => Request::Read { group },
        };
        self.inputs.push(Input::Request { id, request });
    }

    fn answer(&mut self, id: RequestId, reply: Option<Reply>, pass: &mut Pass) {
        let Some((expires, waiter)) = self.waiting.remove(&id) else { return };
        self.due.remove(&(expires, Due::Request(id)));
        match waiter {
            Waiter::Call(call) => pass.answers.push((call, Answer::Core(reply))),
            Waiter::Peer { peer, id } => {
                let node = peer.member.node;
                if self.peers.get(&node) == Some(&peer) {
                    let reply = forward_reply_of(reply);
                    pass.sends.push((node, PeerMessage::ForwardReply { id, reply }));
                }
            }
        }
    }

    fn answer_forwarded(&mut self, id: u64, reply: Option<ForwardReply>, pass: &mut Pass) {
        if let Some(Forwarded { expires, call, .. }) = self.forwarded.remove(&id) {
            self.due.remove(&(expires, Due::Forward(id)));
            pass.answers.push((call, Answer::Peer(reply)));
        }
    }

    fn expire(&mut self, now: Instant, pass: &mut Pass) {
        while let Some((at, due)) = self.due.first().copied()
            && at <= now
        {
            match due {
                Due::Request(id) => {
                    self.inputs.push(Input::Cancel { id });
                    self.answer(id, None, pass);
                }
                Due::Forward(id) => self.answer_forwarded(id, None, pass),
            }
        }
    }

    /// What such nodes have of ours has an outcome that nobody will tell us.
    fn give_up(&mut self, pass: &mut Pass, is_lost: impl Fn(&Driver, NodeId) -> bool) {
        if self.forwarded.is_empty() {
            return;
        }
        let lost = self.forwarded.iter().filter(|(_, f)| is_lost(self, f.to));
        for id in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.answer_forwarded(id, None, pass);
        }
    }

    // --- messages ---

    /// Whether a sender is the latest start of its node.
    fn note_sender(&mut self, from: Peer, pass: &mut Pass) -> bool {
        let node = from.member.node;
        let age = |peer: &Peer| (peer.member.incarnation, peer.boot.counter);
        match self.peers.get(&node) {
            Some(known) if *known == from => return true,
            Some(known) if age(known) > age(&from) => return false,
            _ => {}
        }
        if self.peers.insert(node, from).is_some() {
            self.give_up(pass, |_, to| to == node);
        }
        true
    }

    fn on_message(&mut self, now: Instant, from: Peer, message: PeerMessage, pass: &mut Pass) {
        if !self.note_sender(from, pass) {
            return;
        }
        match message {
            PeerMessage::Core(message) => self.inputs.push(Input::Message { from, message }),
            PeerMessage::Forward { id, budget_us, request } => {
                let waiter = Waiter::Peer { peer: from, id };
                self.admit(now, Ask::Forwardable(request), budget_us, waiter);
            }
            PeerMessage::ForwardReply { id, reply } => {
                if self.forwarded.get(&id).is_some_and(|f| f.to == from.member.node) {
                    self.answer_forwarded(id, Some(reply), pass);
                }
            }
            PeerMessage::StatusQuery { .. }
            | PeerMessage::StatusReply { .. }
            | PeerMessage::SnapshotAsk { .. }
            | PeerMessage::SnapshotBlock { .. }
            | PeerMessage::SnapshotNone { .. } => {}
        }
    }

    // --- effects ---

    /// Whoever gets an answer finds the routes that it rests on.
    fn publish_routes(&mut self, pass: &mut Pass) {
        for effect in &self.effects {
            if let Effect::Leader { group, term, leader } = effect {
                self.leaders.insert(*group, (*term, *leader));
                pass.routes_changed = true;
                pass.elected |= *leader == Some(self.me.member.node);
            }
        }
        if pass.routes_changed {
            self.changes += 1;
            if self.databases.len() < self.node.databases().count() {
                self.databases = self.node.databases().map(|(n, g)| (n.to_owned(), g)).collect();
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, pass: &mut Pass) {
        match effect {
            Effect::Send { to, message } => pass.sends.push((to, PeerMessage::Core(message))),
            Effect::Reply { request, reply } => self.answer(request, Some(reply), pass),
            Effect::Leader { .. } | Effect::Notice(_) => {}
            Effect::Persist { .. }
            | Effect::Load { .. }
            | Effect::Mend { .. }
            | Effect::ReadControl { .. }
            | Effect::Apply { .. }
            | Effect::Reopen { .. }
            | Effect::DropState { .. }
            | Effect::Checkpoint { .. }
            | Effect::Bootstrap { .. }
            | Effect::Install { .. }
            | Effect::Fence { .. }
            | Effect::Halt { .. } => pass.jobs.push(effect),
        }
    }
}

fn is_heartbeat(input: &Input) -> bool {
    matches!(input, Input::Message { message: Message::Heartbeat { .. }, .. })
}

fn sends_heartbeat(effect: &Effect) -> bool {
    matches!(effect, Effect::Send { message: Message::Heartbeat { .. }, .. })
}
