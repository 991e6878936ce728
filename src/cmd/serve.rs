//! `perch serve`.

use std::process::ExitCode;

use clap::Args;

/// Run the proxy
#[derive(Debug, Args)]
pub struct Options {}

/// Runs it.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(_options: Options) -> anyhow::Result<ExitCode> {
    anyhow::bail!("perch serve is not there yet")
}
