//! What committed operations do to the records: conditions are judged here, at apply, so that
//! every replica comes to the same outcome.

use bytes::Bytes;
use highwater_core::{
    Entry, Lsn, Outcome,
    planted::{self, Planted},
};
use highwater_wire::op::{Action, Answer, Condition, Op, OpError, Versions, Write};

use super::{
    StoredRecord,
    overlay::{Cell, Overlay, Overlays},
};

/// A run of entries as far as it is new and can be read.
#[derive(Debug)]
pub(super) struct Run {
    /// Operations that the state holds already.
    pub(super) skipped: usize,
    /// The new ones, with their LSNs.
    pub(super) ops: Vec<(Lsn, Op)>,
    /// The last entry of the run that is to be applied.
    pub(super) upto: Lsn,
    /// The first entry that cannot be read; the run ends before it.
    pub(super) undecodable: Option<(Lsn, OpError)>,
}

impl Run {
    /// Reads a run for a state that stands at `applied`.
    ///
    /// # Errors
    /// The first LSN that does not follow the one before it, after that one.
    pub(super) fn read(applied: Lsn, entries: &[Entry]) -> Result<Run, (Lsn, Lsn)> {
        let mut run = Run { skipped: 0, ops: Vec::new(), upto: applied, undecodable: None };
        let mut before = entries.first().map_or(applied, |first| first.lsn.prev().min(applied));
        for entry in entries {
            if entry.lsn != before.next() {
                return Err((before, entry.lsn));
            }
            before = entry.lsn;
            let is_new = entry.lsn > applied;
            match entry.op().map(|op| is_new.then(|| Op::decode(op))) {
                Some(Some(Ok(op))) => run.ops.push((entry.lsn, op)),
                Some(Some(Err(error))) => {
                    run.undecodable = Some((entry.lsn, error));
                    return Ok(run);
                }
                Some(None) => run.skipped += 1,
                None => {}
            }
            run.upto = run.upto.max(entry.lsn);
        }
        Ok(run)
    }
}

/// The version of a record before the run, as far as it is known without reading the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Prior {
    /// `None`: there is no record.
    Known(Option<Lsn>),
    /// The file knows.
    InFile,
}

/// The writes whose outcome depends on what was there before, in order: those with a condition,
/// and the first of each op, since the answer tells whether its key existed.
fn judged(op: &Op) -> impl Iterator<Item = (usize, &Write)> {
    op.writes.iter().enumerate().filter(|(index, write)| {
        let others = !planted::is(Planted::BatchHalfJudged);
        *index == 0 || others && write.condition != Condition::default()
    })
}

/// Looks up what the run needs to know, where memory knows it. One for each judged write.
pub(super) fn priors(ops: &[(Lsn, Op)], overlays: &Overlays) -> Vec<Prior> {
    let look = |key: &Bytes| overlays.get(key).map_or(Prior::InFile, |c| Prior::Known(c.version()));
    ops.iter().flat_map(|(_, op)| judged(op)).map(|(_, write)| look(&write.key)).collect()
}

/// The keys of the judged writes, in the order of [`priors`].
pub(super) fn judged_keys(ops: &[(Lsn, Op)]) -> impl Iterator<Item = &Bytes> {
    ops.iter().flat_map(|(_, op)| judged(op)).map(|(_, write)| &write.key)
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

/// Applies one operation to the active generation: all of it or, where a condition does not hold,
/// nothing. Takes its priors, one for each judged write.
pub(super) fn apply_op(
    active: &mut Overlay,
    lsn: Lsn,
    op: Op,
    priors: &mut impl Iterator<Item = Option<Lsn>>,
    answers: &Answers,
) -> Outcome {
    let mut existed = false;
    let mut refusal = None;
    for (index, write) in judged(&op) {
        let prior = priors.next().flatten();
        let version = active.get(&write.key).map_or(prior, Cell::version);
        if index == 0 {
            existed = version.is_some();
        }
        if refusal.is_none() && !holds(&write.condition, version) {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            refusal = Some(Answer::Refused { index, version: version.unwrap_or_default() });
        }
    }
    if let Some(refusal) = refusal {
        return Outcome { refused: true, answer: refusal.encode() };
    }
    for Write { key, action, .. } in op.writes {
        let cell = match action {
            Action::Put { value, content_type } => {
                Cell::Record(StoredRecord { version: lsn, content_type, value })
            }
            Action::Delete => Cell::Gone,
        };
        active.insert(key, cell);
    }
    answers.done(existed)
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
