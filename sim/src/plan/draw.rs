//! Draws plans. What can go wrong is a list a profile; each seed draws which of it does, and how hard.

use highwater_core::{Config, NodeId};
use highwater_store::{oplog::OplogOptions, state::StateOptions};

use super::{
    Broken, CALLS_MIN, Crash, Fault, Fuse, How, Limits, Moment, Part, Plan, Profile, Shape, Side,
    Target, Weather, Where, Wound,
};
use crate::rng::Rng;

/// A fault without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Crash,
    PowerCutAll,
    Pause,
    Drain,
    Split,
    Isolate,
    OneWay,
    Partial,
    Flap,
    Narrow,
    Weather,
    SlowDisk,
    StuckDisk,
    SyncError(Part),
    FullDisk(Part),
    ReadError(Part),
    Drift,
    JumpWall,
    Damage(Where),
    Wipe,
    RollBack,
}

/// What the default profile draws from, and how often compared with one another.
const DEFAULT: &[(Kind, u64)] = &[
    (Kind::Crash, 12),
    (Kind::PowerCutAll, 3),
    (Kind::Pause, 4),
    (Kind::Split, 4),
    (Kind::Isolate, 5),
    (Kind::OneWay, 4),
    (Kind::Weather, 4),
    (Kind::SlowDisk, 3),
    (Kind::Drift, 3),
    (Kind::JumpWall, 1),
    (Kind::Damage(Where::Entries), 2),
];

/// ... and the swarm.
pub(super) const SWARM: &[(Kind, u64)] = &[
    (Kind::Crash, 12),
    (Kind::PowerCutAll, 3),
    (Kind::Pause, 4),
    (Kind::Drain, 2),
    (Kind::Split, 4),
    (Kind::Isolate, 5),
    (Kind::OneWay, 4),
    (Kind::Partial, 4),
    (Kind::Flap, 2),
    (Kind::Narrow, 3),
    (Kind::Weather, 4),
    (Kind::SlowDisk, 3),
    (Kind::StuckDisk, 2),
    (Kind::SyncError(Part::Log), 2),
    (Kind::SyncError(Part::State), 1),
    (Kind::FullDisk(Part::Log), 2),
    (Kind::FullDisk(Part::State), 1),
    (Kind::ReadError(Part::Log), 2),
    (Kind::ReadError(Part::State), 1),
    (Kind::Drift, 3),
    (Kind::JumpWall, 2),
    (Kind::Damage(Where::Entries), 2),
    (Kind::Damage(Where::Votes), 2),
    (Kind::Damage(Where::Older), 2),
    (Kind::Damage(Where::State), 2),
    (Kind::Damage(Where::Identity), 1),
    (Kind::Wipe, 2),
    (Kind::RollBack, 2),
];

impl Kind {
    /// Whether a fault is one of these.
    #[cfg(test)]
    pub(super) fn is(self, fault: &Fault) -> bool {
        match (self, fault) {
            (Kind::Crash, Fault::Crash { .. })
            | (Kind::PowerCutAll, Fault::PowerCutAll { .. })
            | (Kind::Pause, Fault::Pause { .. })
            | (Kind::Drain, Fault::Drain { .. })
            | (Kind::Split, Fault::Split { .. })
            | (Kind::Isolate, Fault::Isolate { .. })
            | (Kind::OneWay, Fault::OneWay { .. })
            | (Kind::Partial, Fault::Partial { .. })
            | (Kind::Flap, Fault::Flap { .. })
            | (Kind::Narrow, Fault::Narrow { .. })
            | (Kind::Weather, Fault::Weather { .. })
            | (Kind::SlowDisk, Fault::SlowDisk { .. })
            | (Kind::StuckDisk, Fault::StuckDisk { .. })
            | (Kind::Drift, Fault::Drift { .. })
            | (Kind::JumpWall, Fault::JumpWall { .. })
            | (Kind::Wipe, Fault::Wipe { .. })
            | (Kind::RollBack, Fault::RollBack { .. }) => true,
            (Kind::SyncError(of), Fault::SyncError { part, .. })
            | (Kind::FullDisk(of), Fault::FullDisk { part, .. })
            | (Kind::ReadError(of), Fault::ReadError { part, .. }) => of == *part,
            (Kind::Damage(of), Fault::Damage { wound, .. }) => of == wound.place,
            _ => false,
        }
    }
}

/// Every so many seeds one runs on real QUIC, which takes several times as long. By turns, not
/// drawn: any range of seeds has its share.
const QUIC_TURN: u64 = 15;

impl Plan {
    /// Draws a seed's plan.
    pub(crate) fn draw(profile: Profile, seed: u64) -> Plan {
        let mut rng = Rng::stream(seed, "plan", 0);
        let swarm = profile != Profile::Default;
        let size =
            if swarm { [3, 5, 4, 7][rng.weighted(&[48, 40, 6, 6])] } else { *rng.pick(&[3, 5]) };
        let nodes: Vec<NodeId> = (1..=size).map(NodeId).collect();
        let faults_ms = rng.range(60_000, 62_000);
        let pace = draw_pace(&mut rng, swarm);
        let mut first = draw_limits(&mut rng, &pace);
        let others = if swarm { rng.below(3) } else { 0 };
        let mut limits: Vec<Limits> = (0..others).map(|_| draw_limits(&mut rng, &pace)).collect();
        let once = profile == Profile::Oplog;
        if once {
            let mut rng = Rng::stream(seed, "once", 0);
            for Limits { core, .. } in limits.iter_mut().chain([&mut first]) {
                core.once_max = *rng.pick(&[10_000, 10_000, 40]);
                core.once_window_ms = *rng.pick(&[10_000, 60_000, 24 * 3_600_000]);
            }
        }
        if swarm {
            let keeps = draw_retention(seed);
            for Limits { core, .. } in limits.iter_mut().chain([&mut first]) {
                (core.retention_bytes, core.retention_ms) = keeps;
            }
        }
        let mut faults = Rng::stream(seed, "faults", 0);
        let cast = Cast { nodes: &nodes, limits: limits.len() };
        Plan {
            first,
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
            think_ms: if swarm { rng.heavy(80, 320) } else { rng.range(60, 160) },
            burst: *rng.pick(if swarm { &[1, 1, 8, 24] } else { &[1, 1, 8, 8] }),
            slots: profile == Profile::Oplog,
            once,
            keys: rng.range(6, 30),
            faults_ms,
            calls_min: CALLS_MIN,
            from_birth: rng.percent(20),
            late_database_ms: rng.range(3_000, 30_000),
            faults: {
                let mut faults = cast.draw(&mut faults, profile, faults_ms);
                if swarm {
                    faults.extend(cast.draw_tampers(seed, faults_ms));
                    faults.sort_by_key(|(at, _)| *at);
                }
                faults
            },
            broken: if swarm { draw_broken(&mut rng, &nodes) } else { Vec::new() },
            limits,
            nodes,
        }
    }
}

/// Periods that all nodes share.
fn draw_pace(rng: &mut Rng, swarm: bool) -> Config {
    let (heartbeat_us, election_timeout_us) = if swarm {
        *rng.pick(&[(60_000, 300_000), (60_000, 300_000), (100_000, 500_000), (150_000, 900_000)])
    } else {
        (60_000, 300_000)
    };
    Config {
        heartbeat_us,
        election_timeout_us,
        election_jitter_us: election_timeout_us / 2,
        audit_us: 700_000,
        ..Config::default()
    }
}

/// How much of a log is kept, in bytes and in milliseconds: less than a run writes in every other seed.
fn draw_retention(seed: u64) -> (u64, u64) {
    let mut rng = Rng::stream(seed, "retention", 0);
    let bytes = *rng.pick(&[0, 0, 0, 32 << 10, 64 << 10, 128 << 10]);
    let ms = *rng.pick(&[0, 0, 0, 0, 15_000, 30_000]);
    (bytes, ms)
}

/// Bounds small enough for a run of a minute to meet them.
fn draw_limits(rng: &mut Rng, pace: &Config) -> Limits {
    let core = Config {
        append_entries_max: *rng.pick(&[1, 2, 16, 4096]),
        append_bytes_max: *rng.pick(&[4 << 10, 64 << 10, 512 << 10]),
        inflight_messages_max: rng.range(2, 64) as usize,
        inflight_bytes_max: *rng.pick(&[16 << 10, 4 << 20]),
        tail_bytes_max: *rng.pick(&[1 << 10, 8 << 10, 8 << 20]),
        tails_bytes_max: *rng.pick(&[4 << 10, 64 << 20]),
        apply_entries_max: *rng.pick(&[1, 8, 4096]),
        apply_bytes_max: *rng.pick(&[2 << 10, 1 << 20]),
        // A checkpoint is the dearest thing in a run: few seeds make many of them.
        checkpoint_bytes: [4 << 10, 32 << 10, 128 << 10, 512 << 10][rng.weighted(&[1, 3, 3, 3])],
        dirty_bytes_max: *rng.pick(&[64 << 10, 64 << 20]),
        confirm_groups_max: *rng.pick(&[1, 512]),
        payload_bytes_max: 100 << 10,
        reserve_bytes: 32 << 10,
        ..pace.clone()
    };
    let segment_bytes = *rng.pick(&[256 << 10, 512 << 10, 1 << 20]);
    Limits {
        core,
        oplog: OplogOptions {
            segment_bytes,
            // Fewer small segments have no room for the largest op for certain.
            spare_segments: match segment_bytes >> 10 {
                256 => 3,
                512 => 2,
                _ => rng.range(1, 2) as usize,
            },
            segments_max: *rng.pick(&[2, 3, 16]),
        },
        state: StateOptions { open_max: *rng.pick(&[1, 3, 8, 8, 8]), cache_bytes: 1 << 20 },
    }
}

/// Who stays broken: nobody, or up to a minority.
fn draw_broken(rng: &mut Rng, nodes: &[NodeId]) -> Vec<(NodeId, Broken)> {
    if rng.percent(35) {
        return Vec::new();
    }
    let most = (nodes.len() as u64 - 1) / 2;
    let mut order = shuffled(rng, nodes);
    order.truncate(rng.range(1, most) as usize);
    let how = |rng: &mut Rng| match rng.below(6) {
        0 => Broken::Dead,
        1 => Broken::Cut(Side::Both),
        2 => Broken::Cut(Side::Out),
        3 => Broken::Cut(Side::In),
        4 => Broken::Paused,
        _ => Broken::Slow(rng.heavy(20, 400)),
    };
    order.into_iter().map(|node| (node, how(rng))).collect()
}

fn shuffled(rng: &mut Rng, nodes: &[NodeId]) -> Vec<NodeId> {
    let mut left = nodes.to_vec();
    (0..nodes.len()).map(|_| left.remove(rng.below(left.len() as u64) as usize)).collect()
}

fn draw_moment(rng: &mut Rng) -> Moment {
    match rng.below(8) {
        0 => Moment::Now,
        1 | 2 => Moment::Call(Fuse::Sync(rng.range(1, 12))),
        3 => Moment::Call(Fuse::LogCall(rng.range(1, 60))),
        4 => Moment::Call(Fuse::StateCall(rng.heavy(1, 150))),
        5 | 6 => Moment::Call(Fuse::LongWrite(rng.heavy(1, 3))),
        _ => Moment::Await(rng.heavy(1, 200)),
    }
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

/// Whom faults may strike.
struct Cast<'a> {
    nodes: &'a [NodeId],
    /// How many other limits there are.
    limits: usize,
}

impl Cast<'_> {
    fn draw(&self, rng: &mut Rng, profile: Profile, until_ms: u64) -> Vec<(u64, Fault)> {
        let kinds = match profile {
            Profile::Default => DEFAULT,
            Profile::Swarm | Profile::Oplog => SWARM,
        };
        // Each seed draws how often each kind strikes: some never, some all the time.
        let scales: &[u64] = match profile {
            Profile::Default => &[0, 1, 1, 3],
            Profile::Swarm | Profile::Oplog => &[0, 0, 1, 3],
        };
        let weights: Vec<u64> = kinds
            .iter()
            .map(|(kind, weight)| match kind {
                // No seed without a crash.
                Kind::Crash => 6 + weight * *rng.pick(scales),
                Kind::PowerCutAll => 1 + weight * *rng.pick(scales),
                _ => weight * *rng.pick(scales),
            })
            .collect();
        let gap_ms = match profile {
            Profile::Default => rng.range(800, 4_000),
            Profile::Swarm | Profile::Oplog => rng.heavy(500, 4_000),
        };
        let mut faults = Vec::new();
        let mut at = rng.range(50, 2_000);
        while at < until_ms {
            let (kind, _) = kinds[rng.weighted(&weights)];
            let fault = self.fault(rng, kind);
            if let Fault::RollBack { node, .. } = &fault {
                let before = rng.heavy(100, 20_000).min(at);
                faults.push((at - before, Fault::Copy { node: *node }));
            }
            faults.push((at, fault));
            at += rng.range(20, 2 * gap_ms);
        }
        faults.sort_by_key(|(at, _)| *at);
        faults
    }

    /// Changes of states above their checksums, in every other seed.
    fn draw_tampers(&self, seed: u64, until_ms: u64) -> Vec<(u64, Fault)> {
        let mut rng = Rng::stream(seed, "tampers", 0);
        let count = if rng.percent(50) { rng.range(1, 3) } else { 0 };
        let mut tamper = |_| {
            let at = rng.range(10_000, until_ms);
            let (target, sums) = (self.target(&mut rng), rng.percent(60));
            let (random, down_ms) = (rng.next(), rng.heavy(10, 1_000));
            (at, Fault::Tamper { target, sums, random, down_ms })
        };
        (0..count).map(&mut tamper).collect()
    }

    fn fault(&self, rng: &mut Rng, kind: Kind) -> Fault {
        match kind {
            Kind::Crash
            | Kind::PowerCutAll
            | Kind::Pause
            | Kind::Drain
            | Kind::Wipe
            | Kind::RollBack => self.of_process(rng, kind),
            Kind::Split
            | Kind::Isolate
            | Kind::OneWay
            | Kind::Partial
            | Kind::Flap
            | Kind::Narrow
            | Kind::Weather => self.of_network(rng, kind),
            _ => self.of_disk_or_clock(rng, kind),
        }
    }

    fn of_process(&self, rng: &mut Rng, kind: Kind) -> Fault {
        match kind {
            Kind::PowerCutAll => Fault::PowerCutAll {
                after_election_us: rng.percent(60).then(|| rng.below(15_000)),
                down_ms: self.nodes.iter().map(|_| rng.heavy(10, 1_500)).collect(),
            },
            Kind::Pause => Fault::Pause { target: self.target(rng), ms: rng.heavy(50, 3_000) },
            Kind::Drain => Fault::Drain { target: self.target(rng), down_ms: rng.heavy(10, 3_000) },
            Kind::Wipe => Fault::Wipe { target: self.target(rng), down_ms: rng.heavy(10, 3_000) },
            Kind::RollBack => {
                Fault::RollBack { node: *rng.pick(self.nodes), down_ms: rng.heavy(10, 2_000) }
            }
            _ => {
                let moment = draw_moment(rng);
                // A torn write, and what recovery makes of it torn again.
                let tears = matches!(moment, Moment::Call(Fuse::LongWrite(_)));
                Fault::Crash {
                    target: self.target(rng),
                    crash: if tears || rng.percent(75) { Crash::Power } else { Crash::Kill },
                    moment,
                    down_ms: rng.heavy(10, 4_000),
                    again: (tears || rng.percent(30)).then(|| match rng.below(4) {
                        // What a torn write left is cleared away with one of the last syncs.
                        _ if tears => Fuse::Sync(*rng.pick(&[2, 3, 4, 5, 5, 6, 6, 7])),
                        // Recovery has few syncs, and everything hangs on their order.
                        0 | 1 => Fuse::Sync(rng.range(1, 6)),
                        2 => Fuse::LogCall(rng.range(1, 30)),
                        _ => Fuse::StateCall(rng.range(1, 40)),
                    }),
                    limits: (self.limits > 0 && rng.percent(50))
                        .then(|| rng.below(self.limits as u64) as usize),
                }
            }
        }
    }

    fn of_network(&self, rng: &mut Rng, kind: Kind) -> Fault {
        match kind {
            Kind::Split => {
                let mut side = shuffled(rng, self.nodes);
                side.truncate(rng.range(1, self.nodes.len() as u64 - 1) as usize);
                Fault::Split { side, ms: rng.heavy(100, 5_000) }
            }
            Kind::Isolate => Fault::Isolate {
                target: self.target(rng),
                side: *rng.pick(&[Side::Both, Side::Both, Side::Out, Side::In]),
                ms: rng.heavy(100, 4_000),
            },
            Kind::OneWay => {
                let (from, to) = self.pair(rng);
                Fault::OneWay { from, to, ms: rng.heavy(100, 6_000) }
            }
            Kind::Partial => Fault::Partial {
                shape: *rng.pick(&[Shape::Bridge, Shape::Chain, Shape::Star]),
                order: shuffled(rng, self.nodes),
                ms: rng.heavy(300, 8_000),
            },
            Kind::Flap => {
                let (one, other) = self.pair(rng);
                let (gone_ms, back_ms) = (rng.heavy(10, 800), rng.heavy(10, 800));
                Fault::Flap { one, other, gone_ms, back_ms, ms: rng.heavy(500, 8_000) }
            }
            Kind::Narrow => Fault::Narrow {
                target: self.target(rng),
                bytes_per_ms: rng.heavy(5, 500),
                ms: rng.heavy(500, 6_000),
            },
            _ => Fault::Weather { weather: draw_storm(rng), ms: rng.range(300, 5_000) },
        }
    }

    fn of_disk_or_clock(&self, rng: &mut Rng, kind: Kind) -> Fault {
        let target = self.target(rng);
        match kind {
            Kind::SlowDisk => {
                Fault::SlowDisk { target, times: rng.heavy(5, 200), ms: rng.range(200, 3_000) }
            }
            Kind::StuckDisk => Fault::StuckDisk { target, ms: rng.heavy(300, 8_000) },
            Kind::SyncError(part) => {
                Fault::SyncError { target, part, down_ms: rng.heavy(10, 2_000) }
            }
            Kind::FullDisk(part) => Fault::FullDisk { target, part, ms: rng.heavy(1_000, 25_000) },
            Kind::ReadError(part) => {
                let ms = if rng.percent(50) { 0 } else { rng.heavy(50, 3_000) };
                Fault::ReadError { target, part, ms, restart: rng.percent(50) }
            }
            Kind::Drift => {
                let ppm = rng.heavy(100, 100_000) as i64;
                let ppm = if rng.percent(50) { ppm } else { -ppm };
                Fault::Drift { node: *rng.pick(self.nodes), ppm }
            }
            Kind::Damage(place) => {
                let how = if rng.percent(70) { How::Flip } else { How::Misdirect };
                let wound = Wound { place, how };
                Fault::Damage { target, wound, down_ms: rng.heavy(10, 2_000) }
            }
            _ => {
                let ms = rng.heavy(1_000, 100_000_000) as i64;
                let ms = if rng.percent(50) { ms } else { -ms };
                Fault::JumpWall { node: *rng.pick(self.nodes), ms }
            }
        }
    }

    fn target(&self, rng: &mut Rng) -> Target {
        match rng.below(4) {
            0 | 1 => Target::Leader(rng.below(3)),
            2 => Target::Follower(rng.below(3)),
            _ => Target::Node(*rng.pick(self.nodes)),
        }
    }

    fn pair(&self, rng: &mut Rng) -> (NodeId, NodeId) {
        let pair = shuffled(rng, self.nodes);
        (pair[0], pair[1])
    }
}
