//! O23. A group leaves service, its state is rebuilt, entries are fetched anew and a node is fenced
//! only where harm was done that calls for it.
//!
//! semantics.md 12. Failures 28, 51, 52, 56.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::NodeId;

use super::{Verdict, broken};

/// What the harness does to a node beyond what any node must bear without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    /// Its data directory is an older copy of itself.
    RolledBack,
    /// Its data directory is blank: its clock may be behind the one under which peers met another.
    Wiped,
    /// Synced bytes of its oplog are damaged.
    LogDamaged,
    /// Bytes of a database's state are damaged.
    StateDamaged,
}

/// What a node does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// It says that it must get a new incarnation.
    Fences,
    /// A group leaves service.
    Quarantines,
    /// A database's state is rebuilt.
    Rebuilds,
    /// Entries are fetched from peers.
    Mends,
}

/// What was done to each node.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    harms: BTreeSet<(NodeId, Harm)>,
    /// Processes that their disk has failed: calls to it ended in errors.
    failed: BTreeMap<NodeId, u64>,
}

impl Quarantine {
    /// Harm is done to a node.
    pub(crate) fn harmed(&mut self, node: NodeId, harm: Harm) {
        self.harms.insert((node, harm));
    }

    /// A process's disk has failed it.
    pub(crate) fn failed(&mut self, (node, process): (NodeId, u64)) {
        self.failed.insert(node, process);
    }

    /// Whether this was done to a node.
    pub(crate) fn was(&self, node: NodeId, harm: Harm) -> bool {
        self.harms.contains(&(node, harm))
    }

    /// Whether a process has cause for a reaction.
    pub(crate) fn is_due(&self, (node, process): (NodeId, u64), reaction: Reaction) -> bool {
        let failed = self.failed.get(&node) == Some(&process);
        let (log, state) = (self.was(node, Harm::LogDamaged), self.was(node, Harm::StateDamaged));
        match reaction {
            Reaction::Fences => {
                log || self.was(node, Harm::RolledBack) || self.was(node, Harm::Wiped)
            }
            Reaction::Quarantines => failed,
            Reaction::Rebuilds => state || failed,
            Reaction::Mends => log || failed,
        }
    }

    /// A process reacts.
    pub(crate) fn reacts(
        &self,
        process: (NodeId, u64),
        reaction: Reaction,
        reason: &str,
    ) -> Verdict {
        if self.is_due(process, reaction) {
            return Ok(());
        }
        let what = format!("{:?} {reaction:?} without cause: {reason}", process.0);
        Err(broken(what).on(process.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: (NodeId, u64) = (NodeId(1), 4);

    #[test]
    fn fires_on_whatever_has_no_cause() {
        let mut oracle = Quarantine::default();
        let all = [Reaction::Fences, Reaction::Quarantines, Reaction::Rebuilds, Reaction::Mends];
        let due = |oracle: &Quarantine| all.map(|reaction| oracle.reacts(P, reaction, "").is_ok());
        assert_eq!(due(&oracle), [false, false, false, false]);
        oracle.harmed(P.0, Harm::StateDamaged);
        assert_eq!(due(&oracle), [false, false, true, false]);
        oracle.harmed(P.0, Harm::LogDamaged);
        assert_eq!(due(&oracle), [true, false, true, true]);
        let mut oracle = Quarantine::default();
        oracle.failed((P.0, P.1 - 1));
        assert_eq!(due(&oracle), [false; 4], "that was an earlier process");
        oracle.failed(P);
        assert_eq!(due(&oracle), [false, true, true, true]);
    }
}
