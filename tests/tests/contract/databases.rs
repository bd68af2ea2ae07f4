//! Databases: created, looked at, handed over.

use highwater_tests::{PATIENCE, cluster::Node, eventually, http::Request};
use serde_json::{Value, json};

use crate::{SHARED, record};

#[test]
fn a_database_is_created_once_and_known_everywhere() {
    let create = Request::new("PUT", "/v1/databases/created");
    let first = SHARED.node(1).send(&create).expect(201);
    assert_eq!(first.json()["name"], "created");
    for node in SHARED.nodes() {
        let again = node.send(&create).expect(200);
        assert_eq!(again.json()["group"], first.json()["group"]);
        // It has a leader once it is answered for: a write need not wait.
        let status = node.put(&record("created", &node.id.to_string()), "v").status;
        assert_eq!(status, 201);
    }
}

#[test]
fn a_database_is_described() {
    SHARED.create("described");
    let node = SHARED.node(1);
    let mut lsn = 0;
    for value in 0..5 {
        let put = node.put(&record("described", "k"), value.to_string());
        lsn = put.json()["lsn"].as_u64().unwrap();
    }
    let leader = SHARED.leader("described");
    for node in SHARED.nodes() {
        let row = eventually("every replica has applied all", PATIENCE, || {
            let row = node.get("/v1/databases/described").expect(200).json();
            let replicas = row["replicas"].as_array()?.clone();
            // An audit may follow.
            let applied =
                row["watermarks"]["applied"].as_u64().filter(|applied| *applied >= lsn)?;
            replicas.iter().all(|replica| replica["applied"] == applied).then_some(row)
        });
        assert_eq!((&row["name"], &row["leader"]), (&json!("described"), &json!(leader)));
        assert!(row["group"].as_u64() > Some(0) && row["term"].as_u64() > Some(0));
        assert!(row["epoch"].is_u64());
        let marks = &row["watermarks"];
        for mark in ["first", "appended", "durable", "committed", "applied", "checkpointed"] {
            assert!(marks[mark].is_u64(), "{mark} in {marks}");
        }
        assert_eq!(marks["first"], 1);
        assert!(marks["committed"].as_u64() <= marks["durable"].as_u64());
        assert!(marks["durable"].as_u64() <= marks["appended"].as_u64());
        let replicas = row["replicas"].as_array().unwrap();
        let ids: Vec<&Value> = replicas.iter().map(|replica| &replica["node"]).collect();
        assert_eq!(ids, [1, 2, 3]);

        let all = node.get("/v1/databases").expect(200).json();
        let names: Vec<&str> = all["databases"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|d| d["name"].as_str())
            .collect();
        assert!(names.is_sorted() && names.contains(&"described"), "{names:?}");
    }
}

#[test]
fn leadership_is_handed_over() {
    SHARED.create("handed");
    let target = "/v1/databases/handed/leader";
    let _ = SHARED.node(1).put(&record("handed", "k"), "0").expect(201);
    for (round, to) in [1, 2, 3, 1].into_iter().enumerate() {
        let term = |at: u64| SHARED.node(at).get("/v1/databases/handed").json()["term"].as_u64();
        let before = (SHARED.leader("handed"), term(1));
        // Through a node that is neither, where there is one.
        let asked = SHARED.node(6 - to - if to == before.0 { to % 3 + 1 } else { before.0 });
        let post = Request::post(target, &format!("{{\"node\":{to}}}"));
        let done = asked.send(&post).expect(200).json();
        assert_eq!(done["leader"], to);
        if before.0 == to {
            assert_eq!(done["term"].as_u64(), before.1, "it led already");
        } else {
            assert!(done["term"].as_u64() > before.1, "{done}, {before:?}");
        }
        assert_eq!(SHARED.leader("handed"), to);
        assert!(SHARED.node(to).leads("handed"));
        let value = round.to_string();
        let _ = SHARED.node(to).put(&record("handed", "k"), &value).expect(200);
        assert_eq!(asked.get(&record("handed", "k")).text(), value);
    }
}

#[test]
fn a_handover_that_makes_no_sense_is_refused() {
    SHARED.create("badhand");
    let node = SHARED.node(2);
    let target = "/v1/databases/badhand/leader";
    let before = SHARED.leader("badhand");
    node.send(&Request::post(target, r#"{"node":4}"#)).expect_problem(404, "no_such_node");
    node.send(&Request::post(target, r#"{"node":0}"#)).expect_problem(404, "no_such_node");
    for body in [
        "",
        "{}",
        "[]",
        r#"{"node":"1"}"#,
        r#"{"node":-1}"#,
        r#"{"node":1.5}"#,
        r#"{"node":1,"x":2}"#,
    ] {
        node.send(&Request::post(target, body)).expect_problem(400, "bad_request");
    }
    assert_eq!(SHARED.leader("badhand"), before);
}

#[test]
fn an_audit_follows_the_last_write() {
    SHARED.create("audited");
    let node = SHARED.node(1);
    let lsn = node.put(&record("audited", "k"), "v").expect(201).json()["lsn"].as_u64().unwrap();
    let root = |node: &Node| {
        let root = node.get("/v1/databases/audited").expect(200).json()["root"].clone();
        (root["lsn"].as_u64()? > lsn).then_some(root)
    };
    let seen = |node| eventually("an audit", PATIENCE, || root(node));
    let roots: Vec<Value> = SHARED.nodes().iter().map(seen).collect();
    for root in &roots {
        assert_eq!((&root["lsn"], &root["hash"]), (&roots[0]["lsn"], &roots[0]["hash"]));
        assert_eq!(root["hash"].as_str().map(str::len), Some(32));
        let at = root["verified_at"].as_str().expect("a time");
        assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
    }
    assert_eq!(node.metric("highwater_divergences_total{database=\"audited\"}"), Some(0.0));
}

#[test]
fn creation_takes_nothing_else() {
    let node = SHARED.node(1);
    let put = |query: &str| Request::new("PUT", &format!("/v1/databases/nothing{query}"));
    node.send(&put("?replicas=3")).expect_problem(400, "bad_request");
    node.send(&put("?timeout_ms=0")).expect_problem(400, "bad_request");
    node.send(&put("").body("x")).expect_problem(415, "unsupported_media_type");
    let json = |body: &str| put("").header("content-type", "application/json").body(body);
    node.send(&json(r#"{"replicas":3}"#)).expect_problem(400, "bad_request");
    node.send(&put("").header("if-none-match", "*")).expect_problem(400, "bad_request");
    node.get("/v1/databases/nothing").expect_problem(404, "no_such_database");
    let _ = node.send(&json("{}")).expect(201);
}
