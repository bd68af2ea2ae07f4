//! What the oracles keep of a replica's log: each entry's term and a digest of all it says.

use highwater_core::{Entry, Lsn, Position, Term};

use super::{Verdict, broken};
use crate::{rng::spread, trace::shared_digest};

/// An entry, as far as an oracle needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) term: Term,
    /// Of everything that the entry says.
    pub(crate) digest: u64,
}

impl Mark {
    pub(crate) fn of(entry: &Entry) -> Mark {
        let mut h = shared_digest(&entry.payload);
        for x in [entry.lsn.0, entry.prev_term.0, entry.hlc.0, entry.origin, entry.kind as u64] {
            h = spread(h ^ x);
        }
        Mark { term: entry.term, digest: h }
    }
}

/// One group's log on one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaLog {
    entries: Vec<Mark>,
    terms: Vec<(Lsn, Term)>,
}

impl ReplicaLog {
    pub(crate) fn last(&self) -> Position {
        let term = self.entries.last().map_or(Term(0), |mark| mark.term);
        Position { term, lsn: Lsn(self.entries.len() as u64) }
    }

    pub(crate) fn at(&self, lsn: Lsn) -> Option<Mark> {
        self.entries.get((lsn.0 as usize).checked_sub(1)?).copied()
    }

    pub(crate) fn term_at(&self, lsn: Lsn) -> Option<Term> {
        self.at(lsn).map(|mark| mark.term)
    }

    /// Appends; at or below the end, what was there and all that follow go.
    pub(crate) fn append(&mut self, lsn: Lsn, mark: Mark) -> Verdict {
        let at = lsn.0 as usize;
        if at == 0 || at > self.entries.len() + 1 {
            return Err(
                broken(format!("{lsn:?} is appended after {:?}: a hole", self.last())).at(lsn)
            );
        }
        self.entries.truncate(at - 1);
        self.entries.push(mark);
        while self.terms.last().is_some_and(|(first, _)| *first >= lsn) {
            self.terms.pop();
        }
        if self.terms.last().is_none_or(|(_, term)| *term != mark.term) {
            self.terms.push((lsn, mark.term));
        }
        Ok(())
    }

    /// Where each term starts.
    pub(crate) fn terms(&self) -> &[(Lsn, Term)] {
        &self.terms
    }
}

#[cfg(test)]
pub(crate) fn mark(term: u64, digest: u64) -> Mark {
    Mark { term: Term(term), digest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_in_the_middle_truncates() {
        let mut log = ReplicaLog::default();
        for (lsn, term) in [(1, 1), (2, 1), (3, 2), (2, 3)] {
            log.append(Lsn(lsn), mark(term, lsn)).unwrap();
        }
        assert_eq!(log.last(), Position { term: Term(3), lsn: Lsn(2) });
        assert_eq!(log.terms(), [(Lsn(1), Term(1)), (Lsn(2), Term(3))]);
        assert!(log.append(Lsn(4), mark(3, 0)).is_err());
    }
}
