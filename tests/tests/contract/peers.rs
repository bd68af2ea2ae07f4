//! The way between nodes, as somebody else meets it: foreign certificates, another protocol,
//! malformed frames.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use highwater_core::{Boot, ClusterId, Incarnation, Member, NodeId, Peer};
use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node, setting},
};
use highwater_wire::{
    message,
    peer::{Hello, PeerMessage},
};
use quinn::{Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::record;

const ALPN: &[u8] = b"highwater/1";
const SOON: Duration = Duration::from_secs(5);

fn cluster_id(node: &Node) -> ClusterId {
    let config = fs::read_to_string(node.config()).unwrap();
    let id = setting(&config, "cluster").unwrap();
    ClusterId(u128::from_str_radix(&id, 16).unwrap())
}

/// Somebody who dials nodes, with the files of a node or without any.
struct Stranger {
    endpoint: Endpoint,
}

impl Stranger {
    /// `trusts` says whose authority it believes; a stranger would have to know that too.
    fn new(shows: Option<&Node>, trusts: &Cluster, alpn: &[u8]) -> Stranger {
        let ca = fs::read(trusts.dir.join("ca/ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => config.with_no_client_auth(),
            Some(node) => {
                let chain = fs::read(node.dir.join("cert.pem")).unwrap();
                let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).take(1);
                let key = fs::read(node.dir.join("key.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
                config.with_client_auth_cert(chain.collect(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = QuicClientConfig::try_from(config).unwrap();
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
        Stranger { endpoint }
    }

    async fn dial(&self, node: &Node) -> Result<Connection, ConnectionError> {
        let name = format!("node-{}.{}.highwater", node.id, cluster_id(node));
        self.endpoint.connect(node.quic, &name).unwrap().await
    }

    /// Dials a node that must not have it; what it said.
    ///
    /// With TLS 1.3 the one who dials may believe itself connected until it hears otherwise.
    async fn refused(&self, node: &Node) -> String {
        match self.dial(node).await {
            Err(error) => error.to_string(),
            Ok(connection) => closed(&connection).await,
        }
    }
}

/// Waits until the other side closes; why.
async fn closed(connection: &Connection) -> String {
    tokio::time::timeout(SOON, connection.closed()).await.expect("it is closed").to_string()
}

fn hello(node: &Node, cluster: ClusterId, id: u64) -> Bytes {
    // An incarnation before any real one, so that nobody mistakes it for a wiped node.
    let member = Member { node: NodeId(id), incarnation: Incarnation(1) };
    let peer = Peer { member, boot: Boot { counter: 1, nonce: 1 } };
    message::encode_hello(&Hello { cluster, peer, http: node.http.to_string() }).unwrap()
}

async fn say(connection: &Connection, bytes: &[u8]) {
    // The other side may have hung up by now.
    if let Ok(mut stream) = connection.open_uni().await
        && stream.write_all(bytes).await.is_ok()
    {
        let _ = stream.finish();
    }
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("in time") });
}

#[test]
fn who_is_not_of_the_cluster_is_not_heard() {
    let cluster = Cluster::start(3);
    let foreign = Cluster::init(1, &[]);
    cluster.create("db");
    let node = cluster.node(1);
    run(async {
        let foreigner = Stranger::new(Some(foreign.node(1)), &cluster, ALPN);
        let said = foreigner.refused(node).await;
        assert!(
            said.contains("UnknownCA") || said.contains("certificate") || said.contains("0x1"),
            "{said}"
        );
        let nobody = Stranger::new(None, &cluster, ALPN);
        let said = nobody.refused(node).await;
        assert!(said.contains("ertificate") || said.contains("0x1"), "{said}");
        for alpn in [b"h3".as_slice(), b"highwater/0", b"highwater/2", b"HIGHWATER/1"] {
            let other = Stranger::new(Some(cluster.node(2)), &cluster, alpn);
            let said = other.refused(node).await;
            assert!(said.contains("protocol") || said.contains("120"), "{said}");
        }
        // And who believes another authority does not talk to it.
        let wary = Stranger::new(Some(cluster.node(2)), &foreign, ALPN);
        assert!(wary.dial(node).await.is_err());
    });
    let _ = node.put(&record("db", "k"), "v").expect(201);
}

#[test]
fn a_hello_must_be_that_of_the_certificate() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let node = cluster.node(1);
    cluster.node(2).kill();
    let id = cluster_id(node);
    run(async {
        let two = Stranger::new(Some(cluster.node(2)), &cluster, ALPN);
        let mut long = BytesMut::new();
        long.put_bytes(0, 100_000);
        for (name, bytes) in [
            ("of another node", hello(cluster.node(3), id, 3)),
            ("of the node itself", hello(node, id, 1)),
            ("of no node", hello(node, id, 9)),
            ("of another cluster", hello(cluster.node(2), ClusterId(7), 2)),
            ("empty", Bytes::new()),
            ("noise", Bytes::from_static(&[0xa5; 300])),
            ("too long", long.freeze()),
            ("cut off", hello(cluster.node(2), id, 2).slice(..20)),
        ] {
            let connection = two.dial(node).await.expect("its certificate is good");
            say(&connection, &bytes).await;
            let said = closed(&connection).await;
            assert!(said.contains("closed"), "{name}: {said}");
        }
        // Silence does not hold a place for ever.
        let connection = two.dial(node).await.expect("its certificate is good");
        let _ = tokio::time::timeout(Duration::from_secs(15), connection.closed())
            .await
            .expect("closed");
    });
    cluster.node(2).start();
    cluster.wait_ready();
    let _ = node.put(&record("db", "k"), "v").expect(201);
}

/// Frames that are wrong each in a way of its own.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let mut good = BytesMut::new();
    message::encode(&PeerMessage::StatusQuery { id: 7 }, &mut good);
    let good = good.to_vec();
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut cases = vec![
        ("noise", vec![0xa5; 5000]),
        ("zeros", vec![0; 64]),
        ("a length beyond the bound", with(0, &u32::MAX.to_le_bytes())),
        ("a length below the header", with(0, &3_u32.to_le_bytes())),
        ("another length", with(0, &(good.len() as u32 - 4).to_le_bytes())),
        ("a wrong checksum", with(4, &[1, 2, 3, 4])),
        ("another version", with(8, &[9])),
        ("an unknown type", with(9, &[200])),
        ("a control part that is longer than the frame", with(12, &u32::MAX.to_le_bytes())),
        ("a hello, which comes once", vec![]),
        ("text", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    cases[9].1 = {
        let member = Member { node: NodeId(2), incarnation: Incarnation(1) };
        let peer = Peer { member, boot: Boot { counter: 1, nonce: 1 } };
        let hello = Hello { cluster: ClusterId(1), peer, http: String::new() };
        message::encode_hello(&hello).unwrap().to_vec()
    };
    cases
}

#[test]
fn malformed_frames_end_the_connection_and_nothing_else() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let node = cluster.node(1);
    let _ = node.put(&record("db", "k"), "v").expect(201);
    cluster.node(2).kill();
    let id = cluster_id(node);
    run(async {
        let two = Stranger::new(Some(cluster.node(2)), &cluster, ALPN);
        for (name, bytes) in malformed() {
            let connection = two.dial(node).await.expect("its certificate is good");
            say(&connection, &hello(cluster.node(2), id, 2)).await;
            let _ = connection.accept_uni().await.expect("a hello in return");
            say(&connection, &bytes).await;
            let said = closed(&connection).await;
            assert!(said.contains("closed"), "{name}: {said}");
            assert!(node.is_alive(), "{name}: {}", node.log());
        }
        // Datagrams are lossy by nature: what is none of ours may be dropped instead.
        let connection = two.dial(node).await.expect("its certificate is good");
        say(&connection, &hello(cluster.node(2), id, 2)).await;
        for size in [0, 1, 15, 16, 100, 1000] {
            let _ = connection.send_datagram(Bytes::from(vec![0xa5; size]));
        }
        // Every single bit of a good frame, turned over.
        let mut good = BytesMut::new();
        message::encode(&PeerMessage::StatusQuery { id: 7 }, &mut good);
        for bit in (0..good.len() * 8).step_by(5) {
            let mut frame = good.to_vec();
            frame[bit / 8] ^= 1 << (bit % 8);
            let connection = two.dial(node).await.expect("its certificate is good");
            say(&connection, &hello(cluster.node(2), id, 2)).await;
            say(&connection, &frame).await;
            connection.close(0_u32.into(), b"");
        }
    });
    // Nor does anything else that comes to its port.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for size in [0, 1, 100, 1200, 1472, 9000] {
        for byte in [0, 0x40, 0xc0, 0xff] {
            let _ = socket.send_to(&vec![byte; size], node.quic);
        }
    }
    assert!(node.is_alive());
    let _ = node.put(&record("db", "k?timeout_ms=10000"), "w").expect(200);
    cluster.node(2).start();
    cluster.wait_ready();
    assert_eq!(cluster.node(2).get(&record("db", "k")).expect(200).text(), "w");
    for node in cluster.nodes() {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

#[test]
fn many_who_only_knock_keep_nobody_out() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let node = cluster.node(1);
    cluster.node(2).kill();
    run(async {
        let knocker = Stranger::new(None, &cluster, ALPN);
        for _ in 0..300 {
            let name = format!("node-1.{}.highwater", cluster_id(node));
            // Never driven to its end.
            drop(knocker.endpoint.connect(node.quic, &name).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    cluster.node(2).start();
    cluster.node(2).wait_ready();
    cluster.node(3).kill();
    // A quorum needs the one that came back.
    highwater_tests::eventually("the two find each other", PATIENCE, || {
        (node.put(&record("db", "k?timeout_ms=1000"), "v").status < 300).then_some(())
    });
}
