//! O27. Liveness: once everything is healed, the cluster works again within a bound. Every group has
//! one leader that all follow, every database takes a write, and all replicas hold the same.
//!
//! semantics.md 9, 10; simulation.md, "liveness phase". Failures 18, 33, 41, 42, 48, 58.

use std::{collections::BTreeMap, time::Duration};

use highwater_core::{GroupId, Lsn, NodeId, Term};

/// How long a healed cluster may take to work as it should.
pub(crate) const CONVERGENCE_NS: u64 = 20_000_000_000;
/// After the last write, audits are over by then.
pub(crate) const REST_MS: u64 = 2_500;
/// How long a call on a healed cluster may take.
pub(crate) const LIVENESS_TIMEOUT: Duration = Duration::from_secs(5);

/// One replica, as it stands after the healing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) term: Term,
    pub(crate) leader: Option<NodeId>,
    pub(crate) appended: Lsn,
    pub(crate) applied: Lsn,
    pub(crate) quarantined: bool,
}

/// Why the cluster has not converged; empty once it has.
pub(crate) fn unsettled(
    nodes: &[NodeId],
    groups: &[GroupId],
    standings: &BTreeMap<(NodeId, GroupId), Standing>,
) -> Vec<String> {
    let mut why = Vec::new();
    for group in groups {
        let of = |node: &NodeId| standings.get(&(*node, *group));
        let Some(first) = nodes.first().and_then(of) else {
            why.push(format!("{group:?} is not everywhere"));
            continue;
        };
        for node in nodes {
            match of(node) {
                None => why.push(format!("{node:?} has no {group:?}")),
                Some(s) if s.quarantined => why.push(format!("{node:?}: {group:?} quarantined")),
                Some(s) if s.leader.is_none() => {
                    why.push(format!("{node:?} knows no leader of {group:?}"));
                }
                Some(s) if s.applied < s.appended || s != first => {
                    why.push(format!("{group:?}: {node:?} {s:?}, {:?} {first:?}", nodes[0]));
                }
                Some(_) => {}
            }
        }
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(leader: Option<u64>, appended: u64, applied: u64) -> Standing {
        Standing {
            term: Term(2),
            leader: leader.map(NodeId),
            appended: Lsn(appended),
            applied: Lsn(applied),
            quarantined: false,
        }
    }

    fn why(second: Standing) -> usize {
        let nodes = [NodeId(1), NodeId(2)];
        let mut standings = BTreeMap::new();
        standings.insert((NodeId(1), GroupId(0)), standing(Some(1), 9, 9));
        standings.insert((NodeId(2), GroupId(0)), second);
        unsettled(&nodes, &[GroupId(0)], &standings).len()
    }

    #[test]
    fn fires_on_whatever_is_not_settled() {
        assert_eq!(why(standing(Some(1), 9, 9)), 0);
        assert_eq!(why(standing(None, 9, 9)), 1);
        assert_eq!(why(standing(Some(2), 9, 9)), 1);
        assert_eq!(why(standing(Some(1), 9, 8)), 1);
        assert_eq!(why(standing(Some(1), 8, 8)), 1);
        assert_eq!(why(Standing { quarantined: true, ..standing(Some(1), 9, 9) }), 1);
        assert_eq!(unsettled(&[NodeId(1)], &[GroupId(4)], &BTreeMap::new()).len(), 1);
    }
}
