//! `perch undo`: back to earlier weights.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::verb::{Change, Decrease};

/// Go back to the weights before the last change, or to those of a revision
///
/// As with `kubectl rollout undo`, this is a new revision: undoing twice is where it began. `perch history` lists them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch undo hello
  perch undo hello --to-revision 3")]
pub struct Options {
    /// The service
    service: String,

    /// The revision whose weights to go back to [default: the last one with other weights]
    #[arg(long, value_name = "NUMBER")]
    to_revision: Option<u64>,

    #[command(flatten)]
    decrease: Decrease,

    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    options.change.send(
        &options.service,
        "undo",
        [("toRevision", options.to_revision.map(|r| json!(r)))].into_iter().chain(options.decrease.keys()),
    )
}
