//! O5. The commit rule: a leader commits an entry of its own term once a majority of the members'
//! data directories has it durably, and with it all that precede it.
//!
//! Raft §5.4.2, figure 8; semantics.md, "Watermarks". Failures 14, 16, 17.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken};

/// The highest commit of each leader.
#[derive(Debug, Default)]
pub(crate) struct CommitRule {
    /// By the leader's term: how far it committed, and the term of the entry there.
    commits: BTreeMap<(GroupId, Term), (Lsn, Term)>,
}

impl CommitRule {
    /// A leader commits up to `lsn`, where its log has an entry of `entry_term`. `holders` of
    /// `voters` have that entry durably.
    pub(crate) fn commits(
        &mut self,
        (group, leader_term): (GroupId, Term),
        (lsn, entry_term): (Lsn, Term),
        holders: usize,
        voters: usize,
    ) -> Verdict {
        let at = self.commits.entry((group, leader_term)).or_default();
        if lsn <= at.0 {
            return Ok(());
        }
        *at = (lsn, entry_term);
        if entry_term != leader_term {
            let what = format!(
                "the leader of {group:?} in {leader_term:?} commits {lsn:?} of {entry_term:?}"
            );
            return Err(broken(what).of(group).term(leader_term).at(lsn));
        }
        if holders <= voters / 2 {
            let what = format!(
                "the leader of {group:?} in {leader_term:?} commits {lsn:?}, which {holders} of \
                 {voters} have durably"
            );
            return Err(broken(what).of(group).term(leader_term).at(lsn));
        }
        Ok(())
    }

    /// What leaders of lower terms committed: the term, how far, and the term of the entry there.
    pub(crate) fn before(
        &self,
        group: GroupId,
        term: Term,
    ) -> impl Iterator<Item = (Term, Lsn, Term)> {
        let before = self.commits.range((group, Term(0))..(group, term));
        before.map(|((_, in_term), (lsn, entry_term))| (*in_term, *lsn, *entry_term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(3);

    #[test]
    fn fires_on_an_old_term_and_on_a_minority() {
        let mut oracle = CommitRule::default();
        assert!(oracle.commits((G, Term(3)), (Lsn(4), Term(2)), 3, 3).is_err());
        assert!(oracle.commits((G, Term(4)), (Lsn(5), Term(4)), 2, 5).is_err());
        assert!(oracle.commits((G, Term(5)), (Lsn(6), Term(5)), 3, 5).is_ok());
        assert!(oracle.commits((G, Term(5)), (Lsn(6), Term(5)), 0, 5).is_ok(), "told before");
    }

    #[test]
    fn tells_what_was_committed_before() {
        let mut oracle = CommitRule::default();
        oracle.commits((G, Term(2)), (Lsn(7), Term(2)), 2, 3).unwrap();
        let before = |term| oracle.before(G, Term(term)).collect::<Vec<_>>();
        assert_eq!(before(3), [(Term(2), Lsn(7), Term(2))]);
        assert_eq!(before(2), []);
    }
}
