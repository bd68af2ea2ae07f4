//! Clients: they make the calls of their workload. Each goes through the judge before and after.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use highwater_core::{Lsn, NodeId};
use highwater_node::{
    Begin,
    api::{Consistency, Error},
};
use highwater_wire::peer::SlotAsk;

use crate::{
    cluster::Cluster,
    history::{Ask, Call, Told},
    oracles::streams::Streamed,
    rng::Rng,
    timer::pause_ms,
    workload::Workload,
};

/// A consumer reads about so much of a stream at a time, in bytes.
const STREAM_BYTES: usize = 32 << 10;
/// ... and so often, before it goes away.
const STREAM_READS: usize = 6;

/// A client that insists on an answer asks so often.
const INSISTS: u64 = 12;
/// ... and waits so long for each.
const INSISTING: Duration = Duration::from_millis(200);

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
        Ask::Write(op) | Ask::Once(op, _) => {
            let once = call.ask.once().cloned();
            let write = move |h: highwater_node::Handle| async move {
                h.write(&name, op, once, timeout).await
            };
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
        Ask::Changes(after, ops_max) => {
            let begin = move |h: highwater_node::Handle| async move {
                read_on(&h, &name, Begin::After(after), ops_max, timeout).await
            };
            cluster.ask(node, timeout, begin).await.map(|r| r.map(Told::Streamed))
        }
        Ask::Consume(slot, ops_max) => {
            let begin = move |h: highwater_node::Handle| async move {
                read_on(&h, &name, Begin::Slot(&slot, Lsn(0)), ops_max, timeout).await
            };
            cluster.ask(node, timeout, begin).await.map(|r| r.map(Told::Streamed))
        }
        Ask::Slot(slot, ask) => {
            let asked = move |h: highwater_node::Handle| async move {
                let at = match ask {
                    SlotAsk::Create(settings) => {
                        Some(h.create_slot(&name, &slot, settings, timeout).await?.0)
                    }
                    SlotAsk::Ack(lsn) => Some(h.ack_slot(&name, &slot, lsn, timeout).await?),
                    SlotAsk::Delete => h.delete_slot(&name, &slot, timeout).await.map(|()| None)?,
                };
                Ok(at)
            };
            cluster.ask(node, timeout, asked).await.map(|r| r.map(Told::Slot))
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

/// Reads on in a change stream for a while.
async fn read_on(
    handle: &highwater_node::Handle,
    database: &str,
    begin: Begin<'_>,
    ops_max: usize,
    timeout: Duration,
) -> Result<Streamed, Error> {
    let mut stream = handle.changes(database, begin, None, timeout / 3).await?;
    let after = match begin {
        Begin::After(asked) => asked,
        Begin::Slot(..) => stream.position(),
    };
    let mut changes = Vec::new();
    for _ in 0..STREAM_READS {
        // What is dropped under way loses nothing.
        let next = stream.next(ops_max, STREAM_BYTES, timeout / 16);
        if let Ok(next) = tokio::time::timeout(timeout / 12, next).await {
            changes.extend(next?);
        }
    }
    let (group, upto) = (stream.group(), stream.position());
    Ok(Streamed { group, after, upto, changes })
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
    workload: Workload,
    stop: Arc<AtomicBool>,
}

impl Client {
    pub(crate) fn new(cluster: Arc<Cluster>, id: u64, stop: Arc<AtomicBool>) -> Client {
        let workload = Workload::new(cluster.plan.clone(), cluster.world.seed, id);
        Client { cluster, workload, stop }
    }

    /// Calls until it is told to stop.
    pub(crate) async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            pause_ms(self.workload.think_ms()).await;
            let node = self.workload.node();
            if self.cluster.is_up(node) {
                self.call(node).await;
            }
        }
    }

    /// Makes one call, or several at once.
    async fn call(&mut self, node: NodeId) {
        let databases = self.cluster.judge.databases();
        let databases: Vec<String> = databases.into_iter().map(|(name, _)| name).collect();
        if let Some((database, ask, timeout)) = self.workload.consumes(&databases) {
            let told = perform(&self.cluster, node, &database, ask.clone(), timeout).await;
            return self.workload.learn(database, ask, told);
        }
        let now_ns = self.cluster.world.now_ns();
        let calls: Vec<_> = (0..self.workload.burst())
            .filter_map(|_| self.workload.call(&databases, now_ns))
            .collect();
        let asked = calls.iter().map(|(database, ask, timeout)| {
            perform(&self.cluster, node, database, ask.clone(), *timeout)
        });
        let told = join_all(asked).await;
        for ((database, ask, _), told) in calls.into_iter().zip(told) {
            if matches!((&ask, &told), (Ask::Get(..), Told::Failed(Error::NotReady(_)))) {
                self.insist(node, &database, &ask).await;
            }
            self.workload.learn(database, ask, told);
        }
    }

    /// Who is told that a node can't show a state just now asks again at once, until it can: what is
    /// rebuilt must not be seen half.
    async fn insist(&self, node: NodeId, database: &str, ask: &Ask) {
        let Ask::Get(key, _) = ask else { return };
        for after_ms in 0..INSISTS {
            pause_ms(after_ms).await;
            let ask = Ask::Get(key.clone(), Consistency::Local(None));
            let told = perform(&self.cluster, node, database, ask, INSISTING).await;
            if !matches!(told, Told::Failed(Error::NotReady(_))) {
                return;
            }
        }
    }
}
