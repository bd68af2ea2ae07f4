//! `highwater demo`

use std::{fs, time::Duration};

use highwater_tests::{
    binary::recipe,
    eventually,
    http::{Client, Request},
    scratch::Scratch,
};
use serde_json::{Value, json};

use crate::record;

const LONG: Duration = Duration::from_secs(120);

#[test]
fn the_demo_loses_nothing() {
    let output = recipe(&["demo", "--json"]).run(LONG).ok();
    let json: Value = serde_json::from_str(&output.stdout).expect(&output.stdout);
    assert!(json["acknowledged"].as_u64() >= Some(5_000), "{json}");
    assert_eq!(json["lost"], 0);
    assert!(json["unknown"].is_u64());
    assert!(json["longest_gap_ms"].as_u64() > Some(0), "{json}");
    assert_ne!(json["leader_before"], json["leader_after"]);
    for leader in ["leader_before", "leader_after"] {
        assert!((1..=3).contains(&json[leader].as_u64().unwrap()), "{json}");
    }
    assert!(json["term"].as_u64() >= Some(2), "{json}");
    assert!(json["fdatasync_per_s"].as_u64() > Some(0), "{json}");
}

#[test]
fn a_key_deleted_behind_the_verifiers_back_is_noticed() {
    let scratch = Scratch::new("demo");
    let pause = scratch.join("pause");
    let (out, err) = (scratch.join("out"), scratch.join("err"));
    let mut demo = recipe(&["demo", "--json"])
        .env("HIGHWATER_DEMO_PAUSE_BEFORE_VERIFY", pause.to_str().unwrap())
        .env("TMPDIR", scratch.path().to_str().unwrap())
        .start(&out, &err);
    let told: Value = eventually("the demo is about to verify", LONG, || {
        serde_json::from_slice(&fs::read(&pause).ok()?).ok()
    });
    let node = told["nodes"][0]["http"].as_str().unwrap().parse().unwrap();
    let key = told["key"].as_str().unwrap();
    let target = record(told["database"].as_str().unwrap(), key);
    let _ = Client::new(node).send(&Request::delete(&target)).unwrap().expect(200);
    fs::remove_file(&pause).unwrap();
    let status = demo.wait(LONG).expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", fs::read_to_string(&err).unwrap());
    let json: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(json["lost"], json!(1));
}
