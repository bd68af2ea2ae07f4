//! How fast the disk is: what an acknowledgement costs at least.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;

/// Writes of 4 KiB into a preallocated file in `dir`, each made durable with fdatasync, per second.
/// Takes `duration`.
///
/// # Errors
/// Where the file can't be written.
pub fn fdatasync_per_s(dir: &Path, duration: Duration) -> io::Result<u64> {
    let path = dir.join("fdatasync-probe");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    let block = [0x5a_u8; BLOCK];
    for at in 0..BLOCKS {
        file.write_all_at(&block, at * BLOCK as u64)?;
    }
    file.sync_all()?;
    let began = Instant::now();
    let mut syncs = 0_u64;
    while began.elapsed() < duration {
        file.write_all_at(&block, (syncs % BLOCKS) * BLOCK as u64)?;
        file.sync_data()?;
        syncs += 1;
    }
    let took = began.elapsed();
    std::fs::remove_file(path)?;
    Ok((syncs as f64 / took.as_secs_f64()) as u64)
}
