//! What must hold of slots across nodes. A table is a function of what is applied, so the tables that
//! any node shows are put in order of their LSNs, and each is compared with its neighbours.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{
    Entry, GroupId, Lsn, Node, NodeId, Request, SlotCause, SlotOutcome, SlotStart, SlotState,
    SlotView,
};

/// What is the same of a slot on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    created: Lsn,
    confirmed: Lsn,
    lag_ops: u64,
    lag_bytes: u64,
    invalidated: Option<SlotCause>,
}

impl Row {
    fn of(slot: &SlotView<'_>) -> Row {
        Row {
            created: slot.created,
            confirmed: slot.confirmed,
            lag_ops: slot.lag_ops,
            lag_bytes: slot.lag_bytes,
            invalidated: match slot.state {
                SlotState::Invalidated { cause } => Some(cause),
                SlotState::Active | SlotState::AtRisk { .. } => None,
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    time_ms: u64,
    rows: BTreeMap<String, Row>,
}

/// What a client was told: from that LSN on, this slot has confirmed so much.
#[derive(Clone, Copy, Debug)]
struct Promise {
    from: Lsn,
    created: Lsn,
    confirmed: Lsn,
}

#[derive(Default)]
pub(crate) struct SlotOracle {
    tables: BTreeMap<(GroupId, Lsn), Table>,
    /// By node and group: which table it showed last.
    shown: BTreeMap<(NodeId, GroupId), Lsn>,
    promises: BTreeMap<(GroupId, String), Vec<Promise>>,
    /// Those that were ever said to be at risk.
    warned: BTreeSet<(GroupId, String)>,
    /// Whose deletion was ever asked for.
    deleted: BTreeSet<(GroupId, String)>,
    /// The weight of each effective operation.
    effective: BTreeMap<GroupId, BTreeMap<Lsn, u64>>,
    /// Outcomes that were told, by kind.
    pub(crate) told: BTreeMap<&'static str, u64>,
}

impl SlotOracle {
    pub(crate) fn restarted(&mut self, node: NodeId) {
        self.shown.retain(|(n, _), _| *n != node);
    }

    pub(crate) fn effective<'a>(&mut self, group: GroupId, ops: impl Iterator<Item = &'a Entry>) {
        let effective = self.effective.entry(group).or_default();
        effective.extend(ops.map(|entry| (entry.lsn, entry.weight() as u64)));
    }

    pub(crate) fn asked(&mut self, request: &Request) {
        if let Request::DeleteSlot { group, name, .. } = request {
            self.deleted.insert((*group, name.clone()));
        }
    }

    pub(crate) fn at_risk(&mut self, group: GroupId, name: &str) {
        self.warned.insert((group, name.to_owned()));
    }

    pub(crate) fn invalidated(&mut self, group: GroupId, name: &str) {
        let warned = self.warned.contains(&(group, name.to_owned()));
        assert!(warned, "S8: {name} is at risk in sight before it is invalidated");
    }

    pub(crate) fn observe(&mut self, id: NodeId, node: &Node, group: GroupId) {
        let Some(view) = node.slots(group).filter(|_| group != GroupId::SYSTEM) else { return };
        if self.shown.insert((id, group), view.lsn) == Some(view.lsn) {
            return;
        }
        let rows = view.slots.iter().map(|slot| (slot.name.to_owned(), Row::of(slot))).collect();
        let table = Table { time_ms: view.time_ms, rows };
        if let Some(other) = self.tables.get(&(group, view.lsn)) {
            return assert_eq!(*other, table, "S1: slots are equal at {:?} of {group:?}", view.lsn);
        }
        let valid = table.rows.values().filter(|row| row.invalidated.is_none());
        let horizon = valid.map(|row| row.confirmed.next()).min();
        assert_eq!(view.horizon, horizon, "S9: what valid slots need is held back");
        self.count_exactly(group, view.lsn, &table);
        let of_group = self.promises.range((group, String::new())..);
        for ((_, name), promises) in of_group.take_while(|((g, _), _)| *g == group) {
            for promise in promises {
                self.keeps(group, name, promise, view.lsn, &table);
            }
        }
        let before = self.tables.range(..(group, view.lsn)).next_back();
        if let Some((_, before)) = before.filter(|((g, _), _)| *g == group) {
            follows(before, &table);
        }
        let after = self.tables.range((group, view.lsn)..).next();
        if let Some((_, after)) = after.filter(|((g, _), _)| *g == group) {
            follows(&table, after);
        }
        self.tables.insert((group, view.lsn), table);
    }

    /// What a lag is said to be is nearly what it is, and never less.
    fn count_exactly(&self, group: GroupId, lsn: Lsn, table: &Table) {
        let blank = BTreeMap::new();
        let effective = self.effective.get(&group).unwrap_or(&blank);
        for (name, row) in &table.rows {
            let (ops, bytes) = if row.confirmed < lsn {
                let after = effective.range(row.confirmed.next()..=lsn);
                after.fold((0, 0), |(ops, bytes), (_, weight)| (ops + 1, bytes + weight))
            } else {
                (0, 0)
            };
            let nearly = ops <= row.lag_ops && row.lag_ops <= ops + ops / 15;
            assert!(nearly, "S7: {name} is {ops} ops behind at {lsn:?}: {row:?}");
            let exact = ops == row.lag_ops && bytes == row.lag_bytes;
            assert!(exact || bytes < row.lag_bytes, "S7: {name} is {bytes} bytes behind: {row:?}");
        }
    }

    fn keeps(&self, group: GroupId, name: &str, promise: &Promise, lsn: Lsn, table: &Table) {
        if lsn < promise.from {
            return;
        }
        match table.rows.get(name) {
            Some(row) if row.created == promise.created => {
                let kept = row.confirmed >= promise.confirmed;
                assert!(kept, "S3: {name} has {row:?} at {lsn:?} after {promise:?}");
            }
            _ => {
                let deleted = self.deleted.contains(&(group, name.to_owned()));
                assert!(deleted, "S4: {name} is gone at {lsn:?} after {promise:?}");
            }
        }
    }

    pub(crate) fn answered(
        &mut self,
        node: &Node,
        request: &Request,
        lsn: Lsn,
        outcome: &SlotOutcome,
    ) {
        let (group, name, confirmed, told) = match (request, outcome) {
            (Request::CreateSlot { group, name, .. }, SlotOutcome::Created { confirmed }) => {
                (group, name, *confirmed, "slot created")
            }
            (Request::CreateSlot { group, name, .. }, SlotOutcome::Stood { confirmed }) => {
                (group, name, *confirmed, "slot stood")
            }
            (Request::AckSlot { group, name, lsn, .. }, SlotOutcome::Confirmed { confirmed }) => {
                assert!(confirmed >= lsn, "S3: {name} {lsn:?} is confirmed as {confirmed:?}");
                (group, name, *confirmed, "slot confirmed")
            }
            (Request::AckSlot { lsn: asked, .. }, SlotOutcome::AboveCommitted { committed }) => {
                assert!(asked > committed, "S3: {asked:?} is not above {committed:?}");
                return self.count("slot above committed");
            }
            (Request::CreateSlot { .. }, SlotOutcome::AboveCommitted { .. }) => {
                return self.count("slot above committed");
            }
            (Request::CreateSlot { settings, .. }, SlotOutcome::Pruned { first }) => {
                let after = SlotStart::After(first.prev());
                let below = matches!(settings.from, SlotStart::After(lsn) if lsn < first.prev());
                assert!(below, "S4: {:?} is not below {after:?}", settings.from);
                return self.count("slot below the log");
            }
            (Request::CreateSlot { .. }, SlotOutcome::Differs) => {
                return self.count("slot differs");
            }
            (Request::DeleteSlot { .. }, SlotOutcome::Deleted) => {
                return self.count("slot deleted");
            }
            (Request::DeleteSlot { .. } | Request::AckSlot { .. }, SlotOutcome::NoSuchSlot) => {
                return self.count("no such slot");
            }
            (
                Request::CreateSlot { .. } | Request::AckSlot { .. },
                SlotOutcome::Invalidated { .. },
            ) => return self.count("slot invalidated"),
            other => panic!("Q1: {other:?} is no answer"),
        };
        self.count(told);
        // Which slot of that name it was, unless it is gone by now.
        let view = node.slots(*group).expect("who answers knows");
        assert!(view.lsn >= lsn, "S3: what is told is applied");
        let made_by_it = |slot: &SlotView<'_>| match outcome {
            SlotOutcome::Created { .. } => slot.created == lsn,
            // In one entry it may have been acknowledged, deleted, and created anew.
            _ => slot.created < lsn,
        };
        let slot = view.slots.iter().find(|slot| slot.name == name && made_by_it(slot));
        if let Some(slot) = slot {
            let promise = Promise { from: lsn, created: slot.created, confirmed };
            let promises = self.promises.entry((*group, name.clone())).or_default();
            // A later one says all that an earlier one does, but for the tables between them.
            if promises.len() >= 8 {
                promises.remove(0);
            }
            promises.push(promise);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.told.entry(what).or_default() += 1;
    }
}

/// One table after another, with entries between them.
fn follows(before: &Table, after: &Table) {
    assert!(before.time_ms <= after.time_ms, "S5: log time never falls");
    for (name, row) in &after.rows {
        let Some(old) = before.rows.get(name).filter(|old| old.created == row.created) else {
            continue;
        };
        assert!(old.confirmed <= row.confirmed, "S2: {name} never falls: {old:?}, {row:?}");
        let stays = old.invalidated.is_none() || old.invalidated == row.invalidated;
        assert!(stays, "S8: {name} stays invalidated: {old:?}, {row:?}");
    }
}
