//! Makes a new cluster's directory: certificates, one directory a node.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use highwater_core::{ClusterId, NodeId};
use highwater_quic::tls;

use crate::{
    address::{Address, Ports},
    config,
    failure::{Context, Failure},
};

/// Nodes of one cluster at most.
pub const NODES_MAX: u64 = 15;

/// What `init` is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory; must be empty or not exist.
    pub dir: PathBuf,
    /// How many nodes: 1..=[`NODES_MAX`].
    pub nodes: u64,
    /// None (loopback), one (for all), or one for each node: `HOST[:PORT]`, the port being QUIC's.
    pub addresses: Vec<String>,
    /// Whether HTTP may listen beyond loopback.
    pub insecure_bind: bool,
}

/// One node of a cluster's directory.
#[derive(Clone, Debug)]
pub struct NodeDir {
    /// Its id.
    pub id: u64,
    /// Its directory.
    pub dir: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its HTTP listens: `host:port`.
    pub http: String,
}

/// Writes the directory. A failure on the way leaves what was written so far, and says so.
pub fn init(plan: &Plan) -> Result<Vec<NodeDir>, Failure> {
    if plan.nodes == 0 || plan.nodes > NODES_MAX {
        return Err(Failure::usage(format!("--nodes must be a number from 1 to {NODES_MAX}")));
    }
    let hosts = hosts(plan)?;
    refuse_used(&plan.dir)?;
    let (addresses, https) = ports(plan, hosts)?;
    let cluster = ClusterId(random()?);
    let failed = |path: &Path| {
        format!(
            "can't write {}; remove {} before you try again",
            path.display(),
            plan.dir.display()
        )
    };
    let ca_dir = plan.dir.join("ca");
    fs::create_dir_all(&ca_dir).context(|| failed(&ca_dir))?;
    let tls_failed = || "can't make certificates".to_owned();
    let ca = tls::make_ca(cluster).context(tls_failed)?;
    put(&ca_dir.join("ca.pem"), ca.cert.as_bytes(), false).context(|| failed(&ca_dir))?;
    put(&ca_dir.join("ca.key"), ca.key.as_bytes(), true).context(|| failed(&ca_dir))?;
    let mut nodes = Vec::new();
    for (node, http) in https {
        let dir = plan.dir.join(format!("node-{node}"));
        let own = tls::make_node_cert(&ca, cluster, node).context(tls_failed)?;
        let toml = config::render(node, cluster, &addresses, &http, plan.insecure_bind);
        let config = dir.join(config::FILE_NAME);
        let write = || -> io::Result<()> {
            fs::create_dir_all(dir.join("data"))?;
            // A node's directory can be carried to another machine as it is: what it trusts
            // follows its own certificate.
            put(&dir.join("cert.pem"), format!("{}{}", own.cert, ca.cert).as_bytes(), false)?;
            put(&dir.join("key.pem"), own.key.as_bytes(), true)?;
            put(&config, toml.as_bytes(), false)?;
            File::open(&dir)?.sync_all()
        };
        write().context(|| failed(&dir))?;
        nodes.push(NodeDir { id: node.0, dir, config, http });
    }
    File::open(&plan.dir).and_then(|dir| dir.sync_all()).context(|| failed(&plan.dir))?;
    Ok(nodes)
}

/// The nodes of a directory that [`init`] made.
pub fn load(dir: &Path) -> Result<Vec<NodeDir>, Failure> {
    let mut nodes = Vec::new();
    for id in 1..=NODES_MAX {
        let dir = dir.join(format!("node-{id}"));
        let path = dir.join(config::FILE_NAME);
        if !path.exists() {
            break;
        }
        let config = config::Config::load(&path, &BTreeMap::new(), &config::Flags::default())?;
        nodes.push(NodeDir { id, dir, config: path, http: config.http });
    }
    if nodes.is_empty() {
        return Err(Failure::usage(format!(
            "{} is not empty and holds no cluster that this program made; choose another directory",
            dir.display()
        )));
    }
    Ok(nodes)
}

/// Whether a directory has anything in it.
pub(crate) fn is_used(dir: &Path) -> Result<bool, Failure> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::usage(format!("can't use {}: {error}", dir.display()))),
    }
}

fn refuse_used(dir: &Path) -> Result<(), Failure> {
    if is_used(dir)? {
        return Err(Failure::usage(format!(
            "{} is not empty, and a new cluster would overwrite what is there; nothing was \
             written. Choose another directory",
            dir.display()
        )));
    }
    Ok(())
}

/// The host of every node, and its QUIC port where one is given.
fn hosts(plan: &Plan) -> Result<Vec<Address>, Failure> {
    let usage = |error: String| Failure::usage(format!("--address: {error}"));
    let given: Vec<Address> = plan
        .addresses
        .iter()
        .map(|text| Address::parse(text).map_err(usage))
        .collect::<Result<_, _>>()?;
    let count = plan.nodes as usize;
    let hosts = match given.as_slice() {
        [] => vec![Address { host: "127.0.0.1".to_owned(), port: None }; count],
        // One address for several nodes: its port is the first one's.
        [one] => (0..plan.nodes)
            .map(|at| {
                let port = match one.port {
                    None => None,
                    Some(port) => Some(port.checked_add(at as u16).ok_or_else(|| {
                        usage(format!("there are not {count} ports from {port} on"))
                    })?),
                };
                Ok(Address { host: one.host.clone(), port })
            })
            .collect::<Result<_, Failure>>()?,
        all if all.len() == count => all.to_vec(),
        all => {
            return Err(usage(format!(
                "{} are given for {count} nodes; give none, one, or one for each",
                all.len()
            )));
        }
    };
    for (at, host) in hosts.iter().enumerate() {
        if host.port.is_some() && hosts[..at].contains(host) {
            return Err(usage(format!("`{}` stands there twice", plan.addresses[at])));
        }
    }
    Ok(hosts)
}

type Endpoints = (BTreeMap<NodeId, String>, Vec<(NodeId, String)>);

/// Every node's QUIC address and HTTP address.
fn ports(plan: &Plan, hosts: Vec<Address>) -> Result<Endpoints, Failure> {
    let mut ports = Ports::new(hosts.iter().filter_map(|host| host.port));
    let mut quic = BTreeMap::new();
    let mut http = Vec::new();
    for (node, host) in (1..).map(NodeId).zip(hosts) {
        let port = match host.port {
            Some(port) => port,
            None => ports.next(&host, false)?,
        };
        quic.insert(node, host.with_port(port));
        // Without tokens, HTTP stays on loopback unless that is waived.
        let own = if host.is_loopback() || plan.insecure_bind {
            host
        } else {
            Address { host: "127.0.0.1".to_owned(), port: None }
        };
        let port = ports.next(&own, true)?;
        http.push((node, own.with_port(port)));
    }
    Ok((quic, http))
}

/// A random number from the system.
pub(crate) fn random() -> Result<u128, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context(|| "the system has no randomness".to_owned())?;
    Ok(u128::from_le_bytes(bytes))
}

/// Writes a new file durably.
fn put(path: &Path, bytes: &[u8], secret: bool) -> io::Result<()> {
    let mode = if secret { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn plan(dir: &Path, nodes: u64, addresses: &[&str]) -> Plan {
        let addresses = addresses.iter().map(|text| (*text).to_owned()).collect();
        Plan { dir: dir.to_owned(), nodes, addresses, insecure_bind: false }
    }

    #[test]
    fn a_cluster_directory_is_complete_and_its_keys_are_private() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("new");
        let nodes = init(&plan(&dir, 3, &[])).unwrap();
        assert_eq!(nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1, 2, 3]);
        for key in ["ca/ca.key", "node-1/key.pem", "node-3/key.pem"] {
            let mode = fs::metadata(dir.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert!(dir.join("ca/ca.pem").exists() && dir.join("node-2/data").is_dir());
        let loaded = load(&dir).unwrap();
        assert_eq!(loaded.len(), 3);
        assert!(loaded.iter().zip(&nodes).all(|(a, b)| a.http == b.http && a.id == b.id));
        let again = init(&plan(&dir, 3, &[])).unwrap_err().to_string();
        assert!(again.contains("is not empty"), "{again}");
    }

    #[test]
    fn addresses_are_none_one_or_each() {
        let dir = Path::new("unused");
        let of = |nodes, addresses: &[&str]| {
            hosts(&plan(dir, nodes, addresses))
                .map(|hosts| hosts.iter().map(|h| (h.host.clone(), h.port)).collect::<Vec<_>>())
                .map_err(|failure| failure.to_string())
        };
        assert_eq!(of(2, &[]).unwrap(), vec![("127.0.0.1".to_owned(), None); 2]);
        let one = |port| ("10.0.0.1".to_owned(), Some(port));
        assert_eq!(of(2, &["10.0.0.1:70"]).unwrap(), [one(70), one(71)]);
        assert_eq!(of(2, &["a", "b:7"]).unwrap(), [("a".into(), None), ("b".into(), Some(7))]);
        assert!(of(3, &["a", "b"]).unwrap_err().contains("2 are given for 3"));
        assert!(of(2, &["a:1", "a:1"]).unwrap_err().contains("twice"));
        assert!(of(2, &["a:65535"]).is_err());
    }

    #[test]
    fn http_stays_on_loopback_unless_that_is_waived() {
        let mut plan = plan(Path::new("unused"), 1, &["192.0.2.7:70"]);
        let http = |plan: &Plan| ports(plan, hosts(plan).unwrap()).unwrap().1[0].1.clone();
        assert!(http(&plan).starts_with("127.0.0.1:"));
        plan.insecure_bind = true;
        assert!(http(&plan).starts_with("192.0.2.7:"));
    }
}
