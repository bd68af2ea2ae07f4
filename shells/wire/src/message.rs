//! Messages between nodes as frames.

use bytes::{Bytes, BytesMut};
use highwater_core::{Entry, GroupId, GroupMessage, Lsn, Message, NodeId, OnceKey, Position, Term};

use crate::{
    entry::{ENTRY_HEADER, decode_entry, encode_entry},
    frame::{Frame, FrameType, put},
    peer::{ForwardRequest, Hello, PeerMessage},
    v1::{
        AppendV1, FetchedV1, ForwardReplyV1, ForwardRequestV1, ForwardV1, GroupBodyV1, GroupV1,
        HeartbeatV1, HelloV1, NodesV1, RecallV1, RecalledV1, RootV1, SnapshotAskV1,
        SnapshotBlockV1, SnapshotNoneV1, StatusQueryV1, StatusV1,
    },
};

pub use crate::frame::{DecodeError, FRAME_HEADER, FRAME_MAX, FrameReader};

/// The longest [`Hello`], as a frame, in bytes.
pub const HELLO_MAX: usize = 4096;

/// Appends the frame of `message` to `out`.
///
/// # Panics
/// If it would be longer than [`FRAME_MAX`]: what nodes say is bounded by the core's configuration.
pub fn encode(message: &PeerMessage, out: &mut BytesMut) {
    match message {
        PeerMessage::Core(message) => encode_core(message, out),
        PeerMessage::Forward { id, budget_us, request } => {
            let mut tail: &[u8] = &[];
            let request = match request {
                ForwardRequest::Propose { group, payload, once } => {
                    tail = payload;
                    match once {
                        None => ForwardRequestV1::Propose { group: group.0 },
                        Some(OnceKey { key, digest }) => ForwardRequestV1::ProposeOnce {
                            group: group.0,
                            key: key.to_vec(),
                            digest: u128::from_be_bytes(*digest),
                        },
                    }
                }
                ForwardRequest::CreateDatabase { name } => {
                    ForwardRequestV1::CreateDatabase { name: name.clone() }
                }
                ForwardRequest::Transfer { group, to } => {
                    ForwardRequestV1::Transfer { group: group.0, to: to.0 }
                }
                ForwardRequest::Slot { group, name, ask } => {
                    let (group, name) = (group.0, name.clone());
                    ForwardRequestV1::Slot { group, name, ask: ask.into() }
                }
            };
            let control = ForwardV1 { id: *id, budget_us: *budget_us, request };
            put(FrameType::Forward, &control, out, |out| out.extend_from_slice(tail));
        }
        PeerMessage::ForwardReply { id, reply } => {
            let control = ForwardReplyV1 { id: *id, reply: reply.into() };
            put(FrameType::ForwardReply, &control, out, no_tail);
        }
        PeerMessage::SnapshotAsk { group, ask } => {
            put(FrameType::SnapshotAsk, &SnapshotAskV1::new(*group, *ask), out, no_tail);
        }
        PeerMessage::SnapshotBlock { group, id, number, blocks, bytes, content } => {
            let (number, blocks, bytes) = (*number, *blocks, *bytes);
            let control =
                SnapshotBlockV1 { group: group.0, id: (*id).into(), number, blocks, bytes };
            put(FrameType::SnapshotBlock, &control, out, |out| out.extend_from_slice(content));
        }
        PeerMessage::SnapshotNone { group, reason } => {
            let control = SnapshotNoneV1 { group: group.0, reason: reason.clone() };
            put(FrameType::SnapshotNone, &control, out, no_tail);
        }
        PeerMessage::StatusQuery { id } => {
            put(FrameType::StatusQuery, &StatusQueryV1 { id: *id }, out, no_tail);
        }
        PeerMessage::StatusReply { id, status } => {
            put(FrameType::StatusReply, &StatusV1::new(*id, status), out, no_tail);
        }
    }
}

/// Reads one whole frame. Payloads share its memory.
///
/// # Errors
/// Where it is damaged, malformed, of a later release, or a hello.
pub fn decode(frame: Bytes) -> Result<PeerMessage, DecodeError> {
    let frame = Frame::open(frame)?;
    match frame.kind {
        FrameType::Append => return decode_append(frame),
        FrameType::Fetched => return decode_fetched(frame),
        _ => {}
    }
    if !matches!(frame.kind, FrameType::Forward | FrameType::SnapshotBlock) {
        frame.no_tail()?;
    }
    Ok(match frame.kind {
        FrameType::Heartbeat => PeerMessage::Core(frame.control::<HeartbeatV1>()?.into()),
        FrameType::Nodes => PeerMessage::Core(frame.control::<NodesV1>()?.into()),
        FrameType::Group => PeerMessage::Core(frame.control::<GroupV1>()?.into()),
        FrameType::Recall => {
            let from = GroupId(frame.control::<RecallV1>()?.from);
            PeerMessage::Core(Message::Recall { from })
        }
        FrameType::Root => PeerMessage::Core(frame.control::<RootV1>()?.into()),
        FrameType::Recalled => PeerMessage::Core(frame.control::<RecalledV1>()?.into()),
        FrameType::Forward => {
            let ForwardV1 { id, budget_us, request } = frame.control()?;
            let has_tail = matches!(
                request,
                ForwardRequestV1::Propose { .. } | ForwardRequestV1::ProposeOnce { .. }
            );
            if !has_tail {
                frame.no_tail()?;
            }
            let request = match request {
                ForwardRequestV1::Propose { group } => {
                    let group = GroupId(group);
                    ForwardRequest::Propose { group, payload: frame.tail, once: None }
                }
                ForwardRequestV1::ProposeOnce { group, key, digest } => {
                    let once = OnceKey { key: key.into(), digest: digest.to_be_bytes() };
                    let group = GroupId(group);
                    ForwardRequest::Propose { group, payload: frame.tail, once: Some(once) }
                }
                ForwardRequestV1::CreateDatabase { name } => {
                    ForwardRequest::CreateDatabase { name }
                }
                ForwardRequestV1::Transfer { group, to } => {
                    ForwardRequest::Transfer { group: GroupId(group), to: NodeId(to) }
                }
                ForwardRequestV1::Slot { group, name, ask } => {
                    ForwardRequest::Slot { group: GroupId(group), name, ask: ask.into() }
                }
            };
            PeerMessage::Forward { id, budget_us, request }
        }
        FrameType::ForwardReply => {
            let ForwardReplyV1 { id, reply } = frame.control()?;
            PeerMessage::ForwardReply { id, reply: reply.into() }
        }
        FrameType::SnapshotAsk => frame.control::<SnapshotAskV1>()?.into(),
        FrameType::SnapshotBlock => {
            let SnapshotBlockV1 { group, id, number, blocks, bytes } = frame.control()?;
            let (group, content) = (GroupId(group), frame.tail);
            PeerMessage::SnapshotBlock { group, id: id.into(), number, blocks, bytes, content }
        }
        FrameType::SnapshotNone => {
            let SnapshotNoneV1 { group, reason } = frame.control()?;
            PeerMessage::SnapshotNone { group: GroupId(group), reason }
        }
        FrameType::StatusQuery => {
            PeerMessage::StatusQuery { id: frame.control::<StatusQueryV1>()?.id }
        }
        FrameType::StatusReply => {
            let status = frame.control::<StatusV1>()?;
            PeerMessage::StatusReply { id: status.id, status: status.into() }
        }
        FrameType::Hello | FrameType::Append | FrameType::Fetched => {
            return Err(DecodeError::Type(frame.kind as u8));
        }
    })
}

/// A hello as a frame.
///
/// # Errors
/// [`DecodeError::Length`] if it is longer than [`HELLO_MAX`]: its HTTP address is too long.
pub fn encode_hello(hello: &Hello) -> Result<Bytes, DecodeError> {
    let mut out = BytesMut::new();
    put(FrameType::Hello, &HelloV1::from(hello), &mut out, no_tail);
    if out.len() > HELLO_MAX {
        return Err(DecodeError::Length { stated: out.len() as u32 });
    }
    Ok(out.freeze())
}

/// Reads a frame that must be a hello.
///
/// # Errors
/// Where it is damaged, malformed, of a later release, longer than [`HELLO_MAX`], or anything else.
pub fn decode_hello(frame: Bytes) -> Result<Hello, DecodeError> {
    if frame.len() > HELLO_MAX {
        return Err(DecodeError::Length { stated: u32::try_from(frame.len()).unwrap_or(u32::MAX) });
    }
    let frame = Frame::open(frame)?;
    if frame.kind != FrameType::Hello {
        return Err(DecodeError::Type(frame.kind as u8));
    }
    frame.no_tail()?;
    Ok(frame.control::<HelloV1>()?.into())
}

fn no_tail(_: &mut BytesMut) {}

fn encode_core(message: &Message, out: &mut BytesMut) {
    let nodes = match message {
        Message::Heartbeat { generation, sent, echo } => {
            let control =
                HeartbeatV1 { generation: *generation, sent: sent.0, echo: echo.map(|i| i.0) };
            return put(FrameType::Heartbeat, &control, out, no_tail);
        }
        Message::Group { group, term, message } => {
            return encode_group(*group, *term, message, out);
        }
        Message::Confirm { groups } => NodesV1::confirm(groups),
        Message::Confirmed { leading, ceased } => NodesV1::confirmed(leading, ceased),
        Message::FormProbe => NodesV1::FormProbe,
        Message::FormBlank { prober } => NodesV1::FormBlank { prober: prober.0 },
        Message::Formed(formation) => NodesV1::formed(formation),
        Message::Recall { from } => {
            return put(FrameType::Recall, &RecallV1 { from: from.0 }, out, no_tail);
        }
        Message::Recalled { incarnation, boot, met, groups, next } => {
            let control = RecalledV1::new(*incarnation, (*boot, *met), groups, *next);
            return put(FrameType::Recalled, &control, out, no_tail);
        }
    };
    put(FrameType::Nodes, &nodes, out, no_tail);
}

fn encode_group(group: GroupId, term: Term, message: &GroupMessage, out: &mut BytesMut) {
    let body = match message {
        GroupMessage::Append { prev, entries, committed, round } => {
            let control = AppendV1 {
                group: group.0,
                term: term.0,
                prev: (*prev).into(),
                committed: committed.0,
                round: *round,
                entries: entries.len() as u32,
            };
            return put(FrameType::Append, &control, out, |out| put_entries(group, entries, out));
        }
        GroupMessage::Fetched { from, entries } => {
            let control = FetchedV1 {
                group: group.0,
                term: term.0,
                from: from.0,
                entries: entries.len() as u32,
            };
            return put(FrameType::Fetched, &control, out, |out| put_entries(group, entries, out));
        }
        GroupMessage::Root { lsn, root } | GroupMessage::Verified { lsn, root } => {
            let control = RootV1 {
                group: group.0,
                term: term.0,
                lsn: lsn.0,
                root: root.0,
                verified: matches!(message, GroupMessage::Verified { .. }),
            };
            return put(FrameType::Root, &control, out, no_tail);
        }
        GroupMessage::PreVote { last } => GroupBodyV1::PreVote { last: (*last).into() },
        GroupMessage::PreVoteReply { granted } => GroupBodyV1::PreVoteReply { granted: *granted },
        GroupMessage::Vote { last, transfer } => {
            GroupBodyV1::Vote { last: (*last).into(), transfer: *transfer }
        }
        GroupMessage::VoteReply { granted } => GroupBodyV1::VoteReply { granted: *granted },
        GroupMessage::AppendAccepted { durable, round } => {
            GroupBodyV1::AppendAccepted { durable: durable.0, round: *round }
        }
        GroupMessage::AppendRejected { hint, round } => {
            GroupBodyV1::AppendRejected { hint: hint.0, round: *round }
        }
        GroupMessage::ReadIndex { id } => GroupBodyV1::ReadIndex { id: *id },
        GroupMessage::ReadIndexReply { id, lsn } => {
            GroupBodyV1::ReadIndexReply { id: *id, lsn: lsn.map(|l| l.0) }
        }
        GroupMessage::TimeoutNow => GroupBodyV1::TimeoutNow,
        GroupMessage::Fetch { from, to } => GroupBodyV1::Fetch { from: from.0, to: to.0 },
        GroupMessage::Pruned { base, committed, round } => {
            GroupBodyV1::Pruned { base: (*base).into(), committed: committed.0, round: *round }
        }
    };
    put(FrameType::Group, &GroupV1 { group: group.0, term: term.0, body }, out, no_tail);
}

fn put_entries(group: GroupId, entries: &[Entry], out: &mut BytesMut) {
    out.reserve(entries.iter().map(Entry::weight).sum());
    for entry in entries {
        encode_entry(group, entry, out);
    }
}

/// A tail that is `count` entries of a group.
fn take_entries(group: GroupId, count: u32, mut tail: Bytes) -> Result<Vec<Entry>, DecodeError> {
    let count = count as usize;
    // Each entry takes a header, so the count cannot ask for more memory than the frame justifies.
    if tail.len() / ENTRY_HEADER < count {
        return Err(DecodeError::Malformed("a message lacks entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let (of, entry) = decode_entry(&mut tail)?;
        if of != group {
            return Err(DecodeError::Malformed("a message has an entry of another group"));
        }
        entries.push(entry);
    }
    if !tail.is_empty() {
        return Err(DecodeError::Malformed("there are bytes after a message's entries"));
    }
    Ok(entries)
}

fn decode_append(frame: Frame) -> Result<PeerMessage, DecodeError> {
    let append: AppendV1 = frame.control()?;
    let group = GroupId(append.group);
    let entries = take_entries(group, append.entries, frame.tail)?;
    let prev: Position = append.prev.into();
    let (committed, round) = (Lsn(append.committed), append.round);
    let message = GroupMessage::Append { prev, entries, committed, round };
    Ok(PeerMessage::Core(Message::Group { group, term: Term(append.term), message }))
}

fn decode_fetched(frame: Frame) -> Result<PeerMessage, DecodeError> {
    let fetched: FetchedV1 = frame.control()?;
    let group = GroupId(fetched.group);
    let entries = take_entries(group, fetched.entries, frame.tail)?;
    let message = GroupMessage::Fetched { from: Lsn(fetched.from), entries };
    Ok(PeerMessage::Core(Message::Group { group, term: Term(fetched.term), message }))
}

#[cfg(test)]
mod tests;
