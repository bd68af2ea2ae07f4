//! What a machine's disk holds: what reads see (the page cache), what would survive a power cut,
//! and the writes in between. Content is volatile until the file is synced, names until their
//! directory is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
};

use bytes::Bytes;

use super::pages::{PAGE, Pages};
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

/// A change that is not synced.
#[derive(Debug)]
struct Pending {
    number: u64,
    change: Change,
}

#[derive(Debug, Default)]
struct File {
    /// What reads see.
    cache: Pages,
    /// What would survive for certain.
    disk: Pages,
    /// What the cache has and the disk has not, in order.
    pending: VecDeque<Pending>,
    /// Pages that a failed sync has left clean, although the disk has not what the cache has.
    dropped: BTreeSet<usize>,
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
    /// ... with a part behind one that is gone.
    pub(crate) holes: u64,
    /// Files made, renamed or removed, and now not.
    pub(crate) names: u64,
    /// Pages that a failed sync had dropped.
    pub(crate) dropped: u64,
}

/// A copy of all that was durable at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    files: BTreeMap<FileId, Pages>,
    names: BTreeMap<String, FileId>,
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

    /// Reads into `out`; how much there was.
    pub(crate) fn read(&mut self, id: FileId, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        Ok(self.file(id)?.cache.read(offset as usize, out))
    }

    /// Reads up to `len` bytes.
    pub(crate) fn read_some(&mut self, id: FileId, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        Ok(self.file(id)?.cache.read_some(offset as usize, len))
    }

    pub(crate) fn write(&mut self, id: FileId, offset: u64, data: Bytes) -> io::Result<()> {
        let number = self.number();
        self.file(id)?.change(number, Change::Write(offset as usize, data));
        Ok(())
    }

    /// Whether a range touches a page that was never written.
    pub(crate) fn has_hole(&self, id: FileId, offset: u64, len: u64) -> bool {
        let range = pages_of(offset as usize, len as usize);
        self.files.get(&id).is_some_and(|file| file.cache.has_hole(range))
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
        self.file(id)?.sync(mark);
        Ok(())
    }

    /// The sync of what was written before the mark fails, and the pages are clean from then on: no
    /// later sync writes them. Some systems keep showing what was written (`forget` is false),
    /// others what the disk has. How many pages there were.
    pub(crate) fn drop_dirty(&mut self, id: FileId, mark: u64, forget: bool) -> io::Result<u64> {
        Ok(self.file(id)?.drop_dirty(mark, forget))
    }

    /// Whether all of a range is on the disk as reads see it, and nothing is on its way there.
    pub(crate) fn is_settled(&self, id: FileId, offset: u64, len: u64) -> bool {
        self.files.get(&id).is_some_and(|file| file.is_settled(offset as usize, len as usize))
    }

    /// Changes bytes of a file where they lie, unseen by its owner, if they are there.
    pub(crate) fn corrupt(&mut self, id: FileId, offset: u64, bytes: &[u8]) -> Option<()> {
        let file = self.files.get_mut(&id)?;
        if offset as usize + bytes.len() > file.cache.len() {
            return None;
        }
        file.cache.write(offset as usize, bytes);
        file.disk.write(offset as usize, bytes);
        Some(())
    }

    /// Names and files of a directory.
    pub(crate) fn files_in(&self, dir: &str) -> Vec<(String, FileId)> {
        let names = self.names.iter().filter(|(name, _)| directory(name) == dir);
        names.map(|(name, id)| (name.clone(), *id)).collect()
    }

    // --- the end ---

    /// The process is gone; the page cache stays. Files without a name go.
    pub(crate) fn forget_nameless(&mut self) {
        let named: BTreeSet<FileId> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        self.files.retain(|id, _| named.contains(id));
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

    /// A copy of what is durable now.
    pub(crate) fn copy(&self) -> Copy {
        let named: BTreeSet<FileId> = self.durable_names.values().copied().collect();
        let files = self.files.iter().filter(|(id, _)| named.contains(id));
        Copy {
            files: files.map(|(id, file)| (*id, file.disk.clone())).collect(),
            names: self.durable_names.clone(),
        }
    }

    /// Puts a copy in place of everything. Only while no process runs.
    pub(crate) fn restore(&mut self, copy: Copy) {
        let file = |(id, disk): (FileId, Pages)| {
            (id, File { cache: disk.clone(), disk, ..File::default() })
        };
        self.files = copy.files.into_iter().map(file).collect();
        (self.names, self.durable_names) = (copy.names.clone(), copy.names);
        self.namings.clear();
    }

    /// Nothing is left. Only while no process runs.
    pub(crate) fn wipe(&mut self) {
        *self = Image { numbers: self.numbers, ..Image::default() };
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

/// What a power cut leaves of a file's unsynced writes.
enum Survival {
    Nothing,
    Everything,
    /// Each sector with this chance, in percent.
    Sectors(u64),
    /// ... of a disk whose sectors are as large as pages.
    Pages(u64),
    /// Each write whole or not at all.
    Writes,
    /// Those up to one, and a part of that one.
    Prefix(usize),
}

/// The pages that a range touches.
fn pages_of(offset: usize, len: usize) -> std::ops::Range<usize> {
    offset / PAGE..(offset + len).div_ceil(PAGE)
}

impl Change {
    fn apply(&self, to: &mut Pages) {
        match self {
            Change::Write(offset, data) => to.write(*offset, data),
            Change::Length(len) => to.resize(*len),
        }
    }

    /// The pages that it touches.
    fn pages(&self, all: usize) -> std::ops::Range<usize> {
        match self {
            Change::Write(offset, data) => pages_of(*offset, data.len()),
            Change::Length(len) => len / PAGE..all.max(len.div_ceil(PAGE)),
        }
    }
}

impl File {
    fn change(&mut self, number: u64, change: Change) {
        change.apply(&mut self.cache);
        self.pending.push_back(Pending { number, change });
    }

    fn before(&mut self, mark: u64) -> Vec<Change> {
        let upto = self.pending.partition_point(|pending| pending.number <= mark);
        self.pending.drain(..upto).map(|pending| pending.change).collect()
    }

    fn sync(&mut self, mark: u64) {
        let changes = self.before(mark);
        // Where nothing else is under way, the disk has the very pages of the cache.
        let same = self.pending.is_empty() && self.dropped.is_empty();
        for change in changes {
            match &change {
                Change::Write(offset, data) if same => {
                    self.disk.share(&self.cache, pages_of(*offset, data.len()));
                }
                _ => change.apply(&mut self.disk),
            }
            if let Change::Write(offset, data) = &change {
                let whole = offset.div_ceil(PAGE)..(offset + data.len()) / PAGE;
                self.dropped.retain(|page| !whole.contains(page));
            }
        }
    }

    fn drop_dirty(&mut self, mark: u64, forget: bool) -> u64 {
        let all = self.cache.len().div_ceil(PAGE);
        let changes = self.before(mark);
        let pages: BTreeSet<usize> = changes.iter().flat_map(|c| c.pages(all)).collect();
        if forget {
            self.cache = self.disk.clone();
            self.pending.iter().for_each(|pending| pending.change.apply(&mut self.cache));
        } else {
            self.dropped.extend(&pages);
        }
        pages.len() as u64
    }

    fn is_settled(&self, offset: usize, len: usize) -> bool {
        let pages = pages_of(offset, len);
        let all = self.cache.len().div_ceil(PAGE);
        offset + len <= self.cache.len().min(self.disk.len())
            && self.dropped.range(pages.clone()).next().is_none()
            && !self.pending.iter().any(|pending| {
                let touched = pending.change.pages(all);
                touched.start < pages.end && pages.start < touched.end
            })
    }

    fn power_cut(&mut self, rng: &mut Rng, loss: &mut Loss) {
        loss.dropped += std::mem::take(&mut self.dropped).len() as u64;
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.tear(pending, rng, loss);
        }
        self.cache = self.disk.clone();
    }

    fn tear(&mut self, pending: VecDeque<Pending>, rng: &mut Rng, loss: &mut Loss) {
        let survival = match rng.below(7) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Sectors(rng.range(5, 95)),
            3 => Survival::Pages(rng.range(20, 80)),
            4 => Survival::Writes,
            _ => Survival::Prefix(rng.below(pending.len() as u64) as usize),
        };
        let sector = if matches!(survival, Survival::Pages(_)) { PAGE } else { SECTOR };
        for (i, Pending { change, .. }) in pending.into_iter().enumerate() {
            let percent = match survival {
                Survival::Nothing => 0,
                Survival::Everything => 100,
                Survival::Sectors(percent) | Survival::Pages(percent) => percent,
                Survival::Writes => 100 * rng.below(2),
                Survival::Prefix(last) if i < last => 100,
                Survival::Prefix(last) if i == last => 50,
                Survival::Prefix(_) => 0,
            };
            match change {
                Change::Length(len) if rng.percent(percent) => self.disk.resize(len),
                Change::Length(_) => {}
                Change::Write(offset, data) => {
                    self.keep_sectors(offset, &data, (sector, percent), rng, loss);
                }
            }
        }
    }

    fn keep_sectors(
        &mut self,
        offset: usize,
        data: &[u8],
        (sector, percent): (usize, u64),
        rng: &mut Rng,
        loss: &mut Loss,
    ) {
        let (mut at, mut lost, mut hole) = (0, 0, false);
        while at < data.len() {
            let len = (sector - (offset + at) % sector).min(data.len() - at);
            if rng.percent(percent) {
                self.disk.write(offset + at, &data[at..at + len]);
                hole |= lost > 0;
            } else {
                lost += len;
            }
            at += len;
        }
        loss.bytes += lost as u64;
        loss.torn += u64::from(lost > 0 && lost < data.len());
        loss.holes += u64::from(hole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(image: &mut Image, id: FileId, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let read = image.read(id, 0, &mut out).unwrap();
        out.truncate(read);
        out
    }

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
            let read = bytes(&mut image, kept, 8000);
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
            seen.insert(bytes(&mut image, id, 20));
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
            seen.insert(bytes(&mut image, id, 20));
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

    #[test]
    fn a_failed_sync_leaves_pages_clean_that_are_not_on_the_disk() {
        for forget in [false, true] {
            let mut image = Image::default();
            let id = image.create("file");
            image.sync_dir("");
            image.write(id, 0, Bytes::from(vec![1; 2 * PAGE])).unwrap();
            synced(&mut image, id);
            image.write(id, 0, Bytes::from(vec![2; 2 * PAGE])).unwrap();
            let mark = image.mark();
            image.write(id, 1, Bytes::from_static(&[3])).unwrap();
            assert_eq!(image.drop_dirty(id, mark, forget).unwrap(), 2);
            let seen = bytes(&mut image, id, 3);
            assert_eq!(seen, if forget { [1, 3, 1] } else { [2, 3, 2] });
            // A second sync takes what was written later, and nothing else.
            synced(&mut image, id);
            assert_eq!(image.is_settled(id, 0, 10), forget);
            // A page that is written again as a whole is as good as new.
            image.write(id, PAGE as u64, Bytes::from(vec![4; PAGE])).unwrap();
            synced(&mut image, id);
            let loss = image.power_cut(&mut Rng::stream(1, "test", 0));
            assert_eq!(loss.dropped, u64::from(!forget));
            let kept = bytes(&mut image, id, 2 * PAGE);
            assert_eq!(kept[..3], [1, 3, 1]);
            assert_eq!(kept[PAGE..], [4; PAGE]);
        }
    }

    #[test]
    fn a_copy_holds_what_was_durable_then() {
        let mut image = Image::default();
        let id = image.create("file");
        image.create("loose");
        image.write(id, 0, Bytes::from_static(b"old")).unwrap();
        synced(&mut image, id);
        image.name(Naming::Unlink("loose".to_owned()), "loose");
        image.sync_dir("");
        image.write(id, 0, Bytes::from_static(b"unsynced")).unwrap();
        let copy = image.copy();
        synced(&mut image, id);
        image.create("new");
        image.sync_dir("");
        image.restore(copy);
        assert_eq!(
            (bytes(&mut image, id, 20), image.list("")),
            (b"old".to_vec(), vec!["file".to_owned()])
        );
        assert!(image.is_settled(id, 0, 3));
        image.corrupt(id, 1, b"x").unwrap();
        image.power_cut(&mut Rng::stream(1, "test", 0));
        assert_eq!(bytes(&mut image, id, 20), b"oxd");
        image.wipe();
        assert_eq!(image.list(""), Vec::<String>::new());
    }
}
