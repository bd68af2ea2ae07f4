//! `log verify|dump`, and what a node does about damage.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use highwater_tests::{
    binary::run,
    cluster::{Cluster, Node},
    scratch::Scratch,
};

use crate::record;

const KEYS: usize = 40;

fn written() -> Cluster {
    let cluster = Cluster::start(1);
    cluster.create("db");
    for at in 0..KEYS {
        let put = cluster.node(1).put(&record("db", &format!("key-{at}")), format!("value-{at}"));
        let _ = put.expect(201);
    }
    cluster
}

fn segment(node: &Node) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(node.data().join("oplog")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.remove(0)
}

/// Where a text stands in a file.
fn find(path: &Path, text: &str) -> u64 {
    let bytes = fs::read(path).unwrap();
    let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    found.unwrap_or_else(|| panic!("{text} in {}", path.display())) as u64
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_log_is_verified_and_dumped() {
    let cluster = written();
    let node = cluster.node(1);
    node.kill();
    let data = node.data();
    let dir = data.to_str().unwrap();
    let before = fs::read(segment(node)).unwrap();
    let verified = run(&["log", "verify", dir]).ok();
    assert!(verified.stdout.contains(" 0 damaged"), "{}", verified.stdout);
    let dump = run(&["log", "dump", dir]).ok().stdout;
    for at in 0..KEYS {
        assert!(dump.contains(&format!("\"key-{at}\"")), "key-{at} in\n{dump}");
    }
    assert!(dump.contains("formation") && !dump.contains("value-1"), "keys, not values: {dump}");
    assert!(fs::read(segment(node)).unwrap() == before, "looking changes nothing");
    node.start();
    node.wait_ready();
    for at in 0..KEYS {
        assert_eq!(node.get(&record("db", &format!("key-{at}"))).text(), format!("value-{at}"));
    }
}

#[test]
fn what_is_no_log_is_said_to_be_none() {
    let scratch = Scratch::new("nolog");
    for command in ["verify", "dump"] {
        let refused = run(&["log", command, scratch.path().to_str().unwrap()]);
        assert_eq!(refused.code(), Some(2));
        assert!(refused.stderr.contains("no oplog"), "{}", refused.stderr);
    }
}

#[test]
fn damage_that_may_have_been_acknowledged_stops_the_start() {
    let cluster = written();
    let node = cluster.node(1);
    node.kill();
    let path = segment(node);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let at = find(&path, "value-10");
    flip(&path, at);
    let damaged = fs::read(&path).unwrap();
    for _ in 0..2 {
        let refused = node.refuses(&[]);
        assert_eq!(refused.code(), Some(1));
        let says = refused.stderr;
        assert!(says.contains("damaged") && says.contains(&name), "{says}");
        assert!(says.chars().any(|c| c.is_ascii_digit()) && says.contains("byte"), "{says}");
        assert!(fs::read(&path).unwrap() == damaged, "nothing was changed");
    }
    let verified = run(&["log", "verify", node.data().to_str().unwrap()]);
    assert_eq!(verified.code(), Some(1));
    assert!(
        verified.stdout.contains("DAMAGE") && verified.stdout.contains(&name),
        "{}",
        verified.stdout
    );
    // What was damaged, mended, is as good as new.
    flip(&path, at);
    node.start();
    node.wait_ready();
    assert_eq!(node.get(&record("db", "key-10")).text(), "value-10");
    assert_eq!(cluster.records(1, "db", "linearizable").len(), KEYS);
}

#[test]
fn a_damaged_header_stops_the_start() {
    let cluster = written();
    let node = cluster.node(1);
    node.kill();
    let path = segment(node);
    flip(&path, 20);
    let refused = node.refuses(&[]);
    assert!(refused.stderr.contains("damaged"), "{}", refused.stderr);
    flip(&path, 20);
    node.start();
    node.wait_ready();
}

#[test]
fn a_damaged_state_is_never_served() {
    let cluster = written();
    let node = cluster.node(1);
    assert!(node.terminate().success());
    let state = node.data().join("state");
    let files: Vec<PathBuf> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!files.is_empty());
    for path in &files {
        let bytes = vec![0x5a; fs::metadata(path).unwrap().len() as usize];
        fs::write(path, bytes).unwrap();
    }
    // Whether it starts and says that the data is not ready, or does not start: it says nothing
    // that is not so.
    node.start();
    let refused = node.wait_exit(std::time::Duration::from_secs(3)).is_some();
    if refused {
        assert!(node.log().contains("error: "), "{}", node.log());
    } else {
        let got = node.get(&record("db", "key-1?timeout_ms=1000"));
        assert!(got.status == 503 || got.text() == "value-1", "{} {}", got.status, got.text());
    }
    assert!(!node.log().contains("panicked"), "{}", node.log());
}
