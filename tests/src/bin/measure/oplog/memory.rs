//! What a slot and a stream cost in memory while nothing happens to them.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use highwater_tests::{
    cluster::{Cluster, Node},
    http::Request,
};
use tokio::runtime::Builder;

use super::{
    DATABASE,
    figure::{Aim, Figure},
    fill,
    stream::Stream,
};
use crate::{load::Load, say, usage::Usage};

/// A database has 128 at most.
const SLOTS_OF_EACH: usize = 125;
const DATABASES: usize = 80;
const SLOTS: usize = SLOTS_OF_EACH * DATABASES;
const AIM_SLOT_KIB: f64 = 1.0;
const STREAMS: usize = 500;
const AIM_STREAM_KIB: f64 = 64.0;
/// What each stream has read before it idles.
const HISTORY: u64 = 10_000;
const CREATORS: usize = 16;
/// What is written later has been written by then, and checkpoints are over.
const SETTLE: Duration = Duration::from_secs(12);

pub(crate) fn measure() -> Vec<Figure> {
    let cluster = super::cluster(1, &[]);
    let node = cluster.node(1);
    vec![slots(node), streams(&cluster)]
}

fn private_kib(node: &Node) -> f64 {
    thread::sleep(SETTLE);
    Usage::of(node.pid()).private_kib as f64
}

fn slots(node: &Node) -> Figure {
    say(&format!("{SLOTS} slots"));
    let database = |at: usize| format!("/v1/databases/slots-{at}");
    each(node, DATABASES, |at| Request::new("PUT", &database(at)));
    let before = private_kib(node);
    each(node, SLOTS, |at| {
        let (of, name) = (database(at % DATABASES), at / DATABASES);
        Request::new("PUT", &format!("{of}/slots/consumer-{name}?timeout_ms=30000"))
            .header("content-type", "application/json")
            .body("{\"from\":\"latest\"}")
    });
    let after = private_kib(node);
    let conditions = format!(
        "anonymous memory of one node: {before:.0} KiB before and {after:.0} KiB after {SLOTS} were \
         created, in {DATABASES} databases"
    );
    let value = ((after - before) / SLOTS as f64, "KiB");
    Figure::new("an idle slot", value, Some(Aim::Under(AIM_SLOT_KIB)), conditions)
}

/// Sends so many requests, each of which must create something.
fn each(node: &Node, count: usize, request: impl Fn(usize) -> Request + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CREATORS {
            scope.spawn(|| {
                let mut client = node.client();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let _ = client.send(&request(at)).expect("an answer").expect(201);
                }
            });
        }
    });
}

fn streams(cluster: &Cluster) -> Figure {
    say(&format!("{STREAMS} streams"));
    let node = cluster.node(1);
    fill(&Load::small(node.http, DATABASE, CREATORS), HISTORY);
    let before = private_kib(node);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let streams: Vec<Stream> = runtime.block_on(async {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(caught_up(node.http).await);
        }
        streams
    });
    let after = private_kib(node);
    drop(streams);
    let conditions = format!(
        "anonymous memory of one node: {before:.0} KiB before and {after:.0} KiB after {STREAMS} were \
         opened, which have read {HISTORY} × 256 bytes and then follow"
    );
    let value = ((after - before) / STREAMS as f64, "KiB");
    Figure::new("an idle stream", value, Some(Aim::Under(AIM_STREAM_KIB)), conditions)
}

async fn caught_up(node: SocketAddr) -> Stream {
    let target = format!("/v1/databases/{DATABASE}/changes?after=0&follow=true");
    let mut stream = Stream::open(node, &target).await.expect("a stream");
    stream.read_lines(HISTORY).await.expect("a history");
    stream
}
