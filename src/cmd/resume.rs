//! `perch resume`: go on after a pause.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::verb::Change;

/// Go on after `perch pause`
///
/// A ramp goes on where it stood, drains have the time left that they had, and weights of the configuration file that
/// changed meanwhile come into force.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch resume hello
  perch resume hello --skip      the ramp's next step now, whatever its guard says")]
pub struct Options {
    /// The service
    service: String,

    /// Go to the next step of the ramp
    #[arg(long)]
    skip: bool,

    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    options.change.send(&options.service, "resume", [("skip", options.skip.then_some(json!(true)))])
}
