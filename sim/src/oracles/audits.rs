//! O32. Audits: the root that a replica comes to is that of the reference, unless its state was changed
//! behind its back; such a replica is found, by an audit or by the scrub, leaves service at once, and
//! answers no read before its state is dropped. A root that is shown as verified is the right one.
//!
//! semantics.md 12, 13. Failures 37, 46, 53, 56.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{GroupId, Lsn, NodeId, Root};

use super::{Broken, Verdict, broken};

type Process = (NodeId, u64);

/// What was done to states, and what is known of their roots.
#[derive(Debug, Default)]
pub(crate) struct Audits {
    due: BTreeMap<(GroupId, Lsn), Root>,
    /// States that were changed, and not found out yet.
    tampered: BTreeMap<(NodeId, GroupId), String>,
    /// Such states in copies of nodes' disks.
    copies: BTreeMap<(NodeId, GroupId), String>,
    /// Up to where each replica's state was right at its last audit.
    right: BTreeMap<(NodeId, GroupId), Lsn>,
    /// The last root of each replica.
    own: BTreeMap<(NodeId, GroupId), (u64, Lsn, Root)>,
    /// Who must have left service after this step.
    doomed: BTreeSet<(Process, GroupId)>,
    /// Who has, and not dropped its state yet.
    condemned: BTreeMap<(NodeId, GroupId), u64>,
    diverged: BTreeSet<(NodeId, GroupId)>,
    /// What each replica shows as verified.
    shown: BTreeMap<(NodeId, GroupId), Lsn>,
}

impl Audits {
    /// A state is changed behind its node's back.
    pub(crate) fn tampered(&mut self, node: NodeId, group: GroupId, how: String) {
        self.tampered.insert((node, group), how);
    }

    /// A node's disk is copied.
    pub(crate) fn copied(&mut self, node: NodeId) {
        self.copies.retain(|(n, _), _| *n != node);
        let of_it = self.tampered.iter().filter(|((n, _), _)| *n == node);
        self.copies.extend(of_it.map(|(key, how)| (*key, how.clone())));
    }

    /// It holds what its copy held.
    pub(crate) fn rolled_back(&mut self, node: NodeId) {
        self.is_gone(node, None);
        self.tampered.extend(self.copies.extract_if(.., |(n, _), _| *n == node));
    }

    /// A node's state of a group, or of all, is gone.
    pub(crate) fn is_gone(&mut self, node: NodeId, group: Option<GroupId>) {
        let is_it =
            |(n, g): &(NodeId, GroupId)| *n == node && group.is_none_or(|group| group == *g);
        self.tampered.retain(|key, _| !is_it(key));
        self.own.retain(|key, _| !is_it(key));
        self.right.retain(|key, _| !is_it(key));
        self.condemned.retain(|key, _| !is_it(key));
    }

    /// The root that is right at an LSN, once somebody knows.
    pub(crate) fn due(&mut self, at: (GroupId, Lsn), reference: impl FnOnce() -> Root) -> Root {
        *self.due.entry(at).or_insert_with(reference)
    }

    /// A replica's state machine came to this root, and that one is due.
    pub(crate) fn audited(
        &mut self,
        (node, process): Process,
        (group, lsn): (GroupId, Lsn),
        root: Root,
        due: Root,
    ) -> Verdict {
        self.own.insert((node, group), (process, lsn, root));
        if root == due {
            self.right.insert((node, group), lsn);
        }
        if root == due || self.tampered.contains_key(&(node, group)) {
            return Ok(());
        }
        let right = self.right.get(&(node, group)).copied().unwrap_or_default();
        let what = format!("{node:?} audits {group:?} at {lsn:?} as {root:?}, due is {due:?}");
        // Whatever was applied since may be why.
        Err(broken(what).on(node).of(group).lsns(right.min(lsn.prev()).next(), lsn))
    }

    /// A replica shows a verified root, and that one is due, where anybody knows.
    /// Whether that is news.
    pub(crate) fn shows(
        &mut self,
        node: NodeId,
        (group, lsn): (GroupId, Lsn),
        root: Root,
    ) -> Result<bool, Broken> {
        match self.due.get(&(group, lsn)) {
            Some(due) if *due == root => Ok(self.shown.insert((node, group), lsn) != Some(lsn)),
            due => {
                let what =
                    format!("{node:?} shows {root:?} at {lsn:?} of {group:?}: due is {due:?}");
                Err(broken(what).on(node).of(group).at(lsn))
            }
        }
    }

    /// A process is about to take in what its leader says.
    pub(crate) fn hears(
        &mut self,
        (node, process): Process,
        group: GroupId,
        (at, agreed): (Lsn, Root),
    ) {
        let differs =
            |(p, lsn, root): &(u64, Lsn, Root)| *p == process && *lsn == at && *root != agreed;
        if self.own.get(&(node, group)).is_some_and(differs) {
            self.doomed.insert(((node, process), group));
        }
    }

    /// A process has made a step: whether it has done what it heard calls for. `serves` tells whether a
    /// group is in service there.
    pub(crate) fn steps(&mut self, process: Process, serves: impl Fn(GroupId) -> bool) -> Verdict {
        let mut heard = self.doomed.extract_if(.., |(p, _)| *p == process);
        match heard.find(|(_, group)| serves(*group)) {
            None => Ok(()),
            Some((_, group)) => {
                let what = format!("{:?} differs in {group:?}, is told, and goes on", process.0);
                Err(broken(what).on(process.0).of(group))
            }
        }
    }

    /// A replica leaves service, since it differs.
    pub(crate) fn diverges(&mut self, (node, process): Process, group: GroupId) {
        self.condemned.insert((node, group), process);
        self.diverged.insert((node, group));
    }

    /// Whether a replica has left service, and not dropped its state yet.
    pub(crate) fn is_condemned(&self, (node, process): Process, group: GroupId) -> bool {
        self.condemned.get(&(node, group)) == Some(&process)
    }

    /// A replica that had left service has answered a read.
    pub(crate) fn served(node: NodeId, group: GroupId) -> Verdict {
        let what = format!("{node:?} answers a read of {group:?}, which is out of service there");
        Err(broken(what).on(node).of(group))
    }

    /// A replica is in service again. Whether it had diverged.
    pub(crate) fn returns(&mut self, node: NodeId, group: GroupId) -> bool {
        self.diverged.remove(&(node, group))
    }

    /// What these nodes have not found out.
    pub(crate) fn undetected(&self, nodes: &[NodeId]) -> Vec<String> {
        let of = self.tampered.iter().filter(|((node, _), _)| nodes.contains(node));
        of.map(|((node, group), how)| format!("{node:?}, {group:?}: {how}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Process = (NodeId(1), 4);
    const G: GroupId = GroupId(2);

    fn said(lsn: u64, root: u128) -> (Lsn, Root) {
        (Lsn(lsn), Root(root))
    }

    #[test]
    fn fires_on_a_wrong_root_without_cause() {
        let mut oracle = Audits::default();
        let due = oracle.due((G, Lsn(5)), || Root(1));
        assert_eq!(oracle.due((G, Lsn(5)), || Root(2)), due);
        assert!(oracle.audited(P, (G, Lsn(5)), Root(1), due).is_ok());
        assert!(oracle.audited(P, (G, Lsn(5)), Root(2), due).is_err());
        oracle.tampered(P.0, G, "sums".to_owned());
        assert!(oracle.audited(P, (G, Lsn(5)), Root(2), due).is_ok());
        assert_eq!(oracle.undetected(&[P.0]).len(), 1);
        assert!(oracle.undetected(&[NodeId(2)]).is_empty());
        oracle.is_gone(P.0, Some(G));
        assert!(oracle.undetected(&[P.0]).is_empty());
        assert_eq!(oracle.shows(P.0, (G, Lsn(5)), Root(1)), Ok(true));
        assert_eq!(oracle.shows(P.0, (G, Lsn(5)), Root(1)), Ok(false));
        assert!(oracle.shows(P.0, (G, Lsn(5)), Root(2)).is_err());
        assert!(oracle.shows(P.0, (G, Lsn(6)), Root(1)).is_err(), "nobody came to that");
    }

    #[test]
    fn a_copy_brings_back_what_was_done_to_it() {
        let mut oracle = Audits::default();
        oracle.tampered(P.0, G, "sums".to_owned());
        oracle.copied(P.0);
        oracle.is_gone(P.0, Some(G));
        assert!(oracle.audited(P, (G, Lsn(5)), Root(2), Root(1)).is_err());
        oracle.rolled_back(P.0);
        assert!(oracle.audited(P, (G, Lsn(5)), Root(2), Root(1)).is_ok());
        oracle.rolled_back(P.0);
        assert!(oracle.audited(P, (G, Lsn(5)), Root(2), Root(1)).is_err(), "it is used up");
    }

    #[test]
    fn fires_on_who_is_told_and_goes_on() {
        let mut oracle = Audits::default();
        oracle.tampered(P.0, G, "sums".to_owned());
        oracle.audited(P, (G, Lsn(5)), Root(2), Root(1)).unwrap();
        oracle.hears(P, G, said(4, 1));
        oracle.hears(P, G, said(5, 2));
        assert!(oracle.steps(P, |_| true).is_ok());
        oracle.hears(P, G, said(5, 1));
        assert!(oracle.steps((NodeId(1), 5), |_| true).is_ok(), "another process");
        assert!(oracle.steps(P, |_| true).is_err());
        oracle.hears(P, G, said(5, 1));
        assert!(oracle.steps(P, |_| false).is_ok());
        oracle.diverges(P, G);
        assert!(oracle.is_condemned(P, G) && !oracle.is_condemned((NodeId(1), 5), G));
        assert!(Audits::served(P.0, G).is_err());
        oracle.is_gone(P.0, Some(G));
        assert!(!oracle.is_condemned(P, G));
        assert!(oracle.returns(P.0, G) && !oracle.returns(P.0, G));
    }
}
