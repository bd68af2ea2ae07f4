//! Slots: durable positions of consumers, the same from every node.

use highwater_tests::{
    PATIENCE,
    cluster::Node,
    http::{Follow, Request, Response},
};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

fn slot(database: &str, name: &str) -> String {
    format!("/v1/databases/{database}/slots/{name}")
}

fn create(node: &Node, target: &str, settings: &Value) -> Response {
    let request = Request::new("PUT", target).header("content-type", "application/json");
    node.send(&request.body(settings.to_string()))
}

fn ack(node: &Node, target: &str, lsn: u64) -> Response {
    node.send(&Request::post(&format!("{target}/ack"), &json!({ "lsn": lsn }).to_string()))
}

/// Writes so many times; the LSNs.
fn write(name: &str, count: usize) -> Vec<u64> {
    let node = database(name);
    let target = record(name, "k");
    let lsn = |n| node.put(&target, format!("{n}")).json()["lsn"].as_u64().unwrap();
    (0..count).map(lsn).collect()
}

/// What a slot's consumer gets in one page.
fn page(node: &Node, database: &str, name: &str) -> Vec<u64> {
    let target = format!("/v1/databases/{database}/changes?slot={name}");
    let mut answer = Follow::start(node.http, &Request::get(&target), PATIENCE).unwrap();
    assert_eq!(answer.head.status, 200, "{answer:?}");
    let mut lsns = Vec::new();
    while let Some(line) = answer.line().unwrap() {
        let row: Value = serde_json::from_str(&line).unwrap();
        lsns.extend(row["lsn"].as_u64());
    }
    lsns
}

#[test]
fn a_slot_is_where_its_consumer_is_from_every_node() {
    let lsns = write("slotted", 5);
    let target = slot("slotted", "mailer");
    let settings = json!({"from": "earliest", "max_lag_ops": 1000});
    let created = create(SHARED.node(2), &target, &settings).expect(201).json();
    assert_eq!(created, json!({"name": "mailer", "confirmed_lsn": 0}));
    for node in SHARED.nodes() {
        assert_eq!(create(node, &target, &settings).expect(200).json(), created);
        create(node, &target, &json!({"from": "latest"})).expect_problem(409, "already_exists");
        assert_eq!(page(node, "slotted", "mailer"), lsns);
    }
    // An acknowledgement counts at once, wherever it is asked next.
    for (acked, lsn) in lsns.iter().enumerate() {
        let node = &SHARED.nodes()[acked % 3];
        let confirmed = ack(node, &target, *lsn).expect(200).json();
        assert_eq!(confirmed, json!({ "confirmed_lsn": lsn }));
        let other = &SHARED.nodes()[(acked + 1) % 3];
        assert_eq!(page(other, "slotted", "mailer"), lsns[acked + 1..]);
        let seen = other.get(&target).expect(200).json();
        assert_eq!(seen["confirmed_lsn"].as_u64(), Some(*lsn));
        assert_eq!(seen["lag_ops"].as_u64(), Some((lsns.len() - acked - 1) as u64), "{seen}");
    }
    // What was acknowledged stays so.
    let last = *lsns.last().unwrap();
    let again = ack(SHARED.node(3), &target, lsns[0]).expect(200).json();
    assert_eq!(again, json!({ "confirmed_lsn": last }));
    let beyond = ack(SHARED.node(1), &target, last + 1_000);
    beyond.expect_problem(422, "lsn_out_of_range");
    let all = SHARED.node(3).get("/v1/databases/slotted/slots").expect(200).json();
    let seen = &all["slots"][0];
    assert_eq!(all["slots"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&seen["name"], &seen["state"], &seen["connected"], &seen["lag_bytes"], &seen["lag_ms"]),
        (&json!("mailer"), &json!("active"), &json!(false), &json!(0), &json!(0))
    );
    assert!(seen["expires_in_ms"].as_u64().unwrap() > 0 && seen.get("cause").is_none(), "{seen}");
    // Gone, it was; and its name is free.
    let was = SHARED.node(2).send(&Request::delete(&target)).expect(200).json();
    assert_eq!(was["confirmed_lsn"].as_u64(), Some(last));
    for node in SHARED.nodes() {
        node.get(&target).expect_problem(404, "no_such_slot");
        ack(node, &target, last).expect_problem(404, "no_such_slot");
        node.send(&Request::delete(&target)).expect_problem(404, "no_such_slot");
    }
    let anew = create(SHARED.node(1), &target, &json!({"from": last})).expect(201).json();
    assert_eq!(anew["confirmed_lsn"].as_u64(), Some(last));
}

#[test]
fn a_follower_of_a_slot_is_connected_and_hears_on() {
    let lsns = write("attended", 3);
    let target = slot("attended", "reader");
    let _ = create(SHARED.node(1), &target, &json!({"from": lsns[0]})).expect(201);
    let follow = Request::get("/v1/databases/attended/changes?slot=reader&follow=true");
    let mut follower = Follow::start(SHARED.node(2).http, &follow, PATIENCE).unwrap();
    let mut next = || loop {
        let line = follower.line().unwrap().expect("it goes on");
        if let Some(lsn) = serde_json::from_str::<Value>(&line).unwrap()["lsn"].as_u64() {
            return lsn;
        }
    };
    assert_eq!([next(), next()], lsns[1..]);
    assert_eq!(SHARED.node(2).get(&target).json()["connected"], true);
    let more = write("attended", 2);
    assert_eq!([next(), next()], more[..]);
    // Nothing was acknowledged: whoever connects next hears it again.
    assert_eq!(page(SHARED.node(3), "attended", "reader"), [&lsns[1..], &more].concat());
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let node = database("misused");
    let target = slot("misused", "s");
    for settings in [
        json!({}),
        json!({"from": "first"}),
        json!({"from": -1}),
        json!({"from": "latest", "max_lag_ops": 0}),
        json!({"from": "latest", "horizon": 1}),
        json!([]),
    ] {
        create(node, &target, &settings).expect_problem(400, "bad_request");
    }
    create(node, &target, &json!({"from": 1_000_000})).expect_problem(422, "lsn_out_of_range");
    let plain = Request::put(&target, r#"{"from":"latest"}"#).header("content-type", "text/plain");
    node.send(&plain).expect_problem(415, "unsupported_media_type");
    let bad = slot("misused", "Bad.Name");
    create(node, &bad, &json!({"from": "latest"})).expect_problem(400, "invalid_name");
    create(node, &slot("none-such", "s"), &json!({"from": "latest"}))
        .expect_problem(404, "no_such_database");
    node.get(&target).expect_problem(404, "no_such_slot");
    let none = json!({"slots": []});
    assert_eq!(node.get("/v1/databases/misused/slots").expect(200).json(), none);
    let _ = create(node, &target, &json!({"from": "latest"})).expect(201);
    for body in ["{}", r#"{"lsn":"1"}"#, r#"{"lsn":1,"upto":2}"#, "1"] {
        let request = Request::post(&format!("{target}/ack"), body);
        node.send(&request).expect_problem(400, "bad_request");
    }
    node.send(&Request::post(&target, "{}")).expect_problem(405, "method_not_allowed");
    let changes = |query: &str| node.get(&format!("/v1/databases/misused/changes?{query}"));
    changes("slot=none").expect_problem(404, "no_such_slot");
    changes("slot=No").expect_problem(400, "invalid_name");
    changes("slot=s&after=1").expect_problem(400, "bad_request");
}
