//! The command line: `cargo sim run|fast|check|replay|shrink|planted`. Exit codes: 0 all is well, 1
//! something was found, 2 it was asked for wrongly; 141, as for any filter, if nobody reads its output
//! any more.

mod args;
mod check;
mod fast;
mod planted;
mod replay;
mod run;
mod shrink;

use std::process::ExitCode;

use args::{Args, Command};

/// Something was found.
const FOUND: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;

/// Runs what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    highwater_sim_sys::end_on_closed_pipe();
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(what) => {
            eprintln!("{what}\n\n{}", args::HELP);
            return ExitCode::from(USAGE);
        }
    };
    let good = match &args.command {
        Command::Help => {
            println!("{}", args::HELP);
            true
        }
        Command::Run => run::run(&args),
        Command::Fast => fast::fast(&args),
        Command::Check => check::check(&args),
        Command::Replay(what) => replay::replay(&args, what),
        Command::Shrink(seed) => shrink::shrink(&args, *seed),
        Command::Planted => planted::planted(&args),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::from(FOUND) }
}

/// The line that replays a seed.
fn replay_line(seed: u64, args: &Args) -> String {
    let profile = format!(" --profile {}", args.profile.name());
    let planted = args.planted.map(|p| format!(" --planted {}", args::planted_name(p)));
    let quic = args.quic.map(|quic| if quic { " --quic" } else { " --no-quic" });
    let (planted, quic) = (planted.unwrap_or_default(), quic.unwrap_or_default());
    format!("cargo sim replay {seed}{profile}{planted}{quic}")
}
