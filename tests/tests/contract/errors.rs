//! The codes that only a cluster in trouble gives, each from a cluster of its own.

use std::{
    thread,
    time::{Duration, Instant},
};

use highwater_tests::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::{Client, Request, Response},
};
use rustix::process::Signal;

use crate::record;

fn retryable(answer: &Response, code: &str) {
    let problem = answer.expect_problem(503, code);
    assert!(problem["retry_after_ms"].as_u64() > Some(0), "{problem}");
    assert!(answer.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()));
}

#[test]
fn a_minority_neither_writes_nor_reads_linearizably_and_says_so() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let put = cluster.node(1).put(&record("db", "k"), "v").expect(201);
    let mark = put.header("highwater-bookmark").unwrap().to_owned();
    let leader = cluster.leader("db");
    let follower = leader % 3 + 1;
    let third = 6 - leader - follower;
    cluster.wait_caught_up(follower, "db");
    // First the follower is left over, then the leader.
    for (round, left) in [follower, leader].into_iter().enumerate() {
        let others = [third, if left == leader { follower } else { leader }];
        others.iter().for_each(|id| cluster.node(*id).kill());
        let node = cluster.node(left);
        eventually("it notices", PATIENCE, || {
            let row = node.get("/v1/databases/db?timeout_ms=1000").json();
            row["leader"].is_null().then_some(())
        });
        let began = Instant::now();
        let put = node.put(&record("db", "minority?timeout_ms=400"), "v");
        retryable(&put, "no_leader");
        let waited = began.elapsed();
        assert!(
            (Duration::from_millis(350)..Duration::from_secs(3)).contains(&waited),
            "the deadline is waited for and kept: {waited:?}"
        );
        for request in [
            Request::delete(&record("db", "k?timeout_ms=200")),
            Request::get(&record("db", "k?timeout_ms=200")),
            Request::get("/v1/databases/db/records?timeout_ms=200"),
            Request::post(
                "/v1/databases/db/batch?timeout_ms=200",
                r#"{"ops":[{"delete":{"key":"k"}}]}"#,
            ),
            Request::new("PUT", "/v1/databases/new?timeout_ms=200"),
            Request::get("/v1/databases?timeout_ms=200"),
            // Whether it exists takes a read index.
            Request::get("/v1/databases/unknown?timeout_ms=200"),
            Request::get("/v1/databases/unknown/records/k?timeout_ms=200&consistency=local"),
        ] {
            retryable(&node.send(&request), "no_leader");
        }
        // What needs no quorum goes on.
        let local = record("db", "k?consistency=local");
        assert_eq!(node.get(&local).expect(200).text(), "v");
        let marked = node.send(&Request::get(&local).header("highwater-bookmark", &mark));
        assert_eq!(marked.expect(200).text(), "v");
        let list = "/v1/databases/db/records?consistency=local&prefix=k";
        assert_eq!(node.get(list).expect(200).json()["records"][0]["key"], "k");
        let view = node.get("/v1/cluster").expect(200).json();
        assert!(view["databases"][0]["leader"].is_null(), "{view}");
        for id in others {
            let row = &view["nodes"][id as usize - 1];
            assert_eq!(row["state"], "unreachable", "{view}");
        }
        // It is neither recovering nor knowingly behind, and does not wait for peers.
        let _ = node.get("/readyz").expect(200);
        let _ = node.get("/healthz").expect(200);

        others.iter().for_each(|id| cluster.node(*id).start());
        cluster.wait_ready();
        eventually("the cluster works again", PATIENCE, || {
            let put = node.put(&record("db", &format!("after-{round}")), "v");
            (put.status == 201).then_some(())
        });
        for node in cluster.nodes() {
            node.get(&record("db", "minority")).expect_problem(404, "no_such_record");
            assert_eq!(node.get(&record("db", "k")).expect(200).text(), "v");
            node.get("/v1/databases/new").expect_problem(404, "no_such_database");
        }
    }
}

#[test]
fn a_node_of_a_cluster_that_is_not_formed_says_so() {
    let cluster = Cluster::init(3, &[]);
    cluster.node(1).start();
    let node = cluster.node(1);
    eventually("it is forming", PATIENCE, || {
        let view = node.try_send(&Request::get("/v1/cluster")).ok().filter(|a| a.status == 200)?;
        (view.json()["nodes"][0]["state"] == "forming").then_some(())
    });
    for request in [
        Request::new("PUT", "/v1/databases/db?timeout_ms=300"),
        Request::put(&record("db", "k?timeout_ms=300"), "v"),
        Request::get(&record("db", "k?timeout_ms=300")),
        Request::get("/v1/databases?timeout_ms=300"),
    ] {
        let answer = node.send(&request);
        let code = answer.code();
        assert!(["not_ready", "no_leader"].contains(&code.as_str()), "{}", answer.text());
        retryable(&answer, &code);
    }
    // Two of three do not found it either: every one must be there once.
    cluster.node(2).start();
    thread::sleep(Duration::from_secs(1));
    let refused = node.send(&Request::new("PUT", "/v1/databases/db?timeout_ms=300"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    cluster.node(3).start();
    cluster.wait_ready();
    cluster.create("db");
    let _ = node.put(&record("db", "k"), "v").expect(201);
}

#[test]
fn readiness_does_not_wait_for_peers() {
    let cluster = Cluster::init(3, &[]);
    cluster.node(2).start();
    // Neither before the cluster was ever formed …
    cluster.node(2).wait_ready();
    // (Then a request waits for that, as for a leader, until its deadline.)
    let mut client = cluster.node(2).client();
    client.write(&Request::new("PUT", "/v1/databases/db?timeout_ms=20000")).unwrap();
    cluster.node(1).start();
    cluster.node(3).start();
    let _ = client.read(false).unwrap().expect(201);
    cluster.nodes().iter().for_each(highwater_tests::cluster::Node::kill);
    // … nor after.
    cluster.node(2).start();
    cluster.node(2).wait_ready();
}

#[test]
fn a_write_in_flight_at_its_deadline_has_an_unknown_outcome() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let leader = cluster.leader("db");
    let _ = cluster.node(leader).put(&record("db", "k"), "0").expect(201);
    let followers = cluster.others(leader);
    followers.iter().for_each(|node| node.pause());
    let node = cluster.node(leader);
    let put = node.put(&record("db", "open?timeout_ms=100"), "v");
    let problem = put.expect_problem(504, "outcome_unknown");
    assert!(problem.get("retry_after_ms").is_none(), "retrying is not safe: {problem}");
    // A read that is not answered in time is no such thing.
    let get = node.get(&record("db", "k?timeout_ms=100"));
    assert_eq!(get.status, 503, "{}", get.text());
    followers.iter().for_each(|node| node.resume());
    // Once a later write is acknowledged, the open one has happened, or never will.
    eventually("the cluster works again", PATIENCE, || {
        (node.put(&record("db", "k?timeout_ms=1000"), "1").status == 200).then_some(())
    });
    let found = node.get(&record("db", "open")).status;
    assert!(matches!(found, 200 | 404));
    for node in cluster.nodes() {
        assert_eq!(node.get(&record("db", "open")).status, found, "all of one mind");
    }
}

#[test]
fn a_write_held_by_a_leader_that_fails_has_an_unknown_outcome() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    for round in 0.. {
        let leader = cluster.leader("db");
        cluster.node(leader).pause();
        // Forwarded to a leader that says nothing: it may have reached its log.
        let target = record("db", &format!("{round}?timeout_ms=100"));
        let put = cluster.node(leader % 3 + 1).put(&target, "v");
        cluster.node(leader).resume();
        if put.status == 504 {
            put.expect_problem(504, "outcome_unknown");
            return;
        }
        // On a busy machine, the others may have missed it by then.
        retryable(&put, "no_leader");
        assert!(round < 5, "{}", put.text());
    }
}

#[test]
fn a_write_that_comes_while_the_node_stops_is_refused() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let node = cluster.node(1);
    // All but the last byte, so that the connection is in use when the node is told to stop.
    let bytes = Request::put(&record("db", "k"), "value").encode(node.http);
    let mut client = node.client();
    client.write_raw(&bytes[..bytes.len() - 1]).unwrap();
    thread::sleep(Duration::from_millis(200));
    node.signal(Signal::TERM);
    eventually("it takes no more connections", PATIENCE, || {
        node.try_send(&Request::get("/healthz")).is_err().then_some(())
    });
    client.write_raw(&bytes[bytes.len() - 1..]).unwrap();
    retryable(&client.read(false).unwrap(), "draining");
    assert!(node.wait_exit(PATIENCE).expect("it ends").success());
    cluster.node(2).get(&record("db", "k")).expect_problem(404, "no_such_record");
    let _ = cluster.node(2).put(&record("db", "k"), "v").expect(201);
}

#[test]
fn more_than_the_leader_takes_is_refused_and_not_done() {
    // A few large writes, so that little has to be done before the leader misses its followers.
    const WRITES: usize = 6;
    const BYTES: usize = 15 << 20;
    let cluster = Cluster::init(3, &[]);
    for node in cluster.nodes() {
        node.edit_config("value_bytes = 1048576", &format!("value_bytes = {BYTES}"));
    }
    cluster.start_all();
    cluster.create("db");
    let value = vec![b'x'; BYTES];
    for round in 0.. {
        let leader = cluster.leader("db");
        let node = cluster.node(leader);
        let key = |at: usize| format!("{round}-{at}");
        // Everything but the last byte of each is there before the followers stop.
        let mut clients: Vec<Client> = (0..WRITES)
            .map(|at| {
                let mut client = node.client();
                let target = record("db", &format!("{}?timeout_ms=4000", key(at)));
                let bytes = Request::put(&target, &value).encode(node.http);
                client.write_raw(&bytes[..bytes.len() - 1]).unwrap();
                client
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        let followers = cluster.others(leader);
        followers.iter().for_each(|node| node.pause());
        clients.iter_mut().for_each(|client| client.write_raw(b"x").unwrap());
        thread::sleep(Duration::from_millis(500));
        followers.iter().for_each(|node| node.resume());
        let answers: Vec<Response> = clients.iter_mut().map(|c| c.read(false).unwrap()).collect();
        eventually("the cluster works again", PATIENCE, || {
            let settle = record("db", "settle?timeout_ms=2000");
            (node.put(&settle, "v").status < 300).then_some(())
        });
        for (at, answer) in answers.iter().enumerate() {
            let found = node.send(&Request::new("HEAD", &record("db", &key(at)))).status;
            match answer.status {
                201 => assert_eq!(found, 200, "write {at} was acknowledged and is lost"),
                504 => {}
                _ => assert_eq!(found, 404, "write {at} was refused, yet done: {answer:?}"),
            }
        }
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        if let Some(refused) = answers.iter().find(|answer| answer.status == 429) {
            let problem = refused.expect_problem(429, "too_many_requests");
            assert!(problem["retry_after_ms"].is_u64() && refused.header("retry-after").is_some());
            return;
        }
        // On a busy machine, the leader stepped down before it had taken its fill.
        assert!(round < 4, "{statuses:?}");
    }
}
