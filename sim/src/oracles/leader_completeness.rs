//! O4. Leader completeness: what is committed in a term is in the log of every leader of a higher
//! term.
//!
//! Raft, figure 3; `LeaderCompleteness` in its TLA+. Failures 24, 32.

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken};

/// A node begins to lead a term with this log. `before`: what leaders of lower terms committed: the
/// term, how far, and the term of the entry there.
pub(crate) fn leads(
    group: GroupId,
    term: Term,
    before: impl Iterator<Item = (Term, Lsn, Term)>,
    term_at: impl Fn(Lsn) -> Option<Term>,
) -> Verdict {
    for (committed_in, lsn, entry_term) in before {
        let has = term_at(lsn);
        if lsn > Lsn(0) && has != Some(entry_term) {
            let what = format!(
                "the leader of {group:?} in {term:?} has {has:?} at {lsn:?}, where an entry of \
                 {entry_term:?} was committed in {committed_in:?}"
            );
            return Err(broken(what).of(group).term(term).at(lsn));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_leader_without_a_committed_entry() {
        let before = [(Term(2), Lsn(7), Term(2))];
        let leads = |has: Option<Term>| {
            leads(GroupId(3), Term(3), before.into_iter(), |lsn| has.filter(|_| lsn == Lsn(7)))
        };
        assert!(leads(Some(Term(2))).is_ok());
        assert!(leads(Some(Term(1))).is_err());
        assert!(leads(None).is_err());
    }
}
