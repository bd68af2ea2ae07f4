//! Highwater's simulator: whole clusters of real nodes on a simulated network, disk and clock.
//!
//! The simulator proper exists only under `--cfg madsim`; `cargo sim` sets it. What runs in a node
//! there is the product's own code: core, driver, oplog, redb. What is simulated is what a machine
//! provides. A run is a function of its seed. Plans, workloads and oracles know nothing of that and
//! exist in every build.
// The fast loop alone does not use all of them.
#![cfg_attr(not(madsim), allow(dead_code))]

mod drift;
pub mod fast;
mod history;
mod judge;
mod oracles;
// The fast loop tells no stories.
#[cfg_attr(not(madsim), allow(dead_code))]
mod page;
mod panics;
mod plan;
mod pool;
mod report;
mod rng;
mod stats;
mod trace;
mod workload;
mod world;

#[cfg(madsim)]
mod atlas;
#[cfg(madsim)]
pub mod cli;
#[cfg(madsim)]
mod clients;
#[cfg(madsim)]
mod clock;
#[cfg(madsim)]
mod cluster;
#[cfg(madsim)]
mod disk;
#[cfg(madsim)]
mod faults;
#[cfg(madsim)]
mod net;
#[cfg(madsim)]
mod quic;
#[cfg(madsim)]
mod run;
#[cfg(madsim)]
mod script;
#[cfg(madsim)]
mod timer;
