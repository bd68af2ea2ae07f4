//! O3. Log matching: two entries with the same LSN and term are the same, and so is all before them.
//!
//! Raft, figure 3 ("Log Matching"); `LogMatching` in its TLA+. An entry names the term before it,
//! and its digest covers that: so equality of all that precedes follows by induction. Failures
//! 26, 37.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, Term};

use super::{Verdict, broken, log::Mark};

/// Every entry that any replica ever had.
#[derive(Debug, Default)]
pub(crate) struct LogMatching {
    seen: BTreeMap<(GroupId, Lsn, Term), u64>,
}

impl LogMatching {
    /// A replica has an entry.
    pub(crate) fn has(&mut self, group: GroupId, lsn: Lsn, mark: Mark) -> Verdict {
        match self.seen.insert((group, lsn, mark.term), mark.digest) {
            Some(other) if other != mark.digest => {
                let what = format!("two entries of {group:?} at {lsn:?} in {:?}", mark.term);
                Err(broken(what).of(group).term(mark.term).at(lsn))
            }
            _ => Ok(()),
        }
    }

    /// What any replica had at an LSN in a term.
    pub(crate) fn at(&self, group: GroupId, lsn: Lsn, term: Term) -> Option<Mark> {
        let digest = *self.seen.get(&(group, lsn, term))?;
        Some(Mark { term, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::log::mark;

    #[test]
    fn fires_on_two_entries_in_one_place() {
        let mut oracle = LogMatching::default();
        assert!(oracle.has(GroupId(1), Lsn(5), mark(2, 77)).is_ok());
        assert!(oracle.has(GroupId(1), Lsn(5), mark(2, 77)).is_ok());
        assert!(oracle.has(GroupId(1), Lsn(5), mark(3, 78)).is_ok());
        assert!(oracle.has(GroupId(1), Lsn(5), mark(2, 78)).is_err());
    }
}
