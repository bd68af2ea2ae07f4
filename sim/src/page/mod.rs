//! A run for a reader: every event with what it is about and what caused it ([`story`]), the chain
//! of events that explains a finding ([`chain`]), and the page that shows both ([`html`]).

#[cfg(madsim)]
pub(crate) mod acts;
pub(crate) mod chain;
#[cfg(madsim)]
pub(crate) mod explains;
#[cfg(madsim)]
pub(crate) mod html;
mod message;
pub(crate) mod story;
#[cfg(all(test, madsim))]
mod tests;

use highwater_core::{GroupId, Lsn, NodeId, Term};

use crate::trace::Kind;

/// Names a record: its place in the story.
pub(crate) type Id = usize;

/// What a record is: an event of the trace, or one that only the story has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// An event of the trace.
    Traced(Kind),
    /// A step of a node's driver: inputs taken, effects carried out.
    Step,
    /// A process is held still.
    Pause,
    /// It goes on.
    Resume,
}

impl What {
    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            What::Traced(kind) => kind.name(),
            What::Step => "step",
            What::Pause => "pause",
            What::Resume => "resume",
        }
    }
}

/// What can be said of a group's log and terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    /// The node meets a new start of another.
    Met,
    /// Another node says what it remembers of this one.
    Recalled,
    /// The node is told what its disk holds of a state.
    Checkpoint,
    /// The node sets a state aside for its disk.
    Freeze,
    /// The node hands on what becomes entries.
    Asks,
    /// Entries are asked for, sent, or written.
    Entry,
    /// Entries are truncated.
    Cut,
    /// Entries become durable on the node.
    Durable,
    /// The node learns that a follower has entries.
    Confirmed,
    /// The node is told that entries are committed.
    Told,
    /// The node counts entries as committed.
    Commit,
    /// Entries are applied.
    Apply,
    /// The node asks whether it could win.
    PreVote,
    /// A message asks for a vote or gives one.
    Ballot,
    /// The node votes, for itself or another.
    Vote,
    /// The node begins to lead.
    Lead,
}

/// One thing that a record says: about these entries, or about this term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) about: About,
    pub(crate) group: GroupId,
    /// The speaker's term; 0 where it does not matter.
    pub(crate) term: Term,
    /// The first entry; 0 where it is about a term.
    pub(crate) from: Lsn,
    /// The last one.
    pub(crate) to: Lsn,
    /// For whom a vote is.
    pub(crate) who: Option<NodeId>,
}

impl Fact {
    pub(crate) fn new(about: About, group: GroupId, term: Term, from: u64, to: u64) -> Fact {
        Fact { about, group, term, from: Lsn(from), to: Lsn(to), who: None }
    }

    /// About a vote for this node.
    pub(crate) fn of_vote(about: About, group: GroupId, term: Term, who: NodeId) -> Fact {
        Fact { who: Some(who), ..Fact::of_term(about, group, term) }
    }

    /// About another node.
    pub(crate) fn of_node(about: About, who: NodeId) -> Fact {
        Fact::of_vote(about, GroupId::SYSTEM, Term(0), who)
    }

    /// About a term.
    pub(crate) fn of_term(about: About, group: GroupId, term: Term) -> Fact {
        Fact::new(about, group, term, 0, 0)
    }
}

/// One event, with what a reader wants to know.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) at_ns: u64,
    pub(crate) what: What,
    /// Where; 0 is the harness.
    pub(crate) node: NodeId,
    /// Of a message: the other side.
    pub(crate) peer: Option<NodeId>,
    /// Of a message: the name of its kind.
    pub(crate) name: &'static str,
    pub(crate) text: String,
    /// The groups that it is about.
    pub(crate) groups: Vec<GroupId>,
    pub(crate) facts: Vec<Fact>,
    /// What brought it about, beside what the node did before.
    pub(crate) causes: Vec<Id>,
}

/// How a replica stood from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) at_ns: u64,
    /// 0 down, 1 follower, 2 pre-candidate, 3 candidate, 4 leader.
    pub(crate) role: u8,
    pub(crate) term: Term,
    pub(crate) appended: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) committed: Lsn,
    pub(crate) applied: Lsn,
}

/// Something that lasts: a fault, a pause, a cut link, a machine that is down.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) kind: SpanKind,
    /// Where; empty where it concerns all.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) text: String,
    pub(crate) from_ns: u64,
    /// `None` where it lasted to the end.
    pub(crate) to_ns: Option<u64>,
}

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpanKind {
    /// A fault of the plan.
    Fault,
    /// No process runs.
    Down,
    /// The process is held still.
    Paused,
    /// Messages from the first node to the second are lost.
    Cut,
}

impl SpanKind {
    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            SpanKind::Fault => "fault",
            SpanKind::Down => "down",
            SpanKind::Paused => "paused",
            SpanKind::Cut => "cut",
        }
    }
}
