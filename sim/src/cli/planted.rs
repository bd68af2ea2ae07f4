//! `cargo sim planted`: measures the simulator. Each planted fault is switched on while ordinary
//! seeds run; an oracle must see it, and the same seed must pass without it.

use std::ops::ControlFlow;

use highwater_core::planted::{self, Planted};

use super::{
    args::{Args, planted_name},
    check,
};
use crate::{
    pool,
    report::Report,
    run::{Settings, run_seed},
};

/// Runs each planted fault. Whether all were caught.
pub(super) fn planted(args: &Args) -> bool {
    let settings = Settings { profile: args.profile, ..Settings::default() };
    println!("{:<24} {:<24} {:>5}  what was seen", "planted fault", "caught by", "seeds");
    let mut all = true;
    for fault in Planted::ALL {
        let caught = first_catch(args, settings, fault);
        let clean = caught.as_ref().map(|report| run_seed(report.seed, settings));
        let row = match (&caught, &clean) {
            (Some(report), Some(clean)) => row(args, report, clean),
            _ => Err(format!("NOT CAUGHT in {} seeds", args.seeds.end - args.seeds.start)),
        };
        all &= row.is_ok();
        let text = row.unwrap_or_else(|why| why);
        println!("{:<24} {text}", planted_name(fault));
    }
    all & nondeterminism(args)
}

/// The lowest seed that catches the fault.
fn first_catch(args: &Args, settings: Settings, fault: Planted) -> Option<Report> {
    planted::set(Some(fault));
    let mut caught: Option<Report> = None;
    let run = |seed| run_seed(seed, settings);
    pool::each(args.seeds.clone(), args.jobs, run, |report| {
        if report.finding.is_none() {
            return ControlFlow::Continue(());
        }
        if caught.as_ref().is_none_or(|earlier| report.seed < earlier.seed) {
            caught = Some(report);
        }
        ControlFlow::Break(())
    });
    planted::set(None);
    caught
}

fn row(args: &Args, report: &Report, clean: &Report) -> Result<String, String> {
    let Some(finding) = &report.finding else { return Err("NOT CAUGHT".to_owned()) };
    let seeds = report.seed - args.seeds.start + 1;
    if let Some(other) = &clean.finding {
        return Err(format!("seed {} fails without it as well: {}", report.seed, other.what));
    }
    let what: String =
        finding.what.chars().take(100).map(|c| if c == '\n' { ' ' } else { c }).collect();
    Ok(format!("{:<24} {seeds:>5}  {what}", finding.oracle))
}

/// The simulator's own promise: `check` must see that a seed does not replay.
fn nondeterminism(args: &Args) -> bool {
    let seeds = args.seeds.start..args.seeds.start + 3;
    let args = Args { seeds, planted: Some(Planted::Nondeterminism), ..args.clone() };
    let caught = !check::check(&args);
    let how = if caught { "check" } else { "NOT CAUGHT" };
    println!("{:<24} {how}", planted_name(Planted::Nondeterminism));
    caught
}
