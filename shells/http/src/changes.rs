//! `GET …/changes`: what took effect, as lines or as events, in pages or for as long as the client
//! reads. A client that reads slowly is sent slowly; what it has not read is not held.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    },
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use highwater_core::Lsn;
use highwater_node::{Begin, Change, ChangeStream, Handle, api::Error};
use highwater_wire::op::Action;
use serde::Serialize;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    App,
    extract::{Call, Spec},
    lines::{Failed, Pieces},
    names,
    problem::{Code, Problem},
};

const CHANGES: Spec =
    Spec { params: &["after", "slot", "limit", "follow"], answers: None, preconditions: false };
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A stream that has nothing to say says so this often: a broken connection is noticed.
const PROGRESS: Duration = Duration::from_secs(5);
/// So many ops, and about so many bytes of them, are read at a time.
const READ_OPS: usize = 256;
const READ_BYTES: usize = 256 << 10;
/// Pieces of the answer that wait for the connection.
const PIECES: usize = 2;

/// How lines are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One JSON document a line.
    Lines,
    /// Server-sent events (WHATWG HTML, 9.2).
    Events,
}

/// One op that took effect.
#[derive(Serialize)]
struct Row<'a> {
    lsn: u64,
    prev_lsn: u64,
    term: u64,
    hlc: String,
    origin: String,
    ops: Vec<Written<'a>>,
}

#[derive(Serialize)]
struct Written<'a> {
    op: &'static str,
    key: &'a str,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// The end of a page.
#[derive(Serialize)]
struct End {
    end: bool,
    next: u64,
    committed: u64,
}

/// Nothing took effect since, up to here.
#[derive(Serialize)]
struct Progress {
    progress: u64,
}

/// `GET …/changes`
pub(crate) async fn changes(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, CHANGES)?;
    let database = call.database()?;
    let framing = call.framing()?;
    let limits = &call.app.options.limits;
    let follow = call.params().flag("follow")?;
    let limit = call.params().number("limit", 1, limits.changes_max as u64)?;
    let limit = match (limit, follow) {
        (Some(limit), _) => limit as usize,
        (None, true) => usize::MAX,
        (None, false) => limits.changes_default,
    };
    let slot = call.params().get("slot");
    slot.map_or(Ok(()), names::check_name)?;
    let begin = match (slot, after(&call)?) {
        (Some(_), _) if call.params().get("after").is_some() => {
            return Err(Problem::bad_request("`after` and `slot` exclude each other"));
        }
        (Some(slot), seen) => Begin::Slot(slot, seen),
        (None, after) => Begin::After(after),
    };
    let bookmark = call.bookmark()?;
    let node = call.node()?;
    let stream = node.changes(&database, begin, bookmark, call.left()).await;
    let stream = stream.map_err(Problem::of_read)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let out = Out { sender, framing, piece: Vec::new() };
    // A page comes in time or ends with an error; who follows has time.
    let patience = if follow { Duration::MAX } else { call.left() };
    tokio::spawn(send(node, stream, out, (limit, follow), patience));
    let mut response = Response::new(Body::new(Pieces(receiver)));
    let headers = response.headers_mut();
    let media = match framing {
        Framing::Lines => "application/x-ndjson",
        Framing::Events => "text/event-stream",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Where it begins: what a browser that reconnects has seen last, or what the query says.
fn after(call: &Call) -> Result<Lsn, Problem> {
    let asked = call.params().number("after", 0, u64::MAX)?.unwrap_or(0);
    let Some(seen) = call.headers().get(&LAST_EVENT_ID) else { return Ok(Lsn(asked)) };
    let seen = seen.to_str().ok().filter(|id| id.bytes().all(|b| b.is_ascii_digit()));
    seen.and_then(|id| id.parse().ok().map(Lsn))
        .ok_or_else(|| Problem::bad_request("Last-Event-ID must be an LSN"))
}

/// Sends until the page is full, or for as long as somebody reads.
async fn send(
    node: Handle,
    mut stream: ChangeStream,
    mut out: Out,
    (limit, follow): (usize, bool),
    patience: Duration,
) {
    let gone = out.sender.clone();
    let sent = tokio::select! {
        biased;
        () = gone.closed() => return,
        sent = timeout(patience, pages(&node, &mut stream, &mut out, limit, follow)) => sent,
    };
    let problem = match sent {
        Ok(Ok(()) | Err(Ended::Gone)) => return,
        Ok(Err(Ended::Failed(error))) => Problem::of_read(error),
        Err(_) => Problem::new(Code::NotReady, "the page was not complete within the deadline"),
    };
    // Nobody may be left to hear it.
    let _ = timeout(PROGRESS, out.error(&problem)).await;
}

/// Why nothing more is sent.
enum Ended {
    /// Nobody reads any more.
    Gone,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Failed(error)
    }
}

async fn pages(
    node: &Handle,
    stream: &mut ChangeStream,
    out: &mut Out,
    limit: usize,
    follow: bool,
) -> Result<(), Ended> {
    let wait = if follow { PROGRESS } else { Duration::ZERO };
    let mut left = limit;
    while left > 0 {
        let changes = stream.next(left.min(READ_OPS), READ_BYTES, wait).await?;
        left -= changes.len();
        for change in &changes {
            out.change(change)?;
        }
        match (changes.is_empty(), follow) {
            (true, true) => out.line("progress", &Progress { progress: stream.position().0 })?,
            (true, false) => break,
            (false, _) => {}
        }
        out.flush().await?;
    }
    let committed = node.committed(stream.group()).await?;
    let end = End { end: true, next: stream.position().0, committed: committed.0 };
    out.line("end", &end)?;
    out.flush().await
}

/// The answer's body while it grows.
struct Out {
    sender: mpsc::Sender<Bytes>,
    framing: Framing,
    piece: Vec<u8>,
}

impl Out {
    fn change(&mut self, change: &Change) -> Result<(), Ended> {
        let row = row(change)?;
        match self.framing {
            Framing::Lines => self.json(&row, "", "\n"),
            Framing::Events => self.json(&row, &format!("id: {}\ndata: ", change.lsn.0), "\n\n"),
        }
    }

    fn line(&mut self, event: &str, value: &impl Serialize) -> Result<(), Ended> {
        match self.framing {
            Framing::Lines => self.json(value, "", "\n"),
            Framing::Events => self.json(value, &format!("event: {event}\ndata: "), "\n\n"),
        }
    }

    fn json(&mut self, value: &impl Serialize, before: &str, after: &str) -> Result<(), Ended> {
        self.piece.extend_from_slice(before.as_bytes());
        serde_json::to_writer(&mut self.piece, value)
            .map_err(|error| Error::Internal(format!("could not encode: {error}")))?;
        self.piece.extend_from_slice(after.as_bytes());
        Ok(())
    }

    /// An error once the answer has begun: its last line.
    async fn error(&mut self, problem: &Problem) -> Result<(), Ended> {
        self.piece.clear();
        self.line("error", &Failed::of(problem))?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.sender.send(piece).await.map_err(|_| Ended::Gone)
    }
}

fn row(change: &Change) -> Result<Row<'_>, Error> {
    let Change { lsn, prev_lsn, term, hlc, origin, op } = change;
    let mut ops = Vec::with_capacity(op.writes.len());
    for write in &op.writes {
        let key = text(&write.key)?;
        ops.push(match &write.action {
            Action::Put { value, content_type } => Written {
                op: "put",
                key,
                version: lsn.0,
                content_type: Some(text(content_type)?).filter(|media| !media.is_empty()),
                value_base64: Some(STANDARD.encode(value)),
            },
            Action::Delete => Written {
                op: "delete",
                key,
                version: lsn.0,
                content_type: None,
                value_base64: None,
            },
        });
    }
    Ok(Row {
        lsn: lsn.0,
        prev_lsn: prev_lsn.0,
        term: term.0,
        hlc: hlc.0.to_string(),
        origin: format!("{origin:016x}"),
        ops,
    })
}

/// Neither a key nor a media type was let in unless it was UTF-8.
fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes)
        .map_err(|_| Error::Internal(String::from("a key or media type is not UTF-8")))
}

impl Call {
    /// What the client can read: events where it asks for them.
    fn framing(&self) -> Result<Framing, Problem> {
        let asked = self.headers().get_all(axum::http::header::ACCEPT).iter();
        let mut ranges = asked.flat_map(|line| line.to_str().unwrap_or("").split(','));
        let events = ranges.any(|range| {
            let media = range.split(';').next().unwrap_or("").trim();
            media.eq_ignore_ascii_case("text/event-stream")
        });
        if events {
            self.must_accept(("text", "event-stream")).map(|()| Framing::Events)
        } else {
            self.must_accept(("application", "x-ndjson")).map(|()| Framing::Lines)
        }
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::{Hlc, Term};
    use highwater_wire::op::{Condition, Op, Write};

    use super::*;

    fn change() -> Change {
        let write = |key: &'static str, action| Write {
            key: Bytes::from_static(key.as_bytes()),
            action,
            condition: Condition::default(),
        };
        let put =
            Action::Put { value: Bytes::from_static(b"\0a"), content_type: Bytes::from("text/x") };
        let writes = vec![write("a\"b", put), write("c", Action::Delete)];
        Change {
            lsn: Lsn(7),
            prev_lsn: Lsn(4),
            term: Term(2),
            hlc: Hlc(1 << 60),
            origin: 10,
            op: Op { writes },
        }
    }

    fn framed(framing: Framing) -> String {
        let (sender, _receiver) = mpsc::channel(1);
        let mut out = Out { sender, framing, piece: Vec::new() };
        assert!(out.change(&change()).is_ok());
        assert!(out.line("progress", &Progress { progress: 9 }).is_ok());
        String::from_utf8(out.piece).unwrap()
    }

    const ROW: &str = r#"{"lsn":7,"prev_lsn":4,"term":2,"hlc":"1152921504606846976","origin":"000000000000000a","ops":[{"op":"put","key":"a\"b","version":7,"content_type":"text/x","value_base64":"AGE="},{"op":"delete","key":"c","version":7}]}"#;

    #[test]
    fn a_change_is_a_line_or_an_event() {
        assert_eq!(framed(Framing::Lines), format!("{ROW}\n{{\"progress\":9}}\n"));
        let events = format!("id: 7\ndata: {ROW}\n\nevent: progress\ndata: {{\"progress\":9}}\n\n");
        assert_eq!(framed(Framing::Events), events);
    }

    #[test]
    fn a_failed_stream_ends() {
        let code = Problem::of_read(Error::OutOfRange { committed: Lsn(3) }).code();
        assert_eq!(code, Code::LsnOutOfRange);
    }
}
