//! A disk that is full for a while.

use std::{sync::Arc, thread, time::Duration};

use super::*;

/// Puts a record at `lsn`, and has it flushed while the disk is full.
fn flush_without_room(states: &Arc<States>, disk: &MemDisk, lsn: u64) {
    states.apply(GROUP, &[op_entry(lsn, vec![put("a", &lsn.to_le_bytes())])]).unwrap();
    states.freeze(GROUP, checkpoint(lsn, Vec::new())).unwrap();
    disk.world().full = true;
    let flushing = states.clone();
    let flush = thread::spawn(move || flushing.flush(GROUP));
    while !states.lacks_room() {
        thread::sleep(Duration::from_millis(1));
    }
    // Reads and applies go on.
    states.apply(GROUP, &[op_entry(lsn + 1, vec![put("b", b"")])]).unwrap();
    let read = states.get(GROUP, b"a").unwrap().1.unwrap();
    assert_eq!(read.value, lsn.to_le_bytes().as_slice());
    assert!(!flush.is_finished());
    disk.world().full = false;
    assert_eq!(flush.join().unwrap().unwrap(), Lsn(lsn));
    assert!(!states.lacks_room());
}

#[test]
fn a_flush_waits_for_room_and_then_goes_on() {
    let disk = MemDisk::default();
    let now = Arc::new(states(&disk, 4).waiting_for_room());
    // Once while the file is made, once while it stands.
    flush_without_room(&now, &disk, 1);
    flush_without_room(&now, &disk, 3);
    drop(now);
    let again = states(&disk, 4);
    assert_eq!(again.applied(GROUP).unwrap(), Lsn(3));
    assert_eq!(again.get(GROUP, b"a").unwrap().1.unwrap().version, Lsn(3));
}

#[test]
fn a_flush_that_may_not_wait_fails() {
    let disk = MemDisk::default();
    let states = states(&disk, 4);
    states.apply(GROUP, &[op_entry(1, vec![put("a", b"1")])]).unwrap();
    states.freeze(GROUP, checkpoint(1, Vec::new())).unwrap();
    disk.world().full = true;
    assert!(states.flush(GROUP).is_err());
    assert!(!states.lacks_room());
}
