//! `highwater dev`

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use highwater_tests::{
    PATIENCE,
    binary::{recipe, run},
    eventually,
    http::{Client, Request, Response},
    process::{Process, is_running, send},
    scratch::Scratch,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::record;

struct Dev {
    scratch: Scratch,
    process: Process,
}

#[derive(Clone, Debug, PartialEq)]
struct Child {
    id: u64,
    pid: Option<u32>,
    http: String,
}

impl Child {
    fn send(&self, request: &Request) -> Option<Response> {
        Client::new(self.http.parse().unwrap()).send(request).ok()
    }
}

impl Dev {
    fn start(args: &[&str]) -> Dev {
        let scratch = Scratch::new("dev");
        let process = Dev::launch(&scratch, args);
        let dev = Dev { scratch, process };
        dev.wait_healthy();
        dev
    }

    fn launch(scratch: &Scratch, args: &[&str]) -> Process {
        let dir = scratch.join("d");
        let args = [&["dev", "--dir", dir.to_str().unwrap()], args].concat();
        recipe(&args).start(&scratch.join("out"), &scratch.join("err"))
    }

    fn dir(&self) -> PathBuf {
        self.scratch.join("d")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.scratch.join(name)).unwrap_or_default()
    }

    fn wait_healthy(&self) {
        eventually("dev says that it runs", PATIENCE, || {
            self.read("out").contains("Ctrl-C").then_some(())
        });
    }

    fn children(&self) -> Vec<Child> {
        children(&self.dir()).expect("dev.json")
    }
}

fn children(dir: &Path) -> Option<Vec<Child>> {
    let json: Value = serde_json::from_slice(&fs::read(dir.join("dev.json")).ok()?).ok()?;
    let nodes = json["nodes"].as_array()?.iter().map(|row| Child {
        id: row["id"].as_u64().expect("an id"),
        pid: row["pid"].as_u64().map(|pid| pid as u32),
        http: row["http"].as_str().expect("an address").to_owned(),
    });
    Some(nodes.collect())
}

#[test]
fn dev_runs_a_cluster_that_is_kept_between_runs() {
    let mut dev = Dev::start(&[]);
    let before = dev.children();
    assert_eq!(before.iter().map(|child| child.id).collect::<Vec<_>>(), [1, 2, 3]);
    let pids: BTreeSet<u32> = before.iter().map(|child| child.pid.expect("a pid")).collect();
    assert!(pids.len() == 3 && pids.iter().all(|pid| is_running(*pid)));

    // It prints URLs, PIDs, three lines of curl that work as they stand, and a kill.
    let out = dev.read("out");
    for child in &before {
        assert!(out.contains(&format!("http://{}", child.http)), "{out}");
        assert!(out.contains(&child.pid.unwrap().to_string()), "{out}");
    }
    assert!(out.contains("kill -9 "), "{out}");
    let lines: Vec<&str> =
        out.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(lines.len(), 3, "{out}");
    for line in &lines {
        let curl = format!("curl -sS --fail {}", line.strip_prefix("curl ").unwrap());
        let printed = highwater_tests::process::Recipe::new(["sh", "-c", &curl]).run(PATIENCE).ok();
        assert!(!printed.stdout.is_empty(), "{line}");
    }

    // status finds it by its directory.
    let status = run(&["status", "--json", "--dir", dev.dir().to_str().unwrap()]).ok().stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["databases"][0]["name"], "demo");

    // A second one in the same directory is refused.
    let again = run(&["dev", "--dir", dev.dir().to_str().unwrap()]);
    assert!(again.code() != Some(0) && again.stderr.contains("another"), "{}", again.stderr);

    // What dies is started again, under the same address and a new PID.
    send(before[0].pid.unwrap(), Signal::KILL);
    eventually("node 1 runs again", PATIENCE, || {
        let now = dev.children();
        let new = now[0].pid.filter(|pid| Some(*pid) != before[0].pid)?;
        assert_eq!(now[0].http, before[0].http);
        let ready = now[0].send(&Request::get("/readyz"))?;
        (ready.status == 200 && is_running(new)).then_some(())
    });

    // Ctrl-C and SIGTERM stop it in order; the data stays.
    dev.process.signal(Signal::TERM);
    assert!(dev.process.wait(PATIENCE).expect("it ends").success());
    for child in dev.children() {
        assert_eq!(child.pid, None, "dev.json says that nothing runs");
    }
    assert!(pids.iter().all(|pid| !is_running(*pid)));
    fs::remove_file(dev.scratch.join("out")).unwrap();
    dev.process = Dev::launch(&dev.scratch, &[]);
    dev.wait_healthy();
    let now = dev.children();
    assert_eq!(now[2].http, before[2].http);
    let got = now[2].send(&Request::get(&record("demo", "greeting"))).unwrap();
    assert_eq!(got.expect(200).text(), "hello");
    dev.process.signal(Signal::INT);
    assert!(dev.process.wait(PATIENCE).expect("it ends").success());

    let other = run(&["dev", "--nodes", "5", "--dir", dev.dir().to_str().unwrap()]);
    assert_eq!(other.code(), Some(2), "it holds three nodes: {}", other.stderr);
}

#[test]
fn with_no_restart_any_node_may_die_and_rejoin() {
    let dev = Dev::start(&["--no-restart"]);
    let children = dev.children();
    let create = Request::new("PUT", "/v1/databases/db");
    let _ = children[0].send(&create).unwrap().expect(201);
    let mut serving: Vec<Process> = Vec::new();
    for victim in 0..3 {
        let pid = match victim {
            0 => children[0].pid.unwrap(),
            _ => dev.children()[victim].pid.unwrap(),
        };
        send(pid, Signal::KILL);
        for (at, child) in children.iter().enumerate().filter(|(at, _)| *at != victim) {
            let target = record("db", &format!("{victim}-{at}"));
            // In flight when the leader died, a write may be unknown; then nobody knows better.
            eventually("writes go on", PATIENCE, || {
                let put = child.send(&Request::put(&target, "v"))?;
                matches!(put.status, 200 | 201).then_some(())
            });
            assert_eq!(child.send(&Request::get(&target)).unwrap().expect(200).text(), "v");
        }
        // It stays away, and dev goes on …
        eventually("dev.json says so", PATIENCE, || {
            dev.children()[victim].pid.is_none().then_some(())
        });
        assert!(children[victim].send(&Request::get("/healthz")).is_none());
        // … until somebody starts it as dev says.
        let config = dev.dir().join(format!("node-{}/highwater.toml", victim + 1));
        assert!(dev.read("err").contains("serve --config"), "{}", dev.read("err"));
        let serve = recipe(&["serve", "--config", config.to_str().unwrap()]);
        serving.push(serve.start(&dev.scratch.join("serve.out"), &dev.scratch.join("serve.err")));
        eventually("it is ready again", PATIENCE, || {
            let ready = children[victim].send(&Request::get("/readyz"))?;
            (ready.status == 200).then_some(())
        });
        for at in (0..3).filter(|at| *at != victim) {
            let target = record("db", &format!("{victim}-{at}"));
            assert_eq!(
                children[victim].send(&Request::get(&target)).unwrap().expect(200).text(),
                "v"
            );
        }
    }
}

#[test]
fn the_children_die_with_a_killed_dev() {
    let mut dev = Dev::start(&["--nodes", "1"]);
    let pids: Vec<u32> = dev.children().iter().filter_map(|child| child.pid).collect();
    assert_eq!(pids.len(), 1);
    dev.process.kill();
    eventually("its children are gone", Duration::from_secs(5), || {
        pids.iter().all(|pid| !is_running(*pid)).then_some(())
    });
    // And the directory is free again.
    fs::remove_file(dev.scratch.join("out")).unwrap();
    dev.process = Dev::launch(&dev.scratch, &[]);
    dev.wait_healthy();
    assert_eq!(dev.children().len(), 1);
}

#[test]
fn dev_does_not_touch_what_is_not_its_own() {
    let scratch = Scratch::new("devused");
    let dir = scratch.join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "years of work").unwrap();
    let refused = run(&["dev", "--dir", dir.to_str().unwrap()]);
    assert_eq!(refused.code(), Some(2), "{}", refused.stderr);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}
