//! The oplog's files and the materialized state.

pub mod disk;
pub mod identity;
pub mod oplog;
pub mod state;
