//! Logs: on stderr, as text or JSON lines.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What needs attention now.
    Error,
    /// What may need attention.
    Warn,
    /// What happens to the node.
    Info,
    /// What happens to connections.
    Debug,
    /// Everything.
    Trace,
}

/// The options of a command that logs.
#[derive(Clone, Copy, Debug, Args)]
pub struct LogOptions {
    /// How log lines look
    #[arg(long, value_enum, default_value = "text", env = "HIGHWATER_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged
    #[arg(long, value_enum, default_value = "info", env = "HIGHWATER_LOG_LEVEL")]
    pub log_level: LogLevel,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// Begins to log. A second call changes nothing.
pub fn start(options: LogOptions) {
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(LevelFilter::from(options.log_level));
    // Only a second subscriber is refused.
    let _ = match options.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
