//! O31. A keyed write takes effect once within its window, and every answer of a key is of that one:
//!
//! - within the window of an entry with a key, no other entry has that key, refused or not;
//! - whoever is answered for a key is told of an entry with that key, of that very request;
//! - a key is called another request's only where there was another request with it.
//!
//! semantics.md 6. Failures 19, 36, 37.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, OnceEntry, OnceKey};

use super::{Verdict, broken};

/// What an applied entry says of its key.
#[derive(Clone, Debug)]
struct Kept {
    lsn: Lsn,
    digest: [u8; 16],
    expires_ms: u64,
}

/// The keyed writes of a run.
#[derive(Debug, Default)]
pub(crate) struct Once {
    /// By key, in order of LSNs.
    entries: BTreeMap<(GroupId, Bytes), Vec<Kept>>,
    /// The requests that had a key, by database.
    asked: BTreeMap<(String, Bytes), BTreeSet<[u8; 16]>>,
}

impl Once {
    /// A client asks.
    pub(crate) fn asks(&mut self, database: &str, once: &OnceKey) {
        let name = (database.to_owned(), once.key.clone());
        self.asked.entry(name).or_default().insert(once.digest);
    }

    /// An entry is applied, for the first time.
    pub(crate) fn applied(&mut self, group: GroupId, lsn: Lsn, entry: &OnceEntry) -> Verdict {
        let OnceEntry { time_ms, expires_ms, once, .. } = entry;
        let kept = self.entries.entry((group, once.key.clone())).or_default();
        let before = kept.last().cloned();
        kept.push(Kept { lsn, digest: once.digest, expires_ms: *expires_ms });
        match before {
            Some(before) if before.expires_ms > *time_ms => {
                let what = format!(
                    "key {} is used at {:?}, to be remembered until {} ms, and at {lsn:?}, at {time_ms} ms",
                    once.key.escape_ascii(),
                    before.lsn,
                    before.expires_ms
                );
                Err(broken(what).of(group).lsns(before.lsn, lsn))
            }
            _ => Ok(()),
        }
    }

    /// A client is told what came of its request: of the entry at this LSN.
    pub(crate) fn answered(&self, group: GroupId, once: &OnceKey, lsn: Lsn) -> Verdict {
        let kept = self.entries.get(&(group, once.key.clone())).into_iter().flatten();
        if kept.clone().any(|kept| kept.lsn == lsn && kept.digest == once.digest) {
            return Ok(());
        }
        let at: Vec<Lsn> = kept.map(|kept| kept.lsn).collect();
        let key = once.key.escape_ascii();
        let what = format!("key {key} is answered with {lsn:?}, its requests are at {at:?}");
        Err(broken(what).of(group).at(lsn))
    }

    /// A client is told that its key is another request's.
    pub(crate) fn denied(&self, database: &str, once: &OnceKey) -> Verdict {
        let asked = self.asked.get(&(database.to_owned(), once.key.clone()));
        if asked.is_some_and(|digests| digests.iter().any(|digest| *digest != once.digest)) {
            return Ok(());
        }
        let key = once.key.escape_ascii();
        Err(broken(format!("key {key} of {database} is denied, and was used for nothing else")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);

    fn key(key: &'static str, digest: u8) -> OnceKey {
        OnceKey { key: Bytes::from_static(key.as_bytes()), digest: [digest; 16] }
    }

    fn entry(once: OnceKey, time_ms: u64) -> OnceEntry {
        OnceEntry { time_ms, expires_ms: time_ms + 100, once, op: Bytes::new() }
    }

    #[test]
    fn fires_on_a_second_effect_within_the_window() {
        let second = |other: OnceKey, time_ms| {
            let mut once = Once::default();
            once.applied(G, Lsn(3), &entry(key("a", 1), 50)).unwrap();
            once.applied(G, Lsn(4), &entry(other, time_ms)).is_ok()
        };
        assert!(second(key("b", 1), 60), "another key");
        assert!(second(key("a", 1), 150), "its window is over");
        assert!(!second(key("a", 1), 149));
        assert!(!second(key("a", 2), 149), "another request");
    }

    #[test]
    fn fires_on_an_answer_of_something_else() {
        let mut once = Once::default();
        once.applied(G, Lsn(3), &entry(key("a", 1), 50)).unwrap();
        assert!(once.answered(G, &key("a", 1), Lsn(3)).is_ok());
        assert!(once.answered(G, &key("a", 1), Lsn(4)).is_err());
        assert!(once.answered(G, &key("a", 2), Lsn(3)).is_err());
        assert!(once.answered(G, &key("b", 1), Lsn(3)).is_err());
    }

    #[test]
    fn fires_on_a_mismatch_that_is_none() {
        let mut once = Once::default();
        once.asks("db", &key("a", 1));
        assert!(once.denied("db", &key("a", 1)).is_err());
        once.asks("db", &key("a", 2));
        assert!(once.denied("db", &key("a", 1)).is_ok());
        assert!(once.denied("other", &key("a", 1)).is_err());
    }
}
