//! Why a finding came about: the part of what happened before it that concerns its subject.
//!
//! Backwards from the event at which the oracle fired: along messages, disk writes, calls and
//! answers; and on each node along the last event before that said something about the subject's
//! entries or terms (written, truncated, durable, committed, applied; voted, led), or began or ended
//! the process. That is a dynamic slice (Korel, Laski 1988) of Lamport's happens-before, with what
//! the log is about as its variables.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{GroupId, Lsn, NodeId, Term};

use super::{
    About, Fact, Id, Record, Span, SpanKind, What,
    message::run,
    story::{Found, LOG, STATE, Story},
};
use crate::{
    trace::Kind,
    world::{Finding, Subject},
};

/// One event of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) id: Id,
    /// What kind of step it is in the explanation: a word.
    pub(crate) tag: &'static str,
    /// One line for a reader.
    pub(crate) line: String,
}

/// The explanation of a finding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// From cause to violation.
    pub(crate) links: Vec<Link>,
    /// Everything that belongs to it: also the sends whose arrivals are links, and the like.
    pub(crate) ids: BTreeSet<Id>,
    /// Faults at work meanwhile: places among the story's spans.
    pub(crate) faults: Vec<usize>,
    /// What it is about, as far as it is known.
    pub(crate) subject: Subject,
}

/// A range of LSNs longer than this is followed at its ends only.
const LSNS_MAX: u64 = 3;
/// So many terms of a subject are followed, the latest ones.
const TERMS_MAX: usize = 4;
/// A chain is no longer than this.
const LINKS_MAX: usize = 160;
/// So much of what a node did on its own is in it.
const BACKGROUND_MAX: usize = 40;
/// Messages of a step, the last ones of which one is what a peer is blamed for.
const HEARD_MAX: usize = 8;
/// So many faults are named beside it.
const FAULTS_MAX: usize = 10;

/// A line that says everything is no longer than this, in characters.
const TEXT_MAX: usize = 160;
/// So many ends of a process that had worked are remembered where the promise broke.
const RESTARTS: u64 = 2;

/// What a definition is of: the last one before an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variable {
    /// A start, a recovery, an end, a pause.
    Process,
    /// What the disk holds of the group's state.
    State,
    /// ... as the core was told.
    Checkpoint,
    /// What the oplog holds: what is written there, by name.
    Log(&'static str),
    /// A sync that failed.
    SyncFailed,
    /// A fact about one of the subject's LSNs or terms; of a follower's, where it is about one.
    Fact(About, u64, Option<NodeId>),
}

struct Slice<'a> {
    story: &'a Story,
    group: Option<GroupId>,
    lsns: Vec<Lsn>,
    terms: BTreeSet<Term>,
    definitions: BTreeMap<(NodeId, Variable), Vec<Id>>,
    ids: BTreeSet<Id>,
    /// Calls whose answers are part of it.
    calls: BTreeSet<Id>,
    /// The call whose answer breaks the promise.
    broken: Option<Id>,
    /// Whether it is time that breaks it.
    of_time: bool,
    /// Whether it is what a leader remembered of keys, which it has from its state's checkpoints.
    of_keys: bool,
}

/// Explains what was found.
pub(crate) fn explain(story: &Story, finding: &Finding) -> Chain {
    let Some(found) = &story.found else { return Chain::default() };
    let (mut subject, named) = (finding.subject.clone(), named_in(&finding.what));
    if subject.nodes.is_empty() {
        subject.nodes = named.nodes;
    }
    subject.group = subject.group.or(named.group);
    subject.term = subject.term.or(named.term);
    subject.lsns = subject.lsns.or(named.lsns);
    if subject.group.is_none() {
        narrow(&mut subject, &story.records[found.at]);
    }
    let roots = roots(story, found, (finding, &subject));
    let mut slice = Slice::new(story, &subject, found.record, finding.oracle);
    slice.of_time = roots.of_time;
    for root in &roots.ids {
        slice.follow(*root);
    }
    for message in heard(story, found, (finding, &subject)) {
        slice.follow(message);
    }
    slice.ids.insert(found.record);
    slice.forget_before_the_subject();
    for root in roots.ids {
        slice.remember_restarts(root);
    }
    slice.ids.extend(background(story, found, (finding, &subject)));
    let mut links: Vec<Link> = slice.ids.iter().filter_map(|id| slice.link(*id, found)).collect();
    if links.len() > LINKS_MAX {
        links.drain(..links.len() - LINKS_MAX);
    }
    let faults = faults(story, &slice.ids);
    Chain { links, ids: slice.ids, faults, subject }
}

/// What nodes did on their own, which no message leads to, and a finding is about: what was applied since
/// a state was last audited right, what was read of one that is wrong and was not found, what was read
/// for a stream, what was written to a file that can't be read.
fn background(story: &Story, found: &Found, (finding, subject): (&Finding, &Subject)) -> Vec<Id> {
    let path = finding.what.split([' ', ':']).find(|word| word.contains('/'));
    // History gets its name when it is whole.
    let path = path.map(|path| if path.starts_with("history/") { "history/" } else { path });
    let call = story.records[found.at].causes.first().copied().unwrap_or_default();
    let is_ours = |id: &Id| {
        let record = &story.records[*id];
        let What::Traced(kind) = record.what else { return false };
        let of_group = subject.group.is_some_and(|group| record.groups.contains(&group));
        let applies = |(from, to): (Lsn, Lsn)| {
            record.facts.iter().any(|fact| fact.from <= to && fact.to >= from)
        };
        subject.nodes.contains(&record.node)
            && match (finding.oracle, kind) {
                ("audits", Kind::Applied) => of_group && subject.lsns.is_some_and(applies),
                ("audits", Kind::StateRead) => of_group && subject.lsns.is_none(),
                ("streams", Kind::LogRead) => *id > call,
                ("recovery", Kind::LogWrite | Kind::Sync) => {
                    path.is_some_and(|path| record.text.starts_with(path))
                }
                _ => false,
            }
    };
    let ours = (0..found.record).rev().filter(is_ours);
    let mut ids: Vec<Id> = ours.take(BACKGROUND_MAX).collect();
    // A segment is made under another name.
    if finding.oracle == "recovery"
        && path.is_some_and(|path| path.starts_with("oplog/"))
        && let Some(first) = (0..found.record).find(is_ours)
    {
        let makes = |id: &Id| {
            let record = &story.records[*id];
            subject.nodes.contains(&record.node) && record.text.starts_with("oplog/spare.tmp")
        };
        ids.extend((0..first).rev().filter(makes).take(BACKGROUND_MAX));
    }
    ids
}

/// What a node heard last from the one that it says misbehaves.
fn heard(story: &Story, found: &Found, (finding, subject): (&Finding, &Subject)) -> Vec<Id> {
    let [node, peer] = subject.nodes[..] else { return Vec::new() };
    if finding.oracle != "peer fault" {
        return Vec::new();
    }
    let is_from = |id: &Id| {
        let record = &story.records[*id];
        record.what == What::Traced(Kind::Deliver)
            && record.node == node
            && record.peer == Some(peer)
    };
    (0..found.record).rev().filter(is_from).take(HEARD_MAX).collect()
}

/// What a text names, as the types of the protocol show themselves: `n1`, `g2`, `t3`, `l4`. A text
/// about several groups is about none of them.
fn named_in(text: &str) -> Subject {
    let mut subject = Subject::default();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
        let Some((letter, number)) = word.split_at_checked(1) else { continue };
        let Ok(number) = number.parse() else { continue };
        match letter {
            "n" if !subject.nodes.contains(&NodeId(number)) => subject.nodes.push(NodeId(number)),
            "g" if subject.group.is_some_and(|group| group.0 != number) => {
                return Subject { nodes: subject.nodes, ..Subject::default() };
            }
            "g" => subject.group = Some(GroupId(number)),
            "t" => subject.term = subject.term.or(Some(Term(number))),
            "l" => {
                let (from, to) = subject.lsns.unwrap_or((Lsn(number), Lsn(number)));
                subject.lsns = Some((from.min(Lsn(number)), to.max(Lsn(number))));
            }
            _ => {}
        }
    }
    subject
}

/// What the violating event itself says, where the oracle does not know.
fn narrow(subject: &mut Subject, at: &Record) {
    let Some(fact) = at.facts.last() else {
        subject.group = at.groups.first().copied();
        return;
    };
    subject.group = Some(fact.group);
    subject.term = subject.term.or(Some(fact.term).filter(|term| *term > Term(0)));
    if subject.lsns.is_none() && fact.to > Lsn(0) {
        subject.lsns = Some((fact.to, fact.to));
    }
}

/// Where the explanation begins: at the event, or, where no event breaks the promise but time, at
/// the end of each node concerned.
struct Roots {
    ids: Vec<Id>,
    /// Whether it is time that breaks the promise.
    of_time: bool,
}

fn roots(story: &Story, found: &Found, (finding, subject): (&Finding, &Subject)) -> Roots {
    let (at, record) = (&story.records[found.at], &story.records[found.record]);
    let judged = matches!(
        at.what,
        What::Step | What::Traced(Kind::Applied | Kind::Return | Kind::Process | Kind::Leader)
    );
    let of_time = matches!(finding.oracle, "liveness" | "stall");
    let event = (judged && at.at_ns == record.at_ns).then_some(found.at);
    if event.is_some() && !of_time {
        return Roots { ids: event.into_iter().collect(), of_time };
    }
    let mut last: BTreeMap<NodeId, Id> = BTreeMap::new();
    for (id, record) in story.records[..found.record].iter().enumerate() {
        let named = subject.nodes.is_empty() || subject.nodes.contains(&record.node);
        // Where nothing happens, it may be for want of anybody.
        let concerned = named || of_time && subject.group.is_some();
        let of_group = subject.group.is_none_or(|group| record.groups.contains(&group));
        let tells = match record.what {
            What::Step => of_group,
            What::Traced(Kind::Process | Kind::Fault) => record.node > NodeId(0),
            _ => false,
        };
        if tells && concerned {
            last.insert(record.node, id);
        }
    }
    Roots { ids: last.into_values().chain(event).collect(), of_time }
}

impl<'a> Slice<'a> {
    fn new(story: &'a Story, subject: &Subject, end: Id, oracle: &str) -> Slice<'a> {
        let lsns = match subject.lsns {
            Some((from, to)) if to.0.saturating_sub(from.0) < LSNS_MAX => {
                (from.0..=to.0).map(Lsn).collect()
            }
            Some((from, to)) => vec![from, to],
            None => Vec::new(),
        };
        let mut slice = Slice {
            of_keys: oracle == "once",
            story,
            group: subject.group,
            lsns,
            terms: subject.term.into_iter().collect(),
            definitions: BTreeMap::new(),
            ids: BTreeSet::new(),
            calls: BTreeSet::new(),
            broken: None,
            of_time: false,
        };
        let records = &story.records[..end];
        let steps = records.iter().filter(|record| record.what == What::Step);
        let written: BTreeSet<Term> = steps
            .flat_map(|record| &record.facts)
            .filter(|fact| fact.about == About::Entry && slice.concerns(fact).next().is_some())
            .map(|fact| fact.term)
            .collect();
        slice.terms.extend(written.into_iter().rev().take(TERMS_MAX));
        for (id, record) in records.iter().enumerate() {
            for variable in slice.defines(record) {
                slice.definitions.entry((record.node, variable)).or_default().push(id);
            }
        }
        slice
    }

    /// Which of the subject's LSNs and terms a fact is about.
    fn concerns(&self, fact: &Fact) -> impl Iterator<Item = u64> {
        let ours = self.group == Some(fact.group);
        let term = (fact.to == Lsn(0)).then_some(fact.term).filter(|t| self.terms.contains(t));
        let lsns = self.lsns.iter().filter(|lsn| (fact.from..=fact.to).contains(lsn));
        let all: Vec<u64> = lsns.map(|lsn| lsn.0).chain(term.map(|term| term.0)).collect();
        all.into_iter().filter(move |_| ours)
    }

    fn is_relevant(&self, id: Id) -> bool {
        self.story.records[id].facts.iter().any(|fact| self.concerns(fact).next().is_some())
    }

    /// What a record defines on its node.
    fn defines(&self, record: &Record) -> Vec<Variable> {
        let of = |about: &dyn Fn(About) -> bool, peer: Option<NodeId>| {
            let facts = record.facts.iter().filter(|fact| about(fact.about));
            let one = |fact: &Fact| {
                let about = fact.about;
                self.concerns(fact).map(move |n| Variable::Fact(about, n, peer)).collect::<Vec<_>>()
            };
            facts.flat_map(one).collect::<Vec<_>>()
        };
        match record.what {
            What::Step => {
                let own = record.facts.iter().filter_map(|fact| match fact.about {
                    About::Met | About::Recalled => Some(Variable::Fact(fact.about, 0, fact.who)),
                    About::Checkpoint if self.group == Some(fact.group) && !self.of_keys => {
                        Some(Variable::Checkpoint)
                    }
                    About::Freeze if self.group == Some(fact.group) && self.of_keys => {
                        Some(Variable::Checkpoint)
                    }
                    _ => None,
                });
                let is_own = |about| {
                    matches!(
                        about,
                        About::Met
                            | About::Recalled
                            | About::Checkpoint
                            | About::Freeze
                            | About::Told
                    )
                };
                own.chain(of(&|about| !is_own(about), None)).collect()
            }
            What::Traced(Kind::StateWrite | Kind::Sync) if record.name == STATE => {
                let ours = self.group.is_some_and(|group| record.groups.contains(&group));
                if ours { vec![Variable::State] } else { Vec::new() }
            }
            What::Traced(Kind::LogWrite) if LOG.contains(&record.name) => {
                vec![Variable::Log(record.name)]
            }
            What::Traced(Kind::SyncFailed) => vec![Variable::SyncFailed],
            What::Traced(Kind::Applied) => of(&|_| true, None),
            What::Traced(Kind::Deliver) if record.name == "VoteReply" => {
                of(&|about| about == About::Ballot, record.peer)
            }
            What::Traced(Kind::Deliver) => of(&|about| about == About::Confirmed, record.peer),
            What::Traced(Kind::Process | Kind::Fault) | What::Pause | What::Resume
                if record.node != NodeId(0) && !self.is_notice(record) =>
            {
                vec![Variable::Process]
            }
            _ => Vec::new(),
        }
    }

    /// Whether a core says so, and no process starts or ends.
    fn is_notice(&self, record: &Record) -> bool {
        let cause = record.causes.first().map(|cause| self.story.records[*cause].what);
        record.what == What::Traced(Kind::Process) && cause == Some(What::Step)
    }

    fn follow(&mut self, root: Id) {
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            if !self.ids.insert(id) {
                continue;
            }
            let record = &self.story.records[id];
            if record.what == What::Traced(Kind::Return) {
                self.calls.extend(record.causes.first());
                if id == root {
                    self.broken = record.causes.first().copied();
                }
            }
            open.extend(record.causes.iter().filter(|cause| self.leads(id, **cause)));
            // How a process began and the one before it ended says enough of it.
            let tells =
                matches!(record.what, What::Step | What::Traced(Kind::Applied | Kind::Return));
            if tells || id == root {
                open.extend(self.before(record.node, id, id == root));
            }
        }
    }

    /// Whether a cause of an event in the chain belongs there too.
    fn leads(&self, id: Id, cause: Id) -> bool {
        let (record, before) = (&self.story.records[id], &self.story.records[cause]);
        match record.what {
            What::Step => {}
            // What a call might have known matters to the one that was answered wrongly.
            What::Traced(Kind::Call) => return self.broken == Some(id),
            What::Traced(Kind::Return) if before.what == What::Traced(Kind::Applied) => {
                return self.is_relevant(cause);
            }
            What::Traced(Kind::Fault | Kind::Process) if before.what == What::Step => return false,
            _ => return true,
        }
        let asks = before.what == What::Traced(Kind::Call) || before.name == "Forward";
        let of_call = self.calls.contains(&cause)
            || before.causes.iter().any(|c| {
                self.calls.contains(c)
                    || self.story.records[*c].causes.iter().any(|c| self.calls.contains(c))
            });
        match before.what {
            What::Traced(Kind::Timer) => false,
            // The write that failed.
            What::Traced(Kind::LogWrite) => true,
            _ if asks || before.what == What::Step => of_call || self.is_relevant(cause),
            _ if before.name == "ReadIndexReply" => {
                before.groups.first().copied() == self.group && !self.calls.is_empty()
            }
            _ => self.is_relevant(cause),
        }
    }

    /// The last definition of each variable on a node, before an event.
    fn before(&self, node: NodeId, id: Id, is_root: bool) -> Vec<Id> {
        let of_node = (node, Variable::Process)
            ..=(node, Variable::Fact(About::Lead, u64::MAX, Some(NodeId(u64::MAX))));
        let last = |ids: &Vec<Id>| ids[..ids.partition_point(|at| *at < id)].last().copied();
        let Record { facts, what, .. } = &self.story.records[id];
        let does = |about| facts.iter().any(|fact| fact.about == about);
        let of_state = matches!(what, What::Traced(Kind::Applied | Kind::Return));
        // What others have counts where it is counted, and a state where it is used.
        let counts = |variable: &Variable| match variable {
            Variable::Checkpoint if self.of_keys => does(About::Entry),
            Variable::State | Variable::Checkpoint => is_root || of_state,
            Variable::Log(_) | Variable::SyncFailed => false,
            _ if of_state => false,
            Variable::Fact(About::Met | About::Recalled, ..) => is_root && self.of_time,
            Variable::Fact(About::Confirmed, ..) => does(About::Commit),
            Variable::Fact(About::Ballot, _, Some(_)) => does(About::Lead),
            _ => true,
        };
        let definitions = self.definitions.range(of_node);
        let counted = definitions.filter(|((_, variable), _)| counts(variable));
        counted.filter_map(|(_, ids)| last(ids)).collect()
    }

    /// Starts and ends of processes before anything else in the chain explain nothing.
    fn forget_before_the_subject(&mut self) {
        let records = &self.story.records;
        let process = |id: &Id| self.defines(&records[*id]).contains(&Variable::Process);
        let Some(first) = self.ids.iter().copied().find(|id| !process(id)) else { return };
        self.ids = self.ids.split_off(&first);
    }

    /// ... but the last restarts of the node where it broke may have brought it there.
    fn remember_restarts(&mut self, root: Id) {
        let node = self.story.records[root].node;
        let before = self.definitions.get(&(node, Variable::Process));
        let before = before.map(|ids| &ids[..ids.partition_point(|id| *id < root)]);
        let mut worked = 0;
        let of_disk = [Variable::State, Variable::Checkpoint].into_iter();
        // A process that can't go on from its log has it from the one before.
        let of_log = LOG.map(Variable::Log).into_iter().chain([Variable::SyncFailed]);
        let is_start = self.story.records[root].what == What::Traced(Kind::Process);
        let of_log = of_log.filter(|_| is_start);
        let on_disk: Vec<&[Id]> = of_disk
            .chain(of_log)
            .filter_map(|variable| Some(&self.definitions.get(&(node, variable))?[..]))
            .collect();
        for id in before.unwrap_or_default().iter().rev() {
            self.ids.insert(*id);
            for writes in &on_disk {
                self.ids.extend(writes[..writes.partition_point(|at| at < id)].last());
            }
            let record = &self.story.records[*id];
            let ended = record.what == What::Traced(Kind::Fault) && !record.causes.is_empty();
            worked += u64::from(ended);
            if worked == RESTARTS {
                return;
            }
        }
    }

    fn link(&self, id: Id, found: &Found) -> Option<Link> {
        let record = &self.story.records[id];
        let who = record.node;
        let (tag, line) = match record.what {
            _ if id == found.record => ("violation", record.text.clone()),
            // Their arrival, their sync, and the step that took them say it.
            What::Traced(Kind::Send | Kind::Leader) => return None,
            What::Traced(Kind::LogWrite) if record.name.is_empty() || self.is_synced(id) => {
                return None;
            }
            What::Traced(Kind::SyncFailed) => {
                ("log", format!("{who:?} can't sync {}", record.text))
            }
            What::Traced(Kind::LogWrite) => {
                ("log", format!("{who:?} writes {} of its oplog: {}", record.name, record.text))
            }
            What::Traced(Kind::StateWrite | Kind::Sync) if record.name == STATE => {
                ("state", format!("{who:?} {}", record.text))
            }
            What::Traced(Kind::Sync) if self.is_taken(id) => return None,
            What::Traced(Kind::Deliver) => {
                let from = record.peer.unwrap_or_default();
                let sent_ns = record.causes.first().map(|sent| self.story.records[*sent].at_ns);
                let late_ms = (record.at_ns - sent_ns.unwrap_or(record.at_ns)) as f64 / 1e6;
                let Record { name, text, .. } = record;
                ("message", format!("{from:?} → {who:?} {name}: {text} ({late_ms:.1} ms)"))
            }
            What::Traced(Kind::Sync) => {
                ("durable", format!("{who:?} syncs: {}", self.says(record)))
            }
            What::Traced(Kind::Applied) => ("apply", format!("{who:?} {}", self.says(record))),
            What::Traced(Kind::Call) => ("call", format!("call to {who:?}: {}", record.text)),
            What::Traced(Kind::Return) => ("answer", format!("{who:?} answers: {}", record.text)),
            What::Step => (self.tag(record), format!("{who:?} {}", self.says(record))),
            _ => ("process", format!("{who:?} {}", record.text)),
        };
        Some(Link { id, tag, line })
    }

    /// Whether a sync of the chain says it.
    fn is_synced(&self, id: Id) -> bool {
        let after = self.ids.range(id..).map(|id| &self.story.records[*id]);
        after.filter(|r| r.what == What::Traced(Kind::Sync)).any(|sync| sync.causes.contains(&id))
    }

    /// Whether a step of the chain took it.
    fn is_taken(&self, id: Id) -> bool {
        let steps = self.ids.range(id..).map(|id| &self.story.records[*id]);
        steps.filter(|record| record.what == What::Step).any(|step| step.causes.contains(&id))
    }

    fn tag(&self, record: &Record) -> &'static str {
        let facts = record.facts.iter().filter(|fact| self.concerns(fact).next().is_some());
        match facts.map(|fact| fact.about).max() {
            Some(About::Lead) => "leads",
            Some(About::Vote | About::Ballot) => "vote",
            Some(About::Commit) => "commit",
            Some(About::Durable) => "durable",
            Some(About::Cut) => "cut",
            Some(About::Entry) => "entry",
            _ => "step",
        }
    }

    /// What a record says of the subject, or else everything.
    fn says(&self, record: &Record) -> String {
        let facts = record.facts.iter().filter(|fact| self.concerns(fact).next().is_some());
        let names = facts.clone().any(|fact| fact.about == About::Vote && fact.who.is_some());
        let facts = facts.filter(|f| !(names && f.about == About::Vote && f.who.is_none()));
        let said: Vec<String> = facts.map(|fact| phrase(fact, record.node)).collect();
        if !said.is_empty() {
            return said.join(", ");
        }
        let mut text = self.in_short(&record.text);
        if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
            text.truncate(end);
            text.push('…');
        }
        text
    }

    /// Of a long text, the parts that name a call of the chain.
    fn in_short(&self, text: &str) -> String {
        let texts = self.calls.iter().map(|call| self.story.records[*call].text.as_str());
        let numbers: Vec<&str> = texts.filter_map(|text| text.split(' ').next()).collect();
        let names = |part: &&str| {
            part.split([' ', ':', ';']).any(|word| word.starts_with('#') && numbers.contains(&word))
        };
        let parts: Vec<&str> = text.split(", ").flat_map(|part| part.split("; ")).collect();
        let short: Vec<&str> = parts.iter().copied().filter(names).collect();
        if text.chars().count() <= TEXT_MAX || short.is_empty() {
            return text.to_owned();
        }
        format!("among other things: {}", short.join(", "))
    }
}

fn phrase(fact: &Fact, node: NodeId) -> String {
    let Fact { about, group, term, from, to, who } = fact;
    let who = who.unwrap_or_default();
    let lsns = run(from.0, to.0);
    match about {
        About::Checkpoint => format!("has {group:?} checkpointed up to {to:?}"),
        About::Freeze => format!("begins to checkpoint {group:?} at {to:?}"),
        About::Met => format!("meets a new start of {who:?}"),
        About::Recalled => format!("hears what {who:?} remembers of it"),
        About::Asks => format!("hands on what becomes {group:?} {lsns} of {term:?}"),
        About::PreVote => format!("asks whether it could win {group:?} {term:?}"),
        About::Entry => format!("writes {group:?} {lsns} of {term:?}"),
        About::Cut => format!("truncates {group:?} {lsns}"),
        About::Durable => format!("has {group:?} {lsns} durable"),
        About::Confirmed => format!("learns that {group:?} {lsns} is durable there"),
        About::Told => format!("is told that {group:?} {lsns} is committed"),
        About::Commit => format!("commits {group:?} {lsns} in {term:?}"),
        About::Apply => format!("applies {group:?} {lsns}"),
        About::Ballot if who == node => format!("asks for votes in {group:?} {term:?}"),
        About::Ballot => format!("tells {who:?} its vote in {group:?} {term:?}"),
        About::Vote if who == NodeId(0) => format!("notes {group:?} {term:?} without a vote"),
        About::Vote if who == node => format!("votes for itself in {group:?} {term:?}"),
        About::Vote => format!("votes for {who:?} in {group:?} {term:?}"),
        About::Lead => format!("leads {group:?} in {term:?}"),
    }
}

/// The faults of the plan at work between the chain's first event and its last.
fn faults(story: &Story, ids: &BTreeSet<Id>) -> Vec<usize> {
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Vec::new() };
    let (from, to) = (story.records[*first].at_ns, story.records[*last].at_ns);
    let meanwhile = |span: &Span| {
        let ends = span.to_ns.unwrap_or(u64::MAX);
        span.kind == SpanKind::Fault && span.from_ns <= to && ends >= from
    };
    let all: Vec<usize> =
        (0..story.spans.len()).filter(|at| meanwhile(&story.spans[*at])).collect();
    all[all.len().saturating_sub(FAULTS_MAX)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);

    /// A story of a leader, n1, that has an entry and commits it before n2 has it.
    fn story() -> Story {
        let mut story = Story::default();
        let mut add = |what, node: u64, name, facts: &[Fact], causes: &[Id]| {
            story.records.push(Record {
                at_ns: story.records.len() as u64,
                what,
                node: NodeId(node),
                peer: None,
                name,
                text: String::new(),
                groups: facts.iter().map(|fact| fact.group).collect(),
                facts: facts.to_vec(),
                causes: causes.to_vec(),
            });
        };
        let entry = |lsn| Fact::new(About::Entry, G, Term(3), lsn, lsn);
        let fact = |about, lsn| Fact::new(about, G, Term(3), lsn, lsn);
        let traced = What::Traced;
        add(traced(Kind::Process), 1, "", &[], &[]);
        add(What::Step, 1, "", &[Fact::of_term(About::Lead, G, Term(3))], &[]);
        add(traced(Kind::Call), 1, "", &[entry(5)], &[]);
        add(What::Step, 1, "", &[entry(5)], &[2]);
        add(What::Step, 1, "", &[entry(6)], &[]);
        add(traced(Kind::Send), 1, "Append", &[entry(5)], &[3]);
        add(traced(Kind::Deliver), 2, "Append", &[entry(5)], &[5]);
        add(What::Step, 2, "", &[entry(5)], &[6]);
        add(What::Step, 1, "", &[fact(About::Commit, 5)], &[]);
        add(traced(Kind::Fault), 0, "", &[], &[8]);
        story.found = Some(Found { record: 9, at: 8 });
        story.records[9].at_ns = story.records[8].at_ns;
        story
    }

    fn finding(what: &str, subject: Subject) -> Finding {
        Finding { oracle: "commit rule", what: what.to_owned(), subject, at_ns: 8 }
    }

    #[test]
    fn a_chain_is_what_concerns_the_subject_on_the_way_to_the_event() {
        let chain = explain(&story(), &finding("n1 commits l5 of g2 in t3", Subject::default()));
        let ids: Vec<Id> = chain.ids.into_iter().collect();
        // Neither the other entry, nor what n2 did with this one: nothing of that led to the event.
        assert_eq!(ids, [0, 1, 2, 3, 8, 9]);
        assert_eq!(chain.subject.lsns, Some((Lsn(5), Lsn(5))));
        let tags: Vec<&str> = chain.links.iter().map(|link| link.tag).collect();
        assert_eq!(tags, ["process", "leads", "call", "entry", "commit", "violation"]);
    }

    #[test]
    fn a_chain_crosses_messages() {
        let mut story = story();
        story.found = Some(Found { record: 9, at: 7 });
        story.records[9].at_ns = story.records[7].at_ns;
        let subject =
            Subject { group: Some(G), lsns: Some((Lsn(5), Lsn(5))), ..Subject::default() };
        let chain = explain(&story, &finding("", subject));
        let ids: Vec<Id> = chain.ids.into_iter().collect();
        assert_eq!(ids, [1, 2, 3, 5, 6, 7, 9]);
    }

    #[test]
    fn a_text_of_several_groups_names_none() {
        let named = named_in("n3: l7 of g2, and n1 in t4");
        assert_eq!(named.nodes, [NodeId(3), NodeId(1)]);
        assert_eq!((named.group, named.term), (Some(G), Some(Term(4))));
        assert_eq!(named_in("g2 l4, g3 l9").group, None);
    }
}
