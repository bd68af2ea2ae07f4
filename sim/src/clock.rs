//! A clock per node: drifts against simulated time, starts anywhere at each boot, and tells a wall
//! time that may be wrong.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use highwater_core::{Instant, Now};
use highwater_node::env::Clock;

use crate::{
    drift::Drifting,
    timer::{now_ns, until},
    trace::Kind,
    world::World,
};

/// One node's clock.
#[derive(Clone, Debug)]
pub(crate) struct SimClock {
    world: Arc<World>,
    node: u64,
    state: Arc<Mutex<Drifting>>,
}

impl SimClock {
    pub(crate) fn new(
        world: Arc<World>,
        node: u64,
        drift_ppm: i64,
        wall_offset_ms: i64,
    ) -> SimClock {
        let state = Arc::new(Mutex::new(Drifting::new(drift_ppm, wall_offset_ms)));
        SimClock { world, node, state }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Drifting) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A restart: monotonic time begins anew.
    pub(crate) fn restart(&self, base_us: u64) {
        self.with(|clock| clock.restart(now_ns(), base_us));
    }

    /// From now on the clock gains `drift_ppm` microseconds a second.
    pub(crate) fn drift(&self, drift_ppm: i64) {
        self.with(|clock| clock.drift(now_ns(), drift_ppm));
    }

    /// The wall time jumps.
    pub(crate) fn jump_wall(&self, by_ms: i64) {
        self.with(|clock| clock.jump_wall(by_ms));
    }
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        self.with(|clock| clock.now(now_ns()))
    }

    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        let clock = self.clone();
        async move {
            // The drift may change meanwhile.
            while clock.now().mono < at {
                until(clock.with(|c| c.at_ns(at))).await;
            }
            clock.world.event(Kind::Timer, clock.node, at.0, 0, 0, || format!("{at:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{drift::EPOCH_MS, timer::pause_ms};

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
