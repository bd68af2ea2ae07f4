//! O33. What is pruned is held: a log begins only behind what its node's state holds durably, at an
//! entry that is committed; a snapshot is of a state that was applied somewhere; and what is said to be
//! pruned is.
//!
//! semantics.md 8, "Watermarks". Failures 10, 29, 30, 59.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{Base, Entry, GroupId, Kind, Lsn, NodeId, Position, Term};

use super::{Verdict, broken};

/// How far each node's present process knows its states to be durable.
#[derive(Debug, Default)]
pub(crate) struct Pruning {
    durable: BTreeMap<(NodeId, GroupId), Lsn>,
    /// The cuts that were ever proposed: the last LSN before each.
    cuts: BTreeSet<(GroupId, Lsn)>,
}

impl Pruning {
    /// A process starts.
    pub(crate) fn starts(&mut self, node: NodeId) {
        self.durable.retain(|(n, _), _| *n != node);
    }

    /// A process is told that a state is durable up to here.
    pub(crate) fn is_durable(&mut self, node: NodeId, group: GroupId, lsn: Lsn) {
        let durable = self.durable.entry((node, group)).or_default();
        *durable = lsn.max(*durable);
    }

    /// ... that it is gone.
    pub(crate) fn is_gone(&mut self, node: NodeId, group: GroupId) {
        self.durable.remove(&(node, group));
    }

    /// A node appends an entry.
    pub(crate) fn appends(&mut self, group: GroupId, entry: &Entry) {
        if entry.kind == Kind::Prune
            && let Some(base) = Base::decode(entry.payload.clone())
        {
            self.cuts.insert((group, base.position.lsn));
        }
    }

    /// Who wanted to read on after an LSN is told that the log begins at `first`.
    pub(crate) fn denies(&self, group: Option<GroupId>, after: Lsn, first: Lsn) -> Verdict {
        let (Some(group), base) = (group, first.prev()) else { return Ok(()) };
        if after >= base || !self.cuts.contains(&(group, base)) {
            let what = format!("what follows {after:?} of {group:?} is said to begin at {first:?}");
            return Err(broken(what).of(group).lsns(after, first));
        }
        Ok(())
    }

    /// A node writes that its log begins after this; `committed` is the term there of what is
    /// committed, as far as anybody knows.
    pub(crate) fn begins(
        &self,
        node: NodeId,
        group: GroupId,
        base: Position,
        committed: Option<Term>,
    ) -> Verdict {
        let durable = self.durable.get(&(node, group)).copied().unwrap_or_default();
        let wrong = if base.lsn > durable {
            format!("its state holds {durable:?} durably")
        } else if committed != Some(base.term) {
            format!("committed there is {committed:?}")
        } else {
            return Ok(());
        };
        let what = format!("{node:?} begins its log of {group:?} after {base:?}, and {wrong}");
        Err(broken(what).on(node).of(group).at(base.lsn))
    }
}

/// A state at `at` takes the place of a node's; `last` is the last LSN that was applied anywhere.
pub(crate) fn installs(node: NodeId, group: GroupId, at: Lsn, last: Lsn) -> Verdict {
    if at > last {
        let what =
            format!("{node:?} goes on in {group:?} from {at:?}; nobody came beyond {last:?}");
        return Err(broken(what).on(node).of(group).lsns(last, at));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use highwater_core::Hlc;

    use super::*;

    #[test]
    fn fires_on_what_is_not_held_and_on_what_is_not_committed() {
        let (node, group) = (NodeId(1), GroupId(2));
        let base = |lsn| Position { term: Term(3), lsn: Lsn(lsn) };
        let mut oracle = Pruning::default();
        assert!(oracle.begins(node, group, base(4), Some(Term(3))).is_err());
        oracle.is_durable(node, group, Lsn(5));
        oracle.is_durable(node, group, Lsn(4));
        assert!(oracle.begins(node, group, base(5), Some(Term(3))).is_ok());
        assert!(oracle.begins(node, group, base(6), Some(Term(3))).is_err());
        assert!(oracle.begins(node, group, base(5), Some(Term(2))).is_err());
        assert!(oracle.begins(node, group, base(5), None).is_err());
        oracle.is_gone(node, group);
        assert!(oracle.begins(node, group, base(5), Some(Term(3))).is_err());
        oracle.is_durable(node, group, Lsn(5));
        oracle.starts(node);
        assert!(oracle.begins(node, group, base(5), Some(Term(3))).is_err());
    }

    #[test]
    fn fires_on_a_cut_that_nobody_made() {
        let (group, mut oracle) = (GroupId(2), Pruning::default());
        let position = Position { term: Term(3), lsn: Lsn(4) };
        let entry = Entry {
            lsn: Lsn(9),
            term: Term(3),
            prev_term: Term(3),
            hlc: Hlc(0),
            origin: 0,
            kind: Kind::Prune,
            payload: Base { position, ..Base::default() }.encode(),
        };
        assert!(oracle.denies(Some(group), Lsn(3), Lsn(5)).is_err());
        oracle.appends(group, &entry);
        assert!(oracle.denies(Some(group), Lsn(3), Lsn(5)).is_ok());
        assert!(oracle.denies(Some(group), Lsn(4), Lsn(5)).is_err(), "what follows is there");
        assert!(oracle.denies(Some(group), Lsn(3), Lsn(6)).is_err());
        assert!(oracle.denies(None, Lsn(4), Lsn(5)).is_ok(), "the group is not known");
    }

    #[test]
    fn fires_on_a_state_that_nobody_had() {
        assert!(installs(NodeId(1), GroupId(2), Lsn(5), Lsn(5)).is_ok());
        assert!(installs(NodeId(1), GroupId(2), Lsn(6), Lsn(5)).is_err());
    }
}
