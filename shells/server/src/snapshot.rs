//! `highwater snapshot`: every record of a database at one LSN, to a file that is whole or not there.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::NamedTempFile;

use crate::{
    client::Lines,
    failure::{Context, Failure},
    fleet,
    nodes::{self, Nodes, Problem, Refusal, Target, escape, none_answers},
    output::Output,
};

/// How often progress is shown.
const SHOW: Duration = Duration::from_millis(250);

/// A line of the answer.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    end: bool,
    lsn: Option<u64>,
    records: Option<u64>,
    root: Option<String>,
    error: Option<Problem>,
}

/// What a whole snapshot says of itself.
struct End {
    lsn: u64,
    records: u64,
    root: String,
    /// As it came.
    line: Vec<u8>,
}

/// Writes a snapshot to a file, or prints it. With `json`, the closing line is what is printed of one
/// that was written to a file.
///
/// # Errors
/// Where there is none, or it is not whole; then the file is as it was.
pub(crate) async fn snapshot(
    target: &Target,
    database: &str,
    file: Option<&Path>,
    json: bool,
) -> Result<(), Failure> {
    let nodes = Nodes::of(target)?;
    let Some(path) = file else {
        let mut out = Output::new();
        // Not between the lines, where both are shown on one terminal.
        let progress = Progress::new(!io::stdout().is_terminal());
        let end = receive(open(&nodes, database).await?, progress, |line| {
            out.line(line);
            Ok(out.is_open())
        })
        .await?;
        if let Some(End { lsn, records, .. }) = end
            && out.flush()
        {
            eprintln!("{records} records at LSN {lsn}; go on with: {}", after(database, lsn));
        }
        return out.finish();
    };
    // A signal must not leave the temporary file behind.
    let stopped = fleet::told_to_stop()?;
    let end = tokio::select! {
        biased;
        () = stopped => {
            let path = path.display();
            return Err(Failure::runtime(format!("stopped: nothing was written to {path}")));
        }
        end = write(&nodes, database, path) => end?,
    };
    let mut out = Output::new();
    if json {
        out.line(&end.line);
    } else {
        let End { lsn, records, root, .. } = &end;
        out.line(format!("{records} records at LSN {lsn}, root {root}: {}", path.display()));
        out.line(format!("go on with: {}", after(database, *lsn)));
    }
    out.finish()
}

fn after(database: &str, lsn: u64) -> String {
    format!("highwater changes {database} --after {lsn}")
}

/// A snapshot from the first node that gives one.
async fn open(nodes: &Nodes, database: &str) -> Result<Lines, Failure> {
    let path = format!("/v1/databases/{}/snapshot", escape(database));
    let mut why = Vec::new();
    for host in nodes.hosts() {
        match nodes::open(host, &path, &[]).await {
            Ok(lines) => return Ok(lines),
            Err(Refusal::NotNow(reason)) => why.push(format!("{host}: {reason}")),
            Err(Refusal::Final(failure)) => return Err(failure),
        }
    }
    Err(none_answers(&why))
}

/// Writes a snapshot beside its file, and puts it in that one's place once it is whole and durable.
async fn write(nodes: &Nodes, database: &str, path: &Path) -> Result<End, Failure> {
    let failed = || format!("can't write {}", path.display());
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Err(Failure::usage(format!("--out {}: it must be a file", path.display())));
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where it can't be written is better known first.
    let temp = tempfile::Builder::new()
        .prefix(&format!(".{}.", name.to_string_lossy()))
        .suffix(".tmp")
        .tempfile_in(dir)
        .context(failed)?;
    let mut out = BufWriter::new(temp);
    let end = receive(open(nodes, database).await?, Progress::new(true), |line| {
        out.write_all(line).and_then(|()| out.write_all(b"\n")).map(|()| true)
    })
    .await?;
    let Some(end) = end else { return Err(Failure::runtime(failed())) };
    let temp: NamedTempFile =
        out.into_inner().map_err(|error| error.into_error()).context(failed)?;
    temp.as_file().sync_all().context(failed)?;
    temp.persist(path).context(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).context(failed)?;
    Ok(end)
}

/// Hands every line on, until nobody wants any more (`None`), and checks that nothing is missing.
async fn receive(
    mut lines: Lines,
    mut progress: Progress,
    mut take: impl FnMut(&[u8]) -> io::Result<bool>,
) -> Result<Option<End>, Failure> {
    let broken = |why: &str| {
        Failure::runtime(format!(
            "the snapshot is not whole: {why}. Nothing of it counts; try again"
        ))
    };
    let lsn = lines.headers.get("highwater-lsn").and_then(|lsn| lsn.to_str().ok()?.parse().ok());
    let (mut records, mut last) = (0, String::new());
    loop {
        let line = lines.line().await.map_err(|error| broken(&error.to_string()))?;
        let line = line.ok_or_else(|| broken("its closing line is missing"))?;
        let read: Line = nodes::read(&line, "a snapshot")?;
        match read {
            Line { error: Some(problem), .. } => {
                return Err(match problem.refusal() {
                    Refusal::NotNow(why) => broken(&why),
                    Refusal::Final(failure) => failure,
                });
            }
            Line { end: true, lsn: at, records: Some(told), root: Some(root), .. } => {
                if told != records || at.is_none() || at != lsn {
                    return Err(broken("its closing line tells of another one"));
                }
                take(&line).context(|| "can't write".to_owned())?;
                let lsn = at.unwrap_or_default();
                return Ok(Some(End { lsn, records, root, line: line.to_vec() }));
            }
            Line { key: Some(key), .. } if records == 0 || *key > *last => {
                last = key.into_owned();
                records += 1;
                progress.show(records, line.len());
            }
            _ => return Err(broken("a line of it can't be read, or is in the wrong place")),
        }
        if !take(&line).context(|| "can't write".to_owned())? {
            return Ok(None);
        }
    }
}

/// Shows on standard error how far it is, where that is a terminal.
struct Progress {
    /// When it was last shown; `None` where it is not.
    shown: Option<Instant>,
    bytes: usize,
    any: bool,
}

impl Progress {
    fn new(wanted: bool) -> Progress {
        let shown = (wanted && io::stderr().is_terminal()).then(Instant::now);
        Progress { shown, bytes: 0, any: false }
    }

    fn show(&mut self, records: u64, bytes: usize) {
        self.bytes += bytes;
        if let Some(shown) = &mut self.shown
            && shown.elapsed() >= SHOW
        {
            *shown = Instant::now();
            self.any = true;
            eprint!("\r{records} records, {} MiB", self.bytes >> 20);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.any {
            eprintln!();
        }
    }
}
