//! What clients ask, of whom, how often: drawn from the seed and from what they were told, and from
//! nothing else. Every op is unique byte for byte, so that the oracles can tell them apart.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use highwater_core::{Lsn, NodeId, OnceKey, SlotSettings, SlotStart};
use highwater_node::api::{Bookmark, Consistency, Error, ListQuery};
use highwater_wire::{
    op::{Action, Condition, Op, Versions, Write},
    peer::SlotAsk,
};

use crate::{
    history::{Ask, Told},
    plan::Plan,
    rng::{Rng, spread},
    trace::digest,
};

/// Databases that stand before the faults begin.
pub(crate) const DATABASES: [&str; 2] = ["alpha", "beta"];
/// The one that is made under faults.
pub(crate) const LATE_DATABASE: &str = "gamma";

/// A write of a healed cluster.
pub(crate) fn last_op(unique: u64) -> Op {
    let value = Bytes::from(format!("last.{unique}"));
    let action = Action::Put { value, content_type: Bytes::new() };
    let key = Bytes::from_static(b"last");
    Op { writes: vec![Write { key, action, condition: Condition::default() }] }
}

fn once_key(key: String, op: &Op) -> OnceKey {
    let half = digest(&op.encode());
    let digest = u128::from(half) << 64 | u128::from(spread(half));
    OnceKey { key: Bytes::from(key), digest: digest.to_le_bytes() }
}

impl Keyed {
    fn ask(&self) -> Ask {
        Ask::Once(self.op.clone(), self.once.clone())
    }
}

/// A client's slot in one database: none has its name again.
#[derive(Clone, Debug, Default)]
struct Slot {
    name: String,
    settings: SlotSettings,
    stands: bool,
    /// What was read for it.
    read: Lsn,
}

/// A keyed write that a client made.
#[derive(Clone, Debug)]
struct Keyed {
    database: String,
    op: Op,
    once: OnceKey,
    /// When it was first asked for.
    since_ns: u64,
    tries: u64,
}

/// A keyed write without an answer is asked for so often.
const TRIES_MAX: u64 = 6;
/// ... and one with an answer is remembered, among so many, to be asked for again.
const KEYED_MAX: usize = 16;

/// What one client does.
pub(crate) struct Workload {
    plan: Arc<Plan>,
    id: u64,
    rng: Rng,
    serial: u64,
    /// The node that it prefers for a while.
    home: NodeId,
    bookmarks: BTreeMap<String, Bookmark>,
    /// How far it has read change streams.
    positions: BTreeMap<String, Lsn>,
    /// Its slots, by database.
    slots: BTreeMap<String, Slot>,
    /// Versions that it saw.
    versions: BTreeMap<(String, Bytes), Lsn>,
    /// Keyed writes under way, by key.
    trying: BTreeMap<Bytes, Keyed>,
    /// Those that are to be asked for again, and those that were answered.
    again: VecDeque<Keyed>,
    answered: VecDeque<Keyed>,
}

impl Workload {
    pub(crate) fn new(plan: Arc<Plan>, seed: u64, id: u64) -> Workload {
        let rng = Rng::stream(seed, "client", id);
        let home = plan.nodes[id as usize % plan.nodes.len()];
        Workload {
            plan,
            id,
            rng,
            serial: 0,
            home,
            bookmarks: BTreeMap::new(),
            positions: BTreeMap::new(),
            slots: BTreeMap::new(),
            versions: BTreeMap::new(),
            trying: BTreeMap::new(),
            again: VecDeque::new(),
            answered: VecDeque::new(),
        }
    }

    /// How long it waits before the next call, in milliseconds.
    pub(crate) fn think_ms(&mut self) -> u64 {
        self.rng.heavy(1, self.plan.think_ms * 2)
    }

    /// At times it reads on where it has come to in a change stream, or somewhere before, on whatever
    /// node; that a bare core has none of.
    pub(crate) fn consumes(&mut self, databases: &[String]) -> Option<(String, Ask, Duration)> {
        if databases.is_empty() {
            return None;
        }
        if self.plan.slots && self.rng.percent(40) {
            let database = self.rng.pick(databases).clone();
            let ask = self.with_slot(&database);
            return Some((database, ask, Duration::from_millis(self.rng.range(200, 2_500))));
        }
        if !self.rng.percent(6) {
            return None;
        }
        let database = self.rng.pick(databases).clone();
        let position = self.positions.get(&database).copied().unwrap_or_default();
        let after = if self.rng.percent(80) { position.0 } else { self.rng.below(position.0 + 1) };
        let ask = Ask::Changes(Lsn(after), self.rng.heavy(1, 200) as usize);
        Some((database, ask, Duration::from_millis(self.rng.range(200, 2_500))))
    }

    /// Has a slot, reads for it, acknowledges what it has read, or a part, and at times lets it go.
    fn with_slot(&mut self, database: &str) -> Ask {
        let slot = self.slots.get(database).cloned().unwrap_or_default();
        if slot.stands {
            let acked =
                if self.rng.percent(70) { slot.read.0 } else { self.rng.below(slot.read.0 + 1) };
            return match self.rng.weighted(&[50, 45, 5]) {
                0 => Ask::Consume(slot.name, self.rng.heavy(1, 200) as usize),
                1 => Ask::Slot(slot.name, SlotAsk::Ack(Lsn(acked))),
                _ => Ask::Slot(slot.name, SlotAsk::Delete),
            };
        }
        if slot.name.is_empty() {
            self.serial += 1;
            let known = self.positions.get(database).copied().unwrap_or_default();
            let starts = [SlotStart::Earliest, SlotStart::Latest, SlotStart::After(known)];
            let settings =
                SlotSettings { from: *self.rng.pick(&starts), ..SlotSettings::default() };
            let name = format!("c{}-{}", self.id, self.serial);
            let slot = Slot { name, settings, ..Slot::default() };
            self.slots.insert(database.to_owned(), slot);
        }
        let Slot { name, settings, .. } = self.slots[database].clone();
        Ask::Slot(name, SlotAsk::Create(settings))
    }

    /// How many calls it makes at once: one as a rule.
    pub(crate) fn burst(&mut self) -> u64 {
        if self.rng.percent(10) { self.rng.range(1, self.plan.burst.max(1)) } else { 1 }
    }

    /// The node that it asks next.
    pub(crate) fn node(&mut self) -> NodeId {
        if self.rng.percent(5) {
            self.home = *self.rng.pick(&self.plan.nodes);
        }
        if self.rng.percent(50) { self.home } else { *self.rng.pick(&self.plan.nodes) }
    }

    /// The database, the question and the time for it, asked now; `None` while there is no database.
    pub(crate) fn call(
        &mut self,
        databases: &[String],
        now_ns: u64,
    ) -> Option<(String, Ask, Duration)> {
        if databases.is_empty() {
            return None;
        }
        let again = if self.plan.once { self.ask_again(now_ns) } else { None };
        let (database, ask) = again.unwrap_or_else(|| {
            let database = self.rng.pick(databases).clone();
            let ask = self.draw(&database);
            let ask = self.put_key(&database, ask, now_ns);
            (database, ask)
        });
        let timeout = Duration::from_millis(self.rng.range(200, 2_500));
        Some((database, ask, timeout))
    }

    /// Has some of its writes take effect once.
    fn put_key(&mut self, database: &str, ask: Ask, now_ns: u64) -> Ask {
        match ask {
            Ask::Write(op) if self.plan.once && self.rng.percent(40) => {
                let once = once_key(self.tag(), &op);
                let keyed = Keyed {
                    database: database.to_owned(),
                    op: op.clone(),
                    once: once.clone(),
                    since_ns: now_ns,
                    tries: 0,
                };
                self.trying.insert(once.key.clone(), keyed);
                Ask::Once(op, once)
            }
            ask => ask,
        }
    }

    /// A keyed write that has no answer yet, at times one that has, and at times another one with the
    /// key of that. After its window it would be a new one, so none is asked for near the end of it.
    fn ask_again(&mut self, now_ns: u64) -> Option<(String, Ask)> {
        let limits = self.plan.limits.iter().chain([&self.plan.first]);
        let window_ms = limits.map(|limits| limits.core.once_window_ms).min().unwrap_or_default();
        let is_fresh = |keyed: &Keyed| now_ns - keyed.since_ns < window_ms * 1_000_000 / 2;
        self.again.retain(is_fresh);
        if let Some(keyed) = self.again.pop_front() {
            let (database, ask) = (keyed.database.clone(), keyed.ask());
            self.trying.insert(keyed.once.key.clone(), keyed);
            return Some((database, ask));
        }
        if self.answered.is_empty() || !self.rng.percent(12) {
            return None;
        }
        let at = self.rng.below(self.answered.len() as u64) as usize;
        let keyed = self.answered[at].clone();
        if self.rng.percent(25) {
            let key = self.key();
            let op = self.op(&[key], Condition::default());
            let once = OnceKey { key: keyed.once.key, ..once_key(String::new(), &op) };
            self.answered.remove(at);
            return Some((keyed.database, Ask::Once(op, once)));
        }
        is_fresh(&keyed).then(|| (keyed.database.clone(), keyed.ask()))
    }

    /// A keyed write has an answer, or none.
    fn learn_once(&mut self, once: &OnceKey, told: &Told) {
        let is_it = self.trying.get(&once.key).is_some_and(|keyed| keyed.once == *once);
        let Some(mut keyed) = self.trying.remove(&once.key).filter(|_| is_it) else { return };
        keyed.tries += 1;
        match told {
            Told::Written(_) | Told::Failed(Error::Refused { .. }) => {
                self.answered.push_back(keyed);
                if self.answered.len() > KEYED_MAX {
                    self.answered.pop_front();
                }
            }
            Told::Failed(Error::Unknown) | Told::Silence if keyed.tries < TRIES_MAX => {
                self.again.push_back(keyed);
            }
            // Of the first attempt that is definite; else nothing is known still.
            Told::Failed(_) if keyed.tries > 1 && keyed.tries < TRIES_MAX => {
                self.again.push_back(keyed);
            }
            _ => {}
        }
    }

    /// Takes in an answer.
    pub(crate) fn learn(&mut self, database: String, ask: Ask, told: Told) {
        if let Ask::Once(_, once) = &ask {
            self.learn_once(once, &told);
        }
        match (ask, told) {
            (Ask::Write(op) | Ask::Once(op, _), Told::Written(receipt)) => {
                for write in op.writes {
                    self.versions.insert((database.clone(), write.key), receipt.lsn);
                }
                let (group, term, lsn) = (receipt.group, receipt.term, receipt.lsn);
                self.bookmarks.insert(database, Bookmark { group, term, lsn });
            }
            (Ask::Changes(..), Told::Streamed(streamed)) => {
                let position = self.positions.entry(database).or_default();
                *position = streamed.upto.max(*position);
            }
            // It lost what came before; a snapshot would tell.
            (Ask::Changes(..), Told::Failed(Error::LogPruned { first })) => {
                let position = self.positions.entry(database).or_default();
                *position = first.prev().max(*position);
            }
            (Ask::Slot(_, SlotAsk::Create(_)), Told::Slot(Some(at))) => {
                if let Some(slot) = self.slots.get_mut(&database) {
                    (slot.stands, slot.read) = (true, at);
                }
            }
            // Whether it worked or not: there is another one from now on.
            (Ask::Slot(_, SlotAsk::Delete), _) => drop(self.slots.remove(&database)),
            (Ask::Consume(..), Told::Streamed(streamed)) => {
                if let Some(slot) = self.slots.get_mut(&database) {
                    slot.read = streamed.upto.max(slot.read);
                }
            }
            (Ask::Get(key, _), Told::Got(got)) => {
                if let Some(record) = got.record {
                    self.versions.insert((database, key), record.version);
                }
            }
            _ => {}
        }
    }

    fn draw(&mut self, database: &str) -> Ask {
        let key = self.key();
        match self.rng.weighted(&[24, 6, 14, 4, 8, 22, 7, 7, 3, 2, 1]) {
            0 => Ask::Write(self.op(&[key], Condition::default())),
            1 => Ask::Write(self.delete(key)),
            2 => {
                let seen = self.as_seen(database, &key);
                Ask::Write(self.op(&[key], seen))
            }
            3 => {
                let absent = Condition { matches: None, matches_none: Some(Versions::Any) };
                Ask::Write(self.op(&[key], absent))
            }
            4 => {
                let mut keys = vec![key];
                for _ in 0..self.rng.range(1, 4) {
                    let key = self.key();
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
                let mut op = self.op(&keys, Condition::default());
                if self.rng.percent(60) {
                    self.condition_one(database, &mut op);
                }
                Ask::Write(op)
            }
            5 => Ask::Get(key, Consistency::Linearizable),
            6 => Ask::Get(key, Consistency::Local(None)),
            7 => {
                let bookmark = self.bookmarks.get(database).copied();
                Ask::Get(key, Consistency::Local(bookmark))
            }
            8 => self.list(Consistency::Linearizable),
            9 => self.list(Consistency::Local(None)),
            _ => Ask::Transfer(*self.rng.pick(&self.plan.nodes)),
        }
    }

    /// The record is as the client saw it last; it saw none: never.
    fn as_seen(&self, database: &str, key: &Bytes) -> Condition {
        let seen = self.versions.get(&(database.to_owned(), key.clone())).copied();
        Condition { matches: Some(Versions::Of(seen.into_iter().collect())), matches_none: None }
    }

    /// Makes one write of a batch, any but the first, and with it the whole batch, conditional.
    fn condition_one(&mut self, database: &str, op: &mut Op) {
        if let Some(others) = op.writes.len().checked_sub(1).filter(|n| *n > 0) {
            let at = 1 + self.rng.below(others as u64) as usize;
            op.writes[at].condition = match self.rng.percent(70) {
                true => self.as_seen(database, &op.writes[at].key),
                false => Condition { matches: None, matches_none: Some(Versions::Any) },
            };
        }
    }

    fn key(&mut self) -> Bytes {
        let n = self.rng.below(self.plan.keys);
        Bytes::from(format!("{}/{n:02}", if n.is_multiple_of(2) { "even" } else { "odd" }))
    }

    fn tag(&mut self) -> String {
        self.serial += 1;
        format!("c{}.{}", self.id, self.serial)
    }

    fn op(&mut self, keys: &[Bytes], condition: Condition) -> Op {
        let tag = self.tag();
        let writes = keys
            .iter()
            .map(|key| {
                let mut value = tag.clone().into_bytes();
                let padding = match self.rng.below(100) {
                    0..3 => self.rng.heavy(4_000, 60_000),
                    3..25 => self.rng.range(200, 4_000),
                    _ => self.rng.below(100),
                };
                value.resize(value.len() + padding as usize, b'.');
                let content_type = *self.rng.pick::<&'static str>(&["", "", "text/plain"]);
                Write {
                    key: key.clone(),
                    action: Action::Put {
                        value: Bytes::from(value),
                        content_type: Bytes::from(content_type),
                    },
                    condition: condition.clone(),
                }
            })
            .collect();
        Op { writes }
    }

    /// A delete says nothing unique by itself: a version that no record has makes it so.
    fn delete(&mut self, key: Bytes) -> Op {
        self.serial += 1;
        let never = Lsn(u64::MAX - (self.id << 32 | self.serial));
        let condition = Condition {
            matches: Some(Versions::Any),
            matches_none: Some(Versions::Of(vec![never])),
        };
        Op { writes: vec![Write { key, action: Action::Delete, condition }] }
    }

    fn list(&mut self, consistency: Consistency) -> Ask {
        let prefix = *self.rng.pick(&["", "even/", "odd/", "none/"]);
        let after = self.rng.percent(30).then(|| self.key());
        let query = ListQuery {
            prefix: Bytes::from(prefix),
            after,
            limit: self.rng.heavy(1, 100) as usize,
            values: self.rng.percent(50),
        };
        Ask::List(query, consistency)
    }
}
