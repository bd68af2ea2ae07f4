//! O15. Linearizability of each key, from nothing but what clients asked and were told.
//!
//! Independent of the log: [`linearizability`](super::linearizability) trusts the LSNs that answers
//! name; this one searches for any order of the operations that explains every answer and respects
//! real time (Wing and Gong, 1993; the memory of what was tried is Lowe's, 2017). A write without an
//! answer may take effect at any time after it was asked for, or never. LSNs only say where to look
//! first, so that a history that is right is explained at once; one that is not explained within
//! [`STEPS_MAX`] is left undecided. A batch counts for each of its keys by itself.
//!
//! semantics.md 2, 3, 4. Failures 13, 19, 26, 31, 37, 43.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use highwater_core::{Lsn, OnceKey};
use highwater_node::api::{Consistency, Error};
use highwater_wire::op::{Action, Condition, Op, Versions, Write};

use super::{Broken, broken};
use crate::{
    history::{Ask, Call, Told},
    rng::spread,
    trace::digest,
};

/// States that a search looks at before it gives up.
const STEPS_MAX: u64 = 100_000;

/// A value, by its digest; values of a run are unique.
type Value = u64;

/// What an operation did with a key, as the client was told.
#[derive(Clone, Debug)]
enum Did {
    /// Wrote, if the condition held. Of the first key of an op: whether there was a record.
    Write { condition: Condition, then: Option<Value>, existed: Option<bool> },
    /// Saw this value, or none.
    Saw(Option<Value>),
    /// Saw a record of this version, or none (0).
    SawVersion(Lsn),
}

/// One operation on one key.
#[derive(Clone, Debug)]
struct Event {
    call: u64,
    called: u64,
    /// `None`: without an answer.
    returned: Option<u64>,
    did: Did,
    /// Where it belongs in the log, as far as the client knows.
    place: (Lsn, u8),
}

/// What a client knows of one key.
#[derive(Debug, Default)]
struct Key {
    events: Vec<Event>,
    versions: BTreeMap<Lsn, Value>,
}

/// What all clients asked and were told.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    clock: u64,
    open: BTreeMap<u64, u64>,
    /// Keyed writes: however often one is asked for, it is one operation.
    tries: BTreeMap<(String, Bytes), Tries>,
    keys: BTreeMap<(String, Bytes), Key>,
}

/// The attempts at a keyed write.
#[derive(Clone, Debug)]
struct Tries {
    /// The first one.
    call: Call,
    called: u64,
    /// Some attempt has no answer.
    unknown: bool,
    /// What the first answer says of it is known.
    answered: bool,
}

fn value_of(value: &Bytes, content_type: &Bytes) -> Value {
    spread(digest(value) ^ spread(digest(content_type)))
}

fn name_of(call: &Call, once: &OnceKey) -> (String, Bytes) {
    (call.database.clone(), once.key.clone())
}

impl Histories {
    /// A client calls.
    pub(crate) fn calls(&mut self, call: &Call) {
        self.clock += 1;
        self.open.insert(call.id, self.clock);
        if let Some(once) = call.ask.once() {
            let (call, called) = (call.clone(), self.clock);
            let first = Tries { call, called, unknown: false, answered: false };
            self.tries.entry(name_of(&first.call, once)).or_insert(first);
        }
    }

    /// A client has its answer.
    pub(crate) fn told(&mut self, call: &Call, told: &Told) {
        self.clock += 1;
        let Some(called) = self.open.remove(&call.id) else { return };
        match (&call.ask, told) {
            (Ask::Write(op), told) => self.written(call, called, op, told),
            (Ask::Once(op, once), told) => self.tried(call, called, (op, once), told),
            (Ask::Get(key, consistency), Told::Got(got)) => {
                let record = got.record.as_ref();
                let saw = record.map(|r| (r.version, value_of(&r.value, &r.content_type)));
                let history = self.keys.entry((call.database.clone(), key.clone())).or_default();
                history.versions.extend(saw);
                if *consistency != Consistency::Linearizable {
                    return;
                }
                let did = Did::Saw(saw.map(|(_, value)| value));
                let (call, returned) = (call.id, Some(self.clock));
                history.events.push(Event { call, called, returned, did, place: (got.applied, 1) });
            }
            _ => {}
        }
    }

    /// An attempt at a keyed write has ended. The first one that tells what came of it ends the
    /// operation, which began with the first one of all.
    fn tried(&mut self, call: &Call, called: u64, (op, once): (&Op, &OnceKey), told: &Told) {
        let Some(tries) = self.tries.get_mut(&name_of(call, once)) else { return };
        if tries.call.ask != call.ask {
            // Another request with the same key: it is refused, or is one of its own.
            return self.written(call, called, op, told);
        }
        match told {
            Told::Written(_) | Told::Failed(Error::Refused { .. }) if !tries.answered => {
                tries.answered = true;
                let called = tries.called;
                self.written(call, called, op, told);
            }
            Told::Failed(Error::Unknown) | Told::Silence => tries.unknown = true,
            _ => {}
        }
    }

    /// Nobody calls any more: keyed writes without an answer take effect at any time, or never.
    pub(crate) fn end(&mut self) {
        for Tries { call, called, unknown, answered } in
            std::mem::take(&mut self.tries).into_values()
        {
            if let Some(op) = call.ask.op().filter(|_| unknown && !answered) {
                self.written(&call, called, op, &Told::Silence);
            }
        }
    }

    fn written(&mut self, call: &Call, called: u64, op: &Op, told: &Told) {
        let event = |returned, did, place| Event { call: call.id, called, returned, did, place };
        let returned = Some(self.clock);
        for (index, Write { key, action, condition }) in op.writes.iter().enumerate() {
            let history = self.keys.entry((call.database.clone(), key.clone())).or_default();
            let then = match action {
                Action::Put { value, content_type } => Some(value_of(value, content_type)),
                Action::Delete => None,
            };
            let write = |existed| Did::Write { condition: condition.clone(), then, existed };
            history.events.push(match told {
                Told::Written(receipt) => {
                    history.versions.extend(then.map(|value| (receipt.lsn, value)));
                    let existed = (index == 0).then_some(receipt.existed);
                    event(returned, write(existed), (receipt.lsn, 0))
                }
                Told::Failed(Error::Refused { index: at, version, lsn, .. }) => {
                    if *at as usize != index {
                        continue;
                    }
                    event(returned, Did::SawVersion(*version), (*lsn, 0))
                }
                Told::Failed(Error::Unknown) | Told::Silence => {
                    event(None, write(None), (Lsn(u64::MAX), 0))
                }
                _ => continue,
            });
        }
    }

    /// Whether every key's history has an explanation; and of how many that stayed undecided.
    pub(crate) fn check(&self) -> Result<u64, Broken> {
        let mut undecided = 0;
        for ((database, key), history) in &self.keys {
            match history.explain() {
                Explained::Yes => {}
                Explained::Undecided => undecided += 1,
                Explained::No(event) => {
                    let what = format!(
                        "no order of {} operations on {} in {database} explains call #{}: {:?}",
                        history.events.len(),
                        String::from_utf8_lossy(key),
                        event.call,
                        event.did
                    );
                    return Err(broken(what).at(event.place.0));
                }
            }
        }
        Ok(undecided)
    }
}

/// What came of a search.
enum Explained<'a> {
    Yes,
    Undecided,
    /// This one could not be explained, in the order that got furthest.
    No(&'a Event),
}

/// What an operation asks of the value that it meets.
enum Needs {
    Present,
    Absent,
    Among(Vec<Value>),
    NotAmong(Vec<Value>),
}

impl Needs {
    fn hold(&self, state: Option<Value>) -> bool {
        match self {
            Needs::Present => state.is_some(),
            Needs::Absent => state.is_none(),
            Needs::Among(values) => state.is_some_and(|value| values.contains(&value)),
            Needs::NotAmong(values) => state.is_none_or(|value| !values.contains(&value)),
        }
    }
}

impl Key {
    fn explain(&self) -> Explained<'_> {
        let mut events: Vec<&Event> = self.events.iter().collect();
        events.sort_by_key(|event| event.called);
        let needs: Vec<Vec<Needs>> = events.iter().map(|event| self.needs(event)).collect();
        Search { events, needs }.run()
    }

    fn needs(&self, event: &Event) -> Vec<Needs> {
        let values = |versions: &[Lsn]| {
            versions.iter().filter_map(|version| self.versions.get(version)).copied().collect()
        };
        match &event.did {
            Did::Saw(None) | Did::SawVersion(Lsn(0)) => vec![Needs::Absent],
            Did::Saw(Some(value)) => vec![Needs::Among(vec![*value])],
            Did::SawVersion(version) => match self.versions.get(version) {
                Some(value) => vec![Needs::Among(vec![*value])],
                // Of a write that nobody was told of.
                None => vec![Needs::Present],
            },
            Did::Write { condition, existed, .. } => {
                let matches = condition.matches.as_ref().map(|versions| match versions {
                    Versions::Any => Needs::Present,
                    Versions::Of(versions) => Needs::Among(values(versions)),
                });
                let none = condition.matches_none.as_ref().map(|versions| match versions {
                    Versions::Any => Needs::Absent,
                    Versions::Of(versions) => Needs::NotAmong(values(versions)),
                });
                let existed =
                    existed.map(|existed| if existed { Needs::Present } else { Needs::Absent });
                [matches, none, existed].into_iter().flatten().collect()
            }
        }
    }
}

/// A search for an order. Operations stand by when they were called.
struct Search<'a> {
    events: Vec<&'a Event>,
    needs: Vec<Vec<Needs>>,
}

/// One choice of the search: what was done by then, and what may come next.
struct Choice {
    done: Vec<u64>,
    state: Option<Value>,
    /// The best one last.
    next: Vec<usize>,
}

impl<'a> Search<'a> {
    fn run(&self) -> Explained<'a> {
        let blank = vec![0; self.events.len().div_ceil(64)];
        let mut tried = BTreeSet::new();
        let mut stack = vec![self.choice(blank, None)];
        let (mut steps, mut furthest) = (0, (0, None));
        while let Some(choice) = stack.last_mut() {
            let Some(at) = choice.next.pop() else {
                stack.pop();
                continue;
            };
            if steps == STEPS_MAX {
                return Explained::Undecided;
            }
            steps += 1;
            if !self.needs[at].iter().all(|needs| needs.hold(choice.state)) {
                let depth = stack.len();
                if depth > furthest.0 && self.events[at].returned.is_some() {
                    furthest = (depth, Some(self.events[at]));
                }
                continue;
            }
            let state = match &self.events[at].did {
                Did::Write { then, .. } => *then,
                _ => choice.state,
            };
            let mut done = choice.done.clone();
            done[at / 64] |= 1 << (at % 64);
            if tried.insert((done.clone(), state)) {
                let next = self.choice(done, state);
                if next.next.iter().all(|at| self.events[*at].returned.is_none()) {
                    return Explained::Yes;
                }
                stack.push(next);
            }
        }
        match furthest.1 {
            Some(event) => Explained::No(event),
            None => Explained::Yes,
        }
    }

    /// What may come next: whatever was called before anything that is left had returned. What was
    /// answered comes before what was not, in the order of the log.
    fn choice(&self, done: Vec<u64>, state: Option<Value>) -> Choice {
        let mut next = Vec::new();
        let mut returned = u64::MAX;
        for (at, event) in self.events.iter().enumerate() {
            if event.called > returned {
                break;
            }
            if done[at / 64] >> (at % 64) & 1 == 0 {
                next.push(at);
                returned = event.returned.map_or(returned, |r| r.min(returned));
            }
        }
        next.sort_by_key(|at| std::cmp::Reverse(self.events[*at].place));
        // What the best one wants to see, somebody must have written: without an answer, perhaps.
        if let Some(best) = next.last().copied()
            && !self.needs[best].iter().all(|needs| needs.hold(state))
        {
            let wanted = |at: &usize| match &self.events[*at].did {
                Did::Write { then, .. } => self.needs[best].iter().all(|needs| needs.hold(*then)),
                _ => false,
            };
            let (mut rest, helpful): (Vec<_>, Vec<_>) =
                next.into_iter().partition(|at| !wanted(at));
            rest.extend(helpful);
            next = rest;
        }
        Choice { done, state, next }
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::{GroupId, NodeId, Term};
    use highwater_node::api::{Got, Receipt, Record};

    use super::*;

    /// A history in the making, of one key.
    #[derive(Default)]
    struct Story {
        histories: Histories,
        calls: u64,
        lsn: u64,
    }

    fn refused(version: u64, lsn: u64) -> Error {
        Error::Refused { index: 0, version: Lsn(version), lsn: Lsn(lsn), replayed: false }
    }

    fn condition(matches: Option<Versions>) -> Condition {
        Condition { matches, matches_none: None }
    }

    impl Story {
        fn call(&mut self, ask: Ask) -> Call {
            self.calls += 1;
            let call = Call { id: self.calls, node: NodeId(1), database: "a".to_owned(), ask };
            self.histories.calls(&call);
            call
        }

        fn put(&mut self, value: &'static str, condition: Condition) -> Call {
            let action = Action::Put { value: Bytes::from(value), content_type: Bytes::new() };
            let write = Write { key: Bytes::from_static(b"k"), action, condition };
            self.call(Ask::Write(Op { writes: vec![write] }))
        }

        fn get(&mut self) -> Call {
            self.call(Ask::Get(Bytes::from_static(b"k"), Consistency::Linearizable))
        }

        fn written(&mut self, call: &Call, existed: bool) -> Lsn {
            self.lsn += 1;
            let lsn = Lsn(self.lsn);
            let (group, term) = (GroupId(2), Term(1));
            let receipt = Receipt { group, lsn, term, existed, replayed: false };
            self.histories.told(call, &Told::Written(receipt));
            lsn
        }

        fn saw(&mut self, call: &Call, record: Option<(u64, &'static str)>) {
            let record = record.map(|(version, value)| Record {
                version: Lsn(version),
                content_type: Bytes::new(),
                value: Bytes::from(value),
            });
            let (group, applied) = (GroupId(2), Lsn(self.lsn));
            self.histories.told(call, &Told::Got(Got { group, applied, term: Term(1), record }));
        }

        fn is_explained(&self) -> bool {
            let undecided = self.histories.check();
            assert!(undecided.as_ref().is_ok_and(|n| *n == 0) || undecided.is_err());
            undecided.is_ok()
        }
    }

    #[test]
    fn a_keyed_write_is_one_operation_however_often_it_is_asked_for() {
        let put = |story: &mut Story| {
            let Ask::Write(op) = story.put("x", condition(None)).ask else { unreachable!() };
            let once = OnceKey { key: Bytes::from_static(b"key"), digest: [1; 16] };
            story.call(Ask::Once(op, once))
        };
        let read_between = |answered: bool| {
            let mut story = Story::default();
            let first = put(&mut story);
            story.histories.told(&first, &Told::Silence);
            let get = story.get();
            story.saw(&get, Some((1, "x")));
            let again = put(&mut story);
            if answered {
                // As the first attempt found it; and once more.
                story.written(&again, false);
                let third = put(&mut story);
                story.lsn = 0;
                story.written(&third, false);
            } else {
                story.histories.told(&again, &Told::Failed(Error::Unknown));
            }
            story.histories.end();
            story.is_explained()
        };
        assert!(read_between(true) && read_between(false));
        let mut never = Story::default();
        let put = put(&mut never);
        never.histories.told(&put, &Told::Failed(Error::Busy));
        let get = never.get();
        never.saw(&get, Some((1, "x")));
        never.histories.end();
        assert!(!never.is_explained(), "it failed for certain");
    }

    #[test]
    fn operations_at_the_same_time_come_in_any_order() {
        for seen in ["x", "y"] {
            let mut story = Story::default();
            let (x, y) = (story.put("x", condition(None)), story.put("y", condition(None)));
            let (mut first, mut second) = (&x, &y);
            if seen == "x" {
                std::mem::swap(&mut first, &mut second);
            }
            story.written(first, false);
            story.written(second, true);
            let get = story.get();
            story.saw(&get, Some((2, seen)));
            assert!(story.is_explained(), "{seen}");
        }
    }

    #[test]
    fn fires_on_a_stale_read_and_on_a_lost_update() {
        let stale = |seen| {
            let mut story = Story::default();
            let x = story.put("x", condition(None));
            story.written(&x, false);
            let y = story.put("y", condition(None));
            story.written(&y, true);
            let get = story.get();
            story.saw(&get, seen);
            story.is_explained()
        };
        assert!(stale(Some((2, "y"))));
        assert!(!stale(Some((1, "x"))));
        assert!(!stale(None));
        let swaps = |both| {
            let mut story = Story::default();
            let x = story.put("x", condition(None));
            let version = story.written(&x, false);
            let of = || condition(Some(Versions::Of(vec![version])));
            let (y, z) = (story.put("y", of()), story.put("z", of()));
            story.written(&y, true);
            if both {
                story.written(&z, true);
            } else {
                let refused = refused(2, 3);
                story.histories.told(&z, &Told::Failed(refused));
            }
            story.is_explained()
        };
        assert!(swaps(false));
        assert!(!swaps(true));
    }

    #[test]
    fn a_write_without_an_answer_takes_effect_once_or_never() {
        let unknown = |reads: &[Option<(u64, &'static str)>]| {
            let mut story = Story::default();
            let x = story.put("x", condition(None));
            story.written(&x, false);
            let y = story.put("y", condition(None));
            story.histories.told(&y, &Told::Silence);
            for seen in reads {
                let get = story.get();
                story.saw(&get, *seen);
            }
            story.is_explained()
        };
        let (x, y) = (Some((1, "x")), Some((2, "y")));
        assert!(unknown(&[x, x]));
        assert!(unknown(&[x, y, y]));
        assert!(!unknown(&[y, x]), "it went back");
        assert!(!unknown(&[x, None]));
    }

    #[test]
    fn fires_on_what_was_refused_or_failed_and_seen_all_the_same() {
        for told in [refused(1, 2), Error::NoLeader { leader: None }] {
            let mut story = Story::default();
            let x = story.put("x", condition(None));
            story.written(&x, false);
            let y = story.put("y", condition(Some(Versions::Of(vec![]))));
            story.histories.told(&y, &Told::Failed(told));
            let get = story.get();
            story.saw(&get, Some((2, "y")));
            assert!(!story.is_explained());
        }
    }
}
