//! The control parts of version 1, as rkyv lays them out. They mirror the core's types instead of
//! being them: those may change freely, these never do. A new shape is a new type.

mod slots;
mod snapshots;

use highwater_core::{
    Boot, ClusterId, Formation, GroupId, GroupMessage, Incarnation, Instant, Lsn, Member, Message,
    NodeId, Outcome, Peer, Position, Reject, Root, Term, Verified,
};
use rkyv::{Archive, Deserialize, Serialize};
use slots::{SlotAskV1, SlotOutcomeV1};
pub(crate) use snapshots::{SnapshotAskV1, SnapshotBlockV1, SnapshotNoneV1};

use crate::peer::{ForwardReply, GroupStatus, Hello, NodeStatus, Received};

/// [`Message::Heartbeat`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct HeartbeatV1 {
    pub(crate) generation: u64,
    pub(crate) sent: u64,
    pub(crate) echo: Option<u64>,
}

impl From<HeartbeatV1> for Message {
    fn from(v: HeartbeatV1) -> Message {
        Message::Heartbeat {
            generation: v.generation,
            sent: Instant(v.sent),
            echo: v.echo.map(Instant),
        }
    }
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct MemberV1 {
    node: u64,
    incarnation: u128,
}

impl From<Member> for MemberV1 {
    fn from(m: Member) -> MemberV1 {
        MemberV1 { node: m.node.0, incarnation: m.incarnation.0 }
    }
}

impl From<MemberV1> for Member {
    fn from(v: MemberV1) -> Member {
        Member { node: NodeId(v.node), incarnation: Incarnation(v.incarnation) }
    }
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct GroupTermV1 {
    group: u64,
    term: u64,
}

fn pairs(list: Vec<(GroupId, Term)>) -> Vec<GroupTermV1> {
    list.into_iter().map(|(g, t)| GroupTermV1 { group: g.0, term: t.0 }).collect()
}

fn unpairs(list: Vec<GroupTermV1>) -> Vec<(GroupId, Term)> {
    list.into_iter().map(|v| (GroupId(v.group), Term(v.term))).collect()
}

/// Messages between nodes that concern no single group.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum NodesV1 {
    Confirm { groups: Vec<GroupTermV1> },
    Confirmed { leading: Vec<GroupTermV1>, ceased: Vec<GroupTermV1> },
    FormProbe,
    FormBlank { prober: u128 },
    Formed { members: Vec<MemberV1> },
}

impl NodesV1 {
    pub(crate) fn confirm(groups: &[(GroupId, Term)]) -> NodesV1 {
        NodesV1::Confirm { groups: pairs(groups.to_vec()) }
    }

    pub(crate) fn confirmed(leading: &[(GroupId, Term)], ceased: &[(GroupId, Term)]) -> NodesV1 {
        NodesV1::Confirmed { leading: pairs(leading.to_vec()), ceased: pairs(ceased.to_vec()) }
    }

    pub(crate) fn formed(formation: &Formation) -> NodesV1 {
        NodesV1::Formed { members: formation.members.iter().map(|m| (*m).into()).collect() }
    }
}

impl From<NodesV1> for Message {
    fn from(v: NodesV1) -> Message {
        match v {
            NodesV1::Confirm { groups } => Message::Confirm { groups: unpairs(groups) },
            NodesV1::Confirmed { leading, ceased } => {
                Message::Confirmed { leading: unpairs(leading), ceased: unpairs(ceased) }
            }
            NodesV1::FormProbe => Message::FormProbe,
            NodesV1::FormBlank { prober } => Message::FormBlank { prober: Incarnation(prober) },
            NodesV1::Formed { members } => Message::Formed(Formation {
                members: members.into_iter().map(Into::into).collect(),
            }),
        }
    }
}

/// [`Message::Recall`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct RecallV1 {
    pub(crate) from: u64,
}

/// [`Message::Recalled`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct RecalledV1 {
    incarnation: u128,
    boot: BootV1,
    met: Option<BootV1>,
    groups: Vec<AckedV1>,
    next: Option<u64>,
}

#[derive(Archive, Serialize, Deserialize)]
struct BootV1 {
    counter: u64,
    nonce: u64,
}

impl From<Boot> for BootV1 {
    fn from(Boot { counter, nonce }: Boot) -> BootV1 {
        BootV1 { counter, nonce }
    }
}

impl From<BootV1> for Boot {
    fn from(BootV1 { counter, nonce }: BootV1) -> Boot {
        Boot { counter, nonce }
    }
}

#[derive(Archive, Serialize, Deserialize)]
struct AckedV1 {
    group: u64,
    term: u64,
    lsn: u64,
}

impl RecalledV1 {
    pub(crate) fn new(
        incarnation: Incarnation,
        (boot, met): (Boot, Option<Boot>),
        groups: &[(GroupId, Term, Lsn)],
        next: Option<GroupId>,
    ) -> RecalledV1 {
        let acked = |(g, t, l): &(GroupId, Term, Lsn)| AckedV1 { group: g.0, term: t.0, lsn: l.0 };
        RecalledV1 {
            incarnation: incarnation.0,
            boot: boot.into(),
            met: met.map(Into::into),
            groups: groups.iter().map(acked).collect(),
            next: next.map(|g| g.0),
        }
    }
}

impl From<RecalledV1> for Message {
    fn from(v: RecalledV1) -> Message {
        let acked = |v: AckedV1| (GroupId(v.group), Term(v.term), Lsn(v.lsn));
        Message::Recalled {
            incarnation: Incarnation(v.incarnation),
            boot: v.boot.into(),
            met: v.met.map(Into::into),
            groups: v.groups.into_iter().map(acked).collect(),
            next: v.next.map(GroupId),
        }
    }
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct PositionV1 {
    term: u64,
    lsn: u64,
}

impl From<Position> for PositionV1 {
    fn from(p: Position) -> PositionV1 {
        PositionV1 { term: p.term.0, lsn: p.lsn.0 }
    }
}

impl From<PositionV1> for Position {
    fn from(v: PositionV1) -> Position {
        Position { term: Term(v.term), lsn: Lsn(v.lsn) }
    }
}

/// A message within a group, but for those that carry entries.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct GroupV1 {
    pub(crate) group: u64,
    pub(crate) term: u64,
    pub(crate) body: GroupBodyV1,
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum GroupBodyV1 {
    PreVote { last: PositionV1 },
    PreVoteReply { granted: bool },
    Vote { last: PositionV1, transfer: bool },
    VoteReply { granted: bool },
    AppendAccepted { durable: u64, round: u64 },
    AppendRejected { hint: u64, round: u64 },
    ReadIndex { id: u64 },
    ReadIndexReply { id: u64, lsn: Option<u64> },
    TimeoutNow,
    Fetch { from: u64, to: u64 },
    Pruned { base: PositionV1, committed: u64, round: u64 },
}

impl From<GroupV1> for Message {
    fn from(v: GroupV1) -> Message {
        let message = match v.body {
            GroupBodyV1::PreVote { last } => GroupMessage::PreVote { last: last.into() },
            GroupBodyV1::PreVoteReply { granted } => GroupMessage::PreVoteReply { granted },
            GroupBodyV1::Vote { last, transfer } => {
                GroupMessage::Vote { last: last.into(), transfer }
            }
            GroupBodyV1::VoteReply { granted } => GroupMessage::VoteReply { granted },
            GroupBodyV1::AppendAccepted { durable, round } => {
                GroupMessage::AppendAccepted { durable: Lsn(durable), round }
            }
            GroupBodyV1::AppendRejected { hint, round } => {
                GroupMessage::AppendRejected { hint: Lsn(hint), round }
            }
            GroupBodyV1::ReadIndex { id } => GroupMessage::ReadIndex { id },
            GroupBodyV1::ReadIndexReply { id, lsn } => {
                GroupMessage::ReadIndexReply { id, lsn: lsn.map(Lsn) }
            }
            GroupBodyV1::TimeoutNow => GroupMessage::TimeoutNow,
            GroupBodyV1::Fetch { from, to } => GroupMessage::Fetch { from: Lsn(from), to: Lsn(to) },
            GroupBodyV1::Pruned { base, committed, round } => {
                GroupMessage::Pruned { base: base.into(), committed: Lsn(committed), round }
            }
        };
        Message::Group { group: GroupId(v.group), term: Term(v.term), message }
    }
}

/// [`GroupMessage::Append`] without its entries, which are the frame's tail.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct AppendV1 {
    pub(crate) group: u64,
    pub(crate) term: u64,
    pub(crate) prev: PositionV1,
    pub(crate) committed: u64,
    pub(crate) round: u64,
    pub(crate) entries: u32,
}

/// [`GroupMessage::Fetched`] without its entries, which are the frame's tail.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct FetchedV1 {
    pub(crate) group: u64,
    pub(crate) term: u64,
    pub(crate) from: u64,
    pub(crate) entries: u32,
}

/// [`GroupMessage::Root`] and [`GroupMessage::Verified`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct RootV1 {
    pub(crate) group: u64,
    pub(crate) term: u64,
    pub(crate) lsn: u64,
    pub(crate) root: u128,
    pub(crate) verified: bool,
}

impl From<RootV1> for Message {
    fn from(v: RootV1) -> Message {
        let (lsn, root) = (Lsn(v.lsn), Root(v.root));
        let message = match v.verified {
            false => GroupMessage::Root { lsn, root },
            true => GroupMessage::Verified { lsn, root },
        };
        Message::Group { group: GroupId(v.group), term: Term(v.term), message }
    }
}

/// A forwarded request.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct ForwardV1 {
    pub(crate) id: u64,
    pub(crate) budget_us: u64,
    pub(crate) request: ForwardRequestV1,
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum ForwardRequestV1 {
    /// The payload is the frame's tail.
    Propose {
        group: u64,
    },
    CreateDatabase {
        name: String,
    },
    Transfer {
        group: u64,
        to: u64,
    },
    Slot {
        group: u64,
        name: String,
        ask: SlotAskV1,
    },
    /// The payload is the frame's tail.
    ProposeOnce {
        group: u64,
        key: Vec<u8>,
        digest: u128,
    },
}

/// The answer to it.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct ForwardReplyV1 {
    pub(crate) id: u64,
    pub(crate) reply: ReplyV1,
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum ReplyV1 {
    Applied { lsn: u64, term: u64, refused: bool, answer: Vec<u8> },
    Created { group: u64, existed: bool },
    Transferred { term: u64 },
    Rejected(RejectV1),
    Unknown,
    Slot { first: u64, outcome: SlotOutcomeV1 },
    Replayed { lsn: u64, term: u64, refused: bool, answer: Vec<u8> },
}

impl From<&ForwardReply> for ReplyV1 {
    fn from(reply: &ForwardReply) -> ReplyV1 {
        match reply {
            ForwardReply::Applied { lsn, term, outcome, replayed } => {
                let (lsn, term, refused) = (lsn.0, term.0, outcome.refused);
                let answer = outcome.answer.to_vec();
                match replayed {
                    false => ReplyV1::Applied { lsn, term, refused, answer },
                    true => ReplyV1::Replayed { lsn, term, refused, answer },
                }
            }
            ForwardReply::Created { group, existed } => {
                ReplyV1::Created { group: group.0, existed: *existed }
            }
            ForwardReply::Transferred { term } => ReplyV1::Transferred { term: term.0 },
            ForwardReply::Slot { first, outcome } => {
                ReplyV1::Slot { first: first.0, outcome: (*outcome).into() }
            }
            ForwardReply::Rejected(reject) => ReplyV1::Rejected((*reject).into()),
            ForwardReply::Unknown => ReplyV1::Unknown,
        }
    }
}

fn applied(
    (lsn, term): (u64, u64),
    refused: bool,
    answer: Vec<u8>,
    replayed: bool,
) -> ForwardReply {
    let outcome = Outcome { refused, answer: answer.into() };
    ForwardReply::Applied { lsn: Lsn(lsn), term: Term(term), outcome, replayed }
}

impl From<ReplyV1> for ForwardReply {
    fn from(v: ReplyV1) -> ForwardReply {
        match v {
            ReplyV1::Applied { lsn, term, refused, answer } => {
                applied((lsn, term), refused, answer, false)
            }
            ReplyV1::Replayed { lsn, term, refused, answer } => {
                applied((lsn, term), refused, answer, true)
            }
            ReplyV1::Created { group, existed } => {
                ForwardReply::Created { group: GroupId(group), existed }
            }
            ReplyV1::Transferred { term } => ForwardReply::Transferred { term: Term(term) },
            ReplyV1::Slot { first, outcome } => {
                ForwardReply::Slot { first: Lsn(first), outcome: outcome.into() }
            }
            ReplyV1::Rejected(reject) => ForwardReply::Rejected(reject.into()),
            ReplyV1::Unknown => ForwardReply::Unknown,
        }
    }
}

#[derive(Archive, Serialize, Deserialize)]
pub(crate) enum RejectV1 {
    NotLeader { leader: Option<u64> },
    NoSuchGroup,
    Busy,
    StorageFull,
    Expired,
    TooLarge,
    Superseded,
    Quarantined,
    Transferring,
    TransferFailed,
    NotReady,
    KeyMismatch,
    KeysFull,
    KeysUnknown,
}

impl From<Reject> for RejectV1 {
    fn from(reject: Reject) -> RejectV1 {
        match reject {
            Reject::NotLeader { leader } => RejectV1::NotLeader { leader: leader.map(|n| n.0) },
            Reject::NoSuchGroup => RejectV1::NoSuchGroup,
            Reject::Busy => RejectV1::Busy,
            Reject::StorageFull => RejectV1::StorageFull,
            Reject::Expired => RejectV1::Expired,
            Reject::TooLarge => RejectV1::TooLarge,
            Reject::Superseded => RejectV1::Superseded,
            Reject::Quarantined => RejectV1::Quarantined,
            Reject::Transferring => RejectV1::Transferring,
            Reject::TransferFailed => RejectV1::TransferFailed,
            Reject::NotReady => RejectV1::NotReady,
            Reject::KeyMismatch => RejectV1::KeyMismatch,
            Reject::KeysFull => RejectV1::KeysFull,
            Reject::KeysUnknown => RejectV1::KeysUnknown,
        }
    }
}

impl From<RejectV1> for Reject {
    fn from(v: RejectV1) -> Reject {
        match v {
            RejectV1::NotLeader { leader } => Reject::NotLeader { leader: leader.map(NodeId) },
            RejectV1::NoSuchGroup => Reject::NoSuchGroup,
            RejectV1::Busy => Reject::Busy,
            RejectV1::StorageFull => Reject::StorageFull,
            RejectV1::Expired => Reject::Expired,
            RejectV1::TooLarge => Reject::TooLarge,
            RejectV1::Superseded => Reject::Superseded,
            RejectV1::Quarantined => Reject::Quarantined,
            RejectV1::Transferring => Reject::Transferring,
            RejectV1::TransferFailed => Reject::TransferFailed,
            RejectV1::NotReady => Reject::NotReady,
            RejectV1::KeyMismatch => Reject::KeyMismatch,
            RejectV1::KeysFull => Reject::KeysFull,
            RejectV1::KeysUnknown => Reject::KeysUnknown,
        }
    }
}

/// Asks for a [`StatusV1`].
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct StatusQueryV1 {
    pub(crate) id: u64,
}

/// How a node stands.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct StatusV1 {
    pub(crate) id: u64,
    version: String,
    http: String,
    state: String,
    voter: bool,
    epoch: u64,
    groups: Vec<GroupStatusV1>,
}

#[derive(Archive, Serialize, Deserialize)]
struct GroupStatusV1 {
    group: u64,
    term: u64,
    leader: Option<u64>,
    appended: u64,
    durable: u64,
    committed: u64,
    applied: u64,
    checkpointed: u64,
    lag_bytes: u64,
    lag_us: u64,
    quarantined: Option<String>,
    verified: Option<VerifiedV1>,
    divergences: u64,
    first: u64,
    rebootstrapping: Option<ReceivedV1>,
}

/// [`Received`].
#[derive(Archive, Serialize, Deserialize)]
struct ReceivedV1 {
    bytes: u64,
    of: u64,
}

/// [`Verified`].
#[derive(Archive, Serialize, Deserialize)]
struct VerifiedV1 {
    lsn: u64,
    root: u128,
    at_ms: u64,
}

impl From<Verified> for VerifiedV1 {
    fn from(Verified { lsn, root, at_ms }: Verified) -> VerifiedV1 {
        VerifiedV1 { lsn: lsn.0, root: root.0, at_ms }
    }
}

impl From<VerifiedV1> for Verified {
    fn from(VerifiedV1 { lsn, root, at_ms }: VerifiedV1) -> Verified {
        Verified { lsn: Lsn(lsn), root: Root(root), at_ms }
    }
}

impl StatusV1 {
    pub(crate) fn new(id: u64, status: &NodeStatus) -> StatusV1 {
        let group = |g: &GroupStatus| GroupStatusV1 {
            group: g.group.0,
            term: g.term.0,
            leader: g.leader.map(|n| n.0),
            appended: g.appended.0,
            durable: g.durable.0,
            committed: g.committed.0,
            applied: g.applied.0,
            checkpointed: g.checkpointed.0,
            lag_bytes: g.lag_bytes,
            lag_us: g.lag_us,
            quarantined: g.quarantined.clone(),
            verified: g.verified.map(Into::into),
            divergences: g.divergences,
            first: g.first.0,
            rebootstrapping: g.rebootstrapping.map(|r| ReceivedV1 { bytes: r.bytes, of: r.of }),
        };
        StatusV1 {
            id,
            version: status.version.clone(),
            http: status.http.clone(),
            state: status.state.clone(),
            voter: status.voter,
            epoch: status.epoch,
            groups: status.groups.iter().map(group).collect(),
        }
    }
}

impl From<StatusV1> for NodeStatus {
    fn from(v: StatusV1) -> NodeStatus {
        let group = |g: GroupStatusV1| GroupStatus {
            group: GroupId(g.group),
            term: Term(g.term),
            leader: g.leader.map(NodeId),
            appended: Lsn(g.appended),
            durable: Lsn(g.durable),
            committed: Lsn(g.committed),
            applied: Lsn(g.applied),
            checkpointed: Lsn(g.checkpointed),
            lag_bytes: g.lag_bytes,
            lag_us: g.lag_us,
            quarantined: g.quarantined,
            verified: g.verified.map(Into::into),
            divergences: g.divergences,
            first: Lsn(g.first),
            rebootstrapping: g.rebootstrapping.map(|r| Received { bytes: r.bytes, of: r.of }),
        };
        NodeStatus {
            version: v.version,
            http: v.http,
            state: v.state,
            voter: v.voter,
            epoch: v.epoch,
            groups: v.groups.into_iter().map(group).collect(),
        }
    }
}

/// What both sides of a connection say first.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct HelloV1 {
    cluster: u128,
    member: MemberV1,
    boot_counter: u64,
    boot_nonce: u64,
    http: String,
}

impl From<&Hello> for HelloV1 {
    fn from(hello: &Hello) -> HelloV1 {
        HelloV1 {
            cluster: hello.cluster.0,
            member: hello.peer.member.into(),
            boot_counter: hello.peer.boot.counter,
            boot_nonce: hello.peer.boot.nonce,
            http: hello.http.clone(),
        }
    }
}

impl From<HelloV1> for Hello {
    fn from(v: HelloV1) -> Hello {
        Hello {
            cluster: ClusterId(v.cluster),
            peer: Peer {
                member: v.member.into(),
                boot: Boot { counter: v.boot_counter, nonce: v.boot_nonce },
            },
            http: v.http,
        }
    }
}
