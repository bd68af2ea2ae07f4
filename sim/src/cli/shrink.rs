//! `cargo sim shrink`: the smallest schedule and workload that still fail, as a script. Faults go by
//! delta debugging (Zeller and Hildebrandt, 2002): halves first, then ever smaller parts, until none
//! can go alone. What is left is made quieter: fewer clients, calm weather, less time.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use highwater_core::planted::{self, Planted};

use super::args::{Args, planted_name};
use crate::{
    plan::{NEVER_MS, Plan, Weather},
    report::Report,
    run::{Settings, run_plan},
    script::{self, Script},
    world::Finding,
};

/// Whatever is changed moves everything after it by a little: a candidate may fail under another
/// course of chance.
const SEEDS_TRIED: u64 = 2;
/// What was found may come later in a candidate, but by no more than this, where it was found before
/// the healing.
const LATER_NS: u64 = 5_000_000_000;

/// A failing run that gets smaller.
pub(super) struct Shrinker {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) finding: Finding,
    settings: Settings,
    /// Runs so far, and at most.
    pub(super) runs: u64,
    runs_max: u64,
    progress: bool,
}

impl Shrinker {
    /// Begins with a run that fails; `None` where it does not.
    pub(super) fn new(
        seed: u64,
        plan: Plan,
        settings: Settings,
        runs_max: u64,
        progress: bool,
    ) -> Option<Shrinker> {
        let finding = run_plan(seed, plan.clone(), settings).finding?;
        Some(Shrinker { seed, plan, finding, settings, runs: 1, runs_max, progress })
    }

    /// Makes it as small as it gets.
    pub(super) fn shrink(&mut self) {
        if self.plan.quic {
            // All that follows is faster without.
            self.try_with(|plan| plan.quic = false);
        }
        self.drop_later();
        self.drop_faults();
        self.quieten();
        self.hurry();
        self.drop_faults();
    }

    /// Whether a candidate fails in the same way; then it is the new smallest.
    fn takes(&mut self, plan: Plan) -> bool {
        for n in 0..SEEDS_TRIED {
            if self.runs >= self.runs_max {
                return false;
            }
            self.runs += 1;
            self.tell();
            let seed = if n == 0 { self.seed } else { self.seed.wrapping_add(n << 32) };
            let healed_ns = plan.faults_ms * 1_000_000;
            let within = self.finding.at_ns < healed_ns;
            let until_ns = within.then_some(self.finding.at_ns + LATER_NS);
            let settings = Settings { until_ns, ..self.settings };
            let Report { finding, .. } = run_plan(seed, plan.clone(), settings);
            if let Some(finding) = finding.filter(|found| found.oracle == self.finding.oracle) {
                (self.seed, self.plan, self.finding) = (seed, plan, finding);
                return true;
            }
        }
        false
    }

    fn try_with(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.plan.clone();
        change(&mut plan);
        self.takes(plan)
    }

    /// What strikes after the finding has no part in it.
    fn drop_later(&mut self) {
        let at_ms = self.finding.at_ns / 1_000_000;
        self.try_with(|plan| plan.faults.retain(|(at, _)| *at <= at_ms));
    }

    fn drop_faults(&mut self) {
        let mut part = self.plan.faults.len();
        while part > 0 {
            let mut from = 0;
            while from < self.plan.faults.len() {
                let to = (from + part).min(self.plan.faults.len());
                let gone = self.try_with(|plan| drop(plan.faults.drain(from..to)));
                if !gone {
                    from = to;
                }
            }
            part /= 2;
        }
    }

    /// Less of everything that is not a fault.
    fn quieten(&mut self) {
        self.try_with(|plan| plan.calls_min = 0);
        self.try_with(|plan| plan.weather = Weather::CALM);
        self.try_with(|plan| plan.late_database_ms = NEVER_MS);
        self.try_with(|plan| plan.burst = 1);
        while self.plan.clients > 1 && self.try_with(|plan| plan.clients /= 2) {}
        while self.plan.keys > 1 && self.try_with(|plan| plan.keys /= 2) {}
        let nodes = self.plan.nodes.len();
        if nodes > 3 {
            self.try_with(|plan| plan.nodes.truncate(3));
        }
    }

    /// Less time before the first fault and between the others.
    fn hurry(&mut self) {
        for n in 0..self.plan.faults.len() {
            let before = if n == 0 { 0 } else { self.plan.faults[n - 1].0 };
            while self.plan.faults[n].0 > before + 200 {
                let less = (self.plan.faults[n].0 - before) / 2;
                if !self.try_with(|plan| plan.faults[n..].iter_mut().for_each(|f| f.0 -= less)) {
                    break;
                }
            }
        }
        let last_ms = self.plan.faults.last().map_or(0, |(at, _)| *at);
        while self.plan.faults_ms > last_ms + 1_000 {
            let less = (self.plan.faults_ms - last_ms) / 2;
            if !self.try_with(|plan| plan.faults_ms -= less) {
                break;
            }
        }
    }

    /// What is left, as a script, and the oracle that finds it.
    pub(super) fn into_script(self, planted: Option<Planted>) -> (Script, &'static str) {
        let Shrinker { seed, plan, finding, .. } = self;
        let about = format!("{}: {}", finding.oracle, finding.what);
        let planted = planted.map(planted_name);
        (Script { version: script::VERSION, about, planted, seed, plan }, finding.oracle)
    }

    fn tell(&self) {
        if self.progress {
            let (faults, clients) = (self.plan.faults.len(), self.plan.clients);
            eprint!("\rrun {}: {faults} faults, {clients} clients ", self.runs);
        }
    }
}

/// Shrinks a seed's run and writes the script. Whether there was something to shrink.
pub(super) fn shrink(args: &Args, seed: u64) -> bool {
    planted::set(args.planted);
    let settings = Settings { profile: args.profile, ..Settings::default() };
    let mut plan = Plan::draw(args.profile, seed);
    plan.quic = args.quic.unwrap_or(plan.quic);
    let before = plan.clone();
    let progress = std::io::stderr().is_terminal();
    let Some(mut shrinker) = Shrinker::new(seed, plan, settings, args.runs, progress) else {
        println!("seed {seed} does not fail: there is nothing to shrink");
        return false;
    };
    let first_ns = shrinker.finding.at_ns;
    shrinker.shrink();
    if progress {
        eprintln!();
    }
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("seed-{seed}.json")));
    let (plan, finding) = (&shrinker.plan, &shrinker.finding);
    println!("{}: {}", finding.oracle, finding.what);
    println!(
        "{} of {} faults, {} of {} clients, found after {:.2} s instead of {:.2} s; {} runs",
        plan.faults.len(),
        before.faults.len(),
        plan.clients,
        before.clients,
        finding.at_ns as f64 / 1e9,
        first_ns as f64 / 1e9,
        shrinker.runs,
    );
    for (at_ms, fault) in &plan.faults {
        println!("  {:>8.3} s  {fault:?}", *at_ms as f64 / 1e3);
    }
    save(&path, args, shrinker)
}

fn save(path: &Path, args: &Args, shrinker: Shrinker) -> bool {
    let (script, _) = shrinker.into_script(args.planted);
    if let Err(error) = script::write(path, &script) {
        eprintln!("can't write {}: {error}", path.display());
        return false;
    }
    println!("cargo sim replay {}", path.display());
    true
}
