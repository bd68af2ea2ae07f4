//! What the log must say: the simplest thing that could know, and a workload for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{
    Base, Boot, Doubt, Entry, Formation, GroupId, Hlc, Incarnation, Kind, Lsn, Member, NodeId,
    Position, Record, RecoveredGroup, Term,
};

use super::mem::{MemDisk, Rng};
use crate::{
    identity::Start,
    oplog::{LoadError, LogReader, Opened, OplogOptions, RecoveredLog, open},
};

pub(super) const INCARNATION: Incarnation = Incarnation(0x0199_0000_0000_1234_5678_9abc_def0_1234);
pub(super) const SMALL: OplogOptions =
    OplogOptions { segment_bytes: 64 << 10, spare_segments: 2, segments_max: 8 };

/// As little as can be: most of the log is history.
pub(super) const TIGHT: OplogOptions = OplogOptions { segments_max: 2, ..SMALL };

/// For a disk without the file `identity`.
pub(super) const START: Start = Start {
    starts: Vec::new(),
    member: Member { node: NodeId(1), incarnation: INCARNATION },
    boot: Boot { counter: 1, nonce: 2 },
    log: INCARNATION,
    spare: Incarnation(INCARNATION.0 + 1),
};

pub(super) async fn open_small(disk: &MemDisk) -> Opened<MemDisk> {
    let log = open(disk.clone(), &START, SMALL).await.expect("a sound log");
    assert_eq!((&log.recovered.lost, log.member), (&None, START.member));
    log
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
    base: Base,
    /// What follows the base.
    entries: Vec<Entry>,
    hlc: Hlc,
    sound: bool,
    acked: BTreeMap<Member, (Term, Lsn)>,
}

impl Group {
    fn last(&self) -> Lsn {
        Lsn(self.base.position.lsn.0 + self.entries.len() as u64)
    }

    /// Where an LSN's entry is, or would be.
    fn at(&self, lsn: Lsn) -> usize {
        (lsn.0 - self.base.position.lsn.0) as usize - 1
    }

    fn begin_after(&mut self, base: Base) {
        if base.position.lsn <= self.base.position.lsn {
            return;
        }
        let at = self.at(base.position.lsn);
        if self.entries.get(at).is_some_and(|entry| entry.term == base.position.term) {
            self.entries.drain(..=at);
        } else {
            self.entries.clear();
            self.hlc = Hlc(0);
        }
        self.base = base;
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    formation: Option<Formation>,
    boots: BTreeMap<Member, Boot>,
    doubt: Option<Doubt>,
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

    /// A log whose end was lost: of what follows, only what a vote and a restored peer are judged by
    /// counts.
    pub(super) fn lose(&mut self, behind: &[Record]) {
        for record in behind {
            if !matches!(
                record,
                Record::Append { .. }
                    | Record::Base { .. }
                    | Record::Checkpointed { .. }
                    | Record::Sound { .. }
            ) {
                self.apply(record);
            }
        }
        self.doubt = Some(Doubt { bound: None });
        for group in self.groups.values_mut() {
            (group.sound, group.checkpointed) = (false, Lsn(0));
        }
    }

    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Boot { member, boot } => {
                self.boots.insert(*member, *boot);
            }
            Record::Acked { group, member, term, lsn } => {
                let group = self.groups.entry(*group).or_default();
                group.acked.insert(*member, (*term, *lsn));
            }
            Record::Sound { group, committed } => {
                let known = self.groups.entry(*group).or_default();
                (known.sound, known.checkpointed) = (true, Lsn(0));
                if let (GroupId::SYSTEM, Some(doubt)) = (*group, &mut self.doubt) {
                    doubt.bound = Some(*committed);
                }
            }
            Record::Formation(formation) => self.formation = Some(formation.clone()),
            Record::HardState { group, term, vote } => {
                let group = self.groups.entry(*group).or_default();
                (group.term, group.vote) = (*term, *vote);
            }
            Record::Checkpointed { group, lsn } => {
                let group = self.groups.entry(*group).or_default();
                group.checkpointed = *lsn;
            }
            Record::Base { group, base } => {
                self.groups.entry(*group).or_default().begin_after(*base);
            }
            Record::Append { group, entry } => {
                let group = self.groups.entry(*group).or_default();
                group.entries.truncate(group.at(entry.lsn));
                group.entries.push(entry.clone());
                group.hlc = entry.hlc;
            }
        }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    pub(super) fn entries(&self, group: GroupId, from: Lsn, to: Lsn) -> Vec<Entry> {
        let group = &self.groups[&group];
        group.entries[group.at(from)..=group.at(to)].to_vec()
    }

    /// The last LSN of a group.
    pub(super) fn last(&self, group: GroupId) -> Lsn {
        self.groups.get(&group).map_or(Lsn(0), Group::last)
    }

    /// The first LSN that a group may hold.
    pub(super) fn first(&self, group: GroupId) -> Lsn {
        self.groups.get(&group).map_or(Lsn(1), |group| group.base.position.lsn.next())
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
                let within = |doubt: Doubt| doubt.bound.is_none_or(|bound| id.0 <= bound.0);
                let in_doubt = !group.sound && self.doubt.is_some_and(within);
                RecoveredGroup {
                    group: *id,
                    term: group.term,
                    vote: group.vote,
                    checkpointed: if in_doubt { Lsn(0) } else { group.checkpointed },
                    base: group.base,
                    last: group.last(),
                    terms,
                    sound: group.sound,
                    acked: group.acked.iter().map(|(m, (term, lsn))| (*m, *term, *lsn)).collect(),
                    hlc: group.hlc,
                }
            })
            .collect();
        let boots: Vec<_> = self.boots.iter().map(|(member, boot)| (*member, *boot)).collect();
        (&self.formation, &groups) == (&recovered.formation, &recovered.groups)
            && (&boots, self.doubt) == (&recovered.boots, recovered.doubt)
    }

    /// Reads every entry back and compares.
    pub(super) async fn check_loads(&self, reader: &LogReader<MemDisk>, max_bytes: usize) {
        for (id, group) in &self.groups {
            let (base, last) = (group.base.position.lsn, group.last());
            let mut read = Vec::new();
            while read.len() < group.entries.len() {
                let from = Lsn(base.0 + read.len() as u64 + 1);
                let part = reader.load(*id, from, last, max_bytes).await.expect("a sound log");
                assert!(!part.is_empty(), "a load returned nothing");
                read.extend(part);
            }
            assert!(read == group.entries, "group {id} reads back otherwise than it was written");
            assert!(reader.load(*id, last.next(), last.next(), 1).await.is_err());
            if base > Lsn(0) {
                let pruned = reader.load(*id, base, last.next(), 1).await;
                let Err(LoadError::Pruned { from, first }) = pruned else { panic!("{pruned:?}") };
                assert_eq!((from, first), (base, base.next()));
            }
        }
    }

    /// Prunes all groups to their last few entries.
    pub(super) fn prune(&self, keep: usize) -> Vec<Record> {
        let one = |(id, group): (&GroupId, &Group)| {
            let Entry { lsn, term, .. } = *group.entries.iter().rev().nth(keep)?;
            Some(Record::Base { group: *id, base: base_at(term, lsn) })
        };
        self.groups.iter().filter_map(one).collect()
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
            let (base, held, last) = (known.base, known.entries.len() as u64, known.last().0);
            let last_term = known.entries.last().map_or(base.position.term, |entry| entry.term);
            let term = last_term.max(known.term).0;
            let record = match rng.below(28) {
                0 => {
                    let vote = rng.chance(70).then(|| member(rng.below(3)));
                    Record::HardState { group: id, term: Term(term + 1), vote }
                }
                1 => Record::Checkpointed { group: id, lsn: Lsn(rng.below(last + 1)) },
                2 if held > 0 => {
                    let most = if rng.chance(20) { held } else { held.min(5) };
                    let back = rng.below(most);
                    entry(group, last - back, term + 1, payload(rng, 200))
                }
                3 => entry(group, last + 1, term.max(1), payload(rng, frame_max as u64 - 64)),
                4 => Record::Boot {
                    member: member(rng.below(3)),
                    boot: Boot { counter: rng.below(9), nonce: rng.next() },
                },
                5 | 6 => Record::Acked {
                    group: id,
                    member: member(rng.below(3)),
                    term: Term(term),
                    lsn: Lsn(last),
                },
                7 => Record::Sound { group: id, committed: Lsn(last) },
                8 if held > 0 && rng.chance(50) => {
                    let at = known.entries[rng.below(held) as usize].clone();
                    Record::Base { group: id, base: base_at(at.term, at.lsn) }
                }
                // A snapshot: of something that the log has not, or not so.
                9 if rng.chance(30) => {
                    let lsn = Lsn(base.position.lsn.0 + 1 + rng.below(held + 4));
                    let other = u64::from(lsn.0 <= last || rng.chance(50));
                    Record::Base { group: id, base: base_at(Term(term + other), lsn) }
                }
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

/// A base whose other parts follow from its position.
pub(super) fn base_at(term: Term, lsn: Lsn) -> Base {
    let position = Position { term, lsn };
    Base { position, effective: Lsn(lsn.0 / 2), bytes: 100 * lsn.0 }
}
