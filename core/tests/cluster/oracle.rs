//! What must hold across nodes, checked after every step of any of them. The numbers are those of
//! `docs/INVARIANTS.md`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use highwater_core::{
    Effect, Entry, GroupId, GroupMessage, Kind, Lsn, Member, Message, Node, NodeId, Notice, Record,
    Reject, Reply, Request, RequestId, RoleView, Term,
};

use super::{
    disk::{Disk, GroupLog},
    once::OnceOracle,
    slots::SlotOracle,
    state::State,
};

/// A request that has no answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) node: NodeId,
    pub(crate) request: Request,
    /// Of a read: everything up to here was acknowledged, or read, before it was asked.
    floor: Lsn,
}

#[derive(Default)]
pub(crate) struct Oracle {
    /// States that were changed behind their nodes' back.
    pub(crate) altered: BTreeSet<(NodeId, GroupId)>,
    /// Every entry that any node ever wrote.
    entries: BTreeMap<(GroupId, Lsn, Term), Entry>,
    /// The terms of committed entries, from LSN 1 on.
    committed: BTreeMap<GroupId, Vec<Term>>,
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    votes: BTreeMap<(GroupId, Term, Member), NodeId>,
    /// Roots of states by what is applied.
    roots: BTreeMap<(GroupId, Lsn), u64>,
    /// By node and group: term, committed, applied, as last seen in this run, and whether it led.
    seen: BTreeMap<(NodeId, GroupId), (Term, Lsn, Lsn, bool)>,
    /// The highest LSN that a client knows to be committed.
    known: BTreeMap<GroupId, Lsn>,
    pub(crate) asked: BTreeMap<RequestId, Asked>,
    /// Where proposals were appended, on any node.
    proposed: BTreeMap<(GroupId, Bytes), (Lsn, Term)>,
    /// Proposals that were definitely rejected, and those that are committed.
    dead: BTreeSet<(GroupId, Bytes)>,
    alive: BTreeSet<(GroupId, Bytes)>,
    pub(crate) acknowledged: u64,
    pub(crate) rejected: BTreeMap<&'static str, u64>,
    pub(crate) reads: u64,
    pub(crate) slots: SlotOracle,
    pub(crate) once: OnceOracle,
}

impl Oracle {
    pub(crate) fn asked(&mut self, id: RequestId, node: NodeId, request: Request) {
        self.slots.asked(&request);
        let floor = match &request {
            Request::Read { group } => self.known.get(group).copied().unwrap_or_default(),
            _ => Lsn(0),
        };
        self.asked.insert(id, Asked { node, request, floor });
    }

    /// A process is gone: its requests will never be answered.
    pub(crate) fn restarted(&mut self, node: NodeId) {
        self.asked.retain(|_, asked| asked.node != node);
        self.seen.retain(|(n, _), _| *n != node);
        self.slots.restarted(node);
        self.once.restarted(node);
    }

    /// A node's state of a group is gone.
    pub(crate) fn lost_state(&mut self, node: NodeId, group: GroupId) {
        if let Some((_, _, applied, _)) = self.seen.get_mut(&(node, group)) {
            *applied = Lsn(0);
        }
    }

    pub(crate) fn committed(&self, group: GroupId) -> Lsn {
        Lsn(self.committed.get(&group).map_or(0, Vec::len) as u64)
    }

    pub(crate) fn effect(&mut self, node: &Node, me: Member, disk: &Disk, effect: &Effect) {
        match effect {
            Effect::Persist { records, .. } => {
                for record in records {
                    self.record(record);
                    if let Record::Base { group, base } = record {
                        let state = disk.states.get(group).map(State::at).unwrap_or_default();
                        let holds = state.lsn >= base.position.lsn;
                        assert!(holds, "P1: {me:?} prunes what its state does not hold: {base:?}");
                    }
                }
            }
            Effect::Mend { group, entries } => {
                for entry in entries {
                    let same = self.entries.get(&(*group, entry.lsn, entry.term));
                    assert_eq!(same, Some(entry), "R3: what is mended is what was there");
                }
            }
            Effect::Send { to, message: Message::Group { group, term, message } } => {
                self.sent(me, disk, *to, *group, *term, message);
                if let (GroupMessage::TimeoutNow, Some(view)) = (message, node.group(*group)) {
                    let has_all = node.matched(*group).contains(&(*to, view.watermarks.appended()));
                    assert!(has_all, "R13: {to:?} is to lead {group:?} and does not have it all");
                }
            }
            Effect::Reply { request, reply } => self.replied(node, *request, reply),
            Effect::Notice(notice @ (Notice::Diverged { .. } | Notice::RootsDiffer { .. })) => {
                let what = "A1: states that went through one log are the same";
                assert!(!self.altered.is_empty(), "{what}: {notice:?}");
            }
            Effect::Notice(Notice::SlotAtRisk { group, name, .. }) => {
                self.slots.at_risk(*group, name);
            }
            Effect::Notice(Notice::SlotInvalidated { group, name, .. }) => {
                self.slots.invalidated(*group, name);
            }
            _ => {}
        }
    }

    fn record(&mut self, record: &Record) {
        let Record::Append { group, entry } = record else { return };
        let same =
            self.entries.entry((*group, entry.lsn, entry.term)).or_insert_with(|| entry.clone());
        assert_eq!(same, entry, "R3: LSN and term name one entry");
        if entry.kind == Kind::Op {
            let op = (*group, entry.payload.clone());
            self.proposed.insert(op, (entry.lsn, entry.term));
        }
    }

    fn sent(
        &mut self,
        me: Member,
        disk: &Disk,
        to: NodeId,
        group: GroupId,
        term: Term,
        message: &GroupMessage,
    ) {
        let blank = GroupLog::default();
        let log = disk.durable.groups.get(&group).unwrap_or(&blank);
        let revealed = match message {
            GroupMessage::PreVoteReply { granted: true } => Term(0),
            GroupMessage::PreVote { .. } => Term(term.0 - 1),
            _ => term,
        };
        assert!(log.term >= revealed, "E3: {me:?} reveals {revealed:?} before it is durable");
        match message {
            GroupMessage::VoteReply { granted: true } => {
                let vote = *self.votes.entry((group, term, me)).or_insert(to);
                assert_eq!(vote, to, "R2: {me:?} votes once in {term:?} of {group:?}");
                let durable = log.term > term || log.vote.is_some_and(|v| v.node == to);
                assert!(durable, "E3: {me:?} reveals a vote before it is durable");
            }
            GroupMessage::AppendAccepted { durable, .. } => {
                assert!(log.last() >= *durable, "E3: {me:?} confirms before it is durable");
            }
            _ => {}
        }
    }

    fn replied(&mut self, node: &Node, id: RequestId, reply: &Reply) {
        let Some(asked) = self.asked.remove(&id) else {
            panic!("Q1: {id:?} is answered once, and not after it was cancelled");
        };
        let raise = |known: &mut BTreeMap<GroupId, Lsn>, group: GroupId, lsn: Lsn| {
            let known = known.entry(group).or_default();
            *known = lsn.max(*known);
        };
        match (&asked.request, reply) {
            (
                Request::Propose { group, payload, once, .. },
                Reply::Applied { lsn, term, outcome, replayed },
            ) => {
                let entry = self.entries.get(&(*group, *lsn, *term));
                let op = entry.and_then(Entry::op);
                assert_eq!(op.as_ref(), Some(payload), "Q2: an ack is honest");
                assert_eq!(self.term_of(*group, *lsn), Some(*term), "Q2: an ack is committed");
                assert!(once.is_some() || !replayed, "K2: only keyed writes are replayed");
                if let Some(once) = once {
                    self.once.answered((*group, payload), once, *lsn, (outcome, *replayed));
                }
                raise(&mut self.known, *group, *lsn);
                self.acknowledged += 1;
            }
            (Request::Read { group }, Reply::Readable { lsn }) => {
                let applied = node.group(*group).map(|g| g.watermarks.applied());
                assert!(Some(*lsn) <= applied, "Q4: what is readable is applied");
                let slots = node.slots(*group).map(|slots| slots.lsn);
                assert!(Some(*lsn) <= slots || *group == GroupId::SYSTEM, "Q4: slots are as well");
                assert!(*lsn >= asked.floor, "Q4: {id:?} reads {lsn:?} after {:?}", asked.floor);
                raise(&mut self.known, *group, *lsn);
                self.reads += 1;
            }
            // Of a keyed one, another attempt may be under way.
            (Request::Propose { group, payload, once: None, .. }, Reply::Rejected(reject)) => {
                let op = (*group, payload.clone());
                assert!(!self.alive.contains(&op), "Q3: {id:?} is committed, and was rejected");
                if let Some((lsn, term)) = self.proposed.get(&op) {
                    let last = self.term_of(*group, self.committed(*group).min(*lsn));
                    let dead = last.is_some_and(|last| last > *term)
                        || self.term_of(*group, *lsn).is_some_and(|other| other != *term);
                    assert!(dead, "Q3: {id:?} was appended, and may still be committed");
                }
                self.dead.insert(op);
                self.count(reject);
            }
            (request, Reply::Slot { lsn, outcome, .. }) => {
                self.slots.answered(node, request, *lsn, outcome);
            }
            (_, Reply::Rejected(reject)) => self.count(reject),
            (_, Reply::Unknown) => *self.rejected.entry("unknown").or_default() += 1,
            (Request::CreateDatabase { .. }, Reply::Created { .. })
            | (Request::Transfer { .. } | Request::Drain, Reply::Transferred { .. }) => {}
            (request, reply) => panic!("Q1: {reply:?} does not answer {request:?}"),
        }
    }

    fn count(&mut self, reject: &Reject) {
        let name = match reject {
            Reject::NotLeader { .. } => "NotLeader",
            Reject::NoSuchGroup => "NoSuchGroup",
            Reject::Busy => "Busy",
            Reject::StorageFull => "StorageFull",
            Reject::Expired => "Expired",
            Reject::TooLarge => "TooLarge",
            Reject::Superseded => "Superseded",
            Reject::Quarantined => "Quarantined",
            Reject::Transferring => "Transferring",
            Reject::TransferFailed => "TransferFailed",
            Reject::NotReady => "NotReady",
            Reject::KeyMismatch => "KeyMismatch",
            Reject::KeysFull => "KeysFull",
            Reject::KeysUnknown => "KeysUnknown",
        };
        *self.rejected.entry(name).or_default() += 1;
    }

    fn term_of(&self, group: GroupId, lsn: Lsn) -> Option<Term> {
        self.committed.get(&group)?.get(lsn.0.checked_sub(1)? as usize).copied()
    }

    /// A state after a run of entries.
    pub(crate) fn applied(&mut self, group: GroupId, state: &State) {
        let root = *self.roots.entry((group, state.applied)).or_insert(state.root);
        assert_eq!(root, state.root, "R5: states are equal at {group:?} {:?}", state.applied);
    }

    /// After a step of a node. `durable_at` counts the voters on whose disks an entry is.
    pub(crate) fn observe(
        &mut self,
        id: NodeId,
        node: &Node,
        durable_at: impl Fn(GroupId, Lsn, Term) -> usize,
    ) {
        let quorum = node.members().len() / 2 + 1;
        for view in node.groups() {
            let group = view.group;
            let marks = view.watermarks;
            self.slots.observe(id, node, group);
            let leads = view.role == RoleView::Leader;
            let now = (view.term, marks.committed(), marks.applied(), leads);
            let before = self.seen.insert((id, group), now);
            let known = self.committed.entry(group).or_default();
            if leads {
                let leader = *self.leaders.entry((group, view.term)).or_insert(id);
                assert_eq!(leader, id, "R1: one leader of {group:?} in {:?}", view.term);
                if before.is_none_or(|(term, ..)| term < view.term) {
                    for (n, term) in known.iter().enumerate().skip(marks.pruned().0 as usize) {
                        let has = node.term_at(group, Lsn(n as u64 + 1));
                        assert_eq!(has, Some(*term), "R4: {id:?} lacks {}", n + 1);
                    }
                }
            }
            let (term, committed, applied, led) = before.unwrap_or_default();
            if led && leads && term == view.term && marks.committed() > committed {
                let of = node.term_at(group, marks.committed());
                assert_eq!(of, Some(term), "R7: a leader commits by an entry of its own term");
            }
            assert!(view.term >= term, "W2: terms never fall");
            assert!(marks.committed() >= committed, "W2: committed never falls");
            assert!(marks.applied() >= applied, "W2: applied never falls");
            assert!(marks.pruned().0 <= known.len() as u64, "P1: what is pruned was committed");
            for n in committed.max(marks.pruned()).0..marks.committed().0 {
                let term = node.term_at(group, Lsn(n + 1)).unwrap_or_default();
                if let Some(other) = known.get(n as usize) {
                    assert_eq!(*other, term, "R5: {id:?} commits another {}", n + 1);
                    continue;
                }
                let copies = durable_at(group, Lsn(n + 1), term);
                assert!(copies >= quorum, "R6: {} of {group:?} is on {copies} disks", n + 1);
                if let Some(entry) = self.entries.get(&(group, Lsn(n + 1), term)) {
                    if entry.kind == Kind::Op {
                        let op = (group, entry.payload.clone());
                        assert!(!self.dead.contains(&op), "Q3: {} was rejected", n + 1);
                        self.alive.insert(op);
                    } else if entry.kind == Kind::Once {
                        self.once.committed(group, entry);
                    }
                }
                known.push(term);
            }
            self.once.observe(id, node, group);
        }
    }
}
