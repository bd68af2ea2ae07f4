//! A directory in memory that behaves as a disk does at a power cut: what was not synced is lost
//! or torn, renames that were not synced may or may not have happened.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

use crate::state::StateFiles;

use super::Rng;

const SECTOR: usize = 512;

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug, Default)]
pub(super) struct Inode {
    /// What readers see.
    pub(super) seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Backends open on it: two at once would be two databases on one file.
    open: u32,
}

#[derive(Debug, Default)]
pub(super) struct World {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    /// The power is cut after so many calls.
    pub(super) calls_left: Option<u64>,
    /// The sync after so many fails, and drops what it should have written.
    pub(super) syncs_left: Option<u64>,
    /// Nothing more can be written.
    pub(super) full: bool,
    dead: bool,
    /// Rises with each crash: backends of before are inert.
    boot: u64,
    pub(super) calls: u64,
    /// Bytes of writes that crashes took away.
    pub(super) lost_bytes: u64,
    /// The most files that were open at once.
    pub(super) open_peak: usize,
    pub(super) opens: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct MemDisk(Arc<Mutex<World>>);

impl MemDisk {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn call(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.world();
        world.calls += 1;
        if world.dead {
            return Err(io::Error::other("no power"));
        }
        if let Some(left) = &mut world.calls_left {
            if *left == 0 {
                world.dead = true;
                return Err(io::Error::other("the power was cut"));
            }
            *left -= 1;
        }
        Ok(world)
    }

    /// Cuts the power at once.
    pub(super) fn cut(&self) {
        self.world().dead = true;
    }

    pub(super) fn is_cut(&self) -> bool {
        self.world().dead
    }

    /// After the end of a process, be it that: another one finds all that was written.
    pub(super) fn revive(&self) {
        let world = &mut *self.world();
        world.boot += 1;
        world.dead = false;
        world.calls_left = None;
    }

    /// After a power cut: decides what of the unsynced is left, and switches it on again.
    pub(super) fn crash(&self, rng: &mut Rng) {
        let world = &mut *self.world();
        let mut names = world.durable_names.clone();
        for (name, inode) in &world.names {
            if names.get(name) != Some(inode) && rng.chance(50) {
                names.retain(|_, other| other != inode);
                names.insert(name.clone(), *inode);
            }
        }
        world.names = names.clone();
        world.durable_names = names;
        for inode in &mut world.inodes {
            world.lost_bytes += inode.crash(rng);
        }
        world.boot += 1;
        world.dead = false;
        world.calls_left = None;
        world.syncs_left = None;
    }

    /// Changes a file behind everyone's back.
    pub(super) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let world = &mut *self.world();
        let inode = &mut world.inodes[world.names[name]];
        change(&mut inode.durable);
        inode.seen = inode.durable.clone();
        inode.pending.clear();
    }

    /// Changes the file that was made last, whether it has a name or not.
    pub(super) fn tamper_newest<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut world = self.world();
        change(&mut world.inodes.last_mut().expect("there is a file").seen)
    }

    pub(super) fn open_files(&self) -> usize {
        self.world().inodes.iter().filter(|inode| inode.open > 0).count()
    }

    pub(super) fn content(&self, name: &str) -> Vec<u8> {
        let world = self.world();
        world.inodes[world.names[name]].seen.clone()
    }

    pub(super) fn remove(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.durable_names.remove(name);
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.world().names.keys().cloned().collect()
    }

    pub(super) fn handle(&self, world: &mut World, inode: usize) -> Box<dyn StorageBackend> {
        world.inodes[inode].open += 1;
        assert_eq!(world.inodes[inode].open, 1, "a file is opened twice at a time");
        world.opens += 1;
        let open = world.inodes.iter().filter(|inode| inode.open > 0).count();
        world.open_peak = world.open_peak.max(open);
        Box::new(MemFile { disk: self.clone(), inode, boot: world.boot })
    }
}

impl Inode {
    /// Keeps none, all, a prefix or a random part of the pending changes, sector by sector.
    fn crash(&mut self, rng: &mut Rng) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        let mode = rng.below(4);
        let keep = match mode {
            0 => 0,
            1 => 100,
            _ => 1 + rng.below(99),
        };
        let cut = if mode == 2 { rng.below(pending.len() as u64 + 1) as usize } else { usize::MAX };
        let mut lost = 0;
        for (at, change) in pending.into_iter().enumerate() {
            match change {
                Change::Len(len) if at < cut && rng.chance(keep.max(50)) => {
                    self.durable.resize(len, 0);
                }
                Change::Len(_) => {}
                Change::Write(offset, data) => {
                    for (i, part) in data.chunks(SECTOR).enumerate() {
                        let from = offset + i * SECTOR;
                        let kept = if mode == 2 { at < cut } else { rng.chance(keep) };
                        match self.durable.get_mut(from..from + part.len()) {
                            Some(space) if kept => space.copy_from_slice(part),
                            _ => lost += part.len() as u64,
                        }
                    }
                }
            }
        }
        self.seen = self.durable.clone();
        self.open = 0;
        lost
    }
}

impl StateFiles for MemDisk {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let mut world = self.call()?;
        let Some(inode) = world.names.get(name).copied() else { return Ok(None) };
        Ok(Some(self.handle(&mut world, inode)))
    }

    fn create_temp(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut world = self.call()?;
        let inode = world.inodes.len();
        world.inodes.push(Inode::default());
        world.names.insert(format!("{name}.tmp"), inode);
        Ok(self.handle(&mut world, inode))
    }

    fn publish(&self, name: &str) -> io::Result<()> {
        {
            let mut world = self.call()?;
            let temp = format!("{name}.tmp");
            let inode = world.names.remove(&temp).expect("there is a temporary file");
            world.names.insert(name.into(), inode);
        }
        let mut world = self.call()?;
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        {
            let mut world = self.call()?;
            let inode = world.names.remove(from).expect("there is such a file");
            world.names.insert(to.into(), inode);
        }
        let mut world = self.call()?;
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.call()?;
        world.names.remove(name);
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        self.call()?.names.retain(|name, _| !name.ends_with(".tmp"));
        let mut world = self.call()?;
        world.durable_names = world.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    inode: usize,
    boot: u64,
}

impl MemFile {
    fn grow<T>(&self, act: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        if self.disk.world().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.with(act)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.call()?;
        if world.boot != self.boot {
            return Err(io::Error::other("a process that is gone"));
        }
        act(&mut world.inodes[self.inode])
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let mut world = self.disk.world();
        if world.boot == self.boot {
            world.inodes[self.inode].open -= 1;
        }
    }
}

impl StorageBackend for MemFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|inode| Ok(inode.seen.len() as u64))
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|inode| {
            let offset = offset as usize;
            let from = inode.seen.get(offset..offset + out.len());
            out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(|inode| {
            inode.seen.resize(len as usize, 0);
            inode.pending.push(Change::Len(len as usize));
            Ok(())
        })
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.grow(|inode| {
            let offset = offset as usize;
            let to = inode.seen.get_mut(offset..offset + data.len());
            to.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
            inode.pending.push(Change::Write(offset, data.to_vec()));
            Ok(())
        })
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.call()?;
        if world.boot != self.boot {
            return Err(io::Error::other("a process that is gone"));
        }
        let fails = match &mut world.syncs_left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let inode = &mut world.inodes[self.inode];
        if fails {
            // The pages are marked clean and never written: the next sync would "succeed".
            inode.pending.clear();
            return Err(io::Error::other("fsync failed"));
        }
        for change in std::mem::take(&mut inode.pending) {
            match change {
                Change::Len(len) => inode.durable.resize(len, 0),
                Change::Write(offset, data) => {
                    inode.durable[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
        }
        Ok(())
    }
}
