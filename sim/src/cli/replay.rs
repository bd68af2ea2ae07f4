//! `cargo sim replay`: one seed again, as a log, a page or JSON.

use std::{fmt, fs, path::Path};

use highwater_core::{
    NodeId,
    planted::{self, Planted},
};
use madsim::time::TimeHandle;
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use super::{
    args::{Args, Replayed, planted_name, planted_named},
    replay_line,
};
use crate::{
    fast,
    page::{
        chain::{Chain, explain},
        html,
    },
    plan::Plan,
    report::Report,
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
    let log = (!args.json).then_some(args.log);
    if let Some(level) = log {
        show_logs(level);
    }
    planted::set(fault);
    let keep = Keep { log, story: args.json || args.page.is_some(), ..Keep::default() };
    let nodes = plan.nodes.clone();
    let report = if args.fast {
        fast::run_plan(seed, plan, keep, args.until_ns.unwrap_or(u64::MAX))
    } else {
        let settings =
            Settings { profile: args.profile, quic: args.quic, keep, until_ns: args.until_ns };
        run_plan(seed, plan, settings)
    };
    let chain = match (&report.story, &report.finding) {
        (Some(story), Some(finding)) => explain(story, finding),
        _ => Chain::default(),
    };
    if args.json {
        println!("{}", summary_json(&report, &chain));
    } else {
        tell(&report);
    }
    let command = match what {
        Replayed::Seed(_) => replay_line(seed, args),
        Replayed::Script(path) => format!("cargo sim replay {}", path.display()),
    };
    if let Some(path) = &args.page
        && let Err(error) = write_page(path, args, &report, &chain, (&nodes, fault, command))
    {
        eprintln!("can't write {}: {error}", path.display());
        return false;
    }
    report.finding.is_none()
}

/// A script's run, and the fault that is planted in it.
fn load(path: &Path) -> Result<(u64, Plan, Option<Planted>), String> {
    let script = script::read(path)?;
    let fault = script.planted.as_deref().map(planted_named).transpose()?;
    Ok((script.seed, script.plan, fault))
}

/// What the node itself logs, beside the events.
fn show_logs(level: Level) {
    let filter = match level {
        Level::Info => LevelFilter::WARN,
        Level::Debug => LevelFilter::INFO,
        Level::Trace => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(filter).with_timer(SimulatedTime).init();
}

fn tell(report: &Report) {
    println!("took effect:");
    for seen in Seen::ALL {
        let times = report.stats.get(*seen);
        if times > 0 {
            println!("  {times:>8}  {}", seen.name());
        }
    }
    let Report { seed, calls, acks, events, hash, .. } = report;
    println!(
        "seed {seed}: {calls} calls, {acks} acknowledged writes, {events} events, hash {hash:016x}"
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
}

fn summary_json(report: &Report, chain: &Chain) -> serde_json::Value {
    let took_effect: serde_json::Map<_, _> = Seen::ALL
        .iter()
        .map(|seen| (seen.name().to_owned(), json!(report.stats.get(*seen))))
        .collect();
    let explained = match (&report.story, &report.finding) {
        (Some(story), Some(finding)) => html::summary(story, finding, chain),
        _ => json!({ "finding": null, "chain": [] }),
    };
    let mut all = json!({
        "seed": report.seed,
        "calls": report.calls,
        "acknowledged_writes": report.acks,
        "events": report.events,
        "hash": format!("{:016x}", report.hash),
        "simulated_seconds": report.simulated_ns as f64 / 1e9,
        "took_effect": took_effect,
    });
    if let (Some(all), serde_json::Value::Object(explained)) = (all.as_object_mut(), explained) {
        all.extend(explained);
    }
    all
}

fn write_page(
    path: &Path,
    args: &Args,
    report: &Report,
    chain: &Chain,
    (nodes, fault, replay): (&[NodeId], Option<Planted>, String),
) -> std::io::Result<()> {
    let Some(story) = &report.story else { return Ok(()) };
    let planted = fault.map(|fault| format!(", planted: {}", planted_name(fault)));
    let about = html::About {
        title: format!("seed {}{}", report.seed, planted.unwrap_or_default()),
        replay,
        nodes,
        finding: report.finding.as_ref(),
        chain,
        window_ns: args.window_ns,
    };
    fs::write(path, html::render(story, &about))?;
    eprintln!("the run is shown in {}", path.display());
    Ok(())
}
