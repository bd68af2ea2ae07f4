//! Crashes at every step and damage everywhere: failures 20, 22, 23, 51, 54, 55.

use highwater_core::Record;

use super::{
    mem::{MemDisk, Rng},
    model::{Model, SMALL, START, TIGHT, open_small},
};
use crate::oplog::{DIR, OpenError, Opened, OplogOptions, WriteError, file_name, open};

/// A history and how much of it was acknowledged.
#[derive(Clone, Default)]
struct History {
    records: Vec<Record>,
    acked: usize,
    course: Course,
}

/// What becomes of old entries.
#[derive(Clone, Copy, Default, PartialEq)]
enum Course {
    #[default]
    Stay,
    /// They are pruned time and again, and the segments go that held them.
    Prune,
    /// They are sealed.
    Seal,
    /// They are sealed, and pruned now and then.
    Both,
}

impl Course {
    fn options(self) -> OplogOptions {
        if matches!(self, Course::Seal | Course::Both) { TIGHT } else { SMALL }
    }

    /// Batches that are enough for something to happen.
    fn batches(self) -> u64 {
        if self == Course::Stay { 12 } else { 60 }
    }

    /// How many percent of the writes prune.
    fn prunes(self) -> u64 {
        match self {
            Course::Stay | Course::Seal => 0,
            Course::Prune => 30,
            Course::Both => 4,
        }
    }
}

impl History {
    /// Writes on until the disk fails or the batches are through.
    async fn write(&mut self, log: &mut Opened<MemDisk>, rng: &mut Rng, batches: u64) -> bool {
        let mut model = Model::of(&self.records);
        for _ in 0..batches {
            if rng.chance(80) && log.preparer.fill().await.is_err() {
                return false;
            }
            let mut batch = model.batch(rng, SMALL.frame_max());
            if self.course != Course::Stay && rng.chance(self.course.prunes()) {
                batch.extend(Model::of(&[&self.records[..], &batch].concat()).prune(2));
            }
            if self.course != Course::Stay && log.preparer.tidy().await.is_err() {
                return false;
            }
            match log.writer.write(batch.clone()).await {
                Ok(()) => {
                    self.records.extend(batch);
                    self.acked = self.records.len();
                }
                Err(WriteError::NoRoom { .. }) => continue,
                Err(_) => {
                    self.records.extend(batch);
                    return false;
                }
            }
            if rng.chance(40) && log.writer.close_marker().await.is_err() {
                return false;
            }
            model = Model::of(&self.records);
        }
        true
    }

    /// What was recovered is a prefix that holds everything acknowledged; goes on from there.
    fn settle(&mut self, log: &Opened<MemDisk>) {
        let prefix = (self.acked..=self.records.len())
            .rev()
            .find(|upto| Model::of(&self.records[..*upto]).matches(&log.recovered));
        let Some(upto) = prefix else {
            panic!(
                "what was recovered is no prefix of {} records, {} of them acknowledged: {:#?}",
                self.records.len(),
                self.acked,
                log.recovered
            );
        };
        self.records.truncate(upto);
        self.acked = upto;
    }
}

/// How far a run gets before the power goes.
async fn run_until_cut(seed: u64, course: Course, cut_at: Option<u64>) -> (MemDisk, History) {
    let mut rng = Rng(seed);
    let disk = MemDisk::new();
    disk.world().cut_at = cut_at;
    let mut history = History { course, ..History::default() };
    if let Ok(mut log) = open(disk.clone(), &START, course.options()).await {
        history.write(&mut log, &mut rng, course.batches()).await;
    }
    (disk, history)
}

#[tokio::test]
async fn a_power_cut_at_every_step_loses_nothing_acknowledged() {
    let (disk, _) = run_until_cut(7, Course::Stay, None).await;
    let steps = disk.world().steps;
    assert!(steps > 60, "{steps} steps are no workload");
    let mut torn = 0;
    for step in 1..=steps {
        for (seed, keep) in [(1, 0), (2, 50), (3, 90), (4, 100)] {
            let (disk, mut history) = run_until_cut(7, Course::Stay, Some(step)).await;
            let mut rng = Rng(step * 10 + seed);
            let disk = disk.power_cut(&mut rng, keep);
            let mut log = open_small(&disk).await;
            torn += usize::from(log.recovered.cut_bytes > 0);
            history.settle(&log);
            Model::of(&history.records).check_loads(&log.reader, 10_000).await;
            // What was recovered is durable by itself, and what was cut stays away.
            let disk = disk.power_cut(&mut rng, 0);
            log = open_small(&disk).await;
            assert_eq!(log.recovered.cut_bytes, 0, "a second start found something to cut");
            history.acked = history.records.len();
            history.settle(&log);
            assert!(history.write(&mut log, &mut rng, 2).await);
        }
    }
    assert!(torn > 15, "only {torn} runs left a torn tail");
}

/// The same where segments come and go: those that are left begin with a table of everything, and
/// history files have what was in the others.
#[tokio::test]
async fn a_power_cut_while_old_segments_go_loses_nothing_acknowledged() {
    for course in [Course::Prune, Course::Seal, Course::Both] {
        let (disk, history) = run_until_cut(7, course, None).await;
        let steps = disk.world().steps;
        let first = disk.contents().into_keys().find(|name| name.starts_with(DIR));
        assert!(first > Some(file_name(2)), "{first:?} is there: nothing went");
        let mut rng = Rng(history.records.len() as u64);
        for step in (steps / 2..=steps).step_by(9) {
            let (disk, mut history) = run_until_cut(7, course, Some(step)).await;
            let keep = [0, 50, 90, 100][rng.below(4) as usize];
            let disk = disk.power_cut(&mut rng, keep);
            let log = open(disk.clone(), &START, course.options()).await.expect("a sound log");
            history.settle(&log);
            let model = Model::of(&history.records);
            model.check_loads(&log.reader, 10_000).await;
            log.preparer.tidy().await.expect("the disk is fine");
            model.check_loads(&log.reader, 10_000).await;
            let log = open_small(&disk.power_cut(&mut rng, 0)).await;
            history.acked = history.records.len();
            history.settle(&log);
            model.check_loads(&log.reader, 10_000).await;
        }
    }
}

#[tokio::test]
async fn many_lives_with_crashes_also_during_recovery() {
    let (mut cut, mut lost, mut again) = (0, 0, 0);
    for seed in 0..150 {
        let mut rng = Rng(seed * 1000 + 1);
        let mut disk = MemDisk::new();
        let course = [Course::Stay, Course::Prune, Course::Stay, Course::Seal, Course::Both];
        let course = course[seed as usize % 5];
        let mut history = History { course, ..History::default() };
        for life in 0..6 {
            let now = disk.world().steps;
            // Opening a log that stands takes about fourteen steps.
            let long = if course == Course::Stay { 200 } else { 600 };
            let soon = if life > 0 && rng.chance(25) { 14 } else { 30 + rng.below(long) };
            disk.world().cut_at = Some(now + 1 + rng.below(soon));
            match open(disk.clone(), &START, course.options()).await {
                Ok(mut log) => {
                    cut += usize::from(log.recovered.cut_bytes > 0);
                    history.settle(&log);
                    history.write(&mut log, &mut rng, 2 * course.batches()).await;
                }
                Err(OpenError::Io { .. }) => again += 1,
                Err(error) => panic!("seed {seed}, life {life}: {error}"),
            }
            let keep = [0, 30, 70, 97, 100][rng.below(5) as usize];
            disk = if rng.chance(25) { disk.kill() } else { disk.power_cut(&mut rng, keep) };
            lost += disk.world().lost;
        }
        let log = open_small(&disk).await;
        history.settle(&log);
        Model::of(&history.records).check_loads(&log.reader, 1 << 20).await;
    }
    assert!(cut > 20 && lost > 1000 && again > 20, "cut {cut}, lost {lost}, again {again}");
}

/// Failure 22: the pages of a failed sync are clean and gone. The process dies with it; what the
/// next one still reads must be made durable before it counts.
#[tokio::test]
async fn a_failed_sync_never_counts_and_never_misleads() {
    let mut failed = 0;
    for seed in 0..300 {
        let mut rng = Rng(seed + 99);
        let mut disk = MemDisk::new();
        let mut history = History::default();
        for _ in 0..3 {
            let now = disk.world().steps;
            disk.world().fail_sync_at = Some(now + rng.below(120));
            match open(disk.clone(), &START, SMALL).await {
                Ok(mut log) => {
                    history.settle(&log);
                    if !history.write(&mut log, &mut rng, 15).await {
                        failed += 1;
                        let late = log.writer.write(Vec::new()).await;
                        let late_marker = log.writer.close_marker().await;
                        if matches!(late, Err(WriteError::Closed)) {
                            assert!(matches!(late_marker, Err(WriteError::Closed)));
                        }
                    }
                }
                Err(OpenError::Io { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
            disk = disk.kill();
            // The next process sees the pages; a power cut then takes what never got down.
            if let Ok(mut log) = open(disk.clone(), &START, SMALL).await {
                history.settle(&log);
                history.acked = history.records.len();
                history.write(&mut log, &mut rng, 1).await;
            }
            disk = disk.power_cut(&mut rng, 40);
            let log = open_small(&disk).await;
            history.settle(&log);
        }
    }
    assert!(failed > 100, "only {failed} runs saw a failed sync");
}
