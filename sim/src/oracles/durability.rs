//! O19. Every ack survives: at the end of a run, a majority of the founding data directories holds
//! each acknowledged write durably, and every node that works has applied it.
//!
//! semantics.md 1. Failures 12, 17, 20, 32, 34, 53.

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken};

/// Every acknowledged write, as where and in which term it took effect, is in the log that was
/// applied, by `term_at`, and durable on a majority, by `holders`.
pub(crate) fn survives(
    acked: impl Iterator<Item = (GroupId, Lsn, Term)>,
    term_at: impl Fn(GroupId, Lsn) -> Option<Term>,
    holders: impl Fn(GroupId, Lsn, Term) -> usize,
    voters: usize,
) -> Verdict {
    for (group, lsn, term) in acked {
        let broken = |what: String| Err(broken(what).of(group).term(term).at(lsn));
        if term_at(group, lsn) != Some(term) {
            let what = format!("the acknowledged write at {lsn:?} of {group:?}, {term:?} is lost");
            return broken(what);
        }
        let holders = holders(group, lsn, term);
        if holders <= voters / 2 {
            return broken(format!(
                "the acknowledged write at {lsn:?} of {group:?} is durable on {holders} of {voters}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_lost_ack_and_on_a_minority() {
        let acked = [(GroupId(2), Lsn(5), Term(2))];
        let verdict =
            |term, holders| survives(acked.into_iter(), |_, _| term, |_, _, _| holders, 3);
        assert!(verdict(Some(Term(2)), 2).is_ok());
        assert!(verdict(Some(Term(3)), 3).is_err());
        assert!(verdict(None, 3).is_err());
        assert!(verdict(Some(Term(2)), 1).is_err());
    }
}
