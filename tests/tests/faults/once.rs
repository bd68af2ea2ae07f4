//! Keyed writes that are sent again until they are answered take effect once, whoever dies meanwhile.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use highwater_tests::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::{Client, Request, Response},
};

/// Sends a write with its key until it is answered; that, and how often it was sent.
fn insist(cluster: &Cluster, request: &Request, n: u64) -> (Response, u64) {
    let mut tries = 0;
    let answer = eventually("a keyed write is answered", PATIENCE, || {
        let address = cluster.nodes()[((n + tries) % 3) as usize].http;
        tries += 1;
        let answer = Client::new(address).timeout(Duration::from_secs(3)).send(request).ok()?;
        // All others say that it may have had no effect, so far.
        (!matches!(answer.status, 503 | 504)).then_some(answer)
    });
    (answer, tries)
}

#[test]
fn a_keyed_write_outlives_its_leader() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let (stop, count, again) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let written = || count.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for client in 0..6_u64 {
            let (cluster, stop, count, again) = (&cluster, &stop, &count, &again);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("{client}-{n}");
                    let target = format!("/v1/databases/db/records/{name}?timeout_ms=1500");
                    // It can be created once: a second effect would be refused.
                    let put = Request::put(&target, &name).header("if-none-match", "*");
                    let put = put.header("idempotency-key", &name);
                    let (answer, tries) = insist(cluster, &put, client + n);
                    assert_eq!(answer.status, 201, "after {tries}: {}", answer.text());
                    count.fetch_add(1, Ordering::Relaxed);
                    again.fetch_add(u64::from(tries > 1), Ordering::Relaxed);
                }
            });
        }
        for _ in 0..4 {
            let before = written();
            eventually("writes go on", PATIENCE, || (written() > before + 50).then_some(()));
            let leader = cluster.leader("db");
            cluster.node(leader).kill();
            let rest: Vec<u64> = cluster.others(leader).iter().map(|node| node.id).collect();
            let _ = cluster.leader_among("db", &rest);
            cluster.node(leader).start();
            cluster.node(leader).wait_ready();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(again.load(Ordering::Relaxed) > 0, "some were sent again");
    let mut records = 0;
    let mut after = String::new();
    loop {
        let target = format!("/v1/databases/db/records?limit=1000&after={after}");
        let page = cluster.node(1).get(&target).expect(200).json();
        records += page["records"].as_array().map_or(0, Vec::len) as u64;
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(records, written(), "each of them, and nothing else");
}
