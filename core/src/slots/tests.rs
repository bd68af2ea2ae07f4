//! The table on its own.

use alloc::{borrow::ToOwned, format, string::String, vec, vec::Vec};

use super::*;

fn create(name: &str, settings: SlotSettings) -> SlotChange {
    SlotChange::Create { name: name.to_owned(), settings }
}

fn ack(name: &str, lsn: u64) -> SlotChange {
    SlotChange::Ack { name: name.to_owned(), lsn: Lsn(lsn) }
}

fn delete(name: &str) -> SlotChange {
    SlotChange::Delete { name: name.to_owned() }
}

fn from(from: SlotStart) -> SlotSettings {
    SlotSettings { from, ..SlotSettings::default() }
}

/// A table that is fed one entry after another.
#[derive(Default)]
struct Log(Slots);

impl Log {
    fn ops(&mut self, count: u64) {
        for _ in 0..count {
            let lsn = self.0.lsn.next();
            self.0.count(lsn, 100, true);
            self.0.stand_at(lsn);
        }
    }

    fn entry(&mut self, time_ms: u64, changes: Vec<SlotChange>) -> Vec<SlotOutcome> {
        let lsn = self.0.lsn.next();
        let outcomes = self.0.take_entry(lsn, SlotEntry { time_ms, changes });
        self.0.stand_at(lsn);
        self.0.check(lsn);
        outcomes
    }

    fn one(&mut self, change: SlotChange) -> SlotOutcome {
        self.entry(0, vec![change])[0]
    }

    fn slot(&self, name: &str) -> SlotView<'_> {
        let view = self.0.view(&config(), 0);
        view.slots.into_iter().find(|slot| slot.name == name).expect("there is such a slot")
    }
}

fn config() -> Config {
    Config { slot_lag_ops: 100, slot_lag_bytes: 1 << 20, slot_idle_ms: 1000, ..Config::default() }
}

#[test]
fn a_slot_begins_where_it_is_asked_to() {
    let mut log = Log::default();
    log.ops(10);
    let created = |confirmed| SlotOutcome::Created { confirmed: Lsn(confirmed) };
    assert_eq!(log.one(create("all", from(SlotStart::Earliest))), created(0));
    assert_eq!(log.one(create("new", from(SlotStart::Latest))), created(12));
    assert_eq!(log.one(create("mid", from(SlotStart::After(Lsn(4))))), created(4));
    let refused = SlotOutcome::AboveCommitted { committed: Lsn(13) };
    assert_eq!(log.one(create("far", from(SlotStart::After(Lsn(14))))), refused);
    let lags = ["all", "new", "mid"].map(|name| log.slot(name).lag_ops);
    assert_eq!(lags, [10, 0, 6]);
    assert_eq!(log.slot("all").lag_bytes, 1000);
    assert_eq!(log.0.horizon(), Some(Lsn(1)));
}

#[test]
fn a_second_creation_is_compared() {
    let mut log = Log::default();
    let narrow = SlotLimits { lag_ops: Some(5), ..SlotLimits::default() };
    let settings = SlotSettings { from: SlotStart::Latest, limits: narrow };
    log.one(create("s", settings));
    assert_eq!(log.one(create("s", settings)), SlotOutcome::Stood { confirmed: Lsn(1) });
    assert_eq!(log.one(create("s", from(SlotStart::Latest))), SlotOutcome::Differs);
    assert_eq!(log.one(delete("s")), SlotOutcome::Deleted);
    assert_eq!(log.one(delete("s")), SlotOutcome::NoSuchSlot);
    let anew = log.one(create("s", from(SlotStart::Latest)));
    assert_eq!(anew, SlotOutcome::Created { confirmed: Lsn(6) });
    assert_eq!(log.slot("s").created, Lsn(6));
}

#[test]
fn what_is_confirmed_only_rises() {
    let mut log = Log::default();
    log.one(create("s", from(SlotStart::Earliest)));
    log.ops(8);
    assert_eq!(log.one(ack("s", 5)), SlotOutcome::Confirmed { confirmed: Lsn(5) });
    assert_eq!(log.slot("s").lag_ops, 4);
    assert_eq!(log.one(ack("s", 3)), SlotOutcome::Confirmed { confirmed: Lsn(5) });
    let refused = SlotOutcome::AboveCommitted { committed: Lsn(11) };
    assert_eq!(log.one(ack("s", 12)), refused, "its own entry is not committed when it is asked");
    assert_eq!(log.slot("s").confirmed, Lsn(5));
    assert_eq!(log.one(ack("other", 1)), SlotOutcome::NoSuchSlot);
    assert_eq!(log.one(ack("s", 12)), SlotOutcome::Confirmed { confirmed: Lsn(12) });
    assert_eq!((log.slot("s").lag_ops, log.slot("s").lag_bytes), (0, 0));
}

#[test]
fn log_time_never_falls_and_dates_signs_of_life() {
    let mut log = Log::default();
    log.entry(5000, vec![create("s", from(SlotStart::Latest))]);
    log.entry(4000, vec![ack("s", 1)]);
    assert_eq!(log.0.time_ms(), 5000);
    assert_eq!(log.0.get("s").map(|slot| slot.alive_ms), Some(5000));
    log.entry(5700, vec![]);
    assert_eq!(log.slot("s").expires_in_ms, Some(300));
    log.entry(5800, vec![ack("s", 0)]);
    assert_eq!(log.slot("s").expires_in_ms, Some(1000), "at or below confirmed is a sign of life");
    log.entry(5800, vec![ack("s", 99)]);
    log.entry(6000, vec![]);
    assert_eq!(log.slot("s").expires_in_ms, Some(800), "a refused one is none");
}

#[test]
fn risk_begins_at_three_quarters() {
    let risk = |log: &Log, now| {
        let slot = log.0.get("s").expect("it stands");
        log.0.risk(slot, &config(), now).map(|risk| (risk.cause, risk.over))
    };
    let mut log = Log::default();
    log.one(create("s", from(SlotStart::Latest)));
    log.ops(74);
    assert_eq!(risk(&log, 749), None);
    assert_eq!(risk(&log, 750), Some((SlotCause::IdleTimeout, false)));
    assert_eq!(risk(&log, 1000), Some((SlotCause::IdleTimeout, false)));
    assert_eq!(risk(&log, 1001), Some((SlotCause::IdleTimeout, true)));
    let slot = log.0.get("s").expect("it stands");
    assert_eq!([0, 749, 750].map(|now| slot.turns_at(&config(), now)), [750, 750, 1001]);
    log.ops(1);
    assert_eq!(risk(&log, 0), Some((SlotCause::Horizon, false)));
    assert_eq!(log.slot("s").state, SlotState::AtRisk { cause: SlotCause::Horizon });
    assert_eq!(risk(&log, 1001), Some((SlotCause::IdleTimeout, true)), "what is over counts first");
    log.ops(26);
    assert_eq!(risk(&log, 0), Some((SlotCause::Horizon, true)));
}

#[test]
fn an_invalidated_slot_stays_so() {
    let mut log = Log::default();
    log.one(create("s", from(SlotStart::Latest)));
    log.one(create("t", from(SlotStart::Earliest)));
    log.ops(5);
    let verdict = |confirmed| SlotChange::Invalidate {
        name: "s".to_owned(),
        cause: SlotCause::Horizon,
        confirmed: Lsn(confirmed),
        alive_ms: 0,
    };
    log.one(ack("s", 4));
    let lives = SlotOutcome::Confirmed { confirmed: Lsn(4) };
    assert_eq!(log.one(verdict(1)), lives, "it has moved since the leader looked");
    let dead = SlotOutcome::Invalidated { cause: SlotCause::Horizon };
    assert_eq!(log.one(verdict(4)), dead);
    assert_eq!(log.one(ack("s", 5)), dead);
    assert_eq!(log.one(create("s", from(SlotStart::Latest))), dead);
    assert_eq!(log.slot("s").state, SlotState::Invalidated { cause: SlotCause::Horizon });
    assert_eq!(log.slot("s").expires_in_ms, None);
    assert_eq!(log.0.horizon(), Some(Lsn(1)), "t holds back");
    log.one(delete("t"));
    assert_eq!(log.0.horizon(), None, "s holds back nothing");
}

#[test]
fn silence_is_forgiven_by_a_sign_of_life() {
    let mut log = Log::default();
    log.entry(100, vec![create("s", from(SlotStart::Latest))]);
    let verdict = |alive_ms| SlotChange::Invalidate {
        name: "s".to_owned(),
        cause: SlotCause::IdleTimeout,
        confirmed: Lsn(1),
        alive_ms,
    };
    let outcomes = log.entry(2000, vec![ack("s", 0), verdict(100)]);
    assert_eq!(outcomes[1], SlotOutcome::Confirmed { confirmed: Lsn(1) });
    let outcomes = log.entry(4000, vec![verdict(2000)]);
    assert_eq!(outcomes[0], SlotOutcome::Invalidated { cause: SlotCause::IdleTimeout });
}

#[test]
fn what_is_held_already_is_not_taken_twice() {
    let mut log = Log::default();
    log.one(create("s", from(SlotStart::Earliest)));
    log.ops(3);
    let before = log.0.clone();
    log.0.count(Lsn(2), 100, true);
    assert!(log.0.take_entry(Lsn(1), SlotEntry { time_ms: 9, changes: vec![] }).is_empty());
    assert_eq!(log.0, before);
}

fn table() -> Slots {
    let mut log = Log::default();
    log.entry(10, vec![create("archive", from(SlotStart::Earliest))]);
    log.ops(2);
    let limits = SlotLimits { lag_bytes: None, lag_ops: Some(7), idle_ms: None };
    let settings = SlotSettings { from: SlotStart::After(Lsn(2)), limits };
    log.entry(20, vec![create("search", settings), ack("archive", 3)]);
    let verdict = SlotChange::Invalidate {
        name: "search".to_owned(),
        cause: SlotCause::Horizon,
        confirmed: Lsn(2),
        alive_ms: 20,
    };
    log.entry(30, vec![verdict]);
    log.0
}

#[test]
fn the_row_is_frozen_and_read_back() {
    let row = table().encode();
    let hex = row.chunks(16).fold(String::new(), |out, row| {
        let row = row.iter().fold(String::new(), |row, byte| row + &format!("{byte:02x}"));
        out + &row + "\n"
    });
    insta::assert_snapshot!("row", hex);
    assert_eq!(Slots::decode(Lsn(5), Some(row.clone())), Some(table()));
    for len in 0..row.len() {
        assert_eq!(Slots::decode(Lsn(5), Some(row.slice(..len))), None, "{len} bytes of it");
    }
    let blank = Slots::decode(Lsn(5), None).expect("a state without the row");
    assert_eq!((blank.lsn(), blank.len()), (Lsn(5), 0));
}

#[test]
fn an_idle_group_ticks_seldom() {
    let config = Config { slot_tick_us: 2_000_000, slot_idle_ms: 640_000, ..Config::default() };
    let mut log = Log::default();
    log.entry(1000, vec![create("s", from(SlotStart::Latest))]);
    assert_eq!(log.0.ticks_at(&config), 11_000, "a 64th of what it may be silent");
    log.ops(1);
    assert_eq!(log.0.ticks_at(&config), 3000, "what was applied is dated");
    log.entry(3000, vec![]);
    assert_eq!(log.0.ticks_at(&config), 13_000);
}
