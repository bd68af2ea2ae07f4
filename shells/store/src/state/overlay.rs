//! The part of a group's state that is in memory: what was applied since the last flush.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    iter::Peekable,
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use highwater_core::{Lsn, Position};

use super::{
    StoredRecord,
    key::Key,
    leaf::{Leaf, Sums},
};

/// What the overlay knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Its record, and what that hashes to.
    Record(StoredRecord, Leaf),
    /// It was deleted; what lies below does not count.
    Gone,
}

impl Cell {
    /// The version of the record, if there is one.
    pub(super) fn version(&self) -> Option<Lsn> {
        self.record().map(|record| record.version)
    }

    pub(super) fn record(&self) -> Option<&StoredRecord> {
        match self {
            Cell::Record(record, _) => Some(record),
            Cell::Gone => None,
        }
    }

    pub(super) fn leaf(&self) -> Option<Leaf> {
        match self {
            Cell::Record(_, leaf) => Some(*leaf),
            Cell::Gone => None,
        }
    }

    /// What a write of the key needs to know of it.
    pub(super) fn before(&self) -> Before {
        Some((self.version()?, self.leaf()?))
    }
}

/// What was there of a key: the record's version and leaf, if there was one.
pub(super) type Before = Option<(Lsn, Leaf)>;

/// One generation of changes. Long keys and values are slices of the payloads they came in, which they
/// keep alive until the generation is flushed.
pub(super) type Overlay = BTreeMap<Key, Cell>;

/// A generation that waits to be flushed, with what else goes into the same transaction.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) at: Position,
    /// Outcomes of refused operations up to here are forgotten.
    pub(super) pruned: Lsn,
    pub(super) overlay: Overlay,
    /// Operations that were refused; the control writes say so as well.
    pub(super) refused: BTreeSet<Lsn>,
    pub(super) control: Vec<(Bytes, Bytes)>,
    /// Of everything up to that LSN.
    pub(super) sums: Sums,
}

/// Both generations, as one.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    pub(super) active: Overlay,
    /// Operations that were refused since.
    pub(super) refused: BTreeSet<Lsn>,
    pub(super) frozen: Option<Arc<Frozen>>,
}

impl Overlays {
    /// The newest that memory knows of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Cell> {
        self.active.get(key).or_else(|| self.get_frozen(key))
    }

    /// What the frozen generation knows of a key.
    pub(super) fn get_frozen(&self, key: &[u8]) -> Option<&Cell> {
        self.frozen.as_ref().and_then(|frozen| frozen.overlay.get(key))
    }

    /// The refused operations in a range of LSNs, both ends included.
    pub(super) fn refused_within(&self, from: Lsn, to: Lsn) -> BTreeSet<Lsn> {
        let frozen = self.frozen.iter().flat_map(|frozen| frozen.refused.range(from..=to));
        self.refused.range(from..=to).chain(frozen).copied().collect()
    }

    /// Copies the cells of a page (cheaply: values are shared) until `records_max` records or
    /// `bytes_max` bytes of them are there.
    pub(super) fn page(&self, range: &PageRange, records_max: usize, bytes_max: usize) -> Layer {
        let mut layer = Layer { cells: Vec::new(), complete: true };
        let (mut records, mut bytes) = (0, 0);
        for (key, cell) in self.merged(range) {
            if records >= records_max || bytes >= bytes_max {
                layer.complete = false;
                break;
            }
            if let Cell::Record(record, _) = cell {
                records += 1;
                bytes += record.value.len();
            }
            layer.cells.push((key.clone(), cell.clone()));
        }
        layer
    }

    /// Both generations as they are now; cheaply, since values are shared. What was refused is not
    /// copied.
    pub(super) fn records(&self) -> Overlays {
        let (active, frozen) = (self.active.clone(), self.frozen.clone());
        Overlays { active, frozen, refused: BTreeSet::new() }
    }

    fn merged<'a>(&'a self, range: &'a PageRange) -> Merged<'a> {
        let active = range.of(&self.active).peekable();
        let frozen = self.frozen.as_ref().map(|frozen| range.of(&frozen.overlay).peekable());
        Merged { range, active, frozen }
    }
}

/// The cells of a page that lie in memory.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) cells: Vec<(Key, Cell)>,
    /// Whether memory knows nothing more after the last of `cells`.
    pub(super) complete: bool,
}

/// The keys that a list asks for: with a prefix, and after a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRange<'a> {
    pub(super) prefix: &'a [u8],
    pub(super) from: Bound<&'a [u8]>,
}

impl<'a> PageRange<'a> {
    pub(super) fn new(prefix: &'a [u8], after: Option<&'a [u8]>) -> PageRange<'a> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        PageRange { prefix, from }
    }

    fn of<'o>(&self, overlay: &'o Overlay) -> btree_map::Range<'o, Key, Cell> {
        overlay.range::<[u8], _>((self.from, Bound::Unbounded))
    }
}

type Cells<'a> = Peekable<btree_map::Range<'a, Key, Cell>>;

/// Both generations in order of keys, the active one hiding the frozen one.
struct Merged<'a> {
    range: &'a PageRange<'a>,
    active: Cells<'a>,
    frozen: Option<Cells<'a>>,
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a Key, &'a Cell);

    fn next(&mut self) -> Option<Self::Item> {
        let below = self.frozen.as_mut().and_then(|frozen| frozen.peek().map(|(key, _)| *key));
        let above = self.active.peek().map(|(key, _)| *key);
        let next = match (above, below) {
            (Some(above), Some(below)) if above == below => {
                self.frozen.as_mut().and_then(Iterator::next);
                self.active.next()
            }
            (Some(above), Some(below)) if above > below => {
                self.frozen.as_mut().and_then(Iterator::next)
            }
            (Some(_), _) => self.active.next(),
            (None, _) => self.frozen.as_mut().and_then(Iterator::next),
        };
        next.filter(|(key, _)| key.starts_with(self.range.prefix))
    }
}
