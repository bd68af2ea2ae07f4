//! A node's disk: the oplog as a FIFO of writes, of which only what was fsynced survives a crash,
//! and the engine's durable states.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use highwater_core::{
    Base, Boot, Doubt, Entry, Formation, GroupId, Hlc, Lsn, Member, Position, Record, Recovered,
    RecoveredGroup, Term, WriteId,
};

use super::state::State;

/// One group's part of an oplog.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupLog {
    pub(crate) term: Term,
    pub(crate) vote: Option<Member>,
    pub(crate) checkpointed: Lsn,
    pub(crate) base: Base,
    /// What comes after that.
    pub(crate) entries: Vec<Entry>,
    pub(crate) acked: BTreeMap<Member, (Term, Lsn)>,
    pub(crate) sound: bool,
    /// Entries that can't be read.
    pub(crate) damaged: BTreeSet<Lsn>,
}

impl GroupLog {
    pub(crate) fn last(&self) -> Lsn {
        Lsn(self.base.position.lsn.0 + self.entries.len() as u64)
    }

    /// Where an entry is in `entries`.
    fn at(&self, lsn: Lsn) -> Option<usize> {
        lsn.0.checked_sub(self.base.position.lsn.0 + 1).map(|at| at as usize)
    }

    pub(crate) fn term_at(&self, lsn: Lsn) -> Option<Term> {
        let Position { lsn: base, term } = self.base.position;
        if lsn == base { Some(term) } else { self.entries.get(self.at(lsn)?).map(|e| e.term) }
    }

    fn begin_after(&mut self, base: Base) {
        let Position { lsn, term } = base.position;
        assert!(lsn > self.base.position.lsn, "P1: a log begins further and further on");
        let keeps = self.term_at(lsn) == Some(term);
        let gone = if keeps { self.at(lsn).map_or(0, |at| at + 1) } else { self.entries.len() };
        self.entries.drain(..gone);
        self.base = base;
        self.damaged.retain(|damaged| *damaged > lsn);
    }
}

/// What a sequence of records says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oplog {
    pub(crate) formation: Option<Formation>,
    pub(crate) groups: BTreeMap<GroupId, GroupLog>,
    pub(crate) boots: BTreeMap<Member, Boot>,
    pub(crate) doubt: Option<Doubt>,
}

impl Oplog {
    pub(crate) fn take(&mut self, record: Record) {
        match record {
            Record::Formation(formation) => {
                assert!(self.formation.is_none(), "a data directory is formed once");
                self.formation = Some(formation);
            }
            Record::HardState { group, term, vote } => {
                let log = self.groups.entry(group).or_default();
                let again = term == log.term && (log.vote.is_none() || log.vote == vote);
                assert!(term > log.term || again, "a vote is never changed: {group:?} {term:?}");
                log.term = term;
                log.vote = vote;
            }
            Record::Append { group, entry } => {
                let log = self.groups.entry(group).or_default();
                assert!(entry.lsn.0 >= 1 && entry.lsn <= log.last().next(), "no hole in a log");
                let at = log.at(entry.lsn).expect("what is pruned is not written again");
                log.entries.truncate(at);
                let before = log.entries.last().map_or(log.base.position.term, |e| e.term);
                assert_eq!(entry.prev_term, before, "an entry names the term before it");
                log.damaged.remove(&entry.lsn);
                log.entries.push(entry);
            }
            Record::Checkpointed { group, lsn } => {
                let log = self.groups.entry(group).or_default();
                log.checkpointed = lsn;
            }
            Record::Base { group, base } => {
                self.groups.entry(group).or_default().begin_after(base);
            }
            Record::Boot { member, boot } => {
                assert!(self.formation.is_some(), "nothing precedes the formation");
                self.boots.insert(member, boot);
            }
            Record::Acked { group, member, term, lsn } => {
                let acked = self.groups.entry(group).or_default().acked.entry(member).or_default();
                assert!((term, lsn) > *acked, "what is acknowledged rises: {group:?} {member:?}");
                *acked = (term, lsn);
            }
            Record::Sound { group, committed } => {
                let log = self.groups.entry(group).or_default();
                assert!(!log.sound && log.last() >= committed, "it was in doubt: {group:?}");
                log.sound = true;
                if group == GroupId::SYSTEM {
                    self.doubt = Some(Doubt { bound: Some(committed) });
                }
            }
        }
    }

    /// The damage ends the log where an earlier image of it ends; of the rest only votes, and what
    /// others acknowledged, were readable. The states that are ahead of that are lost.
    pub(crate) fn tear(&mut self, image: &Oplog) {
        for (group, log) in &mut self.groups {
            let before = image.groups.get(group).cloned().unwrap_or_default();
            (log.base, log.entries) = (before.base, before.entries);
            log.sound = false;
            // What the state holds may be of other entries than are left.
            log.checkpointed = Lsn(0);
        }
        self.doubt = Some(Doubt::default());
    }

    pub(crate) fn load(
        &self,
        group: GroupId,
        from: Lsn,
        to: Lsn,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        // None where the first one is damaged.
        assert!(from <= to, "a load asks for something: {from}..={to}");
        let log = self.groups.get(&group).expect("E4: a load asks for what was written");
        // What was asked for before it was pruned.
        let first = log.at(from)?;
        let all =
            log.entries.get(first..(first + (to.0 - from.0) as usize + 1).min(log.entries.len()));
        let all = all.expect("E4: a load asks for what was written");
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in all {
            if log.damaged.contains(&entry.lsn) {
                break;
            }
            if !found.is_empty() && bytes + entry.weight() > bytes_max {
                break;
            }
            bytes += entry.weight();
            found.push(entry.clone());
        }
        (!found.is_empty()).then_some(found)
    }
}

#[derive(Clone)]
struct Write {
    id: WriteId,
    records: Vec<Record>,
}

/// Control writes.
pub(crate) type Rows = BTreeMap<Bytes, Bytes>;

/// A disk, with what a crash would leave of it.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    /// What a crash leaves.
    pub(crate) durable: Oplog,
    /// What is written, fsynced or not: this is what loads read.
    pub(crate) written: Oplog,
    queue: VecDeque<Write>,
    /// How many writes of the queue the fsync under way covers.
    pub(crate) syncing: usize,
    /// fsyncs do not come back.
    pub(crate) stuck: bool,
    /// Of the materialized states, by group.
    pub(crate) states: BTreeMap<GroupId, State>,
    /// Control writes of each group's checkpoints.
    pub(crate) control: BTreeMap<GroupId, Rows>,
    /// Snapshots that are not in use.
    pub(crate) snapshots: BTreeMap<GroupId, (State, Rows)>,
    pub(crate) room: u64,
}

impl Disk {
    pub(crate) fn new(room: u64) -> Disk {
        Disk { room, ..Disk::default() }
    }

    pub(crate) fn write(&mut self, id: WriteId, records: Vec<Record>) {
        assert!(!records.is_empty(), "a write is never empty");
        for record in &records {
            self.written.take(record.clone());
        }
        self.queue.push_back(Write { id, records });
    }

    /// Begins an fsync of all that is queued; whether there is anything.
    pub(crate) fn begin_sync(&mut self) -> bool {
        let begin = !self.stuck && self.syncing == 0 && !self.queue.is_empty();
        if begin {
            self.syncing = self.queue.len();
        }
        begin
    }

    /// The fsync under way is done: the last write that it covers.
    pub(crate) fn end_sync(&mut self) -> Option<WriteId> {
        let mut last = None;
        for _ in 0..std::mem::take(&mut self.syncing) {
            let write = self.queue.pop_front()?;
            for record in write.records {
                self.durable.take(record);
            }
            last = Some(write.id);
        }
        last
    }

    /// Records that are not fsynced.
    pub(crate) fn unsynced(&self) -> usize {
        self.queue.iter().map(|w| w.records.len()).sum()
    }

    /// Power is lost: of what was not fsynced, the first `keep` records are found later.
    pub(crate) fn crash(&mut self, keep: usize) {
        let queued = std::mem::take(&mut self.queue);
        for record in queued.into_iter().flat_map(|w| w.records).take(keep) {
            self.durable.take(record);
        }
        self.written = self.durable.clone();
        self.syncing = 0;
    }

    /// What a start finds.
    pub(crate) fn recover(&self) -> Recovered {
        let groups = self
            .durable
            .groups
            .iter()
            .map(|(group, log)| {
                let mut terms: Vec<(Lsn, Term)> = Vec::new();
                for entry in &log.entries {
                    if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                        terms.push((entry.lsn, entry.term));
                    }
                }
                RecoveredGroup {
                    group: *group,
                    term: log.term,
                    vote: log.vote,
                    checkpointed: log.checkpointed,
                    base: log.base,
                    last: log.last(),
                    terms,
                    sound: log.sound,
                    acked: log.acked.iter().map(|(m, (term, lsn))| (*m, *term, *lsn)).collect(),
                    hlc: log.entries.last().map_or(Hlc(0), |e| e.hlc),
                }
            })
            .collect();
        let control = self.control.get(&GroupId::SYSTEM);
        Recovered {
            formation: self.durable.formation.clone(),
            groups,
            system_control: control
                .map(|c| c.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
                .unwrap_or_default(),
            system_applied: self.states.get(&GroupId::SYSTEM).map_or(Lsn(0), |s| s.applied),
            room: self.room,
            boots: self.durable.boots.iter().map(|(member, boot)| (*member, *boot)).collect(),
            doubt: self.durable.doubt,
        }
    }

    /// Good copies of entries.
    pub(crate) fn mend(&mut self, group: GroupId, entries: &[Entry]) {
        for entry in entries {
            for oplog in [&mut self.durable, &mut self.written] {
                let Some(log) = oplog.groups.get_mut(&group) else { continue };
                if log.term_at(entry.lsn) == Some(entry.term) {
                    log.damaged.remove(&entry.lsn);
                }
            }
        }
    }

    /// Everything can be read again.
    pub(crate) fn heal(&mut self) {
        for oplog in [&mut self.durable, &mut self.written] {
            oplog.groups.values_mut().for_each(|log| log.damaged.clear());
        }
    }

    /// Entries can't be read any more.
    pub(crate) fn damage(&mut self, group: GroupId, from: Lsn, to: Lsn) {
        for oplog in [&mut self.durable, &mut self.written] {
            if let Some(log) = oplog.groups.get_mut(&group) {
                let last = log.last();
                log.damaged.extend((from.0.max(1)..=to.min(last).0).map(Lsn));
            }
        }
    }

    /// Whether one of these groups may lack what was acknowledged. One that the disk does not know
    /// may have been lost with all that was acknowledged in it.
    pub(crate) fn is_in_doubt<'a>(&self, mut groups: impl Iterator<Item = &'a GroupId>) -> bool {
        let sound = |group: &GroupId| self.durable.groups.get(group).is_some_and(|log| log.sound);
        self.durable
            .doubt
            .is_some_and(|doubt| groups.any(|group| doubt.covers(*group, sound(group))))
    }

    /// Whether all can be read, now and after a crash.
    pub(crate) fn is_whole(&self) -> bool {
        let logs = self.written.groups.values().chain(self.durable.groups.values());
        logs.map(|log| &log.damaged).all(BTreeSet::is_empty)
    }

    /// Whether the state of a group, with its log, is all there is of it.
    pub(crate) fn holds(&self, group: GroupId) -> bool {
        let stands_at = self.states.get(&group).map_or(Lsn(0), |state| state.applied);
        let base = self.durable.groups.get(&group).map(|log| log.base.position.lsn);
        stands_at >= base.unwrap_or_default()
    }

    /// Drops the states that are ahead of their logs.
    pub(crate) fn drop_lost_states(&mut self) {
        for group in self.recover().lost_states().into_keys() {
            self.states.remove(&group);
            self.control.remove(&group);
        }
    }
}
