//! The transport as the driver sees it.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use highwater_core::{ClusterId, GroupMessage, Message, NodeId, Peer};
use highwater_node::env::{Inbound, Transport};
use highwater_wire::{
    message::{DecodeError, encode, encode_hello},
    peer::{ForwardRequest, Hello, PeerMessage},
};
use quinn::{AsyncUdpSocket, Endpoint, Runtime, VarInt};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    accept::{self, HANDSHAKES_MAX},
    config::Configs,
    dial,
    greet::{Code, Fault},
    link::{Lane, Link, Ticket},
    tls::{NodeTls, TlsError},
};

/// How long [`Quic::close`] waits for what is queued.
const FLUSH: Duration = Duration::from_secs(1);

/// How long it then waits until the peers know.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a node's transport must know.
#[derive(Clone, Debug)]
pub struct QuicOptions {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node, its data directory and this start of it.
    pub identity: Peer,
    /// Where to listen (UDP); port 0 takes a free one.
    pub listen: SocketAddr,
    /// Every other node of the cluster; this one is ignored.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Where this node's HTTP listens, for the others' cluster view.
    pub http: String,
    /// Its certificate and the cluster's authority.
    pub tls: NodeTls,
}

/// Why the transport cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError {
    /// The socket cannot be had.
    #[error(
        "cannot listen on UDP {address}: {error}. Choose another address or port, or stop what uses it"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The hello cannot be encoded.
    #[error("the configured HTTP address is too long to be told to other nodes: {0}")]
    Hello(DecodeError),
}

/// What carries the packets.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Timers and tasks for quinn.
    pub runtime: Arc<dyn Runtime>,
    /// A bound socket.
    pub socket: Arc<dyn AsyncUdpSocket>,
    /// Seeds quinn's random choices; `None` takes the system's randomness.
    pub seed: Option<[u8; 32]>,
}

/// What came about, was lost or refused since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that were not queued: the peer was not connected or its queue was full.
    pub dropped: u64,
    /// Accepted connections that were closed because of something that is no message.
    pub malformed: u64,
    /// Connections to peers that came about.
    pub connected: u64,
    /// Those of them before which another one to the same peer had been lost.
    pub reconnected: u64,
}

/// A node's transport. Cheap to clone; when the last clone is dropped, its connections close.
#[derive(Clone)]
pub struct Quic {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    dialling: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// What the tasks share.
pub(crate) struct Shared {
    pub(crate) cluster: ClusterId,
    pub(crate) endpoint: Endpoint,
    pub(crate) configs: Configs,
    /// Every peer. It never changes.
    pub(crate) links: BTreeMap<NodeId, Arc<Link>>,
    /// What this node says first, encoded.
    pub(crate) hello: Bytes,
    pub(crate) inbound: mpsc::Sender<Inbound>,
    pub(crate) handshakes: Arc<Semaphore>,
    pub(crate) malformed: AtomicU64,
    dropped: AtomicU64,
    /// The last refusal that was told; a refused node tries for ever.
    refusal: Mutex<String>,
}

impl Shared {
    /// Whether a refusal differs from the last one.
    pub(crate) fn is_news(&self, refusal: &Fault) -> bool {
        let text = refusal.to_string();
        let mut last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *last != text;
        *last = text;
        news
    }

    fn stop(&self) {
        self.links.values().for_each(|link| link.close());
        self.endpoint.close(VarInt::from_u32(Code::Shutdown as u32), b"the node stops");
    }
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic").field("peers", &self.owner.shared.links).finish_non_exhaustive()
    }
}

impl Quic {
    /// Runs over a given socket and runtime. [`QuicOptions::listen`] is not used. Messages that
    /// arrive go to `inbound`; while it is full, peers wait.
    ///
    /// # Errors
    /// Where the certificates are not this node's, or the socket cannot be used.
    pub fn start(
        options: &QuicOptions,
        platform: Platform,
        inbound: mpsc::Sender<Inbound>,
    ) -> Result<Quic, QuicError> {
        let node = options.identity.member.node;
        options.tls.check(options.cluster, node)?;
        let configs = Configs::new(&options.tls)?;
        let hello =
            Hello { cluster: options.cluster, peer: options.identity, http: options.http.clone() };
        let hello = encode_hello(&hello).map_err(QuicError::Hello)?;
        let peers = options.peers.iter().filter(|(peer, _)| **peer != node);
        let endpoint = Endpoint::new_with_abstract_socket(
            Configs::endpoint(peers.clone().map(|(_, address)| *address), platform.seed),
            Some((*configs.server(options.listen)).clone()),
            platform.socket,
            platform.runtime,
        )
        .map_err(|error| QuicError::Listen { address: options.listen, error })?;
        let shared = Arc::new(Shared {
            cluster: options.cluster,
            endpoint,
            configs,
            links: peers.map(|(n, a)| (*n, Arc::new(Link::new(*n, *a)))).collect(),
            hello,
            inbound,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            malformed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refusal: Mutex::default(),
        });
        tokio::spawn(accept::run(shared.clone()));
        // Jitter that differs between nodes and between starts.
        let seed = options.identity.boot.nonce ^ node.0.rotate_left(32);
        let dial = |link: &Arc<Link>| {
            let seed = seed.wrapping_add(link.node.0);
            tokio::spawn(dial::run(shared.clone(), link.clone(), seed))
        };
        let dialling = Mutex::new(shared.links.values().map(dial).collect());
        Ok(Quic { owner: Arc::new(Owner { shared, dialling }) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket cannot tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.owner.shared.endpoint.local_addr()
    }

    /// Where a peer's HTTP listens, as it last said; `None` before the first connection.
    #[must_use]
    pub fn peer_http(&self, node: NodeId) -> Option<String> {
        self.owner.shared.links.get(&node)?.http()
    }

    /// Whether there is a connection to send on to this peer.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.owner.shared.links.get(&node).is_some_and(|link| link.is_connected())
    }

    /// What came about, was lost or refused so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let shared = &self.owner.shared;
        let connected = || shared.links.values().map(|link| link.connections());
        Counters {
            dropped: shared.dropped.load(Ordering::Relaxed),
            malformed: shared.malformed.load(Ordering::Relaxed),
            connected: connected().sum(),
            reconnected: connected().map(|n| n.saturating_sub(1)).sum(),
        }
    }

    /// Sends what is queued, at most for a second and a half in all, and closes every connection.
    /// Messages from now on are dropped.
    pub async fn close(&self) {
        let shared = &self.owner.shared;
        shared.links.values().for_each(|link| link.close());
        let tasks = std::mem::take(
            &mut *self.owner.dialling.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let flushed = timeout(FLUSH, async {
            for task in tasks {
                // It ends by itself; were it to panic, there would be nothing to flush.
                let _ = task.await;
            }
        });
        if flushed.await.is_err() {
            tracing::warn!("closing with messages unsent");
        }
        shared.stop();
        if timeout(FAREWELL, shared.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("closed without every peer's answer");
        }
    }

    #[cfg(all(test, not(madsim)))]
    pub(crate) fn shared(&self) -> &Shared {
        &self.owner.shared
    }
}

impl Transport for Quic {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        let shared = &self.owner.shared;
        let mut batches: BTreeMap<NodeId, Option<Batch<'_>>> = BTreeMap::new();
        let mut dropped = 0;
        for (to, message) in &messages {
            let batch = batches.entry(*to).or_insert_with(|| Batch::new(shared.links.get(to)?));
            let taken = batch.as_mut().is_some_and(|batch| batch.add(message));
            dropped += u64::from(!taken);
        }
        for batch in batches.into_values().flatten() {
            dropped += batch.push();
        }
        shared.dropped.fetch_add(dropped, Ordering::Relaxed);
    }
}

/// What one call of [`Transport::send`] has for one peer.
struct Batch<'a> {
    link: &'a Link,
    ticket: Ticket,
    lanes: [BytesMut; 3],
    /// Messages in the lanes.
    count: [u64; 3],
}

impl<'a> Batch<'a> {
    fn new(link: &'a Arc<Link>) -> Option<Batch<'a>> {
        let ticket = link.admit()?;
        Some(Batch { link, ticket, lanes: Default::default(), count: [0; 3] })
    }

    /// Whether there was room.
    fn add(&mut self, message: &PeerMessage) -> bool {
        if let PeerMessage::Core(Message::Heartbeat { .. }) = message {
            let mut frame = BytesMut::new();
            encode(message, &mut frame);
            return self.link.datagram(self.ticket, frame.freeze());
        }
        let lane = lane(message) as usize;
        let out = &mut self.lanes[lane];
        let before = out.len();
        encode(message, out);
        let more = out.len() - before;
        if more > self.ticket.room {
            out.truncate(before);
            return false;
        }
        self.ticket.room -= more;
        self.count[lane] += 1;
        true
    }

    /// Queues it; answers how many messages were dropped.
    fn push(self) -> u64 {
        let mut dropped = 0;
        for (lane, frames) in Lane::ALL.into_iter().zip(self.lanes) {
            if !frames.is_empty() && !self.link.push(self.ticket, lane, frames.freeze()) {
                dropped += self.count[lane as usize];
            }
        }
        dropped
    }
}

fn lane(message: &PeerMessage) -> Lane {
    match message {
        PeerMessage::Core(Message::Group { message: GroupMessage::Append { .. }, .. })
        | PeerMessage::Forward { request: ForwardRequest::Propose { .. }, .. } => Lane::Bulk,
        PeerMessage::SnapshotBlock { .. } => Lane::Snapshot,
        _ => Lane::Control,
    }
}
