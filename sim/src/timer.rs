//! Sleeping to the nanosecond. madsim's own sleep has a floor of a millisecond, and registers one
//! more timer with each poll.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use madsim::time::{Instant, Sleep, TimeHandle};

/// Nanoseconds of simulated time since the run began.
pub(crate) fn now_ns() -> u64 {
    TimeHandle::current().elapsed().as_nanos() as u64
}

/// Ready at one moment of simulated time.
pub(crate) struct Until {
    time: TimeHandle,
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
    /// madsim can't take a timer back. One that will fire early enough does: when it has woken the
    /// task, the next one is armed.
    armed: Option<(Instant, Waker)>,
}

/// Waits until the run is `at_ns` old.
pub(crate) fn until(at_ns: u64) -> Until {
    let time = TimeHandle::current();
    let deadline = instant(&time, at_ns);
    until_instant(deadline)
}

/// Waits until this instant, as the whole run sees it.
pub(crate) fn until_instant(deadline: Instant) -> Until {
    let time = TimeHandle::current();
    let sleep = Box::pin(time.sleep_until(deadline));
    Until { time, sleep, deadline, armed: None }
}

fn instant(time: &TimeHandle, at_ns: u64) -> Instant {
    time.now_instant() + Duration::from_nanos(at_ns).saturating_sub(time.elapsed())
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
        self.deadline = instant(&self.time, at_ns);
    }

    /// Moves the moment to this instant.
    pub(crate) fn reset_instant(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (now, deadline) = (self.time.now_instant(), self.deadline);
        if now >= deadline {
            return Poll::Ready(());
        }
        let armed = self
            .armed
            .as_ref()
            .is_some_and(|(at, waker)| now < *at && *at <= deadline && waker.will_wake(cx.waker()));
        if !armed {
            self.armed = Some((deadline, cx.waker().clone()));
            // `reset` takes the deadline as it is; the constructor moves it a millisecond away.
            self.sleep.as_mut().reset(deadline);
            let _ = self.sleep.as_mut().poll(cx);
        }
        Poll::Pending
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

    #[test]
    fn the_moment_can_be_moved_both_ways() {
        madsim::runtime::Runtime::with_seed_and_config(1, madsim::Config::default()).block_on(
            async {
                for (first, then) in [(5_000_000, 90_000_000), (90_000_000, 5_000_000)] {
                    let before = now_ns();
                    let mut timer = pause_ns(first);
                    assert!(
                        std::future::poll_fn(|cx| {
                            Poll::Ready(Pin::new(&mut timer).poll(cx).is_pending())
                        })
                        .await
                    );
                    timer.reset(before + then);
                    timer.await;
                    let slept = now_ns() - before;
                    assert!((then..then + 1_000).contains(&slept), "slept {slept} ns");
                }
            },
        );
    }
}
