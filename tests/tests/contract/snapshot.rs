//! `GET …/snapshot`: every record at one LSN, from which changes go on.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::{Follow, Request, escape},
};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

/// Snapshots of a node at a time.
const PLACES: usize = 4;

fn target(database: &str) -> String {
    format!("/v1/databases/{database}/snapshot")
}

fn begin(node: &Node, database: &str, bookmark: Option<&str>) -> Follow {
    let mut request = Request::get(&target(database));
    if let Some(mark) = bookmark {
        request = request.header("highwater-bookmark", mark);
    }
    Follow::start(node.http, &request, PATIENCE).unwrap()
}

#[derive(Debug)]
struct Snapshot {
    lsn: u64,
    rows: Vec<Value>,
    root: String,
}

impl Snapshot {
    /// Reads one to its end; fails unless that vouches for it.
    fn read(mut answer: Follow) -> Snapshot {
        assert_eq!(answer.head.status, 200, "{answer:?}");
        assert_eq!(answer.head.header("content-type"), Some("application/x-ndjson"));
        let lsn: u64 = answer.head.header("highwater-lsn").unwrap().parse().unwrap();
        let mut rows: Vec<Value> = Vec::new();
        while let Some(line) = answer.line().unwrap() {
            rows.push(serde_json::from_str(&line).unwrap());
        }
        let end = rows.pop().expect("a closing line");
        let root = end["root"].as_str().unwrap_or_else(|| panic!("{end}")).to_owned();
        assert_eq!(end, json!({"end": true, "lsn": lsn, "records": rows.len(), "root": root}));
        let keys: Vec<&str> = rows.iter().map(|row| row["key"].as_str().unwrap()).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert!(rows.iter().all(|row| row["version"].as_u64() <= Some(lsn)));
        Snapshot { lsn, rows, root }
    }

    fn of(node: &Node, database: &str, bookmark: Option<&str>) -> Snapshot {
        Snapshot::read(begin(node, database, bookmark))
    }

    fn records(&self) -> Records {
        let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
        let row = |row: &Value| {
            let version = row["version"].as_u64().unwrap();
            (text(row, "key"), (version, text(row, "value_base64")))
        };
        self.rows.iter().map(row).collect()
    }
}

/// A key's version, and its value in base64.
type Records = BTreeMap<String, (u64, String)>;

/// All changes of a database in a range, the first LSN exclusive.
fn changes(node: &Node, database: &str, mark: &str, after: u64) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut after = after;
    loop {
        let page = format!("/v1/databases/{database}/changes?after={after}");
        let request = Request::get(&page).header("highwater-bookmark", mark);
        let mut answer = Follow::start(node.http, &request, PATIENCE).unwrap();
        assert_eq!(answer.head.status, 200, "{answer:?}");
        let before = rows.len();
        while let Some(line) = answer.line().unwrap() {
            let row: Value = serde_json::from_str(&line).unwrap();
            match row["next"].as_u64() {
                Some(next) => after = next,
                None => rows.push(row),
            }
        }
        if rows.len() == before {
            return rows;
        }
    }
}

/// What changes make of records.
fn take_in<'a>(records: &mut Records, changes: impl IntoIterator<Item = &'a Value>) {
    for op in changes.into_iter().flat_map(|row| row["ops"].as_array().unwrap()) {
        let key = op["key"].as_str().unwrap().to_owned();
        match op["value_base64"].as_str() {
            Some(value) => {
                let version = op["version"].as_u64().unwrap();
                drop(records.insert(key, (version, value.to_owned())));
            }
            None => drop(records.remove(&key)),
        }
    }
}

#[test]
fn a_snapshot_is_what_a_list_tells() {
    let node = database("shot");
    for (key, media, value) in
        [("é/ü", "text/plain", "one"), ("a\"b\\", "application/json", "{}"), ("empty", "", "")]
    {
        let mut put = Request::put(&record("shot", &escape(key)), value);
        if !media.is_empty() {
            put = put.header("content-type", media);
        }
        let _ = node.send(&put).expect(201);
    }
    let _ = node.put(&record("shot", "gone"), "v").expect(201);
    let last = node.send(&Request::delete(&record("shot", "gone"))).expect(200);
    let (mark, lsn) = (last.header("highwater-bookmark").unwrap(), last.json()["lsn"].as_u64());
    let list = node.get("/v1/databases/shot/records?values=true").expect(200).json();
    for node in SHARED.nodes() {
        let snapshot = Snapshot::of(node, "shot", Some(mark));
        assert_eq!(json!(snapshot.rows), list["records"], "node {}", node.id);
        assert_eq!(snapshot.rows.len(), 3);
        assert!(Some(snapshot.lsn) >= lsn);
    }
}

#[test]
fn a_snapshot_is_of_one_moment_while_writes_go_on() {
    const DB: &str = "moment";
    let _ = database(DB);
    let done = AtomicBool::new(false);
    let (receipts, snapshots) = thread::scope(|scope| {
        let write = |id: u64| {
            let (node, done) = (SHARED.node(id), &done);
            move || {
                let mut receipts = Vec::new();
                for n in 0.. {
                    let key = record(DB, &format!("{id}/{}", n * 31 % 97));
                    let answer = match n % 7 {
                        6 => node.send(&Request::delete(&key)),
                        _ => node.put(&key, format!("{id} {n} {}", "x".repeat(n * 37 % 5_000))),
                    };
                    if answer.status != 404 {
                        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
                        receipts.push(answer.json()["lsn"].as_u64().unwrap());
                    }
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
                receipts
            }
        };
        let writers = [1, 2, 3].map(|id| scope.spawn(write(id)));
        let mut snapshots = Vec::new();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(100));
            for node in SHARED.nodes() {
                snapshots.push((node, Snapshot::of(node, DB, None)));
            }
        }
        done.store(true, Ordering::Relaxed);
        let receipts = writers.map(|writer| writer.join().unwrap()).concat();
        (receipts, snapshots)
    });
    let last = SHARED.node(1).put(&record(DB, "last"), "v").expect(201);
    let mark = last.header("highwater-bookmark").unwrap();
    let history = changes(SHARED.node(1), DB, mark, 0);
    let lsn = |row: &Value| row["lsn"].as_u64().unwrap();
    let known: Vec<u64> = history.iter().map(lsn).collect();
    assert!(receipts.iter().all(|receipt| known.binary_search(receipt).is_ok()));
    let mut all = Records::new();
    take_in(&mut all, &history);
    let mut lsns = Vec::new();
    for (node, snapshot) in &snapshots {
        let mut expected = Records::new();
        take_in(&mut expected, history.iter().take_while(|row| lsn(row) <= snapshot.lsn));
        assert!(snapshot.records() == expected, "node {} at {}", node.id, snapshot.lsn);
        // Whoever begins with it and goes on with what came after has all there is.
        let mut records = snapshot.records();
        take_in(&mut records, &changes(node, DB, mark, snapshot.lsn));
        assert!(records == all, "node {} after {}", node.id, snapshot.lsn);
        lsns.push(snapshot.lsn);
    }
    lsns.dedup();
    assert!(lsns.len() > 5, "writes went on between them: {lsns:?}");
}

#[test]
fn the_root_is_that_of_the_database() {
    let node = database("rooted");
    for n in 0..50 {
        let _ = node.put(&record("rooted", &format!("k{n}")), format!("{n}")).expect(201);
    }
    for node in SHARED.nodes() {
        eventually("the root is verified where the snapshot is", PATIENCE, || {
            let view = node.get("/v1/databases/rooted").expect(200).json();
            let (lsn, hash) = (view["root"]["lsn"].as_u64()?, view["root"]["hash"].as_str()?);
            let snapshot = Snapshot::of(node, "rooted", None);
            if snapshot.lsn != lsn {
                return None;
            }
            assert_eq!((snapshot.root.as_str(), snapshot.rows.len()), (hash, 50));
            Some(())
        });
    }
}

#[test]
fn a_snapshot_is_at_the_bookmark_or_above() {
    let node = database("marked");
    for n in 0..20 {
        let put = node.put(&record("marked", &format!("k{n}")), "v").expect(201);
        let mark = put.header("highwater-bookmark").unwrap();
        let lsn = put.json()["lsn"].as_u64().unwrap();
        for node in SHARED.nodes() {
            let snapshot = Snapshot::of(node, "marked", Some(mark));
            assert!(snapshot.lsn >= lsn && snapshot.rows.len() == n + 1, "{snapshot:?}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_node_that_does_not_reach_the_bookmark_says_so() {
    let cluster = Cluster::start(1);
    cluster.create("db");
    let node = cluster.node(1);
    let _ = node.put(&record("db", "k"), "kept").expect(201);
    assert!(node.terminate().success());
    let kept = cluster.dir.join("kept");
    copy(&node.data(), &kept);
    node.start();
    node.wait_ready();
    let put = eventually("it leads", PATIENCE, || {
        let put = node.put(&record("db", "k"), "ahead");
        (put.status == 200).then_some(put)
    });
    assert!(node.terminate().success());
    // Alone, a node has nobody who could tell that it was put back.
    fs::remove_dir_all(node.data()).unwrap();
    fs::rename(&kept, node.data()).unwrap();
    node.start();
    node.wait_ready();
    let get = Request::get(&format!("{}?timeout_ms=300", target("db")));
    let get = get.header("highwater-bookmark", put.header("highwater-bookmark").unwrap());
    let problem = node.send(&get).expect_problem(503, "behind");
    assert!(problem["lsn"].as_u64() < put.json()["lsn"].as_u64(), "{problem}");
    eventually("it serves what it has", PATIENCE, || {
        (Snapshot::of(node, "db", None).rows.first()?["value_base64"] == STANDARD.encode("kept"))
            .then_some(())
    });
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let node = database("askew");
    node.get(&target("none-such")).expect_problem(404, "no_such_database");
    node.get(&target("Bad")).expect_problem(400, "invalid_name");
    node.get(&format!("{}?after=1", target("askew"))).expect_problem(400, "bad_request");
    let html = Request::get(&target("askew")).header("accept", "text/html");
    node.send(&html).expect_problem(406, "not_acceptable");
    let marked = Request::get(&target("askew")).header("highwater-bookmark", "x");
    node.send(&marked).expect_problem(400, "bad_request");
    node.send(&Request::new("PUT", &target("askew"))).expect_problem(405, "method_not_allowed");
    assert!(Snapshot::of(node, "askew", None).rows.is_empty());
}

/// What a node copies its snapshots to: files that have no name any more.
fn copies(node: &Node) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let fds = fds.filter_map(|fd| Some(fd.ok()?.path()));
    let is_copy = |fd: &PathBuf| {
        fs::read_link(fd).is_ok_and(|link| link.to_string_lossy().contains(".export"))
    };
    fds.filter(is_copy).collect()
}

/// Lines that are read while their sender is told to stop may end with an error, or break.
fn ends_without_closing(mut answer: Follow) -> bool {
    loop {
        match answer.line() {
            Ok(Some(line)) if line.starts_with(r#"{"end""#) => return false,
            Ok(Some(line)) if line.starts_with(r#"{"error""#) => return true,
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(error) => return error.kind() == io::ErrorKind::UnexpectedEof,
        }
    }
}

#[test]
fn slow_readers_hold_their_places_and_nothing_else() {
    /// More than sockets take in.
    const RECORDS: usize = 40;
    let cluster = Cluster::start(1);
    cluster.create("db");
    let node = cluster.node(1);
    let write = |round: u8| {
        for n in 0..RECORDS {
            let put = node.put(&record("db", &format!("k{n:03}")), vec![round; 512 << 10]);
            assert!(matches!(put.status, 200 | 201), "{}", put.text());
        }
    };
    let mark = |mark: &str| {
        node.metric(&format!("highwater_watermark{{database=\"db\",mark=\"{mark}\"}}"))
    };
    write(0);
    let mut slow: Vec<Follow> = (0..PLACES).map(|_| begin(node, "db", None)).collect();
    for answer in &slow {
        assert_eq!(answer.head.status, 200, "{answer:?}");
    }
    let refused = node.get(&target("db"));
    let problem = refused.expect_problem(429, "too_many_requests");
    assert!(problem["retry_after_ms"].is_u64() && refused.header("retry-after").is_some());
    assert_eq!(copies(node).len(), PLACES);
    // Writes and checkpoints go on.
    write(1);
    let written = mark("applied").unwrap();
    write(2);
    eventually("what was written is checkpointed", PATIENCE, || {
        (mark("checkpointed")? >= written).then_some(())
    });
    // Whoever leaves makes room; whoever goes on gets what was there when it began.
    drop(slow.pop());
    let snapshot = eventually("a place is free", PATIENCE, || {
        let answer = begin(node, "db", None);
        (answer.head.status == 200).then(|| Snapshot::read(answer))
    });
    let values = |snapshot: &Snapshot, round: u8| {
        let expected = STANDARD.encode(vec![round; 512 << 10]);
        snapshot.rows.len() == RECORDS
            && snapshot.rows.iter().all(|row| row["value_base64"] == expected.as_str())
    };
    assert!(values(&snapshot, 2));
    let early = Snapshot::read(slow.pop().unwrap());
    assert!(values(&early, 0) && early.lsn < snapshot.lsn);
    let left = slow.pop().unwrap();
    drop(slow);
    eventually("the disk has its room back", PATIENCE, || (copies(node).len() == 1).then_some(()));
    // It does not keep the node from ending.
    assert!(node.terminate().success());
    assert!(ends_without_closing(left));
    let names = fs::read_dir(node.data().join("state")).unwrap();
    let names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("export")), "{names:?}");
}

/// A value that does not get smaller when it is compressed.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..512 << 10).map(|_| next()).collect()
}

#[test]
fn a_copy_that_is_damaged_ends_with_an_error_and_gives_nothing_wrong() {
    const RECORDS: u64 = 40;
    let cluster = Cluster::start(1);
    cluster.create("db");
    let node = cluster.node(1);
    for n in 0..RECORDS {
        let _ = node.put(&record("db", &format!("{n}")), noise(n)).expect(201);
    }
    let mut answer = begin(node, "db", None);
    // Once all of it is copied, and far behind what the connection has taken.
    let copy = eventually("it is copied to", PATIENCE, || copies(node).pop());
    let len = || fs::metadata(&copy).unwrap().len();
    eventually("all of it is there", PATIENCE, || (len() >= RECORDS * (512 << 10)).then_some(()));
    thread::sleep(Duration::from_millis(500));
    let file = fs::OpenOptions::new().write(true).open(&copy).unwrap();
    for at in (len() * 3 / 8..len()).step_by(100_000) {
        file.write_all_at(b"damaged", at).unwrap();
    }
    let mut given = 0;
    let error = loop {
        let line = answer.line().unwrap().expect("a last line");
        let row: Value = serde_json::from_str(&line).unwrap();
        if let Some(error) = row.get("error") {
            break error.clone();
        }
        let n: u64 = row["key"].as_str().unwrap_or_else(|| panic!("{row}")).parse().unwrap();
        assert!(row["value_base64"] == STANDARD.encode(noise(n)).as_str(), "record {n}");
        given += 1;
    };
    assert_eq!((&error["code"], &error["status"]), (&"not_ready".into(), &503.into()), "{error}");
    assert!(error["detail"].as_str().unwrap().contains("damaged"), "{error}");
    assert!(given < RECORDS && answer.line().unwrap().is_none());
    // The state has nothing to do with it.
    assert_eq!(Snapshot::of(node, "db", None).rows.len() as u64, RECORDS);
}
