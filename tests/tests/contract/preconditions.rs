//! `If-Match` and `If-None-Match`, on reads and writes.

use highwater_tests::http::{Request, Response};

use crate::{database, record};

fn code(answer: &Response) -> (u16, String) {
    (answer.status, answer.code())
}

fn failed() -> (u16, String) {
    (412, "precondition_failed".to_owned())
}

#[test]
fn compare_and_swap() {
    let node = database("cas");
    let target = record("cas", "k");
    let create =
        |value: &str| node.send(&Request::put(&target, value).header("if-none-match", "*"));
    let first = create("1").expect(201);
    let again = create("2");
    let problem = again.expect_problem(412, "precondition_failed");
    assert_eq!(problem["version"], first.json()["version"], "it carries the current version");

    let swap =
        |etag: &str, value: &str| node.send(&Request::put(&target, value).header("if-match", etag));
    let etag = first.header("etag").unwrap();
    let second = swap(etag, "2").expect(200);
    let problem = swap(etag, "3").expect_problem(412, "precondition_failed");
    assert_eq!(problem["version"], second.json()["version"]);
    assert_eq!(node.get(&target).text(), "2");

    let delete = |etag: &str| node.send(&Request::delete(&target).header("if-match", etag));
    assert_eq!(code(&delete(etag)), failed());
    let _ = delete(second.header("etag").unwrap()).expect(200);
    // The precondition is judged before existence.
    let problem = delete(second.header("etag").unwrap()).expect_problem(412, "precondition_failed");
    assert_eq!(problem["version"], 0);
    assert_eq!(code(&swap("*", "4")), failed());
    assert_eq!(code(&delete("*")), failed());
}

/// A header's value for the entity tag that the record has.
type Spelled = fn(&str) -> String;

#[test]
fn lists_weak_tags_and_stars_on_writes() {
    let node = database("tags");
    let target = record("tags", "k");
    let write =
        |name: &str, value: &str| node.send(&Request::put(&target, "v").header(name, value));
    // Nothing is there yet.
    for (name, value, status) in
        [("if-match", "*", 412), ("if-match", "\"1-1\"", 412), ("if-none-match", "\"1-1\"", 201)]
    {
        assert_eq!(write(name, value).status, status, "{name}: {value}");
    }
    let etag = || node.get(&target).header("etag").unwrap().to_owned();
    let cases: [(&str, Spelled, u16); 12] = [
        ("if-match", |etag| etag.to_owned(), 200),
        ("if-match", |_| "*".to_owned(), 200),
        ("if-match", |etag| format!("\"x\", {etag}"), 200),
        ("if-match", |etag| format!("{etag} , \"x\""), 200),
        ("if-match", |_| "\"x\"".to_owned(), 412),
        // A strong comparison: a weak tag never matches.
        ("if-match", |etag| format!("W/{etag}"), 412),
        ("if-match", |etag| format!("W/{etag}, {etag}"), 200),
        ("if-none-match", |etag| etag.to_owned(), 412),
        ("if-none-match", |_| "*".to_owned(), 412),
        ("if-none-match", |etag| format!("W/{etag}"), 412),
        ("if-none-match", |etag| format!("\"x\", {etag}"), 412),
        ("if-none-match", |_| "\"x\"".to_owned(), 200),
    ];
    for (name, value, status) in cases {
        let value = value(&etag());
        assert_eq!(write(name, &value).status, status, "{name}: {value}");
    }
    // Both must hold.
    let both = Request::put(&target, "v").header("if-match", "*").header("if-none-match", &etag());
    assert_eq!(code(&node.send(&both)), failed());
    // A list may come in several lines.
    let lines = Request::put(&target, "v").header("if-match", "\"x\"").header("if-match", &etag());
    let _ = node.send(&lines).expect(200);
}

#[test]
fn the_tag_of_another_database_never_matches() {
    let node = database("tags-a");
    database("tags-b");
    let a = node.put(&record("tags-a", "k"), "v").expect(201);
    let b = node.put(&record("tags-b", "k"), "v").expect(201);
    assert_eq!(a.json()["version"], b.json()["version"], "or this proves nothing");
    assert_ne!(a.header("etag"), b.header("etag"));
    let put =
        Request::put(&record("tags-b", "k"), "w").header("if-match", a.header("etag").unwrap());
    assert_eq!(code(&node.send(&put)), failed());
}

#[test]
fn reads_are_conditional() {
    let node = database("conditional");
    let target = record("conditional", "k");
    let put = node.put(&target, "v").expect(201);
    let etag = put.header("etag").unwrap();
    let get = |name: &str, value: &str| node.send(&Request::get(&target).header(name, value));
    for value in [etag, "*", &format!("W/{etag}"), &format!("\"x\",{etag}")] {
        let unchanged = get("if-none-match", value).expect(304);
        assert!(unchanged.body.is_empty());
        assert_eq!(unchanged.header("etag"), Some(etag));
    }
    let head = Request::new("HEAD", &target).header("if-none-match", etag);
    assert_eq!(node.send(&head).status, 304);
    assert_eq!(get("if-none-match", "\"x\"").expect(200).text(), "v");
    assert_eq!(get("if-match", etag).expect(200).text(), "v");
    assert_eq!(code(&get("if-match", "\"x\"")), failed());
    assert_eq!(code(&get("if-match", &format!("W/{etag}"))), failed());
}

#[test]
fn a_malformed_precondition_is_never_taken_for_none() {
    let node = database("badtags");
    let target = record("badtags", "k");
    let _ = node.put(&target, "v").expect(201);
    for value in ["", "x", "\"x", "x\"", "\"a\" \"b\"", "*, \"a\"", "w/\"a\"", ","] {
        for name in ["if-match", "if-none-match"] {
            for request in
                [Request::put(&target, "w"), Request::delete(&target), Request::get(&target)]
            {
                let answer = node.send(&request.header(name, value));
                assert_eq!(code(&answer), (400, "bad_request".into()), "{name}: {value:?}");
            }
        }
    }
    assert_eq!(node.get(&target).text(), "v");
}
