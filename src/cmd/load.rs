//! `perch load`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::load::admin::Admin;
use crate::load::identity::{Identity, Ranges};
use crate::load::plan::{Pace, Plan, Protocol, Shape, Target};
use crate::load::tls::{self, Trust};
use crate::load::verdict::{Expectation, Rules, Unit};
use crate::load::version::{DEFAULT_HEADER, VersionFrom};
use crate::load::{self, Error, Job, Ramp, table};

/// Load a service and prove its split
///
/// Each client has an address of its own; responses are grouped by version; shares are judged with an exact test, and
/// a client that sees two versions is a violation. Works against any HTTP server.
///
/// Each option can come from the environment, too: PERCH_LOAD_CLIENTS for --clients.
///
/// Exit codes: 0 it holds, 1 it does not (a wrong share, a flip, too many errors), 2 wrong usage.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to send requests; several must share scheme, host and port
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// How the requests divide among several URLs, such as 3,1
    #[arg(long, env = "PERCH_LOAD_URL_WEIGHTS", hide_env = true, value_delimiter = ',', value_name = "WEIGHTS")]
    url_weights: Vec<f64>,

    /// How many clients there are
    #[arg(long, env = "PERCH_LOAD_CLIENTS", hide_env = true, default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    clients: u32,
    /// Requests of each client [default: 5]
    #[arg(long, env = "PERCH_LOAD_REQUESTS", hide_env = true, value_parser = clap::value_parser!(u32).range(1..))]
    requests: Option<u32>,
    /// How often a client comes back with a new connection; its requests are spread over the visits
    #[arg(long, env = "PERCH_LOAD_VISITS", hide_env = true, default_value = "2", value_parser = clap::value_parser!(u32).range(1..))]
    visits: u32,
    /// For how long, such as 30s: clients begin again until then, or until --requests are sent if that is given
    #[arg(long, env = "PERCH_LOAD_DURATION", hide_env = true, value_parser = duration)]
    duration: Option<Duration>,
    /// Leave what begins in this time at the start out of the latencies, such as 1s; everything else counts it
    #[arg(long, env = "PERCH_LOAD_WARM_UP", hide_env = true, value_parser = duration)]
    warm_up: Option<Duration>,
    /// Requests per second, on a fixed schedule (open loop); latencies then count from the schedule
    #[arg(long, env = "PERCH_LOAD_RATE", hide_env = true, value_parser = rate)]
    rate: Option<f64>,
    /// Requests in flight at most [default: 50; with --rate as many as the limit of open files allows, to 10000]
    #[arg(long, env = "PERCH_LOAD_CONCURRENCY", hide_env = true, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Threads [default: one per core]
    #[arg(long, env = "PERCH_LOAD_THREADS", hide_env = true, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// How the server gets to see who a client is [default: source towards loopback, else none]
    #[arg(long, env = "PERCH_LOAD_IDENTITY", hide_env = true, value_enum)]
    identity: Option<Identity>,
    /// Ranges of the clients' addresses [default: 127.0.0.0/8]
    #[arg(long, env = "PERCH_LOAD_FROM", hide_env = true, value_delimiter = ',', value_name = "RANGES")]
    from: Vec<IpNet>,
    /// What tells the version: header:NAME, json:/POINTER, regex:PATTERN, status, or none
    #[arg(long, env = "PERCH_LOAD_VERSION_FROM", hide_env = true, default_value_t = VersionFrom::Header(DEFAULT_HEADER.to_owned()), value_name = "SOURCE")]
    version_from: VersionFrom,

    /// What must be seen, such as canary=10%; several with commas
    #[arg(long, env = "PERCH_LOAD_EXPECT", hide_env = true, value_delimiter = ',', value_name = "VERSION=PERCENT%")]
    expect: Vec<Expectation>,
    /// What shares are taken of [default: clients; requests with --identity none]
    #[arg(long, env = "PERCH_LOAD_UNIT", hide_env = true, value_enum)]
    unit: Option<Unit>,
    /// The chance of a false alarm
    #[arg(long, env = "PERCH_LOAD_ALPHA", hide_env = true, default_value = "0.001", value_parser = alpha)]
    alpha: f64,
    /// How many requests may fail, in percent of all
    #[arg(long, env = "PERCH_LOAD_MAX_ERRORS", hide_env = true, default_value = "0%", value_parser = percentage, value_name = "PERCENT%")]
    max_errors: f64,

    /// Set these weights (percent) one after the other and check each step, such as 0,1,5,25,50,100,0
    #[arg(
        long,
        env = "PERCH_LOAD_RAMP",
        hide_env = true,
        value_delimiter = ',',
        requires = "admin",
        requires = "service",
        value_name = "PERCENTS"
    )]
    ramp: Vec<f64>,
    /// perch's admin interface, for --ramp
    #[arg(long, env = "PERCH_LOAD_ADMIN", hide_env = true, value_name = "URL")]
    admin: Option<String>,
    /// Bearer token of the admin interface
    #[arg(long, env = "PERCH_ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    admin_token: Option<String>,
    /// The service to ramp
    #[arg(long, env = "PERCH_LOAD_SERVICE", hide_env = true, value_name = "NAME")]
    service: Option<String>,
    /// The version to ramp [default: the one of --expect, else canary]
    #[arg(long, env = "PERCH_LOAD_VERSION", hide_env = true, value_name = "NAME")]
    version: Option<String>,

    /// Speak HTTP/1.1 (the default)
    #[arg(long, env = "PERCH_LOAD_HTTP1", hide_env = true, conflicts_with = "http2")]
    http1: bool,
    /// Speak HTTP/2
    #[arg(long, env = "PERCH_LOAD_HTTP2", hide_env = true)]
    http2: bool,
    /// Keep a connection for the requests of a visit (the default)
    #[arg(long, env = "PERCH_LOAD_KEEPALIVE", hide_env = true, conflicts_with = "connection_per_request")]
    keepalive: bool,
    /// A new connection for each request
    #[arg(long, env = "PERCH_LOAD_CONNECTION_PER_REQUEST", hide_env = true)]
    connection_per_request: bool,
    /// Method
    #[arg(long, short = 'X', env = "PERCH_LOAD_METHOD", hide_env = true, default_value = "GET")]
    method: http::Method,
    /// A header field; may be given several times
    #[arg(long = "header", short = 'H', env = "PERCH_LOAD_HEADER", hide_env = true, value_parser = header, value_name = "NAME: VALUE")]
    headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Request body, or @FILE
    #[arg(long, env = "PERCH_LOAD_BODY", hide_env = true, value_name = "TEXT")]
    body: Option<String>,
    /// Host field and TLS server name, instead of the URL's
    #[arg(long, env = "PERCH_LOAD_HOST", hide_env = true)]
    host: Option<String>,
    /// Time limit of a connection and of a request
    #[arg(long, env = "PERCH_LOAD_TIMEOUT", hide_env = true, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Authorities to trust, instead of the system's (PEM)
    #[arg(long, env = "PERCH_LOAD_CACERT", hide_env = true, value_name = "FILE", conflicts_with = "insecure")]
    cacert: Option<PathBuf>,
    /// Take any certificate
    #[arg(long, env = "PERCH_LOAD_INSECURE", hide_env = true)]
    insecure: bool,

    /// How to print the outcome
    #[arg(long, short, env = "PERCH_LOAD_OUTPUT", hide_env = true, value_enum, default_value = "table")]
    output: Output,
    /// Write a page with plots here (HTML)
    #[arg(long, env = "PERCH_LOAD_REPORT", hide_env = true, value_name = "FILE")]
    report: Option<PathBuf>,
    /// No progress on stderr
    #[arg(long, env = "PERCH_LOAD_QUIET", hide_env = true)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person
    Table,
    /// For a program (docs/load.md)
    Json,
}

/// Wrong usage.
const USAGE: u8 = 2;

/// Runs it.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let (output, report) = (options.output, options.report.clone());
    let job = match options.job() {
        Ok(job) => job,
        Err(message) => {
            eprintln!("perch load: {message}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let outcome = match load::run(&job) {
        Ok(outcome) => outcome,
        Err(error) => {
            let fix = match &error {
                Error::Probe(fault) => fault.kind.fix().or(first_fix(fault)).unwrap_or_default(),
                Error::Admin(_) | Error::Threads(_) => "",
            };
            eprintln!("perch load: {error}");
            if !fix.is_empty() {
                eprintln!("{fix}");
            }
            return Ok(ExitCode::FAILURE);
        }
    };
    match output {
        Output::Table => print!("{}", table::text(&outcome)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&outcome)?),
    }
    if let Some(path) = report {
        std::fs::write(&path, load::page::html(&outcome)?).with_context(|| path.display().to_string())?;
        eprintln!("report: {}", path.display());
    }
    Ok(if outcome.verdict == load::outcome::Verdict::Violated { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What to do about a first request that went wrong.
const fn first_fix(fault: &load::fault::Fault) -> Option<&'static str> {
    use load::fault::Kind;

    match fault.kind {
        Kind::NoVersion => Some(
            "tell where the version is (--version-from header:NAME, json:/POINTER, regex:PATTERN or status), or measure \
             without versions (--version-from none)",
        ),
        Kind::Tls => Some("for a self-signed certificate give --cacert FILE or --insecure"),
        Kind::ConnectRefused => Some("nothing listens there; start the server, or check the port"),
        Kind::ConnectFailed
        | Kind::Timeout
        | Kind::Reset
        | Kind::Closed
        | Kind::Protocol
        | Kind::Status(_)
        | Kind::OutOfPorts
        | Kind::OutOfDescriptors
        | Kind::SourceAddress => None,
    }
}

impl Options {
    fn job(self) -> Result<Job, String> {
        let protocol = if self.http2 { Protocol::Http2 } else { Protocol::Http1 };
        let trust = match (&self.cacert, self.insecure) {
            (Some(path), _) => Trust::File(path.clone()),
            (None, true) => Trust::Everybody,
            (None, false) => Trust::System,
        };
        let shape = Shape {
            method: self.method.clone(),
            headers: self.headers.clone(),
            body: body(self.body.as_deref())?,
            host: self.host.clone(),
        };
        let given = match self.from.as_slice() {
            [] => None,
            ranges => Some(Ranges::new(ranges.to_vec(), self.clients)?),
        };
        let client = |name: &str| tls::client(name, &trust, protocol);
        // Only addresses that connections come from have to be of the target's family.
        let near = given.as_ref().filter(|_| matches!(self.identity, None | Some(Identity::Source)));
        let target = Target::new(&self.urls, &self.url_weights, &shape, client, near)?;
        let identity = match (self.identity, given.is_some()) {
            (Some(identity), _) => identity,
            (None, true) => Identity::Source,
            (None, false) if load::plan::is_loopback(target.address.ip()) => Identity::Source,
            (None, false) => Identity::None,
        };
        let ranges = match (identity, given) {
            (Identity::None, _) => None,
            (_, Some(ranges)) => Some(ranges),
            (Identity::Source, None) => Some(Ranges::new(default_range(target.address.ip())?, self.clients)?),
            (Identity::ProxyV1 | Identity::ProxyV2 | Identity::Xff, None) => {
                Some(Ranges::new(default_range(IpAddr::from([127, 0, 0, 1]))?, self.clients)?)
            }
        };
        let requests = self.requests.unwrap_or(DEFAULT_REQUESTS);
        let descriptors = descriptors();
        let concurrency = self.concurrency.unwrap_or(match self.rate {
            None => CLOSED_CONCURRENCY,
            // In flight and kept idle, with room for everything else.
            Some(_) => (descriptors.saturating_sub(64) / 2).clamp(1, OPEN_CONCURRENCY),
        });
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let most = concurrency.min(self.clients) as usize;
        let has_clients = ranges.is_some();
        let rules = Rules {
            expect: self.expect.clone(),
            unit: self.unit.unwrap_or(if has_clients { Unit::Clients } else { Unit::Requests }),
            alpha: self.alpha,
            max_errors: self.max_errors,
            has_clients,
        };
        if rules.unit == Unit::Clients && !has_clients {
            return Err(
                "--unit clients: with --identity none all clients look the same; use --unit requests".to_owned()
            );
        }
        let total: f64 = rules.expect.iter().map(|e| e.share).sum();
        if total > 1.0 + 1e-9 {
            return Err(format!("--expect: the shares add up to {:.1} %; write at most 100 %", total * 100.0));
        }
        if let (Some(duration), Some(warm_up)) = (self.duration, self.warm_up)
            && warm_up >= duration
        {
            return Err(format!("--warm-up {warm_up:?}: nothing of --duration {duration:?} is left to measure"));
        }
        let ramp = self.ramp(&rules)?;
        Ok(Job {
            plan: Arc::new(Plan {
                target,
                clients: self.clients,
                identity,
                ranges,
                version_from: self.version_from,
                requests,
                visits: self.visits.min(requests),
                repeat: self.duration.is_some() && self.requests.is_none(),
                duration: self.duration,
                warm_up: self.warm_up.unwrap_or_default(),
                pace: self.rate.map_or(Pace::Closed, |rate| Pace::Open { rate }),
                concurrency: concurrency as usize,
                threads: self.threads.map_or(cores, |t| t as usize).min(most),
                keepalive: !self.connection_per_request,
                protocol,
                timeout: self.timeout,
            }),
            rules,
            ramp,
            quiet: self.quiet,
        })
    }

    fn ramp(&self, rules: &Rules) -> Result<Option<Ramp>, String> {
        let (Some(url), Some(service), [_, ..]) = (&self.admin, &self.service, self.ramp.as_slice()) else {
            return Ok(None);
        };
        if let Some(wrong) = self.ramp.iter().find(|p| !(0.0..=100.0).contains(*p)) {
            return Err(format!(
                "--ramp: {wrong} is not a percentage; write numbers of 0 to 100, such as 0,5,50,100,0"
            ));
        }
        if !rules.has_clients {
            return Err(
                "--ramp: with --identity none nobody can be seen to move; use source, proxy-v2 or xff".to_owned()
            );
        }
        let version = self.version.clone().or(rules.expect.first().map(|e| e.version.clone()));
        Ok(Some(Ramp {
            admin: Admin::new(url, self.admin_token.clone(), service.clone())?,
            version: version.unwrap_or_else(|| "canary".to_owned()),
            percents: self.ramp.clone(),
        }))
    }
}

/// Users at a time in a closed loop.
const CLOSED_CONCURRENCY: u32 = 50;
/// In an open loop the schedule decides; this only keeps a dead server from taking all memory (16 KiB each).
const OPEN_CONCURRENCY: u32 = 10_000;

/// Raises the limit of open files as far as it may go, and gives it.
fn descriptors() -> u32 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Enough to see a flip, few enough to be quick.
const DEFAULT_REQUESTS: u32 = 5;

fn default_range(target: IpAddr) -> Result<Vec<IpNet>, String> {
    if target.is_ipv4() && load::plan::is_loopback(target) {
        return Ok(vec![IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8))]);
    }
    Err(format!(
        "--from: the clients need a range of this machine's addresses to reach {target}; for IPv6 on loopback: \
         `ip -6 route add local fd00:1::/48 dev lo` (as root) and --from fd00:1::/48, or use --identity proxy-v2 or xff"
    ))
}

fn body(text: Option<&str>) -> Result<bytes::Bytes, String> {
    match text.map(|t| t.strip_prefix('@').ok_or(t)) {
        None => Ok(bytes::Bytes::new()),
        Some(Err(text)) => Ok(bytes::Bytes::copy_from_slice(text.as_bytes())),
        Some(Ok(path)) => std::fs::read(path).map(bytes::Bytes::from).map_err(|e| format!("--body @{path}: {e}")),
    }
}

fn header(text: &str) -> Result<(http::HeaderName, http::HeaderValue), String> {
    let wrong = || format!("{text:?}: write 'NAME: VALUE'");
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    Ok((name.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?}: write a number with ms, s, m or h, such as 30s");
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(at).ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    if seconds > 0.0 { Duration::try_from_secs_f64(seconds).map_err(|_| wrong()) } else { Err(wrong()) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write requests per second, such as 500".to_owned())?;
    if rate > 0.0 && rate <= 1e7 { Ok(rate) } else { Err("write requests per second, such as 500".to_owned()) }
}

fn alpha(text: &str) -> Result<f64, String> {
    let alpha: f64 = text.parse().map_err(|_| "write a number between 0 and 1, such as 0.001".to_owned())?;
    if alpha > 0.0 && alpha < 1.0 { Ok(alpha) } else { Err("write a number between 0 and 1, such as 0.001".to_owned()) }
}

fn percentage(text: &str) -> Result<f64, String> {
    let wrong = || "write a percentage, such as 0.1%".to_owned();
    let percent: f64 = text.strip_suffix('%').ok_or_else(wrong)?.trim().parse().map_err(|_| wrong())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(
            duration("10").is_err() && duration("0s").is_err() && duration("-1s").is_err() && duration("1y").is_err()
        );
    }
}
