//! Exports: all records of one LSN, while the state goes on.

use super::*;
use crate::state::{Export, SnapshotError};

/// A few hundred records, some in the file and some in both overlays; all of them at LSN 300.
fn filled(states: &States) -> Records {
    for lsn in 1..=300u64 {
        let key = format!("key {:03}", (lsn * 7919) % 257);
        let value = vec![lsn as u8; (lsn % 50) as usize * 400];
        let write = if lsn % 11 == 10 { delete(&key) } else { put(&key, &value) };
        states.apply(GROUP, &[op_entry(lsn, vec![write])]).unwrap();
        match lsn {
            150 => flush_at(states, GROUP, lsn),
            220 => states.freeze(GROUP, checkpoint(lsn, Vec::new())).unwrap(),
            _ => {}
        }
    }
    dump(states, GROUP)
}

/// What is left of an export.
fn drain(states: &States, export: &mut Export) -> Result<Records, SnapshotError> {
    while export.fill(states)? {}
    let (mut all, mut last) = (Records::new(), Bytes::new());
    while let Some(records) = export.next(states)? {
        for listed in records {
            assert!(listed.key > last && listed.size == listed.record.value.len() as u64);
            last.clone_from(&listed.key);
            all.insert(listed.key, listed.record);
        }
    }
    assert_eq!(export.records(), all.len() as u64);
    Ok(all)
}

/// The root that an audit right behind an LSN finds.
fn root_at(states: &States, lsn: u64) -> highwater_core::Root {
    let slot = states.slot(GROUP);
    let sums = slot.read().unwrap().sums.clone();
    slot.leaves.root(Lsn(lsn), &sums)
}

#[test]
fn an_export_is_of_one_moment_whatever_comes_after() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let all = filled(&states);
    let root = root_at(&states, 300);
    let mut export = states.export(GROUP).unwrap();
    assert_eq!(export.lsn(), Lsn(300));
    assert!(export.root().is_err(), "nothing of it was given yet");
    states.flush(GROUP).unwrap();
    for lsn in 301..=400 {
        let key = format!("key {:03}", lsn % 257);
        states
            .apply(GROUP, &[op_entry(lsn, vec![put(&key, b"later"), delete("key 001")])])
            .unwrap();
        if lsn == 350 {
            flush_at(&states, GROUP, lsn);
        }
    }
    flush_at(&states, GROUP, 400);
    assert_eq!(drain(&states, &mut export).unwrap(), all);
    assert_eq!(export.root().unwrap(), root);
    // What it was copied to had no name, and is gone.
    assert_eq!(disk.names(), [layout_name()]);
}

fn layout_name() -> String {
    format!("{GROUP}.redb")
}

#[test]
fn an_export_of_nothing_is_empty() {
    let states = states(&MemDisk::default(), 4);
    let mut export = states.export(GROUP).unwrap();
    assert_eq!((export.lsn(), drain(&states, &mut export).unwrap().len()), (Lsn(0), 0));
    assert_eq!(export.root().unwrap(), root_at(&states, 0));
}

#[test]
fn many_exports_stand_side_by_side() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let all = filled(&states);
    let mut exports: Vec<Export> = (0..4).map(|_| states.export(GROUP).unwrap()).collect();
    for export in &mut exports {
        assert_eq!(drain(&states, export).unwrap(), all);
    }
    drop(exports);
    assert_eq!(disk.open_files(), 1);
}

#[test]
fn a_flipped_bit_in_the_copy_is_found() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let all = filled(&states);
    let mut found = 0;
    for at in (0..40_000).step_by(977) {
        let mut export = states.export(GROUP).unwrap();
        while export.fill(&states).unwrap() {}
        let tampered =
            disk.tamper_newest(|bytes| bytes.get_mut(at).map(|byte| *byte ^= 16).is_some());
        match drain(&states, &mut export) {
            Err(SnapshotError::Damaged { .. }) => found += 1,
            Err(error) => panic!("{error}"),
            // Past the end of what was written.
            Ok(given) => assert!(given == all && export.root().is_ok() || !tampered),
        }
    }
    assert!(found > 1);
    // The state has nothing to do with it.
    assert_eq!(dump(&states, GROUP), all);
}

#[test]
fn an_export_ends_with_what_it_is_of() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let _ = filled(&states);
    let mut condemned = states.export(GROUP).unwrap();
    while condemned.fill(&states).unwrap() {}
    states.condemn(GROUP, "it is not what the others have");
    assert!(condemned.next(&states).is_err());
    assert!(states.export(GROUP).is_err());
    states.reset(GROUP).unwrap();
    assert!(matches!(condemned.next(&states), Err(SnapshotError::State(_))));
    assert!(states.export(GROUP).is_err(), "it is being rebuilt");
}

#[test]
fn a_full_disk_ends_the_export_and_nothing_else() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let all = filled(&states);
    let mut export = states.export(GROUP).unwrap();
    disk.world().full = true;
    let filled = loop {
        match export.fill(&states) {
            Ok(true) => {}
            other => break other,
        }
    };
    assert!(matches!(filled, Err(SnapshotError::Io { .. })), "{filled:?}");
    disk.world().full = false;
    assert_eq!(dump(&states, GROUP), all);
}
