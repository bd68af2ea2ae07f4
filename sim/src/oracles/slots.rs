//! O30. A slot is kept: it is where its consumer was told that it is, or further, and no further than
//! that consumer acknowledged; it stands until it is deleted, whoever leads; and a stream that reads
//! for it shows nothing at or below what was acknowledged before.
//!
//! semantics.md 7. Failures 1, 27, 29.
//!
//! A slot of a run has one consumer, a name that no other one ever had, and limits that are far off.

use std::collections::BTreeMap;

use highwater_core::Lsn;

use super::{Verdict, broken};

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Its consumer was told that it stands.
    stands: bool,
    /// Where it was said to be, at least.
    floor: Lsn,
    /// Where it began, or what was acknowledged, the highest, successfully or not.
    ceiling: Lsn,
    /// It was to be deleted.
    leaving: bool,
    gone: bool,
}

/// What was known of a slot when something was asked of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    floor: Lsn,
    gone: bool,
}

/// The slots of a run, by database and name.
#[derive(Debug, Default)]
pub(crate) struct Slots(BTreeMap<(String, String), Slot>);

impl Slots {
    fn slot(&mut self, database: &str, name: &str) -> &mut Slot {
        self.0.entry((database.to_owned(), name.to_owned())).or_default()
    }

    /// Something is asked of a slot; where that is an acknowledgement, of this LSN.
    pub(crate) fn asks(&mut self, database: &str, name: &str, acks: Option<Lsn>) -> Before {
        let slot = self.slot(database, name);
        slot.ceiling = slot.ceiling.max(acks.unwrap_or_default());
        Before { floor: slot.floor, gone: slot.gone }
    }

    /// A slot is to be deleted.
    pub(crate) fn leaves(&mut self, database: &str, name: &str) {
        self.slot(database, name).leaving = true;
    }

    /// It is gone.
    pub(crate) fn left(&mut self, database: &str, name: &str) {
        self.slot(database, name).gone = true;
    }

    /// It was created, or stood before: there.
    pub(crate) fn stands(&mut self, database: &str, name: &str, at: Lsn) {
        let slot = self.slot(database, name);
        if !slot.stands {
            // It may be a new one's beginning.
            (slot.stands, slot.floor, slot.ceiling) = (true, at, slot.ceiling.max(at));
        }
    }

    /// It is said to be there, in answer to a question, or an acknowledgement of what is at `least`.
    pub(crate) fn is_at(
        &mut self,
        database: &str,
        name: &str,
        (before, least): (Before, Lsn),
        at: Lsn,
    ) -> Verdict {
        let slot = self.slot(database, name);
        let Slot { ceiling, .. } = *slot;
        let floor = before.floor.max(least);
        let wrong = if at < floor {
            format!("slot {name} of {database} is at {at:?}, after {floor:?}")
        } else if at > ceiling {
            format!("slot {name} of {database} is at {at:?}, acknowledged is {ceiling:?}")
        } else if before.gone {
            format!("slot {name} of {database} is at {at:?}, and was deleted")
        } else {
            slot.floor = slot.floor.max(at);
            return Ok(());
        };
        Err(broken(wrong))
    }

    /// It is said to be no more, or not to be of use.
    pub(crate) fn denied(&mut self, database: &str, name: &str, why: &str) -> Verdict {
        let slot = *self.slot(database, name);
        if slot.stands && !slot.leaving {
            return Err(broken(format!("slot {name} of {database} is lost: {why}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_slot_that_is_elsewhere_or_lost() {
        let mut slots = Slots::default();
        let asks = |slots: &mut Slots, acks| slots.asks("db", "s", acks);
        assert!(slots.denied("db", "s", "not there yet").is_ok());
        slots.stands("db", "s", Lsn(4));
        let early = asks(&mut slots, None);
        let at = |slots: &mut Slots, before, lsn| slots.is_at("db", "s", before, Lsn(lsn)).is_ok();
        assert!(at(&mut slots, (early, Lsn(0)), 4));
        assert!(!at(&mut slots, (early, Lsn(0)), 3), "it fell back");
        assert!(!at(&mut slots, (early, Lsn(0)), 5), "nobody acknowledged that");
        let ack = asks(&mut slots, Some(Lsn(7)));
        assert!(!at(&mut slots, (ack, Lsn(7)), 6), "the acknowledgement does not count");
        assert!(at(&mut slots, (ack, Lsn(7)), 7));
        assert!(at(&mut slots, (early, Lsn(0)), 4), "it was asked before");
        let late = asks(&mut slots, None);
        assert!(!at(&mut slots, (late, Lsn(0)), 4), "what was acknowledged comes again");
        assert!(slots.denied("db", "s", "lost").is_err());
        slots.leaves("db", "s");
        assert!(slots.denied("db", "s", "deleted, perhaps").is_ok());
        slots.left("db", "s");
        let after = asks(&mut slots, None);
        assert!(!at(&mut slots, (after, Lsn(0)), 7), "it was deleted");
    }
}
