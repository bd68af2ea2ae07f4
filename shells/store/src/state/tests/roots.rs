//! Leaves, sums and roots: that they are what the records make of them, whatever the history; and the
//! scrub, which finds what is not so.

use super::*;
use crate::state::{Scrubbed, StateError, Tamper, tamper};

const FILE: &str = "7.redb";
/// Small enough for a pass to have many steps.
const STEP: usize = 4096;

/// The root of a state, by an audit after what it stands at.
fn root(states: &States, group: GroupId) -> Bytes {
    let next = states.applied(group).unwrap().next();
    let outcomes = states.apply(group, &[entry(next.0, Kind::Audit, Bytes::new())]).unwrap();
    assert!(!outcomes[0].refused && outcomes[0].answer.len() == 16);
    outcomes[0].answer.clone()
}

fn nothing(from: u64, to: u64) -> impl Iterator<Item = Entry> {
    (from..=to).map(|lsn| entry(lsn, Kind::TermStart, Bytes::new()))
}

/// A state that holds what the model leaves, and never held anything else.
fn made_of(model: &Model) -> States {
    let states = states(&MemDisk::default(), 4);
    let mut by_version: BTreeMap<u64, Vec<Write>> = BTreeMap::new();
    for (key, record) in &model.prefixes[model.last() as usize] {
        let (value, content_type) = (record.value.clone(), record.content_type.clone());
        let (key, action) = (key.clone(), Action::Put { value, content_type });
        let write = Write { key, action, condition: Condition::default() };
        by_version.entry(record.version.0).or_default().push(write);
    }
    let mut at = 0;
    for (version, writes) in by_version {
        let run: Vec<_> = nothing(at + 1, version - 1).chain([op_entry(version, writes)]).collect();
        states.apply(GROUP, &run).unwrap();
        at = version;
    }
    states.apply(GROUP, &nothing(at + 1, model.last()).collect::<Vec<_>>()).unwrap();
    states
}

/// Steps of a pass, until it is done; how many that took.
fn scrub(states: &States, bytes: usize) -> Result<u64, StateError> {
    let mut steps = 0;
    while let Some(Scrubbed { done, .. }) = states.scrub(GROUP, bytes)? {
        steps += 1;
        if done {
            break;
        }
    }
    Ok(steps)
}

#[test]
fn the_root_depends_on_the_records_alone() {
    for seed in 0..8 {
        let (disk, mut rng) = (MemDisk::default(), Rng(seed));
        let mut model = Model::new(seed);
        model.append(120);
        let mut now = states(&disk, 4);
        let mut applied = 0;
        while applied < model.last() {
            let to = (applied + 1 + rng.below(9)).min(model.last());
            now.apply(GROUP, model.entries(applied + 1, to)).unwrap();
            applied = to;
            if rng.chance(40) {
                now.freeze(GROUP, checkpoint(applied, Vec::new())).unwrap();
                let more = (applied + 1).min(model.last());
                now.apply(GROUP, model.entries(more, more)).unwrap();
                now.flush(GROUP).unwrap();
                // What was not flushed is applied again.
                if rng.chance(40) {
                    drop(now);
                    now = states(&disk, 4);
                } else {
                    applied = more;
                }
                scrub(&now, STEP).unwrap();
            }
        }
        assert_eq!(root(&now, GROUP), root(&made_of(&model), GROUP), "{seed}");
        let other = states(&MemDisk::default(), 4);
        other.apply(GroupId(8), model.entries(1, model.last())).unwrap();
        assert_ne!(root(&other, GroupId(8)), root(&made_of(&model), GROUP), "another group's");
    }
}

#[test]
fn an_audit_changes_nothing_and_is_skipped_where_it_was_applied() {
    let now = states(&MemDisk::default(), 4);
    let run = [
        op_entry(1, vec![put("a", b"1")]),
        entry(2, Kind::Audit, Bytes::new()),
        op_entry(3, vec![put("a", b"2")]),
        entry(4, Kind::Audit, Bytes::new()),
    ];
    let outcomes = now.apply(GROUP, &run).unwrap();
    assert_eq!(outcomes.len(), 4);
    assert_ne!(outcomes[1].answer, outcomes[3].answer);
    let again = now.apply(GROUP, &run).unwrap();
    assert_eq!(again, vec![Outcome::default(); 4]);
    assert_eq!(now.applied(GROUP).unwrap(), Lsn(4));
}

/// Everything that a pass can meet while it goes on: what it has walked, and what it has not, is put
/// anew, overwritten and deleted.
#[test]
fn a_pass_takes_in_what_is_flushed_meanwhile() {
    for seed in 0..6 {
        let (disk, mut rng) = (MemDisk::default(), Rng(seed));
        let now = states(&disk, 4);
        let (mut lsn, mut passes, mut between) = (0, 0, 0);
        while passes < 5 {
            let step = now.scrub(GROUP, STEP).unwrap();
            passes += u64::from(step.is_some_and(|step| step.done));
            if rng.chance(25) || step.is_none() {
                lsn += 1;
                let mut writes = BTreeMap::new();
                for _ in 0..20 {
                    let key = format!("{:02}", rng.below(60));
                    let gone = rng.chance(30);
                    let write = if gone { delete(&key) } else { put(&key, &[7; 1000]) };
                    writes.insert(key, write);
                }
                let op = op_entry(lsn, writes.into_values().collect());
                now.apply(GROUP, &[op]).unwrap();
                flush_at(&now, GROUP, lsn);
                between += u64::from(step.is_some_and(|step| !step.done));
            }
        }
        assert!(between > 5, "{between} flushes in the middle of passes");
    }
}

fn flushed() -> MemDisk {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    let writes = (0..100).map(|n| put(&format!("key {n:03}"), &[n; 200])).collect();
    states.apply(GROUP, &[op_entry(1, writes)]).unwrap();
    let control = vec![(Bytes::from_static(b"control"), Bytes::from(vec![0xc7; 9000]))];
    states.freeze(GROUP, checkpoint(1, control)).unwrap();
    states.flush(GROUP).unwrap();
    drop(states);
    disk
}

/// Nobody reads the record, and redb has the page in memory.
#[test]
fn a_flipped_bit_on_disk_is_found_beneath_the_cache() {
    for pattern in [[42; 200], [0xc7; 200]] {
        let disk = flushed();
        let now = states(&disk, 4);
        now.list(GROUP, b"", None, 1000, true).unwrap();
        now.control(GROUP, &[Bytes::from_static(b"control")]).unwrap();
        assert!(scrub(&now, STEP).unwrap() > 10);
        disk.tamper(FILE, |bytes| {
            let at = bytes.windows(200).position(|part| part == pattern).unwrap();
            bytes[at + 100] ^= 1;
        });
        let error = scrub(&now, STEP).unwrap_err();
        assert!(error.is_loss(), "{error}");
        assert!(error.to_string().contains("does not match its checksum"), "{error}");
        let error = now.get(GROUP, b"key 000").unwrap_err();
        assert!(matches!(error, StateError::OutOfService { .. }), "{error}");
    }
}

/// What no page of the file refers to may be anything.
#[test]
fn a_block_that_is_not_in_use_is_no_damage() {
    let disk = flushed();
    let now = states(&disk, 4);
    let whole = disk.content(FILE);
    let zeros = whole.chunks(4096).rposition(|block| block.iter().all(|byte| *byte == 0)).unwrap();
    disk.tamper(FILE, |bytes| bytes[zeros * 4096 + 5] = 1);
    for _ in 0..2 {
        assert!(scrub(&now, STEP).unwrap() > 10);
    }
    assert_eq!(dump(&now, GROUP).len(), 100);
}

/// Every block is what its checksum says.
#[test]
fn damage_above_the_checksums_is_never_served_and_found() {
    for random in (0..6).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let disk = flushed();
        assert!(tamper(&disk, GROUP, Tamper::Record, random));
        let now = states(&disk, 4);
        let (mut told, mut served) = (0, 0);
        for n in 0..100u8 {
            let fresh = states(&disk, 4);
            match fresh.get(GROUP, format!("key {n:03}").as_bytes()) {
                Ok((_, record)) => {
                    assert_eq!(record.unwrap().value, vec![n; 200]);
                    served += 1;
                }
                Err(error) => {
                    assert!(error.is_loss(), "{error}");
                    told += 1;
                }
            }
            drop(fresh);
        }
        assert_eq!((told, served), (1, 99));
        assert!(scrub(&now, STEP).unwrap_err().is_loss());
    }
    let disk = flushed();
    let before = root(&states(&disk, 4), GROUP);
    assert!(tamper(&disk, GROUP, Tamper::Sums, 77));
    let now = states(&disk, 4);
    assert_eq!(dump(&now, GROUP).len(), 100, "no record is concerned");
    assert_ne!(root(&now, GROUP), before, "an audit finds it");
    let error = scrub(&now, STEP).unwrap_err();
    assert!(error.is_loss() && error.to_string().contains("add up"), "{error}");
    assert!(!tamper(&disk, GroupId(99), Tamper::Record, 1));
}

#[test]
fn what_is_condemned_or_rebuilt_is_not_scrubbed() {
    let disk = flushed();
    let now = states(&disk, 4);
    now.condemn(GROUP, "it differs");
    assert!(now.get(GROUP, b"key 001").unwrap_err().is_loss());
    assert!(now.scrub(GROUP, STEP).unwrap_err().is_loss());
    now.reset(GROUP).unwrap();
    now.reopen(GROUP, Lsn(2));
    now.apply(GROUP, &[op_entry(1, vec![put("x", b"1")])]).unwrap();
    flush_at(&now, GROUP, 1);
    assert_eq!(now.scrub(GROUP, STEP).unwrap(), None);
    now.apply(GROUP, &[op_entry(2, vec![put("x", b"2")])]).unwrap();
    assert!(scrub(&now, STEP).unwrap() > 1);
}
