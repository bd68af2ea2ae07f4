//! The atlas: what the cluster still holds for certain, and so which damage it claims to survive.
//!
//! A committed entry is on a quorum of voters when it is committed. It stays on one for as long as
//! no more than a minority of the voters loses what it holds. So that this is always so:
//! 1. A voter whose disk was **wiped** or **rolled back**, or whose data directory was **fenced**, is
//!    *lost* for good: it counts for nothing from then on, and nobody takes its place, since there is
//!    no change of membership yet.
//! 2. A node whose oplog was **damaged** is *hurt* until nothing of the damage is left: it was mended
//!    in place, or cut.
//! 3. A node whose oplog was **cut** by damage is *weak* until each of its groups in doubt is sound
//!    again, as the node itself says.
//! 4. A node whose materialized state was **damaged**, where its log does not reach back to the beginning,
//!    is *stale* until all its groups are in service again and nothing is undetected: what was pruned is
//!    held by states alone.
//! 5. Lost, hurt, weak and stale nodes together are never more than a minority. What would make them more
//!    is not done; what strikes a node that is lost already costs nothing.
//! 6. A disk is rolled back only where a peer remembers the later state and is met: all others run
//!    and the network is calm, from before the power goes until the node has its answers.
//!
//! Everything else takes nothing that a node has acknowledged, or, like damage to the materialized
//! state where nothing is pruned, nothing that its own oplog does not hold: it needs no admission.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use highwater_core::NodeId;

#[derive(Debug, Default)]
struct State {
    lost: BTreeSet<NodeId>,
    hurt: BTreeSet<NodeId>,
    weak: BTreeSet<NodeId>,
    stale: BTreeSet<NodeId>,
}

/// What the cluster of one run holds for certain.
#[derive(Debug)]
pub(crate) struct Atlas {
    voters: BTreeSet<NodeId>,
    state: Mutex<State>,
}

impl State {
    fn is_sound(&self, node: NodeId) -> bool {
        [&self.lost, &self.hurt, &self.weak, &self.stale].iter().all(|set| !set.contains(&node))
    }
}

impl Atlas {
    pub(crate) fn new(nodes: &[NodeId]) -> Atlas {
        Atlas { voters: nodes.iter().copied().collect(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Voters that are needed for anything.
    fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether a node may lose something that it holds.
    pub(crate) fn may_lose(&self, node: NodeId) -> bool {
        let state = self.lock();
        let rest = self.voters.iter().filter(|n| **n != node && state.is_sound(**n)).count();
        state.lost.contains(&node) || rest >= self.quorum()
    }

    /// A node has lost what it held, for good.
    pub(crate) fn lose(&self, node: NodeId) {
        let mut state = self.lock();
        state.lost.insert(node);
        state.hurt.remove(&node);
        state.weak.remove(&node);
        state.stale.remove(&node);
    }

    /// Whether a node has lost what it held.
    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.lock().lost.contains(&node)
    }

    /// A node's oplog was damaged.
    pub(crate) fn hurt(&self, node: NodeId) {
        let mut state = self.lock();
        if !state.lost.contains(&node) {
            state.hurt.insert(node);
        }
    }

    /// Nothing is left of the damage.
    pub(crate) fn heals(&self, node: NodeId) {
        self.lock().hurt.remove(&node);
    }

    /// A node's state was damaged, and its log can't make up for it.
    pub(crate) fn goes_stale(&self, node: NodeId) {
        let mut state = self.lock();
        if !state.lost.contains(&node) {
            state.stale.insert(node);
        }
    }

    /// Its states are whole.
    pub(crate) fn freshens(&self, node: NodeId) {
        self.lock().stale.remove(&node);
    }

    /// A node says that its log may lack what it has acknowledged.
    pub(crate) fn weakens(&self, node: NodeId) {
        let mut state = self.lock();
        if !state.lost.contains(&node) {
            state.weak.insert(node);
        }
    }

    /// Whether it is weak.
    pub(crate) fn is_weak(&self, node: NodeId) -> bool {
        self.lock().weak.contains(&node)
    }

    /// It says that it holds everything again.
    pub(crate) fn recovers(&self, node: NodeId) {
        self.lock().weak.remove(&node);
    }

    /// Of these nodes, in order, as many as the cluster can do without for good.
    pub(crate) fn dispensable(&self, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let state = self.lock();
        let mut sound: BTreeSet<NodeId> =
            self.voters.iter().copied().filter(|node| state.is_sound(*node)).collect();
        let mut without = BTreeSet::new();
        for node in nodes {
            // A weak node may yet be needed by nobody, but must be there to become sound.
            let counts = sound.contains(&node);
            if state.lost.contains(&node) || counts && sound.len() > self.quorum() {
                sound.remove(&node);
                without.insert(node);
            }
        }
        without
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: u64) -> Vec<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    #[test]
    fn never_more_than_a_minority() {
        for (size, minority) in [(3, 1), (4, 1), (5, 2), (7, 3), (9, 4)] {
            let atlas = Atlas::new(&nodes(size));
            let mut lost = 0;
            for node in nodes(size) {
                if atlas.may_lose(node) {
                    match lost % 4 {
                        0 => atlas.lose(node),
                        1 => atlas.hurt(node),
                        2 => atlas.weakens(node),
                        _ => atlas.goes_stale(node),
                    }
                    lost += 1;
                }
            }
            assert_eq!(lost, minority, "of {size}");
            assert!(atlas.may_lose(NodeId(1)), "it is lost already");
        }
    }

    #[test]
    fn what_is_mended_or_sound_may_be_struck_again() {
        let atlas = Atlas::new(&nodes(3));
        atlas.hurt(NodeId(1));
        assert!(!atlas.may_lose(NodeId(2)) && atlas.may_lose(NodeId(1)));
        // It starts before nothing is left of the damage.
        atlas.weakens(NodeId(1));
        atlas.heals(NodeId(1));
        assert!(!atlas.may_lose(NodeId(2)) && atlas.is_weak(NodeId(1)));
        atlas.recovers(NodeId(1));
        assert!(atlas.may_lose(NodeId(2)));
        atlas.goes_stale(NodeId(1));
        assert!(!atlas.may_lose(NodeId(2)));
        atlas.freshens(NodeId(1));
        atlas.lose(NodeId(2));
        atlas.weakens(NodeId(2));
        assert!(atlas.is_lost(NodeId(2)) && !atlas.may_lose(NodeId(3)));
    }

    #[test]
    fn a_quorum_of_sound_nodes_stays() {
        let atlas = Atlas::new(&nodes(5));
        let all = || nodes(5).into_iter();
        assert_eq!(atlas.dispensable(all()), nodes(2).into_iter().collect());
        atlas.lose(NodeId(5));
        assert_eq!(atlas.dispensable(all()), [NodeId(1), NodeId(5)].into());
        atlas.hurt(NodeId(1));
        assert_eq!(atlas.dispensable(all()), [NodeId(5)].into());
    }
}
