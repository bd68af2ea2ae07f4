use highwater_core::{
    Boot, ClusterId, Formation, Hlc, Incarnation, Instant, Kind, Member, Outcome, Peer, Reject,
    Root, SlotCause, SlotLimits, SlotOutcome, SlotSettings, SlotStart, Verified,
};

use super::*;
use crate::{
    entry::EntryError,
    peer::{ForwardReply, GroupStatus, NodeStatus, Received, SlotAsk},
    testing::{hex, mutations},
};

const INCARNATION: Incarnation = Incarnation(0x0199_aabb_ccdd_eeff_0011_2233_4455_6677);

fn entry(lsn: u64, kind: Kind, payload: &'static [u8]) -> Entry {
    Entry {
        lsn: Lsn(lsn),
        term: Term(7),
        prev_term: Term(6),
        hlc: Hlc(0x0199_aabb_ccdd_0001),
        origin: 0xfeed_face_cafe_beef,
        kind,
        payload: Bytes::from_static(payload),
    }
}

fn append(entries: Vec<Entry>) -> PeerMessage {
    PeerMessage::Core(Message::Group {
        group: GroupId(9),
        term: Term(7),
        message: GroupMessage::Append {
            prev: Position { term: Term(6), lsn: Lsn(40) },
            entries,
            committed: Lsn(39),
            round: 5,
        },
    })
}

fn nodes() -> Vec<Message> {
    vec![
        Message::Heartbeat { generation: 3, sent: Instant(0x0102_0304), echo: None },
        Message::Heartbeat { generation: 3, sent: Instant(0x0102_0304), echo: Some(Instant(9)) },
        Message::Confirm { groups: vec![] },
        Message::Confirm { groups: vec![(GroupId(1), Term(2)), (GroupId(3), Term(4))] },
        Message::Confirmed { leading: vec![(GroupId(1), Term(2))], ceased: vec![] },
        Message::Confirmed { leading: vec![], ceased: vec![(GroupId(3), Term(4))] },
        Message::FormProbe,
        Message::FormBlank { prober: INCARNATION },
        Message::Formed(Formation {
            members: vec![
                Member { node: NodeId(1), incarnation: INCARNATION },
                Member { node: NodeId(2), incarnation: Incarnation(8) },
            ],
        }),
        Message::Recall { from: GroupId(7) },
        Message::Recalled {
            incarnation: INCARNATION,
            boot: Boot { counter: 2, nonce: 3 },
            met: Some(Boot { counter: 1, nonce: 4 }),
            groups: vec![(GroupId(7), Term(4), Lsn(5)), (GroupId(9), Term(6), Lsn(0))],
            next: Some(GroupId(10)),
        },
        Message::Recalled {
            incarnation: Incarnation(8),
            boot: Boot { counter: 2, nonce: 3 },
            met: None,
            groups: vec![],
            next: None,
        },
    ]
}

fn groups() -> Vec<GroupMessage> {
    let last = Position { term: Term(6), lsn: Lsn(40) };
    vec![
        GroupMessage::PreVote { last },
        GroupMessage::PreVoteReply { granted: true },
        GroupMessage::Vote { last, transfer: false },
        GroupMessage::Vote { last, transfer: true },
        GroupMessage::VoteReply { granted: false },
        GroupMessage::AppendAccepted { durable: Lsn(41), round: 5 },
        GroupMessage::AppendRejected { hint: Lsn(12), round: 5 },
        GroupMessage::ReadIndex { id: 77 },
        GroupMessage::ReadIndexReply { id: 77, lsn: None },
        GroupMessage::ReadIndexReply { id: 77, lsn: Some(Lsn(40)) },
        GroupMessage::TimeoutNow,
        GroupMessage::Fetch { from: Lsn(40), to: Lsn(42) },
        GroupMessage::Fetched { from: Lsn(40), entries: vec![] },
        GroupMessage::Fetched { from: Lsn(40), entries: vec![entry(40, Kind::Op, b"payload")] },
        GroupMessage::Root { lsn: Lsn(40), root: Root(0x1234_5678 << 96 | 9) },
        GroupMessage::Verified { lsn: Lsn(40), root: Root(0x1234_5678 << 96 | 9) },
    ]
}

fn slot(ask: SlotAsk) -> ForwardRequest {
    ForwardRequest::Slot { group: GroupId(9), name: "mailer".into(), ask }
}

fn outcome(outcome: SlotOutcome) -> ForwardReply {
    ForwardReply::Slot { first: Lsn(2), outcome }
}

fn propose(payload: &'static [u8], key: Option<&'static [u8]>) -> ForwardRequest {
    let once =
        key.map(|key| OnceKey { key: Bytes::from_static(key), digest: *b"0123456789abcdef" });
    ForwardRequest::Propose { group: GroupId(9), payload: Bytes::from_static(payload), once }
}

fn forwards() -> Vec<PeerMessage> {
    let requests = vec![
        propose(b"payload", None),
        propose(b"", None),
        propose(b"payload", Some(b"key")),
        propose(b"", Some(b"a-key-that-does-not-fit-inline")),
        ForwardRequest::CreateDatabase { name: "orders".into() },
        ForwardRequest::CreateDatabase { name: "a-name-that-does-not-fit-inline".into() },
        ForwardRequest::Transfer { group: GroupId(9), to: NodeId(3) },
        slot(SlotAsk::Create(SlotSettings::default())),
        slot(SlotAsk::Create(SlotSettings {
            from: SlotStart::After(Lsn(4)),
            limits: SlotLimits { lag_bytes: Some(5), lag_ops: Some(6), idle_ms: Some(7) },
        })),
        slot(SlotAsk::Ack(Lsn(8))),
        slot(SlotAsk::Delete),
    ];
    let mut replies = vec![
        ForwardReply::Applied {
            lsn: Lsn(41),
            term: Term(7),
            outcome: Outcome { refused: true, answer: Bytes::from_static(b"answer") },
            replayed: false,
        },
        ForwardReply::Applied {
            lsn: Lsn(42),
            term: Term(7),
            outcome: Outcome { refused: false, answer: Bytes::from_static(b"answer") },
            replayed: true,
        },
        ForwardReply::Created { group: GroupId(9), existed: true },
        ForwardReply::Transferred { term: Term(8) },
        outcome(SlotOutcome::Created { confirmed: Lsn(9) }),
        outcome(SlotOutcome::Stood { confirmed: Lsn(10) }),
        outcome(SlotOutcome::Differs),
        outcome(SlotOutcome::Confirmed { confirmed: Lsn(11) }),
        outcome(SlotOutcome::Deleted),
        outcome(SlotOutcome::NoSuchSlot),
        outcome(SlotOutcome::Invalidated { cause: SlotCause::Horizon }),
        outcome(SlotOutcome::Invalidated { cause: SlotCause::IdleTimeout }),
        outcome(SlotOutcome::Invalidated { cause: SlotCause::LogRemoved }),
        outcome(SlotOutcome::AboveCommitted { committed: Lsn(12) }),
        ForwardReply::Unknown,
    ];
    replies.extend(
        [
            Reject::NotLeader { leader: None },
            Reject::NotLeader { leader: Some(NodeId(2)) },
            Reject::NoSuchGroup,
            Reject::Busy,
            Reject::StorageFull,
            Reject::Expired,
            Reject::TooLarge,
            Reject::Superseded,
            Reject::Quarantined,
            Reject::Transferring,
            Reject::TransferFailed,
            Reject::NotReady,
            Reject::KeyMismatch,
            Reject::KeysFull,
            Reject::KeysUnknown,
        ]
        .map(ForwardReply::Rejected),
    );
    let forward = |request| PeerMessage::Forward { id: 11, budget_us: 2_500_000, request };
    let reply = |reply| PeerMessage::ForwardReply { id: 11, reply };
    requests.into_iter().map(forward).chain(replies.into_iter().map(reply)).collect()
}

fn status() -> NodeStatus {
    let group = GroupStatus {
        group: GroupId(9),
        term: Term(7),
        leader: Some(NodeId(2)),
        appended: Lsn(45),
        durable: Lsn(44),
        committed: Lsn(43),
        applied: Lsn(42),
        checkpointed: Lsn(41),
        lag_bytes: 512,
        lag_us: 1500,
        quarantined: Some("the state file is damaged".into()),
        first: Lsn(30),
        rebootstrapping: Some(Received { bytes: 4_096, of: 65_536 }),
        verified: Some(Verified { lsn: Lsn(39), root: Root(0xabc), at_ms: 1_700_000_000_000 }),
        divergences: 2,
    };
    NodeStatus {
        version: "0.1.0".into(),
        http: "127.0.0.1:8080".into(),
        state: "ready".into(),
        voter: true,
        epoch: 4,
        groups: vec![group, GroupStatus::default()],
    }
}

/// Every message there is, in every shape that encodes differently.
fn samples() -> Vec<PeerMessage> {
    let group =
        |message| PeerMessage::Core(Message::Group { group: GroupId(9), term: Term(7), message });
    let mut all: Vec<_> = nodes().into_iter().map(PeerMessage::Core).collect();
    all.extend(groups().into_iter().map(group));
    all.push(append(vec![]));
    all.push(append(vec![entry(41, Kind::TermStart, b""), entry(42, Kind::Op, b"payload")]));
    all.extend(forwards());
    all.push(PeerMessage::StatusQuery { id: 12 });
    all.push(PeerMessage::StatusReply { id: 12, status: NodeStatus::default() });
    all.push(PeerMessage::StatusReply { id: 12, status: status() });
    all
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId(0x1111_2222_3333_4444_5555_6666_7777_8888),
        peer: Peer {
            member: Member { node: NodeId(2), incarnation: INCARNATION },
            boot: Boot { counter: 3, nonce: 0x0102_0304_0506_0708 },
        },
        http: "127.0.0.1:8080".into(),
    }
}

fn encoded(message: &PeerMessage) -> Bytes {
    let mut out = BytesMut::new();
    encode(message, &mut out);
    out.freeze()
}

#[test]
fn bytes_are_frozen() {
    let shown: Vec<_> = samples().iter().map(|m| format!("{m:?}\n{}", hex(&encoded(m)))).collect();
    insta::assert_snapshot!("messages", shown.join("\n\n"));
    insta::assert_snapshot!("hello", hex(&encode_hello(&hello()).expect("a short one")));
}

#[test]
fn every_message_comes_back() {
    for message in samples() {
        assert_eq!(decode(encoded(&message)), Ok(message));
    }
    assert_eq!(decode_hello(encode_hello(&hello()).expect("a short one")), Ok(hello()));
}

#[test]
fn payloads_are_not_copied() {
    let bytes = encoded(&append(vec![entry(41, Kind::Op, b"first"), entry(42, Kind::Op, b"next")]));
    let memory = bytes.as_ptr_range();
    let Ok(PeerMessage::Core(Message::Group {
        message: GroupMessage::Append { entries, .. }, ..
    })) = decode(bytes.clone())
    else {
        panic!("an append was decoded as something else");
    };
    assert!(entries.iter().all(|e| memory.contains(&e.payload.as_ptr())));

    let request = propose(b"payload", None);
    let bytes = encoded(&PeerMessage::Forward { id: 1, budget_us: 2, request });
    let Ok(PeerMessage::Forward { request: ForwardRequest::Propose { payload, .. }, .. }) =
        decode(bytes.clone())
    else {
        panic!("a proposal was decoded as something else");
    };
    assert!(bytes.as_ptr_range().contains(&payload.as_ptr()));
}

#[test]
fn every_flip_and_cut_is_an_error() {
    for message in samples() {
        mutations(&encoded(&message), |damaged| {
            assert!(decode(damaged).is_err(), "damage to {message:?} went unnoticed");
        });
    }
    mutations(&encode_hello(&hello()).expect("a short one"), |damaged| {
        assert!(decode_hello(damaged).is_err());
    });
}

/// What a faulty peer could send: damaged contents under a checksum that matches. It is refused or
/// read as some message; there is no panic.
#[test]
fn contents_are_validated_behind_the_checksum() {
    let seal = |mut bytes: Vec<u8>| {
        if bytes.len() >= FRAME_HEADER {
            let len = (bytes.len() as u32).to_le_bytes();
            bytes[..4].copy_from_slice(&len);
            let control = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
            let end = match bytes[9] {
                4 => bytes.len().min(FRAME_HEADER.saturating_add(control as usize)),
                _ => bytes.len(),
            };
            let sum = crc32c::crc32c(&bytes[8..end]).to_le_bytes();
            bytes[4..8].copy_from_slice(&sum);
        }
        Bytes::from(bytes)
    };
    let (mut refused, mut read) = (0, 0);
    let mut frames: Vec<_> = samples().iter().map(encoded).collect();
    frames.push(encode_hello(&hello()).expect("a short one"));
    for frame in frames {
        mutations(&frame, |damaged| {
            let sealed = seal(damaged.to_vec());
            let known = decode_hello(sealed.clone()).is_ok();
            if decode(sealed).is_ok() || known { read += 1 } else { refused += 1 }
        });
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read: the test is empty");
}

#[test]
fn an_append_is_only_what_it_says() {
    let two = vec![entry(41, Kind::Op, b"a"), entry(42, Kind::Op, b"b")];
    // Length and tail of a frame can be changed without touching its checksum.
    let resized = |bytes: &mut Vec<u8>| {
        let len = (bytes.len() as u32).to_le_bytes();
        bytes[..4].copy_from_slice(&len);
        decode(Bytes::from(bytes.clone())).expect_err("a changed append")
    };
    let mut bytes = encoded(&append(two.clone())).to_vec();
    bytes.truncate(bytes.len() - ENTRY_HEADER - 1);
    assert_eq!(resized(&mut bytes), DecodeError::Malformed("a message lacks entries"));
    let mut more = encoded(&append(two.clone())).to_vec();
    more.push(0);
    assert_eq!(
        resized(&mut more),
        DecodeError::Malformed("there are bytes after a message's entries")
    );
    let mut other = encoded(&append(two.clone())).to_vec();
    let mut foreign = BytesMut::new();
    encode_entry(GroupId(10), &two[1], &mut foreign);
    other.truncate(other.len() - foreign.len());
    other.extend_from_slice(&foreign);
    assert_eq!(
        resized(&mut other),
        DecodeError::Malformed("a message has an entry of another group")
    );
    let mut flipped = encoded(&append(two)).to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    assert_eq!(resized(&mut flipped), DecodeError::Entry(EntryError::Checksum));
}

#[test]
fn hellos_and_messages_are_not_mistaken_for_each_other() {
    let hello = encode_hello(&hello()).expect("a short one");
    assert_eq!(decode(hello), Err(DecodeError::Type(9)));
    let message = encoded(&PeerMessage::StatusQuery { id: 1 });
    assert_eq!(decode_hello(message), Err(DecodeError::Type(7)));
}

#[test]
fn a_long_hello_is_neither_sent_nor_read() {
    let long = Hello { http: "x".repeat(HELLO_MAX), ..hello() };
    assert!(matches!(encode_hello(&long), Err(DecodeError::Length { .. })));
    assert!(matches!(
        decode_hello(Bytes::from(vec![0; HELLO_MAX + 1])),
        Err(DecodeError::Length { .. })
    ));
}

#[test]
fn frames_are_found_whatever_the_chunks() {
    let all = samples();
    let mut stream = BytesMut::new();
    for message in &all {
        encode(message, &mut stream);
    }
    let stream = stream.freeze();
    for size in [1, 3, 15, 16, 17, 100, 1000, stream.len()] {
        let mut reader = FrameReader::new();
        let mut back = Vec::new();
        for chunk in stream.chunks(size) {
            reader.push(Bytes::copy_from_slice(chunk));
            while let Some(frame) = reader.next_frame().expect("intact frames") {
                back.push(decode(frame).expect("an intact frame"));
            }
        }
        assert_eq!(back, all, "in chunks of {size}");
    }
}

#[test]
fn a_frame_within_a_chunk_is_not_copied() {
    let mut stream = BytesMut::new();
    encode(&PeerMessage::StatusQuery { id: 1 }, &mut stream);
    encode(&PeerMessage::StatusQuery { id: 2 }, &mut stream);
    let stream = stream.freeze();
    let mut reader = FrameReader::new();
    reader.push(stream.clone());
    for _ in 0..2 {
        let frame = reader.next_frame().expect("intact").expect("whole");
        assert!(stream.as_ptr_range().contains(&frame.as_ptr()));
    }
    assert_eq!(reader.next_frame(), Ok(None));
}

#[test]
fn a_stream_with_an_impossible_length_stays_refused() {
    for stated in [0, FRAME_HEADER as u32 - 1, FRAME_MAX as u32 + 1, u32::MAX] {
        let mut reader = FrameReader::new();
        reader.push(Bytes::copy_from_slice(&stated.to_le_bytes()));
        for _ in 0..2 {
            assert_eq!(reader.next_frame(), Err(DecodeError::Length { stated }));
        }
    }
}
