//! O11. The order of watermarks on one replica, and that those never fall within a run which must not.
//!
//! semantics.md, "Watermarks". Failures 1, 9, 10, 12, 38.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId};

use super::{Broken, Verdict, broken};

/// One replica's watermarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) pruned: Lsn,
    pub(crate) appended: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) committed: Lsn,
    pub(crate) applied: Lsn,
    pub(crate) checkpointed: Lsn,
}

/// The watermarks of every replica, as last seen.
#[derive(Debug, Default)]
pub(crate) struct WatermarkOrder {
    seen: BTreeMap<(NodeId, GroupId), (u64, Marks)>,
}

impl WatermarkOrder {
    /// A process's replica stands here. The marks that it had before, in this run of it.
    pub(crate) fn stands(
        &mut self,
        (node, process): (NodeId, u64),
        group: GroupId,
        now: Marks,
    ) -> Result<Marks, Broken> {
        let ordered = now.pruned <= now.committed.min(now.durable)
            && now.checkpointed <= now.applied
            && now.applied <= now.committed.min(now.durable)
            && now.committed <= now.appended
            && now.durable <= now.appended;
        if !ordered {
            let what = format!("{node:?}, {group:?}: out of order: {now:?}");
            return Err(broken(what).on(node).of(group));
        }
        match self.seen.insert((node, group), (process, now)) {
            Some((p, old)) if p == process => old.falls(now).map_or(Ok(old), |which| {
                let what = format!("{node:?}, {group:?}: {which} fell from {old:?} to {now:?}");
                Err(broken(what).on(node).of(group))
            }),
            _ => Ok(Marks::default()),
        }
    }
}

impl WatermarkOrder {
    /// A node's state of a group is lost: what is applied and checkpointed there begins anew.
    pub(crate) fn loses_state(&mut self, node: NodeId, group: GroupId) {
        if let Some((_, marks)) = self.seen.get_mut(&(node, group)) {
            (marks.applied, marks.checkpointed) = (Lsn(0), Lsn(0));
        }
    }
}

impl Marks {
    fn falls(&self, now: Marks) -> Option<&'static str> {
        if now.pruned < self.pruned {
            Some("pruned")
        } else if now.committed < self.committed {
            Some("committed")
        } else if now.applied < self.applied {
            Some("applied")
        } else if now.checkpointed < self.checkpointed {
            Some("checkpointed")
        } else {
            None
        }
    }
}

/// A read or an ack names what a node has applied: somebody must have applied that much.
pub(crate) fn is_known(applied: Lsn, last: Lsn) -> Verdict {
    if applied > last {
        let what = format!("an answer names {applied:?}, but nobody applied more than {last:?}");
        return Err(broken(what).lsns(last, applied));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(m: [u64; 6]) -> Marks {
        let [appended, durable, committed, applied, checkpointed, pruned] = m.map(Lsn);
        Marks { pruned, appended, durable, committed, applied, checkpointed }
    }

    #[test]
    fn fires_on_each_broken_order() {
        let stands = |m| WatermarkOrder::default().stands((NodeId(1), 1), GroupId(0), marks(m));
        assert!(stands([5, 4, 5, 4, 2, 4]).is_ok());
        for broken in [
            [5, 6, 3, 3, 1, 0],
            [5, 4, 6, 4, 1, 0],
            [5, 4, 3, 4, 1, 0],
            [5, 3, 4, 4, 1, 0],
            [5, 5, 5, 2, 3, 0],
            [5, 5, 3, 3, 3, 4],
            [5, 3, 5, 3, 3, 4],
        ] {
            assert!(stands(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn fires_on_a_fall_within_a_run_only() {
        let start = marks([9, 9, 8, 7, 6, 5]);
        for fallen in
            [[9, 9, 7, 7, 6, 5], [9, 9, 8, 6, 6, 5], [9, 9, 8, 7, 5, 5], [9, 9, 8, 7, 6, 4]]
        {
            let mut oracle = WatermarkOrder::default();
            oracle.stands((NodeId(1), 1), GroupId(0), start).unwrap();
            assert!(oracle.stands((NodeId(1), 1), GroupId(0), marks(fallen)).is_err());
            let mut oracle = WatermarkOrder::default();
            oracle.stands((NodeId(1), 1), GroupId(0), start).unwrap();
            assert!(oracle.stands((NodeId(1), 2), GroupId(0), marks(fallen)).is_ok(), "restarted");
        }
        let mut oracle = WatermarkOrder::default();
        oracle.stands((NodeId(1), 1), GroupId(0), start).unwrap();
        let truncated = marks([8, 8, 8, 7, 6, 5]);
        assert_eq!(oracle.stands((NodeId(1), 1), GroupId(0), truncated), Ok(start));
    }

    #[test]
    fn fires_on_an_answer_from_the_future() {
        assert!(is_known(Lsn(3), Lsn(3)).is_ok());
        assert!(is_known(Lsn(4), Lsn(3)).is_err());
    }
}
