//! How quinn is tuned. Every number that is not plain was found by measuring.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig,
    VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};

use crate::{
    quic::QuicError,
    tls::{NodeTls, TlsError},
};

/// Largest packet where the path is this machine. Ten of these, which quinn hands to the kernel in
/// one go, stay below the 65,507 bytes that the kernel takes; beyond, they are lost silently.
const MTU_LOOPBACK: u16 = 6550;

/// Largest packet elsewhere: Ethernet's 1500 less IP and UDP headers.
const MTU_PATH: u16 = 1452;

/// A connection that hears nothing for so long is lost. A restarted peer is noticed much earlier,
/// by its hello.
const IDLE_TIMEOUT_MS: u32 = 5_000;

/// Where nothing else is said. Heartbeats are more frequent than this.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);

/// Assumed until it is measured: lost first packets are sent again after three times this long.
const INITIAL_RTT: Duration = Duration::from_millis(20);

/// The dialling side opens a hello and three lanes.
const STREAMS_MAX: u32 = 4;

/// What a sender may have under way on one stream. Bounds what an unread stream takes in memory.
const STREAM_WINDOW: u32 = 4 << 20;

/// The same for a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Unacknowledged bytes that quinn keeps for a connection.
const SEND_WINDOW: u64 = 8 << 20;

/// Heartbeats that wait. When it is full, quinn drops the oldest.
const DATAGRAM_BUFFER: usize = 64 << 10;

/// First packets that wait for [`crate::accept`]. Further ones are refused.
const INCOMING_MAX: usize = 128;

/// What those may send ahead, in bytes, each and together.
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFERS: u64 = 1 << 20;

/// How connections are set up; it depends on the path.
#[derive(Debug)]
pub(crate) struct Configs {
    server: [Arc<ServerConfig>; 2],
    client: [ClientConfig; 2],
}

impl Configs {
    pub(crate) fn new(tls: &NodeTls) -> Result<Configs, QuicError> {
        let unusable = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
        let server = Arc::new(QuicServerConfig::try_from(tls.server()?).map_err(|e| unusable(&e))?);
        let client = Arc::new(QuicClientConfig::try_from(tls.client()?).map_err(|e| unusable(&e))?);
        let on = |mtu: u16| {
            let mut config = ServerConfig::with_crypto(server.clone());
            config
                .transport_config(Arc::new(transport(mtu, None)))
                .migration(false)
                .max_incoming(INCOMING_MAX)
                .incoming_buffer_size(INCOMING_BUFFER)
                .incoming_buffer_size_total(INCOMING_BUFFERS);
            Arc::new(config)
        };
        let to = |mtu: u16| {
            let mut config = ClientConfig::new(client.clone());
            config.transport_config(Arc::new(transport(mtu, Some(KEEP_ALIVE))));
            config
        };
        Ok(Configs {
            server: [on(MTU_PATH), on(MTU_LOOPBACK)],
            client: [to(MTU_PATH), to(MTU_LOOPBACK)],
        })
    }

    pub(crate) fn server(&self, remote: SocketAddr) -> Arc<ServerConfig> {
        self.server[usize::from(is_loopback(remote.ip()))].clone()
    }

    pub(crate) fn client(&self, remote: SocketAddr) -> ClientConfig {
        self.client[usize::from(is_loopback(remote.ip()))].clone()
    }

    /// For an endpoint that meets these peers. quinn's receive buffer is 2048 times the largest
    /// packet, so that is raised only where it is of use.
    pub(crate) fn endpoint(
        peers: impl Iterator<Item = SocketAddr>,
        seed: Option<[u8; 32]>,
    ) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        config.rng_seed(seed);
        let loopback = peers.map(|p| p.ip()).any(is_loopback);
        let mtu = if loopback { MTU_LOOPBACK } else { MTU_PATH };
        // The only way to fail is a packet below 1200 bytes.
        if let Err(error) = config.max_udp_payload_size(mtu) {
            tracing::warn!(%error, mtu, "QUIC packets stay at their default size");
        }
        config
    }
}

fn transport(mtu: u16, keep_alive: Option<Duration>) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(keep_alive)
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .enable_segmentation_offload(true)
        .mtu_discovery_config(Some(discovery));
    config
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
