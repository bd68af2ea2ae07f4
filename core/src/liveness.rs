//! Liveness per pair of nodes: heartbeats, silence, restarts, and what a new leadership generation
//! means for the groups that followed.

use alloc::{collections::BTreeSet, vec::Vec};

use crate::{
    context::Reason,
    message::Message,
    node::Node,
    peers::Seen,
    types::{GroupId, Instant, NodeId, Now, Peer, Term},
};

impl Node {
    /// Time passes. A node that was paused or starved grants its peers the time that it missed:
    /// what they said may still wait in a buffer. Only liveness hangs on this.
    pub(crate) fn advance_clock(&mut self, now: Now) {
        let before = self.ctx.now.mono;
        self.ctx.now = Now { mono: now.mono.max(before), wall_ms: now.wall_ms };
        let gap = self.ctx.now.mono.since(before);
        let beat = self.ctx.config.heartbeat_us;
        if gap <= 2 * beat {
            return;
        }
        for (_, peer) in self.ctx.peers.iter_mut() {
            peer.heard = peer.heard.map(|at| at.plus(gap - beat));
            peer.echoed = peer.echoed.map(|at| at.plus(gap - beat));
            peer.asked = peer.asked.map(|at| at.plus(gap - beat));
        }
    }

    pub(crate) fn on_message(&mut self, from: Peer, message: Message) {
        let node = from.member.node;
        let seen = self.ctx.peers.observe(from, self.ctx.now.mono);
        if let (Seen::Stale | Seen::Twin, Message::Recall { from: first }) = (seen, &message) {
            return self.on_recall(from, *first);
        }
        match seen {
            Seen::Stale => return,
            Seen::Twin => {
                return self.ctx.fault(node, "two processes use copies of one data directory");
            }
            Seen::NewBoot => self.on_new_boot(from),
            Seen::Same => {}
        }
        self.on_heard(node);
        match message {
            Message::Heartbeat { generation, sent, echo } => {
                self.on_heartbeat(node, generation, sent, echo);
            }
            Message::Confirm { groups } => self.on_confirm(node, groups),
            Message::Confirmed { leading, ceased } => self.on_confirmed(node, leading, ceased),
            Message::FormProbe => self.on_form_probe(from),
            Message::FormBlank { prober } => self.on_form_blank(from, prober),
            Message::Formed(formation) => self.on_formed(from, formation),
            Message::Recall { from: first } => self.on_recall(from, first),
            Message::Recalled { incarnation, boot, met, groups, next } => {
                self.on_recalled(node, (incarnation, boot, met), &groups, next);
            }
            Message::Group { group, term, message } => {
                // A group that is not in the catalog applied here does not exist here, yet.
                if let Some(g) = self.groups.get_mut(&group) {
                    g.receive(&mut self.ctx, from, term, message);
                    self.ctx.touched.insert(group);
                }
            }
        }
    }

    /// A peer's process is another one: what it led, it leads no more, and what was on its way to
    /// it is lost.
    fn on_new_boot(&mut self, from: Peer) {
        let node = from.member.node;
        self.lose_leader(self.ctx.groups_led_by(node));
        self.contact(node);
    }

    /// These groups have no leader any more.
    fn lose_leader(&mut self, groups: Vec<GroupId>) {
        self.ctx.losing = groups.len() as u64;
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                group.on_leader_lost(&mut self.ctx);
                self.ctx.touched.insert(id);
            }
        }
        self.ctx.losing = 0;
    }

    /// The groups led here ask a peer where it stands.
    pub(crate) fn contact(&mut self, node: NodeId) {
        for id in self.ctx.groups_led_by(self.ctx.me().node) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.on_contact(&mut self.ctx, node);
            }
        }
    }

    fn on_heard(&mut self, node: NodeId) {
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        if !peer.alive {
            peer.alive = true;
            self.contact(node);
            let at = self.ctx.now.mono.plus(self.ctx.config.election_timeout_us);
            self.ctx.set_timer(Reason::PeerExpiry(node), at);
        }
    }

    pub(crate) fn on_peer_expiry_due(&mut self, node: NodeId) {
        let timeout = self.ctx.config.election_timeout_us;
        let now = self.ctx.now.mono;
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        let Some(heard) = peer.heard else { return };
        if now.since(heard) < timeout {
            return self.ctx.set_timer(Reason::PeerExpiry(node), heard.plus(timeout));
        }
        peer.alive = false;
        self.lose_leader(self.ctx.groups_led_by(node));
    }

    pub(crate) fn on_heartbeat_due(&mut self) {
        let at = self.ctx.now.mono.plus(self.ctx.config.heartbeat_us);
        self.ctx.set_timer(Reason::Heartbeat, at);
        self.ask_to_recall();
        let (generation, sent) = (self.ctx.generation, self.ctx.now.mono);
        for node in self.ctx.peers.ids() {
            let echo = self.ctx.peers.get(node).and_then(|peer| peer.sent);
            self.ctx.send(node, Message::Heartbeat { generation, sent, echo });
            self.give_up_unconfirmed(node);
            self.ask_to_confirm(node);
        }
        self.probe_formation();
        self.check_quorums();
        if self.ctx.draining {
            for id in self.ctx.groups_led_by(self.ctx.me().node) {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.hand_over(&mut self.ctx);
                }
            }
        }
    }

    /// The groups led here need a quorum that hears this node. One that had it keeps it for as long
    /// as nobody stops hearing: only then are all of them looked at.
    fn check_quorums(&mut self) {
        let window = self.ctx.config.election_timeout_us;
        let hearing = self.ctx.peers.hearing_us(self.ctx.now.mono, window);
        let unchecked = core::mem::take(&mut self.ctx.unchecked);
        let groups: Vec<GroupId> = if hearing.is_superset(&self.ctx.hearing) {
            unchecked.into_iter().collect()
        } else {
            self.ctx.groups_led_by(self.ctx.me().node)
        };
        self.ctx.losing = groups.len() as u64;
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                group.check_quorum(&mut self.ctx, &hearing);
                self.ctx.touched.insert(id);
            }
        }
        self.ctx.losing = 0;
        self.ctx.hearing = hearing;
    }

    fn on_heartbeat(
        &mut self,
        node: NodeId,
        generation: u64,
        sent: Instant,
        echo: Option<Instant>,
    ) {
        let now = self.ctx.now.mono;
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        peer.sent = peer.sent.max(Some(sent));
        peer.echoed = peer.echoed.max(echo.filter(|at| *at <= now));
        if generation <= peer.generation {
            return;
        }
        peer.generation = generation;
        // It stopped leading something: ask which of those that follow it here.
        let groups: Vec<(GroupId, Term)> = self
            .ctx
            .groups_led_by(node)
            .into_iter()
            .filter_map(|id| self.groups.get(&id).map(|group| (id, group.term())))
            .collect();
        if let Some(peer) = self.ctx.peers.get_mut(node) {
            peer.unconfirmed.extend(groups);
        }
        self.ask_to_confirm(node);
    }

    /// A node that is heard but does not answer whether it leads may not hear us: then it leads
    /// nothing that this node can follow.
    fn give_up_unconfirmed(&mut self, node: NodeId) {
        let timeout = self.ctx.config.election_timeout_us;
        let now = self.ctx.now.mono;
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        if peer.asked.is_some_and(|at| now.since(at) > timeout) {
            peer.asked = None;
            let groups = core::mem::take(&mut peer.unconfirmed).into_keys().collect();
            self.lose_leader(groups);
        }
    }

    fn ask_to_confirm(&mut self, node: NodeId) {
        let max = self.ctx.config.confirm_groups_max;
        let now = self.ctx.now.mono;
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        if !peer.alive || peer.unconfirmed.is_empty() {
            peer.asked = None;
        } else {
            peer.asked.get_or_insert(now);
            let groups = peer.unconfirmed.iter().take(max).map(|(id, term)| (*id, *term)).collect();
            self.ctx.send(node, Message::Confirm { groups });
        }
    }

    fn on_confirm(&mut self, node: NodeId, mut groups: Vec<(GroupId, Term)>) {
        // The peer may have other limits; it asks for the rest again.
        groups.truncate(self.ctx.config.confirm_groups_max);
        let (leading, ceased) = groups.into_iter().partition(|(id, term)| {
            self.groups.get(id).is_some_and(|group| group.is_leader() && group.term() == *term)
        });
        self.ctx.send(node, Message::Confirmed { leading, ceased });
    }

    fn on_confirmed(
        &mut self,
        node: NodeId,
        leading: Vec<(GroupId, Term)>,
        ceased: Vec<(GroupId, Term)>,
    ) {
        let Some(peer) = self.ctx.peers.get_mut(node) else { return };
        let mut lost = BTreeSet::new();
        peer.asked = None;
        for (id, term) in leading {
            if peer.unconfirmed.get(&id) == Some(&term) {
                peer.unconfirmed.remove(&id);
            }
        }
        for (id, term) in ceased {
            if peer.unconfirmed.get(&id) == Some(&term) {
                peer.unconfirmed.remove(&id);
                lost.insert((id, term));
            }
        }
        lost.retain(|(id, term)| {
            let in_term = self.groups.get(id).is_some_and(|group| group.term() == *term);
            in_term && self.leader_of(*id) == Some(node)
        });
        self.lose_leader(lost.into_iter().map(|(id, _)| id).collect());
        self.ask_to_confirm(node);
    }
}
