//! The slots of one group, as its log leaves them: core-owned control state, the same on every
//! replica that has applied the same. A **slot** is a named, durable position of a consumer in the
//! log. This is the pure table; `group/slots.rs` feeds it, and proposes what becomes of slots.
//!
//! Everything here follows from entries and from which operations were refused, and from no clock:
//! **log time** is a count of milliseconds that rises only by what entries of slots and of keyed
//! writes carry.
//!
//! How far a slot is behind is a difference of two counts of effective operations: of all that is
//! applied, and of the prefix up to its confirmed position (`tally.rs`). The second is noted when the
//! position rises, and then stays, so that a slot that nobody acknowledges costs nothing to watch.

use alloc::{
    collections::{BTreeMap, btree_map::Entry as Place},
    string::String,
    vec::Vec,
};

use bytes::{BufMut, Bytes, BytesMut};

mod change;
mod tally;

pub use change::{SLOT_NAME_MAX, SlotChange, SlotEntry};
use change::{get_name, get_settings, get_u8, get_u32, get_u64, put_name, put_settings};
use tally::Count;
pub(crate) use tally::Tally;

use crate::{
    config::Config,
    entry::Position,
    planted::{self, Planted},
    retention::{Base, Retention},
    types::Lsn,
};

/// Where a new slot begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlotStart {
    /// Before the first entry that is kept.
    Earliest,
    /// After everything that comes before its own entry.
    #[default]
    Latest,
    /// After this LSN: as if it were confirmed.
    After(Lsn),
}

/// How far behind, and for how long silent, a consumer may be before its slot is invalidated.
/// `None`: the leader's default, which is never "without a limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotLimits {
    /// Bytes of effective operations.
    pub lag_bytes: Option<u64>,
    /// Effective operations.
    pub lag_ops: Option<u64>,
    /// Milliseconds of log time without a sign of life.
    pub idle_ms: Option<u64>,
}

/// What a slot was created with. A second creation with the same ones is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSettings {
    /// Where it began.
    pub from: SlotStart,
    /// As asked.
    pub limits: SlotLimits,
}

/// Why a slot is, or is about to be, invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SlotCause {
    /// Its consumer is too far behind.
    Horizon = 1,
    /// Its consumer gave no sign of life for too long.
    IdleTimeout = 2,
    /// What it needed is not in the log any more.
    LogRemoved = 3,
}

impl SlotCause {
    pub(crate) fn from_u8(n: u8) -> Option<SlotCause> {
        match n {
            1 => Some(SlotCause::Horizon),
            2 => Some(SlotCause::IdleTimeout),
            3 => Some(SlotCause::LogRemoved),
            _ => None,
        }
    }
}

/// How a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It holds back pruning.
    Active,
    /// So it does still, past three quarters of a limit.
    AtRisk {
        /// Of which limit.
        cause: SlotCause,
    },
    /// It holds back nothing any more, for good. The way back is to delete it, and to begin anew.
    Invalidated {
        /// Why.
        cause: SlotCause,
    },
}

/// The answer to a request about a slot, once its entry is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotOutcome {
    /// It was created.
    Created {
        /// Where it begins.
        confirmed: Lsn,
    },
    /// It stood before, with the same settings.
    Stood {
        /// Where it is.
        confirmed: Lsn,
    },
    /// It stood before, with other settings, and still does.
    Differs,
    /// The acknowledgement counts.
    Confirmed {
        /// Where the slot is: at what was acknowledged, or further.
        confirmed: Lsn,
    },
    /// It is gone.
    Deleted,
    /// There is no slot of that name.
    NoSuchSlot,
    /// The slot is invalidated.
    Invalidated {
        /// Why.
        cause: SlotCause,
    },
    /// It is to begin where the log has been pruned: nothing changed.
    Pruned {
        /// The first LSN that the log still has.
        first: Lsn,
    },
    /// What was acknowledged, or is to begin with, is above what is committed: nothing changed.
    AboveCommitted {
        /// The commit mark.
        committed: Lsn,
    },
}

/// One slot, as a replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView<'a> {
    /// Its name.
    pub name: &'a str,
    /// The LSN of its create entry: tells it from an earlier one of that name.
    pub created: Lsn,
    /// As asked.
    pub settings: SlotSettings,
    /// Its consumer has everything up to here.
    pub confirmed: Lsn,
    /// Effective operations after that; exact where they are few, else too many by a fifteenth of
    /// them at most.
    pub lag_ops: u64,
    /// Their bytes, payloads and overhead.
    pub lag_bytes: u64,
    /// How long the first of them has been waiting for this slot, in log time: exact to a tick.
    pub lag_ms: u64,
    /// How it stands.
    pub state: SlotState,
    /// Log time until it is invalidated for want of a sign of life; `None` where it is invalidated.
    pub expires_in_ms: Option<u64>,
}

/// The slots of a group, as a replica knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotsView<'a> {
    /// As of this LSN: what is applied, or more where the state was found ahead after a restart.
    pub lsn: Lsn,
    /// Where the log begins, as far as all replicas agree: a replica that came as a snapshot may have
    /// less.
    pub base: Base,
    /// Log time as of that.
    pub time_ms: u64,
    /// The lowest LSN that a valid slot still needs; `None` without a valid slot.
    pub horizon: Option<Lsn>,
    /// In order of name. Lag and state are as of `time_ms`; of the leader's, as of now.
    pub slots: Vec<SlotView<'a>>,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) created: Lsn,
    settings: SlotSettings,
    pub(crate) confirmed: Lsn,
    /// What the prefix up to `confirmed` holds.
    counted: Count,
    /// When it was created, in log time.
    created_ms: u64,
    /// The last sign of life, in log time.
    pub(crate) alive_ms: u64,
    invalidated: Option<SlotCause>,
}

/// A limit of which a slot has used three quarters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Risk {
    pub(crate) cause: SlotCause,
    /// ... or all of it, and more.
    pub(crate) over: bool,
}

impl Risk {
    fn of(cause: SlotCause, used: u64, limit: u64) -> Option<Risk> {
        let at_risk = used > 0 && used >= limit - limit / 4;
        at_risk.then_some(Risk { cause, over: used > limit })
    }
}

/// Limits with the defaults filled in.
struct Limits {
    lag_bytes: u64,
    lag_ops: u64,
    idle_ms: u64,
}

impl Slot {
    fn limits(&self, config: &Config) -> Limits {
        let SlotLimits { lag_bytes, lag_ops, idle_ms } = self.settings.limits;
        Limits {
            lag_bytes: lag_bytes.unwrap_or(config.slot_lag_bytes),
            lag_ops: lag_ops.unwrap_or(config.slot_lag_ops),
            idle_ms: idle_ms.unwrap_or(config.slot_idle_ms),
        }
    }

    /// When mere silence changes how it stands, in log time: at risk first, then over the limit.
    pub(crate) fn turns_at(&self, config: &Config, now_ms: u64) -> u64 {
        let limit = self.limits(config).idle_ms;
        let at_risk = self.alive_ms.saturating_add(limit - limit / 4);
        let over = self.alive_ms.saturating_add(limit).saturating_add(1);
        if now_ms < at_risk { at_risk } else { over }
    }

    /// Whether its last sign of life is so late that another one is worth an entry.
    pub(crate) fn wants_sign(&self, config: &Config, now_ms: u64) -> bool {
        let worth = (config.slot_tick_us / 1000).min(self.limits(config).idle_ms / 8);
        now_ms.saturating_sub(self.alive_ms) >= worth
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.invalidated.is_none()
    }
}

/// The control key of the table: one row, so that it is whole or not there.
pub(crate) const CONTROL_KEY: &[u8] = b"slots";
const VERSION: u8 = 1;

/// Every slot of a group, and what it takes to say how far behind each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots {
    /// What was taken into account.
    lsn: Lsn,
    /// Log time, in milliseconds.
    time_ms: u64,
    /// Of effective operations.
    tally: Tally<32>,
    retention: Retention,
    slots: BTreeMap<String, Slot>,
}

impl Slots {
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Slot> {
        self.slots.get(name)
    }

    /// Those that hold back pruning.
    pub(crate) fn valid(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.slots.iter().filter(|(_, slot)| slot.is_valid()).map(|(name, s)| (name.as_str(), s))
    }

    // --- what the log says ---

    /// An entry is applied: of such a weight, and perhaps an effective operation.
    pub(crate) fn count(&mut self, lsn: Lsn, bytes: usize, effective: bool) {
        if lsn <= self.lsn {
            return;
        }
        if effective {
            self.tally.add(lsn, bytes, self.time_ms, lsn);
        }
        self.retention.take(lsn, bytes, effective, self.time_ms);
    }

    /// A prune entry is applied: void where a slot, perhaps a new one, still needs what it would
    /// remove. Whether the log begins further on than before.
    pub(crate) fn take_prune(&mut self, lsn: Lsn, base: Base) -> bool {
        let needed = self.horizon().is_some_and(|first| first <= base.position.lsn)
            && !planted::is(Planted::PruneIgnoresSlots);
        lsn > self.lsn && base.position.lsn < lsn && !needed && self.retention.cut(base)
    }

    /// What would come before the log of whoever holds nothing but the state, which stands at `at`.
    pub(crate) fn base_at(&self, at: Position) -> Base {
        Base { position: at, ..self.retention.whole() }
    }

    pub(crate) fn retention(&self) -> &Retention {
        &self.retention
    }

    /// An entry is applied that tells log time; what it is by now, unless that was taken before.
    pub(crate) fn take_time(&mut self, lsn: Lsn, time_ms: u64) -> Option<u64> {
        (lsn > self.lsn).then(|| {
            self.time_ms = self.time_ms.max(time_ms);
            self.time_ms
        })
    }

    /// A slot entry is applied: the outcome of each of its changes.
    pub(crate) fn take_entry(&mut self, lsn: Lsn, entry: SlotEntry) -> Vec<SlotOutcome> {
        if lsn <= self.lsn {
            return Vec::new();
        }
        self.time_ms = self.time_ms.max(entry.time_ms);
        entry.changes.into_iter().map(|change| self.take_change(lsn, change)).collect()
    }

    /// Everything up to here was taken.
    pub(crate) fn stand_at(&mut self, lsn: Lsn) {
        self.lsn = lsn.max(self.lsn);
    }

    fn take_change(&mut self, lsn: Lsn, change: SlotChange) -> SlotOutcome {
        match change {
            SlotChange::Create { name, settings } => self.create(lsn, name, settings),
            SlotChange::Ack { name, lsn: upto } => self.ack(lsn, &name, upto),
            SlotChange::Delete { name } => match self.slots.remove(&name) {
                Some(_) => SlotOutcome::Deleted,
                None => SlotOutcome::NoSuchSlot,
            },
            SlotChange::Invalidate { name, cause, confirmed, alive_ms } => {
                self.invalidate(&name, cause, confirmed, alive_ms)
            }
        }
    }

    fn create(&mut self, lsn: Lsn, name: String, settings: SlotSettings) -> SlotOutcome {
        let pruned = self.retention.base().position.lsn;
        let confirmed = match settings.from {
            SlotStart::Earliest => pruned,
            SlotStart::Latest => lsn,
            SlotStart::After(after) if after < pruned => {
                return SlotOutcome::Pruned { first: pruned.next() };
            }
            SlotStart::After(after) if after >= lsn => {
                return SlotOutcome::AboveCommitted { committed: lsn.prev() };
            }
            SlotStart::After(after) => after,
        };
        let counted = self.tally.upto(confirmed);
        match self.slots.entry(name) {
            Place::Vacant(place) => {
                place.insert(Slot {
                    created: lsn,
                    settings,
                    confirmed,
                    counted,
                    created_ms: self.time_ms,
                    alive_ms: self.time_ms,
                    invalidated: None,
                });
                SlotOutcome::Created { confirmed }
            }
            Place::Occupied(place) => match place.get() {
                Slot { invalidated: Some(cause), .. } => SlotOutcome::Invalidated { cause: *cause },
                slot if slot.settings == settings => {
                    SlotOutcome::Stood { confirmed: slot.confirmed }
                }
                _ => SlotOutcome::Differs,
            },
        }
    }

    /// All before the entry at `lsn` is committed, and nothing else is known to be by everybody.
    fn ack(&mut self, lsn: Lsn, name: &str, upto: Lsn) -> SlotOutcome {
        let counted = self.tally.upto(upto);
        let Some(slot) = self.slots.get_mut(name) else { return SlotOutcome::NoSuchSlot };
        if let Some(cause) = slot.invalidated {
            return SlotOutcome::Invalidated { cause };
        }
        if upto >= lsn {
            return SlotOutcome::AboveCommitted { committed: lsn.prev() };
        }
        slot.alive_ms = self.time_ms;
        if upto > slot.confirmed {
            slot.confirmed = upto;
            // What was counted before was nearer then, and may be more exact.
            if counted.ops > slot.counted.ops {
                slot.counted = counted;
            }
        }
        SlotOutcome::Confirmed { confirmed: slot.confirmed }
    }

    /// The leader judged by what it had applied when it proposed this: what the consumer did since
    /// counts. How the slot stands after that.
    fn invalidate(
        &mut self,
        name: &str,
        cause: SlotCause,
        confirmed: Lsn,
        alive_ms: u64,
    ) -> SlotOutcome {
        let Some(slot) = self.slots.get_mut(name) else { return SlotOutcome::NoSuchSlot };
        let as_seen = match cause {
            SlotCause::Horizon | SlotCause::LogRemoved => slot.confirmed == confirmed,
            SlotCause::IdleTimeout => slot.alive_ms == alive_ms,
        };
        if as_seen {
            slot.invalidated.get_or_insert(cause);
        }
        match slot.invalidated {
            Some(cause) => SlotOutcome::Invalidated { cause },
            None => SlotOutcome::Confirmed { confirmed: slot.confirmed },
        }
    }

    // --- what follows from it ---

    fn lag(&self, slot: &Slot) -> Count {
        let total = self.tally.total();
        Count { ops: total.ops - slot.counted.ops, bytes: total.bytes - slot.counted.bytes }
    }

    /// When log time is to be made part of the log again, at the latest: soon where operations were
    /// applied since the last time, so that they are dated; else as often as matters to whoever may be
    /// silent the shortest.
    pub(crate) fn ticks_at(&self, config: &Config) -> u64 {
        let tick = config.slot_tick_us / 1000;
        let idle = self.valid().map(|(_, slot)| slot.limits(config).idle_ms / 64).min();
        let undated = self.tally.last_ms() == Some(self.time_ms);
        let age = self.retention.ages(config).then_some(config.retention_ms / 64);
        let idle = idle.into_iter().chain(age).min();
        let every = if undated { tick } else { tick.max(idle.unwrap_or(u64::MAX)) };
        self.time_ms.saturating_add(every)
    }

    /// What a slot risks at that log time: the limit that it is past, else one that it comes near.
    pub(crate) fn risk(&self, slot: &Slot, config: &Config, now_ms: u64) -> Option<Risk> {
        let limits = slot.limits(config);
        let lag = self.lag(slot);
        let idle = now_ms.saturating_sub(slot.alive_ms);
        let risks = [
            Risk::of(SlotCause::Horizon, lag.ops, limits.lag_ops),
            Risk::of(SlotCause::Horizon, lag.bytes, limits.lag_bytes),
            Risk::of(SlotCause::IdleTimeout, idle, limits.idle_ms),
        ];
        let risks = risks.into_iter().flatten();
        risks.clone().find(|risk| risk.over).or_else(|| risks.clone().next())
    }

    /// The lowest LSN that a valid slot still needs.
    pub(crate) fn horizon(&self) -> Option<Lsn> {
        self.valid().map(|(_, slot)| slot.confirmed.next()).min()
    }

    /// How it looks at that log time.
    pub(crate) fn view(&self, config: &Config, now_ms: u64) -> SlotsView<'_> {
        let now_ms = now_ms.max(self.time_ms);
        let slots = self.slots.iter().map(|(name, slot)| self.view_of(name, slot, config, now_ms));
        SlotsView {
            lsn: self.lsn,
            base: self.retention.base(),
            time_ms: self.time_ms,
            horizon: self.horizon(),
            slots: slots.collect(),
        }
    }

    fn view_of<'a>(
        &self,
        name: &'a str,
        slot: &Slot,
        config: &Config,
        now_ms: u64,
    ) -> SlotView<'a> {
        let lag = self.lag(slot);
        // Before there was a slot, log time may have stood still.
        let waits_since = self.tally.time_after(slot.counted).map(|ms| ms.max(slot.created_ms));
        let expires_ms = slot.alive_ms.saturating_add(slot.limits(config).idle_ms);
        SlotView {
            name,
            created: slot.created,
            settings: slot.settings,
            confirmed: slot.confirmed,
            lag_ops: lag.ops,
            lag_bytes: lag.bytes,
            lag_ms: waits_since.map_or(0, |since| now_ms.saturating_sub(since)),
            state: match (slot.invalidated, self.risk(slot, config, now_ms)) {
                (Some(cause), _) => SlotState::Invalidated { cause },
                (None, Some(Risk { cause, .. })) => SlotState::AtRisk { cause },
                (None, None) => SlotState::Active,
            },
            expires_in_ms: slot.is_valid().then(|| expires_ms.saturating_sub(now_ms)),
        }
    }

    // --- checkpoints ---

    /// The control row's value. Its LSN is that of the checkpoint.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64_le(self.time_ms);
        self.tally.put(&mut out);
        self.retention.put(&mut out);
        out.put_u32_le(self.slots.len() as u32);
        for (name, slot) in &self.slots {
            put_name(&mut out, name);
            put_settings(&mut out, &slot.settings);
            out.put_u64_le(slot.created.0);
            out.put_u64_le(slot.confirmed.0);
            out.put_u64_le(slot.counted.ops);
            out.put_u64_le(slot.counted.bytes);
            out.put_u64_le(slot.created_ms);
            out.put_u64_le(slot.alive_ms);
            out.put_u8(slot.invalidated.map_or(0, |cause| cause as u8));
        }
        out.freeze()
    }

    /// The table from its row, which stands at `lsn`; `None` where it can't be read.
    pub(crate) fn decode(lsn: Lsn, row: Option<Bytes>) -> Option<Slots> {
        let Some(mut bytes) = row else { return Some(Slots { lsn, ..Slots::default() }) };
        if get_u8(&mut bytes)? != VERSION {
            return None;
        }
        let time_ms = get_u64(&mut bytes)?;
        let tally = Tally::get(&mut bytes)?;
        let retention = Retention::get(&mut bytes)?;
        let count = get_u32(&mut bytes)?;
        let mut slots = BTreeMap::new();
        for _ in 0..count {
            let name = get_name(&mut bytes)?;
            let settings = get_settings(&mut bytes)?;
            let slot = Slot {
                settings,
                created: Lsn(get_u64(&mut bytes)?),
                confirmed: Lsn(get_u64(&mut bytes)?),
                counted: Count { ops: get_u64(&mut bytes)?, bytes: get_u64(&mut bytes)? },
                created_ms: get_u64(&mut bytes)?,
                alive_ms: get_u64(&mut bytes)?,
                invalidated: match get_u8(&mut bytes)? {
                    0 => None,
                    cause => Some(SlotCause::from_u8(cause)?),
                },
            };
            slots.insert(name, slot);
        }
        Some(Slots { lsn, time_ms, tally, retention, slots }).filter(|_| bytes.is_empty())
    }

    /// Invariants that hold between steps (docs/INVARIANTS.md).
    pub(crate) fn check(&self, applied: Lsn) {
        assert!(self.lsn >= applied, "S1: slots stand where the state stands");
        self.tally.check();
        self.retention.check();
        assert!(self.retention.effective() <= self.lsn, "R1: what is counted is applied");
        let total = self.tally.total();
        for (name, slot) in &self.slots {
            assert!(slot.created <= self.lsn, "S2: {name} was created by an applied entry");
            assert!(slot.confirmed <= self.lsn, "S2: what {name} confirms is applied");
            let needs_pruned = slot.confirmed < self.retention.base().position.lsn;
            let broken = slot.is_valid() && needs_pruned;
            assert!(!broken || planted::is(Planted::PruneIgnoresSlots), "R2: {name} needs it");
            assert!(slot.counted.ops <= total.ops, "S7: a lag is never negative: {name}");
            assert!(slot.counted.bytes <= total.bytes, "S7: a lag is never negative: {name}");
            assert!(slot.alive_ms <= self.time_ms, "S5: {name} lived in the past");
        }
    }
}

#[cfg(test)]
mod tests;
