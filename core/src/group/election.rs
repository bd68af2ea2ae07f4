//! Who leads: pre-vote (§9.6), votes (§5.2, §5.4.1), stickiness and check-quorum (§6.2).

use alloc::collections::BTreeSet;

use super::{Group, Role};
use crate::{
    context::{Context, Reason},
    entry::Position,
    message::GroupMessage,
    planted::{self, Planted},
    types::{Member, NodeId, Term},
};

impl Group {
    /// Arms the election deadline of a group that has lost its leader: at random, and spread over
    /// more time the more groups lost theirs with it.
    pub(super) fn arm_election(&mut self, ctx: &mut Context) {
        let spread = ctx.config.election_jitter_us + ctx.losing * ctx.config.election_pace_us;
        let delay = ctx.rng.below(spread);
        self.arm_election_in(ctx, delay);
    }

    /// Arms the election deadline of a group that may have a leader which has not spoken yet.
    pub(crate) fn arm_first_election(&mut self, ctx: &mut Context, groups: u64) {
        let spread = ctx.config.election_jitter_us + groups * ctx.config.election_pace_us;
        let delay = ctx.config.election_timeout_us + ctx.rng.below(spread);
        // Nobody else can lead what has one voter.
        let delay = if self.voters == [ctx.me()] { 0 } else { delay };
        self.arm_election_in(ctx, delay);
    }

    /// Campaigns at the next opportunity: the group is new and this node is to lead it first.
    pub(crate) fn arm_election_now(&mut self, ctx: &mut Context) {
        self.arm_election_in(ctx, 0);
    }

    fn arm_election_in(&mut self, ctx: &mut Context, delay_us: u64) {
        ctx.set_timer(Reason::Election(self.id), ctx.now.mono.plus(delay_us));
    }

    /// Whether this replica's vote stands for all that it ever acknowledged.
    fn may_vote(&self, ctx: &Context) -> bool {
        let holds_all = !self.is_in_doubt() || planted::is(Planted::DoubtVotes);
        self.is_voter(ctx.me()) && holds_all && !self.is_on_probation(ctx)
    }

    fn may_lead(&self, ctx: &Context) -> bool {
        let serves = self.quarantined.is_none() && !self.bootstrap.holds_apply() && !ctx.draining;
        self.may_vote(ctx) && serves && !self.misses_uncommitted()
    }

    /// Whether this data directory may turn out to have been rolled back. Where too few members
    /// answer to end this, nobody could be elected either.
    fn is_on_probation(&self, ctx: &Context) -> bool {
        let has_answered = |voter: &&Member| {
            let incarnation = ctx.peers.get(voter.node).map(|peer| peer.incarnation);
            incarnation == Some(voter.incarnation) && ctx.recall.has_answered(voter.node)
        };
        let answered = self.voters.iter().filter(has_answered).count();
        let window = ctx.config.election_timeout_us;
        ctx.recall.is_probation(answered, self.quorum(ctx) - 1, ctx.now.mono, window)
    }

    /// The election deadline has come.
    pub(crate) fn on_election_due(&mut self, ctx: &mut Context) {
        if self.leader(ctx).is_some() {
            return;
        }
        if !self.may_lead(ctx) {
            return self.ask_who_leads(ctx);
        }
        self.set_role(ctx, Role::PreCandidate { granted: BTreeSet::new() });
        self.campaign_until_answered(ctx);
        self.count_pre_vote(ctx, ctx.me());
    }

    /// A replica that does not want to lead asks like one that does: a leader makes itself known to
    /// it, and any other answer is ignored.
    fn ask_who_leads(&mut self, ctx: &mut Context) {
        let message = GroupMessage::PreVote { last: self.log.last() };
        let me = ctx.me().node;
        for voter in self.voters.iter().filter(|voter| voter.node != me) {
            let term = self.term.next();
            ctx.send_group(self.hard_write, voter.node, self.id, term, message.clone());
        }
        let jitter = ctx.rng.below(ctx.config.election_jitter_us);
        self.arm_election_in(ctx, ctx.config.election_timeout_us / 2 + jitter);
    }

    /// Asks again soon, and starts over later: both the later, the more groups campaign here, so
    /// that many elections at once do not drown in their own questions.
    fn campaign_until_answered(&mut self, ctx: &mut Context) {
        let jitter = ctx.rng.below(ctx.config.election_jitter_us);
        let pace = 2 * ctx.other_campaigns() * ctx.config.election_pace_us;
        self.arm_election_in(ctx, ctx.config.election_timeout_us / 2 + jitter + pace);
        self.ask_for_votes(ctx);
    }

    /// Sends the question of the present campaign to whoever has not granted it.
    pub(super) fn ask_for_votes(&mut self, ctx: &mut Context) {
        let last = self.log.last();
        let (term, message, granted) = match &self.role {
            Role::PreCandidate { granted } => {
                (self.term.next(), GroupMessage::PreVote { last }, granted)
            }
            Role::Candidate { granted, transfer } => {
                (self.term, GroupMessage::Vote { last, transfer: *transfer }, granted)
            }
            Role::Follower { .. } | Role::Leader(_) => return,
        };
        for voter in &self.voters {
            if *voter != ctx.me() && !granted.contains(&voter.node) {
                ctx.send_group(self.hard_write, voter.node, self.id, term, message.clone());
            }
        }
        let pace = ctx.other_campaigns() * ctx.config.election_pace_us;
        let again = ctx.now.mono.plus(ctx.config.heartbeat_us + pace);
        ctx.set_timer(Reason::Retry(self.id), again);
    }

    /// Whether this replica has reason to believe in its leader: then it helps nobody to depose it.
    /// A leader that campaigns has ceased to lead.
    pub(super) fn is_sticky(&self, ctx: &Context, candidate: NodeId) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower { leader: Some(leader), .. } => {
                *leader != candidate && ctx.peers.is_alive(*leader)
            }
            _ => false,
        }
    }

    fn is_up_to_date(&self, last: Position) -> bool {
        planted::is(Planted::BlindVote) || last >= self.log.last()
    }

    pub(super) fn on_pre_vote(
        &mut self,
        ctx: &mut Context,
        from: Member,
        term: Term,
        last: Position,
    ) {
        if !self.is_voter(from) || !self.may_vote(ctx) {
            return self.make_known_to(ctx, from);
        }
        let sticky = self.is_sticky(ctx, from.node);
        let granted = term > self.term && self.is_up_to_date(last) && !sticky;
        let reply_term = if granted { term } else { self.term };
        ctx.send_group(
            self.hard_write,
            from.node,
            self.id,
            reply_term,
            GroupMessage::PreVoteReply { granted },
        );
        self.make_known_to(ctx, from);
    }

    pub(super) fn on_pre_vote_reply(
        &mut self,
        ctx: &mut Context,
        from: Member,
        term: Term,
        granted: bool,
    ) {
        if granted && term == self.term.next() {
            self.count_pre_vote(ctx, from);
        }
    }

    fn count_pre_vote(&mut self, ctx: &mut Context, from: Member) {
        if !self.is_voter(from) {
            return;
        }
        let quorum = self.quorum(ctx);
        if let Role::PreCandidate { granted } = &mut self.role {
            granted.insert(from.node);
            if granted.len() >= quorum {
                self.campaign(ctx, false);
            }
        }
    }

    /// A real election, in a new term.
    fn campaign(&mut self, ctx: &mut Context, transfer: bool) {
        ctx.elections += 1;
        self.term = self.term.next();
        self.vote = Some(ctx.me());
        self.persist_hard_state(ctx);
        self.set_role(ctx, Role::Candidate { granted: BTreeSet::new(), transfer });
        self.campaign_until_answered(ctx);
        // Counted for itself once its vote is durable.
        if ctx.is_persisted(self.hard_write) {
            self.count_vote(ctx, ctx.me());
        }
    }

    pub(super) fn on_vote(&mut self, ctx: &mut Context, from: Member, last: Position) {
        if !self.is_voter(from) || !self.may_vote(ctx) || !ctx.recall.has_answered(from.node) {
            return;
        }
        let free = self.vote.is_none_or(|vote| vote == from);
        let waits =
            matches!(self.role, Role::Follower { leader: None, .. } | Role::PreCandidate { .. });
        let granted = free && waits && self.is_up_to_date(last);
        if granted && self.vote.is_none() {
            self.stop_campaigning(ctx);
            self.vote = Some(from);
            self.persist_hard_state(ctx);
            // Time for the candidate to win.
            self.arm_election_in(ctx, ctx.config.election_timeout_us);
        }
        self.send(ctx, from.node, GroupMessage::VoteReply { granted });
    }

    pub(super) fn on_vote_reply(&mut self, ctx: &mut Context, from: Member, granted: bool) {
        if granted && self.is_voter(from) {
            ctx.peers.answered(from, ctx.now.mono);
            self.count_vote(ctx, from);
        }
    }

    pub(super) fn count_vote(&mut self, ctx: &mut Context, from: Member) {
        let quorum = self.quorum(ctx);
        if let Role::Candidate { granted, .. } = &mut self.role {
            granted.insert(from.node);
            if granted.len() >= quorum {
                self.become_leader(ctx);
            }
        }
    }

    /// Follows `leader`, or waits for one, in `term`.
    pub(super) fn become_follower(
        &mut self,
        ctx: &mut Context,
        term: Term,
        leader: Option<NodeId>,
    ) {
        assert!(term >= self.term, "terms never fall");
        let had_leader = self.leader(ctx).is_some();
        if term > self.term {
            self.term = term;
            self.vote = None;
            self.persist_hard_state(ctx);
        }
        ctx.clear_timer(Reason::Retry(self.id));
        self.set_role(ctx, Role::follower(leader));
        if leader.is_none() && !had_leader {
            // A candidate that met a higher term: wait for who is ahead.
            let jitter = ctx.rng.below(ctx.config.election_jitter_us);
            self.arm_election_in(ctx, ctx.config.election_timeout_us / 2 + jitter);
        }
    }

    /// The leader's node is gone, has restarted, or says that it leads this group no more.
    pub(crate) fn on_leader_lost(&mut self, ctx: &mut Context) {
        if let Role::Follower { leader: Some(_), .. } = self.role {
            self.become_follower(ctx, self.term, None);
        }
    }

    /// A leader that no quorum hears steps down (check-quorum).
    pub(crate) fn check_quorum(&mut self, ctx: &mut Context, hearing: &BTreeSet<Member>) {
        if !self.is_leader() {
            return;
        }
        let heard = self.voters.iter().filter(|v| **v == ctx.me() || hearing.contains(v)).count();
        if heard < self.quorum(ctx) {
            self.become_follower(ctx, self.term, None);
        }
    }

    /// The leader hands over: campaign at once (§3.10).
    pub(super) fn on_timeout_now(&mut self, ctx: &mut Context, from: NodeId) {
        if self.leader(ctx) == Some(from) && self.may_lead(ctx) {
            self.campaign(ctx, true);
        }
    }

    /// Gives a campaign up.
    pub(crate) fn stop_campaigning(&mut self, ctx: &mut Context) {
        if matches!(self.role, Role::PreCandidate { .. } | Role::Candidate { .. }) {
            self.become_follower(ctx, self.term, None);
        }
    }
}
