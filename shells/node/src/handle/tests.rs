//! Handles whose driver is the test.

use std::io;

use bytes::Bytes;
use highwater_store::state::{StateFiles, StateOptions, StorageBackend};
use highwater_wire::op::{Action, Condition, Write};
use tokio::time::{self, Instant};

use super::*;

struct NoFiles;

impl StateFiles for NoFiles {
    fn open(&self, _: &str) -> io::Result<Option<Box<dyn StorageBackend>>> {
        Ok(None)
    }

    fn create_temp(&self, _: &str) -> io::Result<Box<dyn StorageBackend>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn publish(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

const ME: NodeId = NodeId(1);
const DB: GroupId = GroupId(2);
const TIMEOUT: Duration = Duration::from_secs(10);

/// A node that knows the database `db`, led as told.
fn handle(leader: Option<NodeId>) -> (Handle, mpsc::Receiver<Command>) {
    let shared = Arc::new(Shared::new());
    shared.update(|routes| {
        routes.databases.insert(String::from("db"), DB);
        routes.leaders.insert(DB, (Term(1), leader));
    });
    let states = Arc::new(States::new(Box::new(NoFiles), StateOptions::default()).unwrap());
    let (commands, queue) = mpsc::channel(8);
    let (history, _) = mpsc::channel(1);
    (Handle::new(ME, Arc::new([ME]), "", commands, shared, states, history), queue)
}

fn put() -> Op {
    let key = Bytes::from_static(b"k");
    Op { writes: vec![Write { key, action: Action::Delete, condition: Condition::default() }] }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_is_tried_again_without_news_of_routes() {
    let (handle, mut queue) = handle(Some(ME));
    let write = tokio::spawn(async move { handle.write("db", put(), None, TIMEOUT).await });
    let began = Instant::now();
    for reply in [Reply::Rejected(Reject::Transferring), Reply::Rejected(Reject::Busy)] {
        let Some(Command::Request { reply: answer, .. }) = queue.recv().await else {
            panic!("a request")
        };
        assert!(answer.send(Some(reply)).is_ok());
    }
    assert_eq!(write.await.unwrap(), Err(Error::Busy));
    assert!(began.elapsed() < 2 * RETRY_PERIOD, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_waits_learns_that_the_node_drains() {
    let (handle, _queue) = handle(None);
    let writing = handle.clone();
    let write = tokio::spawn(async move { writing.write("db", put(), None, TIMEOUT).await });
    let reading = handle.clone();
    let bookmark = Bookmark { group: DB, term: Term(1), lsn: Lsn(9) };
    let local = Consistency::Local(Some(bookmark));
    let read = tokio::spawn(async move { reading.get("db", b"k", local, TIMEOUT).await });
    time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    handle.shared.set_draining();
    assert_eq!(write.await.unwrap(), Err(Error::Draining));
    assert_eq!(read.await.unwrap(), Err(Error::Draining));
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}
