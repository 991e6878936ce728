//! `perch history`: what was done to a service's weights.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::table::Table;
use super::verb::{Connection, print, span};
use crate::client::encode;

/// List what was done to a service's weights, newest first
///
/// The last 50 revisions; `perch undo --to-revision N` goes back to one.
#[derive(Debug, Args)]
pub struct Options {
    /// The service
    service: String,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Deserialize)]
struct Entry {
    revision: u64,
    at: u64,
    who: String,
    verb: String,
    reason: Option<String>,
    weights: BTreeMap<String, f64>,
    stable: String,
    current: bool,
}

/// Runs it.
///
/// # Errors
/// When perch can't be asked; the message is for the person at the terminal.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let path = format!("/api/v1/services/{}/history", encode(&options.service));
    let answer: Value = options.connection.client()?.get(&path)?;
    if options.connection.is_json() {
        print(&format!("{answer:#}\n"))?;
    } else {
        let entries = Vec::<Entry>::deserialize(&answer)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        print(&text(&entries, now))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(entries: &[Entry], now: u64) -> String {
    let mut table = Table::new(&["REVISION", "AGO", "VERB", "WEIGHTS", "STABLE", "WHO", "REASON"]);
    for entry in entries {
        let weights: Vec<String> = entry.weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect();
        table.row([
            format!("{}{}", entry.revision, if entry.current { " *" } else { "" }),
            span(now.saturating_sub(entry.at)),
            entry.verb.clone(),
            weights.join(" "),
            entry.stable.clone(),
            entry.who.clone(),
            entry.reason.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_revision_has_a_star() {
        let entry = |revision: u64, verb: &str| Entry {
            revision,
            at: 1000 - revision,
            who: "ann (127.0.0.1:1)".into(),
            verb: verb.into(),
            reason: (revision == 2).then(|| "why not".into()),
            weights: [("canary".to_owned(), 22.5), ("stable".to_owned(), 90.0)].into(),
            stable: "stable".into(),
            current: revision == 2,
        };

        let text = text(&[entry(2, "set-weight"), entry(1, "file")], 1060);

        assert_eq!(
            text,
            "  REVISION  AGO    VERB        WEIGHTS                STABLE  WHO                REASON\n\
             \x20 2 *       1m 2s  set-weight  canary=22.5 stable=90  stable  ann (127.0.0.1:1)  why not\n\
             \x20 1         1m 1s  file        canary=22.5 stable=90  stable  ann (127.0.0.1:1)\n"
        );
    }
}
