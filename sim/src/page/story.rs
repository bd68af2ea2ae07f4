//! The story of a run while it happens: turns events into records, and knows for each what brought
//! it about. What it needs beyond the trace it is shown by those who know it: messages by the
//! network, steps by the observer of a node, calls and answers by the judge.

mod steps;

use std::collections::{BTreeMap, VecDeque};

use highwater_core::{GroupId, Lsn, NodeId, RecoveredGroup, RequestId, WriteId};
use highwater_node::api::{Consistency, Error};
use highwater_wire::peer::{ForwardRequest, PeerMessage};

use super::{
    About, Fact, Id, Point, Record, Span, SpanKind, What,
    message::{brief, run, slot_words},
};
use crate::{
    history::{Ask, Call, Told},
    trace::{Kind, digest},
};

/// The name of what is written and synced of a state.
pub(crate) const STATE: &str = "state";
/// The names of what is written of an oplog: a segment's room, before it is one; its header; blocks.
pub(crate) const LOG: [&str; 3] = ["room", "header", "blocks"];

/// What a finding stands on.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The record of the finding itself.
    pub(crate) record: Id,
    /// The event at which the oracle fired.
    pub(crate) at: Id,
}

/// What is known of one node's process. Gone with it.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// The latest step.
    step: Option<Id>,
    /// Messages that arrived since.
    delivered: Vec<Id>,
    timer: Option<Id>,
    /// The latest start, recovery or end.
    process: Option<Id>,
    pause: Option<Id>,
    /// Writes that are not durable, and the step that asked for each.
    writes: Vec<(WriteId, Id)>,
    /// The write of such, by file.
    written: Option<(u64, Id)>,
    /// The sync after it.
    synced: Option<Id>,
    /// The latest write of the oplog, and of each file's room.
    wrote: Option<Id>,
    rooms: BTreeMap<u64, Id>,
    /// Who asked for the run of entries that is being applied.
    applies: BTreeMap<GroupId, Id>,
    applied: BTreeMap<GroupId, Id>,
    requests: BTreeMap<RequestId, Asked>,
    /// Calls that the node has not asked its core for yet.
    reads: VecDeque<(GroupId, Id)>,
    /// The step that answered the latest read of the catalog.
    catalog: Option<Id>,
    /// Whom each call was forwarded to, and the start of its process then.
    asked: BTreeMap<Id, (NodeId, Option<Id>)>,
    /// What shows that they will not answer: they are silent, or have started anew.
    gave_up: BTreeMap<Id, Id>,
    /// The latest start of each node that it has met.
    boots: BTreeMap<NodeId, u64>,
    /// Calls that were forwarded, by the driver's name for it.
    forwards: BTreeMap<u64, Id>,
    /// What has been confirmed to this node, by whom, and what it was told to be committed.
    confirmed: BTreeMap<(NodeId, GroupId, u64), Lsn>,
    told: BTreeMap<(NodeId, GroupId), Lsn>,
}

impl Lane {
    /// Whoever was asked is silent or has started anew, as this event shows.
    fn gives_up(&mut self, at: Id, is_gone: impl Fn(NodeId, Option<Id>) -> bool) {
        for (call, (node, process)) in &self.asked {
            if is_gone(*node, *process) {
                self.gave_up.entry(*call).or_insert(at);
            }
        }
    }
}

/// A request to a core.
#[derive(Clone, Debug)]
struct Asked {
    /// The call, or the forwarded request that arrived.
    from: Option<Id>,
    call: Option<Id>,
    /// The step that took it.
    step: Id,
    /// Of a read.
    group: Option<GroupId>,
}

/// A run, record by record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    now_ns: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) series: BTreeMap<(NodeId, GroupId), Vec<Point>>,
    pub(crate) spans: Vec<Span>,
    pub(crate) databases: BTreeMap<GroupId, String>,
    pub(crate) found: Option<Found>,
    lanes: BTreeMap<NodeId, Lane>,
    /// The latest message sent by each node.
    sent: BTreeMap<NodeId, Id>,
    /// Messages under way.
    parcels: BTreeMap<u64, Id>,
    /// ... and those of a transport that has no number for them, by sender, receiver and digest.
    letters: BTreeMap<(NodeId, NodeId, u64), VecDeque<Id>>,
    /// Calls without an answer, by number.
    calls: BTreeMap<u64, Id>,
    /// Writing and creating calls, by a digest of what they ask.
    asks: BTreeMap<u64, Id>,
    /// What told a call's answer.
    replies: BTreeMap<Id, Id>,
    /// The answer that made an LSN known to clients.
    learned: BTreeMap<(GroupId, Lsn), Id>,
    /// Where a planted fault had its chance: the record then next, and the node.
    #[cfg(madsim)]
    pub(crate) acts: Vec<(Id, NodeId)>,
}

impl Story {
    /// What is told from now on happens at this time.
    pub(crate) fn now(&mut self, at_ns: u64) {
        self.now_ns = at_ns;
    }

    fn lane(&mut self, node: NodeId) -> &mut Lane {
        self.lanes.entry(node).or_default()
    }

    fn push(&mut self, what: What, node: NodeId, text: String) -> Id {
        let id = self.records.len();
        self.records.push(Record {
            at_ns: self.now_ns,
            what,
            node,
            peer: None,
            name: "",
            text,
            groups: Vec::new(),
            facts: Vec::new(),
            causes: Vec::new(),
        });
        self.sample(id);
        id
    }

    /// Notes whether a planted fault had its chance since the last record.
    #[cfg(madsim)]
    fn sample(&mut self, id: Id) {
        for node in super::acts::take() {
            if self.acts.last() != Some(&(id, node)) {
                self.acts.push((id, node));
            }
        }
    }

    #[cfg(not(madsim))]
    fn sample(&mut self, _: Id) {}

    fn last(&mut self) -> Option<(Id, &mut Record)> {
        let id = self.records.len().checked_sub(1)?;
        Some((id, &mut self.records[id]))
    }

    // --- events of the trace ---

    /// An event of the trace; `a` is the event's own.
    pub(crate) fn event(&mut self, at_ns: u64, kind: Kind, node: NodeId, a: u64, text: String) {
        self.now_ns = at_ns;
        let id = self.push(What::Traced(kind), node, text);
        if node == NodeId(0) {
            return;
        }
        let lane = self.lanes.entry(node).or_default();
        let mut causes = Vec::new();
        match kind {
            Kind::LogWrite if !lane.writes.is_empty() => {
                causes.extend(lane.writes.iter().map(|(_, step)| *step));
                lane.written = Some((a, id));
            }
            Kind::Sync => {
                if let Some((_, write)) = lane.written.take_if(|(file, _)| *file == a) {
                    causes.push(write);
                    lane.synced = Some(id);
                }
            }
            Kind::Timer => lane.timer = Some(id),
            // A notice of the core's, or else a start or a recovery.
            Kind::Process if lane.step.is_some() => causes.extend(lane.step),
            Kind::Process => {
                causes.extend(lane.process);
                lane.process = Some(id);
            }
            Kind::Leader | Kind::Fault => causes.extend(lane.step),
            _ => {}
        }
        if matches!(kind, Kind::LogWrite | Kind::Sync) {
            self.inherit(id, &causes);
        }
        self.records[id].causes = causes;
    }

    /// The latest event is a write to a file of the oplog.
    pub(crate) fn of_log(&mut self, file: u64, offset: u64, is_spare: bool) {
        let Some((id, record)) = self.last() else { return };
        let [room, header, blocks] = LOG;
        record.name = if is_spare {
            room
        } else if offset == 0 {
            header
        } else {
            blocks
        };
        let (node, name) = (record.node, record.name);
        let lane = self.lane(node);
        lane.wrote = Some(id);
        if name == room {
            lane.rooms.insert(file, id);
        } else if let Some(made) = lane.rooms.get(&file).copied()
            && name == header
        {
            self.records[id].causes.push(made);
        }
    }

    /// The latest event is one of the state of this group.
    pub(crate) fn of_state(&mut self, group: GroupId) {
        let Some((_, record)) = self.last() else { return };
        record.name = STATE;
        record.text = format!("{} the state of {group:?}: {}", record.what.name(), record.text);
        record.concerns(group);
    }

    /// A record is about what these are about.
    fn inherit(&mut self, id: Id, from: &[Id]) {
        let of_log = |fact: &&Fact| {
            matches!(fact.about, About::Entry | About::Cut | About::Vote | About::Ballot)
        };
        let facts: Vec<Fact> = from
            .iter()
            .flat_map(|id| self.records[*id].facts.iter())
            .filter(of_log)
            .copied()
            .collect();
        let record = &mut self.records[id];
        for fact in facts {
            record.say(fact);
        }
    }

    // --- the network ---

    /// The latest event is a message that is sent, or lost at once.
    pub(crate) fn message(&mut self, from: NodeId, to: NodeId, message: &PeerMessage) {
        let cause = match self.last() {
            Some((_, record)) if record.what == What::Traced(Kind::Drop) => self.sent.get(&from),
            _ => self.lanes.get(&from).and_then(|lane| lane.step.as_ref()),
        };
        let cause = cause.copied();
        let said = brief(message);
        let Some((id, record)) = self.last() else { return };
        (record.peer, record.name) = (Some(to), said.name);
        record.text = said.text;
        record.causes.extend(cause);
        record.groups.extend(said.group);
        said.facts.into_iter().for_each(|fact| record.say(fact));
        if record.what == What::Traced(Kind::Drop) {
            return;
        }
        self.sent.insert(from, id);
        let call = match message {
            PeerMessage::Forward { id: name, request, .. } => {
                let call = self.asks.get(&ask_digest(request)).copied();
                if let Some(call) = call {
                    let process = self.lane(to).process;
                    let lane = self.lane(from);
                    lane.forwards.insert(*name, call);
                    let why = lane.gave_up.remove(&call);
                    lane.asked.insert(call, (to, process));
                    self.records[id].causes.extend(why.into_iter().chain([call]));
                }
                call
            }
            PeerMessage::ForwardReply { id: name, .. } => {
                self.lanes.get(&to).and_then(|lane| lane.forwards.get(name)).copied()
            }
            _ => None,
        };
        if let Some(call) = call {
            let text = format!("{}: {}", self.number(call), self.records[id].text);
            let groups = self.records[call].groups.clone();
            let record = &mut self.records[id];
            record.text = text;
            groups.into_iter().for_each(|group| record.concerns(group));
        }
    }

    /// A call's number, as its text begins.
    fn number(&self, call: Id) -> &str {
        self.records[call].text.split(' ').next().unwrap_or_default()
    }

    /// The latest message of a node goes its way, under this number.
    pub(crate) fn parcel(&mut self, parcel: u64, from: NodeId) {
        if let Some(sent) = self.sent.get(&from) {
            self.parcels.insert(parcel, *sent);
        }
    }

    /// The latest event is that a message arrives, or is lost on its way.
    pub(crate) fn arrives(&mut self, parcel: u64, from: NodeId, copy: bool) {
        if let Some(sent) = self.parcels.remove(&parcel) {
            self.brings(sent, from, copy);
        }
    }

    /// The latest message of a node goes its way; its digest tells it from others.
    pub(crate) fn letter(&mut self, digest: u64, from: NodeId, to: NodeId) {
        if let Some(sent) = self.sent.get(&from) {
            self.letters.entry((from, to, digest)).or_default().push_back(*sent);
        }
    }

    /// The latest event is that such a message arrives.
    pub(crate) fn letter_arrives(&mut self, digest: u64, from: NodeId, to: NodeId) {
        let sent = self.letters.get_mut(&(from, to, digest)).and_then(VecDeque::pop_front);
        if let Some(sent) = sent {
            self.brings(sent, from, false);
        }
    }

    /// The latest event is that what was sent arrives, or is lost.
    fn brings(&mut self, sent: Id, from: NodeId, copy: bool) {
        let was = self.records[sent].clone();
        let Some((id, record)) = self.last() else { return };
        let lost = record.what == What::Traced(Kind::Drop);
        (record.peer, record.name) = (Some(from), was.name);
        record.text = match (lost, copy) {
            (true, _) => format!("{}; {}", was.text, record.text),
            (false, true) => format!("{} (repeated)", was.text),
            (false, false) => was.text,
        };
        (record.groups, record.facts) = (was.groups, was.facts);
        record.causes.push(sent);
        let node = record.node;
        if !lost {
            let started = self.lane(from).process;
            let lane = self.lane(node);
            lane.delivered.push(id);
            if started.is_none_or(|started| sent > started) {
                lane.gives_up(id, |node, process| node == from && process != started);
            }
        }
    }

    /// The latest event delivered this message: what it brings that is new.
    pub(crate) fn delivered(&mut self, node: NodeId, from: NodeId, message: &PeerMessage) {
        use highwater_core::{GroupMessage, Message};
        let Some(id) = self.records.len().checked_sub(1) else { return };
        let lane = self.lanes.entry(node).or_default();
        let fact = match message {
            PeerMessage::Core(Message::Group { group, term, message }) => match message {
                GroupMessage::AppendAccepted { durable, .. } => {
                    let known = lane.confirmed.entry((from, *group, term.0)).or_default();
                    grow(known, *durable).map(|a| (About::Confirmed, *group, *term, a, durable.0))
                }
                GroupMessage::Append { committed, .. } => {
                    let known = lane.told.entry((from, *group)).or_default();
                    grow(known, *committed).map(|a| (About::Told, *group, *term, a, committed.0))
                }
                _ => None,
            },
            PeerMessage::ForwardReply { id: name, .. } => {
                if let Some(call) = lane.forwards.remove(name) {
                    self.replies.insert(call, id);
                }
                None
            }
            _ => None,
        };
        if let Some((about, group, term, from, to)) = fact {
            self.records[id].say(Fact::new(about, group, term, from, to));
        }
    }

    /// Messages from one node to another are lost from now on.
    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.begins(SpanKind::Cut, vec![from, to], format!("{from:?} to {to:?} is cut"));
    }

    /// They arrive again.
    pub(crate) fn mended(&mut self, from: NodeId, to: NodeId) {
        self.ends(SpanKind::Cut, &[from, to]);
    }

    /// Every link works.
    pub(crate) fn all_mended(&mut self) {
        let now = self.now_ns;
        let open = |span: &&mut Span| span.to_ns.is_none() && span.kind != SpanKind::Down;
        self.spans.iter_mut().filter(open).for_each(|span| span.to_ns = Some(now));
    }

    // --- what lasts ---

    /// Something begins that lasts.
    pub(crate) fn begins(&mut self, kind: SpanKind, nodes: Vec<NodeId>, text: String) {
        let from_ns = self.now_ns;
        self.spans.push(Span { kind, nodes, text, from_ns, to_ns: None });
    }

    /// The first such that lasts yet ends.
    pub(crate) fn ends(&mut self, kind: SpanKind, nodes: &[NodeId]) {
        let now = self.now_ns;
        let it =
            |span: &&mut Span| span.to_ns.is_none() && span.kind == kind && span.nodes == nodes;
        if let Some(span) = self.spans.iter_mut().find(it) {
            span.to_ns = Some(now);
        }
    }

    /// A fault of the plan begins. Its name for [`Story::fault_ends`] is its text.
    pub(crate) fn fault_begins(&mut self, text: String) {
        self.begins(SpanKind::Fault, Vec::new(), text);
    }

    /// ... and has ended.
    pub(crate) fn fault_ends(&mut self, text: &str) {
        let now = self.now_ns;
        let it = |span: &&mut Span| {
            span.kind == SpanKind::Fault && span.to_ns.is_none() && span.text == text
        };
        if let Some(span) = self.spans.iter_mut().find(it) {
            span.to_ns = Some(now);
        }
    }

    /// A process is held still, or goes on.
    pub(crate) fn paused(&mut self, node: NodeId, paused: bool) {
        if paused {
            let id = self.push(What::Pause, node, "is held still".to_owned());
            self.lane(node).pause = Some(id);
            self.begins(SpanKind::Paused, vec![node], "held still".to_owned());
        } else {
            let id = self.push(What::Resume, node, "goes on".to_owned());
            self.records[id].causes.extend(self.lanes.get(&node).and_then(|lane| lane.pause));
            self.ends(SpanKind::Paused, &[node]);
        }
    }

    /// A process starts.
    pub(crate) fn starts(&mut self, node: NodeId) {
        self.ends(SpanKind::Down, &[node]);
    }

    /// The latest event ends a node's process.
    pub(crate) fn dies(&mut self, node: NodeId) {
        let end = self.records.len().checked_sub(1);
        *self.lane(node) = Lane { process: end, ..Lane::default() };
        self.ends(SpanKind::Paused, &[node]);
        self.begins(SpanKind::Down, vec![node], "down".to_owned());
        let at_ns = self.now_ns;
        for ((of, _), points) in &mut self.series {
            if let Some(last) = points.last().filter(|p| *of == node && p.role > 0).copied() {
                points.push(Point { at_ns, role: 0, ..last });
            }
        }
    }

    /// The latest event is that a node's process has recovered this: what it had durably and has
    /// no more is lost.
    pub(crate) fn recovers(&mut self, node: NodeId, groups: &[RecoveredGroup]) {
        let Some(id) = self.records.len().checked_sub(1) else { return };
        for found in groups {
            let points = self.series.get(&(node, found.group));
            let held = points.and_then(|points| points.last()).map_or(Lsn(0), |p| p.durable);
            let record = &mut self.records[id];
            if held > found.last {
                let (from, to) = (found.last.0 + 1, held.0);
                record.say(Fact::new(About::Cut, found.group, found.term, from, to));
                record.text += &format!("; lost {:?} {}", found.group, run(from, to));
            }
        }
    }

    // --- clients ---

    /// The latest event is a call, made when clients knew of this LSN.
    pub(crate) fn calls(&mut self, call: &Call, group: Option<GroupId>, floor: Lsn) {
        let Some(id) = self.records.len().checked_sub(1) else { return };
        self.calls.insert(call.id, id);
        match &call.ask {
            Ask::Write(op) | Ask::Once(op, _) => {
                self.asks.insert(digest(&op.encode()), id);
            }
            Ask::Create => drop(self.asks.insert(digest(call.database.as_bytes()), id)),
            Ask::Slot(name, ask) => {
                self.asks.insert(digest(slot_words(name, ask).as_bytes()), id);
            }
            Ask::Get(_, Consistency::Linearizable) | Ask::List(_, Consistency::Linearizable) => {
                if let Some(group) = group {
                    self.lane(call.node).reads.push_back((group, id));
                }
            }
            _ => {}
        }
        let Some(group) = group else { return };
        let known = self.learned.get(&(group, floor)).copied();
        let record = &mut self.records[id];
        record.causes.extend(known);
        record.concerns(group);
        self.databases.entry(group).or_insert_with(|| call.database.clone());
    }

    /// The latest event is a call's answer.
    pub(crate) fn told(&mut self, call: &Call, told: &Told) {
        let Some(id) = self.records.len().checked_sub(1) else { return };
        let Some(asked) = self.calls.remove(&call.id) else { return };
        let mut causes = vec![asked];
        causes.extend(self.replies.remove(&asked));
        let lane = self.lanes.entry(call.node).or_default();
        lane.reads.retain(|(_, open)| *open != asked);
        let learns = match told {
            Told::Written(receipt) => Some((receipt.group, receipt.lsn)),
            Told::Got(got) => Some((got.group, got.applied)),
            Told::Listed(page) => Some((page.group, page.applied)),
            Told::Failed(Error::Refused { lsn, .. }) => {
                self.records[asked].groups.first().map(|group| (*group, *lsn))
            }
            _ => None,
        };
        lane.asked.remove(&asked);
        if let (Told::Failed(_), Some(why)) = (told, lane.gave_up.remove(&asked)) {
            causes.push(why);
        }
        if matches!(told, Told::Failed(Error::NoSuchDatabase)) {
            causes.extend(lane.catalog);
        }
        if let Told::Streamed(streamed) = told {
            let applied = |id: &Id| {
                let record = &self.records[*id];
                record.what == What::Traced(Kind::Applied)
                    && record.node == call.node
                    && record.groups.contains(&streamed.group)
            };
            causes.extend((asked..id).filter(applied));
        }
        if let (Told::Got(_) | Told::Listed(_), Some((group, _))) = (told, learns) {
            causes.extend(lane.applied.get(&group));
        }
        let group = self.records[asked].groups.clone();
        let record = &mut self.records[id];
        (record.groups, record.causes) = (group, causes);
        if let Some(learned) = learns {
            record.concerns(learned.0);
            self.learned.entry(learned).or_insert(id);
        }
    }

    // --- findings ---

    /// The latest event says what an oracle has found, at the event before.
    pub(crate) fn finds(&mut self) {
        let record = self.records.len().saturating_sub(1);
        let at = record.saturating_sub(1);
        if let Some((_, finding)) = self.last() {
            finding.causes.push(at);
        }
        self.found = Some(Found { record, at });
    }

    /// The run ended with a panic, in what happened last.
    pub(crate) fn panics(&mut self, what: &str) {
        self.push(What::Traced(Kind::Fault), NodeId(0), format!("FINDING assertion: {what}"));
        self.finds();
    }
}

impl Record {
    /// It is about this group.
    fn concerns(&mut self, group: GroupId) {
        if !self.groups.contains(&group) {
            self.groups.push(group);
        }
    }

    /// It says this. Runs of entries grow together.
    fn say(&mut self, fact: Fact) {
        self.concerns(fact.group);
        let joins = self.facts.iter_mut().find(|f| {
            (f.about, f.group, f.term, f.who) == (fact.about, fact.group, fact.term, fact.who)
                && f.to >= fact.from.prev()
                && f.from <= fact.to.next()
        });
        match joins {
            Some(f) => (f.from, f.to) = (f.from.min(fact.from), f.to.max(fact.to)),
            None => self.facts.push(fact),
        }
    }
}

/// What a node's request asks, to find the call that it came from.
fn ask_digest(request: &ForwardRequest) -> u64 {
    match request {
        ForwardRequest::Propose { payload, .. } => digest(payload),
        ForwardRequest::CreateDatabase { name } => digest(name.as_bytes()),
        ForwardRequest::Transfer { .. } => 0,
        ForwardRequest::Slot { name, ask, .. } => digest(slot_words(name, ask).as_bytes()),
    }
}

/// Raises a mark; where the new part begins.
fn grow(known: &mut Lsn, to: Lsn) -> Option<u64> {
    let old = *known;
    *known = old.max(to);
    (to > old).then_some(old.0 + 1)
}
