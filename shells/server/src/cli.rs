//! The command line.

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use tokio::runtime;

use crate::{
    changes::{self, Start, Wanted},
    config::{Config, Flags, environment},
    demo::{self, Demo},
    dev::{self, Dev},
    failure::{Context, Failure},
    init::{self, Plan},
    log,
    logging::{self, LogOptions},
    nodes::Target,
    serve, slot, snapshot, status,
};

/// Where `dev` keeps its cluster.
const DEV_DIR: &str = "highwater-data";

/// A replicated record store that loses nothing it acknowledged.
#[derive(Debug, Parser)]
#[command(name = "highwater", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine, without set-up
    Dev(DevArgs),
    /// Kill a leader under load, and count what became of every write
    Demo(DemoArgs),
    /// Make a new cluster's directory: certificates and configurations
    Init(InitArgs),
    /// Run one node
    Serve(ServeArgs),
    /// Show a cluster's nodes and databases
    Status(StatusArgs),
    /// Print what took effect in a database, in order
    #[command(after_help = CHANGES)]
    Changes(ChangesArgs),
    /// Keep the places of consumers in a database's changes
    #[command(after_help = SLOT)]
    Slot {
        #[command(subcommand)]
        command: SlotCommand,
    },
    /// Save every record of a database as of one moment
    #[command(after_help = SNAPSHOT)]
    Snapshot(SnapshotArgs),
    /// Look at the oplog of a node that is stopped
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
}

#[derive(Debug, Args)]
struct DevArgs {
    /// Where everything is kept
    #[arg(long, value_name = "D", default_value = DEV_DIR)]
    dir: PathBuf,
    /// How many nodes [default: as many as D has, or 3]
    #[arg(long, value_name = "N")]
    nodes: Option<u64>,
    /// Leave a node that dies alone
    #[arg(long)]
    no_restart: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// For tests: make this file before the writes are verified, and wait until it is removed
    #[arg(long, hide = true, value_name = "FILE", env = "HIGHWATER_DEMO_PAUSE_BEFORE_VERIFY")]
    pause_before_verify: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct InitArgs {
    /// How many nodes
    #[arg(long, value_name = "N")]
    nodes: u64,
    /// The directory to make; must be empty or not exist
    #[arg(long, value_name = "D")]
    dir: PathBuf,
    /// Where nodes reach each other (QUIC): none (loopback), one for all, or one for each node
    #[arg(long = "address", value_name = "HOST[:PORT]")]
    addresses: Vec<String>,
    /// Who may do what: `none` is the only value that this version has
    #[arg(long, value_name = "none", default_value = "none")]
    auth: String,
    /// Serve HTTP on the nodes' own addresses, although there are no tokens
    #[arg(long)]
    insecure_bind: bool,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The node's configuration
    #[arg(long, value_name = "F")]
    config: PathBuf,
    /// Where QUIC listens, instead of what the configuration has
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Where HTTP listens, instead of what the configuration has
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// The data directory, instead of what the configuration has
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Let HTTP listen beyond loopback, although there are no tokens
    #[arg(long)]
    insecure_bind: bool,
    #[command(flatten)]
    log: LogOptions,
    /// The process that started this one, and at whose end it dies
    #[arg(long, hide = true, value_name = "PID")]
    die_with_parent: Option<i32>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Print what /v1/cluster answers
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// Whom to ask.
#[derive(Debug, Args)]
struct TargetArgs {
    /// Ask this node: http://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "dir"])]
    url: Option<String>,
    /// Ask the node of this configuration
    #[arg(long, value_name = "F", conflicts_with = "dir")]
    config: Option<PathBuf>,
    /// Ask the cluster that `dev` runs in this directory
    #[arg(long, value_name = "D", default_value = DEV_DIR)]
    dir: PathBuf,
}

const CHANGES: &str = "\
Each change is printed once, in the order of their LSNs. With --follow, a node that fails is no
reason to stop: another one goes on where it ended.

Examples:
  highwater changes app                            all that there is
  highwater changes app --after 120 --follow       what comes after LSN 120, as it happens
  highwater changes app --slot mailer --limit 100  the next hundred that a consumer has not confirmed
  highwater slot ack app mailer 240                ... which it does with the last LSN";

#[derive(Debug, Args)]
struct ChangesArgs {
    /// The database
    #[arg(value_name = "DB")]
    database: String,
    /// Begin after this LSN [default: 0, with the first one]
    #[arg(long, value_name = "LSN", conflicts_with = "slot")]
    after: Option<u64>,
    /// Begin where this slot is; nothing is confirmed by that
    #[arg(long, value_name = "NAME")]
    slot: Option<String>,
    /// Go on with what comes, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// End after so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print each as a line of JSON, with its values
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

const SLOT: &str = "\
A slot is a durable place in a database's changes, and keeps what comes after it from being removed.
Its consumer reads with `highwater changes DB --slot NAME`, and confirms with `slot ack`.

Examples:
  highwater slot create app mailer --from latest   from now on
  highwater slot create app mirror --from 120      after a snapshot at LSN 120
  highwater slot ack app mailer 240                up to LSN 240, everything was taken in
  highwater slot list app                          who is how far behind";

#[derive(Debug, Subcommand)]
enum SlotCommand {
    /// Show every slot of a database
    List(OfSlots),
    /// Show one slot
    Show(OfSlot),
    /// Make a slot, unless it stands with these settings
    Create {
        #[command(flatten)]
        slot: OfSlot,
        #[command(flatten)]
        settings: slot::Settings,
    },
    /// Confirm everything up to an LSN: it does not come again
    Ack {
        #[command(flatten)]
        slot: OfSlot,
        /// The last LSN that was taken in
        lsn: u64,
    },
    /// Remove a slot: it keeps nothing from being removed any more
    Delete(OfSlot),
}

#[derive(Debug, Args)]
struct OfSlots {
    /// The database
    #[arg(value_name = "DB")]
    database: String,
    /// Print what the node answers
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Args)]
struct OfSlot {
    #[command(flatten)]
    of: OfSlots,
    /// The slot
    #[arg(value_name = "NAME")]
    name: String,
}

const SNAPSHOT: &str = "\
A line of JSON for each record, in the order of their keys, and a closing line that vouches for them.
Whoever keeps a copy begins with this, and goes on with what `highwater changes` tells after its LSN.

Examples:
  highwater snapshot app --out app.ndjson          whole, or not there at all
  highwater snapshot app | gzip >app.ndjson.gz     check that the last line is the closing one";

#[derive(Debug, Args)]
struct SnapshotArgs {
    /// The database
    #[arg(value_name = "DB")]
    database: String,
    /// Write to this file, in one moment, once all is there [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the closing line as it came
    #[arg(long, requires = "out")]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Check every block and entry
    Verify {
        /// The node's data directory
        dir: PathBuf,
    },
    /// Print every entry
    Dump {
        /// The node's data directory
        dir: PathBuf,
    },
}

/// Runs the command that the process was started with. Exit codes: 0 done, 1 failed, 2 wrong usage
/// or configuration.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no failure.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => {
            let dev = Dev { dir: args.dir, nodes: args.nodes, restart: !args.no_restart };
            on_runtime(dev::dev(&dev))
        }
        Command::Demo(args) => {
            let demo = Demo { json: args.json, pause_before_verify: args.pause_before_verify };
            on_runtime(demo::demo(&demo))
        }
        Command::Init(args) => init(args),
        Command::Serve(args) => run_serve(args),
        Command::Status(args) => on_runtime(status::status(&args.target.into(), args.json)),
        Command::Changes(args) => run_changes(args),
        Command::Slot { command } => run_slot(command),
        Command::Snapshot(args) => {
            let SnapshotArgs { database, out, json, target } = args;
            on_runtime(snapshot::snapshot(&target.into(), &database, out.as_deref(), json))
        }
        Command::Log { command: LogCommand::Verify { dir } } => on_runtime(log::verify(&dir)),
        Command::Log { command: LogCommand::Dump { dir } } => on_runtime(log::dump(&dir)),
    }
}

impl From<TargetArgs> for Target {
    fn from(args: TargetArgs) -> Target {
        match (args.url, args.config) {
            (Some(url), _) => Target::Url(url),
            (None, Some(config)) => Target::Config(config),
            (None, None) => Target::Dir(args.dir),
        }
    }
}

fn run_changes(args: ChangesArgs) -> Result<(), Failure> {
    let ChangesArgs { database, after, slot, follow, limit, json, target } = args;
    let from = slot.map_or(Start::After(after.unwrap_or(0)), Start::Slot);
    let wanted = Wanted { database, from, follow, limit, json };
    on_runtime(changes::changes(&target.into(), wanted))
}

fn run_slot(command: SlotCommand) -> Result<(), Failure> {
    let (of, action) = match command {
        SlotCommand::List(of) => (of, slot::Action::List),
        SlotCommand::Show(OfSlot { of, name }) => (of, slot::Action::Show(name)),
        SlotCommand::Create { slot: OfSlot { of, name }, settings } => {
            (of, slot::Action::Create(name, settings))
        }
        SlotCommand::Ack { slot: OfSlot { of, name }, lsn } => (of, slot::Action::Ack(name, lsn)),
        SlotCommand::Delete(OfSlot { of, name }) => (of, slot::Action::Delete(name)),
    };
    on_runtime(slot::slot(&of.target.into(), &of.database, action, of.json))
}

/// Runs on this thread only: child processes are tied to the thread that started them.
fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "can't start the async runtime".to_owned())?
        .block_on(work)
}

fn init(args: InitArgs) -> Result<(), Failure> {
    if args.auth != "none" {
        return Err(Failure::usage(format!(
            "--auth {}: not supported by this version; the only value is none. Nothing was written",
            args.auth
        )));
    }
    let plan = Plan {
        dir: args.dir,
        nodes: args.nodes,
        addresses: args.addresses,
        insecure_bind: args.insecure_bind,
    };
    let nodes = init::init(&plan)?;
    let dir = plan.dir.display();
    println!("Made a cluster of {} in {dir}. Start its nodes:\n", nodes.len());
    for node in &nodes {
        println!("  highwater serve --config {}", node.config.display());
    }
    println!(
        "\nA node's directory may be carried to its machine as it is. Keep {dir}/ca/ca.key away \
         from the nodes:\nwho has it can add nodes to the cluster."
    );
    Ok(())
}

fn run_serve(args: ServeArgs) -> Result<(), Failure> {
    if let Some(parent) = args.die_with_parent {
        serve::die_with_parent(parent)?;
    }
    let flags = Flags {
        address: args.address,
        http: args.http,
        data_dir: args.data_dir,
        insecure_bind: args.insecure_bind,
    };
    let config = Config::load(&args.config, &environment(), &flags)?;
    logging::start(args.log);
    serve::serve(&config)
}
