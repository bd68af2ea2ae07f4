//! Where a group's entries lie within a segment: a point every so many bytes, never one an entry.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use highwater_core::{GroupId, Lsn};

/// A new point after so many bytes of the group itself.
const OWN_BYTES: usize = 128 << 10;
/// Points of a group that one load follows.
const RUN_POINTS: usize = 32;
/// Points that all cached segments together hold; the newest segment asked for always stays.
const CACHED_POINTS: usize = 256 << 10;
/// Segments in the cache; each holds an open file.
const CACHED_SEGMENTS: usize = 64;

/// Exactly where one entry's frame starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) lsn: Lsn,
    /// The block's offset in the segment.
    pub(crate) block: u64,
    /// The frame's offset in the block's body.
    pub(crate) frame: u32,
}

/// Entries that follow each other in the file, from a point on.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    point: Point,
    /// The LSN after the last one.
    end: Lsn,
    /// How many holes the segment has before it.
    holes: usize,
}

#[derive(Clone, Debug, Default)]
struct GroupPoints {
    stretches: Vec<Stretch>,
    bytes: usize,
    /// The next entry does not follow the last one in the file.
    broken: bool,
}

/// LSNs of a group that a segment should hold and that can't be read, and in which of its holes
/// they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) group: GroupId,
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    pub(crate) holes: Range<usize>,
}

/// The points of one segment. The entries from one point up to the end of its stretch follow each
/// other in the file without a replaced one or a hole between them: every replacement starts a point
/// of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentIndex {
    groups: BTreeMap<GroupId, GroupPoints>,
    /// A new point after so many bytes of whatever groups.
    distance: u64,
    count: usize,
    /// Damaged places that were passed.
    holes: usize,
}

/// Where to read a run of entries: from each point up to, and without, an LSN.
pub(crate) type Run = Vec<(Point, Lsn)>;

impl SegmentIndex {
    pub(crate) fn new(segment_bytes: u64) -> SegmentIndex {
        SegmentIndex { distance: (segment_bytes / 16).max(64 << 10), ..SegmentIndex::default() }
    }

    /// Takes in an entry's frame, in the order of the file.
    pub(crate) fn note(&mut self, group: GroupId, point: Point, len: usize) {
        let (distance, holes) = (self.distance, self.holes);
        let group = self.groups.entry(group).or_default();
        let before = group.stretches.len();
        if group.next() != point.lsn {
            let keep = group.stretches.partition_point(|known| known.point.lsn < point.lsn);
            group.stretches.truncate(keep);
            group.broken = true;
        }
        let far = group.broken || group.bytes >= OWN_BYTES;
        match group.stretches.last_mut() {
            Some(last)
                if !far && last.holes == holes && point.block - last.point.block < distance =>
            {
                last.end = point.lsn.next();
            }
            last => {
                if let Some(last) = last {
                    last.end = last.end.min(point.lsn);
                }
                group.stretches.push(Stretch { point, end: point.lsn.next(), holes });
                (group.bytes, group.broken) = (0, false);
            }
        }
        group.bytes += len;
        self.count = self.count + group.stretches.len() - before;
    }

    /// Passes over an entry that does not count.
    pub(crate) fn pass(&mut self, group: GroupId) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.broken = true;
        }
    }

    /// Passes over a damaged place.
    pub(crate) fn hole(&mut self) {
        self.holes += 1;
    }

    /// Where to read `from..=to`; a bounded part of it. Empty if the segment does not hold `from`.
    pub(crate) fn run(&self, group: GroupId, from: Lsn, to: Lsn) -> Run {
        let mut run = Run::new();
        let mut next = from;
        for Stretch { point, end, .. } in self.from(group, from) {
            if point.lsn > next || *end <= next || next > to || run.len() == RUN_POINTS {
                break;
            }
            run.push((*point, (*end).min(to.next())));
            next = *end;
        }
        run
    }

    /// What is missing of `first..=last`.
    pub(crate) fn gaps(&self, group: GroupId, first: Lsn, last: Lsn) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let (mut next, mut passed) = (first, 0);
        for stretch in self.from(group, first).iter().filter(|stretch| stretch.end > first) {
            if stretch.point.lsn > last {
                break;
            }
            if stretch.point.lsn > next {
                let (last, holes) = (stretch.point.lsn.prev(), passed..stretch.holes);
                gaps.push(Gap { group, first: next, last, holes });
            }
            (next, passed) = (stretch.end, stretch.holes);
        }
        if next <= last {
            gaps.push(Gap { group, first: next, last, holes: passed..self.holes });
        }
        gaps
    }

    /// From the last stretch on that begins at or below `lsn`.
    fn from(&self, group: GroupId, lsn: Lsn) -> &[Stretch] {
        let Some(group) = self.groups.get(&group) else { return &[] };
        let upto = group.stretches.partition_point(|stretch| stretch.point.lsn <= lsn);
        &group.stretches[upto.saturating_sub(1)..]
    }
}

impl GroupPoints {
    fn next(&self) -> Lsn {
        self.stretches.last().map_or(Lsn(0), |last| last.end)
    }
}

/// The indexes of segments that are no longer written to, built when first asked for. The least
/// recently used one goes.
pub(crate) struct Cache<F> {
    segments: BTreeMap<u64, Cached<F>>,
    clock: u64,
}

struct Cached<F> {
    file: Arc<F>,
    index: Arc<SegmentIndex>,
    used: u64,
}

impl<F> Cache<F> {
    pub(crate) fn new() -> Cache<F> {
        Cache { segments: BTreeMap::new(), clock: 0 }
    }

    pub(crate) fn get(&mut self, segment: u64) -> Option<(Arc<F>, Arc<SegmentIndex>)> {
        self.clock += 1;
        let cached = self.segments.get_mut(&segment)?;
        cached.used = self.clock;
        Some((cached.file.clone(), cached.index.clone()))
    }

    pub(crate) fn forget(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    pub(crate) fn put(&mut self, segment: u64, file: Arc<F>, index: Arc<SegmentIndex>) {
        self.clock += 1;
        self.segments.insert(segment, Cached { file, index, used: self.clock });
        loop {
            let points: usize = self.segments.values().map(|cached| cached.index.count).sum();
            let over = points > CACHED_POINTS || self.segments.len() > CACHED_SEGMENTS;
            let oldest = self.segments.iter().min_by_key(|(_, cached)| cached.used);
            match oldest.map(|(segment, _)| *segment) {
                Some(oldest) if over && oldest != segment => self.segments.remove(&oldest),
                _ => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(1);

    fn note(index: &mut SegmentIndex, lsn: u64, block: u64, frame: u32, len: usize) {
        index.note(G, Point { lsn: Lsn(lsn), block, frame }, len);
    }

    fn lsns(run: &Run) -> Vec<(u64, u64)> {
        run.iter().map(|(point, end)| (point.lsn.0, end.0)).collect()
    }

    #[test]
    fn a_replacement_starts_a_point_of_its_own() {
        let mut index = SegmentIndex::new(1 << 20);
        for lsn in 10..20 {
            note(&mut index, lsn, 4096, lsn as u32 * 100, 100);
        }
        note(&mut index, 15, 4096, 9000, 100);
        note(&mut index, 16, 8192, 0, 100);
        let run = index.run(G, Lsn(12), Lsn(16));
        assert_eq!(lsns(&run), [(10, 15), (15, 17)]);
        assert_eq!(run[1].0.frame, 9000);
        assert_eq!(lsns(&index.run(G, Lsn(15), Lsn(15))), [(15, 16)]);
        note(&mut index, 3, 12288, 7, 100);
        assert_eq!(lsns(&index.run(G, Lsn(3), Lsn(100))), [(3, 4)]);
        assert_eq!(index.count, 1);
    }

    #[test]
    fn points_are_as_sparse_as_promised() {
        let mut index = SegmentIndex::new(64 << 20);
        for lsn in 1..=100_000 {
            note(&mut index, lsn, lsn * 4096, 0, 320);
        }
        // By the group's own bytes every 410 entries, by distance every 1024: the nearer counts.
        assert!((240..=250).contains(&index.count), "{} points", index.count);
        assert_eq!(index.run(G, Lsn(1), Lsn(100_000)).len(), RUN_POINTS);
        let run = index.run(G, Lsn(50_000), Lsn(50_000));
        assert_eq!(run.len(), 1);
        assert!(run[0].0.lsn <= Lsn(50_000) && Lsn(50_000) < run[0].1);
    }

    #[test]
    fn gaps_are_told_with_the_holes_they_are_in() {
        let mut index = SegmentIndex::new(1 << 20);
        let gap = |first, last, holes| Gap { group: G, first: Lsn(first), last: Lsn(last), holes };
        note(&mut index, 1, 4096, 0, 100);
        note(&mut index, 2, 4096, 100, 100);
        // Replaced in the hole that follows.
        index.pass(G);
        index.hole();
        note(&mut index, 5, 12288, 0, 100);
        index.hole();
        note(&mut index, 6, 20480, 0, 100);
        index.hole();
        index.hole();
        note(&mut index, 9, 40960, 0, 100);
        assert_eq!(lsns(&index.run(G, Lsn(1), Lsn(9))), [(1, 3)]);
        assert_eq!(lsns(&index.run(G, Lsn(5), Lsn(9))), [(5, 6), (6, 7)]);
        assert!(
            index.run(G, Lsn(3), Lsn(9)).is_empty() && index.run(G, Lsn(10), Lsn(10)).is_empty()
        );
        assert_eq!(index.gaps(G, Lsn(1), Lsn(9)), [gap(3, 4, 0..1), gap(7, 8, 2..4)]);
        index.hole();
        assert_eq!(
            index.gaps(G, Lsn(4), Lsn(11)),
            [gap(4, 4, 0..1), gap(7, 8, 2..4), gap(10, 11, 4..5)]
        );
        assert_eq!(index.gaps(GroupId(7), Lsn(2), Lsn(3)).len(), 1);
    }

    #[test]
    fn the_cache_forgets_what_was_not_used() {
        let mut cache = Cache::new();
        for segment in 0..CACHED_SEGMENTS as u64 {
            cache.put(segment, Arc::new(()), Arc::new(SegmentIndex::new(1 << 20)));
        }
        assert!(cache.get(0).is_some());
        cache.put(1000, Arc::new(()), Arc::new(SegmentIndex::new(1 << 20)));
        assert!(cache.get(0).is_some() && cache.get(1000).is_some());
        assert!(cache.get(1).is_none());
        let huge = SegmentIndex { count: CACHED_POINTS + 1, ..SegmentIndex::default() };
        cache.put(2000, Arc::new(()), Arc::new(huge));
        assert!(cache.get(2000).is_some() && cache.get(1000).is_none());
    }
}
