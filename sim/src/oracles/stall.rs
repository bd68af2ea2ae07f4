//! O25. No stall: while nothing is wrong, what is appended is committed and what is committed is
//! applied, within a bound, on every replica that works.
//!
//! semantics.md 9, 10; simulation.md, "no stall". Failures 18, 30, 33, 41, 42, 57.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId, Term};

use super::{Verdict, broken, watermarks::Marks};

/// So long may a replica with something to do stand still.
const BOUND_NS: u64 = 8_000_000_000;

/// Where a replica stands still, and since when.
#[derive(Debug)]
struct Still {
    term: Term,
    committed: Lsn,
    applied: Lsn,
    since_ns: u64,
}

/// Replicas with something to do.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// Since when nothing is wrong.
    calm_ns: Option<u64>,
    still: BTreeMap<(NodeId, GroupId), Still>,
}

impl Stall {
    /// From now on nothing is wrong any more; or something is again.
    pub(crate) fn calm(&mut self, calm: bool, now_ns: u64) {
        self.calm_ns = calm.then_some(now_ns);
        self.still.clear();
    }

    /// A node has ended.
    pub(crate) fn ends(&mut self, node: NodeId) {
        self.still.retain(|(n, _), _| *n != node);
    }

    /// A replica stands here.
    pub(crate) fn stands(
        &mut self,
        (node, group): (NodeId, GroupId),
        (term, leads): (Term, bool),
        marks: &Marks,
        now_ns: u64,
    ) -> Verdict {
        if self.calm_ns.is_none() {
            return Ok(());
        }
        let to_do = leads && marks.appended > marks.committed || marks.committed > marks.applied;
        if !to_do {
            self.still.remove(&(node, group));
            return Ok(());
        }
        let (committed, applied) = (marks.committed, marks.applied);
        let now = Still { term, committed, applied, since_ns: now_ns };
        let still = self.still.entry((node, group)).or_insert(now);
        if (still.term, still.committed, still.applied) != (term, committed, applied) {
            *still = Still { term, committed, applied, since_ns: now_ns };
        }
        if now_ns - still.since_ns > BOUND_NS {
            let what = format!(
                "{node:?} has stood still in {group:?} for {} s, with nothing wrong: {marks:?}",
                BOUND_NS / 1_000_000_000
            );
            let to_do = broken(what).on(node).of(group).term(term);
            return Err(to_do.lsns(applied.next(), marks.appended));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: (NodeId, GroupId) = (NodeId(1), GroupId(2));
    const LEADS: (Term, bool) = (Term(3), true);

    fn marks(appended: u64, committed: u64, applied: u64) -> Marks {
        let (appended, committed, applied) = (Lsn(appended), Lsn(committed), Lsn(applied));
        let (checkpointed, pruned) = (Lsn(0), Lsn(0));
        Marks { appended, durable: appended, committed, applied, checkpointed, pruned }
    }

    #[test]
    fn fires_on_a_leader_that_commits_nothing_and_a_replica_that_applies_nothing() {
        for stuck in [marks(5, 4, 4), marks(5, 5, 4)] {
            let mut oracle = Stall::default();
            assert!(oracle.stands(AT, LEADS, &stuck, 0).is_ok());
            assert!(oracle.stands(AT, LEADS, &stuck, 2 * BOUND_NS).is_ok(), "faults go on");
            oracle.calm(true, 0);
            assert!(oracle.stands(AT, LEADS, &stuck, 0).is_ok());
            assert!(oracle.stands(AT, LEADS, &stuck, BOUND_NS + 1).is_err());
        }
    }

    #[test]
    fn whoever_moves_or_has_nothing_to_do_is_fine() {
        let mut oracle = Stall::default();
        oracle.calm(true, 0);
        for n in 0..9 {
            assert!(oracle.stands(AT, LEADS, &marks(n + 5, n + 4, n), n * BOUND_NS).is_ok());
        }
        let (done, follower) = (marks(5, 5, 5), (Term(3), false));
        assert!(oracle.stands(AT, LEADS, &done, 20 * BOUND_NS).is_ok());
        for n in 21..23 {
            assert!(oracle.stands(AT, follower, &marks(9, 5, 5), n * BOUND_NS).is_ok());
        }
    }
}
