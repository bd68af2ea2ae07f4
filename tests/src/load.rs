//! A load that remembers what it was told, and checks afterwards that it was the truth: every
//! acknowledged write is there, every definite failure had no effect, and a register never goes
//! back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    PATIENCE,
    cluster::Cluster,
    eventually,
    http::{Client, Request, Response},
};

/// What a client was told of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, and stays.
    Acked {
        /// At this LSN.
        version: u64,
        /// The record's new entity tag.
        etag: Option<String>,
    },
    /// It had no effect and never will, for this reason.
    Definite(String),
    /// It may or may not take effect.
    Unknown,
}

impl Outcome {
    /// Of a write's answer.
    ///
    /// # Panics
    /// Where the answer is none that the contract allows.
    #[must_use]
    pub fn of(answer: &std::io::Result<Response>) -> Outcome {
        match answer {
            Ok(answer) if matches!(answer.status, 200 | 201) => Outcome::Acked {
                version: answer.json()["lsn"].as_u64().expect("a receipt has an LSN"),
                etag: answer.header("etag").map(str::to_owned),
            },
            Ok(answer) if answer.code() == "outcome_unknown" => Outcome::Unknown,
            Ok(answer) => {
                assert!(answer.status >= 400, "{answer:?}");
                Outcome::Definite(answer.code())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Outcome::Definite("refused".to_owned())
            }
            Err(_) => Outcome::Unknown,
        }
    }
}

/// One write of a key that is written once.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The key, which is the value too.
    pub key: String,
    /// What the client was told.
    pub outcome: Outcome,
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    database: String,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Writer>>,
}

/// What the writers were told, once they have stopped.
#[derive(Debug)]
pub struct Journal {
    database: String,
    writers: Vec<Writer>,
}

#[derive(Debug)]
struct Writer {
    name: String,
    database: String,
    targets: Vec<SocketAddr>,
    at: usize,
    client: Client,
    attempts: Vec<Attempt>,
    register: Register,
}

/// A key with one writer, which replaces the value that it knows only.
#[derive(Debug, Default)]
struct Register {
    value: u64,
    etag: Option<String>,
    /// Values of writes of unknown outcome; at most one of them took the place of `value`.
    maybe: Vec<u64>,
    next: u64,
}

impl Load {
    /// Starts `writers` threads, spread over the nodes; each goes on to the next node when one
    /// does not serve it.
    #[must_use]
    pub fn start(targets: &[SocketAddr], database: &str, writers: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(0));
        let writers = (0..writers)
            .map(|at| {
                let mut writer = Writer {
                    name: format!("w{at}"),
                    database: database.to_owned(),
                    targets: targets.to_vec(),
                    at: at % targets.len(),
                    client: Client::new(targets[at % targets.len()]),
                    attempts: Vec::new(),
                    register: Register { next: 1, ..Register::default() },
                };
                let (stop, acked) = (stop.clone(), acked.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        writer.step(&acked);
                    }
                    writer
                })
            })
            .collect();
        Load { database: database.to_owned(), stop, acked, writers }
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged.
    ///
    /// # Panics
    /// Where they are not in time.
    pub fn wait_acked(&self, more: u64) {
        let goal = self.acked() + more;
        eventually(&format!("{more} further acknowledged writes"), PATIENCE, || {
            (self.acked() >= goal).then_some(())
        });
    }

    /// Stops the writers.
    ///
    /// # Panics
    /// Where one of them saw something that must not be.
    #[must_use]
    pub fn stop(self) -> Journal {
        self.stop.store(true, Ordering::Relaxed);
        let writers = self.writers.into_iter().map(|w| w.join().expect("a writer")).collect();
        Journal { database: self.database, writers }
    }
}

impl Writer {
    fn step(&mut self, acked: &AtomicU64) {
        let number = self.attempts.len();
        let key = format!("load/{}/{number:06}", self.name);
        let target = format!("/v1/databases/{}/records/{key}?timeout_ms=2000", self.database);
        let outcome = self.write(&Request::put(&target, &key));
        if matches!(outcome, Outcome::Acked { .. }) {
            acked.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts.push(Attempt { key, outcome });
        if number.is_multiple_of(5) {
            self.advance_register();
        }
        if number % 5 == 2 {
            // Also elsewhere: what was acknowledged is seen by a read through any node.
            self.move_on();
            self.read_register();
        }
        thread::sleep(Duration::from_millis(1));
    }

    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.targets.len();
        self.client = Client::new(self.targets[self.at]);
    }

    fn write(&mut self, request: &Request) -> Outcome {
        let answer = self.client.send(request);
        let outcome = Outcome::of(&answer);
        let done = matches!(&outcome, Outcome::Acked { .. })
            || matches!(&outcome, Outcome::Definite(code) if code == "precondition_failed");
        if !done {
            self.move_on();
            thread::sleep(Duration::from_millis(10));
        }
        outcome
    }

    fn register_target(&self) -> String {
        format!("/v1/databases/{}/records/register/{}?timeout_ms=2000", self.database, self.name)
    }

    fn advance_register(&mut self) {
        let value = self.register.next;
        self.register.next += 1;
        let request = Request::put(&self.register_target(), value.to_string());
        let request = match &self.register.etag {
            Some(etag) => request.header("if-match", etag),
            None => request.header("if-none-match", "*"),
        };
        match self.write(&request) {
            Outcome::Acked { etag, .. } => {
                self.register.value = value;
                self.register.maybe.clear();
                self.register.etag = etag;
            }
            Outcome::Unknown => self.register.maybe.push(value),
            Outcome::Definite(code) if code == "precondition_failed" => {
                assert!(
                    !self.register.maybe.is_empty(),
                    "{}: refused, though nobody else writes it: {:?}",
                    self.name,
                    self.register
                );
                self.read_register_until_known();
            }
            Outcome::Definite(_) => {}
        }
    }

    fn read_register_until_known(&mut self) {
        for _ in 0..200 {
            if self.read_register() {
                return;
            }
            self.move_on();
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Reads the register linearizably; false where no node says.
    fn read_register(&mut self) -> bool {
        let Ok(answer) = self.client.send(&Request::get(&self.register_target())) else {
            self.move_on();
            return false;
        };
        let found = match answer.status {
            200 => answer.text().parse().expect("a number"),
            404 if answer.code() == "no_such_record" => 0,
            _ => return false,
        };
        let register = &mut self.register;
        assert!(
            found == register.value || register.maybe.contains(&found),
            "{}: a linearizable read gave {found}, a stale or lost value: {register:?}",
            self.name
        );
        if found != register.value {
            // The others had the same precondition, which can't hold any more.
            register.maybe.clear();
        }
        register.value = found;
        register.etag = answer.header("etag").map(str::to_owned);
        true
    }
}

impl Journal {
    fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.writers.iter().flat_map(|writer| &writer.attempts)
    }

    /// How many writes were acknowledged.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.attempts().filter(|a| matches!(a.outcome, Outcome::Acked { .. })).count()
    }

    /// How many ended in any other way.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.attempts().count() - self.acked()
    }

    /// Checks what a consumer did, by LSN and key, against what the writers were told: every write
    /// that was acknowledged once, at its LSN, and none that failed. What other keys it has is not
    /// looked at.
    ///
    /// # Panics
    /// Where something is missing, comes twice, or is not what it was.
    pub fn verify_consumed(&self, consumed: &[(u64, String)]) {
        let rising = consumed.windows(2).find(|pair| pair[0].0 >= pair[1].0);
        assert!(rising.is_none(), "out of order, or twice: {rising:?}");
        let mut done = BTreeMap::new();
        for (lsn, key) in consumed.iter().filter(|(_, key)| key.starts_with("load/")) {
            let before = done.insert(key.as_str(), *lsn);
            assert_eq!(before, None, "{key} is written once, and came again at {lsn}");
        }
        for Attempt { key, outcome } in self.attempts() {
            let found = done.remove(key.as_str());
            match outcome {
                Outcome::Acked { version, .. } => {
                    assert_eq!(found, Some(*version), "MISSED: {key}, acknowledged at {version}");
                }
                Outcome::Definite(code) => {
                    assert_eq!(found, None, "{key} failed ({code}), yet it was consumed");
                }
                Outcome::Unknown => {}
            }
        }
        assert!(done.is_empty(), "nobody wrote {done:?}");
    }

    /// Checks every write on every one of these nodes, and that the nodes agree.
    ///
    /// # Panics
    /// Where something was lost, or came about that must not.
    pub fn verify(&self, cluster: &Cluster, nodes: &[u64]) {
        let mut first = None;
        for node in nodes {
            let records = cluster.records(*node, &self.database, "linearizable");
            for Attempt { key, outcome } in self.attempts() {
                let found = records.get(key);
                match outcome {
                    Outcome::Acked { version, .. } => {
                        let found = found.unwrap_or_else(|| {
                            panic!("LOST: {key}, acknowledged at {version}, on node {node}")
                        });
                        assert_eq!(found.version, *version, "{key} on node {node}");
                    }
                    Outcome::Definite(code) => {
                        assert!(found.is_none(), "{key} failed ({code}), yet node {node} has it");
                    }
                    Outcome::Unknown => {}
                }
            }
            for writer in &self.writers {
                let key = format!("register/{}", writer.name);
                assert!(
                    records.contains_key(&key) || writer.register.value == 0,
                    "LOST: {key} on node {node}"
                );
            }
            let first = first.get_or_insert_with(|| records.clone());
            assert!(*first == records, "node {node} differs from node {}", nodes[0]);
        }
    }
}
