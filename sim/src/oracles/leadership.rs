//! O12. All replicas that know a term's leader know the same one, and it is the one that leads.
//!
//! Raft §5.1; semantics.md, "Glossary" (epoch). Failures 25, 33.

use std::collections::BTreeMap;

use highwater_core::{GroupId, NodeId, Term};

use super::{Verdict, broken};

/// Who follows whom.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    known: BTreeMap<(GroupId, Term), NodeId>,
}

impl Leadership {
    /// A replica follows a leader in a term, or is that leader.
    pub(crate) fn follows(
        &mut self,
        node: NodeId,
        (group, term): (GroupId, Term),
        leader: NodeId,
    ) -> Verdict {
        let known = *self.known.entry((group, term)).or_insert(leader);
        if known != leader {
            let what = format!(
                "{node:?} follows {leader:?} in {group:?}, {term:?}; others follow {known:?}"
            );
            return Err(broken(what).on(node).on(leader).on(known).of(group).term(term));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_two_views_of_a_term() {
        let mut oracle = Leadership::default();
        let at = |term| (GroupId(2), Term(term));
        assert!(oracle.follows(NodeId(1), at(2), NodeId(2)).is_ok());
        assert!(oracle.follows(NodeId(2), at(2), NodeId(2)).is_ok());
        assert!(oracle.follows(NodeId(3), at(3), NodeId(1)).is_ok());
        assert!(oracle.follows(NodeId(3), at(2), NodeId(1)).is_err());
    }
}
