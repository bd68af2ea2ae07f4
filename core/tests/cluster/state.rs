//! The model of an engine: a tiny state machine over text.
//!
//! An op is `put KEY VALUE`, or `cas KEY OLD NEW` (`-` for "absent"), which is refused where the key
//! holds something else. Words from `#` on name the op and change nothing.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use bytes::Bytes;
use highwater_core::{Entry, Lsn, Outcome, Position, Root, Term};

/// One group's materialized state.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) applied: Lsn,
    /// Of the last entry.
    pub(crate) term: Term,
    pub(crate) keys: BTreeMap<String, String>,
    /// A digest of every entry and outcome so far: equal states, equal histories.
    pub(crate) root: u64,
}

impl State {
    pub(crate) fn at(&self) -> Position {
        Position { term: self.term, lsn: self.applied }
    }

    /// Applies an entry, unless the state holds it already; the outcome of an op or an audit.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Option<Outcome> {
        let told = entry.kind.has_outcome();
        if entry.lsn <= self.applied {
            return told.then(Outcome::default);
        }
        assert_eq!(entry.lsn, self.applied.next(), "a run has no hole");
        (self.applied, self.term) = (entry.lsn, entry.term);
        let outcome = told.then(|| match entry.op() {
            Some(op) => self.op(&op),
            None => Outcome { refused: false, answer: self.content().encode().to_vec().into() },
        });
        let mut hasher = DefaultHasher::new();
        let refused = outcome.as_ref().map(|o| o.refused);
        (self.root, entry.lsn, entry.term, &entry.payload, refused).hash(&mut hasher);
        self.root = hasher.finish();
        outcome
    }

    /// What an audit tells.
    fn content(&self) -> Root {
        let mut hasher = DefaultHasher::new();
        (self.applied, &self.keys).hash(&mut hasher);
        Root(hasher.finish().into())
    }

    fn op(&mut self, payload: &Bytes) -> Outcome {
        let text = std::str::from_utf8(payload).unwrap_or("");
        let words: Vec<&str> = text.split(' ').take_while(|w| !w.starts_with('#')).collect();
        let refused = match words[..] {
            ["put", key, value] => {
                self.keys.insert(key.to_owned(), value.to_owned());
                false
            }
            ["cas", key, old, new] => {
                let holds = self.keys.get(key).map_or("-", String::as_str) == old;
                if holds {
                    self.keys.insert(key.to_owned(), new.to_owned());
                }
                !holds
            }
            _ => true,
        };
        let answer = if refused { "no" } else { "yes" };
        Outcome { refused, answer: Bytes::from_static(answer.as_bytes()) }
    }
}
