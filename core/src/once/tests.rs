//! The table on its own.

use alloc::{format, string::String, vec::Vec};

use super::*;

fn entry(key: &str, time_ms: u64, window_ms: u64) -> OnceEntry {
    let once =
        OnceKey { key: Bytes::copy_from_slice(key.as_bytes()), digest: *b"0123456789abcdef" };
    let op = Bytes::from_static(b"op");
    OnceEntry { time_ms, expires_ms: time_ms + window_ms, once, op }
}

fn outcome(refused: bool) -> Outcome {
    Outcome { refused, answer: Bytes::from_static(b"answer") }
}

/// A table that is fed one keyed write after another, and what checkpoints have of it.
#[derive(Default)]
struct Log {
    once: Once,
    lsn: u64,
    time_ms: u64,
    disk: BTreeMap<Bytes, Bytes>,
}

impl Log {
    fn write(&mut self, key: &str, time_ms: u64, window_ms: u64) {
        (self.lsn, self.time_ms) = (self.lsn + 1, time_ms);
        let refused = self.lsn.is_multiple_of(3);
        let at = (Lsn(self.lsn), Term(2));
        self.once.take(at, &entry(key, time_ms, window_ms), time_ms, outcome(refused));
        self.once.check(time_ms);
    }

    /// How many rows that took.
    fn checkpoint(&mut self) -> usize {
        let rows = self.once.take_dirty();
        let count = rows.len();
        self.disk.extend(rows);
        count
    }

    fn rows(&self) -> Vec<(Bytes, Bytes)> {
        self.disk.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn knows(&self, key: &str) -> Option<u64> {
        self.once.get(key.as_bytes(), self.time_ms).map(|known| known.lsn.0)
    }
}

/// All that is remembered.
fn contents(once: &Once) -> BTreeMap<Bytes, Remembered> {
    once.rows.values().flatten().map(|(key, known)| (key.clone(), known.clone())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).fold(String::new(), |out, row| {
        let row = row.iter().fold(String::new(), |row, byte| row + &format!("{byte:02x}"));
        out + &row + "\n"
    })
}

#[test]
fn bytes_are_frozen() {
    insta::assert_snapshot!("entry", hex(&entry("order-7", 77_000, 5).encode()));
    let mut log = Log::default();
    for key in ["order-7", "a", "order-8"] {
        log.write(key, 77_000, 5);
    }
    let (key, value) = log.once.take_dirty().remove(0);
    insta::assert_snapshot!("row", hex(&key) + "\n" + &hex(&value));
}

#[test]
fn an_entry_comes_back_and_nonsense_does_not() {
    let whole = entry("order-7", 77_000, 5);
    assert_eq!(OnceEntry::decode(whole.encode()), Some(whole.clone()));
    let bytes = whole.encode();
    for len in 0..bytes.len() - whole.op.len() {
        assert_eq!(OnceEntry::decode(bytes.slice(..len)), None, "{len} bytes of it");
    }
    // The version, and a key's length.
    for (at, value) in [(0, 2), (17, 0), (17, 129), (17, 255)] {
        let mut bytes = BytesMut::from(&bytes[..]);
        bytes[at] = value;
        assert_eq!(OnceEntry::decode(bytes.freeze()), None, "{value} at {at}");
    }
    let mut log = Log::default();
    log.write("k", 1, 5);
    log.checkpoint();
    let (key, row) = log.rows().remove(0);
    let decode = |key: &Bytes, row: Bytes| Once::decode(&[(key.clone(), row)], 1);
    assert!(decode(&key, row.clone()).is_some());
    for len in 0..row.len() {
        assert!(decode(&key, row.slice(..len)).is_none(), "{len} bytes of a row");
    }
    assert!(decode(&Bytes::from_static(b"once/1"), row.clone()).is_none());
    let twice = [(key, row.clone()), (row_key(9), row)];
    assert!(Once::decode(&twice, 1).is_none(), "a key has one outcome");
}

#[test]
fn an_outcome_is_forgotten_when_its_window_is_over_and_not_before() {
    let mut log = Log::default();
    log.write("a", 100, 50);
    log.write("b", 120, 50);
    assert_eq!((log.knows("a"), log.knows("b")), (Some(1), Some(2)));
    assert!(log.once.get(b"a", 149).is_some());
    assert!(log.once.get(b"a", 150).is_none(), "a leader knows that it is over");
    assert_eq!((log.once.len(149), log.once.len(150), log.once.len(170)), (2, 1, 0));
    log.once.forget(149);
    assert_eq!(log.once.len(0), 2);
    log.once.forget(150);
    assert_eq!((log.once.len(0), log.knows("a")), (1, None));
    log.write("a", 160, 50);
    assert_eq!(log.knows("a"), Some(3), "it is a new one");
    // Another leader's window may be shorter: each has its own.
    log.write("c", 165, 1);
    log.once.forget(166);
    assert_eq!((log.knows("b"), log.knows("c")), (Some(2), None));
}

#[test]
fn what_expires_at_once_is_not_kept() {
    let mut log = Log::default();
    log.write("a", 100, 0);
    assert_eq!(log.once.len(0), 0);
}

#[test]
fn a_checkpoint_writes_what_came_since_and_is_read_back() {
    let mut log = Log::default();
    for n in 0..1000 {
        log.write(&format!("key-{n}"), n, 600);
    }
    assert_eq!(log.checkpoint(), 1000usize.div_ceil(ROW_MAX) - 399 / ROW_MAX);
    assert_eq!(log.checkpoint(), 0);
    for n in 1000..1100 {
        log.write(&format!("key-{n}"), n, 600);
        if n % 10 == 0 {
            assert!(log.checkpoint() <= 2);
            let again = Once::decode(&log.rows(), log.time_ms).expect("it can be read");
            again.check(log.time_ms);
            assert_eq!(contents(&again), contents(&log.once));
        }
    }
}

#[test]
fn rows_are_filled_anew() {
    let mut log = Log::default();
    for n in 0..20_000 {
        log.write(&format!("key-{n}"), n, 300);
        if n % 50 == 0 {
            log.checkpoint();
        }
    }
    assert!(log.disk.len() <= 300 / ROW_MAX + 3, "{} rows", log.disk.len());
    let mut again = Once::decode(&log.rows(), log.time_ms).expect("it can be read");
    again.forget(log.time_ms + 1000);
    assert_eq!(again.len(0), 0);
}
