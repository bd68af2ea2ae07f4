//! Whole transports over loopback, and hand-made peers that misbehave.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use highwater_core::{
    Boot, ClusterId, Entry, GroupId, GroupMessage, Hlc, Incarnation, Instant, Kind, Lsn, Member,
    Message, NodeId, Peer, Position, Term,
};
use highwater_node::env::{Inbound, Transport};
use highwater_wire::{
    message::{DecodeError, encode, encode_hello},
    peer::{Hello, PeerMessage},
};
use quinn::{Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    Counters, Quic, QuicError, QuicOptions,
    config::Configs,
    greet::{Code, greet},
    link::{Link, QUEUE_MAX},
    tls::{NodeTls, Pem, TlsError, make_ca, make_node_cert, node_name},
};

const CLUSTER: ClusterId = ClusterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

/// Long enough for a busy machine; nothing waits for it where all is well.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    ca: Pem,
    addresses: BTreeMap<NodeId, SocketAddr>,
}

impl Cluster {
    fn new(nodes: u64) -> Cluster {
        // All are held at once, so that no two nodes get the same port.
        let held: Vec<_> = (0..nodes)
            .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
            .collect();
        let address = |s: &UdpSocket| s.local_addr().expect("bound");
        let addresses = (1..).map(NodeId).zip(held.iter().map(address)).collect();
        Cluster { ca: make_ca(CLUSTER).expect("an authority"), addresses }
    }

    fn tls(&self, node: u64) -> NodeTls {
        let made = make_node_cert(&self.ca, CLUSTER, NodeId(node)).expect("a certificate");
        NodeTls::from_pem(self.ca.cert.as_bytes(), made.cert.as_bytes(), made.key.as_bytes())
            .expect("what was made")
    }

    fn options(&self, node: u64, boot: u64) -> QuicOptions {
        QuicOptions {
            cluster: CLUSTER,
            identity: peer(node, boot),
            listen: self.addresses[&NodeId(node)],
            peers: self.addresses.clone(),
            http: format!("http-{node}:80"),
            tls: self.tls(node),
        }
    }

    fn start(&self, node: u64, boot: u64) -> (Quic, mpsc::Receiver<Inbound>) {
        let (inbound, received) = mpsc::channel(1024);
        (Quic::bind(&self.options(node, boot), inbound).expect("a free port"), received)
    }

    /// A hand-made peer's connection to `node`, with `as_node`'s certificate, before any hello.
    async fn dial(&self, as_node: u64, node: u64) -> (Endpoint, Connection) {
        let to = self.addresses[&NodeId(node)];
        let config = Configs::new(&self.tls(as_node)).expect("usable").client(to);
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let name = node_name(CLUSTER, NodeId(node));
        let connecting = endpoint.connect_with(config, to, &name).expect("a valid name");
        let connection = timeout(PATIENCE, connecting).await.expect("in time").expect("accepted");
        (endpoint, connection)
    }

    /// The same after both hellos.
    async fn join(&self, as_node: u64, boot: u64, node: u64) -> (Endpoint, Connection) {
        let (endpoint, connection) = self.dial(as_node, node).await;
        let theirs = greet(&connection, &hello(CLUSTER, peer(as_node, boot))).await;
        assert_eq!(theirs.expect("a hello").peer.member.node, NodeId(node));
        (endpoint, connection)
    }
}

fn peer(node: u64, boot: u64) -> Peer {
    Peer {
        member: Member { node: NodeId(node), incarnation: Incarnation(u128::from(node) << 80) },
        boot: Boot { counter: boot, nonce: boot * 1000 + node },
    }
}

fn hello(cluster: ClusterId, peer: Peer) -> Bytes {
    encode_hello(&Hello { cluster, peer, http: String::new() }).expect("a short one")
}

fn query(id: u64) -> PeerMessage {
    PeerMessage::StatusQuery { id }
}

fn heartbeat(generation: u64) -> PeerMessage {
    PeerMessage::Core(Message::Heartbeat { generation, sent: Instant(1), echo: None })
}

fn append(round: u64, bytes: usize) -> PeerMessage {
    let payload = (0..bytes).map(|i| (i / 7) as u8).collect::<Vec<_>>().into();
    let entry = Entry {
        lsn: Lsn(2),
        term: Term(1),
        prev_term: Term(1),
        hlc: Hlc(0),
        origin: 0,
        kind: Kind::Op,
        payload,
    };
    PeerMessage::Core(Message::Group {
        group: GroupId(3),
        term: Term(1),
        message: GroupMessage::Append {
            prev: Position { term: Term(1), lsn: Lsn(1) },
            entries: vec![entry],
            committed: Lsn(1),
            round,
        },
    })
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn connected(quic: &Quic, node: u64) {
    until("connected", || quic.is_connected(NodeId(node))).await;
}

async fn next(received: &mut mpsc::Receiver<Inbound>) -> Inbound {
    timeout(PATIENCE, received.recv()).await.expect("a message in time").expect("a transport")
}

async fn close_code(connection: &Connection) -> u64 {
    match timeout(PATIENCE, connection.closed()).await.expect("closed in time") {
        ConnectionError::ApplicationClosed(closed) => closed.error_code.into_inner(),
        other => panic!("closed otherwise: {other}"),
    }
}

#[tokio::test]
async fn messages_reach_every_node_whole_and_attributed() {
    let cluster = Cluster::new(3);
    let mut nodes: Vec<_> = (1..=3).map(|n| cluster.start(n, 1)).collect();
    for (i, (quic, _)) in nodes.iter().enumerate() {
        for other in (1..=3).filter(|o| *o != i as u64 + 1) {
            connected(quic, other).await;
            assert_eq!(quic.peer_http(NodeId(other)), Some(format!("http-{other}:80")));
        }
    }
    let said = [query(7), append(1, 8 << 20), append(2, 0), append(3, 100)];
    for (i, (quic, _)) in nodes.iter().enumerate() {
        let others = (1..=3).map(NodeId).filter(|o| o.0 != i as u64 + 1);
        quic.send(others.flat_map(|to| said.iter().map(move |m| (to, m.clone()))).collect());
    }
    for (i, (_, received)) in nodes.iter_mut().enumerate() {
        let mut heard: BTreeMap<Peer, Vec<PeerMessage>> = BTreeMap::new();
        for _ in 0..said.len() * 2 {
            let inbound = next(received).await;
            heard.entry(inbound.from).or_default().push(inbound.message);
        }
        let others = (1..=3).filter(|o| *o != i as u64 + 1).map(|o| peer(o, 1));
        assert!(heard.keys().copied().eq(others), "attributed to {:?}", heard.keys());
        for messages in heard.values() {
            assert!(said.iter().all(|m| messages.contains(m)));
            // A commit mark must not overtake its entries.
            let appends: Vec<_> = messages.iter().filter(|m| **m != said[0]).collect();
            assert!(appends.into_iter().eq(&said[1..]), "appends were reordered");
        }
    }
    let undisturbed = Counters { connected: 2, ..Counters::default() };
    assert!(nodes.iter().all(|(quic, _)| quic.counters() == undisturbed));
}

#[tokio::test]
async fn heartbeats_are_datagrams_and_nothing_small_queues_behind_bulk() {
    let cluster = Cluster::new(2);
    let (one, _inbound) = cluster.start(1, 1);
    let (two, mut received) = cluster.start(2, 1);
    connected(&one, 2).await;
    connected(&two, 1).await;
    let connection = one.shared().links[&NodeId(2)].outgoing().expect("connected");
    let before = connection.stats().frame_tx.datagram;
    one.send(vec![(NodeId(2), heartbeat(1)), (NodeId(2), heartbeat(2))]);
    for _ in 0..2 {
        let inbound = next(&mut received).await;
        assert!(inbound.message == heartbeat(1) || inbound.message == heartbeat(2));
    }
    assert_eq!(connection.stats().frame_tx.datagram - before, 2);
    let mut order = Vec::new();
    one.send((0..4).map(|i| (NodeId(2), append(i, 4 << 20))).collect());
    one.send(vec![(NodeId(2), heartbeat(3)), (NodeId(2), query(4))]);
    for _ in 0..6 {
        order.push(next(&mut received).await.message);
    }
    let last = order.last().expect("six");
    assert!(*last == append(3, 4 << 20), "{last:?} queued behind 16 MiB");
}

/// A crash leaves no farewell: the peer learns of it by the hello of the next start.
#[test]
fn a_crashed_node_is_redialled_at_once_and_hears_nothing_meant_for_its_past() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = Cluster::new(2);
    let survivor = runtime();
    let (one, mut to_one) = survivor.block_on(async { cluster.start(1, 1) });
    let first = runtime();
    let (two, mut to_two) = first.block_on(async { cluster.start(2, 1) });
    first.block_on(async {
        connected(&two, 1).await;
        connected(&one, 2).await;
        two.send(vec![(NodeId(1), query(1))]);
        one.send(vec![(NodeId(2), query(2))]);
        assert_eq!(next(&mut to_one).await.from, peer(2, 1));
        assert_eq!(next(&mut to_two).await.from, peer(1, 1));
    });
    first.shutdown_timeout(PATIENCE);
    drop(two);

    let second = runtime();
    let began = std::time::Instant::now();
    let (two, mut to_two) = second.block_on(async { cluster.start(2, 2) });
    second.block_on(async {
        let link = &one.shared().links[&NodeId(2)];
        until("redialled", || link.outgoing_to() == Some(peer(2, 2))).await;
        connected(&two, 1).await;
        assert!(began.elapsed() < Duration::from_secs(3), "that took {:?}", began.elapsed());
        // As far as node 1's driver knows, this is still for the first start.
        one.send(vec![(NodeId(2), query(3)), (NodeId(2), heartbeat(3))]);
        two.send(vec![(NodeId(1), query(4))]);
        let inbound = next(&mut to_one).await;
        assert_eq!((inbound.from, inbound.message), (peer(2, 2), query(4)));
        one.send(vec![(NodeId(2), query(5))]);
        assert_eq!(next(&mut to_two).await.message, query(5));
    });
    assert_eq!(one.counters().dropped, 2);
}

/// Attempts at a peer that is long gone are far apart; its first sign of life ends the wait.
#[tokio::test]
async fn a_peer_that_shows_itself_is_dialled_at_once() {
    let cluster = Cluster::new(2);
    let silent = tokio::net::UdpSocket::bind(cluster.addresses[&NodeId(2)]).await.expect("free");
    let (_one, _received) = cluster.start(1, 1);
    let mut packet = [0; 2048];
    // The third attempt's next packet is far off then.
    let third = sleep(Duration::from_millis(2700));
    tokio::pin!(third);
    loop {
        tokio::select! {
            biased;
            () = &mut third => break,
            seen = silent.recv_from(&mut packet) => { seen.expect("a packet"); }
        }
    }
    let (_endpoint, _connection) = cluster.join(2, 1, 1).await;
    let dialled = timeout(Duration::from_millis(500), silent.recv_from(&mut packet)).await;
    dialled.expect("dialled at once").expect("a packet");
}

#[tokio::test]
async fn nodes_of_two_authorities_refuse_each_other() {
    let ours = Cluster::new(2);
    let theirs = Cluster { ca: make_ca(CLUSTER).expect("another"), ..Cluster::new(0) };
    let (one, mut to_one) = ours.start(1, 1);
    let options = QuicOptions { tls: theirs.tls(2), ..ours.options(2, 1) };
    let (inbound, mut to_two) = mpsc::channel(8);
    let two = Quic::bind(&options, inbound).expect("a free port");
    for (quic, other) in [(&one, 2), (&two, 1)] {
        let link = &quic.shared().links[&NodeId(other)];
        until("refused", || link.told().contains("not of one cluster")).await;
        assert!(!quic.is_connected(NodeId(other)));
        quic.send(vec![(NodeId(other), query(1))]);
    }
    sleep(Duration::from_millis(200)).await;
    assert!(to_one.try_recv().is_err() && to_two.try_recv().is_err());
}

#[tokio::test]
async fn a_node_does_not_start_with_another_nodes_certificate() {
    let cluster = Cluster::new(2);
    let other_cluster = QuicOptions { cluster: ClusterId(1), ..cluster.options(1, 1) };
    let other_node = QuicOptions { tls: cluster.tls(2), ..cluster.options(1, 1) };
    for options in [other_cluster, other_node] {
        let (inbound, _received) = mpsc::channel(1);
        let refused = Quic::bind(&options, inbound);
        assert!(matches!(refused, Err(QuicError::Tls(TlsError::NotOurs { .. }))));
    }
}

#[tokio::test]
async fn a_taken_port_is_told_with_its_address() {
    let cluster = Cluster::new(1);
    let address = cluster.addresses[&NodeId(1)];
    let _held = UdpSocket::bind(address).expect("free until now");
    let (inbound, _received) = mpsc::channel(1);
    let refused = Quic::bind(&cluster.options(1, 1), inbound).expect_err("a taken port");
    assert!(refused.to_string().contains(&address.to_string()), "{refused}");
}

#[tokio::test]
async fn another_protocol_is_refused_both_ways() {
    let cluster = Cluster::new(2);
    let (one, _received) = cluster.start(1, 1);
    let tls = cluster.tls(2);

    let mut client = tls.client().expect("usable");
    client.alpn_protocols = vec![b"highwater/0".to_vec()];
    let client = QuicClientConfig::try_from(client).expect("usable");
    let client = quinn::ClientConfig::new(Arc::new(client));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let name = node_name(CLUSTER, NodeId(1));
    let dialled = endpoint.connect_with(client, cluster.addresses[&NodeId(1)], &name);
    let refused = timeout(PATIENCE, dialled.expect("a valid name")).await.expect("in time");
    let refused = refused.expect_err("a foreign protocol").to_string();
    assert!(refused.contains("application protocol") || refused.contains("120"), "{refused}");

    let mut server = tls.server().expect("usable");
    server.alpn_protocols = vec![b"highwater/0".to_vec()];
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).expect("usable");
    let server = quinn::ServerConfig::with_crypto(Arc::new(server));
    let foreign = Endpoint::server(server, cluster.addresses[&NodeId(2)]).expect("a free port");
    tokio::spawn(async move {
        while let Some(incoming) = foreign.accept().await {
            let _ = incoming.await;
        }
    });
    let link = &one.shared().links[&NodeId(2)];
    until("refused", || link.told().contains("no Highwater node")).await;
    assert!(!one.is_connected(NodeId(2)));
}

#[tokio::test]
async fn a_hello_must_be_of_this_cluster_and_of_the_certificates_node() {
    let mut cluster = Cluster::new(3);
    cluster.addresses.remove(&NodeId(3));
    let (_one, mut received) = cluster.start(1, 1);
    let mut other = BytesMut::new();
    encode(&query(1), &mut other);
    let cases = [
        (2, hello(ClusterId(1), peer(2, 1)), Code::BadHello),
        (3, hello(CLUSTER, peer(2, 1)), Code::BadHello),
        (3, hello(CLUSTER, peer(3, 1)), Code::Stranger),
        (2, other.freeze(), Code::BadHello),
        (2, Bytes::from_static(b"nonsense"), Code::BadHello),
    ];
    for (certificate, hello, code) in cases {
        let (_endpoint, connection) = cluster.dial(certificate, 1).await;
        // Its answer may or may not come before the refusal.
        let _ = greet(&connection, &hello).await;
        assert_eq!(close_code(&connection).await, code as u64, "as node {certificate}");
    }
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn what_is_no_message_closes_its_connection_and_no_other() {
    let cluster = Cluster::new(3);
    let (one, mut received) = cluster.start(1, 1);
    let (three, _inbound) = cluster.start(3, 1);
    connected(&three, 1).await;
    let mut damaged = BytesMut::new();
    encode(&query(1), &mut damaged);
    damaged[FLIPPED] ^= 1;
    let junk = [Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"), damaged.freeze()];
    for (i, junk) in junk.iter().enumerate() {
        for as_datagram in [false, true] {
            let (_endpoint, connection) = cluster.join(2, 1 + i as u64, 1).await;
            if as_datagram {
                connection.send_datagram(junk.clone()).expect("small enough");
            } else {
                let mut stream = connection.open_uni().await.expect("a stream");
                stream.write_all(junk).await.expect("taken");
            }
            assert_eq!(close_code(&connection).await, Code::Malformed as u64);
        }
    }
    assert_eq!(one.counters().malformed, 4);
    // Both streams and a datagram of one connection: it is one case.
    let (_endpoint, connection) = cluster.join(2, 3, 1).await;
    for _ in 0..2 {
        let mut stream = connection.open_uni().await.expect("a stream");
        stream.write_all(&junk[0]).await.expect("taken");
    }
    let _ = connection.send_datagram(junk[1].clone());
    assert_eq!(close_code(&connection).await, Code::Malformed as u64);
    assert_eq!(one.counters().malformed, 5);
    three.send(vec![(NodeId(1), query(9))]);
    let inbound = next(&mut received).await;
    assert_eq!((inbound.from, inbound.message), (peer(3, 1), query(9)));
}

/// A byte of a frame's body.
const FLIPPED: usize = 20;

#[test]
fn the_same_trouble_with_one_start_of_a_peer_is_told_once() {
    let link = Link::new(NodeId(2), (Ipv4Addr::LOCALHOST, 1).into());
    let (stated, version) = (DecodeError::Length { stated: 3 }, DecodeError::Version(9));
    assert_eq!(link.refuse(1, peer(2, 1), stated), Some(true));
    assert_eq!(link.refuse(1, peer(2, 1), version), None, "of the same connection");
    assert_eq!(link.refuse(2, peer(2, 1), DecodeError::Length { stated: 4 }), Some(false));
    assert_eq!(link.refuse(4, peer(2, 1), version), Some(true), "something else");
    assert_eq!(link.refuse(3, peer(2, 1), stated), None, "of a connection before it");
    assert_eq!(link.refuse(5, peer(2, 2), version), Some(true), "another start");
}

#[tokio::test]
async fn a_newer_connection_of_a_node_replaces_the_older() {
    let cluster = Cluster::new(2);
    let (_one, mut received) = cluster.start(1, 1);
    let mut frame = BytesMut::new();
    encode(&query(5), &mut frame);
    let frame = frame.freeze();
    let (_first, old) = cluster.join(2, 1, 1).await;
    let mut stream = old.open_uni().await.expect("a stream");
    stream.write_all(&frame).await.expect("taken");
    assert_eq!(next(&mut received).await.from, peer(2, 1));
    let (_second, new) = cluster.join(2, 2, 1).await;
    assert_eq!(close_code(&old).await, Code::Replaced as u64);
    let mut stream = new.open_uni().await.expect("a stream");
    stream.write_all(&frame).await.expect("taken");
    assert_eq!(next(&mut received).await.from, peer(2, 2));
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_a_bounded_queue() {
    const ROUNDS: u64 = 40;
    let cluster = Cluster::new(2);
    let (one, _inbound) = cluster.start(1, 1);
    let (inbound, mut received) = mpsc::channel(1);
    let two = Quic::bind(&cluster.options(2, 1), inbound).expect("a free port");
    connected(&one, 2).await;
    let link = &one.shared().links[&NodeId(2)];
    for round in 0..ROUNDS {
        one.send(vec![(NodeId(2), append(round, 4 << 20))]);
        assert!(link.queued() <= QUEUE_MAX, "{} bytes are queued", link.queued());
        sleep(Duration::from_millis(5)).await;
    }
    let dropped = one.counters().dropped;
    assert!(dropped > 0 && dropped < ROUNDS, "{dropped} of {ROUNDS} were dropped");
    // What was taken arrives, whole and in order, once the peer reads.
    let mut last = None;
    for _ in 0..ROUNDS - dropped {
        let PeerMessage::Core(Message::Group {
            message: GroupMessage::Append { round, entries, .. },
            ..
        }) = next(&mut received).await.message
        else {
            panic!("something else than an append");
        };
        assert!(last < Some(round) && entries[0].payload.len() == 4 << 20);
        last = Some(round);
    }
    until("written", || link.queued() == 0).await;
    drop(two);
}

#[tokio::test]
async fn nothing_is_kept_for_a_peer_that_is_not_connected() {
    let cluster = Cluster::new(2);
    let (one, _inbound) = cluster.start(1, 1);
    one.send(vec![(NodeId(2), query(1)), (NodeId(2), heartbeat(1)), (NodeId(9), query(1))]);
    assert_eq!(one.counters().dropped, 3);
    let (_two, mut received) = cluster.start(2, 1);
    connected(&one, 2).await;
    one.send(vec![(NodeId(2), query(2))]);
    assert_eq!(next(&mut received).await.message, query(2));
}

#[tokio::test]
async fn closing_sends_what_is_queued_and_lets_the_peers_know() {
    let cluster = Cluster::new(2);
    let (one, _inbound) = cluster.start(1, 1);
    let (two, mut received) = cluster.start(2, 1);
    connected(&one, 2).await;
    connected(&two, 1).await;
    let (message, expected) = (append(1, 6 << 20), append(1, 6 << 20));
    let reader = tokio::spawn(async move {
        let inbound = next(&mut received).await;
        assert!(inbound.message == expected);
        received
    });
    one.send(vec![(NodeId(2), message)]);
    one.close().await;
    let _received = reader.await.expect("the message arrived");
    until("noticed", || !two.is_connected(NodeId(1))).await;
    one.send(vec![(NodeId(2), query(1))]);
    assert_eq!(one.counters().dropped, 1);
}

#[tokio::test]
async fn the_last_handle_takes_its_connections_with_it() {
    let cluster = Cluster::new(2);
    let (one, _inbound) = cluster.start(1, 1);
    let (two, _received) = cluster.start(2, 1);
    connected(&two, 1).await;
    let clone = one.clone();
    drop(one);
    sleep(Duration::from_millis(100)).await;
    assert!(two.is_connected(NodeId(1)));
    drop(clone);
    until("noticed", || !two.is_connected(NodeId(1))).await;
}
