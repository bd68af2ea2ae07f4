//! Power cuts and failed syncs at every call to the disk: after a restart each file holds exactly
//! one of the prefixes that were flushed, at least the last one that was confirmed, with the
//! control writes of exactly that one (failures 1, 9, 53, 54).

use super::*;
use crate::state::StateError;

/// One group under power cuts.
struct Subject {
    group: GroupId,
    model: Model,
    applied: u64,
    frozen: Option<u64>,
    /// Confirmed by a flush.
    durable: u64,
}

/// What happened, so that a test that tests nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    crashes: u64,
    /// A flush was under way, and its prefix is not there.
    lost_unconfirmed: u64,
    lost_bytes: u64,
}

fn control_key(lsn: u64) -> Bytes {
    Bytes::from(format!("row/{:03}", lsn % 40))
}

fn control_of(lsn: u64) -> Vec<(Bytes, Bytes)> {
    let value = Bytes::from(format!("as of {lsn}"));
    vec![(control_key(lsn), value.clone()), (Bytes::from_static(b"latest"), value)]
}

impl Subject {
    fn new(group: GroupId, seed: u64) -> Subject {
        let model = Model::new(seed * 10 + group.0);
        Subject { group, model, applied: 0, frozen: None, durable: 0 }
    }

    fn step(&mut self, states: &States) -> Result<(), StateError> {
        match self.model.rng.below(10) {
            0..=5 => {
                let count = 1 + self.model.rng.below(20);
                if self.applied == self.model.last() {
                    self.model.append(count);
                }
                let (from, to) = (self.applied + 1, (self.applied + count).min(self.model.last()));
                let outcomes = states.apply(self.group, self.model.entries(from, to))?;
                assert_eq!(outcomes, self.model.outcomes(from, to, self.applied));
                self.applied = to;
            }
            6..=7 if self.frozen.is_none() => {
                states.freeze(self.group, checkpoint(self.applied, Vec::new()))?;
                self.frozen = Some(self.applied);
            }
            _ => {
                states.flush(self.group)?;
                self.durable = self.frozen.take().unwrap_or(self.durable);
            }
        }
        Ok(())
    }

    /// After a restart.
    fn check(&mut self, states: &States, seen: &mut Seen) {
        let applied = states.applied(self.group).unwrap().0;
        if Some(applied) != self.frozen {
            assert_eq!(applied, self.durable, "neither confirmed nor under way");
            seen.lost_unconfirmed += u64::from(self.frozen.is_some());
        }
        assert_eq!(dump(states, self.group), self.model.prefixes[applied as usize]);
        (self.applied, self.durable, self.frozen) = (applied, applied, None);
    }
}

/// The system group: control writes only, its LSN moved by freezes.
#[derive(Default)]
struct System {
    rows: BTreeMap<Bytes, Bytes>,
    durable: u64,
    frozen: Option<u64>,
}

impl System {
    fn step(&mut self, states: &States) -> Result<(), StateError> {
        let lsn = self.durable + 3;
        self.frozen = Some(lsn);
        states.freeze(GroupId::SYSTEM, checkpoint(lsn, control_of(lsn)))?;
        states.flush(GroupId::SYSTEM)?;
        self.settle(lsn);
        Ok(())
    }

    fn settle(&mut self, lsn: u64) {
        if Some(lsn) == self.frozen {
            self.rows.extend(control_of(lsn));
            self.durable = lsn;
        }
        self.frozen = None;
    }

    fn check(&mut self, states: &States) {
        let (at, rows) = states.system_control().unwrap();
        let lsn = at.lsn;
        assert_eq!(states.applied(GroupId::SYSTEM).unwrap(), lsn);
        assert!(lsn.0 == self.durable || Some(lsn.0) == self.frozen);
        self.settle(lsn.0);
        assert_eq!(rows, self.rows.clone().into_iter().collect::<Vec<_>>());
    }
}

/// Runs until the power is cut, restarts, checks, and so on.
fn rounds(seed: u64, rounds: u64, calls_max: u64, seen: &mut Seen) {
    let disk = MemDisk::default();
    let mut rng = Rng(seed);
    let mut subjects = [Subject::new(GroupId(3), seed), Subject::new(GroupId(4), seed)];
    let mut system = System::default();
    for _ in 0..rounds {
        let now = states(&disk, 1 + rng.below(3) as usize);
        disk.world().calls_left = Some(rng.below(calls_max));
        while !disk.is_cut() {
            let result = match rng.below(7) {
                0 => system.step(&now),
                n => subjects[n as usize % 2].step(&now),
            };
            assert!(result.is_ok() || disk.is_cut(), "{result:?}");
        }
        // What destructors still try must not reach the disk.
        drop(now);
        disk.crash(&mut rng);
        seen.crashes += 1;

        let now = states(&disk, 8);
        subjects.iter_mut().for_each(|subject| subject.check(&now, seen));
        system.check(&now);
        assert!(disk.names().iter().all(|name| !name.ends_with(".tmp")), "{:?}", disk.names());
    }
    seen.lost_bytes += disk.world().lost_bytes;
}

#[test]
fn a_power_cut_leaves_exactly_a_flushed_prefix() {
    let mut seen = Seen::default();
    for seed in 0..40 {
        rounds(seed, 12, 400, &mut seen);
    }
    assert!(seen.lost_unconfirmed > 100, "{seen:?}");
    assert!(seen.lost_bytes > 1_000_000, "{seen:?}");
}

/// A short story, cut at every single call: first flush, overwrite, delete, second flush, close.
#[test]
fn a_power_cut_at_any_call_is_survived() {
    let story = |states: &States| -> Result<u64, (u64, StateError)> {
        let at = |lsn| move |error| (lsn, error);
        let run =
            [op_entry(1, vec![put("a", b"1"), put("b", b"1")]), op_entry(2, vec![put("c", b"2")])];
        states.apply(GROUP, &run).map_err(at(0))?;
        states.freeze(GROUP, checkpoint(2, Vec::new())).map_err(at(0))?;
        states.flush(GROUP).map_err(at(0))?;
        let run = [op_entry(3, vec![put("a", b"3"), delete("b")])];
        states.apply(GROUP, &run).map_err(at(2))?;
        states.freeze(GROUP, checkpoint(3, Vec::new())).map_err(at(2))?;
        states.flush(GROUP).map_err(at(2))?;
        Ok(3)
    };
    let record = |lsn, value: &'static [u8]| StoredRecord {
        version: Lsn(lsn),
        content_type: Bytes::new(),
        value: Bytes::from_static(value),
    };
    let expected = |lsn: u64| match lsn {
        0 => Records::new(),
        2 => Records::from([
            ("a".into(), record(1, b"1")),
            ("b".into(), record(1, b"1")),
            ("c".into(), record(2, b"2")),
        ]),
        3 => Records::from([("a".into(), record(3, b"3")), ("c".into(), record(2, b"2"))]),
        other => panic!("no flush at {other}"),
    };
    let calls = {
        let disk = MemDisk::default();
        let states = states(&disk, 4);
        story(&states).unwrap();
        drop(states);
        disk.world().calls
    };
    assert!(calls > 50, "the story makes {calls} calls only");
    let mut survived_unconfirmed = 0;
    for calls_left in 0..calls {
        for seed in 0..6 {
            let disk = MemDisk::default();
            disk.world().calls_left = Some(calls_left);
            let confirmed = match try_states(&disk, 4) {
                Ok(before) => story(&before).unwrap_or_else(|(confirmed, _)| confirmed),
                Err(_) => 0,
            };
            disk.crash(&mut Rng(seed));
            let after = states(&disk, 4);
            let applied = after.applied(GROUP).unwrap().0;
            assert!(applied >= confirmed, "cut after {calls_left}: {applied} < {confirmed}");
            assert_eq!(dump(&after, GROUP), expected(applied), "cut after {calls_left}");
            survived_unconfirmed += u64::from(applied > confirmed);
        }
    }
    assert!(survived_unconfirmed > 2, "{survived_unconfirmed}");
}

/// What a process did not live to make durable, the next one does before it relies on it.
#[test]
fn a_power_cut_after_a_process_ended_at_any_call_is_survived() {
    let ops = [op_entry(1, vec![put("a", b"1")]), op_entry(2, vec![put("b", b"2")])];
    let flush = |states: &States, upto: usize| -> Result<(), StateError> {
        let applied = states.applied(GROUP)?.0 as usize;
        states.apply(GROUP, &ops[applied.min(upto)..upto])?;
        states.freeze(GROUP, checkpoint(upto as u64, Vec::new()))?;
        states.flush(GROUP).map(drop)
    };
    let calls = {
        let disk = MemDisk::default();
        flush(&states(&disk, 4), 1).unwrap();
        disk.world().calls
    };
    for calls_left in 0..calls {
        for seed in 0..6 {
            let disk = MemDisk::default();
            disk.world().calls_left = Some(calls_left);
            let _ = try_states(&disk, 4).map(|states| flush(&states, 1));
            disk.revive();
            flush(&states(&disk, 4), 2).unwrap();
            disk.crash(&mut Rng(seed));
            let applied = states(&disk, 4).applied(GROUP).unwrap();
            assert_eq!(applied, Lsn(2), "the first process ended after {calls_left} calls");
        }
    }
}

/// Failures 22: after a failed fsync nobody knows what is on disk, and asking again does not help.
#[test]
fn a_failed_sync_takes_the_group_out_of_service_until_the_restart() {
    for failing in 0..6 {
        let disk = MemDisk::default();
        let now = states(&disk, 4);
        now.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
        if failing >= 3 {
            flush_at(&now, GROUP, 1);
            now.apply(GROUP, &[op_entry(2, vec![put("a", b"2")])]).unwrap();
        }
        let (lsn, durable) = if failing >= 3 { (2, 1) } else { (1, 0) };
        now.freeze(GROUP, checkpoint(lsn, Vec::new())).unwrap();
        disk.world().syncs_left = Some(failing % 3);
        let syncs_needed = now.flush(GROUP);
        if syncs_needed.is_ok() {
            // The second flush needs fewer syncs than the one that makes the file.
            assert_eq!(failing, 5);
            continue;
        }
        disk.world().syncs_left = None;
        let out = |result: Option<StateError>| {
            assert!(matches!(result, Some(StateError::OutOfService { .. })), "{result:?}");
        };
        out(now.flush(GROUP).err());
        out(now.get(GROUP, b"a").err());
        out(now.list(GROUP, b"", None, 1, true).err());
        out(now.applied(GROUP).err());
        out(now.freeze(GROUP, checkpoint(lsn, Vec::new())).err());
        out(now.apply(GROUP, &[op_entry(lsn + 1, vec![put("a", b"3")])]).err());
        // Another group is not concerned.
        now.apply(GroupId(8), &[op_entry(1, vec![put("x", b"1")])]).unwrap();
        flush_at(&now, GroupId(8), 1);

        drop(now);
        disk.cut();
        disk.crash(&mut Rng(failing));
        let now = states(&disk, 4);
        assert_eq!(now.applied(GROUP).unwrap(), Lsn(durable));
        assert_eq!(dump(&now, GROUP).len() as u64, durable);
        assert_eq!(now.applied(GroupId(8)).unwrap(), Lsn(1));
    }
}

/// redb swallows an error on closing; the group must not be opened again as if nothing happened.
#[test]
fn a_failed_sync_while_closing_is_not_swallowed() {
    let disk = MemDisk::default();
    let states = states(&disk, 1);
    states.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    flush_at(&states, GROUP, 1);
    states.apply(GroupId(8), &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    states.freeze(GroupId(8), checkpoint(1, Vec::new())).unwrap();
    disk.world().syncs_left = Some(0);
    // Group 8's file takes the place of group 7's.
    let flushed = states.flush(GroupId(8));
    assert!(flushed.is_err(), "every sync fails");
    let error = states.get(GROUP, b"a").unwrap_err();
    assert!(matches!(error, StateError::OutOfService { .. }), "{error}");
}
