//! The oplog's files and the materialized state.

pub mod disk;
