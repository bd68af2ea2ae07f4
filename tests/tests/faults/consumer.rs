//! What a slot's consumer did, against what the writers know: it misses nothing, and hears nothing
//! again that it acknowledged.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use highwater_tests::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::{Client, Follow, Request},
    load::Load,
};
use serde_json::{Value, json};

use crate::{addresses, scale};

const SLOT: &str = "/v1/databases/db/slots/s";
const CHANGES: &str = "/v1/databases/db/changes?slot=s&follow=true&timeout_ms=2000";
/// Operations between two acknowledgements.
const ACK_EVERY: usize = 50;
/// Acknowledgements after which it leaves, and comes again.
const STAY: usize = 10;
/// Followed kills of leaders, before and after a node is wiped.
const KILLS: [usize; 2] = [3, 2];

/// What the test tells its consumer, and the other way round.
#[derive(Debug, Default)]
struct Orders {
    /// Which node to follow.
    node: AtomicU64,
    stop: AtomicBool,
    /// Operations that were done.
    done: AtomicU64,
}

/// A consumer: does each operation once, whatever it is sent, and acknowledges now and then.
#[derive(Debug, Default)]
struct Consumer {
    /// What it did, by LSN and key.
    done: Vec<(u64, String)>,
    acked: u64,
    /// What it wanted acknowledged; the answer may be lost.
    asked: u64,
    connections: usize,
    acks: usize,
    /// Operations that were sent again, since they were not acknowledged.
    again: usize,
}

impl Consumer {
    fn last(&self) -> u64 {
        self.done.last().map_or(0, |(lsn, _)| *lsn)
    }

    /// Follows where it is told to until it is to stop; what breaks is tried again.
    fn run(mut self, nodes: &[SocketAddr], orders: &Orders) -> Consumer {
        while !orders.stop.load(Ordering::Relaxed) {
            let node = orders.node.load(Ordering::Relaxed);
            if self.follow(nodes[node as usize - 1], node, orders).is_none() {
                thread::sleep(Duration::from_millis(20));
            }
        }
        self
    }

    /// One connection; `None` where it broke.
    fn follow(&mut self, address: SocketAddr, node: u64, orders: &Orders) -> Option<()> {
        let mut follow = Follow::start(address, &Request::get(CHANGES), PATIENCE).ok()?;
        if follow.head.status != 200 {
            assert!(follow.head.status >= 500, "{:?}", follow.head);
            return None;
        }
        self.connections += 1;
        let mut client = Client::new(address).timeout(PATIENCE);
        let (mut before, mut unacked, mut acks) = (None, 0, 0);
        while let Some(line) = follow.line().ok()? {
            let moved = orders.node.load(Ordering::Relaxed) != node;
            if moved || acks == STAY || orders.stop.load(Ordering::Relaxed) {
                return Some(());
            }
            let row: Value = serde_json::from_str(&line).expect("a line of JSON");
            if row.get("ops").is_some() {
                self.take(&row, before);
                before = row["lsn"].as_u64();
                unacked += 1;
                orders.done.store(self.done.len() as u64, Ordering::Relaxed);
            }
            let idle = row.get("progress").is_some();
            if unacked >= ACK_EVERY || idle && unacked > 0 {
                unacked = 0;
                acks += 1;
                self.ack(&mut client);
            }
        }
        None
    }

    /// One operation; `before` is the one before it on the same connection.
    fn take(&mut self, row: &Value, before: Option<u64>) {
        let (lsn, prev) = (row["lsn"].as_u64().unwrap(), row["prev_lsn"].as_u64().unwrap());
        let (acked, asked) = (self.acked, self.asked);
        assert!(lsn > acked, "{lsn} comes again after the acknowledgement of {acked}");
        match before {
            Some(before) => assert_eq!(prev, before, "something is left out before {lsn}"),
            // The slot is where it was last moved to, by an acknowledgement with an answer or without.
            None => assert!((acked..=asked).contains(&prev), "{prev}, not {acked} to {asked}"),
        }
        let ops = row["ops"].as_array().expect("ops");
        assert_eq!(ops.len(), 1, "{row}");
        let done = (lsn, ops[0]["key"].as_str().expect("a key").to_owned());
        if lsn > self.last() {
            assert_eq!(prev, self.last(), "something is left out before {lsn}");
            self.done.push(done);
        } else {
            let at = self.done.binary_search_by_key(&lsn, |(lsn, _)| *lsn);
            let was = at.map(|at| &self.done[at]);
            assert_eq!(was, Ok(&done), "what is sent again is what was sent before");
            self.again += 1;
        }
    }

    fn ack(&mut self, client: &mut Client) {
        self.asked = self.last();
        let body = json!({ "lsn": self.asked }).to_string();
        let ack = Request::post(&format!("{SLOT}/ack?timeout_ms=2000"), &body);
        if let Ok(answer) = client.send(&ack)
            && answer.status == 200
        {
            let confirmed = answer.json()["confirmed_lsn"].as_u64().unwrap();
            assert_eq!(confirmed, self.asked, "it is where its only consumer is");
            self.acked = confirmed;
            self.acks += 1;
        }
    }
}

/// Waits until the consumer has done so many more operations.
fn wait_done(orders: &Orders, more: u64) {
    let goal = orders.done.load(Ordering::Relaxed) + more;
    eventually(&format!("{more} further operations are consumed"), PATIENCE, || {
        (orders.done.load(Ordering::Relaxed) >= goal).then_some(())
    });
}

fn role(cluster: &Cluster, asked: u64, of: u64) -> Option<String> {
    let view = cluster.node(asked).get("/v1/cluster").json();
    let node = view["nodes"].as_array()?.iter().find(|node| node["id"] == of)?.clone();
    Some(node["role"].as_str()?.to_owned())
}

/// Kills whoever leads, while the consumer follows another node, and waits for writes and
/// operations after that.
fn kill_the_leader(cluster: &Cluster, load: &Load, orders: &Orders, learner: Option<u64>) {
    let phase = 100 * scale();
    let leader = cluster.leader("db");
    let follower = learner.unwrap_or(leader % 3 + 1);
    assert_ne!(follower, leader);
    orders.node.store(follower, Ordering::Relaxed);
    wait_done(orders, phase);
    cluster.node(leader).kill();
    if learner.is_none() {
        // The others are a quorum.
        load.wait_acked(phase);
        wait_done(orders, phase);
    }
    cluster.node(leader).start();
    cluster.node(leader).wait_ready();
    load.wait_acked(phase);
    wait_done(orders, phase);
}

#[test]
fn a_follower_of_a_slot_misses_nothing_by_five_dead_leaders_and_a_wiped_node() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let create = Request::new("PUT", SLOT).header("content-type", "application/json");
    let _ = cluster.node(1).send(&create.body(r#"{"from":"earliest"}"#)).expect(201);
    let nodes = addresses(&cluster);
    let orders = Arc::new(Orders { node: AtomicU64::new(1), ..Orders::default() });
    let consumer = thread::spawn({
        let (orders, nodes) = (orders.clone(), nodes.clone());
        move || Consumer::default().run(&nodes, &orders)
    });
    let began = Instant::now();
    let load = Load::start(&nodes, "db", (4 * scale()).min(64) as usize);
    load.wait_acked(100);
    for _ in 0..KILLS[0] {
        kill_the_leader(&cluster, &load, &orders, None);
    }

    // A node loses all it has, comes back without a vote, and is followed from then on.
    let leader = cluster.leader("db");
    let wiped = leader % 3 + 1;
    cluster.node(wiped).kill();
    fs::remove_dir_all(cluster.node(wiped).data()).expect("its data");
    load.wait_acked(100 * scale());
    cluster.node(wiped).start();
    cluster.node(wiped).wait_ready();
    eventually("the wiped node is a learner", PATIENCE, || {
        (role(&cluster, leader, wiped)? == "learner").then_some(())
    });
    cluster.wait_caught_up(wiped, "db");
    for _ in 0..KILLS[1] {
        kill_the_leader(&cluster, &load, &orders, Some(wiped));
    }
    assert_eq!(role(&cluster, wiped, wiped).as_deref(), Some("learner"));
    let took = began.elapsed();
    let journal = load.stop();

    // To the end.
    eventually("all is consumed, and acknowledged", PATIENCE, || {
        (cluster.node(wiped).get(SLOT).json()["lag_ops"] == 0).then_some(())
    });
    orders.stop.store(true, Ordering::Relaxed);
    let consumer = consumer.join().expect("the consumer");
    println!(
        "{} writes acknowledged in {took:?}, {} with another outcome; {} operations consumed on {} \
         connections, {} acknowledgements, {} sent again before they were acknowledged",
        journal.acked(),
        journal.failed(),
        consumer.done.len(),
        consumer.connections,
        consumer.acks,
        consumer.again
    );
    journal.verify_consumed(&consumer.done);
    let records = cluster.records(wiped, "db", "local");
    // Of each key the last operation is what stands.
    let last: BTreeMap<_, _> = consumer.done.iter().map(|(lsn, key)| (key, lsn)).collect();
    let stands: BTreeMap<_, _> = records.iter().map(|(key, r)| (key, &r.version)).collect();
    assert_eq!(last, stands);
    journal.verify(&cluster, &[1, 2, 3]);
}
