//! Checksums under redb: every block of a state file is verified whenever it is read, since redb
//! itself serves, or panics on, whatever the disk gives it.
//!
//! ```text
//!   physical, in blocks of 4096 bytes:
//!   ┌──────┬─────────┬─────────┬───┬─────────────┬──────┬────────────┬───
//!   │ sums │ block 0 │ block 1 │ … │ block 1023  │ sums │ block 1024 │ …
//!   └──────┴─────────┴─────────┴───┴─────────────┴──────┴────────────┴───
//! ```
//! A block of **sums** holds a u32 for each of the 1024 blocks after it, little endian: 0 for a
//! block of zeros, so that a file can grow; else the CRC-32C of the block's content and of its
//! number (u64), with 1 in place of 0. The number is in it so that a block in another's place is
//! told. **Block 0** is redb's header, which is overwritten in place and must not be torn apart
//! from its checksum: its first 512 bytes, one sector, carry the CRC-32C of the 508 before in
//! their last 4, and the rest of it is not used.
//!
//! A block and its sum are two writes. That is safe because redb never overwrites a page that its
//! last durable commit refers to: what a crash tears apart is never read.

use std::{
    fmt, io,
    ops::{Bound, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{BackendError, StorageBackend};

const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
const SUM: usize = 4;
/// Blocks that one block of sums covers.
const COVERED: u64 = (BLOCK / SUM) as u64;
const HEADER: usize = 512;
const HEADER_SUM_AT: usize = HEADER - SUM;

/// A backend with checksums, which also remembers whether a write or sync ever failed: redb
/// swallows such an error when it closes a database.
pub(super) struct Checked {
    inner: Arc<dyn StorageBackend>,
    failed: Arc<AtomicBool>,
}

impl Checked {
    /// The backend, and the flag that rises when it fails.
    pub(super) fn new(inner: Box<dyn StorageBackend>) -> (Checked, Arc<AtomicBool>) {
        let failed = Arc::new(AtomicBool::new(false));
        (Checked { inner: inner.into(), failed: failed.clone() }, failed)
    }

    /// For whoever reads the blocks themselves.
    pub(super) fn blocks(&self) -> Blocks {
        Blocks(self.inner.clone())
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    fn read_header(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        self.inner.read(data_at(0), &mut header)?;
        if !is_header(&header) {
            return Err(mismatch(0));
        }
        let content = &header[..HEADER_SUM_AT];
        let asked = content.get(offset..offset + out.len()).ok_or_else(unaligned)?;
        out.copy_from_slice(asked);
        Ok(())
    }

    fn write_header(&self, content: &[u8]) -> io::Result<()> {
        let mut header = [0; HEADER];
        header.get_mut(..content.len()).ok_or_else(unaligned)?.copy_from_slice(content);
        let sum = crc32c::crc32c(&header[..HEADER_SUM_AT]);
        header[HEADER_SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        self.inner.write(data_at(0), &header)
    }

    fn read_blocks(&self, offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        for run in runs(offset, out.len())? {
            let (blocks, rest) = out.split_at_mut((run.end - run.start) as usize * BLOCK);
            out = rest;
            self.inner.read(data_at(run.start), blocks)?;
            let mut sums = vec![0; blocks.len() / BLOCK * SUM];
            self.inner.read(sum_at(run.start), &mut sums)?;
            if let Some(number) = first_mismatch(run, blocks, &sums) {
                return Err(mismatch(number));
            }
        }
        Ok(())
    }

    fn write_blocks(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        for run in runs(offset, data.len())? {
            let (blocks, rest) = data.split_at((run.end - run.start) as usize * BLOCK);
            data = rest;
            self.inner.write(data_at(run.start), blocks)?;
            let numbered = run.clone().zip(blocks.chunks_exact(BLOCK));
            let sums: Vec<u8> =
                numbered.flat_map(|(n, block)| sum_of(n, block).to_le_bytes()).collect();
            self.inner.write(sum_at(run.start), &sums)?;
        }
        Ok(())
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        if !len.is_multiple_of(BLOCK as u64) {
            return Err(unaligned());
        }
        let (before, after) = (self.count()?, len / BLOCK as u64);
        self.inner.set_len((after + after.div_ceil(COVERED)) * BLOCK as u64)?;
        // The new blocks are zeros; what a shrinking left of sums is not.
        let covered_till = before.next_multiple_of(COVERED).min(after);
        if covered_till > before {
            let stale = (covered_till - before) as usize * SUM;
            self.inner.write(sum_at(before), &ZEROS[..stale])?;
        }
        Ok(())
    }

    fn count(&self) -> io::Result<u64> {
        count(&*self.inner)
    }
}

/// The blocks of a file, beneath redb.
#[derive(Clone, Debug)]
pub(super) struct Blocks(Arc<dyn StorageBackend>);

/// Some blocks were read.
#[derive(Debug)]
pub(super) struct Verified {
    /// Where to go on; `None` at the end.
    pub(super) next: Option<u64>,
    /// How many bytes were read.
    pub(super) bytes: usize,
    /// Each is what its checksum says. One that is not may not be in use.
    pub(super) sound: bool,
}

impl Blocks {
    /// Compares the blocks from that one on, about so many bytes of them, with their checksums. To be
    /// called while nothing is written.
    pub(super) fn verify(&self, from: u64, bytes_max: usize) -> io::Result<Verified> {
        let (mut bytes, mut sound) = (0, true);
        let end = count(&*self.0)?;
        let upto = end.min(from + (bytes_max / BLOCK).max(1) as u64);
        let mut first = from;
        if from == 0 {
            let mut header = [0; HEADER];
            self.0.read(data_at(0), &mut header)?;
            (sound, bytes, first) = (is_header(&header), HEADER, 1);
        }
        let len = upto.saturating_sub(first) as usize * BLOCK;
        for run in runs(first * BLOCK as u64, len)? {
            let count = (run.end - run.start) as usize;
            let (mut blocks, mut sums) = (vec![0; count * BLOCK], vec![0; count * SUM]);
            self.0.read(data_at(run.start), &mut blocks)?;
            self.0.read(sum_at(run.start), &mut sums)?;
            sound &= first_mismatch(run, &blocks, &sums).is_none();
            bytes += blocks.len();
        }
        Ok(Verified { next: (upto < end).then_some(upto), bytes, sound })
    }
}

/// How many blocks there are, not counting sums.
fn count(file: &dyn StorageBackend) -> io::Result<u64> {
    let physical = file.len()? / BLOCK as u64;
    let (whole, rest) = (physical / (COVERED + 1), physical % (COVERED + 1));
    Ok(whole * COVERED + rest.saturating_sub(1))
}

fn is_header(header: &[u8; HEADER]) -> bool {
    let (content, sum) = header.split_at(HEADER_SUM_AT);
    sum == crc32c::crc32c(content).to_le_bytes()
}

/// The first of these blocks that is not what its sum says.
fn first_mismatch(run: Range<u64>, blocks: &[u8], sums: &[u8]) -> Option<u64> {
    let mut found = run.zip(blocks.chunks_exact(BLOCK).zip(sums.chunks_exact(SUM)));
    found
        .find(|(number, (block, sum))| **sum != sum_of(*number, block).to_le_bytes())
        .map(|(n, _)| n)
}

/// Where a block is in the file.
fn data_at(block: u64) -> u64 {
    (block + block / COVERED + 1) * BLOCK as u64
}

/// Where its sum is.
fn sum_at(block: u64) -> u64 {
    (block / COVERED) * (COVERED + 1) * BLOCK as u64 + (block % COVERED) * SUM as u64
}

fn sum_of(number: u64, block: &[u8]) -> u32 {
    if block == ZEROS {
        return 0;
    }
    crc32c::crc32c_append(crc32c::crc32c(block), &number.to_le_bytes()).max(1)
}

/// The blocks of a range of bytes, as runs that are contiguous in the file.
fn runs(offset: u64, len: usize) -> io::Result<impl Iterator<Item = Range<u64>>> {
    if !offset.is_multiple_of(BLOCK as u64) || !len.is_multiple_of(BLOCK) {
        return Err(unaligned());
    }
    let mut next = offset / BLOCK as u64;
    let end = next + (len / BLOCK) as u64;
    Ok(std::iter::from_fn(move || {
        let run = next..(next + 1).next_multiple_of(COVERED).min(end);
        next = run.end;
        Some(run).filter(|run| !run.is_empty())
    }))
}

fn mismatch(block: u64) -> io::Error {
    let told = format!("block {block} does not match its checksum");
    io::Error::new(io::ErrorKind::InvalidData, told)
}

/// redb reads and writes whole pages, and its header: anything else would be a change of redb.
fn unaligned() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "redb asked for a part of a block")
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

type Edge = Bound<u64>;

impl StorageBackend for Checked {
    fn len(&self) -> io::Result<u64> {
        Ok(self.count()? * BLOCK as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match usize::try_from(offset) {
            Ok(offset) if offset < BLOCK => self.read_header(offset, out),
            _ => self.read_blocks(offset, out),
        }
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.resize(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.note(self.inner.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(match offset {
            0 => self.write_header(data),
            _ => self.write_blocks(offset, data),
        })
    }
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
    fn try_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    #[derive(Clone, Debug)]
    struct Shared(Arc<InMemoryBackend>);

    impl StorageBackend for Shared {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    const PAGE: u64 = BLOCK as u64;

    fn checked() -> (Shared, Checked) {
        let raw = Shared(Arc::new(InMemoryBackend::new()));
        (raw.clone(), Checked::new(Box::new(raw)).0)
    }

    fn block(fill: u8) -> Vec<u8> {
        vec![fill; BLOCK]
    }

    fn read(file: &Checked, number: u64, blocks: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0xee; blocks * BLOCK];
        file.read(number * PAGE, &mut out).map(|()| out)
    }

    #[test]
    fn what_is_written_is_read_across_blocks_of_sums() {
        let (raw, file) = checked();
        for blocks in [1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 5000] {
            file.set_len(blocks * PAGE).unwrap();
            assert_eq!(file.len().unwrap(), blocks * PAGE);
        }
        assert_eq!(raw.len().unwrap(), 5005 * PAGE);
        // From before the first border to behind the second, in one write.
        let data: Vec<u8> = (1000..3000u64).flat_map(|n| block(n as u8)).collect();
        file.write(1000 * PAGE, &data).unwrap();
        for number in [1000, 1023, 1024, 1025, 2047, 2048, 2999] {
            assert_eq!(read(&file, number, 1).unwrap(), block(number as u8));
        }
        assert!(read(&file, 1000, 2000).unwrap() == data);
        assert_eq!(read(&file, 999, 1).unwrap(), block(0), "untouched blocks are zeros");
        assert_eq!(read(&file, 3000, 1).unwrap(), block(0));
    }

    #[test]
    fn a_file_that_shrinks_and_grows_is_zeros_there() {
        let (_, file) = checked();
        file.set_len(1500 * PAGE).unwrap();
        file.write(100 * PAGE, &vec![7; 1400 * BLOCK]).unwrap();
        file.set_len(200 * PAGE).unwrap();
        file.set_len(1500 * PAGE).unwrap();
        assert_eq!(read(&file, 199, 1).unwrap(), block(7));
        assert!(read(&file, 200, 1300).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_changed_misplaced_or_lost_block_is_told() {
        let (raw, file) = checked();
        file.set_len(10 * PAGE).unwrap();
        for number in 1..10u8 {
            file.write(u64::from(number) * PAGE, &block(number)).unwrap();
        }
        let told = |number: u64| {
            let error = read(&file, number, 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(error.to_string(), format!("block {number} does not match its checksum"));
        };
        raw.write(data_at(1) + 4095, &[0]).unwrap();
        told(1);
        raw.write(sum_at(2), &[0; 4]).unwrap();
        told(2);
        // Block 3 in the place of block 4, sum and all.
        let mut sum = [0; SUM];
        raw.read(sum_at(3), &mut sum).unwrap();
        raw.write(data_at(4), &block(3)).unwrap();
        raw.write(sum_at(4), &sum).unwrap();
        told(4);
        raw.write(data_at(5), &ZEROS).unwrap();
        told(5);
        assert!(read(&file, 3, 3).is_err(), "any bad block spoils a read");
        assert_eq!(read(&file, 6, 4).unwrap()[..BLOCK], block(6));
    }

    #[test]
    fn the_header_and_its_sum_are_one_sector() {
        let (raw, file) = checked();
        file.set_len(2 * PAGE).unwrap();
        file.write(0, &[9; 320]).unwrap();
        let mut out = [0; 9];
        file.read(0, &mut out).unwrap();
        assert_eq!(out, [9; 9]);
        let mut sector = [0; HEADER];
        raw.read(PAGE, &mut sector).unwrap();
        assert_eq!(sector[..320], [9; 320]);
        sector[319] = 8;
        raw.write(PAGE, &sector).unwrap();
        let error = file.read(0, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "block 0 does not match its checksum");
    }

    /// A change here is a change of the format.
    #[test]
    fn the_layout_is_frozen() {
        assert_eq!([0, 1023, 1024, 2048].map(data_at), [4096, 4_194_304, 4_202_496, 8_400_896]);
        assert_eq!([1, 1023, 1024, 1025].map(sum_at), [4, 4092, 4_198_400, 4_198_404]);
        let sums =
            [(1, 0), (1, 0xab), (2, 0xab)].map(|(number, fill)| sum_of(number, &block(fill)));
        assert_eq!(sums, [0, 0x7ee7_2c87, 0xa5a3_abee]);
        let (raw, file) = checked();
        file.set_len(PAGE).unwrap();
        file.write(0, &[0xab; 320]).unwrap();
        let mut end = [0; 8];
        raw.read(PAGE + 504, &mut end).unwrap();
        assert_eq!(end, [0, 0, 0, 0, 72, 94, 137, 68]);
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        let (_, file) = checked();
        file.set_len(4 * PAGE).unwrap();
        assert!(file.set_len(PAGE + 1).is_err());
        assert!(file.write(PAGE, &[1; 100]).is_err());
        assert!(file.write(PAGE + 100, &block(1)).is_err());
        assert!(file.read(PAGE, &mut [0; 100]).is_err());
        file.write(0, &[1; 320]).unwrap();
        assert!(file.read(0, &mut block(0)).is_err(), "the header's block is not a page");
        assert!(file.write(0, &block(1)).is_err());
    }
}
