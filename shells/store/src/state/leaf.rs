//! What records hash to, and what a whole state does.
//!
//! A record's **leaf** is a hash of all of it, keyed by its group, so that one in another group's or
//! another key's place is told. A state keeps, for each of 256 **buckets** of keys, the sum of its
//! records' leaves: a write takes the old leaf out and puts the new one in, whatever the order, so
//! that the sums depend on the records alone. The **root** is a hash of the sums at an LSN.
//!
//! Leaves are BLAKE3, keyed, cut to 128 bits: faster than the disks it guards, one well-kept crate,
//! and wide enough that no damage meets an equal one. Sums of hashes guard against damage and
//! divergence, not against somebody who chooses records to make two states look alike.

use std::fmt;

use highwater_core::{GroupId, Lsn, Root};

use super::layout::BadRow;

/// Buckets that keys are divided into.
const BUCKETS: usize = 256;
const SUM: usize = size_of::<u128>();
/// How long the encoded sums are.
pub(super) const SUMS_LEN: usize = BUCKETS * SUM;
/// What keys are derived for: changed with what is hashed.
const CONTEXT: &str = "highwater state format 2: leaves of records, and roots";

/// The hash of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf(pub(super) u128);

/// Hashes for one group.
#[derive(Clone, Copy)]
pub(super) struct Leaves([u8; blake3::KEY_LEN]);

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaves")
    }
}

impl Leaves {
    pub(super) fn of(group: GroupId) -> Leaves {
        Leaves(blake3::derive_key(CONTEXT, &group.0.to_le_bytes()))
    }

    /// The leaf of a record. Keys have at most 1024 bytes, content types at most 255.
    pub(super) fn leaf(&self, key: &[u8], version: Lsn, content_type: &[u8], value: &[u8]) -> Leaf {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [key, content_type] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.update(&version.0.to_le_bytes()).update(value);
        Leaf(cut(&hasher))
    }

    /// The root of a state with these sums at an LSN.
    pub(super) fn root(&self, lsn: Lsn, sums: &Sums) -> Root {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&lsn.0.to_le_bytes()).update(&sums.encode());
        Root(cut(&hasher))
    }
}

fn cut(hasher: &blake3::Hasher) -> u128 {
    let mut out = [0; SUM];
    hasher.finalize_xof().fill(&mut out);
    u128::from_le_bytes(out)
}

/// The sum of the leaves of each bucket's records, modulo 2^128.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sums(Box<[u128; BUCKETS]>);

impl Default for Sums {
    fn default() -> Sums {
        Sums(Box::new([0; BUCKETS]))
    }
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sums")
    }
}

impl Sums {
    /// A key's record was this before, and is that now.
    pub(super) fn change(&mut self, key: &[u8], before: Option<Leaf>, now: Option<Leaf>) {
        let sum = &mut self.0[crc32c::crc32c(key) as usize % BUCKETS];
        *sum = sum.wrapping_sub(before.map_or(0, |leaf| leaf.0));
        *sum = sum.wrapping_add(now.map_or(0, |leaf| leaf.0));
    }

    pub(super) fn encode(&self) -> [u8; SUMS_LEN] {
        let mut out = [0; SUMS_LEN];
        for (bytes, sum) in out.chunks_exact_mut(SUM).zip(self.0.iter()) {
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(row: &[u8]) -> Result<Sums, BadRow> {
        if row.len() != SUMS_LEN {
            return Err(BadRow::Damaged);
        }
        let mut sums = Sums::default();
        for (sum, bytes) in sums.0.iter_mut().zip(row.chunks_exact(SUM)) {
            *sum = u128::from_le_bytes(bytes.try_into().map_err(|_| BadRow::Damaged)?);
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(group: u64, key: &str, version: u64, content_type: &str, value: &str) -> Leaf {
        let leaves = Leaves::of(GroupId(group));
        leaves.leaf(key.as_bytes(), Lsn(version), content_type.as_bytes(), value.as_bytes())
    }

    /// A change here is a change of the format.
    #[test]
    fn leaves_and_roots_are_frozen() {
        let one = leaf(7, "key", 3, "text/plain", "value");
        insta::assert_snapshot!("leaf", format!("{:032x}", one.0));
        let mut sums = Sums::default();
        sums.change(b"key", None, Some(one));
        insta::assert_snapshot!("root", Leaves::of(GroupId(7)).root(Lsn(5), &sums));
    }

    #[test]
    fn every_part_of_a_record_counts() {
        let one = leaf(7, "key", 3, "ab", "cd");
        let others = [
            leaf(8, "key", 3, "ab", "cd"),
            leaf(7, "kez", 3, "ab", "cd"),
            leaf(7, "key", 4, "ab", "cd"),
            leaf(7, "key", 3, "abc", "d"),
            leaf(7, "keya", 3, "b", "cd"),
            leaf(7, "key", 3, "ab", "ce"),
        ];
        assert!(others.iter().all(|other| *other != one));
    }

    #[test]
    fn sums_depend_on_what_is_there_alone() {
        let (a, b, c) =
            (leaf(7, "a", 1, "", "1"), leaf(7, "b", 2, "", "2"), leaf(7, "a", 3, "", "3"));
        let mut there = Sums::default();
        there.change(b"b", None, Some(b));
        there.change(b"a", None, Some(c));
        let mut history = Sums::default();
        history.change(b"a", None, Some(a));
        history.change(b"b", None, Some(b));
        assert_ne!(history, there);
        history.change(b"a", Some(a), Some(c));
        assert_eq!(history, there);
        assert_eq!(Sums::decode(&there.encode()).unwrap(), there);
        assert!(Sums::decode(&there.encode()[1..]).is_err());
        let root = |lsn, sums| Leaves::of(GroupId(7)).root(Lsn(lsn), sums);
        assert_ne!(root(3, &there), root(4, &there));
        there.change(b"a", Some(c), None);
        there.change(b"b", Some(b), None);
        assert_eq!(there, Sums::default());
    }
}
