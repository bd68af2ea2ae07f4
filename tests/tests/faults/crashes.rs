//! kill -9, under load.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::{Client, Request},
    load::Load,
};

use crate::{addresses, record};

const WRITERS: usize = 6;

#[test]
fn each_node_in_turn_is_killed_under_load() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", WRITERS);
    load.wait_acked(100);
    // The leader first, then those who are left, so that another leader dies too.
    let mut victims = vec![cluster.leader("db")];
    for round in 0..3 {
        let victim = victims[round];
        cluster.node(victim).kill();
        // Whoever it was, the others go on.
        load.wait_acked(100);
        let others: Vec<u64> = (1..=3).filter(|id| *id != victim).collect();
        let leader = cluster.leader_among("db", &others);
        cluster.node(victim).start();
        cluster.node(victim).wait_ready();
        load.wait_acked(50);
        let next = if victims.contains(&leader) {
            (1..=3).find(|id| !victims.contains(id)).unwrap_or(1)
        } else {
            leader
        };
        victims.push(next);
    }
    let journal = load.stop();
    assert!(journal.acked() >= 450);
    journal.verify(&cluster, &[1, 2, 3]);
}

#[test]
fn all_nodes_are_killed_at_once_under_load() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", WRITERS);
    for _ in 0..3 {
        load.wait_acked(150);
        cluster.nodes().iter().for_each(Node::kill);
        cluster.nodes().iter().for_each(Node::start);
        cluster.wait_ready();
    }
    load.wait_acked(50);
    let journal = load.stop();
    journal.verify(&cluster, &[1, 2, 3]);
    // And once more, with nobody writing: what was read before is there after.
    cluster.nodes().iter().for_each(Node::kill);
    cluster.nodes().iter().for_each(Node::start);
    cluster.wait_ready();
    journal.verify(&cluster, &[3, 1, 2]);
}

#[test]
fn a_leader_change_is_invisible_to_what_reached_no_log() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let _ = cluster.node(1).put(&record("db", "k"), "v").expect(201);
    for round in 0..3 {
        let leader = cluster.leader("db");
        let others = cluster.others(leader);
        let mut readers: Vec<Client> = others.iter().map(|node| node.client()).collect();
        cluster.node(leader).kill();
        // Right away, when nobody knows yet.
        for reader in &mut readers {
            reader.write(&Request::get(&record("db", "k"))).unwrap();
        }
        for reader in &mut readers {
            assert_eq!(reader.read(false).unwrap().expect(200).text(), "v", "round {round}");
        }
        cluster.node(leader).start();
        cluster.node(leader).wait_ready();
    }
}

#[test]
fn a_node_that_missed_much_catches_up() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let leader = cluster.leader("db");
    let victim = leader % 3 + 1;
    cluster.node(victim).kill();
    let value = vec![b'x'; 64 << 10];
    let mut client = cluster.node(leader).client();
    for at in 0..300 {
        let target = record("db", &format!("large/{at:03}"));
        let put = Request::put(&target, &value);
        let _ = client.send(&put).unwrap().expect(201);
    }
    // Databases that were made while it was away are made on it too.
    cluster.create("later");
    let _ = cluster.node(leader).put(&record("later", "k"), "v").expect(201);
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();
    cluster.wait_caught_up(victim, "db");
    eventually("it has the new database", PATIENCE, || {
        let got = cluster.node(victim).get(&record("later", "k?consistency=local"));
        (got.status == 200).then_some(())
    });
    assert_eq!(cluster.records(victim, "db", "local").len(), 300);
    // It counts again: with it, the other follower may go.
    let other = 6 - leader - victim;
    cluster.node(other).kill();
    let target = record("db", "after?timeout_ms=20000");
    let _ = cluster.node(victim).put(&target, "v").expect(201);
}

#[test]
fn leadership_moves_under_load_and_nobody_notices() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", WRITERS);
    load.wait_acked(50);
    for to in [2, 3, 1, 2] {
        cluster.hand_over("db", to);
        load.wait_acked(50);
    }
    // In order, one after the other: that is how a cluster is upgraded.
    for node in cluster.nodes() {
        assert!(node.terminate().success(), "{}", node.log());
        load.wait_acked(50);
        node.start();
        node.wait_ready();
        thread::sleep(Duration::from_millis(200));
    }
    let journal = load.stop();
    journal.verify(&cluster, &[1, 2, 3]);
}

/// Or the rest of this proves nothing.
#[test]
fn the_verifier_notices_what_is_lost() {
    let cluster = Cluster::start(1);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", 1);
    load.wait_acked(20);
    let journal = load.stop();
    journal.verify(&cluster, &[1]);
    let delete = Request::delete(&record("db", "load/w0/000007"));
    let _ = cluster.node(1).send(&delete).expect(200);
    let verify = AssertUnwindSafe(|| journal.verify(&cluster, &[1]));
    let noticed = catch_unwind(verify).expect_err("a lost write is noticed");
    let said = noticed.downcast_ref::<String>().expect("a text");
    assert!(said.contains("LOST: load/w0/000007"), "{said}");
}
