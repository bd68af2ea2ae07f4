//! A machine's disk: its image, the time that calls take, and the calls at which the machine dies.
//! The handles of a dead process do nothing: they are fenced before it is killed, because the
//! destructors of killed tasks still run.

mod image;
mod log;
mod state;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub(crate) use image::{FileId, Loss};
pub(crate) use state::SimStateFiles;

use crate::{
    plan::{Crash, Fuse},
    rng::Rng,
    stats::Seen,
    timer::pause_ns,
    trace::Kind,
    world::World,
};
use image::Image;

/// What a call is, to a fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Log,
    LogSync,
    State,
    StateSync,
}

struct Inner {
    image: Image,
    /// Handles of another generation are dead.
    generation: u64,
    fuse: Option<(Fuse, Crash)>,
    /// Lit by the next process's start.
    fuse_at_start: Option<Fuse>,
    rng: Rng,
    /// Every call takes this many times as long.
    slowness: u64,
    /// The latest commits: file, offset, length.
    commits: VecDeque<(FileId, u64, u64)>,
    /// Where the commit under way, or else the latest one, goes.
    committing: Option<FileId>,
    damage: Option<(FileId, u64, u8)>,
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
            rng: Rng::stream(world.seed, "disk", node),
            slowness: 1,
            commits: VecDeque::new(),
            committing: None,
            damage: None,
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
        DiskHandle { disk: self.clone(), generation: inner.generation }
    }

    /// Sets the call at which the machine dies.
    pub(crate) fn set_fuse(&self, fuse: Fuse, crash: Crash) {
        self.lock().fuse = Some((fuse, crash));
    }

    /// Sets the call at which the machine loses power, counted from the next start.
    pub(crate) fn set_fuse_at_start(&self, fuse: Fuse) {
        self.lock().fuse_at_start = Some(fuse);
    }

    /// No fuse, and the disk as fast as it can be.
    pub(crate) fn calm(&self) {
        let mut inner = self.lock();
        (inner.fuse, inner.fuse_at_start, inner.slowness) = (None, None, 1);
    }

    /// Every call takes this many times as long from now on.
    pub(crate) fn slow_down(&self, times: u64) {
        self.lock().slowness = times;
    }

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
                self.world.saw_times(Seen::LostName, loss.names);
                loss
            }
        }
    }

    /// Flips bits at the start of a block in the newest segment of the oplog, which was synced
    /// before others were: such damage can be told from a torn tail, and start-up looks there. Only
    /// while no process runs. Whether there was such a block.
    pub(crate) fn damage(&self) -> bool {
        let mut inner = self.lock();
        let Inner { commits, committing, rng, image, damage, .. } = &mut *inner;
        let settled = commits.len().saturating_sub(3);
        // A segment that was just begun may be the newest one by now, or not: then this is none.
        let newest = committing.filter(|file| commits.back().is_some_and(|(f, ..)| f == file));
        let blocks: Vec<_> =
            commits.iter().take(settled).filter(|(file, ..)| Some(*file) == newest).collect();
        if blocks.is_empty() || damage.is_some() {
            return false;
        }
        let (file, offset, len) = **rng.pick(&blocks);
        let at = offset + rng.below(len.min(24));
        let flip = 1 << rng.below(8);
        let Some(was) = image.damage(file, at, flip) else { return false };
        *damage = Some((file, at, was));
        self.world.fault(self.node, || format!("damages {file:?} at {at}"));
        true
    }

    /// The run is over: nothing reaches the disk any more, and its memory is free.
    pub(crate) fn discard(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.image = Image::default();
    }

    /// Whether there is damage that nobody has met yet.
    pub(crate) fn is_damaged(&self) -> bool {
        self.lock().damage.is_some()
    }

    /// Puts the damaged byte back, or (where the node lives with it) leaves it.
    pub(crate) fn settle_damage(&self, undo: bool) {
        let mut inner = self.lock();
        if let Some((file, at, was)) = inner.damage.take()
            && undo
            && let Some(now) = inner.image.damage(file, at, 0)
        {
            inner.image.damage(file, at, now ^ was);
        }
    }
}

impl Inner {
    /// Whether this call is the one to die at.
    fn burns(&mut self, call: Call) -> Option<Crash> {
        let (fuse, crash) = self.fuse.as_mut()?;
        let crash = *crash;
        let left = match (fuse, call) {
            (Fuse::Sync(n), Call::LogSync | Call::StateSync)
            | (Fuse::LogCall(n), Call::Log | Call::LogSync)
            | (Fuse::StateCall(n), Call::State | Call::StateSync) => n,
            _ => return None,
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        self.fuse = None;
        Some(crash)
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
        drop(inner);
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
            assert!(files.remove_temps().is_err());
            assert_eq!(burnt.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn damage_hits_a_settled_block_and_can_be_undone() {
        with(|disk| async move {
            let handle = disk.handle();
            let file = handle.open("oplog/1", true).await.unwrap();
            handle.sync_dir("oplog").await.unwrap();
            assert!(!disk.damage(), "nothing is settled yet");
            let block = Bytes::from(vec![7; 4096]);
            for n in 0..6 {
                handle.write_sync(&file, n * 4096, block.clone()).await.unwrap();
            }
            disk.fence(Crash::Power);
            let read = async || {
                let handle = disk.handle();
                let file = handle.open("oplog/1", false).await.unwrap();
                handle.read_at(&file, 0, 6 * 4096).await.unwrap()
            };
            assert!(disk.damage() && disk.is_damaged());
            let damaged = read().await;
            let at = damaged.iter().position(|byte| *byte != 7).unwrap();
            assert!(at < 3 * 4096 && at % 4096 < 24, "{at}");
            disk.settle_damage(true);
            assert!(read().await.iter().all(|byte| *byte == 7) && !disk.is_damaged());
        });
    }
}
