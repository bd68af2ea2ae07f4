//! A machine: clock, disk and, while it runs, a node.

use std::collections::BTreeMap;

use highwater_core::{
    Boot, ClusterId, Config, GroupId, Identity, Incarnation, Input, Instant, Member, Node, NodeId,
    Now, Peer,
};

use super::{
    disk::{Disk, Oplog},
    state::State,
};

/// Room in the oplog that tests begin with.
const ROOM: u64 = 1 << 40;

/// A machine's clocks: monotonic, which may start anywhere and drift, and wall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: u64,
    mono: u64,
    /// In thousandths.
    rate: u64,
    /// Added to wall time, in milliseconds.
    pub(crate) wall_ms: i64,
}

impl Clock {
    pub(crate) fn now(&self, time: u64) -> Now {
        let mono = self.mono + (time - self.started) * self.rate / 1000;
        let wall = 1_700_000_000_000 + time as i64 / 1000 + self.wall_ms;
        Now { mono: Instant(mono), wall_ms: wall as u64 }
    }

    /// The first time at which the clock shows at least that.
    pub(crate) fn time_of(&self, at: Instant) -> u64 {
        let left = at.0.saturating_sub(self.mono);
        match self.rate {
            // It stands still.
            0 if left > 0 => u64::MAX,
            0 => self.started,
            rate => self.started + (left * 1000).div_ceil(rate),
        }
    }

    /// The monotonic clock goes on at that rate, in thousandths.
    pub(crate) fn set_rate(&mut self, time: u64, rate: u64) {
        self.mono = self.now(time).mono.0;
        (self.started, self.rate) = (time, rate);
    }
}

/// A copy of a data directory.
#[derive(Clone)]
pub(crate) struct Copy {
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: Boot,
    starts: Vec<Boot>,
    pub(crate) disk: Disk,
}

/// A node is told so many of its earlier starts.
const STARTS: usize = 8;

pub(crate) struct Host {
    id: NodeId,
    nodes: Vec<NodeId>,
    incarnation: Incarnation,
    boot: Boot,
    /// Before the present one.
    starts: Vec<Boot>,
    pub(crate) node: Option<Node>,
    pub(crate) disk: Disk,
    /// Data directories that were lost: their acknowledgements may still be on the way.
    lost: Vec<(Member, Disk)>,
    /// An earlier copy of the data directory.
    pub(crate) copy: Option<Copy>,
    /// In memory: what is applied.
    pub(crate) states: BTreeMap<GroupId, State>,
    pub(crate) inbox: Vec<Input>,
    pub(crate) clock: Clock,
    pub(crate) busy_until: u64,
    pub(crate) wakes_at: Option<u64>,
    pub(crate) stepped: bool,
    /// Rises with each start and stop; what was meant for an earlier run is dropped.
    pub(crate) run: u64,
    /// The last write of this run.
    pub(crate) written: u64,
}

impl Host {
    pub(crate) fn new(id: NodeId, nodes: Vec<NodeId>) -> Host {
        Host {
            id,
            nodes,
            incarnation: Incarnation(u128::from(id.0)),
            boot: Boot::default(),
            starts: Vec::new(),
            node: None,
            disk: Disk::new(ROOM),
            lost: Vec::new(),
            copy: None,
            states: BTreeMap::new(),
            inbox: Vec::new(),
            clock: Clock { started: 0, mono: 0, rate: 1000, wall_ms: 0 },
            busy_until: 0,
            wakes_at: None,
            stepped: false,
            run: 0,
            written: 0,
        }
    }

    pub(crate) fn member(&self) -> Member {
        Member { node: self.id, incarnation: self.incarnation }
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { member: self.member(), boot: self.boot }
    }

    /// What is, and what was, durable in a data directory.
    pub(crate) fn durable(&self, member: Member) -> impl Iterator<Item = &Oplog> {
        let lost = self.lost.iter().filter(move |(m, _)| *m == member).map(|(_, disk)| disk);
        let now = (member == self.member()).then_some(&self.disk);
        lost.chain(now).map(|disk| &disk.durable)
    }

    pub(crate) fn start(&mut self, time: u64, mono: u64, rate: u64, seed: u64, config: Config) {
        assert!(self.node.is_none(), "{:?} runs", self.id);
        self.starts.push(self.boot);
        self.boot = Boot { counter: self.boot.counter + 1, nonce: seed };
        self.clock = Clock { started: time, mono, rate, wall_ms: self.clock.wall_ms };
        let identity = Identity {
            cluster: ClusterId(1 << 64),
            member: self.member(),
            boot: self.boot,
            starts: self.starts.iter().rev().take(STARTS).copied().collect(),
            nodes: self.nodes.clone(),
        };
        self.disk.drop_lost_states();
        self.states = self.disk.states.clone();
        let now = self.clock.now(time);
        let node = Node::recover(config, identity, seed, now, self.disk.recover());
        self.node = Some(node.expect("what is on the disk is consistent"));
        self.busy_until = 0;
        self.wakes_at = None;
        self.stepped = false;
        self.run += 1;
        self.written = 0;
    }

    pub(crate) fn crash(&mut self, keep: usize) {
        self.node = None;
        self.inbox.clear();
        self.states.clear();
        self.disk.crash(keep);
        self.run += 1;
    }

    fn lose(&mut self) {
        assert!(self.node.is_none(), "{:?} runs", self.id);
        self.lost.push((self.member(), self.disk.clone()));
    }

    pub(crate) fn wipe(&mut self, time: u64) {
        self.lose();
        self.disk = Disk::new(ROOM);
        (self.boot, self.starts) = (Boot::default(), Vec::new());
        self.renew(time);
    }

    /// The data directory stays, and is a member no more.
    pub(crate) fn fence(&mut self, time: u64) {
        self.lose();
        self.renew(time);
    }

    fn renew(&mut self, time: u64) {
        let made = Incarnation(u128::from(time + 1) << 80 | u128::from(self.id.0));
        assert!(made > self.incarnation, "incarnations rise");
        self.incarnation = made;
    }

    pub(crate) fn copy(&mut self) {
        let mut disk = self.disk.clone();
        disk.crash(0);
        let (incarnation, boot, starts) = (self.incarnation, self.boot, self.starts.clone());
        self.copy = Some(Copy { incarnation, boot, starts, disk });
    }

    /// The data directory is as it was when it was copied.
    pub(crate) fn restore(&mut self) {
        self.lose();
        let copy = self.copy.clone().expect("there is a copy");
        (self.incarnation, self.boot, self.disk) = (copy.incarnation, copy.boot, copy.disk);
        self.starts = copy.starts;
    }

    /// The end of the log is damaged, from where the copy ended on.
    pub(crate) fn tear(&mut self) {
        self.lose();
        let copy = self.copy.as_ref().expect("there is a copy");
        self.disk.durable.tear(&copy.disk.durable);
        self.disk.crash(0);
    }
}
