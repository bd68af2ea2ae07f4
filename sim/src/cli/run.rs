//! `cargo sim run`: many seeds, their findings, and what took effect.

use std::{fs, io::IsTerminal, ops::ControlFlow, time::Instant};

use highwater_core::planted;
use serde_json::json;

use super::{args::Args, replay_line};
use crate::{
    plan::{CALLS_MIN, Profile},
    pool,
    report::Report,
    run::{Settings, run_seed},
    stats::{Seen, Totals},
    trace::Keep,
};

/// A run worth the name lasts so long.
const SIMULATED_MIN_NS: u64 = 60_000_000_000;

#[derive(Default)]
struct Summary {
    totals: Totals,
    failed: Vec<Report>,
    simulated_ns: u64,
    calls: u64,
    acks: u64,
    events: u64,
    /// Runs that are too short or too idle to count.
    idle: Vec<u64>,
    /// The seeds ran otherwise than their profile has it: what that promises is not asked for.
    overridden: bool,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.totals.add(&report.stats);
        self.simulated_ns += report.simulated_ns;
        self.calls += report.calls;
        self.acks += report.acks;
        self.events += report.events;
        if report.finding.is_some() {
            self.failed.push(report);
        } else if report.calls < CALLS_MIN || report.simulated_ns < SIMULATED_MIN_NS {
            self.idle.push(report.seed);
        }
    }

    fn missing(&self, profile: Profile) -> Vec<(Seen, u64)> {
        if self.overridden { Vec::new() } else { self.totals.missing(profile) }
    }

    fn passed(&self, profile: Profile) -> bool {
        self.failed.is_empty() && self.idle.is_empty() && self.missing(profile).is_empty()
    }
}

/// Runs the seeds. Whether all is well.
pub(super) fn run(args: &Args) -> bool {
    planted::set(args.planted);
    let begun = Instant::now();
    let keep = Keep { events: args.traces.is_some(), ..Keep::default() };
    let settings = Settings { profile: args.profile, quic: args.quic, keep, until_ns: None };
    let progress = !args.json && std::io::stderr().is_terminal();
    let mut summary = Summary { overridden: args.quic.is_some(), ..Summary::default() };
    let run = |seed| run_seed(seed, settings);
    pool::each(args.seeds.clone(), args.jobs, run, |report| {
        if let Some(dir) = &args.traces
            && let Err(error) = fs::write(dir.join(format!("{}.trace", report.seed)), &report.trace)
        {
            eprintln!("can't keep the trace of seed {}: {error}", report.seed);
            return ControlFlow::Break(());
        }
        if !args.json {
            tell_finding(&report, args);
        }
        summary.add(report);
        if progress {
            eprint!("\r{} of {} seeds", summary.totals.seeds, args.seeds.end - args.seeds.start);
        }
        ControlFlow::Continue(())
    });
    if progress {
        eprintln!();
    }
    let seconds = begun.elapsed().as_secs_f64();
    summary.failed.sort_by_key(|report| report.seed);
    if args.json {
        println!("{}", summary_json(&summary, args, seconds));
    } else {
        tell_summary(&summary, args, seconds);
    }
    let all = summary.totals.seeds == args.seeds.end - args.seeds.start;
    all && summary.passed(args.profile)
}

fn tell_finding(report: &Report, args: &Args) {
    if let Some(finding) = &report.finding {
        println!("seed {}: {}: {}", report.seed, finding.oracle, finding.what);
        println!("    {}", replay_line(report.seed, args));
    }
}

fn tell_summary(summary: &Summary, args: &Args, seconds: f64) {
    let Summary { totals, failed, .. } = summary;
    println!("{:<42} {:>10} {:>7} {:>5}", "took effect", "times", "seeds", "%");
    // What the profile does not bring about is no row of its table.
    for seen in Seen::ALL {
        let (times, seeds) = totals.get(*seen);
        if times == 0 && seen.due_in(args.profile).is_none() {
            continue;
        }
        let percent = seeds * 100 / totals.seeds.max(1);
        println!("{:<42} {times:>10} {seeds:>7} {percent:>5}", seen.name());
    }
    for (seen, due) in summary.missing(args.profile) {
        println!("MISSING: {} is due in {due} % of seeds and at least one", seen.name());
    }
    for seed in &summary.idle {
        println!("IDLE: seed {seed} made fewer than {CALLS_MIN} calls or was too short");
    }
    let simulated = summary.simulated_ns as f64 / 1e9;
    println!(
        "{} seeds, {} failed; {} calls, {} acknowledged writes; {simulated:.0} simulated seconds \
         in {seconds:.1} s on {} threads: {:.0} per second and thread",
        totals.seeds,
        failed.len(),
        summary.calls,
        summary.acks,
        args.jobs,
        simulated / seconds / args.jobs as f64,
    );
    for report in failed {
        println!("failed: {}", replay_line(report.seed, args));
    }
}

fn summary_json(summary: &Summary, args: &Args, seconds: f64) -> serde_json::Value {
    let seen: serde_json::Map<_, _> = Seen::ALL
        .iter()
        .map(|seen| {
            let (times, seeds) = summary.totals.get(*seen);
            let due = seen.due_in(args.profile);
            let value = json!({ "times": times, "seeds": seeds, "due_percent": due });
            (seen.name().to_owned(), value)
        })
        .collect();
    let findings: Vec<_> = summary
        .failed
        .iter()
        .filter_map(|report| {
            let finding = report.finding.as_ref()?;
            Some(json!({
                "seed": report.seed,
                "oracle": finding.oracle,
                "what": finding.what,
                "at_seconds": finding.at_ns as f64 / 1e9,
                "replay": replay_line(report.seed, args),
            }))
        })
        .collect();
    let missing: Vec<_> =
        summary.missing(args.profile).iter().map(|(seen, _)| seen.name()).collect();
    let simulated = summary.simulated_ns as f64 / 1e9;
    json!({
        "passed": summary.passed(args.profile),
        "seeds": summary.totals.seeds,
        "findings": findings,
        "missing": missing,
        "idle": summary.idle,
        "took_effect": seen,
        "calls": summary.calls,
        "acknowledged_writes": summary.acks,
        "events": summary.events,
        "simulated_seconds": simulated,
        "seconds": seconds,
        "threads": args.jobs,
        "simulated_seconds_per_second_and_thread": simulated / seconds / args.jobs as f64,
    })
}
