//! Where the oplog's blocks lie, as far as damage needs to know: read from the bytes, as a person
//! with the layout in `docs/FORMATS.md` would.

use super::image::{FileId, Image};

const SECTOR: usize = 4096;
const SEGMENT_MAGIC: &[u8] = b"HWOPLOG1";
const BLOCK_MAGIC: &[u8] = b"HWBK";
/// A block of entries and hints only.
pub(super) const ENTRIES: u8 = 3;
/// A block that holds a vote, or what else must not be forgotten.
pub(super) const VOTES: u8 = 0;

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) offset: u64,
    /// Without the padding.
    pub(super) len: u64,
    pub(super) kind: u8,
    sequence: u64,
    synced_upto: u64,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Segments that were begun, in order.
pub(super) fn segments(image: &mut Image) -> Vec<FileId> {
    let mut begun = Vec::new();
    for (_, id) in image.files_in("oplog") {
        let mut magic = [0; 8];
        if image.read(id, 0, &mut magic).is_ok() && magic == SEGMENT_MAGIC {
            begun.push(id);
        }
    }
    begun
}

/// Whether this begins with a block.
pub(super) fn is_block(bytes: &[u8]) -> bool {
    bytes.starts_with(BLOCK_MAGIC)
}

/// Whether this begins with a block of a history file.
pub(super) fn is_history(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HWHB")
}

/// The blocks of a segment, up to the first thing that is none.
pub(super) fn blocks(image: &mut Image, id: FileId) -> Vec<Block> {
    let mut bytes = vec![0; image.len(id).unwrap_or(0) as usize];
    let _ = image.read(id, 0, &mut bytes);
    let header = (number(&bytes, 16) & 0xffff_ffff) as usize;
    let mut at = header.next_multiple_of(SECTOR);
    let mut found: Vec<Block> = Vec::new();
    while bytes.get(at..at + 4) == Some(BLOCK_MAGIC) {
        let len = 64 + (number(&bytes, at + 12) & 0xffff_ffff);
        let block = Block {
            offset: at as u64,
            len,
            kind: bytes[at + 9],
            sequence: number(&bytes, at + 24),
            synced_upto: number(&bytes, at + 40),
        };
        let follows = found.last().is_none_or(|last| block.sequence == last.sequence + 1);
        if !follows || at + len as usize > bytes.len() {
            break;
        }
        found.push(block);
        at += (len as usize).next_multiple_of(SECTOR);
    }
    found
}

/// Those of the newest segment's blocks that a later block vouches for: damage to them can be told
/// from a torn tail.
pub(super) fn vouched_for(blocks: &[Block]) -> Vec<Block> {
    let later = |block: &Block| {
        blocks.iter().any(|b| b.sequence > block.sequence && b.synced_upto >= block.sequence)
    };
    blocks.iter().filter(|block| later(block)).copied().collect()
}
