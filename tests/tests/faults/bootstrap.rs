//! A node that was away for too long: what it missed is pruned, and a snapshot brings it back.

use std::{thread, time::Duration};

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::Request,
};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Of each value, in bytes.
const VALUE: usize = 2_000;
/// Values of a batch.
const BATCH: u64 = 200;

/// A value that does not compress, and tells which it is.
fn value(n: u64) -> String {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = format!("{n}.");
    while text.len() < VALUE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Printable, 6 bits a letter.
        text.extend((0..10).map(|i| char::from(b'0' + (state >> (6 * i) & 63) as u8)));
    }
    // What JSON would escape.
    text.replace('\\', "-")
}

fn key(n: u64) -> String {
    format!("k{n:06}")
}

/// Writes these values, many at once.
fn fill(node: &Node, range: std::ops::Range<u64>) {
    let mut client = node.client();
    for from in range.clone().step_by(BATCH as usize) {
        let upto = range.end.min(from + BATCH);
        let put = |n| json!({"put": {"key": key(n), "text": value(n)}});
        let ops: Vec<Value> = (from..upto).map(put).collect();
        let body = json!({ "ops": ops }).to_string();
        let request = Request::post("/v1/databases/db/batch?timeout_ms=20000", &body);
        let _ = client.send(&request).expect("an answer").expect(200);
    }
}

/// How a node's replica stands, as another one sees it.
fn replica(asked: &Node, of: u64) -> Option<Value> {
    let view = asked.try_send(&Request::get("/v1/databases/db")).ok()?;
    let replicas = (view.status == 200).then(|| view.json()["replicas"].clone())?;
    replicas.as_array()?.iter().find(|replica| replica["node"] == of).cloned()
}

/// Waits until so many percent of a snapshot are at a node: the bytes that came, and all of it.
fn await_share(node: &Node, percent: u64) -> (u64, u64) {
    eventually(&format!("{percent} % of a snapshot are at node {}", node.id), PATIENCE, || {
        let replica = replica(node, node.id)?;
        let snapshot = replica.get("snapshot")?;
        let (bytes, of) = (snapshot["received_bytes"].as_u64()?, snapshot["bytes"].as_u64()?);
        (bytes * 100 >= of * percent).then_some((bytes, of))
    })
}

/// What a node's process has received of snapshots.
fn received(node: &Node) -> u64 {
    let name = "highwater_snapshot_bytes_total{direction=\"received\"}";
    node.metric(name).expect("the metric") as u64
}

#[test]
fn a_node_that_was_away_too_long_comes_back_by_a_snapshot_that_is_interrupted() {
    let cluster = Cluster::init(3, &[]);
    for node in cluster.nodes() {
        node.edit_config("[retention]\nbytes = 1073741824", &format!("[retention]\nbytes = {MIB}"));
        node.edit_config("bytes_per_s = 268435456", &format!("bytes_per_s = {}", 4 * MIB));
    }
    cluster.start_all();
    cluster.create("db");
    let away = cluster.node(3);
    cluster.hand_over("db", 1);
    fill(cluster.node(1), 0..BATCH);
    cluster.wait_caught_up(3, "db");
    away.kill();
    let all = 30 * MIB / VALUE as u64;
    fill(cluster.node(1), BATCH..all);
    let missed = eventually("what the node needs is pruned", PATIENCE, || {
        let view = cluster.node(1).get("/v1/databases/db").json();
        let (first, last) =
            (view["watermarks"]["first"].as_u64()?, view["watermarks"]["committed"].as_u64()?);
        (first > 10).then_some(last)
    });
    away.start();
    let (_, size) = await_share(away, 30);
    let first = received(away);
    away.kill();
    away.start();
    // It goes on where it was.
    let _ = await_share(away, 60);
    let before = received(away);
    assert!(first + before < size, "{first} and {before} of {size}: it began anew");
    let donor = cluster.node(cluster.leader_among("db", &[1, 2]));
    donor.kill();
    thread::sleep(Duration::from_millis(300));
    donor.start();
    eventually("the node is back", PATIENCE, || {
        let replica = replica(away, away.id)?;
        let back = replica["rebootstrapping"] == false && replica["applied"].as_u64()? >= missed;
        back.then_some(())
    });
    let total = first + received(away);
    assert!(2 * total < 3 * size, "{total} bytes came of a snapshot of {size}");
    assert!(away.log().contains("a snapshot is fetched on where it was"));
    assert_eq!(away.metric("highwater_resyncs_total{database=\"db\",kind=\"full\"}"), Some(1.0));
    let records = cluster.records(3, "db", "local");
    assert_eq!(records.len() as u64, all);
    assert!(records == cluster.records(1, "db", "linearizable"), "the replicas differ");
    // The log goes on from there.
    fill(cluster.node(2), all..all + BATCH);
    cluster.wait_caught_up(3, "db");
}
