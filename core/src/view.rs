//! What a shell may look at: cheap views of a node, for status, metrics and the simulator.

use alloc::vec::Vec;

use crate::{
    context::{Context, Reason},
    group::{Group, Role, Verified},
    node::Node,
    once::RememberedView,
    retention::Base,
    slots::SlotsView,
    types::{GroupId, Lsn, Member, NodeId, Term, WriteId},
    watermarks::Watermarks,
};

/// What a replica is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleView {
    /// Follows, or waits for a leader.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// One group on this node.
#[derive(Clone, Debug)]
pub struct GroupView<'a> {
    /// Which.
    pub group: GroupId,
    /// Its term here.
    pub term: Term,
    /// What this replica does.
    pub role: RoleView,
    /// Whom it follows; itself where it leads.
    pub leader: Option<NodeId>,
    /// How far it is.
    pub watermarks: Watermarks,
    /// The term of its last entry.
    pub last_term: Term,
    /// The highest commit mark that any leader told; above `watermarks.committed()` where the
    /// entries are not here yet.
    pub known_committed: Lsn,
    /// Microseconds for which this replica has not been caught up.
    pub lag_us: u64,
    /// What comes before the first entry of its log.
    pub base: Base,
    /// It waits for a snapshot, or puts it in place.
    pub bootstrapping: bool,
    /// Its log may lack what this node acknowledged: until it is whole again, it does not vote.
    pub in_doubt: bool,
    /// Why it is quarantined here, if it is.
    pub quarantined: Option<&'a str>,
    /// What a majority of the voters agreed on at the last audit that is known to be over, this
    /// replica with them; `None` before the first one since it was started or rebuilt.
    pub verified: Option<Verified>,
    /// How often this replica was found to differ, since it was started.
    pub divergences: u64,
    /// How often it brought another one up to date, or was.
    pub resyncs: Resyncs,
}

/// How often replicas that were behind were brought up to date, since the node was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resyncs {
    /// Another one, from the log of this one, which led: it was found where its log goes on.
    pub partial: u64,
    /// This one, by a snapshot.
    pub full: u64,
}

/// What a node holds in memory: everything here is bounded by [`Config`](crate::Config).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Entries in memory, in bytes.
    pub tail_bytes: usize,
    /// Applied, but no checkpoint holds it yet, in bytes.
    pub dirty_bytes: usize,
    /// Writes that are not durable yet.
    pub writes: u64,
    /// Messages that wait for a write.
    pub withheld: usize,
    /// Requests without an answer.
    pub requests: usize,
    /// Reads without an answer, cancelled ones included.
    pub reads: usize,
    /// Proposals without an answer, cancelled ones included.
    pub proposals: usize,
    /// Requests about slots without an answer, cancelled ones included.
    pub slot_requests: usize,
    /// Loads under way.
    pub loads: usize,
    /// Groups of which a peer has yet to say whether it leads them.
    pub unconfirmed: usize,
    /// Peers that have yet to say what they remember of this node.
    pub recalls: usize,
    /// Stretches of entries that can't be read.
    pub unreadable: usize,
}

fn view<'a>(ctx: &Context, group: &'a Group) -> GroupView<'a> {
    GroupView {
        group: group.id,
        term: group.term(),
        role: match group.role() {
            Role::Follower { .. } => RoleView::Follower,
            Role::PreCandidate { .. } => RoleView::PreCandidate,
            Role::Candidate { .. } => RoleView::Candidate,
            Role::Leader(_) => RoleView::Leader,
        },
        leader: group.leader(ctx),
        watermarks: *group.log().marks(),
        last_term: group.log().last().term,
        known_committed: group.known_committed(),
        lag_us: group.lag_us(ctx.now.mono),
        base: group.log().base(),
        bootstrapping: group.is_bootstrapping(),
        in_doubt: group.is_in_doubt(),
        quarantined: group.quarantined(),
        verified: group.verified(),
        divergences: group.divergences(),
        resyncs: group.resyncs(),
    }
}

impl Node {
    /// Every group on this node, in order of id.
    pub fn groups(&self) -> impl Iterator<Item = GroupView<'_>> {
        self.groups.values().map(|group| view(&self.ctx, group))
    }

    /// One group.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<GroupView<'_>> {
        self.groups.get(&id).map(|group| view(&self.ctx, group))
    }

    /// The slots of a group. `None` without that group, and as long as they are not known here: from
    /// a start to the first read or entry, and while the state is rebuilt. An answered
    /// [`Request::Read`](crate::Request::Read) makes them known, up to what it is about.
    #[must_use]
    pub fn slots(&self, id: GroupId) -> Option<SlotsView<'_>> {
        self.groups.get(&id)?.slots_view(&self.ctx)
    }

    /// The keyed writes of a group that this replica remembers; `None` where it has no such group, does
    /// not know them yet, or has it in quarantine.
    #[must_use]
    pub fn remembered(&self, group: GroupId) -> Option<RememberedView<'_>> {
        self.groups.get(&group)?.remembered_view()
    }

    /// What each follower of a group has confirmed; nothing unless this node leads it.
    #[must_use]
    pub fn matched(&self, id: GroupId) -> Vec<(NodeId, Lsn)> {
        self.groups.get(&id).map(Group::matched).unwrap_or_default()
    }

    /// About how many bytes of a group's entries are known to be committed and not applied here.
    #[must_use]
    pub fn unapplied_bytes(&self, id: GroupId) -> u64 {
        self.groups.get(&id).map_or(0, |g| g.log().unapplied_bytes(g.known_committed()))
    }

    /// The term of an entry of a group's log; `None` beyond its end.
    #[must_use]
    pub fn term_at(&self, id: GroupId, lsn: Lsn) -> Option<Term> {
        self.groups.get(&id).and_then(|group| group.log().term_at(lsn))
    }

    /// Every database of the catalog applied here, in order of name.
    pub fn databases(&self) -> impl Iterator<Item = (&str, GroupId)> {
        self.catalog.iter().map(|(name, database)| (name, database.group))
    }

    /// How many databases the catalog applied here has.
    #[must_use]
    pub fn database_count(&self) -> usize {
        self.catalog.len()
    }

    /// The group of a database, as the catalog applied here has it.
    #[must_use]
    pub fn database(&self, name: &str) -> Option<GroupId> {
        self.catalog.get(name).map(|database| database.group)
    }

    /// Whether the cluster is formed, as far as this node knows.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.forming.is_done()
    }

    /// The founding members; empty before the cluster is formed.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.forming.members()
    }

    /// Elections that this node has started since it was recovered.
    #[must_use]
    pub fn elections(&self) -> u64 {
        self.ctx.elections
    }

    /// The last write that the shell completed.
    #[must_use]
    pub fn durable_write(&self) -> WriteId {
        self.ctx.durable_write()
    }

    /// What it holds in memory.
    #[must_use]
    pub fn held(&self) -> Held {
        Held {
            tail_bytes: self.tails_bytes(),
            dirty_bytes: self.ctx.dirty_bytes,
            writes: self.ctx.writes(),
            withheld: self.ctx.withheld(),
            requests: self.ctx.requests.len(),
            reads: self.groups.values().map(Group::reads_held).sum(),
            proposals: self.groups.values().map(Group::proposals).sum(),
            slot_requests: self.groups.values().map(Group::slot_requests).sum(),
            loads: self.ctx.loads.len(),
            unconfirmed: self.ctx.peers.iter().map(|(_, peer)| peer.unconfirmed.len()).sum(),
            recalls: self.ctx.recall.open(),
            unreadable: self.groups.values().map(Group::unreadable).sum(),
        }
    }

    /// Microseconds since a peer was last heard; `None` if never.
    #[must_use]
    pub fn silence_us(&self, node: NodeId) -> Option<u64> {
        let heard = self.ctx.peers.get(node)?.heard?;
        Some(self.ctx.now.mono.since(heard))
    }

    /// Whether a peer was heard within the election timeout.
    #[must_use]
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.ctx.peers.is_alive(node)
    }

    /// Whether a peer was heard within the election timeout, and had heard this node.
    #[must_use]
    pub fn is_in_touch(&self, node: NodeId) -> bool {
        self.ctx.is_in_touch(node)
    }

    /// Asserts every invariant of every group (docs/INVARIANTS.md). `step` does so for the groups
    /// that it touches.
    ///
    /// # Panics
    /// On a broken invariant.
    pub fn check(&self) {
        for (id, group) in &self.groups {
            group.check(&self.ctx);
            if let Some(leader) = group.leader(&self.ctx) {
                let led = self.ctx.led_by.get(&leader);
                assert!(led.is_some_and(|led| led.contains(id)), "the index of leaders is whole");
            } else {
                // Otherwise it would wait for ever.
                assert!(self.ctx.has_timer(Reason::Election(*id)), "a group looks for a leader");
            }
        }
        for (leader, groups) in &self.ctx.led_by {
            for id in groups {
                assert_eq!(self.leader_of(*id), Some(*leader), "the index of leaders is exact");
            }
        }
    }
}
