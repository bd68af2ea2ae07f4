//! The harness of the process tests: it runs the real binary, speaks HTTP to it over plain
//! sockets, and breaks what it stands on. It knows the contracts, and nothing of how they are kept.

pub mod binary;
pub mod cluster;
pub mod http;
pub mod load;
pub mod markdown;
pub mod namespaces;
pub mod process;
pub mod scratch;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

/// Longer than anything should take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `probe` gives something.
///
/// # Panics
/// Where it does not within `within`, naming `what` it waited for.
pub fn eventually<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Says in a way that nobody misses that a test could not run here.
pub fn skip(test: &str, why: &str) {
    // Past libtest, which hides what the macros of a passing test print.
    let _ = std::io::stderr().write_all(format!("\n!!! SKIPPED {test}: {why}\n").as_bytes());
}
