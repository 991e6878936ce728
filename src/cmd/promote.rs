//! `perch promote`: the canary takes all.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::verb::{Change, Decrease};

/// Give a version everything, and make it the stable side
///
/// Without a version it is the only one beside stable, or the one named canary. It must have a usable endpoint.
/// `perch undo` takes it back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch promote hello
  perch promote hello canary --dry-run
  perch promote hello --guarded --wait     step by step, as rollout.steps says; exit code 1 when it aborts itself")]
pub struct Options {
    /// The service
    service: String,

    /// The version to promote
    version: Option<String>,

    /// Step by step, each step watched by the guard; the steps are rollout.steps of the service
    #[arg(long, conflicts_with_all = ["force", "on_decrease"])]
    guarded: bool,

    /// Even if the version has no usable endpoint
    #[arg(long)]
    force: bool,

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
        "promote",
        [
            ("version", options.version.map(|v| json!(v))),
            ("guarded", options.guarded.then_some(json!(true))),
            ("force", options.force.then_some(json!(true))),
        ]
        .into_iter()
        .chain(options.decrease.keys()),
    )
}
