//! One replication group on one node: Raft (Ongaro, 2014) with pre-vote, check-quorum, pipelined
//! appends, ReadIndex and leadership transfer. The files beside this one are its parts:
//! `election` (who leads), `leader` (entries go out), `follower` (entries come in), `reads`,
//! `apply` (what is committed reaches the state), `audit` (whether all hold the same), `slots`
//! (positions of consumers in the log), `retention` (how the log gets shorter), `once` (retries that
//! take effect once), `bootstrap` (what no log can bring up to date), `doubt` and `repair` (what a
//! damaged disk lost).

mod apply;
mod audit;
mod bootstrap;
mod doubt;
mod election;
mod follower;
mod leader;
mod once;
mod progress;
mod reads;
mod repair;
mod retention;
mod slots;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use crate::{
    catalog::CreateDatabase,
    context::{Context, Reason},
    entry::Record,
    io::{Effect, Notice, RecoveredGroup, Reject, Reply},
    log::GroupLog,
    message::GroupMessage,
    once::Once,
    planted::{self, Planted},
    recall::Acks,
    types::{GroupId, Hlc, Instant, Lsn, Member, NodeId, Peer, RequestId, Term, WriteId},
    view::Resyncs,
};

pub(crate) use apply::Applying;
pub use audit::Verified;
use audit::{Audit, LeaderAudits};
use bootstrap::{Bootstrap, Donors};
use doubt::Soundness;
use once::LeaderOnce;
use progress::Progress;
pub(crate) use reads::{FollowerReads, KnownReads, LeaderReads};
use repair::Repair;
use slots::{Asker, LeaderSlots, SlotTable};

/// What a replica is doing. Each role carries exactly what belongs to it.
pub(crate) enum Role {
    /// Follows a leader, or waits for one.
    Follower {
        leader: Option<NodeId>,
        /// Agreed with the leader of this term up to here: all that may be confirmed to it.
        verified: Lsn,
        /// The highest round of what was taken from it.
        round: u64,
        /// The highest commit mark that it told, knowing of this start of the node.
        told: Lsn,
        /// The round that it was last answered with.
        answered: u64,
        /// It is to be told what is durable here once more of that is applied.
        owes: bool,
    },
    /// Asks whether an election could be won.
    PreCandidate { granted: BTreeSet<NodeId> },
    /// Asks for votes.
    Candidate { granted: BTreeSet<NodeId>, transfer: bool },
    /// Leads.
    Leader(Box<Leader>),
}

impl Role {
    fn follower(leader: Option<NodeId>) -> Role {
        Role::Follower {
            leader,
            verified: Lsn(0),
            round: 0,
            told: Lsn(0),
            answered: 0,
            owes: false,
        }
    }

    fn campaigns(&self) -> bool {
        matches!(self, Role::PreCandidate { .. } | Role::Candidate { .. })
    }
}

pub(crate) struct Leader {
    /// By node: voters, and nodes that follow without counting.
    progress: BTreeMap<NodeId, Progress>,
    /// The no-op that opened the term; reads wait until it is committed.
    term_start: Lsn,
    reads: LeaderReads,
    slots: LeaderSlots,
    /// Its last entry that cuts the log: one is under way at a time.
    pruning: Lsn,
    once: LeaderOnce,
    audits: LeaderAudits,
    transfer: Option<Transfer>,
}

/// Leadership on its way to another node (§3.10).
struct Transfer {
    to: NodeId,
    until: Instant,
    asked: bool,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    voters: Vec<Member>,
    term: Term,
    vote: Option<Member>,
    /// The write that makes `term` and `vote` durable: whatever reveals the term waits for it.
    hard_write: WriteId,
    role: Role,
    log: GroupLog,
    hlc: Hlc,
    follower_reads: FollowerReads,
    known_reads: KnownReads,
    /// Proposals of this node: answered once their LSN is committed, whoever leads by then.
    proposals: BTreeMap<(Lsn, Term), Asker>,
    /// Up to here, those that another entry superseded were told so.
    resolved: Lsn,
    /// Who waits for a transfer to that node.
    transfer_request: Option<(RequestId, NodeId)>,
    applying: Applying,
    audit: Audit,
    slots: SlotTable,
    /// Requests about slots that have no answer.
    slot_requests: usize,
    /// What is remembered of keyed writes: known when the slots are.
    once: Once,
    soundness: Soundness,
    repair: Repair,
    bootstrap: Bootstrap,
    donors: Donors,
    /// How often one is to replace a state that failed.
    replacements: u32,
    /// How often a replica was brought up to date since it was started: see [`Resyncs`].
    resyncs: Resyncs,
    /// The state is being dropped.
    discarding: bool,
    /// Why it is gone already, though it is out of service.
    gone: Option<String>,
    /// What other members vouched for.
    acks: Acks,
    /// The highest commit mark that any leader told, even where the entries are not here yet.
    known_committed: Lsn,
    /// Since when less than that is applied here.
    behind_since: Option<Instant>,
    quarantined: Option<String>,
    /// The state is rebuilt: quarantined until this is applied.
    rebuilding: Option<Lsn>,
}

/// Everything a group does beyond itself, for the node to carry out after the step.
#[derive(Default)]
pub(crate) struct Consequences {
    /// System group: committed create entries, in order.
    pub(crate) created: Vec<(Lsn, Term, CreateDatabase)>,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        voters: Vec<Member>,
        found: &RecoveredGroup,
        applied: Lsn,
        ctx: &Context,
    ) -> Group {
        let in_doubt = ctx.doubt.is_some_and(|doubt| doubt.covers(id, found.sound));
        Group {
            id,
            voters,
            term: found.term,
            vote: found.vote,
            hard_write: WriteId(0),
            role: Role::follower(None),
            log: GroupLog::recover(found, applied),
            hlc: found.hlc.believed(ctx.now.wall_ms, ctx.config.hlc_ahead_ms),
            follower_reads: FollowerReads::default(),
            known_reads: KnownReads::default(),
            proposals: BTreeMap::new(),
            resolved: applied,
            transfer_request: None,
            applying: Applying::default(),
            audit: Audit::new(applied),
            slots: SlotTable::new(id),
            slot_requests: 0,
            once: Once::default(),
            soundness: if in_doubt { Soundness::InDoubt } else { Soundness::Sound },
            repair: Repair::default(),
            bootstrap: Bootstrap::No,
            donors: Donors::default(),
            replacements: 0,
            resyncs: Resyncs::default(),
            discarding: false,
            gone: None,
            acks: Acks::recover(&found.acked),
            known_committed: applied,
            behind_since: None,
            quarantined: None,
            rebuilding: None,
        }
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }
    pub(crate) fn role(&self) -> &Role {
        &self.role
    }
    pub(crate) fn log(&self) -> &GroupLog {
        &self.log
    }
    pub(crate) fn quarantined(&self) -> Option<&str> {
        self.quarantined.as_deref()
    }
    pub(crate) fn acks(&self) -> &Acks {
        &self.acks
    }
    pub(crate) fn take_unwritten_acks(&mut self) -> Vec<Record> {
        self.acks.take_unwritten(self.id)
    }
    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub(crate) fn leader(&self, ctx: &Context) -> Option<NodeId> {
        match &self.role {
            Role::Follower { leader, .. } => *leader,
            Role::Leader(_) => Some(ctx.me().node),
            Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    fn is_voter(&self, member: Member) -> bool {
        self.voters.contains(&member)
    }

    fn quorum(&self, ctx: &Context) -> usize {
        if planted::is(Planted::QuorumOfReachable) {
            let heard = |voter: &&Member| **voter == ctx.me() || ctx.peers.is_alive(voter.node);
            return self.voters.iter().filter(heard).count() / 2 + 1;
        }
        self.voters.len() / 2 + 1
    }

    fn send(&self, ctx: &mut Context, to: NodeId, message: GroupMessage) {
        let early = planted::is(Planted::ReplyBeforeHardState);
        let depends_on = if early { WriteId(0) } else { self.hard_write };
        ctx.send_group(depends_on, to, self.id, self.term, message);
    }

    /// Makes term and vote durable before anything that reveals them goes out.
    fn persist_hard_state(&mut self, ctx: &mut Context) {
        if planted::is(Planted::VoteNotPersisted) && self.vote.is_some() {
            return;
        }
        let record = Record::HardState { group: self.id, term: self.term, vote: self.vote };
        self.hard_write = ctx.persist(self.id, record);
    }

    /// Another role: the old one's waiters are told, and the leader's change is noted.
    fn set_role(&mut self, ctx: &mut Context, role: Role) {
        let old_leader = self.leader(ctx);
        ctx.campaigning -= u64::from(self.role.campaigns());
        let old = core::mem::replace(&mut self.role, role);
        ctx.campaigning += u64::from(self.role.campaigns());
        if let Role::Leader(leader) = old {
            let leader = *leader;
            for request in leader.reads.into_requests() {
                ctx.reject(request, Reject::NotLeader { leader: None });
            }
            self.drop_slot_requests(ctx, leader.slots);
            ctx.clear_timer(Reason::Audit(self.id));
        }
        let leader = self.leader(ctx);
        if leader == old_leader {
            return;
        }
        ctx.note_leader(self.id, self.term, old_leader, leader);
        for request in self.follower_reads.take_all() {
            ctx.reject(request, Reject::NotLeader { leader });
        }
        if let (Some(leader), Some((request, to))) = (leader, self.transfer_request) {
            self.transfer_request = None;
            if leader == to {
                ctx.reply(request, Reply::Transferred { term: self.term });
            } else {
                ctx.reject(request, Reject::TransferFailed);
            }
        }
        match leader {
            Some(_) => ctx.clear_timer(Reason::Election(self.id)),
            None => self.arm_election(ctx),
        }
    }

    /// A message of this group. Those from below the group's term are answered where that helps
    /// the sender on, and dropped else.
    pub(crate) fn receive(
        &mut self,
        ctx: &mut Context,
        from: Peer,
        term: Term,
        message: GroupMessage,
    ) {
        let node = from.member.node;
        if term > Term::MAX {
            return ctx.fault(node, "it speaks of a term that can't be");
        }
        // Of any term.
        match message {
            GroupMessage::PreVote { last } => {
                return self.on_pre_vote(ctx, from.member, term, last);
            }
            GroupMessage::Fetch { from: first, to } => return self.on_fetch(ctx, node, first, to),
            GroupMessage::Fetched { from: first, entries } => {
                return self.on_fetched(ctx, node, first, entries);
            }
            _ => {}
        }
        if term > self.term {
            if matches!(message, GroupMessage::Vote { transfer: false, .. })
                && self.is_sticky(ctx, node)
            {
                return;
            }
            if let GroupMessage::PreVoteReply { granted: true } = message {
                return self.on_pre_vote_reply(ctx, from.member, term, true);
            }
            self.become_follower(ctx, term, None);
        } else if term < self.term {
            match message {
                GroupMessage::Append { .. }
                | GroupMessage::Pruned { .. }
                | GroupMessage::ReadIndex { .. } => {
                    let hint = self.log.marks().committed();
                    self.send(ctx, node, GroupMessage::AppendRejected { hint, round: 0 });
                }
                GroupMessage::Vote { .. } => {
                    self.send(ctx, node, GroupMessage::VoteReply { granted: false });
                }
                _ => {}
            }
            return;
        }
        if message.vouches_for().is_some() {
            ctx.note_boot(from);
        }
        self.note_ack(ctx, from.member, &message);
        match message {
            GroupMessage::PreVote { .. }
            | GroupMessage::Fetch { .. }
            | GroupMessage::Fetched { .. } => unreachable!("handled above"),
            GroupMessage::PreVoteReply { granted } => {
                self.on_pre_vote_reply(ctx, from.member, term, granted);
            }
            GroupMessage::Vote { last, .. } => self.on_vote(ctx, from.member, last),
            GroupMessage::VoteReply { granted } => self.on_vote_reply(ctx, from.member, granted),
            GroupMessage::Append { prev, entries, committed, round } => {
                self.on_append(ctx, node, prev, entries, committed, round);
            }
            GroupMessage::AppendAccepted { durable, round } => {
                self.on_accepted(ctx, from.member, durable, round);
            }
            GroupMessage::AppendRejected { hint, round } => {
                self.on_rejected(ctx, from.member, hint, round);
            }
            GroupMessage::ReadIndex { id } => self.on_read_index(ctx, node, id),
            GroupMessage::ReadIndexReply { id, lsn } => self.on_read_index_reply(ctx, id, lsn),
            GroupMessage::TimeoutNow => self.on_timeout_now(ctx, node),
            GroupMessage::Pruned { base, committed, round } => {
                self.on_pruned(ctx, node, base, committed, round);
            }
            GroupMessage::Root { lsn, root } => self.on_root(ctx, from.member, lsn, root),
            GroupMessage::Verified { lsn, root } => self.on_verified(ctx, node, lsn, root),
        }
    }

    /// Remembers what a member vouches for, lest it forgets.
    fn note_ack(&mut self, ctx: &mut Context, from: Member, message: &GroupMessage) {
        if let Some(lsn) = message.vouches_for()
            && self.is_voter(from)
            && self.acks.note(from, self.term, lsn)
        {
            ctx.acks_due.add(self.id, ctx.now.mono);
        }
    }

    /// A write that this group waited for is durable.
    pub(crate) fn on_persisted(&mut self, ctx: &mut Context, write: WriteId) {
        let rose = self.log.persisted(write);
        self.on_soundness_persisted(ctx);
        self.join(ctx);
        match &self.role {
            Role::Candidate { granted, .. }
                if !granted.contains(&ctx.me().node) && ctx.is_persisted(self.hard_write) =>
            {
                self.count_vote(ctx, ctx.me());
            }
            Role::Follower { leader: Some(leader), .. } if rose => {
                let leader = *leader;
                self.confirm_durable(ctx, leader);
            }
            _ => {}
        }
    }

    /// The end of a step that touched this group: everything that batches happens here.
    pub(crate) fn finish_step(&mut self, ctx: &mut Context, consequences: &mut Consequences) {
        if self.is_leader() {
            self.tend_slots(ctx);
            self.tend_retention(ctx);
            self.tend_audits(ctx);
            self.advance_commit(ctx);
            self.start_round(ctx);
            self.replicate(ctx);
            self.continue_transfer(ctx);
        } else {
            self.ask_read_index(ctx);
            self.prove_sound(ctx);
        }
        self.resolve_superseded(ctx);
        self.tend_bootstrap(ctx);
        self.advance_apply(ctx, consequences);
        self.end_rebuilding(ctx);
        self.report_root(ctx);
        self.answer_reads(ctx);
        self.shrink_tail(ctx.config.tail_bytes_max);
        self.note_lag(ctx.now.mono);
        self.check(ctx);
    }

    fn note_lag(&mut self, now: Instant) {
        let marks = self.log.marks();
        self.known_committed = self.known_committed.max(marks.committed());
        if marks.applied() >= self.known_committed {
            self.behind_since = None;
        } else if self.behind_since.is_none() {
            self.behind_since = Some(now);
        }
    }

    pub(crate) fn known_committed(&self) -> Lsn {
        self.known_committed
    }

    /// Microseconds for which this replica has not been caught up.
    pub(crate) fn lag_us(&self, now: Instant) -> u64 {
        self.behind_since.map_or(0, |since| now.since(since))
    }

    /// Forgets entries in memory that can be read back, down to `bytes`.
    pub(crate) fn shrink_tail(&mut self, bytes: usize) {
        self.log.evict(bytes, self.is_leader());
    }

    /// The group's retry deadline.
    pub(crate) fn on_retry(&mut self, ctx: &mut Context) {
        match &self.role {
            Role::Leader(_) => self.retry_followers(ctx),
            Role::PreCandidate { .. } | Role::Candidate { .. } => self.ask_for_votes(ctx),
            Role::Follower { .. } => self.retry_read_index(ctx),
        }
    }

    pub(crate) fn quarantine(&mut self, ctx: &mut Context, reason: String) {
        // What is condemned may fail to be dropped.
        if !self.audit.take_condemned() && !self.applies() {
            return;
        }
        ctx.notice(Notice::Quarantined { group: self.id, reason: reason.clone() });
        self.rebuilding = None;
        self.withdraw(ctx, reason);
    }

    /// Takes the group out of service.
    fn withdraw(&mut self, ctx: &mut Context, reason: String) {
        self.quarantined = Some(reason);
        self.abandon_state(ctx);
        self.reject_reads(ctx, Reject::Quarantined);
        self.stop_campaigning(ctx);
        if self.is_leader() {
            self.become_follower(ctx, self.term, None);
        }
    }

    /// Whether committed entries reach the state.
    fn applies(&self) -> bool {
        let serves = self.quarantined.is_none() || self.rebuilding.is_some();
        serves && !self.audit.is_condemned()
    }

    /// The state is gone: it is applied anew, from the first entry, or from a snapshot where the log
    /// begins further on. The system group's own state is in the core, and in service.
    pub(crate) fn on_state_lost(&mut self, ctx: &mut Context, reason: String) {
        if !self.applies() && !self.discarding && !self.audit.is_condemned() {
            self.gone = Some(reason);
            return;
        }
        self.discarding = false;
        self.audit.restart();
        ctx.notice(Notice::Rebuilding { group: self.id, reason });
        let applied = self.log.marks().applied();
        let upto = applied.max(self.rebuilding.unwrap_or_default());
        ctx.emit(Effect::Reopen { group: self.id, upto });
        ctx.persist_hint(Record::Checkpointed { group: self.id, lsn: Lsn(0) });
        if self.id == GroupId::SYSTEM {
            self.abandon_state(ctx);
            return self.log.lose_state(applied);
        }
        self.slots = SlotTable::blank();
        self.once = Once::default();
        self.rebuilding = Some(upto);
        self.withdraw(ctx, String::from("its state was damaged, and is rebuilt"));
        self.applying.restart();
        self.restart_bootstrap();
        self.log.lose_state(Lsn(0));
    }

    /// Back in service, once the state is what it was.
    fn end_rebuilding(&mut self, ctx: &mut Context) {
        if self.rebuilding.is_some_and(|upto| self.log.marks().applied() >= upto) {
            (self.rebuilding, self.quarantined) = (None, None);
            ctx.notice(Notice::Rebuilt { group: self.id });
        }
    }

    /// Invariants that hold between steps (docs/INVARIANTS.md).
    pub(crate) fn check(&self, ctx: &Context) {
        self.log.check();
        assert!(self.log.last().term <= self.term, "no entry is of a future term");
        if let Role::Leader(leader) = &self.role {
            assert_eq!(self.log.last().term, self.term, "a leader's last entry is of its term");
            assert!(leader.term_start <= self.log.marks().appended(), "the no-op is in the log");
            let marks = self.log.marks();
            assert!(marks.committed() <= marks.durable(), "a leader commits what it has durably");
            for progress in leader.progress.values() {
                progress.check(ctx.config.inflight_messages_max);
                assert!(
                    progress.matched <= self.log.marks().appended(),
                    "a follower matches what was appended"
                );
            }
        }
        self.check_repair(ctx);
        self.check_slots();
        if let Role::Follower { verified, .. } = &self.role {
            assert!(*verified <= self.log.marks().appended(), "what is verified was appended");
        }
    }
}
