//! What breaks, and what must hold while it does: crashes, pauses, partitions.

mod bootstrap;
mod crashes;
mod damage;
mod once;
mod partitions;
mod pauses;
mod slots;

use std::net::SocketAddr;

use highwater_tests::{PATIENCE, cluster::Cluster, eventually};

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
