//! Damage to what was synced: bits that flip, and writes that went to another place than was asked
//! for. A wound counts once a process has read it.

use super::{
    blocks::{self, Block},
    image::{FileId, Image},
    pages::PAGE,
};
use crate::{
    plan::{How, Where, Wound},
    rng::Rng,
    stats::Seen,
    world::World,
};

/// Bytes that are not as they were written.
#[derive(Debug)]
struct Bad {
    file: FileId,
    at: u64,
    len: u64,
    seen: Seen,
    is_read: bool,
}

/// All damage to one disk that has not been written over.
#[derive(Debug, Default)]
pub(super) struct Wounds(Vec<Bad>);

impl Where {
    /// What such damage counts as.
    fn seen(self, how: How) -> Seen {
        match (self, how) {
            (Where::Entries, How::Flip) => Seen::FlippedEntries,
            (Where::Votes, How::Flip) => Seen::FlippedVotes,
            (Where::Older, How::Flip) => Seen::FlippedOlder,
            (Where::State, How::Flip) => Seen::FlippedState,
            (Where::Identity, How::Flip) => Seen::FlippedIdentity,
            (Where::Entries | Where::Votes | Where::Older, How::Misdirect) => Seen::StrayLog,
            (Where::State, How::Misdirect) => Seen::StrayState,
            (Where::Identity, How::Misdirect) => Seen::StrayIdentity,
        }
    }
}

/// What may be damaged: a file, where, how long.
type Extent = (FileId, u64, u64);

impl Wounds {
    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Damages something of that kind; what, for a reader, if there was such a thing.
    pub(super) fn inflict(
        &mut self,
        wound: Wound,
        image: &mut Image,
        rng: &mut Rng,
    ) -> Option<String> {
        let Wound { place, how } = wound;
        let seen = place.seen(how);
        let extents = extents(place, image);
        let settled: Vec<Extent> = extents
            .into_iter()
            .filter(|(file, at, len)| *len > 0 && image.is_settled(*file, *at, *len))
            .collect();
        if settled.is_empty() {
            return None;
        }
        let (file, at, len) = *rng.pick(&settled);
        match how {
            How::Flip => {
                // A header is small, and matters most.
                let within = if rng.percent(30) { rng.below(len.min(64)) } else { rng.below(len) };
                let mut byte = [0];
                image.read(file, at + within, &mut byte).ok()?;
                byte[0] ^= 1 << rng.below(8);
                self.change(image, file, at + within, &byte, seen)?;
            }
            How::Misdirect => {
                // What should have gone to one place went to the other.
                let others: Vec<_> =
                    settled.iter().filter(|(f, o, _)| *f == file && *o != at).collect();
                let (_, other, other_len) = **others.get(rng.below(others.len() as u64) as usize)?;
                let mut stray = vec![0; len.min(other_len) as usize];
                image.read(file, other, &mut stray).ok()?;
                self.change(image, file, at, &stray, seen)?;
                self.change(image, file, other, &vec![0; other_len as usize], seen)?;
            }
        }
        Some(format!("{place:?} by {how:?}: {file:?} at {at}"))
    }

    fn change(
        &mut self,
        image: &mut Image,
        file: FileId,
        at: u64,
        bytes: &[u8],
        seen: Seen,
    ) -> Option<()> {
        image.corrupt(file, at, bytes)?;
        self.0.push(Bad { file, at, len: bytes.len() as u64, seen, is_read: false });
        Some(())
    }

    /// A process reads a range.
    pub(super) fn are_read(&mut self, file: FileId, offset: u64, len: u64, world: &World) {
        for bad in self.0.iter_mut().filter(|bad| bad.meets(file, offset, len)) {
            if !std::mem::replace(&mut bad.is_read, true) {
                world.saw(bad.seen);
            }
        }
    }

    /// A file is removed, and all damage to it with it.
    pub(super) fn are_gone(&mut self, file: FileId) {
        self.0.retain(|bad| bad.file != file);
    }

    /// A process writes a range: damage in it is gone.
    pub(super) fn are_written(&mut self, file: FileId, offset: u64, len: u64) {
        self.0.retain(|bad| !bad.meets(file, offset, len));
    }
}

impl Bad {
    fn meets(&self, file: FileId, offset: u64, len: u64) -> bool {
        self.file == file && self.at < offset + len && offset < self.at + self.len
    }
}

/// Everything of that kind.
fn extents(place: Where, image: &mut Image) -> Vec<Extent> {
    let of = |file: FileId, blocks: Vec<Block>| -> Vec<Extent> {
        blocks.into_iter().map(|b| (file, b.offset, b.len)).collect()
    };
    let segments = blocks::segments(image);
    match place {
        Where::Entries | Where::Votes => {
            let kind = if place == Where::Entries { blocks::ENTRIES } else { blocks::VOTES };
            let Some(newest) = segments.last() else { return Vec::new() };
            let mut sure = blocks::vouched_for(&blocks::blocks(image, *newest));
            sure.retain(|block| block.kind == kind);
            of(*newest, sure)
        }
        Where::Older => {
            let older = segments.len().saturating_sub(1);
            segments[..older].iter().flat_map(|id| of(*id, blocks::blocks(image, *id))).collect()
        }
        Where::State => {
            let files = image.files_in("state").into_iter().map(|(_, id)| id);
            files.flat_map(|id| pages(image, id)).collect()
        }
        Where::Identity => {
            let identity = image.find("identity").into_iter();
            identity.flat_map(|id| [(id, 0, 88), (id, PAGE as u64, 88)]).collect()
        }
    }
}

/// The pages of a file that hold something.
fn pages(image: &mut Image, id: FileId) -> Vec<Extent> {
    let len = image.len(id).unwrap_or(0);
    let starts = (0..len).step_by(PAGE);
    starts
        .filter(|at| !image.has_hole(id, *at, PAGE as u64))
        .map(|at| (id, at, PAGE as u64))
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::trace::Keep;

    fn block(sequence: u64, synced_upto: u64, kind: u8, fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; 4096];
        bytes[..64].fill(0);
        bytes[..4].copy_from_slice(b"HWBK");
        bytes[9] = kind;
        bytes[12..16].copy_from_slice(&4000u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&synced_upto.to_le_bytes());
        bytes
    }

    /// Two segments of four blocks.
    fn log() -> (Image, Vec<FileId>) {
        let mut image = Image::default();
        let mut ids = Vec::new();
        for segment in 0..2 {
            let id = image.create(&format!("oplog/{segment:012}"));
            let mut bytes = vec![0; 4096];
            bytes[..8].copy_from_slice(b"HWOPLOG1");
            bytes[16..20].copy_from_slice(&88u32.to_le_bytes());
            for n in 0..4u64 {
                let sequence = segment * 4 + n + 1;
                let kind = if n == 1 { blocks::VOTES } else { blocks::ENTRIES };
                bytes.extend(block(sequence, sequence - 1, kind, sequence as u8));
            }
            bytes.resize(8 * 4096, 0);
            image.write(id, 0, Bytes::from(bytes)).unwrap();
            let mark = image.mark();
            image.sync(id, mark).unwrap();
            ids.push(id);
        }
        (image, ids)
    }

    fn changed(image: &mut Image, id: FileId) -> Vec<usize> {
        let (mut now, mut was) = (vec![0; 8 * 4096], vec![0; 8 * 4096]);
        image.read(id, 0, &mut now).unwrap();
        let (mut fresh, ids) = log();
        fresh.read(ids[id.0 as usize / 2], 0, &mut was).unwrap();
        now.iter().zip(&was).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect()
    }

    #[test]
    fn a_wound_is_where_it_should_be_and_counts_when_it_is_read() {
        let world = World::new(1, Keep::default(), || 0);
        for seed in 0..50 {
            let mut rng = Rng::stream(seed, "test", 0);
            for (place, segment) in [(Where::Entries, 1), (Where::Votes, 1), (Where::Older, 0)] {
                let ((mut image, ids), mut wounds) = (log(), Wounds::default());
                let flip = Wound { place, how: How::Flip };
                wounds.inflict(flip, &mut image, &mut rng).unwrap();
                let id = ids[segment];
                let at = changed(&mut image, id);
                assert_eq!(at.len(), 1);
                let nth = at[0] / 4096;
                // The last block is vouched for by nobody.
                assert!(place == Where::Older || (1..4).contains(&nth), "{place:?} {nth}");
                assert_eq!(
                    place == Where::Votes,
                    nth == 2 && segment == 1 && place != Where::Entries
                );
                let before = world.stats().get(place.seen(How::Flip));
                wounds.are_read(id, 0, at[0] as u64, &world);
                assert_eq!(world.stats().get(place.seen(How::Flip)), before);
                wounds.are_read(id, at[0] as u64, 1, &world);
                wounds.are_read(id, 0, 9 * 4096, &world);
                assert_eq!(world.stats().get(place.seen(How::Flip)), before + 1);
                wounds.are_written(id, at[0] as u64, 1);
                assert!(!wounds.any());
            }
        }
    }

    #[test]
    fn a_misdirected_write_hurts_two_places_and_a_write_heals() {
        let mut rng = Rng::stream(3, "test", 0);
        let ((mut image, ids), mut wounds) = (log(), Wounds::default());
        let stray = Wound { place: Where::Older, how: How::Misdirect };
        wounds.inflict(stray, &mut image, &mut rng).unwrap();
        let pages: std::collections::BTreeSet<usize> =
            changed(&mut image, ids[0]).iter().map(|at| at / 4096).collect();
        assert_eq!(pages.len(), 2);
        for page in pages {
            wounds.are_written(ids[0], page as u64 * 4096, 4096);
        }
        assert!(!wounds.any());
        let missing = Wound { place: Where::Identity, how: How::Flip };
        assert_eq!(wounds.inflict(missing, &mut image, &mut rng), None);
    }
}
