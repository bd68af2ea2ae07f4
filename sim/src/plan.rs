//! What a seed will go through: the cluster's size and limits, and which faults strike when. All
//! of it is drawn before the run begins, so that a run is a function of its seed.

mod draw;

use highwater_core::{Config, NodeId};
use highwater_store::{oplog::OplogOptions, state::StateOptions};
use serde::{Deserialize, Serialize};

use crate::stats::Seen;

/// A set of promises about what is simulated and how hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Profile {
    /// Three or five nodes under the faults that every node survives by itself.
    #[default]
    Default,
    /// Three to seven nodes; each seed draws which of all faults there are, and how hard.
    Swarm,
    /// As the swarm, with consumers that have slots, and writers that ask again.
    Oplog,
}

impl Profile {
    /// All of them, by their names on the command line.
    pub(crate) const ALL: [(&'static str, Profile); 3] =
        [("default", Profile::Default), ("swarm", Profile::Swarm), ("oplog", Profile::Oplog)];

    /// By its name on the command line.
    pub(crate) fn named(name: &str) -> Option<Profile> {
        Profile::ALL.iter().find(|(n, _)| *n == name).map(|(_, profile)| *profile)
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        Profile::ALL.iter().find(|(_, p)| *p == self).map_or("?", |(name, _)| name)
    }
}

/// Whom a fault strikes; resolved when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// This one.
    Node(NodeId),
    /// Whoever leads the n-th database.
    Leader(u64),
    /// Some other node than that.
    Follower(u64),
}

/// When exactly a process ends, once its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Moment {
    /// Between two steps.
    Now,
    /// At a call to its disk.
    Call(Fuse),
    /// At the n-th await of its driver.
    Await(u64),
}

/// Which way a node is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    /// Both ways.
    Both,
    /// What it sends is lost.
    Out,
    /// What is sent to it is lost.
    In,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Crash {
    /// Like kill -9: the page cache stays.
    Kill,
    /// The power goes: what was not synced is at stake.
    Power,
}

/// At which call to the disk a machine dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fuse {
    /// The n-th sync, in the middle of it.
    Sync(u64),
    /// The sync after the n-th write of several pages of blocks to the oplog.
    LongWrite(u64),
    /// The n-th call of the oplog.
    LogCall(u64),
    /// The n-th call to the storage backend of the state.
    StateCall(u64),
}

/// How the network behaves at present, for every link alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Weather {
    /// Messages lost in a million.
    pub(crate) loss_ppm: u64,
    /// Messages delivered twice in a million.
    pub(crate) duplicate_ppm: u64,
    /// The shortest time under way.
    pub(crate) delay_us: u64,
    /// Added to it, evenly up to this much.
    pub(crate) jitter_us: u64,
    /// Messages in a million that take much longer,
    pub(crate) tail_ppm: u64,
    /// up to this long.
    pub(crate) tail_us: u64,
}

impl Weather {
    /// A quiet local network.
    pub(crate) const CALM: Weather = Weather {
        loss_ppm: 0,
        duplicate_ppm: 0,
        delay_us: 150,
        jitter_us: 300,
        tail_ppm: 0,
        tail_us: 0,
    };
}

/// Which part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// The oplog and the identity.
    Log,
    /// The materialized state.
    State,
}

/// Who still hears whom, where not all do. The nodes stand in an order of the fault's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Shape {
    /// Two halves, which only the first node hears both of.
    Bridge,
    /// Each node hears the one before and the one after it.
    Chain,
    /// All hear the first one, and nobody else: whoever leads beside it has lost its quorum.
    Star,
}

impl Shape {
    /// The links that it leaves out.
    pub(crate) fn deaf(self, order: &[NodeId]) -> Vec<(NodeId, NodeId)> {
        let half = order.len() / 2;
        let hears = |one: usize, other: usize| match self {
            Shape::Bridge => one == 0 || other == 0 || (one <= half) == (other <= half),
            Shape::Chain => one.abs_diff(other) == 1,
            Shape::Star => one == 0 || other == 0,
        };
        let mut links = Vec::new();
        for (i, from) in order.iter().enumerate() {
            for (j, to) in order.iter().enumerate() {
                if i != j && !hears(i, j) {
                    links.push((*from, *to));
                }
            }
        }
        links
    }

    /// What a message counts as that it stopped.
    pub(crate) fn blocked(self) -> Seen {
        match self {
            Shape::Bridge => Seen::BridgeBlocked,
            Shape::Chain => Seen::ChainBlocked,
            Shape::Star => Seen::StarBlocked,
        }
    }
}

/// What is damaged of what was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Where {
    /// A block of entries in the oplog's newest segment.
    Entries,
    /// A block that holds votes in the oplog's newest segment.
    Votes,
    /// A block in an older segment.
    Older,
    /// A block of a state file.
    State,
    /// One of the two copies of the identity.
    Identity,
}

/// How it comes to be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// A bit flips.
    Flip,
    /// A write went to another place than was asked for.
    Misdirect,
}

/// Damage to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wound {
    pub(crate) place: Where,
    pub(crate) how: How,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// A process ends, and starts again later: perhaps to end while it starts, perhaps with
    /// [other limits](Plan::limits).
    Crash {
        target: Target,
        crash: Crash,
        moment: Moment,
        down_ms: u64,
        again: Option<Fuse>,
        #[serde(default)]
        limits: Option<usize>,
    },
    /// The power goes everywhere: at once, or this long after the next election.
    PowerCutAll { after_election_us: Option<u64>, down_ms: Vec<u64> },
    /// A process stands still while its clock goes on.
    Pause { target: Target, ms: u64 },
    /// A process is asked to stop, and starts again later.
    Drain { target: Target, down_ms: u64 },
    /// Two sides don't hear each other.
    Split { side: Vec<NodeId>, ms: u64 },
    /// One node is cut off from all others.
    Isolate { target: Target, side: Side, ms: u64 },
    /// One link works in one direction only.
    OneWay { from: NodeId, to: NodeId, ms: u64 },
    /// Not all hear all.
    Partial { shape: Shape, order: Vec<NodeId>, ms: u64 },
    /// A link goes and comes.
    Flap { one: NodeId, other: NodeId, gone_ms: u64, back_ms: u64, ms: u64 },
    /// Little goes through a node's links in one go: the rest queues.
    Narrow { target: Target, bytes_per_ms: u64, ms: u64 },
    /// The network behaves like this for a while.
    Weather { weather: Weather, ms: u64 },
    /// A disk takes this many times as long.
    SlowDisk { target: Target, times: u64, ms: u64 },
    /// A disk does nothing, and then goes on.
    StuckDisk { target: Target, ms: u64 },
    /// The next sync fails, and what it should have written is never written.
    SyncError { target: Target, part: Part, down_ms: u64 },
    /// A disk is full for a while.
    FullDisk { target: Target, part: Part, ms: u64 },
    /// The next read fails, and all reads for this long; the process may be restarted before.
    ReadError { target: Target, part: Part, ms: u64, restart: bool },
    /// A clock gains this much.
    Drift { node: NodeId, ppm: i64 },
    /// A wall clock jumps.
    JumpWall { node: NodeId, ms: i64 },
    /// The power goes, and something that was synced is damaged.
    Damage { target: Target, wound: Wound, down_ms: u64 },
    /// The power goes, and a state is changed so that every block is what its checksum says.
    Tamper { target: Target, sums: bool, random: u64, down_ms: u64 },
    /// The power goes, and the disk is blank.
    Wipe { target: Target, down_ms: u64 },
    /// A copy of a disk is taken.
    Copy { node: NodeId },
    /// The power goes, and the disk holds what the last copy held.
    RollBack { node: NodeId, down_ms: u64 },
}

/// How a node stays broken for good once the others are healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Broken {
    /// It does not run.
    Dead,
    /// It is cut off.
    Cut(Side),
    /// It stands still.
    Paused,
    /// Its disk takes this many times as long.
    Slow(u64),
}

/// [`OplogOptions`] in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "OplogOptions")]
struct OplogSizes {
    segment_bytes: u64,
    spare_segments: usize,
    #[serde(default = "unbounded")]
    segments_max: usize,
}

/// Scripts from before there was sealed history have none.
fn unbounded() -> usize {
    usize::MAX
}

/// [`StateOptions`] in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "StateOptions")]
struct StateBounds {
    open_max: usize,
    cache_bytes: usize,
}

/// The bounds of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// The core's.
    pub(crate) core: Config,
    /// The oplog's sizes.
    #[serde(with = "OplogSizes")]
    pub(crate) oplog: OplogOptions,
    /// The state's bounds.
    #[serde(with = "StateBounds")]
    pub(crate) state: StateOptions,
}

/// The whole course of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// In order.
    pub(crate) nodes: Vec<NodeId>,
    /// Of every process at first.
    #[serde(flatten)]
    pub(crate) first: Limits,
    /// Of a process that starts again, where a fault says so.
    #[serde(default)]
    pub(crate) limits: Vec<Limits>,
    /// Nodes talk by the production transport, over simulated datagrams; else by a cheap one.
    #[serde(default)]
    pub(crate) quic: bool,
    /// Between the nodes, when nothing special happens.
    pub(crate) weather: Weather,
    /// Clients that write and read.
    pub(crate) clients: u64,
    /// A client waits up to this long between two calls.
    pub(crate) think_ms: u64,
    /// ... and makes up to so many at once.
    #[serde(default)]
    pub(crate) burst: u64,
    /// Clients have slots, and read for them.
    #[serde(default)]
    pub(crate) slots: bool,
    /// Clients put keys to some of their writes, and ask for those again.
    #[serde(default)]
    pub(crate) once: bool,
    /// Each database has this many keys.
    pub(crate) keys: u64,
    /// How long faults go on, after the first databases stand.
    pub(crate) faults_ms: u64,
    /// Clients that made fewer calls by then go on until they made so many, or for as long again.
    #[serde(default)]
    pub(crate) calls_min: u64,
    /// Faults strike from the first moment on, not only once the first databases stand.
    pub(crate) from_birth: bool,
    /// In order of time, in milliseconds.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// Who stays broken for good when the faults end; all others are healed. The first ones count, as
    /// many as leave a quorum whole.
    #[serde(default)]
    pub(crate) broken: Vec<(NodeId, Broken)>,
    /// When the late database is asked for.
    pub(crate) late_database_ms: u64,
}

/// A run worth the name makes so many calls.
pub(crate) const CALLS_MIN: u64 = 500;

/// A time that does not come.
pub(crate) const NEVER_MS: u64 = u64::MAX / 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for seed in 0..50 {
            for (name, profile) in Profile::ALL {
                let plan = Plan::draw(profile, seed);
                assert_eq!(plan.faults, Plan::draw(profile, seed).faults);
                assert!(plan.faults_ms >= 60_000 && plan.clients >= 3);
                assert!(plan.faults.len() > 5, "{name} {seed}: {}", plan.faults.len());
                assert!(plan.faults.is_sorted_by_key(|(at, _)| *at));
                assert!(plan.broken.len() * 2 < plan.nodes.len());
                assert_eq!(Profile::named(name), Some(profile));
            }
        }
        // Any range that is asked for its coverage has its share of real QUIC.
        let quic = |seed: &u64| Plan::draw(Profile::Default, *seed).quic;
        for from in [0, 8, 23] {
            for to in from + 50..from + 80 {
                let share = (from..to).filter(quic).count() as u64;
                assert!(share * 100 >= 5 * (to - from), "{share} of {from}..{to}");
            }
        }
        let five = (0..50).filter(|s| Plan::draw(Profile::Default, *s).nodes.len() == 5).count();
        assert!((10..40).contains(&five), "{five}");
    }

    #[test]
    fn shapes_leave_out_what_they_should() {
        let order = [3, 1, 2, 5, 4].map(NodeId);
        let hear = |shape: Shape| {
            let deaf = shape.deaf(&order);
            let mut hear = Vec::new();
            for a in 1..=5 {
                for b in a + 1..=5 {
                    if !deaf.contains(&(NodeId(a), NodeId(b))) {
                        hear.push((a, b));
                    }
                }
            }
            hear
        };
        assert_eq!(hear(Shape::Bridge), [(1, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 5)]);
        assert_eq!(hear(Shape::Chain), [(1, 2), (1, 3), (2, 5), (4, 5)]);
        assert_eq!(hear(Shape::Star), [(1, 3), (2, 3), (3, 4), (3, 5)]);
    }

    #[test]
    fn swarm_seeds_differ_in_what_goes_wrong() {
        let plans: Vec<_> = (0..300).map(|seed| Plan::draw(Profile::Swarm, seed)).collect();
        for kind in draw::SWARM.iter().map(|(kind, _)| *kind) {
            let has = |plan: &&Plan| plan.faults.iter().any(|(_, fault)| kind.is(fault));
            let with = plans.iter().filter(has).count();
            assert!((3..290).contains(&with), "{kind:?} is in {with} of 300 plans");
        }
        for size in [3, 4, 5, 7] {
            let of = plans.iter().filter(|plan| plan.nodes.len() == size).count();
            assert!(of > 5, "{of} of 300 have {size} nodes");
        }
        let heal = plans.iter().filter(|plan| plan.broken.is_empty()).count();
        assert!((50..200).contains(&heal), "{heal} of 300 heal");
    }
}
