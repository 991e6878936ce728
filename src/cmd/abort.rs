//! `perch abort`: back to the stable side.

use std::process::ExitCode;

use clap::Args;

use super::verb::Change;

/// Give everything back to the stable side, at once
///
/// Everyone on another version moves with their next request, drains included; a ramp ends. It works while the service
/// is paused, too. `perch status` shows which side is stable.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  perch abort hello --reason '500s on checkout'")]
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
    options.change.send(&options.service, "abort", [])
}
