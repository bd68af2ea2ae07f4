//! How fast a history is read, by one consumer and by many.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{runtime::Builder, time::timeout};

use super::{DATABASE, FILLERS, KEEP_ALL, figure::Figure, fill, stream::Stream};
use crate::{load::Load, options::Options, say, usage::Usage};

/// Ops of the history, at most.
const OPS: u64 = 300_000;
const MANY: usize = 50;

pub(crate) fn measure(options: &Options) -> Vec<Figure> {
    say("a history to be read");
    let ops = OPS.min(options.entries);
    let cluster = super::cluster(1, &[KEEP_ALL]);
    let node = cluster.node(1);
    fill(&Load::small(node.http, DATABASE, FILLERS), ops);
    let most = Duration::from_secs(options.seconds);
    let names = [(1, "changes to 1 consumer"), (MANY, "changes to 50 consumers together")];
    names.map(|(consumers, name)| {
        say(name);
        let usage = || (Usage::of(node.pid()).cpu, Usage::of(std::process::id()).cpu);
        let before = usage();
        let (lines, bytes, took) = read(node.http, consumers, ops, most);
        let after = usage();
        let took = took.as_secs_f64();
        let conditions = format!(
            "{:.0} MB/s of NDJSON; one node, a history of {ops} × 256 bytes from its beginning, \
             {took:.1} s; CPU: node {:.1} s, consumers {:.1} s",
            bytes as f64 / took / 1e6,
            (after.0 - before.0).as_secs_f64(),
            (after.1 - before.1).as_secs_f64(),
        );
        Figure::new(name, (lines as f64 / took, "ops/s"), None, conditions)
    })
    .into()
}

/// Reads until every consumer has all ops, or the time is over: lines and bytes of all together.
fn read(node: SocketAddr, consumers: usize, ops: u64, most: Duration) -> (u64, u64, Duration) {
    let target = format!("/v1/databases/{DATABASE}/changes?after=0&follow=true");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let began = Instant::now();
        let readers: Vec<_> = (0..consumers)
            .map(|_| {
                let target = target.clone();
                tokio::spawn(async move {
                    let mut stream = Stream::open(node, &target).await.expect("a stream");
                    if let Ok(read) = timeout(most, stream.read_lines(ops)).await {
                        read.expect("a history");
                    }
                    (stream.lines, stream.bytes)
                })
            })
            .collect();
        let mut all = (0, 0);
        for reader in readers {
            let (lines, bytes) = reader.await.expect("a reader");
            all = (all.0 + lines, all.1 + bytes);
        }
        (all.0, all.1, began.elapsed())
    })
}
