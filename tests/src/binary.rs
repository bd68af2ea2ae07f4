//! Where the binary under test is.

use std::{path::PathBuf, process::Command, sync::LazyLock, time::Duration};

use crate::process::{Output, Recipe};

/// Overrides the binary under test.
pub const VARIABLE: &str = "HIGHWATER_TEST_BINARY";

static UNDER_TEST: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return path.into();
    }
    let exe = std::env::current_exe().expect("this program has a path");
    let dir = exe.parent().expect("it is in a directory");
    if !dir.ends_with("deps") {
        return build();
    }
    let path = dir.with_file_name("highwater-under-test");
    assert!(path.exists(), "{} is missing: run the tests with `cargo test`", path.display());
    path
});

/// The binary under test. For tests, Cargo has built it with them; for any other program, it is
/// built now, in release.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn path() -> PathBuf {
    UNDER_TEST.clone()
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let exe = std::env::current_exe().expect("this program has a path");
    let target = exe.ancestors().nth(2).expect("target/release/program").to_owned();
    let built = Command::new(cargo)
        .current_dir(root)
        .args(["build", "--release", "--package", "highwater", "--bin", "highwater"])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the binary can't be built");
    target.join("release/highwater")
}

/// The binary with arguments.
#[must_use]
pub fn recipe(args: &[&str]) -> Recipe {
    let path = path();
    let path = path.to_str().expect("a path in UTF-8");
    Recipe::new([path].iter().chain(args))
}

/// Runs the binary to its end, which must come within a minute.
#[must_use]
pub fn run(args: &[&str]) -> Output {
    recipe(args).run(Duration::from_secs(60))
}
