//! What is asked for.

/// The figures, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Writes,
    Changes,
    Resume,
    CatchUp,
    Snapshots,
    Memory,
}

const OPLOG: [Part; 5] =
    [Part::Changes, Part::Resume, Part::CatchUp, Part::Snapshots, Part::Memory];
const USAGE: &str = "usage: measure [writes|oplog|changes|resume|catch-up|snapshots|memory]... \
                     [--json] [--seconds S] [--history-gib N] [--entries N]";

/// The command line.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) parts: Vec<Part>,
    pub(crate) json: bool,
    /// How long each run of a load takes.
    pub(crate) seconds: u64,
    /// The history that streams are resumed in.
    pub(crate) history_gib: u64,
    /// By how much a follower is behind; a stream is read of at most so many.
    pub(crate) entries: u64,
}

impl Options {
    /// Reads the command line.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            parts: Vec::new(),
            json: false,
            seconds: 5,
            history_gib: 10,
            entries: 1_000_000,
        };
        while let Some(arg) = args.next() {
            let mut number = |most: u64| {
                let number = args.next().and_then(|text| text.parse().ok());
                number
                    .filter(|number| (1..=most).contains(number))
                    .ok_or_else(|| format!("{arg} takes a number from 1 to {most}"))
            };
            match arg.as_str() {
                "writes" => options.parts.push(Part::Writes),
                "oplog" => options.parts.extend(OPLOG),
                "changes" => options.parts.push(Part::Changes),
                "resume" => options.parts.push(Part::Resume),
                "catch-up" => options.parts.push(Part::CatchUp),
                "snapshots" => options.parts.push(Part::Snapshots),
                "memory" => options.parts.push(Part::Memory),
                "--json" => options.json = true,
                "--seconds" => options.seconds = number(3_600)?,
                "--history-gib" => options.history_gib = number(1_000)?,
                "--entries" => options.entries = number(100_000_000)?,
                _ => return Err(format!("{arg}: unknown; {USAGE}")),
            }
        }
        if options.parts.is_empty() {
            options.parts = [&[Part::Writes][..], &OPLOG].concat();
        }
        Ok(options)
    }
}
