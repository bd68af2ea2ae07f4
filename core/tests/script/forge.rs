//! Messages that no correct node sends, or not then.

use bytes::Bytes;
use highwater_core::{
    Entry, GroupMessage, Hlc, Kind, Lsn, Message, NodeId, Peer, Position, RoleView, Term,
};

use crate::cluster::Cluster;

pub(super) fn forge(cluster: &mut Cluster, (from, to): (NodeId, NodeId), what: &[&str]) {
    let group = cluster.group_named("app").expect("there is a database app");
    let node = cluster.node(to).expect("it runs");
    let view = node.group(group).expect("it has the group");
    let (term, last) = (view.term, view.watermarks.appended());
    let committed = view.watermarks.committed();
    assert!(view.role != RoleView::Leader || from != to, "a peer");
    let at = |lsn: Lsn| Position { term: node.term_at(group, lsn).unwrap_or_default(), lsn };
    let entry = |lsn: Lsn, prev_term: Term, term: Term| Entry {
        lsn,
        term,
        prev_term,
        hlc: Hlc(0),
        origin: 0,
        kind: Kind::Op,
        payload: Bytes::from_static(b"put k forged"),
    };
    let append = |prev: Position, entries: Vec<Entry>| GroupMessage::Append {
        prev,
        entries,
        committed,
        round: 0,
    };
    let message = match what {
        ["append", "with", "a", "hole"] => {
            let prev = at(last);
            append(prev, vec![entry(Lsn(last.0 + 2), prev.term, term)])
        }
        ["append", "of", "a", "future", "term"] => {
            let prev = at(last);
            append(prev, vec![entry(last.next(), prev.term, term.next())])
        }
        ["append", "that", "replaces", "what", "is", "committed"] => {
            let prev = at(Lsn(committed.0 - 2));
            append(prev, vec![entry(prev.lsn.next(), prev.term, term)])
        }
        ["append", "that", "contradicts", "what", "is", "committed"] => {
            append(Position { term, lsn: Lsn(1) }, Vec::new())
        }
        ["append", "from", "nowhere"] => append(Position { term, lsn: Lsn(u64::MAX) }, Vec::new()),
        ["confirmation", "of", "the", "future"] => {
            GroupMessage::AppendAccepted { durable: Lsn(last.0 + 1), round: 0 }
        }
        ["round", "of", "the", "future"] => {
            GroupMessage::AppendRejected { hint: last, round: 1_000_000 }
        }
        ["term", "without", "end"] => {
            let message = GroupMessage::AppendRejected { hint: last, round: 0 };
            let term = Term(u64::MAX);
            return cluster.forge(from, to, Message::Group { group, term, message });
        }
        ["answer", "to", "an", "earlier", "start"] => {
            let Peer { member, mut boot } = cluster.host(to).peer();
            boot.counter -= 1;
            let incarnation = member.incarnation;
            let message =
                Message::Recalled { incarnation, boot, met: None, groups: Vec::new(), next: None };
            return cluster.forge(from, to, message);
        }
        _ => panic!("{what:?} is no forgery"),
    };
    cluster.forge(from, to, Message::Group { group, term, message });
}
