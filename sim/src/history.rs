//! What clients asked and what they were told: the language between workload and oracles.

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, NodeId, OnceKey};
use highwater_node::api::{Consistency, Error, Got, ListQuery, Page, Receipt, Record};
use highwater_wire::{op::Op, peer::SlotAsk};

use crate::{oracles::streams::Streamed, rng::spread, trace::digest};

/// A client's question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ask {
    /// Writes, in one op.
    Write(Op),
    /// Writes with a key, for the first time or again.
    Once(Op, OnceKey),
    /// Reads a key.
    Get(Bytes, Consistency),
    /// Lists keys.
    List(ListQuery, Consistency),
    /// Creates the database.
    Create,
    /// Hands the database's leadership over.
    Transfer(NodeId),
    /// Reads on in the change stream after an LSN, at most so many ops.
    Changes(Lsn, usize),
    /// Has something done with a slot.
    Slot(String, SlotAsk),
    /// Reads on where a slot is, at most so many ops.
    Consume(String, usize),
}

/// A client's call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    /// Unique in the run.
    pub(crate) id: u64,
    /// The node that was asked.
    pub(crate) node: NodeId,
    /// The database's name.
    pub(crate) database: String,
    /// What was asked.
    pub(crate) ask: Ask,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// A write's receipt.
    Written(Receipt),
    /// A record, or none.
    Got(Got),
    /// A list.
    Listed(Page),
    /// A part of the change stream.
    Streamed(Streamed),
    /// The database's group, and whether it stood before.
    Created(GroupId, bool),
    /// Leadership was handed over.
    Transferred,
    /// Where the slot is; nowhere any more where it was deleted.
    Slot(Option<Lsn>),
    /// An error of the node's.
    Failed(Error),
    /// The node died, or fell silent beyond the call's deadline.
    Silence,
}

impl Told {
    /// Of everything that it says.
    pub(crate) fn digest(&self) -> u64 {
        let of = |words: &[u64]| words.iter().fold(0, |h, word| spread(h ^ word));
        let record = |record: &Record| {
            of(&[record.version.0, digest(&record.content_type), digest(&record.value)])
        };
        match self {
            Told::Written(Receipt { group, lsn, term, existed, replayed }) => {
                of(&[1, group.0, lsn.0, term.0, u64::from(*existed) | u64::from(*replayed) << 1])
            }
            Told::Got(got) => {
                let record = got.record.as_ref().map_or(0, record);
                of(&[2, got.group.0, got.applied.0, got.term.0, record])
            }
            Told::Listed(page) => {
                let rows = page.records.iter();
                let rows = rows.fold(0, |h, row| {
                    spread(h ^ of(&[digest(&row.key), row.size, record(&row.record)]))
                });
                of(&[3, page.group.0, page.applied.0, page.term.0, rows, u64::from(page.more)])
            }
            Told::Created(group, existed) => of(&[4, group.0, u64::from(*existed)]),
            Told::Transferred => of(&[5]),
            Told::Failed(error) => of(&[6, digest(format!("{error:?}").as_bytes())]),
            Told::Silence => of(&[7]),
            Told::Slot(at) => of(&[9, at.map_or(u64::MAX, |at| at.0)]),
            Told::Streamed(Streamed { group, after, upto, changes }) => {
                let all = changes.iter().fold(0, |h, change| {
                    let op = digest(&change.op.encode());
                    spread(h ^ of(&[change.lsn.0, change.prev_lsn.0, change.term.0, op]))
                });
                of(&[8, group.0, after.0, upto.0, all])
            }
        }
    }

    /// In a few words.
    pub(crate) fn brief(&self) -> String {
        match self {
            Told::Listed(page) => {
                format!("{} records at {:?} of {:?}", page.records.len(), page.applied, page.group)
            }
            Told::Got(got) => {
                let version = got.record.as_ref().map(|r| r.version);
                format!("version {version:?} at {:?} of {:?}", got.applied, got.group)
            }
            Told::Streamed(Streamed { group, after, upto, changes }) => {
                format!("{} changes of {group:?} after {after:?} up to {upto:?}", changes.len())
            }
            other => format!("{other:?}"),
        }
    }
}

impl Ask {
    /// The write that it asks for, if it does.
    pub(crate) fn op(&self) -> Option<&Op> {
        match self {
            Ask::Write(op) | Ask::Once(op, _) => Some(op),
            _ => None,
        }
    }

    /// Its key, if it has one.
    pub(crate) fn once(&self) -> Option<&OnceKey> {
        match self {
            Ask::Once(_, once) => Some(once),
            _ => None,
        }
    }

    /// In a few words.
    pub(crate) fn brief(&self) -> String {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Ask::Write(op) | Ask::Once(op, _) => {
                let writes: Vec<String> = op
                    .writes
                    .iter()
                    .map(|w| match &w.action {
                        highwater_wire::op::Action::Put { value, .. } => {
                            let head = text(&value.slice(..value.len().min(24)));
                            format!("{}={head}", text(&w.key))
                        }
                        highwater_wire::op::Action::Delete => format!("-{}", text(&w.key)),
                    })
                    .collect();
                let key = self.once().map(|once| format!("once {} ", once.key.escape_ascii()));
                format!("{}write {}", key.unwrap_or_default(), writes.join(" "))
            }
            Ask::Get(key, consistency) => format!("get {} {consistency:?}", text(key)),
            Ask::List(query, consistency) => {
                format!("list {}* {consistency:?}", text(&query.prefix))
            }
            Ask::Create => "create".to_owned(),
            Ask::Transfer(to) => format!("transfer to {to:?}"),
            Ask::Changes(after, ops_max) => format!("{ops_max} changes after {after:?}"),
            Ask::Slot(name, SlotAsk::Create(settings)) => {
                format!("slot {name} from {:?}", settings.from)
            }
            Ask::Slot(name, SlotAsk::Ack(lsn)) => format!("acknowledge {lsn:?} for slot {name}"),
            Ask::Slot(name, SlotAsk::Delete) => format!("delete slot {name}"),
            Ask::Consume(name, ops_max) => format!("{ops_max} changes for slot {name}"),
        }
    }
}
