//! How a log gets shorter. Its leader proposes where it is to begin (`retention.rs` says when, slots and
//! followers say how far); every replica forgets what comes before once its own checkpoint holds it.

use super::{
    Group, Role,
    progress::{Flow, Progress},
};
use alloc::string::String;

use crate::{
    context::Context,
    entry::{Kind, Position, Record},
    io::Notice,
    planted::{self, Planted},
    retention::Base,
    types::{GroupId, Lsn},
};

impl Group {
    /// Proposes a cut where there is too much in the log.
    pub(super) fn tend_retention(&mut self, ctx: &mut Context) {
        let Role::Leader(leader) = &self.role else { return };
        let applied = self.log.marks().applied();
        let knows_the_log = applied >= leader.term_start && applied >= leader.pruning;
        if self.id == GroupId::SYSTEM || !knows_the_log || leader.transfer.is_some() {
            return;
        }
        let Some(slots) = self.slots.known() else { return };
        let retention = slots.retention();
        let now_ms = leader.slots.now_us(ctx.now.mono, &ctx.config).unwrap_or_default() / 1000;
        let needed = slots.horizon().filter(|_| !planted::is(Planted::PruneIgnoresSlots));
        let needed = needed.map_or(Lsn(u64::MAX), Lsn::prev);
        // Whoever follows is waited for, but not without end.
        let patient = retention.is_patient(&ctx.config);
        let followed = if patient { self.followed(ctx) } else { Lsn(u64::MAX) };
        let bound = needed.min(followed);
        let Some(base) = retention.wants_cut(&ctx.config, now_ms, bound) else { return };
        let Some(term) = self.log.term_at(base.position.lsn) else { return };
        let base = Base { position: Position { term, ..base.position }, ..base };
        let payload = base.encode();
        if self.refuse_admission(ctx, payload.len(), ctx.config.reserve_bytes / 2).is_some() {
            return;
        }
        let lsn = self.append(ctx, Kind::Prune, payload);
        if let Role::Leader(leader) = &mut self.role {
            leader.pruning = lsn;
        }
    }

    /// What all followers that are there hold; nothing where one of them waits for a snapshot, which
    /// the log must then go on from.
    fn followed(&self, ctx: &Context) -> Lsn {
        let Role::Leader(leader) = &self.role else { return Lsn(0) };
        let there = leader.progress.iter().filter(|(node, _)| ctx.is_reachable(**node));
        let held = |p: &Progress| match p.flow {
            Flow::Snapshot { .. } => Lsn(0),
            Flow::Probe { .. } | Flow::Pipeline => p.matched,
        };
        there.map(|(_, progress)| held(progress)).min().unwrap_or(Lsn(u64::MAX))
    }

    /// The engine has applied what comes before a prune entry: now that is.
    pub(super) fn on_prune_applied(&mut self, ctx: &mut Context, lsn: Lsn, base: Base) {
        if self.slots.take_prune(lsn, base) {
            if base.position.lsn > self.log.marks().checkpointed() {
                self.want_checkpoint(ctx);
            }
            self.prune_log(ctx);
        }
    }

    /// Forgets what all replicas agree to forget, as far as the state holds it durably.
    pub(super) fn prune_log(&mut self, ctx: &mut Context) {
        if self.bootstrap.holds_log() {
            return;
        }
        let base = self.slots.base();
        let marks = self.log.marks();
        // Only where members lie.
        if self.log.term_at(base.position.lsn).is_some_and(|term| term != base.position.term) {
            return self
                .quarantine(ctx, String::from("its log is pruned of what it does not have"));
        }
        let early = planted::is(Planted::PruneBeforeCheckpoint);
        let durable = if early { marks.applied() } else { marks.checkpointed() };
        let pruned = base.position.lsn <= marks.pruned();
        if pruned || base.position.lsn > durable {
            return;
        }
        ctx.persist_hint(Record::Base { group: self.id, base });
        self.log.prune(base);
        let first = base.position.lsn.next();
        self.forget_wanted_before(first);
        ctx.notice(Notice::Pruned { group: self.id, first });
    }
}
