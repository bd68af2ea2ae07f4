//! A machine's oplog as records: a queue of writes of which only what was synced survives a power
//! cut for certain, and of the rest a prefix. No bytes, no files.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
};

use highwater_core::{
    Base, Boot, Doubt, Entry, Formation, GroupId, Lsn, Member, Position, Record, RecoveredGroup,
    Term, WriteId,
};

/// One group's part of an oplog.
#[derive(Clone, Debug, Default)]
struct GroupLog {
    term: Term,
    vote: Option<Member>,
    checkpointed: Lsn,
    base: Base,
    /// What comes after that.
    entries: Vec<Entry>,
    sound: bool,
    acked: BTreeMap<Member, (Term, Lsn)>,
}

impl GroupLog {
    fn last(&self) -> Lsn {
        Lsn(self.base.position.lsn.0 + self.entries.len() as u64)
    }

    /// Where an entry is in `entries`.
    fn at(&self, lsn: Lsn) -> Option<usize> {
        lsn.0.checked_sub(self.base.position.lsn.0 + 1).map(|at| at as usize)
    }

    fn begin_after(&mut self, base: Base) {
        let Position { lsn, term } = base.position;
        let held = self.at(lsn).filter(|at| self.entries.get(*at).is_some_and(|e| e.term == term));
        self.entries.drain(..held.map_or(self.entries.len(), |at| at + 1));
        self.base = base;
    }
}

/// What a sequence of records says.
#[derive(Clone, Debug, Default)]
struct Image {
    formation: Option<Formation>,
    groups: BTreeMap<GroupId, GroupLog>,
    boots: BTreeMap<Member, Boot>,
    doubt: Option<Doubt>,
}

impl Image {
    fn take(&mut self, record: Record) {
        match record {
            Record::Formation(formation) => self.formation = Some(formation),
            Record::HardState { group, term, vote } => {
                let log = self.groups.entry(group).or_default();
                (log.term, log.vote) = (term, vote);
            }
            Record::Append { group, entry } => {
                let log = self.groups.entry(group).or_default();
                let at = log.at(entry.lsn).filter(|at| *at <= log.entries.len());
                let at = at.expect("no hole in a log");
                log.entries.truncate(at);
                log.entries.push(entry);
            }
            Record::Checkpointed { group, lsn } => {
                self.groups.entry(group).or_default().checkpointed = lsn;
            }
            Record::Base { group, base } => {
                self.groups.entry(group).or_default().begin_after(base);
            }
            Record::Boot { member, boot } => {
                self.boots.insert(member, boot);
            }
            Record::Acked { group, member, term, lsn } => {
                self.groups.entry(group).or_default().acked.insert(member, (term, lsn));
            }
            Record::Sound { group, committed } => {
                self.groups.entry(group).or_default().sound = true;
                if group == GroupId::SYSTEM {
                    self.doubt = Some(Doubt { bound: Some(committed) });
                }
            }
        }
    }
}

/// What a start finds in the oplog.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) formation: Option<Formation>,
    pub(super) groups: Vec<RecoveredGroup>,
    pub(super) boots: Vec<(Member, Boot)>,
    pub(super) doubt: Option<Doubt>,
}

/// Writes that one sync covers at most.
const GROUP_COMMIT_MAX: usize = 1024;

/// An oplog, and what a crash would leave of it.
#[derive(Default)]
pub(super) struct Oplog {
    /// What a crash leaves.
    durable: Image,
    /// What was written, synced or not: this is what loads read.
    written: Image,
    queue: VecDeque<(WriteId, Vec<Record>)>,
    /// How many writes of the queue the sync under way covers.
    syncing: usize,
    /// Entries that can't be read.
    damaged: BTreeSet<(GroupId, Lsn)>,
}

impl Oplog {
    /// Queues a write.
    pub(super) fn write(&mut self, write: WriteId, records: Vec<Record>) {
        for record in &records {
            if let Record::Append { group, entry } = record {
                self.damaged.remove(&(*group, entry.lsn));
            }
            self.written.take(record.clone());
        }
        self.queue.push_back((write, records));
    }

    /// Begins a sync of what is queued. Whether there is something, and no other sync.
    pub(super) fn begin_sync(&mut self) -> bool {
        let begins = self.syncing == 0 && !self.queue.is_empty();
        if begins {
            self.syncing = self.queue.len().min(GROUP_COMMIT_MAX);
        }
        begins
    }

    /// The sync under way is done: the last write that it covers.
    pub(super) fn end_sync(&mut self) -> Option<WriteId> {
        let mut last = None;
        for (write, records) in self.queue.drain(..std::mem::take(&mut self.syncing)) {
            last = Some(write);
            for record in records {
                self.durable.take(record);
            }
        }
        last
    }

    /// How many records are not synced; how many of them the sync under way covers.
    pub(super) fn unsynced(&self) -> (usize, usize) {
        let count = |writes: usize| self.queue.iter().take(writes).map(|(_, r)| r.len()).sum();
        (count(self.queue.len()), count(self.syncing))
    }

    /// The process is gone: of what was not synced, the first `keep` records are found later.
    pub(super) fn crash(&mut self, keep: usize) {
        let queued = std::mem::take(&mut self.queue);
        for record in queued.into_iter().flat_map(|(_, records)| records).take(keep) {
            self.durable.take(record);
        }
        self.written = self.durable.clone();
        self.syncing = 0;
    }

    /// Reads entries back, up to the first that can't be read: no more than `bytes_max` but for the
    /// first one.
    pub(super) fn load(&self, group: GroupId, from: Lsn, to: Lsn, bytes_max: usize) -> Vec<Entry> {
        let log = self.written.groups.get(&group);
        let wanted = log.and_then(|log| {
            let (first, end) = (log.at(from)?, log.at(to)? + 1);
            log.entries.get(first..end.min(log.entries.len()))
        });
        let mut bytes = 0;
        let mut found: Vec<Entry> = Vec::new();
        for entry in wanted.unwrap_or_default() {
            bytes += entry.weight();
            let damaged = self.damaged.contains(&(group, entry.lsn));
            if damaged || bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        found
    }

    /// The last entry that is durable.
    pub(super) fn last(&self, group: GroupId) -> Lsn {
        self.durable.groups.get(&group).map_or(Lsn(0), GroupLog::last)
    }

    /// These entries can't be read any more.
    pub(super) fn damage(&mut self, group: GroupId, lsns: RangeInclusive<u64>) {
        self.damaged.extend(lsns.map(|lsn| (group, Lsn(lsn))));
    }

    /// Good copies of entries.
    pub(super) fn mend(&mut self, group: GroupId, entries: &[Entry]) {
        for entry in entries {
            self.damaged.remove(&(group, entry.lsn));
        }
    }

    /// Whether all can be read.
    pub(super) fn is_whole(&self) -> bool {
        self.damaged.is_empty()
    }

    /// What a start finds.
    pub(super) fn found(&self) -> Found {
        let group = |(group, log): (&GroupId, &GroupLog)| {
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
                hlc: log.entries.last().map(|entry| entry.hlc).unwrap_or_default(),
            }
        };
        let image = &self.durable;
        Found {
            formation: image.formation.clone(),
            groups: image.groups.iter().map(group).collect(),
            boots: image.boots.iter().map(|(member, boot)| (*member, *boot)).collect(),
            doubt: image.doubt,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Hlc, Kind};

    use super::*;

    const G: GroupId = GroupId(2);

    fn append(lsn: u64, term: u64) -> Record {
        let entry = Entry {
            lsn: Lsn(lsn),
            term: Term(term),
            prev_term: Term(0),
            hlc: Hlc(0),
            origin: 0,
            kind: Kind::Op,
            payload: Bytes::from_static(b"op"),
        };
        Record::Append { group: G, entry }
    }

    fn last(log: &Oplog) -> (u64, Vec<(Lsn, Term)>) {
        let found = log.found().groups.pop().unwrap_or_default();
        (found.last.0, found.terms)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut log = Oplog::default();
        log.write(WriteId(1), vec![append(1, 1), append(2, 1)]);
        assert!(log.begin_sync() && !log.begin_sync());
        log.write(WriteId(2), vec![append(2, 2), append(3, 2)]);
        assert_eq!(log.unsynced(), (4, 2));
        assert_eq!(log.end_sync(), Some(WriteId(1)));
        assert_eq!(log.load(G, Lsn(2), Lsn(9), 1_000)[0].term, Term(2), "as written");
        assert_eq!(last(&log).0, 2, "as synced");
        log.crash(1);
        assert_eq!(last(&log), (2, vec![(Lsn(1), Term(1)), (Lsn(2), Term(2))]));
        assert!(!log.begin_sync());
    }

    #[test]
    fn a_load_gives_at_least_one_entry() {
        let mut log = Oplog::default();
        log.write(WriteId(1), (1..=5).map(|lsn| append(lsn, 1)).collect());
        assert_eq!(log.load(G, Lsn(2), Lsn(4), 1).len(), 1);
        assert_eq!(log.load(G, Lsn(2), Lsn(4), 1 << 20).len(), 3);
        assert_eq!(log.load(G, Lsn(4), Lsn(9), 1 << 20).len(), 2);
    }

    #[test]
    fn a_load_ends_before_the_damage_until_it_is_mended() {
        let mut log = Oplog::default();
        log.write(WriteId(1), (1..=5).map(|lsn| append(lsn, 1)).collect());
        let good = log.load(G, Lsn(3), Lsn(4), 1 << 20);
        log.damage(G, 3..=4);
        assert_eq!(log.load(G, Lsn(1), Lsn(5), 1 << 20).len(), 2);
        assert!(log.load(G, Lsn(4), Lsn(5), 1 << 20).is_empty() && !log.is_whole());
        log.mend(G, &good);
        assert!(log.load(G, Lsn(1), Lsn(5), 1 << 20).len() == 5 && log.is_whole());
    }
}
