//! What the log must say: the simplest thing that could know, and a workload for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{
    Entry, Formation, GroupId, Hlc, Incarnation, Kind, Lsn, Member, NodeId, Record, RecoveredGroup,
    Term,
};

use super::mem::{MemDisk, Rng};
use crate::oplog::{LogReader, Opened, OplogOptions, RecoveredLog, open};

pub(super) const INCARNATION: Incarnation = Incarnation(0x0199_0000_0000_1234_5678_9abc_def0_1234);
pub(super) const SMALL: OplogOptions = OplogOptions { segment_bytes: 64 << 10, spare_segments: 2 };

pub(super) async fn open_small(disk: &MemDisk) -> Opened<MemDisk> {
    open(disk.clone(), INCARNATION, SMALL).await.expect("a sound log")
}

pub(super) fn member(node: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(u128::from(node) << 80 | 7) }
}

pub(super) fn entry(group: u64, lsn: u64, term: u64, payload: impl Into<Bytes>) -> Record {
    let entry = Entry {
        lsn: Lsn(lsn),
        term: Term(term),
        prev_term: Term(0),
        hlc: Hlc::at(lsn),
        origin: 9,
        kind: Kind::Op,
        payload: payload.into(),
    };
    Record::Append { group: GroupId(group), entry }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Group {
    term: Term,
    vote: Option<Member>,
    checkpointed: Lsn,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    formation: Option<Formation>,
    groups: BTreeMap<GroupId, Group>,
}

impl Model {
    pub(super) fn of(records: &[Record]) -> Model {
        let mut model = Model::default();
        for record in records {
            model.apply(record);
        }
        model
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Formation(formation) => self.formation = Some(formation.clone()),
            Record::HardState { group, term, vote } => {
                let group = self.groups.entry(*group).or_default();
                (group.term, group.vote) = (*term, *vote);
            }
            Record::Checkpointed { group, lsn } => {
                let group = self.groups.entry(*group).or_default();
                group.checkpointed = *lsn;
            }
            Record::Append { group, entry } => {
                let group = self.groups.entry(*group).or_default();
                group.entries.truncate(entry.lsn.0 as usize - 1);
                group.entries.push(entry.clone());
            }
        }
    }

    pub(super) fn matches(&self, recovered: &RecoveredLog) -> bool {
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|(id, group)| {
                let mut terms: Vec<(Lsn, Term)> = Vec::new();
                for entry in &group.entries {
                    if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                        terms.push((entry.lsn, entry.term));
                    }
                }
                RecoveredGroup {
                    group: *id,
                    term: group.term,
                    vote: group.vote,
                    checkpointed: group.checkpointed,
                    last: Lsn(group.entries.len() as u64),
                    terms,
                    ..RecoveredGroup::default()
                }
            })
            .collect();
        self.formation == recovered.formation && groups == recovered.groups
    }

    /// Reads every entry back and compares.
    pub(super) async fn check_loads(&self, reader: &LogReader<MemDisk>, max_bytes: usize) {
        for (id, group) in &self.groups {
            let last = Lsn(group.entries.len() as u64);
            let mut read = Vec::new();
            while read.len() < group.entries.len() {
                let from = Lsn(read.len() as u64 + 1);
                let part = reader.load(*id, from, last, max_bytes).await.expect("a sound log");
                assert!(!part.is_empty(), "a load returned nothing");
                read.extend(part);
            }
            assert!(read == group.entries, "group {id} reads back otherwise than it was written");
            assert!(reader.load(*id, last.next(), last.next(), 1).await.is_err());
        }
    }

    /// The next few records of a plausible history.
    pub(super) fn batch(&self, rng: &mut Rng, frame_max: usize) -> Vec<Record> {
        let mut model = self.clone();
        let mut batch = Vec::new();
        if model.formation.is_none() {
            batch.push(Record::Formation(Formation { members: vec![member(1), member(2)] }));
        }
        let most = if rng.chance(10) { 60 } else { 8 };
        for _ in 0..=rng.below(most) {
            let group = rng.below(6);
            let id = GroupId(group);
            let known = model.groups.entry(id).or_default().clone();
            let last = known.entries.len() as u64;
            let term = known.entries.last().map_or(0, |entry| entry.term.0).max(known.term.0);
            let record = match rng.below(20) {
                0 => {
                    let vote = rng.chance(70).then(|| member(rng.below(3)));
                    Record::HardState { group: id, term: Term(term + 1), vote }
                }
                1 => Record::Checkpointed { group: id, lsn: Lsn(rng.below(last + 1)) },
                2 if last > 0 => {
                    let most = if rng.chance(20) { last } else { last.min(5) };
                    let back = rng.below(most);
                    entry(group, last - back, term + 1, payload(rng, 200))
                }
                3 => entry(group, last + 1, term.max(1), payload(rng, frame_max as u64 - 64)),
                _ => entry(group, last + 1, term.max(1), payload(rng, 600)),
            };
            model.apply(&record);
            batch.push(record);
        }
        batch
    }
}

fn payload(rng: &mut Rng, max: u64) -> Bytes {
    let (len, byte) = (rng.below(max + 1), rng.next() as u8);
    // Zeros are the content most easily mistaken for nothing.
    vec![if rng.chance(30) { 0 } else { byte }; len as usize].into()
}
