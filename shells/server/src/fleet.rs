//! The nodes of one cluster as child processes of this one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time,
};

use crate::{
    client::Client,
    config,
    failure::{Context, Failure},
    init::NodeDir,
};

/// How often a condition is looked at again while waiting for it.
const POLL: Duration = Duration::from_millis(20);
/// The log of a node that runs as a child, in its directory.
pub const LOG_FILE: &str = "serve.log";

/// One node and its process, if it has one.
#[derive(Debug)]
pub struct Member {
    /// Where it lives.
    pub node: NodeDir,
    child: Option<Child>,
}

impl Member {
    /// The process' id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Why it is not running any more, once after it ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }

    /// The last lines of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.node.dir.join(LOG_FILE)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }
}

/// All nodes of a cluster.
#[derive(Debug)]
pub struct Fleet {
    exe: PathBuf,
    /// In order of id.
    pub members: Vec<Member>,
}

impl Fleet {
    /// Nodes that run `exe serve`. None is started yet.
    #[must_use]
    pub fn new(exe: PathBuf, nodes: Vec<NodeDir>) -> Fleet {
        let members = nodes.into_iter().map(|node| Member { node, child: None }).collect();
        Fleet { exe, members }
    }

    /// Starts a node. It dies with this process, and its log goes to [`LOG_FILE`]. Must be called
    /// on a thread that lives as long as the process.
    ///
    /// # Errors
    /// Where the process can't be started.
    pub fn start(&mut self, index: usize) -> Result<(), Failure> {
        let member = &mut self.members[index];
        let path = member.node.dir.join(LOG_FILE);
        let failed = || format!("can't start node {}", member.node.id);
        let log = OpenOptions::new().create(true).append(true).open(path).context(failed)?;
        let mut command = Command::new(&self.exe);
        command
            .arg("serve")
            .arg("--config")
            .arg(&member.node.config)
            .arg("--die-with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for this process, which then stops its children in order.
            .process_group(0);
        // What configures one node must not configure all of them.
        for name in config::variables() {
            command.env_remove(name);
        }
        member.child = Some(command.spawn().context(failed)?);
        Ok(())
    }

    /// Starts every node.
    ///
    /// # Errors
    /// Where a process can't be started.
    pub fn start_all(&mut self) -> Result<(), Failure> {
        (0..self.members.len()).try_for_each(|index| self.start(index))
    }

    /// The nodes that ended since the last call, and how.
    pub fn ended(&mut self) -> Vec<(usize, ExitStatus)> {
        let members = self.members.iter_mut().enumerate();
        members.filter_map(|(index, member)| Some((index, member.ended()?))).collect()
    }

    /// Kills a node outright, and waits until it is gone.
    ///
    /// # Errors
    /// Where it can't be killed.
    pub async fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let member = &mut self.members[index];
        let Some(mut child) = member.child.take() else { return Ok(()) };
        child.kill().await.context(|| format!("can't kill node {}", member.node.id))
    }

    /// Asks every node to stop, and waits; kills what takes longer than `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        for member in &self.members {
            if let Some(pid) = member.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let end = time::Instant::now() + patience;
        for member in &mut self.members {
            let Some(mut child) = member.child.take() else { continue };
            if time::timeout_at(end, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }

    /// Waits until every node is ready and sees the system group's leader.
    ///
    /// # Errors
    /// Where a node ends, or time runs out.
    pub async fn wait_healthy(&mut self, patience: Duration) -> Result<(), Failure> {
        let began = Instant::now();
        for index in 0..self.members.len() {
            let mut client = Client::new(self.members[index].node.http.clone(), POLL * 50);
            loop {
                let why = match healthy(&mut client).await {
                    Ok(()) => break,
                    Err(why) => why,
                };
                if let Some((ended, status)) = self.ended().first() {
                    let member = &self.members[*ended];
                    return Err(Failure::runtime(format!(
                        "node {} ended while the cluster was starting ({status}); its log says:\n{}",
                        member.node.id,
                        member.log_tail()
                    )));
                }
                if began.elapsed() > patience {
                    let node = &self.members[index].node;
                    return Err(Failure::runtime(format!(
                        "node {} is not ready after {} s: {why}; its log is {}",
                        node.id,
                        patience.as_secs(),
                        node.dir.join(LOG_FILE).display()
                    )));
                }
                time::sleep(POLL).await;
            }
        }
        Ok(())
    }
}

/// A read of the catalog needs a formed cluster with a leader.
async fn healthy(client: &mut Client) -> Result<(), String> {
    for path in ["/readyz", "/v1/databases?timeout_ms=800"] {
        let reply = client.get(path).await.map_err(|error| error.to_string())?;
        if !reply.status.is_success() {
            return Err(reply.text());
        }
    }
    Ok(())
}

/// A database's leader and term, as a node tells.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Lead {
    /// The leader's id.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
}

/// Asks a node who leads a database.
///
/// # Errors
/// Where it doesn't say.
pub async fn lead(client: &mut Client, database: &str) -> Result<Lead, String> {
    let path = format!("/v1/databases/{database}");
    let reply = client.get(&path).await.map_err(|error| error.to_string())?;
    if !reply.status.is_success() {
        return Err(reply.text());
    }
    reply.json().map_err(|error| error.to_string())
}

/// Returns at SIGINT or SIGTERM: the first one that comes once this was called.
pub(crate) fn told_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).context(|| "can't listen to signals".to_owned());
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Replaces a file as a whole.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let mut file = File::create(&temp)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(temp, path)
}
