//! Durable acknowledged writes, the disk's own limit in the same run, what idling costs, and how long
//! a failover takes.

mod report;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use highwater_tests::{binary, cluster::Cluster, http::Request, process::Recipe, scratch::Scratch};

pub(crate) use self::report::Report;
use self::report::{Failover, Idle, Writes};
use crate::{load::Load, say, usage::Usage};

const DATABASE: &str = "measure";
/// Connections at a time.
const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// Idling is measured with the one database, and with so many.
const DATABASES: usize = 2_000;
/// Clients that create them.
const CREATORS: usize = 16;
/// How long nothing happens before idling is measured, and how long that takes.
const SETTLE: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);
/// How long the disk is asked.
const DISK: Duration = Duration::from_secs(1);
/// Failovers.
const DEMOS: usize = 5;
/// How long a demo may take.
const DEMO: Duration = Duration::from_secs(120);

/// Measures.
pub(crate) fn measure(scratch: &Scratch, seconds: u64) -> Report {
    say("the disk");
    let disk = |dir| highwater::probe::fdatasync_per_s(dir, DISK).expect("the disk can be written");
    let fdatasync_before = disk(scratch.path());
    let cluster = Cluster::start(3);
    cluster.create(DATABASE);
    let leader = cluster.leader(DATABASE);
    say("idling");
    let idle = idle(&cluster);
    let writes = CONNECTIONS.map(|connections| {
        say(&format!("{connections} connections"));
        writes(&cluster, leader, connections, Duration::from_secs(seconds))
    });
    let led = cluster.leader(DATABASE) == leader;
    say(&format!("idling with {DATABASES} databases"));
    create_databases(&cluster);
    let idle_many = self::idle(&cluster);
    drop(cluster);
    let fdatasync_after = disk(scratch.path());
    let failover = failover();
    Report {
        settings: format!(
            "three nodes and the load on this machine, loopback, TLS between the nodes, 256-byte \
             values, quorum acks, closed loop with keep-alive to the leader's node, {seconds} s \
             each, defaults otherwise"
        ),
        fdatasync_per_s: [fdatasync_before, fdatasync_after],
        idle,
        databases: DATABASES,
        idle_many,
        writes: writes.into(),
        leader_stayed: led,
        failover,
    }
}

fn create_databases(cluster: &Cluster) {
    let next = AtomicUsize::new(1);
    thread::scope(|scope| {
        for node in cluster.nodes().iter().cycle().take(CREATORS) {
            scope.spawn(|| {
                let mut client = node.client();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= DATABASES {
                        return;
                    }
                    let target = format!("/v1/databases/idle-{at}?timeout_ms=30000");
                    let _ =
                        client.send(&Request::new("PUT", &target)).expect("an answer").expect(201);
                }
            });
        }
    });
}

fn usage(cluster: &Cluster) -> Vec<Usage> {
    cluster.nodes().iter().map(|node| Usage::of(node.pid())).collect()
}

fn idle(cluster: &Cluster) -> Idle {
    thread::sleep(SETTLE);
    let before = usage(cluster);
    thread::sleep(IDLE);
    let after = usage(cluster);
    let percent = |(before, after): (&Usage, &Usage)| {
        (after.cpu - before.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0
    };
    Idle {
        cpu_percent: before.iter().zip(&after).map(percent).collect(),
        rss_mib: after.iter().map(Usage::rss_mib).collect(),
    }
}

fn writes(cluster: &Cluster, leader: u64, connections: usize, duration: Duration) -> Writes {
    let node = cluster.node(leader);
    let counters = || {
        let of = |name: &str| node.metric(name).unwrap_or_default();
        let acked = of("highwater_writes_acked_total{durability=\"quorum\"}");
        (acked, of("highwater_oplog_syncs_total"))
    };
    let own = || Usage::of(std::process::id()).cpu;
    // Warm, so that neither connections nor pages are new.
    let load = Load::small(node.http, DATABASE, connections);
    let _ = load.last(Duration::from_secs(1));
    let (before, cpu, own_cpu) = (counters(), usage(cluster), own());
    let outcome = load.last(duration);
    let own_cpu = own() - own_cpu;
    let (after, cpu_after) = (counters(), usage(cluster));
    let server_cpu: f64 =
        cpu.iter().zip(&cpu_after).map(|(b, a)| (a.cpu - b.cpu).as_secs_f64()).sum();
    Writes {
        connections,
        per_s: outcome.latencies_us.len() as f64 / outcome.took.as_secs_f64(),
        p50_ms: outcome.percentile_ms(50.0),
        p99_ms: outcome.percentile_ms(99.0),
        max_ms: outcome.percentile_ms(100.0),
        errors: outcome.errors,
        acks_per_fdatasync: (after.0 - before.0) / (after.1 - before.1).max(1.0),
        server_cpu_s_per_100k: server_cpu * 100_000.0 / outcome.latencies_us.len().max(1) as f64,
        load_cpu_s: own_cpu.as_secs_f64(),
        rss_mib: cpu_after.iter().map(Usage::rss_mib).sum(),
    }
}

fn failover() -> Failover {
    let mut gaps_ms: Vec<u64> = (1..=DEMOS)
        .map(|run| {
            say(&format!("failover {run} of {DEMOS}"));
            let recipe: Recipe = binary::recipe(&["demo", "--json"]);
            let json: serde_json::Value =
                serde_json::from_str(&recipe.run(DEMO).ok().stdout).expect("what demo prints");
            json["longest_gap_ms"].as_u64().expect("a gap")
        })
        .collect();
    gaps_ms.sort_unstable();
    Failover { median_ms: gaps_ms[DEMOS / 2], gaps_ms }
}
