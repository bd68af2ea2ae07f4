//! The network between the machines: loss, duplication, delays, cut links. Messages travel as
//! values; what they are as bytes is the simulator's business.

use std::collections::BTreeMap;

use highwater_core::{GroupMessage, Message, NodeId, Peer};
use highwater_wire::peer::{ForwardRequest, PeerMessage};

use super::agenda::now_ns;
use crate::{
    plan::{Shape, Weather},
    rng::Rng,
    stats::Seen,
    trace::Kind,
    world::World,
};

/// Why a link is cut: it counts as one or the other fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The other direction is cut as well.
    BothWays,
    /// The other direction works.
    OneWay,
    /// Others hear both ends.
    Partial(Shape),
}

/// A message on its way.
pub(super) struct Parcel {
    pub(super) from: Peer,
    pub(super) to: NodeId,
    /// The process that it was sent to: another one never sees it.
    pub(super) process: u64,
    pub(super) message: PeerMessage,
    sent_ns: u64,
    /// Its place among all that was sent.
    nth: u64,
    copy: bool,
}

/// The network of one run.
pub(super) struct Network {
    rng: Rng,
    weather: Weather,
    cuts: BTreeMap<(NodeId, NodeId), Vec<Cut>>,
    sent: u64,
    /// The highest place delivered on each link.
    delivered: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    pub(super) fn new(seed: u64, weather: Weather) -> Network {
        Network {
            rng: Rng::stream(seed, "network", 0),
            weather,
            cuts: BTreeMap::new(),
            sent: 0,
            delivered: BTreeMap::new(),
        }
    }

    /// Changes the weather.
    pub(super) fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Cuts links in one direction. Cuts add up.
    pub(super) fn cut(&mut self, links: &[(NodeId, NodeId)], cut: Cut) {
        for link in links {
            self.cuts.entry(*link).or_default().push(cut);
        }
    }

    /// Takes one such cut of each link back.
    pub(super) fn mend(&mut self, links: &[(NodeId, NodeId)], cut: Cut) {
        for link in links {
            let Some(cuts) = self.cuts.get_mut(link) else { continue };
            if let Some(at) = cuts.iter().position(|c| *c == cut) {
                cuts.remove(at);
            }
            if cuts.is_empty() {
                self.cuts.remove(link);
            }
        }
    }

    /// Mends every link, and calms the weather.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.weather = Weather::CALM;
    }

    /// Whether messages go both ways between two nodes.
    pub(super) fn reaches(&self, a: NodeId, b: NodeId) -> bool {
        self.blocked(a, b).is_none() && self.blocked(b, a).is_none()
    }

    fn blocked(&self, from: NodeId, to: NodeId) -> Option<Seen> {
        if self.cuts.is_empty() {
            return None;
        }
        self.cuts.get(&(from, to))?.first().map(|cut| match cut {
            Cut::BothWays => Seen::PartitionBlocked,
            Cut::OneWay => Seen::OneWayBlocked,
            Cut::Partial(shape) => shape.blocked(),
        })
    }

    /// Sends a message to a process; `plan` is told when it arrives, twice if it is repeated.
    pub(super) fn send(
        &mut self,
        world: &World,
        from: Peer,
        (to, process): (NodeId, u64),
        message: PeerMessage,
        mut plan: impl FnMut(u64, Parcel),
    ) {
        let node = from.member.node;
        self.sent += 1;
        let nth = self.sent;
        let drop = |why: &str| {
            world.event(Kind::Drop, node.0, to.0, nth, 0, || {
                format!("to {to:?}, {why}, {}", brief(&message))
            });
        };
        if let Some(seen) = self.blocked(node, to) {
            world.saw(seen);
            return drop("cut off");
        }
        if self.rng.ppm(self.weather.loss_ppm) {
            world.saw(Seen::MessageLost);
            return drop("lost");
        }
        let sent_ns = now_ns();
        let parcel = |message, copy| Parcel { from, to, process, message, sent_ns, nth, copy };
        let bytes = size(&message);
        // Drivers rely on a transport that delivers at most once; cores don't.
        let repeats = matches!(message, PeerMessage::Core(_));
        if repeats && self.rng.ppm(self.weather.duplicate_ppm) {
            plan(sent_ns + self.delay_ns(bytes), parcel(message.clone(), true));
        }
        plan(sent_ns + self.delay_ns(bytes), parcel(message, false));
    }

    /// A message arrives, `runs` being the process that is there. Whether it gets it.
    pub(super) fn arrives(&mut self, world: &World, parcel: &Parcel, runs: Option<u64>) -> bool {
        let Parcel { from, to, process, message, sent_ns, nth, copy } = parcel;
        let node = from.member.node;
        let event = |kind: Kind, why: &str| {
            world.event(kind, to.0, node.0, *nth, 0, || {
                format!("from {node:?}{why} {}", brief(message))
            });
        };
        if let Some(seen) = self.blocked(node, *to) {
            world.saw(seen);
            event(Kind::Drop, ", cut off on the way,");
            return false;
        }
        if runs != Some(*process) {
            world.saw(Seen::StaleSession);
            event(Kind::Drop, ", for an earlier process,");
            return false;
        }
        event(Kind::Deliver, "");
        let last = self.delivered.entry((node, *to)).or_default();
        world.saw_times(Seen::MessageReordered, u64::from(nth < last));
        *last = *nth.max(last);
        world.saw_times(Seen::MessageDuplicated, u64::from(*copy));
        world.saw_times(Seen::MessageLate, u64::from(now_ns() - sent_ns >= 100_000_000));
        true
    }

    fn delay_ns(&mut self, bytes: usize) -> u64 {
        let Weather { delay_us, jitter_us, tail_ppm, tail_us, .. } = self.weather;
        let mut ns = delay_us * 1_000 + self.rng.below(jitter_us * 1_000 + 1);
        if self.rng.ppm(tail_ppm) {
            ns += self.rng.heavy(1_000, tail_us) * 1_000;
        }
        // 1 Gbit/s.
        ns + bytes as u64 * 8
    }
}

/// About how many bytes a message has.
fn size(message: &PeerMessage) -> usize {
    let payload = match message {
        PeerMessage::Core(Message::Group {
            message: GroupMessage::Append { entries, .. } | GroupMessage::Fetched { entries, .. },
            ..
        }) => entries.iter().map(highwater_core::Entry::weight).sum(),
        PeerMessage::Forward { request: ForwardRequest::Propose { payload, .. }, .. } => {
            payload.len()
        }
        _ => 0,
    };
    payload + 64
}

/// A message as a reader of a log wants it: without the bytes of its payloads.
fn brief(message: &PeerMessage) -> String {
    let mut text = format!("{message:?}");
    if text.len() > 400 {
        let end = (0..=400).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
