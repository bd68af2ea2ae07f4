//! Slots: what is asked of them is carried out by the group's leader, through its log; how they stand
//! is read from this node's replica, after a read index.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use highwater_core::{GroupId, Lsn, SlotOutcome, SlotSettings, SlotState, SlotsView};
use highwater_wire::peer::{ForwardReply, ForwardRequest, SlotAsk};
use tokio::sync::oneshot;

use crate::{
    api::{Error, SlotInfo},
    deadline::Deadline,
    driver::Command,
    handle::Handle,
    shared::Shared,
};

/// A group's slots, as a replica knows them.
pub(crate) struct Slots {
    /// The first LSN that the log still has.
    pub(crate) first: Lsn,
    /// In order of name.
    pub(crate) all: Vec<SlotInfo>,
}

impl Slots {
    pub(crate) fn of(view: &SlotsView<'_>, connected: impl Fn(&str) -> bool) -> Slots {
        let all = view.slots.iter().map(|slot| SlotInfo {
            name: slot.name.to_owned(),
            confirmed: slot.confirmed,
            lag_ops: slot.lag_ops,
            lag_bytes: slot.lag_bytes,
            lag_ms: slot.lag_ms,
            state: slot.state,
            connected: connected(slot.name),
            expires_in_ms: slot.expires_in_ms,
        });
        Slots { first: view.base.position.lsn.next(), all: all.collect() }
    }
}

/// Streams of this node that read for a slot.
#[derive(Default)]
pub(crate) struct Consumers(Mutex<BTreeMap<GroupId, BTreeMap<String, usize>>>);

impl Consumers {
    pub(crate) fn is_connected(&self, group: GroupId, name: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&group).is_some_and(|names| names.contains_key(name))
    }
}

/// One such stream, for as long as it lives.
pub(crate) struct Connected {
    shared: Arc<Shared>,
    group: GroupId,
    name: String,
}

impl Connected {
    fn new(shared: Arc<Shared>, group: GroupId, name: &str) -> Connected {
        let mut all = shared.consumers.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(group).or_default().entry(name.to_owned()).or_default() += 1;
        drop(all);
        Connected { shared, group, name: name.to_owned() }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut all = self.shared.consumers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = all.get_mut(&self.group) {
            if let Some(count) = names.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    names.remove(&self.name);
                }
            }
            if names.is_empty() {
                all.remove(&self.group);
            }
        }
    }
}

impl Handle {
    /// Creates a slot unless it stands with the same settings. Where it is, and whether it stood before.
    ///
    /// # Errors
    /// [`Error::SlotDiffers`] where it stands with other settings; [`Error::OutOfRange`] where it is to
    /// begin above what is committed; [`Error::SlotInvalidated`] where it stands so; [`Error::Busy`] where there are too many. Each but [`Error::Unknown`] is definite,
    /// and after that one, too, it may be asked again.
    pub async fn create_slot(
        &self,
        database: &str,
        name: &str,
        settings: SlotSettings,
        timeout: Duration,
    ) -> Result<(Lsn, bool), Error> {
        match self.ask_slot(database, name, SlotAsk::Create(settings), timeout).await? {
            SlotOutcome::Created { confirmed } => Ok((confirmed, false)),
            SlotOutcome::Stood { confirmed } => Ok((confirmed, true)),
            _ => Err(Error::Unknown),
        }
    }

    /// Notes that a slot's consumer has everything up to an LSN. Where the slot is then: there, or
    /// further.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`], [`Error::SlotInvalidated`], [`Error::OutOfRange`] above what is
    /// committed. After [`Error::Unknown`] it may be asked again.
    pub async fn ack_slot(
        &self,
        database: &str,
        name: &str,
        upto: Lsn,
        timeout: Duration,
    ) -> Result<Lsn, Error> {
        match self.ask_slot(database, name, SlotAsk::Ack(upto), timeout).await? {
            SlotOutcome::Confirmed { confirmed } => Ok(confirmed),
            _ => Err(Error::Unknown),
        }
    }

    /// Deletes a slot.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`]: also where an earlier try, whose outcome was not known, did it.
    pub async fn delete_slot(
        &self,
        database: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<(), Error> {
        match self.ask_slot(database, name, SlotAsk::Delete, timeout).await? {
            SlotOutcome::Deleted => Ok(()),
            _ => Err(Error::Unknown),
        }
    }

    /// Has the leader do something with a slot; what came of it, unless that is an error.
    async fn ask_slot(
        &self,
        database: &str,
        name: &str,
        ask: SlotAsk,
        timeout: Duration,
    ) -> Result<SlotOutcome, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        let request = ForwardRequest::Slot { group, name: name.to_owned(), ask };
        match self.on_leader(group, request, deadline).await? {
            ForwardReply::Slot { first, outcome } => match outcome {
                SlotOutcome::NoSuchSlot => Err(Error::NoSuchSlot),
                SlotOutcome::Differs => Err(Error::SlotDiffers),
                SlotOutcome::Invalidated { cause } => Err(Error::SlotInvalidated { cause, first }),
                SlotOutcome::Pruned { first } => Err(Error::LogPruned { first }),
                SlotOutcome::AboveCommitted { committed } => Err(Error::OutOfRange { committed }),
                done => Ok(done),
            },
            _ => Err(Error::Unknown),
        }
    }

    /// Every slot of a database, in order of name, after a read index.
    ///
    /// # Errors
    /// All are definite.
    pub async fn slots(&self, database: &str, timeout: Duration) -> Result<Vec<SlotInfo>, Error> {
        let deadline = Deadline::after(timeout);
        let group = self.resolve(database, deadline).await?;
        Ok(self.known_slots(group, deadline).await?.all)
    }

    /// One slot of a database, after a read index.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`]; all are definite.
    pub async fn slot(
        &self,
        database: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<SlotInfo, Error> {
        let slots = self.slots(database, timeout).await?;
        slots.into_iter().find(|slot| slot.name == name).ok_or(Error::NoSuchSlot)
    }

    /// A slot that may be read for: where it is, and a token of the stream that does.
    pub(crate) async fn connect_slot(
        &self,
        group: GroupId,
        name: &str,
        deadline: Deadline,
    ) -> Result<(Lsn, Connected), Error> {
        let Slots { first, all } = self.known_slots(group, deadline).await?;
        let slot = all.into_iter().find(|slot| slot.name == name).ok_or(Error::NoSuchSlot)?;
        if let SlotState::Invalidated { cause } = slot.state {
            return Err(Error::SlotInvalidated { cause, first });
        }
        Ok((slot.confirmed, Connected::new(self.shared.clone(), group, name)))
    }

    async fn known_slots(&self, group: GroupId, deadline: Deadline) -> Result<Slots, Error> {
        self.read_index(group, deadline).await?;
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NotReady(String::from("this node is stopping"));
        self.send(Command::Slots { group, reply }).await.map_err(|()| gone())?;
        answer.await.map_err(|_| gone())?.ok_or_else(|| {
            Error::NotReady(String::from("the slots are not known here while the state is read"))
        })
    }
}

#[cfg(all(test, not(madsim)))]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_connected_while_one_of_its_streams_lives() {
        let shared = Arc::new(Shared::new());
        let connected = || shared.consumers.is_connected(GroupId(2), "a");
        let one = Connected::new(shared.clone(), GroupId(2), "a");
        let two = Connected::new(shared.clone(), GroupId(2), "a");
        let _other = Connected::new(shared.clone(), GroupId(3), "b");
        assert!(connected() && !shared.consumers.is_connected(GroupId(2), "b"));
        drop(one);
        assert!(connected());
        drop(two);
        assert!(!connected());
    }
}
