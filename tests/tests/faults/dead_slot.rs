//! A slot whose consumer is gone fills no disk: it is warned of, it is invalidated, and what it held
//! back is given up.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, thread};

use highwater_tests::{PATIENCE, cluster::Cluster, eventually, http::Request};
use serde_json::json;

use crate::record;

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 64 * MIB;
const RETENTION: u64 = 16 * MIB;
/// How far behind the slot may be. What it holds then is more than everything else that a node takes.
const LIMIT: u64 = 320 * MIB;
const WRITERS: u64 = 4;
/// Of each value. The few that there are keep the state small.
const VALUE: u64 = 512 << 10;
const KEYS: u64 = 8;
/// What a node takes in any case, as few as the segments may be: two that are used, two whose removal
/// two headers must tell of first, and two blank ones.
const FIXED: u64 = 6 * SEGMENT;

/// What the files of a directory take of the disk, in bytes. They may go meanwhile.
fn usage(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let used = match entry.file_type() {
            Ok(kind) if kind.is_dir() => usage(&entry.path()),
            _ => entry.metadata().map(|metadata| metadata.blocks() * 512),
        };
        match used {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            used => total += used?,
        }
    }
    Ok(total)
}

/// Twice as many bytes as a value has, which do not compress. Each value is another part of them.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..VALUE / 4).flat_map(|_| next()).collect()
}

/// Writes so many bytes, from a value on, over several connections; up to which value.
fn write(cluster: &Cluster, from: u64, bytes: u64) -> u64 {
    let upto = from + bytes.div_ceil(VALUE);
    let noise = &noise();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut client = cluster.node(1).client();
                for n in (from..upto).filter(|n| n % WRITERS == writer) {
                    let target = record("db", &format!("k{}?timeout_ms=20000", n % KEYS));
                    let value = &noise[(n * 4096 % VALUE) as usize..][..VALUE as usize];
                    let put = client.send(&Request::put(&target, value)).expect("an answer");
                    assert!(put.status < 300, "{}", put.text());
                }
            });
        }
    });
    upto
}

#[test]
fn a_dead_slot_is_warned_of_and_gives_the_disk_back() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    let retention = format!("[retention]\nbytes = {RETENTION}");
    node.edit_config("[retention]\nbytes = 1073741824", &retention);
    node.edit_config("[oplog]\nsegments = 16", "[oplog]\nsegments = 2");
    cluster.start_all();
    cluster.create("db");
    let target = "/v1/databases/db/slots/dead";
    let create = Request::new("PUT", target).header("content-type", "application/json");
    let settings = json!({"from": "earliest", "max_lag_bytes": LIMIT});
    let _ = node.send(&create.body(settings.to_string())).expect(201);
    let slot = || node.get(target).expect(200).json();
    let counted = |state: &str| {
        node.metric(&format!("highwater_slots{{database=\"db\",state=\"{state}\"}}")).unwrap()
    };
    let taken = || usage(&node.data()).expect("the data");
    let warned = "a slot has used three quarters of a limit";
    let over = "a slot is invalidated";

    // Half of the limit says nothing yet.
    let written = write(&cluster, 0, LIMIT / 2);
    assert_eq!((slot()["state"].as_str(), counted("active")), (Some("active"), 1.0));
    // The warnings; and what the slot needs is there, however much that is.
    let written = write(&cluster, written, LIMIT / 20 * 9);
    let seen = eventually("the slot is at risk in sight", PATIENCE, || {
        let seen = slot();
        (seen["state"] == "at_risk" && counted("at_risk") == 1.0).then_some(seen)
    });
    assert_eq!(seen["cause"], "horizon", "{seen}");
    assert!(seen["lag_bytes"].as_u64().is_some_and(|lag| lag < LIMIT), "{seen}");
    eventually("the log warns", PATIENCE, || node.log().contains(warned).then_some(()));
    assert!(!node.log().contains(over), "{}", node.log());
    assert_eq!(node.get("/v1/databases/db").json()["watermarks"]["first"], 1);
    let held = taken();
    assert!(held > FIXED + 2 * RETENTION, "{held} bytes show nothing");

    // Beyond the limit it is invalidated, and says so.
    let _ = write(&cluster, written, LIMIT / 10);
    let seen = eventually("the slot is invalidated", PATIENCE, || {
        let seen = slot();
        (seen["state"] == "invalidated").then_some(seen)
    });
    assert_eq!(seen["cause"], "horizon", "{seen}");
    assert_eq!((counted("at_risk"), counted("invalidated")), (0.0, 1.0));
    let log = node.log();
    assert!(log.find(warned).unwrap() < log.find(over).expect("it is logged"), "{log}");
    let first = eventually("the log is pruned", PATIENCE, || {
        let view = node.get("/v1/databases/db").json();
        view["watermarks"]["first"].as_u64().filter(|first| *first > 1)
    });
    let changes = node.get("/v1/databases/db/changes?slot=dead&follow=true");
    let ack = node.send(&Request::post(&format!("{target}/ack"), r#"{"lsn":3}"#));
    for refused in [changes, ack] {
        let problem = refused.expect_problem(410, "slot_invalidated");
        assert_eq!(problem["cause"], "horizon");
        assert!(problem["lsn"].as_u64().unwrap() >= first, "{problem}");
    }

    // The room comes back although nobody writes.
    let left = eventually("the room comes back", PATIENCE, || {
        Some(taken()).filter(|now| *now < FIXED + 2 * RETENTION)
    });
    println!("{held} bytes were held, {left} are left");
}
