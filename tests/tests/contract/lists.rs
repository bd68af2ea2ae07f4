//! `GET …/records`

use base64::{Engine, engine::general_purpose::STANDARD};
use highwater_tests::http::{Request, Response, escape};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

fn list(database: &str, query: &str) -> Response {
    SHARED.node(2).get(&format!("/v1/databases/{database}/records?{query}"))
}

fn keys(page: &Value) -> Vec<String> {
    let rows = page["records"].as_array().expect("records").iter();
    rows.map(|row| row["key"].as_str().expect("a key").to_owned()).collect()
}

#[test]
fn pages_in_byte_order_lead_through_everything() {
    let node = database("pages");
    // In byte order, which is not that of any alphabet.
    let names = ["Z", "a", "a b", "a/1", "a/2", "a0", "b", "é", "日"];
    let mut lsn = 0;
    for name in names.iter().rev() {
        let put = node.put(&record("pages", &escape(name)), name.repeat(3)).expect(201);
        lsn = put.json()["lsn"].as_u64().unwrap();
    }
    let all = list("pages", "").expect(200).json();
    assert_eq!(keys(&all), names);
    assert_eq!(all["next"], Value::Null);
    assert!(all["applied"].as_u64().unwrap() >= lsn);

    for limit in 1..=names.len() {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let query = format!("limit={limit}&after={}", escape(&after));
            let page = list("pages", &query).expect(200).json();
            let found = keys(&page);
            assert!(found.len() <= limit);
            seen.extend(found.iter().cloned());
            match page["next"].as_str() {
                Some(next) => {
                    assert_eq!(Some(next), found.last().map(String::as_str));
                    next.clone_into(&mut after);
                }
                None => break,
            }
        }
        assert_eq!(seen, names, "with pages of {limit}");
    }
    // `after` is exclusive, and need not exist.
    assert_eq!(keys(&list("pages", "after=a%2F1&limit=2").json()), ["a/2", "a0"]);
    assert_eq!(keys(&list("pages", "after=a%2F15&limit=1").json()), ["a/2"]);
    assert_eq!(keys(&list("pages", "after=%E6%97%A5").json()), [""; 0]);
    assert_eq!(keys(&list("pages", "prefix=a").json()), ["a", "a b", "a/1", "a/2", "a0"]);
    assert_eq!(keys(&list("pages", "prefix=a%2F&after=a%2F1").json()), ["a/2"]);
    assert_eq!(keys(&list("pages", "prefix=a%2F&after=Z").json()), ["a/1", "a/2"]);
    assert_eq!(keys(&list("pages", "prefix=a%2F&after=b").json()), [""; 0]);
    let last = list("pages", "prefix=a%2F&limit=2").json();
    assert_eq!(last["next"], Value::Null, "the prefix ends there");
}

#[test]
fn rows_tell_about_their_records() {
    let node = database("rows");
    let put = Request::put(&record("rows", "k"), b"\0\xff").header("content-type", "image/png");
    let version = node.send(&put).expect(201).json()["version"].clone();
    let row = |query: &str| list("rows", query).expect(200).json()["records"][0].clone();
    let plain = json!({"key": "k", "version": version, "size": 2, "content_type": "image/png"});
    assert_eq!(row(""), plain);
    assert_eq!(row("values=false"), plain);
    let mut full = plain;
    full["value_base64"] = STANDARD.encode(b"\0\xff").into();
    assert_eq!(row("values=true"), full);
    let _ = node.send(&Request::delete(&record("rows", "k"))).expect(200);
    let empty = list("rows", "").expect(200).json();
    assert_eq!((&empty["records"], &empty["next"]), (&json!([]), &Value::Null));
}

#[test]
fn a_page_has_a_hundred_rows_and_a_thousand_at_most() {
    let node = database("many");
    for part in 0..2 {
        let ops: Vec<Value> = (0..600)
            .map(|at| json!({"put": {"key": format!("{part}-{at:03}"), "text": ""}}))
            .collect();
        let batch = Request::post("/v1/databases/many/batch", &json!({"ops": ops}).to_string());
        let _ = node.send(&batch).expect(200);
    }
    let count = |query: &str| keys(&list("many", query).expect(200).json()).len();
    assert_eq!((count(""), count("limit=1000"), count("limit=999")), (100, 1000, 999));
}

#[test]
fn a_query_that_is_not_understood_is_refused() {
    database("badlist");
    for query in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1&limit=2",
        "values=yes",
        "values=",
        "consistency=eventual",
        "colour=red",
        "Prefix=a",
        "prefix=%ff",
        "after=%f",
        "timeout_ms=0",
        "timeout_ms=60001",
        "timeout_ms=1.5",
        "follow=true",
        "ack=all",
    ] {
        let answer = list("badlist", query);
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{query}");
    }
    let _ = list("badlist", "timeout_ms=60000&limit=1&values=true&prefix=&after=").expect(200);
    let get = Request::get("/v1/databases/badlist/records").header("if-match", "*");
    SHARED.node(1).send(&get).expect_problem(400, "bad_request");
}
