//! One node: wires the parts together, and runs them until a signal or a fault ends it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::TcpListener,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use highwater_core::{Config as CoreConfig, Identity, Incarnation, NodeId, Now, Peer};
use highwater_http::{HttpOptions, Slot};
use highwater_node::{Exit, Options, Parts, env::Clock};
use highwater_quic::{Quic, QuicOptions, tls::NodeTls};
use highwater_store::{
    disk::RealDisk,
    identity,
    oplog::{self, Loss, Lost, OplogOptions},
    state::{RealFiles, StateOptions, States},
};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    time,
};
use tracing::{error, info, warn};

use crate::{
    address::{self, Address},
    config::Config,
    failure::{Context, Failure},
    init,
};

/// How long handing leadership over may take.
const DRAIN: Duration = Duration::from_secs(5);
/// How long, after that, the driver may take to end by itself.
const DRIVER_END: Duration = Duration::from_secs(2);
/// Messages of peers that wait for the driver; beyond, the peers wait.
const INBOUND_MAX: usize = 4_096;
/// The version that this node tells others.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The system's clocks.
#[derive(Clone, Debug)]
struct SystemClock {
    start: Instant,
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let mono = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { mono: highwater_core::Instant(mono), wall_ms: wall_ms() }
    }

    async fn sleep_until(&self, at: highwater_core::Instant) {
        match self.start.checked_add(Duration::from_micros(at.0)) {
            Some(at) => time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// Unix time in milliseconds; 0 on a machine whose clock is before 1970.
fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Makes this process die, also when the one that started it is killed outright.
pub fn die_with_parent(parent: i32) -> Result<(), Failure> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "can't tie this process to its parent".to_owned())?;
    // The parent may have died before that call.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Err(Failure::runtime("the process that started this node has ended"));
    }
    Ok(())
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT, or can't go on.
///
/// # Errors
/// Why it did not start, or had to stop.
pub fn serve(config: &Config) -> Result<(), Failure> {
    for name in &config.unknown_variables {
        warn!(name, "this variable is none of Highwater's and is ignored");
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "can't start the async runtime".to_owned())?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new().context(|| "can't listen to signals".to_owned())?
    };
    raise_open_files();
    make_data_dir(&config.data_dir)?;
    let disk = RealDisk::open(config.data_dir.clone()).map_err(Failure::start)?;
    let http = Http::start(config)?;
    let slot = http.slot.clone();
    let ended = runtime.block_on(async {
        while let Ended::Fenced(beyond) = node(config, disk.clone(), &slot, &mut signals).await? {
            slot.clear();
            renew(&disk, beyond).await?;
        }
        Ok(())
    });
    http.stop();
    // The IO threads hold nothing that matters now: what was acknowledged is fsynced.
    runtime.shutdown_background();
    ended
}

/// Connections and state files need more open files than many systems grant unasked.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "can't raise the limit of open files; many clients at once may be refused");
    }
}

fn make_data_dir(dir: &Path) -> Result<(), Failure> {
    if !dir.exists() {
        warn!(dir = %dir.display(), "the data directory does not exist; making an empty one");
        fs::create_dir_all(dir).map_err(|error| {
            Failure::runtime(format!("can't make the data directory {}: {error}", dir.display()))
        })?;
    }
    Ok(())
}

impl Failure {
    /// What keeps a node from starting.
    fn start(error: impl std::fmt::Display) -> Failure {
        Failure::runtime(error.to_string())
    }
}

/// How a node's run ended, where nothing keeps it from another one.
enum Ended {
    Stopped,
    /// Its data directory must get a new incarnation, beyond this one; then it starts again.
    Fenced(Incarnation),
}

/// Gives a data directory that has lost votes or acknowledgements a new incarnation.
async fn renew(disk: &RealDisk, beyond: Incarnation) -> Result<(), Failure> {
    let renewed = identity::renew(disk, wall_ms(), init::random()?, beyond).await;
    let member = renewed.map_err(Failure::start)?;
    warn!(incarnation = %member.incarnation, "the data directory has a new incarnation");
    Ok(())
}

/// Recovers the node, and drives it to its end.
async fn node(
    config: &Config,
    disk: RealDisk,
    slot: &Slot,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let recovery = recover(config, disk);
    let (options, parts, quic) = tokio::select! {
        biased;
        name = signals.recv() => {
            info!(signal = name, "told to stop while recovering");
            return Ok(Ended::Stopped);
        }
        recovered = recovery => recovered?,
    };
    let member = options.identity.member;
    let (handle, driver) = highwater_node::start(options, parts).map_err(|error| {
        Failure::start(format!("{error}. Nothing was changed; this node can't serve from it"))
    })?;
    slot.fill(handle.clone());
    info!(
        node = config.node.0,
        cluster = %config.cluster,
        incarnation = %member.incarnation,
        address = config.address,
        http = config.http,
        version = VERSION,
        "the node runs"
    );
    let mut driver = std::pin::pin!(driver);
    let exit = tokio::select! {
        biased;
        exit = driver.as_mut() => exit,
        name = signals.recv() => {
            info!(signal = name, "told to stop: handing leadership over");
            let draining = async {
                handle.drain(DRAIN).await;
                time::sleep(DRIVER_END).await;
            };
            tokio::select! {
                biased;
                exit = driver.as_mut() => exit,
                () = draining => {
                    warn!("the node did not come to an end in time; stopping it as it is");
                    Exit::Drained
                }
                name = signals.recv() => {
                    return Err(Failure::runtime(format!("{name} came twice: stopped at once")));
                }
            }
        }
    };
    quic.close().await;
    match exit {
        Exit::Drained => {
            info!("the node has stopped");
            Ok(Ended::Stopped)
        }
        Exit::Fenced { reason, beyond } => {
            error!(
                reason,
                "this node is fenced: its data directory has lost what it promised. It starts again \
                 as one that follows without a vote, until it is replaced"
            );
            Ok(Ended::Fenced(beyond))
        }
        Exit::Halted(reason) => Err(Failure::runtime(format!(
            "the node halted: {reason}. What it acknowledged is durable; mend the cause and start \
             it again"
        ))),
    }
}

type NodeParts = Parts<SystemClock, RealDisk, Quic>;

/// Reads what is on disk and binds QUIC.
async fn recover(config: &Config, disk: RealDisk) -> Result<(Options, NodeParts, Quic), Failure> {
    let listen = resolve("address", &config.address)?;
    let mut peers = BTreeMap::new();
    for (peer, address) in &config.peers {
        peers.insert(*peer, resolve("peers.address", address)?);
    }
    let tls = tls(config)?;
    let began = Instant::now();
    let random = init::random()?;
    let start = identity::open(&disk, config.cluster, config.node, wall_ms(), random)
        .await
        .map_err(Failure::start)?;
    let sizes = OplogOptions { segments_max: config.oplog_segments, ..OplogOptions::default() };
    let opened = oplog::open(disk, &start, sizes).await.map_err(Failure::start)?;
    if let Some(lost) = &opened.recovered.lost {
        report(lost);
    }
    let (member, boot) = (opened.member, start.boot);
    let state_dir = config.data_dir.join("state");
    let states = RealFiles::open(&state_dir)
        .and_then(|files| States::new(Box::new(files), StateOptions::default()))
        .context(|| format!("can't use {}; nothing was changed", state_dir.display()))?;
    // A node alone waits for room; of several, one that has room takes over.
    let states = if config.peers.is_empty() { states.waiting_for_room() } else { states };
    let states = Arc::new(states);
    info!(
        groups = opened.recovered.groups.len(),
        cut_bytes = opened.recovered.cut_bytes,
        boot = boot.counter,
        took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "the oplog is recovered"
    );
    let (inbound, messages) = mpsc::channel(INBOUND_MAX);
    let quic = Quic::bind(
        &QuicOptions {
            cluster: config.cluster,
            identity: Peer { member, boot },
            listen,
            peers,
            http: config.http.clone(),
            tls,
        },
        inbound,
    )
    .map_err(Failure::start)?;
    let mut addresses = config.peers.clone();
    addresses.insert(config.node, config.address.clone());
    let nodes: Vec<NodeId> = addresses.keys().copied().collect();
    let options = Options {
        core: CoreConfig {
            once_max: config.idempotency_keys,
            once_window_ms: config.idempotency_window_ms,
            retention_bytes: config.retention_bytes,
            retention_ms: config.retention_age_ms,
            ..CoreConfig::default()
        },
        identity: Identity { cluster: config.cluster, member, boot, starts: start.starts, nodes },
        seed: random as u64 ^ boot.nonce,
        addresses,
        http: config.http.clone(),
        version: VERSION.to_owned(),
        scrub: config.scrub,
        snapshot_bytes_per_s: config.snapshot_bytes_per_s,
    };
    let clock = SystemClock { start: Instant::now() };
    let parts = Parts { clock, opened, states, transport: quic.clone(), inbound: messages };
    Ok((options, parts, quic))
}

/// Tells the operator what the oplog has lost.
fn report(lost: &Lost) {
    let then = match lost.loss {
        Loss::Entries => "no vote was in it: what is missing is fetched from the other nodes",
        Loss::Votes => {
            "perhaps votes as well: the data directory has a new incarnation, and this node follows \
             without a vote until it is replaced"
        }
    };
    warn!(
        file = lost.file,
        offset = lost.offset,
        what = lost.what,
        bytes = lost.bytes,
        "the oplog was damaged, and lost its end, which may have been acknowledged; {then}"
    );
}

fn resolve(key: &str, text: &str) -> Result<std::net::SocketAddr, Failure> {
    address::resolve(text).map_err(|error| {
        Failure::runtime(format!("{key}: {error}. Nothing was changed; correct the configuration"))
    })
}

/// The node's certificate and key, and the cluster's certificate, which follows the node's own.
fn tls(config: &Config) -> Result<NodeTls, Failure> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| {
            Failure::runtime(format!(
                "can't read {}: {error}. It is one of the files that `highwater init` made",
                path.display()
            ))
        })
    };
    let (chain, key) = (read(&config.cert)?, read(&config.key)?);
    let ca = last_certificate(&chain).ok_or_else(|| {
        Failure::runtime(format!(
            "{} must hold two certificates: the node's own, then the cluster's",
            config.cert.display()
        ))
    })?;
    let own = &chain[..chain.len() - ca.len()];
    NodeTls::from_pem(ca, own, &key).map_err(Failure::start)
}

/// The last one of several PEM certificates.
fn last_certificate(chain: &[u8]) -> Option<&[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let at = chain.windows(BEGIN.len()).rposition(|window| window == BEGIN)?;
    (at > 0).then(|| &chain[at..])
}

/// The HTTP gateway, on a thread and runtime of its own: however busy it is, it does not delay the
/// commit path.
struct Http {
    slot: Slot,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Http {
    fn start(config: &Config) -> Result<Http, Failure> {
        let failed = |error: io::Error| {
            let use_ = if error.kind() == io::ErrorKind::AddrInUse {
                "; another process uses the port: stop it, or set another `http`"
            } else {
                ""
            };
            Failure::runtime(format!(
                "can't listen on TCP {}: {error}{use_}. Nothing was changed",
                config.http
            ))
        };
        let address = resolve("http", &config.http)?;
        if !address.ip().is_loopback() && !config.insecure_bind {
            return Err(Failure::usage(format!(
                "http: `{}` is not a loopback address ({address}); set insecure_bind = true to \
                 allow it without tokens",
                config.http
            )));
        }
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let hosts = [&config.http, &config.address].into_iter();
        let hosts = hosts.filter_map(|text| Address::parse(text).ok()).map(|found| found.host);
        let options = HttpOptions {
            cluster: config.cluster,
            hosts: hosts.collect(),
            limits: config.limits.clone(),
        };
        let slot = Slot::default();
        let limits = options.limits.clone();
        let router = highwater_http::router(slot.clone(), options);
        let (stop, stopped) = oneshot::channel();
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let serving = async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let told = async {
                        let _ = stopped.await;
                    };
                    highwater_http::serve(listener, router, &limits, told).await;
                }
                Err(error) => tracing::error!(%error, "can't serve HTTP"),
            }
        };
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || runtime.block_on(serving))
            .map_err(failed)?;
        Ok(Http { slot, stop, thread })
    }

    /// Lets the requests that are under way finish, and ends the thread.
    fn stop(self) {
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            warn!("the HTTP thread had panicked");
        }
    }
}

/// The signals that end a node.
struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called within a runtime.
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one's name.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_the_last_certificate() {
        let one = b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n";
        let two = b"-----BEGIN CERTIFICATE-----\nB\n-----END CERTIFICATE-----\n";
        let both = [one.as_slice(), two.as_slice()].concat();
        assert_eq!(last_certificate(&both), Some(two.as_slice()));
        assert_eq!(last_certificate(one), None);
        assert_eq!(last_certificate(b""), None);
    }
}
