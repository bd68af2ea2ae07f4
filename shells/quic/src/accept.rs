//! Accepts other nodes' connections, and hands on what they say.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use highwater_core::Peer;
use highwater_node::env::Inbound;
use highwater_wire::{
    message::{DecodeError, FrameReader, decode},
    peer::Hello,
};
use quinn::{Connection, Incoming, RecvStream};
use rustls_pki_types::CertificateDer;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{
    greet::{Code, Fault, greet},
    link::Link,
    quic::Shared,
    tls,
};

/// Connections that have not said hello yet. Further ones are refused.
pub(crate) const HANDSHAKES_MAX: usize = 64;

/// From this many on, a stranger's address must be proven first, so that forged ones cannot take
/// the places.
const HANDSHAKES_PROVEN: usize = 16;

/// From the first packet to the hello.
const GREETING: Duration = Duration::from_secs(4);

/// Chunks taken from a stream at once.
const CHUNKS: usize = 64;

/// Runs until the endpoint is closed.
pub(crate) async fn run(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let under_way = HANDSHAKES_MAX - shared.handshakes.available_permits();
        if under_way >= HANDSHAKES_PROVEN
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            // It may be retried, as was just asked.
            let _ = incoming.retry();
            continue;
        }
        match shared.handshakes.clone().try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(serve(shared.clone(), incoming, place));
            }
            Err(_) => incoming.refuse(),
        }
    }
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, place: OwnedSemaphorePermit) {
    let address = incoming.remote_address();
    let opened = match timeout(GREETING, open(&shared, incoming)).await {
        Ok(opened) => opened,
        Err(_) => Err(Fault::Silent),
    };
    drop(place);
    let (connection, hello, link) = match opened {
        Ok(opened) => opened,
        // Anyone can cause this, so it must not fill the log; the dialling side tells it too.
        Err(fault) => return tracing::debug!(%address, %fault, "refused a connection"),
    };
    let from = hello.peer;
    tracing::debug!(node = %link.node, %address, boot = ?from.boot, "accepted");
    let serial = link.adopt(connection.clone(), &hello);
    let receiver = Receiver { shared, link, serial, from, connection };
    tokio::select! {
        biased;
        () = receiver.datagrams() => {}
        () = receiver.streams() => {}
    }
    receiver.link.left(serial);
}

/// Shakes hands, and checks that the peer is who it says, and one of ours.
async fn open(
    shared: &Shared,
    incoming: Incoming,
) -> Result<(Connection, Hello, Arc<Link>), Fault> {
    let config = shared.configs.server(incoming.remote_address());
    let connection = incoming.accept_with(config)?.await?;
    let hello = match greet(&connection, &shared.hello).await {
        Ok(hello) => hello,
        Err(fault) => {
            Code::BadHello.close(&connection, &fault.to_string());
            return Err(fault);
        }
    };
    let node = hello.peer.member.node;
    let (code, fault) = if hello.cluster != shared.cluster {
        (Code::BadHello, Fault::Cluster(hello.cluster))
    } else if !is_certified(&connection, &hello) {
        (Code::BadHello, Fault::Certificate(node))
    } else if let Some(link) = shared.links.get(&node) {
        return Ok((connection, hello, link.clone()));
    } else {
        (Code::Stranger, Fault::Stranger(node))
    };
    let address = connection.remote_address();
    if shared.is_news(&fault) {
        tracing::warn!(%address, %fault, "refused a node of this cluster's authority");
    }
    // The reason is read by the other side's operator, whose "this node" is the dialler.
    Code::close(code, &connection, &format!("refused as node {node}: {fault}"));
    Err(fault)
}

/// Whether the certificate, whose chain TLS has verified, is that of the node in the hello.
fn is_certified(connection: &Connection, hello: &Hello) -> bool {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| chain.into_iter().next())
        .is_some_and(|cert| tls::names(&cert, hello.cluster, hello.peer.member.node))
}

/// One accepted connection.
#[derive(Clone)]
struct Receiver {
    shared: Arc<Shared>,
    link: Arc<Link>,
    serial: u64,
    from: Peer,
    connection: Connection,
}

/// Why receiving ends.
enum End {
    /// The connection is gone or replaced, or the node stops.
    Over,
    /// The peer sent this.
    Malformed(DecodeError),
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> End {
        End::Malformed(error)
    }
}

impl Receiver {
    /// Reads datagrams until the connection ends.
    async fn datagrams(&self) {
        let end = async {
            loop {
                let frame = self.connection.read_datagram().await.map_err(|_| End::Over)?;
                self.hand_on(frame).await?;
            }
        };
        let Err::<(), End>(end) = end.await else { return };
        self.end(end);
    }

    /// Accepts streams until the connection ends. quinn bounds how many are open.
    async fn streams(&self) {
        while let Ok(stream) = self.connection.accept_uni().await {
            let receiver = self.clone();
            tokio::spawn(async move {
                if let Err(end) = receiver.stream(stream).await {
                    receiver.end(end);
                }
            });
        }
    }

    async fn stream(&self, mut stream: RecvStream) -> Result<(), End> {
        let mut reader = FrameReader::new();
        let mut chunks: [Bytes; CHUNKS] = [const { Bytes::new() }; CHUNKS];
        while let Some(count) = stream.read_chunks(&mut chunks).await.map_err(|_| End::Over)? {
            for chunk in &mut chunks[..count] {
                reader.push(std::mem::take(chunk));
            }
            while let Some(frame) = reader.next_frame()? {
                self.hand_on(frame).await?;
            }
        }
        Ok(())
    }

    /// Waits until the driver has room: what it cannot take stays with the sender.
    async fn hand_on(&self, frame: Bytes) -> Result<(), End> {
        let message = decode(frame)?;
        let Ok(place) = self.shared.inbound.reserve().await else {
            Code::Shutdown.close(&self.connection, "the node stops");
            return Err(End::Over);
        };
        let inbound = Inbound { from: self.from, message };
        match self.link.hear(self.serial, self.from, || place.send(inbound)) {
            true => Ok(()),
            false => Err(End::Over),
        }
    }

    fn end(&self, end: End) {
        let End::Malformed(error) = end else { return };
        // Datagrams and streams may both say so, and the peer connects again and may go on like
        // this: a connection counts once, and the operator is told once.
        let Some(news) = self.link.refuse(self.serial, self.from, error) else { return };
        self.shared.malformed.fetch_add(1, Ordering::Relaxed);
        let (node, address) = (self.link.node, self.connection.remote_address());
        if news {
            tracing::warn!(%node, %address, %error, "closed its connection; told once while it goes on");
        } else {
            tracing::debug!(%node, %address, %error, "closed its connection");
        }
        Code::Malformed.close(&self.connection, &error.to_string());
    }
}
