//! The fast loop as part of `cargo test --workspace`. `FAST_SEEDS=A..B` runs other seeds, as CI does
//! with each commit.
#![cfg(not(madsim))]

use std::ops::Range;

use highwater_sim::fast;

/// As many as take seconds in a debug build.
const DEFAULT_SEEDS: Range<u64> = 0..150;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("FAST_SEEDS") else { return DEFAULT_SEEDS };
    let parse = |text: &str| text.trim().parse().ok();
    let range = text.split_once("..").and_then(|(from, to)| Some(parse(from)?..parse(to)?));
    range.expect("FAST_SEEDS=A..B")
}

#[test]
fn seeds_pass() {
    let explored = fast::explore(seeds(), |finding| println!("{finding}"));
    println!("{explored}");
    assert!(explored.passed(), "{explored}");
}
