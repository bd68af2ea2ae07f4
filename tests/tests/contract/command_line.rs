//! What each command prints and refuses; `init`, `serve`, `status`.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use highwater_tests::{
    PATIENCE,
    binary::{recipe, run},
    cluster::{Cluster, setting},
    http::Request,
    scratch::Scratch,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{SHARED, record};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn help_names_what_there_is_and_nothing_else() {
    let help = run(&["--help"]).ok().stdout;
    let commands = ["dev", "demo", "init", "serve", "status", "changes", "slot", "snapshot", "log"];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in\n{help}");
        let own = run(&[command, "--help"]).ok().stdout;
        assert!(own.contains("Usage: "), "{own}");
    }
    for command in ["changes", "slot", "snapshot"] {
        let own = run(&[command, "--help"]).ok().stdout;
        assert!(own.contains(&format!("Examples:\n  highwater {command} ")), "{own}");
    }
    assert!(run(&["--version"]).ok().stdout.starts_with("highwater "));
    for args in [
        &[][..],
        &["unknown"],
        &["serve"],
        &["init"],
        &["log"],
        &["log", "repair", "."],
        &["--verbose"],
        &["dev", "--port", "1"],
        &["demo", "--nodes", "3"],
        &["token"],
        &["init", "--nodes", "x", "--dir", "d"],
        &["status", "--watch"],
        &["changes"],
        &["changes", "db", "--limit", "0"],
        &["changes", "db", "--after", "-1"],
        &["changes", "db", "--after", "1", "--slot", "s"],
        &["slot"],
        &["slot", "list"],
        &["slot", "move", "db"],
        &["snapshot"],
        &["snapshot", "db", "--json"],
    ] {
        let output = run(args);
        assert_eq!(output.code(), Some(2), "{args:?}: {}", output.stderr);
        assert!(!output.stderr.trim().is_empty(), "{args:?}");
    }
}

#[test]
fn init_writes_a_cluster() {
    let scratch = Scratch::new("init");
    let dir = scratch.join("new/cluster");
    let _ = run(&["init", "--nodes", "3", "--dir", text(&dir)]).ok();
    let config = |id: u64| {
        fs::read_to_string(dir.join(format!("node-{id}/highwater.toml"))).expect("a configuration")
    };
    let mut ports = BTreeSet::new();
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let ephemeral: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    for id in 1..=3 {
        let node = dir.join(format!("node-{id}"));
        let names: BTreeSet<String> = fs::read_dir(&node)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected = ["cert.pem", "data", "highwater.toml", "key.pem"].map(String::from);
        assert_eq!(names, BTreeSet::from(expected));
        assert_eq!(fs::read_dir(node.join("data")).unwrap().count(), 0);
        let config = config(id);
        assert_eq!(setting(&config, "node"), Some(id.to_string()));
        assert_eq!(setting(&config, "auth").as_deref(), Some("none"));
        assert_eq!(setting(&config, "insecure_bind").as_deref(), Some("false"));
        assert_eq!(setting(&config, "data_dir").as_deref(), Some("data"));
        assert_eq!(setting(&config, "cluster"), setting(&self::config_of(&dir, 1), "cluster"));
        for key in ["address", "http"] {
            let address = setting(&config, key).unwrap();
            let (host, port) = address.rsplit_once(':').unwrap();
            let port: u16 = port.parse().unwrap();
            assert_eq!(host, "127.0.0.1");
            assert!(port < ephemeral && ports.insert(port), "{address}");
        }
    }
    for file in ["ca/ca.pem", "ca/ca.key"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    for key in ["ca/ca.key", "node-1/key.pem"] {
        let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{key} is a secret");
    }
}

fn config_of(dir: &Path, id: u64) -> String {
    fs::read_to_string(dir.join(format!("node-{id}/highwater.toml"))).expect("a configuration")
}

#[test]
fn init_takes_no_one_or_all_addresses() {
    let scratch = Scratch::new("addresses");
    let init = |name: &str, args: &[&str]| {
        let dir = scratch.join(name);
        let output = run(&[&["init", "--nodes", "2", "--dir", text(&dir)], args].concat());
        (dir, output)
    };
    let setting_of = |dir: &Path, id, key| setting(&config_of(dir, id), key).unwrap();
    // Nobody's address is not probed.
    let (dir, output) = init("one", &["--address", "192.0.2.9"]);
    let _ = output.ok();
    let addresses = [1, 2].map(|id| setting_of(&dir, id, "address"));
    assert!(addresses.iter().all(|address| address.starts_with("192.0.2.9:")), "{addresses:?}");
    assert_ne!(addresses[0], addresses[1]);
    // Without tokens, HTTP stays on loopback …
    assert!(setting_of(&dir, 1, "http").starts_with("127.0.0.1:"));
    // … unless that is waived: then it is served on the node's own address.
    let each = ["--address", "192.0.2.1:7001", "--address", "192.0.2.2", "--insecure-bind"];
    let (dir, output) = init("each", &each);
    let _ = output.ok();
    assert_eq!(setting_of(&dir, 1, "address"), "192.0.2.1:7001");
    assert!(setting_of(&dir, 2, "address").starts_with("192.0.2.2:"));
    assert!(setting_of(&dir, 1, "http").starts_with("192.0.2.1:"));
    assert!(setting_of(&dir, 2, "http").starts_with("192.0.2.2:"));
    assert_eq!(setting_of(&dir, 2, "insecure_bind"), "true");
    assert!(config_of(&dir, 2).contains("192.0.2.1:7001"), "a peer is where it is");

    for (name, args) in [
        ("three", &["--address", "a", "--address", "b", "--address", "c"][..]),
        ("host", &["--address", "a b"]),
        ("port", &["--address", "a:0"]),
        ("high", &["--address", "a:65536"]),
        ("twice", &["--address", "a:1", "--address", "a:1"]),
        ("token", &["--auth", "token"]),
    ] {
        let (dir, output) = init(name, args);
        assert_eq!(output.code(), Some(2), "{name}: {}", output.stderr);
        assert!(!dir.exists() || fs::read_dir(&dir).unwrap().next().is_none(), "{name}");
    }
    let (_, output) = init("auth", &["--auth", "none"]);
    let _ = output.ok();
    for nodes in ["0", "-1", "1000"] {
        let dir = scratch.join("count");
        assert_eq!(run(&["init", "--nodes", nodes, "--dir", text(&dir)]).code(), Some(2));
    }
}

#[test]
fn init_never_overwrites() {
    let scratch = Scratch::new("used");
    let dir = scratch.join("d");
    let init = || run(&["init", "--nodes", "1", "--dir", text(&dir)]);
    let _ = init().ok();
    let before = config_of(&dir, 1);
    let again = init();
    assert_eq!(again.code(), Some(2));
    assert!(again.stderr.contains("not empty"), "{}", again.stderr);
    assert_eq!(config_of(&dir, 1), before);
    // An empty directory is as good as none; a file is none.
    let empty = scratch.join("empty");
    fs::create_dir(&empty).unwrap();
    let _ = run(&["init", "--nodes", "1", "--dir", text(&empty)]).ok();
    let file = scratch.join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(run(&["init", "--nodes", "1", "--dir", text(&file)]).code(), Some(2));
    assert_ne!(run(&["init", "--nodes", "1", "--dir", "/proc/nowhere/d"]).code(), Some(0));
}

#[test]
fn a_node_runs_in_the_foreground_until_it_is_told_to_stop() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    node.start_as(&node.recipe(&["--log-format", "json"]));
    node.wait_ready();
    cluster.create("db");
    let _ = node.put(&record("db", "k"), "v").expect(201);
    assert!(node.terminate().success(), "{}", node.log());
    assert_eq!(fs::read_to_string(node.dir.join("stdout")).unwrap(), "", "logs are on stderr");
    for line in node.log().lines() {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(json["level"].is_string() && json["timestamp"].is_string(), "{line}");
    }
    // From any working directory: relative paths begin at the file.
    let relative = recipe(&["serve", "--config", "node-1/highwater.toml"]).dir(&cluster.dir);
    node.start_as(&relative);
    node.wait_ready();
    assert_eq!(node.get(&record("db", "k")).expect(200).text(), "v");
    assert!(node.data().join("oplog").is_dir());
}

#[test]
fn a_data_directory_is_used_by_one_process() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    // Other ports, so that nothing but the directory is in the way.
    let again = node.refuses(&["--http", "127.0.0.1:1025", "--address", "127.0.0.1:1025"]);
    assert_eq!(again.code(), Some(1));
    let stderr = again.stderr;
    assert!(stderr.contains("in use") && stderr.contains(text(&node.data())), "{stderr}");
    let _ = node.get("/healthz").expect(200);
    node.kill();
    node.start();
    node.wait_ready();
}

#[test]
fn a_port_in_use_is_an_error() {
    let cluster = Cluster::init(1, &[]);
    let node = cluster.node(1);
    let http = TcpListener::bind(node.http).unwrap();
    let refused = node.refuses(&[]);
    assert!(refused.stderr.contains(&node.http.to_string()), "{}", refused.stderr);
    drop(http);
    let quic = UdpSocket::bind(node.quic).unwrap();
    let refused = node.refuses(&[]);
    assert!(refused.stderr.contains(&node.quic.to_string()), "{}", refused.stderr);
    drop(quic);
    let elsewhere = node.refuses(&["--address", "192.0.2.1:7000"]);
    assert!(elsewhere.stderr.contains("192.0.2.1"), "{}", elsewhere.stderr);
    node.start();
    node.wait_ready();
}

#[test]
fn status_shows_the_cluster() {
    let node = SHARED.node(2);
    SHARED.create("status");
    let url = format!("http://{}", node.http);
    let config = node.config();
    for target in [&["--url", &url][..], &["--config", text(&config)]] {
        let json = run(&[&["status", "--json"], target].concat()).ok().stdout;
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["nodes"].as_array().map(Vec::len), Some(3), "{json}");
        let table = run(&[&["status"], target].concat()).ok().stdout;
        assert!(table.contains("ready") && table.contains(&node.http.to_string()), "{table}");
        assert!(table.lines().any(|line| line.starts_with("status ")), "{table}");
    }
    let scratch = Scratch::new("status");
    let nowhere = run(&["status", "--dir", text(scratch.path())]);
    assert_eq!(nowhere.code(), Some(2));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = run(&["status", "--url", &format!("http://{port}")]);
    assert_eq!(silent.code(), Some(1), "{}", silent.stderr);
}

#[test]
fn a_node_that_is_told_to_stop_hands_leadership_over() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    cluster.hand_over("db", 1);
    let _ = cluster.node(1).put(&record("db", "k"), "v").expect(201);
    let mut kept = cluster.node(1).client();
    let _ = kept.send(&Request::get("/healthz")).unwrap();
    let before = cluster.node(2).get("/v1/databases/db").json()["term"].as_u64();
    assert!(cluster.node(1).terminate().success());
    // It was handed over before the end: nobody had to miss it first.
    let row = cluster.node(2).get("/v1/databases/db").expect(200).json();
    assert!(row["leader"] == 2 || row["leader"] == 3, "{row}");
    assert!(row["term"].as_u64() > before);
    let _ = cluster.node(3).put(&record("db", "k?timeout_ms=1000"), "w").expect(200);
    cluster.node(1).start();
    cluster.node(1).wait_ready();
    assert_eq!(cluster.node(1).get(&record("db", "k")).expect(200).text(), "w");
    // A follower just leaves, also on SIGINT, and also while nobody else is there.
    for id in [3, 2, 1] {
        assert!(cluster.node(id).terminate().success(), "node {id}");
    }
    cluster.node(1).start();
    cluster.node(1).wait_ready();
    cluster.node(1).signal(Signal::INT);
    let status = cluster.node(1).wait_exit(PATIENCE + Duration::from_secs(1)).expect("it ends");
    assert!(status.success(), "{status}");
}
