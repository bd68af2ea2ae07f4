//! The oracles: each promise has one, in a file of its own that cites where the promise is made
//! ("semantics.md" is the design's list of guarantees, "failures" its list of what must be
//! impossible). They know nothing of each other and touch nothing; the judge hands them what they
//! need, in order.

pub(crate) mod answers;
pub(crate) mod audits;
pub(crate) mod bounds;
pub(crate) mod catalog;
pub(crate) mod commit_rule;
pub(crate) mod committed_log;
pub(crate) mod durability;
pub(crate) mod durable_log;
pub(crate) mod election_safety;
pub(crate) mod fencing;
pub(crate) mod histories;
pub(crate) mod leader_completeness;
pub(crate) mod leadership;
pub(crate) mod linearizability;
pub(crate) mod liveness;
pub(crate) mod log;
pub(crate) mod log_matching;
pub(crate) mod once;
pub(crate) mod outcomes;
pub(crate) mod persist_first;
pub(crate) mod pruning;
pub(crate) mod quarantine;
pub(crate) mod reference;
pub(crate) mod repair;
pub(crate) mod roots;
pub(crate) mod sessions;
pub(crate) mod silence;
pub(crate) mod single_vote;
pub(crate) mod slots;
pub(crate) mod stall;
pub(crate) mod state_machine;
pub(crate) mod streams;
#[cfg(madsim)]
pub(crate) mod transport;
pub(crate) mod watermarks;

use highwater_core::{GroupId, Lsn, NodeId, Term};

use crate::world::Subject;

/// What an oracle says: nothing, or what is broken.
pub(crate) type Verdict = Result<(), Broken>;

/// A promise that an oracle saw broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) what: String,
    pub(crate) subject: Subject,
}

impl From<String> for Broken {
    fn from(what: String) -> Broken {
        Broken { what, subject: Subject::default() }
    }
}

/// Something is broken; what it is about is added by the methods of [`Broken`].
pub(crate) fn broken(what: String) -> Broken {
    what.into()
}

impl Broken {
    /// On this node too.
    pub(crate) fn on(mut self, node: NodeId) -> Broken {
        if !self.subject.nodes.contains(&node) {
            self.subject.nodes.push(node);
        }
        self
    }

    /// Of this group.
    pub(crate) fn of(mut self, group: GroupId) -> Broken {
        self.subject.group = Some(group);
        self
    }

    /// In this term.
    pub(crate) fn term(mut self, term: Term) -> Broken {
        self.subject.term = Some(term);
        self
    }

    /// At this LSN.
    pub(crate) fn at(self, lsn: Lsn) -> Broken {
        self.lsns(lsn, lsn)
    }

    /// At these LSNs, both ends included.
    pub(crate) fn lsns(mut self, from: Lsn, to: Lsn) -> Broken {
        self.subject.lsns = Some((from, to));
        self
    }
}
