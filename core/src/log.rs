//! A group's oplog as the core sees it: watermarks, where each term starts, and a bounded tail of
//! entries in memory. What is older is on disk and comes back through `Load`.

use alloc::{collections::VecDeque, vec::Vec};

use crate::{
    entry::{Entry, Position, fitting},
    io::RecoveredGroup,
    planted::{self, Planted},
    retention::Base,
    types::{Lsn, Term, WriteId},
    watermarks::Watermarks,
};

pub(crate) struct GroupLog {
    /// What comes before the first entry.
    base: Base,
    marks: Watermarks,
    /// `(first LSN, term)` of every run of entries of one term; rising in both.
    terms: Vec<(Lsn, Term)>,
    /// A suffix of the log: ends at `appended`. Holds at least what is not durable; on a leader
    /// what it has not committed as well, as far as it was appended in this run.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// Of the tail's entries above `committed`.
    uncommitted_bytes: usize,
    /// Writes under way and the last LSN each makes durable.
    pending: VecDeque<(WriteId, Lsn)>,
}

impl GroupLog {
    /// `checkpointed` may be above the oplog's own hint.
    pub(crate) fn recover(found: &RecoveredGroup, checkpointed: Lsn) -> GroupLog {
        GroupLog {
            base: found.base,
            marks: Watermarks::recovered(found.base.position.lsn, found.last, checkpointed),
            terms: found.terms.clone(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            uncommitted_bytes: 0,
            pending: VecDeque::new(),
        }
    }

    /// What comes before the first entry.
    pub(crate) fn base(&self) -> Base {
        self.base
    }

    pub(crate) fn marks(&self) -> &Watermarks {
        &self.marks
    }

    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The weight of the entries after `applied` up to `upto`: exact for those in memory, the
    /// average of those for the rest.
    pub(crate) fn unapplied_bytes(&self, upto: Lsn) -> u64 {
        let applied = self.marks.applied();
        let held = self.tail.iter().filter(|e| e.lsn > applied && e.lsn <= upto);
        let (count, bytes) = held.fold((0, 0), |(n, b), e| (n + 1, b + e.weight() as u64));
        let average = self.tail_bytes as u64 / (self.tail.len() as u64).max(1);
        bytes + (upto.0.saturating_sub(applied.0) - count) * average.max(Entry::OVERHEAD as u64)
    }

    /// About the weight of the entries that are durable and not applied yet.
    pub(crate) fn lag_bytes(&self) -> u64 {
        let count = self.marks.durable().0.saturating_sub(self.marks.applied().0);
        count.saturating_mul(self.tail_bytes as u64 / (self.tail.len() as u64).max(1))
    }

    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// The term at `lsn`: of entries, and of what comes right before the first one; term 0 at LSN 0.
    /// `None` elsewhere.
    pub(crate) fn term_at(&self, lsn: Lsn) -> Option<Term> {
        let before = self.base.position;
        if lsn == before.lsn {
            return Some(before.term);
        }
        if lsn < before.lsn || lsn > self.marks.appended() {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= lsn);
        assert!(run > 0, "every entry's term is known");
        Some(self.terms[run - 1].1)
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Position {
        let lsn = self.marks.appended();
        Position { term: self.term_at(lsn).unwrap_or_default(), lsn }
    }

    /// Where a follower's log may still agree with one that has another term than ours at `lsn`:
    /// just before our run of that term (Raft §5.3, back-off by term).
    pub(crate) fn before_run_of(&self, lsn: Lsn) -> Lsn {
        let run = self.terms.partition_point(|(first, _)| *first <= lsn);
        let first = if run == 0 { self.marks.first() } else { self.terms[run - 1].0 };
        first.prev().max(self.marks.committed())
    }

    /// Appends an entry that `write` will make durable.
    pub(crate) fn append(&mut self, entry: Entry, write: WriteId) {
        let last = self.last();
        assert_eq!(entry.prev_term, last.term, "an entry names the term before it");
        assert!(entry.term >= last.term, "terms never fall along the log");
        self.marks.append(entry.lsn);
        if self.terms.last().is_none_or(|(_, term)| *term < entry.term) {
            self.terms.push((entry.lsn, entry.term));
        }
        match self.pending.back_mut() {
            Some((w, lsn)) if *w == write => *lsn = entry.lsn,
            _ => self.pending.push_back((write, entry.lsn)),
        }
        self.tail_bytes += entry.weight();
        self.uncommitted_bytes += entry.weight();
        self.tail.push_back(entry);
        if planted::is(Planted::AckBeforeFsync) {
            self.marks.persist(self.marks.appended());
        }
    }

    /// Drops the entries after `to`.
    pub(crate) fn truncate(&mut self, to: Lsn) {
        self.marks.truncate(to);
        while self.tail.back().is_some_and(|e| e.lsn > to) {
            let weight = self.tail.pop_back().map_or(0, |e| e.weight());
            self.tail_bytes -= weight;
            self.uncommitted_bytes -= weight;
        }
        while self.terms.last().is_some_and(|(first, _)| *first > to) {
            self.terms.pop();
        }
        // A completion for what is gone raises nothing.
        for (_, lsn) in &mut self.pending {
            *lsn = (*lsn).min(to);
        }
    }

    /// The log begins after `base` from now on, which is in it.
    pub(crate) fn prune(&mut self, base: Base) {
        let Position { lsn, term } = base.position;
        assert_eq!(self.term_at(lsn), Some(term), "what is pruned is in the log");
        self.marks.prune(lsn);
        while self.tail.front().is_some_and(|e| e.lsn <= lsn) {
            let entry = self.tail.pop_front();
            self.tail_bytes -= entry.map_or(0, |e| e.weight());
        }
        self.begin_after(base);
    }

    fn begin_after(&mut self, base: Base) {
        let first = base.position.lsn.next();
        let term = self.term_at(first);
        self.terms.retain(|(lsn, _)| *lsn > first);
        if let Some(term) = term {
            self.terms.insert(0, (first, term));
        }
        self.base = base;
    }

    /// A snapshot is the state now. A log that has that durably `keeps` what it has; else the snapshot
    /// is its base, durably.
    pub(crate) fn install(&mut self, base: Base, keeps: bool) {
        self.marks.install(base.position.lsn, keeps);
        if keeps {
            // Those up to there are committed now.
            let committed = self.marks.committed();
            let above = self.tail.iter().filter(|e| e.lsn > committed);
            self.uncommitted_bytes = above.map(Entry::weight).sum();
            return;
        }
        self.tail.clear();
        (self.tail_bytes, self.uncommitted_bytes) = (0, 0);
        self.terms.clear();
        self.pending.clear();
        self.base = base;
    }

    /// All writes up to `write` are fsynced. Whether `durable` rose.
    pub(crate) fn persisted(&mut self, write: WriteId) -> bool {
        let before = self.marks.durable();
        while let Some((w, lsn)) = self.pending.front().copied() {
            if w > write {
                break;
            }
            self.pending.pop_front();
            self.marks.persist(lsn);
        }
        self.marks.durable() > before
    }

    /// Raises `committed`. Whether it rose.
    pub(crate) fn commit(&mut self, lsn: Lsn) -> bool {
        let before = self.marks.committed();
        self.marks.commit(lsn);
        let after = self.marks.committed();
        for n in before.0..after.0 {
            if let Some(entry) = self.in_tail(Lsn(n + 1)) {
                self.uncommitted_bytes -= entry.weight();
            }
        }
        after > before
    }

    pub(crate) fn applied(&mut self, lsn: Lsn) {
        self.marks.apply(lsn);
    }

    /// The state is lost but for what is `applied`.
    pub(crate) fn lose_state(&mut self, applied: Lsn) {
        self.marks.lose_state(applied);
    }

    pub(crate) fn checkpointed(&mut self, lsn: Lsn) {
        self.marks.checkpoint(lsn);
    }

    fn in_tail(&self, lsn: Lsn) -> Option<&Entry> {
        let first = self.tail.front()?.lsn;
        self.tail.get(lsn.0.checked_sub(first.0)? as usize)
    }

    /// Entries from `from` to at most `to`, at least one; `None` where they are not in memory.
    pub(crate) fn slice(
        &self,
        from: Lsn,
        to: Lsn,
        bytes_max: usize,
        entries_max: usize,
    ) -> Option<Vec<Entry>> {
        self.in_tail(from)?;
        let first = self.tail.front()?.lsn;
        let start = (from.0 - first.0) as usize;
        let end = (to.0 - first.0 + 1).min(self.tail.len() as u64) as usize;
        let held = self.tail.range(start..end);
        let run = fitting(held.clone(), bytes_max, entries_max);
        Some(held.take(run).cloned().collect())
    }

    /// Forgets the oldest entries in memory until at most `bytes` are left, but none that is not
    /// durable. A leader keeps what is not committed too: it still has to send it.
    pub(crate) fn evict(&mut self, bytes: usize, leads: bool) {
        let upto = if leads { self.marks.applicable() } else { self.marks.durable() };
        while self.tail_bytes > bytes {
            match self.tail.front() {
                Some(e) if e.lsn <= upto => {
                    self.tail_bytes -= e.weight();
                    if e.lsn > self.marks.committed() {
                        self.uncommitted_bytes -= e.weight();
                    }
                    self.tail.pop_front();
                }
                _ => break,
            }
        }
    }

    pub(crate) fn check(&self) {
        self.marks.check();
        assert_eq!(self.base.position.lsn, self.marks.pruned(), "the log begins after its base");
        if let Some(last) = self.tail.back() {
            assert_eq!(last.lsn, self.marks.appended(), "the tail ends at appended");
        }
        if let Some(first) = self.tail.front() {
            assert_eq!(
                first.lsn.0 + self.tail.len() as u64 - 1,
                self.marks.appended().0,
                "the tail has no hole"
            );
        }
        assert!(self.tail_bytes >= self.uncommitted_bytes, "what is counted is in the tail");
        let first = self.tail.front().map_or(self.marks.appended().next(), |e| e.lsn);
        assert!(first <= self.marks.durable().next(), "what is not durable stays in the tail");
        assert!(
            self.pending.iter().all(|(_, lsn)| *lsn <= self.marks.appended()),
            "a pending write is of the log"
        );
    }
}
