//! `perch status`: the services as they are, and what other weights would do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::table::Table;
use super::verb::{Connection, Outcome, amount, percent, print, rounded, span};
use crate::client::{Client, encode};

/// Show the services: weights, who is where, endpoints, drains, ramp
///
/// WEIGHT is what is set, SHARE what follows of it. CLIENTS and REQUESTS are what was seen: the remembered clients, and
/// the requests of the last minute, with their share and its 95 % interval.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perch status
  perch status hello -w
  perch status hello --what-if canary=25%     who would move; changes nothing, needs no token")]
pub struct Options {
    /// Only this service
    service: Option<String>,

    /// Show it again each second, until Ctrl-C; go on when perch restarts
    #[arg(short, long, conflicts_with = "what_if")]
    watch: bool,

    /// Which of the clients seen lately other weights would move
    #[arg(long, value_name = "VERSION=AMOUNT", value_parser = amount, requires = "service")]
    what_if: Vec<(String, String)>,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Deserialize)]
struct Services {
    generation: u64,
    services: Vec<Service>,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Replica {
    name: String,
    generation: u64,
    sequence: u64,
    is_leader: bool,
    seen_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Service {
    name: String,
    versions: Vec<Version>,
    rollout: Rollout,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    weight: f64,
    share: f64,
    clients: usize,
    observed: Observed,
    #[serde(default)]
    recent: Recent,
    endpoints_ready: usize,
    endpoints_total: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Observed {
    clients: f64,
    clients_low: f64,
    clients_high: f64,
    requests: f64,
    requests_low: f64,
    requests_high: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Recent {
    requests_per_second: f64,
    error_ratio: Option<f64>,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rollout {
    revision: u64,
    paused: Option<Paused>,
    stable: String,
    source: String,
    file_weights: BTreeMap<String, f64>,
    waiting: Option<BTreeMap<String, f64>>,
    drains: Vec<Drain>,
    ramp: Option<Ramp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Paused {
    at_millis: u64,
    who: String,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Drain {
    version: String,
    deadline_seconds: Option<u64>,
    clients_left: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ramp {
    state: String,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    steps: Vec<Value>,
    hold_left_seconds: Option<f64>,
    #[serde(default)]
    why: Option<String>,
    guard: Option<Guard>,
}

/// What it compared in this step; the single tests are in the JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Guard {
    requests: Sides<u64>,
    errors: Sides<u64>,
    p99: Sides<Option<f64>>,
    /// None when it is beyond what numbers can say.
    e_value: Option<f64>,
    abort_at: f64,
}

#[derive(Debug, Deserialize)]
struct Sides<T> {
    canary: T,
    stable: T,
}

/// Runs it.
///
/// # Errors
/// When perch can't be asked; the message is for the person at the terminal.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let client = options.connection.client()?;
    if let (Some(service), [_, ..]) = (&options.service, options.what_if.as_slice()) {
        return what_if(&client, options, service);
    }
    let shown = look(&client, options)?;
    if options.watch {
        return watch(&client, options, shown);
    }
    print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows the picture until Ctrl-C. A perch that does not answer, or no longer knows the service, may come back: the
/// last picture stays, with a notice.
fn watch(client: &Client, options: &Options, first: String) -> anyhow::Result<ExitCode> {
    let is_terminal = std::io::stdout().is_terminal();
    // From the top of the screen; what was there is cleared line by line, so that nothing flickers.
    let draw = |text: &str| print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")));
    let mut shown = first;
    let mut trouble: Option<(Instant, String)> = None;
    loop {
        match &trouble {
            None if is_terminal => draw(&shown)?,
            None => print(&shown)?,
            Some((since, problem)) if is_terminal => {
                let old = span(since.elapsed().as_secs());
                draw(&format!("NO NEWS FOR {old}: {problem}; asking again each second\n\n{shown}"))?;
            }
            Some(_) => {}
        }
        std::thread::sleep(Duration::from_secs(1));
        match look(client, options) {
            Ok(now) => {
                if trouble.take().is_some() && !is_terminal {
                    eprintln!("perch answers again");
                }
                shown = now;
            }
            Err(error) => {
                let problem = error.to_string();
                if !is_terminal && trouble.as_ref().is_none_or(|(_, said)| *said != problem) {
                    eprintln!("{problem}; asking again each second");
                }
                let since = trouble.map_or_else(Instant::now, |(since, _)| since);
                trouble = Some((since, problem));
            }
        }
    }
}

fn look(client: &Client, options: &Options) -> anyhow::Result<String> {
    let mut all: Value = client.get("/api/v1/services")?;
    if let Some(name) = &options.service {
        // Asked for by name, so that a wrong one gets its own answer.
        let one: Value = client.get(&format!("/api/v1/services/{}", encode(name)))?;
        if let Some(services) = all.get_mut("services") {
            *services = Value::Array(vec![one]);
        }
    }
    if options.connection.is_json() {
        return Ok(format!("{all:#}\n"));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Services::deserialize(&all)?.text(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)))
}

fn what_if(client: &Client, options: &Options, service: &str) -> anyhow::Result<ExitCode> {
    let query: Vec<String> =
        options.what_if.iter().map(|(name, amount)| format!("{}={}", encode(name), encode(amount))).collect();
    let answer: Value = client.get(&format!("/api/v1/services/{}/what-if?{}", encode(service), query.join("&")))?;
    if options.connection.is_json() {
        print(&format!("{answer:#}\n"))?;
    } else {
        print(&Outcome::deserialize(&answer)?.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Services {
    fn text(&self, now: u64) -> String {
        let mut out = String::new();
        let mut line = |text: &str| writeln!(out, "{text}").expect("a String takes everything");
        for service in &self.services {
            line(&service.head(self.generation));
            for note in service.rollout.notes(now) {
                line(&format!("  {note}"));
            }
            line(service.table().text().trim_end());
            line("");
        }
        if self.replicas.len() > 1 {
            let mut table = Table::new(&["REPLICA", "GENERATION", "SEQUENCE", "SEEN", "ROLE"]);
            for replica in &self.replicas {
                table.row([
                    replica.name.clone(),
                    replica.generation.to_string(),
                    replica.sequence.to_string(),
                    format!("{} s ago", rounded(replica.seen_seconds)),
                    if replica.is_leader { "leader".to_owned() } else { String::new() },
                ]);
            }
            line(table.text().trim_end());
        }
        let length = out.trim_end().len();
        out.truncate(length);
        out.push('\n');
        out
    }
}

impl Service {
    fn head(&self, generation: u64) -> String {
        let source = match &*self.rollout.source {
            "verbs" => format!("weights set by verbs, the file has {}", weights(&self.rollout.file_weights)),
            _ => "weights of the file".to_owned(),
        };
        format!("{}: generation {generation}, revision {}; {source}", self.name, self.rollout.revision)
    }

    fn table(&self) -> Table {
        let mut table =
            Table::new(&["VERSION", "WEIGHT", "SHARE", "CLIENTS", "REQUESTS", "ERRORS", "P50", "P99", "READY", ""]);
        for version in &self.versions {
            let Version { observed, recent, .. } = version;
            let is_observed = self.versions.iter().any(|v| v.clients > 0);
            let clients = format!(
                "{} = {}",
                version.clients,
                interval(observed.clients, observed.clients_low, observed.clients_high)
            );
            let requests = format!(
                "{}/s = {}",
                rounded(recent.requests_per_second),
                interval(observed.requests, observed.requests_low, observed.requests_high)
            );
            let is_busy = self.versions.iter().any(|v| v.recent.requests_per_second > 0.0);
            table.row([
                version.name.clone(),
                version.weight.to_string(),
                percent(version.share),
                if is_observed { clients } else { "0".to_owned() },
                if is_busy { requests } else { String::new() },
                recent.error_ratio.map(percent).unwrap_or_default(),
                recent.p50_seconds.map(milliseconds).unwrap_or_default(),
                recent.p99_seconds.map(milliseconds).unwrap_or_default(),
                format!("{}/{}", version.endpoints_ready, version.endpoints_total),
                self.rollout.note_of(&version.name),
            ]);
        }
        table
    }
}

impl Rollout {
    fn note_of(&self, version: &str) -> String {
        let mut notes = Vec::new();
        if self.stable == version {
            notes.push("stable".to_owned());
        }
        for drain in self.drains.iter().filter(|d| d.version == version) {
            let left = match drain.deadline_seconds {
                Some(seconds) => format!(", {} left", span(seconds)),
                None => String::new(),
            };
            notes.push(format!("draining: {} clients{left}", drain.clients_left));
        }
        notes.join(", ")
    }

    fn notes(&self, now: u64) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(paused) = &self.paused {
            let since = span(now.saturating_sub(paused.at_millis) / 1000);
            let reason = paused.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
            notes.push(format!("PAUSED by {} {since} ago{reason}", paused.who));
        }
        if let Some(waiting) = &self.waiting {
            notes.push(format!("the file's weights wait for resume: {}", weights(waiting)));
        }
        if let Some(ramp) = &self.ramp {
            let step = match ramp.steps.len() {
                0 => String::new(),
                all => format!(", step {} of {all}", (ramp.step + 1).min(all as u64)),
            };
            let left = match ramp.hold_left_seconds {
                Some(seconds) if seconds > 0.0 && ramp.state != "aborted" => {
                    format!(
                        ", {} of its hold left",
                        span(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs())
                    )
                }
                _ => String::new(),
            };
            let why = ramp.why.as_ref().filter(|w| !w.is_empty()).map(|w| format!(": {w}")).unwrap_or_default();
            notes.push(format!("ramp {}{step}{left}{why}", ramp.state));
            notes.extend(ramp.guard.as_ref().filter(|_| ramp.state != "done").map(Guard::text));
        }
        notes
    }
}

impl Guard {
    fn text(&self) -> String {
        let side = |name: &str, failed: u64, of: u64, p99: Option<f64>| {
            let p99 = p99.map(|p99| format!(" (p99 {})", milliseconds(p99))).unwrap_or_default();
            format!("{name} failed {failed} of {of}{p99}")
        };
        let Self { requests, errors, p99, e_value, abort_at } = self;
        let canary = side("canary", errors.canary, requests.canary, p99.canary);
        let evidence = e_value.map_or_else(|| "overwhelming".to_owned(), rounded);
        let stable = side("stable", errors.stable, requests.stable, p99.stable);
        format!("in this step {canary}, {stable}; evidence {evidence}, {} aborts", rounded(*abort_at))
    }
}

fn weights(weights: &BTreeMap<String, f64>) -> String {
    weights.iter().map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" ")
}

/// `9.8% (8.1-11.7)`.
fn interval(value: f64, low: f64, high: f64) -> String {
    format!("{} ({}-{})", percent(value), rounded(low * 100.0), rounded(high * 100.0))
}

fn milliseconds(seconds: f64) -> String {
    format!("{} ms", rounded(seconds * 1000.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ramp_is_its_step_and_what_the_guard_compared() {
        let ramp = json!({
            "state": "running", "step": 1, "steps": [{}, {}, {}], "holdLeftSeconds": 170.4, "why": "",
            "guard": {
                "requests": {"canary": 2587, "stable": 7647}, "errors": {"canary": 3, "stable": 10},
                "p99": {"canary": 0.0261, "stable": null}, "eValue": 0.164, "abortAt": 100.0,
            },
        });
        let rollout = json!({
            "revision": 3, "sequence": 9, "stable": "stable", "source": "verbs", "paused": null, "fileWeights": {},
            "waiting": null, "drains": [], "ramp": ramp,
        });

        let notes = Rollout::deserialize(&rollout).unwrap().notes(0);

        assert_eq!(
            notes,
            [
                "ramp running, step 2 of 3, 2m 50s of its hold left",
                "in this step canary failed 3 of 2587 (p99 26.1 ms), stable failed 10 of 7647; evidence 0.16, 100 aborts",
            ]
        );
    }

    #[test]
    fn a_service_is_a_line_its_notes_and_a_table() {
        let version = |name: &str, weight: f64, share: f64, clients: u64| {
            json!({
                "name": name, "weight": weight, "share": share, "clients": clients, "endpointsReady": 2, "endpointsTotal": 3,
                "observed": {
                    "clients": share, "clientsLow": share / 2.0, "clientsHigh": (share * 1.5).min(1.0),
                    "requests": 0.0, "requestsLow": 0.0, "requestsHigh": 1.0,
                },
            })
        };
        let rollout = json!({
            "revision": 3, "sequence": 9, "stable": "stable", "source": "verbs",
            "paused": {"atMillis": 0, "who": "ann (127.0.0.1:1)", "reason": "lunch"},
            "fileWeights": {"canary": 10, "stable": 90}, "waiting": {"canary": 5, "stable": 95},
            "drains": [{"version": "canary", "deadlineSeconds": 90, "clientsLeft": 12}],
        });
        let versions = [version("stable", 90.0, 0.9, 90), version("canary", 10.0, 0.1, 10)];
        let all = json!({"generation": 7, "services": [{"name": "hello", "versions": versions, "rollout": rollout}]});

        let text = Services::deserialize(&all).unwrap().text(60_000);

        assert_eq!(
            text,
            "hello: generation 7, revision 3; weights set by verbs, the file has canary=10 stable=90\n\
             \x20 PAUSED by ann (127.0.0.1:1) 1m ago: lunch\n\
             \x20 the file's weights wait for resume: canary=5 stable=95\n\
             \x20 VERSION  WEIGHT  SHARE  CLIENTS            READY\n\
             \x20 stable   90      90%    90 = 90% (45-100)  2/3    stable\n\
             \x20 canary   10      10%    10 = 10% (5-15)    2/3    draining: 12 clients, 1m 30s left\n"
        );
    }
}
