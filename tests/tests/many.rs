//! Very many databases on one cluster. A test binary of its own: it has the machine for itself.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use highwater_tests::{
    cluster::{Cluster, Node},
    http::Request,
};

const DATABASES: usize = 2_000;
const CLIENTS: usize = 32;
/// For each phase.
const LIMIT: Duration = Duration::from_secs(60);

/// Does something for every database, with many clients at once, spread over the nodes.
fn for_each(what: &str, nodes: &[&Node], request: impl Fn(usize) -> Request + Sync) -> Duration {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        for at in 0..CLIENTS {
            let (next, request) = (&next, &request);
            let mut client = nodes[at % nodes.len()].client();
            scope.spawn(move || {
                loop {
                    let database = next.fetch_add(1, Ordering::Relaxed);
                    if database >= DATABASES {
                        return;
                    }
                    // A leader that just died may leave an outcome unknown; these may be repeated.
                    for attempt in 0.. {
                        let answer = client.send(&request(database)).expect("an answer");
                        if answer.status < 300 {
                            break;
                        }
                        assert!(answer.status >= 500, "{}", answer.text());
                        let patience = attempt < 20 && began.elapsed() < LIMIT;
                        assert!(patience, "{what} database {database}: {}", answer.text());
                    }
                }
            });
        }
    });
    began.elapsed()
}

#[test]
fn two_thousand_databases_survive_their_leader() {
    let cluster = Cluster::start(3);
    let all: Vec<&Node> = cluster.nodes().iter().collect();
    let name = |at: usize| format!("db-{at:04}");
    let key =
        |at: usize, key: &str| format!("/v1/databases/{}/records/{key}?timeout_ms=20000", name(at));
    let create =
        |at: usize| Request::new("PUT", &format!("/v1/databases/{}?timeout_ms=20000", name(at)));
    let created = for_each("creating", &all, create);
    let written = for_each("writing", &all, |at| Request::put(&key(at, "first"), name(at)));

    let leading = |node: &Node| {
        let text = node.get("/metrics").text();
        let leads = |line: &&str| line.starts_with("highwater_is_leader{") && line.ends_with(" 1");
        text.lines().filter(leads).count()
    };
    let (led, victim) = cluster.nodes().iter().map(|n| (leading(n), n.id)).max().unwrap();
    assert!(led >= DATABASES / 3, "node {victim} leads {led}");
    cluster.node(victim).kill();
    let left = cluster.others(victim);
    let survived =
        for_each("after the kill", &left, |at| Request::put(&key(at, "second"), name(at)));

    // And the one that died comes back to all of them.
    cluster.node(victim).start();
    let began = Instant::now();
    cluster.node(victim).wait_ready();
    let again = [cluster.node(victim)];
    let read = for_each("reading", &again, |at| Request::get(&key(at, "second")));
    let total = for_each("writing again", &again, |at| Request::put(&key(at, "third"), name(at)));
    println!(
        "{DATABASES} databases: created in {created:?}, written in {written:?}; node {victim}, \
         which led {led}, killed: all written again in {survived:?}; restarted: read in {read:?}, \
         written in {total:?}, {:?} after its start",
        began.elapsed()
    );
    for phase in [created, written, survived, read, total] {
        assert!(phase < LIMIT, "{phase:?}");
    }
}
