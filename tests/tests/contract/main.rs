//! What the binary and its HTTP interface promise, against the real thing: one module for each
//! part of the contracts.

mod bad_cluster;
mod batch;
mod changes;
mod command_line;
mod configuration;
mod consumers;
mod databases;
mod demo;
mod dev;
mod documents;
mod errors;
mod general;
mod idempotency;
mod lists;
mod oplog;
mod peers;
mod preconditions;
mod records;
mod slots;
mod snapshot;
mod storage;
mod views;

use std::sync::LazyLock;

use highwater_tests::cluster::{Cluster, Node};

/// Three healthy nodes that every test here may use, and none may harm. They live until this
/// process ends.
static SHARED: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(3));

/// A database of the shared cluster, and a node to ask.
fn database(name: &str) -> &'static Node {
    SHARED.create(name);
    SHARED.node(1)
}

/// `/v1/databases/{db}/records/{key}`
fn record(database: &str, key: &str) -> String {
    format!("/v1/databases/{database}/records/{key}")
}
