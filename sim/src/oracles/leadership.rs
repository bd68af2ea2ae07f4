//! O12. All replicas that know a term's leader know the same one, and it is the one that leads. It
//! hands its office only to who holds everything that it has.
//!
//! Raft §5.1, §3.10 of the thesis; semantics.md, "Glossary" (epoch). Failures 25, 33.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId, Term};

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

/// A leader whose log ends at `last` tells its successor to campaign, who has this of the last
/// entry's term durably or had it once.
pub(crate) fn hands_over(
    to: NodeId,
    group: GroupId,
    (last, term): (Lsn, Term),
    holds: bool,
) -> Verdict {
    if holds {
        return Ok(());
    }
    let what = format!("{to:?} is told to campaign in {group:?} without {last:?} of {term:?}");
    Err(broken(what).on(to).of(group).at(last).term(term))
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

    #[test]
    fn fires_on_a_successor_that_lacks_something() {
        let last = (Lsn(4), Term(2));
        assert!(hands_over(NodeId(1), GroupId(2), last, true).is_ok());
        assert!(hands_over(NodeId(1), GroupId(2), last, false).is_err());
    }
}
