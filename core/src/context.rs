//! What all groups of a node share: the outbox that withholds effects until they are safe, the
//! batch of records of this step, timers, peers, and the bounds that span groups.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    config::Config,
    entry::Record,
    fresh::Fresh,
    io::{Doubt, Effect, Identity, Notice, Reject, Reply},
    message::{GroupMessage, Message},
    peers::Peers,
    recall::{AcksDue, Recall},
    rng::Rng,
    types::{
        Boot, GroupId, Instant, LoadId, Lsn, Member, NodeId, Now, Peer, RequestId, Term, WriteId,
    },
};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The next round of heartbeats.
    Heartbeat,
    /// A peer may have been silent, or deaf, for too long.
    PeerExpiry(NodeId),
    /// A group without a leader may campaign.
    Election(GroupId),
    /// A group's unanswered messages are to be sent again.
    Retry(GroupId),
    /// Entries of a group that can't be read are to be asked for again.
    Repair(GroupId),
    /// A snapshot of a group is to be asked for again.
    Bootstrap(GroupId),
    /// Something is due of the slots of a group that this node leads.
    Slots(GroupId),
    /// An audit is due of a group that this node leads.
    Audit(GroupId),
}

/// Why entries were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadFor {
    /// It comes next for a follower.
    Follower(NodeId),
    Apply,
    /// A peer can't read its own.
    Peer(NodeId),
}

/// A load under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) purpose: LoadFor,
    pub(crate) group: GroupId,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
}

pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) now: Now,
    pub(crate) rng: Rng,
    pub(crate) peers: Peers,
    /// What the peers have yet to say of this node's past.
    pub(crate) recall: Recall,
    /// What they vouched for that is not durable here.
    pub(crate) acks_due: AcksDue,
    /// Groups by the leader that they follow; under this node's own id: those it leads.
    pub(crate) led_by: BTreeMap<NodeId, BTreeSet<GroupId>>,
    /// Rises whenever this node stops leading any group.
    pub(crate) generation: u64,
    /// Groups that lose their leader in the event that is being handled.
    pub(crate) losing: u64,
    /// Members that heard this node when quorums were last checked, and the groups led since.
    pub(crate) hearing: BTreeSet<Member>,
    pub(crate) unchecked: BTreeSet<GroupId>,
    /// No group is campaigned for or kept any more.
    pub(crate) draining: bool,
    /// Room in the oplog, as of the writes that are complete.
    pub(crate) room: u64,
    /// What the writes since take of it, by write and in sum.
    unwritten: BTreeMap<WriteId, u64>,
    unwritten_bytes: u64,
    /// Applied but not checkpointed, over all groups.
    pub(crate) dirty_bytes: usize,
    /// Checkpoints under way.
    pub(crate) checkpoints: usize,
    /// What clients write through this node.
    pub(crate) fresh: Fresh,
    /// Groups that apply no further until a checkpoint ends.
    pub(crate) paused: BTreeSet<GroupId>,
    /// The oplog lost entries that may have been acknowledged.
    pub(crate) doubt: Option<Doubt>,
    /// Groups that campaign on this node at present.
    pub(crate) campaigning: u64,
    /// Elections started.
    pub(crate) elections: u64,
    /// Groups to look after at the end of the step.
    pub(crate) touched: BTreeSet<GroupId>,
    pub(crate) requests: BTreeSet<RequestId>,
    pub(crate) loads: BTreeMap<LoadId, Load>,
    next_load: LoadId,
    timers: BTreeSet<(Instant, Reason)>,
    deadlines: BTreeMap<Reason, Instant>,
    effects: Vec<Effect>,
    batch: Vec<Record>,
    /// The write that the batch of this step will be.
    next_write: WriteId,
    persisted: WriteId,
    /// Groups that wait for a write.
    waiting: BTreeMap<WriteId, BTreeSet<GroupId>>,
    withheld: BTreeMap<WriteId, Withheld>,
}

/// Messages that wait for a write. Of one kind, to one node, in one group only the latest counts, so
/// that questions repeated to a stuck disk do not pile up.
type Withheld = BTreeMap<(NodeId, GroupId, u8), (Term, GroupMessage)>;

impl Context {
    pub(crate) fn new(
        config: Config,
        identity: Identity,
        seed: u64,
        now: Now,
        boots: &[(Member, Boot)],
    ) -> Context {
        let peers = Peers::new(&identity, boots);
        let recall = Recall::new(peers.ids(), now.mono);
        Context {
            config,
            identity,
            now,
            rng: Rng::new(seed),
            peers,
            recall,
            acks_due: AcksDue::default(),
            led_by: BTreeMap::new(),
            generation: 1,
            losing: 0,
            hearing: BTreeSet::new(),
            unchecked: BTreeSet::new(),
            draining: false,
            room: 0,
            unwritten: BTreeMap::new(),
            unwritten_bytes: 0,
            dirty_bytes: 0,
            checkpoints: 0,
            fresh: Fresh::new(now.mono),
            paused: BTreeSet::new(),
            doubt: None,
            campaigning: 0,
            elections: 0,
            touched: BTreeSet::new(),
            requests: BTreeSet::new(),
            loads: BTreeMap::new(),
            next_load: LoadId(0),
            timers: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            effects: Vec::new(),
            batch: Vec::new(),
            next_write: WriteId(1),
            persisted: WriteId(0),
            waiting: BTreeMap::new(),
            withheld: BTreeMap::new(),
        }
    }

    pub(crate) fn me(&self) -> Member {
        self.identity.member
    }

    // --- effects ---

    /// Emits an effect that depends on nothing.
    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.effects.push(Effect::Notice(notice));
    }

    pub(crate) fn fault(&mut self, node: NodeId, reason: &'static str) {
        self.notice(Notice::PeerFault { node, reason });
    }

    /// Says something that depends on nothing.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.effects.push(Effect::Send { to, message });
    }

    /// Whether a node is there to be spoken to, and has said what it remembers of this one.
    pub(crate) fn is_reachable(&self, node: NodeId) -> bool {
        self.peers.is_alive(node) && self.recall.has_answered(node)
    }

    /// Whether a node is heard and hears this one, as of the last election timeout.
    pub(crate) fn is_in_touch(&self, node: NodeId) -> bool {
        self.peers.is_in_touch(node, self.now.mono, self.config.election_timeout_us)
    }

    /// Says something of a group once `depends_on` is durable. A promise is lost on the way to whom
    /// it must not be given yet.
    pub(crate) fn send_group(
        &mut self,
        depends_on: WriteId,
        to: NodeId,
        group: GroupId,
        term: Term,
        message: GroupMessage,
    ) {
        if message.vouches_for().is_some() && !self.recall.has_answered(to) {
            return;
        }
        if depends_on <= self.persisted {
            self.send(to, Message::Group { group, term, message });
        } else {
            let key = (to, group, message.kind());
            self.withheld.entry(depends_on).or_default().insert(key, (term, message));
        }
    }

    /// Answers a request, unless it was cancelled.
    pub(crate) fn reply(&mut self, request: RequestId, reply: Reply) {
        if self.requests.remove(&request) {
            self.effects.push(Effect::Reply { request, reply });
        }
    }

    pub(crate) fn reject(&mut self, request: RequestId, reject: Reject) {
        self.reply(request, Reply::Rejected(reject));
    }

    pub(crate) fn drain_effects(&mut self, into: &mut Vec<Effect>) {
        into.append(&mut self.effects);
    }

    // --- the oplog ---

    /// Adds a record to this step's write; the write's name.
    pub(crate) fn persist(&mut self, group: GroupId, record: Record) -> WriteId {
        if let Record::Append { entry, .. } = &record {
            let bytes = entry.weight() as u64;
            *self.unwritten.entry(self.next_write).or_default() += bytes;
            self.unwritten_bytes += bytes;
        }
        self.batch.push(record);
        self.waiting.entry(self.next_write).or_default().insert(group);
        self.next_write
    }

    /// Room in the oplog for what is yet to be appended.
    pub(crate) fn free_room(&self) -> u64 {
        self.room.saturating_sub(self.unwritten_bytes)
    }

    /// Adds a record that nothing waits for.
    pub(crate) fn persist_hint(&mut self, record: Record) {
        self.batch.push(record);
    }

    /// A start of a peer has vouched for something, so it has heard which one was met before it: from
    /// now on the log remembers this one instead.
    pub(crate) fn note_boot(&mut self, from: Peer) {
        let Some(peer) = self.peers.get_mut(from.member.node) else { return };
        let is_last = (peer.incarnation, peer.boot) == (from.member.incarnation, from.boot);
        if is_last && !peer.is_noted {
            peer.is_noted = true;
            self.persist_hint(Record::Boot { member: from.member, boot: from.boot });
        }
    }

    /// Whether this step writes anything.
    pub(crate) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Ends the step's batch.
    pub(crate) fn flush_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let write = self.next_write;
        self.next_write = WriteId(write.0 + 1);
        let records = core::mem::take(&mut self.batch);
        self.effects.push(Effect::Persist { write, records });
    }

    pub(crate) fn is_persisted(&self, write: WriteId) -> bool {
        write <= self.persisted
    }

    /// All writes up to `write` are durable: releases what depended on them. Returns the groups
    /// that waited; `None` where the shell completes what was never issued or out of order.
    pub(crate) fn persisted(&mut self, write: WriteId) -> Option<BTreeSet<GroupId>> {
        if write >= self.next_write || write <= self.persisted {
            return None;
        }
        self.persisted = write;
        while let Some(entry) = self.unwritten.first_entry() {
            if *entry.key() > write {
                break;
            }
            self.unwritten_bytes -= entry.remove();
        }
        while let Some(entry) = self.withheld.first_entry() {
            if *entry.key() > write {
                break;
            }
            for ((to, group, _), (term, message)) in entry.remove() {
                let message = Message::Group { group, term, message };
                self.effects.push(Effect::Send { to, message });
            }
        }
        let mut groups = BTreeSet::new();
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > write {
                break;
            }
            groups.extend(entry.remove());
        }
        Some(groups)
    }

    pub(crate) fn load(
        &mut self,
        group: GroupId,
        purpose: LoadFor,
        (from, to): (Lsn, Lsn),
        max_bytes: usize,
    ) -> LoadId {
        self.next_load = LoadId(self.next_load.0 + 1);
        let load = self.next_load;
        self.loads.insert(load, Load { purpose, group, from, to });
        self.effects.push(Effect::Load { load, group, from, to, max_bytes });
        load
    }

    // --- timers ---

    /// Sets or moves the deadline of a reason.
    pub(crate) fn set_timer(&mut self, reason: Reason, at: Instant) {
        if let Some(old) = self.deadlines.insert(reason, at) {
            self.timers.remove(&(old, reason));
        }
        self.timers.insert((at, reason));
    }

    /// Sets the deadline unless an earlier one stands.
    pub(crate) fn set_timer_by(&mut self, reason: Reason, at: Instant) {
        if self.deadlines.get(&reason).is_none_or(|old| at < *old) {
            self.set_timer(reason, at);
        }
    }

    pub(crate) fn clear_timer(&mut self, reason: Reason) {
        if let Some(old) = self.deadlines.remove(&reason) {
            self.timers.remove(&(old, reason));
        }
    }

    pub(crate) fn has_timer(&self, reason: Reason) -> bool {
        self.deadlines.contains_key(&reason)
    }

    /// Takes one reason whose deadline has come.
    pub(crate) fn due(&mut self) -> Option<Reason> {
        let (at, reason) = *self.timers.first()?;
        if at > self.now.mono {
            return None;
        }
        self.clear_timer(reason);
        Some(reason)
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, Reason)> {
        self.timers.first().copied()
    }

    // --- leaders ---

    /// Groups that campaign here beside the one that asks.
    pub(crate) fn other_campaigns(&self) -> u64 {
        self.campaigning.saturating_sub(1)
    }

    /// Notes whom a group follows (this node's own id: it leads) and tells the shell.
    pub(crate) fn note_leader(
        &mut self,
        group: GroupId,
        term: Term,
        old: Option<NodeId>,
        new: Option<NodeId>,
    ) {
        let me = self.me().node;
        if let Some(old) = old {
            if let Some(groups) = self.led_by.get_mut(&old) {
                groups.remove(&group);
            }
            if old == me && new != Some(me) {
                self.generation += 1;
                self.unchecked.remove(&group);
            }
            if let Some(peer) = self.peers.get_mut(old) {
                peer.unconfirmed.remove(&group);
            }
        }
        if let Some(new) = new {
            self.led_by.entry(new).or_default().insert(group);
            if new == me {
                self.unchecked.insert(group);
            }
            // What it said may be old: it is asked whether it leads now.
            if let Some(peer) = self.peers.get_mut(new) {
                peer.unconfirmed.insert(group, term);
            }
        }
        self.emit(Effect::Leader { group, term, leader: new });
    }

    /// How many messages are withheld.
    pub(crate) fn withheld(&self) -> usize {
        self.withheld.values().map(BTreeMap::len).sum()
    }

    /// The last write that is durable.
    pub(crate) fn durable_write(&self) -> WriteId {
        self.persisted
    }

    /// Writes that are not durable yet.
    pub(crate) fn writes(&self) -> u64 {
        self.next_write.0 - self.persisted.0 - 1
    }

    /// The groups that follow a node, or are led by this one.
    pub(crate) fn groups_led_by(&self, node: NodeId) -> Vec<GroupId> {
        self.led_by.get(&node).map(|g| g.iter().copied().collect()).unwrap_or_default()
    }
}
