//! What the log says of each group: vote state, last LSN, where terms start, and which segment
//! holds which LSNs. Folded from records while writing and scanning, and from headers at start-up.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{
    Boot, Doubt, Formation, GroupId, Hlc, Lsn, Member, Record, RecoveredGroup, Term,
};

use super::format::{ROW, ROW_TERM, Row, frame_len, header_bound};

/// The LSNs of a group that a segment holds and that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) segment: u64,
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
}

/// One group. `spans` cover `1..=last` without gaps, in order of LSN and of segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) term: Term,
    pub(crate) vote: Option<Member>,
    pub(crate) checkpointed: Lsn,
    pub(crate) last: Lsn,
    pub(crate) terms: Vec<(Lsn, Term)>,
    pub(crate) spans: Vec<Span>,
    /// How often entries were replaced, so that a concurrent load notices.
    pub(crate) truncations: u64,
    /// Found sound since the log last lost entries.
    pub(crate) sound: bool,
    /// What other members acknowledged.
    pub(crate) acked: BTreeMap<Member, (Term, Lsn)>,
}

impl Group {
    /// Forgets everything from `from` on.
    fn truncate(&mut self, from: Lsn) {
        if from > self.last {
            return;
        }
        self.truncations += 1;
        self.last = from.prev();
        self.terms.truncate(self.terms.partition_point(|(first, _)| *first < from));
        self.spans.truncate(self.spans.partition_point(|span| span.first < from));
        if let Some(span) = self.spans.last_mut() {
            span.last = span.last.min(self.last);
        }
    }

    /// Where a term starts: rising in LSN and term.
    fn start_term(&mut self, lsn: Lsn, term: Term) -> Result<(), &'static str> {
        match self.terms.last() {
            Some((_, before)) if *before > term => {
                Err("an entry's term is lower than the one before")
            }
            Some((_, before)) if *before == term => Ok(()),
            _ => {
                self.terms.push((lsn, term));
                Ok(())
            }
        }
    }

    /// The span that holds `lsn`.
    pub(crate) fn span(&self, lsn: Lsn) -> Option<Span> {
        let at = self.spans.partition_point(|span| span.last < lsn);
        self.spans.get(at).copied().filter(|span| span.first <= lsn)
    }
}

/// Every group that the log knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) formation: Option<Formation>,
    /// The last start met of each member's data directory.
    pub(crate) boots: BTreeMap<Member, Boot>,
    /// The log lost entries that may have been acknowledged.
    pub(crate) doubt: Option<Doubt>,
    groups: BTreeMap<GroupId, Group>,
    /// Groups touched since the last segment header.
    dirty: BTreeSet<GroupId>,
    /// At least as many terms started since then.
    dirty_terms: usize,
}

impl Table {
    pub(crate) fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    fn touch(&mut self, group: GroupId) -> &mut Group {
        self.dirty.insert(group);
        self.groups.entry(group).or_default()
    }

    /// Takes in a record that stands in `segment`.
    pub(crate) fn apply(&mut self, segment: u64, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Formation(formation) => self.formation = Some(formation.clone()),
            Record::HardState { group, term, vote } => {
                let group = self.touch(*group);
                group.term = *term;
                group.vote = *vote;
            }
            Record::Checkpointed { group, lsn } => {
                self.touch(*group).checkpointed = *lsn;
            }
            Record::Boot { member, boot } => {
                self.boots.insert(*member, *boot);
            }
            Record::Acked { group, member, term, lsn } => {
                self.touch(*group).acked.insert(*member, (*term, *lsn));
            }
            Record::Sound { group, committed } => {
                self.touch(*group).sound = true;
                if *group == GroupId::SYSTEM
                    && let Some(doubt) = &mut self.doubt
                {
                    doubt.bound = Some(*committed);
                }
            }
            Record::Append { group, entry } => {
                let group = self.touch(*group);
                if entry.lsn == Lsn(0) || entry.lsn > group.last.next() {
                    return Err("an entry does not follow the last one of its group");
                }
                group.truncate(entry.lsn);
                let terms = group.terms.len();
                group.start_term(entry.lsn, entry.term)?;
                group.last = entry.lsn;
                match group.spans.last_mut() {
                    Some(span) if span.segment == segment => span.last = entry.lsn,
                    _ => group.spans.push(Span { segment, first: entry.lsn, last: entry.lsn }),
                }
                self.dirty_terms += group.terms.len() - terms;
            }
        }
        Ok(())
    }

    /// How long the next segment header gets at most, as things stand.
    pub(crate) fn header_bound(&self) -> u64 {
        header_bound(self.members(), self.dirty.len(), self.dirty_terms)
    }

    /// How long a header gets at most that lists every group.
    pub(crate) fn complete_bound(&self) -> u64 {
        header_bound(self.members(), self.groups.len(), self.dirty_terms)
    }

    /// How much longer a record makes the next header at most.
    pub(crate) fn growth(record: &Record) -> u64 {
        match record {
            Record::Formation(_) => frame_len(record) as u64,
            _ => (ROW + ROW_TERM) as u64,
        }
    }

    fn members(&self) -> usize {
        self.formation.as_ref().map_or(0, |formation| formation.members.len())
    }

    /// The rows for the header of the segment after `segment`: of groups that changed since the
    /// last call, or of all. Nothing counts as changed afterwards.
    pub(crate) fn rows(&mut self, segment: u64, complete: bool) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty);
        self.dirty_terms = 0;
        let row = |id: GroupId, group: &Group| {
            let span = group.spans.last().filter(|span| span.segment == segment);
            let first = span.map_or(Lsn(0), |span| span.first);
            let from = match span {
                Some(span) => group.terms.partition_point(|(lsn, _)| *lsn < span.first),
                None => group.terms.len(),
            };
            Row {
                group: id,
                term: group.term,
                vote: group.vote,
                checkpointed: group.checkpointed,
                first,
                last: group.last,
                terms: group.terms[from..].to_vec(),
            }
        };
        if complete {
            self.groups().map(|(id, group)| row(id, group)).collect()
        } else {
            dirty.iter().filter_map(|id| Some(row(*id, self.groups.get(id)?))).collect()
        }
    }

    /// Takes in a header's row about `segment`.
    pub(crate) fn fold(&mut self, segment: u64, row: &Row) -> Result<(), &'static str> {
        let group = self.groups.entry(row.group).or_default();
        group.term = row.term;
        group.vote = row.vote;
        group.checkpointed = row.checkpointed;
        if row.first > Lsn(0) {
            if row.first > group.last.next() || row.last < row.first {
                return Err("the group table's LSNs do not follow those of the segments before");
            }
            group.truncate(row.first);
            for (lsn, term) in &row.terms {
                let rises = group.terms.last().is_none_or(|last| last.0 < *lsn && last.1 < *term);
                if !rises || *lsn < row.first || *lsn > row.last {
                    return Err("the group table's terms do not add up");
                }
                group.terms.push((*lsn, *term));
            }
            group.last = row.last;
            group.spans.push(Span { segment, first: row.first, last: row.last });
        }
        if group.last != row.last || group.terms.is_empty() != (group.last == Lsn(0)) {
            return Err("the group table does not match those of the segments before");
        }
        Ok(())
    }

    /// For the core.
    pub(crate) fn recovered(&self) -> Vec<RecoveredGroup> {
        let one = |(id, group): (GroupId, &Group)| RecoveredGroup {
            group: id,
            term: group.term,
            vote: group.vote,
            checkpointed: group.checkpointed,
            last: group.last,
            terms: group.terms.clone(),
            sound: group.sound,
            acked: group.acked.iter().map(|(m, (term, lsn))| (*m, *term, *lsn)).collect(),
            hlc: Hlc(0),
        };
        self.groups().map(one).collect()
    }
}
