//! `highwater demo`: kills the leader under load, and counts what became of every write.

mod verify;
mod writers;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time;

use self::{verify::Verified, writers::Load};
use crate::{
    client::Client,
    failure::{Context, Failure},
    fleet::{self, Fleet, Lead},
    init::{self, Plan},
    probe,
};

/// The database that is written to.
const DATABASE: &str = "demo";
/// Acknowledged writes at least.
const WRITES: usize = 5_000;
/// Acknowledged writes before the kill, and after it, at least.
const BEFORE: usize = 2_500;
const AFTER: usize = 1_000;
/// How long any phase may take.
const PHASE: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);
const STOP: Duration = Duration::from_secs(15);

/// What `demo` is asked for.
#[derive(Clone, Debug)]
pub struct Demo {
    /// Whether the outcome is printed as JSON.
    pub json: bool,
    /// A hook for tests: before the writes are verified, makes this file, which tells where the
    /// nodes are and one acknowledged key, and waits until it is removed.
    pub pause_before_verify: Option<PathBuf>,
}

/// What happened, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Acknowledged writes that at least one node does not have.
    pub lost: usize,
    /// Writes whose outcome the client was not told.
    pub unknown: usize,
    /// The longest time between two acknowledgements.
    pub longest_gap_ms: u64,
    /// Who led before the kill.
    pub leader_before: u64,
    /// Who leads after it.
    pub leader_after: u64,
    /// Its term.
    pub term: u64,
    /// What this disk can do at most, measured in this run.
    pub fdatasync_per_s: u64,
}

/// Runs the demonstration.
///
/// # Errors
/// Where it could not be carried out, or an acknowledged write is lost.
pub async fn demo(demo: &Demo) -> Result<(), Failure> {
    let temp = tempfile::Builder::new()
        .prefix("highwater-demo-")
        .tempdir()
        .context(|| "can't make a temporary directory".to_owned())?;
    let exe = std::env::current_exe().context(|| "can't find this program".to_owned())?;
    let dir = temp.path().join("cluster");
    let plan = Plan { dir, nodes: 3, addresses: Vec::new(), insecure_bind: false };
    let mut fleet = Fleet::new(exe, init::init(&plan)?);
    let stop = fleet::told_to_stop()?;
    let ran = tokio::select! {
        biased;
        () = stop => Err(Failure::runtime("interrupted; nothing was shown")),
        ran = run(demo, temp.path(), &mut fleet) => ran,
    };
    fleet.stop(STOP).await;
    let (outcome, revived) = ran.inspect_err(|_| {
        for member in &fleet.members {
            eprintln!("node {}, the end of its log:\n{}", member.node.id, member.log_tail());
        }
    })?;
    print(demo, &outcome)?;
    if outcome.lost == 0 && revived == 0 {
        return Ok(());
    }
    let kept = temp.keep();
    Err(Failure::runtime(format!(
        "{} acknowledged writes are lost, and {revived} took effect although they were refused. \
         This must never happen; please report it with {}",
        outcome.lost,
        kept.display()
    )))
}

async fn run(demo: &Demo, temp: &Path, fleet: &mut Fleet) -> Result<(Outcome, usize), Failure> {
    let fdatasync_per_s =
        probe::fdatasync_per_s(temp, PROBE).context(|| "can't measure the disk".to_owned())?;
    say("starting three nodes …");
    fleet.start_all()?;
    fleet.wait_healthy(PHASE).await?;
    let nodes: Vec<String> = fleet.members.iter().map(|member| member.node.http.clone()).collect();
    create_database(&nodes[0]).await?;
    let before = leader(&nodes, None).await?;

    say(&format!("node {} leads; {} clients write …", before.0, writers::WRITERS));
    let load = Load::start(DATABASE, &nodes);
    reach("acknowledged writes before the kill", || load.acked() >= BEFORE).await?;
    reach("writes in flight", || load.in_flight() > 0).await?;
    let victim = usize::try_from(before.0).unwrap_or(usize::MAX).saturating_sub(1);
    let acked_before = load.acked();
    fleet.kill(victim).await?;
    say(&format!("killed node {} with -9 after {acked_before} acknowledged writes …", before.0));
    let enough = || load.acked() >= WRITES && load.acked() >= acked_before + AFTER;
    reach("acknowledged writes after the kill", enough).await?;
    let tally = load.stop().await;
    let after = leader(&nodes, Some(before.0)).await?;
    say(&format!(
        "node {} took over; the longest gap between two acknowledgements was {} ms",
        after.0,
        tally.longest_gap.as_millis()
    ));

    say(&format!("starting node {} again …", before.0));
    fleet.start(victim)?;
    fleet.wait_healthy(PHASE).await?;
    if let Some(path) = &demo.pause_before_verify {
        pause(path, fleet, tally.acked.first().map_or("", String::as_str)).await?;
    }
    say(&format!("reading {} writes back from every node …", tally.acked.len()));
    let Verified { lost, revived } = verify::verify(DATABASE, &nodes, &tally).await?;
    let outcome = Outcome {
        acknowledged: tally.acked.len(),
        lost,
        unknown: tally.unknown.len(),
        longest_gap_ms: u64::try_from(tally.longest_gap.as_millis()).unwrap_or(u64::MAX),
        leader_before: before.0,
        leader_after: after.0,
        term: after.1,
        fdatasync_per_s,
    };
    Ok((outcome, revived))
}

async fn create_database(node: &str) -> Result<(), Failure> {
    let mut client = Client::new(node, PHASE);
    let path = format!("/v1/databases/{DATABASE}?timeout_ms=30000");
    let failed = || "can't create the database".to_owned();
    let reply = client.put(&path, "").await.context(failed)?;
    if reply.status.is_success() {
        return Ok(());
    }
    Err(Failure::runtime(format!("{}: {}", failed(), reply.text())))
}

/// Who leads, and in which term; waits for a leader that is not `other`.
async fn leader(nodes: &[String], other: Option<u64>) -> Result<(u64, u64), Failure> {
    let began = Instant::now();
    loop {
        let mut why = String::new();
        for node in nodes {
            let mut client = Client::new(node.as_str(), Duration::from_secs(6));
            match fleet::lead(&mut client, DATABASE).await {
                Ok(Lead { leader: Some(leader), term }) if Some(leader) != other => {
                    return Ok((leader, term));
                }
                Ok(lead) => why = format!("{lead:?}"),
                Err(error) => why = error,
            }
        }
        if began.elapsed() > PHASE {
            return Err(Failure::runtime(format!("the database has no leader: {why}")));
        }
        time::sleep(POLL).await;
    }
}

/// Waits until something is so.
async fn reach(what: &str, so: impl Fn() -> bool) -> Result<(), Failure> {
    let began = Instant::now();
    while !so() {
        if began.elapsed() > PHASE {
            let secs = PHASE.as_secs();
            return Err(Failure::runtime(format!("{what}: not reached within {secs} s")));
        }
        time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Lets a test reach in.
async fn pause(path: &Path, fleet: &Fleet, key: &str) -> Result<(), Failure> {
    let nodes: Vec<_> = fleet
        .members
        .iter()
        .map(|member| serde_json::json!({"id": member.node.id, "http": member.node.http}))
        .collect();
    let text = serde_json::json!({"database": DATABASE, "key": key, "nodes": nodes}).to_string();
    fleet::replace(path, &text).context(|| format!("can't write {}", path.display()))?;
    while fs::exists(path).unwrap_or(false) {
        time::sleep(POLL).await;
    }
    Ok(())
}

fn say(text: &str) {
    eprintln!("{text}");
}

fn print(demo: &Demo, outcome: &Outcome) -> Result<(), Failure> {
    let text = if demo.json {
        serde_json::to_string(outcome).context(|| "can't encode the outcome".to_owned())? + "\n"
    } else {
        format!(
            "\n  acknowledged  {} writes, each fsynced on a majority of nodes\n  \
             lost          {}\n  \
             unknown       {} (in flight at the kill: they may or may not have taken effect)\n  \
             longest gap   {} ms between two acknowledgements\n  \
             leader        node {} before, node {} after, term {}\n  \
             this disk     {} fdatasync/s\n",
            outcome.acknowledged,
            outcome.lost,
            outcome.unknown,
            outcome.longest_gap_ms,
            outcome.leader_before,
            outcome.leader_after,
            outcome.term,
            outcome.fdatasync_per_s,
        )
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context(|| "can't write to standard output".to_owned())
}
