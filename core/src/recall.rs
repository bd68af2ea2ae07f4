//! Finding a data directory that was rolled back to an earlier copy. Its node can't know; its peers
//! do: they remember, durably, each member's last start and the highest term and LSN that it vouched
//! for to them. At each start a node asks all of them, and gives up its membership (`Effect::Fence`)
//! where one remembers more than the disk holds (`semantics.md` 11).
//!
//! Until a peer has answered, nothing is vouched for to it: so what it remembers is always of earlier
//! starts, and is compared with the disk as it was found. Until enough have answered, the node is on
//! probation: it neither votes nor campaigns.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec::Vec,
};

use crate::{
    entry::Record,
    io::Recovered,
    message::Message,
    node::Node,
    planted::{self, Planted},
    types::{Boot, GroupId, Incarnation, Instant, Lsn, Member, NodeId, Peer, Term},
};

/// What the peers have yet to say.
pub(crate) struct Recall {
    since: Instant,
    /// Peers that owe an answer, and from which group on.
    open: BTreeMap<NodeId, GroupId>,
    /// The disk as it was found; forgotten with the last answer.
    found: BTreeMap<GroupId, Found>,
    /// Of groups in doubt: what peers remember that is not on the disk. No group is sound, in that
    /// term, before it is there again; the next start would be fenced for it.
    owed: BTreeMap<GroupId, (Term, Lsn)>,
}

#[derive(Clone, Copy, Default)]
struct Found {
    term: Term,
    last: Lsn,
    in_doubt: bool,
}

impl Recall {
    pub(crate) fn new(peers: Vec<NodeId>, now: Instant) -> Recall {
        let open = peers.into_iter().map(|node| (node, GroupId::SYSTEM)).collect();
        Recall { since: now, open, found: BTreeMap::new(), owed: BTreeMap::new() }
    }

    /// Notes how the groups stand on the disk.
    pub(crate) fn found(&mut self, recovered: &Recovered) {
        if self.open.is_empty() {
            return;
        }
        self.found = recovered
            .groups
            .iter()
            .map(|g| {
                let in_doubt = recovered.is_in_doubt(g);
                (g.group, Found { term: g.term, last: g.last, in_doubt })
            })
            .collect();
    }

    /// Whether a peer has said all that it remembers.
    pub(crate) fn has_answered(&self, node: NodeId) -> bool {
        !self.open.contains_key(&node)
    }

    /// Whether nothing may be decided yet: not all have answered; and fewer than `needed` of those
    /// that count, or not all within the time that it may take.
    pub(crate) fn is_probation(
        &self,
        answered: usize,
        needed: usize,
        now: Instant,
        window: u64,
    ) -> bool {
        !self.open.is_empty() && (answered < needed || now.since(self.since) < window)
    }

    /// How many have yet to answer.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// Notes what a group in doubt has lost.
    fn note_owed(&mut self, group: GroupId, term: Term, lsn: Lsn) {
        let found = self.found.get(&group).filter(|found| found.in_doubt && found.term == term);
        if found.is_some_and(|found| lsn > found.last) {
            let owed = self.owed.entry(group).or_default();
            *owed = (term, lsn).max(*owed);
        }
    }

    /// Up to where a group in doubt must hold its log in a term.
    pub(crate) fn owed(&self, group: GroupId, term: Term) -> Lsn {
        let owed = self.owed.get(&group).filter(|(of, _)| *of == term);
        owed.map_or(Lsn(0), |(_, lsn)| *lsn)
    }

    /// A group is in doubt no more.
    pub(crate) fn settle(&mut self, group: GroupId) {
        self.owed.remove(&group);
    }

    /// Why this disk can't be the one that a peer remembers.
    fn contradiction(&self, group: GroupId, term: Term, lsn: Lsn) -> Option<String> {
        let found = self.found.get(&group).copied().unwrap_or_default();
        let lost_vote = term > found.term;
        let lost_entries = term == found.term && lsn > found.last && !found.in_doubt;
        (lost_vote || lost_entries).then(|| {
            format!(
                "in group {group} it acknowledged LSN {lsn} in term {term}, but holds LSN {} in \
                 term {}",
                found.last, found.term
            )
        })
    }
}

/// What members vouched for in one group.
#[derive(Default)]
pub(crate) struct Acks {
    by_member: BTreeMap<Member, (Term, Lsn)>,
    /// Of these it is not durable.
    unwritten: BTreeSet<Member>,
}

impl Acks {
    pub(crate) fn recover(acked: &[(Member, Term, Lsn)]) -> Acks {
        let by_member = acked.iter().map(|(member, term, lsn)| (*member, (*term, *lsn))).collect();
        Acks { by_member, unwritten: BTreeSet::new() }
    }

    pub(crate) fn of(&self, member: Member) -> Option<(Term, Lsn)> {
        self.by_member.get(&member).copied()
    }

    /// Takes note of what a member vouched for. Whether that is more than before.
    pub(crate) fn note(&mut self, member: Member, term: Term, lsn: Lsn) -> bool {
        let known = self.by_member.entry(member).or_default();
        let more = (term, lsn) > *known;
        if more {
            *known = (term, lsn);
            self.unwritten.insert(member);
        }
        more
    }

    /// What is to be made durable.
    pub(crate) fn take_unwritten(&mut self, group: GroupId) -> Vec<Record> {
        let unwritten = core::mem::take(&mut self.unwritten);
        let known = unwritten.into_iter().filter_map(|member| Some((member, self.of(member)?)));
        known.map(|(member, (term, lsn))| Record::Acked { group, member, term, lsn }).collect()
    }
}

/// Groups whose [`Acks`] are not durable yet, and since when there are any.
#[derive(Default)]
pub(crate) struct AcksDue {
    groups: BTreeSet<GroupId>,
    since: Option<Instant>,
}

impl AcksDue {
    pub(crate) fn add(&mut self, group: GroupId, now: Instant) {
        self.groups.insert(group);
        self.since.get_or_insert(now);
    }
}

impl Node {
    /// With each heartbeat, until all have answered.
    pub(crate) fn ask_to_recall(&mut self) {
        let open: Vec<(NodeId, GroupId)> =
            self.ctx.recall.open.iter().map(|(node, from)| (*node, *from)).collect();
        for (node, from) in open {
            self.ctx.send(node, Message::Recall { from });
        }
    }

    /// "What do you remember of me?" Answered also to a start that is not heard otherwise, so that it
    /// learns why.
    pub(crate) fn on_recall(&mut self, from: Peer, first: GroupId) {
        let Some(peer) = self.ctx.peers.get(from.member.node) else { return };
        let (incarnation, boot, met) = (peer.incarnation, peer.boot, peer.met);
        let max = self.ctx.config.confirm_groups_max;
        let row = |group: GroupId, acked: Option<(Term, Lsn)>| {
            acked.map(|(term, lsn)| (group, term, lsn))
        };
        let here = self.groups.range(first..);
        let here = here.filter_map(|(id, group)| row(*id, group.acks().of(from.member)));
        let unclaimed = self
            .unclaimed
            .range(first..)
            .filter_map(|(id, found)| row(*id, Acks::recover(&found.acked).of(from.member)));
        // One more than fits tells where to go on.
        let mut groups: Vec<(GroupId, Term, Lsn)> =
            here.take(max + 1).chain(unclaimed.take(max + 1)).collect();
        groups.sort_unstable();
        let next = groups.get(max).map(|(id, ..)| *id);
        groups.truncate(max);
        self.ctx.send(from.member.node, Message::Recalled { incarnation, boot, met, groups, next });
    }

    /// A peer says what it remembers: of this page on, and perhaps of earlier ones again.
    pub(crate) fn on_recalled(
        &mut self,
        node: NodeId,
        (incarnation, boot, met): (Incarnation, Boot, Option<Boot>),
        groups: &[(GroupId, Term, Lsn)],
        next: Option<GroupId>,
    ) {
        let Some(asked) = self.ctx.recall.open.get(&node).copied() else { return };
        // Whoever answers this start has met it: this is the answer to an earlier one.
        let mine = (self.ctx.me().incarnation, self.ctx.identity.boot.counter);
        if (incarnation, boot.counter) < mine {
            return;
        }
        let in_order = groups.is_sorted_by(|a, b| a.0 < b.0)
            && next.is_none_or(|next| groups.last().is_some_and(|last| last.0 < next));
        if !in_order {
            return self.ctx.fault(node, "it remembers out of order");
        }
        if groups.iter().any(|(_, term, _)| *term > Term::MAX) {
            return self.ctx.fault(node, "it remembers a term that can't be");
        }
        if let Some(reason) = self.find_rollback((incarnation, boot, met), groups)
            && !planted::is(Planted::FenceIgnored)
        {
            let reason = format!("{node:?} remembers more than this disk: {reason}");
            return self.fence(reason, incarnation);
        }
        for (group, term, lsn) in groups {
            self.ctx.recall.note_owed(*group, *term, *lsn);
        }
        match next {
            Some(next) if next > asked => {
                self.ctx.recall.open.insert(node, next);
                self.ctx.send(node, Message::Recall { from: next });
            }
            Some(_) => {}
            None => self.on_recall_answered(node),
        }
    }

    fn find_rollback(
        &self,
        (incarnation, boot, met): (Incarnation, Boot, Option<Boot>),
        groups: &[(GroupId, Term, Lsn)],
    ) -> Option<String> {
        if incarnation > self.ctx.me().incarnation {
            return Some(String::from("it has met another data directory in this one's place"));
        }
        let mine = &self.ctx.identity;
        // The directory may have been started several times since it was rolled back.
        let differs = |start: &Boot| {
            let other = |met: Boot| met.counter == start.counter && met != *start;
            other(boot) || met.is_some_and(other)
        };
        let replaced = core::iter::once(&mine.boot).chain(&mine.starts).any(differs);
        if boot.counter > mine.boot.counter || replaced {
            return Some(String::from(
                "it has met a later start, or another one in this one's place",
            ));
        }
        let recall = &self.ctx.recall;
        groups.iter().find_map(|(group, term, lsn)| recall.contradiction(*group, *term, *lsn))
    }

    /// A peer has nothing more to say: what was kept from it may go out.
    fn on_recall_answered(&mut self, node: NodeId) {
        self.ctx.recall.open.remove(&node);
        if self.ctx.recall.open.is_empty() {
            self.ctx.recall.found.clear();
        }
        self.contact(node);
        for id in self.ctx.groups_led_by(node) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.confirm(&mut self.ctx, node);
            }
        }
    }

    /// Makes durable what members vouched for: beside what is written anyway, but not with every
    /// write; alone if nothing else is written for long.
    pub(crate) fn persist_acks(&mut self) {
        let Some(since) = self.ctx.acks_due.since else { return };
        let config = &self.ctx.config;
        let delay = if self.ctx.has_batch() { config.heartbeat_us } else { config.acked_us };
        // What votes need room for is not taken.
        let has_room = self.ctx.free_room() >= config.reserve_bytes / 2;
        if self.ctx.now.mono.since(since) < delay || !has_room {
            return;
        }
        for id in core::mem::take(&mut self.ctx.acks_due).groups {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            for record in group.take_unwritten_acks() {
                self.ctx.persist_hint(record);
            }
        }
    }
}
