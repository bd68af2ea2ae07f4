//! Files that are not what was written: told, never served, never taken for absent (failures 52,
//! 56).

use super::*;
use crate::state::StateError;

const FILE: &str = "7.redb";
/// Of each value.
const SIZE: usize = 200;

/// A disk with one flushed group, of a hundred records.
fn flushed() -> MemDisk {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let writes = (0..100).map(|n| put(&format!("key {n:03}"), &[n; SIZE])).collect();
    states.apply(GROUP, &[op_entry(1, writes)]).unwrap();
    flush_at(&states, GROUP, 1);
    drop(states);
    disk
}

fn refusal(disk: &MemDisk) -> String {
    let states = states(disk, 4);
    let error = states.applied(GROUP).unwrap_err();
    assert!(matches!(error, StateError::Damaged { .. }), "{error:?}");
    let again = states.get(GROUP, b"key 001").unwrap_err();
    assert!(again.to_string().contains(FILE), "{again}");
    error.to_string()
}

#[test]
fn a_damaged_file_is_never_absent() {
    let disk = flushed();
    disk.tamper(FILE, Vec::clear);
    insta::assert_snapshot!("empty_file", refusal(&disk));
    assert_eq!(disk.content(FILE), b"", "it is not made anew");

    for len in [1, 4096, 5000, 8192, 100_000] {
        let disk = flushed();
        disk.tamper(FILE, |bytes| bytes.truncate(len));
        refusal(&disk);
    }

    let disk = flushed();
    disk.tamper(FILE, |bytes| bytes[4096..4105].fill(0));
    refusal(&disk);

    let disk = flushed();
    disk.tamper(FILE, |bytes| bytes.fill(0x5a));
    refusal(&disk);
}

#[test]
fn a_file_of_another_group_is_refused() {
    let disk = flushed();
    let now = states(&disk, 4);
    now.apply(GroupId(8), &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    flush_at(&now, GroupId(8), 1);
    drop(now);
    let other = disk.content("8.redb");
    disk.tamper(FILE, |bytes| *bytes = other);
    insta::assert_snapshot!("file_of_another_group", refusal(&disk));
}

/// A flipped bit in a value, which redb would serve.
#[test]
fn a_damaged_record_is_not_served() {
    let disk = flushed();
    disk.tamper(FILE, |bytes| {
        let at = bytes.windows(SIZE).position(|part| part == [42; SIZE]).unwrap();
        bytes[at + 100] ^= 1;
    });
    let now = states(&disk, 4);
    let error = now.get(GROUP, b"key 042").unwrap_err();
    assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("does not match its checksum"), "{error}");
    let error = now.get(GROUP, b"key 000").unwrap_err();
    assert!(matches!(error, StateError::OutOfService { .. }), "{error}");

    let now = states(&disk, 4);
    assert!(now.list(GROUP, b"", None, 1000, false).is_err());
    let now = states(&disk, 4);
    let run = [op_entry(2, vec![put("key 042", b"2")])];
    assert!(now.apply(GROUP, &run).is_err(), "nor judged by");
}

#[test]
fn a_file_that_vanished_is_missed() {
    let disk = flushed();
    disk.remove(FILE);
    let now = states(&disk, 1);
    // Nothing knows of it but the oplog, which goes on where the file stood.
    let run = [op_entry(2, vec![put("a", b"2")])];
    insta::assert_snapshot!("gap", now.apply(GROUP, &run).unwrap_err());

    let disk = flushed();
    let now = states(&disk, 1);
    now.apply(GroupId(8), &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    assert_eq!(now.applied(GROUP).unwrap(), Lsn(1));
    // Group 7's file is closed for group 8's, and taken away.
    flush_at(&now, GroupId(8), 1);
    disk.remove(FILE);
    let error = now.get(GROUP, b"key 001").unwrap_err();
    assert!(matches!(error, StateError::Damaged { .. }), "{error}");
}

/// Whatever bit is flipped, the engine answers with an error or with what was written, and the
/// process goes on: redb alone would panic, abort, or serve the wrong thing.
#[test]
fn a_flipped_bit_is_told_or_harmless() {
    let disk = flushed();
    let whole = disk.content(FILE);
    // Most of the file is zeros that nothing reads.
    let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut rng = Rng(1);
    let (mut told, mut harmless) = (0, 0);
    for round in 0..200 {
        let at =
            if round % 4 == 0 { rng.below(whole.len() as u64) as usize } else { *rng.pick(&used) };
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << rng.below(8);
        disk.tamper(FILE, |content| *content = bytes);
        let now = states(&disk, 4);
        let exercise = || {
            let (_, before, _) = now.list(GROUP, b"", None, 1000, true)?;
            let run =
                [op_entry(2, vec![put("key 001", b"2"), put("new", b"2"), delete("key 099")])];
            now.apply(GROUP, &run)?;
            now.freeze(GROUP, checkpoint(2, Vec::new()))?;
            now.flush(GROUP)?;
            let (_, after, _) = now.list(GROUP, b"", None, 1000, true)?;
            Ok::<_, StateError>((before, after))
        };
        match exercise() {
            Err(StateError::Damaged { .. }) => told += 1,
            Err(other) => panic!("byte {at}: {other:?}"),
            Ok((before, after)) => {
                harmless += 1;
                assert_eq!(before.len(), 100, "byte {at}");
                assert!((0..100).all(|n| before[usize::from(n)].record.value == [n; SIZE][..]));
                assert_eq!((after.len(), &after[1].record.value[..]), (100, &b"2"[..]));
            }
        }
    }
    assert!(told > 100 && harmless > 10, "{told} told, {harmless} harmless");
}

/// What is damaged is dropped, applied again, and readable only once it stands where it stood.
#[test]
fn a_reset_state_is_read_once_it_is_whole() {
    let disk = flushed();
    disk.tamper(FILE, |bytes| bytes.fill(0x5a));
    let now = states(&disk, 4);
    assert!(now.get(GROUP, b"key 001").unwrap_err().is_loss());
    // The first one to see it may not be the one that mends it.
    assert!(now.apply(GROUP, &[op_entry(2, vec![put("x", b"2")])]).unwrap_err().is_loss());
    now.reset(GROUP).unwrap();
    now.reopen(GROUP, Lsn(2));
    now.apply(GROUP, &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    let early = now.get(GROUP, b"x").unwrap_err();
    assert!(matches!(early, StateError::Rebuilding { applied: Lsn(1), .. }), "{early:?}");
    now.apply(GROUP, &[op_entry(2, vec![put("x", b"2")])]).unwrap();
    assert_eq!(now.get(GROUP, b"x").unwrap().1.unwrap().version, Lsn(2));
    flush_at(&now, GROUP, 2);
    drop(now);
    let later = states(&disk, 4);
    assert_eq!(later.applied(GROUP).unwrap(), Lsn(2));
    // A file that is gone, or older than the oplog says, is never served.
    let without = states(&MemDisk::default(), 4);
    without.expect(GROUP, Lsn(2));
    assert!(without.get(GROUP, b"x").unwrap_err().is_loss());
    // It leaves a gap behind it.
    later.reset(GROUP).unwrap();
    assert!(later.apply(GROUP, &[op_entry(3, vec![put("x", b"3")])]).unwrap_err().is_loss());
}
