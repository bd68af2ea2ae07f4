//! `highwater status`: the cluster as one of its nodes sees it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    client::Client,
    config::{Config, Flags, environment},
    dev::DevJson,
    failure::{Context, Failure},
};

const TIMEOUT: Duration = Duration::from_secs(8);

/// Whom to ask.
#[derive(Clone, Debug)]
pub enum Target {
    /// A node's URL, or `host:port`.
    Url(String),
    /// The node of this configuration.
    Config(PathBuf),
    /// The cluster that `dev` runs in this directory.
    Dir(PathBuf),
}

#[derive(Deserialize)]
struct Cluster {
    cluster_id: String,
    epoch: u64,
    nodes: Vec<Node>,
    databases: Vec<Database>,
}

#[derive(Deserialize)]
struct Node {
    id: u64,
    address: String,
    http: Option<String>,
    role: String,
    state: String,
    version: Option<String>,
    last_contact_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Database {
    name: String,
    leader: Option<u64>,
    term: u64,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    node: u64,
    state: String,
    applied: Option<u64>,
    lag_ops: Option<u64>,
}

/// Prints the cluster.
///
/// # Errors
/// Where no node answers.
pub async fn status(target: &Target, json: bool) -> Result<(), Failure> {
    let body = fetch(&hosts(target)?).await?;
    let text = if json {
        format!("{}\n", body.trim_end())
    } else {
        let cluster: Cluster = serde_json::from_str(&body)
            .context(|| "the node answered something else than a cluster".to_owned())?;
        render(&cluster)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context(|| "can't write to standard output".to_owned())
}

fn hosts(target: &Target) -> Result<Vec<String>, Failure> {
    match target {
        Target::Url(url) => {
            let url = url.strip_prefix("http://").unwrap_or(url);
            let host = url.trim_end_matches('/');
            if host.is_empty() || host.contains('/') {
                return Err(Failure::usage(
                    "--url must be http://HOST:PORT, as the node's configuration has it",
                ));
            }
            Ok(vec![host.to_owned()])
        }
        Target::Config(path) => {
            Ok(vec![Config::load(path, &environment(), &Flags::default())?.http])
        }
        Target::Dir(dir) => dev_hosts(dir),
    }
}

fn dev_hosts(dir: &Path) -> Result<Vec<String>, Failure> {
    let path = dir.join("dev.json");
    let found = fs::read_to_string(&path)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_str::<DevJson>(&text).map_err(|e| e.to_string()));
    match found {
        Ok(found) => Ok(found.nodes.into_iter().map(|node| node.http).collect()),
        Err(error) => Err(Failure::usage(format!(
            "can't tell whom to ask: {}: {error}. Name a node with --url or --config, or the \
             directory of `highwater dev` with --dir",
            path.display()
        ))),
    }
}

async fn fetch(hosts: &[String]) -> Result<String, Failure> {
    let mut why = Vec::new();
    for host in hosts {
        let mut client = Client::new(host.as_str(), TIMEOUT);
        match client.get("/v1/cluster").await {
            Ok(reply) if reply.status.is_success() => return Ok(reply.text()),
            Ok(reply) => why.push(format!("{host}: {}", reply.text())),
            Err(error) => why.push(format!("{host}: {error}")),
        }
    }
    Err(Failure::runtime(format!("no node answers:\n  {}", why.join("\n  "))))
}

fn render(cluster: &Cluster) -> String {
    let mut text = format!("cluster {}, epoch {}\n\n", cluster.cluster_id, cluster.epoch);
    let unknown = || "-".to_owned();
    let or = |number: Option<u64>| number.map_or_else(unknown, |number| number.to_string());
    let mut nodes = vec![
        ["NODE", "STATE", "ROLE", "HTTP", "QUIC", "VERSION", "LAST CONTACT"].map(str::to_owned),
    ];
    for node in &cluster.nodes {
        nodes.push([
            node.id.to_string(),
            node.state.clone(),
            node.role.clone(),
            node.http.clone().unwrap_or_else(unknown),
            node.address.clone(),
            node.version.clone().unwrap_or_else(unknown),
            node.last_contact_ms.map_or_else(unknown, |ms| format!("{ms} ms")),
        ]);
    }
    text += &table(&nodes);
    if cluster.databases.is_empty() {
        return text + "\nno databases\n";
    }
    let mut rows = vec![["DATABASE", "LEADER", "TERM", "APPLIED", "BEHIND"].map(str::to_owned)];
    for database in &cluster.databases {
        let leader = database.leader;
        let applied = database.replicas.iter().filter(|replica| Some(replica.node) == leader);
        rows.push([
            database.name.clone(),
            or(leader),
            database.term.to_string(),
            or(applied.filter_map(|replica| replica.applied).next()),
            behind(&database.replicas),
        ]);
    }
    text + "\n" + &table(&rows)
}

/// Who is not where the leader is, and why.
fn behind(replicas: &[Replica]) -> String {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for replica in replicas {
        let reason = match (replica.state.as_str(), replica.lag_ops) {
            ("ready", Some(0)) => continue,
            ("ready", Some(ops)) => format!("{ops} ops"),
            (state, _) => state.to_owned(),
        };
        by_reason.entry(reason).or_default().push(format!("node {}", replica.node));
    }
    if by_reason.is_empty() {
        return "none".to_owned();
    }
    let parts = by_reason.iter().map(|(reason, nodes)| format!("{} {reason}", nodes.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_who_is_behind() {
        let cluster: Cluster = serde_json::from_str(
            r#"{"cluster_id":"ab","epoch":2,"new_field":1,
                "nodes":[{"id":1,"address":"a:1","http":"a:2","role":"voter","state":"ready",
                          "version":"0.1.0","last_contact_ms":0},
                         {"id":2,"address":"b:1","http":null,"role":"voter","state":"unreachable",
                          "version":null,"last_contact_ms":null}],
                "databases":[{"name":"db","leader":1,"term":3,"replicas":[
                    {"node":1,"state":"ready","applied":9,"lag_ops":0},
                    {"node":2,"state":"unreachable","applied":null,"lag_ops":null}]}]}"#,
        )
        .unwrap();
        let expected = "\
cluster ab, epoch 2

NODE  STATE        ROLE   HTTP  QUIC  VERSION  LAST CONTACT
1     ready        voter  a:2   a:1   0.1.0    0 ms
2     unreachable  voter  -     b:1   -        -

DATABASE  LEADER  TERM  APPLIED  BEHIND
db        1       3     9        node 2 unreachable
";
        assert_eq!(render(&cluster), expected);
    }

    #[test]
    fn a_url_is_a_node() {
        let host = |url: &str| hosts(&Target::Url(url.to_owned())).map(|hosts| hosts[0].clone());
        assert_eq!(host("http://a:1/").unwrap(), "a:1");
        assert_eq!(host("a:1").unwrap(), "a:1");
        assert!(host("http://a:1/v1").is_err());
        assert!(host("").is_err());
    }
}
