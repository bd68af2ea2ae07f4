//! O21. Replicas that stand at the same LSN are the same: everything that a database holds hashes to
//! one root, whoever reads it, from memory or from a file that was opened again.
//!
//! semantics.md 3, 13. Failures 1, 37, 40, 43, 46, 53.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn, NodeId};
use highwater_node::api::{ListQuery, Page};

use super::{Broken, broken};
use crate::{rng::spread, trace::digest};

/// The root of each state that was read whole.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    seen: BTreeMap<(GroupId, Lsn), (u64, NodeId)>,
}

/// The root of a whole database; `None` where a page is only a part of it.
pub(crate) fn root(query: &ListQuery, page: &Page) -> Option<u64> {
    let whole = query.prefix.is_empty() && query.after.is_none() && query.values && !page.more;
    whole.then(|| {
        page.records.iter().fold(page.records.len() as u64, |h, listed| {
            let record = &listed.record;
            let parts = [digest(&listed.key), digest(&record.content_type), digest(&record.value)];
            parts.iter().fold(spread(h ^ record.version.0), |h, part| spread(h ^ part))
        })
    })
}

impl Roots {
    /// A node's state at an LSN has this root. Tells whether another node's had been compared.
    pub(crate) fn shows(
        &mut self,
        node: NodeId,
        (group, applied): (GroupId, Lsn),
        root: u64,
    ) -> Result<bool, Broken> {
        match self.seen.insert((group, applied), (root, node)) {
            Some((other, first)) if other != root => {
                let what = format!("{first:?} and {node:?} differ in {group:?} at {applied:?}");
                Err(broken(what).on(first).on(node).of(group).at(applied))
            }
            Some((_, first)) => Ok(first != node),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::Term;
    use highwater_node::api::{Listed, Record};

    use super::*;

    fn page(value: &'static str) -> Page {
        let record = Record {
            version: Lsn(3),
            content_type: Bytes::new(),
            value: Bytes::from_static(value.as_bytes()),
        };
        let listed = Listed { key: Bytes::from_static(b"k"), size: value.len() as u64, record };
        Page {
            group: GroupId(2),
            applied: Lsn(5),
            term: Term(1),
            records: vec![listed],
            more: false,
        }
    }

    #[test]
    fn fires_on_two_states_at_one_lsn() {
        let query = ListQuery { limit: 9, values: true, ..ListQuery::default() };
        let root_of = |value| root(&query, &page(value)).unwrap();
        let mut oracle = Roots::default();
        let at = (GroupId(2), Lsn(5));
        assert_eq!(oracle.shows(NodeId(1), at, root_of("a")), Ok(false));
        assert_eq!(oracle.shows(NodeId(2), at, root_of("a")), Ok(true));
        assert!(oracle.shows(NodeId(3), at, root_of("b")).is_err());
        assert_eq!(root(&query, &Page { more: true, ..page("a") }), None);
        assert_eq!(root(&ListQuery { values: false, ..query }, &page("a")), None);
    }
}
