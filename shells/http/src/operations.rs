//! Liveness, readiness, metrics.

use std::fmt::Write;

use axum::{
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use highwater_node::api::{GroupMetrics, Metrics, Readiness, SlotCounts};
use serde::Serialize;

use crate::{
    App,
    extract::{Call, JSON, Spec, TEXT, json},
    problem::{Code, Problem},
};

const SPEC: Spec = Spec { params: &[], answers: JSON, preconditions: false };
const METRICS: Spec = Spec { params: &[], answers: TEXT, preconditions: false };

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    state: String,
    reasons: Vec<String>,
}

/// `GET /healthz`: the process runs and answers.
pub(crate) async fn healthz(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let _ = Call::new(app, request, SPEC)?;
    json(&Alive { status: "ok" })
}

/// `GET /readyz`: the node has recovered and is not knowingly behind.
pub(crate) async fn readyz(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SPEC)?;
    let Some(node) = call.app.slot.get() else {
        let reason = "the node is recovering its log".to_owned();
        return Err(Problem::new(Code::NotReady, reason.clone())
            .readiness("recovering".to_owned(), vec![reason]));
    };
    let Readiness { state, reasons } = call.within(node.readiness()).await?;
    if reasons.is_empty() {
        return json(&Ready { ready: true, state, reasons });
    }
    let code = if state == "draining" { Code::Draining } else { Code::NotReady };
    Err(Problem::new(code, reasons.join("; ")).readiness(state, reasons))
}

/// `GET /metrics`, in Prometheus' text format.
pub(crate) async fn metrics(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, METRICS)?;
    let metrics = call.within(call.node()?.metrics()).await?;
    let mut response = render(&metrics).into_response();
    let headers = response.headers_mut();
    headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn render(metrics: &Metrics) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, u64)>| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let one = |value: u64| vec![(String::new(), value)];
    family(
        "highwater_oplog_syncs_total",
        "counter",
        "fdatasyncs of the oplog.",
        one(metrics.oplog_syncs),
    );
    family(
        "highwater_writes_acked_total",
        "counter",
        "Writes acknowledged to clients of this node.",
        vec![("{durability=\"quorum\"}".to_owned(), metrics.writes_acked)],
    );
    family(
        "highwater_replayed_total",
        "counter",
        "Writes answered with the outcome of an earlier request with the same Idempotency-Key.",
        one(metrics.writes_replayed),
    );
    family(
        "highwater_elections_total",
        "counter",
        "Elections that this node started.",
        one(metrics.elections),
    );
    family(
        "highwater_apply_errors_total",
        "counter",
        "Committed entries that could not be applied here.",
        one(metrics.apply_errors),
    );
    family(
        "highwater_scrubbed_bytes_total",
        "counter",
        "Bytes of states that the scrub has read.",
        one(metrics.scrubbed_bytes),
    );
    family(
        "highwater_scrub_failures_total",
        "counter",
        "Passes of the scrub that found a state that is not what was written, or could not read it.",
        one(metrics.scrub_failures),
    );
    family(
        "highwater_snapshot_bytes_total",
        "counter",
        "Bytes of snapshots that bring replicas up to date, from other nodes and to them.",
        vec![
            ("{direction=\"received\"}".to_owned(), metrics.snapshot_bytes_received),
            ("{direction=\"given\"}".to_owned(), metrics.snapshot_bytes_given),
        ],
    );
    // Database names need no escaping: see `names`.
    let leads = metrics
        .groups
        .iter()
        .map(|group| (format!("{{database=\"{}\"}}", group.database), u64::from(group.leader)));
    family(
        "highwater_is_leader",
        "gauge",
        "1 where this node leads the database.",
        leads.collect(),
    );
    let marks = metrics.groups.iter().flat_map(|group| {
        group.watermarks.iter().map(|(mark, lsn)| {
            (format!("{{database=\"{}\",mark=\"{mark}\"}}", group.database), *lsn)
        })
    });
    family("highwater_watermark", "gauge", "Watermarks of this replica, as LSNs.", marks.collect());
    let of_each = |value: fn(&GroupMetrics) -> Option<u64>| {
        let label = |group: &GroupMetrics| format!("{{database=\"{}\"}}", group.database);
        let rows = metrics.groups.iter().filter_map(|group| Some((label(group), value(group)?)));
        rows.collect::<Vec<_>>()
    };
    family(
        "highwater_divergences_total",
        "counter",
        "How often this replica was found not to be what a majority is.",
        of_each(|group| Some(group.divergences)),
    );
    family(
        "highwater_verified_lsn",
        "gauge",
        "The last audit at which this replica was what a majority is.",
        of_each(|group| Some(group.verified?.lsn.0)),
    );
    family(
        "highwater_verified_timestamp_seconds",
        "gauge",
        "When that was known.",
        of_each(|group| Some(group.verified?.at_ms / 1000)),
    );
    family(
        "highwater_scrubbed_timestamp_seconds",
        "gauge",
        "When the scrub has last read all of this replica's state.",
        of_each(|group| Some(group.scrubbed_ms? / 1000)),
    );
    let labelled = |label: &str, values: fn(&GroupMetrics) -> Vec<(&'static str, u64)>| {
        let rows = metrics.groups.iter().flat_map(|group| {
            let row = |(name, value)| {
                (format!("{{database=\"{}\",{label}=\"{name}\"}}", group.database), value)
            };
            values(group).into_iter().map(row).collect::<Vec<_>>()
        });
        rows.collect::<Vec<_>>()
    };
    family(
        "highwater_resyncs_total",
        "counter",
        "Replicas that were behind and were brought up to date: others from this one's log, while it \
         led (partial), and this one by a snapshot (full).",
        labelled("kind", |group| {
            vec![("partial", group.resyncs.partial), ("full", group.resyncs.full)]
        }),
    );
    family(
        "highwater_slots",
        "gauge",
        "Slots by their state. One that is at risk is past three quarters of a limit.",
        labelled("state", |group| {
            let of = |slots: SlotCounts| {
                let SlotCounts { active, at_risk, invalidated } = slots;
                vec![("active", active), ("at_risk", at_risk), ("invalidated", invalidated)]
            };
            group.slots.map(of).unwrap_or_default()
        }),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_core::{Lsn, Resyncs, Root, Verified};

    #[test]
    fn metrics_are_prometheus_text() {
        let text = render(&Metrics {
            oplog_syncs: 3,
            writes_acked: 2,
            writes_replayed: 4,
            elections: 1,
            scrubbed_bytes: 9,
            scrub_failures: 1,
            snapshot_bytes_given: 12,
            snapshot_bytes_received: 0,
            apply_errors: 0,
            groups: vec![GroupMetrics {
                verified: Some(Verified { lsn: Lsn(3), root: Root(7), at_ms: 5_999 }),
                divergences: 8,
                scrubbed_ms: Some(4_000),
                database: "db".to_owned(),
                leader: true,
                watermarks: [
                    ("first", 1),
                    ("appended", 6),
                    ("durable", 5),
                    ("committed", 4),
                    ("applied", 3),
                    ("checkpointed", 2),
                ],
                slots: Some(SlotCounts { at_risk: 1, ..SlotCounts::default() }),
                resyncs: Resyncs { partial: 2, full: 6 },
                ..GroupMetrics::default()
            }],
        });
        for line in [
            "# TYPE highwater_oplog_syncs_total counter",
            "highwater_oplog_syncs_total 3",
            "highwater_writes_acked_total{durability=\"quorum\"} 2",
            "highwater_replayed_total 4",
            "highwater_elections_total 1",
            "highwater_apply_errors_total 0",
            "highwater_is_leader{database=\"db\"} 1",
            "highwater_watermark{database=\"db\",mark=\"committed\"} 4",
            "highwater_scrubbed_bytes_total 9",
            "highwater_scrub_failures_total 1",
            "highwater_snapshot_bytes_total{direction=\"given\"} 12",
            "highwater_divergences_total{database=\"db\"} 8",
            "highwater_verified_lsn{database=\"db\"} 3",
            "highwater_verified_timestamp_seconds{database=\"db\"} 5",
            "highwater_scrubbed_timestamp_seconds{database=\"db\"} 4",
            "highwater_resyncs_total{database=\"db\",kind=\"partial\"} 2",
            "highwater_resyncs_total{database=\"db\",kind=\"full\"} 6",
            "highwater_slots{database=\"db\",state=\"at_risk\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with('\n'));
    }
}
