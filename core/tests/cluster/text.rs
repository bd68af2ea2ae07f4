//! How transcripts speak of what happens.

use std::fmt::Write;

use bytes::Bytes;
use highwater_core::{
    Base, Effect, Entry, GroupId, GroupMessage, GroupView, Input, Kind, Lsn, Message, Notice,
    OnceEntry, Position, Record, Reject, Reply, RoleView, SlotChange, SlotEntry, SlotView, Term,
};

/// A message's name.
pub(crate) fn kind(message: &Message) -> &'static str {
    match message {
        Message::Heartbeat { .. } => "Heartbeat",
        Message::Confirm { .. } => "Confirm",
        Message::Confirmed { .. } => "Confirmed",
        Message::FormProbe => "FormProbe",
        Message::FormBlank { .. } => "FormBlank",
        Message::Formed(_) => "Formed",
        Message::Recall { .. } => "Recall",
        Message::Recalled { .. } => "Recalled",
        Message::Group { message, .. } => match message {
            GroupMessage::PreVote { .. } => "PreVote",
            GroupMessage::PreVoteReply { .. } => "PreVoteReply",
            GroupMessage::Vote { .. } => "Vote",
            GroupMessage::VoteReply { .. } => "VoteReply",
            GroupMessage::Append { .. } => "Append",
            GroupMessage::AppendAccepted { .. } => "AppendAccepted",
            GroupMessage::AppendRejected { .. } => "AppendRejected",
            GroupMessage::ReadIndex { .. } => "ReadIndex",
            GroupMessage::ReadIndexReply { .. } => "ReadIndexReply",
            GroupMessage::TimeoutNow => "TimeoutNow",
            GroupMessage::Fetch { .. } => "Fetch",
            GroupMessage::Fetched { .. } => "Fetched",
            GroupMessage::Pruned { .. } => "Pruned",
            GroupMessage::Root { .. } => "Root",
            GroupMessage::Verified { .. } => "Verified",
        },
    }
}

/// What a message is about, to be shown or not.
pub(crate) fn topic(message: &Message) -> &'static str {
    match kind(message) {
        "Heartbeat" => "heartbeats",
        "Confirm" | "Confirmed" => "confirms",
        "FormProbe" | "FormBlank" | "Formed" => "formation",
        "Append" | "AppendAccepted" | "AppendRejected" | "Pruned" => "appends",
        "ReadIndex" | "ReadIndexReply" => "reads",
        "Recall" | "Recalled" => "recalls",
        "Fetch" | "Fetched" => "fetches",
        "Root" | "Verified" => "audits",
        _ => "votes",
    }
}

pub(crate) type Name<'a> = &'a dyn Fn(GroupId) -> String;

fn at(lsn: Lsn, term: Term) -> String {
    format!("{lsn}/t{term}")
}

fn position(p: Position) -> String {
    at(p.lsn, p.term)
}

fn led(name: Name<'_>, groups: &[(GroupId, Term)]) -> String {
    let all: Vec<_> = groups.iter().map(|(g, t)| format!("{} t{t}", name(*g))).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// An entry in full.
pub(crate) fn entry(entry: &Entry) -> String {
    let what = match entry.kind {
        Kind::TermStart => "start".to_owned(),
        Kind::CreateDatabase => "create".to_owned(),
        Kind::Op => op(&entry.payload),
        Kind::Slot => slot_entry(&entry.payload),
        Kind::Prune => match Base::decode(entry.payload.clone()) {
            Some(base) => format!("prune up to {}", position(base.position)),
            None => "prune?".to_owned(),
        },
        Kind::Once => once_entry(&entry.payload),
        Kind::Audit => "audit".to_owned(),
    };
    format!("{} {what}", at(entry.lsn, entry.term))
}

/// What a keyed write is.
fn once_entry(payload: &Bytes) -> String {
    let Some(entry) = OnceEntry::decode(payload.clone()) else { return "once?".to_owned() };
    let OnceEntry { time_ms, expires_ms, once, op: what } = entry;
    let key = once.key.escape_ascii();
    format!("(once {key} at {time_ms} ms until {expires_ms} ms: {})", op(&what))
}

/// What a slot entry says.
fn slot_entry(payload: &Bytes) -> String {
    let Some(entry) = SlotEntry::decode(payload.clone()) else { return "slots?".to_owned() };
    let changes = entry.changes.iter().map(|change| match change {
        SlotChange::Create { name, .. } => format!("create {name}"),
        SlotChange::Ack { name, lsn } => format!("ack {name} {lsn}"),
        SlotChange::Delete { name } => format!("delete {name}"),
        SlotChange::Invalidate { name, cause, .. } => format!("invalidate {name}: {cause:?}"),
    });
    let changes: Vec<_> = changes.collect();
    let changes = if changes.is_empty() { "tick".to_owned() } else { changes.join(", ") };
    format!("({changes} at {} ms)", entry.time_ms)
}

/// A slot, as a replica knows it.
pub(crate) fn slot(slot: &SlotView<'_>) -> String {
    let mut out = format!("{} confirmed {}, {:?}", slot.name, slot.confirmed, slot.state);
    if slot.lag_ops > 0 {
        let SlotView { lag_ops, lag_bytes, lag_ms, .. } = slot;
        let _ = write!(out, ", {lag_ops} ops, {lag_bytes} bytes, {lag_ms} ms behind");
    }
    if let Some(ms) = slot.expires_in_ms {
        let _ = write!(out, ", expires in {ms} ms");
    }
    out
}

/// An op without the part that only names it.
pub(crate) fn op(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let text = text.split(" #").next().unwrap_or_default();
    if text.len() > 40 { format!("({} bytes)", payload.len()) } else { text.to_owned() }
}

pub(crate) fn message(name: Name<'_>, message: &Message) -> String {
    let what = kind(message);
    match message {
        Message::Heartbeat { generation, echo, .. } => {
            let echo = if echo.is_some() { "" } else { ", hears nothing" };
            format!("{what} generation {generation}{echo}")
        }
        Message::Confirm { groups } => format!("{what} {}", led(name, groups)),
        Message::Confirmed { leading, ceased } => {
            format!("{what} leads {}; ceased {}", led(name, leading), led(name, ceased))
        }
        Message::FormProbe | Message::FormBlank { .. } => what.to_owned(),
        Message::Formed(formation) => {
            let members: Vec<_> =
                formation.members.iter().map(|m| format!("{:?}", m.node)).collect();
            format!("{what} {}", members.join(" "))
        }
        Message::Recall { from: GroupId::SYSTEM } => what.to_owned(),
        Message::Recall { from } => format!("{what} from {}", name(*from)),
        Message::Recalled { boot, groups, next, .. } => {
            let all: Vec<_> =
                groups.iter().map(|(g, t, l)| format!("{} {}", name(*g), at(*l, *t))).collect();
            let all = if all.is_empty() { "nothing".to_owned() } else { all.join(", ") };
            let next = next.map_or(String::new(), |next| format!("; more from {}", name(next)));
            format!("{what} {boot:?}, {all}{next}")
        }
        Message::Group { group, term, message } => {
            format!("{} t{term} {what}{}", name(*group), group_message(message))
        }
    }
}

fn group_message(message: &GroupMessage) -> String {
    match message {
        GroupMessage::PreVote { last } => format!(" last {}", position(*last)),
        GroupMessage::Vote { last, transfer } => {
            let transfer = if *transfer { ", for a transfer" } else { "" };
            format!(" last {}{transfer}", position(*last))
        }
        GroupMessage::PreVoteReply { granted } | GroupMessage::VoteReply { granted } => {
            (if *granted { " yes" } else { " no" }).to_owned()
        }
        GroupMessage::Append { prev, entries, committed, round } => {
            let mut out = format!(" after {}:", position(*prev));
            match &entries[..] {
                [] => out.push_str(" nothing"),
                [first, .., last] if entries.len() > 4 => {
                    let _ =
                        write!(out, " {}..{}", at(first.lsn, first.term), at(last.lsn, last.term));
                }
                _ => entries.iter().for_each(|e| {
                    let _ = write!(out, " {}", at(e.lsn, e.term));
                }),
            }
            let _ = write!(out, ", committed {committed}{}", round_of(*round));
            out
        }
        GroupMessage::AppendAccepted { durable, round } => {
            format!(" durable {durable}{}", round_of(*round))
        }
        GroupMessage::Pruned { base, committed, round } => {
            format!(" up to {}, committed {committed}{}", position(*base), round_of(*round))
        }
        GroupMessage::AppendRejected { hint, round } => format!(" hint {hint}{}", round_of(*round)),
        GroupMessage::ReadIndex { id } => format!(" #{id}"),
        GroupMessage::ReadIndexReply { id, lsn: Some(lsn) } => format!(" #{id}: {lsn}"),
        GroupMessage::ReadIndexReply { id, lsn: None } => format!(" #{id}: does not lead"),
        GroupMessage::TimeoutNow => String::new(),
        GroupMessage::Root { lsn, .. } | GroupMessage::Verified { lsn, .. } => format!(" at {lsn}"),
        GroupMessage::Fetch { from, to } => format!(" {from}..{to}"),
        GroupMessage::Fetched { from, entries } => match entries.last() {
            Some(last) => format!(" {from}..{}", last.lsn),
            None => format!(" {from}: nothing"),
        },
    }
}

fn round_of(round: u64) -> String {
    if round == 0 { String::new() } else { format!(", round {round}") }
}

pub(crate) fn record(name: Name<'_>, record: &Record) -> String {
    match record {
        Record::Formation(_) => "the formation".to_owned(),
        Record::HardState { group, term, vote } => {
            let vote = vote.map_or("no vote".to_owned(), |v| format!("vote {:?}", v.node));
            format!("{} t{term} {vote}", name(*group))
        }
        Record::Append { group, entry: e } => format!("{} {}", name(*group), entry(e)),
        Record::Checkpointed { group, lsn } => format!("{} checkpointed {lsn}", name(*group)),
        Record::Base { group, base } => {
            format!("{} begins after {}", name(*group), position(base.position))
        }
        Record::Boot { member, boot } => format!("{:?} {boot:?}", member.node),
        Record::Acked { group, member, term, lsn } => {
            format!("{} {:?} acknowledged {}", name(*group), member.node, at(*lsn, *term))
        }
        Record::Sound { group, committed } => format!("{} sound at {committed}", name(*group)),
    }
}

pub(crate) fn reply(name: Name<'_>, reply: &Reply) -> String {
    match reply {
        Reply::Applied { lsn, term, outcome, replayed } => {
            let refused = if outcome.refused { ", refused" } else { "" };
            let replayed = if *replayed { ", replayed" } else { "" };
            format!("applied at {}{refused}{replayed}", at(*lsn, *term))
        }
        Reply::Created { group, existed } => {
            let existed = if *existed { "; it existed" } else { "" };
            format!("created {}{existed}", name(*group))
        }
        Reply::Readable { lsn } => format!("readable at {lsn}"),
        Reply::Slot { lsn, outcome, .. } => format!("slot at {lsn}: {outcome:?}"),
        Reply::Transferred { term } if *term == Term(0) => "drained".to_owned(),
        Reply::Transferred { term } => format!("transferred in t{term}"),
        Reply::Unknown => "unknown".to_owned(),
        Reply::Rejected(Reject::NotLeader { leader: Some(leader) }) => {
            format!("rejected: NotLeader, try {leader:?}")
        }
        Reply::Rejected(Reject::NotLeader { leader: None }) => "rejected: NotLeader".to_owned(),
        Reply::Rejected(reject) => format!("rejected: {reject:?}"),
    }
}

pub(crate) fn notice(name: Name<'_>, notice: &Notice) -> String {
    match notice {
        Notice::Formed { member: true } => "formed, as a member".to_owned(),
        Notice::Formed { member: false } => "formed, without a vote".to_owned(),
        Notice::Quarantined { group, reason } => format!("{} quarantined: {reason}", name(*group)),
        Notice::Rebuilding { group, reason } => {
            format!("{} is rebuilt: {reason}", name(*group))
        }
        Notice::Rebuilt { group } => format!("{} was rebuilt", name(*group)),
        Notice::Bootstrapping { group, from, above } => {
            format!("{} needs a snapshot of {above} or later, from {from:?}", name(*group))
        }
        Notice::Bootstrapped { group, at } => format!("{} goes on from {at}", name(*group)),
        Notice::Pruned { group, first } => format!("{} begins at {first}", name(*group)),
        Notice::Sound { group } => format!("{} is sound", name(*group)),
        Notice::Unreadable { group, from, to, reason } => {
            format!("{} {from}..{to} can't be read: {reason}", name(*group))
        }
        Notice::Mended { group, from, to } => format!("{} {from}..{to} mended", name(*group)),
        Notice::SlotAtRisk { group, name: slot, cause } => {
            format!("{} slot {slot} is at risk: {cause:?}", name(*group))
        }
        Notice::SlotInvalidated { group, name: slot, cause } => {
            format!("{} slot {slot} is invalidated: {cause:?}", name(*group))
        }
        Notice::Diverged { group, lsn } => format!("{} has diverged at {lsn}", name(*group)),
        Notice::RootsDiffer { group, lsn } => {
            format!("the replicas of {} differ at {lsn}", name(*group))
        }
        Notice::PeerFault { node, reason } => format!("fault of {node:?}: {reason}"),
    }
}

pub(crate) fn role(view: &GroupView<'_>) -> String {
    match (view.role, view.leader) {
        (RoleView::Leader, _) => format!("leads in t{}", view.term),
        (RoleView::PreCandidate, _) => format!("would campaign in t{}", view.term.next()),
        (RoleView::Candidate, _) => format!("campaigns in t{}", view.term),
        (RoleView::Follower, Some(leader)) => format!("follows {leader:?} in t{}", view.term),
        (RoleView::Follower, None) => format!("has no leader in t{}", view.term),
    }
}

pub(crate) fn entries(entries: &[Entry]) -> String {
    entries.iter().map(entry).collect::<Vec<_>>().join(", ")
}

/// An effect that concerns the node's own disk, engine or operator.
pub(crate) fn effect(name: Name<'_>, effect: &Effect) -> Option<(&'static str, String)> {
    Some(match effect {
        Effect::Persist { write, records } => {
            let all: Vec<_> = records.iter().map(|r| record(name, r)).collect();
            ("disk", format!("writes {write:?}: {}", all.join(", ")))
        }
        Effect::Load { group, from, to, .. } => {
            ("disk", format!("loads {} {from}..{to}", name(*group)))
        }
        Effect::Reopen { group, upto } => {
            ("apply", format!("begins {} anew, whole from {upto} on", name(*group)))
        }
        Effect::ReadControl { group, prefixes, lsn } => {
            let prefixes: Vec<String> =
                prefixes.iter().map(|prefix| prefix.escape_ascii().to_string()).collect();
            let what = prefixes.join(", ");
            ("apply", format!("reads {what} of {}, checkpointed at {lsn}", name(*group)))
        }
        Effect::Apply { group, entries: run } => {
            ("apply", format!("applies {} {}", name(*group), entries(run)))
        }
        Effect::Bootstrap { group, from, above } => {
            ("apply", format!("fetches {} from {from:?}, at {above} or later", name(*group)))
        }
        Effect::Install { group, at, .. } => {
            ("apply", format!("installs {} at {}", name(*group), position(*at)))
        }
        Effect::Checkpoint { group, at, control, .. } => {
            let mut out = format!("checkpoints {} at {}", name(*group), at.lsn);
            for (key, value) in control {
                let value = if key.starts_with(b"refused/") {
                    value.escape_ascii().to_string()
                } else {
                    "…".into()
                };
                let _ = write!(out, ", {} = {value}", key.escape_ascii());
            }
            ("apply", out)
        }
        Effect::Notice(n) => ("notices", format!("notice: {}", notice(name, n))),
        Effect::DropState { group, .. } => {
            ("apply", format!("drops the state of {}", name(*group)))
        }
        Effect::Mend { group, entries: run } => {
            ("disk", format!("mends {} {}", name(*group), entries(run)))
        }
        Effect::Fence { reason, .. } => ("notices", format!("is fenced: {reason}")),
        Effect::Halt { reason } => ("notices", format!("halts: {reason}")),
        Effect::Send { .. } | Effect::Reply { .. } | Effect::Leader { .. } => return None,
    })
}

/// An input that is not a message or a request.
pub(crate) fn input(name: Name<'_>, input: &Input) -> Option<(&'static str, String)> {
    Some(match input {
        Input::Persisted { write } => ("disk", format!("{write:?} is durable")),
        Input::Loaded { entries: run, .. } => ("disk", format!("loaded {}", entries(run))),
        Input::Damaged { group, from, to } => {
            ("disk", format!("{} {from}..{to} is damaged", name(*group)))
        }
        Input::LoadFailed { reason, .. } => ("disk", format!("load failed: {reason}")),
        Input::Applied { group, upto, .. } => ("apply", format!("applied {} {upto}", name(*group))),
        Input::Control { group, at, .. } => {
            ("apply", format!("the state of {} stands at {}", name(*group), at.lsn))
        }
        Input::SnapshotReady { group, at } => {
            ("apply", format!("a snapshot of {} at {} is here", name(*group), position(*at)))
        }
        Input::SnapshotFailed { group, reason } => {
            ("apply", format!("no snapshot of {}: {reason}", name(*group)))
        }
        Input::Checkpointed { group, lsn } => {
            ("apply", format!("checkpointed {} {lsn}", name(*group)))
        }
        _ => return None,
    })
}
