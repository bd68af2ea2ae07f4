//! Liveness per pair of nodes: one heartbeat stream a pair serves all groups, so that an idle
//! group costs no message and no timer.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::{
    io::Identity,
    types::{Boot, GroupId, Incarnation, Instant, Member, NodeId, Peer, Term},
};

/// What this node knows of another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerState {
    /// The data directory it was last seen with; zero before the first message.
    pub(crate) incarnation: Incarnation,
    /// The start of it that was last seen.
    pub(crate) boot: Boot,
    /// The start of it before that one, in the same directory: of those that were seen since the log
    /// noted one, the first.
    pub(crate) met: Option<Boot>,
    /// The log notes the last one: that has vouched for something, so it was told of the one before.
    pub(crate) is_noted: bool,
    /// When it was last heard.
    pub(crate) heard: Option<Instant>,
    /// Heard within the election timeout.
    pub(crate) alive: bool,
    /// The latest of this node's own sending times that it echoed: it hears us.
    pub(crate) echoed: Option<Instant>,
    /// Its latest sending time, to be echoed.
    pub(crate) sent: Option<Instant>,
    /// Its leadership generation.
    pub(crate) generation: u64,
    /// Groups that follow it, for which it has yet to say that it leads them still: those that
    /// began to follow it lately, and all at a new generation.
    pub(crate) unconfirmed: BTreeMap<GroupId, Term>,
    /// Since when it has left that question open.
    pub(crate) asked: Option<Instant>,
}

/// What a message's sender turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// As before.
    Same,
    /// It has restarted, or was wiped, or is seen for the first time.
    NewBoot,
    /// An earlier start or data directory, or no peer of ours: drop the message.
    Stale,
    /// The same boot counter with another nonce: a copied or rolled-back data directory.
    Twin,
}

pub(crate) struct Peers {
    states: BTreeMap<NodeId, PeerState>,
}

impl Peers {
    /// `boots`: the starts that were met before this one.
    pub(crate) fn new(identity: &Identity, boots: &[(Member, Boot)]) -> Peers {
        let me = identity.member.node;
        let others = identity.nodes.iter().filter(|node| **node != me);
        let mut states: BTreeMap<NodeId, PeerState> =
            others.map(|node| (*node, PeerState::default())).collect();
        for (Member { node, incarnation }, boot) in boots {
            if let Some(state) = states.get_mut(node)
                && (*incarnation, boot.counter) > (state.incarnation, state.boot.counter)
            {
                (state.incarnation, state.boot, state.is_noted) = (*incarnation, *boot, true);
            }
        }
        Peers { states }
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&PeerState> {
        self.states.get(&node)
    }

    pub(crate) fn get_mut(&mut self, node: NodeId) -> Option<&mut PeerState> {
        self.states.get_mut(&node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &PeerState)> {
        self.states.iter().map(|(node, state)| (*node, state))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut PeerState)> {
        self.states.iter_mut().map(|(node, state)| (*node, state))
    }

    pub(crate) fn ids(&self) -> alloc::vec::Vec<NodeId> {
        self.states.keys().copied().collect()
    }

    /// Whether a node was heard lately.
    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.states.get(&node).is_some_and(|p| p.alive)
    }

    /// Whether a node is heard, and echoed us within `window` before `now`.
    pub(crate) fn is_in_touch(&self, node: NodeId, now: Instant, window: u64) -> bool {
        self.states
            .get(&node)
            .is_some_and(|p| p.alive && p.echoed.is_some_and(|echoed| now.since(echoed) <= window))
    }

    /// Whether this very member echoed us within `window` before `now`.
    pub(crate) fn hears_us(&self, member: Member, now: Instant, window: u64) -> bool {
        self.states.get(&member.node).is_some_and(|p| {
            p.incarnation == member.incarnation
                && p.echoed.is_some_and(|echoed| now.since(echoed) <= window)
        })
    }

    /// A member has answered a question of ours, which is as good as an echo.
    pub(crate) fn answered(&mut self, member: Member, now: Instant) {
        if let Some(state) = self.states.get_mut(&member.node)
            && state.incarnation == member.incarnation
        {
            state.echoed = state.echoed.max(Some(now));
        }
    }

    /// The last start of every peer that was met.
    pub(crate) fn boots(&self) -> impl Iterator<Item = (Member, Boot)> {
        let met =
            self.states.iter().filter(|(_, state)| state.incarnation != Incarnation::default());
        met.map(|(node, state)| {
            (Member { node: *node, incarnation: state.incarnation }, state.boot)
        })
    }

    /// Every member that echoed us within `window` before `now`.
    pub(crate) fn hearing_us(&self, now: Instant, window: u64) -> BTreeSet<Member> {
        let members = self
            .states
            .iter()
            .map(|(node, state)| Member { node: *node, incarnation: state.incarnation });
        members.filter(|member| self.hears_us(*member, now, window)).collect()
    }

    /// Takes note of a message's sender.
    pub(crate) fn observe(&mut self, from: Peer, now: Instant) -> Seen {
        let Some(state) = self.states.get_mut(&from.member.node) else {
            return Seen::Stale;
        };
        let known = (state.incarnation, state.boot.counter);
        let seen = match (from.member.incarnation, from.boot.counter).cmp(&known) {
            core::cmp::Ordering::Less => return Seen::Stale,
            core::cmp::Ordering::Greater => {
                let same_member = from.member.incarnation == state.incarnation;
                *state = PeerState {
                    incarnation: from.member.incarnation,
                    boot: from.boot,
                    met: state
                        .met
                        .filter(|_| !state.is_noted)
                        .or(Some(state.boot))
                        .filter(|_| same_member),
                    // That it heard us then stays true.
                    echoed: state.echoed.filter(|_| same_member),
                    ..PeerState::default()
                };
                Seen::NewBoot
            }
            core::cmp::Ordering::Equal if state.boot.nonce != from.boot.nonce => return Seen::Twin,
            core::cmp::Ordering::Equal => Seen::Same,
        };
        state.heard = Some(now);
        seen
    }
}
