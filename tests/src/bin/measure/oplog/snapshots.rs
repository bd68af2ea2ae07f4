//! How fast a whole state is read by a consumer, and by a node that was away for too long.

use std::{
    thread,
    time::{Duration, Instant},
};

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::Request,
    scratch::Scratch,
};
use tokio::runtime::Builder;

use super::{
    DATABASE, FILLERS, disk,
    figure::{Aim, Figure},
    fill,
    stream::Stream,
};
use crate::{load::Load, say, usage::Usage};

const VALUE: usize = 1024;
/// Of each of the fillers.
const KEYS: usize = 2_560;
const AIM_MB_PER_S: f64 = 200.0;
const FLOOR_MB_PER_S: f64 = 100.0;
/// A node that is away needs what is pruned; no pace limits snapshots.
const EDITS: [(&str, &str); 2] = [
    ("[retention]\nbytes = 1073741824", "[retention]\nbytes = 1048576"),
    ("[snapshots]\nbytes_per_s = 268435456", "[snapshots]\nbytes_per_s = 0"),
];
const AWAY: u64 = 3;
const LEADER: u64 = 1;
/// Longer than any snapshot may take.
const MOST: Duration = Duration::from_secs(600);

pub(crate) fn measure(scratch: &Scratch) -> Vec<Figure> {
    let cluster = super::cluster(3, &EDITS);
    cluster.hand_over(DATABASE, LEADER);
    let (node, away) = (cluster.node(LEADER), cluster.node(AWAY));
    let few = Load { value: VALUE, keys: KEYS, ..Load::small(node.http, DATABASE, FILLERS) };
    say("a state of some size");
    fill(&few, FILLERS as u64);
    cluster.wait_caught_up(AWAY, DATABASE);
    away.kill();
    let records = (FILLERS * KEYS) as u64;
    // The fillers do not run evenly; twice as many writes leave no key out.
    fill(&few, 2 * records);
    say("the disk");
    let disk = disk::sequential_mb_per_s(scratch.path()).expect("the disk can be written");
    let aim = Aim::Toward(AIM_MB_PER_S.min(disk), FLOOR_MB_PER_S.min(disk / 2.0));
    let aim = Some(aim);
    say("a consumer's snapshot");
    let mut figures = vec![consumer(node, aim)];
    say("a node's snapshot");
    figures.extend(bootstrap(&cluster, node, away, aim));
    let conditions =
        String::from("512 MiB in writes of 1 MiB, fsynced at the end, in the same run");
    figures.push(Figure::new("the disk's sequential writes", (disk, "MB/s"), None, conditions));
    figures
}

fn consumer(node: &Node, aim: Option<Aim>) -> Figure {
    let target = format!("/v1/databases/{DATABASE}/snapshot");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (began, cpu) = (Instant::now(), Usage::of(node.pid()).cpu);
    let stream = runtime.block_on(async {
        let mut stream = Stream::open(node.http, &target).await?;
        stream.read_all().await.map(|()| stream)
    });
    let took = began.elapsed().as_secs_f64();
    let cpu = Usage::of(node.pid()).cpu - cpu;
    let stream = stream.expect("a snapshot");
    // The last line is the end.
    let records = stream.lines - 1;
    let conditions = format!(
        "of NDJSON, {:.0} MB/s of values; {records} records × 1 KiB in {took:.2} s; CPU of the node {:.1} s",
        (records * VALUE as u64) as f64 / took / 1e6,
        cpu.as_secs_f64(),
    );
    let value = stream.bytes as f64 / took / 1e6;
    Figure::new("a consumer's snapshot", (value, "MB/s"), aim, conditions)
}

/// What is received of a snapshot, and all of it: from the start of the node's process until it serves
/// the state.
fn bootstrap(cluster: &Cluster, leader: &Node, away: &Node, aim: Option<Aim>) -> [Figure; 2] {
    let marks = || leader.get(&format!("/v1/databases/{DATABASE}")).json()["watermarks"].clone();
    let goal = eventually("what the node needs is pruned", PATIENCE, || {
        let marks = marks();
        (marks["first"].as_u64()? > 2 * FILLERS as u64).then(|| marks["committed"].as_u64())?
    });
    let applied = format!("highwater_watermark{{database=\"{DATABASE}\",mark=\"applied\"}}");
    let bytes = || away.metric("highwater_snapshot_bytes_total{direction=\"received\"}");
    let began = Instant::now();
    away.start();
    let (mut first, mut received) = (None, (Duration::ZERO, 0.0));
    let pause = Duration::from_millis(20);
    let took = loop {
        let took = began.elapsed();
        assert!(took < MOST, "node {AWAY} does not come back: {}", away.log());
        if let Some(bytes) = bytes().filter(|bytes| *bytes > received.1) {
            first.get_or_insert((took, bytes));
            received = (took, bytes);
        }
        if away.metric(&applied).is_some_and(|applied| applied >= goal as f64) {
            break took;
        }
        thread::sleep(pause);
    };
    let request =
        Request::get(&format!("/v1/databases/{DATABASE}/records?consistency=local&limit=1"));
    eventually("the node serves its state", PATIENCE, || {
        away.try_send(&request).is_ok_and(|answer| answer.status == 200).then_some(())
    });
    let took_all = began.elapsed();
    let cpu = Usage::of(away.pid()).cpu;
    let full = format!("highwater_resyncs_total{{database=\"{DATABASE}\",kind=\"full\"}}");
    assert_eq!(away.metric(&full), Some(1.0), "this is no catch-up by a snapshot");
    assert_eq!(cluster.leader(DATABASE), LEADER, "the leader changed");
    let (first, had) = first.expect("something was received");
    let conditions = format!(
        "{:.0} MB, durable in a file of the node, no pace; from the first bytes seen to the last: {:.2} s",
        received.1 / 1e6,
        (received.0 - first).as_secs_f64(),
    );
    let value = (received.1 - had) / (received.0 - first).as_secs_f64() / 1e6;
    let transfer = Figure::new("a snapshot from node to node", (value, "MB/s"), aim, conditions);
    let conditions = format!(
        "{:.0} MB; {:.2} s from the process' start until it serves them: the donor wrote a snapshot, the \
         first bytes came after {:.2} s, the last after {:.2} s, a state was made of them after {:.2} s; \
         CPU {:.1} s",
        received.1 / 1e6,
        took_all.as_secs_f64(),
        first.as_secs_f64(),
        received.0.as_secs_f64(),
        took.as_secs_f64(),
        cpu.as_secs_f64(),
    );
    let value = received.1 / took_all.as_secs_f64() / 1e6;
    [transfer, Figure::new("a node's whole bootstrap", (value, "MB/s"), None, conditions)]
}
