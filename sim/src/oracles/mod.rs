//! The oracles: each promise has one, in a file of its own that cites where the promise is made
//! ("semantics.md" is the design's list of guarantees, "failures" its list of what must be
//! impossible). They know nothing of each other and touch nothing; the judge hands them what they
//! need, in order.

pub(crate) mod catalog;
pub(crate) mod commit;
pub(crate) mod durable_log;
pub(crate) mod election_safety;
pub(crate) mod linearizability;
pub(crate) mod liveness;
pub(crate) mod log;
pub(crate) mod log_matching;
pub(crate) mod outcomes;
pub(crate) mod reference;
pub(crate) mod state_machine;
pub(crate) mod watermarks;

/// What an oracle says: nothing, or what is broken.
pub(crate) type Verdict = Result<(), String>;
