//! The driver of one node.

pub mod api;
pub mod env;
mod handle;

pub use handle::Handle;
