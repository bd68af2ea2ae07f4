//! What the command line says.

use std::{ops::Range, path::PathBuf};

use highwater_core::planted::Planted;

use crate::{plan::Profile, trace::Level};

pub(super) const HELP: &str = "\
usage: cargo sim run     [--seeds A..B] [--profile P] [--jobs N] [--json] [--planted FAULT]
       cargo sim check   [--seeds A..B] [--profile P] [--planted FAULT]
       cargo sim replay  SEED|FILE [--profile P] [--log info|debug|trace] [--until SECONDS]
                         [--planted FAULT]
       cargo sim shrink  SEED [--profile P] [--planted FAULT] [--out FILE] [--runs N]
       cargo sim planted [--seeds A..B] [--profile P] [--jobs N]
       --quic or --no-quic: all seeds of a run, check, replay or shrink, or none, on real QUIC

run      runs each seed (0..100); prints findings, and what took effect how often
check    runs each seed (0..50) in two processes and compares every event
replay   runs one seed, or a script, again and prints what happens
shrink   finds the smallest schedule and workload that still fail, and writes it as a script
planted  switches each planted fault on and counts the seeds (of 0..300) until an oracle sees it

profiles: default";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Run,
    Check,
    Replay(Replayed),
    Shrink(u64),
    Planted,
}

/// What is to be run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Replayed {
    Seed(u64),
    Script(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Args {
    pub(super) command: Command,
    pub(super) seeds: Range<u64>,
    pub(super) profile: Profile,
    /// Whether nodes talk by real QUIC, whatever the plan says.
    pub(super) quic: Option<bool>,
    pub(super) jobs: usize,
    pub(super) json: bool,
    pub(super) log: Level,
    pub(super) until_ns: Option<u64>,
    pub(super) planted: Option<Planted>,
    /// Where each seed's trace goes; used by `check`.
    pub(super) traces: Option<PathBuf>,
    /// Where `shrink` writes its script.
    pub(super) out: Option<PathBuf>,
    /// How many runs `shrink` makes at most.
    pub(super) runs: u64,
}

/// Every planted fault by its name.
const PLANTED: [(&str, Planted); 11] = [
    ("ack-before-fsync", Planted::AckBeforeFsync),
    ("vote-not-persisted", Planted::VoteNotPersisted),
    ("old-term-commit", Planted::OldTermCommit),
    ("read-without-quorum", Planted::ReadWithoutQuorum),
    ("resend-after-append", Planted::ResendAfterAppend),
    ("truncation-as-failure", Planted::TruncationAsFailure),
    ("applied-apart", Planted::AppliedApart),
    ("cut-below-synced", Planted::CutBelowSynced),
    ("blind-vote", Planted::BlindVote),
    ("ack-unverified", Planted::AckUnverified),
    ("nondeterminism", Planted::Nondeterminism),
];

pub(super) fn planted_name(planted: Planted) -> &'static str {
    PLANTED.iter().find(|(_, p)| *p == planted).map_or("?", |(name, _)| name)
}

/// The planted fault of a name.
pub(super) fn planted_named(name: &str) -> Result<Planted, String> {
    let names: Vec<_> = PLANTED.iter().map(|(name, _)| *name).collect();
    let found = PLANTED.iter().find(|(known, _)| *known == name);
    found.map(|(_, planted)| *planted).ok_or_else(|| format!("planted faults: {}", names.join(" ")))
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Args {
    pub(super) fn parse(words: impl Iterator<Item = String>) -> Result<Args, String> {
        let mut words = words.peekable();
        let command = match words.next().as_deref() {
            None => return Err("a command is missing".to_owned()),
            Some("help" | "--help" | "-h") => Command::Help,
            Some("run") => Command::Run,
            Some("check") => Command::Check,
            Some("planted") => Command::Planted,
            Some("replay") => {
                let what = words.next().ok_or("replay needs a seed or a script")?;
                Command::Replay(match what.parse() {
                    Ok(seed) => Replayed::Seed(seed),
                    Err(_) if what.ends_with(".json") => Replayed::Script(what.into()),
                    Err(_) => return Err(format!("{what} is no seed and no script (.json)")),
                })
            }
            Some("shrink") => {
                let seed = words.next().ok_or("shrink needs a seed")?;
                Command::Shrink(seed.parse().map_err(|_| format!("{seed} is no seed"))?)
            }
            Some(other) => return Err(format!("there is no command {other}")),
        };
        let seeds = match command {
            Command::Check => 0..50,
            Command::Planted => 0..300,
            _ => 0..100,
        };
        let mut args = Args {
            command,
            seeds,
            profile: Profile::Default,
            quic: None,
            jobs: default_jobs(),
            json: false,
            log: Level::Info,
            until_ns: None,
            planted: None,
            traces: None,
            out: None,
            runs: 300,
        };
        while let Some(word) = words.next() {
            if word == "--json" && args.command == Command::Run {
                args.json = true;
                continue;
            }
            if matches!(&*word, "--quic" | "--no-quic") && args.command != Command::Planted {
                args.quic = Some(word == "--quic");
                continue;
            }
            let value =
                words.next().ok_or_else(|| format!("{word} needs a value, or is unknown"))?;
            args.option(&word, &value)?;
        }
        Ok(args)
    }

    fn option(&mut self, word: &str, value: &str) -> Result<(), String> {
        let (run, check) = (self.command == Command::Run, self.command == Command::Check);
        let (planted, replay) =
            (self.command == Command::Planted, matches!(self.command, Command::Replay(_)));
        let shrink = matches!(self.command, Command::Shrink(_));
        match word {
            "--profile" => {
                self.profile =
                    Profile::named(value).ok_or_else(|| format!("there is no profile {value}"))?;
            }
            "--out" if shrink => self.out = Some(PathBuf::from(value)),
            "--runs" if shrink => {
                self.runs = value.parse().ok().filter(|n| *n > 0).ok_or("--runs needs a number")?;
            }
            "--seeds" if !replay && !shrink => {
                self.seeds =
                    parse_range(value).ok_or_else(|| format!("{value} is no range A..B"))?;
            }
            "--jobs" if run || planted => {
                self.jobs = value.parse().ok().filter(|n| *n > 0).ok_or("--jobs needs a number")?;
            }
            "--planted" if run || check || replay || shrink => {
                self.planted = Some(planted_named(value)?);
            }
            "--log" if replay => {
                self.log = match value {
                    "info" => Level::Info,
                    "debug" => Level::Debug,
                    "trace" => Level::Trace,
                    _ => return Err(format!("there is no level {value}")),
                };
            }
            "--until" if replay => {
                let seconds: f64 = value.parse().map_err(|_| format!("{value} is no time"))?;
                if !(0.0..1e6).contains(&seconds) {
                    return Err(format!("{value} is no time"));
                }
                self.until_ns = Some((seconds * 1e9) as u64);
            }
            "--traces" if run => self.traces = Some(PathBuf::from(value)),
            _ => return Err(format!("{word} is unknown here")),
        }
        Ok(())
    }
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (from, to) = text.split_once("..")?;
    let range = from.parse().ok()?..to.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn reads_every_command() {
        let run = parse("run --seeds 3..9 --profile default --jobs 2 --json").unwrap();
        assert_eq!((run.seeds, run.jobs, run.json), (3..9, 2, true));
        let replay = parse("replay 77 --log debug --until 1.5 --planted blind-vote").unwrap();
        assert_eq!(replay.command, Command::Replay(Replayed::Seed(77)));
        let script = parse("replay a/b.json").unwrap().command;
        assert_eq!(script, Command::Replay(Replayed::Script("a/b.json".into())));
        let shrink = parse("shrink 5 --out x.json --runs 9").unwrap();
        assert_eq!((shrink.command, shrink.runs), (Command::Shrink(5), 9));
        assert_eq!(parse("run --json --quic --seeds 1..2").unwrap().quic, Some(true));
        assert_eq!(parse("check --no-quic").unwrap().quic, Some(false));
        assert_eq!(replay.until_ns, Some(1_500_000_000));
        assert_eq!(replay.planted, Some(Planted::BlindVote));
        assert_eq!(parse("check").unwrap().seeds, 0..50);
        assert_eq!(parse("planted").unwrap().seeds, 0..300);
    }

    #[test]
    fn refuses_nonsense() {
        for line in [
            "",
            "fly",
            "run --seeds 9..3",
            "run --seeds 9",
            "run --profile storm",
            "run --jobs 0",
            "run --jobs",
            "run --log debug",
            "check --json",
            "replay",
            "replay x",
            "shrink",
            "shrink x.json",
            "shrink 1 --log info",
            "replay 1 --until never",
            "run --planted nothing",
            "planted --quic",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_planted_fault_has_a_name() {
        for planted in Planted::ALL {
            assert_ne!(planted_name(planted), "?");
        }
    }
}
