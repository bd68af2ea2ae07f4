//! `cargo sim replay`: one seed again, with a log to read.

use std::fmt;

use highwater_core::planted;
use madsim::time::TimeHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use super::args::Args;
use crate::{
    run::{Settings, run_seed},
    stats::Seen,
    trace::{Keep, Level},
};

/// Simulated time, as the events show it.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        let elapsed = TimeHandle::try_current().map(|time| time.elapsed()).unwrap_or_default();
        write!(out, "{:>3}.{:09}", elapsed.as_secs(), elapsed.subsec_nanos())
    }
}

/// Runs the seed again and shows it. Whether nothing is found.
pub(super) fn replay(args: &Args, seed: u64) -> bool {
    let filter = match args.log {
        Level::Info => LevelFilter::WARN,
        Level::Debug => LevelFilter::INFO,
        Level::Trace => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(filter).with_timer(SimulatedTime).init();
    planted::set(args.planted);
    let keep = Keep { events: false, log: Some(args.log) };
    let settings = Settings { profile: args.profile, keep, until_ns: args.until_ns };
    let report = run_seed(seed, settings);
    println!("took effect:");
    for seen in Seen::ALL {
        let times = report.stats.get(*seen);
        if times > 0 {
            println!("  {times:>8}  {}", seen.name());
        }
    }
    let (calls, acks, events) = (report.calls, report.acks, report.events);
    println!(
        "seed {seed}: {calls} calls, {acks} acknowledged writes, {events} events, hash {:016x}",
        report.hash
    );
    match &report.finding {
        None => println!("nothing found"),
        Some(finding) => println!(
            "FOUND after {:.6} s by {}: {}",
            finding.at_ns as f64 / 1e9,
            finding.oracle,
            finding.what
        ),
    }
    report.finding.is_none()
}
