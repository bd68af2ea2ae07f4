//! How soon a consumer that comes back to a long history has the first line of what it missed.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use highwater_tests::cluster::Node;
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Builder;

use super::{
    DATABASE, FILLERS, KEEP_ALL,
    figure::{Aim, Figure},
    fill,
    stream::Stream,
};
use crate::{load::Load, noise::Noise, options::Options, say};

const VALUE: u64 = 4096;
/// Few of each connection: the history is long, the state small.
const KEYS: usize = 16;
/// Streams that are resumed, one after the other.
const RESUMES: usize = 100;
const AIM_MS: f64 = 10.0;
/// What follows a fill (a checkpoint, compression) is over by then.
const SETTLE: Duration = Duration::from_secs(10);

pub(crate) fn measure(options: &Options) -> Vec<Figure> {
    let gib = options.history_gib;
    say(&format!("a history of {gib} GiB"));
    let entries = (gib << 30) / VALUE;
    let cluster = super::cluster(1, &[KEEP_ALL]);
    let node = cluster.node(1);
    let load =
        Load { value: VALUE as usize, keys: KEYS, ..Load::small(node.http, DATABASE, FILLERS) };
    fill(&load, entries);
    thread::sleep(SETTLE);
    let on_disk = size(&node.data()) as f64 / f64::from(1 << 30);
    let mut figures = Vec::new();
    for (cached, median_name, max_name) in [
        (true, "resume, median", "resume, slowest"),
        (false, "resume from the disk, median", "resume from the disk, slowest"),
    ] {
        say(median_name);
        let latencies = resume(node, entries, cached);
        let cache = if cached { "as it was left" } else { "empty before each" };
        let conditions = format!(
            "request to first line at {RESUMES} random LSNs of {entries} × 4 KiB ({on_disk:.1} GiB on \
             disk), one node, a new connection each, page cache {cache}"
        );
        let aim = Some(Aim::Under(AIM_MS));
        let figure = |name, at: usize, conditions| {
            Figure::new(name, (latencies[at].as_secs_f64() * 1e3, "ms"), aim, conditions)
        };
        figures.push(figure(median_name, RESUMES / 2, conditions));
        let slow = format!(
            "the same; 90 % within {:.2} ms",
            latencies[RESUMES * 9 / 10].as_secs_f64() * 1e3
        );
        figures.push(figure(max_name, RESUMES - 1, slow));
    }
    figures
}

/// From the request, with its connection, to the first line; sorted.
fn resume(node: &Node, entries: u64, cached: bool) -> Vec<Duration> {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut noise = Noise::new(0);
    let mut latencies: Vec<_> = (0..RESUMES)
        .map(|_| {
            if !cached {
                forget(&node.data());
            }
            let after = noise.number() % (entries - 1);
            let target = format!("/v1/databases/{DATABASE}/changes?after={after}&follow=true");
            let began = Instant::now();
            let first = async { Stream::open(node.http, &target).await?.read_lines(1).await };
            runtime.block_on(first).expect("a line");
            began.elapsed()
        })
        .collect();
    latencies.sort_unstable();
    latencies
}

/// Has the kernel forget what it holds of the files under a directory, as far as they are written.
fn forget(dir: &Path) {
    each_file(dir, &mut |path| {
        // It may be gone by now.
        if let Ok(file) = File::open(path) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    });
}

fn size(dir: &Path) -> u64 {
    let mut size = 0;
    each_file(dir, &mut |path| size += fs::metadata(path).map_or(0, |metadata| metadata.len()));
    size
}

fn each_file(dir: &Path, act: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { each_file(&path, act) } else { act(&path) }
    }
}
