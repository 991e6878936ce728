//! `perch switch`: blue-green.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::verb::Change;

/// Send everyone to another version (blue-green)
///
/// Refused unless the version has enough usable endpoints (rollout.minReady of the service, default 1). The version that
/// was live becomes the side that `perch abort` goes back to.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch switch hello green
  perch switch hello green --existing drain --deadline 10m    users of blue stay while they are active
  perch status hello -w                                       how many are left there")]
pub struct Options {
    /// The service
    service: String,

    /// The version to go to
    version: String,

    /// Even if it has too few usable endpoints
    #[arg(long)]
    force: bool,

    /// What happens to the users of the other versions
    #[arg(long, value_enum, default_value_t = Existing::Evict)]
    existing: Existing,

    /// With --existing drain: when those who are left move in any case [default: 1h]
    #[arg(long, value_name = "DURATION")]
    deadline: Option<String>,

    #[command(flatten)]
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Existing {
    /// They move at once
    Evict,
    /// They stay while they are active, at most until the deadline
    Drain,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let existing = match options.existing {
        Existing::Evict => "evict",
        Existing::Drain => "drain",
    };
    options.change.send(
        &options.service,
        "switch",
        [
            ("version", Some(json!(options.version))),
            ("force", options.force.then_some(json!(true))),
            ("existing", Some(json!(existing))),
            ("deadline", options.deadline.map(|d| json!(d))),
        ],
    )
}
