//! A node's configuration: its file, then `HIGHWATER_*` variables, then flags. Every error names
//! where the value came from.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use highwater_core::{ClusterId, Config as CoreConfig, NodeId};
use highwater_http::Limits;
use highwater_node::ScrubPace;
use highwater_store::oplog::OplogOptions;
use serde::Deserialize;
use toml::Spanned;

use crate::{address::Address, failure::Failure};

/// The prefix of the variables.
pub const ENV_PREFIX: &str = "HIGHWATER_";
/// The name of the file in a node's directory.
pub const FILE_NAME: &str = "highwater.toml";
/// How fast snapshots are given away where nothing else is said: commits do not suffer by that.
const SNAPSHOT_BYTES_PER_S: u64 = 256 << 20;
/// As much as nobody has, or will wait for: a year, or a petabyte.
const RETENTION_MAX: u64 = 1 << 50;
/// The longest window of an idempotency key.
const DAYS_30_MS: u64 = 30 * 24 * 3_600_000;

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where QUIC listens, and what peers dial: `host:port`.
    pub address: String,
    /// Where HTTP listens: `host:port`.
    pub http: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Whether HTTP may listen beyond loopback without tokens.
    pub insecure_bind: bool,
    /// This node's certificate, followed by that of the cluster's authority (PEM).
    pub cert: PathBuf,
    /// The private key of the certificate (PEM).
    pub key: PathBuf,
    /// Where the other nodes' QUIC listens.
    pub peers: BTreeMap<NodeId, String>,
    /// The bounds of the gateway.
    pub limits: Limits,
    /// Keyed writes that one database remembers at a time.
    pub idempotency_keys: usize,
    /// For how long it does at least, in milliseconds.
    pub idempotency_window_ms: u64,
    /// How much of a database's log is kept, in bytes of entries: a quarter more at times, and whatever
    /// a slot still needs. 0: all of it.
    pub retention_bytes: u64,
    /// ... for how long, in milliseconds of log time. 0: for ever.
    pub retention_age_ms: u64,
    /// About how many segments of the oplog, which all databases share, are kept as they were written;
    /// what is older is sealed and compressed, database by database.
    pub oplog_segments: usize,
    /// How fast snapshots are given to other nodes, all together, in bytes a second. 0: as fast as they
    /// can take them.
    pub snapshot_bytes_per_s: u64,
    /// How fast states are scrubbed.
    pub scrub: ScrubPace,
    /// Variables that look like ours and are none.
    pub unknown_variables: Vec<String>,
}

/// Values that the command line sets over those of the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--address`
    pub address: Option<String>,
    /// `--http`
    pub http: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--insecure-bind`
    pub insecure_bind: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<Spanned<u64>>,
    cluster: Option<Spanned<String>>,
    address: Option<Spanned<String>>,
    http: Option<Spanned<String>>,
    data_dir: Option<Spanned<String>>,
    auth: Option<Spanned<String>>,
    insecure_bind: Option<Spanned<bool>>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    #[serde(default)]
    peers: Vec<PeerTable>,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    retention: RetentionTable,
    #[serde(default)]
    oplog: OplogTable,
    #[serde(default)]
    snapshots: SnapshotsTable,
    #[serde(default)]
    scrub: ScrubTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerTable {
    node: Spanned<u64>,
    address: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    value_bytes: Option<Spanned<u64>>,
    batch_ops: Option<Spanned<u64>>,
    batch_bytes: Option<Spanned<u64>>,
    list_default: Option<Spanned<u64>>,
    list_max: Option<Spanned<u64>>,
    timeout_ms: Option<Spanned<u64>>,
    timeout_max_ms: Option<Spanned<u64>>,
    connections: Option<Spanned<u64>>,
    idempotency_keys: Option<Spanned<u64>>,
    idempotency_window_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionTable {
    bytes: Option<Spanned<u64>>,
    age_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OplogTable {
    segments: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotsTable {
    bytes_per_s: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScrubTable {
    bytes_per_s: Option<Spanned<u64>>,
    pause_ms: Option<Spanned<u64>>,
}

/// A value and where it came from, for errors.
#[derive(Clone)]
struct Given<T> {
    value: T,
    from: String,
}

impl<T> Given<T> {
    fn bad(&self, why: impl Display) -> Failure {
        Failure::usage(format!("{}: {why}", self.from))
    }
}

/// The values as they are collected.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    env: &'a BTreeMap<String, String>,
}

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        self.text[..at.min(self.text.len())].matches('\n').count() + 1
    }

    fn of_file<T>(&self, name: &str, spanned: Spanned<T>) -> Given<T> {
        let line = self.line(spanned.span().start);
        Given {
            from: format!("{}:{line}: {name}", self.path.display()),
            value: spanned.into_inner(),
        }
    }

    /// The variable where it is set, else what the file has.
    fn text(&self, name: &str, file: Option<Spanned<String>>) -> Option<Given<String>> {
        let variable = variable(name);
        match self.env.get(&variable) {
            Some(value) => Some(Given { value: value.clone(), from: variable }),
            None => file.map(|value| self.of_file(name, value)),
        }
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        file: Option<Spanned<T>>,
    ) -> Result<Option<Given<T>>, Failure> {
        let from = variable(name);
        match self.env.get(&from) {
            Some(value) => match value.parse() {
                Ok(value) => Ok(Some(Given { value, from })),
                Err(_) => Err(Failure::usage(format!("{from}: `{value}` is not a valid value"))),
            },
            None => Ok(file.map(|value| self.of_file(name, value))),
        }
    }

    fn needed<T>(&self, name: &str, given: Option<Given<T>>) -> Result<Given<T>, Failure> {
        given.ok_or_else(|| Failure::usage(format!("{}: `{name}` is missing", self.path.display())))
    }

    /// A path of the file is relative to it; one of a variable, to the working directory.
    fn path(&self, name: &str, file: Option<Spanned<String>>) -> Option<PathBuf> {
        if let Some(value) = self.env.get(&variable(name)) {
            return Some(PathBuf::from(value));
        }
        let base = self.path.parent().unwrap_or(Path::new(""));
        file.map(|value| base.join(value.into_inner()))
    }
}

fn variable(name: &str) -> String {
    format!("{ENV_PREFIX}{}", name.replace('.', "_").to_ascii_uppercase())
}

/// Every key that a variable can set.
const KEYS: [&str; 25] = [
    "node",
    "cluster",
    "address",
    "http",
    "data_dir",
    "auth",
    "insecure_bind",
    "cert",
    "key",
    "limits.value_bytes",
    "limits.batch_ops",
    "limits.batch_bytes",
    "limits.list_default",
    "limits.list_max",
    "limits.timeout_ms",
    "limits.timeout_max_ms",
    "limits.connections",
    "limits.idempotency_keys",
    "limits.idempotency_window_ms",
    "retention.bytes",
    "retention.age_ms",
    "oplog.segments",
    "snapshots.bytes_per_s",
    "scrub.bytes_per_s",
    "scrub.pause_ms",
];
/// Variables of other commands.
pub(crate) const OTHER_VARIABLES: [&str; 3] =
    ["HIGHWATER_LOG_FORMAT", "HIGHWATER_LOG_LEVEL", "HIGHWATER_DEMO_PAUSE_BEFORE_VERIFY"];

/// The names of all variables that configure a node.
pub fn variables() -> impl Iterator<Item = String> {
    KEYS.into_iter().map(variable)
}

/// The process' variables with our prefix.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect()
}

impl Config {
    /// Reads and checks a configuration.
    pub fn load(
        path: &Path,
        env: &BTreeMap<String, String>,
        flags: &Flags,
    ) -> Result<Config, Failure> {
        let text = fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("can't read the configuration {}: {error}", path.display()))
        })?;
        Config::parse(path, &text, env, flags)
    }

    fn parse(
        path: &Path,
        text: &str,
        env: &BTreeMap<String, String>,
        flags: &Flags,
    ) -> Result<Config, Failure> {
        let file: File = toml::from_str(text).map_err(|error| {
            Failure::usage(format!("{}: {}", path.display(), error.to_string().trim_end()))
        })?;
        let source = Source { path, text, env };
        let node = source.needed("node", source.parsed("node", file.node)?)?;
        if node.value == 0 {
            return Err(node.bad("a node's id is 1 or more"));
        }
        let cluster = source.needed("cluster", source.text("cluster", file.cluster))?;
        let auth = source.text("auth", file.auth);
        if let Some(auth) = auth.filter(|auth| auth.value != "none") {
            return Err(auth.bad(format!(
                "`{}` is not supported by this version; the only value is \"none\"",
                auth.value
            )));
        }
        let flag = |name: &str, value: &Option<String>| {
            value.clone().map(|value| Given { value, from: format!("--{name}") })
        };
        let address =
            flag("address", &flags.address).or_else(|| source.text("address", file.address));
        let address = endpoint(&source.needed("address", address)?)?;
        let http = flag("http", &flags.http).or_else(|| source.text("http", file.http));
        let http = source.needed("http", http)?;
        let insecure_bind = flags.insecure_bind
            || source.parsed("insecure_bind", file.insecure_bind)?.is_some_and(|given| given.value);
        let http_address = endpoint(&http)?;
        if !http_address.0.is_loopback() && !insecure_bind {
            return Err(http.bad(format!(
                "`{}` is not a loopback address. Without tokens anyone who reaches it could read \
                 and write everything; to allow it, set insecure_bind = true",
                http.value
            )));
        }
        let (mut table, of) = (file.limits, CoreConfig::default());
        let keys = (table.idempotency_keys.take(), 1..=1_000_000, of.once_max as u64);
        let window = (table.idempotency_window_ms.take(), 1..=DAYS_30_MS, of.once_window_ms);
        let (retention, retained) = (file.retention, RETENTION_MAX);
        let kept_bytes = (retention.bytes, 0..=retained, of.retention_bytes);
        let kept_ms = (retention.age_ms, 0..=retained, of.retention_ms);
        let segments = (file.oplog.segments, 2..=4096, OplogOptions::default().segments_max as u64);
        let snapshots = (file.snapshots.bytes_per_s, 0..=u64::MAX, SNAPSHOT_BYTES_PER_S);
        let base = path.parent().unwrap_or(Path::new(""));
        let file_data_dir = source.path("data_dir", file.data_dir);
        let node = NodeId(node.value);
        Ok(Config {
            node,
            cluster: cluster_id(&cluster)?,
            address: address.1,
            http: http_address.1,
            data_dir: flags.data_dir.clone().or(file_data_dir).ok_or_else(|| {
                Failure::usage(format!("{}: `data_dir` is missing", path.display()))
            })?,
            insecure_bind,
            cert: source.path("cert", file.cert).unwrap_or_else(|| base.join("cert.pem")),
            key: source.path("key", file.key).unwrap_or_else(|| base.join("key.pem")),
            peers: peers(&source, node, file.peers)?,
            limits: limits(&source, table)?,
            idempotency_keys: number(&source, "limits.idempotency_keys", keys)? as usize,
            idempotency_window_ms: number(&source, "limits.idempotency_window_ms", window)?,
            retention_bytes: number(&source, "retention.bytes", kept_bytes)?,
            retention_age_ms: number(&source, "retention.age_ms", kept_ms)?,
            oplog_segments: number(&source, "oplog.segments", segments)? as usize,
            snapshot_bytes_per_s: number(&source, "snapshots.bytes_per_s", snapshots)?,
            scrub: scrub(&source, file.scrub)?,
            unknown_variables: unknown(env),
        })
    }
}

fn unknown(env: &BTreeMap<String, String>) -> Vec<String> {
    let known = |name: &str| {
        OTHER_VARIABLES.contains(&name) || variables().any(|variable| variable == name)
    };
    env.keys().filter(|name| !known(name)).cloned().collect()
}

fn endpoint(given: &Given<String>) -> Result<(Address, String), Failure> {
    let address = Address::parse(&given.value).map_err(|error| given.bad(error))?;
    match address.port {
        Some(port) => {
            let text = address.with_port(port);
            Ok((address, text))
        }
        None => Err(given.bad(format!("`{}` has no port", given.value))),
    }
}

fn cluster_id(given: &Given<String>) -> Result<ClusterId, Failure> {
    let digits = given.value.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(&given.value, 16) {
        Ok(id) if digits && given.value.len() == 32 => Ok(ClusterId(id)),
        _ => Err(given.bad(format!("`{}` is not 32 hex digits, as init writes them", given.value))),
    }
}

fn peers(
    source: &Source<'_>,
    node: NodeId,
    tables: Vec<PeerTable>,
) -> Result<BTreeMap<NodeId, String>, Failure> {
    let mut peers = BTreeMap::new();
    for table in tables {
        let id = source.of_file("peers.node", table.node);
        let (_, address) = endpoint(&source.of_file("peers.address", table.address))?;
        if id.value == 0 || NodeId(id.value) == node {
            return Err(id.bad(format!("{} can't be a peer of node {node}", id.value)));
        }
        if peers.insert(NodeId(id.value), address).is_some() {
            return Err(id.bad(format!("node {} stands there twice", id.value)));
        }
    }
    Ok(peers)
}

fn scrub(source: &Source<'_>, table: ScrubTable) -> Result<ScrubPace, Failure> {
    let default = ScrubPace::default();
    let number = |name: &str, given: Option<Spanned<u64>>, default: u64| {
        Ok(source.parsed(name, given)?.map_or(default, |given| given.value))
    };
    Ok(ScrubPace {
        bytes_per_s: number("scrub.bytes_per_s", table.bytes_per_s, default.bytes_per_s)?,
        pause_ms: number("scrub.pause_ms", table.pause_ms, default.pause_ms)?,
    })
}

/// One number: as given, in this range, or else the default.
fn number(
    source: &Source<'_>,
    name: &str,
    (file, range, default): (Option<Spanned<u64>>, RangeInclusive<u64>, u64),
) -> Result<u64, Failure> {
    match source.parsed(name, file)? {
        None => Ok(default),
        Some(given) if range.contains(&given.value) => Ok(given.value),
        Some(given) => {
            let (least, most) = range.into_inner();
            Err(given.bad(format!("must be a number from {least} to {most}")))
        }
    }
}

fn limits(source: &Source<'_>, table: LimitsTable) -> Result<Limits, Failure> {
    /// The log's entries are bounded; a value or batch must fit into one.
    const BYTES: u64 = 16 << 20;
    let read = |name: &str, file: Option<Spanned<u64>>, most: u64, default: u64| {
        number(source, &format!("limits.{name}"), (file, 1..=most, default))
    };
    let of = Limits::default();
    let millis = |duration: Duration| duration.as_millis() as u64;
    let limits = Limits {
        value_bytes: read("value_bytes", table.value_bytes, BYTES, of.value_bytes as u64)? as usize,
        batch_ops: read("batch_ops", table.batch_ops, 100_000, of.batch_ops as u64)? as usize,
        batch_bytes: read("batch_bytes", table.batch_bytes, BYTES, of.batch_bytes as u64)? as usize,
        list_default: read("list_default", table.list_default, 10_000, of.list_default as u64)?
            as usize,
        list_max: read("list_max", table.list_max, 10_000, of.list_max as u64)? as usize,
        timeout: Duration::from_millis(read(
            "timeout_ms",
            table.timeout_ms,
            3_600_000,
            millis(of.timeout),
        )?),
        timeout_max: Duration::from_millis(read(
            "timeout_max_ms",
            table.timeout_max_ms,
            3_600_000,
            millis(of.timeout_max),
        )?),
        connections: read("connections", table.connections, 1_000_000, of.connections as u64)?
            as usize,
        ..of
    };
    let above = |name: &str, most: &str| {
        let path = source.path.display();
        Err(Failure::usage(format!("{path}: limits.{name} is above limits.{most}")))
    };
    if limits.list_default > limits.list_max {
        return above("list_default", "list_max");
    }
    if limits.timeout > limits.timeout_max {
        return above("timeout_ms", "timeout_max_ms");
    }
    Ok(limits)
}

/// The text of a new node's file.
pub(crate) fn render(
    node: NodeId,
    cluster: ClusterId,
    addresses: &BTreeMap<NodeId, String>,
    http: &str,
    insecure_bind: bool,
) -> String {
    let own = addresses.get(&node).map_or("", String::as_str);
    let mut text = format!(
        "# Highwater, node {node}. Relative paths begin at this file. HIGHWATER_* variables and\n\
         # flags override what stands here.\n\
         node = {node}\n\
         cluster = \"{cluster}\"\n\
         # QUIC, between nodes.\n\
         address = \"{own}\"\n\
         # HTTP, for clients.\n\
         http = \"{http}\"\n\
         data_dir = \"data\"\n\
         auth = \"none\"\n\
         # true: HTTP may listen beyond loopback although there are no tokens.\n\
         insecure_bind = {insecure_bind}\n\
         # This node's certificate followed by that of the cluster, and its key.\n\
         cert = \"cert.pem\"\n\
         key = \"key.pem\"\n"
    );
    for (peer, address) in addresses.iter().filter(|(peer, _)| **peer != node) {
        // Writing to a string can't fail.
        let _ = write!(text, "\n[[peers]]\nnode = {peer}\naddress = \"{address}\"\n");
    }
    let (of, core) = (Limits::default(), CoreConfig::default());
    let _ = write!(
        text,
        "\n# The defaults.\n[limits]\nvalue_bytes = {}\nbatch_ops = {}\nbatch_bytes = {}\n\
         list_default = {}\nlist_max = {}\ntimeout_ms = {}\ntimeout_max_ms = {}\n\
         connections = {}\nidempotency_keys = {}\nidempotency_window_ms = {}\n",
        of.value_bytes,
        of.batch_ops,
        of.batch_bytes,
        of.list_default,
        of.list_max,
        of.timeout.as_millis(),
        of.timeout_max.as_millis(),
        of.connections,
        core.once_max,
        core.once_window_ms,
    );
    let _ = write!(
        text,
        "\n# How much of each database's log is kept, and for how long (0: whatever its size, or age).\n\
         # What a slot still needs is kept in any case.\n[retention]\nbytes = {}\nage_ms = {}\n\
         \n# How many files of 64 MiB the oplog has, about; older entries are compressed.\n\
         [oplog]\nsegments = {}\n\
         \n# How fast nodes that were away for long are given snapshots (0: without a limit).\n\
         [snapshots]\nbytes_per_s = {SNAPSHOT_BYTES_PER_S}\n",
        core.retention_bytes,
        core.retention_ms,
        OplogOptions::default().segments_max,
    );
    let of = ScrubPace::default();
    let _ = write!(
        text,
        "\n# How fast all databases' states are read again to find damage (0: not at all), and how\n\
         # long after that they are again.\n[scrub]\nbytes_per_s = {}\npause_ms = {}\n",
        of.bytes_per_s, of.pause_ms,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> String {
        let addresses = [(NodeId(1), "127.0.0.1:7001"), (NodeId(2), "127.0.0.1:7002")];
        let addresses = addresses.map(|(node, address)| (node, address.to_owned())).into();
        render(NodeId(1), ClusterId(0xab), &addresses, "127.0.0.1:8001", false)
    }

    fn parse(text: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Config, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(Path::new("dir/highwater.toml"), text, &env.collect(), flags)
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_init_writes_is_read_back() {
        let config = parse(&sample(), &[], &Flags::default()).unwrap();
        assert_eq!((config.node, config.cluster), (NodeId(1), ClusterId(0xab)));
        assert_eq!(
            (config.address.as_str(), config.http.as_str()),
            ("127.0.0.1:7001", "127.0.0.1:8001")
        );
        assert_eq!(config.data_dir, Path::new("dir/data"));
        assert_eq!(config.key, Path::new("dir/key.pem"));
        assert_eq!(config.peers, [(NodeId(2), "127.0.0.1:7002".to_owned())].into());
        assert_eq!(config.limits, Limits::default());
        let core = CoreConfig::default();
        assert_eq!(config.idempotency_keys, core.once_max);
        assert_eq!(config.idempotency_window_ms, core.once_window_ms);
    }

    #[test]
    fn variables_override_the_file_and_flags_both() {
        let env = [
            ("HIGHWATER_HTTP", "127.0.0.1:1"),
            ("HIGHWATER_ADDRESS", "127.0.0.1:2"),
            ("HIGHWATER_DATA_DIR", "elsewhere"),
            ("HIGHWATER_LIMITS_VALUE_BYTES", "7"),
            ("HIGHWATER_TYPO", "x"),
        ];
        let flags = Flags { http: Some("localhost:3".to_owned()), ..Flags::default() };
        let config = parse(&sample(), &env, &flags).unwrap();
        assert_eq!((config.http.as_str(), config.address.as_str()), ("localhost:3", "127.0.0.1:2"));
        assert_eq!(config.data_dir, Path::new("elsewhere"));
        assert_eq!(config.limits.value_bytes, 7);
        assert_eq!(config.unknown_variables, ["HIGHWATER_TYPO"]);
        let bad = parse(&sample(), &[("HIGHWATER_NODE", "x")], &Flags::default());
        assert!(bad.unwrap_err().starts_with("HIGHWATER_NODE: "));
    }

    #[test]
    fn errors_name_the_line() {
        let error = |from: &str, to: &str| {
            parse(&sample().replacen(from, to, 1), &[], &Flags::default()).unwrap_err()
        };
        let unknown = error("auth =", "colour = 1\nauth =");
        assert!(unknown.contains("line 10") && unknown.contains("colour"), "{unknown}");
        assert!(error("[limits]", "[limits]\nx = 1").contains("unknown field `x`"));
        assert!(error("[[peers]]", "[[peers]]\nx = 1").contains("unknown field `x`"));
        assert!(error("node = 1", "node = 1\nnode = 1").contains("line 4"));
        assert!(error("node = 1", "node = -1").contains("line 3"));
        assert!(error("node = 1", "node = 0").starts_with("dir/highwater.toml:3: node: "));
        assert!(error("auth = \"none\"", "auth = \"token\"").contains(":10: auth: `token`"));
        assert!(error("000000ab", "ab").contains(":4: cluster: "));
        assert!(
            error("http = \"127.0.0.1:8001", "http = \"10.0.0.1:8001").contains("insecure_bind")
        );
        assert!(error("http = \"127.0.0.1:8001", "http = \"127.0.0.1").contains(":8: http: "));
        assert!(error("data_dir = \"data\"", "").contains("`data_dir` is missing"));
        assert!(error("node = 2", "node = 1").contains("can't be a peer"));
        assert!(
            error("value_bytes = 1048576", "value_bytes = 99999999").contains("limits.value_bytes")
        );
        assert!(
            error("list_default = 100", "list_default = 1001").contains("above limits.list_max")
        );
    }
}
