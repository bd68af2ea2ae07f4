//! Highwater's simulator: whole clusters of real nodes on a simulated network, disk and clock.
//!
//! Everything here exists only under `--cfg madsim`; `cargo sim` sets it. What runs in a node is
//! the product's own code: core, driver, oplog, redb. What is simulated is what a machine
//! provides. A run is a function of its seed.
#![cfg(madsim)]

pub mod cli;
mod clock;
mod cluster;
mod disk;
mod faults;
mod history;
mod judge;
mod net;
mod oracles;
mod plan;
mod rng;
mod run;
mod stats;
mod timer;
mod trace;
mod workload;
mod world;
