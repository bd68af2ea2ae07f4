//! O1. Election safety: at most one leader per group and term.
//!
//! Raft, figure 3 ("Election Safety"); `ElectionSafety` in its TLA+. Failures 23, 25, 32.

use std::collections::BTreeMap;

use highwater_core::{GroupId, NodeId, Term};

use super::{Broken, broken};

/// Who led which term.
#[derive(Debug, Default)]
pub(crate) struct ElectionSafety {
    leaders: BTreeMap<(GroupId, Term), NodeId>,
}

impl ElectionSafety {
    /// A node leads a term. Tells whether that is news.
    pub(crate) fn leads(
        &mut self,
        group: GroupId,
        term: Term,
        node: NodeId,
    ) -> Result<bool, Broken> {
        match self.leaders.insert((group, term), node) {
            None => Ok(true),
            Some(other) if other == node => Ok(false),
            Some(other) => {
                let what = format!("{other:?} and {node:?} both lead {group:?} in {term:?}");
                Err(broken(what).on(other).on(node).of(group).term(term))
            }
        }
    }

    /// The leader of the highest term below this one.
    pub(crate) fn leader_before(&self, group: GroupId, term: Term) -> Option<NodeId> {
        self.leaders.range((group, Term(0))..(group, term)).next_back().map(|(_, node)| *node)
    }

    /// The leader of the highest term.
    pub(crate) fn latest(&self, group: GroupId) -> Option<NodeId> {
        self.leader_before(group, Term(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(4);

    #[test]
    fn fires_on_two_leaders_of_a_term() {
        let mut oracle = ElectionSafety::default();
        assert_eq!(oracle.leads(G, Term(2), NodeId(1)), Ok(true));
        assert_eq!(oracle.leads(G, Term(2), NodeId(1)), Ok(false));
        assert_eq!(oracle.leads(G, Term(3), NodeId(2)), Ok(true));
        assert_eq!(oracle.leads(GroupId(5), Term(2), NodeId(2)), Ok(true));
        assert_eq!(oracle.leader_before(G, Term(3)), Some(NodeId(1)));
        assert!(oracle.leads(G, Term(2), NodeId(3)).is_err());
    }
}
