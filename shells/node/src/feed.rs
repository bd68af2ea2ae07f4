//! What was applied lately, for streams that have caught up: they take it from memory, the moment it
//! is applied. There is none for a database that nobody follows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use highwater_core::{Entry, GroupId, Lsn, Outcome};

use crate::shared::{Changes, Pulse};

/// A feed holds about so much, in bytes.
const FEED_BYTES: usize = 4 << 20;

/// The feeds of a node.
#[derive(Default)]
pub(crate) struct Feeds(Mutex<BTreeMap<GroupId, Arc<Feed>>>);

/// One database's.
#[derive(Default)]
pub(crate) struct Feed {
    recent: Mutex<Recent>,
    pulse: Arc<Pulse>,
}

/// Effective ops of a stretch of LSNs without holes.
#[derive(Default)]
struct Recent {
    /// The stretch: `from` up to, not including, `next`.
    from: Lsn,
    next: Lsn,
    ops: VecDeque<Entry>,
    bytes: usize,
}

/// What a feed gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Effective ops, in order.
    pub(crate) ops: Vec<Entry>,
    /// There are no others up to here.
    pub(crate) upto: Lsn,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feeds {
    /// The feed of a group, for as long as somebody holds it.
    pub(crate) fn follow(&self, group: GroupId) -> Arc<Feed> {
        lock(&self.0).entry(group).or_default().clone()
    }

    /// A run of entries has been applied. `outcomes` has one for each op.
    pub(crate) fn applied(&self, group: GroupId, entries: &[Entry], outcomes: &[Outcome]) {
        let feed = {
            let mut feeds = lock(&self.0);
            let Some(feed) = feeds.get(&group) else { return };
            if Arc::strong_count(feed) == 1 {
                feeds.remove(&group);
                return;
            }
            feed.clone()
        };
        lock(&feed.recent).take_in(entries, outcomes);
        feed.pulse.beat();
    }
}

impl Feed {
    /// To be taken before looking for what is new, so that nothing is missed.
    pub(crate) fn watch(&self) -> Changes {
        Changes::of(self.pulse.clone())
    }

    /// The effective ops from an LSN on, at most so many and about so many bytes, but at least one;
    /// `None` where they are not all here.
    pub(crate) fn take(&self, from: Lsn, ops_max: usize, bytes_max: usize) -> Option<Taken> {
        lock(&self.recent).take(from, ops_max, bytes_max)
    }
}

impl Recent {
    fn take_in(&mut self, entries: &[Entry], outcomes: &[Outcome]) {
        let mut outcomes = outcomes.iter();
        for entry in entries {
            let outcome = if entry.kind.has_outcome() { outcomes.next() } else { None };
            let outcome = outcome.filter(|_| entry.kind.is_op());
            // What the state held already was applied by an earlier process: it has no outcome now.
            let is_known = outcome.is_none_or(|outcome| *outcome != Outcome::default());
            if entry.lsn != self.next || !is_known {
                *self = Recent { from: entry.lsn, next: entry.lsn, ..Recent::default() };
            }
            self.next = entry.lsn.next();
            if !is_known {
                self.from = self.next;
            } else if outcome.is_some_and(|outcome| !outcome.refused) {
                self.bytes += entry.weight();
                self.ops.push_back(entry.clone());
            }
        }
        while self.bytes > FEED_BYTES {
            let Some(oldest) = self.ops.pop_front() else { return };
            self.bytes -= oldest.weight();
            self.from = oldest.lsn.next();
        }
    }

    fn take(&self, from: Lsn, ops_max: usize, bytes_max: usize) -> Option<Taken> {
        if from < self.from || from >= self.next {
            return None;
        }
        let first = self.ops.partition_point(|entry| entry.lsn < from);
        let (mut ops, mut bytes) = (Vec::new(), 0);
        for entry in self.ops.range(first..) {
            bytes += entry.weight();
            if ops.len() >= ops_max || bytes > bytes_max && !ops.is_empty() {
                let upto = entry.lsn.prev();
                return Some(Taken { ops, upto });
            }
            ops.push(entry.clone());
        }
        Some(Taken { ops, upto: self.next.prev() })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Hlc, Kind, Term};

    use super::*;

    fn entry(lsn: u64, kind: Kind, bytes: usize) -> Entry {
        Entry {
            lsn: Lsn(lsn),
            term: Term(1),
            prev_term: Term(1),
            hlc: Hlc(lsn),
            origin: 0,
            kind,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    fn done() -> Outcome {
        Outcome { refused: false, answer: Bytes::from_static(b"done") }
    }

    fn lsns(taken: Option<Taken>) -> Option<(Vec<u64>, u64)> {
        taken.map(|taken| (taken.ops.iter().map(|op| op.lsn.0).collect(), taken.upto.0))
    }

    #[test]
    fn effective_ops_come_in_order_and_nothing_else() {
        let mut recent = Recent::default();
        let refused = Outcome { refused: true, ..done() };
        let run = [
            entry(4, Kind::Op, 1),
            entry(5, Kind::TermStart, 0),
            entry(6, Kind::Op, 1),
            entry(7, Kind::Op, 1),
        ];
        recent.take_in(&run, &[done(), refused, done()]);
        let take = |from, ops, bytes| lsns(recent.take(Lsn(from), ops, bytes));
        assert_eq!(take(4, 9, 1000), Some((vec![4, 7], 7)));
        assert_eq!(take(5, 9, 1000), Some((vec![7], 7)));
        assert_eq!(take(4, 1, 1000), Some((vec![4], 6)));
        assert_eq!(take(4, 9, 1), Some((vec![4], 6)), "at least one");
        assert_eq!((take(3, 9, 9), take(8, 9, 9)), (None, None));
    }

    #[test]
    fn a_gap_and_what_has_no_outcome_begin_it_anew() {
        let mut recent = Recent::default();
        recent.take_in(&[entry(4, Kind::Op, 1)], &[done()]);
        recent.take_in(&[entry(9, Kind::Op, 1)], &[done()]);
        assert_eq!(recent.take(Lsn(4), 9, 99), None);
        assert_eq!(lsns(recent.take(Lsn(9), 9, 99)), Some((vec![9], 9)));
        recent.take_in(&[entry(10, Kind::Op, 1)], &[Outcome::default()]);
        assert_eq!(recent.take(Lsn(9), 9, 99), None);
        recent.take_in(&[entry(11, Kind::Op, 1)], &[done()]);
        assert_eq!(lsns(recent.take(Lsn(11), 9, 99)), Some((vec![11], 11)));
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = Recent::default();
        for lsn in 1..=20 {
            recent.take_in(&[entry(lsn, Kind::Op, FEED_BYTES / 4)], &[done()]);
            assert!(recent.bytes <= FEED_BYTES);
        }
        assert_eq!(recent.take(Lsn(1), 9, 99), None);
        assert!(recent.take(Lsn(20), 9, 99).is_some());
    }

    #[test]
    fn nobody_follows_nothing_is_kept() {
        let feeds = Feeds::default();
        let (group, run) = (GroupId(2), [entry(1, Kind::Op, 1)]);
        feeds.applied(group, &run, &[done()]);
        let feed = feeds.follow(group);
        feeds.applied(group, &run, &[done()]);
        assert!(feed.take(Lsn(1), 1, 1).is_some());
        drop(feed);
        feeds.applied(group, &run, &[done()]);
        assert!(lock(&feeds.0).is_empty());
    }
}
