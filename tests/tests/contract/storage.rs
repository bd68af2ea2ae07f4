//! What stands below the node: the disk that is full, and the order of fsync and answer.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::{Request, Response},
    process::{Recipe, has},
    skip,
};

use crate::record;

/// Has a node see a small, empty disk of its own where its data directory is. Nobody else sees it,
/// and it is gone with the node's process.
fn on_small_disk(node: &Node, mib: u64) {
    let data = node.data();
    let data = data.to_str().unwrap();
    let script = format!("mount -t tmpfs -o size={mib}m none '{data}' && exec \"$@\"",);
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"];
    node.within(wrapper);
}

fn may_mount() -> Result<(), String> {
    for program in ["unshare", "nsenter", "mount"] {
        if !has(program) {
            return Err(format!("{program} is not installed"));
        }
    }
    let probe =
        ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"];
    let output = Recipe::new(probe).run(PATIENCE);
    if output.status.success() { Ok(()) } else { Err(output.stderr) }
}

fn in_its_place(node: &Node, command: &[&str]) {
    let pid = node.pid().to_string();
    let enter = ["nsenter", "--mount", "--target", &pid];
    let _ = Recipe::new([&enter, command].concat()).run(PATIENCE).ok();
}

/// A mebibyte, of each write another one.
fn value(at: usize) -> Vec<u8> {
    (0..1 << 20).map(|i: usize| ((i * 31 + at * 7) >> 3) as u8).collect()
}

/// Writes until the disk is full: at most `most` times, to one of `keys` keys after the other. The
/// write that each key was last acknowledged with, and the refusal.
fn fill(node: &Node, most: usize, keys: usize) -> (BTreeMap<usize, usize>, Response) {
    let mut acked = BTreeMap::new();
    let mut client = node.client();
    for at in 0..most {
        let target = record("db", &format!("{}?timeout_ms=5000", at % keys));
        let answer = client.send(&Request::put(&target, value(at))).expect("an answer");
        if !matches!(answer.status, 200 | 201) {
            return (acked, answer);
        }
        acked.insert(at % keys, at);
    }
    panic!("{most} MiB were taken by a smaller disk");
}

fn verify(node: &Node, acked: &BTreeMap<usize, usize>) {
    let mut client = node.client();
    for (key, at) in acked {
        let target = record("db", &key.to_string());
        let got = client.send(&Request::get(&target)).unwrap().expect(200);
        assert!(got.body == value(*at), "LOST or changed: {key}");
    }
}

/// Starts the node again on a disk with room. The small disk dies with the process that it was
/// mounted for, so that its contents are saved before.
fn restart_with_room(node: &Node) {
    let copy = node.dir.join("copy");
    let (from, to) = (node.data(), copy.to_str().unwrap().to_owned());
    // A copy of what does not change meanwhile.
    node.pause();
    in_its_place(node, &["cp", "-a", from.to_str().unwrap(), &to]);
    node.kill();
    fs::remove_dir_all(node.data()).unwrap();
    fs::rename(copy, node.data()).unwrap();
    node.within([""; 0]);
    node.start();
    node.wait_ready();
}

/// The log grows, and what it is about does not.
#[test]
fn a_log_without_room_refuses_writes_and_goes_on_once_there_is_some() {
    const MIB: u64 = 216;
    if let Err(why) = may_mount() {
        return skip("a_log_without_room_refuses_writes_and_goes_on_once_there_is_some", &why);
    }
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    on_small_disk(node, MIB);
    cluster.start_all();
    cluster.create("db");
    let (acked, refused) = fill(node, MIB as usize, 1);
    let problem = refused.expect_problem(503, "storage_full");
    assert!(problem["retry_after_ms"].is_u64() && refused.header("retry-after").is_some());
    // Reads go on, the node is alive, and the refused write had no effect.
    verify(node, &acked);
    let _ = node.get("/healthz").expect(200);

    // Room made while it runs is found.
    let size = format!("remount,size={}m", 2 * MIB);
    in_its_place(node, &["mount", "-o", &size, node.data().to_str().unwrap()]);
    eventually("writes work again", PATIENCE, || {
        let put = node.put(&record("db", "later"), value(0));
        (put.status == 201).then_some(())
    });
    verify(node, &acked);
    restart_with_room(node);
    verify(node, &acked);
    assert_eq!(node.get(&record("db", "later")).expect(200).body, value(0));
}

/// The records grow, so that the disk is full before the log is. What was acknowledged until then,
/// and whether the write after that was refused: it may have been under way.
fn fill_with_records(node: &Node, mib: u64) -> (BTreeMap<usize, usize>, bool) {
    let (acked, last) = fill(node, mib as usize, mib as usize);
    assert!(acked.len() > 8, "{} writes fit", acked.len());
    let refused = last.status == 503;
    if refused {
        last.expect_problem(503, "storage_full");
    } else {
        last.expect_problem(504, "outcome_unknown");
    }
    node.put(&record("db", "again"), value(0)).expect_problem(503, "storage_full");
    (acked, refused)
}

/// Writes are refused until there is room. The log has what the records lack.
#[test]
fn records_without_room_refuse_writes_and_go_on_once_there_is_some() {
    const MIB: u64 = 204;
    if let Err(why) = may_mount() {
        return skip("records_without_room_refuse_writes_and_go_on_once_there_is_some", &why);
    }
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    on_small_disk(node, MIB);
    cluster.start_all();
    cluster.create("db");
    let (acked, refused) = fill_with_records(node, MIB);
    let log = node.log();
    assert!(log.contains("the disk is full"), "{log}");
    // The node is alive and ready.
    let _ = node.get("/healthz").expect(200);
    let _ = node.get("/readyz").expect(200);

    // Room made while it runs is found.
    let size = format!("remount,size={}m", 2 * MIB);
    in_its_place(node, &["mount", "-o", &size, node.data().to_str().unwrap()]);
    eventually("writes work again", PATIENCE, || {
        let put = node.put(&record("db", "later"), value(0));
        (put.status == 201).then_some(())
    });
    verify(node, &acked);
    // What was refused had no effect.
    node.get(&record("db", "again")).expect_problem(404, "no_such_record");
    if refused {
        let key = acked.len().to_string();
        node.get(&record("db", &key)).expect_problem(404, "no_such_record");
    }
    restart_with_room(node);
    verify(node, &acked);
    assert_eq!(node.get(&record("db", "later")).expect(200).body, value(0));
}

/// The node dies while it waits.
#[test]
fn records_without_room_are_not_lost_in_a_crash() {
    const MIB: u64 = 204;
    if let Err(why) = may_mount() {
        return skip("records_without_room_are_not_lost_in_a_crash", &why);
    }
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    on_small_disk(node, MIB);
    cluster.start_all();
    cluster.create("db");
    let (acked, _) = fill_with_records(node, MIB);
    restart_with_room(node);
    verify(node, &acked);
    let _ = node.put(&record("db", "later"), value(0)).expect(201);
}

/// A slot fills the disk before it is at its limit. When it goes, what it held goes too.
#[test]
fn a_disk_that_a_slot_filled_has_room_again_once_the_slot_is_gone() {
    const MIB: u64 = 520;
    if let Err(why) = may_mount() {
        return skip("a_disk_that_a_slot_filled_has_room_again_once_the_slot_is_gone", &why);
    }
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    node.edit_config("[retention]\nbytes = 1073741824", "[retention]\nbytes = 16777216");
    node.edit_config("[oplog]\nsegments = 16", "[oplog]\nsegments = 2");
    on_small_disk(node, MIB);
    cluster.start_all();
    cluster.create("db");
    let slot = "/v1/databases/db/slots/dead";
    let create = Request::new("PUT", slot).header("content-type", "application/json");
    let _ = node.send(&create.body(r#"{"from":"earliest"}"#)).expect(201);
    // What is older is compressed; this can't be.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(1 << 20);
    while noise.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    // Until no write was taken for so long that nothing is under way which makes room.
    let (mut taken, mut refused_since) = (0, None);
    while refused_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(5)) {
        let target = record("db", &format!("{}?timeout_ms=5000", taken % 8));
        let put = node.put(&target, &noise);
        if put.status < 300 {
            (taken, refused_since) = (taken + 1, None);
            assert!(taken < MIB, "{taken} MiB were taken by a smaller disk");
        } else {
            let _ = refused_since.get_or_insert_with(Instant::now);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let _ = node.send(&Request::delete(slot)).expect(200);
    eventually("what nobody needs is removed, and writes are taken", PATIENCE, || {
        (node.put(&record("db", "later"), value(0)).status == 201).then_some(())
    });
}

/// One full disk of three is a minority.
#[test]
fn the_others_go_on_without_the_node_whose_disk_is_full() {
    const MIB: u64 = 200;
    const WRITES: usize = 40;
    if let Err(why) = may_mount() {
        return skip("the_others_go_on_without_the_node_whose_disk_is_full", &why);
    }
    let cluster = Cluster::init(3, &[]);
    let small = cluster.node(1);
    on_small_disk(small, MIB);
    cluster.start_all();
    cluster.create("db");
    cluster.hand_over("db", 1);
    let asked = cluster.node(2);
    let mut client = asked.client();
    let mut acked = BTreeMap::new();
    for at in 0..WRITES {
        let target = record("db", &format!("{at}?timeout_ms=10000"));
        let put = client.send(&Request::put(&target, value(at))).expect("an answer");
        if put.status == 201 {
            acked.insert(at, at);
        }
    }
    // All but those that were in flight when it failed, or refused by it until it gave way.
    assert!(acked.len() >= WRITES - 4, "only {} of {WRITES}", acked.len());
    assert_ne!(cluster.leader_among("db", &[2, 3]), 1);
    verify(asked, &acked);
    verify(cluster.node(3), &acked);
    assert!(small.is_alive() && small.log().contains("No space left"), "{}", small.log());
    let _ = small.get("/healthz").expect(200);
}

#[test]
fn a_disk_too_small_to_begin_with_is_said_to_be_full() {
    if let Err(why) = may_mount() {
        return skip("a_disk_too_small_to_begin_with_is_said_to_be_full", &why);
    }
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    on_small_disk(node, 8);
    node.start();
    match node.wait_exit(Duration::from_secs(5)) {
        Some(status) => {
            assert!(!status.success());
            assert!(node.log().to_lowercase().contains("space"), "{}", node.log());
        }
        None => {
            let create = Request::new("PUT", "/v1/databases/db?timeout_ms=500");
            assert_eq!(node.send(&create).status, 503);
        }
    }
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

/// One call of `strace -f -ttt`: when it began and ended (seconds), and what it was.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
    order: (usize, usize),
}

/// The calls of a trace, each with the lines where it began and ended: their order is the order
/// in which the kernel let the tracer see them.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: BTreeMap<(String, String), (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let name = resumed.split(' ').next().unwrap_or_default().to_owned();
            if let Some((began, text)) = open.remove(&(pid.to_owned(), name.clone())) {
                calls.push(Call { name, text: format!("{text}{resumed}"), order: (began, at) });
            }
        } else if let Some((name, _)) = rest.split_once('(') {
            if rest.ends_with("<unfinished ...>") {
                open.insert((pid.to_owned(), name.to_owned()), (at, rest.to_owned()));
            } else {
                calls.push(Call { name: name.to_owned(), text: rest.to_owned(), order: (at, at) });
            }
        }
    }
    calls.sort_by_key(|call| call.order.1);
    calls
}

#[test]
fn the_disk_is_synced_before_the_answer_is_sent() {
    if !has("strace") {
        return skip("the_disk_is_synced_before_the_answer_is_sent", "strace is not installed");
    }
    let cluster = Cluster::start(1);
    cluster.create("db");
    let node = cluster.node(1);
    let _ = node.put(&record("db", "warm"), "v").expect(201);
    let trace = node.dir.join("strace");
    let strace = Recipe::new([
        "strace",
        "-f",
        "-s",
        "4096",
        "-e",
        "trace=fdatasync,fsync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg",
        "-o",
        trace.to_str().unwrap(),
        "-p",
        &node.pid().to_string(),
    ]);
    let errors = node.dir.join("strace.err");
    let mut tracer = strace.start(&node.dir.join("strace.out"), &errors);
    let attached = Instant::now();
    loop {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        if said.contains("attached") {
            break;
        }
        if !tracer.is_alive() {
            return skip("the_disk_is_synced_before_the_answer_is_sent", &said);
        }
        assert!(attached.elapsed() < PATIENCE, "strace says {said:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    const WRITES: usize = 5;
    // One more than is looked at: strace may let go of the last answer before that is sent in full.
    for at in 0..=WRITES {
        let _ = node
            .put(&record("db", &format!("traced-{at}")), format!("marker-{at}-value"))
            .expect(201);
    }
    tracer.signal(rustix::process::Signal::INT);
    let _ = tracer.wait(PATIENCE).expect("strace detaches");
    let trace = fs::read_to_string(&trace).unwrap();
    let calls = calls(&trace);
    for at in 0..WRITES {
        // The entry goes to the log, the log to the disk, and then the answer to the client.
        let key = format!("traced-{at}");
        let written = calls
            .iter()
            .find(|call| call.name.starts_with("pwrite") && call.text.contains(&key))
            .unwrap_or_else(|| panic!("write {at} is not in the log:\n{trace}"));
        let answered = calls
            .iter()
            .find(|c| {
                ["write", "writev", "sendto", "sendmsg"].contains(&c.name.as_str())
                    && c.text.contains("HTTP/1.1 201")
                    && c.text.contains(&key)
            })
            .unwrap_or_else(|| panic!("no answer for write {at} in\n{trace}"));
        let synced = calls.iter().find(|c| {
            c.name == "fdatasync"
                && c.text.ends_with("= 0")
                && c.order.0 > written.order.1
                && c.order.1 < answered.order.0
        });
        assert!(
            synced.is_some(),
            "write {at} was answered in line {} without an fdatasync since it was written in line \
             {}\n{trace}",
            answered.order.0,
            written.order.1
        );
    }
}
