//! What is dead goes although nobody writes, be it for lack of room, and nothing else goes.

use highwater_core::{GroupId, Record};

use super::{
    damage::{flip, look},
    mem::{MemDisk, Rng},
    model::{Model, START, TIGHT, entry},
    recycle::segments,
};
use crate::oplog::{Found, Opened, open};

const SEGMENT: usize = TIGHT.segment_bytes as usize;

async fn start(disk: &MemDisk) -> Opened<MemDisk> {
    open(disk.clone(), &START, TIGHT).await.expect("a sound log")
}

fn used(disk: &MemDisk) -> usize {
    disk.contents().values().map(Vec::len).sum()
}

/// What does not get smaller as history, of a group of its own.
fn noise(model: &Model, rng: &mut Rng) -> Record {
    let bytes: Vec<u8> = (0..4000).map(|_| rng.next() as u8).collect();
    entry(9, model.last(GroupId(9)).next().0, 1, bytes)
}

/// Most of it is dead since its last record.
async fn dead(disk: &MemDisk, seed: u64) -> (Opened<MemDisk>, Vec<Record>) {
    let (mut rng, mut records) = (Rng(seed), Vec::new());
    let mut log = start(disk).await;
    while segments(disk).last() < Some(&16) {
        log.preparer.fill().await.expect("the disk is fine");
        let mut batch = Model::of(&records).batch(&mut rng, 3000);
        batch.push(noise(&Model::of(&[&records[..], &batch].concat()), &mut rng));
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
        log.preparer.tidy().await.expect("the disk is fine");
    }
    log.preparer.fill().await.expect("the disk is fine");
    (log, records)
}

async fn prune(log: &mut Opened<MemDisk>, records: &mut Vec<Record>) {
    let prune = Model::of(records).prune(1);
    log.writer.write(prune.clone()).await.expect("it is small");
    records.extend(prune);
}

/// What preparer, keeper and writer do while nobody writes, one after another. Whether all went well.
async fn idle(log: &mut Opened<MemDisk>, looks: usize) -> bool {
    for _ in 0..looks {
        let _ = log.preparer.fill().await;
        let tidy = log.preparer.tidy().await.is_ok();
        log.preparer.look();
        let _ = log.writer.room();
        if log.writer.close_marker().await.is_err() || !tidy {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn an_idle_log_gives_back_what_is_dead_and_stays_where_it_is_then() {
    for seed in 0..4 {
        let disk = MemDisk::new();
        let (mut log, mut records) = dead(&disk, seed).await;
        let room = log.writer.room();
        assert!(idle(&mut log, 20).await);
        let (held, last) = (used(&disk), log.writer.place().0);
        prune(&mut log, &mut records).await;
        assert!(idle(&mut log, 20).await);
        let now = log.writer.place().0;
        // Those that two headers must tell of first, the active one, and the spares.
        assert!(
            used(&disk) <= 7 * SEGMENT && used(&disk) < held,
            "{held} and then {}",
            used(&disk)
        );
        assert!((1..=4).contains(&(now - last)), "from segment {last} to {now}");
        assert!(log.writer.room() + 2 * 4096 >= room.min(TIGHT.room()), "the room is back");
        let files = disk.contents();
        assert!(idle(&mut log, 50).await);
        assert!(files == disk.contents(), "it never ends");
        Model::of(&records).check_loads(&log.reader, 5000).await;
        assert!(Model::of(&records).matches(&start(&disk.kill()).await.recovered));
    }
}

/// What the core was told of is written before the segment changes, and is no room from then on.
#[tokio::test]
async fn room_is_taken_back_before_the_segment_is_left() {
    let disk = MemDisk::new();
    let (mut log, mut records) = dead(&disk, 1).await;
    prune(&mut log, &mut records).await;
    log.preparer.tidy().await.expect("the disk is fine");
    let (told, at) = (log.writer.room(), log.writer.place().0);
    for _ in 0..3 {
        log.preparer.look();
        log.writer.close_marker().await.expect("the disk is fine");
        assert_eq!(log.writer.place().0, at, "nobody was told");
    }
    log.preparer.look();
    log.writer.close_marker().await.expect("the disk is fine");
    let (left, now) = (log.writer.room(), log.writer.place().0);
    assert!(left <= told && now == at, "{told} and then {left} in segment {now} after {at}");
    log.preparer.look();
    log.writer.close_marker().await.expect("the disk is fine");
    assert!(log.writer.place().0 == at + 1 && log.writer.room() <= told);
}

/// A disk that is full of what is dead, and has no room for a segment.
async fn full(disk: &MemDisk, seed: u64, free: usize) -> (Opened<MemDisk>, Vec<Record>) {
    let (mut log, mut records) = dead(disk, seed).await;
    disk.world().capacity = Some(used(disk) + free);
    let mut rng = Rng(seed + 100);
    while log.writer.room() > 0 {
        let _ = log.preparer.fill().await;
        let _ = log.preparer.tidy().await;
        let batch = vec![noise(&Model::of(&records), &mut rng)];
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
    }
    log.preparer.fill().await.expect_err("the disk is full");
    let _ = log.preparer.tidy().await;
    prune(&mut log, &mut records).await;
    (log, records)
}

#[tokio::test]
async fn a_full_disk_has_room_again_once_what_fills_it_is_dead() {
    let mut small = 0;
    for seed in 0..8 {
        let mut disk = MemDisk::new();
        let (mut log, mut records) = full(&disk, seed, SEGMENT / 4 * 3).await;
        let mut smallest = SEGMENT;
        for look in 0..40 {
            if seed % 2 == 1 && look == seed {
                disk = disk.kill();
                log = start(&disk).await;
            }
            idle(&mut log, 1).await;
            let contents = disk.contents();
            let oplog = contents.iter().filter(|(name, _)| name.starts_with("oplog/0"));
            smallest = smallest.min(oplog.map(|(_, file)| file.len()).min().unwrap_or(SEGMENT));
        }
        small += usize::from(smallest < SEGMENT);
        assert!(log.writer.room() >= TIGHT.room() / 2, "{} bytes are no room", log.writer.room());
        let batch = Model::of(&records).batch(&mut Rng(seed), 3000);
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
        let model = Model::of(&records);
        model.check_loads(&log.reader, 5000).await;
        assert!(model.matches(&start(&disk.power_cut(&mut Rng(seed), 0)).await.recovered));
    }
    assert!(small > 4, "only {small} went over small segments");
}

/// Wherever the power goes meanwhile: nothing is lost, and the next start frees what this one did not.
#[tokio::test]
async fn a_power_cut_while_a_full_disk_is_freed_loses_nothing() {
    let disk = MemDisk::new();
    let (mut log, records) = full(&disk, 3, SEGMENT / 4 * 3).await;
    let model = Model::of(&records);
    let before = disk.copy();
    let capacity = disk.world().capacity;
    drop(log);
    log = start(&disk).await;
    let first = disk.world().steps;
    idle(&mut log, 12).await;
    let steps = disk.world().steps - first;
    assert!(steps > 40 && log.writer.room() > 0, "{steps} steps freed nothing");
    for step in 1..=steps + 20 {
        let disk = before.copy();
        disk.world().capacity = capacity;
        disk.world().cut_at = Some(step);
        if let Ok(mut log) = open(disk.clone(), &START, TIGHT).await {
            idle(&mut log, 12).await;
        }
        let mut rng = Rng(step);
        let disk = disk.power_cut(&mut rng, [0, 50, 90, 100][step as usize % 4]);
        let mut log = start(&disk).await;
        assert!(model.matches(&log.recovered), "step {step}");
        model.check_loads(&log.reader, 5000).await;
        for _ in 0..8 {
            idle(&mut log, 3).await;
        }
        assert!(log.writer.room() > TIGHT.room() / 2, "step {step}: {}", log.writer.room());
        model.check_loads(&log.reader, 5000).await;
    }
}

/// A segment that was begun for its header alone may lose it: the one before has what it had.
#[tokio::test]
async fn a_header_that_freed_may_be_lost() {
    for seed in 0..4 {
        let disk = MemDisk::new();
        let (mut log, mut records) = dead(&disk, seed).await;
        prune(&mut log, &mut records).await;
        let model = Model::of(&records);
        let mut at = log.writer.place().0;
        for _ in 0..12 {
            assert!(idle(&mut log, 1).await);
            if log.writer.place().0 == at {
                continue;
            }
            at = log.writer.place().0;
            log.preparer.tidy().await.expect("the disk is fine");
            let disk = disk.copy();
            let newest = look(&disk).await.0.into_iter().rev().find_map(|found| match found {
                Found::Segment(header) => Some(header.file),
                _ => None,
            });
            flip(&disk, &newest.expect("there are segments"), 20);
            let log = start(&disk).await;
            assert!(log.recovered.lost.is_none() && model.matches(&log.recovered));
            model.check_loads(&log.reader, 5000).await;
        }
    }
}
