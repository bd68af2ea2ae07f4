//! Damage to what was fsynced is told with its place and never taken for the end (failures 28, 51,
//! 52); a torn tail is cut. What a start makes of damage at the end of the log: `lost.rs`.

use bytes::Bytes;
use highwater_core::{ClusterId, GroupId, Incarnation, Lsn, NodeId, Record};

use super::{
    mem::{MemDisk, Rng},
    model::{INCARNATION, Model, SMALL, START, entry, open_small},
};
use crate::{
    identity::{self, Start},
    oplog::{BlockInfo, BlockKind, Found, LoadError, OpenError, Summary, inspect, open},
};

pub(super) async fn look(disk: &MemDisk) -> (Vec<Found>, Summary) {
    let mut found = Vec::new();
    let before = disk.contents();
    let summary = inspect(disk, &mut |one| found.push(one)).await.expect("the disk is fine");
    assert!(disk.contents() == before, "looking changed something");
    (found, summary)
}

/// Every block with its file.
fn blocks(found: &[Found]) -> Vec<(String, BlockInfo)> {
    let mut file = String::new();
    let mut blocks = Vec::new();
    for one in found {
        match one {
            Found::Segment(header) => file.clone_from(&header.file),
            Found::Block(block) => blocks.push((file.clone(), *block)),
            _ => {}
        }
    }
    blocks
}

/// A log of a few segments, at rest: its last block is vouched for by a marker.
async fn at_rest() -> (MemDisk, Model) {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let mut records = Vec::new();
    for lsn in 1..=40 {
        log.preparer.fill().await.expect("the disk is fine");
        let batch = vec![entry(1, lsn, 1, vec![9; 4000]), entry(2, lsn, 1, vec![8; 2000])];
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
    }
    log.writer.close_marker().await.expect("the disk is fine");
    (disk, Model::of(&records))
}

/// The entries in a block.
fn frames_of<'a>(
    found: &'a [Found],
    file: &'a str,
    block: &'a BlockInfo,
) -> impl Iterator<Item = (GroupId, Lsn)> + 'a {
    let mut segment = String::new();
    let end = block.offset + 64 + u64::from(block.body_len);
    found.iter().filter_map(move |one| match one {
        Found::Segment(header) => {
            segment.clone_from(&header.file);
            None
        }
        Found::Frame { offset, record: Record::Append { group, entry }, .. } => {
            let within = segment == file && (block.offset..end).contains(offset);
            within.then_some((*group, entry.lsn))
        }
        _ => None,
    })
}

pub(super) fn flip(disk: &MemDisk, file: &str, at: u64) {
    disk.edit(file, |bytes| bytes[at as usize] ^= 0x10);
}

/// The log is refused for damage there, twice, and stays as it is.
async fn refused(disk: &MemDisk, file: &str, offset: u64) {
    for _ in 0..2 {
        let before = disk.contents();
        let error = open(disk.clone(), &START, SMALL).await.expect_err("damage");
        let OpenError::Damaged { file: in_file, offset: at, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((in_file.as_str(), *at), (file, offset), "{error}");
        assert!(disk.contents() == before, "a damaged log was changed");
    }
}

#[tokio::test]
async fn a_sound_log_is_told_as_such() {
    let (disk, _) = at_rest().await;
    let (found, summary) = look(&disk).await;
    assert_eq!((summary.damages, summary.torn_bytes, summary.frames), (0, 0, 80));
    assert_eq!(blocks(&found).last().map(|(_, block)| block.kind), Some(BlockKind::Marker));
    assert_eq!(found.iter().filter(|one| matches!(one, Found::Spare { .. })).count(), 2);
}

#[tokio::test]
async fn a_damaged_or_missing_header_is_refused() {
    let (sound, _) = at_rest().await;
    let files: Vec<_> = sound.contents().into_keys().collect();
    let used = files.len() - 2;
    // Of the last one, see `lost.rs`.
    for file in &files[..used - 1] {
        for at in [0, 9, 13, 30, 60, 87] {
            let disk = sound.copy();
            flip(&disk, file, at);
            refused(&disk, file, 0).await;
            assert!(look(&disk).await.1.damages > 0);
        }
        let disk = sound.copy();
        disk.edit(file, |bytes| bytes[..4096].fill(0));
        refused(&disk, file, 0).await;
        let disk = sound.copy();
        disk.forget(file);
        refused(&disk, file, 0).await;
        let disk = sound.copy();
        disk.edit(file, |bytes| bytes.truncate(20_000));
        refused(&disk, file, 20_000).await;
    }
    // Two at once can't be followed across.
    let disk = sound.copy();
    for file in &files[used - 2..used] {
        flip(&disk, file, 30);
    }
    refused(&disk, &files[used - 1], 0).await;
}

/// Start-up does not read older segments; whoever reads them sees the damage.
#[tokio::test]
async fn damage_in_an_older_segment_shows_when_it_is_read() {
    let (sound, model) = at_rest().await;
    let (found, _) = look(&sound).await;
    let all = blocks(&found);
    let (file, block) = &all[3];
    flip(&sound, file, block.offset + 100);
    let log = open_small(&sound).await;
    assert!(model.matches(&log.recovered));
    let gone: Vec<_> = frames_of(&found, file, block).collect();
    let (group, lsn) = gone[0];
    let error = log.reader.load(group, lsn, lsn, 1).await.expect_err("damage");
    let LoadError::Damaged { file: in_file, missing, .. } = &error else { panic!("{error}") };
    assert_eq!((in_file, missing[0]), (file, (group, lsn, lsn)));
    assert_eq!(missing.len(), gone.len());
    // All the rest is read around it.
    for (id, lsn) in (1..=40).flat_map(|lsn| [(GroupId(1), Lsn(lsn)), (GroupId(2), Lsn(lsn))]) {
        let read = log.reader.load(id, lsn, Lsn(40), 1 << 20).await;
        assert_eq!(read.is_err(), gone.contains(&(id, lsn)), "{id} {lsn}");
    }
    let (found, summary) = look(&sound).await;
    assert_eq!(summary.damages, 1);
    let frames = found.iter().filter(|one| matches!(one, Found::Frame { .. })).count();
    assert_eq!(frames, 80 - block.frames as usize, "the inspection goes on behind the damage");
}

/// Whatever stands behind the end, the log ends there: torn blocks, and intact ones behind them.
#[tokio::test]
async fn a_torn_tail_is_cut_with_all_that_follows() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let mut records = vec![entry(1, 1, 1, "kept")];
    log.writer.write(records.clone()).await.expect("there is room");
    // One write of three blocks, cut off before its sync.
    let steps = disk.world().steps;
    disk.world().cut_at = Some(steps + 2);
    let torn: Vec<_> = (2..=4).map(|lsn| entry(1, lsn, 1, vec![5; 14_000])).collect();
    log.writer.write(torn).await.expect_err("the power goes before the sync");
    let disk = disk.power_cut(&mut Rng(1), 100);
    let (found, summary) = look(&disk).await;
    assert_eq!(summary.torn_bytes, 0, "all of it survived");
    let all = blocks(&found);
    let [(file, torn), _, _] = &all[all.len() - 3..] else { panic!("three blocks") };

    // Damage in the first of them: it is cut, and so are the two behind it.
    let damaged = disk.copy();
    flip(&damaged, file, torn.offset + 100);
    let (_, summary) = look(&damaged).await;
    assert_eq!((summary.damages, summary.torn_bytes), (0, 3 * 16_384));
    let mut log = open_small(&damaged).await;
    assert_eq!(log.recovered.cut_bytes, summary.torn_bytes);
    assert!(Model::of(&records).matches(&log.recovered));
    let left = &damaged.contents()[file][torn.offset as usize + 4096..];
    assert!(left.iter().all(|byte| *byte == 0), "something of the tail was left");
    records.push(entry(1, 2, 2, "instead"));
    log.writer.write(records[1..].to_vec()).await.expect("there is room");
    let log = open_small(&damaged.power_cut(&mut Rng(2), 0)).await;
    assert!(Model::of(&records).matches(&log.recovered));
}

/// What a cut left on the disk all the same (its blanking was lost) does not come back when the
/// log grows right up to it, though place and sequence fit.
#[tokio::test]
async fn leftovers_of_an_earlier_epoch_never_fit_again() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let first = vec![entry(1, 1, 1, "a")];
    log.writer.write(first.clone()).await.expect("there is room");
    let cut = disk.copy();
    // One write of three blocks, of which the first is lost: four sectors, one, one.
    let payloads = [16_000, 3_000, 3_500].map(|len| vec![1; len]);
    let old = payloads.into_iter().zip(1..).map(|(payload, lsn)| entry(2, lsn, 1, payload));
    log.writer.write(old.collect()).await.expect("there is room");
    let stray = blocks(&look(&disk).await.0).last().expect("there are blocks").clone();
    let old = disk.contents();

    let disk = cut;
    let mut log = open_small(&disk).await;
    // An opening block and one of four sectors lead right up to the third.
    let second = vec![entry(1, 2, 2, vec![2; 16_000])];
    log.writer.write(second.clone()).await.expect("there is room");
    let last = blocks(&look(&disk).await.0).last().expect("there are blocks").1;
    let at = stray.1.offset as usize;
    assert_eq!((last.sequence + 1, last.offset as usize + 16_384), (stray.1.sequence, at));
    disk.edit(&stray.0, |bytes| {
        bytes[at..at + 4096].copy_from_slice(&old[&stray.0][at..at + 4096])
    });
    let log = open_small(&disk).await;
    assert_eq!(log.recovered.cut_bytes, 4096);
    assert!(Model::of(&[first, second].concat()).matches(&log.recovered));
}

#[tokio::test]
async fn another_nodes_segments_are_refused() {
    let (disk, _) = at_rest().await;
    let other = Start { log: Incarnation(INCARNATION.0 + 1), ..START };
    let error = open(disk, &other, SMALL).await.expect_err("another's");
    assert!(matches!(error, OpenError::OtherIncarnation { found: INCARNATION, .. }), "{error}");
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_a_blank_one() {
    let disk = MemDisk::new();
    let start = identity::open(&disk, ClusterId(1), NodeId(1), 1, 2).await.expect("a blank disk");
    let mut log = open(disk.clone(), &start, SMALL).await.expect("a blank disk");
    log.writer.write(vec![entry(1, 1, 1, "x")]).await.expect("there is room");
    for name in disk.contents().keys().filter(|name| name.starts_with("oplog/")) {
        disk.forget(name);
    }
    identity::open(&disk, ClusterId(1), NodeId(1), 1, 2).await.expect("who it is still stands");
    let error = open(disk.clone(), &start, SMALL).await.expect_err("gone");
    assert!(matches!(error, OpenError::Missing), "{error}");
}

/// What a torn header leaves in a spare is gone before the spare is used.
#[tokio::test]
async fn spares_are_blank() {
    let (disk, model) = at_rest().await;
    let (spare, _) = disk.contents().into_iter().rev().nth(1).expect("there are spares");
    disk.edit(&spare, |bytes| bytes[..9000].fill(7));
    let log = open_small(&disk).await;
    assert!(model.matches(&log.recovered));
    assert!(disk.contents()[&spare].iter().all(|byte| *byte == 0));
}

/// What a later release wrote is neither damage nor a torn tail.
#[tokio::test]
async fn a_later_release_is_told() {
    let (sound, _) = at_rest().await;
    let all = blocks(&look(&sound).await.0);
    let (file, block) = &all[all.len() - 2];
    let later = |disk: &MemDisk, file: &str, version: usize, sum: usize, to: usize, salt: u32| {
        disk.edit(file, |bytes| {
            bytes[version] = 9;
            let new = crc32c::crc32c_append(salt, &bytes[sum + 4..to]);
            bytes[sum..sum + 4].copy_from_slice(&new.to_le_bytes());
        });
    };
    let block_salt = crc32c::crc32c(&INCARNATION.0.to_le_bytes());
    let at = block.offset as usize;
    for header in [false, true] {
        let disk = sound.copy();
        if header {
            let len = u32::from_le_bytes(disk.contents()[file][16..20].try_into().expect("four"));
            later(&disk, file, 12, 8, len as usize, 0);
        } else {
            later(&disk, file, at + 8, at + 4, at + 64, block_salt);
        }
        let before = disk.contents();
        let error = open(disk.clone(), &START, SMALL).await.expect_err("later");
        assert!(matches!(&error, OpenError::Later { file: f, .. } if f == file), "{error}");
        assert!(disk.contents() == before, "a later release's log was changed");
        assert_eq!(look(&disk).await.1.damages, 1);
    }
}

/// Random bytes anywhere: an error or a log, never a panic, never an endless walk.
#[tokio::test]
async fn noise_never_panics() {
    let (sound, _) = at_rest().await;
    let files: Vec<_> = sound.contents().into_keys().collect();
    let mut rng = Rng(77);
    for _ in 0..300 {
        let disk = sound.copy();
        for _ in 0..=rng.below(3) {
            let file = &files[rng.below(files.len() as u64) as usize];
            disk.edit(file, |bytes| {
                let at = rng.below(bytes.len() as u64) as usize
                    & if rng.chance(50) { !4095 } else { !0 };
                let end = (at + 1 + rng.below(9000) as usize).min(bytes.len());
                for byte in &mut bytes[at..end] {
                    *byte = if rng.chance(20) { 0 } else { rng.next() as u8 };
                }
            });
        }
        look(&disk).await;
        if let Ok(log) = open(disk, &START, SMALL).await {
            for lsn in 1..=40 {
                let _: Result<Vec<_>, _> =
                    log.reader.load(GroupId(1), Lsn(lsn), Lsn(40), 9000).await;
            }
        }
    }
    // Frames are taken apart without trust as well.
    for _ in 0..20_000 {
        let noise: Vec<u8> = (0..rng.below(120)).map(|_| rng.below(140) as u8).collect();
        let mut body = Bytes::from(noise);
        let _ = crate::oplog::format::decode_record(&mut body);
    }
}
