//! `cargo sim replay`: one seed again, with a log to read.

use std::{fmt, path::Path};

use highwater_core::planted::{self, Planted};
use madsim::time::TimeHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use super::args::{Args, Replayed, planted_named};
use crate::{
    fast,
    plan::Plan,
    run::{Settings, run_plan},
    script,
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

/// Runs a seed or a script again and shows it. Whether nothing is found.
pub(super) fn replay(args: &Args, what: &Replayed) -> bool {
    let (seed, plan, fault) = match what {
        Replayed::Seed(seed) => (*seed, Plan::draw(args.profile, *seed), args.planted),
        Replayed::Script(path) => match load(path) {
            Ok((seed, plan, fault)) => (seed, plan, fault.or(args.planted)),
            Err(what) => {
                eprintln!("{what}");
                return false;
            }
        },
    };
    let filter = match args.log {
        Level::Info => LevelFilter::WARN,
        Level::Debug => LevelFilter::INFO,
        Level::Trace => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(filter).with_timer(SimulatedTime).init();
    planted::set(fault);
    let keep = Keep { log: Some(args.log), ..Keep::default() };
    let report = if args.fast {
        fast::run_plan(seed, plan, keep, args.until_ns.unwrap_or(u64::MAX))
    } else {
        let settings =
            Settings { profile: args.profile, quic: args.quic, keep, until_ns: args.until_ns };
        run_plan(seed, plan, settings)
    };
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

/// A script's run, and the fault that is planted in it.
fn load(path: &Path) -> Result<(u64, Plan, Option<Planted>), String> {
    let script = script::read(path)?;
    let fault = script.planted.as_deref().map(planted_named).transpose()?;
    Ok((script.seed, script.plan, fault))
}
