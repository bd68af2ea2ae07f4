//! What is committed reaches the state: runs of entries to apply, outcomes to whoever waits, and
//! checkpoints.

use alloc::{string::String, vec::Vec};

use bytes::Bytes;

use super::{Asker, Consequences, Group, once::answer_all};
use crate::{
    catalog::CreateDatabase,
    config::Config,
    context::{Context, LoadFor},
    control::refused_key,
    entry::{Entry, Kind, Outcome, Position, Record, fitting},
    io::{Effect, Reply},
    once::OnceEntry,
    retention::Base,
    slots::SlotEntry,
    types::{GroupId, Lsn, Term},
};

/// The state of the pipeline from `committed` to `checkpointed`.
#[derive(Default)]
pub(crate) struct Applying {
    /// A run is being applied or loaded.
    under_way: Option<Run>,
    loading: bool,
    /// What comes next could not be read: it comes from a peer, or is loaded again later.
    blocked: bool,
    /// What a peer gave, if that is next.
    fetched: Vec<Entry>,
    /// Weight of what was applied since the last checkpoint began.
    dirty_bytes: usize,
    /// Weight of what the checkpoint under way makes durable.
    frozen_bytes: usize,
    /// A checkpoint is wanted at the next opportunity, is under way.
    wanted: bool,
    checkpointing: bool,
    /// Refused outcomes since the last checkpoint began, as control writes.
    refused: Vec<(Bytes, Bytes)>,
}

impl Applying {
    /// Begins anew with nothing applied. A load under way stays so: its answer is still to come, and
    /// does not fit.
    pub(super) fn restart(&mut self) {
        *self = Applying { loading: self.loading, ..Applying::default() };
    }

    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// What a peer gave of `from..=to`, as much as one run takes: the peer's limits are its own.
    fn take_fetched(&mut self, from: Lsn, to: Lsn, config: &Config) -> Option<Vec<Entry>> {
        let mut entries = core::mem::take(&mut self.fetched);
        entries.retain(|e| from <= e.lsn && e.lsn <= to);
        let run = fitting(entries.iter(), config.apply_bytes_max, config.apply_entries_max);
        self.fetched = entries.split_off(run);
        (entries.first()?.lsn == from).then_some(entries)
    }
}

struct Run {
    upto: Lsn,
    /// All of it, in order.
    items: Vec<Item>,
    bytes: usize,
}

/// An entry that is applied.
struct Item {
    lsn: Lsn,
    term: Term,
    weight: usize,
    what: What,
}

/// What comes of it.
enum What {
    Nothing,
    /// An outcome.
    Op,
    /// One that is remembered.
    Once(OnceEntry),
    /// A root.
    Audit,
    Slot(SlotEntry),
    Prune(Base),
}

impl Item {
    /// Of an entry; `None` where it can't be read.
    fn of(entry: &Entry) -> Option<Item> {
        let what = match entry.kind {
            Kind::Op => What::Op,
            Kind::Once => What::Once(OnceEntry::decode(entry.payload.clone())?),
            Kind::Audit => What::Audit,
            Kind::Slot => What::Slot(SlotEntry::decode(entry.payload.clone())?),
            Kind::Prune => What::Prune(Base::decode(entry.payload.clone())?),
            Kind::TermStart | Kind::CreateDatabase => What::Nothing,
        };
        Some(Item { lsn: entry.lsn, term: entry.term, weight: entry.weight(), what })
    }
}

impl Group {
    /// Proposals that can't be committed any more are dead: definitely, and only now. Another entry
    /// is committed at their LSN, or one of a later term before it, after which terms do not fall.
    pub(super) fn resolve_superseded(&mut self, ctx: &mut Context) {
        let committed = self.log.marks().committed();
        if committed <= self.resolved {
            return;
        }
        let log = &self.log;
        let term = log.term_at(committed).unwrap_or_default();
        let known = (self.resolved.next(), Term(0))..(committed.next(), Term(0));
        let taken = self.proposals.range(known).map(|(key, _)| *key);
        let taken = taken.filter(|(lsn, term)| log.term_at(*lsn) != Some(*term));
        let mut dead: Vec<(Lsn, Term)> = taken.collect();
        if log.term_at(self.resolved) < Some(term) {
            let beyond = self.proposals.range((committed.next(), Term(0))..).map(|(key, _)| *key);
            dead.extend(beyond.filter(|(_, proposed)| *proposed < term));
        }
        for key in dead {
            if let Some(asker) = self.proposals.remove(&key) {
                self.supersede(ctx, asker);
            }
        }
        self.resolved = committed;
    }

    /// Starts the next checkpoint and the next run, where there is one to start.
    pub(super) fn advance_apply(&mut self, ctx: &mut Context, consequences: &mut Consequences) {
        if !self.applies() || !self.is_run_over() || self.bootstrap.holds_apply() {
            return;
        }
        self.maybe_checkpoint(ctx);
        let from = self.log.marks().applied().next();
        let to = self.log.marks().applicable();
        if from > to || from < self.log.marks().first() || !self.know_slots(ctx) {
            return;
        }
        if self.is_full(ctx) {
            ctx.paused.insert(self.id);
            return;
        }
        let config = &ctx.config;
        let held = self.log.slice(from, to, config.apply_bytes_max, config.apply_entries_max);
        match held.or_else(|| self.applying.take_fetched(from, to, config)) {
            Some(entries) => self.apply_run(ctx, entries, consequences),
            None if self.applying.blocked => {}
            None => {
                let max_bytes = config.apply_bytes_max;
                let to = to.min(Lsn(from.0 + config.apply_entries_max as u64 - 1));
                ctx.load(self.id, LoadFor::Apply, (from, to), max_bytes);
                self.applying.loading = true;
            }
        }
    }

    fn is_run_over(&self) -> bool {
        self.applying.under_way.is_none() && !self.applying.loading
    }

    /// Whether a run is on its way through the state.
    pub(super) fn is_applying(&self) -> bool {
        self.applying.under_way.is_some()
    }

    /// Whether nothing is asked of the state.
    pub(super) fn is_apply_idle(&self) -> bool {
        self.is_run_over() && !self.applying.checkpointing && !self.slots.is_asked()
    }

    pub(crate) fn on_loaded_for_apply(
        &mut self,
        ctx: &mut Context,
        mut entries: Vec<Entry>,
        consequences: &mut Consequences,
    ) {
        self.applying.loading = false;
        if !self.applies() || self.bootstrap.holds_apply() {
            return;
        }
        let marks = self.log.marks();
        let next = marks.applied().next();
        if self.rebuilding.is_some() && entries.first().is_some_and(|e| e.lsn != next) {
            return; // Asked for before the state was lost.
        }
        entries.retain(|e| e.lsn <= marks.applicable());
        let agree = entries.first().is_some_and(|e| e.lsn == next)
            && entries.iter().all(|e| self.log.term_at(e.lsn) == Some(e.term));
        if agree {
            self.apply_run(ctx, entries, consequences);
        } else {
            self.quarantine(
                ctx,
                String::from("the oplog gave other entries than it was asked for"),
            );
        }
    }

    fn apply_run(
        &mut self,
        ctx: &mut Context,
        entries: Vec<Entry>,
        consequences: &mut Consequences,
    ) {
        if self.id == GroupId::SYSTEM {
            return self.apply_system_run(ctx, entries, consequences);
        }
        let Some(items) = entries.iter().map(Item::of).collect::<Option<Vec<Item>>>() else {
            let reason = "a control entry or a keyed operation can't be read";
            return self.quarantine(ctx, String::from(reason));
        };
        let upto = entries[entries.len() - 1].lsn;
        let bytes = entries.iter().map(Entry::weight).sum();
        self.applying.under_way = Some(Run { upto, items, bytes });
        ctx.emit(Effect::Apply { group: self.id, entries });
    }

    fn apply_system_run(
        &mut self,
        ctx: &mut Context,
        entries: Vec<Entry>,
        consequences: &mut Consequences,
    ) {
        for entry in entries {
            if entry.kind == Kind::CreateDatabase {
                let Some(create) = CreateDatabase::decode(entry.payload) else {
                    let reason = "a create entry of the system group can't be read";
                    return self.quarantine(ctx, String::from(reason));
                };
                consequences.created.push((entry.lsn, entry.term, create));
            }
            self.log.applied(entry.lsn);
        }
        // There may be more than one run holds.
        self.advance_apply(ctx, consequences);
    }

    /// The engine has applied the run that is under way.
    pub(crate) fn on_applied(&mut self, ctx: &mut Context, upto: Lsn, outcomes: Vec<Outcome>) {
        let Some(run) = self.applying.under_way.take() else {
            panic!("the shell completes only what it was asked for");
        };
        assert_eq!(run.upto, upto, "a run is applied whole");
        self.log.applied(upto);
        if self.applies() {
            self.applying.dirty_bytes += run.bytes;
            ctx.dirty_bytes += run.bytes;
        }
        // While there is more to apply, a larger checkpoint is worth waiting for: it writes each page that
        // many entries fall on once.
        let worth = match upto < self.log.marks().applicable() {
            true => ctx.config.checkpoint_bytes_max(),
            false => ctx.config.checkpoint_bytes,
        };
        if self.applying.dirty_bytes >= worth {
            self.applying.wanted = true;
        }
        let mut outcomes = outcomes.into_iter();
        for Item { lsn, term, weight, what } in run.items {
            let mut outcome = || outcomes.next().expect("every op and audit has an outcome");
            match what {
                What::Op => self.on_op_applied(ctx, (lsn, term), weight, outcome()),
                What::Once(entry) => {
                    let outcome = outcome();
                    self.remember(lsn, term, &entry, &outcome);
                    self.on_op_applied(ctx, (lsn, term), weight, outcome);
                }
                other => {
                    self.slots.count(lsn, weight, false);
                    match other {
                        What::Audit => self.on_audit_applied(lsn, &outcome()),
                        What::Slot(entry) => self.on_slot_entry_applied(ctx, (lsn, term), entry),
                        What::Prune(base) => self.on_prune_applied(ctx, lsn, base),
                        What::Nothing | What::Op | What::Once(_) => {}
                    }
                }
            }
        }
        assert!(outcomes.next().is_none(), "nothing else has an outcome");
        self.slots.stand_at(upto);
        self.confirm_owed(ctx);
    }

    fn on_op_applied(
        &mut self,
        ctx: &mut Context,
        (lsn, term): (Lsn, Term),
        weight: usize,
        outcome: Outcome,
    ) {
        self.slots.count(lsn, weight, !outcome.refused);
        if outcome.refused {
            self.applying.refused.push((refused_key(lsn), outcome.answer.clone()));
        } else {
            self.audit.op_applied();
        }
        match self.proposals.remove(&(lsn, term)) {
            Some(Asker::One(request)) => {
                ctx.reply(request, Reply::Applied { lsn, term, outcome, replayed: false });
            }
            Some(Asker::Once(askers)) => answer_all(ctx, &askers, (lsn, term), &outcome),
            Some(Asker::Slots(_)) | None => {}
        }
    }

    /// A create entry of the system group is applied: answers whoever proposed it.
    pub(crate) fn on_created(
        &mut self,
        ctx: &mut Context,
        at: (Lsn, Term),
        group: GroupId,
        existed: bool,
    ) {
        if let Some(Asker::One(request)) = self.proposals.remove(&at) {
            ctx.reply(request, Reply::Created { group, existed });
        }
    }

    /// What a checkpoint that begins now would make durable.
    pub(crate) fn dirty_bytes(&self) -> usize {
        let idle = !self.applying.checkpointing && self.applies();
        if idle { self.applying.dirty_bytes } else { 0 }
    }

    /// Whether applying waits for a checkpoint to end: what is in memory is bounded.
    fn is_full(&self, ctx: &Context) -> bool {
        let own = self.applying.checkpointing
            && self.applying.dirty_bytes >= ctx.config.checkpoint_bytes_max();
        own || ctx.dirty_bytes >= 2 * ctx.config.dirty_bytes_max
    }

    /// Asks for a checkpoint at the next opportunity.
    pub(crate) fn want_checkpoint(&mut self, ctx: &mut Context) {
        self.applying.wanted = true;
        ctx.touched.insert(self.id);
    }

    fn maybe_checkpoint(&mut self, ctx: &mut Context) {
        if !self.applying.wanted || self.applying.checkpointing || self.id == GroupId::SYSTEM {
            return;
        }
        let mut control = core::mem::take(&mut self.applying.refused);
        control.extend(self.slots.control_write());
        control.extend(self.once.take_dirty());
        self.begin_checkpoint(ctx, control);
    }

    /// Makes the state durable as it is applied now, with these control writes.
    pub(crate) fn begin_checkpoint(&mut self, ctx: &mut Context, control: Vec<(Bytes, Bytes)>) {
        self.applying.wanted = false;
        self.applying.checkpointing = true;
        ctx.checkpoints += 1;
        self.applying.frozen_bytes = core::mem::take(&mut self.applying.dirty_bytes);
        let lsn = self.log.marks().applied();
        // Whoever holds the state holds the log from there on.
        let term = self.log.term_at(lsn).expect("what is applied here is in the log, or before it");
        let pruned = self.slots.base().position.lsn;
        let at = Position { term, lsn };
        ctx.emit(Effect::Checkpoint { group: self.id, at, pruned, control });
    }

    pub(crate) fn is_checkpointing(&self) -> bool {
        self.applying.checkpointing
    }

    pub(crate) fn on_checkpointed(&mut self, ctx: &mut Context, lsn: Lsn) {
        if !self.applies() {
            return;
        }
        assert!(self.applying.checkpointing, "the shell completes only what it was asked for");
        self.end_checkpoint(ctx);
        self.log.checkpointed(lsn);
        ctx.persist_hint(Record::Checkpointed { group: self.id, lsn });
        self.prune_log(ctx);
    }

    fn end_checkpoint(&mut self, ctx: &mut Context) {
        self.applying.checkpointing = false;
        ctx.checkpoints -= 1;
        ctx.dirty_bytes -= core::mem::take(&mut self.applying.frozen_bytes);
        // Whoever waited for memory looks again.
        let paused = core::mem::take(&mut ctx.paused);
        ctx.touched.extend(paused);
    }

    /// A quarantined group's state is out of service: nothing of it counts any more.
    pub(super) fn abandon_state(&mut self, ctx: &mut Context) {
        self.applying.fetched.clear();
        ctx.dirty_bytes -= core::mem::take(&mut self.applying.dirty_bytes);
        if self.applying.checkpointing {
            self.end_checkpoint(ctx);
        }
    }

    /// Applying waits until the entries can be read, or a peer gives them.
    pub(crate) fn on_load_for_apply_failed(&mut self) {
        self.applying.loading = false;
        self.applying.blocked = true;
    }

    /// What a peer gave may be what applying waits for.
    pub(super) fn keep_for_apply(&mut self, mut entries: Vec<Entry>) {
        let next = self.log.marks().applied().next();
        // Others may be replaced before they are.
        entries.retain(|e| e.lsn <= self.log.marks().committed());
        if self.applying.blocked && entries.iter().any(|e| e.lsn == next) {
            self.applying.blocked = false;
            self.applying.fetched = entries;
        }
    }
}
