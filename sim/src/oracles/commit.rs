//! Leader completeness, and the commit rule that brings it about.
//!
//! - Leader completeness: what is committed in a term is in the log of every leader of a higher
//!   term. Raft, figure 3; `LeaderCompleteness` in its TLA+. Failures 24, 32.
//! - Commit rule: a leader commits an entry of its own term once a majority of voters has it
//!   durably, and with it all that precede it. Raft §5.4.2, figure 8; semantics.md, "Watermarks".
//!   Failures 14, 16, 17.
//! - What one replica knows to be committed, no other knows to be something else. `StateMachineSafety`
//!   in Raft's TLA+, before anything is applied. Failure 26.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken};

/// The highest commit of each leader.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    /// By the leader's term: how far it committed, and the term of the entry there.
    commits: BTreeMap<(GroupId, Term), (Lsn, Term)>,
}

impl Commits {
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

    /// A node begins to lead a term with this log.
    pub(crate) fn leads(
        &self,
        group: GroupId,
        term: Term,
        term_at: impl Fn(Lsn) -> Option<Term>,
    ) -> Verdict {
        let before = self.commits.range((group, Term(0))..(group, term));
        for ((_, committed_in), (lsn, entry_term)) in before {
            let has = term_at(*lsn);
            if *lsn > Lsn(0) && has != Some(*entry_term) {
                let what = format!(
                    "the leader of {group:?} in {term:?} has {has:?} at {lsn:?}, where an entry \
                     of {entry_term:?} was committed in {committed_in:?}"
                );
                return Err(broken(what).of(group).term(term).at(*lsn));
            }
        }
        Ok(())
    }
}

/// The committed log of each group, as far as any replica knows it.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    terms: BTreeMap<GroupId, Vec<Term>>,
}

impl Committed {
    /// A replica with this log knows that it is committed up to `upto`.
    pub(crate) fn knows(
        &mut self,
        group: GroupId,
        upto: Lsn,
        term_at: impl Fn(Lsn) -> Option<Term>,
    ) -> Verdict {
        let terms = self.terms.entry(group).or_default();
        if let Some(known) = (upto.0 as usize).checked_sub(1).and_then(|at| terms.get(at)) {
            let here = term_at(upto);
            if here != Some(*known) {
                let what = format!(
                    "{upto:?} of {group:?} is committed in {known:?}, and here in {here:?}"
                );
                return Err(broken(what).of(group).term(*known).at(upto));
            }
        }
        for lsn in terms.len() as u64 + 1..=upto.0 {
            let Some(term) = term_at(Lsn(lsn)) else {
                let what = format!("{group:?} is committed up to {upto:?}, beyond the log's end");
                return Err(broken(what).of(group).lsns(Lsn(lsn), upto));
            };
            terms.push(term);
        }
        Ok(())
    }

    /// Whether an entry can't be committed any more: another one is at its LSN, or one of a later
    /// term before it, after which terms do not fall.
    pub(crate) fn is_dead(&self, group: GroupId, lsn: Lsn, term: Term) -> bool {
        match self.term_at(group, lsn) {
            Some(committed) => committed != term,
            None => self.terms.get(&group).and_then(|t| t.last()).is_some_and(|last| *last > term),
        }
    }

    /// The term of a committed entry.
    pub(crate) fn term_at(&self, group: GroupId, lsn: Lsn) -> Option<Term> {
        self.terms.get(&group)?.get((lsn.0 as usize).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(3);

    #[test]
    fn fires_on_a_leader_without_a_committed_entry() {
        let mut oracle = Commits::default();
        oracle.commits((G, Term(2)), (Lsn(7), Term(2)), 2, 3).unwrap();
        assert!(oracle.leads(G, Term(3), |_| Some(Term(2))).is_ok());
        assert!(oracle.leads(G, Term(3), |_| Some(Term(1))).is_err());
        assert!(oracle.leads(G, Term(3), |_| None).is_err());
        assert!(oracle.leads(G, Term(1), |_| None).is_ok(), "an older term need not have it");
    }

    #[test]
    fn fires_on_an_old_term_and_on_a_minority() {
        let mut oracle = Commits::default();
        assert!(oracle.commits((G, Term(3)), (Lsn(4), Term(2)), 3, 3).is_err());
        assert!(oracle.commits((G, Term(4)), (Lsn(5), Term(4)), 2, 5).is_err());
        assert!(oracle.commits((G, Term(5)), (Lsn(6), Term(5)), 3, 5).is_ok());
        assert!(oracle.commits((G, Term(5)), (Lsn(6), Term(5)), 0, 5).is_ok(), "told before");
    }

    #[test]
    fn fires_on_replicas_that_disagree_on_what_is_committed() {
        let mut oracle = Committed::default();
        assert!(oracle.knows(G, Lsn(3), |_| Some(Term(2))).is_ok());
        assert!(oracle.knows(G, Lsn(2), |_| Some(Term(2))).is_ok());
        assert_eq!(oracle.term_at(G, Lsn(3)), Some(Term(2)));
        assert_eq!(oracle.term_at(G, Lsn(4)), None);
        assert!(oracle.knows(G, Lsn(2), |_| Some(Term(1))).is_err());
        assert!(oracle.knows(G, Lsn(9), |_| None).is_err());
    }
}
