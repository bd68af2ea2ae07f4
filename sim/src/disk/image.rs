//! What a machine's disk holds: what reads see (the page cache), what would survive a power cut,
//! and the writes in between. Content is volatile until the file is synced, names until their
//! directory is.

use std::{collections::BTreeMap, io};

use bytes::Bytes;

use crate::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId(pub(crate) u64);

#[derive(Debug)]
enum Change {
    Write(usize, Bytes),
    Length(usize),
}

/// A change that is not synced, and how to take it back.
#[derive(Debug)]
struct Pending {
    number: u64,
    change: Change,
    /// The length before, and the bytes that were there from `offset` on.
    len: usize,
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct File {
    /// What reads see. What would survive for certain is this less what is pending.
    cache: Vec<u8>,
    /// In order.
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Naming {
    Link(String, FileId),
    Rename(String, String),
    Unlink(String),
}

/// What a power cut destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Bytes of unsynced writes that are gone.
    pub(crate) bytes: u64,
    /// Writes of which a part is there.
    pub(crate) torn: u64,
    /// Files made, renamed or removed, and now not.
    pub(crate) names: u64,
}

/// The files of one machine.
#[derive(Debug, Default)]
pub(crate) struct Image {
    files: BTreeMap<FileId, File>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    /// By directory, in order.
    namings: BTreeMap<String, Vec<Naming>>,
    numbers: u64,
}

fn directory(name: &str) -> String {
    name.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned()
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} does not exist"))
}

impl Image {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    // --- names ---

    pub(crate) fn list(&self, dir: &str) -> Vec<String> {
        let within = |name: &String| match (dir, name.rsplit_once('/')) {
            ("", None) => Some(name.clone()),
            (dir, Some((parent, file))) if parent == dir => Some(file.to_owned()),
            _ => None,
        };
        self.names.keys().filter_map(within).collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    /// Makes an empty file, over any that has the name.
    pub(crate) fn create(&mut self, name: &str) -> FileId {
        let id = FileId(self.number());
        self.files.insert(id, File::default());
        self.name(Naming::Link(name.to_owned(), id), name);
        id
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if !self.names.contains_key(from) {
            return Err(not_found(from));
        }
        self.name(Naming::Rename(from.to_owned(), to.to_owned()), to);
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        if !self.names.contains_key(name) {
            return Err(not_found(name));
        }
        self.name(Naming::Unlink(name.to_owned()), name);
        Ok(())
    }

    fn name(&mut self, naming: Naming, name: &str) {
        naming.apply(&mut self.names);
        self.namings.entry(directory(name)).or_default().push(naming);
    }

    pub(crate) fn sync_dir(&mut self, dir: &str) {
        for naming in self.namings.remove(dir).unwrap_or_default() {
            naming.apply(&mut self.durable_names);
        }
    }

    // --- content ---

    fn file(&mut self, id: FileId) -> io::Result<&mut File> {
        self.files.get_mut(&id).ok_or_else(|| io::Error::other("the file is gone"))
    }

    pub(crate) fn len(&mut self, id: FileId) -> io::Result<u64> {
        Ok(self.file(id)?.cache.len() as u64)
    }

    /// Up to `len` bytes; fewer at the end.
    pub(crate) fn read(&mut self, id: FileId, offset: u64, len: usize) -> io::Result<&[u8]> {
        let cache = &self.file(id)?.cache;
        let start = (offset as usize).min(cache.len());
        Ok(&cache[start..start.saturating_add(len).min(cache.len())])
    }

    pub(crate) fn write(&mut self, id: FileId, offset: u64, data: Bytes) -> io::Result<()> {
        let number = self.number();
        self.file(id)?.change(number, Change::Write(offset as usize, data));
        Ok(())
    }

    pub(crate) fn set_len(&mut self, id: FileId, len: u64) -> io::Result<()> {
        let number = self.number();
        self.file(id)?.change(number, Change::Length(len as usize));
        Ok(())
    }

    /// A mark: what was written to any file before it.
    pub(crate) fn mark(&self) -> u64 {
        self.numbers
    }

    /// Makes durable what was written to the file before the mark.
    pub(crate) fn sync(&mut self, id: FileId, mark: u64) -> io::Result<()> {
        let file = self.file(id)?;
        let upto = file.pending.partition_point(|pending| pending.number <= mark);
        file.pending.drain(..upto);
        Ok(())
    }

    /// Flips bits of one byte of a file that is synced; the byte it was.
    pub(crate) fn damage(&mut self, id: FileId, offset: u64, flip: u8) -> Option<u8> {
        let file = self.files.get_mut(&id).filter(|file| file.pending.is_empty())?;
        let byte = file.cache.get_mut(offset as usize)?;
        let was = *byte;
        *byte ^= flip;
        Some(was)
    }

    // --- the end ---

    /// The process is gone; the page cache stays. Files without a name go.
    pub(crate) fn forget_nameless(&mut self) {
        let named = |id: &FileId| {
            self.names.values().any(|n| n == id) || self.durable_names.values().any(|n| n == id)
        };
        let gone: Vec<FileId> = self.files.keys().copied().filter(|id| !named(id)).collect();
        for id in gone {
            self.files.remove(&id);
        }
    }

    /// The power goes: of what was not synced, a random part is there.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) -> Loss {
        let mut loss = Loss::default();
        for (_, namings) in std::mem::take(&mut self.namings) {
            let kept = rng.below(namings.len() as u64 + 1) as usize;
            loss.names += (namings.len() - kept) as u64;
            for naming in namings.into_iter().take(kept) {
                naming.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        self.forget_nameless();
        for file in self.files.values_mut() {
            file.power_cut(rng, &mut loss);
        }
        loss
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        match self {
            Naming::Link(name, id) => {
                names.insert(name.clone(), *id);
            }
            Naming::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            Naming::Unlink(name) => {
                names.remove(name);
            }
        }
    }
}

fn put(into: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[offset..end].copy_from_slice(data);
}

/// What a power cut leaves of a file's unsynced writes.
enum Survival {
    Nothing,
    Everything,
    /// Each sector with this chance, in percent.
    Sectors(u64),
    /// Each write whole or not at all.
    Writes,
    /// Those up to one, and a part of that one.
    Prefix(usize),
}

impl File {
    fn change(&mut self, number: u64, change: Change) {
        let len = self.cache.len();
        let (offset, end) = match &change {
            Change::Write(offset, data) => (*offset, offset + data.len()),
            Change::Length(to) => (*to, len),
        };
        let before = self.cache.get(offset.min(len)..end.min(len)).unwrap_or_default().to_vec();
        match &change {
            Change::Write(offset, data) => put(&mut self.cache, *offset, data),
            Change::Length(to) => self.cache.resize(*to, 0),
        }
        self.pending.push(Pending { number, change, len, offset, bytes: before });
    }

    fn power_cut(&mut self, rng: &mut Rng, loss: &mut Loss) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        for Pending { len, offset, bytes, .. } in pending.iter().rev() {
            self.cache.resize(*len, 0);
            put(&mut self.cache, (*offset).min(*len), bytes);
        }
        let survival = match rng.below(6) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Sectors(rng.range(5, 95)),
            3 => Survival::Writes,
            _ => Survival::Prefix(rng.below(pending.len() as u64) as usize),
        };
        for (i, Pending { change, .. }) in pending.into_iter().enumerate() {
            let percent = match survival {
                Survival::Nothing => 0,
                Survival::Everything => 100,
                Survival::Sectors(percent) => percent,
                Survival::Writes => 100 * rng.below(2),
                Survival::Prefix(last) if i < last => 100,
                Survival::Prefix(last) if i == last => 50,
                Survival::Prefix(_) => 0,
            };
            match change {
                Change::Length(len) if rng.percent(percent) => self.cache.resize(len, 0),
                Change::Length(_) => {}
                Change::Write(offset, data) => {
                    let lost = self.keep_sectors(offset, &data, percent, rng);
                    loss.bytes += lost;
                    loss.torn += u64::from(lost > 0 && lost < data.len() as u64);
                }
            }
        }
    }

    fn keep_sectors(&mut self, offset: usize, data: &[u8], percent: u64, rng: &mut Rng) -> u64 {
        let (mut at, mut lost) = (0, 0);
        while at < data.len() {
            let len = (SECTOR - (offset + at) % SECTOR).min(data.len() - at);
            if rng.percent(percent) {
                put(&mut self.cache, offset + at, &data[at..at + len]);
            } else {
                lost += len as u64;
            }
            at += len;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synced(image: &mut Image, id: FileId) {
        let mark = image.mark();
        image.sync(id, mark).unwrap();
    }

    #[test]
    fn synced_bytes_survive_and_names_need_their_directory() {
        for seed in 0..200 {
            let mut rng = Rng::stream(seed, "test", 0);
            let mut image = Image::default();
            let kept = image.create("oplog/kept");
            image.write(kept, 0, Bytes::from_static(&[7; 2000])).unwrap();
            synced(&mut image, kept);
            image.sync_dir("oplog");
            let loose = image.create("oplog/loose");
            image.write(loose, 0, Bytes::from_static(&[8; 10])).unwrap();
            synced(&mut image, loose);
            image.write(kept, 1000, Bytes::from_static(&[9; 3000])).unwrap();
            let loss = image.power_cut(&mut rng);
            assert_eq!(image.find("oplog/kept"), Some(kept));
            assert_eq!(image.find("oplog/loose").is_none(), loss.names == 1, "seed {seed}");
            let read = image.read(kept, 0, 8000).unwrap();
            assert_eq!(read[..1000], [7; 1000]);
            let overwritten = read.iter().filter(|b| **b == 9).count() as u64;
            assert_eq!(overwritten + loss.bytes, 3000, "seed {seed}");
        }
    }

    #[test]
    fn a_power_cut_loses_tears_and_spares() {
        let (mut lost, mut torn, mut spared) = (0, 0, 0);
        for seed in 0..200 {
            let mut image = Image::default();
            let id = image.create("file");
            image.sync_dir("");
            image.write(id, 100, Bytes::from(vec![1; 4096])).unwrap();
            let loss = image.power_cut(&mut Rng::stream(seed, "test", 0));
            lost += u64::from(loss.bytes == 4096);
            torn += loss.torn;
            spared += u64::from(loss.bytes == 0);
        }
        assert!(lost > 10 && torn > 10 && spared > 10, "{lost} {torn} {spared}");
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut image = Image::default();
            let id = image.create("file");
            image.sync_dir("");
            image.write(id, 0, Bytes::from_static(b"before")).unwrap();
            let mark = image.mark();
            image.write(id, 0, Bytes::from_static(b"behind them")).unwrap();
            image.sync(id, mark).unwrap();
            image.power_cut(&mut Rng::stream(seed, "test", 0));
            seen.insert(image.read(id, 0, 20).unwrap().to_vec());
        }
        let seen: Vec<_> = seen.into_iter().collect();
        assert_eq!(seen, [b"before".to_vec(), b"behind them".to_vec()]);
    }

    #[test]
    fn lengths_come_back_too() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut image = Image::default();
            let id = image.create("file");
            image.sync_dir("");
            image.write(id, 0, Bytes::from_static(b"0123456789")).unwrap();
            synced(&mut image, id);
            image.set_len(id, 4).unwrap();
            image.set_len(id, 6).unwrap();
            image.power_cut(&mut Rng::stream(seed, "test", 0));
            seen.insert(image.read(id, 0, 20).unwrap().to_vec());
        }
        let due = [b"0123".to_vec(), b"0123\0\0".to_vec(), b"0123456789".to_vec()];
        assert!(due.iter().all(|due| seen.contains(due)), "{seen:?}");
    }

    #[test]
    fn a_rename_is_undone_unless_synced() {
        let mut undone = 0;
        for seed in 0..50 {
            let mut image = Image::default();
            let old = image.create("identity");
            image.sync_dir("");
            let new = image.create("identity.tmp");
            image.rename("identity.tmp", "identity").unwrap();
            assert_eq!(image.find("identity"), Some(new));
            image.power_cut(&mut Rng::stream(seed, "test", 0));
            undone += u64::from(image.find("identity") == Some(old));
        }
        assert!((5..45).contains(&undone), "{undone}");
    }

    #[test]
    fn lists_one_directory_in_order() {
        let mut image = Image::default();
        for name in ["oplog/2", "top", "oplog/1", "state/1"] {
            image.create(name);
        }
        assert_eq!(image.list("oplog"), ["1", "2"]);
        assert_eq!(image.list(""), ["top"]);
        image.remove("oplog/1").unwrap();
        assert_eq!(image.list("oplog"), ["2"]);
        assert!(image.remove("oplog/1").is_err());
    }
}
