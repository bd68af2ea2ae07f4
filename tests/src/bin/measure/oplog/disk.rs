//! How fast the disk takes a file.

use std::{fs::File, io, io::Write, path::Path, time::Instant};

use crate::noise::Noise;

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 512;

/// Writes of 1 MiB, one after the other and fsynced at the end, in MB/s.
///
/// # Errors
/// Where the file can't be written.
pub(crate) fn sequential_mb_per_s(dir: &Path) -> io::Result<f64> {
    let path = dir.join("sequential-probe");
    let mut block = vec![0; BLOCK];
    Noise::new(0).fill(&mut block);
    let mut file = File::create(&path)?;
    let began = Instant::now();
    for _ in 0..BLOCKS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let took = began.elapsed();
    std::fs::remove_file(path)?;
    Ok((BLOCK * BLOCKS) as f64 / took.as_secs_f64() / 1e6)
}
