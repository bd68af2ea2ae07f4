//! The cluster view, health, readiness, metrics.

use highwater_tests::{PATIENCE, eventually, http::Request};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

fn fields(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        value.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn the_cluster_is_described_the_same_by_every_node() {
    let _ = database("viewed").put(&record("viewed", "k"), "v").expect(201);
    let leader = SHARED.leader("viewed");
    for node in SHARED.nodes() {
        let view = node.get("/v1/cluster").expect(200).json();
        assert_eq!(fields(&view), ["cluster_id", "databases", "epoch", "nodes"]);
        assert!(view["cluster_id"].as_str().is_some_and(|id| id.len() == 32));
        assert!(view["epoch"].is_u64());
        let nodes = view["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 3);
        for (row, known) in nodes.iter().zip(SHARED.nodes()) {
            let expected = ["address", "http", "id", "last_contact_ms", "role", "state", "version"];
            assert_eq!(fields(row), expected);
            assert_eq!(row["id"], known.id);
            assert_eq!(row["address"], known.quic.to_string());
            assert_eq!(row["http"], known.http.to_string());
            assert_eq!((&row["role"], &row["state"]), (&json!("voter"), &json!("ready")));
            assert!(row["last_contact_ms"].as_u64().is_some_and(|ms| ms < 2_000), "{row}");
        }
        let row = view["databases"].as_array().unwrap().iter().find(|d| d["name"] == "viewed");
        let row = row.expect("the database");
        assert_eq!(fields(row), ["leader", "name", "replicas", "term"]);
        assert_eq!(row["leader"], leader);
        for (replica, id) in row["replicas"].as_array().unwrap().iter().zip(1..) {
            let expected = [
                "applied",
                "apply_errors",
                "divergences",
                "durable",
                "lag_bytes",
                "lag_ms",
                "lag_ops",
                "node",
                "rebootstrapping",
                "role",
                "state",
            ];
            assert_eq!(fields(replica), expected);
            assert_eq!(replica["node"], id);
            assert_eq!(
                (&replica["rebootstrapping"], &replica["apply_errors"]),
                (&json!(false), &json!(0))
            );
        }
    }
}

#[test]
fn health_and_readiness() {
    for node in SHARED.nodes() {
        let _ = node.get("/healthz").expect(200);
        let ready = node.get("/readyz").expect(200).json();
        assert_eq!((&ready["ready"], &ready["reasons"]), (&json!(true), &json!([])));
        for path in ["/healthz?x=1", "/readyz?x=1", "/metrics?x=1", "/v1/cluster?x=1"] {
            node.get(path).expect_problem(400, "bad_request");
        }
    }
}

#[test]
fn metrics_are_what_the_contract_names() {
    let node = database("metered");
    let leader = SHARED.node(SHARED.leader("metered"));
    let acked = "highwater_writes_acked_total{durability=\"quorum\"}";
    let syncs = "highwater_oplog_syncs_total";
    let before = (leader.metric(acked).unwrap(), leader.metric(syncs).unwrap());
    for value in 0..5 {
        let _ = leader.put(&record("metered", "k"), value.to_string());
    }
    assert!(leader.metric(acked).unwrap() >= before.0 + 5.0);
    assert!(leader.metric(syncs).unwrap() >= before.1 + 5.0, "one after the other: a sync each");

    let answer = node.get("/metrics").expect(200);
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let text = answer.text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect(line);
        assert!(name.starts_with("highwater_") && value.parse::<f64>().is_ok(), "{line}");
        let family = name.split('{').next().unwrap();
        assert!(text.contains(&format!("# TYPE {family} ")), "{family}");
    }
    for family in ["highwater_elections_total", "highwater_apply_errors_total"] {
        assert!(node.metric(family).is_some(), "{family}");
    }
    assert_eq!(node.metric("highwater_apply_errors_total"), Some(0.0));
    let leaders = SHARED.nodes().iter().filter(|node| node.leads("metered")).count();
    assert_eq!(leaders, 1);
    let committed = leader
        .metric("highwater_watermark{database=\"metered\",mark=\"committed\"}")
        .expect("a watermark");
    for node in SHARED.nodes() {
        eventually("every node applies it", PATIENCE, || {
            let mark = "highwater_watermark{database=\"metered\",mark=\"applied\"}";
            (node.metric(mark)? >= committed).then_some(())
        });
        for mark in ["first", "appended", "durable", "checkpointed"] {
            let name = format!("highwater_watermark{{database=\"metered\",mark=\"{mark}\"}}");
            assert!(node.metric(&name).is_some(), "{name}");
        }
    }
}

#[test]
fn accept_is_honoured() {
    let node = database("accepting");
    let _ = node.put(&record("accepting", "k"), "v").expect(201);
    let get = |target: &str, accept: &str| {
        node.send(&Request::get(target).header("accept", accept)).status
    };
    assert_eq!(get("/v1/cluster", "application/json"), 200);
    assert_eq!(get("/v1/cluster", "text/html, */*;q=0.1"), 200);
    assert_eq!(get("/v1/cluster", "text/html"), 406);
    assert_eq!(get("/v1/cluster", "application/json;q=0"), 406);
    assert_eq!(get("/metrics", "application/json"), 406);
    let refused = node.send(&Request::get("/v1/databases").header("accept", "image/png"));
    refused.expect_problem(406, "not_acceptable");
}
