//! What breaks, and what must hold while it does: crashes, pauses, partitions.
//!
//! `FAULTS_SCALE=N` has the test of a slot's consumer do N times as much as fits into `cargo test`;
//! the binary under test may then be one that was built in release (`HIGHWATER_TEST_BINARY`).

mod bootstrap;
mod consumer;
mod crashes;
mod damage;
mod dead_slot;
mod once;
mod partitions;
mod pauses;
mod slots;

use std::net::SocketAddr;

use highwater_tests::{PATIENCE, cluster::Cluster, eventually};

/// How many times as much a test does as usual.
fn scale() -> u64 {
    let Ok(text) = std::env::var("FAULTS_SCALE") else { return 1 };
    text.parse().ok().filter(|n| *n > 0).expect("FAULTS_SCALE=N")
}

/// `/v1/databases/{db}/records/{key}`
fn record(database: &str, key: &str) -> String {
    format!("/v1/databases/{database}/records/{key}")
}

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.nodes().iter().map(|node| node.http).collect()
}

/// Writes through one node until it is acknowledged. A write that was forwarded to a leader which
/// is gone by then has an unknown outcome; the same value may be written again.
fn put_through(cluster: &Cluster, node: u64, key: &str, value: &str) {
    eventually(&format!("{key} is written through node {node}"), PATIENCE, || {
        let put = cluster.node(node).put(&record("db", &format!("{key}?timeout_ms=1000")), value);
        (put.status < 300).then_some(())
    });
}
