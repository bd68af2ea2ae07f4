//! The `highwater` binary as a library: its commands, and the pieces that tests reuse: making and
//! running a cluster, an HTTP client, and a probe of the disk.

pub mod address;
mod changes;
mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod dev;
mod failure;
pub mod fleet;
pub mod init;
mod log;
pub mod logging;
mod nodes;
mod output;
pub mod probe;
pub mod serve;
mod slot;
mod snapshot;
mod status;

pub use cli::main;
pub use failure::Failure;
