//! What committed operations do to the records: conditions are judged here, at apply, so that
//! every replica comes to the same outcome.

use std::collections::btree_map;

use bytes::Bytes;
use highwater_core::{
    Entry, Kind, Lsn, Outcome,
    planted::{self, Planted},
};
use highwater_wire::op::{Action, Answer, Condition, Op, OpError, Versions, Write};

use super::{
    StoredRecord,
    key::Key,
    leaf::{Leaves, Sums},
    overlay::{Before, Cell, Overlay, Overlays},
};

/// A run of entries as far as it is new and can be read.
#[derive(Debug)]
pub(super) struct Run {
    /// Steps that the state holds already.
    pub(super) skipped: usize,
    /// The new ones, with their LSNs.
    pub(super) steps: Vec<(Lsn, Step)>,
    /// The last entry of the run that is to be applied.
    pub(super) upto: Lsn,
    /// The first entry that cannot be read; the run ends before it.
    pub(super) undecodable: Option<(Lsn, OpError)>,
}

/// What has an outcome.
#[derive(Debug)]
pub(super) enum Step {
    Op(Op),
    Audit,
}

impl Run {
    /// Reads a run for a state that stands at `applied`.
    ///
    /// # Errors
    /// The first LSN that does not follow the one before it, after that one.
    pub(super) fn read(applied: Lsn, entries: &[Entry]) -> Result<Run, (Lsn, Lsn)> {
        let mut run = Run { skipped: 0, steps: Vec::new(), upto: applied, undecodable: None };
        let mut before = entries.first().map_or(applied, |first| first.lsn.prev().min(applied));
        for entry in entries {
            if entry.lsn != before.next() {
                return Err((before, entry.lsn));
            }
            before = entry.lsn;
            let is_new = entry.lsn > applied;
            match (entry.op(), entry.kind) {
                (Some(op), _) if is_new => match Op::decode(op) {
                    Ok(op) => run.steps.push((entry.lsn, Step::Op(op))),
                    Err(error) => {
                        run.undecodable = Some((entry.lsn, error));
                        return Ok(run);
                    }
                },
                (None, Kind::Audit) if is_new => run.steps.push((entry.lsn, Step::Audit)),
                (Some(_), _) | (None, Kind::Audit) => run.skipped += 1,
                (None, _) => {}
            }
            run.upto = run.upto.max(entry.lsn);
        }
        Ok(run)
    }

    /// Every key that is written, in order: what was there before counts for its sum, and for the
    /// outcome of some.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let ops = self.steps.iter().filter_map(|(_, step)| match step {
            Step::Op(op) => Some(op),
            Step::Audit => None,
        });
        ops.flat_map(|op| &op.writes).map(|write| &write.key)
    }

    /// Looks up what was there before, where memory knows it. One for each of its keys.
    pub(super) fn priors(&self, overlays: &Overlays) -> Vec<Prior> {
        let look =
            |key: &Bytes| overlays.get(key).map_or(Prior::InFile, |c| Prior::Known(c.before()));
        self.keys().map(look).collect()
    }
}

/// What was there of a key before the run, as far as it is known without reading the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Prior {
    Known(Before),
    /// The file knows.
    InFile,
}

/// Ready-made encodings of the common answers: applying makes none of its own.
#[derive(Debug)]
pub(super) struct Answers {
    created: Bytes,
    existed: Bytes,
}

impl Answers {
    pub(super) fn new() -> Answers {
        Answers {
            created: Answer::Done { existed: false }.encode(),
            existed: Answer::Done { existed: true }.encode(),
        }
    }

    fn done(&self, existed: bool) -> Outcome {
        let answer = if existed { &self.existed } else { &self.created };
        Outcome { refused: false, answer: answer.clone() }
    }
}

/// What is applied to: the active generation, and the sums of everything.
pub(super) struct Target<'a> {
    pub(super) active: &'a mut Overlay,
    pub(super) sums: &'a mut Sums,
    pub(super) leaves: Leaves,
    pub(super) answers: &'a Answers,
}

impl Target<'_> {
    /// Takes one step: all of an operation or, where a condition does not hold, nothing. `priors` begin
    /// with its own, one for each write, and are left without.
    pub(super) fn take(&mut self, lsn: Lsn, step: Step, priors: &mut &[Before]) -> Outcome {
        let op = match step {
            Step::Op(op) => op,
            Step::Audit => {
                let root = self.leaves.root(lsn, self.sums).encode();
                return Outcome { refused: false, answer: Bytes::copy_from_slice(&root) };
            }
        };
        let known = priors.split_off(..op.writes.len()).expect("there is a prior for each write");
        for (index, (write, prior)) in op.writes.iter().zip(known).enumerate() {
            let judged = index == 0 || !planted::is(Planted::BatchHalfJudged);
            if write.condition == Condition::default() || !judged {
                continue;
            }
            let before = self.active.get(&write.key[..]).map_or(*prior, Cell::before);
            let version = before.map(|(lsn, _)| lsn);
            if !holds(&write.condition, version) {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                let refusal = Answer::Refused { index, version: version.unwrap_or_default() };
                return Outcome { refused: true, answer: refusal.encode() };
            }
        }
        let mut existed = None;
        for (write, prior) in op.writes.into_iter().zip(known) {
            let before = self.write(lsn, write, *prior);
            existed.get_or_insert(before.is_some());
        }
        self.answers.done(existed.unwrap_or_default())
    }

    /// What was there before.
    fn write(&mut self, lsn: Lsn, write: Write, prior: Before) -> Before {
        let Write { key, action, .. } = write;
        let cell = match action {
            Action::Put { value, content_type } => {
                let leaf = self.leaves.leaf(&key, lsn, &content_type, &value);
                Cell::Record(StoredRecord { version: lsn, content_type, value }, leaf)
            }
            Action::Delete => Cell::Gone,
        };
        let now = cell.leaf();
        let slot = self.active.entry(Key::from(key));
        let before = match &slot {
            btree_map::Entry::Occupied(held) => held.get().before(),
            btree_map::Entry::Vacant(_) => prior,
        };
        let leaf = before.map(|(_, leaf)| leaf);
        let leaf = leaf.filter(|_| !planted::is(Planted::LeafNotSubtracted));
        self.sums.change(slot.key(), leaf, now);
        match slot {
            btree_map::Entry::Occupied(mut held) => drop(held.insert(cell)),
            btree_map::Entry::Vacant(free) => drop(free.insert(cell)),
        }
        before
    }
}

/// Whether a record of this version (`None`: no record) meets a condition.
fn holds(condition: &Condition, version: Option<Lsn>) -> bool {
    let among = |versions: &Versions| match (versions, version) {
        (_, None) => false,
        (Versions::Any, Some(_)) => true,
        (Versions::Of(list), Some(version)) => list.contains(&version),
    };
    condition.matches.as_ref().is_none_or(among)
        && !condition.matches_none.as_ref().is_some_and(among)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(versions: &[u64]) -> Option<Versions> {
        Some(Versions::Of(versions.iter().copied().map(Lsn).collect()))
    }

    /// `matches`: the record exists and (any, or version in list). `matches_none`: the record is
    /// absent, or (not any, and version not in list).
    #[test]
    fn conditions_hold_as_specified() {
        let any = Some(Versions::Any);
        let absent = None;
        let at_7 = Some(Lsn(7));
        let table = [
            // matches, matches_none, holds when absent, holds at version 7
            (None, None, true, true),
            (any.clone(), None, false, true),
            (of(&[7]), None, false, true),
            (of(&[6, 7, 8]), None, false, true),
            (of(&[6, 8]), None, false, false),
            (of(&[]), None, false, false),
            (None, any.clone(), true, false),
            (None, of(&[7]), true, false),
            (None, of(&[6, 8]), true, true),
            (None, of(&[]), true, true),
            (any.clone(), any.clone(), false, false),
            (any.clone(), of(&[6]), false, true),
            (any, of(&[7]), false, false),
            (of(&[7]), of(&[7]), false, false),
            (of(&[7]), of(&[6]), false, true),
            // Version 0 is what a refusal reports for an absent record; it matches nothing.
            (of(&[0]), None, false, false),
            (None, of(&[0]), true, true),
        ];
        for (matches, matches_none, when_absent, when_7) in table {
            let condition = Condition { matches, matches_none };
            assert_eq!(holds(&condition, absent), when_absent, "{condition:?} when absent");
            assert_eq!(holds(&condition, at_7), when_7, "{condition:?} at version 7");
        }
    }
}
