//! A cluster of real nodes, made with `init` and run with `serve`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    PATIENCE, binary, eventually,
    http::{Client, Request, Response},
    process::{Output, Process, Recipe},
    scratch::Scratch,
};

/// Lines of each node's log that a failed test shows.
const TAIL: usize = 60;

/// One node: its directory, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: u64,
    /// `…/node-I`
    pub dir: PathBuf,
    /// Where its HTTP listens.
    pub http: SocketAddr,
    /// Where its QUIC listens.
    pub quic: SocketAddr,
    wrapper: Mutex<Vec<OsString>>,
    process: Mutex<Option<Process>>,
}

/// Holds the ports of nodes that `init` chose against other tests, which may run at the same time:
/// `init` sees only what is listened on, and not what another new cluster, or a node that is down,
/// will listen on. `None` where another test holds one.
fn reserve(scratch: &Scratch, nodes: &[Node]) -> Option<Vec<fs::File>> {
    let dir = scratch.path().with_file_name("ports");
    fs::create_dir_all(&dir).expect("a directory for the ports");
    let addresses = nodes.iter().flat_map(|node| [node.http, node.quic]);
    let shared = addresses.filter(|address| address.ip().is_loopback());
    let hold = |address: SocketAddr| {
        let path = dir.join(address.to_string());
        let file = fs::File::create(path).expect("a file for the port");
        match file.try_lock() {
            Ok(()) => Some(file),
            Err(fs::TryLockError::WouldBlock) => None,
            Err(fs::TryLockError::Error(error)) => panic!("a port can't be held: {error}"),
        }
    };
    shared.map(hold).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A top-level string of a configuration file.
#[must_use]
pub fn setting(config: &str, key: &str) -> Option<String> {
    let line = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")))?;
    Some(line.trim().trim_matches('"').to_owned())
}

impl Node {
    /// The node of a directory that `init` made.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn load(dir: &Path, id: u64) -> Node {
        let dir = dir.join(format!("node-{id}"));
        let config = fs::read_to_string(dir.join("highwater.toml")).expect("a configuration");
        let address = |key| {
            let text = setting(&config, key).unwrap_or_else(|| panic!("{key} in {config}"));
            text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
        };
        Node {
            id,
            http: address("http"),
            quic: address("address"),
            dir,
            wrapper: Mutex::default(),
            process: Mutex::default(),
        }
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("highwater.toml")
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Replaces text in the configuration file.
    ///
    /// # Panics
    /// Where `from` is not in it.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).expect("a configuration");
        assert!(text.contains(from), "{from} in {text}");
        fs::write(self.config(), text.replacen(from, to, 1)).expect("a configuration");
    }

    /// Runs it through another program from the next start on.
    pub fn within<S: Into<OsString>>(&self, wrapper: impl IntoIterator<Item = S>) {
        *lock(&self.wrapper) = wrapper.into_iter().map(Into::into).collect();
    }

    /// `serve`, with further arguments.
    #[must_use]
    pub fn recipe(&self, args: &[&str]) -> Recipe {
        let config = self.config();
        let config = config.to_str().expect("a path in UTF-8");
        let recipe = binary::recipe(&[&["serve", "--config", config], args].concat());
        recipe.within(lock(&self.wrapper).iter())
    }

    /// Starts it.
    ///
    /// # Panics
    /// Where it runs already.
    pub fn start(&self) {
        self.start_as(&self.recipe(&[]));
    }

    /// Starts it in another way.
    ///
    /// # Panics
    /// Where it runs already.
    pub fn start_as(&self, recipe: &Recipe) {
        let mut process = lock(&self.process);
        assert!(process.is_none(), "node {} runs already", self.id);
        *process = Some(recipe.start(&self.dir.join("stdout"), &self.log_path()));
    }

    /// Runs `serve` where it must refuse to start.
    ///
    /// # Panics
    /// Where it goes on running, or ends in any other way than with an error.
    #[must_use]
    pub fn refuses(&self, args: &[&str]) -> Output {
        let output = self.recipe(args).run(PATIENCE);
        let code = output.code();
        assert!(code.is_some_and(|code| code != 0), "{code:?}: {}", output.stderr);
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        assert!(!output.stderr.trim().is_empty(), "it says why");
        output
    }

    /// Its process id.
    ///
    /// # Panics
    /// Where it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.process).as_ref().expect("it runs").pid()
    }

    /// Whether its process is there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        lock(&self.process).as_mut().is_some_and(Process::is_alive)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        // Dropping kills and waits.
        drop(lock(&self.process).take());
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn signal(&self, signal: Signal) {
        lock(&self.process).as_ref().expect("it runs").signal(signal);
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// Where it does not run, or does not end in time.
    pub fn terminate(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(PATIENCE).expect("SIGTERM ends it")
    }

    /// How it ended; `None` where it still runs after `within`.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn wait_exit(&self, within: Duration) -> Option<ExitStatus> {
        let mut process = lock(&self.process);
        let status = process.as_mut().expect("it runs").wait(within);
        if status.is_some() {
            *process = None;
        }
        status
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("stderr")
    }

    /// All it ever said on stderr.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// A connection to it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn try_send(&self, request: &Request) -> io::Result<Response> {
        let mut client = self.client();
        client.send(&request.clone().header("connection", "close"))
    }

    /// One request on a connection of its own.
    ///
    /// # Panics
    /// Where there is no answer.
    #[must_use]
    #[track_caller]
    pub fn send(&self, request: &Request) -> Response {
        self.try_send(request).unwrap_or_else(|error| panic!("node {}: {error}", self.id))
    }

    /// `GET`
    ///
    /// # Panics
    /// Where there is no answer.
    #[must_use]
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.send(&Request::get(target))
    }

    /// `PUT`
    ///
    /// # Panics
    /// Where there is no answer.
    #[must_use]
    #[track_caller]
    pub fn put(&self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.send(&Request::put(target, body))
    }

    /// Whether `/readyz` says so.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.try_send(&Request::get("/readyz")).is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// Where it ends instead, or takes too long.
    pub fn wait_ready(&self) {
        eventually(&format!("node {} is ready", self.id), PATIENCE, || {
            assert!(self.is_alive(), "node {} ended: {}", self.id, self.log());
            self.is_ready().then_some(())
        });
    }

    /// One value of `/metrics`, by its name with labels.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.try_send(&Request::get("/metrics")).ok()?.text();
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    }

    /// Whether it says itself that it leads a database.
    #[must_use]
    pub fn leads(&self, database: &str) -> bool {
        self.metric(&format!("highwater_is_leader{{database=\"{database}\"}}")) == Some(1.0)
    }
}

/// A cluster; its nodes are killed and its directory removed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The directory that `init` made.
    pub dir: PathBuf,
    nodes: Vec<Node>,
    _ports: Vec<fs::File>,
    _scratch: Scratch,
}

impl Cluster {
    /// Makes a cluster on loopback, starts it and waits until it is formed.
    #[must_use]
    pub fn start(nodes: usize) -> Cluster {
        let cluster = Cluster::init(nodes, &[]);
        cluster.start_all();
        cluster
    }

    /// Makes a cluster; nothing runs yet.
    ///
    /// # Panics
    /// Where `init` fails.
    #[must_use]
    pub fn init(nodes: usize, args: &[&str]) -> Cluster {
        let scratch = Scratch::new("cluster");
        let dir = scratch.join("c");
        let count = nodes.to_string();
        let path = dir.to_str().expect("a path in UTF-8");
        let fixed = ["init", "--nodes", &count, "--dir", path];
        loop {
            let _ = binary::run(&[&fixed, args].concat()).ok();
            let nodes: Vec<Node> = (1..=nodes as u64).map(|id| Node::load(&dir, id)).collect();
            if let Some(ports) = reserve(&scratch, &nodes) {
                return Cluster { dir, nodes, _ports: ports, _scratch: scratch };
            }
            fs::remove_dir_all(&dir).expect("a directory that can be removed");
        }
    }

    /// Starts every node and waits until all are ready and know the same leader.
    ///
    /// # Panics
    /// Where that takes too long.
    pub fn start_all(&self) {
        self.nodes.iter().for_each(Node::start);
        self.wait_ready();
        for node in &self.nodes {
            // A read of the catalog takes a cluster that is formed, and a leader.
            let request = Request::get("/v1/databases?timeout_ms=1000");
            eventually(
                &format!("the cluster is formed, as node {} sees it", node.id),
                PATIENCE,
                || node.try_send(&request).is_ok_and(|answer| answer.status == 200).then_some(()),
            );
        }
    }

    /// Waits until all are ready.
    pub fn wait_ready(&self) {
        self.nodes.iter().for_each(Node::wait_ready);
    }

    /// A node, by id.
    #[must_use]
    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes but one.
    #[must_use]
    pub fn others(&self, id: u64) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.id != id).collect()
    }

    /// Creates a database through any node; patient with a cluster that is just forming.
    ///
    /// # Panics
    /// Where that does not work in time.
    pub fn create(&self, database: &str) {
        let request = Request::new("PUT", &format!("/v1/databases/{database}"));
        eventually(&format!("{database} is created"), PATIENCE, || {
            let node = self.nodes.iter().find(|node| node.is_alive())?;
            let answer = node.try_send(&request).ok()?;
            matches!(answer.status, 200 | 201).then_some(())
        });
    }

    /// The leader of a database that leads by its own word, and is followed by all of `among`.
    ///
    /// # Panics
    /// Where there is none in time.
    #[must_use]
    pub fn leader_among(&self, database: &str, among: &[u64]) -> u64 {
        eventually(&format!("a leader of {database} among {among:?}"), PATIENCE, || {
            let mut seen: Vec<u64> =
                among.iter().filter_map(|id| self.leader_at(*id, database)).collect();
            seen.dedup();
            let leader = *seen.first()?;
            (seen.len() == 1 && among.contains(&leader) && self.node(leader).leads(database))
                .then_some(leader)
        })
    }

    /// The leader of a database that all nodes agree on.
    #[must_use]
    pub fn leader(&self, database: &str) -> u64 {
        let all: Vec<u64> = self.nodes.iter().map(|node| node.id).collect();
        self.leader_among(database, &all)
    }

    fn leader_at(&self, id: u64, database: &str) -> Option<u64> {
        let request = Request::get(&format!("/v1/databases/{database}"));
        let answer = self.node(id).try_send(&request).ok().filter(|a| a.status == 200)?;
        answer.json()["leader"].as_u64()
    }

    /// Hands a database's leadership to a node.
    ///
    /// # Panics
    /// Where that does not work in time.
    pub fn hand_over(&self, database: &str, to: u64) {
        let target = format!("/v1/databases/{database}/leader");
        let request = Request::post(&target, &format!("{{\"node\":{to}}}"));
        eventually(&format!("node {to} leads {database}"), PATIENCE, || {
            let answer = self.node(to).try_send(&request).ok()?;
            (answer.status == 200).then_some(())
        });
        assert_eq!(self.leader(database), to);
    }

    /// Waits until a node has applied what is committed at the leader now.
    ///
    /// # Panics
    /// Where it does not in time.
    pub fn wait_caught_up(&self, id: u64, database: &str) {
        let mark = format!("highwater_watermark{{database=\"{database}\",mark=\"committed\"}}");
        let most = self
            .nodes
            .iter()
            .filter(|node| node.is_alive())
            .filter_map(|node| node.metric(&mark))
            .fold(0.0, f64::max);
        let mark = format!("highwater_watermark{{database=\"{database}\",mark=\"applied\"}}");
        eventually(&format!("node {id} has applied {most} of {database}"), PATIENCE, || {
            (self.node(id).metric(&mark)? >= most).then_some(())
        });
    }

    /// Every record of a database as one node has it.
    ///
    /// # Panics
    /// Where the node does not answer in time.
    #[must_use]
    pub fn records(&self, id: u64, database: &str, consistency: &str) -> BTreeMap<String, Record> {
        let mut client = self.node(id).client();
        let mut records = BTreeMap::new();
        let mut after = String::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let target = format!(
                "/v1/databases/{database}/records?limit=1000&values=true&consistency={consistency}\
                 &after={}",
                crate::http::escape(&after)
            );
            let answer = client.send(&Request::get(&target));
            let page = match answer {
                Ok(answer) if answer.status == 200 => answer.json(),
                other => {
                    // No leader for the moment, or still behind.
                    assert!(Instant::now() < deadline, "node {id}: {other:?}");
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            for row in page["records"].as_array().expect("records") {
                let text = |name: &str| row[name].as_str().expect("a text").to_owned();
                let record = Record {
                    version: row["version"].as_u64().expect("a version"),
                    value_base64: text("value_base64"),
                };
                assert!(records.insert(text("key"), record).is_none(), "a key twice: {row}");
            }
            match &page["next"] {
                Value::String(next) => after.clone_from(next),
                _ => return records,
            }
        }
    }
}

/// A record as a list gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The LSN of its last write.
    pub version: u64,
    /// Its value.
    pub value_base64: String,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter().for_each(Node::kill);
        for node in &self.nodes {
            let log = node.log();
            let panicked = log.contains("panicked at");
            if thread::panicking() || panicked {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
                // What libtest captures belongs to the test that fails.
                eprintln!("--- node {} ({} lines)\n{tail}", node.id, lines.len());
            }
            assert!(thread::panicking() || !panicked, "node {} panicked: see above", node.id);
        }
        let _ = io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_clusters_until_it_is_gone() {
        let scratch = Scratch::new("ports");
        let first = Cluster::init(1, &[]);
        let again = Node::load(&first.dir, 1);
        assert!(reserve(&scratch, &[again]).is_none());
        let again = Node::load(&first.dir, 1);
        drop(first);
        assert!(reserve(&scratch, &[again]).is_some());
    }
}
