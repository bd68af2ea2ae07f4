//! Linearizable reads: ReadIndex (§6.4), on the leader and through it from any node. A read is
//! answered only after a quorum round that began after the read arrived. There are no leases.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{Group, Role};
use crate::{
    context::{Context, Reason},
    io::{Reject, Reply},
    message::GroupMessage,
    planted::{self, Planted},
    types::{Instant, Lsn, NodeId, RequestId},
};

/// Who waits for a read index.
#[derive(Default)]
struct Readers {
    local: Vec<RequestId>,
    /// Each follower's latest question: it has one at a time.
    followers: BTreeMap<NodeId, u64>,
}

impl Readers {
    fn is_empty(&self) -> bool {
        self.local.is_empty() && self.followers.is_empty()
    }
}

/// Reads that wait for an answer to a round.
struct Round {
    round: u64,
    /// The index it will give.
    lsn: Lsn,
    readers: Readers,
}

/// A leader's reads. One round is under way at a time; what arrives meanwhile shares the next.
#[derive(Default)]
pub(crate) struct LeaderReads {
    /// The last round that began, for reads or for a notice.
    round: u64,
    under_way: Option<Round>,
    /// Arrived since.
    arrived: Readers,
}

impl LeaderReads {
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// The round that reads wait for; 0 where none do.
    pub(super) fn round_wanted(&self) -> u64 {
        self.under_way.as_ref().map_or(0, |under_way| under_way.round)
    }

    /// Begins a round that no read waits for: its echo tells that a message arrived.
    pub(super) fn begin_notice(&mut self) {
        self.round += 1;
    }

    fn len(&self) -> usize {
        let under_way = self.under_way.as_ref().map_or(0, |round| round.readers.local.len());
        self.arrived.local.len() + under_way
    }

    pub(super) fn into_requests(self) -> Vec<RequestId> {
        let mut all = self.under_way.map(|round| round.readers.local).unwrap_or_default();
        all.extend(self.arrived.local);
        all
    }
}

/// Reads whose index is known, by the LSN that must be applied first.
#[derive(Default)]
pub(crate) struct KnownReads {
    by_lsn: BTreeMap<Lsn, Vec<RequestId>>,
    len: usize,
}

impl KnownReads {
    fn add(&mut self, lsn: Lsn, requests: Vec<RequestId>) {
        self.len += requests.len();
        if !requests.is_empty() {
            self.by_lsn.entry(lsn).or_default().extend(requests);
        }
    }

    fn is_due(&self, lsn: Lsn) -> bool {
        self.by_lsn.first_key_value().is_some_and(|(first, _)| *first <= lsn)
    }

    /// Takes one LSN's, if it is at most that.
    fn take_upto(&mut self, lsn: Lsn) -> Option<Vec<RequestId>> {
        let first = self.by_lsn.first_entry().filter(|entry| *entry.key() <= lsn)?;
        let requests = first.remove();
        self.len -= requests.len();
        Some(requests)
    }
}

/// A follower's reads. One question is under way at a time.
#[derive(Default)]
pub(crate) struct FollowerReads {
    id: u64,
    /// Waiting for the answer to `id`, and since when.
    asked: Option<(Instant, Vec<RequestId>)>,
    arrived: Vec<RequestId>,
}

impl FollowerReads {
    fn len(&self) -> usize {
        self.arrived.len() + self.asked.as_ref().map_or(0, |(_, requests)| requests.len())
    }

    /// Every request that waits for an answer of the leader.
    pub(super) fn take_all(&mut self) -> Vec<RequestId> {
        let mut all = self.asked.take().map(|(_, requests)| requests).unwrap_or_default();
        all.append(&mut self.arrived);
        all
    }
}

impl Group {
    /// A client of this node wants to read.
    pub(crate) fn read(&mut self, ctx: &mut Context, request: RequestId) {
        if self.quarantined.is_some() {
            return ctx.reject(request, Reject::Quarantined);
        }
        if self.reads_held() >= ctx.config.reads_max {
            return ctx.reject(request, Reject::Busy);
        }
        let committed = self.log.marks().committed();
        match &mut self.role {
            Role::Leader(leader) => leader.reads.arrived.local.push(request),
            Role::Follower { leader: Some(_), .. } if planted::is(Planted::StaleReadIndex) => {
                self.known_reads.add(committed, alloc::vec![request]);
            }
            Role::Follower { leader: Some(_), .. } => self.follower_reads.arrived.push(request),
            _ => ctx.reject(request, Reject::NotLeader { leader: None }),
        }
    }

    /// Reads of this node's clients that have no answer yet.
    pub(crate) fn reads_held(&self) -> usize {
        let led = if let Role::Leader(leader) = &self.role { leader.reads.len() } else { 0 };
        led + self.follower_reads.len() + self.known_reads.len
    }

    /// This replica's state will not answer them any more.
    pub(super) fn reject_reads(&mut self, ctx: &mut Context, reject: Reject) {
        let known = core::mem::take(&mut self.known_reads).by_lsn.into_values().flatten();
        for request in self.follower_reads.take_all().into_iter().chain(known) {
            ctx.reject(request, reject);
        }
    }

    pub(super) fn on_read_index(&mut self, ctx: &mut Context, from: NodeId, id: u64) {
        match &mut self.role {
            Role::Leader(leader) => {
                let latest = leader.reads.arrived.followers.entry(from).or_insert(id);
                *latest = id.max(*latest);
            }
            _ => self.send(ctx, from, GroupMessage::ReadIndexReply { id, lsn: None }),
        }
    }

    /// Begins a round for the reads that have arrived, unless one is under way.
    pub(super) fn start_round(&mut self, ctx: &mut Context) {
        let established = self.is_established();
        let committed = self.log.marks().committed();
        self.finish_round(ctx);
        let Role::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        if !established || reads.under_way.is_some() || reads.arrived.is_empty() {
            return;
        }
        reads.round += 1;
        let readers = core::mem::take(&mut reads.arrived);
        reads.under_way = Some(Round { round: reads.round, lsn: committed, readers });
        // A cluster of one is its own quorum.
        self.finish_round(ctx);
    }

    fn finish_round(&mut self, ctx: &mut Context) {
        let confirmed = self.confirmed_round(ctx);
        let Role::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        if confirmed < reads.round_wanted() && !planted::is(Planted::ReadWithoutQuorum) {
            return;
        }
        let Some(Round { lsn, readers, .. }) = reads.under_way.take() else { return };
        self.known_reads.add(lsn, readers.local);
        for (node, id) in readers.followers {
            self.send(ctx, node, GroupMessage::ReadIndexReply { id, lsn: Some(lsn) });
        }
    }

    /// Asks the leader for an index on behalf of the reads that have arrived.
    pub(super) fn ask_read_index(&mut self, ctx: &mut Context) {
        let reads = &mut self.follower_reads;
        if reads.asked.is_some() || reads.arrived.is_empty() {
            return;
        }
        reads.id += 1;
        reads.asked = Some((ctx.now.mono, core::mem::take(&mut reads.arrived)));
        self.send_read_index(ctx);
    }

    fn send_read_index(&mut self, ctx: &mut Context) {
        if let Role::Follower { leader: Some(leader), .. } = self.role {
            let id = self.follower_reads.id;
            self.send(ctx, leader, GroupMessage::ReadIndex { id });
            ctx.set_timer_by(Reason::Retry(self.id), ctx.now.mono.plus(ctx.config.retry_us));
        }
    }

    pub(super) fn retry_read_index(&mut self, ctx: &mut Context) {
        if self.follower_reads.asked.is_some() {
            self.send_read_index(ctx);
        }
    }

    pub(super) fn on_read_index_reply(&mut self, ctx: &mut Context, id: u64, lsn: Option<Lsn>) {
        if id != self.follower_reads.id {
            return;
        }
        let Some((_, requests)) = self.follower_reads.asked.take() else { return };
        match lsn {
            Some(lsn) => self.known_reads.add(lsn, requests),
            None => {
                for request in requests {
                    ctx.reject(request, Reject::NotLeader { leader: None });
                }
            }
        }
    }

    /// Answers the reads whose index is applied: of the state, and of slots.
    pub(super) fn answer_reads(&mut self, ctx: &mut Context) {
        let applied = self.log.marks().applied();
        if self.known_reads.is_due(applied) && !self.know_slots(ctx) {
            return;
        }
        while let Some(requests) = self.known_reads.take_upto(applied) {
            for request in requests {
                ctx.reply(request, Reply::Readable { lsn: applied });
            }
        }
    }
}
