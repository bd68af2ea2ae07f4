//! Bytes: frames and the encoding of everything that is sent or stored. No IO.
//!
//! `docs/FORMATS.md` draws what is encoded here; byte snapshots beside the tests freeze it. Decoding
//! never panics and takes no more memory than the bytes at hand justify.

pub mod entry;
mod frame;
pub mod message;
pub mod op;
pub mod peer;
mod v1;

#[cfg(test)]
mod testing;
