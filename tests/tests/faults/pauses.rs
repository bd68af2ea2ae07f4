//! SIGSTOP and SIGCONT: a process that is away for a while and does not know it.

use std::{thread, time::Duration};

use highwater_tests::{
    cluster::Cluster,
    http::{Client, Request},
    load::{Load, Outcome},
};

use crate::{addresses, put_through, record};

#[test]
fn a_leader_that_was_paused_gives_no_stale_answer() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let all = [1, 2, 3];
    for round in 0..4 {
        let old = cluster.leader("db");
        let node = cluster.node(old);
        let others: Vec<u64> = all.into_iter().filter(|id| *id != old).collect();
        let (before, after) = (format!("{round}-before"), format!("{round}-after"));
        assert!(node.put(&record("db", "k"), &before).status < 300);
        // Some read while it runs, so that their connections are as warm as can be.
        let mut readers: Vec<Client> = (0..16).map(|_| node.client()).collect();
        for reader in &mut readers {
            assert_eq!(reader.send(&Request::get(&record("db", "k"))).unwrap().text(), before);
        }
        node.pause();
        // These wait in its sockets, to be the first thing that it sees.
        for reader in &mut readers[..8] {
            reader.write(&Request::get(&record("db", "k"))).unwrap();
        }
        let mut writer = node.client();
        let held = format!("{round}-held");
        writer.write(&Request::put(&record("db", &held), "v")).unwrap();
        // Writes go on through the others.
        put_through(&cluster, others[0], "k", &after);
        assert_eq!(cluster.node(others[1]).get(&record("db", "k")).text(), after);
        node.resume();
        for reader in &mut readers[8..] {
            reader.write(&Request::get(&record("db", "k"))).unwrap();
        }
        for reader in &mut readers {
            let got = reader.read(false).unwrap();
            let fresh = got.status == 200 && got.text() == after;
            assert!(fresh || got.status == 503, "stale: {} {}", got.status, got.text());
        }
        // What it was sent while it was away has one outcome, and the client was told the truth.
        let outcome = Outcome::of(&writer.read(false));
        cluster.wait_ready();
        let _ = cluster.leader("db");
        let _ = cluster.node(old).put(&record("db", "settle"), "v");
        let there = cluster.node(others[0]).get(&record("db", &held)).status;
        match outcome {
            Outcome::Acked { .. } => assert_eq!(there, 200),
            Outcome::Definite(code) => assert_eq!(there, 404, "{code}"),
            Outcome::Unknown => {}
        }
    }
}

#[test]
fn pauses_of_any_node_lose_nothing() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", 6);
    for round in 0..9 {
        load.wait_acked(40);
        let node = cluster.node(round % 3 + 1);
        node.pause();
        // From hardly noticed to long given up.
        thread::sleep(Duration::from_millis([50, 400, 1200][round as usize / 3]));
        node.resume();
    }
    load.wait_acked(50);
    load.stop().verify(&cluster, &[1, 2, 3]);
}

#[test]
fn all_nodes_pause_at_once_as_a_machine_that_sleeps() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", 4);
    for _ in 0..2 {
        load.wait_acked(40);
        cluster.nodes().iter().for_each(highwater_tests::cluster::Node::pause);
        thread::sleep(Duration::from_secs(1));
        cluster.nodes().iter().for_each(highwater_tests::cluster::Node::resume);
    }
    load.wait_acked(50);
    load.stop().verify(&cluster, &[1, 2, 3]);
}
