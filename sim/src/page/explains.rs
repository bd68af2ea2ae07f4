//! Whether the page of a run explains what was found: with a planted fault the cause is known.

use super::{
    What,
    chain::{Chain, explain},
    html,
    story::Story,
};
use crate::{report::Report, trace::Kind};

/// How many lines the page of a run has that shows a planted fault.
///
/// # Errors
/// What the page lacks: the oracle, the event at which it fired, or, in the chain that leads there, a
/// step at which the planted fault acted.
pub(crate) fn explains(report: &Report) -> Result<usize, String> {
    let (Some(finding), Some(story)) = (&report.finding, &report.story) else {
        return Err("nothing was found, or no story kept".to_owned());
    };
    let chain = explain(story, finding);
    let about = html::About {
        title: format!("seed {}", report.seed),
        replay: String::new(),
        nodes: &[],
        finding: Some(finding),
        chain: &chain,
        window_ns: 1_000_000_000,
    };
    let page = html::render(story, &about);
    let event = story.found.as_ref().map(|found| found.at).unwrap_or_default();
    if !page.contains(&format!("\"oracle\":\"{}\"", finding.oracle)) {
        return Err("the page does not name the oracle".to_owned());
    }
    if !page.contains(&format!("\"event\":{event},")) {
        return Err("the page does not name the event".to_owned());
    }
    if !shows_an_act(story, &chain) {
        let last = story.acts.last().map(|(act, node)| {
            let at_ns = story.records.get(*act).map_or(0, |record| record.at_ns);
            format!(", last on {node:?} at {:.6} s", at_ns as f64 / 1e9)
        });
        let (times, last) = (story.acts.len(), last.unwrap_or_default());
        return Err(format!("its chain has no step at which the fault acted, {times} times{last}"));
    }
    Ok(chain.links.len())
}

/// Whether the chain has an event of a node from between the two driver steps where the planted fault
/// had its chance there, the later one included; or from the end of its process. Outside of a core it
/// may be the earlier one's effects that are carried out: that one counts as well.
fn shows_an_act(story: &Story, chain: &Chain) -> bool {
    let records = &story.records;
    story.acts.iter().any(|(act, node)| {
        let here = |id: &usize| records[*id].node == *node;
        let is_step = |id: &usize| records[*id].what == What::Step;
        let ends = |id: &usize| is_step(id) || records[*id].what == What::Traced(Kind::Fault);
        let before = (0..*act).rev().filter(here).find(is_step);
        let from = before.map_or(0, |step| step + usize::from(is_step(act)));
        let end = (*act..records.len()).filter(here).find(ends);
        let upto = end.unwrap_or(records.len() - 1);
        chain.ids.range(from..=upto).any(here)
    })
}
