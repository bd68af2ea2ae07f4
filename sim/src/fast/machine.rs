//! A machine: its clock, its disk, and the process that runs on it, if one does.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{
    Boot, ClusterId, Config, GroupId, Identity, Incarnation, Lsn, Member, Node, NodeId, Peer,
    RecoverError, Recovered,
};

use super::{
    driver::Driver,
    oplog::{Found, Oplog},
    state::State,
};
use crate::{
    drift::Drifting,
    plan::{Crash, Fuse},
    rng::Rng,
};

const CLUSTER: ClusterId = ClusterId(0x5117 << 64);
/// The oplog never fills.
const ROOM: u64 = 1 << 40;

/// How far a process has come.
pub(super) enum Stage {
    /// It has so many syncs to do before it runs.
    Boots(u64),
    Runs(Box<Driver>),
}

/// One run of a node.
pub(super) struct Process {
    /// Unique in the run.
    pub(super) id: u64,
    pub(super) stage: Stage,
    /// Takes no step, while its clock goes on.
    pub(super) paused: bool,
    /// Its last step takes until then.
    pub(super) busy_until_ns: u64,
    /// When it is woken.
    pub(super) wakes_ns: u64,
    pub(super) steps: u64,
    /// Its state's worker is done by then.
    pub(super) applied_ns: u64,
    pub(super) flushed_ns: u64,
    /// Calls, and which turn of them, that wait for a change of routes, and for an apply.
    pub(super) parked: Vec<(u64, u64)>,
    pub(super) behind: Vec<(u64, u64)>,
    /// Calls that go on once it is not paused any more.
    pub(super) held: Vec<(u64, u64)>,
}

impl Process {
    pub(super) fn new(id: u64, syncs: u64) -> Process {
        Process {
            id,
            stage: Stage::Boots(syncs),
            paused: false,
            busy_until_ns: 0,
            wakes_ns: u64::MAX,
            steps: 0,
            applied_ns: 0,
            flushed_ns: 0,
            parked: Vec::new(),
            behind: Vec::new(),
            held: Vec::new(),
        }
    }

    /// The driver, once it runs.
    pub(super) fn driver(&self) -> Option<&Driver> {
        match &self.stage {
            Stage::Runs(driver) => Some(driver),
            Stage::Boots(_) => None,
        }
    }

    pub(super) fn driver_mut(&mut self) -> Option<&mut Driver> {
        match &mut self.stage {
            Stage::Runs(driver) => Some(driver),
            Stage::Boots(_) => None,
        }
    }
}

/// A call to the disk at which a machine may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskCall {
    Sync,
    Other,
}

/// One machine.
pub(super) struct Machine {
    pub(super) node: NodeId,
    pub(super) clock: Drifting,
    pub(super) rng: Rng,
    pub(super) oplog: Oplog,
    pub(super) states: BTreeMap<GroupId, State>,
    /// Snapshots that are ready to be installed.
    pub(super) snapshots: BTreeMap<GroupId, State>,
    incarnation: Incarnation,
    /// Starts of the data directory that are durable.
    boots: u64,
    pub(super) process: Option<Process>,
    /// How often it was paused.
    pub(super) pauses: u64,
    /// How many times as long its disk takes.
    pub(super) slowness: u64,
    /// How long a step of its process takes; what arrives meanwhile waits for the next one.
    pub(super) step_ns: u64,
    /// How long it stays down after its next crash.
    pub(super) down_ms: Option<u64>,
    pub(super) fuse: Option<(Fuse, Crash)>,
    pub(super) fuse_at_start: Option<Fuse>,
    /// After how many steps the process ends.
    pub(super) steps_left: Option<(u64, Crash)>,
}

impl Machine {
    pub(super) fn new(node: NodeId, seed: u64, clock: Drifting) -> Machine {
        let mut rng = Rng::stream(seed, "machine", node.0);
        let random = u128::from(rng.next()) << 64 | u128::from(rng.next());
        Machine {
            node,
            clock,
            incarnation: Incarnation(random),
            boots: 0,
            oplog: Oplog::default(),
            states: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            process: None,
            pauses: 0,
            slowness: 1,
            step_ns: rng.heavy(2, 2_000) * 1_000,
            down_ms: None,
            fuse: None,
            fuse_at_start: None,
            steps_left: None,
            rng,
        }
    }

    /// How long a call to its disk takes.
    pub(super) fn disk_ns(&mut self, low_us: u64, high_us: u64) -> u64 {
        let mut us = self.rng.range(low_us, high_us);
        if self.rng.ppm(3_000) {
            us += self.rng.heavy(1_000, 30_000);
        }
        us * self.slowness * 1_000
    }

    /// Whether the machine dies at this call to its disk.
    pub(super) fn burns(&mut self, call: DiskCall) -> Option<Crash> {
        let (fuse, crash) = self.fuse.as_mut()?;
        let left = match fuse {
            // Writes have no length here.
            Fuse::Sync(n) | Fuse::LongWrite(n) if call == DiskCall::Sync => n,
            Fuse::LogCall(n) => n,
            Fuse::Sync(_) | Fuse::LongWrite(_) | Fuse::StateCall(_) => return None,
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        let crash = *crash;
        self.fuse = None;
        Some(crash)
    }

    /// The start that is under way is durable.
    pub(super) fn count_boot(&mut self) {
        self.boots += 1;
    }

    /// The process is gone. How many records of the oplog were not synced, and how many of them
    /// will be found.
    pub(super) fn crash(&mut self, crash: Crash) -> (usize, usize) {
        let (unsynced, syncing) = self.oplog.unsynced();
        let keep = match crash {
            // What a process had begun to write is in the page cache.
            Crash::Kill => syncing,
            Crash::Power => self.rng.below(unsynced as u64 + 1) as usize,
        };
        self.oplog.crash(keep);
        self.states.values_mut().for_each(State::crash);
        self.fuse = None;
        self.steps_left = None;
        (unsynced, keep)
    }

    /// What the driver of a new process begins with, and what was recovered.
    pub(super) fn recover(
        &mut self,
        at_ns: u64,
        nodes: &[NodeId],
        config: &Config,
    ) -> Result<(Driver, Found), RecoverError> {
        self.clock.restart(at_ns, self.rng.below(1 << 40));
        let member = Member { node: self.node, incarnation: self.incarnation };
        let boot = Boot { counter: self.boots, nonce: self.rng.next() };
        // No disk is rolled back in this loop.
        let (starts, nodes) = (Vec::new(), nodes.to_vec());
        let identity = Identity { cluster: CLUSTER, member, boot, starts, nodes };
        let found = self.oplog.found();
        let kept = found.clone();
        let (system_applied, system_control) = self.system_control();
        let recovered = Recovered {
            formation: found.formation,
            groups: found.groups,
            system_control,
            system_applied,
            room: ROOM,
            boots: found.boots,
            doubt: found.doubt,
        };
        let now = self.clock.now(at_ns);
        let node = Node::recover(config.clone(), identity, self.rng.next(), now, recovered)?;
        Ok((Driver::new(node, Peer { member, boot }), kept))
    }

    fn system_control(&self) -> (Lsn, Vec<(Bytes, Bytes)>) {
        let state = self.states.get(&GroupId::SYSTEM);
        state.map(State::control).map(|(at, rows)| (at.lsn, rows)).unwrap_or_default()
    }
}
