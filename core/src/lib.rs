//! The pure heart of Highwater.
//!
//! A [`Node`] hosts many replication groups. It is fed [`Input`]s and the time, and answers with
//! [`Effect`]s; it does no IO and reads no clock. See `docs/ARCHITECTURE.md` for the picture.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod catalog;
mod config;
mod context;
pub mod control;
mod entry;
mod formation;
mod fresh;
mod group;
mod io;
mod liveness;
mod log;
mod message;
mod node;
mod once;
mod peers;
mod recall;
mod retention;
mod rng;
mod slots;
mod types;
mod view;
mod watermarks;

pub use config::Config;
pub use context::Reason;
pub use entry::{Entry, Formation, Kind, Outcome, Position, Record};
pub use group::Verified;
pub use highwater_planted as planted;
pub use io::{
    Doubt, Effect, Identity, Input, Notice, Recovered, RecoveredGroup, Reject, Reply, Request,
};
pub use message::{GroupMessage, Message};
pub use node::{Node, RecoverError};
pub use once::{ONCE_KEY_MAX, OnceEntry, OnceKey, RememberedView};
pub use retention::Base;
pub use slots::{
    SLOT_NAME_MAX, SlotCause, SlotChange, SlotEntry, SlotLimits, SlotOutcome, SlotSettings,
    SlotStart, SlotState, SlotView, SlotsView,
};
pub use types::{
    Boot, ClusterId, GroupId, Hlc, Incarnation, Instant, LoadId, Lsn, Member, NodeId, Now, Peer,
    RequestId, Root, Term, WriteId,
};
pub use view::{GroupView, Held, Resyncs, RoleView};
pub use watermarks::Watermarks;
