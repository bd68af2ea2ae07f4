//! O8. What a node said to be durable is there after a restart, and nothing but what was written.
//!
//! A replica's oplog recovers to a prefix of the records written to it, which holds everything that
//! the disk had reported as synced, and every vote that the node gave. Where the harness did harm
//! that loses synced bytes, the prefix may be shorter, but it is still one, and votes stand or the
//! data directory is a new one. semantics.md 1, 11, 12; Raft §5.2 ("persistent state"). Failures 17,
//! 20, 22, 23, 28, 32, 51, 53, 54.

use std::collections::{BTreeMap, VecDeque};

use highwater_core::{
    Boot, Doubt, GroupId, Incarnation, Lsn, Member, NodeId, Position, Record, RecoveredGroup, Term,
    WriteId,
};

use super::{
    Broken, Verdict, broken,
    log::{Mark, ReplicaLog},
};

/// What a node found on its disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// Its own data directory.
    pub(crate) incarnation: Incarnation,
    /// Who founded the cluster; `None` where it is not formed.
    pub(crate) members: Option<&'a [Member]>,
    pub(crate) groups: &'a [RecoveredGroup],
    pub(crate) boots: &'a [(Member, Boot)],
    pub(crate) doubt: Option<Doubt>,
}

#[derive(Clone, Debug, Default)]
struct GroupImage {
    log: ReplicaLog,
    term: Term,
    vote: Option<Member>,
    sound: bool,
    acked: BTreeMap<Member, (Term, Lsn)>,
}

#[derive(Clone, Debug, Default)]
struct Image {
    /// Who founded the cluster; `None` before.
    founders: Option<Vec<Member>>,
    groups: BTreeMap<GroupId, GroupImage>,
    boots: BTreeMap<Member, Boot>,
}

#[derive(Clone, Debug)]
enum Written {
    Formation(Vec<Member>),
    HardState(GroupId, Term, Option<Member>),
    Append(GroupId, Lsn, Mark),
    Base(GroupId, Position),
    Boot(Member, Boot),
    Acked(GroupId, Member, Term, Lsn),
    Sound(GroupId),
}

impl Image {
    fn of(&mut self, group: GroupId) -> &mut GroupImage {
        self.groups.entry(group).or_default()
    }

    fn apply(&mut self, written: &Written) -> Verdict {
        match written {
            Written::Formation(members) => self.founders = Some(members.clone()),
            Written::Boot(member, boot) => self.meets(*member, *boot),
            Written::HardState(group, term, vote) => {
                let group = self.of(*group);
                (group.term, group.vote) = (*term, *vote);
            }
            Written::Append(group, lsn, mark) => self.of(*group).log.append(*lsn, *mark)?,
            Written::Base(group, base) => self.of(*group).log.begin_after(*base)?,
            Written::Acked(group, member, term, lsn) => {
                self.of(*group).acked.insert(*member, (*term, *lsn));
            }
            Written::Sound(group) => self.of(*group).sound = true,
        }
        Ok(())
    }

    /// Of a node, the founding data directory is remembered, and the latest other one.
    fn meets(&mut self, member: Member, boot: Boot) {
        let founders = self.founders.as_deref().unwrap_or_default();
        self.boots.retain(|known, _| known.node != member.node || founders.contains(known));
        self.boots.insert(member, boot);
    }

    fn replay(history: &[Written]) -> Result<Image, Broken> {
        let mut image = Image::default();
        history.iter().try_for_each(|written| image.apply(written))?;
        Ok(image)
    }

    /// Whether `agrees` holds of every group that is here or was found.
    fn all(
        &self,
        found: &Found<'_>,
        agrees: impl Fn(&GroupImage, &RecoveredGroup) -> bool,
    ) -> bool {
        let (blank, nothing) = (GroupImage::default(), RecoveredGroup::default());
        let here = self.groups.iter().all(|(id, group)| {
            agrees(group, found.groups.iter().find(|f| f.group == *id).unwrap_or(&nothing))
        });
        let strange = |f: &&RecoveredGroup| !self.groups.contains_key(&f.group);
        here && found.groups.iter().filter(strange).all(|f| agrees(&blank, f))
    }

    fn is(&self, found: &Found<'_>) -> bool {
        let boots: BTreeMap<_, _> = found.boots.iter().copied().collect();
        self.founders.as_deref() == found.members
            && self.boots == boots
            && self.all(found, GroupImage::is)
    }

    /// What was found otherwise, for a reader.
    fn differs(&self, found: &Found<'_>) -> Option<String> {
        let nothing = RecoveredGroup::default();
        for (id, group) in &self.groups {
            let f = found.groups.iter().find(|f| f.group == *id).unwrap_or(&nothing);
            if !group.is(f) {
                let last = group.log.last();
                return Some(format!(
                    "{id:?}: last {:?}, {:?}, vote {:?}, sound {}, acked {:?}; due {last:?}, {:?}, \
                     vote {:?}, sound {}, acked {:?}",
                    f.last,
                    f.term,
                    f.vote,
                    f.sound,
                    f.acked,
                    group.term,
                    group.vote,
                    group.sound,
                    group.acked
                ));
            }
        }
        let boots: BTreeMap<_, _> = found.boots.iter().copied().collect();
        (boots != self.boots).then(|| format!("the boots met: {boots:?}; due {:?}", self.boots))
    }

    fn logs(&self) -> BTreeMap<GroupId, ReplicaLog> {
        self.groups.iter().map(|(id, group)| (*id, group.log.clone())).collect()
    }

    fn has_logs_of(&self, found: &Found<'_>) -> bool {
        self.all(found, GroupImage::has_log_of)
    }

    /// Takes on what was found beside the logs.
    fn adopt(&mut self, found: &Found<'_>) {
        self.founders = found.members.map(<[Member]>::to_vec);
        self.boots = found.boots.iter().copied().collect();
        for f in found.groups {
            let group = self.groups.entry(f.group).or_default();
            (group.term, group.vote, group.sound) = (f.term, f.vote, f.sound);
            group.acked =
                f.acked.iter().map(|(member, term, lsn)| (*member, (*term, *lsn))).collect();
        }
    }
}

impl GroupImage {
    fn has_log_of(&self, found: &RecoveredGroup) -> bool {
        found.base.position == self.log.base()
            && found.last == self.log.last().lsn
            && found.terms == self.log.terms()
    }

    fn is(&self, found: &RecoveredGroup) -> bool {
        let last = self.log.last();
        let vote_stands = match found.term {
            term if term == self.term => found.vote == self.vote,
            term => term == last.term && term > self.term,
        };
        let acked = found.acked.iter().map(|(member, term, lsn)| (*member, (*term, *lsn)));
        vote_stands
            && self.has_log_of(found)
            && self.sound == found.sound
            && acked.collect::<BTreeMap<_, _>>() == self.acked
    }
}

/// One node's oplog, through all its restarts.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurableLog {
    /// Everything written that is not lost, in order.
    history: Vec<Written>,
    /// Reported as synced: so much of it.
    synced: Image,
    synced_len: usize,
    /// All of it.
    written: Image,
    /// What was durable before the last loss.
    lost: BTreeMap<GroupId, ReplicaLog>,
    /// Logs that begin further on than they are synced, as they were before; and where in `history`
    /// that is.
    replaced: VecDeque<(usize, GroupId, ReplicaLog)>,
    /// Writes under way, and where each ends in `history`.
    under_way: VecDeque<(WriteId, usize)>,
    /// The latest vote that the node gave, and with which data directory.
    votes: BTreeMap<GroupId, (Term, NodeId, Incarnation)>,
    incarnation: Incarnation,
}

impl DurableLog {
    /// The node writes records. Tells whether entries were overwritten.
    pub(crate) fn writes(&mut self, write: WriteId, records: &[Record]) -> Result<bool, Broken> {
        let mut truncated = false;
        for record in records {
            let written = match record {
                Record::Formation(formation) => Written::Formation(formation.members.clone()),
                Record::HardState { group, term, vote } => Written::HardState(*group, *term, *vote),
                Record::Append { group, entry } => {
                    truncated |= self.log(*group).is_some_and(|log| log.last().lsn >= entry.lsn);
                    Written::Append(*group, entry.lsn, Mark::of(entry))
                }
                Record::Boot { member, boot } => Written::Boot(*member, *boot),
                Record::Acked { group, member, term, lsn } => {
                    Written::Acked(*group, *member, *term, *lsn)
                }
                Record::Sound { group, .. } => Written::Sound(*group),
                Record::Base { group, base } => {
                    let at = base.position;
                    let synced = self.synced.groups.get(group);
                    let joins = synced.is_some_and(|g| g.log.term_at(at.lsn) == Some(at.term));
                    if let Some(log) = self.log(*group).filter(|_| !joins) {
                        let replaced = (self.history.len(), *group, log.clone());
                        self.replaced.push_back(replaced);
                    }
                    Written::Base(*group, at)
                }
                Record::Checkpointed { .. } => continue,
            };
            self.written.apply(&written)?;
            self.history.push(written);
        }
        self.under_way.push_back((write, self.history.len()));
        Ok(truncated)
    }

    /// The node was told that this write, and all before it, are durable.
    pub(crate) fn completed(&mut self, write: WriteId) -> Verdict {
        while let Some((_, end)) = self.under_way.pop_front_if(|(id, _)| *id <= write) {
            for written in &self.history[self.synced_len..end] {
                self.synced.apply(written)?;
            }
            self.synced_len = end;
        }
        while self.replaced.pop_front_if(|(at, ..)| *at < self.synced_len).is_some() {}
        Ok(())
    }

    /// The node's log of a group as written.
    pub(crate) fn log(&self, group: GroupId) -> Option<&ReplicaLog> {
        self.written.groups.get(&group).map(|g| &g.log)
    }

    /// Whether the node is known to hold this entry durably, in its log or, where that begins further
    /// on, in its state.
    pub(crate) fn holds(&self, group: GroupId, lsn: Lsn, term: Term) -> bool {
        let has = |image: &Image| image.groups.get(&group).is_some_and(|g| g.log.has(lsn, term));
        has(&self.synced) && has(&self.written)
    }

    /// Whether the node held it durably once, and lost it since: a leader may count that for as long
    /// as it does not know.
    pub(crate) fn held(&self, group: GroupId, lsn: Lsn, term: Term) -> bool {
        self.lost.get(&group).is_some_and(|log| log.has(lsn, term))
    }

    /// The disk is wiped, or holds what a copy of it held.
    pub(crate) fn becomes(&mut self, other: DurableLog) {
        let lost = self.synced.logs();
        *self = DurableLog { lost, ..other };
    }

    /// How far the group's log is known to be durable, as written: not what will be overwritten.
    pub(crate) fn durable(&self, group: GroupId) -> Lsn {
        let replaced = self.replaced.iter().find(|(_, of, _)| *of == group).map(|(.., log)| log);
        let (Some(synced), Some(written)) =
            (self.synced.groups.get(&group), replaced.or_else(|| self.log(group)))
        else {
            return Lsn(0);
        };
        let base = written.base();
        let mut lsn = synced.log.last().lsn.min(written.last().lsn);
        while lsn > base.lsn && synced.log.at(lsn) != written.at(lsn) {
            lsn = lsn.prev();
        }
        // That the log begins there may not be durable, but what it begins after is.
        if lsn <= base.lsn && synced.log.term_at(base.lsn) != Some(base.term) {
            return Lsn(0);
        }
        lsn
    }

    /// The term and the vote that are known to be durable.
    pub(crate) fn vote(&self, group: GroupId) -> (Term, Option<Member>) {
        let Some(group) = self.synced.groups.get(&group) else { return (Term(0), None) };
        let last = group.log.last().term;
        if last > group.term { (last, None) } else { (group.term, group.vote) }
    }

    /// The node gives its vote.
    pub(crate) fn votes(&mut self, group: GroupId, term: Term, candidate: NodeId) {
        let given = (term, candidate, self.incarnation);
        let vote = self.votes.entry(group).or_insert(given);
        *vote = (*vote).max(given);
    }

    /// The node starts, and found this. How many records that it wrote, and were not reported as
    /// synced, are gone. Of a `damaged` disk more may be.
    pub(crate) fn recovers(&mut self, found: &Found<'_>, damaged: bool) -> Result<usize, Broken> {
        self.incarnation = found.incarnation;
        self.under_way.clear();
        self.replaced.clear();
        if found.doubt.is_some() && !damaged {
            return Err(broken("it doubts its log, to which nobody did harm".to_owned()));
        }
        self.votes_stand(found)?;
        let written = self.history.len();
        let kept = match self.prefix(found)? {
            Some(kept) => kept,
            None if found.doubt.is_none() => {
                return Err(self.no_prefix(found));
            }
            None => self.shorter_prefix(found)?.ok_or_else(|| self.no_prefix(found))?,
        };
        self.history.truncate(kept);
        self.synced_len = kept;
        self.written = self.synced.clone();
        Ok(written - kept)
    }

    fn votes_stand(&self, found: &Found<'_>) -> Verdict {
        for (group, (term, candidate, incarnation)) in &self.votes {
            let blank = RecoveredGroup::default();
            let now = found.groups.iter().find(|f| f.group == *group).unwrap_or(&blank);
            let kept = now.term > *term
                || now.term == *term && now.vote.is_some_and(|vote| vote.node == *candidate);
            if !kept && *incarnation == found.incarnation {
                let what = format!(
                    "the vote for {candidate:?} in {group:?}, {term:?} is lost: recovered {:?}, \
                     vote {:?}",
                    now.term, now.vote
                );
                return Err(broken(what).of(*group).term(*term));
            }
        }
        Ok(())
    }

    /// The prefix that holds all that was synced, and is what was found.
    fn prefix(&mut self, found: &Found<'_>) -> Result<Option<usize>, Broken> {
        let mut image = self.synced.clone();
        for kept in self.synced_len..=self.history.len() {
            if image.is(found) {
                self.synced = image;
                return Ok(Some(kept));
            }
            if let Some(written) = self.history.get(kept) {
                image.apply(written)?;
            }
        }
        Ok(None)
    }

    /// The longest prefix, however short, with the logs that were found.
    fn shorter_prefix(&mut self, found: &Found<'_>) -> Result<Option<usize>, Broken> {
        let (mut image, mut longest) = (Image::default(), None);
        for (at, written) in self.history.iter().enumerate() {
            if image.has_logs_of(found) {
                longest = Some(at);
            }
            image.apply(written)?;
        }
        if image.has_logs_of(found) {
            longest = Some(self.history.len());
        }
        let Some(kept) = longest else { return Ok(None) };
        self.lost = self.synced.logs();
        self.synced = Image::replay(&self.history[..kept])?;
        self.synced.adopt(found);
        Ok(Some(kept))
    }

    fn no_prefix(&self, found: &Found<'_>) -> Broken {
        let differs = |name: &str, image: &Image| {
            let differs = image.differs(found).unwrap_or_else(|| "nothing".to_owned());
            format!("from what was {name} differs {differs}")
        };
        let what = format!(
            "recovered what is no prefix of what was written, or lost what was synced: {}; {}",
            differs("synced", &self.synced),
            differs("written", &self.written)
        );
        broken(what)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Entry, Hlc, Kind};

    use super::*;

    const G: GroupId = GroupId(2);

    fn append(lsn: u64, term: u64) -> Record {
        let (lsn, term) = (Lsn(lsn), Term(term));
        let entry = Entry {
            lsn,
            term,
            prev_term: term,
            hlc: Hlc(0),
            origin: 0,
            kind: Kind::Op,
            payload: Bytes::new(),
        };
        Record::Append { group: G, entry }
    }

    fn member(node: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(1) }
    }

    fn found(last: u64, term: u64, vote: Option<Member>, terms: &[(u64, u64)]) -> RecoveredGroup {
        RecoveredGroup {
            group: G,
            term: Term(term),
            vote,
            checkpointed: Lsn(0),
            last: Lsn(last),
            terms: terms.iter().map(|(l, t)| (Lsn(*l), Term(*t))).collect(),
            ..RecoveredGroup::default()
        }
    }

    fn node() -> DurableLog {
        let mut node = DurableLog::default();
        let vote = Record::HardState { group: G, term: Term(1), vote: Some(member(3)) };
        node.writes(WriteId(1), &[vote, append(1, 1), append(2, 1)]).unwrap();
        node.writes(WriteId(2), &[append(3, 1)]).unwrap();
        node
    }

    fn on_disk(groups: &[RecoveredGroup]) -> Found<'_> {
        let incarnation = Incarnation(0);
        Found { incarnation, members: None, groups, boots: &[], doubt: None }
    }

    fn recovers(node: &mut DurableLog, groups: &[RecoveredGroup]) -> Result<usize, Broken> {
        node.recovers(&on_disk(groups), false)
    }

    #[test]
    fn any_prefix_will_do_that_holds_what_was_synced() {
        for last in 2..=3 {
            let mut node = node();
            node.completed(WriteId(1)).unwrap();
            assert!(node.holds(G, Lsn(2), Term(1)) && !node.holds(G, Lsn(3), Term(1)));
            let lost = recovers(&mut node, &[found(last, 1, Some(member(3)), &[(1, 1)])]);
            assert_eq!(lost, Ok(3 - last as usize));
            assert_eq!(node.log(G).unwrap().last().lsn, Lsn(last));
        }
    }

    #[test]
    fn fires_on_lost_synced_entries() {
        let mut node = node();
        node.completed(WriteId(1)).unwrap();
        assert!(recovers(&mut node, &[found(1, 1, Some(member(3)), &[(1, 1)])]).is_err());
        let mut blank = self::node();
        blank.completed(WriteId(2)).unwrap();
        assert!(recovers(&mut blank, &[]).is_err());
    }

    #[test]
    fn fires_on_what_was_never_written() {
        let found = |terms| found(3, 2, None, terms);
        assert!(recovers(&mut node(), &[found(&[(1, 1), (3, 2)])]).is_err());
        let formed = Found { members: Some(&[]), ..on_disk(&[]) };
        assert!(node().recovers(&formed, false).is_err());
    }

    #[test]
    fn an_unsynced_truncation_may_be_undone_but_not_half() {
        let overwritten = || {
            let mut node = node();
            node.completed(WriteId(2)).unwrap();
            assert_eq!(node.writes(WriteId(3), &[append(2, 2)]), Ok(true));
            assert!(!node.holds(G, Lsn(2), Term(1)));
            assert_eq!(node.durable(G), Lsn(1));
            node
        };
        let vote = Some(member(3));
        recovers(&mut overwritten(), &[found(3, 1, vote, &[(1, 1)])]).unwrap();
        recovers(&mut overwritten(), &[found(2, 2, None, &[(1, 1), (2, 2)])]).unwrap();
        assert!(recovers(&mut overwritten(), &[found(1, 1, vote, &[(1, 1)])]).is_err());
    }

    #[test]
    fn fires_on_a_lost_vote() {
        let mut node = node();
        node.votes(G, Term(1), NodeId(3));
        node.votes(G, Term(4), NodeId(2));
        assert!(recovers(&mut node, &[found(3, 1, Some(member(3)), &[(1, 1)])]).is_err());
    }

    #[test]
    fn damage_may_cut_what_was_synced_where_the_node_doubts_itself() {
        let starts = |damaged, doubt, last| {
            let mut node = node();
            node.completed(WriteId(2)).unwrap();
            let groups = [found(last, 1, Some(member(3)), &[(1, 1)])];
            let lost = node.recovers(&Found { doubt, ..on_disk(&groups) }, damaged);
            let was = |lsn| !node.holds(G, Lsn(lsn), Term(1)) && node.held(G, Lsn(lsn), Term(1));
            assert!(lost.is_err() || was(2) && was(3));
            lost
        };
        let doubt = Some(Doubt::default());
        assert_eq!(starts(true, doubt, 1), Ok(2));
        assert!(starts(true, None, 1).is_err(), "cut, and sure of itself");
        assert!(starts(false, doubt, 1).is_err());
        assert!(starts(true, doubt, 9).is_err(), "never written");
    }

    #[test]
    fn a_lost_vote_is_for_a_new_data_directory_only() {
        let lost = |incarnation| {
            let mut node = node();
            node.votes(G, Term(4), NodeId(2));
            let groups = [found(1, 1, None, &[(1, 1)])];
            let found = Found { incarnation, doubt: Some(Doubt::default()), ..on_disk(&groups) };
            node.recovers(&found, true)
        };
        assert!(lost(Incarnation(0)).is_err());
        assert!(lost(Incarnation(7)).is_ok());
    }

    #[test]
    fn what_peers_acknowledged_is_remembered_too() {
        let mut node = node();
        let acked = Record::Acked { group: G, member: member(2), term: Term(1), lsn: Lsn(3) };
        node.writes(WriteId(3), &[acked]).unwrap();
        node.completed(WriteId(3)).unwrap();
        let mut here = found(3, 1, Some(member(3)), &[(1, 1)]);
        assert!(recovers(&mut node, std::slice::from_ref(&here)).is_err());
        here.acked = vec![(member(2), Term(1), Lsn(3))];
        assert!(recovers(&mut node, &[here]).is_ok());
    }
}
