//! O6. What one replica knows to be committed, no other knows to be something else.
//!
//! Raft, figure 3 ("State Machine Safety"); `StateMachineSafety` in its TLA+, before anything is
//! applied; semantics.md, "Watermarks". Failure 26.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken};

/// The committed log of each group, as far as any replica knows it.
#[derive(Debug, Default)]
pub(crate) struct CommittedLog {
    terms: BTreeMap<GroupId, Vec<Term>>,
}

impl CommittedLog {
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
    fn fires_on_replicas_that_disagree_on_what_is_committed() {
        let mut oracle = CommittedLog::default();
        assert!(oracle.knows(G, Lsn(3), |_| Some(Term(2))).is_ok());
        assert!(oracle.knows(G, Lsn(2), |_| Some(Term(2))).is_ok());
        assert_eq!(oracle.term_at(G, Lsn(3)), Some(Term(2)));
        assert_eq!(oracle.term_at(G, Lsn(4)), None);
        assert!(oracle.knows(G, Lsn(2), |_| Some(Term(1))).is_err());
        assert!(oracle.knows(G, Lsn(9), |_| None).is_err());
    }
}
