//! O17. Each write takes effect at most once, and its answer is true.
//!
//! - An ack names the LSN, term and result of exactly that op. semantics.md 1. Failures 12, 13, 15.
//! - A definite failure had no effect and never will: at that moment, wherever the op reached a
//!   log, it can't be committed any more. semantics.md 2. Failures 19, 26, 36.
//! - No op takes effect twice. semantics.md 2, 6. Failure 37.
//!
//! Every op of a run is unique byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{GroupId, Lsn, Term};
use highwater_node::api::Receipt;
use highwater_wire::op::Answer;

use super::{Broken, Verdict, broken};

/// Names an op: a digest of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpId(pub(crate) u64);

#[derive(Clone, Copy, Debug)]
struct Effect {
    group: GroupId,
    lsn: Lsn,
    term: Term,
    answer: Answer,
}

/// What became of each op.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    applied: BTreeMap<OpId, Effect>,
    /// Where an op ever was in some log.
    logged: BTreeMap<OpId, BTreeSet<(GroupId, Lsn, Term)>>,
    failed: BTreeSet<OpId>,
    acked: BTreeSet<OpId>,
}

impl Outcomes {
    /// A log has the op.
    pub(crate) fn logged(&mut self, op: OpId, group: GroupId, lsn: Lsn, term: Term) {
        self.logged.entry(op).or_default().insert((group, lsn, term));
    }

    /// The op is applied, for the first time at this LSN.
    pub(crate) fn applied(
        &mut self,
        op: OpId,
        group: GroupId,
        (lsn, term): (Lsn, Term),
        answer: Answer,
    ) -> Verdict {
        if let Some(first) = self.applied.insert(op, Effect { group, lsn, term, answer }) {
            let what = format!("an op took effect twice: at {:?} and {lsn:?}", first.lsn);
            return Err(broken(what).of(group).term(term).lsns(first.lsn, lsn));
        }
        if self.failed.contains(&op) {
            let what = format!("a write that failed definitely took effect at {lsn:?}");
            return Err(broken(what).of(group).term(term).at(lsn));
        }
        Ok(())
    }

    /// A client is told that its op took effect.
    pub(crate) fn acked(&mut self, op: OpId, receipt: &Receipt) -> Verdict {
        self.acked.insert(op);
        let answer = Answer::Done { existed: receipt.existed };
        self.is_true(op, (receipt.group, receipt.lsn, Some(receipt.term)), answer)
    }

    /// A client is told that a condition did not hold.
    pub(crate) fn refused(
        &mut self,
        op: OpId,
        group: GroupId,
        lsn: Lsn,
        (index, version): (u32, Lsn),
    ) -> Verdict {
        self.is_true(op, (group, lsn, None), Answer::Refused { index, version })
    }

    fn is_true(&self, op: OpId, told: (GroupId, Lsn, Option<Term>), answer: Answer) -> Verdict {
        let effect = self.applied.get(&op);
        let (group, lsn, term) = told;
        let is_it = effect.is_some_and(|e| {
            (e.group, e.lsn, e.answer) == (group, lsn, answer) && term.is_none_or(|t| t == e.term)
        });
        if is_it {
            return Ok(());
        }
        let what = format!("a client was told {told:?}, {answer:?}; the op's effect is {effect:?}");
        Err(broken(what).of(group).at(lsn))
    }

    /// A client is told that its op failed for certain. `is_dead` tells of an entry whether it can't
    /// be committed any more. Tells whether the op had reached a log.
    pub(crate) fn failed(
        &mut self,
        op: OpId,
        is_dead: impl Fn(GroupId, Lsn, Term) -> bool,
    ) -> Result<bool, Broken> {
        self.failed.insert(op);
        if let Some(effect) = self.applied.get(&op) {
            let what = format!("a write is said to have failed, but took effect: {effect:?}");
            return Err(broken(what).of(effect.group).term(effect.term).at(effect.lsn));
        }
        let Some(places) = self.logged.get(&op) else { return Ok(false) };
        for (group, lsn, term) in places {
            if !is_dead(*group, *lsn, *term) {
                let what = format!(
                    "a write is said to have failed, but may yet be committed at {lsn:?} of \
                     {group:?} in {term:?}"
                );
                return Err(broken(what).of(*group).term(*term).at(*lsn));
            }
        }
        Ok(true)
    }

    /// Whether the op took effect.
    pub(crate) fn took_effect(&self, op: OpId) -> bool {
        self.applied.get(&op).is_some_and(|e| matches!(e.answer, Answer::Done { .. }))
    }

    /// Where the op took effect or was refused.
    pub(crate) fn group_of(&self, op: OpId) -> Option<GroupId> {
        self.applied.get(&op).map(|e| e.group)
    }

    /// How many writes were acknowledged.
    pub(crate) fn acks(&self) -> usize {
        self.acked.len()
    }

    /// Where each acknowledged op took effect.
    pub(crate) fn all_acked(&self) -> impl Iterator<Item = (GroupId, Lsn, Term)> {
        let effects = self.acked.iter().filter_map(|op| self.applied.get(op));
        effects.map(|effect| (effect.group, effect.lsn, effect.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);
    const OP: OpId = OpId(77);
    const DONE: Answer = Answer::Done { existed: false };

    fn receipt(lsn: u64, term: u64, existed: bool) -> Receipt {
        Receipt { group: G, lsn: Lsn(lsn), term: Term(term), existed, replayed: false }
    }

    fn applied() -> Outcomes {
        let mut oracle = Outcomes::default();
        oracle.applied(OP, G, (Lsn(5), Term(2)), DONE).unwrap();
        oracle
    }

    #[test]
    fn fires_on_a_false_ack() {
        assert!(applied().acked(OP, &receipt(5, 2, false)).is_ok());
        for wrong in [receipt(6, 2, false), receipt(5, 3, false), receipt(5, 2, true)] {
            assert!(applied().acked(OP, &wrong).is_err(), "{wrong:?}");
        }
        assert!(Outcomes::default().acked(OP, &receipt(5, 2, false)).is_err());
        assert!(applied().refused(OP, G, Lsn(5), (0, Lsn(1))).is_err());
        let mut acked = applied();
        acked.acked(OP, &receipt(5, 2, false)).unwrap();
        assert_eq!(acked.all_acked().collect::<Vec<_>>(), [(G, Lsn(5), Term(2))]);
    }

    #[test]
    fn fires_on_a_second_effect() {
        assert!(applied().applied(OP, G, (Lsn(6), Term(2)), DONE).is_err());
    }

    #[test]
    fn fires_on_a_failure_that_was_none() {
        assert!(applied().failed(OP, |_, _, _| true).is_err());
        let mut oracle = Outcomes::default();
        assert_eq!(oracle.failed(OP, |_, _, _| false), Ok(false));
        assert!(oracle.applied(OP, G, (Lsn(5), Term(2)), DONE).is_err());
    }

    #[test]
    fn fires_on_a_failure_that_may_yet_succeed() {
        let logged = || {
            let mut oracle = Outcomes::default();
            oracle.logged(OP, G, Lsn(5), Term(2));
            oracle
        };
        assert!(logged().failed(OP, |_, _, _| false).is_err(), "it may yet be committed");
        assert_eq!(logged().failed(OP, |_, _, _| true), Ok(true));
    }
}
