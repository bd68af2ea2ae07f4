//! O10. Lost state does not vote: a data directory that is not one of the founding ones, or that was
//! fenced, never votes, leads or counts; nor does a group whose log may have lost its end, before it
//! is sound again. And nobody is fenced without cause.
//!
//! semantics.md 11. Failures 29, 32.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{GroupId, Incarnation, Lsn, Member, NodeId};

use super::{Verdict, broken, durable_log::Found};

/// A node as it runs now.
#[derive(Debug, Default)]
struct Standing {
    incarnation: Incarnation,
    /// Where it doubts itself: up to which group, if that is known.
    doubt: Option<Option<Lsn>>,
    sound: BTreeSet<GroupId>,
    /// It has said that it must be fenced: it is silent from then on.
    silent: bool,
}

/// Whose vote counts.
#[derive(Debug, Default)]
pub(crate) struct Fencing {
    founders: BTreeMap<NodeId, Incarnation>,
    fenced: BTreeSet<(NodeId, Incarnation)>,
    nodes: BTreeMap<NodeId, Standing>,
}

impl Fencing {
    /// The cluster is founded by these.
    pub(crate) fn founded(&mut self, members: &[Member]) -> Verdict {
        let founders: BTreeMap<_, _> = members.iter().map(|m| (m.node, m.incarnation)).collect();
        if !self.founders.is_empty() && self.founders != founders {
            return Err(broken(format!("founded twice: {:?}, {founders:?}", self.founders)));
        }
        self.founders = founders;
        Ok(())
    }

    /// A node starts, and found this.
    pub(crate) fn starts(&mut self, node: NodeId, found: &Found<'_>) {
        let standing = Standing {
            incarnation: found.incarnation,
            doubt: found.doubt.map(|doubt| doubt.bound),
            sound: found.groups.iter().filter(|g| g.sound).map(|g| g.group).collect(),
            silent: false,
        };
        self.nodes.insert(node, standing);
    }

    /// A node has written that a group is sound, up to this commit mark.
    pub(crate) fn sound(&mut self, node: NodeId, group: GroupId, committed: Lsn) {
        let Some(standing) = self.nodes.get_mut(&node) else { return };
        standing.sound.insert(group);
        if group == GroupId::SYSTEM
            && let Some(bound) = &mut standing.doubt
        {
            *bound = Some(committed);
        }
    }

    /// A node finds that it must be fenced; `harmed` tells whether there is a cause.
    pub(crate) fn fences(&mut self, node: NodeId, harmed: bool, reason: &str) -> Verdict {
        if let Some(standing) = self.nodes.get_mut(&node) {
            standing.silent = true;
            self.fenced.insert((node, standing.incarnation));
        }
        if !harmed {
            let what = format!("{node:?} is fenced, and nothing was done to it: {reason}");
            return Err(broken(what).on(node));
        }
        Ok(())
    }

    /// A node sends a message.
    pub(crate) fn speaks(&self, node: NodeId) -> Verdict {
        if self.nodes.get(&node).is_some_and(|standing| standing.silent) {
            return Err(broken(format!("{node:?} speaks after it was fenced")).on(node));
        }
        Ok(())
    }

    /// Whether what a node holds counts for quorums.
    pub(crate) fn counts(&self, node: NodeId) -> bool {
        let Some(standing) = self.nodes.get(&node) else { return false };
        self.founders.get(&node) == Some(&standing.incarnation)
    }

    /// A node votes in a group, promises to, or leads it.
    pub(crate) fn votes(&self, node: NodeId, group: GroupId, how: &str) -> Verdict {
        let Some(standing) = self.nodes.get(&node) else { return Ok(()) };
        let why = if !self.counts(node) {
            "with a data directory that is not the founding one"
        } else if self.fenced.contains(&(node, standing.incarnation)) {
            "with a data directory that was fenced"
        } else if self.doubts(standing, group) {
            "where its log may have lost its end"
        } else {
            return Ok(());
        };
        Err(broken(format!("{node:?} {how} {group:?} {why}")).on(node).of(group))
    }

    fn doubts(&self, standing: &Standing, group: GroupId) -> bool {
        let within = |bound: Option<Lsn>| bound.is_none_or(|bound| group.0 <= bound.0);
        standing.doubt.is_some_and(within) && !standing.sound.contains(&group)
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::Doubt;

    use super::*;

    const N: NodeId = NodeId(1);
    const G: GroupId = GroupId(4);

    fn found(incarnation: u128, doubt: Option<Doubt>) -> Found<'static> {
        let incarnation = Incarnation(incarnation);
        Found { incarnation, members: None, groups: &[], boots: &[], doubt }
    }

    fn cluster(incarnation: u128, doubt: Option<Doubt>) -> Fencing {
        let mut oracle = Fencing::default();
        oracle.founded(&[Member { node: N, incarnation: Incarnation(7) }]).unwrap();
        oracle.starts(N, &found(incarnation, doubt));
        oracle
    }

    #[test]
    fn fires_on_another_data_directory() {
        assert!(cluster(7, None).votes(N, G, "votes in").is_ok());
        assert!(cluster(8, None).votes(N, G, "votes in").is_err());
        assert!(!cluster(8, None).counts(N));
        let other = [Member { node: N, incarnation: Incarnation(8) }];
        assert!(cluster(7, None).founded(&other).is_err());
    }

    #[test]
    fn fires_on_whoever_was_fenced() {
        let mut oracle = cluster(7, None);
        assert!(oracle.speaks(N).is_ok());
        oracle.fences(N, true, "rolled back").unwrap();
        assert!(oracle.speaks(N).is_err());
        oracle.starts(N, &found(7, None));
        assert!(oracle.speaks(N).is_ok());
        assert!(oracle.votes(N, G, "votes in").is_err());
        assert!(cluster(7, None).fences(N, false, "no cause").is_err());
    }

    #[test]
    fn fires_on_a_vote_in_doubt() {
        let mut oracle = cluster(7, Some(Doubt::default()));
        assert!(oracle.votes(N, G, "votes in").is_err());
        oracle.sound(N, GroupId::SYSTEM, Lsn(3));
        assert!(oracle.votes(N, GroupId(3), "votes in").is_err());
        assert!(oracle.votes(N, G, "votes in").is_ok(), "created after the bound");
        oracle.sound(N, GroupId(3), Lsn(9));
        assert!(oracle.votes(N, GroupId(3), "votes in").is_ok());
    }
}
