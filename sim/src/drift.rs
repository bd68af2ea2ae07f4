//! A clock that drifts: which time it shows at which moment, and the other way round.

use highwater_core::{Instant, Now};

/// A wall time to start from: 2026-01-01.
pub(crate) const EPOCH_MS: u64 = 1_767_225_600_000;

/// One node's clocks: monotonic, which drifts and begins anywhere at each start, and wall, which
/// may be wrong.
#[derive(Clone, Debug)]
pub(crate) struct Drifting {
    /// Simulated time at which `base_us` held.
    base_ns: u64,
    base_us: u64,
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl Drifting {
    pub(crate) fn new(drift_ppm: i64, wall_offset_ms: i64) -> Drifting {
        Drifting { base_ns: 0, base_us: 0, drift_ppm, wall_offset_ms }
    }

    fn mono_us(&self, at_ns: u64) -> u64 {
        let passed = i128::from(at_ns.saturating_sub(self.base_ns));
        let passed = passed * i128::from(1_000_000 + self.drift_ppm) / 1_000_000_000;
        self.base_us + passed as u64
    }

    /// What it shows.
    pub(crate) fn now(&self, at_ns: u64) -> Now {
        let wall = (EPOCH_MS + at_ns / 1_000_000).saturating_add_signed(self.wall_offset_ms);
        Now { mono: Instant(self.mono_us(at_ns)), wall_ms: wall }
    }

    /// The first simulated nanosecond at which the clock shows `mono`, if the drift stays.
    pub(crate) fn at_ns(&self, mono: Instant) -> u64 {
        let wanted = u128::from(mono.0.saturating_sub(self.base_us)) * 1_000_000_000;
        let rate = (1_000_000 + self.drift_ppm) as u128;
        self.base_ns + wanted.div_ceil(rate) as u64
    }

    /// A restart: monotonic time begins anew.
    pub(crate) fn restart(&mut self, at_ns: u64, base_us: u64) {
        (self.base_ns, self.base_us) = (at_ns, base_us);
    }

    /// From now on the clock gains `drift_ppm` microseconds a second.
    pub(crate) fn drift(&mut self, at_ns: u64, drift_ppm: i64) {
        (self.base_us, self.base_ns) = (self.mono_us(at_ns), at_ns);
        self.drift_ppm = drift_ppm;
    }

    /// The wall time jumps.
    pub(crate) fn jump_wall(&mut self, by_ms: i64) {
        self.wall_offset_ms += by_ms;
    }
}
