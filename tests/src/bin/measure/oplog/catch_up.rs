//! How fast a follower that was away catches up by the log, and what writers notice of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use highwater_tests::cluster::{Cluster, Node};

use super::{
    DATABASE, FILLERS, KEEP_ALL,
    figure::{Aim, Figure},
    fill,
};
use crate::{
    load::{Load, Outcome},
    options::Options,
    say,
    usage::Usage,
};

const AIM_PER_S: f64 = 500_000.0;
const FLOOR_PER_S: f64 = 250_000.0;
/// Times the p99 of the same load with nothing else.
const AIM_P99: f64 = 2.0;
/// Connections of the load whose p99 is compared.
const CONNECTIONS: usize = 16;
/// The node that is away, and the one that leads.
const AWAY: u64 = 3;
const LEADER: u64 = 1;
/// Longer than any catch-up may take.
const MOST: Duration = Duration::from_secs(600);

pub(crate) fn measure(options: &Options) -> Vec<Figure> {
    let cluster = super::cluster(3, &[KEEP_ALL]);
    cluster.hand_over(DATABASE, LEADER);
    let quiet = Load::small(cluster.node(LEADER).http, DATABASE, CONNECTIONS);
    say("writes with nothing else");
    let _ = quiet.last(Duration::from_secs(1));
    let idle = quiet.last(Duration::from_secs(options.seconds));
    say("a follower catches up");
    let alone = miss(&cluster, options.entries, |had| {
        CatchUp::watch(cluster.node(AWAY), cluster.node(LEADER), had)
    });
    say(&format!("{:.0} entries/s", alone.per_s()));
    say("a follower catches up under load");
    let (beside, busy) = miss(&cluster, options.entries, |had| {
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let load = scope.spawn(|| quiet.until(stop.clone()));
            let beside = CatchUp::watch(cluster.node(AWAY), cluster.node(LEADER), had);
            stop.store(true, Ordering::Relaxed);
            (beside, load.join().expect("the load"))
        })
    });
    let full = format!("highwater_resyncs_total{{database=\"{DATABASE}\",kind=\"full\"}}");
    assert!(
        cluster.nodes().iter().all(|node| node.metric(&full).unwrap_or_default() == 0.0),
        "a snapshot was taken: this is no catch-up by the log"
    );
    assert_eq!(cluster.leader(DATABASE), LEADER, "the leader changed");
    vec![
        alone.figure("catch-up of a follower", "nothing else"),
        beside.figure("catch-up of a follower under load", "16 connections that write"),
        p99(&idle, &busy),
    ]
}

/// Kills the follower, writes what it misses, and starts it again.
fn miss<T>(cluster: &Cluster, entries: u64, watch: impl FnOnce(f64) -> T) -> T {
    cluster.wait_caught_up(AWAY, DATABASE);
    let had = cluster.node(AWAY).metric(&mark("applied")).expect("the follower's watermark");
    cluster.node(AWAY).kill();
    fill(&Load::small(cluster.node(LEADER).http, DATABASE, FILLERS), entries);
    watch(had)
}

fn mark(mark: &str) -> String {
    format!("highwater_watermark{{database=\"{DATABASE}\",mark=\"{mark}\"}}")
}

fn p99(idle: &Outcome, busy: &Outcome) -> Figure {
    let text = |outcome: &Outcome| {
        format!(
            "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms, {} errors",
            outcome.latencies_us.len() as f64 / outcome.took.as_secs_f64(),
            outcome.percentile_ms(50.0),
            outcome.percentile_ms(99.0),
            outcome.percentile_ms(100.0),
            outcome.errors,
        )
    };
    let times = busy.percentile_ms(99.0) / idle.percentile_ms(99.0);
    let conditions = format!(
        "{CONNECTIONS} connections to the leader; with nothing else {}; during the catch-up {}",
        text(idle),
        text(busy)
    );
    let name = "commit p99 during a catch-up, against none";
    Figure::new(name, (times, "times"), Some(Aim::Under(AIM_P99)), conditions)
}

/// How a catch-up went.
struct CatchUp {
    /// Entries that were committed meanwhile.
    missed: f64,
    took: Duration,
    /// When all of them were seen to be durable in its log.
    logged: Duration,
    /// When the first of them was seen to be applied, and how many were left then.
    first: (Duration, f64),
    /// Of the node and of the leader.
    cpu: [Duration; 2],
}

impl CatchUp {
    /// Starts the node, which `had` so many entries, and watches until it has applied what was
    /// committed then.
    fn watch(node: &Node, leader: &Node, had: f64) -> CatchUp {
        let goal = leader.metric(&mark("committed")).expect("the leader's watermark");
        let lead = Usage::of(leader.pid()).cpu;
        let began = Instant::now();
        node.start();
        let (mut first, mut logged) = (None, None);
        loop {
            let took = began.elapsed();
            assert!(took < MOST, "node {} does not catch up: {}", node.id, node.log());
            if logged.is_none() && node.metric(&mark("durable")) >= Some(goal) {
                logged = Some(took);
            }
            // It may not answer yet, or not have applied again what it had.
            if let Some(applied) = node.metric(&mark("applied")).filter(|applied| *applied > had) {
                let first = *first.get_or_insert((took, goal - applied));
                if applied >= goal {
                    let logged = logged.unwrap_or(took);
                    let cpu = [node, leader].map(|node| Usage::of(node.pid()).cpu);
                    let cpu = [cpu[0], cpu[1] - lead];
                    return CatchUp { missed: goal - had, took, logged, first, cpu };
                }
            }
            thread::sleep(Duration::from_millis(40));
        }
    }

    fn figure(&self, name: &'static str, beside: &str) -> Figure {
        let CatchUp { missed, took, logged, first: (first, left), cpu } = self;
        let after = (*took - *first).as_secs_f64();
        let conditions = format!(
            "{missed:.0} × 256 bytes of 128,000 keys behind, by the log, {beside}; {:.2} s from the \
             process' start until applied, {:.2} s until durable in its log; {:.0}/s from the first \
             progress seen, after {:.2} s; CPU: it {:.1} s, the leader {:.1} s",
            took.as_secs_f64(),
            logged.as_secs_f64(),
            if after > 0.0 { left / after } else { f64::NAN },
            first.as_secs_f64(),
            cpu[0].as_secs_f64(),
            cpu[1].as_secs_f64(),
        );
        let aim = Some(Aim::Toward(AIM_PER_S, FLOOR_PER_S));
        Figure::new(name, (self.per_s(), "entries/s"), aim, conditions)
    }

    fn per_s(&self) -> f64 {
        self.missed / self.took.as_secs_f64()
    }
}
