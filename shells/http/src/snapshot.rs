//! `GET …/snapshot`: every record of a database at one LSN, a line each. Reading and encoding have a
//! thread each. The connection sets the pace of what is sent, but not of what is copied: a slow
//! client holds a place and room on the disk, and nothing else.

use std::{
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use bytes::Bytes;
use highwater_core::Lsn;
use highwater_node::{
    Snapshot, SnapshotPlace,
    api::{Error, Listed},
};
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    App,
    extract::{Call, Spec},
    lines::{Failed, Pieces},
    problem::{Code, Problem},
    records,
};

const SNAPSHOT: Spec =
    Spec { params: &[], answers: Some(("application", "x-ndjson")), preconditions: false };

/// A client that takes nothing for so long loses its place, and gets no closing line.
const STALLED: Duration = Duration::from_secs(60);

/// The last line of a whole snapshot.
#[derive(Serialize)]
struct End {
    end: bool,
    lsn: u64,
    records: u64,
    root: String,
}

/// `GET …/snapshot`
pub(crate) async fn snapshot(
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SNAPSHOT)?;
    let (database, bookmark) = (call.database()?, call.bookmark()?);
    let place = call.node()?.snapshot(&database, bookmark, call.left()).await.map_err(refused)?;
    let (opened, opening) = oneshot::channel();
    let (sender, pieces) = mpsc::channel(1);
    let given = thread::Builder::new().name("snapshot".to_owned());
    given
        .spawn(move || give(place, opened, &sender))
        .map_err(|error| Problem::new(Code::NotReady, format!("there is no thread: {error}")))?;
    let lsn = call.within(opening).await?;
    let lsn = lsn.unwrap_or_else(|_| Err(Error::Internal("the snapshot's thread ended".into())));
    let lsn = lsn.map_err(refused)?;
    let (out, body) = mpsc::channel(1);
    tokio::spawn(pass_on(pieces, out));
    let mut response = Response::new(Body::new(Pieces(body)));
    let headers = response.headers_mut();
    headers.insert(records::LSN, HeaderValue::from(lsn.0));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn refused(error: Error) -> Problem {
    match error {
        Error::Busy => Problem::new(
            Code::TooManyRequests,
            "this node gives as many snapshots as it may; retry later, or ask another node",
        ),
        error => Problem::of_read(error),
    }
}

/// Hands pieces to the connection for as long as it takes them. When this ends, the thread ends at its
/// next piece.
async fn pass_on(mut pieces: mpsc::Receiver<Bytes>, out: mpsc::Sender<Bytes>) {
    loop {
        let piece = tokio::select! {
            biased;
            () = out.closed() => return,
            piece = pieces.recv() => piece,
        };
        let Some(piece) = piece else { return };
        if !matches!(timeout(STALLED, out.send(piece)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Why nothing more is sent.
enum Ended {
    /// Nobody reads any more.
    Gone,
    Failed(Problem),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Failed(Problem::of_read(error))
    }
}

impl From<Problem> for Ended {
    fn from(problem: Problem) -> Ended {
        Ended::Failed(problem)
    }
}

/// The thread.
fn give(
    place: SnapshotPlace,
    opened: oneshot::Sender<Result<Lsn, Error>>,
    out: &mpsc::Sender<Bytes>,
) {
    let mut snapshot = match place.take() {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    if opened.send(Ok(snapshot.lsn())).is_err() {
        return;
    }
    if let Err(Ended::Failed(problem)) = lines(&mut snapshot, out)
        && let Ok(line) = encode([Failed::of(&problem)])
    {
        // Nobody may be left to hear it.
        let _ = out.blocking_send(line);
    }
}

fn lines(snapshot: &mut Snapshot, out: &mpsc::Sender<Bytes>) -> Result<(), Ended> {
    thread::scope(|scope| {
        let (to_encode, pages) = sync_channel::<Vec<Listed>>(1);
        let encode = || pages.into_iter().try_for_each(|records| send(out, rows(records)?));
        let encoding = thread::Builder::new()
            .name("snapshot-lines".to_owned())
            .spawn_scoped(scope, encode)
            .map_err(|error| Error::Internal(format!("there is no thread: {error}")))?;
        let read = read(snapshot, &to_encode);
        drop(to_encode);
        let ended = || Ended::from(Error::Internal("the encoding thread ended".to_owned()));
        // Where encoding has failed, that is why reading ended.
        encoding.join().map_err(|_| ended())?.and(read)
    })?;
    let (records, root) = snapshot.end()?;
    let end = End { end: true, lsn: snapshot.lsn().0, records, root: root.to_string() };
    send(out, encode([end])?)
}

/// Reads all records. What waits to be copied holds memory and the state's file: that must not wait for
/// the client, who is sent what can be taken meanwhile.
fn read(snapshot: &mut Snapshot, to_encode: &SyncSender<Vec<Listed>>) -> Result<(), Ended> {
    let mut page = None;
    while snapshot.fill()? {
        loop {
            if page.is_none() {
                page = snapshot.take_next()?;
            }
            let Some(records) = page.take() else { break };
            match to_encode.try_send(records) {
                Ok(()) => {}
                Err(TrySendError::Full(records)) => {
                    page = Some(records);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err(Ended::Gone),
            }
        }
    }
    loop {
        if page.is_none() {
            page = snapshot.take_next()?;
        }
        let Some(records) = page.take() else { return Ok(()) };
        to_encode.send(records).map_err(|_| Ended::Gone)?;
    }
}

fn send(out: &mpsc::Sender<Bytes>, lines: Bytes) -> Result<(), Ended> {
    out.blocking_send(lines).map_err(|_| Ended::Gone)
}

fn rows(records: Vec<Listed>) -> Result<Bytes, Problem> {
    let rows = records.into_iter().map(|listed| records::row(listed, true));
    encode(rows.collect::<Result<Vec<_>, _>>()?)
}

/// Each as a line.
fn encode<T: Serialize>(values: impl IntoIterator<Item = T>) -> Result<Bytes, Problem> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, &value)
            .map_err(|error| Problem::new(Code::Internal, format!("could not encode: {error}")))?;
        lines.push(b'\n');
    }
    Ok(Bytes::from(lines))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (sender, pieces) = mpsc::channel(1);
        let (out, mut body) = mpsc::channel(1);
        let passing = tokio::spawn(pass_on(pieces, out));
        let began = Instant::now();
        // Slow is not stalled.
        for n in 0..6 {
            assert!(sender.send(Bytes::from(vec![n])).await.is_ok());
            tokio::time::sleep(STALLED * 2 / 3).await;
            assert_eq!(body.recv().await, Some(Bytes::from(vec![n])));
        }
        assert!(began.elapsed() > STALLED);
        while sender.send(Bytes::new()).await.is_ok() {}
        assert!(began.elapsed() < 6 * STALLED);
        assert!(passing.await.is_ok() && sender.is_closed());
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_missed_before_there_is_more_for_it() {
        let (sender, pieces) = mpsc::channel(1);
        let (out, body) = mpsc::channel(1);
        let passing = tokio::spawn(pass_on(pieces, out));
        drop(body);
        assert!(passing.await.is_ok() && sender.is_closed());
    }

    #[test]
    fn each_value_is_a_line() {
        let end = End { end: true, lsn: 7, records: 2, root: "ab".to_owned() };
        let lines = encode([end]).unwrap();
        assert_eq!(lines, "{\"end\":true,\"lsn\":7,\"records\":2,\"root\":\"ab\"}\n");
    }
}
