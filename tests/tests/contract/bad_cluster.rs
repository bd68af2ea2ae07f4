//! Data directories that are not what the cluster believes them to be.

use std::{fs, thread, time::Duration};

use highwater_tests::{PATIENCE, binary::run, cluster::Cluster, eventually, http::Request};

use crate::record;

#[test]
fn the_data_of_another_cluster_or_node_is_refused() {
    let ours = Cluster::start(3);
    let theirs = Cluster::start(1);
    ours.create("db");
    let _ = ours.node(1).put(&record("db", "k"), "v").expect(201);
    for (id, data) in [(1, theirs.node(1).data()), (2, ours.node(3).data())] {
        theirs.node(1).kill();
        ours.node(id).kill();
        if id == 2 {
            ours.node(3).kill();
        }
        let refused = ours.node(id).refuses(&["--data-dir", data.to_str().unwrap()]);
        let what = if id == 1 { "another cluster, cluster" } else { "belongs to node 3" };
        let said = refused.stderr.contains("belongs to cluster") || refused.stderr.contains(what);
        assert!(said && refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
        ours.node(id).start();
        ours.node(id).wait_ready();
    }
    ours.node(3).start();
    ours.wait_ready();
    assert_eq!(ours.node(2).get(&record("db", "k")).expect(200).text(), "v");
    theirs.node(1).start();
    theirs.node(1).wait_ready();
}

#[test]
fn a_directory_that_lost_a_part_is_refused() {
    let cluster = Cluster::start(1);
    cluster.create("db");
    let node = cluster.node(1);
    let _ = node.put(&record("db", "k"), "v").expect(201);
    node.kill();
    let aside = node.dir.join("aside");
    for part in ["identity", "oplog"] {
        fs::rename(node.data().join(part), &aside).unwrap();
        let refused = node.refuses(&[]);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
        let _ = fs::remove_dir(node.data().join(part));
        fs::rename(&aside, node.data().join(part)).unwrap();
    }
    let identity = node.data().join("identity");
    let bytes = fs::read(&identity).unwrap();
    fs::write(&identity, vec![0x5a; bytes.len()]).unwrap();
    assert!(node.refuses(&[]).stderr.contains("identity"));
    fs::write(&identity, &bytes).unwrap();
    node.start();
    node.wait_ready();
    assert_eq!(node.get(&record("db", "k")).expect(200).text(), "v");
}

#[test]
fn a_wiped_node_follows_without_a_vote() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    cluster.hand_over("db", 1);
    for at in 0..50 {
        let _ = cluster.node(1).put(&record("db", &at.to_string()), "v").expect(201);
    }
    cluster.node(3).kill();
    fs::remove_dir_all(cluster.node(3).data()).unwrap();
    fs::create_dir(cluster.node(3).data()).unwrap();
    cluster.node(3).start();
    eventually("the wiped node has everything again", PATIENCE, || {
        let got = cluster.node(3).try_send(&Request::get(&record("db", "49?consistency=local")));
        got.is_ok_and(|got| got.status == 200).then_some(())
    });
    assert_eq!(cluster.records(3, "db", "local").len(), 50);
    for node in cluster.nodes() {
        let view = node.get("/v1/cluster").expect(200).json();
        let roles: Vec<&str> =
            view["nodes"].as_array().unwrap().iter().map(|n| n["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["voter", "voter", "learner"], "as node {} sees it", node.id);
    }
    // It serves clients as any other node …
    let _ = cluster.node(3).put(&record("db", "through"), "v").expect(201);
    // … but neither counts …
    cluster.node(2).kill();
    thread::sleep(Duration::from_secs(1));
    let put = cluster.node(3).put(&record("db", "x?timeout_ms=500"), "v");
    assert!(matches!(put.status, 503 | 504), "{}", put.text());
    cluster.node(2).start();
    // … nor leads.
    eventually("there is a quorum again", PATIENCE, || {
        (cluster.node(3).put(&record("db", "y?timeout_ms=500"), "v").status == 201).then_some(())
    });
    let post = Request::post("/v1/databases/db/leader?timeout_ms=1000", r#"{"node":3}"#);
    let refused = cluster.node(1).send(&post);
    assert!(refused.status >= 400, "{}", refused.text());
    assert_ne!(cluster.leader("db"), 3);
}

#[test]
fn wiped_nodes_never_found_a_cluster_over_one_that_knows_better() {
    let cluster = Cluster::start(3);
    cluster.create("db");
    let _ = cluster.node(1).put(&record("db", "k"), "v").expect(201);
    cluster.wait_caught_up(1, "db");
    cluster.nodes().iter().for_each(highwater_tests::cluster::Node::kill);
    for id in [2, 3] {
        fs::remove_dir_all(cluster.node(id).data()).unwrap();
        fs::create_dir(cluster.node(id).data()).unwrap();
        cluster.node(id).start();
    }
    let refuses = |id: u64| {
        let create = Request::new("PUT", "/v1/databases/other?timeout_ms=500");
        eventually("it answers", PATIENCE, || {
            let answer = cluster.node(id).try_send(&create).ok()?;
            assert!(answer.status >= 500, "node {id}: {}", answer.text());
            Some(())
        });
    };
    thread::sleep(Duration::from_secs(1));
    [2, 3].into_iter().for_each(refuses);
    // The majority of the configured nodes is blank; the one that is not blank decides.
    cluster.node(1).start();
    cluster.node(1).wait_ready();
    thread::sleep(Duration::from_secs(1));
    (1..=3).for_each(refuses);
    // What it knows, it keeps. Whether that was committed, a majority would have to say.
    cluster.node(1).kill();
    let data = cluster.node(1).data();
    let dump = run(&["log", "dump", data.to_str().unwrap()]).ok().stdout;
    assert!(dump.contains("put \"k\" 1 bytes"), "{dump}");
}
