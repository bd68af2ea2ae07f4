//! `Idempotency-Key`: a write that is sent again takes effect once, and is answered as it was.

use std::thread;

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::{Follow, Request, Response},
};
use serde_json::json;

use crate::{SHARED, database, record};

fn keyed(request: Request, key: &str) -> Request {
    request.header("idempotency-key", key)
}

/// All that an answer says.
fn answer(response: &Response) -> (u16, String, Option<String>, Option<String>) {
    let header = |name| response.header(name).map(str::to_owned);
    (response.status, response.text(), header("etag"), header("highwater-bookmark"))
}

fn is_replayed(response: &Response) -> bool {
    match response.header("highwater-replayed") {
        None => false,
        Some("true") => true,
        Some(other) => panic!("highwater-replayed: {other}"),
    }
}

/// The first answer to a request, after which every node gives the same one.
#[track_caller]
fn once(request: &Request) -> Response {
    let first = SHARED.node(1).send(request);
    assert!(!is_replayed(&first), "{first:?}");
    for node in SHARED.nodes() {
        let again = node.send(request);
        assert_eq!(answer(&again), answer(&first), "through node {}", node.id);
        assert!(is_replayed(&again), "{again:?}");
    }
    first
}

#[test]
fn a_replay_has_the_same_status_and_body() {
    let node = database("once-replay");
    let target = record("once-replay", "k");
    let created = once(&keyed(Request::put(&target, "1"), "a")).expect(201);
    let replaced = once(&keyed(Request::put(&target, "2"), "b")).expect(200);
    assert!(replaced.json()["lsn"].as_u64() > created.json()["lsn"].as_u64());
    let _ = node.put(&target, "3").expect(200);
    let again = node.send(&keyed(Request::put(&target, "1"), "a"));
    assert_eq!(answer(&again), answer(&created), "whatever came after it");
    assert_eq!(node.get(&target).text(), "3", "and nothing of it again");
    let _ = once(&keyed(Request::delete(&target), "c")).expect(200);
    let _ = node.put(&target, "4").expect(201);
    let batch = json!({"ops": [{"put": {"key": "a", "text": "x"}}, {"delete": {"key": "k"}}]});
    let batch = Request::post("/v1/databases/once-replay/batch", &batch.to_string());
    let done = once(&keyed(batch.clone(), "d")).expect(200);
    assert!(done.header("etag").is_none());
    assert_eq!(node.get(&target).status, 404);
    // Each took effect once.
    let changes = Request::get("/v1/databases/once-replay/changes");
    let mut changes = Follow::start(node.http, &changes, PATIENCE).unwrap();
    let mut ops = 0;
    while let Some(line) = changes.line().unwrap() {
        ops += usize::from(line.contains("\"ops\""));
    }
    assert_eq!(ops, 6);
    let other = node.send(&Request::put(&target, "1"));
    assert!(!is_replayed(&other), "without a key it is a new one: {other:?}");
}

#[test]
fn refusals_are_remembered() {
    let node = database("once-refusals");
    let target = record("once-refusals", "k");
    let _ = node.put(&target, "1").expect(201);
    let create = Request::put(&target, "2").header("if-none-match", "*");
    let refused = once(&keyed(create, "a"));
    let _ = refused.expect_problem(412, "precondition_failed");
    let missing = record("once-refusals", "missing");
    let absent = once(&keyed(Request::delete(&missing), "b"));
    let _ = absent.expect_problem(404, "no_such_record");
    let batch = json!({"ops": [{"put": {"key": "x", "text": "y"}},
                               {"put": {"key": "k", "text": "z", "if_version": 0}}]});
    let batch = Request::post("/v1/databases/once-refusals/batch", &batch.to_string());
    let failed = once(&keyed(batch, "c"));
    assert_eq!(failed.expect_problem(412, "precondition_failed")["op"], 1);
    // Although they would succeed by now.
    let _ = node.send(&Request::delete(&target)).expect(200);
    let _ = node.put(&missing, "there").expect(201);
    let create = keyed(Request::put(&target, "2").header("if-none-match", "*"), "a");
    assert_eq!(answer(&node.send(&create)), answer(&refused));
    assert_eq!(answer(&node.send(&keyed(Request::delete(&missing), "b"))), answer(&absent));
    assert_eq!((node.get(&target).status, node.get(&missing).status), (404, 200));
}

#[test]
fn another_request_with_the_key_is_refused() {
    let node = database("once-mismatch");
    let (target, other) = (record("once-mismatch", "k"), record("once-mismatch", "l"));
    let first = once(&keyed(Request::put(&target, "1"), "a")).expect(201);
    let batch = json!({"ops": [{"put": {"key": "k", "text": "1"}}]}).to_string();
    for request in [
        Request::put(&target, "2"),
        Request::put(&other, "1"),
        Request::put(&target, "1").header("content-type", "text/plain"),
        Request::put(&target, "1").header("if-match", "*"),
        Request::put(&target, "1").header("if-none-match", "\"1-1\""),
        Request::delete(&target),
        Request::post("/v1/databases/once-mismatch/batch", &batch),
    ] {
        for node in SHARED.nodes() {
            let refused = node.send(&keyed(request.clone(), "a"));
            refused.expect_problem(422, "idempotency_mismatch");
            assert!(!is_replayed(&refused));
        }
    }
    assert_eq!((node.get(&target).text(), node.get(&other).status), ("1".to_owned(), 404));
    // How long the client waits, and a bookmark, are no part of the request.
    let patient = Request::put(&format!("{target}?timeout_ms=9000"), "1");
    let mark = first.header("highwater-bookmark").unwrap();
    let patient = patient.header("highwater-bookmark", mark);
    assert_eq!(answer(&node.send(&keyed(patient, "a"))), answer(&first));
    // Another database remembers keys of its own.
    let _ = database("once-elsewhere");
    let elsewhere = keyed(Request::put(&record("once-elsewhere", "k"), "2"), "a");
    assert!(!is_replayed(&node.send(&elsewhere).expect(201)));
}

#[test]
fn only_what_reached_the_log_is_remembered() {
    let node = database("once-unlogged");
    let target = record("once-unlogged", "k");
    let put = |target: &str, value: &str| node.send(&keyed(Request::put(target, value), "a"));
    put(&format!("{target}?ack=all"), "1").expect_problem(400, "bad_request");
    put(&record("once-unlogged", "a/../b"), "1").expect_problem(400, "invalid_key");
    put(&target, &"x".repeat((1 << 20) + 1)).expect_problem(413, "payload_too_large");
    let batch = Request::post("/v1/databases/once-unlogged/batch", "{\"ops\":[]}");
    node.send(&keyed(batch, "a")).expect_problem(400, "bad_request");
    assert!(!is_replayed(&put(&target, "2").expect(201)));
    put(&target, "1").expect_problem(422, "idempotency_mismatch");
}

#[test]
fn keys_have_1_to_128_bytes() {
    let node = database("once-keys");
    let long = "k".repeat(128);
    for (n, key) in ["a", "with spaces; and = \"quotes\"", "schlüssel", &long].iter().enumerate() {
        let _ =
            once(&keyed(Request::put(&record("once-keys", &n.to_string()), "v"), key)).expect(201);
    }
    let target = record("once-keys", "k");
    let batch =
        Request::post("/v1/databases/once-keys/batch", "{\"ops\":[{\"delete\":{\"key\":\"a\"}}]}");
    for key in ["", &"k".repeat(129)] {
        for request in [Request::put(&target, "v"), Request::delete(&target), batch.clone()] {
            node.send(&keyed(request, key)).expect_problem(400, "bad_request");
        }
    }
    let twice = keyed(keyed(Request::put(&target, "v"), "a"), "a");
    node.send(&twice).expect_problem(400, "bad_request");
    assert_eq!(node.get(&target).status, 404);
    for request in [
        Request::get(&target),
        Request::new("HEAD", &target),
        Request::get("/v1/databases/once-keys/records"),
        Request::get("/v1/databases/once-keys/changes"),
        Request::get("/v1/databases/once-keys/slots"),
        Request::put("/v1/databases/once-keys/slots/s", "{}")
            .header("content-type", "application/json"),
        Request::new("PUT", "/v1/databases/once-keys"),
        Request::get("/v1/cluster"),
    ] {
        let refused =
            node.client().send(&keyed(request.clone(), "a").header("connection", "close"));
        assert_eq!(refused.unwrap().status, 400, "{request:?}");
    }
}

#[test]
fn what_is_in_flight_is_joined() {
    let _ = database("once-joins");
    for round in 0..8 {
        let request =
            keyed(Request::put(&record("once-joins", "k"), "v"), &format!("round-{round}"));
        let ask = |n: usize| SHARED.nodes()[n % 3].send(&request);
        let answers: Vec<Response> = thread::scope(|scope| {
            let asked: Vec<_> = (0..12).map(|n| scope.spawn(move || ask(n))).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        for other in &answers {
            assert!(matches!(other.status, 200 | 201), "{other:?}");
            assert_eq!(answer(other), answer(&answers[0]));
        }
        let first = answers.iter().filter(|answer| !is_replayed(answer)).count();
        assert_eq!(first, 1, "one of them took effect");
    }
}

#[test]
fn keys_survive_the_end_of_every_process() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let request = |n: u64| keyed(Request::put(&record("db", &n.to_string()), "v"), &n.to_string());
    // A busy machine may lose its leader: then the same is asked again, as clients do.
    let ask = |node: &Node, request: &Request| {
        eventually("there is an answer", PATIENCE, || {
            node.try_send(request).ok().filter(|answer| !matches!(answer.status, 503 | 504))
        })
    };
    let created = |n| ask(cluster.node(1), &request(n)).expect(201);
    let answers: Vec<Response> = (0..300).map(created).collect();
    let clash = keyed(Request::put(&record("db", "7"), "v").header("if-none-match", "*"), "clash");
    let refused = ask(cluster.node(2), &clash);
    let _ = refused.expect_problem(412, "precondition_failed");
    cluster.nodes().iter().for_each(Node::kill);
    cluster.start_all();
    let _ = cluster.leader("db");
    for (n, first) in (0..).zip(&answers) {
        let again = ask(cluster.node(1 + n % 3), &request(n));
        assert_eq!((answer(&again), is_replayed(&again)), (answer(first), true));
    }
    let again = ask(cluster.node(3), &clash);
    assert_eq!((answer(&again), is_replayed(&again)), (answer(&refused), true));
    let replayed: f64 =
        cluster.nodes().iter().filter_map(|node| node.metric("highwater_replayed_total")).sum();
    assert!(replayed > 300.5, "{replayed}");
}

#[test]
fn a_full_table_forgets_nothing_early() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    node.edit_config("idempotency_keys = 10000", "idempotency_keys = 2");
    node.edit_config("idempotency_window_ms = 86400000", "idempotency_window_ms = 4000");
    cluster.start_all();
    cluster.create("db");
    let put =
        |key: &str, value: &str| node.send(&keyed(Request::put(&record("db", key), value), key));
    let (a, b) = (put("a", "1").expect(201), put("b", "1").expect(201));
    let full = put("c", "1");
    let problem = full.expect_problem(429, "too_many_requests");
    assert!(problem["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{problem}");
    assert!(full.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok_and(|s| s > 0)));
    assert_eq!(node.get(&record("db", "c")).status, 404, "nothing was changed");
    assert_eq!(answer(&put("a", "1")), answer(&a));
    assert_eq!(answer(&put("b", "1")), answer(&b));
    put("a", "2").expect_problem(422, "idempotency_mismatch");
    let _ = node.put(&record("db", "without-a-key"), "1").expect(201);
    // Once the window is over, there is room, and the keys name new requests.
    eventually("there is room", PATIENCE, || {
        let answer = put("c", "1");
        assert!(matches!(answer.status, 429 | 201), "{answer:?}");
        (answer.status == 201).then_some(())
    });
    let again = eventually("a is forgotten", PATIENCE, || {
        let answer = put("a", "2");
        matches!(answer.status, 200 | 201).then_some(answer)
    });
    assert!(!is_replayed(&again), "{again:?}");
    assert_eq!(node.get(&record("db", "a")).text(), "2");
}
