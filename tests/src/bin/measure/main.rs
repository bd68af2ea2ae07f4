//! `cargo run --release -p highwater-tests --bin measure [-- --json] [-- --seconds S]`
//!
//! Measures a cluster of three real nodes on this machine, and says under which conditions: the
//! disk's own limit in the same run, durable acknowledged writes, what idling costs, and how long
//! a failover takes. Everything shares the machine, the load too.

mod conditions;
mod load;
mod report;
mod usage;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use highwater_tests::{binary, cluster::Cluster, http::Request, process::Recipe, scratch::Scratch};

use crate::{
    conditions::Conditions,
    report::{Failover, Idle, Report, Writes},
    usage::Usage,
};

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

struct Options {
    json: bool,
    seconds: u64,
}

fn options() -> Result<Options, String> {
    let mut options = Options { json: false, seconds: 5 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => options.json = true,
            "--seconds" => {
                let seconds = args.next().and_then(|text| text.parse().ok());
                options.seconds = seconds
                    .filter(|seconds| (1..=3600).contains(seconds))
                    .ok_or("--seconds takes a number from 1 to 3600")?;
            }
            other => {
                return Err(format!("{other}: unknown; usage: measure [--json] [--seconds S]"));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    say("building the binary");
    let _ = binary::path();
    let report = measure(&options);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
    } else {
        print!("{report}");
    }
    ExitCode::SUCCESS
}

fn say(text: &str) {
    eprintln!("{text} …");
}

fn measure(options: &Options) -> Report {
    let scratch = Scratch::new("measure");
    let conditions = Conditions::here(&scratch, options.seconds);
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
        writes(&cluster, leader, connections, Duration::from_secs(options.seconds))
    });
    let led = cluster.leader(DATABASE) == leader;
    say(&format!("idling with {DATABASES} databases"));
    create_databases(&cluster);
    let idle_many = self::idle(&cluster);
    drop(cluster);
    let fdatasync_after = disk(scratch.path());
    let failover = failover();
    Report {
        conditions,
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
    let _ = load::run(node.http, DATABASE, connections, Duration::from_secs(1));
    let (before, cpu, own_cpu) = (counters(), usage(cluster), own());
    let outcome = load::run(node.http, DATABASE, connections, duration);
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
