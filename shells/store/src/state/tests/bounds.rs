//! Bounds: open files, sizes of pages; and the contracts of single calls.

use super::*;
use crate::state::StateError;

#[test]
fn conditions_of_an_op_are_all_judged_before_any_write() {
    let states = states(&MemDisk::default(), 4);
    let mut second = put("b", b"");
    second.condition.matches = Some(Versions::Any);
    // "b" is written by the op itself only: it must not count.
    let run = [op_entry(1, vec![put("b", b"1")]), op_entry(2, vec![delete("b")])];
    states.apply(GROUP, &run).unwrap();
    let outcomes = states.apply(GROUP, &[op_entry(3, vec![put("a", b""), second])]).unwrap();
    let answer = Answer::Refused { index: 1, version: Lsn(0) };
    assert_eq!(outcomes, [Outcome { refused: true, answer: answer.encode() }]);
    assert_eq!(states.get(GROUP, b"a").unwrap(), (Lsn(3), None), "nothing of it took effect");
}

#[test]
fn only_ops_have_outcomes_and_applied_ones_have_default_ones() {
    let states = states(&MemDisk::default(), 4);
    let run = [
        entry(1, Kind::TermStart, Bytes::new()),
        op_entry(2, vec![put("a", b"1")]),
        entry(3, Kind::CreateDatabase, Bytes::from_static(b"not an op")),
        op_entry(4, vec![delete("a")]),
    ];
    let done = |existed| Outcome { refused: false, answer: Answer::Done { existed }.encode() };
    assert_eq!(states.apply(GROUP, &run[..3]).unwrap(), [done(false)]);
    assert_eq!(states.apply(GROUP, &run).unwrap(), [Outcome::default(), done(true)]);
    assert_eq!(states.apply(GROUP, &[]).unwrap(), []);
    assert_eq!(states.applied(GROUP).unwrap(), Lsn(4));
}

#[test]
fn a_gap_is_refused_whole() {
    let states = states(&MemDisk::default(), 4);
    states.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    let gap = |result: Result<_, StateError>| match result {
        Err(StateError::Gap { applied, first, .. }) => (applied.0, first.0),
        other => panic!("{other:?}"),
    };
    let run = [op_entry(3, vec![put("a", b"3")])];
    assert_eq!(gap(states.apply(GROUP, &run)), (1, 3));
    let run = [op_entry(2, vec![put("a", b"2")]), op_entry(4, vec![put("a", b"4")])];
    assert_eq!(gap(states.apply(GROUP, &run)), (2, 4));
    assert_eq!(states.applied(GROUP).unwrap(), Lsn(1));
    assert_eq!(states.get(GROUP, b"a").unwrap().1.unwrap().version, Lsn(1));
}

#[test]
fn an_op_that_cannot_be_read_is_never_skipped() {
    let states = states(&MemDisk::default(), 4);
    let run = [
        op_entry(1, vec![put("a", b"1")]),
        entry(2, Kind::Op, Bytes::from_static(b"\xff\xff")),
        op_entry(3, vec![put("a", b"3")]),
    ];
    for _ in 0..2 {
        let error = states.apply(GROUP, &run).unwrap_err();
        assert!(matches!(error, StateError::Undecodable { lsn: Lsn(2), .. }), "{error}");
        assert_eq!(states.applied(GROUP).unwrap(), Lsn(1), "the same on every replica");
    }
    assert!(matches!(states.apply(GROUP, &run[2..]), Err(StateError::Gap { .. })));
}

#[test]
fn a_freeze_is_at_what_is_applied_and_one_at_a_time() {
    let states = states(&MemDisk::default(), 4);
    assert_eq!(states.flush(GROUP).unwrap(), Lsn(0));
    states.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    for lsn in [0, 2] {
        let error = states.freeze(GROUP, checkpoint(lsn, Vec::new())).unwrap_err();
        assert!(matches!(error, StateError::NotApplied { applied: Lsn(1), .. }), "{error}");
    }
    states.freeze(GROUP, checkpoint(1, Vec::new())).unwrap();
    let error = states.freeze(GROUP, checkpoint(1, Vec::new())).unwrap_err();
    assert!(matches!(error, StateError::FlushPending { frozen: Lsn(1), .. }), "{error}");
    assert_eq!(states.flush(GROUP).unwrap(), Lsn(1));
    assert_eq!(states.flush(GROUP).unwrap(), Lsn(1), "and again, with nothing to do");
    let back = states.freeze(GroupId::SYSTEM, checkpoint(5, Vec::new()));
    assert!(back.is_ok(), "the core applies the system group itself");
    states.flush(GroupId::SYSTEM).unwrap();
    let error = states.freeze(GroupId::SYSTEM, checkpoint(4, Vec::new())).unwrap_err();
    assert!(matches!(error, StateError::NotApplied { .. }), "{error}");
}

#[test]
fn many_groups_keep_few_files_open() {
    const GROUPS: u64 = 300;
    let disk = MemDisk::default();
    let now = states(&disk, 5);
    for n in 1..=GROUPS {
        let group = GroupId(n);
        assert_eq!(now.applied(group).unwrap(), Lsn(0));
        now.apply(group, &[op_entry(1, vec![put("group", &n.to_le_bytes())])]).unwrap();
    }
    assert_eq!(disk.world().opens, 0, "what was not flushed has no file");
    for n in 1..=GROUPS {
        flush_at(&now, GroupId(n), 1);
    }
    // Groups used again and again stay open while others come and go.
    let opened_by_now = |disk: &MemDisk| disk.world().opens;
    for n in 1..=GROUPS {
        for hot in 1..=3 {
            now.get(GroupId(hot), b"group").unwrap();
        }
        let before = opened_by_now(&disk);
        let (applied, record) = now.get(GroupId(n), b"group").unwrap();
        assert_eq!((applied, record.unwrap().value.as_ref()), (Lsn(1), &n.to_le_bytes()[..]));
        assert_eq!(opened_by_now(&disk) - before, u64::from(n > 3));
    }
    // One more for a moment: the new one is counted before the old one is closed.
    assert!(disk.world().open_peak <= 6, "{}", disk.world().open_peak);
    drop(now);

    let now = states(&disk, 5);
    let opens = opened_by_now(&disk);
    assert_eq!(now.applied(GroupId(GROUPS)).unwrap(), Lsn(1));
    assert_eq!(opened_by_now(&disk) - opens, 1, "a start opens only what is asked for");
}

/// Reads that memory answers need no file.
#[test]
fn a_closed_file_is_not_opened_for_what_memory_knows() {
    let disk = MemDisk::default();
    let now = states(&disk, 1);
    now.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    flush_at(&now, GROUP, 1);
    now.apply(GroupId(8), &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    flush_at(&now, GroupId(8), 1);
    let opens = disk.world().opens;
    let mut blind = put("b", b"2");
    blind.condition = Condition::default();
    now.get(GroupId(8), b"x").unwrap();
    assert_eq!(disk.world().opens, opens);
    // Whether "b" existed is a question to the file; then memory knows it.
    now.apply(GROUP, &[op_entry(2, vec![blind.clone()])]).unwrap();
    assert_eq!(disk.world().opens, opens + 1);
    now.get(GroupId(8), b"x").unwrap();
    assert_eq!(disk.world().opens, opens + 2);
    now.apply(GROUP, &[op_entry(3, vec![blind.clone()])]).unwrap();
    now.get(GROUP, b"b").unwrap();
    assert_eq!(disk.world().opens, opens + 2);
    // What "a" was is part of a sum.
    now.apply(GROUP, &[op_entry(4, vec![blind, put("a", b"3")])]).unwrap();
    now.get(GROUP, b"a").unwrap();
    assert_eq!(disk.world().opens, opens + 3);
}

#[test]
fn a_page_is_bounded_by_bytes() {
    const MIB: usize = 1 << 20;
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let key = |n: u64| format!("k{n:03}");
    let value = |n: u64| vec![n as u8; MIB];
    let mut lsn = 0;
    let mut write = |numbers: &mut dyn Iterator<Item = u64>| {
        for n in numbers {
            lsn += 1;
            states.apply(GROUP, &[op_entry(lsn, vec![put(&key(n), &value(n))])]).unwrap();
        }
        lsn
    };
    // A third in the file, a third frozen, a third active, in turn.
    let in_file = write(&mut (0..90).step_by(3));
    flush_at(&states, GROUP, in_file);
    let frozen = write(&mut (1..90).step_by(3));
    states.freeze(GROUP, checkpoint(frozen, Vec::new())).unwrap();
    write(&mut (2..90).step_by(3));

    let walk = |values: bool| {
        let (mut sizes, mut after) = (Vec::new(), None::<Bytes>);
        let mut next = 0;
        loop {
            let (_, page, more) = states.list(GROUP, b"k", after.as_deref(), 1000, values).unwrap();
            for listed in &page {
                assert_eq!(listed.key, key(next));
                assert_eq!(listed.size, MIB as u64);
                let expected = if values { value(next) } else { Vec::new() };
                assert!(listed.record.value == expected);
                next += 1;
            }
            sizes.push(page.len());
            after = page.last().map(|listed| listed.key.clone());
            if !more {
                assert_eq!(next, 90);
                return sizes;
            }
        }
    };
    assert_eq!(walk(true), [16, 16, 16, 16, 16, 10]);
    assert_eq!(walk(false), [90], "only 30 MiB are read from the file");
}

#[test]
fn a_value_above_the_bound_of_a_page_comes_alone() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let big = vec![7; 17 << 20];
    let run = [
        op_entry(1, vec![put("a", b"1")]),
        op_entry(2, vec![put("b", &big)]),
        op_entry(3, vec![put("c", b"3")]),
    ];
    states.apply(GROUP, &run).unwrap();
    for _ in 0..2 {
        let page = |after: Option<&[u8]>| {
            let (_, page, more) = states.list(GROUP, b"", after, 10, true).unwrap();
            (page.iter().map(|l| l.key.clone()).collect::<Vec<_>>(), more)
        };
        assert_eq!(page(None), (vec![Bytes::from("a")], true));
        assert_eq!(page(Some(b"a")), (vec![Bytes::from("b")], true));
        assert_eq!(page(Some(b"b")), (vec![Bytes::from("c")], false));
        // Once more from the file.
        let _ = states.freeze(GROUP, checkpoint(3, Vec::new()));
        states.flush(GROUP).unwrap();
    }
}
