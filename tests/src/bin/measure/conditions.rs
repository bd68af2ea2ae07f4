//! Under which conditions something was measured.

use std::{fs, path::Path, process::Command};

use highwater_tests::{binary, scratch::Scratch};
use serde::Serialize;

/// What a figure depends on.
#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    date: String,
    version: String,
    commit: String,
    machine: String,
    cores: usize,
    memory_mib: u64,
    /// Before it began: what else the machine was doing.
    load_average: String,
    kernel: String,
    file_system: String,
}

impl Conditions {
    pub(crate) fn here(scratch: &Scratch) -> Conditions {
        Conditions {
            date: run("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            version: binary::run(&["--version"]).ok().stdout.trim().to_owned(),
            commit: run("git", &["describe", "--always", "--dirty"]),
            machine: of_proc("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: of_proc("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
                .unwrap_or_default()
                / 1024,
            load_average: load_average(),
            kernel: run("uname", &["-sr"]),
            file_system: file_system(scratch.path()),
        }
    }

    pub(crate) fn lines(&self) -> [String; 4] {
        [
            format!("{}, {} ({})", self.date, self.version, self.commit),
            format!(
                "{}, {} cores, {} MiB, load average {} beforehand",
                self.machine, self.cores, self.memory_mib, self.load_average
            ),
            self.kernel.clone(),
            self.file_system.clone(),
        ]
    }
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

fn of_proc(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

/// The mount that holds a path: its type, device and options.
fn file_system(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, at, kind, options) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        path.starts_with(at).then(|| (at.len(), format!("{kind} on {device} ({options})")))
    });
    // Of two at the same place, the later one hides the other.
    mounts.max_by_key(|(len, _)| *len).map_or_else(|| "unknown".to_owned(), |(_, text)| text)
}
