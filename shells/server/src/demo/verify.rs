//! Reads everything back, from every node's own state.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::StatusCode;
use tokio::time;

use super::writers::{Tally, path_of, value_of};
use crate::{client::Client, failure::Failure};

/// Connections to each node.
const READERS: usize = 8;
/// How long a node may take to catch up.
const CATCH_UP_MS: u64 = 60_000;
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

/// What was found.
#[derive(Debug)]
pub(super) struct Verified {
    /// Acknowledged writes that a node does not have, or has with another value.
    pub(super) lost: usize,
    /// Refused writes that took effect, and values that nobody wrote.
    pub(super) revived: usize,
}

/// What is true of a key on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Intact,
    Absent,
    Other,
}

/// Reads every key from every node.
pub(super) async fn verify(
    database: &'static str,
    nodes: &[String],
    tally: &Tally,
) -> Result<Verified, Failure> {
    let mut keys: Vec<&String> = Vec::new();
    for of in [&tally.acked, &tally.unknown, &tally.refused] {
        keys.extend(of);
    }
    let keys: Arc<Vec<String>> = Arc::new(keys.into_iter().cloned().collect());
    let acked = tally.acked.len();
    let unknown = acked + tally.unknown.len();
    let mut lost = BTreeSet::new();
    let mut revived = BTreeSet::new();
    for node in nodes {
        catch_up(database, node, &tally.bookmark).await?;
        let readers: Vec<_> = (0..READERS)
            .map(|reader| tokio::spawn(read(database, node.clone(), keys.clone(), reader)))
            .collect();
        for reader in readers {
            let found = reader
                .await
                .map_err(|error| Failure::runtime(format!("a reader failed: {error}")))?;
            for (index, found) in found? {
                match found {
                    Found::Intact if index >= unknown => revived.insert(index),
                    Found::Other if index >= acked => revived.insert(index),
                    Found::Absent | Found::Other if index < acked => lost.insert(index),
                    _ => false,
                };
            }
        }
    }
    Ok(Verified { lost: lost.len(), revived: revived.len() })
}

/// Waits until a node has applied everything that was acknowledged.
async fn catch_up(database: &str, node: &str, bookmark: &str) -> Result<(), Failure> {
    let path = format!(
        "/v1/databases/{database}/records?limit=1&consistency=local&timeout_ms={CATCH_UP_MS}"
    );
    let headers = [("highwater-bookmark", bookmark)];
    let began = Instant::now();
    let mut client = Client::new(node, PATIENCE);
    loop {
        let why = match client.call("GET", &path, &headers, Bytes::new()).await {
            Ok(reply) if reply.status.is_success() => return Ok(()),
            Ok(reply) => reply.text(),
            Err(error) => error.to_string(),
        };
        if began.elapsed() > PATIENCE {
            return Err(Failure::runtime(format!("{node} does not catch up: {why}")));
        }
        time::sleep(PAUSE).await;
    }
}

/// Reads every [`READERS`]th key.
async fn read(
    database: &'static str,
    node: String,
    keys: Arc<Vec<String>>,
    reader: usize,
) -> Result<Vec<(usize, Found)>, Failure> {
    let began = Instant::now();
    let mut client = Client::new(node.as_str(), PATIENCE);
    let mut found = Vec::new();
    for (index, key) in keys.iter().enumerate().skip(reader).step_by(READERS) {
        let path = format!("{}?consistency=local", path_of(database, key));
        let seen = loop {
            let why = match client.get(&path).await {
                Ok(reply) if reply.status == StatusCode::OK => {
                    let intact = reply.body == value_of(key).as_bytes();
                    break if intact { Found::Intact } else { Found::Other };
                }
                Ok(reply) if reply.status == StatusCode::NOT_FOUND => break Found::Absent,
                Ok(reply) => reply.text(),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > PATIENCE {
                return Err(Failure::runtime(format!("can't read {key} from {node}: {why}")));
            }
            time::sleep(PAUSE).await;
        };
        found.push((index, seen));
    }
    Ok(found)
}
