//! Many seeds: what was found, what took effect how often, and how fast it went.

use std::{
    fmt, fs,
    ops::{ControlFlow, Range},
    sync::LazyLock,
    time::Instant,
};

use super::{faults::NEVER, run_seed};
use crate::{
    plan::Profile,
    pool,
    report::Report,
    rng::spread,
    stats::{Seen, Totals},
};

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Explored {
    totals: Totals,
    /// Seeds, and what was found.
    findings: Vec<(u64, String)>,
    simulated_ns: u64,
    calls: u64,
    acks: u64,
    events: u64,
    /// Of all traces, in whatever order they came.
    hash: u64,
    /// That all threads spent on it.
    spent_ns: u64,
}

/// Runs these seeds of the default profile on all the machine's threads; `tell` hears of each
/// finding at once.
pub fn explore(seeds: Range<u64>, tell: impl FnMut(&str)) -> Explored {
    explore_with(seeds, Profile::Default, pool::default_jobs(), tell)
}

pub(crate) fn explore_with(
    seeds: Range<u64>,
    profile: Profile,
    jobs: usize,
    mut tell: impl FnMut(&str),
) -> Explored {
    let mut explored = Explored::default();
    let timed = |seed| {
        let begun = spent_ns();
        let report = run_seed(seed, profile);
        (report, spent_ns() - begun)
    };
    pool::each(seeds, jobs, timed, |(report, spent_ns)| {
        if let Some(finding) = &report.finding {
            let seed = report.seed;
            tell(&format!(
                "seed {seed}: {}: {}\n    cargo sim replay {seed} --fast --profile {}",
                finding.oracle,
                finding.what,
                profile.name()
            ));
        }
        explored.add(&report, spent_ns);
        ControlFlow::Continue(())
    });
    explored
}

/// Nanoseconds that this thread has spent on a core, where the system tells, so that a busy machine
/// does not count; else since some moment.
fn spent_ns() -> u64 {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = fs::read_to_string("/proc/thread-self/schedstat").ok();
    let told = told.and_then(|text| text.split(' ').next()?.parse().ok());
    told.unwrap_or_else(|| BEGUN.elapsed().as_nanos() as u64)
}

impl Explored {
    fn add(&mut self, report: &Report, spent_ns: u64) {
        self.totals.add(&report.stats);
        if let Some(finding) = &report.finding {
            self.findings.push((report.seed, finding.oracle.to_owned()));
        }
        self.simulated_ns += report.simulated_ns;
        self.calls += report.calls;
        self.acks += report.acks;
        self.events += report.events;
        self.hash ^= spread(report.seed ^ report.hash);
        self.spent_ns += spent_ns;
    }

    /// What the default profile owes, as far as a bare core can pay it.
    fn missing(&self) -> Vec<(Seen, u64)> {
        let mut missing = self.totals.missing(Profile::Default);
        missing.retain(|(seen, _)| !NEVER.contains(seen));
        missing
    }

    /// Whether nothing was found, and every fault that is due took effect.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.is_empty() && self.missing().is_empty()
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<42} {:>10} {:>7} {:>5}", "took effect", "times", "seeds", "%")?;
        for seen in Seen::ALL.iter().filter(|seen| !NEVER.contains(seen)) {
            let (times, seeds) = self.totals.get(*seen);
            let percent = seeds * 100 / self.totals.seeds.max(1);
            writeln!(f, "{:<42} {times:>10} {seeds:>7} {percent:>5}", seen.name())?;
        }
        for (seen, due) in self.missing() {
            writeln!(f, "MISSING: {} is due in {due} % of seeds and at least one", seen.name())?;
        }
        let (simulated, spent) = (self.simulated_ns as f64 / 1e9, self.spent_ns as f64 / 1e9);
        write!(
            f,
            "{} seeds, {} failed; {} calls, {} acknowledged writes, {} events, hash {:016x}; \
             {simulated:.0} simulated seconds, {:.0} per second and core",
            self.totals.seeds,
            self.findings.len(),
            self.calls,
            self.acks,
            self.events,
            self.hash,
            simulated / spent,
        )?;
        for (seed, oracle) in &self.findings {
            write!(f, "\nfailed by {oracle}: cargo sim replay {seed} --fast")?;
        }
        Ok(())
    }
}
