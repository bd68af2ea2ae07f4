//! Where a group's entries lie within a segment: a point every so many bytes, never one an entry.

use std::{collections::BTreeMap, sync::Arc};

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

#[derive(Clone, Debug, Default)]
struct GroupPoints {
    points: Vec<Point>,
    next: Lsn,
    bytes: usize,
}

/// The points of one segment. The entries from one point up to the next one's LSN follow each other
/// in the file without a replaced one between them: every replacement starts a point of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentIndex {
    groups: BTreeMap<GroupId, GroupPoints>,
    /// A new point after so many bytes of whatever groups.
    distance: u64,
    count: usize,
}

/// Where to read a run of entries: from each point up to, and without, an LSN.
pub(crate) type Run = Vec<(Point, Lsn)>;

impl SegmentIndex {
    pub(crate) fn new(segment_bytes: u64) -> SegmentIndex {
        SegmentIndex { distance: (segment_bytes / 16).max(64 << 10), ..SegmentIndex::default() }
    }

    /// Takes in an entry's frame, in the order of the file.
    pub(crate) fn note(&mut self, group: GroupId, point: Point, len: usize) {
        let group = self.groups.entry(group).or_default();
        let before = group.points.len();
        if point.lsn != group.next {
            let keep = group.points.partition_point(|known| known.lsn < point.lsn);
            group.points.truncate(keep);
        }
        let far = match group.points.last() {
            Some(last) => {
                point.lsn != group.next
                    || group.bytes >= OWN_BYTES
                    || point.block - last.block >= self.distance
            }
            None => true,
        };
        if far {
            group.points.push(point);
            group.bytes = 0;
        }
        group.next = point.lsn.next();
        group.bytes += len;
        self.count = self.count + group.points.len() - before;
    }

    /// Where to read `from..=to`; a bounded part of it. Empty if the segment does not hold `from`.
    pub(crate) fn run(&self, group: GroupId, from: Lsn, to: Lsn) -> Run {
        let Some(group) = self.groups.get(&group) else { return Run::new() };
        let start = group.points.partition_point(|point| point.lsn <= from).saturating_sub(1);
        let part = group.points.get(start..).unwrap_or_default();
        let ends = part.iter().skip(1).map(|point| point.lsn).chain([group.next]);
        part.iter()
            .zip(ends)
            .take_while(|(point, _)| point.lsn <= to)
            .take(RUN_POINTS)
            .map(|(point, end)| (*point, end.min(to.next())))
            .collect()
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
