//! `highwater dev`: a cluster on this machine, without set-up.

use std::{
    fs,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::time;

use crate::{
    failure::{Context, Failure},
    fleet::{self, Fleet, LOG_FILE},
    init::{self, NodeDir, Plan},
};

/// How long a cluster may take to become healthy.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long the nodes may take to stop.
const STOP: Duration = Duration::from_secs(15);
/// How often the children are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The pauses before a restart: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// A node that ran for so long is restarted with the first pause again.
const STEADY: Duration = Duration::from_secs(20);

/// What `dev` is asked for.
#[derive(Clone, Debug)]
pub struct Dev {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// How many nodes; `None`: as many as there are, or three.
    pub nodes: Option<u64>,
    /// Whether what dies is started again.
    pub restart: bool,
}

/// What `D/dev.json` holds.
#[derive(Debug, Deserialize, Serialize)]
pub struct DevJson {
    /// In order of id.
    pub nodes: Vec<DevNode>,
}

/// One node in `D/dev.json`.
#[derive(Debug, Deserialize, Serialize)]
pub struct DevNode {
    /// Its id.
    pub id: u64,
    /// Its process; `null` while it has none.
    pub pid: Option<u32>,
    /// `host:port`.
    pub http: String,
}

/// Runs the cluster until SIGINT or SIGTERM.
///
/// # Errors
/// Where the cluster does not start.
pub async fn dev(dev: &Dev) -> Result<(), Failure> {
    let nodes = prepare(dev)?;
    let _lock = lock(&dev.dir)?;
    for node in &nodes {
        // Of this run only.
        let _ = fs::remove_file(node.dir.join(LOG_FILE));
    }
    let exe = std::env::current_exe().context(|| "can't find this program".to_owned())?;
    let mut fleet = Fleet::new(exe, nodes);
    let stop = fleet::told_to_stop()?;
    let ran = tokio::select! {
        biased;
        () = stop => Ok(()),
        ran = run(dev, &mut fleet) => ran,
    };
    eprintln!("stopping; the data stays in {}", dev.dir.display());
    fleet.stop(STOP).await;
    write_json(dev, &fleet)?;
    ran
}

async fn run(dev: &Dev, fleet: &mut Fleet) -> Result<(), Failure> {
    fleet.start_all()?;
    write_json(dev, fleet)?;
    eprintln!("starting {} nodes in {} …", fleet.members.len(), dev.dir.display());
    fleet.wait_healthy(HEALTHY).await?;
    print!("{}", welcome(dev, fleet));
    watch(dev, fleet).await
}

/// The cluster's directory: what is there, or a new one.
fn prepare(dev: &Dev) -> Result<Vec<NodeDir>, Failure> {
    if !init::is_used(&dev.dir)? {
        let nodes = dev.nodes.unwrap_or(3);
        let plan =
            Plan { dir: dev.dir.clone(), nodes, addresses: Vec::new(), insecure_bind: false };
        return init::init(&plan);
    }
    let found = init::load(&dev.dir)?;
    match dev.nodes {
        Some(asked) if asked != found.len() as u64 => Err(Failure::usage(format!(
            "{} holds a cluster of {} nodes, not {asked}; choose another --dir, or leave out --nodes",
            dev.dir.display(),
            found.len()
        ))),
        _ => Ok(found),
    }
}

/// Keeps a second `dev` out.
fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("dev.lock");
    let file = File::create(&path).context(|| format!("can't make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::runtime(format!(
            "another `highwater dev` runs in {}; stop it, or choose another --dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(Failure::runtime(format!("can't lock {}: {error}", path.display())))
        }
    }
}

fn write_json(dev: &Dev, fleet: &Fleet) -> Result<(), Failure> {
    let nodes = fleet.members.iter().map(|member| DevNode {
        id: member.node.id,
        pid: member.pid(),
        http: member.node.http.clone(),
    });
    let path = dev.dir.join("dev.json");
    let failed = || format!("can't write {}", path.display());
    let text = serde_json::to_string(&DevJson { nodes: nodes.collect() }).context(failed)?;
    fleet::replace(&path, &format!("{text}\n")).context(failed)
}

/// Reports what dies, and starts it again.
async fn watch(dev: &Dev, fleet: &mut Fleet) -> Result<(), Failure> {
    struct Restart {
        pause: Duration,
        started: Instant,
        due: Option<Instant>,
    }
    let fresh = || Restart { pause: PAUSES.0, started: Instant::now(), due: None };
    let mut restarts: Vec<Restart> = fleet.members.iter().map(|_| fresh()).collect();
    loop {
        time::sleep(LOOK).await;
        let mut changed = false;
        for (index, status) in fleet.ended() {
            let id = fleet.members[index].node.id;
            let restart = &mut restarts[index];
            changed = true;
            if dev.restart {
                if restart.started.elapsed() > STEADY {
                    restart.pause = PAUSES.0;
                }
                eprintln!("node {id} ended ({status}); starting it again in {:?}", restart.pause);
                restart.due = Some(Instant::now() + restart.pause);
                restart.pause = (restart.pause * 2).min(PAUSES.1);
            } else {
                let config = fleet.members[index].node.config.display();
                eprintln!(
                    "node {id} ended ({status}); start it with: highwater serve --config {config}"
                );
            }
        }
        for (index, restart) in restarts.iter_mut().enumerate() {
            if restart.due.is_some_and(|due| due <= Instant::now()) {
                restart.due = None;
                restart.started = Instant::now();
                fleet.start(index)?;
                changed = true;
                let member = &fleet.members[index];
                let pid = member.pid().unwrap_or_default();
                eprintln!("node {} runs again, pid {pid}", member.node.id);
            }
        }
        if changed {
            write_json(dev, fleet)?;
        }
    }
}

fn welcome(dev: &Dev, fleet: &Fleet) -> String {
    let mut text = format!("\nHighwater runs; its data is in {}\n\n", dev.dir.display());
    for member in &fleet.members {
        text += &format!(
            "  node {}   pid {:<8} http://{}\n",
            member.node.id,
            member.pid().unwrap_or_default(),
            member.node.http
        );
    }
    let url = |at: usize| {
        let member = &fleet.members[at % fleet.members.len()];
        format!("http://{}/v1/databases/demo", member.node.http)
    };
    let first = &fleet.members[0];
    text += &format!(
        "\nTry it, on any node:\n\n  \
         curl -X PUT {}\n  \
         curl -X PUT {}/records/greeting -d 'hello'\n  \
         curl {}/records/greeting\n\n\
         Then take a node away, and read and write through the others:\n\n  \
         kill -9 {}\n\nCtrl-C stops it all.\n",
        url(0),
        url(1),
        url(2),
        first.pid().unwrap_or_default(),
    );
    text
}
