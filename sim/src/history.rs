//! What clients asked and what they were told: the language between workload and oracles.

use bytes::Bytes;
use highwater_core::{GroupId, NodeId};
use highwater_node::api::{Consistency, Error, Got, ListQuery, Listed, Page, Receipt, Record};
use highwater_wire::op::Op;

use crate::trace::digest;

/// A client's question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ask {
    /// Writes, in one op.
    Write(Op),
    /// Reads a key.
    Get(Bytes, Consistency),
    /// Lists keys.
    List(ListQuery, Consistency),
    /// Creates the database.
    Create,
    /// Hands the database's leadership over.
    Transfer(NodeId),
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
    /// The database's group, and whether it stood before.
    Created(GroupId, bool),
    /// Leadership was handed over.
    Transferred,
    /// An error of the node's.
    Failed(Error),
    /// The node died, or fell silent beyond the call's deadline.
    Silence,
}

impl Told {
    /// Of all that it says.
    pub(crate) fn digest(&self) -> u64 {
        let of_record = |record: &Record| {
            let Record { version, content_type, value } = record;
            version.0 ^ digest(content_type).rotate_left(7) ^ digest(value).rotate_left(14)
        };
        match self {
            Told::Got(Got { record: Some(record), group, applied, term }) => {
                digest(format!("{group:?} {applied:?} {term:?}").as_bytes()) ^ of_record(record)
            }
            Told::Listed(page) => {
                let Page { group, applied, term, records, more } = page;
                let head = format!("{group:?} {applied:?} {term:?} {more}");
                let of = |h: u64, listed: &Listed| {
                    let text = digest(&listed.key) ^ listed.size.rotate_left(50);
                    (h ^ text ^ of_record(&listed.record)).rotate_left(9)
                };
                records.iter().fold(digest(head.as_bytes()), of)
            }
            other => digest(format!("{other:?}").as_bytes()),
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
            other => format!("{other:?}"),
        }
    }
}

impl Ask {
    /// In a few words.
    pub(crate) fn brief(&self) -> String {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Ask::Write(op) => {
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
                format!("write {}", writes.join(" "))
            }
            Ask::Get(key, consistency) => format!("get {} {consistency:?}", text(key)),
            Ask::List(query, consistency) => {
                format!("list {}* {consistency:?}", text(&query.prefix))
            }
            Ask::Create => "create".to_owned(),
            Ask::Transfer(to) => format!("transfer to {to:?}"),
        }
    }
}
