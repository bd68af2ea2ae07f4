//! What a disk does to what was synced: flipped bits, a directory restored from a copy, a directory
//! that is gone. Nothing acknowledged may be missing, nothing wrong may be served, and the node says
//! what happened.

use std::{
    fs,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use highwater_tests::{
    PATIENCE,
    cluster::{Cluster, Node},
    eventually,
    http::Request,
    load::Load,
};

use crate::{addresses, put_through, record};

/// The files of a directory whose names have this ending, in order.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.to_str().is_some_and(|name| name.ends_with(ending))).collect();
    files.sort();
    files
}

/// Flips one bit of a value, wherever these files hold it. The file.
fn flip_in(files: &[PathBuf], value: &str) -> PathBuf {
    for file in files {
        let mut bytes = fs::read(file).expect("a file");
        let found = bytes.windows(value.len()).position(|part| part == value.as_bytes());
        if let Some(at) = found {
            bytes[at + value.len() / 2] ^= 1;
            fs::write(file, bytes).expect("it can be written");
            return file.clone();
        }
    }
    panic!("{value} is in none of {files:?}");
}

/// Flips one bit of a value in a file that a process has open.
fn flip_under(file: &Path, value: &str) {
    let file = fs::File::options().read(true).write(true).open(file).expect("a file");
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).expect("it can be read");
    let found = bytes.windows(value.len()).position(|part| part == value.as_bytes());
    let at = found.expect("the value") + value.len() / 2;
    file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("it can be written");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

fn role(cluster: &Cluster, asked: u64, of: u64) -> String {
    let view = cluster.node(asked).get("/v1/cluster").expect(200).json();
    let nodes = view["nodes"].as_array().expect("nodes").clone();
    let node = nodes.iter().find(|node| node["id"] == of).expect("the node");
    node["role"].as_str().expect("a role").to_owned()
}

fn says(node: &Node, what: &str) {
    eventually(&format!("node {} says {what:?}", node.id), PATIENCE, || {
        node.log().contains(what).then_some(())
    });
}

/// A follower of the database's leader, and the other one.
fn followers(cluster: &Cluster) -> (u64, u64, u64) {
    let leader = cluster.leader("db");
    let mut others = (1..=3).filter(|id| *id != leader);
    (leader, others.next().unwrap(), others.next().unwrap())
}

/// Keys of their own, so that nothing overwrites them; the first value that is to be found on disks.
fn write_some(cluster: &Cluster, count: usize) -> String {
    for n in 0..count {
        put_through(cluster, 1, &format!("own/{n}"), &format!("the very own value of {n}."));
    }
    format!("the very own value of {}.", count / 2)
}

fn check_own(cluster: &Cluster, node: u64, count: usize) {
    for n in 0..count {
        let got = cluster.node(node).get(&record("db", &format!("own/{n}")));
        assert_eq!(got.expect(200).text(), format!("the very own value of {n}."));
    }
}

#[test]
fn a_flipped_bit_in_the_oplog_is_found_repaired_and_costs_no_vote() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", 4);
    load.wait_acked(100);
    let value = write_some(&cluster, 20);
    load.wait_acked(100);
    let (leader, victim, _) = followers(&cluster);
    cluster.node(victim).kill();
    let file = flip_in(&files(&cluster.node(victim).data().join("oplog"), ""), &value);
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();
    says(cluster.node(victim), "damage");
    load.wait_acked(100);
    cluster.wait_caught_up(victim, "db");
    says(cluster.node(victim), "it votes");
    assert_eq!(role(&cluster, victim, victim), "voter", "{file:?}");
    // It does: without the leader, the other one needs it.
    cluster.node(leader).kill();
    load.wait_acked(100);
    cluster.node(leader).start();
    cluster.node(leader).wait_ready();
    let journal = load.stop();
    journal.verify(&cluster, &[1, 2, 3]);
    check_own(&cluster, victim, 20);
}

#[test]
fn a_directory_restored_from_a_copy_is_fenced() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let load = Load::start(&addresses(&cluster), "db", 4);
    load.wait_acked(100);
    let (leader, victim, other) = followers(&cluster);
    let data = cluster.node(victim).data();
    let copy = data.with_file_name("an-hour-ago");
    assert!(cluster.node(victim).terminate().success());
    copy_dir(&data, &copy);
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();
    cluster.wait_caught_up(victim, "db");
    // What is acknowledged now rests on the leader's disk and the victim's.
    cluster.node(other).kill();
    load.wait_acked(200);
    cluster.node(victim).kill();
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    cluster.node(victim).start();
    says(cluster.node(victim), "fenced");
    cluster.node(other).start();
    cluster.node(other).wait_ready();
    load.wait_acked(100);
    eventually("it follows without a vote", PATIENCE, || {
        (role(&cluster, leader, victim) == "learner").then_some(())
    });
    cluster.wait_caught_up(victim, "db");
    // It does not vote: without the leader there is none.
    cluster.node(leader).kill();
    let late = cluster.node(victim).put(&record("db", "late?timeout_ms=2000"), "v");
    assert!(late.status >= 500, "{late:?}");
    cluster.node(leader).start();
    cluster.node(leader).wait_ready();
    load.wait_acked(50);
    let journal = load.stop();
    journal.verify(&cluster, &[1, 2, 3]);
}

#[test]
fn a_flipped_bit_in_a_databases_state_is_rebuilt_from_the_oplog() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    cluster.create("apart");
    let _ = cluster.node(1).put(&record("apart", "k"), "v").expect(201);
    let (leader, victim, _) = followers(&cluster);
    let mut client = cluster.node(leader).client();
    // So much that the state is flushed.
    let padding = vec![b'x'; 128 << 10];
    for n in 0..200 {
        let mut value = format!("the very own value of {n}.").into_bytes();
        value.extend_from_slice(&padding);
        let target = record("db", &format!("own/{n}"));
        let _ = client.send(&Request::put(&target, &value)).unwrap().expect(201);
    }
    cluster.wait_caught_up(victim, "db");
    let state = cluster.node(victim).data().join("state");
    let held = || {
        files(&state, ".redb").into_iter().any(|file| {
            let bytes = fs::read(file).unwrap_or_default();
            bytes.windows(26).any(|part| part == b"the very own value of 100.")
        })
    };
    eventually("the state is flushed", PATIENCE, || held().then_some(()));
    cluster.node(victim).kill();
    flip_in(&files(&state, ".redb"), "the very own value of 100.");
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();
    let target = record("db", "own/100?consistency=local");
    eventually("the value is served again", PATIENCE, || {
        let got = cluster.node(victim).get(&target);
        // Nothing wrong meanwhile.
        assert!(got.status == 200 || got.status == 503, "{got:?}");
        (got.status == 200).then(|| assert!(got.text().starts_with("the very own value of 100.")))
    });
    says(cluster.node(victim), "rebuilt");
    cluster.wait_caught_up(victim, "db");
    let local = |id| cluster.records(id, "db", "local");
    assert!(local(victim) == local(leader), "the replicas differ");
    assert_eq!(cluster.node(victim).get(&record("apart", "k")).expect(200).text(), "v");
}

/// Nobody reads the record, and the process has its page in memory.
#[test]
fn the_scrub_finds_a_flipped_bit_that_nobody_reads() {
    let cluster = Cluster::init(3, &[]);
    for node in cluster.nodes() {
        node.edit_config("bytes_per_s = 4194304", "bytes_per_s = 1000000000");
        node.edit_config("pause_ms = 60000", "pause_ms = 2000");
    }
    cluster.start_all();
    cluster.wait_ready();
    cluster.create("db");
    let (leader, victim, _) = followers(&cluster);
    let mut client = cluster.node(leader).client();
    let padding = vec![b'x'; 128 << 10];
    for n in 0..200 {
        let mut value = format!("the very own value of {n}.").into_bytes();
        value.extend_from_slice(&padding);
        let target = record("db", &format!("own/{n}"));
        let _ = client.send(&Request::put(&target, &value)).unwrap().expect(201);
    }
    cluster.wait_caught_up(victim, "db");
    let state = cluster.node(victim).data().join("state");
    let held = || {
        files(&state, ".redb").into_iter().find(|file| {
            let bytes = fs::read(file).unwrap_or_default();
            bytes.windows(26).any(|part| part == b"the very own value of 100.")
        })
    };
    let file = eventually("the state is flushed", PATIENCE, held);
    eventually("no checkpoint is under way, which would read it", PATIENCE, || {
        let changed = fs::metadata(&file).and_then(|file| file.modified()).expect("a file");
        changed.elapsed().is_ok_and(|ago| ago > Duration::from_secs(1)).then_some(())
    });
    let metric = |name: &str| cluster.node(victim).metric(name);
    let scrubbed = "highwater_scrubbed_timestamp_seconds{database=\"db\"}";
    let _ = eventually("a pass finds nothing", PATIENCE, || metric(scrubbed));
    assert_eq!(metric("highwater_scrub_failures_total"), Some(0.0));
    flip_under(&file, "the very own value of 100.");
    let other = record("db", "own/3?consistency=local");
    eventually("the scrub finds it", PATIENCE, || {
        let got = cluster.node(victim).get(&other);
        assert!(got.status == 200 || got.status == 503, "{got:?}");
        (metric("highwater_scrub_failures_total") == Some(1.0)).then_some(())
    });
    says(cluster.node(victim), "the scrub found a state that is not what was written");
    says(cluster.node(victim), "rebuilt, and served again");
    cluster.wait_caught_up(victim, "db");
    let local = |id| cluster.records(id, "db", "local");
    assert!(local(victim) == local(leader), "the replicas differ");
    // What an audit says of all three.
    let _ = cluster.node(victim).put(&record("db", "last"), "v").expect(201);
    let roots = || {
        let root = |id| cluster.node(id).get("/v1/databases/db").expect(200).json()["root"].clone();
        let roots = [1, 2, 3].map(root);
        let same = roots.iter().all(|root| root["lsn"] == roots[0]["lsn"]);
        (same && !roots[0].is_null()).then_some(roots)
    };
    let roots = eventually("an audit of all", PATIENCE, roots);
    assert!(roots.iter().all(|root| root["hash"] == roots[0]["hash"]), "{roots:?}");
    assert_eq!(metric("highwater_divergences_total{database=\"db\"}"), Some(0.0));
}

#[test]
fn a_leader_that_cannot_read_its_history_has_it_from_a_peer() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let value = write_some(&cluster, 20);
    let (leader, victim, other) = followers(&cluster);
    // The next segment is begun, so that the damage is in one that no start looks into.
    let large = vec![b'x'; 512 << 10];
    let mut client = cluster.node(leader).client();
    for n in 0..140 {
        let target = record("db", &format!("large/{n}"));
        let _ = client.send(&Request::put(&target, &large)).unwrap().expect(201);
    }
    cluster.wait_caught_up(victim, "db");
    cluster.wait_caught_up(other, "db");
    cluster.node(leader).kill();
    let segments = files(&cluster.node(leader).data().join("oplog"), "");
    flip_in(&segments[..1], &value);
    cluster.node(leader).start();
    cluster.node(leader).wait_ready();
    cluster.wait_caught_up(leader, "db");
    cluster.hand_over("db", leader);
    // A blank node needs all of the history, and its leader has not got all of it.
    cluster.node(victim).kill();
    fs::remove_dir_all(cluster.node(victim).data()).unwrap();
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();
    cluster.wait_caught_up(victim, "db");
    says(cluster.node(leader), "damaged entries were fetched from a peer");
    check_own(&cluster, victim, 20);
    let local = |id| cluster.records(id, "db", "local");
    assert!(local(victim) == local(leader), "the replicas differ");
    assert_eq!(cluster.leader("db"), leader, "it leads on");
}
