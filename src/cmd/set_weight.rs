//! `perch set-weight`: other weights.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::verb::{Change, Decrease, amount};

/// Set the weights of a service's versions
///
/// `canary=10%` gives the canary a tenth of the users, and the other versions keep their ratios among themselves.
/// `canary=10` sets a plain weight, and the others keep theirs. Raising a weight moves users only to that version;
/// lowering it only away from it; nobody else moves.
///
/// What is set here wins over the configuration file until the file's own weights of that service change.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch set-weight hello canary=10%
  perch set-weight hello canary=10% --dry-run            who would move?
  perch set-weight hello canary=0 --on-decrease drain --deadline 10m
  perch set-weight hello blue=60% green=40% --reason 'second wave' --wait

Exit codes: 0 done, 1 refused or not reached, 2 usage.")]
pub struct Options {
    /// The service
    service: String,

    /// VERSION=WEIGHT or VERSION=SHARE%, all of one kind
    #[arg(required = true, value_parser = amount, value_name = "VERSION=AMOUNT")]
    amounts: Vec<(String, String)>,

    #[command(flatten)]
    decrease: Decrease,

    /// Allow all weights to be 0, which closes the service
    #[arg(long)]
    close: bool,

    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// When it was not done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut weights = serde_json::Map::new();
    for (name, amount) in options.amounts {
        if weights.insert(name.clone(), Value::String(amount)).is_some() {
            anyhow::bail!("version `{name}` is named twice; name it once");
        }
    }
    options.change.send(
        &options.service,
        "weights",
        [("weights", Some(weights.into())), ("closed", options.close.then_some(json!(true)))]
            .into_iter()
            .chain(options.decrease.keys()),
    )
}
