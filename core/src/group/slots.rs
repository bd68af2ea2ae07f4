//! A group's slots: the table that its log makes (`slots.rs`), where it comes from after a restart,
//! and what the leader does about it. Every request about a slot becomes part of an entry, and is
//! answered by what comes of that at apply; so no answer is of a leader that has ceased to be one.
//! The one exception is a sign of life that is worth no entry.
//!
//! The leader counts **log time**: from where the log left it on, the time that passes on its own
//! monotonic clock. What it has counted becomes log time with the next entry of slots, or of a keyed
//! write. Time in which nobody leads does not count, nor does time in which the leader stood still.

use alloc::{
    borrow::ToOwned,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};

use bytes::Bytes;

use super::{Group, Role};
use crate::{
    config::Config,
    context::{Context, Reason},
    entry::{Kind, Position},
    io::{Effect, Notice, Reject, Reply},
    once::{CONTROL_PREFIX, Once, RememberedView},
    retention::Base,
    slots::{
        CONTROL_KEY, SLOT_NAME_MAX, Slot, SlotCause, SlotChange, SlotEntry, SlotOutcome, Slots,
        SlotsView,
    },
    types::{GroupId, Instant, Lsn, RequestId, Term},
};

/// The slots as far as they are known here.
pub(super) enum SlotTable {
    /// They are in the state's last checkpoint, which was not read in this run.
    Unread,
    /// It is being read.
    Asked,
    Known(Slots),
}

impl SlotTable {
    /// Of a group that was just opened. The system group has none.
    pub(super) fn new(group: GroupId) -> SlotTable {
        if group == GroupId::SYSTEM { SlotTable::blank() } else { SlotTable::Unread }
    }

    /// Of a group whose log is applied from its beginning.
    pub(super) fn blank() -> SlotTable {
        SlotTable::Known(Slots::default())
    }

    pub(super) fn is_asked(&self) -> bool {
        matches!(self, SlotTable::Asked)
    }

    pub(super) fn known(&self) -> Option<&Slots> {
        match self {
            SlotTable::Known(slots) => Some(slots),
            SlotTable::Unread | SlotTable::Asked => None,
        }
    }

    fn fed(&mut self) -> &mut Slots {
        match self {
            SlotTable::Known(slots) => slots,
            SlotTable::Unread | SlotTable::Asked => {
                panic!("S6: slots are known before anything is applied")
            }
        }
    }

    /// Log time is told by an entry; what it is by now, unless that was taken before.
    pub(super) fn take_time(&mut self, lsn: Lsn, time_ms: u64) -> Option<u64> {
        self.fed().take_time(lsn, time_ms)
    }

    /// An entry is applied.
    pub(super) fn count(&mut self, lsn: Lsn, bytes: usize, effective: bool) {
        self.fed().count(lsn, bytes, effective);
    }

    /// A prune entry is applied. Whether the log begins further on than before.
    pub(super) fn take_prune(&mut self, lsn: Lsn, base: Base) -> bool {
        self.fed().take_prune(lsn, base)
    }

    /// Where the log begins, as far as is known here.
    pub(super) fn base(&self) -> Base {
        self.known().map(|slots| slots.retention().base()).unwrap_or_default()
    }

    /// All of a run was taken.
    pub(super) fn stand_at(&mut self, lsn: Lsn) {
        self.fed().stand_at(lsn);
    }

    /// What a checkpoint keeps of them.
    pub(super) fn control_write(&self) -> Option<(Bytes, Bytes)> {
        Some((Bytes::from_static(CONTROL_KEY), self.known()?.encode()))
    }
}

/// Who waits for an entry.
pub(super) enum Asker {
    One(RequestId),
    /// Of a keyed operation: who asked for it, and whoever asked for the same before it was applied.
    Once(Vec<RequestId>),
    /// Of a slot entry: each for the outcome of the change with that index.
    Slots(Vec<(RequestId, usize)>),
}

/// A request about a slot that is in no log yet.
struct Arrived {
    request: RequestId,
    change: SlotChange,
    expires: Instant,
}

/// Log time as this leader counts it: so much at that instant.
#[derive(Clone, Copy)]
struct LogClock {
    at: Instant,
    us: u64,
}

/// What a leader has to do with slots. Gone with its leadership.
#[derive(Default)]
pub(super) struct LeaderSlots {
    /// Once an entry of its term is applied, so that it knows what the log says.
    clock: Option<LogClock>,
    /// When it means to look at slots again.
    looks: Option<Instant>,
    arrived: Vec<Arrived>,
    /// When that becomes an entry.
    due: Option<Instant>,
    /// The last entry of its own accord: one is under way at a time.
    own: Lsn,
    /// Slots that it is about to create, by entry.
    creating: Vec<(Lsn, usize)>,
    /// Slots that were seen at risk by when they were created: since when.
    at_risk: BTreeMap<String, (Lsn, Instant)>,
}

impl LeaderSlots {
    /// Log time now, in microseconds.
    pub(super) fn now_us(&self, now: Instant, config: &Config) -> Option<u64> {
        let LogClock { at, us } = self.clock?;
        // Who looks much later than it meant to was stopped, and consumers could not reach it.
        let stopped = self.looks.map_or(at, |looks| looks.max(at)).plus(config.slot_tick_us);
        Some(us.saturating_add(now.min(stopped).since(at)))
    }

    /// Counts the time that has passed, from log time on.
    fn count_time(&mut self, now: Instant, log_ms: u64, config: &Config) -> u64 {
        let us = self.now_us(now, config).unwrap_or_default().max(log_ms.saturating_mul(1000));
        self.clock = Some(LogClock { at: now, us });
        us
    }
}

/// Requests that become one entry.
#[derive(Default)]
struct Batch {
    changes: Vec<SlotChange>,
    askers: Vec<(RequestId, usize)>,
    /// Slots that it creates.
    creating: BTreeSet<String>,
    /// Where the acknowledgement of a slot stands among the changes.
    acks: BTreeMap<String, usize>,
}

impl Batch {
    /// As many requests as one entry has room for.
    const MAX: usize = 1024;

    /// Whether one more may go with the others. An entry creates a slot once at most, so that a name
    /// and the LSN of a create entry name one slot.
    fn takes(&self, change: &SlotChange) -> bool {
        let again = match change {
            SlotChange::Create { name, .. } => self.creating.contains(name),
            _ => false,
        };
        self.askers.len() < Batch::MAX && !again
    }

    /// Takes a request. Acknowledgements of one slot become one, but for those of what may not be
    /// committed: one that is refused must not take others with it.
    fn add(&mut self, request: RequestId, change: SlotChange, committed: Lsn) {
        let merges = match &change {
            SlotChange::Ack { name, lsn } if *lsn <= committed => Some((name.clone(), *lsn)),
            _ => None,
        };
        if let Some((name, upto)) = &merges
            && let Some(at) = self.acks.get(name)
            && let SlotChange::Ack { lsn, .. } = &mut self.changes[*at]
        {
            *lsn = (*lsn).max(*upto);
            return self.askers.push((request, *at));
        }
        let at = self.changes.len();
        if let Some((name, _)) = merges {
            self.acks.insert(name, at);
        }
        if let SlotChange::Create { name, .. } = &change {
            self.creating.insert(name.clone());
        }
        self.changes.push(change);
        self.askers.push((request, at));
    }
}

impl Group {
    // --- the table ---

    /// Whether the slots are known; if not, they are asked for, once.
    pub(super) fn know_slots(&mut self, ctx: &mut Context) -> bool {
        if let SlotTable::Unread = self.slots {
            self.slots = SlotTable::Asked;
            let lsn = self.log.marks().checkpointed();
            ctx.emit(Effect::ReadControl { group: self.id, prefixes: control_prefixes(), lsn });
        }
        self.slots.known().is_some()
    }

    /// The slots, and what is remembered of keyed writes, as the last checkpoint left them, or a
    /// snapshot that is in place now.
    pub(crate) fn on_control(&mut self, ctx: &mut Context, at: Position, rows: &[(Bytes, Bytes)]) {
        let asked = matches!(self.slots, SlotTable::Asked);
        assert!(asked, "the shell completes only what it was asked for");
        assert!(at.lsn >= self.log.marks().applied(), "S6: what is asked for is not behind");
        let row = rows.iter().find(|(key, _)| key == CONTROL_KEY);
        let read = Slots::decode(at.lsn, row.map(|(_, value)| value.clone()));
        let once = read.as_ref().and_then(|slots| Once::decode(rows, slots.time_ms()));
        match read.zip(once) {
            Some((slots, once)) => {
                let base = slots.base_at(at);
                (self.slots, self.once) = (SlotTable::Known(slots), once);
                if self.applies() {
                    self.stand_on(ctx, base);
                }
            }
            None => {
                let reason = "the slots or the remembered keys in its state can't be read";
                self.quarantine(ctx, String::from(reason));
            }
        }
    }

    /// The engine has applied what comes before a slot entry: now that is.
    pub(super) fn on_slot_entry_applied(
        &mut self,
        ctx: &mut Context,
        (lsn, term): (Lsn, Term),
        entry: SlotEntry,
    ) {
        let verdicts: Vec<Option<String>> = entry.changes.iter().map(condemned).collect();
        let outcomes = self.slots.fed().take_entry(lsn, entry);
        self.once.forget(self.slots.fed().time_ms());
        for (name, outcome) in verdicts.into_iter().zip(&outcomes) {
            if let (Some(name), SlotOutcome::Invalidated { cause }) = (name, outcome)
                && self.is_leader()
            {
                ctx.notice(Notice::SlotInvalidated { group: self.id, name, cause: *cause });
            }
        }
        let first = self.slots.base().position.lsn.next();
        if let Some(Asker::Slots(askers)) = self.proposals.remove(&(lsn, term)) {
            for (request, index) in askers {
                match outcomes.get(index) {
                    Some(outcome) => {
                        let reply = Reply::Slot { lsn, first, outcome: *outcome };
                        self.answer_slot_request(ctx, request, reply);
                    }
                    // Only where members lie: the state holds another entry of this LSN.
                    None => self.slot_requests -= 1,
                }
            }
        }
    }

    /// What a shell may look at.
    pub(crate) fn slots_view(&self, ctx: &Context) -> Option<SlotsView<'_>> {
        let slots = self.slots.known().filter(|_| self.quarantined.is_none())?;
        let counted = match &self.role {
            Role::Leader(leader) => leader.slots.now_us(ctx.now.mono, &ctx.config),
            _ => None,
        };
        Some(slots.view(&ctx.config, counted.unwrap_or_default() / 1000))
    }

    /// What a shell may look at.
    pub(crate) fn remembered_view(&self) -> Option<RememberedView<'_>> {
        let slots = self.slots.known().filter(|_| self.quarantined.is_none())?;
        let (lsn, time_ms) = (slots.lsn(), slots.time_ms());
        Some(RememberedView { lsn, time_ms, keys: self.once.keys() })
    }

    pub(super) fn check_slots(&self) {
        if let Some(slots) = self.slots.known().filter(|_| self.id != GroupId::SYSTEM) {
            slots.check(self.log.marks().applied());
            self.once.check(slots.time_ms());
        }
    }

    // --- requests ---

    /// A client of this node wants something of a slot.
    pub(crate) fn ask_slot(
        &mut self,
        ctx: &mut Context,
        request: RequestId,
        change: SlotChange,
        expires: Instant,
    ) {
        let now = ctx.now.mono;
        let leader = self.leader(ctx);
        let full = self.slot_requests >= ctx.config.slot_requests_max;
        let reject = match &mut self.role {
            // The control plane has no slots.
            _ if self.id == GroupId::SYSTEM => Reject::NoSuchGroup,
            _ if now >= expires => Reject::Expired,
            _ if self.quarantined.is_some() => Reject::Quarantined,
            _ if !(1..=SLOT_NAME_MAX).contains(&change.name().len()) => Reject::TooLarge,
            Role::Leader(leader) if leader.transfer.is_some() => Reject::Transferring,
            Role::Leader(_) if full => Reject::Busy,
            Role::Leader(leader) => {
                let waits = matches!(change, SlotChange::Ack { .. });
                let due = now.plus(if waits { ctx.config.slot_ack_us } else { 0 });
                let slots = &mut leader.slots;
                slots.due = Some(slots.due.map_or(due, |other| other.min(due)));
                slots.arrived.push(Arrived { request, change, expires });
                self.slot_requests += 1;
                return;
            }
            _ => Reject::NotLeader { leader },
        };
        ctx.reject(request, reject);
    }

    /// Requests about slots that have no answer yet.
    pub(crate) fn slot_requests(&self) -> usize {
        self.slot_requests
    }

    pub(super) fn answer_slot_request(
        &mut self,
        ctx: &mut Context,
        request: RequestId,
        reply: Reply,
    ) {
        self.slot_requests -= 1;
        ctx.reply(request, reply);
    }

    /// An entry can't be committed any more.
    pub(super) fn supersede(&mut self, ctx: &mut Context, asker: Asker) {
        match asker {
            Asker::One(request) => ctx.reject(request, Reject::Superseded),
            Asker::Once(requests) => {
                requests.into_iter().for_each(|id| ctx.reject(id, Reject::Superseded));
            }
            Asker::Slots(askers) => {
                for (request, _) in askers {
                    let reply = Reply::Rejected(Reject::Superseded);
                    self.answer_slot_request(ctx, request, reply);
                }
            }
        }
    }

    /// This node does not lead any more: what is in no log has no effect.
    pub(super) fn drop_slot_requests(&mut self, ctx: &mut Context, slots: LeaderSlots) {
        ctx.clear_timer(Reason::Slots(self.id));
        self.reject_arrived(ctx, slots.arrived, Reject::NotLeader { leader: None });
    }

    fn reject_arrived(&mut self, ctx: &mut Context, arrived: Vec<Arrived>, reject: Reject) {
        for Arrived { request, .. } in arrived {
            self.answer_slot_request(ctx, request, Reply::Rejected(reject));
        }
    }

    // --- the leader ---

    /// Appends what has arrived, and what is to become of slots; says when to look again.
    pub(super) fn tend_slots(&mut self, ctx: &mut Context) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.transfer.is_some() {
            let arrived = core::mem::take(&mut leader.slots.arrived);
            self.reject_arrived(ctx, arrived, Reject::Transferring);
            let soon = ctx.now.mono.plus(ctx.config.heartbeat_us);
            return ctx.set_timer(Reason::Slots(self.id), soon);
        }
        if self.log.marks().applied() < leader.term_start {
            return;
        }
        let Some(us) = self.log_time_us(ctx) else { return };
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.slots.due.is_some_and(|due| ctx.now.mono >= due) {
            self.append_arrived(ctx, us / 1000);
        }
        let next = self.keep_slots(ctx, us);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.slots.looks = leader.slots.due.into_iter().chain(next).min();
        match leader.slots.looks {
            // Where there is no room for what is due, it is tried again soon.
            Some(at) => ctx.set_timer(Reason::Slots(self.id), at.max(ctx.now.mono.plus(1000))),
            None => ctx.clear_timer(Reason::Slots(self.id)),
        }
    }

    /// Log time as this leader counts it, in microseconds; `None` where it does not know the slots.
    /// Means something once it has applied an entry of its term.
    pub(super) fn log_time_us(&mut self, ctx: &Context) -> Option<u64> {
        let (Role::Leader(leader), Some(slots)) = (&mut self.role, self.slots.known()) else {
            return None;
        };
        Some(leader.slots.count_time(ctx.now.mono, slots.time_ms(), &ctx.config))
    }

    fn append_arrived(&mut self, ctx: &mut Context, now_ms: u64) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.slots.due = None;
        let mut arrived = core::mem::take(&mut leader.slots.arrived).into_iter().peekable();
        while arrived.peek().is_some() {
            let mut batch = Batch::default();
            while let Some(next) = arrived.next_if(|next| batch.takes(&next.change)) {
                let Arrived { request, change, expires } = next;
                match self.answer_at_once(ctx, &change, expires, batch.creating.len(), now_ms) {
                    Some(reply) => self.answer_slot_request(ctx, request, reply),
                    None => batch.add(request, change, self.log.marks().committed()),
                }
            }
            self.append_batch(ctx, batch, now_ms);
        }
    }

    /// The answer to what becomes no entry.
    fn answer_at_once(
        &self,
        ctx: &Context,
        change: &SlotChange,
        expires: Instant,
        creating: usize,
        now_ms: u64,
    ) -> Option<Reply> {
        let (Role::Leader(leader), Some(slots)) = (&self.role, self.slots.known()) else {
            return None;
        };
        if ctx.now.mono >= expires {
            return Some(Reply::Rejected(Reject::Expired));
        }
        match change {
            SlotChange::Ack { name, lsn: upto } => {
                let slot = slots.get(name).filter(|slot| slot.is_valid())?;
                let idle = *upto <= slot.confirmed && !slot.wants_sign(&ctx.config, now_ms);
                let outcome = SlotOutcome::Confirmed { confirmed: slot.confirmed };
                let first = slots.retention().base().position.lsn.next();
                idle.then(|| Reply::Slot { lsn: slots.lsn(), first, outcome })
            }
            SlotChange::Create { name, .. } => {
                let under_way = leader.slots.creating.iter().filter(|(lsn, _)| *lsn > slots.lsn());
                let under_way: usize = under_way.map(|(_, count)| count).sum();
                let full = slots.len() + under_way + creating >= ctx.config.slots_max;
                let new = slots.get(name).is_none();
                (full && new).then_some(Reply::Rejected(Reject::Busy))
            }
            SlotChange::Delete { .. } | SlotChange::Invalidate { .. } => None,
        }
    }

    fn append_batch(&mut self, ctx: &mut Context, batch: Batch, now_ms: u64) {
        if batch.changes.is_empty() {
            return;
        }
        match self.append_slots(ctx, SlotEntry { time_ms: now_ms, changes: batch.changes }) {
            Ok(lsn) => {
                self.proposals.insert((lsn, self.term), Asker::Slots(batch.askers));
                if let Role::Leader(leader) = &mut self.role
                    && !batch.creating.is_empty()
                {
                    let known = self.slots.known().map_or(Lsn(0), Slots::lsn);
                    leader.slots.creating.retain(|(lsn, _)| *lsn > known);
                    leader.slots.creating.push((lsn, batch.creating.len()));
                }
            }
            Err(reject) => {
                for (request, _) in batch.askers {
                    self.answer_slot_request(ctx, request, Reply::Rejected(reject));
                }
            }
        }
    }

    /// Half of the reserve may go to slots: a consumer that catches up makes room.
    fn append_slots(&mut self, ctx: &mut Context, entry: SlotEntry) -> Result<Lsn, Reject> {
        let payload = entry.encode();
        let reserve = ctx.config.reserve_bytes / 2;
        match self.refuse_admission(ctx, payload.len(), reserve) {
            Some(reject) => Err(reject),
            None => Ok(self.append(ctx, Kind::Slot, payload)),
        }
    }

    /// Warns of slots at risk, invalidates those that were so in sight for long enough and are past
    /// their limit, and makes log time part of the log. When to look again.
    fn keep_slots(&mut self, ctx: &mut Context, us: u64) -> Option<Instant> {
        let Role::Leader(leader) = &mut self.role else { return None };
        let slots = self.slots.known()?;
        // Looks again when that is applied.
        let waits = leader.slots.own > slots.lsn();
        let ticks = slots.valid().next().is_some() || slots.retention().ages(&ctx.config);
        let for_slots = ticks.then(|| slots.ticks_at(&ctx.config));
        let for_keys = self.once.ticks_at(slots.time_ms(), &ctx.config);
        let tick_ms = for_slots.into_iter().chain(for_keys).min().filter(|_| !waits)?;
        let (now, now_ms) = (ctx.now.mono, us / 1000);
        let instant_of = |ms: u64| now.plus(ms.saturating_mul(1000).saturating_sub(us));
        let mut next = instant_of(tick_ms);
        let mut at_risk = BTreeMap::new();
        let mut changes = Vec::new();
        for (name, slot) in slots.valid() {
            let turns_ms = slot.turns_at(&ctx.config, now_ms);
            if turns_ms > now_ms {
                next = next.min(instant_of(turns_ms));
            }
            let Some(risk) = slots.risk(slot, &ctx.config, now_ms) else { continue };
            let warned = leader.slots.at_risk.get(name);
            let since = match warned.filter(|(created, _)| *created == slot.created) {
                Some((_, since)) => *since,
                None => {
                    let (group, name) = (self.id, name.to_owned());
                    ctx.notice(Notice::SlotAtRisk { group, name, cause: risk.cause });
                    now
                }
            };
            at_risk.insert(name.to_owned(), (slot.created, since));
            let ripe = since.plus(ctx.config.slot_grace_us);
            if risk.over && now >= ripe {
                changes.push(verdict(name, slot, risk.cause));
            } else if risk.over {
                next = next.min(ripe);
            }
        }
        leader.slots.at_risk = at_risk;
        if changes.is_empty() && now_ms < tick_ms {
            return Some(next);
        }
        changes.truncate(Batch::MAX);
        match self.append_slots(ctx, SlotEntry { time_ms: now_ms, changes }) {
            Ok(lsn) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.slots.own = lsn;
                }
                None
            }
            Err(_) => Some(now.plus(ctx.config.heartbeat_us)),
        }
    }
}

/// How the control rows begin that are read back: each a whole key, or all that begin with it.
pub(super) fn control_prefixes() -> Vec<Bytes> {
    [CONTROL_KEY, CONTROL_PREFIX].map(Bytes::from_static).to_vec()
}

fn verdict(name: &str, slot: &Slot, cause: SlotCause) -> SlotChange {
    SlotChange::Invalidate {
        name: name.to_owned(),
        cause,
        confirmed: slot.confirmed,
        alive_ms: slot.alive_ms,
    }
}

/// The slot that a change is to invalidate.
fn condemned(change: &SlotChange) -> Option<String> {
    match change {
        SlotChange::Invalidate { name, .. } => Some(name.clone()),
        _ => None,
    }
}
