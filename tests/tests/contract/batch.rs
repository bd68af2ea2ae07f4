//! `POST …/batch`

use highwater_tests::{
    PATIENCE, eventually,
    http::{Request, Response},
};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

fn post(database: &str, body: &str) -> Response {
    // Large ones take their time on a busy machine.
    let target = format!("/v1/databases/{database}/batch?timeout_ms=30000");
    SHARED.node(3).send(&Request::post(&target, body))
}

fn ops(database: &str, ops: &Value) -> Response {
    post(database, &json!({ "ops": ops }).to_string())
}

#[test]
fn all_spellings_of_a_value_at_one_lsn() {
    let node = database("spellings");
    let done = ops(
        "spellings",
        &json!([
            {"put": {"key": "base64", "value_base64": "AP8="}},
            {"put": {"key": "text", "text": "hä"}},
            {"put": {"key": "json", "json": {"b": [1, 2.50], "a": null}}},
            {"put": {"key": "typed", "text": "a,b", "content_type": "text/csv"}},
            {"put": {"key": "null", "json": null}},
            {"delete": {"key": "absent"}},
        ]),
    )
    .expect(200);
    let receipt = done.json();
    let (lsn, term) = (&receipt["lsn"], &receipt["term"]);
    let expected =
        json!({"database": "spellings", "lsn": lsn, "term": term, "durability": "quorum"});
    assert_eq!(receipt, expected);
    assert!(done.header("highwater-bookmark").is_some());
    for (key, value, content_type) in [
        ("base64", b"\0\xff".as_slice(), "application/octet-stream"),
        ("text", "hä".as_bytes(), "text/plain"),
        ("typed", b"a,b", "text/csv"),
        ("null", b"null", "application/json"),
    ] {
        let got = node.get(&record("spellings", key)).expect(200);
        assert_eq!(got.body, value, "{key}");
        assert_eq!(got.header("content-type"), Some(content_type), "{key}");
        assert_eq!(got.header("highwater-lsn"), Some(lsn.to_string().as_str()), "{key}");
    }
    let stored = node.get(&record("spellings", "json"));
    assert_eq!(stored.header("content-type"), Some("application/json"));
    assert_eq!(stored.json(), json!({"a": null, "b": [1, 2.5]}));
}

#[test]
fn all_or_nothing_and_the_first_failure_is_named() {
    let node = database("atomic");
    let one = node.put(&record("atomic", "one"), "1").expect(201).json()["version"].clone();
    let refused = ops(
        "atomic",
        &json!([
            {"put": {"key": "new", "text": "x"}},
            {"delete": {"key": "one", "if_version": one}},
            {"put": {"key": "two", "text": "2", "if_version": 17_000}},
            {"put": {"key": "one-more", "text": "2", "if_version": 18_000}},
        ]),
    );
    let problem = refused.expect_problem(412, "precondition_failed");
    assert_eq!(problem["version"], 0);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains('2') && detail.contains("two"), "{detail}");
    node.get(&record("atomic", "new")).expect_problem(404, "no_such_record");
    assert_eq!(node.get(&record("atomic", "one")).text(), "1");

    let must_be_absent = json!([{"put": {"key": "one", "text": "x", "if_version": 0}}]);
    let problem = ops("atomic", &must_be_absent).expect_problem(412, "precondition_failed");
    assert_eq!(problem["version"], one);
    let done = ops(
        "atomic",
        &json!([
            {"put": {"key": "one", "text": "1b", "if_version": one}},
            {"put": {"key": "three", "text": "3", "if_version": 0}},
            {"delete": {"key": "four"}},
        ]),
    );
    let lsn = done.expect(200).json()["lsn"].clone();
    for key in ["one", "three"] {
        let got = node.get(&record("atomic", key)).expect(200);
        assert_eq!(got.header("highwater-lsn"), Some(lsn.to_string().as_str()));
    }
    let gone = json!([{"delete": {"key": "four", "if_version": 3}}]);
    ops("atomic", &gone).expect_problem(412, "precondition_failed");
}

#[test]
fn a_batch_has_a_thousand_ops_and_sixteen_mebibytes_at_most() {
    let node = database("bounds");
    let batch = |count: usize| {
        let ops: Vec<Value> =
            (0..count).map(|at| json!({"put": {"key": at.to_string(), "text": "v"}})).collect();
        ops.into()
    };
    let _ = ops("bounds", &batch(1000)).expect(200);
    ops("bounds", &batch(1001)).expect_problem(400, "bad_request");
    ops("bounds", &batch(0)).expect_problem(400, "bad_request");

    let large = |mib: usize| {
        let text = "x".repeat(1 << 20);
        let ops: Vec<Value> = (0..mib)
            .map(|at| json!({"put": {"key": format!("large-{at}"), "text": text}}))
            .collect();
        json!({ "ops": ops }).to_string()
    };
    // On a busy machine a leader may be lost over that much.
    let taken = eventually("fifteen MiB are taken", PATIENCE, || {
        Some(post("bounds", &large(15))).filter(|answer| answer.status != 504)
    });
    let _ = taken.expect(200);
    assert_eq!(node.get(&record("bounds", "large-14")).expect(200).body.len(), 1 << 20);
    post("bounds", &large(17)).expect_problem(413, "payload_too_large");
    node.get(&record("bounds", "large-16")).expect_problem(404, "no_such_record");
    let value = json!([{"put": {"key": "k", "text": "x".repeat((1 << 20) + 1)}}]);
    ops("bounds", &value).expect_problem(413, "payload_too_large");
}

#[test]
fn what_is_not_a_batch_is_refused() {
    let node = database("badbatch");
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"ops":{}}"#,
        r#"{"ops":[{}]}"#,
        r#"{"ops":[null]}"#,
        r#"{"ops":[{"get":{"key":"k"}}]}"#,
        r#"{"ops":[{"put":{"key":"k"}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a","json":1}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":null}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":1}}]}"#,
        r#"{"ops":[{"put":{"key":"k","value_base64":"?"}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a","if_version":-1}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a","if_version":null}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a","ttl":1}}]}"#,
        r#"{"ops":[{"delete":{"key":"k","text":"a"}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a"},"delete":{"key":"k"}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a"}}],"mode":"fast"}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a"}},{"delete":{"key":"k"}}]}"#,
        r#"{"ops":[{"put":{"key":"k","text":"a"}}]} {}"#,
        "{\"ops\":[{\"put\":{\"key\":\"\\ud800\",\"text\":\"a\"}}]}",
    ] {
        let answer = post("badbatch", body);
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{body}");
    }
    for key in ["", ".", "a/../b", &"k".repeat(1025)] {
        let answer = ops("badbatch", &json!([{"put": {"key": key, "text": "a"}}]));
        answer.expect_problem(400, "invalid_key");
    }
    // Bytes that are no UTF-8, in a key and in a value.
    for body in [
        b"{\"ops\":[{\"put\":{\"key\":\"\xff\",\"text\":\"a\"}}]}".as_slice(),
        b"{\"ops\":[{\"put\":{\"key\":\"k\",\"text\":\"\xff\"}}]}",
    ] {
        let post = Request::post("/v1/databases/badbatch/batch", "").body(body);
        node.send(&post).expect_problem(400, "bad_request");
    }
    for query in ["ack=all", "limit=1", "timeout_ms=x"] {
        let target = format!("/v1/databases/badbatch/batch?{query}");
        let post = Request::post(&target, r#"{"ops":[{"delete":{"key":"k"}}]}"#);
        node.send(&post).expect_problem(400, "bad_request");
    }
    let page = node.get("/v1/databases/badbatch/records").expect(200).json();
    assert_eq!(page["records"], json!([]), "none of them had an effect");
}
