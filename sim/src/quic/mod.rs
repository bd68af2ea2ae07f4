//! Real QUIC over the simulated network: the production transport (quinn, rustls, ring) on a
//! simulated socket and simulated timers. Each node has one address, whichever process runs on it:
//! what was sent to a dead process may reach the next one, as on a real network.
//!
//! Every datagram is the same in each execution of a seed. That needs more than a seeded socket: the
//! keys are made within the run, ring's randomness comes from it too (`highwater_sim_sys`), and each
//! run has a thread of its own, because std's and rand's state is the thread's.

mod carrier;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use highwater_core::{ClusterId, NodeId, Peer};
use highwater_node::env::{Inbound, Transport};
use highwater_quic::{
    Platform, Quic, QuicError, QuicOptions,
    tls::{NodeTls, TlsError, make_ca, make_node_cert},
};
use madsim::time::Instant;
use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::mpsc;

use self::carrier::{Carrier, Onlooker};
use crate::{
    cluster::Process,
    net::{Network, Receiver},
    oracles,
    rng::Rng,
    timer::{Until, until_instant},
};

const PORT: u16 = 7000;

/// Bytes that wait at a socket, as production asks of the system. What does not fit is lost.
const BUFFER: usize = 4 << 20;

fn address(node: NodeId) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, node.0 as u8), PORT).into()
}

fn node_at(address: SocketAddr) -> Option<NodeId> {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => Some(NodeId(ip.octets()[3].into())),
        IpAddr::V6(_) => None,
    }
}

/// What all processes of a run share.
pub(crate) struct Cabling {
    cluster: ClusterId,
    /// Every node's certificate and key.
    nodes: BTreeMap<NodeId, NodeTls>,
    oracle: Arc<Mutex<oracles::transport::Transport>>,
}

impl Cabling {
    /// Makes the certificates, with keys from the run's randomness.
    pub(crate) fn new(cluster: ClusterId, nodes: &[NodeId]) -> Result<Cabling, TlsError> {
        let ca = make_ca(cluster)?;
        let tls = |node: &NodeId| {
            let made = make_node_cert(&ca, cluster, *node)?;
            let (cert, key) = (made.cert.as_bytes(), made.key.as_bytes());
            Ok((*node, NodeTls::from_pem(ca.cert.as_bytes(), cert, key)?))
        };
        let nodes = nodes.iter().map(tls).collect::<Result<_, TlsError>>()?;
        Ok(Cabling { cluster, nodes, oracle: Arc::default() })
    }
}

/// Starts a process's transport, and connects it to the network. `driver` is where its messages go.
/// Returns it as the driver is to have it, and as it is.
pub(crate) fn start(
    cabling: &Cabling,
    network: &Arc<Network>,
    process: &Arc<Process>,
    identity: Peer,
    rng: &mut Rng,
    driver: mpsc::Sender<Inbound>,
) -> Result<(Arc<dyn Transport>, Quic), QuicError> {
    let (node, id) = process.id;
    let options = QuicOptions {
        cluster: cabling.cluster,
        identity,
        listen: address(node),
        peers: cabling.nodes.keys().map(|peer| (*peer, address(*peer))).collect(),
        http: format!("n{}", node.0),
        tls: cabling.nodes[&node].clone(),
    };
    let mut seed = [0; 32];
    seed.fill_with(|| rng.next() as u8);
    let arrivals = Arc::new(Arrivals::default());
    let (network, process) = (network.clone(), process.clone());
    network.attach(node, id, Receiver::Socket(arrivals.clone()));
    let socket = Socket { network: network.clone(), process: process.clone(), arrivals };
    let platform =
        Platform { runtime: Arc::new(SimRuntime), socket: Arc::new(socket), seed: Some(seed) };
    let (inbound, arriving) = mpsc::channel(1);
    let quic = Quic::start(&options, platform, inbound)?;
    let onlooker = Onlooker { network, oracle: cabling.oracle.clone(), process, identity };
    madsim::task::spawn(onlooker.clone().hand_on(arriving, driver));
    Ok((Arc::new(Carrier { quic: quic.clone(), onlooker }), quic))
}

/// Datagrams that wait at a socket.
#[derive(Default)]
pub(crate) struct Arrivals(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<(NodeId, Bytes)>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room.
    pub(crate) fn push(&self, from: NodeId, datagram: Bytes) -> bool {
        let mut waiting = self.lock();
        if waiting.bytes + datagram.len() > BUFFER {
            return false;
        }
        waiting.bytes += datagram.len();
        waiting.datagrams.push_back((from, datagram));
        let reader = waiting.reader.take();
        drop(waiting);
        reader.into_iter().for_each(Waker::wake);
        true
    }
}

/// A process's way into the network. Falls silent once the process is dead.
struct Socket {
    network: Arc<Network>,
    process: Arc<Process>,
    arrivals: Arc<Arrivals>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("process", &self.process).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        if let Some(to) = node_at(transmit.destination)
            && !self.process.is_dead()
        {
            let datagram = Bytes::copy_from_slice(transmit.contents);
            self.network.send_datagram(self.process.id.0, to, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.arrivals.lock();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((from, datagram)) = waiting.datagrams.pop_front() else { break };
            waiting.bytes -= datagram.len();
            // As recvmsg does with a datagram that is longer than the buffer.
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: address(from), len, stride: len, ..RecvMeta::default() };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        waiting.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(address(self.process.id.0))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// The network takes everything.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Tasks and timers of the simulation for quinn.
#[derive(Debug)]
struct SimRuntime;

impl Runtime for SimRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(until_instant(at)))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        madsim::task::spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Timer(Until);

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.0.reset_instant(at);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_nodes_own() {
        for node in (1..=9).map(NodeId) {
            assert_eq!(node_at(address(node)), Some(node));
        }
    }

    #[test]
    fn a_full_socket_loses_what_comes_next() {
        let (arrivals, datagram) = (Arrivals::default(), Bytes::from(vec![0; 1 << 10]));
        let taken = (0..10_000).filter(|_| arrivals.push(NodeId(1), datagram.clone())).count();
        assert_eq!(taken, BUFFER >> 10);
    }
}
