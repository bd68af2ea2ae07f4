//! What came of a run.

use crate::{page::story::Story, stats::Stats, world::Finding};

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) finding: Option<Finding>,
    pub(crate) stats: Stats,
    /// Of the trace.
    pub(crate) hash: u64,
    /// In the trace.
    pub(crate) events: u64,
    pub(crate) simulated_ns: u64,
    /// Made by clients.
    pub(crate) calls: u64,
    /// Acknowledged writes.
    pub(crate) acks: u64,
    /// What a page shows, if it was to be kept.
    pub(crate) story: Option<Box<Story>>,
    /// Kept events, as [`crate::trace::Trace::save`] writes them.
    #[cfg_attr(not(madsim), allow(dead_code, reason = "the command line compares them"))]
    pub(crate) trace: Vec<u8>,
}
