//! Bytes: frames and the encoding of everything that is sent or stored. No IO.

pub mod op;
pub mod peer;
