//! Messages in a few words, and what each says of a group's log.

use highwater_core::{Entry, GroupId, GroupMessage, Message, Position, Term};
use highwater_wire::peer::{ForwardReply, ForwardRequest, PeerMessage, SlotAsk, SnapshotAsk};

use super::{About, Fact};

/// A message as a reader wants it.
#[derive(Clone, Debug)]
pub(crate) struct Brief {
    /// The name of its kind.
    pub(crate) name: &'static str,
    /// The one group that it is about.
    pub(crate) group: Option<GroupId>,
    pub(crate) text: String,
    pub(crate) facts: Vec<Fact>,
}

/// A run of LSNs.
pub(crate) fn run(from: u64, to: u64) -> String {
    if from == to { format!("l{from}") } else { format!("l{from}..l{to}") }
}

fn entries_run(entries: &[Entry]) -> Option<(u64, u64)> {
    Some((entries.first()?.lsn.0, entries.last()?.lsn.0))
}

/// What a page says of a message.
pub(crate) fn brief(message: &PeerMessage) -> Brief {
    let plain = |name, text| Brief { name, group: None, text, facts: Vec::new() };
    match message {
        PeerMessage::Core(message) => brief_core(message),
        PeerMessage::Forward { request, budget_us, .. } => {
            let (group, what) = match request {
                ForwardRequest::Propose { group, payload, once } => {
                    let once = if once.is_some() { " once" } else { "" };
                    (*group, format!("propose {} bytes{once} to {group:?}", payload.len()))
                }
                ForwardRequest::CreateDatabase { name } => {
                    (GroupId::SYSTEM, format!("create {name}"))
                }
                ForwardRequest::Transfer { group, to } => {
                    (*group, format!("transfer {group:?} to {to:?}"))
                }
                ForwardRequest::Slot { group, name, ask } => {
                    (*group, format!("{} in {group:?}", slot_words(name, ask)))
                }
            };
            let text = format!("{what}, within {} ms", budget_us / 1_000);
            Brief { group: Some(group), ..plain("Forward", text) }
        }
        PeerMessage::ForwardReply { reply, .. } => {
            let what = match reply {
                ForwardReply::Applied { lsn, term, outcome, replayed } => {
                    let refused = if outcome.refused { ", refused" } else { "" };
                    let replayed = if *replayed { ", replayed" } else { "" };
                    format!("applied at {lsn:?} of {term:?}{refused}{replayed}")
                }
                other => format!("{other:?}"),
            };
            plain("ForwardReply", what)
        }
        PeerMessage::SnapshotAsk { group, ask } => {
            let text = match ask {
                SnapshotAsk::Above(lsn) => format!("a snapshot of {group:?} at {lsn:?} or later"),
                SnapshotAsk::Block { id, number, .. } => {
                    format!("block {number} of the snapshot of {group:?} at {:?}", id.at.lsn)
                }
            };
            Brief { group: Some(*group), ..plain("SnapshotAsk", text) }
        }
        PeerMessage::SnapshotBlock { group, id, number, blocks, .. } => {
            let at = id.at.lsn;
            let text = format!("block {number} of {blocks} of the snapshot of {group:?} at {at:?}");
            Brief { group: Some(*group), ..plain("SnapshotBlock", text) }
        }
        PeerMessage::SnapshotNone { group, reason } => {
            let text = format!("no snapshot of {group:?}: {reason}");
            Brief { group: Some(*group), ..plain("SnapshotNone", text) }
        }
        PeerMessage::StatusQuery { id } => plain("StatusQuery", format!("#{id}")),
        PeerMessage::StatusReply { id, .. } => plain("StatusReply", format!("#{id}")),
    }
}

fn brief_core(message: &Message) -> Brief {
    let plain = |name, text| Brief { name, group: None, text, facts: Vec::new() };
    match message {
        Message::Heartbeat { generation, .. } => {
            plain("Heartbeat", format!("generation {generation}"))
        }
        Message::Confirm { groups } => plain("Confirm", format!("do you lead {groups:?}?")),
        Message::Confirmed { leading, ceased } => {
            plain("Confirmed", format!("leads {leading:?}, not {ceased:?}"))
        }
        Message::FormProbe => plain("FormProbe", String::new()),
        Message::FormBlank { .. } => plain("FormBlank", String::new()),
        Message::Formed(_) => plain("Formed", String::new()),
        Message::Recall { from } => plain("Recall", format!("from {from:?} on")),
        Message::Recalled { groups, .. } => plain("Recalled", format!("{groups:?}")),
        Message::Group { group, term, message } => brief_group(*group, *term, message),
    }
}

fn brief_group(group: GroupId, term: Term, message: &GroupMessage) -> Brief {
    let last = |p: &Position| format!("last {:?} of {:?}", p.lsn, p.term);
    let mut facts = Vec::new();
    let vote = Fact::of_term(About::Ballot, group, term);
    let (name, what) = match message {
        GroupMessage::PreVote { last: position } => ("PreVote", last(position)),
        GroupMessage::PreVoteReply { granted } => ("PreVoteReply", granted_or_not(*granted)),
        GroupMessage::Vote { last: position, transfer } => {
            facts.push(vote);
            ("Vote", last(position) + if *transfer { ", handed over" } else { "" })
        }
        GroupMessage::VoteReply { granted } => {
            facts.extend(granted.then_some(vote));
            ("VoteReply", granted_or_not(*granted))
        }
        GroupMessage::Append { prev, entries, committed, round } => {
            let what = match entries_run(entries) {
                Some((from, to)) => {
                    facts.push(Fact::new(About::Entry, group, term, from, to));
                    format!("{} after {:?} of {:?}", run(from, to), prev.lsn, prev.term)
                }
                None => format!("nothing after {:?} of {:?}", prev.lsn, prev.term),
            };
            ("Append", format!("{what}, committed {committed:?}, round {round}"))
        }
        GroupMessage::AppendAccepted { durable, round } => {
            ("AppendAccepted", format!("durable {durable:?}, round {round}"))
        }
        GroupMessage::AppendRejected { hint, .. } => {
            ("AppendRejected", format!("try after {hint:?}"))
        }
        GroupMessage::ReadIndex { id } => ("ReadIndex", format!("#{id}")),
        GroupMessage::ReadIndexReply { id, lsn } => {
            let index = lsn.map_or("does not lead".to_owned(), |lsn| format!("{lsn:?}"));
            ("ReadIndexReply", format!("#{id}: {index}"))
        }
        GroupMessage::TimeoutNow => {
            facts.push(Fact::of_term(About::Ballot, group, term.next()));
            ("TimeoutNow", "campaign at once".to_owned())
        }
        GroupMessage::Pruned { base, committed, round } => {
            let base = format!("the log begins after {:?} of {:?}", base.lsn, base.term);
            ("Pruned", format!("{base}, committed {committed:?}, round {round}"))
        }
        GroupMessage::Root { lsn, root } => ("Root", format!("{root:?} at {lsn:?}")),
        GroupMessage::Verified { lsn, root } => ("Verified", format!("{root:?} at {lsn:?}")),
        GroupMessage::Fetch { from, to } => ("Fetch", run(from.0, to.0)),
        GroupMessage::Fetched { from, entries } => match entries_run(entries) {
            Some((from, to)) => {
                facts.push(Fact::new(About::Entry, group, term, from, to));
                ("Fetched", run(from, to))
            }
            None => ("Fetched", format!("nothing from {from:?}")),
        },
    };
    Brief { name, group: Some(group), text: format!("{group:?} {term:?}: {what}"), facts }
}

fn granted_or_not(granted: bool) -> String {
    if granted { "granted" } else { "refused" }.to_owned()
}

/// What is asked of a slot.
pub(super) fn slot_words(name: &str, ask: &SlotAsk) -> String {
    match ask {
        SlotAsk::Create(_) => format!("create slot {name}"),
        SlotAsk::Ack(lsn) => format!("acknowledge {lsn:?} for slot {name}"),
        SlotAsk::Delete => format!("delete slot {name}"),
    }
}
