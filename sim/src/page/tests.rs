//! The page of a real run.

use highwater_core::planted::{self, Planted};

use super::{chain::explain, explains::explains, html, story::Story};
use crate::{
    run::{Settings, run_seed},
    trace::Keep,
    world::{Finding, Subject},
};

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

/// The other planted faults are held to it by `planted`.
#[test]
fn a_page_explains_a_planted_fault_and_nothing_else() {
    planted::set(Some(Planted::AckBeforeFsync));
    let mut report = run_seed(0, told());
    explains(&report).unwrap();
    let story = report.story.as_mut().unwrap();
    story.acts.retain(|(act, _)| *act < 10);
    assert!(explains(&report).is_err());
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
