//! Linearizable reads: ReadIndex (§6.4), on the leader and through it from any node. A read is
//! answered only after a quorum round that began after the read arrived. There are no leases.

use alloc::{collections::VecDeque, vec::Vec};

use super::{Group, Role};
use crate::{
    context::{Context, Reason},
    io::{Reject, Reply},
    message::GroupMessage,
    planted::{self, Planted},
    types::{Instant, Lsn, NodeId, RequestId},
};

/// Who waits for a read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Local(RequestId),
    Follower { node: NodeId, id: u64 },
}

/// A leader's reads. One round is under way at a time; what arrives meanwhile shares the next.
#[derive(Default)]
pub(crate) struct LeaderReads {
    round: u64,
    /// Waiting for `round`, with the index it will give.
    under_way: Option<(Lsn, Vec<Reader>)>,
    /// Arrived since.
    arrived: VecDeque<Reader>,
}

impl LeaderReads {
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    fn len(&self) -> usize {
        self.arrived.len() + self.under_way.as_ref().map_or(0, |(_, readers)| readers.len())
    }

    pub(super) fn into_requests(self) -> Vec<RequestId> {
        let under_way = self.under_way.map(|(_, readers)| readers).unwrap_or_default();
        under_way
            .into_iter()
            .chain(self.arrived)
            .filter_map(|reader| match reader {
                Reader::Local(request) => Some(request),
                Reader::Follower { .. } => None,
            })
            .collect()
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
        match &mut self.role {
            Role::Leader(leader) if leader.reads.len() < ctx.config.reads_max => {
                leader.reads.arrived.push_back(Reader::Local(request));
            }
            Role::Follower { leader: Some(_), .. }
                if self.follower_reads.len() < ctx.config.reads_max =>
            {
                self.follower_reads.arrived.push(request);
            }
            Role::Leader(_) | Role::Follower { leader: Some(_), .. } => {
                ctx.reject(request, Reject::Busy);
            }
            _ => ctx.reject(request, Reject::NotLeader { leader: None }),
        }
    }

    pub(super) fn on_read_index(&mut self, ctx: &mut Context, from: NodeId, id: u64) {
        match &mut self.role {
            Role::Leader(leader) if leader.reads.len() < ctx.config.reads_max => {
                leader.reads.arrived.push_back(Reader::Follower { node: from, id });
            }
            Role::Leader(_) => {}
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
        reads.under_way = Some((committed, reads.arrived.drain(..).collect()));
        // A cluster of one is its own quorum.
        self.finish_round(ctx);
    }

    fn finish_round(&mut self, ctx: &mut Context) {
        let confirmed = self.confirmed_round(ctx);
        let Role::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        if confirmed < reads.round && !planted::is(Planted::ReadWithoutQuorum) {
            return;
        }
        let Some((lsn, readers)) = reads.under_way.take() else { return };
        for reader in readers {
            match reader {
                Reader::Local(request) => self.readable_at.entry(lsn).or_default().push(request),
                Reader::Follower { node, id } => {
                    self.send(ctx, node, GroupMessage::ReadIndexReply { id, lsn: Some(lsn) });
                }
            }
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
            Some(lsn) => self.readable_at.entry(lsn).or_default().extend(requests),
            None => {
                for request in requests {
                    ctx.reject(request, Reject::NotLeader { leader: None });
                }
            }
        }
    }

    /// Answers the reads whose index is applied.
    pub(super) fn answer_reads(&mut self, ctx: &mut Context) {
        let applied = self.log.marks().applied();
        while let Some(entry) = self.readable_at.first_entry() {
            if *entry.key() > applied {
                break;
            }
            for request in entry.remove() {
                ctx.reply(request, Reply::Readable { lsn: applied });
            }
        }
    }
}
