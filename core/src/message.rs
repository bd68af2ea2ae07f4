//! What nodes say to each other. The transport vouches for the sender ([`Peer`](crate::Peer)) and
//! delivers at most what was sent to this boot: messages may be lost, repeated and reordered.

use alloc::vec::Vec;

use crate::{
    entry::{Entry, Formation, Position},
    types::{Boot, GroupId, Incarnation, Instant, Lsn, Root, Term},
};

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Liveness of a pair of nodes, for all their groups at once.
    Heartbeat {
        /// Rises whenever the sender stops leading any group.
        generation: u64,
        /// The sender's clock, to be echoed.
        sent: Instant,
        /// The highest `sent` that the sender had from the receiver in its present boot: proof
        /// that the receiver is heard.
        echo: Option<Instant>,
    },
    /// "Do you still lead these?": after the sender saw a new generation. Bounded by
    /// [`Config::confirm_groups_max`](crate::Config::confirm_groups_max).
    Confirm {
        /// Groups and the terms in which the sender follows the receiver.
        groups: Vec<(GroupId, Term)>,
    },
    /// The answer to [`Message::Confirm`].
    Confirmed {
        /// Still led by the sender in that term.
        leading: Vec<(GroupId, Term)>,
        /// Not led by it any more.
        ceased: Vec<(GroupId, Term)>,
    },
    /// From a blank node: "are you blank, or formed?"
    FormProbe,
    /// From a blank node to another, in answer to its probe.
    FormBlank {
        /// The prober's incarnation, so that an answer to an earlier one does not count.
        prober: Incarnation,
    },
    /// From a formed node, in answer to a probe.
    Formed(Formation),
    /// "What do you remember of me?", at the start of a process, until it is answered: a data
    /// directory that was rolled back is found by what others remember.
    Recall {
        /// From this group on.
        from: GroupId,
    },
    /// The answer. Bounded by [`Config::confirm_groups_max`](crate::Config::confirm_groups_max).
    Recalled {
        /// The latest data directory of the asker's node that the sender has met, this one included.
        incarnation: Incarnation,
        /// The last boot of that which it has met.
        boot: Boot,
        /// ... and the last one before this, as long as it remembers that.
        met: Option<Boot>,
        /// The highest term, and the highest LSN in it, that the asker has vouched for to the
        /// sender, by group, in order.
        groups: Vec<(GroupId, Term, Lsn)>,
        /// Where to ask on; `None` at the end.
        next: Option<GroupId>,
    },
    /// Of one group.
    Group {
        /// Which.
        group: GroupId,
        /// The sender's term (for [`GroupMessage::PreVote`]: the term it would campaign in).
        term: Term,
        /// What.
        message: GroupMessage,
    },
}

/// A message within one group. Names follow Raft (Ongaro, 2014).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMessage {
    /// "Would you vote for me?" (§9.6). Changes no state.
    PreVote {
        /// The candidate's last entry.
        last: Position,
    },
    /// The answer; `term` is the candidate's proposed term where granted, else the voter's own.
    PreVoteReply {
        /// Whether it would.
        granted: bool,
    },
    /// "Vote for me" (§5.2).
    Vote {
        /// The candidate's last entry.
        last: Position,
        /// The leader asked for this election: stickiness does not apply (§3.10).
        transfer: bool,
    },
    /// The answer.
    VoteReply {
        /// Whether the vote was given; durable by then.
        granted: bool,
    },
    /// Entries, the commit mark, and a question for the round of reads; each may be empty.
    Append {
        /// The entry before the first of `entries`.
        prev: Position,
        /// Contiguous after `prev`.
        entries: Vec<Entry>,
        /// The leader's commit mark.
        committed: Lsn,
        /// The leader's last round: of reads that wait for confirmation, or of a commit mark that is
        /// to arrive. Rises with each.
        round: u64,
    },
    /// The receiver needs entries that the leader's log does not have any more: it is to fetch a
    /// snapshot. Answered as an append is.
    Pruned {
        /// The leader's log begins after this.
        base: Position,
        /// The leader's commit mark.
        committed: Lsn,
        /// As of an append.
        round: u64,
    },
    /// The answer where the logs agree at `prev`.
    AppendAccepted {
        /// Durable here and agreed with this leader up to this LSN.
        durable: Lsn,
        /// The highest round of what was taken from this leader.
        round: u64,
    },
    /// The answer where they do not, or where the sender's term is old.
    AppendRejected {
        /// Try again with the entry after this one (conflict back-off by term, §5.3).
        hint: Lsn,
        /// The round of what is rejected: a conflict is no denial of leadership.
        round: u64,
    },
    /// A follower asks for a read index (§6.4).
    ReadIndex {
        /// Chosen by the follower.
        id: u64,
    },
    /// The answer.
    ReadIndexReply {
        /// The follower's.
        id: u64,
        /// The index; `None` where the receiver does not lead.
        lsn: Option<Lsn>,
    },
    /// The leader asks the receiver to campaign at once (§3.10).
    TimeoutNow,
    /// Asks for entries that the sender holds, but can't read. Changes no state, of any term.
    Fetch {
        /// The first one.
        from: Lsn,
        /// The last one; fewer is fine.
        to: Lsn,
    },
    /// The answer: entries from `from` on; none where the receiver has none to give.
    Fetched {
        /// As asked.
        from: Lsn,
        /// Contiguous.
        entries: Vec<Entry>,
    },
    /// A replica tells its leader what its state hashed to where it applied an
    /// [`Audit`](crate::Kind::Audit) entry. May be lost: there will be another.
    Root {
        /// Of that entry.
        lsn: Lsn,
        /// There.
        root: Root,
    },
    /// The leader tells a replica that has reported: a majority of the voters has this root there.
    Verified {
        /// Of the entry.
        lsn: Lsn,
        /// There.
        root: Root,
    },
}

impl GroupMessage {
    /// What the sender vouches for, beside its term: that it holds the group's log durably up to
    /// here. `None` where it promises nothing. A promise is remembered by whoever takes it, and
    /// given only to those who have said what they remember ([`Message::Recall`]).
    pub(crate) fn vouches_for(&self) -> Option<Lsn> {
        match self {
            // Its vote, for the receiver or for itself.
            GroupMessage::Vote { .. } | GroupMessage::VoteReply { granted: true } => Some(Lsn(0)),
            GroupMessage::AppendAccepted { durable, .. } => Some(*durable),
            // A leader commits what it has durably itself.
            GroupMessage::Append { committed, .. } => Some(*committed),
            _ => None,
        }
    }

    /// Tells the kinds apart.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            GroupMessage::PreVote { .. } => 0,
            GroupMessage::PreVoteReply { .. } => 1,
            GroupMessage::Vote { .. } => 2,
            GroupMessage::VoteReply { .. } => 3,
            GroupMessage::Append { .. } => 4,
            GroupMessage::AppendAccepted { .. } => 5,
            GroupMessage::AppendRejected { .. } => 6,
            GroupMessage::ReadIndex { .. } => 7,
            GroupMessage::ReadIndexReply { .. } => 8,
            GroupMessage::TimeoutNow => 9,
            GroupMessage::Fetch { .. } => 10,
            GroupMessage::Fetched { .. } => 11,
            GroupMessage::Pruned { .. } => 12,
            GroupMessage::Root { .. } => 13,
            GroupMessage::Verified { .. } => 14,
        }
    }
}
