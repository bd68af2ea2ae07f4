//! The command line.

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use tokio::runtime;

use crate::{
    config::{Config, Flags, environment},
    demo::{self, Demo},
    dev::{self, Dev},
    failure::{Context, Failure},
    init::{self, Plan},
    log,
    logging::{self, LogOptions},
    serve,
    status::{self, Target},
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
        Command::Status(args) => {
            let target = match (args.url, args.config) {
                (Some(url), _) => Target::Url(url),
                (None, Some(config)) => Target::Config(config),
                (None, None) => Target::Dir(args.dir),
            };
            on_runtime(status::status(&target, args.json))
        }
        Command::Log { command: LogCommand::Verify { dir } } => on_runtime(log::verify(&dir)),
        Command::Log { command: LogCommand::Dump { dir } } => on_runtime(log::dump(&dir)),
    }
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
