//! All that is known about one peer, and what waits to be sent to it.

use std::{
    collections::VecDeque,
    mem::{self, Discriminant},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use highwater_core::{NodeId, Peer};
use highwater_wire::{message::DecodeError, peer::Hello};
use quinn::Connection;
use tokio::sync::Notify;

use crate::greet::Code;

/// Bytes that wait for one peer. What does not fit is dropped: whoever sent it tries again.
pub(crate) const QUEUE_MAX: usize = 32 << 20;

/// Bytes that one write takes off a lane.
const WRITE_MAX: usize = 1 << 20;

/// What is sent on one stream. Within a lane the order is kept; a long lane does not hold up the
/// other ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Votes, acknowledgements, reads, status.
    Control = 0,
    /// Appends, so that a commit mark does not overtake its entries; and forwarded operations.
    Bulk = 1,
    /// Blocks of snapshots, which take what the others leave.
    Snapshot = 2,
}

impl Lane {
    pub(crate) const ALL: [Lane; 3] = [Lane::Control, Lane::Bulk, Lane::Snapshot];

    /// Of its stream: higher ones go first.
    pub(crate) fn priority(self) -> i32 {
        match self {
            Lane::Control => 1,
            Lane::Bulk => 0,
            Lane::Snapshot => -1,
        }
    }
}

/// One configured peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    /// Wakes the dialling task.
    pub(crate) redial: Notify,
    ready: [Notify; 3],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closing: bool,
    /// Names connections, both dialled and accepted.
    serial: u64,
    outgoing: Option<Outgoing>,
    /// How many of those there were.
    connections: u64,
    incoming: Option<(u64, Connection)>,
    /// The sender of the last message that was handed on.
    heard: Option<Peer>,
    /// The last accepted connection that was closed because of something that is no message.
    refused: Option<Refused>,
    http: Option<String>,
    lanes: [VecDeque<Bytes>; 3],
    /// Bytes in the lanes, and those that are being written.
    queued: usize,
    /// What went wrong last, so that it is told once.
    trouble: String,
}

#[derive(Debug)]
struct Outgoing {
    serial: u64,
    connection: Connection,
    /// Which start of the peer is at the other end.
    remote: Peer,
}

#[derive(Debug)]
struct Refused {
    serial: u64,
    from: Peer,
    error: Discriminant<DecodeError>,
}

/// The right to queue on one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    serial: u64,
    /// Bytes that still fit.
    pub(crate) room: usize,
}

/// What a lane has for its writer.
#[derive(Debug)]
pub(crate) enum Next {
    Write(Vec<Bytes>),
    Wait,
    /// Nothing will come any more.
    Finish,
}

impl Link {
    pub(crate) fn new(node: NodeId, address: SocketAddr) -> Link {
        Link {
            node,
            address,
            redial: Notify::new(),
            ready: Default::default(),
            state: Mutex::default(),
        }
    }

    /// No code path panics while it holds the lock, so what it guards is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is taken; what is queued is flushed; the dialling task ends.
    pub(crate) fn close(&self) {
        self.state().closing = true;
        self.redial.notify_one();
        self.ready.iter().for_each(Notify::notify_one);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.state().closing
    }

    pub(crate) fn http(&self) -> Option<String> {
        self.state().http.clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.state().outgoing.is_some()
    }

    /// How many dialled connections stood so far.
    pub(crate) fn connections(&self) -> u64 {
        self.state().connections
    }

    /// Records what went wrong; whether it is news.
    pub(crate) fn trouble(&self, what: &str) -> bool {
        let mut state = self.state();
        let news = state.trouble != what;
        if news {
            what.clone_into(&mut state.trouble);
        }
        news
    }

    /// What went wrong is over.
    pub(crate) fn recovered(&self) {
        self.state().trouble.clear();
    }

    // --- sending ---

    /// The right to queue for the peer. There is none while it is not connected, nor while the
    /// peer at the other end is another start than the one last heard: what is sent now may be
    /// meant for that one. A restarted peer speaks first, because it has heard nobody.
    pub(crate) fn admit(&self) -> Option<Ticket> {
        let state = self.state();
        let outgoing = state.outgoing.as_ref()?;
        let meant = state.heard.is_none_or(|heard| heard == outgoing.remote);
        let room = QUEUE_MAX.saturating_sub(state.queued);
        (meant && !state.closing).then_some(Ticket { serial: outgoing.serial, room })
    }

    /// Queues frames. Whether they were taken: not if the ticket's connection is gone.
    pub(crate) fn push(&self, ticket: Ticket, lane: Lane, frames: Bytes) -> bool {
        let mut state = self.state();
        if state.serial_out() != Some(ticket.serial) {
            return false;
        }
        state.queued += frames.len();
        state.lanes[lane as usize].push_back(frames);
        drop(state);
        self.ready[lane as usize].notify_one();
        true
    }

    /// Sends a frame beside the lanes. It may be lost.
    pub(crate) fn datagram(&self, ticket: Ticket, frame: Bytes) -> bool {
        let state = self.state();
        match &state.outgoing {
            Some(o) if o.serial == ticket.serial => o.connection.send_datagram(frame).is_ok(),
            _ => false,
        }
    }

    /// A dialled connection stands.
    pub(crate) fn connected(&self, connection: Connection, hello: &Hello) -> u64 {
        let mut state = self.state();
        let serial = state.next_serial();
        state.outgoing = Some(Outgoing { serial, connection, remote: hello.peer });
        state.connections += 1;
        state.http = Some(hello.http.clone());
        serial
    }

    /// A dialled connection is gone, and with it what waited for that start of the peer.
    pub(crate) fn disconnected(&self) {
        let mut state = self.state();
        state.outgoing = None;
        state.queued = 0;
        let lanes = mem::take(&mut state.lanes);
        drop(state);
        drop(lanes);
    }

    /// Takes what is to be written next. [`Link::wrote`] gives its room back.
    pub(crate) fn next(&self, lane: Lane) -> Next {
        let mut state = self.state();
        let waiting = &mut state.lanes[lane as usize];
        let mut frames = Vec::new();
        let mut bytes = 0;
        while let Some(front) = waiting.pop_front_if(|f| bytes == 0 || bytes + f.len() <= WRITE_MAX)
        {
            bytes += front.len();
            frames.push(front);
        }
        match frames.is_empty() {
            false => Next::Write(frames),
            true if state.closing => Next::Finish,
            true => Next::Wait,
        }
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        let mut state = self.state();
        state.queued = state.queued.saturating_sub(bytes);
    }

    /// Returns when a lane may have something new.
    pub(crate) async fn ready(&self, lane: Lane) {
        self.ready[lane as usize].notified().await;
    }

    // --- receiving ---

    /// An accepted connection has said hello: it replaces the one before, and shows that the peer
    /// can be dialled.
    pub(crate) fn adopt(&self, connection: Connection, hello: &Hello) -> u64 {
        let mut state = self.state();
        let serial = state.next_serial();
        let old = state.incoming.replace((serial, connection));
        state.http = Some(hello.http.clone());
        let remote = state.outgoing.as_ref().map(|o| o.remote);
        let stale = match &state.outgoing {
            Some(o) if o.remote != hello.peer => Some(o.connection.clone()),
            _ => None,
        };
        drop(state);
        if remote != Some(hello.peer) {
            self.redial.notify_one();
        }
        if let Some((_, old)) = old {
            Code::Replaced.close(&old, "a newer connection of this node replaces it");
        }
        if let Some(stale) = stale {
            Code::Replaced.close(&stale, "this node has started anew");
        }
        serial
    }

    /// Hands a message on, unless its connection has been replaced: nothing of an earlier start
    /// arrives after something of a later one.
    pub(crate) fn hear(&self, serial: u64, from: Peer, hand_on: impl FnOnce()) -> bool {
        let mut state = self.state();
        let current = state.incoming.as_ref().is_some_and(|(s, _)| *s == serial);
        if current {
            state.heard = Some(from);
            hand_on();
        }
        current
    }

    /// Something on an accepted connection is no message. `None` where that was noted already for
    /// this connection; else whether it is news of this start of the peer.
    pub(crate) fn refuse(&self, serial: u64, from: Peer, error: DecodeError) -> Option<bool> {
        let now = Refused { serial, from, error: mem::discriminant(&error) };
        let mut state = self.state();
        let before = state.refused.as_ref();
        if before.is_some_and(|before| before.serial >= serial) {
            return None;
        }
        let known = |before: &Refused| before.from == now.from && before.error == now.error;
        let news = !before.is_some_and(known);
        state.refused = Some(now);
        Some(news)
    }

    /// An accepted connection is gone.
    pub(crate) fn left(&self, serial: u64) {
        let mut state = self.state();
        if state.incoming.as_ref().is_some_and(|(s, _)| *s == serial) {
            state.incoming = None;
        }
    }
}

impl State {
    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn serial_out(&self) -> Option<u64> {
        self.outgoing.as_ref().map(|o| o.serial)
    }
}

/// What tests look at.
#[cfg(all(test, not(madsim)))]
impl Link {
    pub(crate) fn queued(&self) -> usize {
        self.state().queued
    }

    pub(crate) fn told(&self) -> String {
        self.state().trouble.clone()
    }

    pub(crate) fn outgoing(&self) -> Option<Connection> {
        self.state().outgoing.as_ref().map(|o| o.connection.clone())
    }

    pub(crate) fn outgoing_to(&self) -> Option<Peer> {
        self.state().outgoing.as_ref().map(|o| o.remote)
    }
}
