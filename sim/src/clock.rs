//! A clock per node: drifts against simulated time, starts anywhere at each boot, and tells a wall
//! time that may be wrong.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use highwater_core::{Instant, Now};
use highwater_node::env::Clock;

use crate::{
    timer::{now_ns, until},
    trace::Kind,
    world::World,
};

/// A wall time to start from: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;

#[derive(Debug)]
struct State {
    /// Simulated time at which `base_us` held.
    base_ns: u64,
    base_us: u64,
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl State {
    fn mono_us(&self, at_ns: u64) -> u64 {
        let passed = i128::from(at_ns.saturating_sub(self.base_ns));
        let passed = passed * i128::from(1_000_000 + self.drift_ppm) / 1_000_000_000;
        self.base_us + passed as u64
    }

    /// The first simulated nanosecond at which the clock shows `mono_us`, if the drift stays.
    fn at_ns(&self, mono_us: u64) -> u64 {
        let wanted = u128::from(mono_us.saturating_sub(self.base_us)) * 1_000_000_000;
        let rate = (1_000_000 + self.drift_ppm) as u128;
        self.base_ns + wanted.div_ceil(rate) as u64
    }
}

/// One node's clock.
#[derive(Clone, Debug)]
pub(crate) struct SimClock {
    world: Arc<World>,
    node: u64,
    state: Arc<Mutex<State>>,
}

impl SimClock {
    pub(crate) fn new(
        world: Arc<World>,
        node: u64,
        drift_ppm: i64,
        wall_offset_ms: i64,
    ) -> SimClock {
        let state = State { base_ns: 0, base_us: 0, drift_ppm, wall_offset_ms };
        SimClock { world, node, state: Arc::new(Mutex::new(state)) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A restart: monotonic time begins anew.
    pub(crate) fn restart(&self, base_us: u64) {
        let now = now_ns();
        self.with(|s| (s.base_ns, s.base_us) = (now, base_us));
    }

    /// From now on the clock gains `drift_ppm` microseconds a second.
    pub(crate) fn drift(&self, drift_ppm: i64) {
        let now = now_ns();
        self.with(|s| {
            (s.base_us, s.base_ns) = (s.mono_us(now), now);
            s.drift_ppm = drift_ppm;
        });
    }

    /// The wall time jumps.
    pub(crate) fn jump_wall(&self, by_ms: i64) {
        self.with(|s| s.wall_offset_ms += by_ms);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        let now = now_ns();
        self.with(|s| {
            let wall = (EPOCH_MS + now / 1_000_000).saturating_add_signed(s.wall_offset_ms);
            Now { mono: Instant(s.mono_us(now)), wall_ms: wall }
        })
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        let clock = self.clone();
        async move {
            // The drift may change meanwhile.
            while clock.now().mono < at {
                until(clock.with(|s| s.at_ns(at.0))).await;
            }
            clock.world.event(Kind::Timer, clock.node, at.0, 0, 0, || format!("{at:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::pause_ms;

    #[test]
    fn drifts_and_never_steps_back() {
        madsim::runtime::Runtime::with_seed_and_config(1, madsim::Config::default()).block_on(
            async {
                let world =
                    Arc::new(World::new(1, crate::trace::Keep::default(), crate::timer::now_ns));
                let clock = SimClock::new(world, 1, 50_000, -40);
                clock.restart(5_000);
                pause_ms(1_000).await;
                let fast = clock.now();
                assert!((1_054_990..1_055_100).contains(&fast.mono.0), "{fast:?}");
                assert!(fast.wall_ms < EPOCH_MS + 1_000);
                clock.drift(-50_000);
                assert!(clock.now().mono >= fast.mono);
                let target = clock.now().mono.plus(95_000);
                let before = now_ns();
                clock.sleep_until(target).await;
                assert!(clock.now().mono >= target);
                assert!((99_900_000..100_100_000).contains(&(now_ns() - before)));
                clock.jump_wall(-10_000);
                assert!(clock.now().wall_ms < fast.wall_ms);
                assert!(clock.now().mono >= target);
            },
        );
    }
}
