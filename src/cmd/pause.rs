//! `perch pause`: hold still.

use std::process::ExitCode;

use clap::Args;

use super::verb::Change;

/// Freeze a service's rollout: no weight changes and nobody moves until `perch resume`
///
/// A ramp stands still, set-weight, promote, switch, drain and undo are refused, other weights in the configuration file
/// wait, and a drain's deadline stands still too. `perch abort` goes all the same.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  perch pause hello --reason 'incident 12, please do not touch'")]
pub struct Options {
    /// The service
    service: String,

    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    options.change.send(&options.service, "pause", [])
}
