//! The page: one file that needs nothing else, for a person with a failing seed.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::NodeId;
use serde_json::{Value, json};

use super::{Id, Point, Record, What, chain::Chain, story::Story};
use crate::{trace::Kind, world::Finding};

/// What a page says beside the story.
pub(crate) struct About<'a> {
    pub(crate) title: String,
    /// The command line that brings the run about.
    pub(crate) replay: String,
    pub(crate) nodes: &'a [NodeId],
    pub(crate) finding: Option<&'a Finding>,
    pub(crate) chain: &'a Chain,
    /// So long before the end everything is shown.
    pub(crate) window_ns: u64,
}

/// No more records than this are shown in full, whatever the window.
const RECORDS_MAX: usize = 60_000;
/// Outside of the window a watermark is shown once in this time.
const COARSE_NS: u64 = 50_000_000;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("diagram.js"), "\n", include_str!("panel.js"));

/// Renders the page.
pub(crate) fn render(story: &Story, about: &About<'_>) -> String {
    // In a script element only `<` could end it.
    let data = data(story, about).to_string().replace('<', "\\u003c");
    let mut page = String::with_capacity(data.len() + PAGE.len() + STYLE.len() + SCRIPT.len());
    let parts = BTreeMap::from([
        ("title", escape(&about.title)),
        ("style", STYLE.to_owned()),
        ("script", SCRIPT.to_owned()),
        ("data", data),
    ]);
    for piece in PAGE.split("{{") {
        match piece.split_once("}}") {
            Some((name, rest)) => {
                page.push_str(parts.get(name).map_or("", String::as_str));
                page.push_str(rest);
            }
            None => page.push_str(piece),
        }
    }
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn data(story: &Story, about: &About<'_>) -> Value {
    let end_ns = match (about.finding, story.records.last()) {
        (Some(finding), _) => finding.at_ns,
        (None, Some(last)) => last.at_ns,
        (None, None) => 0,
    };
    let (kept, from_ns) = keep(story, about, end_ns);
    json!({
        "title": about.title,
        "replay": about.replay,
        "nodes": about.nodes.iter().map(|node| node.0).collect::<Vec<_>>(),
        "groups": groups(story),
        "end": end_ns,
        "last": story.records.last().map_or(0, |record| record.at_ns),
        "window": from_ns,
        "total": story.records.len(),
        "finding": about.finding.map(|finding| finding_json(story, finding, about.chain)),
        "chain": chain_json(story, about.chain),
        "marked": about.chain.ids.iter().filter(|id| kept.contains(id)).collect::<Vec<_>>(),
        "events": kept.iter().map(|id| event(story, *id, &kept)).collect::<Vec<_>>(),
        "series": story.series.iter().map(|((node, group), points)| json!({
            "node": node.0,
            "group": group.0,
            "points": series(points, from_ns),
        })).collect::<Vec<_>>(),
        "spans": story.spans.iter().map(|span| json!({
            "kind": span.kind.name(),
            "nodes": span.nodes.iter().map(|node| node.0).collect::<Vec<_>>(),
            "text": span.text,
            "from": span.from_ns,
            "to": span.to_ns,
        })).collect::<Vec<_>>(),
    })
}

/// The finding and its chain, as `replay --json` prints them.
pub(crate) fn summary(story: &Story, finding: &Finding, chain: &Chain) -> Value {
    json!({
        "finding": finding_json(story, finding, chain),
        "chain": chain_json(story, chain),
        "faults_meanwhile": chain.faults.iter().map(|at| {
            let span = &story.spans[*at];
            json!({ "from": span.from_ns, "to": span.to_ns, "text": span.text })
        }).collect::<Vec<_>>(),
    })
}

fn finding_json(story: &Story, finding: &Finding, chain: &Chain) -> Value {
    let subject = &chain.subject;
    json!({
        "oracle": finding.oracle,
        "what": finding.what,
        "at": finding.at_ns,
        "id": story.found.as_ref().map(|found| found.record),
        "event": story.found.as_ref().map(|found| found.at),
        "nodes": subject.nodes.iter().map(|node| node.0).collect::<Vec<_>>(),
        "group": subject.group.map(|group| group.0),
        "term": subject.term.map(|term| term.0),
        "lsns": subject.lsns.map(|(from, to)| [from.0, to.0]),
        "faults": chain.faults,
    })
}

fn chain_json(story: &Story, chain: &Chain) -> Value {
    let links = chain.links.iter().map(|link| {
        let record = &story.records[link.id];
        json!({
            "id": link.id,
            "at": record.at_ns,
            "node": record.node.0,
            "tag": link.tag,
            "line": link.line,
        })
    });
    links.collect()
}

fn groups(story: &Story) -> Vec<Value> {
    let all: BTreeSet<_> = story.series.keys().map(|(_, group)| *group).collect();
    let name = |group| story.databases.get(group).map_or("system", String::as_str);
    all.iter().map(|group| json!({ "id": group.0, "name": name(group) })).collect()
}

/// What is shown, and from when on that is everything.
fn keep(story: &Story, about: &About<'_>, end_ns: u64) -> (BTreeSet<Id>, u64) {
    let from_ns = end_ns.saturating_sub(about.window_ns);
    let mut first = story.records.partition_point(|record| record.at_ns < from_ns);
    let mut kept: BTreeSet<Id> = about.chain.ids.clone();
    let all = story.records.len();
    let marks = (0..all).filter(|id| is_landmark(&story.records[*id]));
    kept.extend(marks);
    let shown = |id: &Id| !is_noise(&story.records[*id]);
    let count = (first..all).filter(shown).count();
    if count > RECORDS_MAX {
        let skipped = (first..all).filter(shown).nth(count - RECORDS_MAX);
        first = skipped.unwrap_or(first);
    }
    kept.extend((first..all).filter(shown));
    (kept, story.records.get(first).map_or(from_ns, |record| record.at_ns.min(end_ns)))
}

/// What is shown of the whole run.
fn is_landmark(record: &Record) -> bool {
    matches!(
        record.what,
        What::Traced(Kind::Fault | Kind::Process | Kind::Leader) | What::Pause | What::Resume
    )
}

/// What redb does to its file byte by byte, reads, and the packets that carry messages explain
/// nothing.
fn is_noise(record: &Record) -> bool {
    matches!(
        record.what,
        What::Traced(
            Kind::StateRead
                | Kind::StateWrite
                | Kind::LogRead
                | Kind::DatagramSend
                | Kind::DatagramDeliver
        )
    )
}

/// As an array: the page has tens of thousands of them.
fn event(story: &Story, id: Id, kept: &BTreeSet<Id>) -> Value {
    let record = &story.records[id];
    let carried = record.what == What::Traced(Kind::Deliver);
    // An arrival says what its sending says.
    let said = carried
        && record
            .causes
            .first()
            .is_some_and(|sent| kept.contains(sent) && story.records[*sent].text == record.text);
    json!([
        id,
        record.at_ns,
        record.what.name(),
        record.node.0,
        record.peer.map_or(0, |peer| peer.0),
        record.name,
        if said { "" } else { &record.text },
        record.groups.iter().map(|group| group.0).collect::<Vec<_>>(),
        record.causes.iter().filter(|cause| kept.contains(cause)).collect::<Vec<_>>(),
    ])
}

/// Changes of a replica as flat numbers, thinned before the window.
fn series(points: &[Point], from_ns: u64) -> Vec<u64> {
    let mut flat = Vec::new();
    let mut before: Option<&Point> = None;
    for (i, point) in points.iter().enumerate() {
        let next_ns = points.get(i + 1).map_or(u64::MAX, |next| next.at_ns);
        let turns = before.is_none_or(|b| (b.role, b.term) != (point.role, point.term));
        let stays = next_ns / COARSE_NS != point.at_ns / COARSE_NS;
        if turns || stays || point.at_ns >= from_ns {
            let Point { at_ns, role, term, appended, durable, committed, applied } = point;
            flat.extend([*at_ns, u64::from(*role), term.0]);
            flat.extend([appended.0, durable.0, committed.0, applied.0]);
            before = Some(point);
        }
    }
    flat
}
