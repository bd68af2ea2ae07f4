//! O29. A change stream shows the effective ops, all of them, in order, each naming the one before it,
//! and nothing that is not applied.
//!
//! semantics.md 7. Failures 1, 2, 3, 4, 5, 6, 7, 8, 11.

use highwater_core::{GroupId, Lsn};
use highwater_node::Change;
use highwater_wire::op::Op;

use super::{Verdict, broken};

/// A part of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Streamed {
    pub(crate) group: GroupId,
    /// It was asked for what is after this.
    pub(crate) after: Lsn,
    /// It says that there is nothing else up to here.
    pub(crate) upto: Lsn,
    pub(crate) changes: Vec<Change>,
}

/// The effective ops of a database, in order.
#[derive(Debug, Default)]
pub(crate) struct History(Vec<(Lsn, Op)>);

impl History {
    /// An op took effect, after all the others.
    pub(crate) fn took_effect(&mut self, lsn: Lsn, op: &Op) {
        self.0.push((lsn, op.clone()));
    }

    /// Whether a part of a stream shows what it should.
    pub(crate) fn shows(&self, streamed: &Streamed) -> Verdict {
        let Streamed { group, after, upto, changes } = streamed;
        let from = self.0.partition_point(|(lsn, _)| lsn <= after);
        let to = self.0.partition_point(|(lsn, _)| lsn <= upto);
        let mut before = from.checked_sub(1).map_or(Lsn(0), |n| self.0[n].0);
        let mut due = self.0[from..to.max(from)].iter();
        for change in changes {
            let due = due.next();
            let same = due.is_some_and(|(lsn, op)| {
                (*lsn, op, before) == (change.lsn, &change.op, change.prev_lsn)
            });
            if !same {
                let what = format!(
                    "a stream of {group:?} after {after:?} shows {:?} after {:?}; due is {:?} after \
                     {before:?}",
                    change.lsn,
                    change.prev_lsn,
                    due.map(|(lsn, _)| *lsn)
                );
                return Err(broken(what).of(*group).at(change.lsn));
            }
            before = change.lsn;
        }
        match due.next() {
            None => Ok(()),
            Some((lsn, _)) => {
                let what = format!("a stream of {group:?} goes on at {upto:?} without {lsn:?}");
                Err(broken(what).of(*group).at(*lsn))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Hlc, Term};
    use highwater_wire::op::{Action, Condition, Write};

    use super::*;

    fn op(value: &'static str) -> Op {
        let action = Action::Put { value: Bytes::from(value), content_type: Bytes::new() };
        let key = Bytes::from_static(b"k");
        Op { writes: vec![Write { key, action, condition: Condition::default() }] }
    }

    fn change(lsn: u64, prev: u64, value: &'static str) -> Change {
        Change {
            lsn: Lsn(lsn),
            prev_lsn: Lsn(prev),
            term: Term(1),
            hlc: Hlc(1),
            origin: 0,
            op: op(value),
        }
    }

    #[test]
    fn fires_on_whatever_is_not_the_history() {
        let mut history = History::default();
        for (lsn, value) in [(2, "a"), (5, "b"), (6, "c")] {
            history.took_effect(Lsn(lsn), &op(value));
        }
        let shows = |after, upto, changes: &[Change]| {
            let (after, upto) = (Lsn(after), Lsn(upto));
            let streamed = Streamed { group: GroupId(2), after, upto, changes: changes.to_vec() };
            history.shows(&streamed).is_ok()
        };
        assert!(shows(0, 6, &[change(2, 0, "a"), change(5, 2, "b"), change(6, 5, "c")]));
        assert!(shows(3, 5, &[change(5, 2, "b")]) && shows(6, 9, &[]) && shows(2, 4, &[]));
        assert!(!shows(0, 6, &[change(2, 0, "a"), change(6, 2, "c")]), "skips one");
        assert!(!shows(0, 5, &[change(2, 0, "a")]), "misses the last one");
        assert!(!shows(3, 5, &[change(5, 0, "b")]), "names another before it");
        assert!(!shows(3, 5, &[change(5, 2, "x")]), "shows another op");
        assert!(!shows(6, 7, &[change(7, 6, "d")]), "shows what is not applied");
        assert!(!shows(0, 5, &[change(2, 0, "a"), change(2, 0, "a"), change(5, 2, "b")]));
    }
}
