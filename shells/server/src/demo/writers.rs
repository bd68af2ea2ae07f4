//! The load: clients that write until they are told to stop, and what each was told.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::{task::JoinHandle, time};

use crate::client::{CallError, Client, Reply};

/// Clients that write at the same time.
pub(super) const WRITERS: usize = 16;
/// How long a write may take; short, so that a client that waits for what was in flight at the
/// kill soon goes on with another write.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How long a client waits after it was turned away.
const PAUSE: Duration = Duration::from_millis(5);
const VALUE_BYTES: usize = 256;

/// What the clients were told.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Keys whose write was acknowledged.
    pub(super) acked: Vec<String>,
    /// Keys whose write may or may not have taken effect.
    pub(super) unknown: Vec<String>,
    /// Keys whose write was refused: it must not have taken effect.
    pub(super) refused: Vec<String>,
    /// The longest time between two acknowledgements.
    pub(super) longest_gap: Duration,
    /// The bookmark of the highest LSN acknowledged.
    pub(super) bookmark: String,
    highest: u64,
    last: Option<Instant>,
    in_flight: usize,
}

/// The value that is written under a key.
pub(super) fn value_of(key: &str) -> String {
    let mut value = String::with_capacity(VALUE_BYTES + key.len());
    while value.len() < VALUE_BYTES {
        value.push_str(key);
        value.push(' ');
    }
    value
}

/// Where a key is found.
pub(super) fn path_of(database: &str, key: &str) -> String {
    format!("/v1/databases/{database}/records/{key}")
}

/// Clients at work.
pub(super) struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sets the clients to work.
    pub(super) fn start(database: &'static str, nodes: &[String]) -> Load {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..WRITERS)
            .map(|id| {
                let nodes = nodes.to_vec();
                tokio::spawn(write(id, database, nodes, tally.clone(), stop.clone()))
            })
            .collect();
        Load { tally, stop, tasks }
    }

    pub(super) fn acked(&self) -> usize {
        locked(&self.tally).acked.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        locked(&self.tally).in_flight
    }

    /// Lets every client finish its write.
    pub(super) async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // A panic in one shows as missing acknowledgements, which fail the run.
            let _ = task.await;
        }
        locked(&self.tally).clone()
    }
}

fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(
    id: usize,
    database: &'static str,
    nodes: Vec<String>,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
) {
    let mut node = id;
    let connect = |node: usize| Client::new(nodes[node % nodes.len()].as_str(), TIMEOUT * 4);
    let mut client = connect(node);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A key is written once: a write that is unknown is not tried again.
        let key = format!("w{id:02}/{number:06}");
        let path = format!("{}?timeout_ms={}", path_of(database, &key), TIMEOUT.as_millis());
        locked(&tally).in_flight += 1;
        let told = client.put(&path, value_of(&key)).await;
        let satisfied = note(&mut locked(&tally), key, told);
        if !satisfied {
            time::sleep(PAUSE).await;
            node += 1;
            client = connect(node);
        }
    }
}

/// Notes what a client was told. False: another node may serve it better.
fn note(tally: &mut Tally, key: String, told: Result<Reply, CallError>) -> bool {
    #[derive(Deserialize)]
    struct Receipt {
        lsn: u64,
    }
    tally.in_flight -= 1;
    match told {
        Ok(reply) if reply.status.is_success() => {
            let now = Instant::now();
            if let Some(last) = tally.last.replace(now) {
                tally.longest_gap = tally.longest_gap.max(now - last);
            }
            let mark = reply.headers.get("highwater-bookmark").and_then(|mark| mark.to_str().ok());
            if let (Ok(receipt), Some(mark)) = (reply.json::<Receipt>(), mark)
                && receipt.lsn > tally.highest
            {
                tally.highest = receipt.lsn;
                tally.bookmark = mark.to_owned();
            }
            tally.acked.push(key);
            true
        }
        Ok(reply) if reply.status.as_u16() != 504 => {
            tally.refused.push(key);
            false
        }
        Err(CallError::NotSent(_)) => {
            tally.refused.push(key);
            false
        }
        Ok(_) | Err(CallError::NoAnswer(_)) => {
            tally.unknown.push(key);
            false
        }
    }
}
