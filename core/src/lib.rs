//! The pure heart of Highwater.
//!
//! A [`Node`] hosts many replication groups. It is fed [`Input`]s and the time, and answers with
//! [`Effect`]s; it does no IO and reads no clock. See `docs/ARCHITECTURE.md` for the picture.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod config;
mod entry;
mod io;
mod message;
pub mod planted;
mod types;

pub use config::Config;
pub use entry::{Entry, Formation, Kind, Outcome, Position, Record};
pub use io::{Effect, Identity, Input, Notice, Recovered, RecoveredGroup, Reject, Reply, Request};
pub use message::{GroupMessage, Message};
pub use types::{
    Boot, ClusterId, GroupId, Hlc, Incarnation, Instant, LoadId, Lsn, Member, NodeId, Now, Peer,
    RequestId, Term, WriteId,
};
