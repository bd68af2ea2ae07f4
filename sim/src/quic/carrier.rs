//! What real QUIC carries, as its users see it: messages instead of encrypted datagrams. They go into
//! the trace, and to the oracle of the transport.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use highwater_core::{NodeId, Peer};
use highwater_node::env::{Inbound, Transport};
use highwater_quic::Quic;
use highwater_wire::{message, peer::PeerMessage};
use tokio::sync::mpsc;

use crate::{
    cluster::Process,
    net::{Network, brief},
    oracles,
    trace::{Kind, digest},
};

/// Sees what a process sends and hears.
#[derive(Clone)]
pub(super) struct Onlooker {
    pub(super) network: Arc<Network>,
    pub(super) oracle: Arc<Mutex<oracles::transport::Transport>>,
    pub(super) process: Arc<Process>,
    pub(super) identity: Peer,
}

/// A message's length and digest.
fn measure(message: &PeerMessage) -> (u64, u64) {
    let mut frame = BytesMut::new();
    message::encode(message, &mut frame);
    (frame.len() as u64, digest(&frame))
}

impl Onlooker {
    fn oracle(&self) -> MutexGuard<'_, oracles::transport::Transport> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sends(&self, to: NodeId, message: &PeerMessage) {
        let (bytes, digest) = measure(message);
        if let Some(process) = self.network.process_at(to) {
            self.oracle().sends(self.identity, (to, process), digest);
        }
        let node = self.process.id.0;
        self.network.world.event(Kind::Send, node.0, to.0, bytes, digest, || {
            format!("to {to:?} {}", brief(message))
        });
        self.network.world.tell(|story| {
            story.message(node, to, message);
            story.letter(digest, node, to);
        });
    }

    fn hears(&self, Inbound { from, message }: &Inbound) {
        let ((bytes, digest), world) = (measure(message), &self.network.world);
        let (node, sender) = (self.process.id.0, from.member.node);
        world.event(Kind::Deliver, node.0, sender.0, bytes, digest, || {
            format!("from {sender:?} {}", brief(message))
        });
        world.tell(|story| {
            story.letter_arrives(digest, sender, node);
            story.delivered(node, sender, message);
        });
        let verdict = self.oracle().hears(self.process.id, *from, digest);
        world.check("transport", verdict);
    }

    /// Hands on what arrives for the driver, for as long as both ends live.
    pub(super) async fn hand_on(
        self,
        mut arriving: mpsc::Receiver<Inbound>,
        driver: mpsc::Sender<Inbound>,
    ) {
        while let Some(inbound) = arriving.recv().await {
            self.hears(&inbound);
            if driver.send(inbound).await.is_err() {
                return;
            }
        }
    }
}

/// The transport as the driver has it.
pub(super) struct Carrier {
    pub(super) quic: Quic,
    pub(super) onlooker: Onlooker,
}

impl Transport for Carrier {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        if self.onlooker.process.is_dead() {
            return;
        }
        for (to, message) in &messages {
            self.onlooker.sends(*to, message);
        }
        self.quic.send(messages);
    }
}
