//! Damage that a load meets: never an entry that is not the right one; what is missing is told, and
//! mended in place (failures 20, 51).

use highwater_core::{GroupId, Lsn};

use super::{
    damage::look,
    lost::{AtRest, Harm, start},
    mem::{MemDisk, Rng},
    model::{Model, SMALL, entry, open_small},
};
use crate::oplog::{LoadError, LogReader};

pub(super) type Missing = Vec<(GroupId, Lsn, Lsn)>;

/// Reads everything; what comes is right. Returns what is missing.
pub(super) async fn read_all(
    reader: &LogReader<MemDisk>,
    model: &Model,
    max_bytes: usize,
) -> Missing {
    let mut all = Missing::new();
    for group in model.groups() {
        let (mut from, last) = (model.first(group), model.last(group));
        while from <= last {
            match reader.load(group, from, last, max_bytes).await {
                Ok(entries) => {
                    let upto = Lsn(from.0 + entries.len() as u64 - 1);
                    assert!(!entries.is_empty() && entries == model.entries(group, from, upto));
                    from = upto.next();
                }
                Err(LoadError::Damaged { missing, .. }) => {
                    let (id, first, upto) = missing[0];
                    assert!(id == group && first <= from && from <= upto, "{missing:?}");
                    all.extend(&missing);
                    from = upto.next();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Gives a reader what it misses, in small pieces.
pub(super) async fn mend(
    reader: &LogReader<MemDisk>,
    model: &Model,
    missing: &Missing,
    rng: &mut Rng,
) {
    for (group, from, to) in missing.iter().copied() {
        let mut from = from;
        while from <= to {
            let upto = Lsn((from.0 + rng.below(4)).min(to.0));
            let _ = reader.mend(group, model.entries(group, from, upto)).await;
            from = upto.next();
        }
    }
}

/// Up to three blocks of older segments, often neighbours.
fn harm(rest: &AtRest, disk: &MemDisk, rng: &mut Rng, kinds: &[Harm]) {
    let older = rest.newest().start as u64;
    let mut at = rng.below(older);
    for _ in 0..=rng.below(3) {
        let written = &rest.blocks[at as usize];
        let harm = kinds[rng.below(kinds.len() as u64) as usize];
        if harm != Harm::Body || written.block.body_len > 0 {
            harm.done(disk, written, rng);
        }
        at = if rng.chance(60) { (at + 1).min(older - 1) } else { rng.below(older) };
    }
}

#[tokio::test]
async fn damage_in_older_segments_is_mended() {
    let (mut mended, mut kept) = (0, 0);
    for seed in 0..12 {
        let rest = AtRest::of(seed, 30).await;
        let model = rest.model();
        let mut rng = Rng(seed + 50);
        for turn in 0..12 {
            let disk = rest.disk.copy();
            let kinds: &[Harm] = match turn % 3 {
                0 => &[Harm::Body],
                1 => &[Harm::Header],
                _ => &[Harm::Header, Harm::Body, Harm::Blank],
            };
            harm(&rest, &disk, &mut rng, kinds);
            let log = start(&disk).await;
            assert!(model.matches(&log.recovered));
            let missing = read_all(&log.reader, &model, 5_000).await;
            mend(&log.reader, &model, &missing, &mut rng).await;
            assert_eq!(read_all(&log.reader, &model, 1 << 20).await, [], "copies are served");
            // By itself, on the disk?
            let disk = disk.power_cut(&mut rng, 0);
            let log = start(&disk).await;
            assert!(model.matches(&log.recovered));
            if read_all(&log.reader, &model, 20_000).await.is_empty() {
                assert_eq!(look(&disk).await.1.damages, 0, "seed {seed}, turn {turn}");
                mended += 1;
            } else {
                assert!(turn % 3 != 0, "blocks with sound headers are mended");
                kept += 1;
            }
        }
    }
    // Several neighbours without a header can't be told apart.
    assert!(mended > 100 && kept < 40, "{mended} mended, {kept} not");
}

/// The power goes at every step of mending; the next run does it again.
#[tokio::test]
async fn mending_may_be_interrupted_anywhere() {
    let rest = AtRest::of(3, 30).await;
    let model = rest.model();
    let mut crashes = 0;
    for seed in 0..6 {
        let mut rng = Rng(seed);
        let harmed = rest.disk.copy();
        harm(&rest, &harmed, &mut rng, &[Harm::Body, Harm::Body, Harm::Header]);
        for step in 1.. {
            let disk = harmed.copy();
            let log = start(&disk).await;
            let missing = read_all(&log.reader, &model, 5_000).await;
            let now = disk.world().steps;
            disk.world().cut_at = Some(now + step);
            let mut each = rng.clone();
            mend(&log.reader, &model, &missing, &mut each).await;
            let cut = disk.world().steps >= now + step;
            let disk = disk.power_cut(&mut rng, [0, 50, 100][(step % 3) as usize]);
            let log = start(&disk).await;
            assert!(model.matches(&log.recovered));
            let missing = read_all(&log.reader, &model, 5_000).await;
            mend(&log.reader, &model, &missing, &mut rng).await;
            assert_eq!(read_all(&log.reader, &model, 1 << 20).await, []);
            if !cut {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes > 10, "only {crashes} crashes");
}

/// Behind the writer's back: copies serve, the writer moves on to a new segment, and the next start
/// finds nothing to cut.
#[tokio::test]
async fn damage_behind_the_writer_costs_nothing() {
    for harm in [Harm::Header, Harm::Body, Harm::Blank] {
        let disk = MemDisk::new();
        let mut log = start(&disk).await;
        let mut rng = Rng(8);
        let mut model = Model::default();
        for _ in 0..4 {
            log.preparer.fill().await.expect("the disk is fine");
            let batch = model.batch(&mut rng, 3000);
            log.writer.write(batch.clone()).await.expect("there is room");
            batch.iter().for_each(|record| model.apply(record));
        }
        let written = AtRest::blocks_of(&disk).await;
        harm.done(&disk, &written[1], &mut rng);
        let missing = read_all(&log.reader, &model, 5_000).await;
        assert!(!missing.is_empty());
        mend(&log.reader, &model, &missing, &mut rng).await;
        assert_eq!(read_all(&log.reader, &model, 5_000).await, []);
        let segments = look(&disk).await.1.segments;
        // The damage is where it was: its block may hold votes.
        assert_eq!(look(&disk).await.1.damages, 1);
        for _ in 0..2 {
            let batch = model.batch(&mut rng, 3000);
            log.writer.write(batch.clone()).await.expect("there is room");
            batch.iter().for_each(|record| model.apply(record));
        }
        assert_eq!(look(&disk).await.1.segments, segments + 1, "it moved on, once");
        assert_eq!(read_all(&log.reader, &model, 5_000).await, []);
        log.reader.mend(GroupId(0), Vec::new()).await.expect("the disk is fine");
        assert_eq!(look(&disk).await.1.damages, 0);
        let log = start(&disk.power_cut(&mut rng, 50)).await;
        assert_eq!(log.recovered.lost, None);
        assert!(model.matches(&log.recovered));
        assert_eq!(read_all(&log.reader, &model, 5_000).await, []);
    }
}

/// Entries that are not asked for, or not the right ones, are not kept; and never too many.
#[tokio::test]
async fn copies_are_bounded() {
    let rest = AtRest::of(4, 30).await;
    let model = rest.model();
    let (disk, older) = (rest.disk.copy(), rest.newest().start);
    for written in &rest.blocks[..older] {
        Harm::Blank.done(&disk, written, &mut Rng(1));
    }
    let log = start(&disk).await;
    let kept = || log.reader.shared.lock().patches.bytes();
    for group in model.groups() {
        let all = model.entries(group, model.first(group), model.last(group));
        log.reader.mend(group, all).await.expect("the disk is fine");
    }
    assert_eq!(kept(), 0, "nothing was known to be damaged");
    let missing = read_all(&log.reader, &model, 5_000).await;
    let (group, first, _) = missing[0];
    let mut wrong = model.entries(group, first, first);
    wrong[0].term.0 += 1;
    log.reader.mend(group, wrong).await.expect("the disk is fine");
    assert_eq!(kept(), 0, "of another term");
    let mut most = 0;
    for (group, first, last) in missing {
        let entries = model.entries(group, first, last);
        log.reader.mend(group, entries).await.expect("the disk is fine");
        most = most.max(kept());
        assert!(kept() <= SMALL.segment_bytes as usize);
    }
    assert!(most > SMALL.segment_bytes as usize / 2);
}

/// What stood before a damaged block was replaced in it: it is not served.
#[tokio::test]
async fn a_replacement_that_is_lost_is_not_forgotten() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let old: Vec<_> = (1..=5).map(|lsn| entry(1, lsn, 1, "old")).collect();
    let new: Vec<_> = (3..=4).map(|lsn| entry(1, lsn, 2, "new")).collect();
    let mut model = Model::default();
    for batch in [old, new, vec![entry(1, 5, 2, "last")]] {
        log.writer.write(batch.clone()).await.expect("there is room");
        batch.iter().for_each(|record| model.apply(record));
    }
    let written = AtRest::blocks_of(&disk).await;
    Harm::Body.done(&disk, &written[1], &mut Rng(1));
    let missing = read_all(&log.reader, &model, 1 << 20).await;
    assert_eq!(missing, [(GroupId(1), Lsn(3), Lsn(4))]);
    mend(&log.reader, &model, &missing, &mut Rng(1)).await;
    assert_eq!(read_all(&log.reader, &model, 1 << 20).await, []);
}

/// What the disk can't read is like what it reads wrong.
#[tokio::test]
async fn a_bad_sector_is_like_damage() {
    let rest = AtRest::of(6, 30).await;
    let model = rest.model();
    let written = &rest.blocks[2];
    rest.disk.world().bad = Some((written.file.clone(), written.block.offset + 100));
    let log = start(&rest.disk).await;
    let missing = read_all(&log.reader, &model, 5_000).await;
    assert!(!missing.is_empty());
    mend(&log.reader, &model, &missing, &mut Rng(1)).await;
    assert_eq!(read_all(&log.reader, &model, 5_000).await, []);
    // Writing heals it.
    assert_eq!(rest.disk.world().bad, None);
    assert_eq!(look(&rest.disk).await.1.damages, 0);
}
