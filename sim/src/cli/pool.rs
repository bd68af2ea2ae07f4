//! Runs seeds on several threads.

use std::{
    ops::{ControlFlow, Range},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

use highwater_core::planted;

use crate::run::{Report, Settings, run_seed};

/// Runs each seed and hands over the reports as they come, until told to stop.
pub(super) fn each(
    seeds: Range<u64>,
    jobs: usize,
    settings: Settings,
    mut on_report: impl FnMut(Report) -> ControlFlow<()>,
) {
    let planted = planted::get();
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (reports, incoming) = mpsc::channel();
        for _ in 0..jobs {
            let (reports, next, stop, end) = (reports.clone(), &next, &stop, seeds.end);
            scope.spawn(move || {
                planted::set(planted);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || reports.send(run_seed(seed, settings)).is_err() {
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
