//! `highwater status`: the cluster as one of its nodes sees it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    failure::Failure,
    nodes::{self, Nodes, Target},
    output::{Output, table},
};

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
pub(crate) async fn status(target: &Target, json: bool) -> Result<(), Failure> {
    let reply = Nodes::of(target)?.ask("GET", "/v1/cluster", None).await?;
    let mut out = Output::new();
    if json {
        out.line(reply.text().trim_end());
    } else {
        out.text(render(&nodes::read(&reply.body, "a cluster")?));
    }
    out.finish()
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
}
