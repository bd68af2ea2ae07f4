//! Random histories against a model, without faults.

use super::*;

/// One group of a random history: the model, and where the engine stands by our own books.
struct Subject {
    group: GroupId,
    model: Model,
    applied: u64,
    frozen: Option<u64>,
    durable: u64,
}

impl Subject {
    fn apply(&mut self, states: &States) {
        let rng = &mut self.model.rng;
        let (count, overlap, grow) = (1 + rng.below(12), rng.below(4), rng.chance(50));
        if grow || self.applied == self.model.last() {
            self.model.append(count);
        }
        // Runs may begin in what is applied: after a restart the core knows a lower bound only.
        let from = (self.applied + 1).saturating_sub(overlap).max(1);
        let to = (self.applied + count).min(self.model.last());
        let outcomes = states.apply(self.group, self.model.entries(from, to)).unwrap();
        assert_eq!(outcomes, self.model.outcomes(from, to, self.applied), "{from}..={to}");
        self.applied = to;
    }

    fn read(&mut self, states: &States) {
        assert_eq!(states.applied(self.group).unwrap(), Lsn(self.applied));
        for _ in 0..3 {
            let key = *self.model.rng.pick(&KEYS);
            let record = self.model.prefixes[self.applied as usize].get(key.as_bytes()).cloned();
            assert_eq!(
                states.get(self.group, key.as_bytes()).unwrap(),
                (Lsn(self.applied), record)
            );
        }
        let prefix = *self.model.rng.pick(&["", "", "a", "a/", "a/2", "b/", "é", "q", "zz"]);
        let after = *self.model.rng.pick(&["", "a", "a/1", "a/15", "b", "c", "zz", "~"]);
        let after = Some(after).filter(|after| !after.is_empty());
        let limit = 1 + self.model.rng.below(6) as usize;
        let values = self.model.rng.chance(50);
        let (applied, records, more) = states
            .list(self.group, prefix.as_bytes(), after.map(str::as_bytes), limit, values)
            .unwrap();
        let expected = self.model.list(self.applied, prefix, after, limit, values);
        let asked = format!("prefix {prefix:?} after {after:?} limit {limit}");
        assert_eq!((applied, (records, more)), (Lsn(self.applied), expected), "{asked}");
    }

    fn freeze(&mut self, states: &States) {
        let result = states.freeze(self.group, checkpoint(self.applied, Vec::new()));
        assert_eq!(result.is_ok(), self.frozen.is_none(), "{result:?}");
        self.frozen = self.frozen.or(Some(self.applied));
    }

    fn flush(&mut self, states: &States) {
        self.durable = self.frozen.take().unwrap_or(self.durable);
        assert_eq!(states.flush(self.group).unwrap(), Lsn(self.durable));
    }

    fn restart(&mut self) {
        self.applied = self.durable;
        self.frozen = None;
    }
}

fn history(seed: u64, steps: u64, open_max: usize) {
    let disk = MemDisk::default();
    let mut rng = Rng(seed);
    let subject = |n| Subject {
        group: GroupId(n),
        model: Model::new(seed * 10 + n),
        applied: 0,
        frozen: None,
        durable: 0,
    };
    let mut subjects: Vec<_> = (1..=3).map(subject).collect();
    let mut now = states(&disk, open_max);
    for _ in 0..steps {
        let subject = &mut subjects[rng.below(3) as usize];
        match rng.below(20) {
            0..=6 => subject.apply(&now),
            7..=13 => subject.read(&now),
            14..=16 => subject.freeze(&now),
            17..=18 => subject.flush(&now),
            _ => {
                drop(now);
                now = states(&disk, open_max);
                subjects.iter_mut().for_each(Subject::restart);
            }
        }
    }
    for subject in &mut subjects {
        assert_eq!(dump(&now, subject.group), subject.model.prefixes[subject.applied as usize]);
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    for seed in 0..24 {
        history(seed, 150, 256);
    }
}

/// With one file open at a time, nearly every call has to close one and open another.
#[test]
fn random_histories_agree_with_the_model_when_files_are_closed_all_the_time() {
    for seed in 100..116 {
        history(seed, 150, 1);
    }
}

/// Readers on other threads see whole prefixes only: every op writes its LSN to all keys, so that
/// any mixture of prefixes, generations and files would show.
#[test]
fn readers_see_one_prefix_while_others_apply_and_flush() {
    const LAST: u64 = 600;
    let disk = MemDisk::default();
    let states = states(&disk, 1);
    let keys = ["a", "b", "c"];
    let read = &|group: GroupId| {
        let mut seen = 0;
        while seen < LAST {
            let (applied, records, _) = states.list(group, b"", None, 10, true).unwrap();
            assert!(applied.0 >= seen, "applied fell from {seen} to {applied}");
            seen = applied.0;
            let versions: Vec<_> = records.iter().map(|listed| listed.record.version).collect();
            // Every third op deletes "c".
            let expected = match seen {
                0 => 0,
                _ if seen % 3 == 0 => 2,
                _ => 3,
            };
            assert_eq!(versions, vec![applied; expected]);
            let (applied, record) = states.get(group, b"b").unwrap();
            assert_eq!(record.map_or(Lsn(0), |record| record.version), applied);
        }
    };
    let write = &|group: GroupId| {
        for lsn in 1..=LAST {
            let write = |key: &&str| match (lsn % 3, *key) {
                (0, "c") => delete("c"),
                _ => put(key, &lsn.to_le_bytes()),
            };
            let run = [op_entry(lsn, keys.iter().map(write).collect())];
            states.apply(group, &run).unwrap();
            // Refused while a flush is under way; the last one must succeed.
            while states.freeze(group, checkpoint(lsn, Vec::new())).is_err() && lsn == LAST {
                std::thread::yield_now();
            }
        }
    };
    let flush = &|group: GroupId| while states.flush(group).unwrap() < Lsn(LAST) {};
    std::thread::scope(|scope| {
        for group in [GroupId(1), GroupId(2)] {
            scope.spawn(move || read(group));
            scope.spawn(move || write(group));
            scope.spawn(move || flush(group));
        }
    });
}
