//! The real socket and runtime.

use std::{io, net::SocketAddr, sync::Arc};

use highwater_node::env::Inbound;
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

use crate::quic::{Platform, Quic, QuicError, QuicOptions};

/// For each direction, in bytes. The usual default overflows under bulk.
const SOCKET_BUFFER: usize = 4 << 20;

impl Quic {
    /// Listens on [`QuicOptions::listen`], and begins to dial. Must be called within a tokio
    /// runtime with IO and time, which then runs it. Messages that arrive go to `inbound`; while it
    /// is full, peers wait.
    ///
    /// # Errors
    /// Where the certificates are not this node's, or the address cannot be listened on.
    pub fn bind(options: &QuicOptions, inbound: mpsc::Sender<Inbound>) -> Result<Quic, QuicError> {
        let listen = |error| QuicError::Listen { address: options.listen, error };
        let runtime = Arc::new(TokioRuntime);
        let socket = udp(&runtime, options.listen).map_err(listen)?;
        Quic::start(options, Platform { runtime, socket, seed: None }, inbound)
    }
}

fn udp(runtime: &TokioRuntime, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    // Linux grants less without an error, and reports twice what it grants.
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    if granted < SOCKET_BUFFER {
        tracing::info!(
            granted,
            wanted = SOCKET_BUFFER,
            "the system limits UDP buffers; under load, raise net.core.rmem_max and wmem_max"
        );
    }
    socket.bind(&address.into())?;
    runtime.wrap_udp_socket(socket.into())
}
