//! O26. An idle group costs nothing: once all replicas are equal and nobody asks for anything, no
//! message of it is sent and no record of it is written.
//!
//! docs/INVARIANTS.md, L3; performance.md, idle databases. Failures 30, 35.

use highwater_core::{Effect, GroupId, Message, NodeId, Record};

use super::{Verdict, broken};

/// How long after the last call the last message of a group is sent at the latest: a storm may have
/// held one back for three seconds.
pub(crate) const SETTLING_MS: u64 = 4_500;
/// How long nothing is to be said then.
pub(crate) const SILENCE_MS: u64 = 1_000;

/// A node does this while all is idle.
pub(crate) fn does(node: NodeId, effect: &Effect) -> Verdict {
    let (what, group) = match effect {
        Effect::Send { message: Message::Group { group, message, .. }, .. } => {
            (format!("says {message:?}"), *group)
        }
        Effect::Persist { records, .. } => match records.iter().find_map(of_group) {
            Some(group) => ("writes".to_owned(), group),
            None => return Ok(()),
        },
        Effect::Load { group, .. } => ("reads back".to_owned(), *group),
        _ => return Ok(()),
    };
    let what = format!("{node:?} {what} of {group:?}, which is idle");
    Err(broken(what).on(node).of(group))
}

fn of_group(record: &Record) -> Option<GroupId> {
    match record {
        Record::HardState { group, .. } | Record::Append { group, .. } => Some(*group),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::{GroupMessage, Lsn, Term, WriteId};

    use super::*;

    #[test]
    fn fires_on_talk_and_on_writes() {
        let (group, term) = (GroupId(2), Term(1));
        let message = Message::Group { group, term, message: GroupMessage::TimeoutNow };
        let to = NodeId(2);
        assert!(does(NodeId(1), &Effect::Send { to, message }).is_err());
        assert!(does(NodeId(1), &Effect::Send { to, message: Message::FormProbe }).is_ok());
        let write = |record| Effect::Persist { write: WriteId(1), records: vec![record] };
        let vote = Record::HardState { group, term, vote: None };
        assert!(does(NodeId(1), &write(vote)).is_err());
        let hint = Record::Checkpointed { group, lsn: Lsn(3) };
        assert!(does(NodeId(1), &write(hint)).is_ok());
    }
}
