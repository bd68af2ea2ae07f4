//! What real QUIC carries, as its users see it: messages instead of encrypted datagrams. Checks what
//! drivers rely on ([`Transport`]): what arrives was sent by whom it is said to be from, to this very
//! process, and arrives once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::BytesMut;
use highwater_core::{NodeId, Peer};
use highwater_node::env::{Inbound, Transport};
use highwater_quic::Quic;
use highwater_wire::{message, peer::PeerMessage};
use tokio::sync::mpsc;

use crate::{
    cluster::Process,
    net::{Network, brief},
    trace::{Kind, digest},
};

/// Who sent it, the process that had the address then, and the bytes.
type Key = (Peer, u64, u64);

/// Messages under way in one run. Those that are lost with a connection stay.
#[derive(Default)]
pub(super) struct Ledger(Mutex<BTreeMap<Key, u64>>);

impl Ledger {
    fn sent(&self, key: Key) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    /// Whether such a message was under way.
    fn arrived(&self, key: Key) -> bool {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = under_way.get_mut(&key) else { return false };
        *count -= 1;
        if *count == 0 {
            under_way.remove(&key);
        }
        true
    }
}

/// A process's end of the transport.
#[derive(Clone)]
pub(super) struct Observed {
    pub(super) network: Arc<Network>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) process: Arc<Process>,
    pub(super) identity: Peer,
}

fn encoded(message: &PeerMessage) -> (u64, u64) {
    let mut frame = BytesMut::new();
    message::encode(message, &mut frame);
    (frame.len() as u64, digest(&frame))
}

impl Observed {
    fn sends(&self, to: NodeId, message: &PeerMessage) {
        let (bytes, digest) = encoded(message);
        if let Some(process) = self.network.process_at(to) {
            self.ledger.sent((self.identity, process, digest));
        }
        let node = self.process.id.0;
        self.network.world.event(Kind::Send, node.0, to.0, bytes, digest, || {
            format!("to {to:?} {}", brief(message))
        });
    }

    /// Hands on what arrives for the driver, for as long as both ends live.
    pub(super) async fn receive(
        self,
        mut arriving: mpsc::Receiver<Inbound>,
        driver: mpsc::Sender<Inbound>,
    ) {
        while let Some(inbound) = arriving.recv().await {
            self.receives(&inbound);
            if driver.send(inbound).await.is_err() {
                return;
            }
        }
    }

    fn receives(&self, inbound: &Inbound) {
        let (node, process) = self.process.id;
        let (from, message) = (inbound.from.member.node, &inbound.message);
        let (bytes, digest) = encoded(message);
        let world = &self.network.world;
        world.event(Kind::Deliver, node.0, from.0, bytes, digest, || {
            format!("from {from:?} {}", brief(message))
        });
        if !self.ledger.arrived((inbound.from, process, digest)) {
            let what = format!(
                "process {process} of {node:?} heard from {:?} what was not sent to it, or twice: {}",
                inbound.from,
                brief(message)
            );
            world.fail("transport", what);
        }
    }
}

/// The transport as the driver has it.
pub(super) struct Carrier {
    pub(super) quic: Quic,
    pub(super) observed: Observed,
}

impl Transport for Carrier {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        if self.observed.process.is_dead() {
            return;
        }
        for (to, message) in &messages {
            self.observed.sends(*to, message);
        }
        self.quic.send(messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_was_sent_and_arrives_once() {
        let (ledger, peer) = (Ledger::default(), Peer::default());
        ledger.sent((peer, 1, 7));
        ledger.sent((peer, 1, 7));
        assert!(ledger.arrived((peer, 1, 7)) && ledger.arrived((peer, 1, 7)));
        assert!(!ledger.arrived((peer, 1, 7)), "a third time");
        ledger.sent((peer, 1, 7));
        assert!(!ledger.arrived((peer, 2, 7)), "another process");
        assert!(!ledger.arrived((peer, 1, 8)), "other bytes");
    }
}
