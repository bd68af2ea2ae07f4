//! Which nodes a command asks, and what they say where they do not do it.

use std::{fmt::Write as _, fs, path::Path, path::PathBuf, time::Duration};

use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;

use crate::{
    client::{CallError, Client, Lines, Reply},
    config::{Config, Flags, environment},
    dev::DevJson,
    failure::{Context, Failure},
};

/// How long an answer may take: longer than a node takes on its own.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How long an answer that goes on may fall silent: a node that has nothing to say says so every few
/// seconds.
const SILENCE: Duration = Duration::from_secs(20);

/// Whom to ask.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A node's URL, or `host:port`.
    Url(String),
    /// The node of this configuration.
    Config(PathBuf),
    /// The cluster that `dev` runs in this directory.
    Dir(PathBuf),
}

/// The nodes that a command may ask, each as `host:port`. At least one.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    hosts: Vec<String>,
    /// The cluster's id, once a node told it.
    cluster: Option<String>,
}

/// Why a node did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another one may do it, or this one later. Nothing was changed.
    NotNow(String),
    /// It will not be done.
    Final(Failure),
}

/// The part of an error that is shown (RFC 9457).
#[derive(Debug, Deserialize)]
pub(crate) struct Problem {
    title: String,
    status: u16,
    detail: String,
    code: String,
}

impl Problem {
    pub(crate) fn refusal(&self) -> Refusal {
        let Problem { title, status, detail, code } = self;
        let text = format!("{title} ({code}): {detail}");
        match StatusCode::from_u16(*status) {
            Ok(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) => {
                Refusal::NotNow(text)
            }
            Ok(StatusCode::BAD_REQUEST) => Refusal::Final(Failure::usage(text)),
            _ => Refusal::Final(Failure::runtime(text)),
        }
    }
}

impl Refusal {
    /// What an answer says that is none of success.
    fn of(reply: &Reply) -> Refusal {
        match reply.json::<Problem>() {
            Ok(problem) => problem.refusal(),
            Err(_) => Refusal::Final(Failure::runtime(format!(
                "the answer is none of Highwater's: {} {}",
                reply.status,
                reply.text()
            ))),
        }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Refusal {
        Refusal::NotNow(error.to_string())
    }
}

#[derive(Deserialize)]
struct Cluster {
    cluster_id: String,
    nodes: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    http: Option<String>,
}

impl Nodes {
    /// # Errors
    /// Where the target names none.
    pub(crate) fn of(target: &Target) -> Result<Nodes, Failure> {
        Ok(Nodes { hosts: hosts(target)?, cluster: None })
    }

    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Asks a node which others there are; they may be asked from now on.
    ///
    /// # Errors
    /// Where it does not say, or is of another cluster than the one that was asked before: what a node
    /// tells of others may mean another machine here.
    pub(crate) async fn meet(&mut self, host: &str) -> Result<(), Refusal> {
        let reply = Client::new(host, TIMEOUT).get("/v1/cluster").await?;
        if !reply.status.is_success() {
            return Err(Refusal::of(&reply));
        }
        let found: Cluster = reply.json().map_err(|error| Refusal::NotNow(error.to_string()))?;
        let known = self.cluster.get_or_insert_with(|| found.cluster_id.clone());
        if *known != found.cluster_id {
            return Err(Refusal::NotNow("it is a node of another cluster".to_owned()));
        }
        for http in found.nodes.into_iter().filter_map(|node| node.http) {
            if !self.hosts.contains(&http) {
                self.hosts.push(http);
            }
        }
        Ok(())
    }

    /// Has one node after the other asked, until one does it.
    ///
    /// # Errors
    /// Where none does; and where it is not known whether one did.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        json: Option<String>,
    ) -> Result<Reply, Failure> {
        let mut why = Vec::new();
        let headers: &[_] =
            if json.is_some() { &[("content-type", "application/json")] } else { &[] };
        let body = json.map(Bytes::from).unwrap_or_default();
        for host in &self.hosts {
            let mut client = Client::new(host.as_str(), TIMEOUT);
            let refusal = match client.call(method, path, headers, body.clone()).await {
                Ok(reply) if reply.status.is_success() => return Ok(reply),
                Ok(reply) => Refusal::of(&reply),
                Err(CallError::NoAnswer(error)) if method != "GET" => {
                    return Err(Failure::runtime(format!(
                        "{host}: no answer: {error}. Whether it was done is not known: look, or do it \
                         again"
                    )));
                }
                Err(error) => error.into(),
            };
            match refusal {
                Refusal::NotNow(reason) => why.push(format!("{host}: {reason}")),
                Refusal::Final(failure) => return Err(failure),
            }
        }
        Err(none_answers(&why))
    }
}

/// Asks one node for an answer that goes on.
///
/// # Errors
/// Where it does not give one.
pub(crate) async fn open(
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Lines, Refusal> {
    let lines = Client::new(host, SILENCE).lines(path, headers).await?;
    if lines.status.is_success() {
        return Ok(lines);
    }
    Err(Refusal::of(&lines.into_reply().await?))
}

/// The failure of a command for which nobody was found.
pub(crate) fn none_answers(why: &[String]) -> Failure {
    Failure::runtime(format!("no node did it:\n  {}", why.join("\n  ")))
}

/// Text as a part of a path or a query.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
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

/// Reads an answer's JSON.
///
/// # Errors
/// Where it is something else.
pub(crate) fn read<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(text).context(|| format!("the node answered something else than {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_node() {
        let host = |url: &str| hosts(&Target::Url(url.to_owned())).map(|hosts| hosts[0].clone());
        assert_eq!(host("http://a:1/").unwrap(), "a:1");
        assert_eq!(host("a:1").unwrap(), "a:1");
        assert!(host("http://a:1/v1").is_err());
        assert!(host("").is_err());
    }

    #[test]
    fn what_passes_is_tried_elsewhere() {
        let refusal = |status: u16| {
            let text = r#"{"type":"t","title":"T","status":S,"detail":"d","code":"c","lsn":1}"#;
            let text = text.replace('S', &status.to_string());
            serde_json::from_str::<Problem>(&text).unwrap().refusal()
        };
        assert!(matches!(refusal(503), Refusal::NotNow(text) if text == "T (c): d"));
        assert!(matches!(refusal(429), Refusal::NotNow(_)));
        for status in [400, 404, 410, 422, 504] {
            assert!(matches!(refusal(status), Refusal::Final(_)), "{status}");
        }
    }
}
