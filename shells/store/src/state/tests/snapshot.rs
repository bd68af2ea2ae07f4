//! Snapshots: from one node's state to another's.

use highwater_core::Incarnation;

use super::*;
use crate::state::{Sealed, SnapshotError};

const MAKER: Incarnation = Incarnation(9);

/// A state of a few hundred records and control rows, and what is in it.
fn donor(disk: &MemDisk) -> (States, Records) {
    let states = states(disk);
    let mut lsn = 0;
    for n in 0..300u64 {
        lsn += 1;
        let key = format!("key {:03}", (n * 7919) % 257);
        let value = vec![n as u8; (n % 50) as usize * 40];
        let write = if n % 11 == 10 { delete(&key) } else { put(&key, &value) };
        states.apply(GROUP, &[op_entry(lsn, vec![write])]).unwrap();
    }
    let control =
        vec![(Bytes::from("slots"), Bytes::from("a row")), (Bytes::from("z"), Bytes::new())];
    states.freeze(GROUP, checkpoint(lsn, control)).unwrap();
    states.flush(GROUP).unwrap();
    let all = dump(&states, GROUP);
    (states, all)
}

fn states(disk: &MemDisk) -> States {
    States::new(Box::new(disk.clone()), StateOptions::default()).unwrap()
}

fn receive(states: &States, sealed: &Sealed, upto: u32) -> crate::state::Incoming {
    let mut incoming = match states.resume(GROUP).unwrap().filter(|i| i.id() == sealed.id()) {
        Some(incoming) => incoming,
        None => states.receive(GROUP, sealed.id(), &sealed.block(0).unwrap()).unwrap(),
    };
    while incoming.next() < upto {
        incoming.take(&sealed.block(incoming.next()).unwrap()).unwrap();
    }
    incoming
}

#[test]
fn a_snapshot_brings_everything() {
    let (from, to) = (MemDisk::default(), MemDisk::default());
    let (donor, all) = donor(&from);
    let sealed = donor.seal(GROUP, Lsn(300), MAKER).unwrap();
    assert_eq!(sealed.id().at.lsn, Lsn(300));
    assert!(sealed.blocks() >= 2);
    let states = states(&to);
    // What it had before is replaced.
    states.apply(GROUP, &[op_entry(1, vec![put("old", b"value")])]).unwrap();
    let incoming = receive(&states, &sealed, sealed.blocks());
    let at = states.prepare(incoming).unwrap();
    assert_eq!(at, sealed.id().at);
    assert_eq!(dump(&states, GROUP).len(), 1, "until it is installed");
    states.install(GROUP).unwrap();
    assert_eq!(dump(&states, GROUP), all);
    let prefixes = [Bytes::from("slots"), Bytes::from("z")];
    let (at, rows) = states.control(GROUP, &prefixes).unwrap();
    assert_eq!((at.lsn, rows.len()), (Lsn(300), 2));
    // It goes on from there, and a start finds it.
    states.apply(GROUP, &[op_entry(301, vec![put("new", b"value")])]).unwrap();
    drop(states);
    let again = self::states(&to);
    assert_eq!(dump(&again, GROUP), all);
    assert_eq!(again.applied(GROUP).unwrap(), Lsn(300));
}

#[test]
fn a_snapshot_is_made_once_and_anew_when_more_is_wanted() {
    let disk = MemDisk::default();
    let (donor, _) = donor(&disk);
    let first = donor.seal(GROUP, Lsn(10), MAKER).unwrap().id();
    donor.apply(GROUP, &[op_entry(301, vec![put("new", b"value")])]).unwrap();
    flush_at(&donor, GROUP, 301);
    assert_eq!(donor.seal(GROUP, Lsn(300), MAKER).unwrap().id(), first);
    assert_eq!(donor.seal(GROUP, Lsn(301), MAKER).unwrap().id().at.lsn, Lsn(301));
    let more = donor.seal(GROUP, Lsn(302), MAKER);
    assert!(matches!(more, Err(SnapshotError::Behind { durable: Lsn(301), .. })), "{more:?}");
    donor.unseal(GROUP).unwrap();
    assert_eq!(donor.seal(GROUP, Lsn(1), MAKER).unwrap().id().at.lsn, Lsn(301));
}

#[test]
fn a_break_costs_what_was_not_there_yet() {
    let (from, to) = (MemDisk::default(), MemDisk::default());
    let (donor, all) = donor(&from);
    let sealed = donor.seal(GROUP, Lsn(1), MAKER).unwrap();
    let states = states(&to);
    drop(receive(&states, &sealed, sealed.blocks() - 1));
    let resumed = self::states(&to).resume(GROUP).unwrap().unwrap();
    assert_eq!((resumed.id(), resumed.next()), (sealed.id(), sealed.blocks() - 1));
    drop(resumed);
    let states = self::states(&to);
    let incoming = receive(&states, &sealed, sealed.blocks());
    states.prepare(incoming).unwrap();
    states.install(GROUP).unwrap();
    assert_eq!(dump(&states, GROUP), all);
    assert!(states.resume(GROUP).unwrap().is_none());
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let from = MemDisk::default();
    let (donor, all) = donor(&from);
    let sealed = donor.seal(GROUP, Lsn(1), MAKER).unwrap();
    for number in 0..sealed.blocks() {
        let whole = sealed.block(number).unwrap();
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let to = MemDisk::default();
            let states = states(&to);
            let mut block = whole.to_vec();
            block[at] ^= 4;
            let mut incoming = if number == 0 {
                match states.receive(GROUP, sealed.id(), &block) {
                    Ok(incoming) => incoming,
                    Err(_) => continue,
                }
            } else {
                receive(&states, &sealed, number)
            };
            while incoming.next() < sealed.blocks() {
                match incoming.next() {
                    next if next == number => incoming.take(&block).unwrap(),
                    next => incoming.take(&sealed.block(next).unwrap()).unwrap(),
                }
            }
            let made = states.prepare(incoming);
            assert!(
                matches!(made, Err(SnapshotError::Damaged { .. })),
                "{number} at {at}: {made:?}"
            );
            assert!(states.resume(GROUP).unwrap().is_none(), "it is received anew");
            let incoming = receive(&states, &sealed, sealed.blocks());
            states.prepare(incoming).unwrap();
            states.install(GROUP).unwrap();
            assert_eq!(dump(&states, GROUP), all);
        }
    }
}
