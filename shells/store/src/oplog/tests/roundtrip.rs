//! What is written is read back: through rolls, replacements, restarts, and with many groups.

use highwater_core::{Entry, GroupId, Lsn, Record, Term};

use super::{
    mem::{MemDisk, Rng},
    model::{Model, SMALL, START, entry, member, open_small},
};
use crate::oplog::{Found, LoadError, Opened, OplogOptions, WriteError, inspect, open};

/// Writes a long random history, with spares always ready.
async fn filled(disk: &MemDisk, seed: u64, batches: u64) -> (Opened<MemDisk>, Vec<Record>) {
    let mut log = open_small(disk).await;
    let (mut rng, mut records, mut model) = (Rng(seed), Vec::new(), Model::default());
    for _ in 0..batches {
        log.preparer.fill().await.expect("the disk is fine");
        let batch = model.batch(&mut rng, SMALL.frame_max());
        let small = batch.iter().map(|r| super::super::format::frame_len(r) as u64).sum::<u64>();
        if small > log.writer.room() {
            continue;
        }
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
        model = Model::of(&records);
    }
    (log, records)
}

#[tokio::test]
async fn long_histories_come_back() {
    for seed in 0..6 {
        let disk = MemDisk::new();
        let (log, records) = filled(&disk, seed, 150).await;
        let model = Model::of(&records);
        for max_bytes in [0, 5_000, 1 << 20] {
            model.check_loads(&log.reader, max_bytes).await;
        }
        let files = disk.contents().len();
        assert!(files > 15, "{files} segments are not many");
        // The second one also goes through headers that list every group.
        for _ in 0..2 {
            let log = open_small(&disk).await;
            assert!(model.matches(&log.recovered), "a restart changed something");
            assert_eq!(log.recovered.cut_bytes, 0);
            model.check_loads(&log.reader, 20_000).await;
        }
    }
}

#[tokio::test]
async fn one_sync_a_write_and_none_for_the_marker() {
    let disk = MemDisk::new();
    let sizes = OplogOptions { segment_bytes: 4 << 20, ..SMALL };
    let mut log = open(disk.clone(), &START, sizes).await.expect("a blank disk");
    let before = log.writer.syncs();
    let many = (1..=5000).map(|lsn| entry(1, lsn, 1, vec![7; 256])).collect();
    log.writer.write(many).await.expect("there is room");
    assert_eq!(log.writer.syncs(), before + 1);
    let steps = disk.world().steps;
    log.writer.close_marker().await.expect("the disk is fine");
    log.writer.close_marker().await.expect("the disk is fine");
    assert_eq!((log.writer.syncs(), disk.world().steps), (before + 1, steps + 1));
    log.writer.write(Vec::new()).await.expect("nothing to do");
    assert_eq!(disk.world().steps, steps + 1);
    // The marker takes no room: the next block stands in its place.
    let room = log.writer.room();
    for lsn in 5001..5011 {
        log.writer.write(vec![entry(1, lsn, 1, "x")]).await.expect("there is room");
        log.writer.close_marker().await.expect("the disk is fine");
    }
    let blocks = sizes.sure(0, sizes.segment_bytes) - sizes.sure(10 * 4096, sizes.segment_bytes);
    assert!((room - log.writer.room()).abs_diff(blocks) < 4096);
    let log = open(disk.power_cut(&mut Rng(1), 0), &START, SMALL).await.expect("it is sound");
    assert_eq!(log.recovered.groups[0].last, Lsn(5010));
}

#[tokio::test]
async fn three_thousand_groups() {
    let options = OplogOptions { segment_bytes: 1 << 20, spare_segments: 2, segments_max: 64 };
    let disk = MemDisk::new();
    let mut log = open(disk.clone(), &START, options).await.expect("a blank disk");
    let mut records = Vec::new();
    // Past the sixteenth segment, so that a header lists all of them.
    for round in 1..=22 {
        log.preparer.fill().await.expect("the disk is fine");
        let batch: Vec<_> = (0..3000)
            .flat_map(|group| {
                let vote = Record::HardState {
                    group: GroupId(group),
                    term: Term(round),
                    vote: Some(member(group % 3)),
                };
                [vote, entry(group, round, round, vec![group as u8; 200])]
            })
            .collect();
        log.writer.write(batch.clone()).await.expect("there is room");
        records.extend(batch);
    }
    let mut complete = Vec::new();
    let mut tell = |found| {
        if let Found::Segment(header) = found
            && header.complete
        {
            complete.push((header.segment, header.groups));
        }
    };
    let summary = inspect(&disk, &mut tell).await.expect("the disk is fine");
    assert_eq!(summary.damages, 0);
    assert_eq!(complete, [(1, 0), (16, 3000)]);
    let model = Model::of(&records);
    let log = open(disk.power_cut(&mut Rng(3), 0), &START, options).await.expect("sound");
    assert!(model.matches(&log.recovered));
    for group in (0..3000).step_by(501) {
        let read = log.reader.load(GroupId(group), Lsn(2), Lsn(3), 1 << 20).await.expect("sound");
        assert_eq!(read[0].payload, vec![group as u8; 200]);
    }
}

/// A segment header has bounds: where a segment touches too many groups for the next one's, it
/// ends early.
#[tokio::test]
async fn more_groups_than_a_header_holds() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let mut records = Vec::new();
    for group in 0..1500 {
        if group % 100 == 0 {
            log.preparer.fill().await.expect("the disk is fine");
        }
        let record = Record::HardState { group: GroupId(group), term: Term(1), vote: None };
        records.push(record.clone());
        if group % 50 == 49 {
            log.writer.write(records[records.len() - 50..].to_vec()).await.expect("room");
        }
    }
    log.writer.close_marker().await.expect("the disk is fine");
    let log = open_small(&disk.power_cut(&mut Rng(5), 0)).await;
    assert!(Model::of(&records).matches(&log.recovered));
}

#[tokio::test]
async fn replaced_entries_are_never_read() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let mut records: Vec<_> = (1..=200).map(|lsn| entry(1, lsn, 1, vec![1; 900])).collect();
    for part in records.chunks(50) {
        log.preparer.fill().await.expect("the disk is fine");
        log.writer.write(part.to_vec()).await.expect("there is room");
    }
    // In the same write, in the same segment, and far back into an earlier one.
    for (from, to, term) in [(195, 210, 2), (205, 206, 3), (40, 90, 4), (80, 81, 5), (82, 82, 6)] {
        log.preparer.fill().await.expect("the disk is fine");
        let part: Vec<_> =
            (from..=to).map(|lsn| entry(1, lsn, term, vec![term as u8; 700])).collect();
        log.writer.write(part.clone()).await.expect("there is room");
        records.extend(part);
        let model = Model::of(&records);
        model.check_loads(&log.reader, 3_000).await;
        let reopened = open_small(&disk.copy()).await;
        assert!(model.matches(&reopened.recovered));
        model.check_loads(&reopened.reader, 3_000).await;
    }
    let error = log.reader.load(GroupId(1), Lsn(83), Lsn(90), 1).await.expect_err("replaced");
    assert!(matches!(error, LoadError::OutOfRange { last: Lsn(82), .. }), "{error}");
}

fn terms(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.term.0).collect()
}

/// Twenty entries of term 1, and what replaces the second half of them.
async fn to_be_replaced(disk: &MemDisk) -> (Opened<MemDisk>, Vec<Record>) {
    let mut log = open_small(disk).await;
    let first = (1..=20).map(|lsn| entry(1, lsn, 1, vec![1; 300])).collect();
    log.writer.write(first).await.expect("there is room");
    (log, (11..=30).map(|lsn| entry(1, lsn, 2, vec![2; 300])).collect())
}

/// Reads go on while a write is under way: they see what is written and not yet synced.
#[tokio::test]
async fn reads_beside_a_write() {
    let disk = MemDisk::new();
    let (mut log, second) = to_be_replaced(&disk).await;
    disk.world().hold_commits = true;
    let load = async {
        let all = log.reader.load(GroupId(1), Lsn(1), Lsn(99), 1 << 20).await.expect("sound");
        let few = log.reader.load(GroupId(1), Lsn(25), Lsn(26), 1 << 20).await.expect("sound");
        assert!(disk.world().hold_commits, "the write was not held up");
        disk.world().hold_commits = false;
        (all, few)
    };
    let (write, (all, few)) = tokio::join!(biased; log.writer.write(second), load);
    write.expect("there is room");
    assert_eq!(terms(&all), [[1; 10], [2; 10], [2; 10]].concat());
    assert_eq!(few.iter().map(|entry| entry.lsn.0).collect::<Vec<_>>(), [25, 26]);
}

/// What is replaced while it is read does not go out.
#[tokio::test]
async fn a_replacement_overtakes_a_read() {
    let disk = MemDisk::new();
    let (mut log, second) = to_be_replaced(&disk).await;
    let load = log.reader.load(GroupId(1), Lsn(9), Lsn(12), 1 << 20);
    let (load, write) = tokio::join!(biased; load, log.writer.write(second));
    write.expect("there is room");
    assert_eq!(terms(&load.expect("sound")), [1, 1, 2, 2]);
}

#[tokio::test]
async fn without_room_nothing_is_written() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    let mut lsn = 0;
    let mut one = || {
        lsn += 1;
        entry(1, lsn, 1, vec![3; 9000])
    };
    let mut records = Vec::new();
    let refused = loop {
        let (record, contents) = (one(), disk.contents());
        let room = log.writer.room();
        match log.writer.write(vec![record.clone()]).await {
            Ok(()) => records.push(record),
            Err(error) => {
                assert!(matches!(error, WriteError::NoRoom { needed: 9064 }), "{error}");
                assert_eq!((room, disk.contents() == contents), (0, true));
                break record;
            }
        }
    };
    // Small things such as votes go on fitting for a while, and the writer is alive.
    let vote = Record::HardState { group: GroupId(1), term: Term(9), vote: None };
    log.writer.write(vec![vote.clone()]).await.expect("votes still fit");
    records.push(vote);
    // The preparer meets a full disk, then space again.
    let used: usize = disk.contents().values().map(Vec::len).sum();
    disk.world().capacity = Some(used + 100_000);
    log.preparer.fill().await.expect_err("the second spare does not fit");
    assert!(log.writer.room() > 0, "the first one did");
    assert!(!disk.contents().contains_key("oplog/spare.tmp"), "half a segment was left behind");
    disk.world().capacity = None;
    log.preparer.fill().await.expect("there is space again");
    log.writer.write(vec![refused.clone()]).await.expect("there is room again");
    records.push(refused);
    let log = open_small(&disk.power_cut(&mut Rng(2), 0)).await;
    let model = Model::of(&records);
    assert!(model.matches(&log.recovered));
    model.check_loads(&log.reader, 1).await;
}

/// Room is what fits for certain: however badly the frames fill blocks and segments.
#[tokio::test]
async fn room_is_no_more_than_fits() {
    for segment_bytes in [64 << 10, 256 << 10] {
        let options = OplogOptions { segment_bytes, ..SMALL };
        for payload in [0, 1_950, 3_969, 4_100, 8_100, 16_200, options.frame_max() - 64] {
            let mut log = open(MemDisk::new(), &START, options).await.expect("a blank disk");
            log.preparer.fill().await.expect("the disk is fine");
            let room = log.writer.room() as usize;
            assert!(room > segment_bytes as usize / 4, "{room} bytes are no room");
            let payload = payload.min(options.frame_max() - 64);
            let count = (room / (payload + 64)) as u64;
            let all = (1..=count).map(|lsn| entry(1, lsn, 1, vec![0; payload])).collect();
            log.writer.write(all).await.expect("there is room");
        }
    }
}

/// A fast writer is held back by the preparer, not refused.
#[tokio::test]
async fn a_fast_writer_waits_for_spares() {
    let disk = MemDisk::new();
    let options = OplogOptions { spare_segments: 1, ..SMALL };
    let Opened { mut writer, preparer, reader, .. } =
        open(disk.clone(), &START, options).await.expect("a blank disk");
    let preparing = tokio::spawn(preparer.run(|_| {}));
    tokio::task::yield_now().await;
    for lsn in 1..=400 {
        writer.write(vec![entry(1, lsn, 1, vec![4; 3000])]).await.expect("room in time");
    }
    assert_eq!(reader.load(GroupId(1), Lsn(400), Lsn(400), 1).await.expect("sound").len(), 1);
    drop(writer);
    preparing.await.expect("the preparer ends with the writer");
}

/// An abandoned write leaves a writer that refuses: nobody knows what is on the disk.
#[tokio::test]
async fn an_abandoned_write_closes_the_log() {
    let disk = MemDisk::new();
    let mut log = open_small(&disk).await;
    {
        let write = log.writer.write(vec![entry(1, 1, 1, "x")]);
        let mut write = std::pin::pin!(write);
        let polled = std::future::poll_fn(|context| {
            std::task::Poll::Ready(write.as_mut().poll(context).is_ready())
        });
        assert!(!polled.await, "the disk yields midway");
    }
    let late = log.writer.write(vec![entry(1, 2, 1, "y")]).await;
    assert!(matches!(late, Err(WriteError::Closed)));
}

#[tokio::test]
#[should_panic(expected = "out of order")]
async fn a_gap_is_a_bug() {
    let mut log = open_small(&MemDisk::new()).await;
    let _ = log.writer.write(vec![entry(1, 2, 1, "x")]).await;
}

#[tokio::test]
#[should_panic(expected = "was admitted")]
async fn a_frame_beyond_the_bound_is_a_bug() {
    let mut log = open_small(&MemDisk::new()).await;
    let payload = vec![0; SMALL.frame_max() - 63];
    let _ = log.writer.write(vec![entry(1, 1, 1, payload)]).await;
}

#[test]
fn futures_may_move_between_threads() {
    fn send<T: Send>(_: T) {}
    fn check(mut log: Opened<MemDisk>) {
        send(log.reader.load(GroupId(1), Lsn(1), Lsn(1), 1));
        send(log.writer.write(Vec::new()));
        send(log.preparer.run(|_| {}));
    }
    let _ = check;
    send(open(MemDisk::new(), &START, SMALL));
}
