//! Networks that break, in namespaces of their own.

use std::{
    thread,
    time::{Duration, Instant},
};

use highwater_tests::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::Request,
    load::Load,
    namespaces::{Inside, Network},
    skip,
};

use crate::{addresses, put_through, record};

/// How soon a node that can't reach a quorum must know.
const STEP_DOWN: Duration = Duration::from_secs(5);

struct Lab {
    // Dropped in this order: processes, then the network below them.
    cluster: Cluster,
    network: Network,
    _inside: Inside,
}

/// Three nodes, each in a namespace of its own. `None` where that is not allowed.
fn lab(test: &str) -> Option<Lab> {
    let network = match Network::new(3) {
        Ok(network) => network,
        Err(why) => {
            skip(test, &why);
            return None;
        }
    };
    let addresses: Vec<String> = (1..=3).map(|id| network.address(id)).collect();
    let mut args = vec!["--insecure-bind"];
    addresses.iter().for_each(|address| args.extend(["--address", address]));
    let cluster = Cluster::init(3, &args);
    for node in cluster.nodes() {
        node.within(network.wrapper(node.id));
    }
    let inside = network.enter();
    cluster.start_all();
    cluster.create("db");
    Some(Lab { cluster, network, _inside: inside })
}

fn leads_nothing(lab: &Lab, id: u64) {
    eventually(&format!("node {id} steps down"), STEP_DOWN, || {
        (!lab.cluster.node(id).leads("db")).then_some(())
    });
}

#[test]
fn an_isolated_leader_steps_down_and_the_others_go_on() {
    let Some(lab) = lab("an_isolated_leader_steps_down_and_the_others_go_on") else { return };
    let Lab { cluster, network, .. } = &lab;
    let old = cluster.leader("db");
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let minority = cluster.node(old);
    let before = minority.put(&record("db", "k"), "before").expect(201);
    network.isolate(old);
    leads_nothing(&lab, old);
    // The minority neither writes nor reads linearizably.
    let put = minority.put(&record("db", "minority?timeout_ms=500"), "v");
    put.expect_problem(503, "no_leader");
    let get = minority.get(&record("db", "k?timeout_ms=500"));
    get.expect_problem(503, "no_leader");
    // The others elect one of them, and do both.
    let _ = cluster.leader_among("db", &others);
    let after = cluster.node(others[0]).put(&record("db", "k"), "after").expect(200);
    assert_eq!(cluster.node(others[1]).get(&record("db", "k")).expect(200).text(), "after");
    // Locally, the minority says what it has, and that it is behind where more is asked for.
    let local = record("db", "k?consistency=local&timeout_ms=300");
    assert_eq!(minority.get(&local).expect(200).text(), "before");
    let with = |mark: &str| minority.send(&Request::get(&local).header("highwater-bookmark", mark));
    assert_eq!(with(before.header("highwater-bookmark").unwrap()).expect(200).text(), "before");
    let behind = with(after.header("highwater-bookmark").unwrap());
    let problem = behind.expect_problem(503, "behind");
    assert!(problem["retry_after_ms"].is_u64() && problem["lsn"].is_u64(), "{problem}");
    let list = Request::get("/v1/databases/db/records?consistency=local&timeout_ms=300")
        .header("highwater-bookmark", after.header("highwater-bookmark").unwrap());
    minority.send(&list).expect_problem(503, "behind");
    let terms = |id: u64| cluster.node(id).get("/v1/databases/db").json()["term"].as_u64();
    let term = terms(others[0]);
    thread::sleep(Duration::from_secs(2));

    network.heal();
    eventually("the old leader reads what it missed", PATIENCE, || {
        let got = minority.get(&record("db", "k?timeout_ms=1000"));
        (got.status == 200 && got.text() == "after").then_some(())
    });
    // Its return disturbed nobody: it could not win, and did not try.
    assert_eq!(terms(others[0]), term, "pre-vote keeps the term");
    for node in cluster.nodes() {
        node.get(&record("db", "minority")).expect_problem(404, "no_such_record");
    }
}

#[test]
fn an_isolated_follower_disturbs_nobody() {
    let Some(lab) = lab("an_isolated_follower_disturbs_nobody") else { return };
    let Lab { cluster, network, .. } = &lab;
    let leader = cluster.leader("db");
    let follower = leader % 3 + 1;
    let term = || cluster.node(leader).get("/v1/databases/db").json()["term"].as_u64();
    let before = term();
    network.isolate(follower);
    for at in 0..20 {
        let put = cluster.node(leader).put(&record("db", &at.to_string()), "v");
        let _ = put.expect(201);
        thread::sleep(Duration::from_millis(100));
    }
    network.heal();
    cluster.wait_caught_up(follower, "db");
    assert_eq!(cluster.leader("db"), leader);
    assert_eq!(term(), before);
}

#[test]
fn a_leader_that_hears_nobody_gives_way() {
    let Some(lab) = lab("a_leader_that_hears_nobody_gives_way") else { return };
    let Lab { cluster, network, .. } = &lab;
    let old = cluster.leader("db");
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    // Its own words still reach everyone.
    others.iter().for_each(|other| network.cut(*other, old));
    one_way(&lab, old, &others);
}

#[test]
fn a_leader_that_nobody_hears_gives_way() {
    let Some(lab) = lab("a_leader_that_nobody_hears_gives_way") else { return };
    let Lab { cluster, network, .. } = &lab;
    let old = cluster.leader("db");
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    others.iter().for_each(|other| network.cut(old, *other));
    one_way(&lab, old, &others);
}

fn one_way(lab: &Lab, old: u64, others: &[u64]) {
    let Lab { cluster, network, .. } = lab;
    put_through(cluster, others[0], "k", "others");
    leads_nothing(lab, old);
    assert_ne!(cluster.leader_among("db", others), old);
    let get = cluster.node(old).get(&record("db", "k?timeout_ms=500"));
    assert!(get.status == 503, "stale: {} {}", get.status, get.text());
    network.heal();
    eventually("it follows again", PATIENCE, || {
        let got = cluster.node(old).get(&record("db", "k?timeout_ms=1000"));
        (got.status == 200 && got.text() == "others").then_some(())
    });
}

/// Two nodes can't reach each other, and both reach the third: whoever leads, it must come to rest.
#[test]
fn a_broken_link_between_two_does_not_keep_elections_going() {
    let Some(lab) = lab("a_broken_link_between_two_does_not_keep_elections_going") else { return };
    let Lab { cluster, network, .. } = &lab;
    let leader = cluster.leader("db");
    let far = leader % 3 + 1;
    let hub = 6 - leader - far;
    network.part(leader, far);
    let term = || cluster.node(hub).get("/v1/databases/db").json()["term"].as_u64().unwrap();
    // Writes through the node that reaches both go on the whole time.
    let began = Instant::now();
    let mut at = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let target = record("db", &format!("{at}?timeout_ms=10000"));
        let _ = cluster.node(hub).put(&target, "v").expect(201);
        at += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let settled = term();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(term(), settled, "elections go on and on");
    let _ = cluster.node(hub).put(&record("db", "last"), "v").expect(201);
    network.heal();
    let _ = cluster.leader("db");
    for id in 1..=3 {
        cluster.wait_caught_up(id, "db");
        assert_eq!(cluster.records(id, "db", "linearizable").len(), at + 1);
    }
}

#[test]
fn partitions_come_and_go_under_load() {
    let Some(lab) = lab("partitions_come_and_go_under_load") else { return };
    let Lab { cluster, network, .. } = &lab;
    let load = Load::start(&addresses(cluster), "db", 6);
    load.wait_acked(50);
    for round in 0..6 {
        let leader = cluster.leader("db");
        let other = leader % 3 + 1;
        match round % 3 {
            0 => network.isolate(leader),
            1 => network.cut(leader, other),
            _ => network.part(leader, other),
        }
        thread::sleep(Duration::from_millis(700));
        load.wait_acked(20);
        network.heal();
        load.wait_acked(20);
    }
    // Everybody alone: nothing goes on, and nothing is lost.
    (1..=3).for_each(|id| network.isolate(id));
    thread::sleep(Duration::from_millis(1500));
    network.heal();
    load.wait_acked(50);
    load.stop().verify(cluster, &[1, 2, 3]);
}
