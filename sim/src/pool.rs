//! Runs seeds on several threads.

use std::{
    ops::{ControlFlow, Range},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

#[cfg(madsim)]
use highwater_core::planted;

/// As many as this machine has.
pub(crate) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs each seed and hands over the reports as they come, until told to stop.
pub(crate) fn each<R: Send>(
    seeds: Range<u64>,
    jobs: usize,
    run_seed: impl Fn(u64) -> R + Sync,
    mut on_report: impl FnMut(R) -> ControlFlow<()>,
) {
    // What is planted on this thread is planted on all.
    #[cfg(madsim)]
    let planted = planted::get();
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (reports, incoming) = mpsc::channel();
        for _ in 0..jobs {
            let (next, stop, end, run_seed) = (&next, &stop, seeds.end, &run_seed);
            let reports = reports.clone();
            scope.spawn(move || {
                #[cfg(madsim)]
                planted::set(planted);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || reports.send(run_seed(seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        for report in incoming {
            if on_report(report).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}
