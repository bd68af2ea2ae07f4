//! Segments go once nothing in them counts, and the log knows where it begins.

use highwater_core::{ClusterId, NodeId, Record};

use super::{
    damage::{flip, look},
    lost::{start, try_start},
    mem::{MemDisk, Rng},
    model::{Model, SMALL, TIGHT},
};
use crate::{
    identity,
    oplog::{DIR, Found, Loss, OpenError, file_name, history::HISTORY, open, parse_name},
};

/// The segments that are there, in order.
pub(super) fn segments(disk: &MemDisk) -> Vec<u64> {
    let names = disk.contents().into_keys();
    names.filter_map(|name| parse_name(name.strip_prefix(DIR)?.strip_prefix('/')?)).collect()
}

/// A log that has lost its first segments to pruning.
async fn pruned(seed: u64) -> (MemDisk, Vec<Record>) {
    let (disk, mut rng, mut records) = (MemDisk::new(), Rng(seed), Vec::new());
    let mut log = start(&disk).await;
    while segments(&disk).first() < Some(&9) {
        log.preparer.fill().await.expect("the disk is fine");
        let mut model = Model::of(&records);
        let mut batch = model.batch(&mut rng, 3000);
        batch.iter().for_each(|record| model.apply(record));
        batch.extend(model.prune(3));
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
        log.preparer.tidy().await.expect("the disk is fine");
        assert!(segments(&disk).len() <= SMALL.spare_segments + 6, "{:?}", segments(&disk));
    }
    log.writer.close_marker().await.expect("the disk is fine");
    (disk, records)
}

#[tokio::test]
async fn what_was_pruned_gives_its_room_back() {
    for seed in 0..4 {
        let (disk, records) = pruned(seed).await;
        let (found, summary) = look(&disk).await;
        let damage = found.iter().find(|found| matches!(found, Found::Damage { .. }));
        assert_eq!(summary.damages, 0, "{damage:?}");
        let log = start(&disk).await;
        let model = Model::of(&records);
        assert!(model.matches(&log.recovered));
        model.check_loads(&log.reader, 5000).await;
    }
}

/// Those that are not in use any more may be there or not, as a crash has left them; one that is in
/// use may not be missing.
#[tokio::test]
async fn a_segment_in_use_is_missed_and_another_one_is_not() {
    let (mut used, mut retired) = (Vec::new(), Vec::new());
    let (mut disk, mut records) = (MemDisk::new(), Vec::new());
    for seed in 5.. {
        (used, retired) = (Vec::new(), Vec::new());
        (disk, records) = pruned(seed).await;
        for found in look(&disk).await.0 {
            match found {
                Found::Segment(header) => used.push(header.segment),
                Found::Retired { file } => retired.push(file),
                _ => {}
            }
        }
        if !retired.is_empty() && used.len() > 1 {
            break;
        }
    }
    for segment in &used[..used.len() - 1] {
        let disk = disk.copy();
        disk.forget(&file_name(*segment));
        let refused = try_start(&disk, 9).await;
        assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{segment}: {refused:?}");
    }
    for file in &retired {
        disk.forget(file);
    }
    let log = start(&disk).await;
    assert!(Model::of(&records).matches(&log.recovered));
    // A table that is not complete is no beginning.
    let disk = disk.copy();
    disk.edit(&file_name(used[0]), |bytes| {
        bytes[20] &= !1;
        let len = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes")) as usize;
        let sum = crc32c::crc32c(&bytes[12..len]).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
    });
    let refused = try_start(&disk, 9).await;
    assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{refused:?}");
}

/// The newest header may be lost: what the one before it needs is still there, also where the rest is
/// history.
#[tokio::test]
async fn a_lost_header_does_not_need_what_is_gone() {
    for seed in 0..8 {
        let (disk, records) = pruned(seed).await;
        loses_its_newest_header(&disk, &records).await;
    }
    let mut histories = 0;
    for seed in 0..8 {
        let (disk, mut rng, mut records) = (MemDisk::new(), Rng(seed), Vec::new());
        drop(start(&disk).await);
        let opened = identity::open(&disk, ClusterId(1), NodeId(1), 0x0199_0000_0000, 99).await;
        let mut log = open(disk.clone(), &opened.expect("it stands"), TIGHT).await.expect("sound");
        for _ in 0..60 + rng.below(20) {
            log.preparer.fill().await.expect("the disk is fine");
            let batch = Model::of(&records).batch(&mut rng, 3000);
            log.writer.write(batch.clone()).await.expect("there is room");
            records.extend(batch);
            log.preparer.tidy().await.expect("the disk is fine");
        }
        log.writer.close_marker().await.expect("the disk is fine");
        histories += disk.contents().keys().filter(|name| name.starts_with(HISTORY)).count();
        loses_its_newest_header(&disk, &records).await;
    }
    assert!(histories > 8, "{histories} history files are few");
}

async fn loses_its_newest_header(disk: &MemDisk, records: &[Record]) {
    let newest = look(disk).await.0.into_iter().rev().find_map(|found| match found {
        Found::Segment(header) => Some(header.file),
        _ => None,
    });
    flip(disk, &newest.expect("there are segments"), 20);
    let log = start(disk).await;
    let lost = log.recovered.lost.clone().expect("it is told");
    assert_eq!(lost.loss, Loss::Entries);
    let kept = (0..=records.len()).rev().map(|upto| {
        let mut model = Model::of(&records[..upto]);
        model.lose(&records[upto..]);
        model
    });
    let model = kept.into_iter().find(|model| model.matches(&log.recovered)).expect("a prefix");
    model.check_loads(&log.reader, 5000).await;
    drop(log);
    let log = start(disk).await;
    assert!(model.matches(&log.recovered));
    model.check_loads(&log.reader, 5000).await;
}
