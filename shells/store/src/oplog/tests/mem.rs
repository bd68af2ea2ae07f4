//! A disk in memory that behaves like the worst real one: what was not synced is lost or torn by
//! 512-byte sectors at a power cut, names too; a failed sync leaves its pages clean.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

use crate::disk::Disk;

const TORN: usize = 512;

/// A small deterministic PRNG (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What reads see.
    view: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum NameOp {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

type Names = BTreeMap<String, u64>;

fn carry_out(names: &mut Names, op: &NameOp) {
    match op {
        NameOp::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameOp::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct World {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    durable_names: Names,
    journal: Vec<NameOp>,
    next_inode: u64,
    /// Which start of the machine handles must be from.
    boot: u64,
    /// Everything that changes something counts as a step.
    pub(crate) steps: u64,
    /// The power goes at this step.
    pub(crate) cut_at: Option<u64>,
    /// The sync at this step fails.
    pub(crate) fail_sync_at: Option<u64>,
    /// All files together may hold so much.
    pub(crate) capacity: Option<usize>,
    /// A byte that can't be read until it is written: file and offset.
    pub(crate) bad: Option<(String, u64)>,
    /// Commits wait until this is over.
    pub(crate) hold_commits: bool,
    off: bool,
    /// Sectors that the last power cut lost.
    pub(crate) lost: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct MemDisk {
    world: Arc<Mutex<World>>,
    boot: u64,
}

#[derive(Debug)]
pub(crate) struct MemFile(u64);

impl MemDisk {
    pub(crate) fn new() -> MemDisk {
        MemDisk { world: Arc::default(), boot: 0 }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panics under the lock")
    }

    /// Another disk with the same content, nothing unsynced in it, the power on.
    pub(crate) fn copy(&self) -> MemDisk {
        let old = self.world();
        let mut inodes = old.inodes.clone();
        for inode in inodes.values_mut() {
            inode.durable = inode.view.clone();
            inode.dirty.clear();
        }
        let world = World {
            inodes,
            names: old.names.clone(),
            durable_names: old.names.clone(),
            next_inode: old.next_inode,
            ..World::default()
        };
        MemDisk { world: Arc::new(Mutex::new(world)), boot: 0 }
    }

    /// Cuts the power: of what was not synced, `keep` percent survive. Returns the disk as the
    /// machine finds it next.
    pub(crate) fn power_cut(&self, rng: &mut Rng, keep: u64) -> MemDisk {
        let mut guard = self.world();
        let world = &mut *guard;
        let kept = rng.below(world.journal.len() as u64 + 1) as usize;
        for op in world.journal.drain(..).take(kept) {
            carry_out(&mut world.durable_names, &op);
        }
        world.names = world.durable_names.clone();
        world.lost = 0;
        for inode in world.inodes.values_mut() {
            for sector in std::mem::take(&mut inode.dirty) {
                if !rng.chance(keep) {
                    world.lost += 1;
                    continue;
                }
                let (start, end) = (sector * TORN, ((sector + 1) * TORN).min(inode.view.len()));
                if inode.durable.len() < end {
                    inode.durable.resize(end, 0);
                }
                inode.durable[start..end].copy_from_slice(&inode.view[start..end]);
            }
            inode.view = inode.durable.clone();
        }
        self.restart(guard)
    }

    /// Ends the process, not the machine: everything written is still seen.
    pub(crate) fn kill(&self) -> MemDisk {
        let guard = self.world();
        self.restart(guard)
    }

    fn restart(&self, mut world: MutexGuard<'_, World>) -> MemDisk {
        world.boot += 1;
        world.off = false;
        world.cut_at = None;
        world.fail_sync_at = None;
        MemDisk { world: self.world.clone(), boot: world.boot }
    }

    /// A file's content, to be damaged.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let inode = world.names[name];
        let inode = world.inodes.get_mut(&inode).expect("names have inodes");
        change(&mut inode.view);
        inode.durable = inode.view.clone();
    }

    pub(crate) fn forget(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.durable_names.remove(name);
    }

    /// Every file with its content.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world();
        world.names.iter().map(|(name, id)| (name.clone(), world.inodes[id].view.clone())).collect()
    }

    fn on(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world();
        if world.off || world.boot != self.boot {
            return Err(io::Error::other("the power is off"));
        }
        Ok(world)
    }
}

impl World {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        if self.cut_at.is_some_and(|at| self.steps >= at) {
            self.off = true;
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    fn change_names(&mut self, op: NameOp) -> io::Result<()> {
        carry_out(&mut self.names, &op);
        self.journal.push(op);
        self.step()
    }

    fn bad_in(&self, file: &MemFile) -> Option<u64> {
        let (name, at) = self.bad.as_ref()?;
        (self.names.get(name) == Some(&file.0)).then_some(*at)
    }

    fn write(&mut self, file: &MemFile, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(at) = self.bad_in(file)
            && (offset..offset + data.len() as u64).contains(&at)
        {
            self.bad = None;
        }
        let used: usize = self.names.values().map(|id| self.inodes[id].view.len()).sum();
        let inode = self.inodes.get_mut(&file.0).expect("open files have inodes");
        let (start, end) = (offset as usize, offset as usize + data.len());
        let grows = end.saturating_sub(inode.view.len());
        if grows > 0 && self.capacity.is_some_and(|capacity| used + grows > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if inode.view.len() < end {
            inode.view.resize(end, 0);
        }
        inode.view[start..end].copy_from_slice(data);
        inode.dirty.extend(start / TORN..end.div_ceil(TORN));
        self.step()
    }

    fn sync(&mut self, file: &MemFile) -> io::Result<()> {
        self.step()?;
        let inode = self.inodes.get_mut(&file.0).expect("open files have inodes");
        if self.fail_sync_at.is_some_and(|at| self.steps >= at) {
            self.fail_sync_at = None;
            inode.dirty.clear();
            return Err(io::Error::other("the sync failed"));
        }
        inode.durable.resize(inode.view.len(), 0);
        for sector in std::mem::take(&mut inode.dirty) {
            let (start, end) = (sector * TORN, ((sector + 1) * TORN).min(inode.view.len()));
            inode.durable[start..end].copy_from_slice(&inode.view[start..end]);
        }
        // The power may also go between the sync and the answer.
        self.step()
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let world = self.on()?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let names = world.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    async fn create_dir(&self, _: &str) -> io::Result<()> {
        self.on()?.step()
    }

    async fn open(&self, name: &str, create: bool) -> io::Result<MemFile> {
        let mut world = self.on()?;
        if let Some(inode) = world.names.get(name) {
            return Ok(MemFile(*inode));
        }
        if !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = world.next_inode;
        world.next_inode += 1;
        world.inodes.insert(inode, Inode::default());
        world.change_names(NameOp::Create(name.to_owned(), inode))?;
        Ok(MemFile(inode))
    }

    async fn len(&self, file: &MemFile) -> io::Result<u64> {
        Ok(self.on()?.inodes[&file.0].view.len() as u64)
    }

    async fn read_at(&self, file: &MemFile, offset: u64, len: usize) -> io::Result<Bytes> {
        tokio::task::yield_now().await;
        let world = self.on()?;
        if let Some(at) = world.bad_in(file)
            && (offset..offset + len as u64).contains(&at)
        {
            return Err(io::Error::other("a bad sector"));
        }
        let view = &world.inodes[&file.0].view;
        let start = (offset as usize).min(view.len());
        Ok(Bytes::copy_from_slice(&view[start..(start + len).min(view.len())]))
    }

    async fn write_at(&self, file: &MemFile, offset: u64, data: Bytes) -> io::Result<()> {
        self.on()?.write(file, offset, &data)
    }

    async fn sync(&self, file: &MemFile) -> io::Result<()> {
        self.on()?.sync(file)
    }

    async fn write_sync(&self, file: &MemFile, offset: u64, data: Bytes) -> io::Result<()> {
        while self.on()?.hold_commits {
            tokio::task::yield_now().await;
        }
        self.on()?.write(file, offset, &data)?;
        // Others may come between, as on a real disk.
        tokio::task::yield_now().await;
        self.on()?.sync(file)
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.on()?.change_names(NameOp::Rename(from.to_owned(), to.to_owned()))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.on()?.change_names(NameOp::Remove(name.to_owned()))
    }

    async fn sync_dir(&self, _: &str) -> io::Result<()> {
        let mut world = self.on()?;
        world.step()?;
        world.durable_names = world.names.clone();
        world.journal.clear();
        world.step()
    }
}
