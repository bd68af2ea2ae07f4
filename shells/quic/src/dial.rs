//! Dials one peer for ever, and writes what waits for it.

use std::{sync::Arc, time::Duration};

use highwater_wire::peer::Hello;
use quinn::{Connection, ConnectionError, SendStream, WriteError};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    greet::{Code, Fault, greet},
    link::{Lane, Link, Next},
    quic::Shared,
    tls::node_name,
};

/// The first attempt may take this long, each later one twice as long as the one before.
const PATIENCE_MIN: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(4);

/// Between two attempts; doubles with each failure. Jitter takes off up to half.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// An attempt that is under way when the peer shows itself is given this long.
const GRACE: Duration = Duration::from_millis(100);

/// A connection that stood for so long was good: the next attempt comes soon. Not so if the peer
/// closed it because of what this node says: it would do so again.
const GOOD: Duration = Duration::from_secs(1);

/// Runs until the link closes.
pub(crate) async fn run(shared: Arc<Shared>, link: Arc<Link>, seed: u64) {
    let mut random = seed;
    let mut failures = 0;
    // The peer closed the last connection because of what this node says. To connect again is no
    // news then.
    let mut refused = false;
    while !link.is_closing() {
        match attempt(&shared, &link, failures).await {
            Ok(opened) => {
                let since = Instant::now();
                tell_connected(&link, &opened.hello, refused);
                let fault = serve(&link, opened).await;
                if link.is_closing() {
                    return;
                }
                failures = failures_after(failures, since.elapsed(), &fault);
                refused = fault.is_refusal();
                tell_lost(&link, &fault);
            }
            Err(fault) if link.is_closing() => {
                tracing::debug!(node = %link.node, %fault, "given up");
                return;
            }
            Err(Fault::Restarted) => {
                failures = 0;
                continue;
            }
            Err(fault) => {
                failures += 1;
                refused = false;
                if link.trouble(&fault.to_string()) {
                    tracing::warn!(
                        node = %link.node, address = %link.address, %fault,
                        "cannot connect; trying on"
                    );
                }
            }
        }
        let pause = backoff(failures, &mut random);
        tokio::select! {
            biased;
            () = link.redial.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

fn tell_connected(link: &Link, hello: &Hello, again: bool) {
    let (node, address) = (link.node, link.address);
    let (incarnation, boot) = (hello.peer.member.incarnation, hello.peer.boot);
    if again {
        tracing::debug!(%node, %address, %incarnation, ?boot, "connected, as before");
    } else {
        tracing::info!(%node, %address, %incarnation, ?boot, "connected");
    }
}

fn tell_lost(link: &Link, fault: &Fault) {
    let (node, address) = (link.node, link.address);
    if !fault.is_refusal() {
        link.recovered();
        tracing::info!(%node, %address, %fault, "connection lost");
    } else if link.trouble(&fault.to_string()) {
        tracing::warn!(%node, %address, %fault, "cannot stay connected; trying on");
    }
}

/// Failures in a row, once a connection that stood for so long has ended.
fn failures_after(before: u32, stood: Duration, fault: &Fault) -> u32 {
    if stood >= GOOD && !fault.is_refusal() { 0 } else { before + 1 }
}

/// A connection that has said hello.
struct Opened {
    connection: Connection,
    hello: Hello,
    lanes: [SendStream; 3],
}

async fn attempt(shared: &Shared, link: &Link, failures: u32) -> Result<Opened, Fault> {
    let patience = PATIENCE_MIN.saturating_mul(1 << failures.min(8)).min(PATIENCE_MAX);
    tokio::select! {
        biased;
        opened = timeout(patience, open(shared, link)) => opened.unwrap_or(Err(Fault::Silent)),
        () = shown(link) => Err(Fault::Restarted),
    }
}

/// Returns when the peer has shown itself and an attempt from before that has had its chance; or at
/// once when the link closes.
async fn shown(link: &Link) {
    link.redial.notified().await;
    if !link.is_closing() {
        sleep(GRACE).await;
    }
}

async fn open(shared: &Shared, link: &Link) -> Result<Opened, Fault> {
    let name = node_name(shared.cluster, link.node);
    let config = shared.configs.client(link.address);
    let connection = shared.endpoint.connect_with(config, link.address, &name)?.await?;
    let hello = greet(&connection, &shared.hello).await?;
    let fault = if hello.cluster != shared.cluster {
        Fault::Cluster(hello.cluster)
    } else if hello.peer.member.node != link.node {
        Fault::Node(hello.peer.member.node)
    } else {
        let [control, bulk, snapshot] = Lane::ALL.map(|lane| open_lane(&connection, lane));
        let lanes = [control.await?, bulk.await?, snapshot.await?];
        return Ok(Opened { connection, hello, lanes });
    };
    Code::BadHello.close(&connection, &fault.to_string());
    Err(fault)
}

async fn open_lane(connection: &Connection, lane: Lane) -> Result<SendStream, ConnectionError> {
    let stream = connection.open_uni().await?;
    // It has not been closed, so this cannot fail.
    let _ = stream.set_priority(lane.priority());
    Ok(stream)
}

/// Writes until the connection or the link ends.
async fn serve(link: &Link, opened: Opened) -> Fault {
    let Opened { connection, hello, lanes: [mut control, mut bulk, mut snapshot] } = opened;
    link.connected(connection.clone(), &hello);
    let written = async {
        tokio::try_join!(
            write(link, Lane::Control, &mut control),
            write(link, Lane::Bulk, &mut bulk),
            write(link, Lane::Snapshot, &mut snapshot)
        )
    };
    let fault = tokio::select! {
        biased;
        error = connection.closed() => error.into(),
        written = written => match written {
            Ok(_) => Fault::Silent,
            Err(error) => error.into(),
        },
    };
    link.disconnected();
    fault
}

/// Writes one lane until it is finished, and all of it has arrived.
async fn write(link: &Link, lane: Lane, stream: &mut SendStream) -> Result<(), WriteError> {
    loop {
        match link.next(lane) {
            Next::Write(mut frames) => {
                let bytes = frames.iter().map(|f| f.len()).sum();
                stream.write_all_chunks(&mut frames).await?;
                link.wrote(bytes);
            }
            Next::Wait => link.ready(lane).await,
            Next::Finish => {
                if stream.finish().is_ok() {
                    // Either way there is nothing left to do.
                    let _ = stream.stopped().await;
                }
                return Ok(());
            }
        }
    }
}

fn backoff(failures: u32, random: &mut u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(BACKOFF_MAX);
    // splitmix64: jitter needs no better.
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *random;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let half = full / 2;
    half + half.mul_f64((z >> 40) as f64 / (1u64 << 24) as f64)
}

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, ConnectionError, VarInt};

    use super::*;

    #[test]
    fn a_refusal_is_a_failure_however_long_the_connection_stood() {
        let closed = |code: Code| {
            let (error_code, reason) = (VarInt::from_u32(code as u32), "why".into());
            Fault::from(ConnectionError::ApplicationClosed(ApplicationClose { error_code, reason }))
        };
        let long = Duration::from_secs(60);
        for code in [Code::Malformed, Code::BadHello, Code::Stranger] {
            assert_eq!(failures_after(3, long, &closed(code)), 4, "{code:?}");
        }
        for fault in [closed(Code::Shutdown), closed(Code::Replaced), Fault::Silent] {
            assert_eq!(failures_after(3, long, &fault), 0, "{fault}");
            assert_eq!(failures_after(3, Duration::ZERO, &fault), 4, "{fault}");
        }
    }

    #[test]
    fn backoff_grows_to_its_bound_and_differs() {
        let mut random = 1;
        for failures in 0..40u32 {
            let full =
                Duration::from_millis((50u64 << failures.saturating_sub(1).min(5)).min(1000));
            let pauses: Vec<_> = (0..50).map(|_| backoff(failures, &mut random)).collect();
            assert!(pauses.iter().all(|p| (full / 2..=full).contains(p)), "{failures}: {pauses:?}");
            assert!(pauses.windows(2).any(|w| w[0] != w[1]));
        }
    }
}
