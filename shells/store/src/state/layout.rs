//! The bytes in a state file: names of tables and the encoding of their rows. Frozen by snapshot.

use highwater_core::{GroupId, Lsn, Position, Term};
use redb::TableDefinition;

use super::leaf::Leaf;

/// Key -> record.
pub(super) const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// The core's control writes.
pub(super) const CONTROL: TableDefinition<&[u8], &[u8]> = TableDefinition::new("control");
/// Rows under [`MARK`] and [`SUMS`].
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// What the file says of itself.
pub(super) const MARK: &str = "mark";
/// The sums of all leaves, by bucket.
pub(super) const SUMS: &str = "sums";

/// The format of everything in a state file.
pub(super) const FORMAT: u32 = 2;

/// The state file's name of a group.
pub(super) fn file_name(group: GroupId) -> String {
    format!("{group}.redb")
}

const MARK_LEN: usize = 36;
const RECORD_HEADER: usize = 25;

/// What a state file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Whose state it is.
    pub(super) group: GroupId,
    /// Every entry up to this one is in it, and none after.
    pub(super) at: Position,
    /// Which operations were refused up to here is not known any more.
    pub(super) pruned: Lsn,
}

/// Why a row cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRow {
    /// Another format than [`FORMAT`].
    Format(u32),
    /// Its length is wrong, or it is not what its leaf says.
    Damaged,
}

impl Mark {
    pub(super) fn encode(self) -> [u8; MARK_LEN] {
        let mut out = [0; MARK_LEN];
        out[0..4].copy_from_slice(&FORMAT.to_le_bytes());
        out[4..12].copy_from_slice(&self.group.0.to_le_bytes());
        out[12..20].copy_from_slice(&self.at.lsn.0.to_le_bytes());
        out[20..28].copy_from_slice(&self.at.term.0.to_le_bytes());
        out[28..36].copy_from_slice(&self.pruned.0.to_le_bytes());
        out
    }

    pub(super) fn decode(row: &[u8]) -> Result<Mark, BadRow> {
        let (format, rest) = row.split_first_chunk().ok_or(BadRow::Damaged)?;
        let format = u32::from_le_bytes(*format);
        if format != FORMAT {
            return Err(BadRow::Format(format));
        }
        let (group, rest) = take_u64(rest)?;
        let (lsn, rest) = take_u64(rest)?;
        let (term, rest) = take_u64(rest)?;
        let (pruned, rest) = take_u64(rest)?;
        if !rest.is_empty() {
            return Err(BadRow::Damaged);
        }
        let at = Position { term: Term(term), lsn: Lsn(lsn) };
        Ok(Mark { group: GroupId(group), at, pruned: Lsn(pruned) })
    }
}

/// A record as it lies in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordRow<'a> {
    pub(super) version: Lsn,
    pub(super) leaf: Leaf,
    pub(super) content_type: &'a [u8],
    pub(super) value: &'a [u8],
}

impl<'a> RecordRow<'a> {
    /// How long the row is. The content type has at most 255 bytes: [`Op::decode`] sees to it.
    ///
    /// [`Op::decode`]: highwater_wire::op::Op::decode
    pub(super) fn len(&self) -> usize {
        RECORD_HEADER + self.content_type.len() + self.value.len()
    }

    /// Fills `out`, which has [`RecordRow::len`] bytes.
    pub(super) fn write(&self, out: &mut [u8]) {
        let (header, rest) = out.split_at_mut(RECORD_HEADER);
        let (content_type, value) = rest.split_at_mut(self.content_type.len());
        header[..8].copy_from_slice(&self.version.0.to_le_bytes());
        header[8..24].copy_from_slice(&self.leaf.0.to_le_bytes());
        header[24] = u8::try_from(self.content_type.len()).unwrap_or(u8::MAX);
        content_type.copy_from_slice(self.content_type);
        value.copy_from_slice(self.value);
    }

    /// A row as it was written; that it still is so is for its leaf to say.
    pub(super) fn read(row: &'a [u8]) -> Result<RecordRow<'a>, BadRow> {
        let (version, rest) = take_u64(row)?;
        let (leaf, rest) = rest.split_first_chunk().ok_or(BadRow::Damaged)?;
        let leaf = Leaf(u128::from_le_bytes(*leaf));
        let (&content_type_len, rest) = rest.split_first().ok_or(BadRow::Damaged)?;
        let (content_type, value) =
            rest.split_at_checked(usize::from(content_type_len)).ok_or(BadRow::Damaged)?;
        Ok(RecordRow { version: Lsn(version), leaf, content_type, value })
    }
}

fn take_u64(bytes: &[u8]) -> Result<(u64, &[u8]), BadRow> {
    let (head, rest) = bytes.split_first_chunk().ok_or(BadRow::Damaged)?;
    Ok((u64::from_le_bytes(*head), rest))
}
