//! The disk as redb sees it: synchronous calls that take no simulated time, each of which may be
//! the last one.

use std::{io, sync::MutexGuard};

use bytes::Bytes;
use highwater_core::GroupId;
use highwater_store::state::StateFiles;
use redb::StorageBackend;

use super::{Call, DiskHandle, FileId, Inner, off};
use crate::{
    plan::Part,
    trace::{Kind, digest},
};

/// Where state files live.
const DIR: &str = "state";
const TEMP: &str = ".tmp";

/// The state files of one process.
#[derive(Clone, Debug)]
pub(crate) struct SimStateFiles {
    disk: DiskHandle,
}

impl SimStateFiles {
    pub(crate) fn new(disk: DiskHandle) -> SimStateFiles {
        SimStateFiles { disk }
    }

    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, Inner>> {
        self.disk.enter(call).ok_or_else(off)
    }

    fn backend(&self, id: FileId, name: &str) -> Box<dyn StorageBackend> {
        Box::new(Backend { disk: self.disk.clone(), id, group: group_of(name) })
    }

    fn named(&self, what: &str, name: &str) {
        self.disk.event(Kind::Name, 0, 0, digest(name.as_bytes()), || format!("{what} {name}"));
    }
}

/// Whose a file is.
fn group_of(name: &str) -> Option<GroupId> {
    let number: String = name.chars().filter(char::is_ascii_digit).collect();
    number.parse().ok().map(GroupId)
}

impl StateFiles for SimStateFiles {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let id = self.enter(Call::State)?.image.find(&format!("{DIR}/{name}"));
        Ok(id.map(|id| self.backend(id, name)))
    }

    fn create_temp(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.named("create state", name);
        let id = self.enter(Call::State)?.image.create(&format!("{DIR}/{name}{TEMP}"));
        Ok(self.backend(id, name))
    }

    fn publish(&self, name: &str) -> io::Result<()> {
        self.named("publish state", name);
        let file = format!("{DIR}/{name}");
        self.enter(Call::State)?.image.rename(&format!("{file}{TEMP}"), &file)?;
        self.enter(Call::StateSync)?.image.sync_dir(DIR);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.named("rename state", to);
        let path = |name: &str| format!("{DIR}/{name}");
        self.enter(Call::State)?.image.rename(&path(from), &path(to))?;
        let mut inner = self.enter(Call::StateSync)?;
        inner.image.sync_dir(DIR);
        inner.replaced.extend(group_of(to));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.named("remove state", name);
        let file = format!("{DIR}/{name}");
        if self.enter(Call::State)?.image.find(&file).is_some() {
            self.enter(Call::State)?.image.remove(&file)?;
        }
        self.enter(Call::StateSync)?.image.sync_dir(DIR);
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        let names = self.enter(Call::State)?.image.list(DIR);
        for name in names.iter().filter(|name| name.ends_with(TEMP)) {
            self.enter(Call::State)?.image.remove(&format!("{DIR}/{name}"))?;
        }
        self.enter(Call::StateSync)?.image.sync_dir(DIR);
        Ok(())
    }
}

/// One file as redb's storage.
#[derive(Debug)]
struct Backend {
    disk: DiskHandle,
    id: FileId,
    /// Whose state it is.
    group: Option<GroupId>,
}

impl Backend {
    /// Tells the page whose state the latest event is of.
    fn tell(&self) {
        if let Some(group) = self.group {
            self.disk.disk.world.tell(|story| story.of_state(group));
        }
    }

    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, Inner>> {
        self.disk.enter(call).ok_or_else(off)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.enter(Call::State)?.image.len(self.id)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.enter(Call::State)?;
        inner.check_read(Part::State, &self.disk.disk.world)?;
        if inner.read(self.id, offset, out, &self.disk.disk.world)? < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.event(Kind::StateRead, self.id.0, offset, out.len() as u64, || {
            format!("file {} at {offset}: {} bytes", self.id.0, out.len())
        });
        self.tell();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.enter(Call::State)?;
        self.disk.event(Kind::StateWrite, self.id.0, len, 0, || {
            format!("file {}: length {len}", self.id.0)
        });
        self.tell();
        inner.image.set_len(self.id, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.enter(Call::StateSync)?;
        self.disk.event(Kind::Sync, self.id.0, 0, 0, || format!("state file {}", self.id.0));
        self.tell();
        let mark = inner.image.mark();
        inner.sync(self.id, mark, Part::State, &self.disk.disk.world)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.enter(Call::State)?;
        self.disk.event(Kind::StateWrite, self.id.0, offset, digest(data), || {
            format!("file {} at {offset}: {} bytes", self.id.0, data.len())
        });
        self.tell();
        if offset + data.len() as u64 > inner.image.len(self.id)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let holes = inner.image.has_hole(self.id, offset, data.len() as u64);
        inner.check_room(Part::State, holes, &self.disk.disk.world)?;
        inner.write(self.id, offset, Bytes::copy_from_slice(data))
    }
}
