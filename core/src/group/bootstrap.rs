//! A replica that no log can bring up to date: what it needs was pruned elsewhere, or its state is lost
//! and its own log begins further on. It fetches a snapshot, from the leader first, puts it in the place
//! of its state, and goes on from there. Meanwhile it is merely behind, unless its state is lost.
//!
//! A snapshot holds what is committed, so whoever gives it and in which term does not matter. The state
//! is swapped first, durably; where the log does not hold what the state stands at, it begins anew
//! behind that, and only once a record says so durably the node speaks of it: what it tells others of
//! its log must be found in it after any crash. A crash in between leaves a state that is ahead of its
//! log, which is the same case at the next start.

use alloc::{string::String, vec::Vec};

use super::{
    Asker, Group, Role,
    slots::{SlotTable, control_prefixes},
};
use crate::{
    context::{Context, Reason},
    entry::{Position, Record},
    io::{Effect, Notice, Reply},
    message::GroupMessage,
    planted::{self, Planted},
    retention::Base,
    types::{GroupId, Instant, Lsn, NodeId, Term, WriteId},
    view::Resyncs,
};

/// So often in a run is a state replaced that failed, and did not merely get lost.
const REPLACEMENTS_MAX: u32 = 3;

/// Whoever was giving a snapshot and is gone is waited for so long, in microseconds: what is here of it
/// is of use with that node alone.
const DONOR_PATIENCE_US: u64 = 5_000_000;

/// Who is asked for a snapshot.
#[derive(Default)]
pub(super) struct Donors {
    /// Who is asked now.
    asked: Option<NodeId>,
    /// Who went away while it was asked, and until when it may come back.
    missed: Option<(NodeId, Instant)>,
    /// How often somebody else was turned to.
    turns: usize,
}

/// What is done about it.
#[derive(Default)]
pub(super) enum Bootstrap {
    /// Nothing is to be done.
    #[default]
    No,
    /// A snapshot is wanted, at least of this LSN.
    Wanted {
        above: Lsn,
    },
    /// It is here, and waits for what is being applied.
    Ready {
        at: Position,
    },
    Installing,
    /// The state stands there. The log is to join it: once it holds that durably, or, where it holds
    /// something else, once this write is durable, behind which it begins anew. Whether the state was
    /// lost again.
    Joining {
        base: Base,
        anew: Option<WriteId>,
        lost: bool,
    },
}

impl Bootstrap {
    /// Whether the state is being replaced: nothing is applied meanwhile.
    pub(super) fn holds_apply(&self) -> bool {
        matches!(self, Bootstrap::Ready { .. } | Bootstrap::Installing | Bootstrap::Joining { .. })
    }

    /// Whether the log is being replaced: nothing is appended meanwhile.
    pub(super) fn holds_log(&self) -> bool {
        matches!(self, Bootstrap::Joining { anew: Some(_), .. })
    }
}

impl Group {
    pub(crate) fn resyncs(&self) -> Resyncs {
        self.resyncs
    }

    /// Whether this replica waits for a snapshot.
    pub(crate) fn is_bootstrapping(&self) -> bool {
        !matches!(self.bootstrap, Bootstrap::No)
    }

    /// The leader's log begins after `base`, beyond what this replica has.
    pub(super) fn on_pruned(
        &mut self,
        ctx: &mut Context,
        from: NodeId,
        base: Position,
        committed: Lsn,
        round: u64,
    ) {
        if !self.follows(ctx, from) {
            return;
        }
        self.known_committed = self.known_committed.max(committed);
        let held = self.log.marks().committed();
        let joins = base.lsn <= self.log.base().position.lsn
            || self.log.term_at(base.lsn) == Some(base.term);
        if joins {
            // Up to there they agree.
            return self.reject_append(ctx, from, base.lsn.max(held), round);
        }
        if base.lsn <= held {
            return ctx.fault(from, "it pruned other entries than are committed");
        }
        if !self.applies() {
            self.replace_failed_state(ctx);
        }
        self.want_snapshot(base.lsn);
        self.reject_append(ctx, from, held, round);
    }

    /// A quarantined group follows the log for its vote's sake. Where that ends, a snapshot replaces the
    /// state that failed; but not again and again.
    fn replace_failed_state(&mut self, ctx: &mut Context) {
        if self.replacements < REPLACEMENTS_MAX && !self.discarding {
            self.replacements += 1;
            self.discarding = true;
            match self.gone.take() {
                Some(reason) => self.on_state_lost(ctx, reason),
                None => {
                    let reason = String::from("it failed, and the log that it needs was pruned");
                    ctx.emit(Effect::DropState { group: self.id, reason });
                }
            }
        }
    }

    pub(super) fn want_snapshot(&mut self, above: Lsn) {
        // Its state is the core's own, and nothing of it is pruned.
        if self.id == GroupId::SYSTEM {
            return;
        }
        match &mut self.bootstrap {
            Bootstrap::No => self.bootstrap = Bootstrap::Wanted { above },
            // What comes may be of before that: then it is fetched again.
            Bootstrap::Wanted { above: before } => *before = above.max(*before),
            _ => {}
        }
    }

    /// Fetches a snapshot where one is wanted, and puts it in place when nothing is being applied.
    pub(super) fn tend_bootstrap(&mut self, ctx: &mut Context) {
        if !self.applies() {
            // What the log is joining is written already.
            if !matches!(self.bootstrap, Bootstrap::Joining { .. }) {
                self.bootstrap = Bootstrap::No;
            }
            return ctx.clear_timer(Reason::Bootstrap(self.id));
        }
        let (base, applied) = (self.log.base().position.lsn, self.log.marks().applied());
        if applied < base {
            self.want_snapshot(base);
        }
        // Entries may have come after all.
        let is_late = match self.bootstrap {
            Bootstrap::Wanted { above } => applied >= above.max(base),
            Bootstrap::Ready { at } => at.lsn <= applied,
            _ => false,
        };
        if is_late {
            self.bootstrap = Bootstrap::No;
        }
        // The state may be further than the log knows.
        if matches!(self.bootstrap, Bootstrap::Wanted { .. }) && !self.know_slots(ctx) {
            return;
        }
        match self.bootstrap {
            Bootstrap::Wanted { above }
                if self.donors.asked.is_none() && !ctx.has_timer(Reason::Bootstrap(self.id)) =>
            {
                self.fetch_snapshot(ctx, above);
            }
            Bootstrap::Ready { at } if self.is_apply_idle() => {
                self.bootstrap = Bootstrap::Installing;
                self.slots = SlotTable::Asked;
                let prefixes = control_prefixes();
                ctx.emit(Effect::Install { group: self.id, at, prefixes });
            }
            _ => {}
        }
    }

    /// From the leader; where that did not help, from the next one of those who are there. Whoever went
    /// away meanwhile is waited for.
    fn fetch_snapshot(&mut self, ctx: &mut Context, above: Lsn) {
        let missed = self.donors.missed.filter(|(_, until)| ctx.now.mono < *until);
        if missed.is_some_and(|(node, _)| !ctx.is_in_touch(node)) {
            return self.retry_bootstrap(ctx);
        }
        let leader = self.leader(ctx);
        let mut nodes: Vec<NodeId> =
            ctx.peers.iter().filter(|(_, peer)| peer.alive).map(|(node, _)| node).collect();
        nodes.sort_by_key(|node| Some(*node) != leader);
        if nodes.is_empty() {
            return self.retry_bootstrap(ctx);
        }
        let from = missed.map_or(nodes[self.donors.turns % nodes.len()], |(node, _)| node);
        self.donors.asked = Some(from);
        ctx.notice(Notice::Bootstrapping { group: self.id, from, above });
        ctx.emit(Effect::Bootstrap { group: self.id, from, above });
    }

    fn retry_bootstrap(&mut self, ctx: &mut Context) {
        let at = ctx.now.mono.plus(ctx.config.election_timeout_us);
        ctx.set_timer(Reason::Bootstrap(self.id), at);
    }

    /// A snapshot is here.
    pub(crate) fn on_snapshot_ready(&mut self, ctx: &mut Context, at: Position) {
        self.donors = Donors { turns: self.donors.turns + 1, ..Donors::default() };
        let Bootstrap::Wanted { above } = self.bootstrap else { return };
        self.bootstrap = if self.contradicts(at) || at.lsn < above {
            self.retry_bootstrap(ctx);
            Bootstrap::Wanted { above }
        } else {
            Bootstrap::Ready { at }
        };
    }

    /// Whether that can't be the state of this group.
    fn contradicts(&self, at: Position) -> bool {
        let known = self.log.term_at(at.lsn).filter(|_| at.lsn <= self.log.marks().committed());
        at.term > Term::MAX || known.is_some_and(|term| term != at.term)
    }

    pub(crate) fn on_snapshot_failed(&mut self, ctx: &mut Context) {
        let Some(asked) = self.donors.asked.take() else { return };
        self.donors.turns += 1;
        let until = ctx.now.mono.plus(DONOR_PATIENCE_US);
        self.donors.missed = (!ctx.is_in_touch(asked)).then_some((asked, until));
        self.retry_bootstrap(ctx);
    }

    /// The state is gone: what was on its way to take its place, too.
    pub(super) fn restart_bootstrap(&mut self) {
        match &mut self.bootstrap {
            Bootstrap::Ready { .. } | Bootstrap::Installing => self.bootstrap = Bootstrap::No,
            Bootstrap::Joining { lost, .. } => *lost = true,
            Bootstrap::No | Bootstrap::Wanted { .. } => {}
        }
    }

    /// The state stands right behind `base`, durably: as a snapshot, or as it was found.
    pub(super) fn stand_on(&mut self, ctx: &mut Context, base: Base) {
        let installed = matches!(self.bootstrap, Bootstrap::Installing);
        let at = base.position;
        if at.lsn < self.log.base().position.lsn {
            // Neither helps: the log begins further on.
            if installed {
                self.bootstrap = Bootstrap::No;
            }
        } else if self.log.term_at(at.lsn) != Some(at.term) {
            self.begin_log_anew(ctx, base);
        } else if installed || self.log.marks().applied() < self.log.base().position.lsn {
            self.log.commit(at.lsn);
            self.bootstrap = Bootstrap::Joining { base, anew: None, lost: false };
            self.join(ctx);
        }
        self.prune_log(ctx);
    }

    /// Nothing of the log is committed that the state does not hold.
    fn begin_log_anew(&mut self, ctx: &mut Context, base: Base) {
        if self.contradicts(base.position) {
            let reason = String::from("its state contradicts what is committed in its log");
            return self.quarantine(ctx, reason);
        }
        // Who leads, or would, does so with the log that it has.
        if self.is_leader() {
            self.become_follower(ctx, self.term, None);
        }
        self.stop_campaigning(ctx);
        // What this replica confirmed in a term must stay in its log as long as it is in that term.
        let drops = self.log.last().lsn > base.position.lsn;
        let least = if drops { self.term.next() } else { self.term };
        let term = base.position.term.max(least);
        if term > self.term {
            self.become_follower(ctx, term, None);
        }
        let mut write = ctx.persist(self.id, Record::Base { group: self.id, base });
        if planted::is(Planted::SpeaksBeforeRebase) {
            write = WriteId(0);
        }
        self.bootstrap = Bootstrap::Joining { base, anew: Some(write), lost: false };
    }

    /// Goes on from the state, where the log has joined it.
    pub(super) fn join(&mut self, ctx: &mut Context) {
        let Bootstrap::Joining { base, anew, lost } = self.bootstrap else { return };
        let joined = match anew {
            Some(write) => ctx.is_persisted(write),
            None => self.log.marks().durable() >= base.position.lsn,
        };
        if joined {
            self.install(ctx, base, anew.is_none());
            if lost {
                self.log.lose_state(Lsn(0));
            }
        }
    }

    /// The snapshot is what is applied here.
    fn install(&mut self, ctx: &mut Context, base: Base, keeps: bool) {
        self.bootstrap = Bootstrap::No;
        let Position { lsn, term: of_base } = base.position;
        self.log.install(base, keeps);
        self.audit.replaced();
        self.resolved = lsn.max(self.resolved);
        self.forget_wanted_before(self.log.marks().first());
        self.forget_wanted(self.log.marks().appended().next());
        ctx.persist_hint(Record::Checkpointed { group: self.id, lsn });
        self.resyncs.full += 1;
        ctx.notice(Notice::Bootstrapped { group: self.id, at: lsn });
        // What came of them is not known here.
        let mut beyond = self.proposals.split_off(&(lsn.next(), Term(0)));
        // Those of before its term are dead.
        let dead: Vec<_> = beyond.extract_if(.., |(_, term), _| *term < of_base).collect();
        if let Role::Leader(leader) = &mut self.role {
            leader.once.forget_upto(lsn);
        }
        for asker in core::mem::replace(&mut self.proposals, beyond).into_values() {
            match asker {
                Asker::One(request) => ctx.reply(request, Reply::Unknown),
                Asker::Once(requests) => {
                    requests.into_iter().for_each(|request| ctx.reply(request, Reply::Unknown));
                }
                Asker::Slots(askers) => {
                    for (request, _) in askers {
                        self.answer_slot_request(ctx, request, Reply::Unknown);
                    }
                }
            }
        }
        for (_, asker) in dead {
            self.supersede(ctx, asker);
        }
        self.prune_log(ctx);
        let appended = self.log.marks().appended();
        if let Role::Follower { leader, verified, round, .. } = &mut self.role {
            *verified = appended.min(*verified);
            let (leader, round) = (*leader, *round);
            if let Some(leader) = leader {
                self.send(ctx, leader, GroupMessage::AppendRejected { hint: appended, round });
            }
        }
        ctx.touched.insert(self.id);
    }
}
