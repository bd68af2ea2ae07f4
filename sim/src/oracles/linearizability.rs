//! O14. Linearizability of each database, exactly and in linear time.
//!
//! Every write has an LSN, and every answer names the LSN that it was given at, so the order in
//! which operations took effect needs no search (Wing and Gong, 1993, would need one): it must be
//! the order of LSNs, and it must respect real time. Whatever takes effect or is read
//! linearizably lies above all that any client had learned to be committed before the call began.
//! What a read shows is checked against the [`Reference`](super::reference::Reference) at its LSN.
//! A write without an answer may take effect at any LSN above that, or never.
//!
//! semantics.md 4. Failures 26, 31.

use std::collections::BTreeMap;

use highwater_core::{GroupId, Lsn};

use super::{Verdict, broken};

/// What clients know to be committed, in real time.
#[derive(Debug, Default)]
pub(crate) struct RealTime {
    known: BTreeMap<GroupId, Lsn>,
}

impl RealTime {
    /// What is known to be committed when a call begins.
    pub(crate) fn floor(&self, group: GroupId) -> Lsn {
        self.known.get(&group).copied().unwrap_or_default()
    }

    /// A client learns that an LSN is committed.
    pub(crate) fn learns(&mut self, group: GroupId, lsn: Lsn) {
        let known = self.known.entry(group).or_default();
        *known = lsn.max(*known);
    }
}

/// A write that began above `floor` took effect at `lsn`.
pub(crate) fn write_is_after(floor: Lsn, group: GroupId, lsn: Lsn) -> Verdict {
    if lsn <= floor {
        let what = format!(
            "a write of {group:?} took effect at {lsn:?}, but {floor:?} was known before it began"
        );
        return Err(broken(what).of(group).lsns(lsn, floor));
    }
    Ok(())
}

/// A linearizable read that began above `floor` was answered at `applied`.
pub(crate) fn read_is_after(floor: Lsn, group: GroupId, applied: Lsn) -> Verdict {
    if applied < floor {
        let what = format!(
            "a linearizable read of {group:?} was answered at {applied:?}, but {floor:?} was \
             known before it began"
        );
        return Err(broken(what).of(group).lsns(applied, floor));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);

    #[test]
    fn fires_on_a_stale_read_and_on_a_write_into_the_past() {
        let mut time = RealTime::default();
        assert_eq!(time.floor(G), Lsn(0));
        time.learns(G, Lsn(7));
        time.learns(G, Lsn(5));
        let floor = time.floor(G);
        assert!(read_is_after(floor, G, Lsn(7)).is_ok());
        assert!(read_is_after(floor, G, Lsn(6)).is_err());
        assert!(write_is_after(floor, G, Lsn(8)).is_ok());
        assert!(write_is_after(floor, G, Lsn(7)).is_err());
        assert_eq!(time.floor(GroupId(3)), Lsn(0));
    }
}
