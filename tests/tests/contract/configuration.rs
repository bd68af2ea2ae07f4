//! `highwater.toml`, the variables and flags over it, and every way to get them wrong.

use std::fs;

use highwater_tests::cluster::{Cluster, Node};

use crate::record;

/// The first line that has this text, from 1.
fn line_of(node: &Node, text: &str) -> usize {
    let config = fs::read_to_string(node.config()).unwrap();
    1 + config.lines().position(|line| line.contains(text)).expect(text)
}

#[test]
fn an_error_names_the_line() {
    let cluster = Cluster::init(2, &[]);
    let node = cluster.node(1);
    let original = fs::read_to_string(node.config()).unwrap();
    for (from, to, mark) in [
        ("auth = \"none\"", "auth = \"none\"\ncolour = \"red\"", "colour"),
        ("[[peers]]", "[[peers]]\nweight = 1", "weight"),
        ("[limits]", "[limits]\nkeys = 1", "keys"),
        ("[limits]", "[storage]\nx = 1\n[limits]", "[storage]"),
        ("node = 1", "node = \"one\"", "node = "),
        ("node = 1", "node = -1", "node = "),
        ("node = 1", "node = 0", "node = "),
        ("node = 1", "node = 1\nnode = 1", ""),
        ("cluster = \"", "cluster = \"xyz", "cluster = "),
        ("auth = \"none\"", "auth = \"token\"", "auth = "),
        ("auth = \"none\"", "auth = none", "auth = "),
        ("insecure_bind = false", "insecure_bind = 0", "insecure_bind"),
        ("http = \"127.0.0.1", "http = \"0.0.0.0", "http = "),
        ("http = \"127.0.0.1", "http = \"not a host", "http = "),
        ("address = \"127.0.0.1:", "address = \"127.0.0.1:x", "address = "),
        ("value_bytes = 1048576", "value_bytes = 0", "value_bytes"),
        ("value_bytes = 1048576", "value_bytes = 99999999999", "value_bytes"),
        ("batch_ops = 1000", "batch_ops = \"many\"", "batch_ops"),
    ] {
        node.edit_config(from, to);
        let refused = node.refuses(&[]);
        assert_eq!(refused.code(), Some(2), "{to}: {}", refused.stderr);
        let line = if mark.is_empty() {
            line_of(node, to.lines().last().unwrap())
        } else {
            line_of(node, mark)
        };
        let named = refused.stderr.contains(&format!("line {line}"))
            || refused.stderr.contains(&format!("highwater.toml:{line}:"))
            // Of the second of two equal lines, the second is meant.
            || (mark.is_empty() && refused.stderr.contains(&format!("line {}", line + 1)));
        assert!(named, "line {line} for {to:?} in {}", refused.stderr);
        assert!(refused.stderr.contains("highwater.toml"), "{}", refused.stderr);
        assert_eq!(fs::read_dir(node.data()).unwrap().count(), 0, "nothing was touched");
        fs::write(node.config(), &original).unwrap();
    }
    for bytes in [b"\xff\xfe".as_slice(), b"node = ", b""] {
        fs::write(node.config(), bytes).unwrap();
        let refused = node.refuses(&[]);
        assert_eq!(refused.code(), Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("highwater.toml"), "{}", refused.stderr);
    }
    fs::remove_file(node.config()).unwrap();
    assert!(node.refuses(&[]).stderr.contains("highwater.toml"));
}

#[test]
fn a_missing_key_is_named() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    let original = fs::read_to_string(node.config()).unwrap();
    for key in ["node", "cluster", "address", "http", "data_dir"] {
        let without: Vec<&str> =
            original.lines().filter(|line| !line.starts_with(&format!("{key} ="))).collect();
        fs::write(node.config(), without.join("\n")).unwrap();
        let refused = node.refuses(&[]);
        assert_eq!(refused.code(), Some(2));
        assert!(refused.stderr.contains(&format!("`{key}`")), "{}", refused.stderr);
    }
}

#[test]
fn certificates_must_be_this_nodes() {
    let cluster = Cluster::init(2, &[]);
    let foreign = Cluster::init(2, &[]);
    let node = cluster.node(1);
    let file = |of: &Cluster, id: u64, name: &str| of.node(id).dir.join(name);
    let swap = |name: &str, from: &Cluster, id: u64| {
        fs::copy(file(from, id, name), node.dir.join(name)).unwrap();
    };
    let own: Vec<(&str, Vec<u8>)> =
        ["cert.pem", "key.pem"].map(|name| (name, fs::read(node.dir.join(name)).unwrap())).into();
    let restore = || {
        for (name, bytes) in &own {
            fs::write(node.dir.join(name), bytes).unwrap();
        }
    };
    // Of another cluster, of another node, a key that does not fit, none at all.
    for (name, break_it) in [
        (
            "another cluster",
            &(|| {
                swap("cert.pem", &foreign, 1);
                swap("key.pem", &foreign, 1);
            }) as &dyn Fn(),
        ),
        ("another node", &|| {
            swap("cert.pem", &cluster, 2);
            swap("key.pem", &cluster, 2);
        }),
        ("another key", &|| swap("key.pem", &cluster, 2)),
        ("no certificate", &|| fs::write(node.dir.join("cert.pem"), "").unwrap()),
        ("no key", &|| fs::remove_file(node.dir.join("key.pem")).unwrap()),
        ("no PEM", &|| fs::write(node.dir.join("key.pem"), b"\0\xff").unwrap()),
    ] {
        break_it();
        let refused = node.refuses(&[]);
        assert!(refused.stderr.contains("error: "), "{name}: {}", refused.stderr);
        assert!(!refused.stderr.contains("PRIVATE KEY-----"), "{name} shows a secret");
        restore();
    }
    node.start();
    highwater_tests::eventually("it runs", highwater_tests::PATIENCE, || {
        node.try_send(&highwater_tests::http::Request::get("/healthz")).ok()
    });
}

#[test]
fn limits_are_configurable_and_variables_and_flags_override() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    node.edit_config("value_bytes = 1048576", "value_bytes = 10");
    node.edit_config("batch_ops = 1000", "batch_ops = 2");
    node.edit_config("list_max = 1000", "list_max = 100");
    node.edit_config("timeout_max_ms = 60000", "timeout_max_ms = 7000");
    let recipe = node.recipe(&[]).env("HIGHWATER_LIMITS_VALUE_BYTES", "5");
    node.start_as(&recipe);
    node.wait_ready();
    cluster.create("db");
    let _ = node.put(&record("db", "k"), "12345").expect(201);
    node.put(&record("db", "k"), "123456").expect_problem(413, "payload_too_large");
    node.get("/v1/databases/db/records?limit=101").expect_problem(400, "bad_request");
    node.get("/v1/databases/db/records?timeout_ms=7001").expect_problem(400, "bad_request");
    node.kill();

    let other = node.dir.join("elsewhere");
    let flags = ["--data-dir", other.to_str().unwrap()];
    node.start_as(&node.recipe(&flags).env("HIGHWATER_NONSENSE", "1"));
    node.wait_ready();
    assert!(other.join("oplog").is_dir());
    assert!(node.log().contains("HIGHWATER_NONSENSE"), "{}", node.log());
    node.kill();
    let bad = node.recipe(&[]).env("HIGHWATER_NODE", "one").run(highwater_tests::PATIENCE);
    assert_eq!(bad.code(), Some(2));
    assert!(bad.stderr.contains("HIGHWATER_NODE"), "{}", bad.stderr);
}
