//! The simulation as part of `cargo test --workspace`: builds the simulator with `--cfg madsim` in
//! a target directory of its own, runs its tests, and then the simulator itself.
#![cfg(not(madsim))]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A cargo that knows nothing of the cargo that runs this test: what that one exports would make
/// every build script run again, and its RUSTFLAGS would replace ours.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let inherited = text.starts_with("CARGO") && text != "CARGO_HOME";
        if inherited || text == "LD_LIBRARY_PATH" || text.starts_with("RUSTFLAGS") {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(workspace()).env("RUSTFLAGS", "--cfg madsim");
    cargo
}

fn build(words: &[&str]) {
    let mut cargo = cargo();
    cargo.args(words).args(["--release", "--target-dir", "target/sim", "-p", "highwater-sim"]);
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo {words:?} ended with {status}");
}

/// Runs the simulator; what it printed, and its exit code.
fn sim(words: &[&str]) -> (String, Option<i32>) {
    let sim = workspace().join("target/sim/release/sim");
    let output = Command::new(sim).args(words).output().expect("the simulator starts");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

fn passes(words: &[&str]) {
    let (text, code) = sim(words);
    assert_eq!(code, Some(0), "sim {words:?}:\n{text}");
}

/// A number that changes with each commit.
fn commit() -> u64 {
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace()).output();
    let hash = git.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let hash = hash.unwrap_or_default();
    u64::from_str_radix(hash.get(..7).unwrap_or("0"), 16).unwrap_or(0)
}

/// The scripts of what the simulator once found.
fn regressions() -> Vec<String> {
    let dir = workspace().join("sim/regressions");
    let entries = std::fs::read_dir(dir).expect("the regressions").map(|e| e.unwrap().path());
    let mut scripts: Vec<String> =
        entries.filter_map(|path| Some(path.to_str()?.to_owned())).collect();
    scripts.retain(|path| path.ends_with(".json"));
    scripts.sort();
    scripts
}

#[test]
fn the_simulation_passes() {
    build(&["test", "--lib"]);
    build(&["build", "--bin", "sim"]);
    // Determinism first: without it nothing else says anything.
    passes(&["check", "--profile", "swarm", "--seeds", "0..16"]);
    passes(&["run", "--seeds", "0..50"]);
    // Seeds that no commit before this one has tried.
    let from = commit();
    passes(&["run", "--profile", "swarm", "--seeds", &format!("{from}..{}", from + 200)]);
    passes(&["run", "--profile", "oplog", "--seeds", &format!("{from}..{}", from + 60)]);
    for script in regressions() {
        passes(&["replay", &script]);
    }
    passes(&["planted", "--profile", "swarm"]);
    // A seed that fails says how to see it again, and does so again.
    let fault = ["--profile", "swarm", "--planted", "old-term-commit"];
    let (text, code) = sim(&[&["run", "--seeds", "0..9"], &fault[..]].concat());
    assert_eq!(code, Some(1), "{text}");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("cargo sim replay "));
    let words: Vec<&str> = line.expect("a line to replay").split(' ').collect();
    let (text, code) = sim(&[&["replay"], &words[..]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FOUND"), "{text}");
    // What is left of it after shrinking replays by itself.
    let script = std::env::temp_dir().join(format!("gate-{}.json", std::process::id()));
    let script = script.to_str().expect("a path of text");
    let (text, code) = sim(&[&["shrink"], &words[..], &["--runs", "60", "--out", script]].concat());
    assert_eq!(code, Some(0), "{text}");
    let (text, code) = sim(&["replay", script]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("by commit rule"), "{text}");
    std::fs::remove_file(script).expect("the script is there");
    for wrong in [&["run", "--profile", "none"][..], &["fly"], &[]] {
        assert_eq!(sim(wrong).1, Some(2), "{wrong:?}");
    }
}
