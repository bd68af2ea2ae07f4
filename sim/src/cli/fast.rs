//! `cargo sim fast`: many seeds of the fast loop.

use highwater_core::planted;

use super::args::Args;
use crate::fast;

/// Runs the seeds. Whether all is well.
pub(super) fn fast(args: &Args) -> bool {
    planted::set(args.planted);
    let tell = |finding: &str| println!("{finding}");
    let explored = fast::explore_with(args.seeds.clone(), args.profile, args.jobs, tell);
    println!("{explored}");
    explored.passed()
}
