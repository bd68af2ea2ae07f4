//! What gateways hold: a cheap handle to the running driver. Routing, forwarding, and the
//! classification of outcomes are here; the deadlines are the driver's.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use highwater_core::{GroupId, Lsn, NodeId, OnceKey, Outcome, Reject, Reply, Term, planted};
use highwater_store::state::{StateError, States, StoredListed, StoredRecord};
use highwater_wire::{
    op::{Answer, Op},
    peer::{ForwardReply, ForwardRequest},
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    api::{
        Bookmark, ClusterView, Consistency, DatabaseInfo, Error, Got, ListQuery, Listed, Metrics,
        Page, Readiness, Receipt, Record,
    },
    deadline::Deadline,
    driver::{Ask, Command, forward_reply_of},
    shared::{Changes, Shared},
    snapshot::SNAPSHOTS_MAX,
    workers::HistoryJob,
};

/// How long a definite refusal that will pass soon (no leader, a transfer) is waited out at most
/// before the next try.
const RETRY_PERIOD: Duration = Duration::from_millis(20);

/// A handle to a running node. Cheap to clone. Every call ends by its `timeout`.
#[derive(Clone)]
pub struct Handle {
    me: NodeId,
    nodes: Arc<[NodeId]>,
    cluster: Arc<str>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) states: Arc<States>,
    pub(crate) history: mpsc::Sender<HistoryJob>,
    /// Snapshots that may still be begun.
    pub(crate) snapshots: Arc<Semaphore>,
}

/// What a definite refusal means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing reached a log, and it may go better soon.
    TryAgain,
    /// It is final.
    Fail(Error),
}

impl Handle {
    pub(crate) fn new(
        me: NodeId,
        nodes: Arc<[NodeId]>,
        cluster: &str,
        commands: mpsc::Sender<Command>,
        shared: Arc<Shared>,
        states: Arc<States>,
        history: mpsc::Sender<HistoryJob>,
    ) -> Handle {
        let (cluster, snapshots) = (cluster.into(), Arc::new(Semaphore::new(SNAPSHOTS_MAX)));
        Handle { me, nodes, cluster, commands, shared, states, history, snapshots }
    }

    /// Writes: on the leader, wherever this node is. With a key it takes effect once at most: the same
    /// request is answered with what came of the first one, and may be made again after
    /// [`Error::Unknown`].
    ///
    /// # Errors
    /// Each but [`Error::Unknown`] is definite. A caller that drops the future gives up its answer,
    /// not the write.
    pub async fn write(
        &self,
        database: &str,
        op: Op,
        once: Option<OnceKey>,
        timeout: Duration,
    ) -> Result<Receipt, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        let request = ForwardRequest::Propose { group, payload: op.encode(), once };
        match self.on_leader(group, request, deadline).await? {
            ForwardReply::Applied { lsn, term, outcome, replayed } => {
                self.shared.replayed.fetch_add(u64::from(replayed), Ordering::Relaxed);
                let receipt = receipt_of(group, (lsn, term), &outcome, replayed)?;
                self.shared.acked.fetch_add(1, Ordering::Relaxed);
                Ok(receipt)
            }
            _ => Err(Error::Unknown),
        }
    }

    /// Reads one record.
    ///
    /// # Errors
    /// All are definite; a read has no effect.
    pub async fn get(
        &self,
        database: &str,
        key: &[u8],
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Got, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        self.await_readable(group, consistency, deadline).await?;
        let (applied, record) =
            self.states.get(group, key).map_err(|error| self.state_error(group, &error))?;
        Ok(Got { group, applied, term: self.term(group), record: record.map(record_of) })
    }

    /// Lists records in byte order of their keys.
    ///
    /// # Errors
    /// All are definite; a read has no effect.
    pub async fn list(
        &self,
        database: &str,
        query: ListQuery,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Page, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        self.await_readable(group, consistency, deadline).await?;
        let ListQuery { prefix, after, limit, values } = query;
        let (applied, records, more) = self
            .states
            .list(group, &prefix, after.as_deref(), limit, values)
            .map_err(|error| self.state_error(group, &error))?;
        let records = records.into_iter().map(listed_of).collect();
        Ok(Page { group, applied, term: self.term(group), records, more })
    }

    /// Creates a database unless it stands; answers when its group has a leader. The flag tells
    /// whether it stood before.
    ///
    /// # Errors
    /// Each but [`Error::Unknown`] is definite.
    pub async fn create_database(
        &self,
        name: &str,
        timeout: Duration,
    ) -> Result<(GroupId, bool), Error> {
        let deadline = Deadline::after(timeout);
        self.refuse_when_ending()?;
        let (group, existed) = match self.known(name) {
            Some(group) => (group, true),
            None => self.propose_database(name, deadline).await?,
        };
        let mut changes = self.shared.watch();
        loop {
            if self.leader(group).is_some() {
                return Ok((group, existed));
            }
            // It stands by now, whatever the caller is told; a retry finds it and waits on.
            let waited = self.wait(&mut changes, deadline, None).await;
            waited.map_err(|error| if existed { error } else { Error::Unknown })?;
        }
    }

    async fn propose_database(
        &self,
        name: &str,
        deadline: Deadline,
    ) -> Result<(GroupId, bool), Error> {
        let request = ForwardRequest::CreateDatabase { name: name.to_owned() };
        match self.on_leader(GroupId::SYSTEM, request, deadline).await? {
            ForwardReply::Created { group, existed } => Ok((group, existed)),
            _ => Err(Error::Unknown),
        }
    }

    /// The group of a database.
    ///
    /// # Errors
    /// [`Error::NoSuchDatabase`] only after a read index on the system group.
    pub async fn database(&self, name: &str, timeout: Duration) -> Result<GroupId, Error> {
        self.resolve(name, Deadline::after(timeout)).await
    }

    /// Every database, in order of name, after a read index on the system group.
    ///
    /// # Errors
    /// All are definite.
    pub async fn databases(&self, timeout: Duration) -> Result<Vec<DatabaseInfo>, Error> {
        self.read_index(GroupId::SYSTEM, Deadline::after(timeout)).await?;
        Ok(self.known_databases())
    }

    /// Hands a database's leadership to a node, and answers with the leader and its term once done.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`], and [`Error::NoLeader`] where the node did not take over in time; it
    /// may still do so.
    pub async fn transfer(
        &self,
        database: &str,
        to: NodeId,
        timeout: Duration,
    ) -> Result<(NodeId, Term), Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        if !self.nodes.contains(&to) {
            return Err(Error::NoSuchNode);
        }
        let request = ForwardRequest::Transfer { group, to };
        match self.on_leader(group, request, deadline).await {
            Ok(ForwardReply::Transferred { term }) => Ok((to, term)),
            Ok(_) | Err(Error::Unknown) => Err(Error::NoLeader { leader: self.leader(group) }),
            Err(error) => Err(error),
        }
    }

    /// The cluster as seen from here; asks every node, and waits at most half a second for their
    /// answers. Calls that come meanwhile share the next round of questions.
    pub async fn cluster(&self) -> ClusterView {
        let (reply, answer) = oneshot::channel();
        let nodes = match self.commands.send(Command::Cluster { reply }).await {
            Ok(()) => answer.await.map(Arc::unwrap_or_clone).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let epochs = nodes.iter().filter_map(|n| n.status.as_ref().map(|s| s.epoch));
        ClusterView {
            cluster: self.cluster.to_string(),
            epoch: epochs.max().unwrap_or(0),
            databases: self.known_databases(),
            nodes,
        }
    }

    /// Whether this node has recovered and is not knowingly behind, fenced or quarantined.
    pub async fn readiness(&self) -> Readiness {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Readiness { reply }).await.is_ok()
            && let Ok(readiness) = answer.await
        {
            return readiness;
        }
        let reason = self.halted().unwrap_or_else(|| String::from("this node is stopping"));
        Readiness { state: String::from("stopping"), reasons: vec![reason] }
    }

    /// Counters and gauges.
    pub async fn metrics(&self) -> Metrics {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Metrics { reply }).await.is_err() {
            return Metrics::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Hands every leadership over, and refuses new requests. Then the driver ends, once what is
    /// under way is answered or a second has passed.
    pub async fn drain(&self, timeout: Duration) {
        self.shared.set_draining();
        let _ = self.ask(Ask::Drain, Deadline::after(timeout)).await;
        let _ = self.commands.send(Command::Stop).await;
    }

    // --- routing ---

    fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.shared.routes().leaders.get(&group).and_then(|(_, leader)| *leader)
    }

    pub(crate) fn term(&self, group: GroupId) -> Term {
        self.shared.routes().leaders.get(&group).map(|(term, _)| *term).unwrap_or_default()
    }

    fn halted(&self) -> Option<String> {
        self.shared.routes().halted.clone()
    }

    fn known_databases(&self) -> Vec<DatabaseInfo> {
        let routes = self.shared.routes();
        let rows = routes.databases.iter();
        rows.map(|(name, group)| DatabaseInfo { name: name.clone(), group: *group }).collect()
    }

    fn known(&self, database: &str) -> Option<GroupId> {
        self.shared.routes().databases.get(database).copied()
    }

    /// A database's group: from the catalog applied here, and where it is not in there, after a
    /// read index on the system group.
    pub(crate) async fn resolve(
        &self,
        database: &str,
        deadline: Deadline,
    ) -> Result<GroupId, Error> {
        self.refuse_when_ending()?;
        if let Some(group) = self.known(database) {
            return Ok(group);
        }
        self.read_index(GroupId::SYSTEM, deadline).await?;
        self.known(database).ok_or(Error::NoSuchDatabase)
    }

    pub(crate) fn refuse_when_ending(&self) -> Result<(), Error> {
        refuse_when_ending(&self.shared)
    }

    /// Waits for a change of routes, for a moment where one is given, and at most until the
    /// deadline.
    async fn wait(
        &self,
        changes: &mut Changes,
        deadline: Deadline,
        moment: Option<Duration>,
    ) -> Result<(), Error> {
        let left = deadline.left().ok_or(Error::NoLeader { leader: None })?;
        let most = moment.map_or(left, |moment| moment.min(left));
        let _ = tokio::time::timeout(most, changes.changed()).await;
        self.refuse_when_ending()
    }

    /// Tells the driver, unless that has gone.
    pub(crate) async fn send(&self, command: Command) -> Result<(), ()> {
        self.commands.send(command).await.map_err(drop)
    }

    /// Asks this node's core; `None` where the deadline passes or the driver has gone.
    async fn ask(&self, request: Ask, deadline: Deadline) -> Option<Reply> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Request { request, deadline, reply }).await.ok()?;
        answer.await.ok()?
    }

    async fn forward(
        &self,
        to: NodeId,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Option<ForwardReply> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Forward { to, request, deadline, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Has a request carried out by the group's leader. Tries again only after a definite refusal:
    /// once an attempt may have reached a log, its outcome is the only one that is reported.
    pub(crate) async fn on_leader(
        &self,
        group: GroupId,
        request: ForwardRequest,
        deadline: Deadline,
    ) -> Result<ForwardReply, Error> {
        let mut changes = self.shared.watch();
        loop {
            self.refuse_when_ending()?;
            let leader = self.leader(group);
            if deadline.left().is_none() {
                return Err(Error::NoLeader { leader });
            }
            let reply = match leader {
                None => {
                    self.wait(&mut changes, deadline, None).await?;
                    continue;
                }
                Some(leader) if leader == self.me => self
                    .ask(Ask::Forwardable(request.clone()), deadline)
                    .await
                    .map(|reply| forward_reply_of(Some(reply))),
                Some(leader) if planted::is(planted::Planted::ResendAfterAppend) => {
                    let patience = deadline.min(Duration::from_millis(100));
                    let reply = self.forward(leader, request.clone(), patience).await;
                    if matches!(reply, None | Some(ForwardReply::Unknown)) {
                        continue;
                    }
                    reply
                }
                Some(leader) => self.forward(leader, request.clone(), deadline).await,
            };
            match reply {
                None if planted::is(planted::Planted::TimeoutAsFailure) => {
                    return Err(Error::NoLeader { leader });
                }
                None | Some(ForwardReply::Unknown) => return Err(Error::Unknown),
                Some(ForwardReply::Rejected(reject)) => match next_after(reject, leader) {
                    Next::Fail(error) => return Err(error),
                    // What was refused may pass without a change of routes.
                    Next::TryAgain => self.wait(&mut changes, deadline, Some(RETRY_PERIOD)).await?,
                },
                Some(reply) => return Ok(reply),
            }
        }
    }

    /// A linearizable read point: this node's state may answer from now on.
    pub(crate) async fn read_index(
        &self,
        group: GroupId,
        deadline: Deadline,
    ) -> Result<Lsn, Error> {
        let mut changes = self.shared.watch();
        loop {
            self.refuse_when_ending()?;
            let leader = self.leader(group);
            if deadline.left().is_none() {
                return Err(Error::NoLeader { leader });
            }
            if leader.is_none() {
                self.wait(&mut changes, deadline, None).await?;
                continue;
            }
            match self.ask(Ask::Read { group }, deadline).await {
                Some(Reply::Readable { lsn }) => return Ok(lsn),
                Some(Reply::Rejected(reject)) => match next_after(reject, leader) {
                    Next::Fail(error) => return Err(error),
                    Next::TryAgain => self.wait(&mut changes, deadline, Some(RETRY_PERIOD)).await?,
                },
                _ => return Err(Error::NoLeader { leader }),
            }
        }
    }

    /// Returns once this node's state may answer a read.
    pub(crate) async fn await_readable(
        &self,
        group: GroupId,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(), Error> {
        match consistency {
            Consistency::Linearizable => self.read_index(group, deadline).await.map(|_| ()),
            Consistency::Local(None) => Ok(()),
            Consistency::Local(Some(Bookmark { group: of, .. })) if of != group => {
                Err(Error::Recreated)
            }
            Consistency::Local(Some(bookmark)) => loop {
                self.refuse_when_ending()?;
                let applied =
                    self.states.applied(group).map_err(|e| self.state_error(group, &e))?;
                if applied >= bookmark.lsn || planted::is(planted::Planted::BookmarkIgnored) {
                    return Ok(());
                }
                let left = deadline.left().ok_or(Error::Behind { applied })?;
                tokio::time::sleep(left.min(Duration::from_millis(2))).await;
            },
        }
    }
}

impl Handle {
    /// What is applied here, where it may be read.
    pub(crate) fn readable(&self, group: GroupId) -> Result<Lsn, Error> {
        self.states.readable(group).map_err(|error| self.state_error(group, &error))
    }

    /// What a group's replica here knows to be committed.
    ///
    /// # Errors
    /// Where the node ends.
    pub async fn committed(&self, group: GroupId) -> Result<Lsn, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NotReady(String::from("this node is stopping"));
        self.commands.send(Command::Committed { group, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    pub(crate) fn state_error(&self, group: GroupId, error: &StateError) -> Error {
        state_error(&self.commands, group, error)
    }
}

/// What a read says of a state that can't be read; damage is seen to.
pub(crate) fn state_error(
    commands: &mpsc::Sender<Command>,
    group: GroupId,
    error: &StateError,
) -> Error {
    if error.is_loss() {
        // A full queue is no harm: the next one to see it tells.
        let _ = commands.try_send(Command::Damaged { group, reason: error.to_string() });
    }
    Error::NotReady(error.to_string())
}

pub(crate) fn refuse_when_ending(shared: &Shared) -> Result<(), Error> {
    if shared.is_draining() {
        return Err(Error::Draining);
    }
    let halted = shared.routes().halted.clone();
    halted.map_or(Ok(()), |reason| Err(Error::NotReady(reason)))
}

/// A definite refusal: try again, or what to report.
#[must_use]
pub fn next_after(reject: Reject, leader: Option<NodeId>) -> Next {
    match reject {
        Reject::NotLeader { .. }
        | Reject::NoSuchGroup
        | Reject::Transferring
        | Reject::KeysUnknown => Next::TryAgain,
        Reject::KeyMismatch => Next::Fail(Error::KeyMismatch),
        Reject::KeysFull => Next::Fail(Error::KeysFull),
        Reject::Busy => Next::Fail(Error::Busy),
        Reject::StorageFull => Next::Fail(Error::StorageFull),
        Reject::TooLarge => Next::Fail(Error::TooLarge),
        Reject::Quarantined => {
            Next::Fail(Error::NotReady(String::from("the database is quarantined on this node")))
        }
        Reject::NotReady => Next::Fail(Error::NotReady(String::from("the cluster is not formed"))),
        Reject::Expired | Reject::Superseded | Reject::TransferFailed => {
            Next::Fail(Error::NoLeader { leader })
        }
    }
}

/// A write's receipt.
///
/// # Errors
/// [`Error::Refused`], or [`Error::Unknown`] where the outcome can't be read.
pub fn receipt_of(
    group: GroupId,
    (lsn, term): (Lsn, Term),
    outcome: &Outcome,
    replayed: bool,
) -> Result<Receipt, Error> {
    match Answer::decode(&outcome.answer) {
        Ok(Answer::Done { existed }) => Ok(Receipt { group, lsn, term, existed, replayed }),
        Ok(Answer::Refused { .. }) if planted::is(planted::Planted::RefusalAsAck) => {
            Ok(Receipt { group, lsn, term, existed: true, replayed })
        }
        Ok(Answer::Refused { index, version }) => {
            Err(Error::Refused { index, version, lsn, replayed })
        }
        // It took effect, but how cannot be told: never a definite failure.
        Err(_) => Err(Error::Unknown),
    }
}

fn record_of(record: StoredRecord) -> Record {
    let StoredRecord { version, content_type, value } = record;
    Record { version, content_type, value }
}

pub(crate) fn listed_of(listed: StoredListed) -> Listed {
    let StoredListed { key, size, record } = listed;
    Listed { key, size, record: record_of(record) }
}

#[cfg(all(test, not(madsim)))]
mod tests;
