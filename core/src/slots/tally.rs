//! How many entries of a kind, and how many bytes of them, any prefix of a group's log holds: exactly
//! at its end, and less and less exactly the further back, in logarithmic space. Slots count effective
//! operations, retention everything.
//!
//! The nth entry leaves a mark. With `z` zeros at the end of n in binary, the mark is
//! kept until `NEAR << z` more have come: of the last `NEAR` all are there, of twice as many every
//! second one, and so on. Which marks there are follows from n alone, so that replicas agree; and
//! since each entry makes just one mark too old, that costs one removal.

use alloc::vec::Vec;

use bytes::{BufMut, Bytes, BytesMut};

use super::change::{get_u16, get_u64};
use crate::types::Lsn;

/// Of a prefix of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Entries that count.
    pub(crate) ops: u64,
    /// Their weight.
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) lsn: Lsn,
    /// Up to and with it.
    pub(crate) count: Count,
    /// When it was applied, as far as log time had risen.
    pub(crate) time_ms: u64,
    /// The last effective operation, up to and with it.
    pub(crate) effective: Lsn,
}

/// Counts entries of a group. Of the latest `NEAR` all are marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally<const NEAR: u64> {
    total: Count,
    /// Rising.
    marks: Vec<Mark>,
}

impl<const NEAR: u64> Tally<NEAR> {
    /// At each of 64 distances half as many as near the end, and those.
    const MARKS_MAX: usize = (NEAR as usize / 2) * 64 + NEAR as usize;

    /// Of all that is applied.
    pub(crate) fn total(&self) -> Count {
        self.total
    }

    /// One more entry, and which effective operation is the last with it.
    pub(crate) fn add(&mut self, lsn: Lsn, bytes: usize, time_ms: u64, effective: Lsn) {
        self.total.ops += 1;
        self.total.bytes += bytes as u64;
        self.marks.push(Mark { lsn, count: self.total, time_ms, effective });
        let n = self.total.ops;
        let old = NEAR.checked_mul(1 << n.trailing_zeros()).and_then(|reach| n.checked_sub(reach));
        if let Some(old) = old
            && let Ok(at) = self.marks.binary_search_by_key(&old, |mark| mark.count.ops)
        {
            self.marks.remove(at);
        }
    }

    /// The log time at which the last entry was applied.
    pub(crate) fn last_ms(&self) -> Option<u64> {
        self.marks.last().map(|mark| mark.time_ms)
    }

    /// Of the prefix up to an LSN: never too much, and too little by less than a fifteenth of what
    /// came after it.
    pub(crate) fn upto(&self, lsn: Lsn) -> Count {
        let after = self.marks.partition_point(|mark| mark.lsn <= lsn);
        after.checked_sub(1).map_or(Count::default(), |at| self.marks[at].count)
    }

    /// The last mark of those that come first, as long as they are so.
    pub(crate) fn last_mark(&self, is_so: impl Fn(&Mark) -> bool) -> Option<Mark> {
        let end = self.marks.partition_point(is_so);
        end.checked_sub(1).map(|at| self.marks[at])
    }

    /// When the first entry after an LSN was applied, or one soon after it.
    pub(crate) fn time_after_lsn(&self, lsn: Lsn) -> Option<u64> {
        let next = self.marks.partition_point(|mark| mark.lsn <= lsn);
        self.marks.get(next).map(|mark| mark.time_ms)
    }

    /// When the first entry after that prefix was applied, or one soon after it.
    pub(crate) fn time_after(&self, prefix: Count) -> Option<u64> {
        let next = self.marks.partition_point(|mark| mark.count.ops <= prefix.ops);
        self.marks.get(next).map(|mark| mark.time_ms)
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.total.ops);
        out.put_u64_le(self.total.bytes);
        out.put_u16_le(self.marks.len() as u16);
        for mark in &self.marks {
            out.put_u64_le(mark.lsn.0);
            out.put_u64_le(mark.count.ops);
            out.put_u64_le(mark.count.bytes);
            out.put_u64_le(mark.time_ms);
            out.put_u64_le(mark.effective.0);
        }
    }

    pub(crate) fn get(bytes: &mut Bytes) -> Option<Tally<NEAR>> {
        let total = Count { ops: get_u64(bytes)?, bytes: get_u64(bytes)? };
        let count = usize::from(get_u16(bytes)?);
        let mark = |_| {
            Some(Mark {
                lsn: Lsn(get_u64(bytes)?),
                count: Count { ops: get_u64(bytes)?, bytes: get_u64(bytes)? },
                time_ms: get_u64(bytes)?,
                effective: Lsn(get_u64(bytes)?),
            })
        };
        let marks: Option<Vec<Mark>> = (0..count).map(mark).collect();
        Some(Tally { total, marks: marks? }).filter(|_| count <= Self::MARKS_MAX)
    }

    pub(crate) fn check(&self) {
        assert!(self.marks.len() <= Self::MARKS_MAX, "S7: what is counted takes bounded memory");
        let last = self.marks.last().map_or(Count::default(), |mark| mark.count);
        assert_eq!(last, self.total, "S7: the last entry is marked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation at LSN 2n, of n bytes.
    fn counted(ops: u64) -> Tally<32> {
        let mut tally = Tally::default();
        for n in 1..=ops {
            tally.add(Lsn(2 * n), n as usize, n / 10, Lsn(2 * n));
            tally.check();
        }
        tally
    }

    fn exactly(ops: u64) -> Count {
        Count { ops, bytes: ops * (ops + 1) / 2 }
    }

    #[test]
    fn the_latest_are_counted_exactly() {
        for total in [1, 2, 31, 32, 33, 64, 1000, 4096, 10_001] {
            let tally = counted(total);
            assert_eq!(tally.total(), exactly(total));
            for n in total.saturating_sub(31)..=total {
                assert_eq!(tally.upto(Lsn(2 * n)), exactly(n), "{n} of {total}");
                assert_eq!(tally.upto(Lsn(2 * n + 1)), exactly(n), "after {n} of {total}");
            }
        }
    }

    #[test]
    fn what_is_further_back_is_counted_nearly() {
        let mut far_off = 0;
        for total in [100, 1000, 5000, 65_536, 70_000] {
            let tally = counted(total);
            for n in 0..=total {
                let found = tally.upto(Lsn(2 * n));
                assert!(found.ops <= n, "never too much: {n} of {total}");
                assert_eq!(found, exactly(found.ops));
                assert!((n - found.ops) * 15 <= total - n, "{n} of {total} is taken for {found:?}");
                far_off += u64::from((n - found.ops) * 25 > total - n);
            }
        }
        assert!(far_off > 0, "the bound is not idle");
    }

    #[test]
    fn it_takes_little_memory() {
        assert!(counted(1000).marks.len() <= 140);
        assert!(counted(100_000).marks.len() <= 240);
    }

    #[test]
    fn marks_follow_from_the_number_alone() {
        let kept = |tally: &Tally<32>, n: u64| tally.marks.iter().any(|mark| mark.count.ops == n);
        let tally = counted(5000);
        for n in 1..=5000u64 {
            let near = 5000 - n < 32 << n.trailing_zeros();
            assert_eq!(kept(&tally, n), near, "{n}");
        }
    }

    #[test]
    fn it_is_read_back_as_it_was() {
        let tally = counted(777);
        let mut out = BytesMut::new();
        tally.put(&mut out);
        let mut bytes = out.freeze();
        assert_eq!(Tally::get(&mut bytes), Some(tally));
        assert!(bytes.is_empty());
    }

    #[test]
    fn it_tells_since_when_something_waits() {
        let tally = counted(100);
        assert_eq!(tally.time_after(exactly(100)), None);
        assert_eq!(tally.time_after(exactly(99)), Some(10));
        assert_eq!(tally.time_after(exactly(79)), Some(8));
    }
}
