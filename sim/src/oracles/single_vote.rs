//! O2. One vote per node, group and term: the means to election safety, checked where it is given.
//!
//! Raft, figure 2 ("votedFor"); `votedFor` in its TLA+. Failures 23, 32.

use std::collections::BTreeMap;

use highwater_core::{GroupId, NodeId, Term};

use super::{Verdict, broken};

/// Every vote that was given.
#[derive(Debug, Default)]
pub(crate) struct SingleVote {
    votes: BTreeMap<(NodeId, GroupId, Term), NodeId>,
}

impl SingleVote {
    /// A member votes.
    pub(crate) fn votes(
        &mut self,
        voter: NodeId,
        group: GroupId,
        term: Term,
        candidate: NodeId,
    ) -> Verdict {
        match self.votes.insert((voter, group, term), candidate) {
            Some(other) if other != candidate => {
                let what = format!(
                    "{voter:?} votes for {other:?} and for {candidate:?} in {group:?}, {term:?}"
                );
                Err(broken(what).on(voter).on(other).on(candidate).of(group).term(term))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(4);

    #[test]
    fn fires_on_a_second_vote() {
        let mut oracle = SingleVote::default();
        assert!(oracle.votes(NodeId(1), G, Term(2), NodeId(2)).is_ok());
        assert!(oracle.votes(NodeId(1), G, Term(2), NodeId(2)).is_ok());
        assert!(oracle.votes(NodeId(1), G, Term(3), NodeId(3)).is_ok());
        assert!(oracle.votes(NodeId(2), G, Term(2), NodeId(3)).is_ok());
        assert!(oracle.votes(NodeId(1), G, Term(2), NodeId(3)).is_err());
    }
}
