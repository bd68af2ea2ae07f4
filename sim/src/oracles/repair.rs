//! O22. What is put in the place of damage is what was there: an entry that is fetched from a peer or
//! mended is the very one that was written at its LSN in its term (who fetches compares the term with
//! its own log's; decisions/006).
//!
//! semantics.md 12. Failures 51, 52.

use highwater_core::{Entry, GroupId, Lsn, NodeId, Term};

use super::{Verdict, broken, log::Mark};

/// A node hands over these entries, or puts them in place; `due` tells what was written at an LSN in a term.
pub(crate) fn is_original(
    node: NodeId,
    group: GroupId,
    entries: &[Entry],
    due: impl Fn(Lsn, Term) -> Option<Mark>,
) -> Verdict {
    for entry in entries {
        if due(entry.lsn, entry.term) != Some(Mark::of(entry)) {
            let what = format!(
                "what {node:?} has for {:?} of {group:?} is not what was written",
                entry.lsn
            );
            return Err(broken(what).on(node).of(group).term(entry.term).at(entry.lsn));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Hlc, Kind};

    use super::*;

    #[test]
    fn fires_on_anything_else_than_what_was_written() {
        let entry = Entry {
            lsn: Lsn(4),
            term: Term(2),
            prev_term: Term(2),
            hlc: Hlc(9),
            origin: 0,
            kind: Kind::Op,
            payload: Bytes::from_static(b"x"),
        };
        let mark = Mark::of(&entry);
        let other = Mark { digest: mark.digest ^ 1, ..mark };
        let entries = [entry];
        let verdict = |due| is_original(NodeId(1), GroupId(2), &entries, |_, _| due);
        assert!(verdict(Some(mark)).is_ok());
        assert!(verdict(Some(other)).is_err());
        assert!(verdict(None).is_err(), "never written");
    }
}
