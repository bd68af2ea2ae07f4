//! A group's materialized state on one machine: the reference state machine of the oracles, at the
//! LSN that is applied here. What a crash loses is what was applied since the last checkpoint.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Lsn, Outcome, Position, control::refused_lsn};
use highwater_node::api::{ListQuery, Listed, Record};
use highwater_wire::op::{Answer, Op};

use crate::oracles::reference::Reference;

/// One group's state.
#[derive(Clone, Default)]
pub(super) struct State {
    content: Reference,
    applied: Lsn,
    /// A crash returns to here.
    checkpointed: Position,
    /// The core's control writes, as of the last checkpoint.
    control: BTreeMap<Bytes, Bytes>,
}

impl State {
    pub(super) fn applied(&self) -> Lsn {
        self.applied
    }

    /// Applies a run. What it holds already is skipped, with default outcomes.
    pub(super) fn apply(&mut self, group: GroupId, entries: &[Entry]) -> Vec<Outcome> {
        let ops = entries.iter().filter_map(|entry| {
            let fresh = entry.lsn > self.applied;
            self.applied = self.applied.max(entry.lsn);
            entry.kind.has_outcome().then(|| match entry.op() {
                _ if !fresh => Outcome::default(),
                Some(op) => self.op(entry.lsn, op),
                None => self.audit(group, entry.lsn),
            })
        });
        ops.collect()
    }

    fn op(&mut self, lsn: Lsn, op: Bytes) -> Outcome {
        let op = Op::decode(op).expect("clients propose ops");
        let answer = self.content.apply(lsn, &op);
        Outcome { refused: matches!(answer, Answer::Refused { .. }), answer: answer.encode() }
    }

    /// Of the reference, which is what it should be.
    fn audit(&self, group: GroupId, lsn: Lsn) -> Outcome {
        let root = self.content.root(group, lsn).encode();
        Outcome { refused: false, answer: Bytes::copy_from_slice(&root) }
    }

    /// A checkpoint of the state at `lsn` is durable.
    pub(super) fn flushed(&mut self, at: Position, pruned: Lsn, control: Vec<(Bytes, Bytes)>) {
        self.applied = self.applied.max(at.lsn);
        if at.lsn > self.checkpointed.lsn {
            self.checkpointed = at;
        }
        self.control.extend(control);
        self.control.retain(|key, _| refused_lsn(key).is_none_or(|lsn| lsn > pruned));
    }

    /// What another node would get of it.
    pub(super) fn snapshot(&self) -> State {
        let mut snapshot = self.clone();
        snapshot.crash();
        snapshot
    }

    /// What it stands at durably.
    pub(super) fn checkpointed(&self) -> Position {
        self.checkpointed
    }

    /// The process is gone.
    pub(super) fn crash(&mut self) {
        self.applied = self.checkpointed.lsn;
        self.content.revert(self.applied);
    }

    /// The last checkpoint, and the control writes up to it.
    pub(super) fn control(&self) -> (Position, Vec<(Bytes, Bytes)>) {
        let control = self.control.iter().map(|(key, value)| (key.clone(), value.clone()));
        (self.checkpointed, control.collect())
    }

    /// Those whose keys have one of these prefixes.
    pub(super) fn control_rows(&self, prefixes: &[Bytes]) -> (Position, Vec<(Bytes, Bytes)>) {
        let (at, mut rows) = self.control();
        rows.retain(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix)));
        (at, rows)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Record> {
        self.content.record(key, self.applied)
    }

    pub(super) fn list(&self, query: &ListQuery) -> (Vec<Listed>, bool) {
        self.content.list(query, self.applied)
    }
}
