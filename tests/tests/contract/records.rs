//! `PUT`, `GET`, `HEAD` and `DELETE` of one record.

use highwater_tests::{
    PATIENCE, eventually,
    http::{Request, escape},
};
use serde_json::{Value, json};

use crate::{SHARED, database, record};

const MIB: usize = 1 << 20;

#[test]
fn a_put_answers_with_its_receipt() {
    let node = database("receipt");
    let target = record("receipt", "k");
    let put = Request::put(&target, "one").header("content-type", "text/plain;charset=utf-8");
    let created = node.send(&put).expect(201);
    assert_eq!(created.header("content-type"), Some("application/json"));
    let receipt = created.json();
    let (lsn, term) = (receipt["lsn"].as_u64().unwrap(), receipt["term"].as_u64().unwrap());
    assert!(lsn > 0 && term > 0);
    let expected = json!({
        "database": "receipt", "key": "k", "lsn": lsn, "version": lsn, "term": term,
        "durability": "quorum"
    });
    assert_eq!(receipt, expected);
    let group = node.get("/v1/databases/receipt").expect(200).json()["group"].as_u64().unwrap();
    assert_eq!(created.header("etag"), Some(format!("\"{group}-{lsn}\"").as_str()));
    assert!(created.header("highwater-bookmark").is_some_and(|mark| !mark.is_empty()));

    let replaced = node.put(&target, "two").expect(200).json();
    assert!(replaced["lsn"].as_u64().unwrap() > lsn);
    assert_eq!(replaced["version"], replaced["lsn"]);
}

#[test]
fn what_one_node_took_every_node_gives() {
    database("anywhere");
    for writer in SHARED.nodes() {
        let key = format!("by-{}", writer.id);
        let value: Vec<u8> = (0..=255).chain([writer.id as u8]).collect();
        let put = Request::put(&record("anywhere", &key), &value)
            .header("content-type", "image/x-thing; q=1");
        let receipt = writer.send(&put).expect(201);
        for reader in SHARED.nodes() {
            let got = reader.get(&record("anywhere", &key)).expect(200);
            assert_eq!(got.body, value, "written by {}, read from {}", writer.id, reader.id);
            assert_eq!(got.header("content-type"), Some("image/x-thing; q=1"));
            assert_eq!(got.header("etag"), receipt.header("etag"));
            let lsn = receipt.json()["lsn"].to_string();
            assert_eq!(got.header("highwater-lsn"), Some(lsn.as_str()));
            let applied: u64 = got.header("highwater-applied").unwrap().parse().unwrap();
            assert!(applied >= lsn.parse().unwrap());
        }
    }
}

#[test]
fn a_get_protects_the_browser_and_head_says_the_same() {
    let node = database("headers");
    let target = record("headers", "page");
    let put = Request::put(&target, "<script>").header("content-type", "text/html");
    let _ = node.send(&put).expect(201);
    let got = node.get(&target).expect(200);
    for (name, value) in [
        ("content-type", "text/html"),
        ("content-length", "8"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("cache-control", "private, no-cache"),
    ] {
        assert_eq!(got.header(name), Some(value), "{name}");
    }
    let head = node.send(&Request::new("HEAD", &target)).expect(200);
    assert!(head.body.is_empty());
    for name in [
        "content-type",
        "content-length",
        "etag",
        "highwater-lsn",
        "x-content-type-options",
        "content-security-policy",
        "cache-control",
    ] {
        assert_eq!(head.header(name), got.header(name), "{name}");
    }
    assert!(head.header("highwater-applied").is_some());
    // Also where there is nothing.
    let missing = node.get(&record("headers", "none"));
    missing.expect_problem(404, "no_such_record");
    assert_eq!(missing.header("content-security-policy"), Some("sandbox; default-src 'none'"));
    assert_eq!(node.send(&Request::new("HEAD", &record("headers", "none"))).status, 404);
}

#[test]
fn a_value_without_a_type_is_bytes_and_may_be_empty() {
    let node = database("plain");
    let target = record("plain", "empty");
    let _ = node.put(&target, "").expect(201);
    let got = node.get(&target).expect(200);
    assert_eq!(got.header("content-length"), Some("0"));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
}

#[test]
fn a_value_has_a_mebibyte_at_most() {
    let node = database("large");
    let value = vec![7; MIB];
    let _ = node.put(&record("large", "fits"), &value).expect(201);
    assert_eq!(node.get(&record("large", "fits")).expect(200).body, value);
    let beyond = vec![7; MIB + 1];
    node.put(&record("large", "beyond"), &beyond).expect_problem(413, "payload_too_large");
    // The length is not believed to be there.
    let mut chunked = Vec::new();
    for chunk in beyond.chunks(MIB / 4) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let put =
        Request::put(&record("large", "beyond"), &chunked).header("transfer-encoding", "chunked");
    node.send(&put).expect_problem(413, "payload_too_large");
    node.get(&record("large", "beyond")).expect_problem(404, "no_such_record");
    // Chunks are taken where they fit.
    let put = Request::put(&record("large", "chunks"), "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .header("transfer-encoding", "chunked");
    let _ = node.send(&put).expect(201);
    assert_eq!(node.get(&record("large", "chunks")).text(), "abcde");
}

#[test]
fn keys_are_decoded_once_and_never_normalized() {
    let node = database("keys");
    let put = |raw: &str, value: &str| node.put(&record("keys", raw), value).expect(201);
    let get = |raw: &str| node.get(&record("keys", raw)).text();
    let _ = put("a%2Fb", "slash");
    assert_eq!(get("a/b"), "slash");
    let _ = put("a%252Fb", "percent");
    assert_eq!(get("a%252Fb"), "percent");
    assert_eq!(get("a/b"), "slash");
    let _ = put("a//b/", "slashes");
    assert_eq!(get("a%2F%2Fb%2F"), "slashes");
    let _ = put("a+b", "plus");
    assert_eq!(get("a%2Bb"), "plus");
    // Two spellings of one glyph are two keys.
    let _ = put("%C3%A9", "composed");
    let _ = put("e%CC%81", "decomposed");
    assert_eq!((get("%C3%A9"), get("e%CC%81")), ("composed".into(), "decomposed".into()));
    let _ = put("A", "large");
    let _ = put("a", "small");
    assert_eq!((get("A"), get("a")), ("large".into(), "small".into()));
    let _ = put("%00%01", "control");
    let _ = put("...", "dots");
    let _ = put("x%3Fy%23z", "marks");
    let longest = "é".repeat(512);
    let _ = put(&escape(&longest), "long");
    let page = node.get("/v1/databases/keys/records").json();
    let keys: Vec<&str> = page["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["key"].as_str().unwrap())
        .collect();
    let mut expected = vec![
        "\0\u{1}", "...", "A", "a", "a%2Fb", "a+b", "a/b", "a//b/", "e\u{301}", "x?y#z", "\u{e9}",
        &longest,
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

#[test]
fn bad_keys_and_names_are_refused() {
    let node = database("badkeys");
    let long = "k".repeat(1025);
    let wide = escape(&"é".repeat(513));
    for key in [
        "",
        ".",
        "..",
        "a/../b",
        "a/%2e%2E/b",
        "./a",
        "a/.",
        "%",
        "%2",
        "%zz",
        "%ff",
        "%C3%28",
        "%ED%A0%80",
        &long,
        &wide,
    ] {
        let target = record("badkeys", key);
        node.put(&target, "v").expect_problem(400, "invalid_key");
        node.get(&target).expect_problem(400, "invalid_key");
        node.send(&Request::delete(&target)).expect_problem(400, "invalid_key");
    }
    let page = node.get("/v1/databases/badkeys/records").expect(200).json();
    assert_eq!(page["records"], json!([]));
    let long = "n".repeat(64);
    for name in ["A", "-a", "_a", "a.b", "a%20b", "%C3%A9", "%ff", "a%2Fb", &long] {
        let target = format!("/v1/databases/{name}");
        node.send(&Request::new("PUT", &target)).expect_problem(400, "invalid_name");
        node.get(&target).expect_problem(400, "invalid_name");
        node.get(&record(name, "k")).expect_problem(400, "invalid_name");
    }
    let longest = format!("/v1/databases/0-_{}", "n".repeat(60));
    let _ = node.send(&Request::new("PUT", &longest)).expect(201);
}

#[test]
fn a_delete_needs_something_to_delete() {
    let node = database("deletes");
    let target = record("deletes", "k");
    node.send(&Request::delete(&target)).expect_problem(404, "no_such_record");
    let put = node.put(&target, "v").expect(201).json();
    let deleted = node.send(&Request::delete(&target)).expect(200);
    let receipt = deleted.json();
    assert!(receipt["lsn"].as_u64() > put["lsn"].as_u64());
    assert_eq!((&receipt["key"], &receipt["durability"]), (&json!("k"), &json!("quorum")));
    assert!(deleted.header("highwater-bookmark").is_some());
    for node in SHARED.nodes() {
        node.get(&target).expect_problem(404, "no_such_record");
    }
    node.send(&Request::delete(&target)).expect_problem(404, "no_such_record");
    let _ = node.put(&target, "again").expect(201);
}

#[test]
fn a_database_that_is_not_there_is_said_to_be_missing() {
    let node = database("there");
    for request in [
        Request::put(&record("missing", "k"), "v"),
        Request::get(&record("missing", "k")),
        Request::get(&record("missing", "k?consistency=local")),
        Request::delete(&record("missing", "k")),
        Request::get("/v1/databases/missing"),
        Request::get("/v1/databases/missing/records"),
        Request::post("/v1/databases/missing/batch", r#"{"ops":[{"delete":{"key":"k"}}]}"#),
        Request::post("/v1/databases/missing/leader", r#"{"node":1}"#),
    ] {
        node.send(&request).expect_problem(404, "no_such_database");
    }
}

#[test]
fn a_bookmark_reads_what_was_written() {
    database("marks");
    for writer in SHARED.nodes() {
        let put = writer.put(&record("marks", "k"), writer.id.to_string());
        let mark = put.header("highwater-bookmark").unwrap();
        for reader in SHARED.nodes() {
            for consistency in ["local", "linearizable"] {
                let target = record("marks", &format!("k?consistency={consistency}"));
                let got = reader.send(&Request::get(&target).header("highwater-bookmark", mark));
                assert_eq!(got.expect(200).text(), writer.id.to_string(), "{consistency}");
                let list = format!("/v1/databases/marks/records?consistency={consistency}");
                let list = reader.send(&Request::get(&list).header("highwater-bookmark", mark));
                let version = &list.expect(200).json()["records"][0]["version"];
                assert_eq!(*version, put.json()["version"]);
            }
        }
    }
}

#[test]
fn a_bookmark_that_says_nothing_is_refused() {
    let node = database("badmarks");
    database("othermarks");
    let target = record("badmarks", "k");
    let put = node.put(&target, "v").expect(201);
    let good = put.header("highwater-bookmark").unwrap();
    let mut changed = good.to_owned();
    changed.replace_range(5..6, if &good[5..6] == "A" { "B" } else { "A" });
    for mark in ["", "x", "!!!!", &good[1..], &changed] {
        for consistency in ["local", "linearizable"] {
            let target = format!("{target}?consistency={consistency}");
            let get = Request::get(&target).header("highwater-bookmark", mark);
            node.send(&get).expect_problem(400, "bad_request");
        }
    }
    // Of a database under another group: one that was made anew looks just like this.
    let other = node.put(&record("othermarks", "k"), "v");
    let mark = other.header("highwater-bookmark").unwrap();
    for consistency in ["local", "linearizable"] {
        let target = format!("{target}?consistency={consistency}");
        let get = Request::get(&target).header("highwater-bookmark", mark);
        node.send(&get).expect_problem(410, "database_recreated");
    }
}

#[test]
fn a_local_read_comes_from_the_node_itself() {
    let node = database("local");
    let _ = node.put(&record("local", "k"), "v").expect(201);
    for node in SHARED.nodes() {
        let target = record("local", "k?consistency=local");
        let got = eventually("the record arrives everywhere", PATIENCE, || {
            Some(node.get(&target)).filter(|got| got.status == 200)
        });
        assert_eq!(got.text(), "v");
    }
    node.get(&record("local", "k?consistency=maybe")).expect_problem(400, "bad_request");
}

#[test]
fn an_option_that_is_not_built_is_refused() {
    let node = database("later");
    let target = record("later", "k");
    let _ = node.put(&format!("{target}?ack=quorum"), "v").expect(201);
    for ack in ["local", "all", "1", "2", ""] {
        node.put(&format!("{target}?ack={ack}"), "w").expect_problem(400, "bad_request");
    }
    let got: Value = node.get(&target).text().into();
    assert_eq!(got, "v", "none of them had an effect");
}
