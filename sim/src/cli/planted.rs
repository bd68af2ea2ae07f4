//! `cargo sim planted`: measures the simulator. Each planted fault is switched on while ordinary
//! seeds run; an oracle must see it, and the same seed must pass without it. The table is Markdown,
//! for the documentation.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use highwater_core::planted::{self, Planted};

use super::{
    args::{Args, planted_name},
    check,
};
use crate::{
    report::Report,
    run::{Settings, run_seed},
    world::Finding,
};

/// How a fault fared in one range of seeds.
enum Caught {
    /// After so many seeds.
    After(u64, Finding),
    Never,
    /// The seed fails without the fault as well.
    Unclean(Report),
}

/// Runs each planted fault. Whether all were caught.
pub(super) fn planted(args: &Args) -> bool {
    let faults = args.only.map_or(Planted::ALL.to_vec(), |fault| vec![fault]);
    println!("| {:<24} | {:<20} | {:>5} | what was seen", "planted fault", "caught by", "seeds");
    println!("| {:-<24} | {:-<20} | {:->4}: | {:-<40}", "", "", "", "");
    let mut all = true;
    each(args, &faults, |fault, rounds| {
        let row = row(rounds);
        all &= row.is_ok();
        println!("| {:<24} | {}", planted_name(fault), row.unwrap_or_else(|why| why));
    });
    if args.only.is_none_or(|fault| fault == Planted::Nondeterminism) {
        all &= nondeterminism(args);
    }
    all
}

/// Hunts every fault in every round of seeds, several at a time, and hands over what came of it in
/// the order of the faults.
fn each(args: &Args, faults: &[Planted], mut on_fault: impl FnMut(Planted, &[Caught])) {
    let settings = Settings { profile: args.profile, ..Settings::default() };
    let (next, (results, incoming)) = (AtomicUsize::new(0), mpsc::channel());
    let rounds = args.rounds as usize;
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    let Some(fault) = faults.get(job / rounds) else { return };
                    let seeds = nth(&args.seeds, (job % rounds) as u64);
                    if results.send((job, hunt(*fault, seeds, settings))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        let (mut early, mut ready) = (BTreeMap::new(), Vec::new());
        let mut turn = 0;
        for (job, caught) in incoming {
            early.insert(job, caught);
            while let Some(caught) = early.remove(&turn) {
                ready.push(caught);
                turn += 1;
                if ready.len() == rounds {
                    on_fault(faults[turn / rounds - 1], &std::mem::take(&mut ready));
                }
            }
        }
    });
}

/// The n-th range of the same length, each after the one before.
fn nth(seeds: &Range<u64>, n: u64) -> Range<u64> {
    let by = n * (seeds.end - seeds.start);
    seeds.start + by..seeds.end + by
}

/// Runs seeds in order until an oracle sees the fault.
fn hunt(fault: Planted, seeds: Range<u64>, settings: Settings) -> Caught {
    for seed in seeds.clone() {
        planted::set(Some(fault));
        let report = run_seed(seed, settings);
        planted::set(None);
        if let Some(finding) = report.finding {
            let clean = run_seed(seed, settings);
            return match clean.finding {
                None => Caught::After(seed - seeds.start + 1, finding),
                Some(_) => Caught::Unclean(clean),
            };
        }
    }
    Caught::Never
}

/// The rest of a fault's row: who caught it in most rounds, after how many seeds in the median.
fn row(rounds: &[Caught]) -> Result<String, String> {
    let mut seen = Vec::new();
    for caught in rounds {
        match caught {
            Caught::After(seeds, finding) => seen.push((*seeds, finding)),
            Caught::Never => return Err("NOT CAUGHT".to_owned()),
            Caught::Unclean(Report { seed, finding, .. }) => {
                let what = finding.as_ref().map_or("", |finding| &finding.what);
                return Err(format!("seed {seed} fails without it as well: {what}"));
            }
        }
    }
    seen.sort_by_key(|(seeds, _)| *seeds);
    let Some((median, finding)) = seen.get(seen.len() / 2) else {
        return Err("NOT TRIED".to_owned());
    };
    let mut oracles: Vec<_> = seen.iter().map(|(_, finding)| finding.oracle).collect();
    oracles.sort_unstable();
    oracles.dedup();
    let what: String =
        finding.what.chars().take(90).map(|c| if c == '\n' { ' ' } else { c }).collect();
    Ok(format!("{:<20} | {median:>5} | {what}", oracles.join(", ")))
}

/// The simulator's own promise: `check` must see that a seed does not replay.
fn nondeterminism(args: &Args) -> bool {
    let seeds = args.seeds.start..args.seeds.start + 3;
    let args = Args { seeds, planted: Some(Planted::Nondeterminism), ..args.clone() };
    let caught = !check::check(&args);
    let how = if caught { "check" } else { "NOT CAUGHT" };
    println!(
        "| {:<24} | {how:<20} |       | the same seed twice",
        planted_name(Planted::Nondeterminism)
    );
    caught
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Subject;

    #[test]
    fn a_row_is_the_median_and_every_round_counts() {
        let after = |seeds, oracle| {
            let finding =
                Finding { oracle, what: "x".to_owned(), subject: Subject::default(), at_ns: 0 };
            Caught::After(seeds, finding)
        };
        let text = row(&[after(9, "b"), after(2, "a"), after(4, "b")]).unwrap();
        assert!(text.starts_with("a, b ") && text.contains("|     4 |"), "{text}");
        assert!(row(&[after(1, "a"), Caught::Never]).is_err());
        assert_eq!(nth(&(10..40), 2), 70..100);
    }
}
