//! Sleeping to the nanosecond. madsim's own sleep has a floor of a millisecond, and registers one
//! more timer with each poll.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use madsim::time::{Sleep, TimeHandle};

/// Nanoseconds of simulated time since the run began.
pub(crate) fn now_ns() -> u64 {
    TimeHandle::current().elapsed().as_nanos() as u64
}

/// Ready at one moment of simulated time.
pub(crate) struct Until {
    sleep: Pin<Box<Sleep>>,
    armed: Option<Waker>,
}

/// Waits until the run is `at_ns` old.
pub(crate) fn until(at_ns: u64) -> Until {
    let time = TimeHandle::current();
    let left = Duration::from_nanos(at_ns).saturating_sub(time.elapsed());
    let deadline = time.now_instant() + left;
    let mut sleep = Box::pin(time.sleep_until(deadline));
    // `reset` takes the deadline as it is; the constructor moves it a millisecond away.
    sleep.as_mut().reset(deadline);
    Until { sleep, armed: None }
}

/// Waits this long.
pub(crate) fn pause_ns(ns: u64) -> Until {
    until(now_ns() + ns)
}

/// Waits this many milliseconds.
pub(crate) fn pause_ms(ms: u64) -> Until {
    pause_ns(ms * 1_000_000)
}

impl Until {
    /// Moves the moment.
    pub(crate) fn reset(&mut self, at_ns: u64) {
        let time = TimeHandle::current();
        let left = Duration::from_nanos(at_ns).saturating_sub(time.elapsed());
        self.sleep.as_mut().reset(time.now_instant() + left);
        self.armed = None;
    }
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_elapsed() {
            return Poll::Ready(());
        }
        if self.armed.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.armed = Some(cx.waker().clone());
        self.sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_shorter_than_a_millisecond() {
        madsim::runtime::Runtime::with_seed_and_config(1, madsim::Config::default()).block_on(
            async {
                let before = now_ns();
                pause_ns(30_000).await;
                let slept = now_ns() - before;
                assert!((30_000..60_000).contains(&slept), "slept {slept} ns");
            },
        );
    }
}
