//! O7. State-machine safety: every replica applies the same entry at an LSN, each once and in order
//! within a run, and with the same outcome, also when it applies it again after a restart.
//!
//! Raft, figure 3 ("State Machine Safety"); semantics.md 3. Failures 1, 10, 18, 37, 40, 53.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId, Outcome};

use super::{Broken, Verdict, broken, log::Mark};

#[derive(Debug)]
struct Applied {
    mark: Mark,
    outcome: Option<Outcome>,
}

/// What was applied, on any replica.
#[derive(Debug, Default)]
pub(crate) struct StateMachine {
    groups: BTreeMap<GroupId, Vec<Applied>>,
    /// What each node's present process began with.
    begun: BTreeMap<(NodeId, GroupId), Lsn>,
    /// The last LSN that each process applied.
    at: BTreeMap<(NodeId, GroupId), (u64, Lsn)>,
}

impl StateMachine {
    /// A process applies an entry; `outcome` where the state machine gave one. Tells whether no
    /// replica had applied it before.
    pub(crate) fn applies(
        &mut self,
        (node, process): (NodeId, u64),
        group: GroupId,
        (lsn, mark): (Lsn, Mark),
        outcome: Option<&Outcome>,
    ) -> Result<bool, Broken> {
        let before = self.at.insert((node, group), (process, lsn));
        if let Some((p, last)) = before
            && p == process
            && lsn != last.next()
        {
            let what = format!("{node:?} applies {lsn:?} of {group:?} after {last:?}");
            return Err(broken(what).on(node).of(group).at(lsn));
        }
        let entries = self.groups.entry(group).or_default();
        let index = lsn.0 as usize;
        if index == 0 || index > entries.len() + 1 {
            let what = format!("{node:?} applies {lsn:?} of {group:?}, which nobody came near");
            return Err(broken(what).on(node).of(group).at(lsn));
        }
        let Some(known) = entries.get_mut(index - 1) else {
            entries.push(Applied { mark, outcome: outcome.cloned() });
            return Ok(true);
        };
        if known.mark != mark {
            let what = format!(
                "{node:?} applies an entry of {:?} at {lsn:?} of {group:?}; another replica one \
                 of {:?}",
                mark.term, known.mark.term
            );
            return Err(broken(what).on(node).of(group).term(mark.term).at(lsn));
        }
        let Some(outcome) = outcome else { return Ok(false) };
        match &known.outcome {
            Some(other) if other != outcome => {
                let what = format!(
                    "{node:?} applies {lsn:?} of {group:?} with {outcome:?}; it was {other:?} before"
                );
                Err(broken(what).on(node).of(group).term(mark.term).at(lsn))
            }
            _ => {
                known.outcome = Some(outcome.clone());
                Ok(false)
            }
        }
    }

    /// A process starts with states that stand at least here.
    pub(crate) fn starts(&mut self, node: NodeId, groups: impl Iterator<Item = (GroupId, Lsn)>) {
        self.begun.retain(|(n, _), _| *n != node);
        self.begun.extend(groups.map(|(group, lsn)| ((node, group), lsn)));
    }

    /// A process says that it has applied this much: its state machine has.
    pub(crate) fn says(
        &self,
        (node, process): (NodeId, u64),
        group: GroupId,
        applied: Lsn,
    ) -> Verdict {
        let begun = self.begun.get(&(node, group)).copied().unwrap_or_default();
        let last = self.at.get(&(node, group)).filter(|(p, _)| *p == process);
        let reached = last.map_or(begun, |(_, lsn)| begun.max(*lsn));
        if applied > reached {
            let what = format!(
                "{node:?} holds {group:?} to be applied up to {applied:?}; its state machine came \
                 to {reached:?}"
            );
            return Err(broken(what).on(node).of(group).at(applied));
        }
        Ok(())
    }

    /// A node's state of a group was damaged: it is applied again from the first entry.
    pub(crate) fn begins_anew(&mut self, node: NodeId, group: GroupId) {
        self.at.remove(&(node, group));
    }

    /// A process goes on from a state that it did not apply.
    pub(crate) fn installs(&mut self, (node, process): (NodeId, u64), group: GroupId, at: Lsn) {
        self.at.insert((node, group), (process, at));
    }

    /// The last LSN that any replica applied.
    pub(crate) fn last(&self, group: GroupId) -> Lsn {
        Lsn(self.groups.get(&group).map_or(0, Vec::len) as u64)
    }

    /// The entry that was applied at an LSN.
    pub(crate) fn at(&self, group: GroupId, lsn: Lsn) -> Option<Mark> {
        let index = (lsn.0 as usize).checked_sub(1)?;
        self.groups.get(&group)?.get(index).map(|applied| applied.mark)
    }

    /// Every group of which something was applied.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }
}

/// A check of the whole at the end: each replica's log begins with all that was applied, but for what
/// is pruned there, up to `pruned`.
pub(crate) fn holds_all(
    node: NodeId,
    group: GroupId,
    machine: &StateMachine,
    pruned: Lsn,
    at: impl Fn(Lsn) -> Option<Mark>,
) -> Verdict {
    for lsn in (pruned.0 + 1..=machine.last(group).0).map(Lsn) {
        if at(lsn) != machine.at(group, lsn) {
            let what = format!("{node:?} ends without {lsn:?} of {group:?}, which was applied");
            return Err(broken(what).on(node).of(group).at(lsn));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::oracles::log::mark;

    const G: GroupId = GroupId(2);
    const A: (NodeId, u64) = (NodeId(1), 1);
    const B: (NodeId, u64) = (NodeId(2), 2);

    fn refused() -> Outcome {
        Outcome { refused: true, answer: Bytes::from_static(b"no") }
    }

    fn one_applied() -> StateMachine {
        let mut oracle = StateMachine::default();
        let fresh = oracle.applies(A, G, (Lsn(1), mark(1, 5)), Some(&Outcome::default()));
        assert_eq!(fresh, Ok(true));
        oracle
    }

    #[test]
    fn what_is_said_to_be_applied_was() {
        let mut oracle = one_applied();
        assert!(oracle.says(A, G, Lsn(1)).is_ok());
        assert!(oracle.says(A, G, Lsn(2)).is_err());
        assert!(oracle.says(B, G, Lsn(1)).is_err(), "on another node");
        oracle.starts(A.0, [(G, Lsn(4))].into_iter());
        assert!(oracle.says((A.0, 2), G, Lsn(4)).is_ok() && oracle.says(B, G, Lsn(4)).is_err());
    }

    #[test]
    fn agreement_is_fine() {
        let mut oracle = one_applied();
        let same = oracle.applies(B, G, (Lsn(1), mark(1, 5)), Some(&Outcome::default()));
        assert_eq!(same, Ok(false));
        assert_eq!(oracle.applies((NodeId(2), 3), G, (Lsn(1), mark(1, 5)), None), Ok(false));
        assert_eq!(oracle.last(G), Lsn(1));
    }

    #[test]
    fn fires_on_another_entry_and_on_another_outcome() {
        assert!(one_applied().applies(B, G, (Lsn(1), mark(2, 5)), None).is_err());
        assert!(one_applied().applies(B, G, (Lsn(1), mark(1, 6)), None).is_err());
        assert!(one_applied().applies(B, G, (Lsn(1), mark(1, 5)), Some(&refused())).is_err());
    }

    #[test]
    fn fires_on_a_gap_and_on_a_repetition() {
        assert!(one_applied().applies(A, G, (Lsn(3), mark(1, 7)), None).is_err());
        assert!(one_applied().applies(A, G, (Lsn(1), mark(1, 5)), None).is_err());
    }

    #[test]
    fn fires_on_a_replica_that_lost_what_was_applied() {
        let oracle = one_applied();
        assert!(holds_all(NodeId(3), G, &oracle, Lsn(0), |_| Some(mark(1, 5))).is_ok());
        assert!(holds_all(NodeId(3), G, &oracle, Lsn(0), |_| None).is_err());
        assert!(holds_all(NodeId(3), G, &oracle, Lsn(1), |_| None).is_ok(), "pruned");
    }
}
