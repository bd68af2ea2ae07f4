//! The fast loop: bare cores on simulated machines of their own kind, in virtual time, on one
//! thread, without a runtime. The plans, the workloads and the oracles are those of the simulator;
//! what it leaves out are bytes: files, redb, frames. So it goes deeper in the same time, and runs
//! in any build.
//!
//! A run is a function of its seed: nothing here reads a clock, and all randomness is a stream of
//! the seed.

mod agenda;
mod calls;
mod cluster;
mod course;
mod driver;
mod explore;
mod faults;
mod machine;
mod net;
mod oplog;
mod state;

use std::sync::Arc;

#[cfg(madsim)]
pub(crate) use explore::explore_with;
pub use explore::{Explored, explore};

use crate::{
    panics,
    plan::{Plan, Profile},
    report::Report,
    trace::{Keep, Trace},
    world::{Finding, Subject, World},
};

/// Runs one seed.
pub(crate) fn run_seed(seed: u64, profile: Profile) -> Report {
    run_plan(seed, Plan::draw(profile, seed), Keep::default(), u64::MAX)
}

/// Runs a plan, until this time at the latest. `seed` is that of every stream of randomness.
pub(crate) fn run_plan(seed: u64, plan: Plan, keep: Keep, until_ns: u64) -> Report {
    let world = Arc::new(World::new(seed, keep, agenda::now_ns));
    let mut cluster = cluster::Cluster::new(world.clone(), Arc::new(plan));
    let result = panics::catch(|| cluster.run(until_ns));
    let mut finding = world.finding();
    if let Err(what) = result
        && finding.is_none()
    {
        finding = Some(Finding {
            oracle: "assertion",
            what,
            subject: Subject::default(),
            at_ns: agenda::now_ns(),
        });
    }
    let ((hash, events), mut trace) = (world.trace(Trace::hash), Vec::new());
    if keep.events {
        world.trace(|kept| kept.save(&mut trace)).unwrap_or_default();
    }
    let (calls, acks) = cluster.judge.tally();
    let (stats, simulated_ns) = (world.stats(), agenda::now_ns());
    Report { seed, finding, stats, hash, events, simulated_ns, calls, acks, trace, story: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_differs_from_the_next() {
        let one = run_seed(11, Profile::Default);
        assert_eq!(one.finding, None);
        assert!(one.events > 10_000 && one.calls > 500, "{} events", one.events);
        let again = run_seed(11, Profile::Default);
        assert_eq!((one.hash, one.events, &one.stats), (again.hash, again.events, &again.stats));
        assert_ne!(one.hash, run_seed(12, Profile::Default).hash);
    }

    /// Those in the core that need no more than this loop's faults to show.
    #[cfg(madsim)]
    #[test]
    fn planted_faults_are_caught() {
        use highwater_core::planted::{self, Planted};

        for fault in [
            Planted::AckBeforeFsync,
            Planted::VoteNotPersisted,
            Planted::OldTermCommit,
            Planted::ReadWithoutQuorum,
            Planted::TruncationAsFailure,
            Planted::BlindVote,
            Planted::AckUnverified,
            Planted::CommitBeyondAgreed,
            Planted::StaleReadIndex,
            Planted::QuorumOfReachable,
            Planted::TermStartSkipped,
            Planted::ReplyBeforeHardState,
        ] {
            planted::set(Some(fault));
            let mut caught = (0..200).map(|seed| run_seed(seed, Profile::Default));
            let caught = caught.find_map(|report| Some((report.seed, report.finding?)));
            planted::set(None);
            let (seed, finding) = caught.unwrap_or_else(|| panic!("{fault:?} is not caught"));
            assert_ne!(finding.oracle, "assertion", "{fault:?}: {finding:?}");
            println!("{fault:?}: {} in seed {seed}", finding.oracle);
            assert_eq!(run_seed(seed, Profile::Default).finding, None, "{fault:?}, seed {seed}");
        }
    }
}
