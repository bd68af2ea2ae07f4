//! Audits: whether the replicas of a group hold the same. The leader appends an entry of kind
//! [`Audit`](crate::Kind::Audit) some time after operations took effect. Where a replica applies it,
//! its state machine tells the root of the state as it is there; each replica reports that to the
//! leader, and the leader tells each what a majority of the voters has. A replica whose root is
//! another one is **condemned**: out of service at once, its state dropped and rebuilt, as one that
//! was damaged. A leader is judged like all others.
//!
//! Reports and verdicts may be lost: the next audit makes up for it. Where no majority agrees nobody is
//! condemned. A state that is condemned is rebuilt whole; once there are snapshots, its sums by bucket
//! tell which keys to fetch instead.

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use bytes::Bytes;

use super::{Group, Role};
use crate::{
    context::{Context, Reason},
    entry::{Kind, Outcome},
    io::{Effect, Notice},
    message::GroupMessage,
    planted::{self, Planted},
    types::{GroupId, Instant, Lsn, Member, NodeId, Root},
};

/// A root that a majority of a group's voters agreed on, and this replica with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Of the state at this LSN.
    pub lsn: Lsn,
    /// What it was.
    pub root: Root,
    /// When this replica learned of it, by its wall clock.
    pub at_ms: u64,
}

/// What a replica knows of audits.
pub(super) struct Audit {
    /// Operations took effect that no audit covers.
    due: bool,
    /// At the last audit that was applied here.
    own: Option<(Lsn, Root)>,
    /// Its leader is to be told of that.
    unreported: bool,
    verified: Option<Verified>,
    /// How often it was found to differ.
    divergences: u64,
    /// Its state is about to be dropped.
    condemned: bool,
}

impl Audit {
    /// Of a group that begins with what is applied. Whether an audit covers that is not known.
    pub(super) fn new(applied: Lsn) -> Audit {
        Audit {
            due: applied > Lsn(0),
            own: None,
            unreported: false,
            verified: None,
            divergences: 0,
            condemned: false,
        }
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.condemned
    }

    /// Its state stays as it is. Whether it was to be dropped.
    pub(super) fn take_condemned(&mut self) -> bool {
        core::mem::take(&mut self.condemned)
    }

    /// An operation took effect.
    pub(super) fn op_applied(&mut self) {
        self.due = true;
    }

    /// Another state is in its place: what was reported is of the one before.
    pub(super) fn replaced(&mut self) {
        (self.own, self.unreported, self.due) = (None, false, true);
    }

    /// The state is gone: it begins anew, and so does what is known of it.
    pub(super) fn restart(&mut self) {
        *self = Audit { divergences: self.divergences, ..Audit::new(Lsn(0)) };
    }
}

/// What a leader knows of its group's audits. Gone with its leadership.
#[derive(Default)]
pub(super) struct LeaderAudits {
    /// When it appends the next one.
    at: Option<Instant>,
    /// The last one that it appended: one is under way at a time.
    proposed: Lsn,
    /// The latest ones, by LSN.
    rounds: BTreeMap<Lsn, Round>,
}

/// What was reported at one audit.
#[derive(Default)]
struct Round {
    reports: BTreeMap<Member, Root>,
    /// What a majority has.
    agreed: Option<Root>,
    is_disputed: bool,
}

/// A replica that lags behind by so many audits is not judged before it has caught up.
const ROUNDS_MAX: usize = 8;

impl LeaderAudits {
    fn round(&mut self, lsn: Lsn) -> Option<&mut Round> {
        let is_known = self.rounds.contains_key(&lsn);
        if !is_known && self.rounds.len() >= ROUNDS_MAX {
            let (oldest, _) = self.rounds.first_key_value()?;
            if lsn < *oldest {
                return None;
            }
            self.rounds.pop_first();
        }
        Some(self.rounds.entry(lsn).or_default())
    }
}

impl Round {
    /// What this many of the voters have, if there is such a root.
    fn majority(&self, voters: &[Member], quorum: usize) -> Option<Root> {
        let mut counts: BTreeMap<Root, usize> = BTreeMap::new();
        for root in voters.iter().filter_map(|voter| self.reports.get(voter)) {
            *counts.entry(*root).or_default() += 1;
        }
        counts.into_iter().find(|(_, count)| *count >= quorum).map(|(root, _)| root)
    }

    fn differs(&self) -> bool {
        let mut roots = self.reports.values();
        let first = roots.next();
        roots.any(|root| Some(root) != first)
    }
}

impl Group {
    /// An audit entry is applied.
    pub(super) fn on_audit_applied(&mut self, lsn: Lsn, outcome: &Outcome) {
        self.audit.due = false;
        // What the state held already is skipped, and has no root.
        if let Some(root) = Root::decode(&outcome.answer) {
            (self.audit.own, self.audit.unreported) = (Some((lsn, root)), true);
        }
    }

    /// Tells the leader of this replica's last root.
    pub(super) fn report_root(&mut self, ctx: &mut Context) {
        let (Some((lsn, root)), Some(leader)) = (self.audit.own, self.leader(ctx)) else { return };
        if !core::mem::take(&mut self.audit.unreported) {
            return;
        }
        if leader == ctx.me().node {
            self.on_root(ctx, ctx.me(), lsn, root);
        } else {
            self.send(ctx, leader, GroupMessage::Root { lsn, root });
        }
    }

    /// A replica reports its root to this leader.
    pub(super) fn on_root(&mut self, ctx: &mut Context, from: Member, lsn: Lsn, root: Root) {
        let (quorum, appended) = (self.quorum(ctx), self.log.marks().appended());
        let Role::Leader(leader) = &mut self.role else { return };
        if lsn > appended {
            return ctx.fault(from.node, "it audited what was never appended");
        }
        let Some(round) = leader.audits.round(lsn) else { return };
        round.reports.retain(|member, _| member.node != from.node);
        round.reports.insert(from, root);
        let was_agreed = round.agreed.is_some();
        round.agreed = round.agreed.or_else(|| round.majority(&self.voters, quorum));
        if round.differs() && !core::mem::replace(&mut round.is_disputed, true) {
            ctx.notice(Notice::RootsDiffer { group: self.id, lsn });
        }
        let Some(agreed) = round.agreed else { return };
        let told = |member: &&Member| !was_agreed || **member == from;
        let reporters: Vec<NodeId> = round.reports.keys().filter(told).map(|m| m.node).collect();
        let me = ctx.me().node;
        for node in reporters.iter().filter(|node| **node != me) {
            self.send(ctx, *node, GroupMessage::Verified { lsn, root: agreed });
        }
        if reporters.contains(&me) {
            self.judge_root(ctx, lsn, agreed);
        }
    }

    /// The leader tells what a majority has.
    pub(super) fn on_verified(&mut self, ctx: &mut Context, from: NodeId, lsn: Lsn, root: Root) {
        if self.leader(ctx) == Some(from) {
            self.judge_root(ctx, lsn, root);
        }
    }

    /// A majority has this root: what that means for this replica.
    fn judge_root(&mut self, ctx: &mut Context, lsn: Lsn, root: Root) {
        match self.audit.own {
            Some((at, own)) if at == lsn && own == root => {
                self.audit.verified = Some(Verified { lsn, root, at_ms: ctx.now.wall_ms });
            }
            Some((at, _)) if at == lsn && self.applies() => self.condemn(ctx, lsn),
            _ => {}
        }
    }

    fn condemn(&mut self, ctx: &mut Context, lsn: Lsn) {
        if planted::is(Planted::AuditIgnored) {
            return;
        }
        self.audit.divergences += 1;
        self.audit.condemned = true;
        ctx.notice(Notice::Diverged { group: self.id, lsn });
        let reason = String::from("its state is not what a majority has, and is rebuilt");
        ctx.emit(Effect::DropState { group: self.id, reason: reason.clone() });
        self.withdraw(ctx, reason);
    }

    /// The leader: appends an audit where one is due.
    pub(super) fn tend_audits(&mut self, ctx: &mut Context) {
        let applied = self.log.marks().applied();
        let Role::Leader(leader) = &mut self.role else { return };
        // What is under way looks again when it is applied.
        let waits = leader.audits.proposed > applied || leader.transfer.is_some();
        if !self.audit.due || waits || self.id == GroupId::SYSTEM {
            leader.audits.at = None;
            return ctx.clear_timer(Reason::Audit(self.id));
        }
        let next = ctx.now.mono.plus(ctx.config.audit_us);
        let at = *leader.audits.at.get_or_insert(next);
        if ctx.now.mono < at {
            return ctx.set_timer(Reason::Audit(self.id), at);
        }
        leader.audits.at = Some(next);
        ctx.set_timer(Reason::Audit(self.id), next);
        if self.refuse_admission(ctx, 0, ctx.config.reserve_bytes / 2).is_none() {
            let lsn = self.append(ctx, Kind::Audit, Bytes::new());
            if let Role::Leader(leader) = &mut self.role {
                leader.audits.proposed = lsn;
            }
        }
    }

    /// What a majority agreed on last, this replica with it.
    pub(crate) fn verified(&self) -> Option<Verified> {
        self.audit.verified.filter(|_| self.quarantined.is_none())
    }

    /// How often this replica was found to differ, in this run.
    pub(crate) fn divergences(&self) -> u64 {
        self.audit.divergences
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Incarnation;

    fn voters(count: u64) -> Vec<Member> {
        (1..=count).map(|n| Member { node: NodeId(n), incarnation: Incarnation(1) }).collect()
    }

    fn round(roots: &[u128]) -> Round {
        let reports = voters(roots.len() as u64).into_iter().zip(roots.iter().copied().map(Root));
        Round { reports: reports.collect(), ..Round::default() }
    }

    #[test]
    fn a_majority_is_of_voters() {
        let majority = |roots: &[u128], of: u64| {
            round(roots).majority(&voters(of), of as usize / 2 + 1).map(|root| root.0)
        };
        assert_eq!(majority(&[1, 1], 3), Some(1));
        assert_eq!(majority(&[1, 2], 3), None);
        assert_eq!(majority(&[2, 1, 1], 3), Some(1));
        assert_eq!(majority(&[1, 2, 3], 3), None);
        assert_eq!(majority(&[1, 1, 2, 2], 4), None);
        assert_eq!(majority(&[1], 1), Some(1));
        // The last two have no vote.
        assert_eq!(majority(&[1, 2, 2, 2], 2), None);
        assert!(round(&[1, 2]).differs() && !round(&[1, 1]).differs() && !round(&[]).differs());
    }

    #[test]
    fn rounds_are_bounded_and_the_oldest_go() {
        let mut audits = LeaderAudits::default();
        for lsn in 1..=20 {
            assert!(audits.round(Lsn(lsn)).is_some());
            assert!(audits.rounds.len() <= ROUNDS_MAX);
        }
        assert!(audits.round(Lsn(3)).is_none());
        assert!(audits.round(Lsn(20)).is_some());
    }
}
