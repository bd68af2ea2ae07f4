//! `cargo run --release -p highwater-tests --bin measure [-- writes|oplog]`
//!
//! Measures clusters of real nodes on this machine, and says under which conditions. Everything
//! shares the machine, the load too. `writes`: durable acknowledged writes, idling and failover;
//! `oplog`: its figures as a product, each beside its aim; both, unless one is named.

mod conditions;
mod load;
mod noise;
mod oplog;
mod options;
mod usage;
mod writes;

use std::process::ExitCode;

use highwater_tests::{binary, scratch::Scratch};
use serde::Serialize;

use crate::{
    conditions::Conditions,
    options::{Options, Part},
};

/// Everything.
#[derive(Serialize)]
struct Report {
    conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<writes::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oplog: Option<oplog::Report>,
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    say("building the binary");
    let _ = binary::path();
    let report = measure(&options);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
    } else {
        for line in report.conditions.lines() {
            println!("{line}");
        }
        report.writes.iter().for_each(|writes| print!("{writes}"));
        report.oplog.iter().for_each(|oplog| print!("{oplog}"));
    }
    ExitCode::SUCCESS
}

/// Says on stderr what is being done.
fn say(text: &str) {
    eprintln!("{text} …");
}

fn measure(options: &Options) -> Report {
    let scratch = Scratch::new("measure");
    let conditions = Conditions::here(&scratch);
    let wants_writes = options.parts.contains(&Part::Writes);
    let writes = wants_writes.then(|| writes::measure(&scratch, options.seconds));
    let wants_oplog = options.parts.iter().any(|part| *part != Part::Writes);
    let oplog = wants_oplog.then(|| oplog::measure(&scratch, options));
    Report { conditions, writes, oplog }
}
