//! The HTTP gateway of one node: it parses requests strictly, translates them to calls of
//! [`highwater_node::Handle`], and translates what comes back. It decides nothing about consensus
//! and keeps no state of its own.

mod batch;
mod bookmark;
mod changes;
mod cluster;
mod conditions;
mod databases;
mod extract;
mod guard;
mod lines;
mod names;
mod once;
mod operations;
mod problem;
mod records;
mod serve;
mod slots;
mod snapshot;
mod view;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Router, middleware,
    routing::{get, post, put},
};
use highwater_core::ClusterId;
use highwater_node::Handle;

pub use serve::serve;

/// Bounds of the gateway. [`Limits::default`] holds the documented defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One value, in bytes.
    pub value_bytes: usize,
    /// Operations in one batch.
    pub batch_ops: usize,
    /// The body of one batch, in bytes.
    pub batch_bytes: usize,
    /// Records in one page of a list, unless the request says otherwise.
    pub list_default: usize,
    /// Records in one page of a list at most.
    pub list_max: usize,
    /// Ops in one page of changes, unless the request says otherwise.
    pub changes_default: usize,
    /// Ops in one page of changes at most.
    pub changes_max: usize,
    /// How long a call may take, unless the request says otherwise.
    pub timeout: Duration,
    /// How long a call may take at most.
    pub timeout_max: Duration,
    /// How long a request's head may take to arrive, and how long a connection may be idle.
    pub head_timeout: Duration,
    /// How long the sender of a body may fall silent.
    pub body_idle: Duration,
    /// How long a body may take in all.
    pub body_timeout: Duration,
    /// The request line and headers together, in bytes; up to twice as much may be read before it
    /// is noticed.
    pub head_bytes: usize,
    /// Connections at a time; further ones wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            value_bytes: 1 << 20,
            batch_ops: 1_000,
            batch_bytes: 16 << 20,
            list_default: 100,
            list_max: 1_000,
            changes_default: 1_000,
            changes_max: 10_000,
            timeout: Duration::from_secs(5),
            timeout_max: Duration::from_secs(60),
            head_timeout: Duration::from_secs(30),
            body_idle: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            head_bytes: 64 << 10,
            connections: 4_096,
        }
    }
}

/// What the gateway has to know beside the node.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The cluster: a bookmark of another one is unreadable here.
    pub cluster: ClusterId,
    /// The host of this node's configured addresses, accepted in `Host` and `Origin` beside IP
    /// literals and `localhost`.
    pub hosts: Vec<String>,
    /// Bounds.
    pub limits: Limits,
}

/// Where the gateway finds its node. It may be empty while the node recovers: until it is filled,
/// every call but `/healthz` is answered with 503 `not_ready`.
#[derive(Clone, Default)]
pub struct Slot(Arc<RwLock<Option<Handle>>>);

impl Slot {
    /// Hands the recovered node over.
    pub fn fill(&self, handle: Handle) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    }

    /// Takes it out again: it recovers once more.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn get(&self) -> Option<Handle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("filled", &self.get().is_some()).finish()
    }
}

impl From<Handle> for Slot {
    fn from(handle: Handle) -> Slot {
        let slot = Slot::default();
        slot.fill(handle);
        slot
    }
}

/// What every handler sees.
#[derive(Clone, Debug)]
struct App {
    slot: Slot,
    options: Arc<HttpOptions>,
}

/// Every route of the gateway.
pub fn router(node: impl Into<Slot>, options: HttpOptions) -> Router {
    let app = App { slot: node.into(), options: Arc::new(options) };
    let record = || get(records::get).put(records::put).delete(records::delete);
    Router::new()
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::metrics))
        .route("/v1/cluster", get(cluster::cluster))
        .route("/v1/databases", get(databases::list))
        .route("/v1/databases/{db}", put(databases::create).get(databases::get))
        .route("/v1/databases/{db}/leader", post(databases::leader))
        .route("/v1/databases/{db}/batch", post(batch::batch))
        .route("/v1/databases/{db}/changes", get(changes::changes))
        .route("/v1/databases/{db}/snapshot", get(snapshot::snapshot))
        .route("/v1/databases/{db}/slots", get(slots::list))
        .route(
            "/v1/databases/{db}/slots/{slot}",
            put(slots::create).get(slots::get).delete(slots::delete),
        )
        .route("/v1/databases/{db}/slots/{slot}/ack", post(slots::ack))
        .route("/v1/databases/{db}/records", get(records::list))
        .route("/v1/databases/{db}/records/", record())
        .route("/v1/databases/{db}/records/{*key}", record())
        .fallback(guard::not_found)
        .method_not_allowed_fallback(guard::method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

#[cfg(test)]
mod tests;
