//! What a node said to be durable is there after a restart, and nothing but what was written.
//!
//! A replica's oplog recovers to a prefix of the records written to it, which holds everything
//! that the node had reported as synced (its `durable` mark, its confirmations to a leader, its
//! votes). semantics.md 1, 11, 12; Raft §5.2 ("persistent state"). Failures 17, 20, 23, 28, 32,
//! 51, 53, 54.

use std::collections::{BTreeMap, VecDeque};

use highwater_core::{GroupId, Lsn, Member, NodeId, Record, RecoveredGroup, Term};

use super::{
    Broken, Verdict, broken,
    log::{Mark, ReplicaLog},
};

#[derive(Clone, Debug, Default)]
struct GroupImage {
    log: ReplicaLog,
    term: Term,
    vote: Option<Member>,
}

#[derive(Clone, Debug, Default)]
struct Image {
    formed: bool,
    groups: BTreeMap<GroupId, GroupImage>,
}

#[derive(Clone, Debug)]
enum Written {
    Formation,
    HardState(GroupId, Term, Option<Member>),
    Append(GroupId, Lsn, Mark),
}

impl Image {
    fn apply(&mut self, written: &Written) -> Verdict {
        match written {
            Written::Formation => self.formed = true,
            Written::HardState(group, term, vote) => {
                let group = self.groups.entry(*group).or_default();
                (group.term, group.vote) = (*term, *vote);
            }
            Written::Append(group, lsn, mark) => {
                self.groups.entry(*group).or_default().log.append(*lsn, *mark)?;
            }
        }
        Ok(())
    }

    fn is(&self, formed: bool, found: &[RecoveredGroup]) -> bool {
        let blank = RecoveredGroup::default();
        let mut all = self.groups.keys().copied().chain(found.iter().map(|f| f.group));
        self.formed == formed
            && all.all(|id| {
                let found = found.iter().find(|f| f.group == id).unwrap_or(&blank);
                self.groups.get(&id).map_or(*found == blank, |group| group.is(found))
            })
    }
}

impl GroupImage {
    fn is(&self, found: &RecoveredGroup) -> bool {
        let last = self.log.last();
        let vote_stands = match found.term {
            term if term == self.term => found.vote == self.vote,
            term => term == last.term && term > self.term,
        };
        found.last == last.lsn && vote_stands && found.terms == self.log.terms()
    }
}

/// One node's oplog, through all its restarts.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurableLog {
    /// Known to be synced.
    synced: Image,
    /// Everything written.
    written: Image,
    /// What lies between.
    between: VecDeque<Written>,
    /// The latest vote that the node gave.
    votes: BTreeMap<GroupId, (Term, NodeId)>,
}

impl DurableLog {
    /// The node writes records. Tells whether entries were overwritten.
    pub(crate) fn writes(&mut self, records: &[Record]) -> Result<bool, Broken> {
        let mut truncated = false;
        for record in records {
            let written = match record {
                Record::Formation(_) => Written::Formation,
                Record::HardState { group, term, vote } => Written::HardState(*group, *term, *vote),
                Record::Append { group, entry } => {
                    truncated |= self.log(*group).is_some_and(|log| log.last().lsn >= entry.lsn);
                    Written::Append(*group, entry.lsn, Mark::of(entry))
                }
                Record::Checkpointed { .. }
                | Record::Boot { .. }
                | Record::Acked { .. }
                | Record::Sound { .. } => continue,
            };
            self.written.apply(&written)?;
            self.between.push_back(written);
        }
        Ok(truncated)
    }

    /// The node's log of a group as written.
    pub(crate) fn log(&self, group: GroupId) -> Option<&ReplicaLog> {
        self.written.groups.get(&group).map(|g| &g.log)
    }

    /// Whether the node is known to hold this entry durably.
    pub(crate) fn holds(&self, group: GroupId, lsn: Lsn, term: Term) -> bool {
        let has =
            |image: &Image| image.groups.get(&group).and_then(|g| g.log.term_at(lsn)) == Some(term);
        has(&self.synced) && has(&self.written)
    }

    /// The node reports that the group's log is durable up to `lsn`.
    pub(crate) fn reports(&mut self, group: GroupId, lsn: Lsn) -> Verdict {
        let upto = self.between.iter().rposition(
            |written| matches!(written, Written::Append(g, l, _) if *g == group && *l <= lsn),
        );
        for written in self.between.drain(..upto.map_or(0, |at| at + 1)) {
            self.synced.apply(&written)?;
        }
        Ok(())
    }

    /// The node gives its vote, which must be durable by then.
    pub(crate) fn votes(&mut self, group: GroupId, term: Term, candidate: NodeId) {
        let vote = self.votes.entry(group).or_insert((term, candidate));
        *vote = (*vote).max((term, candidate));
    }

    /// The node has recovered to this. How many records that it wrote, and had not reported as
    /// synced, are gone.
    pub(crate) fn recovers(
        &mut self,
        formed: bool,
        found: &[RecoveredGroup],
    ) -> Result<usize, Broken> {
        for (group, (term, candidate)) in &self.votes {
            let blank = RecoveredGroup::default();
            let now = found.iter().find(|f| f.group == *group).unwrap_or(&blank);
            let kept = now.term > *term
                || now.term == *term && now.vote.is_some_and(|vote| vote.node == *candidate);
            if !kept {
                let what = format!(
                    "the vote for {candidate:?} in {group:?}, {term:?} is lost: recovered {:?}, \
                     vote {:?}",
                    now.term, now.vote
                );
                return Err(broken(what).of(*group).term(*term));
            }
        }
        loop {
            if self.synced.is(formed, found) {
                self.written = self.synced.clone();
                return Ok(std::mem::take(&mut self.between).len());
            }
            let Some(written) = self.between.pop_front() else { break };
            self.synced.apply(&written)?;
        }
        let written: Vec<_> =
            self.written.groups.iter().map(|(id, g)| (id, g.log.last(), g.term, g.vote)).collect();
        let what = format!(
            "recovered what is no prefix of what was written, or lost what was synced: formed \
             {formed}, {found:?}; written: {written:?}"
        );
        Err(broken(what))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Entry, Hlc, Incarnation, Kind};

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
        node.writes(&[vote, append(1, 1), append(2, 1), append(3, 1)]).unwrap();
        node
    }

    #[test]
    fn any_prefix_will_do_that_holds_what_was_synced() {
        for last in 2..=3 {
            let mut node = node();
            node.reports(G, Lsn(2)).unwrap();
            assert!(node.holds(G, Lsn(2), Term(1)) && !node.holds(G, Lsn(3), Term(1)));
            let lost = node.recovers(false, &[found(last, 1, Some(member(3)), &[(1, 1)])]);
            assert_eq!(lost, Ok(3 - last as usize));
            assert_eq!(node.log(G).unwrap().last().lsn, Lsn(last));
        }
    }

    #[test]
    fn fires_on_lost_synced_entries() {
        let mut node = node();
        node.reports(G, Lsn(2)).unwrap();
        assert!(node.recovers(false, &[found(1, 1, Some(member(3)), &[(1, 1)])]).is_err());
        let mut blank = self::node();
        blank.reports(G, Lsn(3)).unwrap();
        assert!(blank.recovers(false, &[]).is_err());
    }

    #[test]
    fn fires_on_what_was_never_written() {
        let found = |terms| found(3, 2, None, terms);
        assert!(node().recovers(false, &[found(&[(1, 1), (3, 2)])]).is_err());
        assert!(node().recovers(true, &[]).is_err());
    }

    #[test]
    fn an_unsynced_truncation_may_be_undone_but_not_half() {
        let overwritten = || {
            let mut node = node();
            node.reports(G, Lsn(3)).unwrap();
            assert_eq!(node.writes(&[append(2, 2)]), Ok(true));
            assert!(!node.holds(G, Lsn(2), Term(1)));
            node
        };
        let vote = Some(member(3));
        overwritten().recovers(false, &[found(3, 1, vote, &[(1, 1)])]).unwrap();
        overwritten().recovers(false, &[found(2, 2, None, &[(1, 1), (2, 2)])]).unwrap();
        assert!(overwritten().recovers(false, &[found(1, 1, vote, &[(1, 1)])]).is_err());
    }

    #[test]
    fn fires_on_a_lost_vote() {
        let mut node = node();
        node.votes(G, Term(1), NodeId(3));
        node.votes(G, Term(4), NodeId(2));
        assert!(node.recovers(false, &[found(3, 1, Some(member(3)), &[(1, 1)])]).is_err());
    }
}
