//! The network: every message as the bytes that would travel, with loss, duplication, delays with
//! heavy tails, and links that are cut one way or both. It knows nothing of what the bytes mean.
//!
//! What travels is a message of [`SimTransport`], the cheap transport, or a datagram of the real one
//! ([`crate::quic`]).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use highwater_core::{
    NodeId, Peer,
    planted::{self, Planted},
};
use highwater_node::env::{Inbound, Transport};
use highwater_wire::{message, peer::PeerMessage};
use tokio::sync::mpsc;

use crate::{
    page::story::Story,
    plan::{Shape, Weather},
    quic::Arrivals,
    rng::{Rng, spread},
    stats::Seen,
    timer::{Until, now_ns, until},
    trace::{Kind, digest},
    world::World,
};

/// Why a link is cut: it counts as one or the other fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The other direction is cut as well.
    BothWays,
    /// The other direction works.
    OneWay,
    /// Others hear both ends.
    Partial(Shape),
    /// It comes back all the time.
    Flap,
}

/// What becomes of that which reaches a process.
pub(crate) enum Receiver {
    /// It is a message for its driver.
    Driver(mpsc::Sender<Inbound>),
    /// It is a datagram for its socket.
    Socket(Arc<Arrivals>),
}

struct Endpoint {
    process: u64,
    receiver: Receiver,
}

/// What a parcel is. Weather and cuts treat both alike.
#[derive(Clone, Copy)]
enum Load {
    /// A message. The cheap transport keeps its promise to drivers: only the process that it was
    /// sent to ever sees it; `None` if there was none.
    Message { from: Peer, process: Option<u64> },
    /// A packet of a real transport, for whoever has the address when it arrives.
    Datagram,
}

impl Load {
    /// What happens to it, in the trace: it is sent, arrives, or is lost.
    fn kinds(self) -> [Kind; 3] {
        match self {
            Load::Message { .. } => [Kind::Send, Kind::Deliver, Kind::Drop],
            Load::Datagram => [Kind::DatagramSend, Kind::DatagramDeliver, Kind::DatagramDrop],
        }
    }
}

/// How a parcel is spoken of.
struct Said<'a> {
    /// In an event.
    brief: &'a dyn Fn() -> String,
    /// In a story, once the event is there.
    tell: &'a dyn Fn(&mut Story),
}

struct Parcel {
    from: NodeId,
    to: NodeId,
    load: Load,
    bytes: Bytes,
    sent_ns: u64,
    /// Its place among all that was sent over the link.
    nth: u64,
    copy: bool,
}

struct State {
    rng: Rng,
    weather: Weather,
    cuts: BTreeMap<(NodeId, NodeId), Vec<Cut>>,
    /// How many bytes a millisecond go through each of a node's links.
    narrow: BTreeMap<NodeId, u64>,
    /// Until when a narrow link has something to carry.
    busy_until_ns: BTreeMap<(NodeId, NodeId), u64>,
    endpoints: BTreeMap<NodeId, Endpoint>,
    /// By time of arrival, then in the order of sending.
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    parcels: BTreeMap<u64, Parcel>,
    sequence: u64,
    /// The highest place delivered on each link.
    delivered: BTreeMap<(NodeId, NodeId), u64>,
    pump: Option<Waker>,
}

/// The network of one run.
pub(crate) struct Network {
    pub(crate) world: Arc<World>,
    state: Mutex<State>,
}

/// The planted nondeterminism: what one run leaves behind moves the next one.
static LEAK: AtomicU64 = AtomicU64::new(0);

impl Network {
    pub(crate) fn new(world: Arc<World>, weather: Weather) -> Network {
        let state = Mutex::new(State {
            rng: Rng::stream(world.seed, "network", 0),
            weather,
            cuts: BTreeMap::new(),
            narrow: BTreeMap::new(),
            busy_until_ns: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            queue: BinaryHeap::new(),
            parcels: BTreeMap::new(),
            sequence: 0,
            delivered: BTreeMap::new(),
            pump: None,
        });
        Network { world, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the weather.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Cuts a link in one direction. Cuts add up.
    pub(crate) fn cut(&self, from: NodeId, to: NodeId, cut: Cut) {
        self.world.tell(|story| story.cut(from, to));
        self.lock().cuts.entry((from, to)).or_default().push(cut);
    }

    /// Takes one such cut back.
    pub(crate) fn mend(&self, from: NodeId, to: NodeId, cut: Cut) {
        if let Some(cuts) = self.lock().cuts.get_mut(&(from, to))
            && let Some(at) = cuts.iter().position(|c| *c == cut)
        {
            cuts.remove(at);
            self.world.tell(|story| story.mended(from, to));
        }
    }

    /// Limits how many bytes a millisecond go through each of a node's links, or not.
    pub(crate) fn narrow(&self, node: NodeId, bytes_per_ms: Option<u64>) {
        let mut state = self.lock();
        state.narrow.remove(&node);
        if let Some(limit) = bytes_per_ms {
            state.narrow.insert(node, limit);
        }
    }

    /// Whether every link works and is as fast as it can be.
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.lock();
        state.narrow.is_empty() && state.cuts.values().all(Vec::is_empty)
    }

    /// Mends every link, and calms the weather.
    pub(crate) fn heal(&self) {
        self.world.tell(Story::all_mended);
        let mut state = self.lock();
        state.cuts.clear();
        state.narrow.clear();
        state.weather = Weather::CALM;
        // What queues on a link that was narrow is through soon.
        let soon = now_ns() + HEALED_QUEUE_NS;
        let queue = std::mem::take(&mut state.queue).into_iter();
        state.queue = queue.map(|Reverse((at, id))| Reverse((at.min(soon), id))).collect();
        state.busy_until_ns.clear();
        if let Some(pump) = state.pump.take() {
            pump.wake();
        }
    }

    /// Connects a process.
    pub(crate) fn attach(&self, node: NodeId, process: u64, receiver: Receiver) {
        self.lock().endpoints.insert(node, Endpoint { process, receiver });
    }

    /// Disconnects a node: what arrives from now on is lost.
    pub(crate) fn detach(&self, node: NodeId) {
        self.lock().endpoints.remove(&node);
    }

    /// Which process has a node's address.
    pub(crate) fn process_at(&self, node: NodeId) -> Option<u64> {
        self.lock().endpoints.get(&node).map(|endpoint| endpoint.process)
    }

    fn send(&self, from: Peer, to: NodeId, message: &PeerMessage) {
        let mut frame = BytesMut::new();
        message::encode(message, &mut frame);
        // Drivers rely on a transport that delivers at most once; cores don't.
        let repeats = matches!(message, PeerMessage::Core(_));
        let load = Load::Message { from, process: self.process_at(to) };
        let node = from.member.node;
        let tell = |story: &mut Story| story.message(node, to, message);
        let said = Said { brief: &|| brief(message), tell: &tell };
        self.post(node, to, load, frame.freeze(), repeats, &said);
    }

    /// Sends what a socket has for another one.
    pub(crate) fn send_datagram(&self, from: NodeId, to: NodeId, bytes: Bytes) {
        let size = bytes.len();
        let said = Said { brief: &|| format!("a datagram of {size} bytes"), tell: &|_| () };
        self.post(from, to, Load::Datagram, bytes, true, &said);
    }

    /// Puts a parcel on its way.
    fn post(
        &self,
        from: NodeId,
        to: NodeId,
        load: Load,
        bytes: Bytes,
        repeats: bool,
        said: &Said<'_>,
    ) {
        let digest = digest(&bytes);
        let event = |kind: Kind, why: &str| {
            self.world.event(kind, from.0, to.0, bytes.len() as u64, digest, || {
                format!("to {to:?}{why} {}", (said.brief)())
            });
            self.world.tell(said.tell);
        };
        let [sends, _, drops] = load.kinds();
        event(sends, "");
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Load::Message { process: None, .. } = load {
            return;
        }
        if let Some(cut) = state.cuts.get(&(from, to)).and_then(|cuts| cuts.first()) {
            self.world.saw(blocked(*cut));
            return event(drops, ", cut off,");
        }
        if state.rng.ppm(state.weather.loss_ppm) {
            self.world.saw(match load {
                Load::Message { .. } => Seen::MessageLost,
                Load::Datagram => Seen::DatagramLost,
            });
            return event(drops, ", lost,");
        }
        let Some(queued_ns) = state.queue_ns((from, to), bytes.len()) else {
            self.world.saw(Seen::LinkFull);
            return event(drops, ", no room on the link,");
        };
        self.world.saw_times(Seen::LinkNarrow, u64::from(queued_ns >= 5_000_000));
        let copies = 1 + u64::from(repeats && state.rng.ppm(state.weather.duplicate_ppm));
        let sent_ns = now_ns();
        state.sequence += 1;
        let nth = state.sequence;
        for copy in 0..copies {
            let arrives = sent_ns + queued_ns + state.delay_ns(bytes.len());
            state.sequence += 1;
            let id = state.sequence;
            state.queue.push(Reverse((arrives, id)));
            let (bytes, copy) = (bytes.clone(), copy > 0);
            self.world.tell(|story| story.parcel(id, from));
            state.parcels.insert(id, Parcel { from, to, load, bytes, sent_ns, nth, copy });
        }
        if let Some(pump) = state.pump.take() {
            pump.wake();
        }
    }

    /// Delivers, for ever. Runs beside the cluster, on no node.
    pub(crate) async fn pump(self: Arc<Network>) {
        let mut timer = until(u64::MAX / 2);
        poll_fn(move |cx| self.poll_pump(cx, &mut timer)).await
    }

    fn poll_pump(&self, cx: &mut Context<'_>, timer: &mut Until) -> Poll<()> {
        loop {
            let parcel = {
                let mut state = self.lock();
                state.pump = Some(cx.waker().clone());
                let Some(Reverse((arrives, id))) = state.queue.peek().copied() else {
                    return Poll::Pending;
                };
                if arrives > now_ns() {
                    timer.reset(arrives);
                    if Pin::new(&mut *timer).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                state.queue.pop();
                state.parcels.remove(&id).map(|parcel| (id, parcel))
            };
            if let Some((id, parcel)) = parcel {
                self.deliver(id, parcel);
            }
        }
    }

    fn deliver(&self, id: u64, parcel: Parcel) {
        let Parcel { from, to, load, ref bytes, .. } = parcel;
        let world = &self.world;
        let digest = digest(bytes);
        let event = |kind: Kind, detail: &dyn Fn() -> String| {
            world.event(kind, to.0, from.0, bytes.len() as u64, digest, detail);
            if matches!(load, Load::Message { .. }) {
                world.tell(|story| story.arrives(id, from, parcel.copy));
            }
        };
        let mut state = self.lock();
        let [_, delivers, drops] = load.kinds();
        if let Some(cut) = state.cuts.get(&(from, to)).and_then(|cuts| cuts.first()) {
            world.saw(blocked(*cut));
            return event(drops, &|| format!("from {from:?}: cut off on the way"));
        }
        let taken = match (load, state.endpoints.get(&to)) {
            (Load::Message { from: peer, process }, Some(endpoint))
                if process == Some(endpoint.process) =>
            {
                let Receiver::Driver(inbound) = &endpoint.receiver else { return };
                let message = match message::decode(bytes.clone()) {
                    Ok(message) => message,
                    Err(error) => {
                        let what = format!("{from:?} sent what {to:?} can't read: {error}");
                        return world.fail("wire", what);
                    }
                };
                event(delivers, &|| format!("from {from:?} {}", brief(&message)));
                world.tell(|story| story.delivered(to, from, &message));
                inbound.try_send(Inbound { from: peer, message }).is_ok()
            }
            (Load::Message { .. }, _) => {
                world.saw(Seen::StaleSession);
                return event(drops, &|| format!("from {from:?}: for an earlier process"));
            }
            (Load::Datagram, Some(Endpoint { receiver: Receiver::Socket(arrivals), .. })) => {
                event(delivers, &|| format!("from {from:?} a datagram of {} bytes", bytes.len()));
                arrivals.push(from, bytes.clone())
            }
            (Load::Datagram, _) => {
                return event(drops, &|| format!("from {from:?}: nobody listens"));
            }
        };
        // A full queue loses the parcel, as a network would.
        if taken && matches!(load, Load::Message { .. }) {
            state.count(world, &parcel);
        }
    }
}

/// So long do queues last at most once every link is wide again.
const HEALED_QUEUE_NS: u64 = 1_000_000_000;
/// A narrow link's queue takes no more than it carries in this time.
const QUEUE_MAX_NS: u64 = 2_000_000_000;

impl State {
    /// What the weather has done to a message that arrived.
    fn count(&mut self, world: &World, parcel: &Parcel) {
        let last = self.delivered.entry((parcel.from, parcel.to)).or_default();
        world.saw_times(Seen::MessageReordered, u64::from(parcel.nth < *last));
        *last = parcel.nth.max(*last);
        world.saw_times(Seen::MessageDuplicated, u64::from(parcel.copy));
        let late = now_ns() - parcel.sent_ns >= 100_000_000;
        world.saw_times(Seen::MessageLate, u64::from(late));
    }

    /// How long a narrow link takes until so many bytes are through; `None`: they find no room.
    fn queue_ns(&mut self, (from, to): (NodeId, NodeId), bytes: usize) -> Option<u64> {
        let limits = [self.narrow.get(&from), self.narrow.get(&to)];
        let Some(limit) = limits.into_iter().flatten().min() else { return Some(0) };
        let now = now_ns();
        let busy_until = self.busy_until_ns.entry((from, to)).or_default();
        let begins = now.max(*busy_until);
        if begins > now + QUEUE_MAX_NS {
            return None;
        }
        *busy_until = begins + bytes as u64 * 1_000_000 / limit;
        Some(*busy_until - now)
    }

    fn delay_ns(&mut self, bytes: usize) -> u64 {
        let weather = self.weather;
        let mut us = weather.delay_us + self.rng.below(weather.jitter_us + 1);
        if self.rng.ppm(weather.tail_ppm) {
            us += self.rng.heavy(1_000, weather.tail_us);
        }
        if planted::is(Planted::Nondeterminism) {
            us += spread(LEAK.fetch_add(1, Ordering::Relaxed)) % 3;
        }
        // 1 Gbit/s.
        us * 1_000 + bytes as u64 * 8
    }
}

fn blocked(cut: Cut) -> Seen {
    match cut {
        Cut::BothWays => Seen::PartitionBlocked,
        Cut::OneWay => Seen::OneWayBlocked,
        Cut::Partial(shape) => shape.blocked(),
        Cut::Flap => Seen::FlapBlocked,
    }
}

/// A message as a reader of a log wants it: without the bytes of its payloads.
pub(crate) fn brief(message: &PeerMessage) -> String {
    let mut text = format!("{message:?}");
    if text.len() > 400 {
        let mut end = 400;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// One process's way into the network. Falls silent once the process is dead.
pub(crate) struct SimTransport {
    network: Arc<Network>,
    from: Peer,
    process: Arc<crate::cluster::Process>,
}

impl SimTransport {
    pub(crate) fn new(
        network: Arc<Network>,
        from: Peer,
        process: Arc<crate::cluster::Process>,
    ) -> SimTransport {
        SimTransport { network, from, process }
    }
}

impl Transport for SimTransport {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        if self.process.is_dead() {
            return;
        }
        for (to, message) in messages {
            self.network.send(self.from, to, &message);
        }
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::{GroupId, Member, Message};

    use super::*;
    use crate::{timer::pause_ms, trace::Keep};

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn peer(node: NodeId) -> Peer {
        Peer { member: Member { node, ..Member::default() }, ..Peer::default() }
    }

    fn core_message() -> PeerMessage {
        PeerMessage::Core(Message::Confirm { groups: vec![(GroupId(3), Default::default())] })
    }

    /// Runs with a network under this weather, and node B's queue.
    fn with<F: Future<Output = ()>>(
        weather: Weather,
        f: impl FnOnce(Arc<Network>, mpsc::Receiver<Inbound>) -> F,
    ) {
        let runtime = madsim::runtime::Runtime::with_seed_and_config(3, madsim::Config::default());
        runtime.block_on(async {
            let world = Arc::new(World::new(3, Keep::default(), crate::timer::now_ns));
            let network = Arc::new(Network::new(world, weather));
            madsim::task::spawn(network.clone().pump());
            let (deliver, inbound) = mpsc::channel(2_000);
            network.attach(B, 1, Receiver::Driver(deliver));
            f(network, inbound).await;
        });
    }

    fn count(inbound: &mut mpsc::Receiver<Inbound>) -> usize {
        std::iter::from_fn(|| inbound.try_recv().ok()).count()
    }

    #[test]
    fn delivers_what_was_sent() {
        with(Weather::CALM, |network, mut inbound| async move {
            network.send(peer(A), B, &core_message());
            let got = inbound.recv().await.unwrap();
            assert_eq!((got.from, got.message), (peer(A), core_message()));
        });
    }

    #[test]
    fn a_cut_link_works_in_the_other_direction() {
        with(Weather::CALM, |network, mut inbound| async move {
            let (deliver, mut back) = mpsc::channel(10);
            network.attach(A, 2, Receiver::Driver(deliver));
            network.cut(A, B, Cut::OneWay);
            network.send(peer(A), B, &core_message());
            network.send(peer(B), A, &core_message());
            pause_ms(10).await;
            assert_eq!((count(&mut inbound), count(&mut back)), (0, 1));
            network.mend(A, B, Cut::OneWay);
            network.send(peer(A), B, &core_message());
            network.cut(A, B, Cut::BothWays);
            pause_ms(10).await;
            assert_eq!(count(&mut inbound), 0, "cut while it was under way");
        });
    }

    #[test]
    fn another_process_gets_nothing_of_the_first() {
        with(Weather::CALM, |network, mut inbound| async move {
            network.send(peer(A), B, &core_message());
            network.detach(B);
            let (deliver, mut second) = mpsc::channel(10);
            network.attach(B, 2, Receiver::Driver(deliver));
            pause_ms(10).await;
            assert_eq!((count(&mut inbound), count(&mut second)), (0, 0));
        });
    }

    #[test]
    fn weather_loses_and_repeats() {
        let storm = Weather { loss_ppm: 300_000, duplicate_ppm: 300_000, ..Weather::CALM };
        with(storm, |network, mut inbound| async move {
            for _ in 0..500 {
                network.send(peer(A), B, &core_message());
            }
            pause_ms(10).await;
            let (stats, delivered) = (network.world.stats(), count(&mut inbound) as u64);
            let lost = stats.get(Seen::MessageLost);
            assert!((100..200).contains(&lost), "{lost}");
            assert_eq!(delivered, 500 - lost + stats.get(Seen::MessageDuplicated));
            assert!(stats.get(Seen::MessageReordered) > 0);
            // What drivers say to each other is never repeated.
            network.set_weather(Weather { duplicate_ppm: 1_000_000, ..Weather::CALM });
            network.send(peer(A), B, &PeerMessage::StatusQuery { id: 1 });
            pause_ms(10).await;
            assert_eq!(count(&mut inbound), 1);
        });
    }

    #[test]
    fn a_narrow_link_queues_and_overflows() {
        with(Weather::CALM, |network, mut inbound| async move {
            network.narrow(B, Some(1));
            assert!(!network.is_whole());
            for _ in 0..200 {
                network.send(peer(A), B, &core_message());
            }
            pause_ms(500).await;
            let some = count(&mut inbound);
            assert!((1..150).contains(&some), "{some}");
            pause_ms(60_000).await;
            let (rest, stats) = (count(&mut inbound), network.world.stats());
            assert_eq!((some + rest) as u64 + stats.get(Seen::LinkFull), 200);
            assert!(stats.get(Seen::LinkFull) > 0 && stats.get(Seen::LinkNarrow) > 0);
            network.narrow(B, None);
            assert!(network.is_whole());
        });
    }

    #[test]
    fn a_dead_process_is_silent() {
        with(Weather::CALM, |network, mut inbound| async move {
            let process = crate::cluster::Process::new((A, 1));
            let transport = SimTransport::new(network, peer(A), process.clone());
            transport.send(vec![(B, core_message())]);
            process.die();
            transport.send(vec![(B, core_message())]);
            pause_ms(10).await;
            assert_eq!(count(&mut inbound), 1);
        });
    }
}
