//! The deadline of a call, on the runtime's clock.

use std::time::Duration;

use tokio::time::Instant;

/// When a call ends at the latest. It travels with the call, so that the time in queues counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline(Instant::now() + timeout)
    }

    /// What is left of it; `None` once it has passed.
    pub(crate) fn left(self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn min(self, timeout: Duration) -> Deadline {
        Deadline(self.0.min(Instant::now() + timeout))
    }
}
