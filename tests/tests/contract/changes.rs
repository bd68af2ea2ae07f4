//! `GET …/changes`: what took effect, from any node, in pages and as it happens.

use highwater_tests::{
    PATIENCE,
    cluster::Node,
    http::{Follow, Request},
};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

fn changes(database: &str, query: &str) -> String {
    format!("/v1/databases/{database}/changes?{query}")
}

/// A page: its changes and its end.
fn page(node: &Node, target: &str, bookmark: &str) -> (Vec<Value>, Value) {
    let request = Request::get(target).header("highwater-bookmark", bookmark);
    let mut answer = Follow::start(node.http, &request, PATIENCE).unwrap();
    assert_eq!(answer.head.status, 200, "{answer:?}");
    assert_eq!(answer.head.header("content-type"), Some("application/x-ndjson"));
    let mut lines = Vec::new();
    while let Some(line) = answer.line().unwrap() {
        lines.push(serde_json::from_str::<Value>(&line).unwrap());
    }
    let end = lines.pop().unwrap();
    assert_eq!(end["end"], true);
    (lines, end)
}

/// Writes one of each kind; the LSNs of those that took effect, and the last bookmark.
fn history(name: &str) -> (Vec<u64>, String) {
    let node = database(name);
    let target = record(name, "a");
    let put = Request::put(&target, "one").header("content-type", "text/x");
    let first = node.send(&put).expect(201).json()["lsn"].as_u64().unwrap();
    let refused = Request::put(&target, "no").header("if-none-match", "*");
    node.send(&refused).expect_problem(412, "precondition_failed");
    let batch = json!({"ops": [
        {"put": {"key": "b", "text": "two"}},
        {"delete": {"key": "a"}},
        {"put": {"key": "c", "value_base64": "AP8="}},
    ]});
    let batch = Request::post(&format!("/v1/databases/{name}/batch"), &batch.to_string());
    let second = node.send(&batch).expect(200).json()["lsn"].as_u64().unwrap();
    node.send(&Request::delete(&target)).expect_problem(404, "no_such_record");
    let last = node.send(&Request::delete(&record(name, "b"))).expect(200);
    let third = last.json()["lsn"].as_u64().unwrap();
    (vec![first, second, third], last.header("highwater-bookmark").unwrap().to_owned())
}

#[test]
fn every_node_tells_what_took_effect_and_nothing_else() {
    let (lsns, bookmark) = history("effective");
    for node in SHARED.nodes() {
        let (rows, end) = page(node, &changes("effective", ""), &bookmark);
        let told: Vec<u64> = rows.iter().map(|row| row["lsn"].as_u64().unwrap()).collect();
        assert_eq!(told, lsns, "node {}", node.id);
        let before: Vec<u64> = rows.iter().map(|row| row["prev_lsn"].as_u64().unwrap()).collect();
        assert_eq!(before, [0, lsns[0], lsns[1]]);
        let ops = |n: usize| rows[n]["ops"].clone();
        let put = |key: &str, lsn: u64, media: &str, value: &str| {
            json!({"op": "put", "key": key, "version": lsn, "content_type": media,
                   "value_base64": value})
        };
        assert_eq!(ops(0), json!([put("a", lsns[0], "text/x", "b25l")]));
        let mut bytes = put("c", lsns[1], "", "AP8=");
        bytes.as_object_mut().unwrap().remove("content_type");
        let gone = |key: &str, lsn: u64| json!({"op": "delete", "key": key, "version": lsn});
        assert_eq!(
            ops(1),
            json!([put("b", lsns[1], "text/plain", "dHdv"), gone("a", lsns[1]), bytes])
        );
        assert_eq!(ops(2), json!([gone("b", lsns[2])]));
        for row in &rows {
            assert!(row["term"].as_u64().unwrap() > 0);
            assert!(row["hlc"].as_str().unwrap().parse::<u64>().unwrap() > 0);
            assert_eq!(row["origin"].as_str().unwrap().len(), 16);
        }
        let (next, committed) = (end["next"].as_u64().unwrap(), end["committed"].as_u64().unwrap());
        assert!(next >= lsns[2] && committed >= next, "{end}");
    }
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let (lsns, bookmark) = history("paged");
    for node in SHARED.nodes() {
        let (mut after, mut told) = (0, Vec::new());
        loop {
            let target = changes("paged", &format!("after={after}&limit=1"));
            let (rows, end) = page(node, &target, &bookmark);
            let Some(row) = rows.first() else { break };
            assert_eq!(rows.len(), 1);
            assert_eq!(row["prev_lsn"].as_u64(), Some(told.last().copied().unwrap_or(0)));
            told.push(row["lsn"].as_u64().unwrap());
            after = end["next"].as_u64().unwrap();
        }
        assert_eq!(told, lsns);
        // From a refused op, or from between: the op before it is the effective one.
        let (rows, _) = page(node, &changes("paged", &format!("after={}", lsns[0] + 1)), &bookmark);
        assert_eq!(rows[0]["prev_lsn"].as_u64(), Some(lsns[0]));
    }
}

#[test]
fn a_long_history_comes_in_full() {
    let node = database("long");
    let mut lsns = Vec::new();
    for n in 0..300 {
        let value = vec![b'v'; 3_000];
        let put = Request::put(&record("long", &format!("k{n}")), value);
        lsns.push(node.send(&put).expect(201).json()["lsn"].as_u64().unwrap());
    }
    let mark = node.put(&record("long", "last"), "x").expect(201);
    let mark = mark.header("highwater-bookmark").unwrap();
    for node in SHARED.nodes() {
        let (rows, _) = page(node, &changes("long", "limit=300"), mark);
        let told: Vec<u64> = rows.iter().map(|row| row["lsn"].as_u64().unwrap()).collect();
        assert_eq!(told, lsns);
    }
}

#[test]
fn a_follower_hears_of_each_change_as_it_is_made() {
    let writer = database("followed");
    let first = writer.put(&record("followed", "k"), "0").expect(201).json();
    let first = first["lsn"].as_u64().unwrap();
    let follow = |node: &Node, headers: &[(&str, &str)]| {
        let mut request = Request::get(&changes("followed", &format!("after={first}&follow=true")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        Follow::start(node.http, &request, PATIENCE).unwrap()
    };
    let mut followers: Vec<Follow> = SHARED.nodes().iter().map(|node| follow(node, &[])).collect();
    let mut before = first;
    for n in 1..=20 {
        let receipt = writer.put(&record("followed", "k"), n.to_string()).expect(200).json();
        for follower in &mut followers {
            let row: Value = loop {
                let line = follower.line().unwrap().expect("it goes on");
                let row: Value = serde_json::from_str(&line).unwrap();
                if row.get("progress").is_none() {
                    break row;
                }
            };
            assert_eq!(row["lsn"], receipt["lsn"]);
            assert_eq!(row["prev_lsn"].as_u64(), Some(before));
        }
        before = receipt["lsn"].as_u64().unwrap();
    }
    // As events, from where a browser that comes back was.
    let id = (before - 1).to_string();
    let headers = [("accept", "text/event-stream"), ("last-event-id", id.as_str())];
    let mut events = follow(SHARED.node(2), &headers);
    assert_eq!(events.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(events.line().unwrap(), Some(format!("id: {before}")));
    let data = events.line().unwrap().unwrap();
    let row: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(row["lsn"].as_u64(), Some(before));
    assert_eq!(events.line().unwrap(), Some(String::new()));
}

#[test]
fn a_follower_with_a_limit_ends() {
    let (_, bookmark) = history("bounded");
    let (rows, _) = page(SHARED.node(2), &changes("bounded", "limit=2&follow=true"), &bookmark);
    assert_eq!(rows.len(), 2);
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let node = database("wrong");
    let _ = node.put(&record("wrong", "k"), "v").expect(201);
    for query in ["after=-1", "after=x", "limit=0", "limit=10001", "follow=maybe", "from=1"] {
        node.get(&changes("wrong", query)).expect_problem(400, "bad_request");
    }
    let beyond = node.get(&changes("wrong", "after=1000000"));
    beyond.expect_problem(422, "lsn_out_of_range");
    assert!(beyond.json()["lsn"].as_u64().unwrap() > 0);
    node.get(&changes("none-such", "")).expect_problem(404, "no_such_database");
    node.get(&changes("Bad", "")).expect_problem(400, "invalid_name");
    let html = Request::get(&changes("wrong", "")).header("accept", "text/html");
    node.send(&html).expect_problem(406, "not_acceptable");
    let id = Request::get(&changes("wrong", "")).header("last-event-id", "abc");
    node.send(&id).expect_problem(400, "bad_request");
    let put = Request::new("PUT", &changes("wrong", ""));
    node.send(&put).expect_problem(405, "method_not_allowed");
}
