//! What a step of a node's driver takes and does, for its story.

use std::collections::BTreeMap;

use highwater_core::{
    Effect, Entry, GroupId, GroupView, Input, Kind as EntryKind, NodeId, Record as LogRecord,
    Reject, Reply, Request, RequestId, RoleView, Term,
};
use highwater_wire::peer::{PeerMessage, SlotAsk};

use super::{Asked, Story};
use crate::{
    page::{
        About, Fact, Id, Point, What,
        message::{brief, run, slot_words},
    },
    trace::digest,
};

impl Story {
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
                let (peer, boot) = (from.member.node, from.boot.counter);
                let met = self.lane(node).boots.entry(peer).or_default();
                if boot > *met {
                    *met = boot;
                    self.records[step].say(Fact::of_node(About::Met, peer));
                }
                if said.name == "Recalled" {
                    self.records[step].say(Fact::of_node(About::Recalled, from.member.node));
                }
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
                let fact = Fact::new(About::Checkpoint, *group, Term(0), lsn.0, lsn.0);
                self.records[step].say(fact);
                taken.add(format!("{group:?} is checkpointed at {lsn:?}"));
            }
            Input::Room { .. } => {}
            Input::Loaded { entries, .. } => {
                taken.add(format!("{} entries read back", entries.len()));
            }
            Input::StorageFailed { .. } => {
                causes.extend(self.lane(node).wrote);
                taken.add(format!("{input:?}"));
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
        let of_slot = |group: GroupId, name: &str, ask: &SlotAsk| {
            let words = slot_words(name, ask);
            (digest(words.as_bytes()), None, format!("{words} of {group:?}"))
        };
        let (digest, read, what) = match request {
            Request::Propose { group, payload, .. } => {
                (digest(payload), None, format!("a write to {group:?}"))
            }
            Request::CreateDatabase { name, .. } => {
                (digest(name.as_bytes()), None, format!("create {name}"))
            }
            Request::Read { group } => (0, Some(*group), format!("a read of {group:?}")),
            Request::Transfer { group, to } => (0, None, format!("transfer {group:?} to {to:?}")),
            Request::CreateSlot { group, name, settings, .. } => {
                of_slot(*group, name, &SlotAsk::Create(*settings))
            }
            Request::AckSlot { group, name, lsn, .. } => of_slot(*group, name, &SlotAsk::Ack(*lsn)),
            Request::DeleteSlot { group, name, .. } => of_slot(*group, name, &SlotAsk::Delete),
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
        let here = call.filter(|_| from == call);
        if let Some(call) = here
            && let Some(why) = self.lane(node).gave_up.get(&call)
        {
            causes.push(*why);
        }
        let number = call.map(|call| format!(" {}", self.number(call))).unwrap_or_default();
        taken.add(format!("{what}{number}"));
        self.lane(node).requests.insert(id, Asked { from, call, step, group: read });
    }

    /// The core has made its step, and the driver is about to carry out these effects.
    pub(crate) fn steps<'a>(
        &mut self,
        node: NodeId,
        groups: impl Iterator<Item = GroupView<'a>>,
        is_alive: impl Fn(NodeId) -> bool,
        effects: &[Effect],
    ) {
        let Some(step) = self.lane(node).step else { return };
        self.sample(step);
        self.lane(node).gives_up(step, |node, _| !is_alive(node));
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
                Effect::Checkpoint { group, at, .. } => {
                    let lsn = at.lsn;
                    let fact = Fact::new(About::Freeze, *group, Term(0), lsn.0, lsn.0);
                    self.records[step].say(fact);
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
        let asked = entry.op().unwrap_or_else(|| entry.payload.clone());
        let Some(call) = self.asks.get(&digest(&asked)).copied() else { return };
        let node = self.records[step].node;
        let (mut chain, mut handed_on) = (Vec::new(), Vec::<Id>::new());
        for cause in self.records[step].causes.clone() {
            let sent = self.records[cause].causes.first().copied();
            let carries = |id: &Id| self.records[*id].causes.contains(&call);
            if cause == call {
                chain.push(call);
                handed_on.extend(self.lane(node).gave_up.get(&call));
            } else if self.records[cause].name == "Forward"
                && let Some(sent) = sent.filter(carries)
            {
                chain.extend([cause, sent, call]);
                handed_on.extend(self.records[sent].causes.first());
            }
        }
        chain.into_iter().for_each(|id| self.records[id].say(fact));
        let asks = Fact { about: About::Asks, ..fact };
        handed_on.into_iter().for_each(|id| self.records[id].say(asks));
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
        if asked.group == Some(GroupId::SYSTEM) {
            self.lane(node).catalog = Some(step);
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
                RoleView::PreCandidate => {
                    record.say(Fact::of_term(About::PreVote, group, view.term.next()));
                }
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
