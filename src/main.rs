//! argv -> one subcommand -> exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    perch::cmd::run(perch::cmd::Cli::parse())
}
