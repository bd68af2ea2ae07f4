//! The cluster as JSON: one shape for `/v1/cluster` and the databases.

use std::time::Duration;

use highwater_core::{GroupId, NodeId, Term};
use highwater_node::api::{ClusterView, DatabaseInfo, NodeView};
use highwater_wire::peer::{GroupStatus, NodeStatus};
use serde::Serialize;

const UNREACHABLE: &str = "unreachable";
const QUARANTINED: &str = "quarantined";

#[derive(Serialize)]
pub(crate) struct ClusterJson {
    cluster_id: String,
    epoch: u64,
    nodes: Vec<NodeJson>,
    databases: Vec<DatabaseRow>,
}

#[derive(Serialize)]
struct NodeJson {
    id: u64,
    address: String,
    http: Option<String>,
    role: &'static str,
    state: String,
    version: Option<String>,
    last_contact_ms: Option<u64>,
}

#[derive(Serialize)]
struct DatabaseRow {
    name: String,
    leader: Option<u64>,
    term: u64,
    replicas: Vec<Replica>,
}

/// One database in full.
#[derive(Serialize)]
pub(crate) struct DatabaseJson {
    name: String,
    group: u64,
    leader: Option<u64>,
    term: u64,
    epoch: u64,
    watermarks: Watermarks,
    root: Option<Root>,
    replicas: Vec<Replica>,
}

/// What the answering node's replica hashed to at the last audit at which a majority had the same.
#[derive(Serialize)]
struct Root {
    lsn: u64,
    hash: String,
    verified_at: String,
}

/// The leader's watermarks; where none is known, those of the replica with the most.
#[derive(Default, Serialize)]
struct Watermarks {
    first: u64,
    appended: u64,
    durable: u64,
    committed: u64,
    applied: u64,
    checkpointed: u64,
}

/// One replica. What an unreachable one would have to say itself is `null`.
#[derive(Serialize)]
struct Replica {
    node: u64,
    role: &'static str,
    state: String,
    durable: Option<u64>,
    applied: Option<u64>,
    lag_ops: Option<u64>,
    lag_bytes: Option<u64>,
    lag_ms: Option<u64>,
    rebootstrapping: bool,
    /// Of the snapshot that it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<Snapshot>,
    apply_errors: u64,
    divergences: u64,
}

/// A snapshot that is being received.
#[derive(Serialize)]
struct Snapshot {
    received_bytes: u64,
    bytes: u64,
}

/// The whole cluster.
pub(crate) fn cluster(view: &ClusterView) -> ClusterJson {
    let databases = view.databases.iter().map(|info| {
        let group = Group::of(view, info.group);
        DatabaseRow {
            name: info.name.clone(),
            leader: group.leader(),
            term: group.term.0,
            replicas: group.replicas(),
        }
    });
    ClusterJson {
        cluster_id: view.cluster.clone(),
        epoch: view.epoch,
        nodes: view.nodes.iter().map(node).collect(),
        databases: databases.collect(),
    }
}

/// One database.
pub(crate) fn database(view: &ClusterView, info: &DatabaseInfo) -> DatabaseJson {
    let group = Group::of(view, info.group);
    DatabaseJson {
        name: info.name.clone(),
        group: info.group.0,
        leader: group.leader(),
        term: group.term.0,
        epoch: view.epoch,
        watermarks: group.watermarks(),
        root: group.root(),
        replicas: group.replicas(),
    }
}

fn node(view: &NodeView) -> NodeJson {
    let status = view.status.as_ref();
    NodeJson {
        id: view.node.0,
        address: view.address.clone(),
        http: status.map(|status| status.http.clone()),
        role: role(status),
        state: status.map_or(UNREACHABLE, |status| &status.state).to_owned(),
        version: status.map(|status| status.version.clone()),
        last_contact_ms: match (view.last_contact, status) {
            (Some(since), _) => Some(millis(since)),
            // The answering node itself.
            (None, Some(_)) => Some(0),
            (None, None) => None,
        },
    }
}

/// A node that does not answer is what it was configured as.
fn role(status: Option<&NodeStatus>) -> &'static str {
    if status.is_none_or(|status| status.voter) { "voter" } else { "learner" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One group, put together from what every node says of it.
struct Group<'a> {
    nodes: Vec<(&'a NodeView, Option<&'a GroupStatus>)>,
    term: Term,
    leader: Option<NodeId>,
}

impl<'a> Group<'a> {
    fn of(view: &'a ClusterView, id: GroupId) -> Group<'a> {
        let status = |node: &'a NodeView| {
            let groups = &node.status.as_ref()?.groups;
            let at = groups.binary_search_by_key(&id, |status| status.group).ok()?;
            groups.get(at)
        };
        let nodes: Vec<_> = view.nodes.iter().map(|node| (node, status(node))).collect();
        let known = || nodes.iter().filter_map(|(_, status)| *status);
        // Only the newest term counts: in an older one somebody may still be named who is deposed.
        let term = known().map(|status| status.term).max().unwrap_or_default();
        let leader = known().filter(|status| status.term == term).find_map(|status| status.leader);
        Group { nodes, term, leader }
    }

    fn leader(&self) -> Option<u64> {
        self.leader.map(|node| node.0)
    }

    /// The leader's own word; without it, that of the replica that knows of the most.
    fn best(&self) -> Option<&'a GroupStatus> {
        let own = self.nodes.iter().find(|(node, _)| Some(node.node) == self.leader);
        own.and_then(|(_, status)| *status).or_else(|| {
            self.nodes.iter().filter_map(|(_, status)| *status).max_by_key(|s| s.committed)
        })
    }

    fn watermarks(&self) -> Watermarks {
        let Some(status) = self.best() else { return Watermarks::default() };
        Watermarks {
            first: status.first.0,
            appended: status.appended.0,
            durable: status.durable.0,
            committed: status.committed.0,
            applied: status.applied.0,
            checkpointed: status.checkpointed.0,
        }
    }

    /// The answering node is the one that was not contacted.
    fn root(&self) -> Option<Root> {
        let own = self.nodes.iter().find(|(node, _)| node.last_contact.is_none());
        let verified = own.and_then(|(_, status)| *status)?.verified?;
        Some(Root {
            lsn: verified.lsn.0,
            hash: verified.root.to_string(),
            verified_at: rfc3339(verified.at_ms),
        })
    }

    fn replicas(&self) -> Vec<Replica> {
        let committed = self.best().map_or(0, |status| status.committed.0);
        self.nodes.iter().map(|(node, status)| replica(node, *status, committed)).collect()
    }
}

fn replica(node: &NodeView, status: Option<&GroupStatus>, committed: u64) -> Replica {
    let quarantined = status.is_some_and(|status| status.quarantined.is_some());
    let state = match &node.status {
        None => UNREACHABLE,
        Some(_) if quarantined => QUARANTINED,
        Some(node) => &node.state,
    };
    let lag_ops = status.map(|status| committed.saturating_sub(status.applied.0));
    let received = status.and_then(|status| status.rebootstrapping);
    Replica {
        node: node.node.0,
        role: role(node.status.as_ref()),
        state: state.to_owned(),
        durable: status.map(|status| status.durable.0),
        applied: status.map(|status| status.applied.0),
        lag_ops,
        lag_bytes: status.map(|status| if lag_ops == Some(0) { 0 } else { status.lag_bytes }),
        lag_ms: status.map(|status| if lag_ops == Some(0) { 0 } else { status.lag_us / 1000 }),
        rebootstrapping: received.is_some(),
        snapshot: received
            .filter(|received| received.of > 0)
            .map(|received| Snapshot { received_bytes: received.bytes, bytes: received.of }),
        // The first failed apply quarantines a group.
        apply_errors: u64::from(quarantined),
        divergences: status.map_or(0, |status| status.divergences),
    }
}

/// A wall clock's milliseconds, in UTC.
fn rfc3339(ms: u64) -> String {
    let (days, ms) = (ms / 86_400_000, ms % 86_400_000);
    let (s, ms) = (ms / 1000, ms % 1000);
    // Howard Hinnant, "chrono-compatible low-level date algorithms": years begin in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_core::{Lsn, Root as Root128, Verified};
    use serde_json::json;

    fn status(leader: Option<u64>, term: u64, committed: u64, applied: u64) -> NodeStatus {
        let group = GroupStatus {
            group: GroupId(4),
            term: Term(term),
            leader: leader.map(NodeId),
            appended: Lsn(committed + 1),
            durable: Lsn(committed),
            committed: Lsn(committed),
            applied: Lsn(applied),
            lag_bytes: 77,
            lag_us: 4_200,
            first: Lsn(1),
            ..GroupStatus::default()
        };
        NodeStatus {
            version: "0.1.0".to_owned(),
            http: "127.0.0.1:1".to_owned(),
            state: "ready".to_owned(),
            voter: true,
            epoch: 3,
            groups: vec![group],
        }
    }

    fn view(statuses: Vec<Option<NodeStatus>>) -> (ClusterView, DatabaseInfo) {
        let nodes = statuses.into_iter().enumerate().map(|(at, status)| NodeView {
            node: NodeId(at as u64 + 1),
            address: "127.0.0.1:2".to_owned(),
            last_contact: (at > 0).then_some(Duration::from_millis(9)),
            status,
        });
        let info = DatabaseInfo { name: "db".to_owned(), group: GroupId(4) };
        let view = ClusterView {
            cluster: "00".to_owned(),
            epoch: 3,
            nodes: nodes.collect(),
            databases: vec![info.clone()],
        };
        (view, info)
    }

    #[test]
    fn a_deposed_leader_is_not_named() {
        let (view, info) = view(vec![
            Some(status(Some(1), 5, 20, 20)),
            Some(status(Some(2), 6, 12, 12)),
            Some(status(None, 6, 10, 9)),
        ]);
        let json = serde_json::to_value(database(&view, &info)).unwrap();
        assert_eq!(json["leader"], 2);
        assert_eq!(json["term"], 6);
        assert_eq!(json["group"], 4);
        assert_eq!(
            json["watermarks"],
            json!({"first": 1, "appended": 13, "durable": 12, "committed": 12, "applied": 12,
                   "checkpointed": 0})
        );
        assert_eq!(
            json["replicas"][2],
            json!({"node": 3, "role": "voter", "state": "ready", "durable": 10, "applied": 9,
                   "lag_ops": 3, "lag_bytes": 77, "lag_ms": 4, "rebootstrapping": false,
                   "apply_errors": 0, "divergences": 0})
        );
        assert_eq!(json["replicas"][1]["lag_ms"], 0);
        assert_eq!(json["root"], json!(null));
    }

    #[test]
    fn the_root_is_the_answering_nodes_own() {
        let mut statuses = [Some(status(Some(1), 5, 20, 20)), Some(status(Some(1), 5, 20, 20))];
        let verified =
            |lsn| Verified { lsn: Lsn(lsn), root: Root128(0xabc), at_ms: 951_827_696_789 };
        for (at, status) in statuses.iter_mut().flatten().enumerate() {
            status.groups[0].verified = Some(verified(7 + at as u64));
            status.groups[0].divergences = at as u64;
        }
        let (view, info) = view(statuses.to_vec());
        let json = serde_json::to_value(database(&view, &info)).unwrap();
        assert_eq!(
            json["root"],
            json!({"lsn": 7, "hash": "00000000000000000000000000000abc",
                   "verified_at": "2000-02-29T12:34:56.789Z"})
        );
        assert_eq!(json["replicas"][1]["divergences"], 1);
        let times = [0, 68_169_600_000, 4_107_542_400_000].map(rfc3339);
        assert_eq!(
            times,
            ["1970-01-01T00:00:00.000Z", "1972-02-29T00:00:00.000Z", "2100-03-01T00:00:00.000Z"]
        );
    }

    #[test]
    fn who_does_not_answer_is_unreachable() {
        let (view, _) = view(vec![Some(status(None, 5, 20, 20)), None, None]);
        let json = serde_json::to_value(cluster(&view)).unwrap();
        assert_eq!(json["nodes"][0]["last_contact_ms"], 0);
        assert_eq!(
            json["nodes"][1],
            json!({"id": 2, "address": "127.0.0.1:2", "http": null, "role": "voter",
                   "state": "unreachable", "version": null, "last_contact_ms": 9})
        );
        assert_eq!(json["databases"][0]["leader"], json!(null));
        assert_eq!(json["databases"][0]["replicas"][1]["applied"], json!(null));
        assert_eq!(json["databases"][0]["replicas"][1]["state"], "unreachable");
    }
}
