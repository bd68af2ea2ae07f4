//! Change streams: the effective ops of a database, in order, each naming the one before it, up to
//! what is applied on this node. A stream pulls: whoever reads slowly is behind, and holds nothing.

use std::{sync::Arc, time::Duration};

use highwater_core::{
    Base, Entry, GroupId, Hlc, Lsn, Term,
    planted::{self, Planted},
};
use highwater_store::{oplog::LoadError, state::StateError};
use highwater_wire::op::Op;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    api::{Bookmark, Consistency, Error},
    deadline::Deadline,
    driver::Command,
    feed::Feed,
    handle::Handle,
    shared::Changes,
    slots::Connected,
    workers::HistoryJob,
};

/// Streams of a node at a time.
pub(crate) const STREAMS_MAX: usize = 1_024;
/// The search for the op before a position looks at so many entries at first, and at most.
const LOOK_BACK: (u64, u64) = (8, 1_024);
/// ... and reads about so much at once, in bytes.
const LOOK_BACK_BYTES: usize = 256 << 10;

/// An op that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its position, which is also the version of every record that it wrote.
    pub lsn: Lsn,
    /// The effective op before it; 0 for the first.
    pub prev_lsn: Lsn,
    /// The term that it was appended in.
    pub term: Term,
    /// When.
    pub hlc: Hlc,
    /// The cluster that wrote it first: the high 64 bits of its id.
    pub origin: u64,
    /// What it did.
    pub op: Op,
}

/// A consumer's place in a database's history.
pub struct ChangeStream {
    handle: Handle,
    group: GroupId,
    /// Everything up to here was given, or is no effective op.
    position: Lsn,
    /// The last effective op up to there.
    prev: Lsn,
    feed: Arc<Feed>,
    _permit: OwnedSemaphorePermit,
    _connected: Option<Connected>,
}

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin<'a> {
    /// After this LSN.
    After(Lsn),
    /// Where this slot is, or after this LSN where that is further.
    Slot(&'a str, Lsn),
}

impl std::fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ChangeStream { group, position, prev, .. } = self;
        write!(f, "changes of {group:?} after {position:?}, the last one {prev:?}")
    }
}

impl Handle {
    /// Opens a stream of what took effect after an LSN, or after what a slot's consumer has. Waits until
    /// that is applied here, and where a bookmark is given, that too.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is to begin above what is committed; [`Error::Behind`] where that is
    /// not applied here in time; [`Error::Busy`] where there are too many streams;
    /// [`Error::NoSuchSlot`] and [`Error::SlotInvalidated`].
    pub async fn changes(
        &self,
        database: &str,
        from: Begin<'_>,
        bookmark: Option<Bookmark>,
        timeout: Duration,
    ) -> Result<ChangeStream, Error> {
        let opening = self.open_changes(database, from, bookmark, Deadline::after(timeout));
        tokio::time::timeout(timeout, opening).await.unwrap_or_else(|_| {
            Err(Error::NotReady(String::from("the oplog could not be read within the deadline")))
        })
    }

    async fn open_changes(
        &self,
        database: &str,
        from: Begin<'_>,
        bookmark: Option<Bookmark>,
        deadline: Deadline,
    ) -> Result<ChangeStream, Error> {
        let group = self.resolve(database, deadline).await?;
        let permit = self.shared.streams.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let (mut after, connected) = match from {
            Begin::After(after) => (after, None),
            Begin::Slot(name, seen) => {
                let (confirmed, connected) = self.connect_slot(group, name, deadline).await?;
                (confirmed.max(seen), Some(connected))
            }
        };
        self.await_readable(group, Consistency::Local(bookmark), deadline).await?;
        let feed = self.shared.feeds.follow(group);
        let (mut applications, mut routes) = (feed.watch(), self.shared.watch());
        if self.readable(group)? < after {
            let committed = self.read_index(group, deadline).await?;
            if committed < after {
                return Err(Error::OutOfRange { committed });
            }
        }
        loop {
            self.refuse_when_ending()?;
            let applied = self.readable(group)?;
            if applied >= after {
                break;
            }
            let left = deadline.left().ok_or(Error::Behind { applied })?;
            wait(&mut applications, &mut routes, left).await;
        }
        let prev = loop {
            let mut bases = self.bases(group).await?;
            if bases.agreed.is_none() && after < bases.here.position.lsn {
                // What all agree on is known once something was read.
                self.read_index(group, deadline).await?;
                bases = self.bases(group).await?;
            }
            if planted::is(Planted::StreamFromPruned) {
                after = after.max(bases.latest().position.lsn);
            }
            bases.check(after)?;
            if planted::is(Planted::StreamGuessesPrev) {
                break after;
            }
            match self.effective_upto(group, after, bases.latest()).await {
                // It was pruned meanwhile: now the base tells.
                Err(_) if self.bases(group).await? != bases => {}
                found => break found?,
            }
        };
        Ok(ChangeStream {
            handle: self.clone(),
            group,
            position: after,
            prev,
            feed,
            _permit: permit,
            _connected: connected,
        })
    }

    /// The last effective op up to an applied LSN, in a log that begins after `base`; 0 where there is
    /// none.
    async fn effective_upto(&self, group: GroupId, upto: Lsn, base: Base) -> Result<Lsn, Error> {
        let (mut to, (mut window, most)) = (upto, LOOK_BACK);
        let first = base.position.lsn.next();
        while to >= first {
            let from = Lsn(to.0.saturating_sub(window - 1).max(first.0));
            let (ops, upto) = self.ops(group, (from, to), LOOK_BACK_BYTES).await?;
            if upto < to && window > 1 {
                // They are too large to be looked at together.
                window /= 2;
                continue;
            }
            if let Some(op) = ops.last() {
                return Ok(op.lsn);
            }
            (to, window) = (from.prev(), (2 * window).min(most));
        }
        Ok(base.effective)
    }

    /// The ops of this node's oplog that took effect, of so many bytes about; and up to where there is no
    /// other, which is at least the first LSN.
    async fn ops(
        &self,
        group: GroupId,
        (from, to): (Lsn, Lsn),
        max_bytes: usize,
    ) -> Result<(Vec<Entry>, Lsn), Error> {
        let (reply, answer) = oneshot::channel();
        let job = HistoryJob { group, from, to, max_bytes, reply };
        let gone = || Error::NotReady(String::from("this node is stopping"));
        self.history.send(job).await.map_err(|_| gone())?;
        let mut entries = match answer.await.map_err(|_| gone())? {
            Ok(entries) => entries,
            Err(LoadError::Pruned { .. }) => return Err(self.pruned(group, from).await),
            Err(error) => {
                return Err(Error::NotReady(format!("the oplog can't be read: {error}")));
            }
        };
        let upto = entries.last().map_or(from.prev(), |entry| entry.lsn);
        let mut refused = match self.states.refused(group, from, upto) {
            Ok(refused) => refused,
            Err(StateError::Pruned { .. }) => return Err(self.pruned(group, from).await),
            Err(error) => return Err(self.state_error(group, &error)),
        };
        if planted::is(Planted::StreamShowsRefused) {
            refused.clear();
        }
        entries.retain(|entry| entry.kind.is_op() && !refused.contains(&entry.lsn));
        Ok((entries, upto))
    }

    /// What to say where history from an LSN on is not here any more: this node's log may begin further
    /// on than that of others.
    async fn pruned(&self, group: GroupId, from: Lsn) -> Error {
        let bases = match self.bases(group).await {
            Ok(bases) => bases,
            Err(error) => return error,
        };
        let meanwhile = || Error::NotReady(String::from("the oplog was pruned meanwhile"));
        bases.check(from.prev()).err().unwrap_or_else(meanwhile)
    }

    /// Where the log begins.
    async fn bases(&self, group: GroupId) -> Result<Bases, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NotReady(String::from("this node is stopping"));
        self.send(Command::Bases { group, reply }).await.map_err(|()| gone())?;
        answer.await.map_err(|_| gone())
    }
}

/// Where a group's log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bases {
    /// As far as all replicas agree; `None` as long as that is not known here.
    pub(crate) agreed: Option<Base>,
    /// On this node: what came as a snapshot begins further on.
    pub(crate) here: Base,
}

impl Bases {
    /// Whether the history behind an LSN is to be had here.
    ///
    /// # Errors
    /// [`Error::LogPruned`] where it is to be had nowhere; [`Error::NotReady`] where others may have it.
    fn check(self, after: Lsn) -> Result<(), Error> {
        let lost = |base: &Base| after < base.position.lsn;
        if let Some(agreed) = self.agreed.filter(lost) {
            return Err(Error::LogPruned { first: agreed.position.lsn.next() });
        }
        if lost(&self.here) {
            let first = self.here.position.lsn.next();
            let why =
                format!("this node came as a snapshot, and has history from LSN {first} on only");
            return Err(Error::NotReady(why));
        }
        Ok(())
    }

    /// Before which nothing is to be had.
    fn latest(self) -> Base {
        match self.agreed {
            Some(agreed) if agreed.position > self.here.position => agreed,
            _ => self.here,
        }
    }
}

/// Until something is applied, the node ends, or the time is over.
async fn wait(applications: &mut Changes, routes: &mut Changes, most: Duration) {
    tokio::select! {
        biased;
        () = applications.changed() => {}
        () = routes.changed() => {}
        () = tokio::time::sleep(most) => {}
    }
}

impl ChangeStream {
    /// The database's group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Everything up to here was given, or is no effective op.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The group's term here.
    #[must_use]
    pub fn term(&self) -> Term {
        self.handle.term(self.group)
    }

    /// What comes next: at most so many ops and about so many bytes, but at least one op; none where
    /// none is applied within `wait_for`. Reading the oplog may take longer; whoever drops the future
    /// loses nothing.
    ///
    /// # Errors
    /// Where this node's state or oplog can't be read now, or the node ends. The stream goes on where
    /// it stood.
    pub async fn next(
        &mut self,
        ops_max: usize,
        bytes_max: usize,
        wait_for: Duration,
    ) -> Result<Vec<Change>, Error> {
        let (deadline, ops_max) = (Deadline::after(wait_for), ops_max.max(1));
        let (mut applications, mut routes) = (self.feed.watch(), self.handle.shared.watch());
        loop {
            self.handle.refuse_when_ending()?;
            let applied = self.handle.readable(self.group)?;
            let mut changes = Vec::new();
            while changes.is_empty() && self.position < applied {
                let (ops, upto) = self.look(applied, ops_max, bytes_max).await?;
                changes = self.give(ops, upto)?;
            }
            if !changes.is_empty() {
                return Ok(changes);
            }
            let Some(left) = deadline.left() else { return Ok(changes) };
            wait(&mut applications, &mut routes, left).await;
        }
    }

    /// Effective ops behind the position, and up to where there is no other: from memory, or else
    /// from the oplog.
    async fn look(
        &self,
        applied: Lsn,
        ops_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Lsn), Error> {
        let from = self.position.next();
        if let Some(taken) = self.feed.take(from, ops_max, bytes_max) {
            return Ok((taken.ops, taken.upto));
        }
        let most = Lsn(from.0.saturating_add(ops_max as u64 - 1));
        let to = if planted::is(Planted::StreamBeyondApplied) { most } else { applied.min(most) };
        self.handle.ops(self.group, (from, to), bytes_max).await
    }

    fn give(&mut self, ops: Vec<Entry>, upto: Lsn) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::with_capacity(ops.len());
        let mut prev_lsn = self.prev;
        for entry in ops {
            let payload = entry.op().unwrap_or_default();
            let Entry { lsn, term, hlc, origin, .. } = entry;
            let op = Op::decode(payload).map_err(|error| {
                Error::NotReady(format!("the op at LSN {lsn} can't be read: {error}"))
            })?;
            changes.push(Change { lsn, prev_lsn, term, hlc, origin, op });
            prev_lsn = lsn;
        }
        (self.position, self.prev) = (upto, prev_lsn);
        Ok(changes)
    }
}
