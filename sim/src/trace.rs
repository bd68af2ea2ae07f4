//! What happened in a run, event by event: a hash that two runs of a seed must share, and on
//! demand the events themselves, to find where they part, or a log for a reader.

use std::{
    cell::RefCell,
    fmt,
    io::{self, Write},
};

use bytes::Bytes;
use highwater_core::NodeId;

use crate::{page::story::Story, rng::spread};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A fault, or the end of one.
    Fault = 1,
    /// A process starts, is formed, or ends.
    Process = 2,
    /// A node's view of a leader changed.
    Leader = 3,
    /// A client calls.
    Call = 4,
    /// A client has its answer.
    Return = 5,
    /// A message is sent.
    Send = 6,
    /// A message arrives.
    Deliver = 7,
    /// A message is lost.
    Drop = 8,
    /// A write to the oplog's disk.
    LogWrite = 9,
    /// A sync of a file or a directory.
    Sync = 10,
    /// A read or a question to the oplog's disk.
    LogRead = 11,
    /// A file is made, renamed or removed.
    Name = 12,
    /// A write of the materialized state.
    StateWrite = 13,
    /// A read of the materialized state's file.
    StateRead = 14,
    /// A clock's sleep ended.
    Timer = 15,
    /// A run of entries was applied.
    Applied = 16,
    /// A datagram is sent.
    DatagramSend = 17,
    /// A datagram arrives.
    DatagramDeliver = 18,
    /// A datagram is lost.
    DatagramDrop = 19,
    /// A sync of a file failed.
    SyncFailed = 20,
}

impl Kind {
    const ALL: [Kind; 20] = [
        Kind::Fault,
        Kind::Process,
        Kind::Leader,
        Kind::Call,
        Kind::Return,
        Kind::Send,
        Kind::Deliver,
        Kind::Drop,
        Kind::LogWrite,
        Kind::Sync,
        Kind::LogRead,
        Kind::Name,
        Kind::StateWrite,
        Kind::StateRead,
        Kind::Timer,
        Kind::Applied,
        Kind::DatagramSend,
        Kind::DatagramDeliver,
        Kind::DatagramDrop,
        Kind::SyncFailed,
    ];

    fn level(self) -> Level {
        match self {
            Kind::Fault | Kind::Process | Kind::Leader | Kind::Call | Kind::Return => Level::Info,
            Kind::Send
            | Kind::Deliver
            | Kind::Drop
            | Kind::Sync
            | Kind::SyncFailed
            | Kind::Name
            | Kind::Applied => Level::Debug,
            _ => Level::Trace,
        }
    }

    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Fault => "fault",
            Kind::Process => "process",
            Kind::Leader => "leader",
            Kind::Call => "call",
            Kind::Return => "return",
            Kind::Send => "send",
            Kind::Deliver => "deliver",
            Kind::Drop => "drop",
            Kind::LogWrite => "write",
            Kind::Sync => "sync",
            Kind::LogRead => "read",
            Kind::Name => "name",
            Kind::StateWrite => "state-write",
            Kind::StateRead => "state-read",
            Kind::Timer => "timer",
            Kind::Applied => "applied",
            Kind::DatagramSend => "dgram-send",
            Kind::DatagramDeliver => "dgram-in",
            Kind::DatagramDrop => "dgram-drop",
            Kind::SyncFailed => "sync-failed",
        }
    }
}

/// How much of a run a reader wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Faults, processes, leaders, clients.
    Info,
    /// Messages, syncs, applies as well.
    Debug,
    /// Everything.
    Trace,
}

/// One event, in a fixed shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Simulated time.
    pub(crate) at_ns: u64,
    /// What kind.
    pub(crate) kind: u8,
    /// Where; 0 is the harness.
    pub(crate) node: u8,
    /// Of the kind's own meaning: a peer, a file, a group.
    pub(crate) a: u64,
    /// Of the kind's own meaning: an offset, a length, an LSN.
    pub(crate) b: u64,
    /// Of all bytes concerned.
    pub(crate) digest: u64,
}

impl Event {
    /// Bytes of one event in a file.
    #[cfg(any(test, madsim))]
    pub(crate) const SIZE: usize = 34;

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.at_ns.to_le_bytes())?;
        out.write_all(&[self.kind, self.node])?;
        out.write_all(&self.a.to_le_bytes())?;
        out.write_all(&self.b.to_le_bytes())?;
        out.write_all(&self.digest.to_le_bytes())
    }

    /// Reads back what [`Trace::save`] wrote.
    #[cfg(any(test, madsim))]
    pub(crate) fn read(bytes: &[u8]) -> Option<Event> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Event {
            at_ns: word(0)?,
            kind: *bytes.get(8)?,
            node: *bytes.get(9)?,
            a: word(10)?,
            b: word(18)?,
            digest: word(26)?,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Kind::ALL.iter().find(|k| **k as u8 == self.kind).map_or("?", |k| k.name());
        let (s, ns) = (self.at_ns / 1_000_000_000, self.at_ns % 1_000_000_000);
        let Event { node, a, b, digest, .. } = self;
        write!(f, "{s:>3}.{ns:09} n{node} {kind:<11} {a} {b} {digest:016x}")
    }
}

/// A digest of bytes; not cryptographic.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let word = |word: &[u8]| {
        let mut w = [0; 8];
        w[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(w)
    };
    // Four lanes: one alone would wait for its own multiplications.
    let mut lanes = [bytes.len() as u64, 1, 2, 3];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            *lane = fold(*lane, word(bytes));
        }
    }
    let mut h = lanes.into_iter().fold(0, fold);
    for bytes in blocks.remainder().chunks(8) {
        h = fold(h, word(bytes));
    }
    spread(h)
}

thread_local! {
    /// Digests of what was asked for lately, by where it lies: what is held here stays what it is.
    static KNOWN: RefCell<Vec<(Bytes, u64)>> = RefCell::new(vec![(Bytes::new(), 0); 256]);
}

/// The digest of bytes that many ask for: an entry's payload is looked at on every node, and again
/// by every oracle.
pub(crate) fn shared_digest(bytes: &Bytes) -> u64 {
    let same = |known: &Bytes| known.as_ptr() == bytes.as_ptr() && known.len() == bytes.len();
    KNOWN.with_borrow_mut(|known| {
        let slot = &mut known[spread(bytes.as_ptr() as u64) as usize % 256];
        if !same(&slot.0) || bytes.is_empty() {
            *slot = (bytes.clone(), digest(bytes));
        }
        slot.1
    })
}

fn fold(h: u64, x: u64) -> u64 {
    let wide = u128::from(h ^ x ^ 0x9e37_79b9_7f4a_7c15) * 0xf39c_c060_5ced_c835;
    (wide as u64) ^ ((wide >> 64) as u64) ^ h.rotate_left(23)
}

/// What is kept of a run beside its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Keep every event.
    pub(crate) events: bool,
    /// Print what a reader of this level wants to see.
    pub(crate) log: Option<Level>,
    /// Keep what a page shows.
    pub(crate) story: bool,
}

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    keep: Keep,
    hash: u64,
    count: u64,
    last_ns: u64,
    events: Vec<Event>,
    story: Option<Box<Story>>,
}

impl Trace {
    pub(crate) fn new(keep: Keep) -> Trace {
        let story = keep.story.then(Box::default);
        Trace { keep, story, ..Trace::default() }
    }

    /// What a page shows, if that is kept.
    pub(crate) fn story(&mut self) -> Option<&mut Story> {
        self.story.as_deref_mut()
    }

    /// Hands the story over.
    pub(crate) fn take_story(&mut self) -> Option<Box<Story>> {
        self.story.take()
    }

    /// Whether details of such an event would be shown.
    pub(crate) fn shows(&self, kind: Kind) -> bool {
        self.keep.log.is_some_and(|level| kind.level() <= level)
    }

    pub(crate) fn add(&mut self, event: Event, detail: impl FnOnce() -> String) {
        let Event { at_ns, kind, node, a, b, digest } = event;
        let mut h = fold(self.hash, at_ns);
        h = fold(h, u64::from(kind) << 8 | u64::from(node));
        h = fold(fold(fold(h, a), b), digest);
        self.hash = h;
        self.count += 1;
        self.last_ns = at_ns;
        if self.keep.events {
            self.events.push(event);
        }
        let wanted = self.keep.log.is_some() || self.story.is_some();
        if wanted
            && let Some(kind) = Kind::ALL.iter().find(|k| **k as u8 == kind)
            && (self.shows(*kind) || self.story.is_some())
        {
            let detail = detail();
            if self.shows(*kind) {
                let (s, ns) = (at_ns / 1_000_000_000, at_ns % 1_000_000_000);
                let who = if node == 0 { "--".to_owned() } else { format!("n{node}") };
                println!("{s:>3}.{ns:09} {who} {:<11} {detail}", kind.name());
            }
            if let Some(story) = &mut self.story {
                story.event(at_ns, *kind, NodeId(u64::from(node)), a, detail);
            }
        }
    }

    /// Hash and number of all events so far.
    pub(crate) fn hash(&self) -> (u64, u64) {
        (self.hash, self.count)
    }

    /// When the last event was, in simulated nanoseconds.
    #[cfg(madsim)]
    pub(crate) fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Writes the events that were kept.
    pub(crate) fn save(&self, out: &mut impl Write) -> io::Result<()> {
        self.events.iter().try_for_each(|event| event.write(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_ns: u64, digest: u64) -> Event {
        Event { at_ns, kind: Kind::Send as u8, node: 2, a: 3, b: 40, digest }
    }

    #[test]
    fn the_hash_tells_order_and_content() {
        let hash = |events: &[Event]| {
            let mut trace = Trace::default();
            events.iter().for_each(|e| trace.add(*e, String::new));
            trace.hash()
        };
        let (a, b) = (event(1, 7), event(2, 8));
        assert_eq!(hash(&[a, b]), hash(&[a, b]));
        assert_ne!(hash(&[a, b]), hash(&[b, a]));
        assert_ne!(hash(&[a]), hash(&[event(1, 9)]));
    }

    #[test]
    fn digests_see_every_byte() {
        let mut bytes = vec![0u8; 4099];
        let before = digest(&bytes);
        for at in [0, 7, 8, 4095, 4098] {
            bytes[at] = 1;
            assert_ne!(digest(&bytes), before, "byte {at}");
            bytes[at] = 0;
        }
        assert_ne!(digest(&[0; 4098]), before);
        let bytes = Bytes::from(bytes);
        for part in [bytes.clone(), bytes.slice(..5), bytes.slice(1..), Bytes::new(), bytes] {
            assert_eq!(shared_digest(&part), digest(&part));
            assert_eq!(shared_digest(&part), digest(&part));
        }
    }

    #[test]
    fn events_survive_a_file() {
        let mut trace = Trace::new(Keep { events: true, ..Keep::default() });
        trace.add(event(5, 6), String::new);
        let mut file = Vec::new();
        trace.save(&mut file).unwrap();
        assert_eq!(file.len(), Event::SIZE);
        assert_eq!(Event::read(&file), Some(event(5, 6)));
    }
}
