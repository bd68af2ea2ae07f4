//! `highwater changes`, `slot` and `snapshot`: the commands of who consumes a database's changes.

use std::{fs, io, path::Path, time::Duration};

use highwater_tests::{
    PATIENCE,
    binary::{recipe, run},
    cluster::{Cluster, Node},
    eventually,
    http::Request,
    process::{Output, Process},
    scratch::Scratch,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{database, record};

fn ask(node: &Node, args: &[&str]) -> Output {
    run(&[args, &["--url", &format!("http://{}", node.http)]].concat())
}

/// Writes so many times; the LSNs.
fn write(node: &Node, database: &str, count: usize) -> Vec<u64> {
    let lsn = |n| {
        let put = node.put(&record(database, &format!("k{n}")), format!("{n}"));
        assert!(matches!(put.status, 200 | 201), "{}", put.text());
        put.json()["lsn"].as_u64().unwrap()
    };
    (0..count).map(lsn).collect()
}

/// The LSNs of changes that were printed as JSON; what is not a whole line does not count.
fn lsns(text: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lsn = |line: &str| serde_json::from_str::<Value>(line).unwrap()["lsn"].as_u64().unwrap();
    whole.lines().map(lsn).collect()
}

#[test]
fn changes_are_printed_in_pages_to_their_end() {
    let node = database("printed");
    // More than one page of the command's.
    let ops = |from: usize| -> Vec<Value> {
        let put = |n| serde_json::json!({"put": {"key": format!("k{n:05}"), "text": "12345"}});
        (from..from + 2).map(put).collect()
    };
    let mut told = Vec::new();
    for n in 0..1_050 {
        let body = serde_json::json!({ "ops": ops(n) }).to_string();
        let batch = node.send(&Request::post("/v1/databases/printed/batch", &body)).expect(200);
        told.push(batch.json()["lsn"].as_u64().unwrap());
    }
    let gone = node.send(&Request::delete(&record("printed", "k00000"))).expect(200);
    told.push(gone.json()["lsn"].as_u64().unwrap());
    let all = ask(node, &["changes", "printed", "--json"]).ok();
    assert_eq!(lsns(&all.stdout), told);
    let some = ask(node, &["changes", "printed", "--json", "--limit", "1001"]).ok();
    assert_eq!(lsns(&some.stdout), told[..1_001]);
    let after = told[1_040].to_string();
    let rest = ask(node, &["changes", "printed", "--after", &after]).ok().stdout;
    let lines: Vec<&str> = rest.lines().collect();
    assert!(lines[0].split_whitespace().eq(["LSN", "OP", "BYTES", "KEY"]), "{rest}");
    assert_eq!(lines.len(), 1 + 2 * 9 + 1, "a line for each op: {rest}");
    let first = [&told[1_041].to_string(), "put", "5", "k01041"];
    assert!(lines[1].split_whitespace().eq(first), "{rest}");
    let last = [&told[1_050].to_string(), "delete", "-", "k00000"];
    assert!(lines[19].split_whitespace().eq(last), "{rest}");
    // As the first page's reader leaves, that is the end, and no failure.
    let url = format!("http://{}", node.http);
    let path = highwater_tests::binary::path();
    let script = format!("{} changes printed --url {url} | head -n 1", path.display());
    let head = highwater_tests::process::Recipe::new(["bash", "-o", "pipefail", "-c", &script]);
    let head = head.run(PATIENCE).ok();
    assert_eq!((head.stdout.lines().count(), head.stderr.as_str()), (1, ""));
}

#[test]
fn a_slot_is_made_read_acknowledged_and_removed() {
    let node = database("commanded");
    let written = write(node, "commanded", 3);
    let slot = |args: &[&str]| ask(node, &[&["slot"], args].concat());
    assert_eq!(slot(&["list", "commanded"]).ok().stdout, "commanded has no slots\n");
    let create = ["create", "commanded", "mailer", "--from", "earliest", "--idle-timeout", "12h"];
    let made = slot(&create).ok().stdout;
    assert_eq!(made, "slot mailer of commanded is there; it begins after LSN 0\n");
    assert!(slot(&create).ok().stdout.contains("stood so already"));
    let other = slot(&["create", "commanded", "mailer", "--from", "latest"]);
    assert_eq!(other.code(), Some(1));
    assert!(other.stderr.contains("already_exists"), "{}", other.stderr);

    let read = |args: &[&str]| {
        let read = ["changes", "commanded", "--slot", "mailer", "--json"];
        lsns(&ask(node, &[&read, args].concat()).ok().stdout)
    };
    assert_eq!(read(&[]), written);
    assert_eq!(read(&["--limit", "1"]), written[..1]);
    let lsn = written[1].to_string();
    let acked = slot(&["ack", "commanded", "mailer", &lsn]).ok().stdout;
    assert_eq!(acked, format!("slot mailer of commanded has everything up to LSN {lsn}\n"));
    assert_eq!(read(&[]), written[2..]);

    let list = slot(&["list", "commanded"]).ok().stdout;
    let row = list.lines().nth(1).unwrap_or_else(|| panic!("{list}"));
    assert!(row.starts_with(&format!("mailer  active  {lsn} ")), "{list}");
    let shown = slot(&["show", "commanded", "mailer", "--json"]).ok().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["confirmed_lsn"], &shown["lag_ops"]), (&written[1].into(), &1.into()));
    assert!(shown["expires_in_ms"].as_u64().is_some_and(|ms| ms <= 12 * 3_600_000), "{shown}");

    let gone = slot(&["delete", "commanded", "mailer"]).ok().stdout;
    assert!(gone.contains("is gone"), "{gone}");
    for args in [
        &["show", "commanded", "mailer"][..],
        &["ack", "commanded", "mailer", "1"],
        &["delete", "commanded", "mailer"],
        &["list", "none-such"],
    ] {
        let output = slot(args);
        assert_eq!(output.code(), Some(1), "{args:?}");
        assert!(output.stderr.contains("no_such_"), "{}", output.stderr);
    }
    for args in [
        &["create", "commanded", "mailer"][..],
        &["create", "commanded", "mailer", "--from", "first"],
        &["create", "commanded", "mailer", "--from", "1", "--idle-timeout", "5"],
        &["create", "commanded", "mailer", "--from", "1", "--max-lag-ops", "0"],
        &["create", "commanded", "Bad.Name", "--from", "1"],
        &["ack", "commanded", "mailer"],
        &["list", "../x"],
    ] {
        let output = slot(args);
        assert_eq!(output.code(), Some(2), "{args:?}: {}", output.stderr);
    }
}

fn temporary(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.contains(".tmp")).collect()
}

#[test]
fn a_snapshot_is_saved_whole_or_not_at_all() {
    let node = database("saved");
    let written = write(node, "saved", 7);
    let scratch = Scratch::new("saved");
    let file = scratch.join("saved.ndjson");
    let out = ["--out", file.to_str().unwrap()];
    fs::write(&file, "what was there before").unwrap();
    let saved = ask(node, &[&["snapshot", "saved"], &out[..]].concat()).ok();
    let text = fs::read_to_string(&file).unwrap();
    let end: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&end["end"], &end["records"]), (&true.into(), &7.into()));
    assert_eq!(text.lines().count(), 8);
    let lsn = end["lsn"].as_u64().unwrap();
    assert!(lsn >= written[6] && saved.stderr.is_empty(), "{end} {}", saved.stderr);
    let next = format!("highwater changes saved --after {lsn}\n");
    assert!(saved.stdout.ends_with(&next), "{}", saved.stdout);
    assert!(temporary(scratch.path()).is_empty());

    let json = ask(node, &[&["snapshot", "saved", "--json"], &out[..]].concat()).ok().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["records"], 7);
    let printed = ask(node, &["snapshot", "saved"]).ok();
    assert_eq!(printed.stdout.lines().count(), 8);
    assert!(printed.stderr.contains("--after"), "{}", printed.stderr);

    let before = fs::read_to_string(&file).unwrap();
    let unknown = ask(node, &[&["snapshot", "none-such"], &out[..]].concat());
    assert_eq!(unknown.code(), Some(1));
    assert!(unknown.stderr.contains("no_such_database"), "{}", unknown.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert!(temporary(scratch.path()).is_empty());
    let dir = scratch.path().to_str().unwrap();
    assert_eq!(ask(node, &["snapshot", "saved", "--out", dir]).code(), Some(2));
}

/// A node that answers whatever it is asked with this, and then hangs up.
fn impostor(answer: &'static str) -> (String, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let _ = io::Read::read(&mut stream, &mut head).unwrap();
        io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
    });
    (url, serving)
}

#[test]
fn a_snapshot_that_is_not_whole_is_not_kept() {
    let scratch = Scratch::new("torn");
    let file = scratch.join("torn.ndjson");
    for (answer, why) in [
        ("{\"key\":\"a\"}\n", "closing line is missing"),
        ("{\"key\":\"a\"}\n{\"ke", "within a line"),
        (
            "{\"key\":\"a\"}\n{\"end\":true,\"lsn\":7,\"records\":2,\"root\":\"0\"}\n",
            "tells of another",
        ),
        ("{\"end\":true,\"lsn\":8,\"records\":0,\"root\":\"0\"}\n", "tells of another"),
        ("{\"key\":\"b\"}\n{\"key\":\"a\"}\n", "in the wrong place"),
        (
            "{\"key\":\"a\"}\n{\"error\":{\"title\":\"T\",\"status\":503,\"detail\":\"damaged\",\
             \"code\":\"not_ready\"}}\n",
            "not_ready",
        ),
    ] {
        let head = "HTTP/1.1 200 OK\r\nhighwater-lsn: 7\r\nconnection: close\r\n\r\n";
        let (url, serving) = impostor(format!("{head}{answer}").leak());
        let args = ["snapshot", "db", "--out", file.to_str().unwrap(), "--url", &url];
        let output = run(&args);
        assert_eq!(output.code(), Some(1), "{why}");
        assert!(output.stderr.contains(why), "{why}: {}", output.stderr);
        assert!(!file.exists() && temporary(scratch.path()).is_empty(), "{why}");
        serving.join().unwrap();
    }
}

#[test]
fn a_snapshot_that_is_stopped_leaves_nothing() {
    let scratch = Scratch::new("stopped");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let file = scratch.join("stopped.ndjson");
    let args = ["snapshot", "db", "--out", file.to_str().unwrap(), "--url", &url];
    let mut process = recipe(&args).start(&scratch.join("out"), &scratch.join("err"));
    // It is under way, and nobody answers.
    let _connection = listener.accept().unwrap();
    assert_eq!(temporary(scratch.path()).len(), 1);
    process.signal(Signal::INT);
    let status = process.wait(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let said = fs::read_to_string(scratch.join("err")).unwrap();
    assert!(said.contains("nothing was written"), "{said}");
    assert!(!file.exists() && temporary(scratch.path()).is_empty());
}

/// A `changes --follow --json` that runs.
struct Follower {
    scratch: Scratch,
    process: Process,
}

impl Follower {
    fn start(node: &Node, args: &[&str]) -> Follower {
        let scratch = Scratch::new("follower");
        let url = format!("http://{}", node.http);
        let fixed = ["changes", "db", "--follow", "--json", "--url", &url];
        let recipe = recipe(&[&fixed, args].concat());
        let process = recipe.start(&scratch.join("out"), &scratch.join("err"));
        Follower { scratch, process }
    }

    fn told(&self) -> Vec<u64> {
        lsns(&fs::read_to_string(self.scratch.join("out")).unwrap_or_default())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.scratch.join("err")).unwrap_or_default()
    }

    fn wait_for(&mut self, lsns: &[u64]) {
        eventually("it hears of everything", PATIENCE, || {
            assert!(self.process.is_alive(), "{}", self.said());
            let told = self.told();
            assert!(lsns.starts_with(&told), "{told:?}\nof {lsns:?}\n{}", self.said());
            (told == lsns).then_some(())
        });
    }
}

/// Writes through a node until that is acknowledged, and then a little more; all that took effect so
/// far, as that node's log has it. What was not acknowledged is no matter.
fn history(node: &Node) -> Vec<u64> {
    eventually("writes go on", PATIENCE, || {
        let put = node.put(&record("db", "settled?timeout_ms=1000"), "v");
        (put.status < 300).then_some(())
    });
    let last = write(node, "db", 3).pop();
    eventually("the node has applied its own writes", PATIENCE, || {
        let all = lsns(&ask(node, &["changes", "db", "--json"]).ok().stdout);
        (all.last().copied() == last).then_some(all)
    })
}

#[test]
fn a_follower_goes_on_with_another_node_and_misses_nothing() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let lsns = history(cluster.node(3));
    let (first, second) = (lsns[0].to_string(), lsns[1].to_string());
    let _ = ask(cluster.node(3), &["slot", "create", "db", "reader", "--from", &second]).ok();
    let mut plain = Follower::start(cluster.node(1), &["--after", &first]);
    let mut slotted = Follower::start(cluster.node(1), &["--slot", "reader"]);
    let mut hear = |lsns: &[u64]| {
        plain.wait_for(&lsns[1..]);
        slotted.wait_for(&lsns[2..]);
    };
    hear(&lsns);
    for victim in [1, 2, 1] {
        let other = victim % 2 + 1;
        cluster.node(victim).kill();
        hear(&history(cluster.node(3)));
        cluster.node(victim).start();
        cluster.node(victim).wait_ready();
        // Whoever leaves in good order is no different.
        assert!(cluster.node(other).terminate().success());
        hear(&history(cluster.node(3)));
        cluster.node(other).start();
        cluster.node(other).wait_ready();
    }
    // All nodes away and back: it has waited.
    cluster.nodes().iter().for_each(Node::kill);
    std::thread::sleep(Duration::from_millis(500));
    cluster.start_all();
    hear(&history(cluster.node(1)));
    assert!(plain.said().contains("going on after LSN"), "{}", plain.said());
    assert!(plain.said().contains("no node answers; still trying"), "{}", plain.said());
    plain.process.signal(Signal::TERM);
    assert!(plain.process.wait(PATIENCE).is_some());
}

#[test]
fn a_follower_with_a_limit_ends_and_one_that_asks_wrongly_fails() {
    let node = database("ended");
    let written = write(node, "ended", 4);
    let follow = ["changes", "ended", "--follow", "--json", "--limit", "3"];
    let output = ask(node, &follow).ok();
    assert_eq!(lsns(&output.stdout), written[..3]);
    for (args, code) in [
        (&["changes", "none-such", "--follow"][..], "no_such_database"),
        (&["changes", "ended", "--follow", "--slot", "none-such"], "no_such_slot"),
        (&["changes", "ended", "--follow", "--after", "1000000"], "lsn_out_of_range"),
    ] {
        let output = ask(node, args);
        assert_eq!(output.code(), Some(1), "{args:?}");
        assert!(output.stderr.contains(code) && output.stdout.is_empty(), "{}", output.stderr);
    }
    let nobody = run(&["changes", "ended", "--follow", "--url", "127.0.0.1:1"]);
    assert_eq!(nobody.code(), Some(1), "nobody ever answered: {}", nobody.stderr);
}
