//! Old segments become history: nothing is lost, damage is told and mended, and what was pruned
//! gives its room back.

use bytes::Bytes;
use highwater_core::{GroupId, Incarnation, Lsn, Record, Term};

use super::{
    damage::{flip, look},
    mem::{MemDisk, Rng},
    mend::{mend, read_all},
    model::{INCARNATION, Model, START, TIGHT, base_at, entry, open_small},
    recycle::segments,
    snapshots::hex,
};
use crate::disk::RealDisk;
use crate::oplog::{
    Found, LoadError, OpenError, Opened,
    format::Salt,
    history::{
        BlockAt, HISTORY, Part, Subject, decode_block, encode_block, encode_footer, file_name,
        parse_name, read_footer,
    },
    open,
};

/// The history files that are there, in order.
fn files(disk: &MemDisk) -> Vec<String> {
    let names = disk.contents().into_keys();
    names.filter(|name| name.starts_with(HISTORY) && !name.ends_with("tmp")).collect()
}

/// Writes on, and seals what there is to seal.
async fn write(log: &mut Opened<MemDisk>, model: &mut Model, rng: &mut Rng, batches: u64) {
    for _ in 0..batches {
        log.preparer.fill().await.expect("the disk is fine");
        let batch = model.batch(rng, 3000);
        batch.iter().for_each(|record| model.apply(record));
        log.writer.write(batch).await.expect("there is room");
        log.preparer.tidy().await.expect("the disk is fine");
    }
}

/// A log most of which is history.
async fn sealed(seed: u64) -> (MemDisk, Opened<MemDisk>, Model) {
    let (disk, mut model) = (MemDisk::new(), Model::default());
    let mut log = open(disk.clone(), &START, TIGHT).await.expect("a blank disk");
    write(&mut log, &mut model, &mut Rng(seed), 150).await;
    (disk, log, model)
}

#[tokio::test]
async fn history_is_read_like_the_rest() {
    for seed in 0..4 {
        let (disk, log, model) = sealed(seed).await;
        assert!(files(&disk).len() > 2, "{:?}", files(&disk));
        let segments = segments(&disk);
        assert!(segments.len() <= TIGHT.segments_max + 6, "{segments:?}");
        for max_bytes in [0, 5_000, 1 << 20] {
            model.check_loads(&log.reader, max_bytes).await;
        }
        for _ in 0..2 {
            let log = open_small(&disk).await;
            assert!(model.matches(&log.recovered), "a restart changed something");
            model.check_loads(&log.reader, 20_000).await;
        }
        let (found, summary) = look(&disk).await;
        let damage = found.iter().find(|found| matches!(found, Found::Damage { .. }));
        assert_eq!(summary.damages, 0, "{damage:?}");
        assert!(summary.histories > 2, "{summary:?}");
    }
}

#[tokio::test]
async fn history_that_was_pruned_gives_its_room_back() {
    let (disk, mut log, mut model) = sealed(3).await;
    let before = files(&disk);
    let prune = model.prune(2);
    prune.iter().for_each(|record| model.apply(record));
    log.writer.write(prune).await.expect("there is room");
    log.preparer.tidy().await.expect("the disk is fine");
    assert_eq!(files(&disk), before, "the newest header may yet be lost");
    write(&mut log, &mut model, &mut Rng(9), 40).await;
    assert!(files(&disk).iter().all(|file| !before.contains(file)), "{:?}", files(&disk));
    model.check_loads(&log.reader, 5000).await;
    let log = open_small(&disk).await;
    assert!(model.matches(&log.recovered));
}

/// A flipped bit anywhere is told with what it hides, and mended with copies of that; in a footer it is
/// refused at the next start, like a file that is missing.
#[tokio::test]
async fn damage_is_told_and_mended() {
    let (disk, log, model) = sealed(1).await;
    drop(log);
    let mut rng = Rng(5);
    let (mut refused, mut mended) = (0, 0);
    for file in files(&disk) {
        let harmed = disk.copy();
        harmed.forget(&file);
        let missing = open(harmed, &START, TIGHT).await;
        for _ in 0..6 {
            let harmed = disk.copy();
            let len = disk.contents()[&file].len() as u64;
            flip(&harmed, &file, rng.below(len));
            let log = match open(harmed.clone(), &START, TIGHT).await {
                Ok(log) => log,
                Err(error) => {
                    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
                    assert!(matches!(missing, Err(OpenError::Damaged { .. })), "it is not needed");
                    refused += 1;
                    continue;
                }
            };
            let missing = read_all(&log.reader, &model, 5000).await;
            let before = harmed.contents();
            mend(&log.reader, &model, &missing, &mut rng).await;
            assert!(read_all(&log.reader, &model, 5000).await.is_empty());
            mended += u64::from(harmed.contents() != before);
            let log = open_small(&harmed.power_cut(&mut rng, 50)).await;
            assert!(model.matches(&log.recovered));
            model.check_loads(&log.reader, 5000).await;
        }
    }
    assert!(refused > 0 && mended > 5, "{refused} refused, {mended} mended");
}

/// A segment that can't be read as a whole is not sealed, until it is mended.
#[tokio::test]
async fn a_damaged_segment_is_not_sealed_before_it_is_mended() {
    let disk = MemDisk::new();
    let mut log = open(disk.clone(), &START, TIGHT).await.expect("a blank disk");
    let all: Vec<_> = (1..200).map(|lsn| entry(1, lsn, 1, vec![lsn as u8; 2000])).collect();
    let model = Model::of(&all);
    for (n, part) in all.chunks(5).enumerate() {
        log.preparer.fill().await.expect("the disk is fine");
        log.writer.write(part.to_vec()).await.expect("there is room");
        if n == 4 {
            flip(&disk, "oplog/000000000001", 9000);
        }
    }
    let Err(LoadError::Damaged { file, missing, .. }) = log.preparer.tidy().await else {
        panic!("it was sealed");
    };
    assert_eq!(file, "oplog/000000000001");
    assert!(files(&disk).is_empty() && segments(&disk)[0] == 1);
    mend(&log.reader, &model, &missing, &mut Rng(1)).await;
    log.preparer.tidy().await.expect("it is mended");
    assert!(!files(&disk).is_empty());
    model.check_loads(&log.reader, 5000).await;
}

/// Without room nothing is lost, and it goes on once there is some.
#[tokio::test]
async fn sealing_waits_for_room() {
    for used in [0, 100, 9000, 30_000] {
        let disk = MemDisk::new();
        let mut log = open(disk.clone(), &START, TIGHT).await.expect("a blank disk");
        // What can't be packed.
        let mut rng = Rng(used as u64);
        let mut payload = || (0..2000).map(|_| rng.next() as u8).collect::<Vec<u8>>();
        let all: Vec<_> = (1..150).map(|lsn| entry(1, lsn, 1, payload())).collect();
        for part in all.chunks(5) {
            log.preparer.fill().await.expect("the disk is fine");
            log.writer.write(part.to_vec()).await.expect("there is room");
        }
        log.preparer.fill().await.expect("the disk is fine");
        let now: usize = disk.contents().values().map(Vec::len).sum();
        disk.world().capacity = Some(now + used);
        assert!(log.preparer.tidy().await.is_err());
        let model = Model::of(&all);
        model.check_loads(&log.reader, 5000).await;
        let mut again = open_small(&disk.copy()).await;
        model.check_loads(&again.reader, 5000).await;
        again.writer.write(Vec::new()).await.expect("nothing to do");
        disk.world().capacity = None;
        log.preparer.tidy().await.expect("there is room");
        assert!(!files(&disk).is_empty());
        model.check_loads(&log.reader, 5000).await;
    }
}

#[tokio::test]
async fn the_bytes_are_frozen() {
    assert_eq!(parse_name("000000000007-0003"), Some((7, 3)));
    assert_eq!(file_name((7, 3)), "history/000000000007-0003");
    assert_eq!((parse_name("7-3"), parse_name("sealing.tmp")), (None, None));
    let salt = Salt::of(INCARNATION);
    let of = Subject { segment: 7, group: GroupId(3), first: Lsn(9) };
    let frames = Bytes::from(vec![5; 300]);
    let block = encode_block(salt, of, 2, &frames);
    assert_eq!(decode_block(salt, of, &block), Ok(frames));
    let plain = Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let unpacked = encode_block(salt, of, 1, &plain);
    assert_eq!(decode_block(salt, of, &unpacked), Ok(plain));
    for at in 0..block.len() * 8 {
        let mut damaged = block.to_vec();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(decode_block(salt, of, &damaged.into()).is_err(), "a flip at {at} went unseen");
    }
    for other in [
        Subject { segment: 8, ..of },
        Subject { group: GroupId(4), ..of },
        Subject { first: Lsn(8), ..of },
    ] {
        assert!(decode_block(salt, other, &block).is_err());
    }
    let len = block.len() as u32;
    let parts = vec![Part {
        group: GroupId(3),
        first: Lsn(9),
        last: Lsn(10),
        blocks: vec![BlockAt { first: Lsn(9), at: 0, len }],
        terms: vec![(Lsn(9), Term(2)), (Lsn(10), Term(4))],
    }];
    let footer = encode_footer(INCARNATION, 7, block.len() as u64, &parts);
    let whole = [&block[..], &unpacked, &footer].map(hex).join("\n\n");
    insta::assert_snapshot!("history_file", whole);
    let disk = MemDisk::new();
    let put = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        disk.edit("f", |file| *file = bytes);
    };
    let file = crate::disk::Disk::open(&disk, "f", true).await.expect("the disk is fine");
    let good = [&block[..], &footer].concat();
    put(&good);
    let read = async |whose, segment| {
        read_footer(&disk, &file, whose, segment).await.expect("the disk is fine")
    };
    assert_eq!(read(INCARNATION, 7).await, Ok(parts));
    assert!(read(INCARNATION, 8).await.is_err() && read(Incarnation(1), 7).await.is_err());
    for at in block.len()..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        put(&damaged);
        // The four bytes of zeros say nothing.
        let zeros = good.len() - 12..good.len() - 8;
        assert!(read(INCARNATION, 7).await.is_err() || zeros.contains(&at), "{at}");
    }
    for len in 0..good.len() {
        put(&good[..len]);
        assert!(read(INCARNATION, 7).await.is_err());
    }
}

/// Entries are sealed also where they may yet be replaced.
#[tokio::test]
async fn what_was_sealed_is_replaced_later() {
    let disk = MemDisk::new();
    let mut log = open(disk.clone(), &START, TIGHT).await.expect("a blank disk");
    let mut records: Vec<Record> =
        (1..=100).map(|lsn| entry(1, lsn, 1, vec![lsn as u8; 3000])).collect();
    records.extend((40..=140).map(|lsn| entry(1, lsn, 2, vec![lsn as u8; 3000])));
    let base = base_at(Term(2), Lsn(50));
    records.push(Record::Base { group: GroupId(1), base });
    records.extend((20..=200).map(|lsn| entry(2, lsn - 19, 2, vec![lsn as u8; 3000])));
    for (n, part) in records.chunks(3).enumerate() {
        log.preparer.fill().await.expect("the disk is fine");
        log.writer.write(part.to_vec()).await.expect("there is room");
        log.preparer.tidy().await.expect("the disk is fine");
        if n % 10 == 0 {
            let model = Model::of(&records[..(n + 1) * 3]);
            model.check_loads(&log.reader, 10_000).await;
            let again = open_small(&disk.copy()).await;
            assert!(model.matches(&again.recovered));
            model.check_loads(&again.reader, 10_000).await;
        }
    }
}

/// The same on the file system there is.
#[tokio::test]
async fn history_on_a_real_disk() {
    let dir = std::env::temp_dir().join(format!("highwater-history-{}", std::process::id()));
    let disk = RealDisk::open(dir.clone()).expect("a directory of its own");
    let mut log = open(disk.clone(), &START, TIGHT).await.expect("a blank disk");
    for lsn in 1..=300 {
        log.preparer.fill().await.expect("the disk is fine");
        log.writer.write(vec![entry(1, lsn, 1, vec![lsn as u8; 3000])]).await.expect("room");
        log.preparer.tidy().await.expect("the disk is fine");
    }
    drop(log);
    let log = open(disk, &START, TIGHT).await.expect("a sound log");
    let files = std::fs::read_dir(dir.join(HISTORY)).expect("there is history").count();
    assert!(files > 4, "{files} history files are few");
    let mut next = Lsn(1);
    while next <= Lsn(300) {
        let entries = log.reader.load(GroupId(1), next, Lsn(300), 50_000).await.expect("all of it");
        assert!(entries.iter().all(|entry| entry.payload[..] == vec![entry.lsn.0 as u8; 3000]));
        assert_eq!(entries[0].lsn, next);
        next = entries[entries.len() - 1].lsn.next();
    }
    drop(log);
    std::fs::remove_dir_all(dir).expect("it is there");
}
