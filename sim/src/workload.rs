//! Clients: what they ask, of whom, how often. Each call goes through the judge before and after.
//! Every op is unique byte for byte, so that the oracles can tell them apart.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use highwater_core::{Lsn, NodeId};
use highwater_node::api::{Bookmark, Consistency, ListQuery};
use highwater_wire::op::{Action, Condition, Op, Versions, Write};

use crate::{
    cluster::Cluster,
    history::{Ask, Call, Told},
    rng::Rng,
    timer::pause_ms,
};

/// Makes a call on a node and tells the judge.
pub(crate) async fn perform(
    cluster: &Cluster,
    node: NodeId,
    database: &str,
    ask: Ask,
    timeout: Duration,
) -> Told {
    let call = Call { id: cluster.world.tick(), node, database: database.to_owned(), ask };
    cluster.judge.calls(&call);
    let name = call.database.clone();
    let told = match call.ask.clone() {
        Ask::Write(op) => {
            let write =
                move |h: highwater_node::Handle| async move { h.write(&name, op, timeout).await };
            cluster.ask(node, timeout, write).await.map(|r| r.map(Told::Written))
        }
        Ask::Get(key, consistency) => {
            let get = move |h: highwater_node::Handle| async move {
                h.get(&name, &key, consistency, timeout).await
            };
            cluster.ask(node, timeout, get).await.map(|r| r.map(Told::Got))
        }
        Ask::List(query, consistency) => {
            let list = move |h: highwater_node::Handle| async move {
                h.list(&name, query, consistency, timeout).await
            };
            cluster.ask(node, timeout, list).await.map(|r| r.map(Told::Listed))
        }
        Ask::Create => {
            let create = move |h: highwater_node::Handle| async move {
                h.create_database(&name, timeout).await
            };
            let told = cluster.ask(node, timeout, create).await;
            told.map(|r| r.map(|(group, existed)| Told::Created(group, existed)))
        }
        Ask::Transfer(to) => {
            let transfer = move |h: highwater_node::Handle| async move {
                h.transfer(&name, to, timeout).await
            };
            cluster.ask(node, timeout, transfer).await.map(|r| r.map(|_| Told::Transferred))
        }
    };
    let told = match told {
        Some(Ok(told)) => told,
        Some(Err(error)) => Told::Failed(error),
        None => Told::Silence,
    };
    cluster.judge.told(&call, &told);
    told
}

/// Creates a database, trying for as long as it takes.
pub(crate) async fn create(cluster: Arc<Cluster>, name: String) {
    let mut rng = Rng::stream(cluster.world.seed, &name, 0);
    loop {
        let node = *rng.pick(cluster.nodes());
        if cluster.is_up(node) {
            let timeout = Duration::from_millis(rng.range(500, 3_000));
            let told = perform(&cluster, node, &name, Ask::Create, timeout).await;
            if matches!(told, Told::Created(..)) {
                return;
            }
        }
        pause_ms(rng.range(20, 300)).await;
    }
}

/// One client.
pub(crate) struct Client {
    cluster: Arc<Cluster>,
    id: u64,
    rng: Rng,
    stop: Arc<AtomicBool>,
    serial: u64,
    /// The node that it prefers for a while.
    home: NodeId,
    bookmarks: BTreeMap<String, Bookmark>,
    /// Versions that it saw.
    versions: BTreeMap<(String, Bytes), Lsn>,
}

impl Client {
    pub(crate) fn new(cluster: Arc<Cluster>, id: u64, stop: Arc<AtomicBool>) -> Client {
        let rng = Rng::stream(cluster.world.seed, "client", id);
        let home = cluster.nodes()[id as usize % cluster.nodes().len()];
        Client {
            cluster,
            id,
            rng,
            stop,
            serial: 0,
            home,
            bookmarks: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    /// Calls until it is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let think_ms = self.cluster.plan.think_ms;
            pause_ms(self.rng.heavy(1, think_ms * 2)).await;
            if self.rng.percent(5) {
                self.home = *self.rng.pick(self.cluster.nodes());
            }
            let node =
                if self.rng.percent(50) { self.home } else { *self.rng.pick(self.cluster.nodes()) };
            if self.cluster.is_up(node) {
                self.call(node).await;
            }
        }
    }

    async fn call(&mut self, node: NodeId) {
        let databases = self.cluster.judge.databases();
        if databases.is_empty() {
            return;
        }
        let (database, _) = self.rng.pick(&databases).clone();
        let ask = self.draw(&database);
        let timeout = Duration::from_millis(self.rng.range(200, 2_500));
        let told = perform(&self.cluster, node, &database, ask.clone(), timeout).await;
        self.learn(database, ask, told);
    }

    fn learn(&mut self, database: String, ask: Ask, told: Told) {
        match (ask, told) {
            (Ask::Write(op), Told::Written(receipt)) => {
                for write in op.writes {
                    self.versions.insert((database.clone(), write.key), receipt.lsn);
                }
                let (group, term, lsn) = (receipt.group, receipt.term, receipt.lsn);
                self.bookmarks.insert(database, Bookmark { group, term, lsn });
            }
            (Ask::Get(key, _), Told::Got(got)) => {
                if let Some(record) = got.record {
                    self.versions.insert((database, key), record.version);
                }
            }
            _ => {}
        }
    }

    fn draw(&mut self, database: &str) -> Ask {
        let key = self.key();
        match self.rng.weighted(&[24, 6, 14, 4, 8, 22, 7, 7, 3, 2, 1]) {
            0 => Ask::Write(self.op(&[key], Condition::default())),
            1 => Ask::Write(self.delete(key)),
            2 => {
                let seen = self.versions.get(&(database.to_owned(), key.clone())).copied();
                let versions = Some(Versions::Of(seen.into_iter().collect()));
                Ask::Write(self.op(&[key], Condition { matches: versions, matches_none: None }))
            }
            3 => {
                let absent = Condition { matches: None, matches_none: Some(Versions::Any) };
                Ask::Write(self.op(&[key], absent))
            }
            4 => {
                let mut keys = vec![key];
                for _ in 0..self.rng.range(1, 4) {
                    let key = self.key();
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
                Ask::Write(self.op(&keys, Condition::default()))
            }
            5 => Ask::Get(key, Consistency::Linearizable),
            6 => Ask::Get(key, Consistency::Local(None)),
            7 => {
                let bookmark = self.bookmarks.get(database).copied();
                Ask::Get(key, Consistency::Local(bookmark))
            }
            8 => self.list(Consistency::Linearizable),
            9 => self.list(Consistency::Local(None)),
            _ => Ask::Transfer(*self.rng.pick(self.cluster.nodes())),
        }
    }

    fn key(&mut self) -> Bytes {
        let n = self.rng.below(self.cluster.plan.keys);
        Bytes::from(format!("{}/{n:02}", if n.is_multiple_of(2) { "even" } else { "odd" }))
    }

    fn tag(&mut self) -> String {
        self.serial += 1;
        format!("c{}.{}", self.id, self.serial)
    }

    fn op(&mut self, keys: &[Bytes], condition: Condition) -> Op {
        let tag = self.tag();
        let writes = keys
            .iter()
            .map(|key| {
                let mut value = tag.clone().into_bytes();
                let padding = match self.rng.below(100) {
                    0..3 => self.rng.heavy(4_000, 60_000),
                    3..25 => self.rng.range(200, 4_000),
                    _ => self.rng.below(100),
                };
                value.resize(value.len() + padding as usize, b'.');
                let content_type = *self.rng.pick::<&'static str>(&["", "", "text/plain"]);
                Write {
                    key: key.clone(),
                    action: Action::Put {
                        value: Bytes::from(value),
                        content_type: Bytes::from(content_type),
                    },
                    condition: condition.clone(),
                }
            })
            .collect();
        Op { writes }
    }

    /// A delete says nothing unique by itself: a version that no record has makes it so.
    fn delete(&mut self, key: Bytes) -> Op {
        self.serial += 1;
        let never = Lsn(u64::MAX - (self.id << 32 | self.serial));
        let condition = Condition {
            matches: Some(Versions::Any),
            matches_none: Some(Versions::Of(vec![never])),
        };
        Op { writes: vec![Write { key, action: Action::Delete, condition }] }
    }

    fn list(&mut self, consistency: Consistency) -> Ask {
        let prefix = *self.rng.pick(&["", "even/", "odd/", "none/"]);
        let after = self.rng.percent(30).then(|| self.key());
        let query = ListQuery {
            prefix: Bytes::from(prefix),
            after,
            limit: self.rng.heavy(1, 100) as usize,
            values: self.rng.percent(50),
        };
        Ask::List(query, consistency)
    }
}
