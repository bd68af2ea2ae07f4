//! What was measured of writes, for people and as JSON.

use std::fmt;

use serde::Serialize;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) settings: String,
    /// The disk's own: 4 KiB into a preallocated file; before and after the rest.
    pub(crate) fdatasync_per_s: [u64; 2],
    pub(crate) idle: Idle,
    /// How many databases there are in `idle_many`.
    pub(crate) databases: usize,
    pub(crate) idle_many: Idle,
    pub(crate) writes: Vec<Writes>,
    /// Whether the same node led from the first write to the last: no false election.
    pub(crate) leader_stayed: bool,
    pub(crate) failover: Failover,
}

/// Three nodes that nobody asks for anything.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    /// Of one core, for each node.
    pub(crate) cpu_percent: Vec<f64>,
    pub(crate) rss_mib: Vec<f64>,
}

/// One run of the load.
#[derive(Debug, Serialize)]
pub(crate) struct Writes {
    pub(crate) connections: usize,
    pub(crate) per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) errors: u64,
    /// On the leader.
    pub(crate) acks_per_fdatasync: f64,
    /// Of all three nodes.
    pub(crate) server_cpu_s_per_100k: f64,
    pub(crate) load_cpu_s: f64,
    /// Of all three nodes, afterwards.
    pub(crate) rss_mib: f64,
}

/// Runs of `highwater demo`.
#[derive(Debug, Serialize)]
pub(crate) struct Failover {
    pub(crate) median_ms: u64,
    /// The longest time between two acknowledgements, sorted.
    pub(crate) gaps_ms: Vec<u64>,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[f64]| {
            let texts: Vec<String> = numbers.iter().map(|number| format!("{number:.1}")).collect();
            texts.join(", ")
        };
        write!(
            f,
            "{:.1} % of one core together ({}); RSS {} MiB",
            self.cpu_percent.iter().sum::<f64>(),
            list(&self.cpu_percent),
            list(&self.rss_mib),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.settings)?;
        let [before, after] = self.fdatasync_per_s;
        writeln!(
            f,
            "\nThe disk's own fdatasync/s (4 KiB, preallocated): {before} before, {after} after\n"
        )?;
        writeln!(
            f,
            "| connections | durable PUTs/s | p50 ms | p99 ms | max ms | errors | acks per \
             fdatasync | server CPU-s per 100 k | load CPU-s | RSS of all MiB |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &self.writes {
            writeln!(
                f,
                "| {} | {:.0} | {:.2} | {:.2} | {:.1} | {} | {:.1} | {:.1} | {:.1} | {:.0} |",
                row.connections,
                row.per_s,
                row.p50_ms,
                row.p99_ms,
                row.max_ms,
                row.errors,
                row.acks_per_fdatasync,
                row.server_cpu_s_per_100k,
                row.load_cpu_s,
                row.rss_mib,
            )?;
        }
        let stayed = if self.leader_stayed { "no false election" } else { "THE LEADER CHANGED" };
        writeln!(f, "\nUnder this load: {stayed}")?;
        writeln!(f, "Idle, fresh, three nodes: {}", self.idle)?;
        writeln!(f, "Idle, after the load, with {} databases: {}", self.databases, self.idle_many)?;
        let Failover { median_ms, gaps_ms } = &self.failover;
        writeln!(
            f,
            "Failover, longest gap between two acknowledgements: median {median_ms} ms of {gaps_ms:?}"
        )
    }
}
