//! `perch backend`.

use std::process::ExitCode;

use clap::Args;

/// Run a sample service (hello or auth)
#[derive(Debug, Args)]
pub struct Options {}

/// Runs it.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(_options: Options) -> anyhow::Result<ExitCode> {
    anyhow::bail!("perch backend is not there yet")
}
