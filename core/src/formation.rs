//! How a cluster comes to be: once, by the lowest configured node, when every configured node is
//! reachable and blank. A blank node that meets a formed one never founds: it adopts the formed
//! configuration, as a member if its data directory is in it, else as one that follows without a
//! vote (`semantics.md` 11).

use alloc::{collections::BTreeMap, vec::Vec};

use crate::{
    entry::{Formation, Record},
    io::Notice,
    message::Message,
    node::Node,
    types::{Boot, GroupId, Incarnation, Instant, Member, NodeId, Peer, WriteId},
};

/// How far formation is.
#[derive(Debug, Default)]
pub(crate) struct Forming {
    /// Blank peers that answered this node's probes: with which data directory, and when.
    blank: BTreeMap<NodeId, (Incarnation, Instant)>,
    /// Decided or adopted, but not durable yet.
    pending: Option<(Formation, WriteId)>,
    formation: Option<Formation>,
}

impl Forming {
    pub(crate) fn done(&mut self, formation: Formation) {
        *self = Forming { formation: Some(formation), ..Forming::default() };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.formation.is_some()
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.formation.as_ref().map(|f| f.members.clone()).unwrap_or_default()
    }
}

impl Node {
    pub(crate) fn is_blank(&self) -> bool {
        self.forming.formation.is_none() && self.forming.pending.is_none()
    }

    /// With each heartbeat of a blank node.
    pub(crate) fn probe_formation(&mut self) {
        if !self.is_blank() {
            return;
        }
        for node in self.ctx.peers.ids() {
            self.ctx.send(node, Message::FormProbe);
        }
        self.maybe_found();
    }

    pub(crate) fn on_form_probe(&mut self, from: Peer) {
        let to = from.member.node;
        if let Some(formation) = &self.forming.formation {
            let message = Message::Formed(formation.clone());
            self.ctx.send(to, message);
        } else if self.is_blank() {
            self.ctx.send(to, Message::FormBlank { prober: from.member.incarnation });
        }
    }

    pub(crate) fn on_form_blank(&mut self, from: Peer, prober: Incarnation) {
        if self.is_blank() && prober == self.ctx.me().incarnation {
            let seen = (from.member.incarnation, self.ctx.now.mono);
            self.forming.blank.insert(from.member.node, seen);
            self.maybe_found();
        }
    }

    /// Founds, where this is the lowest configured node and all others were blank just now.
    fn maybe_found(&mut self) {
        let me = self.ctx.me();
        let nodes = self.ctx.identity.nodes.clone();
        if nodes.iter().min() != Some(&me.node) {
            return;
        }
        let window = self.ctx.config.election_timeout_us;
        let mut members = Vec::new();
        for node in nodes {
            if node == me.node {
                members.push(me);
                continue;
            }
            match self.forming.blank.get(&node) {
                Some((incarnation, seen)) if self.ctx.now.mono.since(*seen) <= window => {
                    members.push(Member { node, incarnation: *incarnation });
                }
                _ => return,
            }
        }
        members.sort_unstable();
        self.adopt(Formation { members });
    }

    pub(crate) fn on_formed(&mut self, from: Peer, formation: Formation) {
        if !self.is_blank() {
            return;
        }
        let members = &formation.members;
        let configured = members.iter().all(|m| self.ctx.identity.nodes.contains(&m.node));
        let in_order = members.windows(2).all(|pair| pair[0].node < pair[1].node);
        if configured && in_order && !members.is_empty() {
            self.adopt(formation);
        } else {
            self.ctx
                .fault(from.member.node, "it was formed with nodes that are not configured here");
        }
    }

    fn adopt(&mut self, formation: Formation) {
        let write = self.ctx.persist(GroupId::SYSTEM, Record::Formation(formation.clone()));
        self.forming.pending = Some((formation, write));
        // Nothing is written before the formation.
        let boots: Vec<(Member, Boot)> = self.ctx.peers.boots().collect();
        for (member, boot) in boots {
            self.ctx.persist_hint(Record::Boot { member, boot });
        }
    }

    /// A write is durable: perhaps the one that forms this node.
    pub(crate) fn on_formation_persisted(&mut self) {
        let Some((formation, write)) = self.forming.pending.take() else { return };
        if !self.ctx.is_persisted(write) {
            self.forming.pending = Some((formation, write));
            return;
        }
        let member = formation.members.contains(&self.ctx.me());
        self.ctx.notice(Notice::Formed { member });
        for member in &formation.members {
            // Not to itself either where it was a member under an earlier incarnation.
            if member.node != self.ctx.me().node {
                self.ctx.send(member.node, Message::Formed(formation.clone()));
            }
        }
        self.start_groups(formation);
    }
}
