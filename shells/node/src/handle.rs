//! What gateways hold: a cheap handle to the running driver.

use std::time::Duration;

use highwater_core::{GroupId, NodeId, Term};
use highwater_wire::op::Op;

use crate::api::{
    ClusterView, Consistency, DatabaseInfo, Error, Got, ListQuery, Metrics, Page, Readiness,
    Receipt,
};

/// A handle to a running node. Cheap to clone. Every call ends by its `timeout`.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// Writes: on the leader, wherever this node is. Not cancelled by dropping the future.
    pub async fn write(
        &self,
        _database: &str,
        _op: Op,
        _timeout: Duration,
    ) -> Result<Receipt, Error> {
        unimplemented!()
    }
    /// Reads one record.
    pub async fn get(
        &self,
        _database: &str,
        _key: &[u8],
        _consistency: Consistency,
        _timeout: Duration,
    ) -> Result<Got, Error> {
        unimplemented!()
    }
    /// Lists records in byte order of their keys.
    pub async fn list(
        &self,
        _database: &str,
        _query: ListQuery,
        _consistency: Consistency,
        _timeout: Duration,
    ) -> Result<Page, Error> {
        unimplemented!()
    }
    /// Creates a database unless it stands; answers when its group has a leader. The flag tells
    /// whether it stood before.
    pub async fn create_database(
        &self,
        _name: &str,
        _timeout: Duration,
    ) -> Result<(GroupId, bool), Error> {
        unimplemented!()
    }
    /// The group of a database. [`Error::NoSuchDatabase`] only after a read index on the system
    /// group.
    pub async fn database(&self, _name: &str, _timeout: Duration) -> Result<GroupId, Error> {
        unimplemented!()
    }
    /// Every database, in order of name, after a read index on the system group.
    pub async fn databases(&self, _timeout: Duration) -> Result<Vec<DatabaseInfo>, Error> {
        unimplemented!()
    }
    /// Hands a database's leadership to a node, and answers with the leader and its term once done.
    pub async fn transfer(
        &self,
        _database: &str,
        _to: NodeId,
        _timeout: Duration,
    ) -> Result<(NodeId, Term), Error> {
        unimplemented!()
    }
    /// The cluster as seen from here; asks every node, waits at most half a second for them.
    pub async fn cluster(&self) -> ClusterView {
        unimplemented!()
    }
    /// Whether this node has recovered and is not knowingly behind, fenced or quarantined.
    pub async fn readiness(&self) -> Readiness {
        unimplemented!()
    }
    /// Counters and gauges.
    pub async fn metrics(&self) -> Metrics {
        unimplemented!()
    }
    /// Hands every leadership over, refuses new requests, and flushes. Then the driver ends.
    pub async fn drain(&self, _timeout: Duration) {
        unimplemented!()
    }
}
