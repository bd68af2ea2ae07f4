//! What the command line says.

use std::{ops::Range, path::PathBuf};

use highwater_core::planted::Planted;

use crate::{plan::Profile, pool::default_jobs, trace::Level};

pub(super) const HELP: &str = "\
usage: cargo sim run     [--seeds A..B] [--profile P] [--jobs N] [--json] [--planted FAULT]
       cargo sim fast    [--seeds A..B] [--profile P] [--jobs N] [--planted FAULT]
       cargo sim check   [--seeds A..B] [--profile P] [--planted FAULT]
       cargo sim replay  SEED|FILE [--profile P] [--log info|debug|trace] [--until SECONDS]
                         [--planted FAULT] [--fast] [--json] [--trace OUT.html [--window SECONDS]]
       cargo sim shrink  SEED [--profile P] [--planted FAULT] [--out FILE] [--runs N]
       cargo sim planted [--seeds A..B] [--profile P] [--jobs N] [--only FAULT] [--rounds N]
                         [--shrink [--out DIR] [--runs N]]
       --quic or --no-quic: all seeds of a run, check, replay or shrink, or none, on real QUIC

run      runs each seed (0..100); prints findings, and what took effect how often
fast     runs each seed (0..1000) of the fast loop: bare cores, without files and bytes
check    runs each seed (0..50) in two processes and compares every event
replay   runs one seed, or a script, again (of the fast loop, where that is asked for) and prints
         what happens; --trace writes a page that shows it, its last seconds (5) in full detail
shrink   finds the smallest schedule and workload that still fail, and writes it as a script
planted  switches each planted fault on and counts the seeds (of 0..300) until an oracle sees it,
         and holds the page of that seed to show where the fault acted; several rounds take the
         ranges that follow, and print the median; --shrink shrinks each and keeps the scripts

profiles: default, swarm, oplog (as swarm, with slots and retries)";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Run,
    Fast,
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
    /// Of the fast loop.
    pub(super) fast: bool,
    pub(super) log: Level,
    pub(super) until_ns: Option<u64>,
    pub(super) planted: Option<Planted>,
    /// Where each seed's trace goes; used by `check`.
    pub(super) traces: Option<PathBuf>,
    /// Where `shrink` writes its script, or `planted` all of them.
    pub(super) out: Option<PathBuf>,
    /// Where `replay` writes its page.
    pub(super) page: Option<PathBuf>,
    /// The time before its end that the page shows in full.
    pub(super) window_ns: u64,
    /// Whether `planted` shrinks what it finds.
    pub(super) shrink: bool,
    /// How many runs `shrink` makes at most.
    pub(super) runs: u64,
    /// The only fault that `planted` tries.
    pub(super) only: Option<Planted>,
    /// In how many ranges of seeds `planted` tries each fault.
    pub(super) rounds: u64,
}

/// A planted fault's name on the command line: `ack-before-fsync` for `AckBeforeFsync`.
pub(super) fn planted_name(planted: Planted) -> String {
    let mut name = String::new();
    for c in format!("{planted:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// The planted fault of a name.
pub(super) fn planted_named(name: &str) -> Result<Planted, String> {
    let all = || Planted::ALL.into_iter().chain([Planted::Nondeterminism]);
    all().find(|planted| planted_name(*planted) == name).ok_or_else(|| {
        let names: Vec<_> = all().map(planted_name).collect();
        format!("planted faults: {}", names.join(" "))
    })
}

impl Args {
    pub(super) fn parse(words: impl Iterator<Item = String>) -> Result<Args, String> {
        let words: Vec<String> = words.collect();
        let asks = words.iter().any(|word| matches!(&**word, "--help" | "-h"));
        let mut words = words.into_iter();
        let command = match words.next().as_deref() {
            None => return Err("a command is missing".to_owned()),
            Some("help") => Command::Help,
            Some(_) if asks => Command::Help,
            Some("run") => Command::Run,
            Some("fast") => Command::Fast,
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
            Command::Fast => 0..1_000,
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
            fast: false,
            log: Level::Info,
            until_ns: None,
            planted: None,
            traces: None,
            out: None,
            page: None,
            window_ns: 5_000_000_000,
            shrink: false,
            runs: 300,
            only: None,
            rounds: 1,
        };
        if args.command == Command::Help {
            return Ok(args);
        }
        while let Some(word) = words.next() {
            if word == "--json" && matches!(args.command, Command::Run | Command::Replay(_)) {
                args.json = true;
                continue;
            }
            if word == "--shrink" && args.command == Command::Planted {
                args.shrink = true;
                continue;
            }
            if word == "--fast" && matches!(args.command, Command::Replay(_)) {
                args.fast = true;
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
        if args.fast && args.page.is_some() {
            return Err("the fast loop has no page to show".to_owned());
        }
        Ok(args)
    }

    fn option(&mut self, word: &str, value: &str) -> Result<(), String> {
        let is = |command| self.command == command;
        let (run, check, fast) = (is(Command::Run), is(Command::Check), is(Command::Fast));
        let (planted, replay) = (is(Command::Planted), matches!(self.command, Command::Replay(_)));
        let shrink = matches!(self.command, Command::Shrink(_));
        match word {
            "--profile" => {
                self.profile =
                    Profile::named(value).ok_or_else(|| format!("there is no profile {value}"))?;
            }
            "--out" if shrink || planted => self.out = Some(PathBuf::from(value)),
            "--runs" if shrink || planted => {
                self.runs = value.parse().ok().filter(|n| *n > 0).ok_or("--runs needs a number")?;
            }
            "--seeds" if !replay && !shrink => {
                self.seeds =
                    parse_range(value).ok_or_else(|| format!("{value} is no range A..B"))?;
            }
            "--jobs" if run || planted || fast => {
                self.jobs = value.parse().ok().filter(|n| *n > 0).ok_or("--jobs needs a number")?;
            }
            "--only" if planted => self.only = Some(planted_named(value)?),
            "--rounds" if planted => {
                let rounds = value.parse().ok().filter(|n| *n > 0);
                self.rounds = rounds.ok_or("--rounds needs a number")?;
            }
            "--planted" if run || check || replay || shrink || fast => {
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
            "--until" if replay => self.until_ns = Some(parse_seconds(value)?),
            "--trace" if replay => self.page = Some(PathBuf::from(value)),
            "--window" if replay => self.window_ns = parse_seconds(value)?,
            "--traces" if run => self.traces = Some(PathBuf::from(value)),
            _ => return Err(format!("{word} is unknown here")),
        }
        Ok(())
    }
}

/// Seconds, as nanoseconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..1e6).contains(seconds));
    seconds.map(|seconds: f64| (seconds * 1e9) as u64).ok_or_else(|| format!("{text} is no time"))
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
        assert!(parse("replay 7 --fast").unwrap().fast);
        assert_eq!(parse("fast --jobs 3").unwrap().seeds, 0..1_000);
        let page = parse("replay 7 --trace out.html --window 2.5 --json").unwrap();
        assert_eq!((page.page, page.json), (Some("out.html".into()), true));
        assert_eq!(page.window_ns, 2_500_000_000);
        assert_eq!(parse("check").unwrap().seeds, 0..50);
        for help in ["help", "--help", "replay --help", "run --seeds -h"] {
            assert_eq!(parse(help).unwrap().command, Command::Help, "{help}");
        }
        assert_eq!(parse("planted").unwrap().seeds, 0..300);
        let one = parse("planted --only blind-vote --rounds 3").unwrap();
        assert_eq!((one.only, one.rounds, one.shrink), (Some(Planted::BlindVote), 3, false));
        assert!(parse("planted --shrink --out scripts --runs 50").unwrap().shrink);
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
            "replay 1 --window -1",
            "run --trace out.html",
            "replay 1 --fast --trace out.html",
            "run --planted nothing",
            "run --only blind-vote",
            "planted --rounds 0",
            "planted --quic",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_planted_fault_has_a_name() {
        assert_eq!(planted_name(Planted::AckBeforeFsync), "ack-before-fsync");
        for planted in Planted::ALL {
            assert_eq!(planted_named(&planted_name(planted)), Ok(planted));
        }
    }
}
