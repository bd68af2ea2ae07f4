//! `cargo sim check`: every seed twice, in two processes with different numbers of threads. Every
//! event must be the same.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::args::{Args, planted_name};
use crate::trace::Event;

/// Seeds that are compared at a time: their traces are kept meanwhile.
const BATCH: u64 = 8;

/// Runs and compares the seeds. Whether all are the same.
pub(super) fn check(args: &Args) -> bool {
    match differences(args) {
        Ok(0) => {
            println!("{} seeds, each the same twice", args.seeds.end - args.seeds.start);
            true
        }
        Ok(n) => {
            println!("{n} seeds differ from one run to the next");
            false
        }
        Err(error) => {
            println!("can't compare: {error}");
            false
        }
    }
}

/// How many seeds differ; tells about each.
fn differences(args: &Args) -> io::Result<u64> {
    let home = std::env::temp_dir().join(format!("highwater-sim-{}", std::process::id()));
    let dirs = [home.join("a"), home.join("b")];
    for dir in &dirs {
        fs::create_dir_all(dir)?;
    }
    let mut different = 0;
    let mut at = args.seeds.start;
    while at < args.seeds.end {
        let batch = at..(at + BATCH).min(args.seeds.end);
        run_twice(args, &batch, &dirs)?;
        for seed in batch.clone() {
            different += u64::from(!same(seed, &dirs)?);
        }
        at = batch.end;
    }
    fs::remove_dir_all(&home)?;
    Ok(different)
}

fn run_twice(args: &Args, batch: &Range<u64>, dirs: &[PathBuf; 2]) -> io::Result<()> {
    let children = [start(args, batch, &dirs[0], 1)?, start(args, batch, &dirs[1], 3)?];
    for mut child in children {
        let status = child.wait()?;
        // Findings are no business of this command.
        if !matches!(status.code(), Some(0 | 1)) {
            return Err(io::Error::other(format!("a run ended with {status}")));
        }
    }
    Ok(())
}

fn start(args: &Args, batch: &Range<u64>, traces: &Path, jobs: usize) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let seeds = format!("{}..{}", batch.start, batch.end);
    command.args(["run", "--profile", args.profile.name(), "--json", "--seeds", &seeds]);
    command.arg("--jobs").arg(jobs.to_string()).arg("--traces").arg(traces);
    if let Some(quic) = args.quic {
        command.arg(if quic { "--quic" } else { "--no-quic" });
    }
    if let Some(planted) = args.planted {
        command.args(["--planted", &planted_name(planted)]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Whether a seed's two traces are the same; shows the first difference.
fn same(seed: u64, dirs: &[PathBuf; 2]) -> io::Result<bool> {
    let path = |dir: &PathBuf| dir.join(format!("{seed}.trace"));
    let (a, b) = (fs::read(path(&dirs[0]))?, fs::read(path(&dirs[1]))?);
    for dir in dirs {
        fs::remove_file(path(dir))?;
    }
    let difference = first_difference(&a, &b);
    if let Some(at) = difference {
        println!("seed {seed} differs at event {at}");
        for before in at.saturating_sub(3)..at {
            println!("  both  {}", show(&a, before));
        }
        println!("  one   {}\n  other {}", show(&a, at), show(&b, at));
    }
    Ok(difference.is_none())
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let (mut left, mut right) = (a.chunks(Event::SIZE), b.chunks(Event::SIZE));
    let mut at = 0;
    loop {
        match (left.next(), right.next()) {
            (Some(x), Some(y)) if x == y => at += 1,
            _ => return Some(at),
        }
    }
}

fn show(trace: &[u8], at: usize) -> String {
    let bytes = trace.get(at * Event::SIZE..(at + 1) * Event::SIZE);
    bytes.and_then(Event::read).map_or_else(|| "(the end)".to_owned(), |event| event.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_difference() {
        let a = vec![7; Event::SIZE * 3];
        let mut b = a.clone();
        assert_eq!(first_difference(&a, &b), None);
        b[Event::SIZE + 3] = 8;
        assert_eq!(first_difference(&a, &b), Some(1));
        assert_eq!(first_difference(&a, &a[..Event::SIZE * 2]), Some(2));
    }
}
