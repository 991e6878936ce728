//! `perch drain`: let a version run empty.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::verb::Change;

/// Send no new users to a version; those it has stay while they are active
///
/// A user counts as gone after the idle time of the service's affinity; whoever is left at the deadline moves then.
/// `perch status` and the metric perch_split_clients_left tell how many there still are.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  perch drain hello canary --deadline 10m")]
pub struct Options {
    /// The service
    service: String,

    /// The version to drain
    version: String,

    /// When those who are left move in any case
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    deadline: String,

    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let keys = [("version", Some(json!(options.version))), ("deadline", Some(json!(options.deadline)))];
    options.change.send(&options.service, "drain", keys)
}
