//! What must hold of keyed writes across nodes. What a replica remembers at an LSN follows from the
//! entries before it, so it is compared with what they say; and so is every answer.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Lsn, Node, NodeId, OnceEntry, OnceKey, Outcome};

#[derive(Default)]
pub(crate) struct OnceOracle {
    /// Keyed writes that are committed.
    entries: BTreeMap<GroupId, BTreeMap<Lsn, OnceEntry>>,
    outcomes: BTreeMap<(GroupId, Lsn), Outcome>,
    /// By node and group: at which LSN it showed what it remembers last.
    shown: BTreeMap<(NodeId, GroupId), Lsn>,
    /// Answers that were given, by kind.
    pub(crate) told: BTreeMap<&'static str, u64>,
}

impl OnceOracle {
    pub(crate) fn restarted(&mut self, node: NodeId) {
        self.shown.retain(|(n, _), _| *n != node);
    }

    /// It is known to be committed, as is all before it.
    pub(crate) fn committed(&mut self, group: GroupId, entry: &Entry) {
        let Some(once) = OnceEntry::decode(entry.payload.clone()) else { return };
        let entries = self.entries.entry(group).or_default();
        let before = entries.iter().rfind(|(_, other)| other.once.key == once.once.key);
        if let Some((lsn, before)) = before {
            let over = before.expires_ms <= once.time_ms;
            assert!(over, "K1: {group:?} has {once:?} at {:?}, and at {lsn:?}", entry.lsn);
        }
        entries.insert(entry.lsn, once);
    }

    pub(crate) fn applied(&mut self, group: GroupId, lsn: Lsn, outcome: &Outcome) {
        self.outcomes.insert((group, lsn), outcome.clone());
    }

    pub(crate) fn observe(&mut self, id: NodeId, node: &Node, group: GroupId) {
        let Some(view) = node.remembered(group).filter(|_| group != GroupId::SYSTEM) else {
            return;
        };
        if self.shown.insert((id, group), view.lsn) == Some(view.lsn) {
            return;
        }
        let known: BTreeMap<&[u8], Lsn> = view.keys.into_iter().collect();
        let entries = self.entries.entry(group).or_default().range(..=view.lsn);
        let due = entries.filter(|(_, entry)| entry.expires_ms > view.time_ms);
        let due: BTreeMap<&[u8], Lsn> =
            due.map(|(lsn, entry)| (&entry.once.key[..], *lsn)).collect();
        assert_eq!(known, due, "K3: {id:?} remembers what {group:?} says at {:?}", view.lsn);
    }

    pub(crate) fn answered(
        &mut self,
        (group, op): (GroupId, &Bytes),
        once: &OnceKey,
        lsn: Lsn,
        (outcome, replayed): (&Outcome, bool),
    ) {
        let entry = self.entries.get(&group).and_then(|entries| entries.get(&lsn));
        let is_it = entry.is_some_and(|entry| entry.once == *once && entry.op == *op);
        assert!(is_it, "K2: {once:?} is answered with {entry:?}");
        assert_eq!(self.outcomes.get(&(group, lsn)), Some(outcome), "K2: at {lsn:?}");
        let what = if replayed { "replayed" } else { "keyed" };
        *self.told.entry(what).or_default() += 1;
    }
}
