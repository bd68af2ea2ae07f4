mod bounds;
mod crash;
mod damage;
mod disk;
mod export;
mod layout;
mod model;
#[cfg(not(madsim))]
mod real;
#[cfg(not(madsim))]
mod room;
mod roots;
mod snapshot;

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use highwater_core::{Entry, GroupId, Hlc, Kind, Lsn, Outcome, Position, Term};
use highwater_wire::op::{Action, Answer, Condition, Op, Versions, Write};

use self::disk::MemDisk;
use super::{Checkpoint, StateOptions, States, StoredListed, StoredRecord};

const GROUP: GroupId = GroupId(7);

/// A small deterministic generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

fn states(disk: &MemDisk, open_max: usize) -> States {
    try_states(disk, open_max).unwrap()
}

fn try_states(disk: &MemDisk, open_max: usize) -> io::Result<States> {
    States::new(Box::new(disk.clone()), StateOptions { open_max, cache_bytes: 4 << 20 })
}

fn entry(lsn: u64, kind: Kind, payload: Bytes) -> Entry {
    let term = Term(1);
    Entry { lsn: Lsn(lsn), term, prev_term: term, hlc: Hlc(0), origin: 1, kind, payload }
}

fn op_entry(lsn: u64, writes: Vec<Write>) -> Entry {
    entry(lsn, Kind::Op, Op { writes }.encode())
}

fn put(key: &str, value: &[u8]) -> Write {
    let action = Action::Put { value: Bytes::copy_from_slice(value), content_type: Bytes::new() };
    Write { key: Bytes::copy_from_slice(key.as_bytes()), action, condition: Condition::default() }
}

fn delete(key: &str) -> Write {
    Write { action: Action::Delete, ..put(key, b"") }
}

/// A checkpoint in the first term.
fn checkpoint(lsn: u64, control: Vec<(Bytes, Bytes)>) -> Checkpoint {
    Checkpoint { at: Position { term: Term(1), lsn: Lsn(lsn) }, pruned: Lsn(0), control }
}

fn flush_at(states: &States, group: GroupId, lsn: u64) {
    states.freeze(group, checkpoint(lsn, Vec::new())).unwrap();
    assert_eq!(states.flush(group).unwrap(), Lsn(lsn));
}

/// All records of a group, by pages of three.
fn dump(states: &States, group: GroupId) -> Records {
    let mut all = Records::new();
    let mut after: Option<Bytes> = None;
    loop {
        let (_, page, more) = states.list(group, b"", after.as_deref(), 3, true).unwrap();
        for listed in &page {
            all.insert(listed.key.clone(), listed.record.clone());
        }
        match page.last() {
            Some(last) if more => after = Some(last.key.clone()),
            _ => return all,
        }
    }
}

type Records = BTreeMap<Bytes, StoredRecord>;

/// What a group must be: its whole oplog, and what each prefix of it leaves.
struct Model {
    rng: Rng,
    /// The entry at LSN n is at n - 1.
    log: Vec<Entry>,
    /// The outcome at LSN n is at n - 1, where it is an op's.
    outcomes: Vec<Option<Outcome>>,
    /// What the prefix up to LSN n leaves is at n.
    prefixes: Vec<Records>,
}

const KEYS: [&str; 14] =
    ["a", "a/", "a/1", "a/2", "a/22", "b", "b/x", "b/y/z", "c", "ca", "é", "éa", "z", "zz"];

impl Model {
    fn new(seed: u64) -> Model {
        let prefixes = vec![Records::new()];
        Model { rng: Rng(seed), log: Vec::new(), outcomes: Vec::new(), prefixes }
    }

    fn last(&self) -> u64 {
        self.log.len() as u64
    }

    fn entries(&self, from: u64, to: u64) -> &[Entry] {
        &self.log[from as usize - 1..to as usize]
    }

    /// The outcomes of a run of which all up to `applied` is to be skipped.
    fn outcomes(&self, from: u64, to: u64, applied: u64) -> Vec<Outcome> {
        let outcome = |lsn: u64| {
            let outcome = self.outcomes[lsn as usize - 1].clone()?;
            Some(if lsn <= applied { Outcome::default() } else { outcome })
        };
        (from..=to).filter_map(outcome).collect()
    }

    fn append(&mut self, entries: u64) {
        for _ in 0..entries {
            let lsn = self.last() + 1;
            let mut records = self.prefixes[lsn as usize - 1].clone();
            if self.rng.chance(10) {
                self.log.push(entry(lsn, Kind::TermStart, Bytes::new()));
                self.outcomes.push(None);
            } else {
                let op = self.random_op(&records);
                self.log.push(entry(lsn, Kind::Op, op.encode()));
                self.outcomes.push(Some(expect(&mut records, Lsn(lsn), &op)));
            }
            self.prefixes.push(records);
        }
    }

    fn random_op(&mut self, records: &Records) -> Op {
        let mut keys = KEYS.to_vec();
        let count = if self.rng.chance(60) { 1 } else { 1 + self.rng.below(5) };
        let write = |_| {
            let key = keys.swap_remove(self.rng.below(keys.len() as u64) as usize);
            let mut write = if self.rng.chance(30) {
                delete(key)
            } else {
                let len = *self.rng.pick(&[0, 1, 10, 100, 100, 3000, 20_000]);
                let fill = self.rng.next() as u8;
                put(key, &vec![fill; len])
            };
            if let Action::Put { content_type, .. } = &mut write.action {
                *content_type = Bytes::from_static(self.rng.pick(&["", "text/plain"]).as_bytes());
            }
            let current = records.get(&write.key).map_or(Lsn(0), |record| record.version);
            write.condition.matches = self.random_versions(current);
            write.condition.matches_none = self.random_versions(Lsn(current.0 + 1));
            write
        };
        Op { writes: (0..count).map(write).collect() }
    }

    fn random_versions(&mut self, likely: Lsn) -> Option<Versions> {
        match self.rng.below(10) {
            0 => Some(Versions::Any),
            1 | 2 => Some(Versions::Of(vec![Lsn(self.rng.below(50)), likely])),
            3 => Some(Versions::Of(vec![Lsn(self.rng.below(50))])),
            _ => None,
        }
    }

    /// What a list must answer.
    fn list(
        &self,
        applied: u64,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        values: bool,
    ) -> (Vec<StoredListed>, bool) {
        let listed = |(key, record): (&Bytes, &StoredRecord)| StoredListed {
            key: key.clone(),
            size: record.value.len() as u64,
            record: StoredRecord {
                value: if values { record.value.clone() } else { Bytes::new() },
                ..record.clone()
            },
        };
        let mut all: Vec<_> = self.prefixes[applied as usize]
            .iter()
            .filter(|(key, _)| key.starts_with(prefix.as_bytes()))
            .filter(|(key, _)| after.is_none_or(|after| key.as_ref() > after.as_bytes()))
            .map(listed)
            .collect();
        let more = all.len() > limit;
        all.truncate(limit);
        (all, more)
    }
}

/// The specification of an op, written apart from the engine: conditions in words.
fn expect(records: &mut Records, lsn: Lsn, op: &Op) -> Outcome {
    for (index, write) in op.writes.iter().enumerate() {
        let record = records.get(&write.key);
        let in_list = |versions: &Versions| match versions {
            Versions::Any => true,
            Versions::Of(list) => list.iter().any(|v| Some(*v) == record.map(|r| r.version)),
        };
        let matches = match &write.condition.matches {
            None => true,
            Some(versions) => record.is_some() && in_list(versions),
        };
        let matches_none = match &write.condition.matches_none {
            None => true,
            Some(versions) => record.is_none() || !in_list(versions),
        };
        if !(matches && matches_none) {
            let version = record.map_or(Lsn(0), |r| r.version);
            let answer = Answer::Refused { index: index as u32, version };
            return Outcome { refused: true, answer: answer.encode() };
        }
    }
    let existed = records.contains_key(&op.writes[0].key);
    for write in &op.writes {
        match &write.action {
            Action::Put { value, content_type } => {
                let (value, content_type) = (value.clone(), content_type.clone());
                let record = StoredRecord { version: lsn, content_type, value };
                records.insert(write.key.clone(), record);
            }
            Action::Delete => drop(records.remove(&write.key)),
        }
    }
    Outcome { refused: false, answer: Answer::Done { existed }.encode() }
}
