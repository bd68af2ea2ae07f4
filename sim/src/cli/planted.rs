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
    shrink::Shrinker,
};
use crate::{
    page::explains::explains,
    plan::{Plan, Profile},
    report::Report,
    run::{Settings, run_plan, run_seed},
    script,
    trace::Keep,
    world::Finding,
};

/// A shrunk schedule is at most this much of what it was, in percent, in the median.
const SHRUNK_PERCENT: usize = 20;
/// ... and has at most so many faults.
const SHRUNK_FAULTS: usize = 15;

/// How a fault fared in one range of seeds.
enum Caught {
    Yes(Catch),
    Never,
    /// The seed fails without the fault as well.
    Unclean(Report),
}

/// A seed that shows a planted fault.
struct Catch {
    /// Tried until then, this one included.
    seeds: u64,
    finding: Finding,
    /// The lines of its page's explanation, or what that lacks.
    page: Result<usize, String>,
    shrunk: Option<Shrunk>,
}

/// What shrinking left of a seed.
struct Shrunk {
    /// Of the schedule, before and after.
    faults: (usize, usize),
    /// Whether the script fails by itself, in the same way.
    replays: bool,
}

/// The profile whose seeds show a fault: what only clients with slots and keys bring about needs these.
fn profile_of(fault: Planted, args: &Args) -> Profile {
    match fault {
        Planted::PruneIgnoresSlots
        | Planted::OnceNotCheckpointed
        | Planted::OnceForgottenEarly
        | Planted::OnceBeforeTermStart
        | Planted::RefusalNotRemembered => Profile::Oplog,
        _ => args.profile,
    }
}

/// Runs each planted fault. Whether all were caught, and explained.
pub(super) fn planted(args: &Args) -> bool {
    if let Some(dir) = &args.out
        && let Err(error) = std::fs::create_dir_all(dir)
    {
        eprintln!("can't make {}: {error}", dir.display());
        return false;
    }
    let faults = args.only.map_or(Planted::ALL.to_vec(), |fault| vec![fault]);
    let head = ["planted fault", "caught by", "seeds", "lines", "faults", "what was seen"];
    let [fault, by, seeds, lines, left, what] = head;
    println!("| {fault:<26} | {by:<20} | {seeds:>5} | {lines:>5} | {left:>8} | {what}");
    println!("| {:-<26} | {:-<20} | {:->4}: | {:->4}: | {:->7}: | {:-<40}", "", "", "", "", "", "");
    let (mut all, mut shrunk, mut unexplained) = (true, Vec::new(), Vec::new());
    each(args, &faults, |fault, rounds| {
        unexplained.extend(rounds.iter().filter_map(|caught| match caught {
            Caught::Yes(Catch { page: Err(why), .. }) => Some((fault, why.clone())),
            _ => None,
        }));
        let row = row(rounds);
        all &= row.is_ok();
        println!("| {:<26} | {}", planted_name(fault), row.unwrap_or_else(|why| why));
        shrunk.extend(rounds.iter().filter_map(|caught| match caught {
            Caught::Yes(caught) => caught.shrunk.as_ref().map(|shrunk| shrunk.faults),
            _ => None,
        }));
    });
    if args.only.is_none_or(|fault| fault == Planted::Nondeterminism) {
        all &= nondeterminism(args);
    }
    for (fault, why) in &unexplained {
        println!("the page of {} does not explain it: {why}", planted_name(*fault));
    }
    all &= unexplained.is_empty();
    if args.shrink && !shrunk.is_empty() {
        let (percent, faults) = medians(&shrunk);
        println!("shrunk to {percent} % of the schedule and {faults} faults in the median");
        all &= percent <= SHRUNK_PERCENT && faults <= SHRUNK_FAULTS;
    }
    all
}

/// What is left of the schedules, in percent, and how many faults, in the median.
fn medians(shrunk: &[(usize, usize)]) -> (usize, usize) {
    let median = |mut of: Vec<usize>| {
        of.sort_unstable();
        of[of.len() / 2]
    };
    let percent = shrunk.iter().map(|(before, after)| after * 100 / (*before).max(1)).collect();
    (median(percent), median(shrunk.iter().map(|(_, after)| *after).collect()))
}

/// Hunts every fault in every round of seeds, several at a time, and hands over what came of it in
/// the order of the faults.
fn each(args: &Args, faults: &[Planted], mut on_fault: impl FnMut(Planted, &[Caught])) {
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
                    if results.send((job, hunt(*fault, seeds, args))).is_err() {
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
fn hunt(fault: Planted, seeds: Range<u64>, args: &Args) -> Caught {
    let settings = Settings { profile: profile_of(fault, args), ..Settings::default() };
    for seed in seeds.clone() {
        planted::set(Some(fault));
        let found = run_seed(seed, settings).finding;
        planted::set(None);
        if let Some(finding) = found {
            let clean = run_seed(seed, settings);
            if clean.finding.is_some() {
                return Caught::Unclean(clean);
            }
            planted::set(Some(fault));
            let keep = Keep { story: true, ..Keep::default() };
            let page = explains(&run_seed(seed, Settings { keep, ..settings }));
            let shrunk = args.shrink.then(|| shrink(fault, seed, settings, args)).flatten();
            planted::set(None);
            return Caught::Yes(Catch { seeds: seed - seeds.start + 1, finding, page, shrunk });
        }
    }
    Caught::Never
}

/// Shrinks a seed that shows the fault, and runs the script that is left.
fn shrink(fault: Planted, seed: u64, settings: Settings, args: &Args) -> Option<Shrunk> {
    let plan = Plan::draw(settings.profile, seed);
    let before = plan.faults.len();
    let mut shrinker = Shrinker::new(seed, plan, settings, args.runs, false)?;
    shrinker.shrink();
    let after = shrinker.plan.faults.len();
    let (script, oracle) = shrinker.into_script(Some(fault));
    let dir = args.out.clone().unwrap_or_else(std::env::temp_dir);
    let path = dir.join(format!("{}.json", planted_name(fault)));
    let kept = script::write(&path, &script).map_err(|error| error.to_string());
    let again = kept.and_then(|()| script::read(&path));
    if args.out.is_none() {
        let _ = std::fs::remove_file(&path);
    }
    let finding =
        again.ok().and_then(|script| run_plan(script.seed, script.plan, settings).finding);
    let replays = finding.is_some_and(|finding| finding.oracle == oracle);
    Some(Shrunk { faults: (before, after), replays })
}

/// The rest of a fault's row: who caught it in most rounds, after how many seeds in the median.
fn row(rounds: &[Caught]) -> Result<String, String> {
    let mut seen = Vec::new();
    for caught in rounds {
        match caught {
            Caught::Yes(caught) => seen.push(caught),
            Caught::Never => return Err("NOT CAUGHT".to_owned()),
            Caught::Unclean(Report { seed, finding, .. }) => {
                let what = finding.as_ref().map_or("", |finding| &finding.what);
                return Err(format!("seed {seed} fails without it as well: {what}"));
            }
        }
    }
    seen.sort_by_key(|caught| caught.seeds);
    let Some(Catch { seeds, finding, page, shrunk }) = seen.get(seen.len() / 2) else {
        return Err("NOT TRIED".to_owned());
    };
    if seen.iter().any(|caught| caught.shrunk.as_ref().is_some_and(|shrunk| !shrunk.replays)) {
        return Err("ITS SCRIPT DOES NOT REPLAY".to_owned());
    }
    let mut oracles: Vec<_> = seen.iter().map(|caught| caught.finding.oracle).collect();
    oracles.sort_unstable();
    oracles.dedup();
    let left = shrunk
        .as_ref()
        .map(|Shrunk { faults: (before, after), .. }| format!("{after} of {before}"));
    let left = left.unwrap_or_default();
    let lines = page.as_ref().map_or("none".to_owned(), usize::to_string);
    let what: String =
        finding.what.chars().take(90).map(|c| if c == '\n' { ' ' } else { c }).collect();
    let oracles = oracles.join(", ");
    Ok(format!("{oracles:<20} | {seeds:>5} | {lines:>5} | {left:>8} | {what}"))
}

/// The simulator's own promise: `check` must see that a seed does not replay.
fn nondeterminism(args: &Args) -> bool {
    let seeds = args.seeds.start..args.seeds.start + 3;
    let args = Args { seeds, planted: Some(Planted::Nondeterminism), ..args.clone() };
    let caught = !check::check(&args);
    let how = if caught { "check" } else { "NOT CAUGHT" };
    println!(
        "| {:<26} | {how:<20} |       |       |          | the same seed twice",
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
            Catch { seeds, finding, page: Ok(12), shrunk: None }
        };
        let yes = |seeds, oracle| Caught::Yes(after(seeds, oracle));
        let text = row(&[yes(9, "b"), yes(2, "a"), yes(4, "b")]).unwrap();
        assert!(text.starts_with("a, b ") && text.contains("|     4 |    12 |"), "{text}");
        assert!(row(&[yes(1, "a"), Caught::Never]).is_err());
        let unexplained = Catch { page: Err("nothing".to_owned()), ..after(1, "a") };
        assert!(row(&[Caught::Yes(unexplained)]).unwrap().contains("|  none |"));
        let shrunk = Some(Shrunk { faults: (20, 3), replays: false });
        assert!(row(&[Caught::Yes(Catch { shrunk, ..after(1, "a") })]).is_err());
        assert_eq!(nth(&(10..40), 2), 70..100);
        assert_eq!(medians(&[(20, 2), (10, 0), (10, 9)]), (10, 2));
    }
}
