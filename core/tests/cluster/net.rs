//! The network between nodes: rules per direction of a link.

use std::collections::BTreeMap;

use highwater_core::{Message, NodeId};

use super::{rng::Rng, text};

/// What happens to the messages from one node to another.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    pub(crate) loss_permille: u64,
    pub(crate) twice_permille: u64,
    pub(crate) delay_us: (u64, u64),
    /// Messages still to be lost, by kind; an empty name stands for any but heartbeats.
    pub(crate) lose: Vec<String>,
    /// This kind is lost for as long as this stands.
    pub(crate) block: Vec<String>,
    /// Of this kind only so many more pass.
    pub(crate) allow: BTreeMap<String, u64>,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            cut: false,
            loss_permille: 0,
            twice_permille: 0,
            delay_us: (1000, 1000),
            lose: Vec::new(),
            block: Vec::new(),
            allow: BTreeMap::new(),
        }
    }
}

/// Every link that is not as by default.
#[derive(Default)]
pub(crate) struct Net {
    links: BTreeMap<(NodeId, NodeId), Link>,
}

impl Net {
    pub(crate) fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    pub(crate) fn heal(&mut self) {
        self.links.clear();
    }

    /// The delays after which a message arrives: none if it is lost, two if it is repeated.
    pub(crate) fn route(
        &mut self,
        rng: &mut Rng,
        from: NodeId,
        to: NodeId,
        message: &Message,
    ) -> Vec<u64> {
        let link = self.link(from, to);
        let kind = text::kind(message);
        if link.cut || link.block.iter().any(|k| k == kind) {
            return Vec::new();
        }
        let beat = matches!(message, Message::Heartbeat { .. });
        if let Some(n) = link.lose.iter().position(|k| k == kind || (k.is_empty() && !beat)) {
            link.lose.remove(n);
            return Vec::new();
        }
        if let Some(left) = link.allow.get_mut(kind) {
            if *left == 0 {
                return Vec::new();
            }
            *left -= 1;
        }
        if rng.permille(link.loss_permille) {
            return Vec::new();
        }
        let (low, high) = link.delay_us;
        let mut delays = vec![rng.between(low, high)];
        if rng.permille(link.twice_permille) {
            delays.push(rng.between(low, 4 * high));
        }
        delays
    }
}
