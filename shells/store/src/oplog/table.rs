//! What the log says of each group: vote state, last LSN, where terms start, and which segment
//! holds which LSNs. Folded from records while writing and scanning, and from headers at start-up.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{
    Base, Boot, Doubt, Formation, GroupId, Hlc, Lsn, Member, Record, RecoveredGroup, Term,
    planted::{self, Planted},
};

use super::format::{
    BOOT_LEN, HeaderSize, ROW, ROW_ACKED, ROW_TERM, Row, SegmentHeader, frame_len, padded,
};

/// The LSNs of a group that a segment holds and that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) segment: u64,
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
}

/// One group. `spans` cover what follows `base` up to `last` without gaps, in order of LSN and of
/// segment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) term: Term,
    pub(crate) vote: Option<Member>,
    pub(crate) checkpointed: Lsn,
    /// The log begins after this.
    pub(crate) base: Base,
    pub(crate) last: Lsn,
    pub(crate) terms: Vec<(Lsn, Term)>,
    pub(crate) spans: Vec<Span>,
    /// How often entries were replaced, so that a concurrent load notices.
    pub(crate) truncations: u64,
    /// Found sound since the log last lost entries.
    pub(crate) sound: bool,
    /// What other members acknowledged.
    pub(crate) acked: BTreeMap<Member, (Term, Lsn)>,
    /// The last entry's stamp; 0 where it is not known.
    pub(crate) hlc: Hlc,
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

    /// The log begins after `base` from now on: with what it has there, or with nothing.
    fn begin_after(&mut self, base: Base) {
        if base.position.lsn <= self.base.position.lsn {
            return;
        }
        if self.term_at(base.position.lsn) != Some(base.position.term) {
            self.empty(base.position.lsn);
            self.hlc = Hlc::default();
        }
        self.skip_to(base);
    }

    /// Forgets everything: the log goes on after `last`.
    fn empty(&mut self, last: Lsn) {
        self.truncations += 1;
        self.last = last;
        self.terms.clear();
        self.spans.clear();
    }

    /// What is at or below `base` does not count any more; what is above it stays.
    fn skip_to(&mut self, base: Base) {
        let first = base.position.lsn.next();
        let next_term = self.term_at(first);
        self.terms.retain(|(lsn, _)| *lsn > first);
        if let Some(term) = next_term {
            self.terms.insert(0, (first, term));
        }
        self.spans.retain(|span| span.last >= first);
        if let Some(span) = self.spans.first_mut() {
            span.first = span.first.max(first);
        }
        self.base = base;
    }

    /// The term of the entry at `lsn`, if the log has one there.
    pub(crate) fn term_at(&self, lsn: Lsn) -> Option<Term> {
        let started = self.terms.partition_point(|(first, _)| *first <= lsn);
        let (_, term) = self.terms.get(started.checked_sub(1)?)?;
        (lsn <= self.last).then_some(*term)
    }

    /// Where terms start, from that of `from` on, up to `to`.
    pub(crate) fn terms_within(&self, from: Lsn, to: Lsn) -> Vec<(Lsn, Term)> {
        let start = self.terms.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let end = self.terms.partition_point(|(first, _)| *first <= to);
        self.terms.get(start..end).unwrap_or_default().to_vec()
    }

    /// The span that lies in `segment`.
    pub(crate) fn span_in(&self, segment: u64) -> Option<Span> {
        let at = self.spans.partition_point(|span| span.segment < segment);
        self.spans.get(at).copied().filter(|span| span.segment == segment)
    }

    /// Where a term starts: rising in LSN and term.
    fn start_term(&mut self, lsn: Lsn, term: Term) -> Result<(), &'static str> {
        let before = self.terms.last().map(|(_, term)| *term);
        if before.unwrap_or(self.base.position.term) > term {
            return Err("an entry's term is lower than the one before");
        }
        if before != Some(term) {
            self.terms.push((lsn, term));
        }
        Ok(())
    }

    /// Takes in what a segment holds: it follows what is known.
    fn add(&mut self, span: Span, terms: &[(Lsn, Term)]) -> Result<(), &'static str> {
        for (lsn, term) in terms {
            let before = self.terms.last();
            // A term that started in an earlier segment goes on.
            if before.is_some_and(|before| before.1 == *term) && *lsn == span.first {
                continue;
            }
            let rises = before.is_none_or(|before| before.0 < *lsn && before.1 < *term);
            if !rises || *lsn < span.first || *lsn > span.last {
                return Err("the group table's terms do not add up");
            }
            self.terms.push((*lsn, *term));
        }
        self.last = span.last;
        self.spans.push(span);
        Ok(())
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
    boots: BTreeMap<Member, Boot>,
    /// The log lost entries that may have been acknowledged.
    pub(crate) doubt: Option<Doubt>,
    groups: BTreeMap<GroupId, Group>,
    /// Groups touched since the last segment header.
    dirty: BTreeSet<GroupId>,
    /// At least as many terms started since then, besides the first of each group.
    dirty_terms: usize,
    /// Acknowledgements in all groups, and in those touched.
    acked: usize,
    dirty_acked: usize,
}

impl Table {
    pub(crate) fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    pub(crate) fn boots(&self) -> Vec<(Member, Boot)> {
        self.boots.iter().map(|(member, boot)| (*member, *boot)).collect()
    }

    fn touch(&mut self, group: GroupId) -> &mut Group {
        let known = self.groups.entry(group).or_default();
        if self.dirty.insert(group) {
            self.dirty_acked += known.acked.len();
        }
        known
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
            Record::Base { group, base } => self.touch(*group).begin_after(*base),
            Record::Boot { member, boot } => self.meet(*member, *boot),
            Record::Acked { group, member, term, lsn } => {
                let new = self.touch(*group).acked.insert(*member, (*term, *lsn)).is_none();
                self.acked += usize::from(new);
                self.dirty_acked += usize::from(new);
            }
            Record::Sound { group, committed } => {
                let sound = self.touch(*group);
                sound.sound = true;
                // Of an earlier state: that of a group in doubt is dropped at each start.
                sound.checkpointed = Lsn(0);
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
                if entry.lsn <= group.base.position.lsn {
                    return Err("an entry replaces what its group's log begins after");
                }
                group.truncate(entry.lsn);
                let terms = group.terms.len();
                group.start_term(entry.lsn, entry.term)?;
                group.last = entry.lsn;
                group.hlc = entry.hlc;
                match group.spans.last_mut() {
                    Some(span) if span.segment == segment => span.last = entry.lsn,
                    _ => group.spans.push(Span { segment, first: entry.lsn, last: entry.lsn }),
                }
                self.dirty_terms += group.terms.len() - terms;
            }
        }
        Ok(())
    }

    /// A data directory that another one has replaced is forgotten, unless it is a founding one:
    /// nobody else ever counts.
    fn meet(&mut self, member: Member, boot: Boot) {
        let founding = self.formation.as_ref().map_or(&[][..], |formation| &formation.members);
        self.boots.retain(|known, _| {
            known.node != member.node
                || known.incarnation >= member.incarnation
                || founding.contains(known)
        });
        self.boots.insert(member, boot);
    }

    /// The log has lost its end: every group may lack entries, whatever was found since an earlier
    /// loss, and what their states hold may be ahead of it.
    pub(crate) fn lose(&mut self) {
        self.doubt = Some(Doubt::default());
        for group in self.groups.values_mut() {
            group.sound = false;
            group.checkpointed = Lsn(0);
        }
    }

    /// How long the next segment header gets at most, as things stand.
    pub(crate) fn header_bound(&self) -> u64 {
        let (rows, acked) = (self.dirty.len(), self.dirty_acked);
        HeaderSize { rows, terms: rows + self.dirty_terms, acked, ..self.base_size() }.bytes()
    }

    /// How long a header gets at most that lists every group.
    pub(crate) fn complete_bound(&self) -> u64 {
        let (rows, acked) = (self.groups.len(), self.acked);
        HeaderSize { rows, terms: rows + self.dirty_terms, acked, ..self.base_size() }.bytes()
    }

    /// How long a header gets that lists no group.
    pub(crate) fn base_bound(&self) -> u64 {
        self.base_size().bytes()
    }

    fn base_size(&self) -> HeaderSize {
        HeaderSize { members: self.members(), boots: self.boots.len(), ..HeaderSize::default() }
    }

    /// How much longer a record makes the next header at most.
    pub(crate) fn growth(&self, record: &Record) -> u64 {
        self.growth_of(record, group_of(record).is_some_and(|group| self.dirty.contains(&group)))
    }

    /// The same, where the header lists the group anyway, or not.
    fn growth_of(&self, record: &Record, listed: bool) -> u64 {
        let Some(group) = group_of(record) else {
            return match record {
                Record::Boot { .. } => BOOT_LEN as u64,
                _ => frame_len(record) as u64,
            };
        };
        let known = self.groups.get(&group).map_or(0, |group| group.acked.len());
        // Only members acknowledge.
        let row = ROW + ROW_TERM + known.max(self.members()) * ROW_ACKED;
        let own = match record {
            Record::Append { .. } => ROW_TERM,
            Record::Acked { .. } => ROW_ACKED,
            _ => 0,
        };
        (own + if listed { 0 } else { row }) as u64
    }

    fn members(&self) -> usize {
        self.formation.as_ref().map_or(0, |formation| formation.members.len())
    }

    /// The rows for the header of the segment after `segment`: of groups that changed since the
    /// last call, or of all. Nothing counts as changed afterwards.
    pub(crate) fn rows(&mut self, segment: u64, complete: bool) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty);
        (self.dirty_terms, self.dirty_acked) = (0, 0);
        let row = |id: GroupId, group: &Group| {
            let span = group.spans.last().filter(|span| span.segment == segment);
            let first = span.map_or(Lsn(0), |span| span.first);
            let terms = span.map_or_else(Vec::new, |span| {
                let within = group.terms_within(span.first, span.last);
                within.into_iter().map(|(lsn, term)| (lsn.max(span.first), term)).collect()
            });
            Row {
                group: id,
                term: group.term,
                vote: group.vote.filter(|_| !planted::is(Planted::HeaderOmitsVotes)),
                checkpointed: group.checkpointed,
                first,
                last: group.last,
                terms,
                sound: group.sound,
                hlc: group.hlc,
                acked: acked(group),
                base: group.base,
            }
        };
        if complete {
            self.groups().map(|(id, group)| row(id, group)).collect()
        } else {
            dirty.iter().filter_map(|id| Some(row(*id, self.groups.get(id)?))).collect()
        }
    }

    /// Takes in what the header of the first segment in use says: how things stood then. What the
    /// segments before hold is not known.
    pub(crate) fn begin(&mut self, header: &SegmentHeader) -> Result<(), &'static str> {
        if header.segment > 1 && !header.complete {
            return Err("the group table of the first segment in use is not complete");
        }
        for row in &header.rows {
            let group = self.groups.entry(row.group).or_default();
            group.truncate(row.last.next());
            group.last = row.last;
            group.skip_to(row.base);
        }
        let rows = header.rows.iter().map(|row| Row { first: Lsn(0), ..row.clone() }).collect();
        self.fold(&SegmentHeader { rows, ..header.clone() })
    }

    /// Takes in what a segment's header says of everything before it.
    pub(crate) fn fold(&mut self, header: &SegmentHeader) -> Result<(), &'static str> {
        if header.lost.is_some() {
            self.lose();
        }
        self.doubt = header.doubt;
        self.boots = header.boots.iter().copied().collect();
        for row in &header.rows {
            self.fold_row(header.segment - 1, row)?;
        }
        if header.complete && self.groups.len() != header.rows.len() {
            return Err("the group table is not complete");
        }
        if header.formation.is_none() && self.formation.is_some() {
            return Err("the founding configuration is gone");
        }
        self.formation.clone_from(&header.formation);
        Ok(())
    }

    /// Takes in a header's row about `segment`.
    fn fold_row(&mut self, segment: u64, row: &Row) -> Result<(), &'static str> {
        let group = self.groups.entry(row.group).or_default();
        group.term = row.term;
        group.vote = row.vote;
        group.checkpointed = row.checkpointed;
        group.sound = row.sound;
        self.acked = self.acked + row.acked.len() - group.acked.len();
        group.acked =
            row.acked.iter().map(|(member, term, lsn)| (*member, (*term, *lsn))).collect();
        if row.base.position.lsn < group.base.position.lsn || row.last < row.base.position.lsn {
            return Err("the group table's base does not match those of the segments before");
        }
        if row.first > Lsn(0) {
            if row.first == row.base.position.lsn.next() {
                group.empty(row.base.position.lsn);
            }
            let follows = row.base.position.lsn < row.first && row.first <= group.last.next();
            if !follows || row.last < row.first {
                return Err("the group table's LSNs do not follow those of the segments before");
            }
            group.truncate(row.first);
            group.add(Span { segment, first: row.first, last: row.last }, &row.terms)?;
        }
        if row.base != group.base {
            if row.last == row.base.position.lsn {
                group.empty(row.last);
            }
            group.skip_to(row.base);
        }
        group.hlc = row.hlc;
        if group.last != row.last {
            return Err("the group table does not match those of the segments before");
        }
        Ok(())
    }

    /// The first entries that should be there and that no segment holds: of which group, from LSN to
    /// LSN.
    pub(crate) fn hole(&self) -> Option<(GroupId, Lsn, Lsn)> {
        self.groups().find_map(|(id, group)| {
            let mut next = group.base.position.lsn.next();
            for span in &group.spans {
                if span.first > next {
                    return Some((id, next, span.first.prev()));
                }
                next = span.last.next();
            }
            (next <= group.last).then_some((id, next, group.last))
        })
    }

    /// The first segment after `sealed` that holds something that counts.
    pub(crate) fn first_needed(&self, sealed: u64) -> Option<u64> {
        let first = |group: &Group| {
            let at = group.spans.partition_point(|span| span.segment <= sealed);
            Some(group.spans.get(at)?.segment)
        };
        self.groups.values().filter_map(first).min()
    }

    /// Takes in what a history file holds of a group. What follows it in the log may have replaced
    /// it, and what came before may be gone.
    pub(crate) fn hold(
        &mut self,
        segment: u64,
        group: GroupId,
        last: Lsn,
        terms: &[(Lsn, Term)],
    ) -> Result<(), &'static str> {
        let group = self.groups.entry(group).or_default();
        let (first, term) = terms.first().copied().unwrap_or_default();
        // Terms never fall along a log: what is of a later one is of another log.
        let other = group.terms.iter().find(|(_, known)| *known > term);
        let from = other.map_or(first, |(lsn, _)| first.min(*lsn));
        group.truncate(from);
        // What is between may be gone, since it was replaced or pruned later.
        group.last = group.last.max(first.prev());
        group.add(Span { segment, first, last }, terms)?;
        // Several files of one segment.
        if let [.., before, span] = &mut group.spans[..]
            && before.segment == span.segment
            && before.last.next() == span.first
        {
            before.last = span.last;
            group.spans.pop();
        }
        Ok(())
    }

    /// Whether a group may lack entries that this node has acknowledged.
    fn in_doubt(&self, id: GroupId, group: &Group) -> bool {
        let within = |doubt: Doubt| doubt.bound.is_none_or(|bound| id.0 <= bound.0);
        !group.sound && self.doubt.is_some_and(within)
    }

    /// For the core.
    pub(crate) fn recovered(&self) -> Vec<RecoveredGroup> {
        let one = |(id, group): (GroupId, &Group)| RecoveredGroup {
            group: id,
            term: group.term,
            vote: group.vote,
            // The state of a group in doubt is dropped.
            checkpointed: if self.in_doubt(id, group) { Lsn(0) } else { group.checkpointed },
            base: group.base,
            last: group.last,
            terms: group.terms.clone(),
            sound: group.sound,
            acked: acked(group),
            hlc: group.hlc,
        };
        self.groups().map(one).collect()
    }
}

fn group_of(record: &Record) -> Option<GroupId> {
    match record {
        Record::Formation(_) | Record::Boot { .. } => None,
        Record::HardState { group, .. }
        | Record::Append { group, .. }
        | Record::Checkpointed { group, .. }
        | Record::Base { group, .. }
        | Record::Acked { group, .. }
        | Record::Sound { group, .. } => Some(*group),
    }
}

/// How long headers get at most while records are planned, before the table knows them.
pub(crate) struct Planned<'a> {
    table: &'a Table,
    /// Groups that the next header lists because of what is planned.
    listed: BTreeSet<GroupId>,
    /// What is planned goes on in another segment.
    rolled: bool,
    grown: u64,
    /// The part that every header from now on has.
    lasting: u64,
}

impl<'a> Planned<'a> {
    pub(crate) fn new(table: &'a Table) -> Planned<'a> {
        Planned { table, listed: BTreeSet::new(), rolled: false, grown: 0, lasting: 0 }
    }

    /// How much longer the next record makes the next header.
    pub(crate) fn growth(&self, record: &Record) -> u64 {
        let listed = group_of(record).is_some_and(|group| {
            self.listed.contains(&group) || !self.rolled && self.table.dirty.contains(&group)
        });
        self.table.growth_of(record, listed)
    }

    /// The next record has its place.
    pub(crate) fn take(&mut self, record: &Record) {
        let growth = self.growth(record);
        self.grown += growth;
        match group_of(record) {
            Some(group) => drop(self.listed.insert(group)),
            None => self.lasting += growth,
        }
    }

    /// The next segment is begun: how long its header gets, and that of the one after it so far.
    pub(crate) fn roll(&mut self) -> (u64, u64) {
        self.listed.clear();
        self.rolled = true;
        let header = self.table.complete_bound() + self.grown;
        (padded(header), padded(self.table.base_bound() + self.lasting))
    }
}

fn acked(group: &Group) -> Vec<(Member, Term, Lsn)> {
    group.acked.iter().map(|(member, (term, lsn))| (*member, *term, *lsn)).collect()
}
