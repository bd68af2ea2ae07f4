//! The way between nodes: QUIC over quinn and rustls, with mutual TLS.
//!
//! Every node dials every other one and sends only on the connection that it dialled; on those it
//! accepted it only receives. Both sides begin with a [`Hello`](highwater_wire::peer::Hello): the
//! acceptor attributes all that arrives on a connection to the data directory and boot it names.
//! A connection ends with either process, so nothing that is on its way survives one.
//!
//! This crate decides nothing: it moves what it is given, bounded, and drops what it cannot move.

mod accept;
#[cfg(not(madsim))]
mod bind;
mod config;
mod dial;
mod greet;
mod link;
mod quic;
pub mod tls;

#[cfg(all(test, not(madsim)))]
mod tests;

pub use quic::{Counters, Platform, Quic, QuicError, QuicOptions};
