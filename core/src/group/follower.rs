//! The follower's side of replication: what the leader sends is checked, appended and confirmed.

use alloc::vec::Vec;

use super::{Group, Role};
use crate::{
    context::Context,
    entry::{Entry, Position, Record},
    message::GroupMessage,
    planted::{self, Planted},
    types::{Lsn, NodeId},
};

impl Group {
    /// An append of the present term: its sender leads.
    pub(super) fn on_append(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        mut prev: Position,
        mut entries: Vec<Entry>,
        committed: Lsn,
        round: u64,
    ) {
        if !self.follows(ctx, from) {
            return;
        }
        self.known_committed = self.known_committed.max(committed);
        if !is_well_formed(prev, &entries, self.term) {
            return ctx.fault(from, "its entries are not contiguous");
        }
        if self.bootstrap.holds_log() {
            return;
        }
        let base = self.log.base().position;
        if prev.lsn < base.lsn {
            // What is pruned is committed, so whoever leads has it too, unless it was committed in a later
            // term: then this leader is told nothing that it has not.
            let reaches = entries.iter().find(|e| e.lsn == base.lsn).map(|e| e.term);
            if reaches != Some(base.term) {
                return self.reject_append(ctx, from, base.lsn, round);
            }
            entries.retain(|e| e.lsn > base.lsn);
            prev = base;
        }
        let known = self.log.term_at(prev.lsn);
        if prev.lsn <= self.log.marks().committed() && known != Some(prev.term) {
            return ctx.fault(from, "it contradicts what is committed");
        }
        if let Some(hint) = self.conflict_at(prev) {
            return self.reject_append(ctx, from, hint, round);
        }
        let claimed = Lsn(prev.lsn.0 + entries.len() as u64);
        // A leader's limits may be wider than this node's.
        entries.truncate(self.fitting(ctx, &entries));
        let agreed = Lsn(prev.lsn.0 + entries.len() as u64);
        let Some(appended) = self.take_entries(ctx, entries) else {
            return ctx.fault(from, "it replaces what is committed");
        };
        if let Role::Follower { verified, round: seen, told, .. } = &mut self.role {
            *verified = agreed.max(*verified);
            if agreed == claimed {
                *seen = round.max(*seen);
            }
            if ctx.recall.has_answered(from) {
                *told = committed.max(*told);
            }
        }
        let known = if planted::is(Planted::CommitBeyondAgreed) {
            self.log.marks().appended()
        } else {
            agreed
        };
        self.log.commit(committed.min(known));
        if agreed < claimed {
            // The rest again, later.
            if planted::is(Planted::AppendResultIgnored) {
                let durable = claimed;
                return self.send(ctx, from, GroupMessage::AppendAccepted { durable, round });
            }
            self.reject_append(ctx, from, agreed, round);
        } else if !appended {
            self.confirm(ctx, from);
        }
    }

    /// Whether the sender of what only a leader of the present term sends is followed.
    pub(super) fn follows(&mut self, ctx: &mut Context, from: NodeId) -> bool {
        match &self.role {
            Role::Follower { leader: Some(leader), .. } if *leader == from => true,
            Role::Leader(_) | Role::Follower { leader: Some(_), .. } => {
                ctx.fault(from, "it leads in a term that has another leader");
                false
            }
            _ => {
                self.become_follower(ctx, self.term, Some(from));
                true
            }
        }
    }

    /// Where to try again, if the logs do not agree at `prev`.
    fn conflict_at(&self, prev: Position) -> Option<Lsn> {
        match self.log.term_at(prev.lsn) {
            None => Some(self.log.last().lsn),
            Some(term) if term != prev.term => Some(self.log.before_run_of(prev.lsn)),
            Some(_) => None,
        }
    }

    pub(super) fn reject_append(&mut self, ctx: &mut Context, to: NodeId, hint: Lsn, asked: u64) {
        if let Role::Follower { round, .. } = self.role {
            let round = round.max(asked);
            self.send(ctx, to, GroupMessage::AppendRejected { hint, round });
        }
    }

    /// Something has become durable. Where nobody waits for it, and entries come faster than they are
    /// applied, it is confirmed only as they are: so the leader does not send what memory has no room
    /// for, and what applying would have to read back. A leader that asks is answered at once.
    pub(super) fn confirm_durable(&mut self, ctx: &mut Context, leader: NodeId) {
        let waits = self.is_applying() && self.applies_behind(ctx);
        match &mut self.role {
            Role::Follower { owes, round, answered, .. } if waits && round == answered => {
                *owes = true;
            }
            _ => self.confirm(ctx, leader),
        }
    }

    /// Something is applied: the leader may go on.
    pub(super) fn confirm_owed(&mut self, ctx: &mut Context) {
        if let Role::Follower { leader: Some(leader), owes: true, .. } = self.role
            && !self.applies_behind(ctx)
        {
            self.confirm(ctx, leader);
        }
    }

    fn applies_behind(&self, ctx: &Context) -> bool {
        let marks = self.log.marks();
        marks.durable() <= marks.committed()
            && self.log.lag_bytes() > ctx.config.tail_bytes_max as u64 / 2
    }

    /// Confirms what is durable here and agreed with the leader.
    pub(crate) fn confirm(&mut self, ctx: &mut Context, to: NodeId) {
        if let Role::Follower { verified, round, answered, owes, .. } = &mut self.role {
            (*answered, *owes) = (*round, false);
            let (verified, round) = (*verified, *round);
            let durable = self.log.marks().durable();
            let durable =
                if planted::is(Planted::AckUnverified) { durable } else { durable.min(verified) };
            self.send(ctx, to, GroupMessage::AppendAccepted { durable, round });
        }
    }

    /// How many of these entries there is room for.
    fn fitting(&self, ctx: &Context, entries: &[Entry]) -> usize {
        // A leader's own bound, and one message beyond it.
        let beyond = ctx.config.append_bytes_max + ctx.config.payload_bytes_max;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.weight();
            ctx.free_room() >= ctx.config.reserve_bytes / 2 + bytes as u64
                && self.tail_takes(ctx, bytes.saturating_sub(beyond))
        };
        entries.iter().take_while(fits).count()
    }

    /// Appends what is new, after dropping what conflicts with it. Whether anything was appended;
    /// `None`, and no change, where that would drop a committed entry.
    fn take_entries(&mut self, ctx: &mut Context, entries: Vec<Entry>) -> Option<bool> {
        let marks = *self.log.marks();
        let new = entries.iter().position(|e| self.log.term_at(e.lsn) != Some(e.term));
        let Some(new) = new else { return Some(false) };
        let first = entries[new].lsn;
        if first <= marks.committed() {
            return None;
        }
        if first <= marks.appended() {
            self.drop_entries_from(ctx, first);
        }
        for entry in entries.into_iter().skip(new) {
            self.hlc = self.hlc.max(entry.hlc.believed(ctx.now.wall_ms, ctx.config.hlc_ahead_ms));
            let record = Record::Append { group: self.id, entry: entry.clone() };
            let write = ctx.persist(self.id, record);
            self.log.append(entry, write);
        }
        Some(true)
    }

    fn drop_entries_from(&mut self, ctx: &mut Context, first: Lsn) {
        self.log.truncate(first.prev());
        self.forget_wanted(first);
        if let Role::Follower { verified, .. } = &mut self.role {
            *verified = first.prev().min(*verified);
        }
        if planted::is(Planted::TruncationAsFailure) {
            let dead = self.proposals.split_off(&(first, crate::types::Term(0)));
            for asker in dead.into_values() {
                self.supersede(ctx, asker);
            }
        }
    }
}

/// Contiguous after `prev`, terms in order and none of the future.
fn is_well_formed(prev: Position, entries: &[Entry], term: crate::types::Term) -> bool {
    let mut last = prev;
    entries.iter().all(|e| {
        let follows = e.lsn == last.lsn.next() && e.prev_term == last.term && e.term >= last.term;
        last = Position { term: e.term, lsn: e.lsn };
        follows && e.term <= term
    })
}
