//! O9. Persist first: no message reveals a term, a vote or an entry before it is durable, and no
//! watermark does.
//!
//! semantics.md 1, 10; Raft §5.2 ("updated on stable storage before responding to RPCs"). Failures
//! 12, 16, 17, 23.

use highwater_core::{GroupId, GroupMessage, Lsn, NodeId, Term};

use super::{Verdict, broken, durable_log::DurableLog};

/// A node says this to a peer.
pub(crate) fn says(
    log: &DurableLog,
    (node, to): (NodeId, NodeId),
    (group, term): (GroupId, Term),
    message: &GroupMessage,
) -> Verdict {
    let (durable_term, vote) = log.vote(group);
    let revealed = match message {
        GroupMessage::PreVoteReply { granted: true }
        | GroupMessage::Fetch { .. }
        | GroupMessage::Fetched { .. } => Term(0),
        GroupMessage::PreVote { .. } => Term(term.0.saturating_sub(1)),
        _ => term,
    };
    let premature = |what: String| Err(broken(what).on(node).on(to).of(group).term(term));
    if durable_term < revealed {
        return premature(format!(
            "{node:?} reveals {revealed:?} of {group:?} to {to:?}, and has {durable_term:?} durably"
        ));
    }
    let candidate = match message {
        GroupMessage::VoteReply { granted: true } => to,
        GroupMessage::Vote { .. } => node,
        GroupMessage::AppendAccepted { durable, .. } => {
            return is_durable(log, node, group, *durable);
        }
        _ => return Ok(()),
    };
    if durable_term == term && vote.is_none_or(|vote| vote.node != candidate) {
        return premature(format!(
            "{node:?} votes for {candidate:?} in {group:?}, {term:?}; durably it has {vote:?}"
        ));
    }
    Ok(())
}

/// A node holds its log to be durable up to `lsn`.
pub(crate) fn is_durable(log: &DurableLog, node: NodeId, group: GroupId, lsn: Lsn) -> Verdict {
    let durable = log.durable(group);
    if lsn > durable {
        let what = format!("{node:?} holds {lsn:?} of {group:?} to be durable; {durable:?} is");
        return Err(broken(what).on(node).of(group).lsns(durable.next(), lsn));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{Entry, Hlc, Kind, Member, Record, WriteId};

    use super::*;

    const G: GroupId = GroupId(2);
    const ME: NodeId = NodeId(1);
    const PEER: NodeId = NodeId(2);

    /// A node that has voted for its peer in term 3 and appended one entry; both durable, or not.
    fn log(durable: bool) -> DurableLog {
        let vote = Some(Member { node: PEER, ..Member::default() });
        let (lsn, term) = (Lsn(1), Term(3));
        let entry = Entry {
            lsn,
            term,
            prev_term: Term(0),
            hlc: Hlc(0),
            origin: 0,
            kind: Kind::Op,
            payload: Bytes::new(),
        };
        let records =
            [Record::HardState { group: G, term, vote }, Record::Append { group: G, entry }];
        let mut log = DurableLog::default();
        log.writes(WriteId(1), &records).unwrap();
        if durable {
            log.completed(WriteId(1)).unwrap();
        }
        log
    }

    #[test]
    fn fires_on_what_is_not_durable_yet() {
        let accepted = GroupMessage::AppendAccepted { durable: Lsn(1), round: 0 };
        for message in [accepted, GroupMessage::VoteReply { granted: true }] {
            assert!(says(&log(true), (ME, PEER), (G, Term(3)), &message).is_ok());
            assert!(says(&log(false), (ME, PEER), (G, Term(3)), &message).is_err());
            assert!(says(&log(true), (ME, PEER), (G, Term(4)), &message).is_err(), "the term");
        }
        assert!(is_durable(&log(true), ME, G, Lsn(1)).is_ok());
        assert!(is_durable(&log(false), ME, G, Lsn(1)).is_err());
    }

    #[test]
    fn fires_on_a_vote_for_another() {
        let vote = GroupMessage::VoteReply { granted: true };
        assert!(says(&log(true), (ME, NodeId(3)), (G, Term(3)), &vote).is_err());
    }
}
