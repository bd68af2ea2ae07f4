//! O16. What one node shows goes forward: while its process lives, a later read of it is of the same
//! prefix or a longer one, and of no shorter one than its log says that its state held when it started;
//! and it is never of less than a bookmark asks for. What was lost of a state is not shown half.
//!
//! semantics.md 5 ("a consistent prefix"), "Watermarks". Failures 9, 31, 50.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId};

use super::{Verdict, broken};

/// Which process of which node.
type Process = (NodeId, u64);

/// What each process has shown.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    shown: BTreeMap<(Process, GroupId), Lsn>,
}

impl Sessions {
    /// A process starts on a log that has these states checkpointed.
    pub(crate) fn starts(
        &mut self,
        process: Process,
        checkpointed: impl Iterator<Item = (GroupId, Lsn)>,
    ) {
        self.shown.extend(checkpointed.map(|(group, lsn)| ((process, group), lsn)));
    }

    /// What a process has shown when a read of it begins.
    pub(crate) fn floor(&self, process: Process, group: GroupId) -> Lsn {
        self.shown.get(&(process, group)).copied().unwrap_or_default()
    }

    /// A read that began above `floor` was answered at `applied`.
    pub(crate) fn shows(
        &mut self,
        process: Process,
        group: GroupId,
        floor: Lsn,
        applied: Lsn,
    ) -> Verdict {
        let shown = self.shown.entry((process, group)).or_default();
        *shown = applied.max(*shown);
        if applied < floor {
            let node = process.0;
            let what = format!("{node:?} shows {group:?} at {applied:?}, after {floor:?}");
            return Err(broken(what).on(node).of(group).lsns(applied, floor));
        }
        Ok(())
    }
}

/// A read with a bookmark was answered at `applied`.
pub(crate) fn bookmark_holds(bookmark: Lsn, group: GroupId, applied: Lsn) -> Verdict {
    if applied < bookmark {
        let what =
            format!("a read of {group:?} with bookmark {bookmark:?} was answered at {applied:?}");
        return Err(broken(what).of(group).lsns(applied, bookmark));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);
    const P: Process = (NodeId(1), 1);

    #[test]
    fn fires_on_a_step_back_within_a_process() {
        let mut oracle = Sessions::default();
        assert!(oracle.shows(P, G, Lsn(0), Lsn(7)).is_ok());
        let floor = oracle.floor(P, G);
        assert!(oracle.shows(P, G, Lsn(0), Lsn(6)).is_ok(), "it began earlier");
        assert!(oracle.shows(P, G, floor, Lsn(7)).is_ok());
        assert!(oracle.shows(P, G, floor, Lsn(6)).is_err());
        assert_eq!(oracle.floor((NodeId(1), 2), G), Lsn(0), "restarted");
    }

    #[test]
    fn fires_on_a_state_that_was_lost_in_part() {
        let mut oracle = Sessions::default();
        oracle.starts(P, [(G, Lsn(5))].into_iter());
        let floor = oracle.floor(P, G);
        assert!(oracle.shows(P, G, floor, Lsn(4)).is_err());
        assert!(oracle.shows(P, G, floor, Lsn(5)).is_ok());
    }

    #[test]
    fn fires_on_a_bookmark_that_was_not_waited_for() {
        assert!(bookmark_holds(Lsn(4), G, Lsn(4)).is_ok());
        assert!(bookmark_holds(Lsn(4), G, Lsn(3)).is_err());
    }
}
