//! What a seed will go through: the cluster's size and limits, and which faults strike when. All
//! of it is drawn before the run begins, so that a run is a function of its seed.

use highwater_core::{Config, NodeId};
use highwater_store::{oplog::OplogOptions, state::StateOptions};
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// A set of promises about what is simulated and how hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Profile {
    /// Three or five nodes under everything that they claim to survive.
    #[default]
    Default,
}

impl Profile {
    /// By its name on the command line.
    #[cfg(madsim)]
    pub(crate) fn named(name: &str) -> Option<Profile> {
        (name == "default").then_some(Profile::Default)
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

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// A process ends, and starts again later; perhaps to end while it starts.
    Crash { target: Target, crash: Crash, moment: Moment, down_ms: u64, again: Option<Fuse> },
    /// The power goes everywhere: at once, or this long after the next election.
    PowerCutAll { after_election_us: Option<u64>, down_ms: Vec<u64> },
    /// A process stands still while its clock goes on.
    Pause { target: Target, ms: u64 },
    /// Two sides don't hear each other.
    Split { side: Vec<NodeId>, ms: u64 },
    /// One node is cut off from all others.
    Isolate { target: Target, side: Side, ms: u64 },
    /// One link works in one direction only.
    OneWay { from: NodeId, to: NodeId, ms: u64 },
    /// The network behaves like this for a while.
    Weather { weather: Weather, ms: u64 },
    /// A disk takes this many times as long.
    SlowDisk { target: Target, times: u64, ms: u64 },
    /// A clock gains this much.
    Drift { node: NodeId, ppm: i64 },
    /// A wall clock jumps.
    JumpWall { node: NodeId, ms: i64 },
    /// The power goes, and a block of the oplog that was synced is damaged.
    Damage { target: Target, down_ms: u64 },
}

/// [`OplogOptions`] in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "OplogOptions")]
struct OplogSizes {
    segment_bytes: u64,
    spare_segments: usize,
}

/// [`StateOptions`] in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "StateOptions")]
struct StateBounds {
    open_max: usize,
    cache_bytes: usize,
}

/// The whole course of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// In order.
    pub(crate) nodes: Vec<NodeId>,
    /// The core's bounds.
    pub(crate) core: Config,
    /// The oplog's sizes.
    #[serde(with = "OplogSizes")]
    pub(crate) oplog: OplogOptions,
    /// The state's bounds.
    #[serde(with = "StateBounds")]
    pub(crate) state: StateOptions,
    /// Nodes talk by the production transport, over simulated datagrams; else by a cheap one.
    #[serde(default)]
    pub(crate) quic: bool,
    /// Between the nodes, when nothing special happens.
    pub(crate) weather: Weather,
    /// Clients that write and read.
    pub(crate) clients: u64,
    /// A client waits up to this long between two calls.
    pub(crate) think_ms: u64,
    /// Each database has this many keys.
    pub(crate) keys: u64,
    /// How long faults go on, after the first databases stand.
    pub(crate) faults_ms: u64,
    /// Faults strike from the first moment on, not only once the first databases stand.
    pub(crate) from_birth: bool,
    /// In order of time, in milliseconds.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// When the late database is asked for.
    pub(crate) late_database_ms: u64,
}

/// Every so many seeds one runs on real QUIC, which takes several times as long. By turns, not
/// drawn: any range of seeds has its share.
const QUIC_TURN: u64 = 15;

impl Plan {
    /// Draws a seed's plan.
    pub(crate) fn draw(profile: Profile, seed: u64) -> Plan {
        let Profile::Default = profile;
        let mut rng = Rng::stream(seed, "plan", 0);
        let nodes: Vec<NodeId> = (1..=if rng.percent(50) { 3 } else { 5 }).map(NodeId).collect();
        let faults_ms = rng.range(60_000, 62_000);
        let core = draw_core(&mut rng);
        Plan {
            core,
            oplog: OplogOptions {
                segment_bytes: *rng.pick(&[256 << 10, 512 << 10, 1 << 20]),
                spare_segments: rng.range(1, 2) as usize,
            },
            state: StateOptions { open_max: rng.range(1, 4) as usize, cache_bytes: 1 << 20 },
            quic: seed % QUIC_TURN == QUIC_TURN / 2,
            weather: Weather {
                loss_ppm: *rng.pick(&[0, 500, 5_000]),
                duplicate_ppm: *rng.pick(&[200, 2_000, 20_000]),
                delay_us: rng.range(50, 1_000),
                jitter_us: rng.range(100, 2_000),
                tail_ppm: rng.range(100, 3_000),
                tail_us: 250_000,
            },
            clients: rng.range(3, 5),
            think_ms: rng.range(60, 160),
            keys: rng.range(6, 30),
            faults_ms,
            from_birth: rng.percent(20),
            late_database_ms: rng.range(3_000, 30_000),
            faults: draw_faults(Rng::stream(seed, "faults", 0), &nodes, faults_ms),
            nodes,
        }
    }
}

/// Bounds small enough for a run of a minute to meet them.
fn draw_core(rng: &mut Rng) -> Config {
    Config {
        append_entries_max: *rng.pick(&[1, 2, 16, 4096]),
        append_bytes_max: *rng.pick(&[4 << 10, 64 << 10, 512 << 10]),
        inflight_messages_max: rng.range(2, 64) as usize,
        inflight_bytes_max: *rng.pick(&[16 << 10, 4 << 20]),
        tail_bytes_max: *rng.pick(&[1 << 10, 8 << 10, 8 << 20]),
        tails_bytes_max: *rng.pick(&[4 << 10, 64 << 20]),
        apply_entries_max: *rng.pick(&[1, 8, 4096]),
        apply_bytes_max: *rng.pick(&[2 << 10, 1 << 20]),
        checkpoint_bytes: *rng.pick(&[2 << 10, 8 << 10, 32 << 10]),
        dirty_bytes_max: *rng.pick(&[8 << 10, 64 << 20]),
        confirm_groups_max: *rng.pick(&[1, 512]),
        payload_bytes_max: 100 << 10,
        reserve_bytes: 32 << 10,
        ..Config::default()
    }
}

fn draw_target(rng: &mut Rng, nodes: &[NodeId]) -> Target {
    match rng.below(4) {
        0 | 1 => Target::Leader(rng.below(3)),
        2 => Target::Follower(rng.below(3)),
        _ => Target::Node(*rng.pick(nodes)),
    }
}

fn draw_moment(rng: &mut Rng) -> Moment {
    match rng.below(6) {
        0 => Moment::Now,
        1 | 2 => Moment::Call(Fuse::Sync(rng.range(1, 12))),
        3 => Moment::Call(Fuse::LogCall(rng.range(1, 60))),
        4 => Moment::Call(Fuse::StateCall(rng.heavy(1, 150))),
        _ => Moment::Await(rng.heavy(1, 200)),
    }
}

fn draw_faults(mut rng: Rng, nodes: &[NodeId], until_ms: u64) -> Vec<(u64, Fault)> {
    // Each seed draws how often each kind strikes: some never, some all the time.
    let weights: Vec<u64> =
        [12, 3, 4, 4, 5, 4, 4, 3, 3, 1, 2].iter().map(|w| w * *rng.pick(&[0, 1, 1, 3])).collect();
    let weights = [weights[0] + 6, weights[1] + 1]
        .into_iter()
        .chain(weights[2..].iter().copied())
        .collect::<Vec<_>>();
    let gap_ms = rng.range(800, 4_000);
    let mut faults = Vec::new();
    let mut at = rng.range(50, 2_000);
    while at < until_ms {
        faults.push((at, draw_fault(&mut rng, nodes, &weights)));
        at += rng.range(20, 2 * gap_ms);
    }
    faults
}

fn draw_fault(rng: &mut Rng, nodes: &[NodeId], weights: &[u64]) -> Fault {
    match rng.weighted(weights) {
        0 => Fault::Crash {
            target: draw_target(rng, nodes),
            crash: if rng.percent(75) { Crash::Power } else { Crash::Kill },
            moment: draw_moment(rng),
            down_ms: rng.heavy(10, 4_000),
            again: rng.percent(30).then(|| match rng.below(4) {
                0 | 1 => Fuse::Sync(rng.heavy(1, 8)),
                2 => Fuse::LogCall(rng.range(1, 30)),
                _ => Fuse::StateCall(rng.range(1, 40)),
            }),
        },
        1 => Fault::PowerCutAll {
            after_election_us: rng.percent(60).then(|| rng.below(15_000)),
            down_ms: nodes.iter().map(|_| rng.heavy(10, 1_500)).collect(),
        },
        2 => Fault::Pause { target: draw_target(rng, nodes), ms: rng.heavy(50, 3_000) },
        3 => Fault::Split { side: draw_side(rng, nodes), ms: rng.heavy(100, 5_000) },
        4 => Fault::Isolate {
            target: draw_target(rng, nodes),
            side: *rng.pick(&[Side::Both, Side::Both, Side::Out, Side::In]),
            ms: rng.heavy(100, 4_000),
        },
        5 => {
            let (from, to) = draw_pair(rng, nodes);
            Fault::OneWay { from, to, ms: rng.heavy(100, 6_000) }
        }
        6 => Fault::Weather { weather: draw_storm(rng), ms: rng.range(300, 5_000) },
        7 => Fault::SlowDisk {
            target: draw_target(rng, nodes),
            times: rng.heavy(5, 200),
            ms: rng.range(200, 3_000),
        },
        8 => {
            let ppm = rng.heavy(100, 100_000) as i64;
            let ppm = if rng.percent(50) { ppm } else { -ppm };
            Fault::Drift { node: *rng.pick(nodes), ppm }
        }
        9 => {
            let ms = rng.heavy(1_000, 100_000_000) as i64;
            Fault::JumpWall { node: *rng.pick(nodes), ms: if rng.percent(50) { ms } else { -ms } }
        }
        _ => Fault::Damage { target: draw_target(rng, nodes), down_ms: rng.heavy(10, 2_000) },
    }
}

fn draw_side(rng: &mut Rng, nodes: &[NodeId]) -> Vec<NodeId> {
    let mut others = nodes.to_vec();
    let size = rng.range(1, nodes.len() as u64 - 1);
    (0..size).map(|_| others.remove(rng.below(others.len() as u64) as usize)).collect()
}

fn draw_pair(rng: &mut Rng, nodes: &[NodeId]) -> (NodeId, NodeId) {
    let from = rng.below(nodes.len() as u64);
    let to = (from + rng.range(1, nodes.len() as u64 - 1)) % nodes.len() as u64;
    (nodes[from as usize], nodes[to as usize])
}

fn draw_storm(rng: &mut Rng) -> Weather {
    Weather {
        loss_ppm: *rng.pick(&[0, 10_000, 100_000, 300_000]),
        duplicate_ppm: *rng.pick(&[0, 50_000, 300_000]),
        delay_us: *rng.pick(&[100, 1_000, 20_000]),
        jitter_us: *rng.pick(&[100, 5_000, 60_000]),
        tail_ppm: *rng.pick(&[1_000, 20_000, 200_000]),
        tail_us: rng.heavy(20_000, 3_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for seed in 0..50 {
            let plan = Plan::draw(Profile::Default, seed);
            assert_eq!(plan.faults, Plan::draw(Profile::Default, seed).faults);
            assert!(plan.faults_ms >= 60_000 && plan.clients >= 3);
            assert!(plan.faults.len() > 10, "seed {seed}: {}", plan.faults.len());
            assert!(plan.faults.is_sorted_by_key(|(at, _)| *at));
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
}
