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
    /// What comes before the first entry.
    base: Position,
    entries: Vec<Mark>,
    terms: Vec<(Lsn, Term)>,
}

impl ReplicaLog {
    pub(crate) fn last(&self) -> Position {
        let term = self.entries.last().map_or(self.base.term, |mark| mark.term);
        Position { term, lsn: Lsn(self.base.lsn.0 + self.entries.len() as u64) }
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    fn index(&self, lsn: Lsn) -> Option<usize> {
        lsn.0.checked_sub(self.base.lsn.0 + 1).map(|at| at as usize)
    }

    pub(crate) fn at(&self, lsn: Lsn) -> Option<Mark> {
        self.entries.get(self.index(lsn)?).copied()
    }

    pub(crate) fn term_at(&self, lsn: Lsn) -> Option<Term> {
        if lsn == self.base.lsn { Some(self.base.term) } else { self.at(lsn).map(|mark| mark.term) }
    }

    /// Whether an entry is in the log, or came before it.
    pub(crate) fn has(&self, lsn: Lsn, term: Term) -> bool {
        lsn < self.base.lsn || self.term_at(lsn) == Some(term)
    }

    /// The log begins after this: with what it has there, or with nothing.
    pub(crate) fn begin_after(&mut self, base: Position) -> Verdict {
        if base.lsn <= self.base.lsn {
            return Err(broken(format!("it begins after {base:?}, and did after {:?}", self.base)));
        }
        let keeps = self.term_at(base.lsn) == Some(base.term);
        let gone = self.index(base.lsn).filter(|_| keeps).map_or(self.entries.len(), |at| at + 1);
        self.entries.drain(..gone);
        self.base = base;
        self.terms.clear();
        for (mark, lsn) in self.entries.iter().zip(base.lsn.0 + 1..) {
            if self.terms.last().is_none_or(|(_, term)| *term != mark.term) {
                self.terms.push((Lsn(lsn), mark.term));
            }
        }
        Ok(())
    }

    /// Appends; at or below the end, what was there and all that follow go.
    pub(crate) fn append(&mut self, lsn: Lsn, mark: Mark) -> Verdict {
        let Some(at) = self.index(lsn).filter(|at| *at <= self.entries.len()) else {
            return Err(
                broken(format!("{lsn:?} is appended after {:?}: a hole", self.last())).at(lsn)
            );
        };
        self.entries.truncate(at);
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
    fn a_log_begins_with_what_it_has_behind_its_base() {
        let mut log = ReplicaLog::default();
        for (lsn, term) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            log.append(Lsn(lsn), mark(term, lsn)).unwrap();
        }
        let base = |lsn, term| Position { term: Term(term), lsn: Lsn(lsn) };
        log.begin_after(base(2, 1)).unwrap();
        assert_eq!((log.last(), log.terms()), (base(4, 2), &[(Lsn(3), Term(2))][..]));
        assert_eq!((log.term_at(Lsn(2)), log.term_at(Lsn(1))), (Some(Term(1)), None));
        assert!(log.begin_after(base(2, 1)).is_err() && log.append(Lsn(2), mark(2, 0)).is_err());
        // A snapshot of something else.
        log.begin_after(base(4, 3)).unwrap();
        assert_eq!((log.last(), log.terms()), (base(4, 3), &[][..]));
        log.append(Lsn(5), mark(3, 5)).unwrap();
    }

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
