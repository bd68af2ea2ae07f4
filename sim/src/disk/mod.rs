//! A machine's disk: its image, the time that calls take, the calls at which the machine dies, and
//! what goes wrong with it. The handles of a dead process do nothing: they are fenced before it is
//! killed, because the destructors of killed tasks still run.

mod blocks;
mod image;
mod log;
mod pages;
mod state;
mod wounds;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use highwater_core::GroupId;
pub(crate) use image::{Copy, FileId, Loss};
pub(crate) use state::SimStateFiles;

use crate::{
    plan::{Crash, Fuse, Part, Wound},
    rng::Rng,
    stats::Seen,
    timer::{now_ns, pause_ns, until},
    trace::Kind,
    world::World,
};
use image::Image;
use wounds::Wounds;

/// What a call is, to a fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Log,
    LogSync,
    State,
    StateSync,
}

/// What is wrong with one part of a disk for now.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble {
    /// The next sync fails.
    sync_fails: bool,
    /// Nothing more can be allocated.
    full: bool,
    /// Reads fail until then.
    unreadable_until_ns: u64,
    /// The next read fails.
    read_fails: bool,
}

struct Inner {
    image: Image,
    /// Handles of another generation are dead.
    generation: u64,
    fuse: Option<(Fuse, Crash)>,
    /// Lit by the next process's start.
    fuse_at_start: Option<Fuse>,
    rng: Rng,
    /// The oplog's latest write was of several pages of blocks.
    long_write: bool,
    /// Every call takes this many times as long.
    slowness: u64,
    /// No call of the oplog ends before.
    stuck_until_ns: u64,
    log: Trouble,
    state: Trouble,
    /// Whether the process was told of an error that was none of its own.
    erred: bool,
    /// Whether its oplog was told that there is no room: it must bear that.
    refused_room: bool,
    wounds: Wounds,
    /// States that others took the place of, since that was asked last.
    replaced: BTreeSet<GroupId>,
    /// What was durable once.
    copy: Option<Copy>,
}

/// What to do when a fuse is lit.
type OnFuse = Box<dyn Fn(Crash) + Send + Sync>;

/// The disk of one machine, through all its restarts.
pub(crate) struct SimDisk {
    world: Arc<World>,
    node: u64,
    inner: Mutex<Inner>,
    on_fuse: Mutex<Option<OnFuse>>,
}

impl SimDisk {
    pub(crate) fn new(world: Arc<World>, node: u64) -> Arc<SimDisk> {
        let inner = Inner {
            image: Image::default(),
            generation: 0,
            fuse: None,
            fuse_at_start: None,
            long_write: false,
            rng: Rng::stream(world.seed, "disk", node),
            slowness: 1,
            stuck_until_ns: 0,
            log: Trouble::default(),
            state: Trouble::default(),
            erred: false,
            refused_room: false,
            wounds: Wounds::default(),
            replaced: BTreeSet::new(),
            copy: None,
        };
        Arc::new(SimDisk { world, node, inner: Mutex::new(inner), on_fuse: Mutex::new(None) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who ends the process when a fuse fires. It must fence the disk.
    pub(crate) fn on_fuse(&self, f: impl Fn(Crash) + Send + Sync + 'static) {
        *self.on_fuse.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(f));
    }

    /// A handle for the process that starts now.
    pub(crate) fn handle(self: &Arc<SimDisk>) -> DiskHandle {
        let mut inner = self.lock();
        if let Some(fuse) = inner.fuse_at_start.take() {
            inner.fuse = Some((fuse, Crash::Power));
        }
        (inner.erred, inner.refused_room) = (false, false);
        DiskHandle { disk: self.clone(), generation: inner.generation }
    }

    /// A handle for the process that runs, or ran last.
    pub(crate) fn same_handle(self: &Arc<SimDisk>) -> DiskHandle {
        DiskHandle { disk: self.clone(), generation: self.lock().generation }
    }

    /// Sets the call at which the machine dies.
    pub(crate) fn set_fuse(&self, fuse: Fuse, crash: Crash) {
        self.lock().fuse = Some((fuse, crash));
    }

    /// Sets the call at which the machine loses power, counted from the next start.
    pub(crate) fn set_fuse_at_start(&self, fuse: Fuse) {
        self.lock().fuse_at_start = Some(fuse);
    }

    /// No fuse, no trouble, and the disk as fast as it can be. What it holds stays as it is.
    pub(crate) fn calm(&self) {
        let mut inner = self.lock();
        (inner.fuse, inner.fuse_at_start) = (None, None);
        (inner.slowness, inner.stuck_until_ns) = (1, 0);
        (inner.log, inner.state) = (Trouble::default(), Trouble::default());
    }

    // --- trouble ---

    /// Every call takes this many times as long from now on.
    pub(crate) fn slow_down(&self, times: u64) {
        self.lock().slowness = times;
    }

    /// No call of the oplog ends until then.
    pub(crate) fn stick(&self, until_ns: u64) {
        self.lock().stuck_until_ns = until_ns;
    }

    /// The next sync fails, and what it should have written is lost.
    pub(crate) fn fail_sync(&self, part: Part) {
        self.lock().part(part).sync_fails = true;
    }

    /// From now on nothing more can be allocated, or it can again.
    pub(crate) fn set_full(&self, part: Part, full: bool) {
        self.lock().part(part).full = full;
    }

    /// Reads fail until then; the next one does in any case.
    pub(crate) fn fail_reads(&self, part: Part, until_ns: u64) {
        let mut inner = self.lock();
        let trouble = inner.part(part);
        (trouble.read_fails, trouble.unreadable_until_ns) = (true, until_ns);
    }

    /// Whether it does now what it is asked to.
    pub(crate) fn is_untroubled(&self, part: Part) -> bool {
        let mut inner = self.lock();
        let trouble = inner.part(part);
        let reads = !trouble.read_fails && now_ns() >= trouble.unreadable_until_ns;
        reads && !trouble.sync_fails && !trouble.full
    }

    /// Whether the process that runs, or ran last, was told of an error that was not its own fault.
    pub(crate) fn has_erred(&self) -> bool {
        self.lock().erred
    }

    /// Groups whose state another one took the place of, since this was asked last.
    pub(crate) fn take_replaced(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut self.lock().replaced)
    }

    /// Whether a process may refuse to start: after such an error, and without room for its oplog.
    pub(crate) fn excuses_start(&self) -> bool {
        let inner = self.lock();
        inner.erred || inner.refused_room
    }

    // --- the end of a process ---

    /// The process has ended: its handles do nothing any more. Call it before killing.
    pub(crate) fn fence(&self, crash: Crash) -> Loss {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.fuse = None;
        match crash {
            Crash::Kill => {
                inner.image.forget_nameless();
                Loss::default()
            }
            Crash::Power => {
                let Inner { image, rng, .. } = &mut *inner;
                let loss = image.power_cut(rng);
                self.world.saw_times(Seen::LostUnsynced, u64::from(loss.bytes > 0));
                self.world.saw_times(Seen::TornWrite, loss.torn);
                self.world.saw_times(Seen::TornSubset, loss.holes);
                self.world.saw_times(Seen::LostName, loss.names);
                self.world.saw_times(Seen::LostDropped, loss.dropped);
                loss
            }
        }
    }

    /// The run is over: nothing reaches the disk any more, and its memory is free.
    pub(crate) fn discard(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        (inner.image, inner.copy) = (Image::default(), None);
    }

    /// Remembers what is durable now.
    pub(crate) fn copy(&self) {
        let mut inner = self.lock();
        inner.copy = Some(inner.image.copy());
    }

    /// Puts what was remembered back in place. Only while no process runs. Whether there was such a
    /// copy, of another state than this.
    pub(crate) fn roll_back(&self) -> bool {
        let mut inner = self.lock();
        let Some(copy) = inner.copy.take() else { return false };
        inner.wounds = Wounds::default();
        inner.image.restore(copy);
        true
    }

    /// Loses everything. Only while no process runs. Whether there was something.
    pub(crate) fn wipe(&self) -> bool {
        let mut inner = self.lock();
        let had = !inner.image.list("oplog").is_empty();
        inner.image.wipe();
        (inner.wounds, inner.copy) = (Wounds::default(), None);
        had
    }

    // --- damage ---

    /// Damages something that was synced. Whether there was such a thing.
    pub(crate) fn damage(&self, wound: Wound) -> bool {
        let mut inner = self.lock();
        let Inner { image, rng, wounds, .. } = &mut *inner;
        let Some(what) = wounds.inflict(wound, image, rng) else { return false };
        self.world.fault(self.node, || format!("damages {what}"));
        true
    }

    /// Whether there is damage that nothing was written over.
    pub(crate) fn is_damaged(&self) -> bool {
        self.lock().wounds.any()
    }
}

impl Inner {
    fn part(&mut self, part: Part) -> &mut Trouble {
        match part {
            Part::Log => &mut self.log,
            Part::State => &mut self.state,
        }
    }

    /// Whether this call is the one to die at.
    fn burns(&mut self, call: Call) -> Option<Crash> {
        let (fuse, crash) = self.fuse.as_mut()?;
        let crash = *crash;
        let left = match (fuse, call) {
            (Fuse::Sync(n), Call::LogSync | Call::StateSync)
            | (Fuse::LogCall(n), Call::Log | Call::LogSync)
            | (Fuse::StateCall(n), Call::State | Call::StateSync) => n,
            (Fuse::LongWrite(n), Call::LogSync) if self.long_write => n,
            _ => return None,
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        self.fuse = None;
        Some(crash)
    }

    /// Fails a read, if that is due.
    fn check_read(&mut self, part: Part, world: &World) -> io::Result<()> {
        let trouble = self.part(part);
        let fails = std::mem::take(&mut trouble.read_fails);
        if !fails && now_ns() >= trouble.unreadable_until_ns {
            return Ok(());
        }
        self.erred = true;
        world.saw(match part {
            Part::Log => Seen::LogReadFailed,
            Part::State => Seen::StateReadFailed,
        });
        Err(io::Error::other("injected: the medium can't be read"))
    }

    /// Reads, and notes what damage was met.
    fn read(
        &mut self,
        id: FileId,
        offset: u64,
        out: &mut [u8],
        world: &World,
    ) -> io::Result<usize> {
        let len = self.image.read(id, offset, out)?;
        self.wounds.are_read(id, offset, len as u64, world);
        Ok(len)
    }

    /// Writes, over damage as well.
    fn write(&mut self, id: FileId, offset: u64, data: Bytes) -> io::Result<()> {
        self.wounds.are_written(id, offset, data.len() as u64);
        self.image.write(id, offset, data)
    }

    /// Refuses to allocate, if the disk is full.
    fn check_room(&mut self, part: Part, allocates: bool, world: &World) -> io::Result<()> {
        if !allocates || !self.part(part).full {
            return Ok(());
        }
        match part {
            Part::Log => {
                self.refused_room = true;
                world.saw(Seen::LogFull);
            }
            Part::State => {
                self.erred = true;
                world.saw(Seen::StateFull);
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Syncs what was written before a mark, or fails to.
    fn sync(&mut self, id: FileId, mark: u64, part: Part, world: &World) -> io::Result<()> {
        if !std::mem::take(&mut self.part(part).sync_fails) {
            return self.image.sync(id, mark);
        }
        self.erred = true;
        let forget = self.rng.percent(50);
        let pages = self.image.drop_dirty(id, mark, forget)?;
        let seen = match part {
            Part::Log => Seen::LogSyncFailed,
            Part::State => Seen::StateSyncFailed,
        };
        world.saw_times(seen, u64::from(pages > 0));
        Err(io::Error::other("injected: the sync failed"))
    }
}

/// A process's way to its machine's disk.
#[derive(Clone)]
pub(crate) struct DiskHandle {
    disk: Arc<SimDisk>,
    generation: u64,
}

impl std::fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "disk of n{}", self.disk.node)
    }
}

impl DiskHandle {
    /// The state files of the same process.
    pub(crate) fn state_files(&self) -> SimStateFiles {
        SimStateFiles::new(self.clone())
    }

    fn event(&self, kind: Kind, a: u64, b: u64, digest: u64, detail: impl FnOnce() -> String) {
        self.disk.world.event(kind, self.disk.node, a, b, digest, detail);
    }

    /// Begins a call: `None` if the process is dead, or dies here.
    fn enter(&self, call: Call) -> Option<MutexGuard<'_, Inner>> {
        let mut inner = self.disk.lock();
        if inner.generation != self.generation {
            return None;
        }
        let Some(crash) = inner.burns(call) else { return Some(inner) };
        let long = call == Call::LogSync && inner.long_write;
        drop(inner);
        self.disk.world.saw_times(Seen::CrashInLongWrite, u64::from(long));
        self.disk.world.saw(match call {
            Call::LogSync | Call::StateSync => Seen::CrashInSync,
            Call::Log => Seen::CrashAtLogCall,
            Call::State => Seen::CrashAtStateCall,
        });
        let on_fuse = self.disk.on_fuse.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(on_fuse) = on_fuse.as_ref() {
            on_fuse(crash);
        }
        None
    }

    /// Begins a call of the oplog; never returns to a dead process.
    async fn enter_or_die(&self, call: Call) -> MutexGuard<'_, Inner> {
        {
            if let Some(inner) = self.enter(call) {
                return inner;
            }
        }
        std::future::pending().await
    }

    /// Takes as long as such a call does.
    async fn take_time(&self, low_us: u64, high_us: u64) {
        let us = {
            let mut inner = self.disk.lock();
            let slowness = inner.slowness;
            let mut us = inner.rng.range(low_us, high_us);
            if inner.rng.ppm(3_000) {
                us += inner.rng.heavy(1_000, 30_000);
            }
            us * slowness
        };
        if us >= 20_000 {
            self.disk.world.saw(Seen::SlowIo);
        }
        pause_ns(us * 1_000).await;
        let stuck_until_ns = self.disk.lock().stuck_until_ns;
        if now_ns() < stuck_until_ns {
            self.disk.world.saw(Seen::StuckIo);
            until(stuck_until_ns).await;
        }
    }
}

/// What a dead process's synchronous calls get.
fn off() -> io::Error {
    io::Error::other("the machine is off")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use highwater_store::{disk::Disk, state::StateFiles};

    use super::*;
    use crate::{timer::now_ns, trace::Keep};

    fn with<F: Future<Output = ()>>(f: impl FnOnce(Arc<SimDisk>) -> F) {
        let runtime = madsim::runtime::Runtime::with_seed_and_config(5, madsim::Config::default());
        let world = Arc::new(World::new(5, Keep::default(), crate::timer::now_ns));
        runtime.block_on(f(SimDisk::new(world, 1)));
    }

    /// Whether a call is still under way after a second: then it will be for ever.
    async fn hangs<T>(call: impl Future<Output = T>) -> bool {
        tokio::select! {
            biased;
            _ = call => false,
            () = pause_ns(1_000_000_000) => true,
        }
    }

    #[test]
    fn a_commit_takes_time_and_survives() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            handle.sync_dir("oplog").await.unwrap();
            let before = now_ns();
            handle.write_sync(&file, 0, Bytes::from_static(b"kept")).await.unwrap();
            assert!(now_ns() - before > 200_000);
            disk.fence(Crash::Power);
            let handle = disk.handle();
            let file = handle.open("oplog/1", false).await.unwrap();
            assert_eq!(handle.read_at(&file, 0, 10).await.unwrap(), "kept");
        });
    }

    #[test]
    fn a_fenced_process_reaches_nothing() {
        with(|disk| async move {
            let (old, files) = (disk.handle(), disk.handle().state_files());
            let file = old.open("oplog/1", true).await.unwrap();
            let backend = files.create_temp("2.redb").unwrap();
            backend.set_len(10).unwrap();
            disk.fence(Crash::Kill);
            assert!(hangs(old.write_at(&file, 0, Bytes::from_static(b"late"))).await);
            assert!(backend.write(0, b"late").is_err() && files.publish("2.redb").is_err());
            let new = disk.handle();
            let file = new.open("oplog/1", false).await.unwrap();
            assert_eq!(new.len(&file).await.unwrap(), 0);
            assert!(new.state_files().open("2.redb").unwrap().is_none());
        });
    }

    #[test]
    fn a_fuse_burns_at_its_call_and_the_call_never_returns() {
        with(|disk| async move {
            let burnt = Arc::new(AtomicU64::new(0));
            let (count, weak) = (burnt.clone(), Arc::downgrade(&disk));
            disk.on_fuse(move |crash| {
                count.fetch_add(1, Ordering::Relaxed);
                weak.upgrade().unwrap().fence(crash);
            });
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            disk.set_fuse(Fuse::Sync(2), Crash::Power);
            let backend = handle.state_files().create_temp("2.redb").unwrap();
            backend.sync_data().unwrap();
            assert!(hangs(handle.write_sync(&file, 0, Bytes::from_static(b"x"))).await);
            assert_eq!(burnt.load(Ordering::Relaxed), 1);
            disk.set_fuse_at_start(Fuse::StateCall(1));
            let files = disk.handle().state_files();
            assert!(files.settle().is_err());
            assert_eq!(burnt.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn a_full_disk_still_takes_what_has_its_place() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            handle.write_sync(&file, 0, Bytes::from(vec![0; 8192])).await.unwrap();
            let state = handle.state_files().create_temp("2.redb").unwrap();
            state.set_len(8192).unwrap();
            state.write(0, &[1; 4096]).unwrap();
            disk.set_full(Part::Log, true);
            disk.set_full(Part::State, true);
            handle.write_sync(&file, 4096, Bytes::from(vec![1; 4096])).await.unwrap();
            state.write(0, &[2; 4096]).unwrap();
            assert!(!disk.has_erred());
            let grown = handle.write_at(&file, 8192, Bytes::from_static(b"x")).await;
            assert_eq!(grown.unwrap_err().kind(), io::ErrorKind::StorageFull);
            assert!(state.write(4096, &[2; 4096]).is_err() && disk.has_erred());
            disk.calm();
            state.write(4096, &[2; 4096]).unwrap();
        });
    }

    #[test]
    fn a_sync_or_a_read_fails_once_or_for_a_while() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            handle.sync_dir("oplog").await.unwrap();
            disk.fail_sync(Part::Log);
            assert!(handle.write_sync(&file, 0, Bytes::from_static(b"lost")).await.is_err());
            assert!(disk.has_erred());
            handle.sync(&file).await.unwrap();
            disk.fence(Crash::Power);
            let handle = disk.handle();
            assert!(!disk.has_erred());
            let file = handle.open("oplog/1", false).await.unwrap();
            assert_eq!(handle.read_at(&file, 0, 10).await.unwrap(), "", "a later sync saved it");
            disk.fail_reads(Part::Log, 0);
            assert!(handle.read_at(&file, 0, 10).await.is_err());
            assert!(handle.read_at(&file, 0, 10).await.is_ok());
            disk.fail_reads(Part::Log, now_ns() + 1_000_000_000);
            for _ in 0..3 {
                assert!(handle.read_at(&file, 0, 10).await.is_err());
            }
            pause_ns(1_000_000_000).await;
            assert!(handle.read_at(&file, 0, 10).await.is_ok());
        });
    }

    #[test]
    fn stuck_calls_go_on_later() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            let at = now_ns() + 3_000_000_000;
            disk.stick(at);
            handle.write_sync(&file, 0, Bytes::from_static(b"late")).await.unwrap();
            assert!(now_ns() >= at && !disk.has_erred());
        });
    }

    #[test]
    fn a_disk_is_wiped_or_rolled_back() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            handle.sync_dir("oplog").await.unwrap();
            handle.write_sync(&file, 0, Bytes::from_static(b"old")).await.unwrap();
            disk.copy();
            handle.write_sync(&file, 0, Bytes::from_static(b"new")).await.unwrap();
            disk.fence(Crash::Power);
            assert!(disk.roll_back() && !disk.roll_back());
            let handle = disk.handle();
            let file = handle.open("oplog/1", false).await.unwrap();
            assert_eq!(handle.read_at(&file, 0, 10).await.unwrap(), "old");
            disk.fence(Crash::Kill);
            assert!(disk.wipe() && !disk.wipe());
            assert!(disk.handle().open("oplog/1", false).await.is_err());
        });
    }
}
