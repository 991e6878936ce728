//! The command line: one file per subcommand, one options type each. Exit codes: 0 ok, 1 failed, 2 usage, 3 invalid
//! configuration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod abort;
pub mod backend;
pub mod check;
pub mod demo;
pub mod drain;
pub mod explain;
pub mod history;
pub mod load;
pub mod pause;
pub mod promote;
pub mod resume;
pub mod serve;
pub mod set_weight;
pub mod status;
pub mod switch;
mod table;
pub mod undo;
mod verb;
mod wait;

/// A TLS reverse proxy that splits the users of a service between its versions, and keeps them there.
#[derive(Debug, Parser)]
#[command(name = "perch", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Options),
    Check(check::Options),
    Demo(demo::Options),
    // Boxed: it has by far the most options.
    Load(Box<load::Options>),
    Explain(explain::Options),
    Status(status::Options),
    SetWeight(set_weight::Options),
    Pause(pause::Options),
    Resume(resume::Options),
    Promote(promote::Options),
    Abort(abort::Options),
    Undo(undo::Options),
    History(history::Options),
    Switch(switch::Options),
    Drain(drain::Options),
    Backend(backend::Options),
}

/// The configuration is invalid.
pub const INVALID_CONFIG: u8 = 3;

/// Runs a parsed command line.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(options) => serve::run(options),
        Command::Check(options) => check::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Load(options) => load::run(*options),
        Command::Explain(options) => explain::run(options),
        Command::Status(options) => status::run(&options),
        Command::SetWeight(options) => set_weight::run(options),
        Command::Pause(options) => pause::run(&options),
        Command::Resume(options) => resume::run(&options),
        Command::Promote(options) => promote::run(options),
        Command::Abort(options) => abort::run(&options),
        Command::Undo(options) => undo::run(options),
        Command::History(options) => history::run(&options),
        Command::Switch(options) => switch::run(options),
        Command::Drain(options) => drain::run(&options),
        Command::Backend(options) => backend::run(options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("perch: {error:#}");
        ExitCode::FAILURE
    })
}
