//! What the verbs share on the command line: where perch is, how a change is asked for, and how its outcome is printed.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};

use super::table::Table;
use super::wait;
use crate::client::{Client, ClientError, DEFAULT, Version, encode};
use crate::config;
use crate::decide::reweigh::Amount;

/// Where perch is, and how to print.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// perch's admin address
    #[arg(long, value_name = "URL", env = "PERCH_ADMIN", default_value = DEFAULT)]
    admin: String,

    /// The admin interface's token, where it wants one
    #[arg(long, value_name = "TOKEN", env = "PERCH_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text, env = "PERCH_OUTPUT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

/// A change.
#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    pub(super) connection: Connection,

    /// Why: for the history and the audit log
    #[arg(long, value_name = "TEXT", env = "PERCH_REASON")]
    reason: Option<String>,

    /// Who: for the history and the audit log
    #[arg(long, value_name = "NAME", env = "PERCH_WHO", default_value_t = user())]
    who: String,

    /// Refuse if the service changed after this generation (as `perch status` showed it)
    #[arg(long, value_name = "NUMBER", env = "PERCH_GENERATION")]
    generation: Option<u64>,

    /// Only tell what would change, and who would move
    #[arg(long)]
    dry_run: bool,

    /// Return when it is in force on every replica; with --guarded when the ramp has ended (exit code 1: aborted)
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,

    /// With --wait: give up after this time [default: 60s; with --guarded never]
    #[arg(long, value_name = "DURATION", value_parser = config::duration, requires = "wait")]
    timeout: Option<Duration>,
}

/// What happens to those whose version loses by a change.
#[derive(Debug, Args)]
pub(super) struct Decrease {
    /// What happens to users of a version that loses by it [default: as the service has it, usually evict]
    #[arg(long, value_enum)]
    on_decrease: Option<Rule>,

    /// With --on-decrease drain: when those who are left move in any case [default: 1h]
    #[arg(long, value_name = "DURATION", requires = "on_decrease")]
    deadline: Option<String>,
}

impl Decrease {
    pub(super) fn keys(self) -> [(&'static str, Option<Value>); 2] {
        [("onDecrease", self.on_decrease.map(Rule::json)), ("deadline", self.deadline.map(|d| json!(d)))]
    }
}

fn user() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default()
}

/// The answer to a change.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    service: String,
    verb: String,
    dry_run: bool,
    changed: bool,
    generation: u64,
    revision: u64,
    before: Vec<Version>,
    after: Vec<Version>,
    moves: Moves,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Moves {
    clients: usize,
    of_clients: usize,
    requests_per_second: f64,
    between: Vec<Between>,
}

#[derive(Debug, Deserialize)]
struct Between {
    from: String,
    to: String,
    clients: usize,
}

impl Connection {
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        // An empty variable is as good as none.
        Client::new(&self.admin, self.token.clone().filter(|token| !token.is_empty()))
    }

    pub(super) const fn is_json(&self) -> bool {
        matches!(self.output, Output::Json)
    }
}

impl Change {
    /// Asks for a verb and prints what came of it. `keys` are the verb's own; those without a value are left out.
    pub(super) fn send<'a>(
        &self,
        service: &str,
        verb: &str,
        keys: impl IntoIterator<Item = (&'a str, Option<Value>)>,
    ) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let common = [
            ("reason", self.reason.as_ref().map(|r| json!(r))),
            ("who", Some(&self.who).filter(|w| !w.is_empty()).map(|w| json!(w))),
            ("generation", self.generation.map(|g| json!(g))),
            ("dryRun", self.dry_run.then_some(json!(true))),
        ];
        let body: serde_json::Map<String, Value> =
            keys.into_iter().chain(common).filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let is_guarded = body.contains_key("guarded");
        let answer: Value = match client.post(&format!("/api/v1/services/{}/{verb}", encode(service)), &body.into()) {
            Ok(answer) => answer,
            Err(error) => return self.refused(service, error),
        };
        let outcome = Outcome::deserialize(&answer)?;
        if self.connection.is_json() {
            print(&format!("{answer:#}\n"))?;
        } else {
            print(&outcome.text())?;
        }
        match (self.wait, is_guarded) {
            (false, _) => Ok(ExitCode::SUCCESS),
            (true, false) => wait::until_in_force(&client, service, outcome.generation, self.timeout),
            (true, true) => wait::until_ramp_ends(&client, service, outcome.generation, self.timeout),
        }
    }

    fn refused(&self, service: &str, error: ClientError) -> anyhow::Result<ExitCode> {
        let ClientError::Refused { message, body, .. } = &error else { return Err(error.into()) };
        if self.connection.is_json() {
            print(&format!("{body:#}\n"))?;
        }
        // Other conflicts say themselves what is in the way.
        if error.is_conflict() && self.generation.is_some() {
            bail!("{message}\n`perch status {service}` shows what there is now");
        }
        bail!("{message}")
    }
}

impl Outcome {
    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
        let (service, verb) = (&self.service, &self.verb);
        line(match (self.dry_run, self.changed) {
            (_, false) => format!("{service}: {verb} has nothing to do"),
            (true, true) => format!("{service}: {verb} would do this (dry run)"),
            // The first of its steps, not the last.
            (false, true) if verb == "ramp" => format!("{service}: ramp begun"),
            (false, true) => format!("{service}: {verb} done"),
        });
        let mut table = Table::new(&["VERSION", "WEIGHT", "SHARE"]);
        for version in &self.after {
            let before = self.before.iter().find(|v| v.name == version.name);
            let arrow = |before: String, after: String| {
                if before == after { after } else { format!("{before} -> {after}") }
            };
            table.row([
                version.name.clone(),
                arrow(before.map(|v| v.weight.to_string()).unwrap_or_default(), version.weight.to_string()),
                arrow(before.map(|v| percent(v.share)).unwrap_or_default(), percent(version.share)),
            ]);
        }
        line(table.text().trim_end().to_owned());
        if self.changed {
            line(self.moves.text(self.dry_run));
        }
        line(format!("generation {}, revision {}", self.generation, self.revision));
        out
    }
}

impl Moves {
    fn text(&self, would: bool) -> String {
        let (move_, of) = (if would { "would move" } else { "move" }, self.of_clients);
        let rate = format!("about {} requests/s", rounded(self.requests_per_second));
        if of == 0 {
            return format!("nobody is remembered; {rate} {move_}");
        }
        let between: Vec<String> =
            self.between.iter().map(|b| format!("{} from {} to {}", b.clients, b.from, b.to)).collect();
        let between = if between.is_empty() { String::new() } else { format!(": {}", between.join(", ")) };
        format!("{} of {of} recently seen clients {move_} ({rate}){between}", self.clients)
    }
}

/// Of a share of 0 to 1: three digits are enough for a person.
pub(super) fn percent(share: f64) -> String {
    format!("{}%", rounded(share * 100.0))
}

pub(super) fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `1h 5m`, two units at most.
pub(super) fn span(seconds: u64) -> String {
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(units.len() - 1);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units.iter().skip(first).take(2) {
        if left >= *unit || parts.is_empty() {
            parts.push(format!("{}{name}", left / unit));
        }
        left %= unit;
    }
    parts.join(" ")
}

/// To standard output; a reader that left is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// `canary=20%`, for clap.
pub(super) fn amount(text: &str) -> Result<(String, String), String> {
    let Some((name, amount)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err("write VERSION=WEIGHT or VERSION=SHARE%, such as canary=20%".to_owned());
    };
    amount.parse::<Amount>().map_err(|error| error.to_string())?;
    Ok((name.to_owned(), amount.trim().to_owned()))
}

/// What a lost share does to the clients that lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Rule {
    /// They move at once
    Evict,
    /// They stay while they are active, at most until the deadline
    Drain,
    /// They stay while they are active
    Freeze,
}

impl Rule {
    pub(super) fn json(self) -> Value {
        match self {
            Self::Evict => json!("evict"),
            Self::Drain => json!("drain"),
            Self::Freeze => json!("freeze"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (90_061, "1d 1h"), (3_601, "1h"), (3_660, "1h 1m")]
        {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.126, "0.13"), (9.5, "9.5"), (33.333, "33.3"), (100.0, "100"), (2_000.4, "2000")]
        {
            assert_eq!(rounded(value), text, "{value}");
        }
    }

    #[test]
    fn amounts_are_checked_before_they_are_sent() {
        assert_eq!(amount("canary=20%"), Ok(("canary".to_owned(), "20%".to_owned())));
        for text in ["canary", "=20%", "canary=", "canary=140%", "canary=-1", "canary=NaN"] {
            assert!(amount(text).is_err(), "{text}");
        }
    }
}
