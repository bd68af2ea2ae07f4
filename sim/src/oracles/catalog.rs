//! O20. The catalog: a name stands for one group, is made once, and is not denied once it stands.
//!
//! semantics.md 14. Failures 39, 44.

use std::collections::BTreeMap;

use highwater_core::GroupId;

use super::{Verdict, broken};

/// The databases that clients know of.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    known: BTreeMap<String, (GroupId, bool)>,
}

impl Catalog {
    /// The database's group, if a client was ever told.
    pub(crate) fn group(&self, name: &str) -> Option<GroupId> {
        self.known.get(name).map(|(group, _)| *group)
    }

    /// A client is told that the database stands: made by this call, or before.
    pub(crate) fn stands(&mut self, name: &str, group: GroupId, existed: bool) -> Verdict {
        if let Some((other, _)) = self.known.iter().find(|(n, (g, _))| *g == group && *n != name) {
            return Err(broken(format!("{name} and {other} are both {group:?}")).of(group));
        }
        match self.known.get_mut(name) {
            Some((known, _)) if *known != group => {
                Err(broken(format!("{name} was {known:?} and is now {group:?}")).of(group))
            }
            Some((_, true)) if !existed => Err(broken(format!("{name} was made twice")).of(group)),
            Some((_, made)) => {
                *made |= !existed;
                Ok(())
            }
            None => {
                self.known.insert(name.to_owned(), (group, !existed));
                Ok(())
            }
        }
    }

    /// A client is told that there is no such database; `stood` tells whether it was known to
    /// stand when the call began.
    pub(crate) fn denied(&self, name: &str, stood: bool) -> Verdict {
        if stood {
            let what = format!("{name} stands, and a client was told that it does not exist");
            return Err(broken(what).of(GroupId::SYSTEM));
        }
        Ok(())
    }

    /// Every database that stands.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, GroupId)> {
        self.known.iter().map(|(name, (group, _))| (name.as_str(), *group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_two_groups_of_a_name_and_on_two_makers() {
        let mut oracle = Catalog::default();
        assert!(oracle.stands("a", GroupId(2), true).is_ok());
        assert!(oracle.stands("a", GroupId(2), false).is_ok(), "the maker hears later");
        assert!(oracle.stands("a", GroupId(2), true).is_ok());
        assert!(oracle.stands("a", GroupId(2), false).is_err());
        assert!(oracle.stands("a", GroupId(3), true).is_err());
        assert!(oracle.stands("b", GroupId(2), false).is_err());
        assert_eq!(oracle.all().collect::<Vec<_>>(), [("a", GroupId(2))]);
    }

    #[test]
    fn fires_on_a_denied_database() {
        let oracle = Catalog::default();
        assert!(oracle.denied("a", false).is_ok());
        assert!(oracle.denied("a", true).is_err());
    }
}
