//! The page of real findings: of every planted fault, the first seed that shows it.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use highwater_core::planted::{self, Planted};

use super::{
    What,
    chain::{Chain, explain},
    html,
    story::Story,
};
use crate::{
    report::Report,
    run::{Settings, run_seed},
    trace::{Keep, Kind},
    world::{Finding, Subject},
};

/// Where a planted fault must have shown itself.
const SEEDS: u64 = 300;

fn told() -> Settings {
    Settings { keep: Keep { story: true, ..Keep::default() }, ..Settings::default() }
}

#[test]
fn a_page_changes_nothing() {
    let plain = Settings { until_ns: Some(8_000_000_000), ..Settings::default() };
    let (one, other) = (run_seed(3, plain), run_seed(3, Settings { keep: told().keep, ..plain }));
    assert_eq!((one.hash, one.events), (other.hash, other.events));
    assert_eq!(one.stats, other.stats);
    assert!(one.story.is_none());
    assert!(other.story.is_some_and(|story| story.records.len() as u64 > other.events));
}

/// Whose findings the page is held to explain: those that ordinary seeds show soon.
const EXPLAINED: [Planted; 7] = [
    Planted::AckBeforeFsync,
    Planted::VoteNotPersisted,
    Planted::OldTermCommit,
    Planted::ReadWithoutQuorum,
    Planted::ResendAfterAppend,
    Planted::BlindVote,
    Planted::TimeoutAsFailure,
];

#[test]
fn planted_faults_are_explained() {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(fault) = EXPLAINED.get(next.fetch_add(1, Ordering::Relaxed)) {
                    planted::set(Some(*fault));
                    match explains() {
                        Ok(how) => println!("{fault:?}: {how}"),
                        Err(what) => wrong.lock().unwrap().push(format!("{fault:?}: {what}")),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the page of the first seed that shows the planted fault explains it.
fn explains() -> Result<String, String> {
    let fails = |seed: &u64| run_seed(*seed, Settings::default()).finding.is_some();
    let seed = (0..SEEDS).find(fails).ok_or("not caught")?;
    let report = run_seed(seed, told());
    let (Some(finding), Some(story)) = (&report.finding, &report.story) else {
        return Err(format!("seed {seed} fails without a story only"));
    };
    let chain = explain(story, finding);
    let page = page(&report, finding, story, &chain);
    let event = story.found.as_ref().map(|found| found.at).unwrap_or_default();
    let why = if !page.contains(&format!("\"oracle\":\"{}\"", finding.oracle)) {
        "the page does not name the oracle"
    } else if !page.contains(&format!("\"event\":{event},")) {
        "the page does not name the event"
    } else if !shows_an_act(story, &chain) {
        "the chain has no step at which the fault acted"
    } else {
        return Ok(format!("seed {seed}, {}, {} lines", finding.oracle, chain.links.len()));
    };
    let lines: Vec<&str> = chain.links.iter().map(|link| link.line.as_str()).collect();
    Err(format!("seed {seed}, {}: {}: {why}: {lines:#?}", finding.oracle, finding.what))
}

fn page(report: &Report, finding: &Finding, story: &Story, chain: &Chain) -> String {
    let about = html::About {
        title: format!("seed {}", report.seed),
        replay: String::new(),
        nodes: &[],
        finding: Some(finding),
        chain,
        window_ns: 1_000_000_000,
    };
    html::render(story, &about)
}

/// Whether the chain has an event of a node and a driver step at which the planted fault had its
/// chance. What happens between two steps belongs to the later one, or to the end of the process.
fn shows_an_act(story: &Story, chain: &Chain) -> bool {
    story.acts.iter().any(|act| {
        let node = story.records[*act].node;
        let here = |id: &usize| story.records[*id].node == node;
        let ends =
            |id: &usize| matches!(story.records[*id].what, What::Step | What::Traced(Kind::Fault));
        let end = (*act..story.records.len()).filter(here).find(ends);
        let upto = end.unwrap_or(story.records.len() - 1);
        node.0 > 0 && chain.ids.range(*act..=upto).any(here)
    })
}

#[test]
fn a_page_escapes_what_it_shows() {
    let nasty = "</script><script>alert(1)</script> & \u{2028} \"";
    let mut story = Story::default();
    story.panics(nasty);
    let subject = Subject::default();
    let finding = Finding { oracle: "assertion", what: nasty.to_owned(), subject, at_ns: 0 };
    let chain = explain(&story, &finding);
    let about = html::About {
        title: nasty.to_owned(),
        replay: nasty.to_owned(),
        nodes: &[],
        finding: Some(&finding),
        chain: &chain,
        window_ns: 0,
    };
    let page = html::render(&story, &about);
    assert!(!page.contains("<script>alert"), "{page}");
    assert!(page.contains("\\u003c/script>\\u003cscript>alert(1)"));
    assert!(page.contains("<title>&lt;/script&gt;"));
}
