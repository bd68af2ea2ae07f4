//! A slot's consumer goes on through the death of every leader.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use highwater_tests::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::{Client, Follow, Request},
    load::Load,
};
use serde_json::{Value, json};

use crate::addresses;

/// The lines of an answer, where it came in full; or what else was answered.
fn page(address: SocketAddr, target: &str) -> Option<Result<Vec<Value>, String>> {
    let mut answer = Follow::start(address, &Request::get(target), PATIENCE).ok()?;
    let (status, mut lines) = (answer.head.status, Vec::new());
    while let Some(line) = answer.line().ok()? {
        lines.push(line);
    }
    if status != 200 {
        return Some(Err(lines.concat()));
    }
    let rows: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.last().is_some_and(|last| last["end"] == true).then_some(Ok(rows))
}

/// What a consumer got, and did.
#[derive(Default)]
struct Consumed {
    /// Everything that it was sent, once or more.
    seen: BTreeSet<u64>,
    acked: u64,
    /// What an acknowledgement was asked for, whose answer may be lost: the slot is there, or not yet.
    asked: u64,
    pages: usize,
}

impl Consumed {
    /// Reads one page through a node and acknowledges it; what fails is tried again.
    fn page(&mut self, address: SocketAddr) -> Option<()> {
        let changes = "/v1/databases/db/changes?slot=s&limit=500&timeout_ms=2000";
        let rows = match page(address, changes)? {
            Ok(rows) => rows,
            Err(answer) => {
                let gone = answer.contains("no_such_slot") || answer.contains("slot_invalidated");
                assert!(!gone, "{answer}");
                return None;
            }
        };
        let mut last = self.asked;
        for row in rows.iter().filter(|row| row.get("ops").is_some()) {
            let (lsn, prev) = (row["lsn"].as_u64().unwrap(), row["prev_lsn"].as_u64().unwrap());
            assert!(
                lsn > self.acked,
                "{lsn} comes again after the acknowledgement of {}",
                self.acked
            );
            assert!(prev <= last, "something between {last} and {lsn} is left out: {row}");
            self.seen.insert(lsn);
            last = last.max(lsn);
        }
        self.asked = last;
        self.pages += 1;
        let body = json!({ "lsn": last }).to_string();
        let ack = Request::post("/v1/databases/db/slots/s/ack?timeout_ms=2000", &body);
        let answer = Client::new(address).timeout(PATIENCE).send(&ack).ok()?;
        if answer.status == 200 {
            let confirmed = answer.json()["confirmed_lsn"].as_u64().unwrap();
            assert!(confirmed >= last, "{confirmed} after {last} was acknowledged");
            self.acked = confirmed;
        }
        Some(())
    }
}

#[test]
fn a_consumer_misses_nothing_while_leaders_are_killed() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let slot = "/v1/databases/db/slots/s";
    let create = Request::new("PUT", slot).header("content-type", "application/json");
    let _ = cluster.node(1).send(&create.body(r#"{"from":"earliest"}"#)).expect(201);
    let nodes = addresses(&cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let consumer = thread::spawn({
        let (stop, nodes) = (stop.clone(), nodes.clone());
        move || {
            let mut consumed = Consumed::default();
            for address in nodes.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let _ = consumed.page(*address);
            }
            consumed
        }
    });
    let load = Load::start(&nodes, "db", 4);
    load.wait_acked(100);
    for _ in 0..3 {
        let leader = cluster.leader("db");
        cluster.node(leader).kill();
        load.wait_acked(100);
        cluster.node(leader).start();
        cluster.node(leader).wait_ready();
        load.wait_acked(50);
    }
    let journal = load.stop();
    stop.store(true, Ordering::Relaxed);
    let mut consumed = consumer.join().expect("the consumer");
    assert!(consumed.pages > 10, "{} pages", consumed.pages);
    // The rest, to the end.
    eventually("the slot is caught up", PATIENCE, || {
        consumed.page(nodes[0])?;
        let seen = cluster.node(1).get(slot).json();
        (seen["lag_ops"] == 0).then_some(())
    });
    let mut all = BTreeSet::new();
    let mut after = 0;
    loop {
        let target = format!("/v1/databases/db/changes?after={after}&limit=1000");
        let rows = page(nodes[1], &target).expect("a page").expect("changes");
        let before = all.len();
        all.extend(
            rows.iter()
                .filter(|row| row.get("ops").is_some())
                .map(|row| row["lsn"].as_u64().unwrap()),
        );
        after = rows.last().unwrap()["next"].as_u64().unwrap();
        if all.len() == before {
            break;
        }
    }
    assert!(all.len() >= journal.acked());
    assert_eq!(consumed.seen, all);
    journal.verify(&cluster, &[1, 2, 3]);
}
