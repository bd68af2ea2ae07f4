//! The disk as the oplog sees it: every call takes time, and may be the last one.

use std::io;

use bytes::Bytes;
use highwater_store::disk::Disk;

use super::{Call, DiskHandle, FileId, Inner, blocks, pages::PAGE};
use crate::{
    plan::Part,
    stats::Seen,
    trace::{Kind, digest},
};

/// An open file.
#[derive(Debug)]
pub(crate) struct SimFile {
    id: FileId,
    name: String,
}

impl Disk for DiskHandle {
    type File = SimFile;

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.take_time(10, 50).await;
        let names = self.enter_or_die(Call::Log).await.image.list(dir);
        self.event(Kind::LogRead, 0, names.len() as u64, 0, || format!("list {dir}: {names:?}"));
        Ok(names)
    }

    async fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.take_time(10, 200).await;
        drop(self.enter_or_die(Call::Log).await);
        self.event(Kind::Name, 0, 0, digest(dir.as_bytes()), || format!("make directory {dir}"));
        Ok(())
    }

    async fn open(&self, name: &str, create: bool) -> io::Result<SimFile> {
        self.take_time(10, 50).await;
        let mut inner = self.enter_or_die(Call::Log).await;
        let id = match inner.image.find(name) {
            Some(id) => id,
            None if create => {
                let id = inner.image.create(name);
                if name.starts_with("oplog/") {
                    self.disk.world.saw(Seen::SegmentRolled);
                }
                self.event(Kind::Name, id.0, 0, digest(name.as_bytes()), || {
                    format!("create {name}")
                });
                id
            }
            None => {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing")));
            }
        };
        Ok(SimFile { id, name: name.to_owned() })
    }

    async fn len(&self, file: &SimFile) -> io::Result<u64> {
        self.enter_or_die(Call::Log).await.image.len(file.id)
    }

    async fn read_at(&self, file: &SimFile, offset: u64, len: usize) -> io::Result<Bytes> {
        self.take_time(10, 100).await;
        let mut inner = self.enter_or_die(Call::Log).await;
        inner.check_read(Part::Log, &self.disk.world)?;
        let data = Bytes::from(inner.image.read_some(file.id, offset, len)?);
        inner.wounds.are_read(file.id, offset, data.len() as u64, &self.disk.world);
        let is_history = blocks::is_history(&data);
        self.disk.world.saw_times(Seen::HistoryRead, u64::from(is_history));
        self.event(Kind::LogRead, file.id.0, offset, data.len() as u64, || {
            format!("{} at {offset}: {} bytes", file.name, data.len())
        });
        Ok(data)
    }

    async fn write_at(&self, file: &SimFile, offset: u64, data: Bytes) -> io::Result<()> {
        {
            let mut inner = self.enter_or_die(Call::Log).await;
            self.event(Kind::LogWrite, file.id.0, offset, digest(&data), || {
                format!("{} at {offset}: {} bytes", file.name, data.len())
            });
            if file.name.starts_with("oplog/") {
                let is_spare = file.name.ends_with(".tmp");
                self.disk.world.tell(|story| story.of_log(file.id.0, offset, is_spare));
            }
            let grows = offset + data.len() as u64 > inner.image.len(file.id)?;
            inner.check_room(Part::Log, grows, &self.disk.world)?;
            inner.long_write = data.len() > PAGE && blocks::is_block(&data);
            inner.write(file.id, offset, data)?;
        }
        self.take_time(5, 40).await;
        Ok(())
    }

    async fn sync(&self, file: &SimFile) -> io::Result<()> {
        let mark = self.enter_or_die(Call::Log).await.image.mark();
        self.take_time(200, 2_500).await;
        let mut inner = self.enter_or_die(Call::LogSync).await;
        let done = inner.sync(file.id, mark, Part::Log, &self.disk.world);
        let kind = if done.is_ok() { Kind::Sync } else { Kind::SyncFailed };
        self.event(kind, file.id.0, mark, 0, || file.name.clone());
        done
    }

    async fn write_sync(&self, file: &SimFile, offset: u64, data: Bytes) -> io::Result<()> {
        self.write_at(file, offset, data).await?;
        self.sync(file).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.take_time(10, 100).await;
        let mut inner = self.enter_or_die(Call::Log).await;
        self.event(Kind::Name, 0, 0, digest(to.as_bytes()), || format!("rename {from} to {to}"));
        let seals = from.starts_with("history/sealing");
        self.disk.world.saw_times(Seen::SegmentSealed, u64::from(seals));
        inner.image.rename(from, to)
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.take_time(10, 100).await;
        let mut inner = self.enter_or_die(Call::Log).await;
        self.event(Kind::Name, 0, 0, digest(name.as_bytes()), || format!("remove {name}"));
        let Inner { image, wounds, .. } = &mut *inner;
        if let Some(id) = image.find(name) {
            let begun = blocks::segments(image).contains(&id);
            self.disk.world.saw_times(Seen::SegmentRecycled, u64::from(begun));
            wounds.are_gone(id);
        }
        image.remove(name)
    }

    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.take_time(200, 2_000).await;
        let mut inner = self.enter_or_die(Call::LogSync).await;
        self.event(Kind::Sync, 0, 0, digest(dir.as_bytes()), || format!("directory {dir:?}"));
        inner.image.sync_dir(dir);
        Ok(())
    }
}
