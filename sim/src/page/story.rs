//! The story of a run while it happens: turns events into records, and knows for each what brought
//! it about. What it needs beyond the trace it is shown by those who know it: messages by the
//! network, steps by the observer of a node, calls and answers by the judge.

use std::collections::{BTreeMap, VecDeque};

use highwater_core::{
    Effect, Entry, GroupId, GroupView, Input, Kind as EntryKind, Lsn, NodeId, Record as LogRecord,
    RecoveredGroup, Reject, Reply, Request, RequestId, RoleView, WriteId,
};
use highwater_node::api::Consistency;
use highwater_wire::peer::{ForwardRequest, PeerMessage};

use super::{
    About, Fact, Id, Point, Record, Span, SpanKind, What,
    message::{brief, run},
};
use crate::{
    history::{Ask, Call, Told},
    trace::{Kind, digest},
};

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
    /// Who asked for the run of entries that is being applied.
    applies: BTreeMap<GroupId, Id>,
    applied: BTreeMap<GroupId, Id>,
    requests: BTreeMap<RequestId, Asked>,
    /// Calls that the node has not asked its core for yet.
    reads: VecDeque<(GroupId, Id)>,
    /// Calls that were forwarded, by the driver's name for it.
    forwards: BTreeMap<u64, Id>,
    /// What has been confirmed to this node, by whom, and what it was told to be committed.
    confirmed: BTreeMap<(NodeId, GroupId, u64), Lsn>,
    told: BTreeMap<(NodeId, GroupId), Lsn>,
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
    /// Calls without an answer, by number.
    calls: BTreeMap<u64, Id>,
    /// Writing and creating calls, by a digest of what they ask.
    asks: BTreeMap<u64, Id>,
    /// What told a call's answer.
    replies: BTreeMap<Id, Id>,
    /// The answer that made an LSN known to clients.
    learned: BTreeMap<(GroupId, Lsn), Id>,
    /// Records at which a planted fault had its chance.
    #[cfg(madsim)]
    pub(crate) acts: Vec<Id>,
    #[cfg(madsim)]
    acted: u64,
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
        let acted = highwater_core::planted::acted();
        if acted != self.acted {
            self.acted = acted;
            self.acts.push(id);
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
                    self.lane(from).forwards.insert(*name, call);
                    self.records[id].causes.push(call);
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
        let Some(sent) = self.parcels.remove(&parcel) else { return };
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
            self.lane(node).delivered.push(id);
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

    // --- steps ---

    /// A node's core is about to take these.
    pub(crate) fn takes(&mut self, node: NodeId, inputs: &[Input]) {
        let step = self.push(What::Step, node, String::new());
        let mut taken = Words::default();
        let mut causes = std::mem::take(&mut self.lane(node).delivered);
        let timer = self.lane(node).timer.take();
        causes.extend(timer);
        for input in inputs {
            self.take(node, step, input, &mut causes, &mut taken);
        }
        let groups: Vec<GroupId> =
            causes.iter().flat_map(|id| self.records[*id].groups.clone()).collect();
        let record = &mut self.records[step];
        groups.into_iter().for_each(|group| record.concerns(group));
        record.text = match (taken.is_empty(), timer) {
            (false, _) => format!("takes {taken}"),
            (true, Some(_)) => "a deadline passes".to_owned(),
            (true, None) => "looks on".to_owned(),
        };
        causes.dedup();
        record.causes = causes;
        self.lane(node).step = Some(step);
    }

    fn take(
        &mut self,
        node: NodeId,
        step: Id,
        input: &Input,
        causes: &mut Vec<Id>,
        taken: &mut Words,
    ) {
        match input {
            Input::Message { from, message } => {
                let said = brief(&PeerMessage::Core(message.clone()));
                taken.add(format!("{} of {:?}", said.name, from.member.node));
            }
            Input::Persisted { write } => {
                let lane = self.lane(node);
                lane.writes.retain(|(w, _)| w > write);
                causes.extend(lane.synced.take());
                taken.add(format!("{write:?} is durable"));
            }
            Input::Applied { group, upto, .. } => {
                causes.extend(self.lane(node).applied.get(group));
                taken.add(format!("{group:?} applied up to {upto:?}"));
            }
            Input::Request { id, request } => {
                self.request(node, step, (*id, request), causes, taken)
            }
            Input::Cancel { id } => {
                self.lane(node).requests.remove(id);
                taken.add("a call's deadline passed".to_owned());
            }
            Input::Checkpointed { group, lsn } => {
                taken.add(format!("{group:?} is checkpointed at {lsn:?}"));
            }
            Input::Room { .. } => {}
            Input::Loaded { entries, .. } => {
                taken.add(format!("{} entries read back", entries.len()));
            }
            other => taken.add(format!("{other:?}")),
        }
    }

    fn request(
        &mut self,
        node: NodeId,
        step: Id,
        (id, request): (RequestId, &Request),
        causes: &mut Vec<Id>,
        taken: &mut Words,
    ) {
        let (digest, read, what) = match request {
            Request::Propose { group, payload, .. } => {
                (digest(payload), None, format!("a write to {group:?}"))
            }
            Request::CreateDatabase { name, .. } => {
                (digest(name.as_bytes()), None, format!("create {name}"))
            }
            Request::Read { group } => (0, Some(*group), format!("a read of {group:?}")),
            Request::Transfer { group, to } => (0, None, format!("transfer {group:?} to {to:?}")),
            Request::Drain => (0, None, "drain".to_owned()),
        };
        let call = match read {
            Some(group) => {
                let reads = &mut self.lane(node).reads;
                let at = reads.iter().position(|(g, _)| *g == group);
                at.and_then(|at| reads.remove(at)).map(|(_, call)| call)
            }
            None => self.asks.get(&digest).copied(),
        };
        // A forwarded one came by a message that arrived.
        let carried = |id: &Id| {
            let sent = self.records[*id].causes.first();
            let of =
                |sent: &Id| call.is_some_and(|call| self.records[*sent].causes.contains(&call));
            self.records[*id].name == "Forward" && sent.is_some_and(of)
        };
        let from = causes.iter().rev().find(|id| carried(id)).copied().or(call);
        causes.extend(from);
        let number = call.map(|call| format!(" {}", self.number(call))).unwrap_or_default();
        taken.add(format!("{what}{number}"));
        self.lane(node).requests.insert(id, Asked { from, call, step, group: read });
    }

    /// The core has made its step, and the driver is about to carry out these effects.
    pub(crate) fn steps<'a>(
        &mut self,
        node: NodeId,
        groups: impl Iterator<Item = GroupView<'a>>,
        effects: &[Effect],
    ) {
        let Some(step) = self.lane(node).step else { return };
        self.sample(step);
        let mut done = Words::default();
        for view in groups {
            self.view(node, step, &view, &mut done);
        }
        let mut sends: BTreeMap<&'static str, Vec<NodeId>> = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Persist { write, records } => {
                    self.lane(node).writes.push((*write, step));
                    self.persist(step, records);
                    done.add(format!("writes {} as {write:?}", written(records)));
                }
                Effect::Send { to, message } => {
                    let said = brief(&PeerMessage::Core(message.clone()));
                    let who = if said.name == "Vote" { node } else { *to };
                    let hands_over = said.name == "TimeoutNow";
                    let ballot = |fact: &&Fact| fact.about == About::Ballot && !hands_over;
                    let ballots = said.facts.iter().filter(ballot);
                    ballots.for_each(|fact| {
                        self.records[step].say(Fact { who: Some(who), ..*fact });
                    });
                    said.group.into_iter().for_each(|group| self.records[step].concerns(group));
                    sends.entry(said.name).or_default().push(*to);
                }
                Effect::Reply { request, reply } => {
                    done.add(self.reply(node, step, *request, reply));
                }
                Effect::Apply { group, entries } => {
                    self.lane(node).applies.insert(*group, step);
                    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                        let lsns = run(first.lsn.0, last.lsn.0);
                        done.add(format!("applies {group:?} {lsns}"));
                    }
                }
                Effect::Checkpoint { group, lsn, .. } => {
                    done.add(format!("checkpoints {group:?} at {lsn:?}"));
                }
                Effect::Load { group, from, to, .. } => {
                    done.add(format!("reads {group:?} {} back", run(from.0, to.0)));
                }
                Effect::Leader { .. } | Effect::Notice(_) => {}
                other => done.add(format!("{other:?}")),
            }
        }
        for (name, to) in sends {
            done.add(format!("sends {name} to {to:?}"));
        }
        if !done.is_empty() {
            let text = &mut self.records[step].text;
            *text = format!("{text}; {done}");
        }
    }

    fn persist(&mut self, step: Id, records: &[LogRecord]) {
        for record in records {
            match record {
                LogRecord::Append { group, entry } => {
                    let fact =
                        Fact::new(About::Entry, *group, entry.term, entry.lsn.0, entry.lsn.0);
                    self.records[step].say(fact);
                    if entry.kind != EntryKind::TermStart {
                        self.entry_of_call(step, entry, fact);
                    }
                }
                LogRecord::HardState { group, term, vote: Some(member) } => {
                    let vote = Fact::of_vote(About::Vote, *group, *term, member.node);
                    self.records[step].say(vote);
                }
                LogRecord::HardState { group, term, vote: None } => {
                    self.records[step].say(Fact::of_term(About::Vote, *group, *term));
                }
                _ => {}
            }
        }
    }

    /// An entry was made of what a call asked for: the call, and the messages that carried it here,
    /// are about that entry.
    fn entry_of_call(&mut self, step: Id, entry: &Entry, fact: Fact) {
        let Some(call) = self.asks.get(&digest(&entry.payload)).copied() else { return };
        let mut chain = Vec::new();
        for cause in self.records[step].causes.clone() {
            let sent = self.records[cause].causes.first().copied();
            let carries = |id: &Id| self.records[*id].causes.contains(&call);
            if cause == call {
                chain.push(call);
            } else if self.records[cause].name == "Forward"
                && let Some(sent) = sent.filter(carries)
            {
                chain.extend([cause, sent, call]);
                chain.extend(self.records[sent].causes.first());
            }
        }
        chain.into_iter().for_each(|id| self.records[id].say(fact));
    }

    fn reply(&mut self, node: NodeId, step: Id, request: RequestId, reply: &Reply) -> String {
        let what = match reply {
            Reply::Applied { lsn, .. } => format!("applied at {lsn:?}"),
            Reply::Readable { lsn } => format!("readable at {lsn:?}"),
            other => format!("{other:?}"),
        };
        let Some(asked) = self.lane(node).requests.remove(&request) else {
            return format!("answers: {what}");
        };
        if asked.step != step {
            self.records[step].causes.push(asked.step);
        }
        let Some(from) = asked.from else { return format!("answers: {what}") };
        if let (Some(group), Reply::Rejected(Reject::NotLeader { .. })) = (asked.group, reply) {
            // The node asks again.
            self.lane(node).reads.push_back((group, from));
        }
        self.replies.insert(from, step);
        let number = asked.call.map(|call| self.number(call)).unwrap_or_default();
        format!("answers {number}: {what}")
    }

    fn view(&mut self, node: NodeId, step: Id, view: &GroupView<'_>, done: &mut Words) {
        let (group, marks) = (view.group, view.watermarks);
        let role = match view.role {
            RoleView::Follower => 1,
            RoleView::PreCandidate => 2,
            RoleView::Candidate => 3,
            RoleView::Leader => 4,
        };
        let point = Point {
            at_ns: self.now_ns,
            role,
            term: view.term,
            appended: marks.appended(),
            durable: marks.durable(),
            committed: marks.committed(),
            applied: marks.applied(),
        };
        let points = self.series.entry((node, group)).or_default();
        let last = points.last().copied();
        if last.is_some_and(|last| Point { at_ns: point.at_ns, ..last } == point) {
            return;
        }
        points.push(point);
        let record = &mut self.records[step];
        record.concerns(group);
        let old = last.filter(|last| last.role > 0).unwrap_or(Point { role: 1, ..point });
        let rose = [
            (About::Durable, "durable", old.durable, point.durable),
            (About::Commit, "committed", old.committed, point.committed),
        ];
        for (about, name, old, new) in rose {
            if new > old {
                record.say(Fact::new(about, group, view.term, old.0 + 1, new.0));
                done.add(format!("{group:?} {name} {old:?}→{new:?}"));
            }
        }
        if point.appended < old.appended {
            let (from, to) = (point.appended.0 + 1, old.appended.0);
            record.say(Fact::new(About::Cut, group, view.term, from, to));
            done.add(format!("{group:?} truncates {}", run(from, to)));
        }
        if role != old.role || point.term != old.term {
            let does = ["", "follows", "asks whether it could win", "campaigns", "leads"];
            done.add(format!("{group:?} {:?}: {}", view.term, does[usize::from(role)]));
            match view.role {
                RoleView::Leader => record.say(Fact::of_term(About::Lead, group, view.term)),
                RoleView::Candidate => {
                    record.say(Fact::of_vote(About::Vote, group, view.term, node));
                }
                _ => {}
            }
        }
    }

    /// The latest event is that a node applied this run.
    pub(crate) fn applies(&mut self, node: NodeId, group: GroupId, entries: &[Entry]) {
        let lane = self.lanes.entry(node).or_default();
        let cause = lane.applies.get(&group).copied();
        let Some(id) = self.records.len().checked_sub(1) else { return };
        lane.applied.insert(group, id);
        let record = &mut self.records[id];
        record.causes.extend(cause);
        record.concerns(group);
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            record.say(Fact::new(About::Apply, group, last.term, first.lsn.0, last.lsn.0));
        }
    }

    // --- clients ---

    /// The latest event is a call, made when clients knew of this LSN.
    pub(crate) fn calls(&mut self, call: &Call, group: Option<GroupId>, floor: Lsn) {
        let Some(id) = self.records.len().checked_sub(1) else { return };
        self.calls.insert(call.id, id);
        match &call.ask {
            Ask::Write(op) => drop(self.asks.insert(digest(&op.encode()), id)),
            Ask::Create => drop(self.asks.insert(digest(call.database.as_bytes()), id)),
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
            _ => None,
        };
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
    }
}

/// Raises a mark; where the new part begins.
fn grow(known: &mut Lsn, to: Lsn) -> Option<u64> {
    let old = *known;
    *known = old.max(to);
    (to > old).then_some(old.0 + 1)
}

/// What records of a log say, in words.
fn written(records: &[LogRecord]) -> String {
    let mut words = Words::default();
    let mut runs: BTreeMap<(GroupId, u64), (u64, u64)> = BTreeMap::new();
    for record in records {
        match record {
            LogRecord::Append { group, entry } => {
                let run = runs.entry((*group, entry.term.0)).or_insert((entry.lsn.0, 0));
                run.1 = entry.lsn.0;
            }
            LogRecord::HardState { group, term, vote: Some(member) } => {
                words.add(format!("{group:?} {term:?} vote for {:?}", member.node));
            }
            LogRecord::HardState { group, term, vote: None } => {
                words.add(format!("{group:?} {term:?} no vote"));
            }
            LogRecord::Formation(_) => words.add("the formation".to_owned()),
            _ => words.add("hints".to_owned()),
        }
    }
    for ((group, term), (from, to)) in runs {
        words.add(format!("{group:?} {} of t{term}", run(from, to)));
    }
    words.to_string()
}

/// Short phrases in a row, those that repeat counted.
#[derive(Clone, Debug, Default)]
struct Words(Vec<(String, u64)>);

impl Words {
    fn add(&mut self, word: String) {
        match self.0.iter_mut().find(|(known, _)| *known == word) {
            Some((_, times)) => *times += 1,
            None => self.0.push((word, 1)),
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (word, times)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            let times = if *times > 1 { format!(" ({times}×)") } else { String::new() };
            write!(f, "{comma}{word}{times}")?;
        }
        Ok(())
    }
}
