//! Nonsense from peers: valid types, random fields. A node may be misled by a member that lies (that
//! is outside the fault model), but it never panics, and what it holds stays bounded.

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, MS, Rng};
use highwater_core::{
    Base, Boot, Config, Entry, Formation, GroupId, GroupMessage, Hlc, Incarnation, Input, Instant,
    Kind, Lsn, Member, Message, NodeId, OnceEntry, OnceKey, Peer, Position, Request, Root,
    SlotCause, SlotChange, SlotEntry, SlotLimits, SlotSettings, SlotStart, Term,
};

/// Makes things up: often near what is true, else at an edge.
struct Liar<'a> {
    rng: &'a mut Rng,
    /// Of the group that it speaks of: the term and the end of the log at the receiver.
    term: Term,
    last: Lsn,
}

/// A number that is more likely than others to be at an edge.
fn edge(rng: &mut Rng) -> u64 {
    match rng.below(7) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX - rng.below(3),
        3 => u64::MAX / 2 + rng.below(3),
        4 => rng.next(),
        _ => rng.below(12),
    }
}

impl Liar<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }

    fn maybe(&mut self) -> bool {
        self.rng.permille(500)
    }

    fn edge(&mut self) -> u64 {
        edge(self.rng)
    }

    fn term(&mut self) -> Term {
        // Mostly a real one, or nobody would listen after the first.
        match self.rng.below(100) {
            0 => Term(self.edge()),
            1..4 => self.term.next(),
            4..20 => Term(self.term.0.saturating_sub(self.below(3))),
            _ => self.term,
        }
    }

    fn lsn(&mut self) -> Lsn {
        let near = (self.last.0 + self.rng.below(3)).saturating_sub(self.rng.below(4));
        Lsn(if self.rng.permille(800) { near } else { self.edge() })
    }

    fn position(&mut self) -> Position {
        Position { term: self.term(), lsn: self.lsn() }
    }

    fn entries(&mut self, prev: Position) -> Vec<Entry> {
        let mut last = prev;
        (0..self.below(4))
            .map(|_| {
                let lsn = if self.rng.permille(900) { last.lsn.next() } else { self.lsn() };
                let term = if self.rng.permille(700) { last.term } else { self.term() };
                let prev_term = if self.rng.permille(900) { last.term } else { self.term() };
                last = Position { term, lsn };
                Entry {
                    lsn,
                    term,
                    prev_term,
                    hlc: Hlc(self.edge()),
                    origin: self.edge(),
                    kind: *self.rng.pick(&[
                        Kind::TermStart,
                        Kind::Op,
                        Kind::CreateDatabase,
                        Kind::Slot,
                        Kind::Once,
                        Kind::Audit,
                        Kind::Prune,
                    ]),
                    payload: self.payload(),
                }
            })
            .collect()
    }

    /// Bytes, a keyed write, where the log begins, or what it says of slots.
    fn payload(&mut self) -> Bytes {
        if self.maybe() {
            return Bytes::from(vec![self.below(256) as u8; self.below(60) as usize]);
        }
        if self.maybe() {
            let key = Bytes::from(format!("k{}", self.below(4)));
            let (time_ms, expires_ms) = (self.edge(), self.edge());
            let once = OnceKey { key, digest: [self.below(2) as u8; 16] };
            return OnceEntry { time_ms, expires_ms, once, op: Bytes::new() }.encode();
        }
        if self.maybe() {
            let (position, effective) = (self.position(), self.lsn());
            return Base { position, effective, bytes: self.edge() }.encode();
        }
        let change = |liar: &mut Self| {
            let name = format!("s{}", liar.below(4));
            match liar.below(4) {
                0 => SlotChange::Delete { name },
                1 => SlotChange::Ack { name, lsn: liar.lsn() },
                2 => {
                    let (confirmed, alive_ms) = (liar.lsn(), liar.edge());
                    let cause = *liar.rng.pick(&[SlotCause::Horizon, SlotCause::LogRemoved]);
                    SlotChange::Invalidate { name, cause, confirmed, alive_ms }
                }
                _ => {
                    let limit = liar.maybe().then(|| liar.edge());
                    let limits = SlotLimits { lag_bytes: limit, lag_ops: limit, idle_ms: limit };
                    let from = *liar.rng.pick(&[SlotStart::Earliest, SlotStart::Latest]);
                    let from = if liar.maybe() { SlotStart::After(liar.lsn()) } else { from };
                    SlotChange::Create { name, settings: SlotSettings { from, limits } }
                }
            }
        };
        let changes = (0..self.below(4)).map(|_| change(self)).collect();
        SlotEntry { time_ms: self.edge(), changes }.encode()
    }

    fn groups(&mut self) -> Vec<(GroupId, Term)> {
        (0..self.below(5)).map(|_| (GroupId(self.below(5)), self.term())).collect()
    }

    fn remembered(&mut self) -> Vec<(GroupId, Term, Lsn)> {
        let some = self.groups();
        some.into_iter().map(|(group, term)| (group, Term(term.0 / 2), self.lsn())).collect()
    }

    fn group_message(&mut self) -> GroupMessage {
        match self.below(15) {
            12 => GroupMessage::Pruned {
                base: self.position(),
                committed: self.lsn(),
                round: self.edge(),
            },
            13 => GroupMessage::Root { lsn: self.lsn(), root: Root(self.edge().into()) },
            14 => GroupMessage::Verified { lsn: self.lsn(), root: Root(self.edge().into()) },
            10 => GroupMessage::Fetch { from: self.lsn(), to: self.lsn() },
            11 => {
                let prev = self.position();
                let entries = self.entries(prev);
                let from = if self.maybe() { prev.lsn.next() } else { self.lsn() };
                GroupMessage::Fetched { from, entries }
            }
            0 => GroupMessage::PreVote { last: self.position() },
            1 => GroupMessage::PreVoteReply { granted: self.maybe() },
            2 => GroupMessage::Vote { last: self.position(), transfer: self.maybe() },
            3 => GroupMessage::VoteReply { granted: self.maybe() },
            4 | 5 => {
                let prev = self.position();
                let entries = self.entries(prev);
                let committed = self.lsn();
                GroupMessage::Append { prev, entries, committed, round: self.edge() }
            }
            6 => GroupMessage::AppendAccepted { durable: self.lsn(), round: self.edge() },
            7 => GroupMessage::AppendRejected { hint: self.lsn(), round: self.edge() },
            8 => GroupMessage::ReadIndex { id: self.edge() },
            _ => match self.below(3) {
                0 => GroupMessage::ReadIndexReply { id: self.edge(), lsn: None },
                1 => GroupMessage::ReadIndexReply { id: self.edge(), lsn: Some(self.lsn()) },
                _ => GroupMessage::TimeoutNow,
            },
        }
    }

    fn message(&mut self, group: GroupId) -> Message {
        match self.below(20) {
            0 => Message::Heartbeat {
                generation: self.edge(),
                sent: Instant(self.edge()),
                echo: self.maybe().then(|| Instant(self.edge())),
            },
            1 => Message::Confirm { groups: self.groups() },
            2 => Message::Confirmed { leading: self.groups(), ceased: self.groups() },
            3 => Message::FormProbe,
            4 => Message::FormBlank { prober: Incarnation(u128::from(self.edge())) },
            5 => {
                let count = self.below(4);
                let member = |_| Member {
                    node: NodeId(self.below(5)),
                    incarnation: Incarnation(u128::from(self.below(5))),
                };
                Message::Formed(Formation { members: (0..count).map(member).collect() })
            }
            6 => Message::Recall { from: GroupId(self.edge()) },
            7 => Message::Recalled {
                // Mostly what fences nobody.
                incarnation: Incarnation(u128::from(self.below(2))),
                boot: Boot { counter: self.below(2), nonce: self.edge() },
                met: None,
                groups: self.remembered(),
                next: self.maybe().then(|| GroupId(self.edge())),
            },
            8 => {
                let group = GroupId(self.edge());
                Message::Group { group, term: self.term(), message: self.group_message() }
            }
            _ => Message::Group { group, term: self.term(), message: self.group_message() },
        }
    }
}

fn sender(rng: &mut Rng, cluster: &Cluster) -> Peer {
    let node = NodeId(if rng.permille(950) { rng.between(1, 3) } else { edge(rng) });
    match cluster.hosts.get(&node) {
        Some(host) if rng.permille(980) => host.peer(),
        _ => Peer {
            member: Member { node, incarnation: Incarnation(u128::from(rng.below(5))) },
            boot: Boot { counter: rng.below(5), nonce: edge(rng) },
        },
    }
}

fn bombard(seed: u64, formed: bool) {
    let mut rng = Rng::new(seed);
    let config = Config {
        payload_bytes_max: 1000,
        append_bytes_max: 1000,
        uncommitted_bytes_max: 4000,
        tail_bytes_max: 2000,
        reads_max: 20,
        slot_requests_max: 10,
        retention_bytes: 1,
        retention_ms: 500,
        ..Config::default()
    };
    let groups_max = 20;
    let mut cluster = Cluster::new(rng.next(), 3, config.clone());
    // Members that lie can break what holds between nodes, but not a node.
    cluster.trusting = false;
    cluster.start_all();
    if formed {
        cluster.run_for(1000 * MS);
        let leader = cluster.leader(GroupId::SYSTEM).expect("it is led");
        let expires = cluster.deadline_of(leader, 1000 * MS);
        cluster.request(leader, Request::CreateDatabase { name: "app".to_owned(), expires });
        cluster.run_for(1000 * MS);
    }
    for _ in 0..1500 {
        let to = NodeId(rng.between(1, 3));
        for _ in 0..rng.below(5) {
            let from = sender(&mut rng, &cluster);
            let groups: Vec<GroupId> = cluster.names.keys().copied().collect();
            let group = *rng.pick(&groups);
            let view = cluster.node(to).and_then(|n| n.group(group));
            let (term, last) = view.map(|v| (v.term, v.watermarks.appended())).unwrap_or_default();
            let message = Liar { rng: &mut rng, term, last }.message(group);
            cluster.input(to, Input::Message { from, message });
        }
        let groups: Vec<GroupId> = cluster.names.keys().copied().collect();
        let group = *rng.pick(&groups);
        if rng.permille(100) {
            cluster.request(to, Request::Read { group });
        } else if rng.permille(100) {
            cluster.propose(to, group, "put k v");
        } else if rng.permille(100) {
            let name = format!("s{}", rng.below(8));
            let lsn = Lsn(edge(&mut rng));
            let expires = cluster.deadline_of(to, 1000 * MS);
            let settings = SlotSettings { from: SlotStart::After(lsn), ..SlotSettings::default() };
            cluster.request(
                to,
                match rng.below(3) {
                    0 => Request::CreateSlot { group, name, settings, expires },
                    1 => Request::DeleteSlot { group, name, expires },
                    _ => Request::AckSlot { group, name, lsn, expires },
                },
            );
        }
        if rng.permille(10) {
            cluster.crash(to, 0);
            cluster.start(to);
        }
        if rng.permille(50) {
            let (from, upto) = (Lsn(edge(&mut rng)), Lsn(edge(&mut rng)));
            cluster.host_mut(to).disk.damage(group, from, upto);
            cluster.input(to, Input::Damaged { group, from, to: upto });
        }
        cluster.run_for(rng.below(20) * MS);
        for id in cluster.ids() {
            let Some(node) = cluster.node(id) else { continue };
            let held = node.held();
            let count = node.groups().count();
            assert!(count <= groups_max, "groups: {count}");
            let tail = config.uncommitted_bytes_max + config.tail_bytes_max + 3000;
            assert!(held.tail_bytes <= count * tail, "{held:?}");
            assert!(held.withheld <= count * 2 * 10 * (held.writes as usize + 1), "{held:?}");
            assert!(held.writes <= 10, "{held:?}");
            assert!(held.reads <= count * config.reads_max, "{held:?}");
            assert!(held.slot_requests <= count * config.slot_requests_max, "{held:?}");
            assert!(held.loads <= count * 10, "{held:?}");
            assert!(held.unconfirmed <= count * 2, "{held:?}");
            assert!(held.recalls <= 2, "{held:?}");
            assert!(held.unreadable <= count * 64, "{held:?}");
        }
    }
}

/// `GARBAGE_SEEDS=N` tries more than take a second.
fn seeds() -> u64 {
    let more = std::env::var("GARBAGE_SEEDS").ok();
    more.map_or(20, |n| n.parse().expect("a number of seeds"))
}

#[test]
fn a_formed_node_survives_nonsense() {
    for seed in 0..seeds() {
        bombard(seed, true);
    }
}

#[test]
fn a_blank_node_survives_nonsense() {
    for seed in 0..seeds() {
        bombard(seed, false);
    }
}
