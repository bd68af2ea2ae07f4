//! The first thing on every connection: both sides say who they are.

use std::fmt;

use bytes::Bytes;
use highwater_core::{ClusterId, NodeId};
use highwater_wire::{
    message::{DecodeError, HELLO_MAX, decode_hello},
    peer::Hello,
};
use quinn::{ConnectError, Connection, ConnectionError, ReadToEndError, VarInt, WriteError};

/// Why a connection is closed, as the other side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    /// The node stops.
    Shutdown = 0,
    /// The same node has opened a newer connection.
    Replaced = 1,
    /// The hello is malformed, of another cluster, or not of the certificate's node.
    BadHello = 2,
    /// The node is not one that is configured.
    Stranger = 3,
    /// Something that is no message.
    Malformed = 4,
}

impl Code {
    pub(crate) fn close(self, connection: &Connection, reason: &str) {
        connection.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }
}

/// Why a connection did not come about or ended. Its text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it cannot be dialled: {0}")]
    Dial(#[from] ConnectError),
    #[error("{}", Explained(.0))]
    Connection(#[from] ConnectionError),
    #[error("no answer in time: is it running, and reachable at this address over UDP?")]
    Silent,
    #[error("it said something else than a hello: {0}")]
    Hello(#[from] DecodeError),
    #[error("its hello did not come through")]
    NoHello,
    #[error("it is of cluster {0}: check its address and its configuration")]
    Cluster(ClusterId),
    #[error("node {0} is at this address: check the configured addresses")]
    Node(NodeId),
    #[error("its certificate is not that of node {0}: give each node its own certificate and key")]
    Certificate(NodeId),
    #[error("node {0} is not configured here")]
    Stranger(NodeId),
    #[error("it has started anew")]
    Restarted,
    #[error("it does not read any more")]
    Unread,
}

impl Fault {
    /// Whether the other side has judged this one's words, and will judge them alike next time.
    pub(crate) fn is_refusal(&self) -> bool {
        let Fault::Connection(ConnectionError::ApplicationClosed(closed)) = self else {
            return false;
        };
        [Code::BadHello, Code::Stranger, Code::Malformed]
            .iter()
            .any(|code| closed.error_code == VarInt::from_u32(*code as u32))
    }
}

impl From<ReadToEndError> for Fault {
    fn from(error: ReadToEndError) -> Fault {
        match error {
            ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => error.into(),
            ReadToEndError::Read(_) | ReadToEndError::TooLong => Fault::NoHello,
        }
    }
}

impl From<WriteError> for Fault {
    fn from(error: WriteError) -> Fault {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            _ => Fault::Unread,
        }
    }
}

/// Says `ours`, and hears theirs. Neither is trusted with more than its own words yet.
pub(crate) async fn greet(connection: &Connection, ours: &Bytes) -> Result<Hello, Fault> {
    let say = async {
        let mut stream = connection.open_uni().await?;
        stream.write_chunk(ours.clone()).await?;
        // It was opened here and is neither finished nor reset.
        let _ = stream.finish();
        Ok::<_, Fault>(())
    };
    let hear = async {
        let mut stream = connection.accept_uni().await?;
        let frame = stream.read_to_end(HELLO_MAX).await?;
        Ok(decode_hello(Bytes::from(frame))?)
    };
    let ((), theirs) = tokio::try_join!(say, hear)?;
    Ok(theirs)
}

/// quinn's words for it, and what to do where that is known.
struct Explained<'a>(&'a ConnectionError);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.0 {
            ConnectionError::ApplicationClosed(closed) => {
                let reason = String::from_utf8_lossy(&closed.reason);
                return match reason.trim() {
                    "" => write!(f, "it closed the connection"),
                    reason => write!(f, "it closed the connection: {reason}"),
                };
            }
            ConnectionError::TimedOut => return write!(f, "it fell silent"),
            // Beside the end of this node, the only reason to close what was dialled.
            ConnectionError::LocallyClosed => return write!(f, "it has started anew"),
            ConnectionError::TransportError(error) => u64::from(error.code),
            ConnectionError::ConnectionClosed(closed) => u64::from(closed.error_code),
            _ => 0,
        };
        write!(f, "{}", self.0)?;
        match tls_alert(code) {
            // RFC 8446, section 6: bad, unsupported, revoked, expired and unknown certificate;
            // unknown authority; access denied; decrypt error; certificate required.
            Some(42..=46 | 48 | 49 | 51 | 116) => write!(
                f,
                ". The two nodes' certificates are not of one cluster: give both the files that \
                 one `init` made"
            ),
            // No application protocol in common.
            Some(120) => write!(f, ". It is no Highwater node, or of an incompatible release"),
            _ => Ok(()),
        }
    }
}

/// The TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn tls_alert(code: u64) -> Option<u64> {
    (0x100..0x200).contains(&code).then_some(code & 0xff)
}
