//! How much clients write through this node now, so that followers that catch up leave them room.

use crate::types::Instant;

/// What is written is counted over spans of this long, in microseconds.
const SPAN_US: u64 = 100_000;

/// What clients write through this node.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// When the present span began.
    since: Instant,
    /// Written in it, in bytes.
    bytes: u64,
    /// Written in the span before it.
    before: u64,
}

impl Fresh {
    pub(crate) fn new(now: Instant) -> Fresh {
        Fresh { since: now, bytes: 0, before: 0 }
    }

    /// A client's operation of this weight is appended.
    pub(crate) fn wrote(&mut self, now: Instant, bytes: u64) {
        self.go_on(now);
        self.bytes += bytes;
    }

    /// How long to rest after `bytes` of what a follower has missed, in microseconds: while clients
    /// write, so long that it takes `pace` bytes a second, or twice what they write where that is more,
    /// so that it comes nearer.
    pub(crate) fn rest_us(&mut self, now: Instant, bytes: u64, pace: u64) -> u64 {
        self.go_on(now);
        let fresh = self.before.max(self.bytes).saturating_mul(1_000_000 / SPAN_US);
        match fresh {
            0 => 0,
            _ => bytes.saturating_mul(1_000_000) / pace.max(fresh.saturating_mul(2)).max(1),
        }
    }

    fn go_on(&mut self, now: Instant) {
        let passed = now.since(self.since);
        if passed >= SPAN_US {
            self.before = if passed < 2 * SPAN_US { self.bytes } else { 0 };
            (self.since, self.bytes) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_only_while_clients_write_and_always_gains_on_them() {
        let at = |ms: u64| Instant(ms * 1_000);
        let (mut fresh, pace) = (Fresh::new(at(0)), 1_000_000);
        assert_eq!(fresh.rest_us(at(0), 1_000_000, pace), 0, "nobody writes");
        fresh.wrote(at(1), 1);
        assert_eq!(fresh.rest_us(at(2), 1_000_000, pace), 1_000_000);
        // 10 MB/s: 20 MB/s is what gains on it.
        fresh.wrote(at(3), 1_000_000);
        let rest = fresh.rest_us(at(120), 20_000_000, pace);
        assert!((900_000..=1_000_000).contains(&rest), "{rest}");
        assert_eq!(fresh.rest_us(at(330), 1_000_000, pace), 0, "they have stopped");
    }
}
