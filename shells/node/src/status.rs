//! How a node stands, in the words of the contracts.

use std::{collections::BTreeMap, time::Duration};

use highwater_core::{GroupId, GroupView, Identity, Node, NodeId, RoleView, SlotState};
use highwater_wire::peer::{GroupStatus, NodeStatus, Received};

use crate::{
    api::{GroupMetrics, Metrics, NodeView, Readiness, SlotCounts},
    scrub::Counts,
};

/// A replica further behind than this, in LSNs, is catching up.
const BEHIND_LSNS: u64 = 1024;

/// What a node tells of itself beside what its core knows.
pub(crate) struct About {
    pub(crate) identity: Identity,
    pub(crate) addresses: BTreeMap<NodeId, String>,
    pub(crate) http: String,
    pub(crate) version: String,
}

impl About {
    pub(crate) fn readiness(&self, node: &Node, draining: bool) -> Readiness {
        let mut reasons = Vec::new();
        let mut state = "ready";
        if !node.is_formed() {
            // No reason to be called unready: that would be to wait for peers.
            state = "forming";
        }
        for group in node.groups() {
            let marks = group.watermarks;
            if marks.applied().0 + BEHIND_LSNS < group.known_committed.0 {
                state = "catching_up";
                reasons.push(format!(
                    "group {} has applied {} of {}",
                    group.group,
                    marks.applied(),
                    group.known_committed
                ));
            }
        }
        for group in node.groups() {
            if let Some(reason) = group.quarantined {
                state = "quarantined";
                reasons.push(format!("group {} is quarantined: {reason}", group.group));
            }
        }
        if draining {
            state = "draining";
            reasons.push(String::from("this node is shutting down"));
        }
        Readiness { state: String::from(state), reasons }
    }

    pub(crate) fn node_status(
        &self,
        node: &Node,
        transfers: &BTreeMap<GroupId, Received>,
        draining: bool,
    ) -> NodeStatus {
        let voter = !node.is_formed() || node.members().contains(&self.identity.member);
        let received = |group| transfers.get(&group).copied().unwrap_or_default();
        let status = |g: GroupView<'_>| group_status(node, &g, received(g.group));
        let groups = node.groups().map(status).collect();
        NodeStatus {
            version: self.version.clone(),
            http: self.http.clone(),
            state: self.readiness(node, draining).state,
            voter,
            epoch: epoch(node),
            groups,
        }
    }

    /// Every node's row; only this node's own has a status yet.
    pub(crate) fn views(&self, node: &Node, own: NodeStatus) -> BTreeMap<NodeId, NodeView> {
        let mut own = Some(own);
        let me = self.identity.member.node;
        self.identity
            .nodes
            .iter()
            .map(|id| {
                let address = self.addresses.get(id).cloned().unwrap_or_default();
                let (status, last_contact) = if *id == me {
                    (own.take(), None)
                } else {
                    (None, node.silence_us(*id).map(Duration::from_micros))
                };
                (*id, NodeView { node: *id, address, last_contact, status })
            })
            .collect()
    }
}

/// Rises with every new term of every group, hence with every new leader and database; the same on
/// every node that knows the same.
fn epoch(node: &Node) -> u64 {
    node.groups().map(|group| group.term.0).sum()
}

fn group_status(node: &Node, group: &GroupView<'_>, received: Received) -> GroupStatus {
    let marks = group.watermarks;
    GroupStatus {
        group: group.group,
        term: group.term,
        leader: group.leader,
        appended: marks.appended(),
        durable: marks.durable(),
        committed: marks.committed(),
        applied: marks.applied(),
        checkpointed: marks.checkpointed(),
        lag_bytes: node.unapplied_bytes(group.group),
        lag_us: group.lag_us,
        quarantined: group.quarantined.map(String::from),
        verified: group.verified,
        divergences: group.divergences,
        first: marks.first(),
        rebootstrapping: group.bootstrapping.then_some(received),
    }
}

/// Adds what the scrub has done.
pub(crate) fn add_scrub(metrics: &mut Metrics, counts: &Counts) {
    metrics.scrubbed_bytes = counts.bytes;
    metrics.scrub_failures = counts.failures;
    for group in &mut metrics.groups {
        group.scrubbed_ms = counts.done_ms.get(&group.group).copied();
    }
}

/// How many slots a group has in each state, where they are known here.
fn slots(node: &Node, group: GroupId) -> Option<SlotCounts> {
    let mut counts = SlotCounts::default();
    for slot in node.slots(group)?.slots {
        match slot.state {
            SlotState::Active => counts.active += 1,
            SlotState::AtRisk { .. } => counts.at_risk += 1,
            SlotState::Invalidated { .. } => counts.invalidated += 1,
        }
    }
    Some(counts)
}

/// Counters and gauges of the core; the caller adds its own.
pub(crate) fn metrics(node: &Node) -> Metrics {
    let names: BTreeMap<GroupId, &str> =
        node.databases().map(|(name, group)| (group, name)).collect();
    let groups = node
        .groups()
        .map(|group| {
            let marks = group.watermarks;
            let database = names.get(&group.group).copied().unwrap_or("system");
            GroupMetrics {
                group: group.group,
                database: String::from(database),
                leader: group.role == RoleView::Leader,
                watermarks: [
                    ("first", marks.first().0),
                    ("appended", marks.appended().0),
                    ("durable", marks.durable().0),
                    ("committed", marks.committed().0),
                    ("applied", marks.applied().0),
                    ("checkpointed", marks.checkpointed().0),
                ],
                verified: group.verified,
                divergences: group.divergences,
                scrubbed_ms: None,
                resyncs: group.resyncs,
                slots: slots(node, group.group),
            }
        })
        .collect();
    Metrics { elections: node.elections(), groups, ..Metrics::default() }
}
