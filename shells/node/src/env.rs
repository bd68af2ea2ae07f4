//! What the machine provides, as traits: production implements them thinly, the simulator in full.

use std::{future::Future, sync::Arc};

use highwater_core::{Instant, NodeId, Now, Peer};
use highwater_wire::peer::PeerMessage;

/// A node's clocks.
pub trait Clock: Clone + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Now;
    /// Returns once this node's monotonic clock has reached `at`.
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// A way to other nodes. Messages may be lost; those of one boot never reach another one's.
pub trait Transport: Send + Sync + 'static {
    /// Queues what one pass of the driver has to say. Never blocks; drops what it can't take.
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>);
}

/// A message that arrived.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Who sent it; the transport has checked it.
    pub from: Peer,
    /// What.
    pub message: PeerMessage,
}

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        (**self).send(messages);
    }
}
