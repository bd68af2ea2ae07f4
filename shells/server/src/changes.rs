//! `highwater changes`: what took effect in a database, in order; with `--follow`, as it happens, from
//! whichever node has it.

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;
use tokio::time;

use crate::{
    failure::Failure,
    nodes::{self, Nodes, Problem, Refusal, Target, escape, none_answers},
    output::Output,
};

/// Changes that are asked for at a time, where they are not followed.
const PAGE: u64 = 1_000;
/// The pauses before all nodes are tried again: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Which changes are wanted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) database: String,
    pub(crate) from: Start,
    /// For ever, or until the limit.
    pub(crate) follow: bool,
    pub(crate) limit: Option<u64>,
    pub(crate) json: bool,
}

/// Where to begin.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    /// After this LSN.
    After(u64),
    /// Where this slot is.
    Slot(String),
}

/// A line of the answer.
#[derive(Deserialize)]
struct Message<'a> {
    lsn: Option<u64>,
    prev_lsn: Option<u64>,
    #[serde(borrow, default)]
    ops: Vec<Op<'a>>,
    progress: Option<u64>,
    next: Option<u64>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Op<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value_base64: Option<Cow<'a, str>>,
}

/// Prints changes.
///
/// # Errors
/// Where they are not to be had, or not any more; while following, only what no node can mend.
pub(crate) async fn changes(target: &Target, wanted: Wanted) -> Result<(), Failure> {
    let mut reader = Reader {
        nodes: Nodes::of(target)?,
        position: match wanted.from {
            Start::After(lsn) => Some(lsn),
            Start::Slot(_) => None,
        },
        left: wanted.limit.unwrap_or(u64::MAX),
        wanted,
        moved: false,
        headed: false,
        out: Output::new(),
    };
    reader.run().await?;
    reader.out.finish()
}

struct Reader {
    nodes: Nodes,
    wanted: Wanted,
    /// Everything up to here was printed, or is no change; `None` until the slot's place is known.
    position: Option<u64>,
    /// Changes that may still be printed.
    left: u64,
    /// Whether the node that is read from has told anything yet.
    moved: bool,
    /// Whether the columns have their heads.
    headed: bool,
    out: Output,
}

impl Reader {
    /// Reads from one node after the other, each from where the one before it ended.
    async fn run(&mut self) -> Result<(), Failure> {
        let (mut at, mut failed, mut pause) = (0, Vec::new(), PAUSES.0);
        let (mut met, mut told) = (false, false);
        loop {
            let host = self.nodes.hosts()[at % self.nodes.hosts().len()].clone();
            self.moved = false;
            let reason = match self.read(&host).await {
                Ok(()) => return Ok(()),
                Err(Refusal::Final(failure)) => return Err(failure),
                Err(Refusal::NotNow(reason)) => reason,
            };
            at += 1;
            if self.moved {
                if self.wanted.follow {
                    eprintln!("{host}: {reason}; going on {}", self.place());
                }
                (met, told, pause) = (true, false, PAUSES.0);
                failed.clear();
                continue;
            }
            failed.push(format!("{host}: {reason}"));
            if failed.len() < self.nodes.hosts().len() {
                continue;
            }
            if !(self.wanted.follow && met) {
                return Err(none_answers(&failed));
            }
            if !told {
                eprintln!("no node answers; still trying:\n  {}", failed.join("\n  "));
                told = true;
            }
            failed.clear();
            time::sleep(pause).await;
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    fn place(&self) -> String {
        self.position.map_or("where the slot is".to_owned(), |lsn| format!("after LSN {lsn}"))
    }

    /// Reads from one node until there is no more to read, or nobody to read it.
    async fn read(&mut self, host: &str) -> Result<(), Refusal> {
        if self.wanted.follow {
            // So that there is somebody to go on with when this one ends.
            self.nodes.meet(host).await?;
        }
        while self.left > 0 {
            let before = self.left;
            let asked = PAGE.min(self.left);
            if !self.page(host, asked).await? {
                return Ok(());
            }
            if before - self.left < asked {
                break;
            }
        }
        Ok(())
    }

    /// Reads one answer; whether it is to go on.
    async fn page(&mut self, host: &str, asked: u64) -> Result<bool, Refusal> {
        let database = escape(&self.wanted.database);
        let mut path = format!("/v1/databases/{database}/changes?");
        let seen = self.position.map(|lsn| lsn.to_string());
        let mut headers: Vec<(&str, &str)> = Vec::new();
        match (&self.wanted.from, &seen) {
            (Start::After(_), Some(seen)) => path += &format!("after={seen}"),
            (Start::After(_), None) => {}
            (Start::Slot(slot), seen) => {
                path += &format!("slot={}", escape(slot));
                // Beyond what is confirmed: it is not told again.
                headers.extend(seen.as_deref().map(|seen| ("last-event-id", seen)));
            }
        }
        path += &match self.wanted.follow {
            true => "&follow=true".to_owned(),
            false => format!("&limit={asked}"),
        };
        let mut lines = nodes::open(host, &path, &headers).await?;
        if !self.wanted.json && !std::mem::replace(&mut self.headed, true) {
            self.out.line(columns("LSN", "OP", "BYTES", "KEY"));
        }
        loop {
            let line = match lines.ready() {
                Some(line) => line,
                None if !self.out.flush() => return Ok(false),
                None => match lines.line().await? {
                    Some(line) => line,
                    None => break,
                },
            };
            let message: Message = nodes::read(&line, "changes").map_err(Refusal::Final)?;
            if let Some(problem) = &message.error {
                return Err(problem.refusal());
            }
            if let Some(next) = message.next {
                self.position = Some(next);
                return Ok(true);
            }
            if self.take(&message, &line)? && self.left == 0 {
                return Ok(false);
            }
        }
        Err(Refusal::NotNow("the answer broke off".to_owned()))
    }

    /// Takes in a line; whether it was a change.
    fn take(&mut self, message: &Message, line: &[u8]) -> Result<bool, Refusal> {
        self.moved = true;
        let (Some(lsn), Some(prev_lsn)) = (message.lsn, message.prev_lsn) else {
            self.position = self.position.max(message.progress);
            return Ok(false);
        };
        if self.position.is_some_and(|position| lsn <= position || prev_lsn > position) {
            return Err(Refusal::Final(Failure::runtime(format!(
                "a node told of LSN {lsn}, which follows LSN {prev_lsn}, to go on {}: something would \
                 be left out or come twice. Please report this as a bug",
                self.place()
            ))));
        }
        self.position = Some(lsn);
        self.left -= 1;
        if self.wanted.json {
            self.out.line(line);
            return Ok(true);
        }
        for Op { op, key, value_base64 } in &message.ops {
            let size = value_base64.as_ref().map_or("-".to_owned(), |v| decoded(v).to_string());
            self.out.line(columns(&lsn.to_string(), op, &size, &plain(key)));
        }
        Ok(true)
    }
}

fn columns(lsn: &str, op: &str, size: &str, key: &str) -> String {
    format!("{lsn:>10}  {op:<6}  {size:>9}  {key}")
}

/// How many bytes a text in base64 stands for.
fn decoded(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|byte| *byte == b'=').count();
    base64.len() / 4 * 3 - padding
}

/// A key that does nothing to a terminal.
fn plain(key: &str) -> Cow<'_, str> {
    if !key.contains(char::is_control) {
        return Cow::Borrowed(key);
    }
    let mut text = String::new();
    for char in key.chars() {
        match char.is_control() {
            true => text.extend(char.escape_default()),
            false => text.push(char),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_values() {
        for (text, bytes) in [("", 0), ("AA==", 1), ("AAA=", 2), ("AAAA", 3), ("AAAAAA==", 4)] {
            assert_eq!(decoded(text), bytes);
        }
    }

    #[test]
    fn a_key_does_nothing_to_a_terminal() {
        assert_eq!(plain("é/\"x y"), "é/\"x y");
        assert_eq!(plain("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
