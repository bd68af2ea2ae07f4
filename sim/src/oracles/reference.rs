//! O13. The state machine as it ought to be, written anew and simply: what each op does, judged at
//! apply, and what a reader sees at any LSN.
//!
//! semantics.md 3, 4, 5. Failures 1, 5, 13, 37, 43, 44, 53.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_core::{GroupId, Lsn, Root};
use highwater_node::api::{Got, ListQuery, Listed, Page, Record};
use highwater_wire::op::{Action, Answer, Condition, Op, Versions, Write};

use super::{Verdict, broken};

#[derive(Clone, Debug)]
struct Value {
    content_type: Bytes,
    value: Bytes,
}

/// One database, at every LSN.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    keys: BTreeMap<Bytes, Vec<(Lsn, Option<Value>)>>,
}

impl Reference {
    fn at(&self, lsn: Lsn, key: &[u8]) -> Option<(Lsn, &Value)> {
        let versions = self.keys.get(key)?;
        let (version, value) = match versions.last() {
            // Most ask for the present.
            Some(last) if last.0 <= lsn => last,
            _ => versions[..versions.partition_point(|(v, _)| *v <= lsn)].last()?,
        };
        Some((*version, value.as_ref()?))
    }

    /// Applies an op; its answer.
    pub(crate) fn apply(&mut self, lsn: Lsn, op: &Op) -> Answer {
        let before = lsn.prev();
        for (index, write) in op.writes.iter().enumerate() {
            let version = self.at(before, &write.key).map(|(version, _)| version);
            if !holds(&write.condition, version) {
                return Answer::Refused {
                    index: index as u32,
                    version: version.unwrap_or_default(),
                };
            }
        }
        let existed = op.writes.first().is_some_and(|w| self.at(before, &w.key).is_some());
        for Write { key, action, .. } in &op.writes {
            let value = match action {
                Action::Put { value, content_type } => {
                    Some(Value { content_type: content_type.clone(), value: value.clone() })
                }
                Action::Delete => None,
            };
            self.keys.entry(key.clone()).or_default().push((lsn, value));
        }
        Answer::Done { existed }
    }

    /// What a reader of the key sees.
    pub(crate) fn record(&self, key: &[u8], at: Lsn) -> Option<Record> {
        self.at(at, key).map(|(version, value)| Record {
            version,
            content_type: value.content_type.clone(),
            value: value.value.clone(),
        })
    }

    /// Whether this is what a reader of the key sees.
    pub(crate) fn reads(&self, key: &[u8], got: &Got) -> Verdict {
        let due = self.record(key, got.applied);
        if due != got.record {
            let what = format!(
                "{} at {:?} of {:?} reads as {}, but is {}",
                String::from_utf8_lossy(key),
                got.applied,
                got.group,
                brief(got.record.as_ref()),
                brief(due.as_ref())
            );
            return Err(broken(what).of(got.group).at(got.applied));
        }
        Ok(())
    }

    /// What a reader of a list sees, in order, without a limit.
    fn rows<'a>(&'a self, query: &'a ListQuery, at: Lsn) -> impl Iterator<Item = Listed> + 'a {
        let row = move |key: &Bytes| {
            let (version, value) = self.at(at, key)?;
            let (size, content_type) = (value.value.len() as u64, value.content_type.clone());
            let value = if query.values { value.value.clone() } else { Bytes::new() };
            Some(Listed { key: key.clone(), size, record: Record { version, content_type, value } })
        };
        self.keys
            .range::<Bytes, _>(query.prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&query.prefix))
            .filter(|(key, _)| query.after.as_ref().is_none_or(|after| *key > after))
            .filter_map(move |(key, _)| row(key))
    }

    /// What a reader of a list sees, and whether there is more.
    pub(crate) fn list(&self, query: &ListQuery, at: Lsn) -> (Vec<Listed>, bool) {
        let mut rows = self.rows(query, at);
        let records = rows.by_ref().take(query.limit).collect();
        (records, rows.next().is_some())
    }

    /// Whether this is what a reader of the list sees.
    pub(crate) fn lists(&self, query: &ListQuery, page: &Page) -> Verdict {
        let mut due = self.rows(query, page.applied);
        for listed in &page.records {
            let due = due.next();
            if due.as_ref() != Some(listed) {
                let what = format!(
                    "at {:?} of {:?} the list shows {:?} {}, but due is {:?}",
                    page.applied,
                    page.group,
                    listed.key,
                    brief(Some(&listed.record)),
                    due.map(|d| (d.key, d.record.version))
                );
                return Err(broken(what).of(page.group).at(page.applied));
            }
        }
        let next = due.next().map(|listed| listed.key);
        if page.more != next.is_some() || page.more && page.records.len() < query.limit {
            let what = format!(
                "at {:?} of {:?} the list of {} says more: {}, but next is {next:?}",
                page.applied,
                page.group,
                page.records.len(),
                page.more
            );
            return Err(broken(what).of(page.group).at(page.applied));
        }
        Ok(())
    }

    /// What a state that holds this hashes to, by the book (docs/FORMATS.md).
    pub(crate) fn root(&self, group: GroupId, at: Lsn) -> Root {
        let context = "highwater state format 2: leaves of records, and roots";
        let secret = blake3::derive_key(context, &group.0.to_le_bytes());
        let hash = |parts: &[&[u8]]| {
            let whole = blake3::keyed_hash(&secret, &parts.concat());
            u128::from_le_bytes(*whole.as_bytes().first_chunk().expect("a hash has 32 bytes"))
        };
        let mut sums = [0_u128; 256];
        for key in self.keys.keys() {
            let Some((version, Value { content_type, value })) = self.at(at, key) else { continue };
            let lens = [key.len() as u64, content_type.len() as u64].map(u64::to_le_bytes);
            let version = version.0.to_le_bytes();
            let leaf = hash(&[&lens[0], key, &lens[1], content_type, &version, value]);
            let sum = &mut sums[crc32c::crc32c(key) as usize % 256];
            *sum = sum.wrapping_add(leaf);
        }
        let sums = sums.map(u128::to_le_bytes).concat();
        Root(hash(&[&at.0.to_le_bytes(), &sums]))
    }

    /// Forgets what came after an LSN.
    pub(crate) fn revert(&mut self, to: Lsn) {
        for versions in self.keys.values_mut() {
            versions.truncate(versions.partition_point(|(version, _)| *version <= to));
        }
    }
}

fn holds(condition: &Condition, version: Option<Lsn>) -> bool {
    let among = |versions: &Versions| match (versions, version) {
        (_, None) => false,
        (Versions::Any, Some(_)) => true,
        (Versions::Of(versions), Some(version)) => versions.contains(&version),
    };
    condition.matches.as_ref().is_none_or(among)
        && !condition.matches_none.as_ref().is_some_and(among)
}

fn brief(record: Option<&Record>) -> String {
    match record {
        None => "nothing".to_owned(),
        Some(record) => {
            let head = &record.value[..record.value.len().min(24)];
            format!("{:?} ({})", record.version, String::from_utf8_lossy(head))
        }
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::Term;

    use super::*;

    fn put(key: &'static str, value: &'static str, condition: Condition) -> Op {
        let action = Action::Put { value: Bytes::from(value), content_type: Bytes::new() };
        Op { writes: vec![Write { key: Bytes::from(key), action, condition }] }
    }

    fn delete(key: &'static str) -> Op {
        let condition = Condition { matches: Some(Versions::Any), matches_none: None };
        Op { writes: vec![Write { key: Bytes::from(key), action: Action::Delete, condition }] }
    }

    fn written() -> Reference {
        let mut state = Reference::default();
        let any = Condition::default;
        assert_eq!(state.apply(Lsn(1), &put("a", "1", any())), Answer::Done { existed: false });
        assert_eq!(state.apply(Lsn(2), &put("b", "2", any())), Answer::Done { existed: false });
        assert_eq!(state.apply(Lsn(4), &put("a", "4", any())), Answer::Done { existed: true });
        assert_eq!(state.apply(Lsn(5), &delete("b")), Answer::Done { existed: true });
        state
    }

    fn got(applied: u64, record: Option<(u64, &'static str)>) -> Got {
        let record = record.map(|(version, value)| Record {
            version: Lsn(version),
            content_type: Bytes::new(),
            value: Bytes::from(value),
        });
        Got { group: GroupId(1), applied: Lsn(applied), term: Term(1), record }
    }

    #[test]
    fn conditions_are_judged_against_the_version() {
        let mut state = written();
        let of = |v: u64| Some(Versions::Of(vec![Lsn(v)]));
        let swap = |v| Condition { matches: of(v), matches_none: None };
        let refused = Answer::Refused { index: 0, version: Lsn(4) };
        assert_eq!(state.apply(Lsn(6), &put("a", "x", swap(1))), refused);
        assert_eq!(state.apply(Lsn(7), &put("a", "y", swap(4))), Answer::Done { existed: true });
        let absent = Condition { matches: None, matches_none: Some(Versions::Any) };
        let refused = Answer::Refused { index: 0, version: Lsn(7) };
        assert_eq!(state.apply(Lsn(8), &put("a", "z", absent.clone())), refused);
        assert_eq!(state.apply(Lsn(9), &put("b", "z", absent)), Answer::Done { existed: false });
        let refused = Answer::Refused { index: 0, version: Lsn(0) };
        assert_eq!(state.apply(Lsn(10), &delete("c")), refused);
    }

    #[test]
    fn fires_on_a_wrong_read() {
        let state = written();
        for right in [got(3, Some((1, "1"))), got(4, Some((4, "4")))] {
            assert!(state.reads(b"a", &right).is_ok());
        }
        assert!(state.reads(b"b", &got(5, None)).is_ok());
        let stale = got(4, Some((1, "1")));
        let torn = got(4, Some((4, "1")));
        let lost = got(4, None);
        for wrong in [stale, torn, lost] {
            assert!(state.reads(b"a", &wrong).is_err(), "{wrong:?}");
        }
        assert!(state.reads(b"b", &got(5, Some((2, "2")))).is_err(), "resurrected");
    }

    #[test]
    fn fires_on_a_wrong_list() {
        let state = written();
        let query = ListQuery { limit: 10, values: true, ..ListQuery::default() };
        let listed = |key: &'static str, version, value: &'static str| Listed {
            key: Bytes::from(key),
            size: value.len() as u64,
            record: Record {
                version: Lsn(version),
                content_type: Bytes::new(),
                value: Bytes::from(value),
            },
        };
        let page = |applied, records: &[Listed], more| Page {
            group: GroupId(1),
            applied: Lsn(applied),
            term: Term(1),
            records: records.to_vec(),
            more,
        };
        let (a, b) = (listed("a", 1, "1"), listed("b", 2, "2"));
        assert!(state.lists(&query, &page(3, &[a.clone(), b.clone()], false)).is_ok());
        assert!(state.lists(&query, &page(5, &[listed("a", 4, "4")], false)).is_ok());
        assert!(state.lists(&query, &page(3, std::slice::from_ref(&a), false)).is_err(), "skipped");
        assert!(state.lists(&query, &page(3, std::slice::from_ref(&b), false)).is_err(), "skipped");
        assert!(state.lists(&query, &page(5, &[listed("a", 4, "4"), b], false)).is_err());
        let one = ListQuery { limit: 1, ..query.clone() };
        assert!(state.lists(&one, &page(3, std::slice::from_ref(&a), true)).is_ok());
        assert!(state.lists(&query, &page(3, &[a], true)).is_err(), "more, but stopped early");
    }
}
