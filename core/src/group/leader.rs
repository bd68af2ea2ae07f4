//! The leader's side of replication: appends, windows, back-off, commit, transfer.

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};

use bytes::Bytes;

use super::{
    Asker, Group, Leader, LeaderAudits, LeaderOnce, LeaderReads, LeaderSlots, Role, Transfer,
    progress::{Flow, Progress},
};
use crate::{
    context::{Context, LoadFor, Reason},
    entry::{Entry, Kind, Position, Record, fitting},
    io::{Reject, Reply},
    message::GroupMessage,
    planted::{self, Planted},
    types::{Hlc, LoadId, Lsn, Member, NodeId, RequestId},
};

impl Group {
    pub(super) fn become_leader(&mut self, ctx: &mut Context) {
        assert_eq!(self.vote, Some(ctx.me()), "a leader voted for itself");
        let last = self.log.last().lsn;
        let now = ctx.now.mono;
        let progress: BTreeMap<NodeId, Progress> = ctx
            .peers
            .iter()
            .map(|(node, peer)| (node, Progress::new(peer.incarnation, peer.boot, last, now)))
            .collect();
        let leader = Leader {
            progress,
            term_start: last.next(),
            reads: LeaderReads::default(),
            slots: LeaderSlots::default(),
            pruning: Lsn(0),
            once: LeaderOnce::default(),
            audits: LeaderAudits::default(),
            transfer: None,
        };
        self.set_role(ctx, Role::Leader(Box::new(leader)));
        ctx.clear_timer(Reason::Retry(self.id));
        self.append(ctx, Kind::TermStart, Bytes::new());
        ctx.touched.insert(self.id);
    }

    /// Appends an entry of this term.
    pub(super) fn append(&mut self, ctx: &mut Context, kind: Kind, payload: Bytes) -> Lsn {
        let last = self.log.last();
        self.hlc = self.hlc.next().max(Hlc::at(ctx.now.wall_ms));
        let entry = Entry {
            lsn: last.lsn.next(),
            term: self.term,
            prev_term: last.term,
            hlc: self.hlc,
            origin: (ctx.identity.cluster.0 >> 64) as u64,
            kind,
            payload,
        };
        let lsn = entry.lsn;
        if matches!(kind, Kind::Op | Kind::Once) {
            ctx.fresh.wrote(ctx.now.mono, entry.weight() as u64);
        }
        let write = ctx.persist(self.id, Record::Append { group: self.id, entry: entry.clone() });
        self.log.append(entry, write);
        lsn
    }

    /// Appends a client's proposal, or says why not.
    pub(crate) fn propose(
        &mut self,
        ctx: &mut Context,
        request: RequestId,
        kind: Kind,
        payload: Bytes,
    ) {
        if let Some(reject) = self.refuse_proposal(ctx, payload.len()) {
            return ctx.reject(request, reject);
        }
        let lsn = self.append(ctx, kind, payload);
        self.proposals.insert((lsn, self.term), Asker::One(request));
    }

    /// Why such a payload can't be appended for a client now.
    pub(super) fn refuse_proposal(&self, ctx: &Context, payload: usize) -> Option<Reject> {
        match &self.role {
            _ if self.quarantined.is_some() => Some(Reject::Quarantined),
            Role::Leader(leader) if leader.transfer.is_some() => Some(Reject::Transferring),
            Role::Leader(_) => self.refuse_admission(ctx, payload, ctx.config.reserve_bytes),
            _ => Some(Reject::NotLeader { leader: self.leader(ctx) }),
        }
    }

    /// Why there is no room for such a payload, where `reserve` is to be left in the oplog.
    pub(super) fn refuse_admission(
        &self,
        ctx: &Context,
        payload: usize,
        reserve: u64,
    ) -> Option<Reject> {
        let weight = payload + Entry::OVERHEAD;
        if payload > ctx.config.payload_bytes_max {
            Some(Reject::TooLarge)
        } else if ctx.free_room() < reserve + weight as u64 {
            Some(Reject::StorageFull)
        } else if self.log.uncommitted_bytes() + weight > ctx.config.uncommitted_bytes_max
            || !self.tail_takes(ctx, weight)
        {
            Some(Reject::Busy)
        } else {
            None
        }
    }

    /// Whether the memory for entries has room. What is committed elsewhere but not durable here
    /// stays in the tail as well, so that a disk that does not keep up is not outrun without bound.
    pub(super) fn tail_takes(&self, ctx: &Context, bytes: usize) -> bool {
        let config = &ctx.config;
        self.log.tail_bytes() + bytes <= config.uncommitted_bytes_max + config.tail_bytes_max
    }

    /// A peer came back, restarted, was wiped, or does not know that it has a leader: ask it again
    /// where it stands.
    pub(crate) fn on_contact(&mut self, ctx: &mut Context, node: NodeId) {
        let last = self.log.last().lsn;
        let Some(peer) = ctx.peers.get(node) else { return };
        let new = || Progress::new(peer.incarnation, peer.boot, last, ctx.now.mono);
        if let Role::Leader(leader) = &mut self.role {
            let progress = leader.progress.entry(node).or_insert_with(new);
            let same_boot = progress.boot == peer.boot || planted::is(Planted::MatchedSurvivesBoot);
            if progress.incarnation == peer.incarnation && same_boot {
                progress.probe();
            } else {
                *progress = new();
            }
            ctx.touched.insert(self.id);
        }
    }

    /// Sends what each follower can take.
    pub(super) fn replicate(&mut self, ctx: &mut Context) {
        let marks = *self.log.marks();
        let Role::Leader(leader) = &mut self.role else { return };
        let there = leader.progress.iter().filter(|(node, _)| ctx.is_reachable(**node));
        let nodes: Vec<NodeId> = there.clone().map(|(node, _)| *node).collect();
        if there.clone().any(|(_, p)| p.is_owed(marks.appended(), marks.committed())) {
            // A round of its own: its echo tells that the commit mark has arrived.
            leader.reads.begin_notice();
        }
        for node in nodes {
            self.replicate_to(ctx, node);
        }
    }

    fn replicate_to(&mut self, ctx: &mut Context, node: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&node) else { return };
        let marks = *self.log.marks();
        let round = leader.reads.round();
        // Reads wait for its answer: one of its own, since entries are answered once they are durable.
        let asks = progress.round_sent < leader.reads.round_wanted();
        let config = &ctx.config;
        let mut messages = Vec::new();
        if progress.next < marks.first() {
            // It needs what is not in the log any more.
            if progress.tell_pruned(ctx.now.mono) {
                let base = self.log.base().position;
                progress.round_sent = round.max(progress.round_sent);
                let committed = marks.committed();
                messages.push(GroupMessage::Pruned { base, committed, round });
            }
        }
        while progress.next <= marks.appended()
            && progress.loading.is_none()
            && progress.has_window(config.inflight_messages_max, config.inflight_bytes_max)
        {
            let from = progress.next;
            let found = self.log.slice(
                from,
                marks.appended(),
                config.append_bytes_max,
                config.append_entries_max,
            );
            let Some(entries) = found else {
                if progress.rests_until > ctx.now.mono {
                    ctx.set_timer_by(Reason::Retry(self.id), progress.rests_until);
                    break;
                }
                let to = marks.durable().min(Lsn(from.0 + config.append_entries_max as u64 - 1));
                let (purpose, max_bytes) = (LoadFor::Follower(node), config.append_bytes_max);
                progress.loading = Some(ctx.load(self.id, purpose, (from, to), max_bytes));
                progress.loading_since = ctx.now.mono;
                break;
            };
            messages.push(append_message(
                progress,
                entries,
                marks.committed(),
                round,
                ctx.now.mono,
            ));
        }
        let is_owed = progress.is_owed(marks.appended(), marks.committed());
        let asks = asks && (messages.is_empty() || progress.flow == Flow::Pipeline);
        if (asks || is_owed)
            && !matches!(progress.flow, Flow::Snapshot { .. })
            && let Some(term) = self.log.term_at(progress.next.prev())
        {
            let prev = Position { term, lsn: progress.next.prev() };
            progress.sent(prev.lsn, prev.lsn, 0, ctx.now.mono);
            if round > progress.round_sent && prev.lsn >= marks.committed() {
                progress.notified(round, marks.committed());
            }
            progress.round_sent = round;
            messages.push(GroupMessage::Append {
                prev,
                entries: Vec::new(),
                committed: marks.committed(),
                round,
            });
        }
        if progress.awaits() {
            let at = ctx.now.mono.plus(ctx.config.retry_us);
            ctx.set_timer_by(Reason::Retry(self.id), at);
        }
        for message in messages {
            self.send(ctx, node, message);
        }
    }

    /// Entries from disk for a follower that is far behind.
    pub(crate) fn on_loaded_for(
        &mut self,
        ctx: &mut Context,
        node: NodeId,
        load: LoadId,
        entries: Vec<Entry>,
    ) {
        let committed = self.log.marks().committed();
        let rests = self.is_quorum_without(ctx, node);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&node) else { return };
        if progress.loading != Some(load) {
            return;
        }
        progress.loading = None;
        let round = leader.reads.round();
        let wanted = entries.first().is_some_and(|e| e.lsn == progress.next);
        // A follower that answered meanwhile may need something else.
        if wanted && progress.has_window(ctx.config.inflight_messages_max, usize::MAX) {
            let bytes = entries.iter().map(|entry| entry.weight() as u64).sum();
            if rests {
                let rest = ctx.fresh.rest_us(ctx.now.mono, bytes, ctx.config.catch_up_bytes_per_s);
                progress.rests_until = progress.loading_since.plus(rest);
            }
            let message = append_message(progress, entries, committed, round, ctx.now.mono);
            self.send(ctx, node, message);
        }
    }

    /// Whether a quorum follows closely without this node: nobody waits for it.
    fn is_quorum_without(&self, ctx: &Context, node: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let follows = |voter: &&Member| {
            let progress = leader.progress.get(&voter.node);
            let closely = progress.is_some_and(|p| {
                p.incarnation == voter.incarnation
                    && p.flow == Flow::Pipeline
                    && p.loading.is_none()
            });
            **voter == ctx.me() || closely && ctx.is_reachable(voter.node)
        };
        let others = self.voters.iter().filter(|voter| voter.node != node);
        others.filter(follows).count() >= self.quorum(ctx)
    }

    /// A follower's entries can't be read: tried again later, as if they had been lost on the way.
    pub(crate) fn on_load_failed_for(&mut self, ctx: &mut Context, node: NodeId, load: LoadId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&node)
            && progress.loading == Some(load)
        {
            progress.loading = None;
            progress.hold(ctx.now.mono);
            ctx.set_timer_by(Reason::Retry(self.id), ctx.now.mono.plus(ctx.config.retry_us));
        }
    }

    /// Its next entries could not be read, and came from a peer.
    pub(super) fn send_held(&mut self, ctx: &mut Context, node: NodeId, entries: &[Entry]) {
        let committed = self.log.marks().committed();
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&node).filter(|p| p.is_held()) else { return };
        let next = progress.next;
        let entries = entries.iter().filter(|e| e.lsn >= next);
        // The peer's limits are its own.
        let (bytes_max, entries_max) = (ctx.config.append_bytes_max, ctx.config.append_entries_max);
        let run = fitting(entries.clone(), bytes_max, entries_max);
        let entries: Vec<Entry> = entries.take(run).cloned().collect();
        if entries.first().is_none_or(|e| e.lsn != next) {
            return;
        }
        progress.probe();
        if progress.has_window(ctx.config.inflight_messages_max, usize::MAX) {
            let round = leader.reads.round();
            let message = append_message(progress, entries, committed, round, ctx.now.mono);
            self.send(ctx, node, message);
        }
    }

    fn round(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.reads.round(),
            _ => 0,
        }
    }

    /// A follower does not know that it has a leader: unless it is being told already, tell it.
    pub(super) fn make_known_to(&mut self, ctx: &mut Context, from: Member) {
        if self.progress_of(from).is_some_and(|p| !p.awaits()) {
            self.on_contact(ctx, from.node);
        }
    }

    /// The progress of a peer, as long as it is the data directory that the leader knows.
    fn progress_of(&mut self, from: Member) -> Option<&mut Progress> {
        match &mut self.role {
            Role::Leader(leader) => leader
                .progress
                .get_mut(&from.node)
                .filter(|progress| progress.incarnation == from.incarnation),
            _ => None,
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        ctx: &mut Context,
        from: Member,
        durable: Lsn,
        round: u64,
    ) {
        let appended = self.log.marks().appended();
        let now = ctx.now.mono;
        let round_max = self.round();
        let Some(progress) = self.progress_of(from) else { return };
        if durable > appended || round > round_max {
            return ctx.fault(from.node, "it confirmed what was never sent");
        }
        let resumes = progress.is_probed() && durable < appended;
        progress.accepted(durable, now);
        progress.confirmed_round(round);
        self.resyncs.partial += u64::from(resumes);
    }

    pub(super) fn on_rejected(&mut self, ctx: &mut Context, from: Member, hint: Lsn, round: u64) {
        let now = ctx.now.mono;
        let round_max = self.round();
        let (first, appended) = (self.log.marks().first(), self.log.marks().appended());
        let Some(progress) = self.progress_of(from) else { return };
        if round > round_max {
            return ctx.fault(from.node, "it confirmed a round that was never sent");
        }
        progress.rejected(hint.min(appended), first, now);
        progress.confirmed_round(round);
    }

    /// Answers are overdue: whoever owes one is asked again where it stands.
    pub(super) fn retry_followers(&mut self, ctx: &mut Context) {
        let Role::Leader(leader) = &mut self.role else { return };
        for (node, progress) in &mut leader.progress {
            if !progress.awaits() {
                continue;
            }
            let overdue = progress.answered.plus(ctx.config.retry_us);
            if ctx.now.mono >= overdue {
                progress.probe();
            } else if ctx.peers.is_alive(*node) {
                ctx.set_timer_by(Reason::Retry(self.id), overdue);
            }
        }
        if let Some(transfer) = &mut leader.transfer {
            transfer.asked = false;
            ctx.set_timer_by(Reason::Retry(self.id), ctx.now.mono.plus(ctx.config.heartbeat_us));
        }
        ctx.touched.insert(self.id);
    }

    /// Where a quorum agrees: the highest LSN that this many voters satisfy.
    fn quorum_at(&self, ctx: &Context, of: impl Fn(&Progress) -> u64, own: u64) -> u64 {
        let Role::Leader(leader) = &self.role else { return 0 };
        let mut values: Vec<u64> = self
            .voters
            .iter()
            .map(|voter| {
                if *voter == ctx.me() {
                    return own;
                }
                let progress = leader.progress.get(&voter.node);
                let counts = |p: &&Progress| {
                    p.incarnation == voter.incarnation || planted::is(Planted::LearnerCounts)
                };
                progress.filter(counts).map_or(0, &of)
            })
            .collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get(self.quorum(ctx) - 1).copied().unwrap_or(0)
    }

    /// The commit rule (§5.4.2): durable on a majority, and of the leader's own term. Durable on the
    /// leader as well, although a majority without it would do: so its commit mark vouches for its
    /// disk. (Nobody waits for that: it applies only what it has durably. What was committed before
    /// its term is durable, since its vote for itself was written later.)
    pub(super) fn advance_commit(&mut self, ctx: &mut Context) {
        let own = self.log.marks().durable();
        let lsn = Lsn(self.quorum_at(ctx, |p| p.matched.0, own.0)).min(own);
        let own_term =
            self.log.term_at(lsn) == Some(self.term) || planted::is(Planted::OldTermCommit);
        if own_term {
            self.log.commit(lsn);
        }
    }

    /// The highest round that a quorum has confirmed.
    pub(super) fn confirmed_round(&self, ctx: &Context) -> u64 {
        self.quorum_at(ctx, |p| p.round, u64::MAX)
    }

    /// Whether this leader has committed an entry of its term, so that its commit mark is current.
    pub(super) fn is_established(&self) -> bool {
        match &self.role {
            Role::Leader(leader) => {
                self.log.marks().committed() >= leader.term_start
                    || planted::is(Planted::TermStartSkipped)
            }
            _ => false,
        }
    }

    // --- transfer ---

    /// Hands leadership to `to`; answers once it is seen there.
    pub(crate) fn transfer(&mut self, ctx: &mut Context, request: RequestId, to: NodeId) {
        let me = ctx.me().node;
        let can_take_over = self.can_take_over(ctx, to);
        match &mut self.role {
            Role::Leader(_) if to == me => {
                ctx.reply(request, Reply::Transferred { term: self.term })
            }
            Role::Leader(_) if !can_take_over => ctx.reject(request, Reject::TransferFailed),
            Role::Leader(leader) if leader.transfer.is_some() => ctx.reject(request, Reject::Busy),
            Role::Leader(_) => {
                self.transfer_request = Some((request, to));
                self.start_transfer(ctx, to);
            }
            _ => {
                let leader = self.leader(ctx);
                ctx.reject(request, Reject::NotLeader { leader });
            }
        }
    }

    /// Whether a node is a voter with the data directory that has the vote, and was heard lately.
    fn can_take_over(&self, ctx: &Context, node: NodeId) -> bool {
        let incarnation = ctx.peers.get(node).map(|p| p.incarnation);
        ctx.peers.is_alive(node)
            && self.voters.iter().any(|v| v.node == node && Some(v.incarnation) == incarnation)
    }

    fn start_transfer(&mut self, ctx: &mut Context, to: NodeId) {
        let until = ctx.now.mono.plus(2 * ctx.config.election_timeout_us);
        if let Role::Leader(leader) = &mut self.role {
            leader.transfer = Some(Transfer { to, until, asked: false });
        }
        ctx.set_timer_by(Reason::Retry(self.id), ctx.now.mono.plus(ctx.config.heartbeat_us));
        ctx.touched.insert(self.id);
    }

    /// Hands over to whoever is furthest, because this node drains.
    pub(crate) fn hand_over(&mut self, ctx: &mut Context) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.transfer.is_some() {
            return;
        }
        let best = self
            .voters
            .iter()
            .filter(|v| self.can_take_over(ctx, v.node))
            .filter_map(|v| leader.progress.get(&v.node).map(|p| (p.matched, v.node)))
            .max();
        if let Some((_, to)) = best {
            self.start_transfer(ctx, to);
        }
    }

    /// Asks the target to campaign once it has everything; gives up in time.
    pub(super) fn continue_transfer(&mut self, ctx: &mut Context) {
        let last = self.log.last().lsn;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        if ctx.now.mono >= transfer.until {
            leader.transfer = None;
            if let Some((request, _)) = self.transfer_request.take() {
                ctx.reject(request, Reject::TransferFailed);
            }
            return;
        }
        let to = transfer.to;
        let caught_up = leader.progress.get(&to).is_some_and(|p| p.matched == last)
            || planted::is(Planted::TransferWithoutCatchUp);
        if caught_up && !transfer.asked {
            transfer.asked = true;
            self.send(ctx, to, GroupMessage::TimeoutNow);
        }
    }

    /// Proposals of this node that have no answer yet.
    pub(crate) fn proposals(&self) -> usize {
        self.proposals.len()
    }

    /// What the status shows of the followers: durable and agreed, by node.
    pub(crate) fn matched(&self) -> Vec<(NodeId, Lsn)> {
        match &self.role {
            Role::Leader(leader) => {
                leader.progress.iter().map(|(node, p)| (*node, p.matched)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Builds an append and notes it as sent.
fn append_message(
    progress: &mut Progress,
    entries: Vec<Entry>,
    committed: Lsn,
    round: u64,
    now: crate::types::Instant,
) -> GroupMessage {
    let first = &entries[0];
    let prev = Position { term: first.prev_term, lsn: first.lsn.prev() };
    let last = Lsn(prev.lsn.0 + entries.len() as u64);
    let bytes = entries.iter().map(Entry::weight).sum();
    progress.sent(prev.lsn, last, bytes, now);
    progress.round_sent = round;
    GroupMessage::Append { prev, entries, committed, round }
}
