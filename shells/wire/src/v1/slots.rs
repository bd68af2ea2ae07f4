//! Of slots.

use highwater_core::{Lsn, SlotCause, SlotLimits, SlotOutcome, SlotSettings, SlotStart};
use rkyv::{Archive, Deserialize, Serialize};

use crate::peer::SlotAsk;

/// [`SlotAsk`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum SlotAskV1 {
    Create { from: SlotStartV1, lag_bytes: Option<u64>, lag_ops: Option<u64>, idle_ms: Option<u64> },
    Ack(u64),
    Delete,
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum SlotStartV1 {
    Earliest,
    Latest,
    After(u64),
}

impl From<&SlotAsk> for SlotAskV1 {
    fn from(ask: &SlotAsk) -> SlotAskV1 {
        match ask {
            SlotAsk::Create(SlotSettings { from, limits }) => SlotAskV1::Create {
                from: match from {
                    SlotStart::Earliest => SlotStartV1::Earliest,
                    SlotStart::Latest => SlotStartV1::Latest,
                    SlotStart::After(lsn) => SlotStartV1::After(lsn.0),
                },
                lag_bytes: limits.lag_bytes,
                lag_ops: limits.lag_ops,
                idle_ms: limits.idle_ms,
            },
            SlotAsk::Ack(lsn) => SlotAskV1::Ack(lsn.0),
            SlotAsk::Delete => SlotAskV1::Delete,
        }
    }
}

impl From<SlotAskV1> for SlotAsk {
    fn from(v: SlotAskV1) -> SlotAsk {
        match v {
            SlotAskV1::Create { from, lag_bytes, lag_ops, idle_ms } => {
                let from = match from {
                    SlotStartV1::Earliest => SlotStart::Earliest,
                    SlotStartV1::Latest => SlotStart::Latest,
                    SlotStartV1::After(lsn) => SlotStart::After(Lsn(lsn)),
                };
                let limits = SlotLimits { lag_bytes, lag_ops, idle_ms };
                SlotAsk::Create(SlotSettings { from, limits })
            }
            SlotAskV1::Ack(lsn) => SlotAsk::Ack(Lsn(lsn)),
            SlotAskV1::Delete => SlotAsk::Delete,
        }
    }
}

/// [`SlotOutcome`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum SlotOutcomeV1 {
    Created { confirmed: u64 },
    Stood { confirmed: u64 },
    Differs,
    Confirmed { confirmed: u64 },
    Deleted,
    NoSuchSlot,
    Invalidated { cause: SlotCauseV1 },
    AboveCommitted { committed: u64 },
    Pruned { first: u64 },
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum SlotCauseV1 {
    Horizon,
    IdleTimeout,
    LogRemoved,
}

impl From<SlotCause> for SlotCauseV1 {
    fn from(cause: SlotCause) -> SlotCauseV1 {
        match cause {
            SlotCause::Horizon => SlotCauseV1::Horizon,
            SlotCause::IdleTimeout => SlotCauseV1::IdleTimeout,
            SlotCause::LogRemoved => SlotCauseV1::LogRemoved,
        }
    }
}

impl From<SlotCauseV1> for SlotCause {
    fn from(v: SlotCauseV1) -> SlotCause {
        match v {
            SlotCauseV1::Horizon => SlotCause::Horizon,
            SlotCauseV1::IdleTimeout => SlotCause::IdleTimeout,
            SlotCauseV1::LogRemoved => SlotCause::LogRemoved,
        }
    }
}

impl From<SlotOutcome> for SlotOutcomeV1 {
    fn from(outcome: SlotOutcome) -> SlotOutcomeV1 {
        match outcome {
            SlotOutcome::Created { confirmed } => SlotOutcomeV1::Created { confirmed: confirmed.0 },
            SlotOutcome::Stood { confirmed } => SlotOutcomeV1::Stood { confirmed: confirmed.0 },
            SlotOutcome::Differs => SlotOutcomeV1::Differs,
            SlotOutcome::Confirmed { confirmed } => {
                SlotOutcomeV1::Confirmed { confirmed: confirmed.0 }
            }
            SlotOutcome::Deleted => SlotOutcomeV1::Deleted,
            SlotOutcome::NoSuchSlot => SlotOutcomeV1::NoSuchSlot,
            SlotOutcome::Invalidated { cause } => {
                SlotOutcomeV1::Invalidated { cause: cause.into() }
            }
            SlotOutcome::AboveCommitted { committed } => {
                SlotOutcomeV1::AboveCommitted { committed: committed.0 }
            }
            SlotOutcome::Pruned { first } => SlotOutcomeV1::Pruned { first: first.0 },
        }
    }
}

impl From<SlotOutcomeV1> for SlotOutcome {
    fn from(v: SlotOutcomeV1) -> SlotOutcome {
        match v {
            SlotOutcomeV1::Created { confirmed } => {
                SlotOutcome::Created { confirmed: Lsn(confirmed) }
            }
            SlotOutcomeV1::Stood { confirmed } => SlotOutcome::Stood { confirmed: Lsn(confirmed) },
            SlotOutcomeV1::Differs => SlotOutcome::Differs,
            SlotOutcomeV1::Confirmed { confirmed } => {
                SlotOutcome::Confirmed { confirmed: Lsn(confirmed) }
            }
            SlotOutcomeV1::Deleted => SlotOutcome::Deleted,
            SlotOutcomeV1::NoSuchSlot => SlotOutcome::NoSuchSlot,
            SlotOutcomeV1::Invalidated { cause } => {
                SlotOutcome::Invalidated { cause: cause.into() }
            }
            SlotOutcomeV1::AboveCommitted { committed } => {
                SlotOutcome::AboveCommitted { committed: Lsn(committed) }
            }
            SlotOutcomeV1::Pruned { first } => SlotOutcome::Pruned { first: Lsn(first) },
        }
    }
}
