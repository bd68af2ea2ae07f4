//! The oplog as a product: what its consumers and followers get of it, each figure beside its aim.

mod catch_up;
mod changes;
mod disk;
mod figure;
mod memory;
mod resume;
mod snapshots;
mod stream;

use std::fmt;

use highwater_tests::{cluster::Cluster, scratch::Scratch};
use serde::Serialize;

use self::figure::Figure;
use crate::{
    load::{Load, Outcome},
    options::{Options, Part},
    say,
};

const DATABASE: &str = "measure";
/// Connections that fill a log.
const FILLERS: usize = 128;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    settings: String,
    figures: Vec<Figure>,
}

/// Measures.
pub(crate) fn measure(scratch: &Scratch, options: &Options) -> Report {
    let mut figures = Vec::new();
    for part in &options.parts {
        let taken = match part {
            Part::Writes => Vec::new(),
            Part::Changes => changes::measure(options),
            Part::Resume => resume::measure(options),
            Part::CatchUp => catch_up::measure(options),
            Part::Snapshots => snapshots::measure(scratch),
            Part::Memory => memory::measure(),
        };
        // The whole takes long: what there is by now is not lost with it.
        taken.iter().for_each(|figure| eprintln!("{figure}"));
        figures.extend(taken);
    }
    let settings = "values that do not compress, quorum acks, loopback, TLS between the nodes, \
                    everything on this machine, defaults otherwise";
    Report { settings: settings.to_owned(), figures }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.settings)?;
        writeln!(f, "| figure | measured | aim | | conditions |")?;
        writeln!(f, "| --- | ---: | ---: | --- | --- |")?;
        self.figures.iter().try_for_each(|figure| writeln!(f, "{figure}"))
    }
}

/// A running cluster with edited configurations, and the database.
fn cluster(nodes: usize, edits: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::init(nodes, &[]);
    for node in cluster.nodes() {
        edits.iter().for_each(|(from, to)| node.edit_config(from, to));
    }
    cluster.start_all();
    cluster.create(DATABASE);
    cluster
}

/// Nothing of the log is pruned.
const KEEP_ALL: (&str, &str) = ("[retention]\nbytes = 1073741824", "[retention]\nbytes = 0");

/// Writes so many times, and says how far it is.
fn fill(load: &Load, writes: u64) {
    const STEP: u64 = 200_000;
    let mut made = 0;
    while made < writes {
        let step = STEP.min(writes - made);
        let Outcome { errors, took, .. } = load.times(step);
        assert_eq!(errors, 0, "writes that failed: the history is not what it should be");
        made += step;
        say(&format!("{made} of {writes} written, {:.0}/s", step as f64 / took.as_secs_f64()));
    }
}
