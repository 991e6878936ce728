//! `perch explain`: which version and endpoint a client gets, and why.
//!
//! From a configuration file it answers as a proxy would that has just started with it, all endpoints in good health;
//! with `--admin` it asks the running proxy, which also knows its pins and its endpoints' health.

use std::collections::HashSet;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::INVALID_CONFIG;
use crate::admin::explain::{Answer, Query, answer};
use crate::client::{Client, encode};
use crate::config::{self, Config};
use crate::control::resolve;
use crate::state::clock::Clock;
use crate::state::model::Model;

mod text;

/// Tell which version a client gets, and why
///
/// The same answer as the proxy's, with the whole reasoning: the route, the split with the client's join point for each
/// version, pins and overrides, and the endpoint.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration to explain; - is standard input
    #[arg(short, long, value_name = "FILE", env = "PERCH_CONFIG", required_unless_present = "admin")]
    config: Option<PathBuf>,

    /// Ask the running proxy at this admin address instead, such as http://127.0.0.1:9900
    #[arg(long, value_name = "URL", env = "PERCH_ADMIN")]
    admin: Option<String>,

    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    ip: IpAddr,

    /// Host of the request
    #[arg(long)]
    host: Option<String>,

    /// Path of the request [default: /]
    #[arg(long)]
    path: Option<String>,

    /// The service, instead of a host and a path
    #[arg(long, conflicts_with_all = ["host", "path"])]
    service: Option<String>,

    /// The listener [default: the first that has a route for the request]
    #[arg(long)]
    listener: Option<String>,

    /// What an override header or cookie would say: always, never or a version's name
    #[arg(long = "override", value_name = "VALUE")]
    forced: Option<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text, env = "PERCH_OUTPUT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs it.
///
/// # Errors
/// When the question cannot be answered; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let answer = match (&options.admin, &options.config) {
        (Some(admin), _) => ask(admin, &options)?,
        (None, Some(file)) => {
            let loaded = if file == Path::new("-") { config::load_stdin() } else { config::load(file) };
            match loaded {
                Ok(loaded) => offline(loaded.config, options.query())?,
                Err(invalid) => {
                    eprintln!("{invalid}");
                    return Ok(ExitCode::from(INVALID_CONFIG));
                }
            }
        }
        (None, None) => bail!("nothing to ask; give --config FILE or --admin URL"),
    };
    let shown = match options.output {
        Output::Json => format!("{:#}\n", serde_json::to_value(&answer)?),
        Output::Text => text::render(&answer),
    };
    match std::io::stdout().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        // Nobody serves this client: a script should notice.
        _ if answer.reason.is_some() => Ok(ExitCode::FAILURE),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Options {
    fn query(&self) -> Query {
        Query {
            ip: Some(self.ip),
            host: self.host.clone(),
            path: self.path.clone(),
            service: self.service.clone(),
            listener: self.listener.clone(),
            forced: self.forced.clone(),
        }
    }
}

/// As long as `perch serve` waits for its names at the start.
const RESOLVE: Duration = Duration::from_secs(2);

/// Answers on the snapshot that `perch serve` would begin with.
fn offline(config: Config, query: Query) -> anyhow::Result<Answer> {
    let wanted: HashSet<_> = config.host_ports().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut names = runtime.block_on(resolve::first(wanted.iter().cloned().collect(), RESOLVE));
    // All endpoints count as usable here, those without an address too; they are shown by name.
    let missing: Vec<_> = wanted.into_iter().filter(|name| !names.contains_key(name)).collect();
    for name in &missing {
        names.insert(name.clone(), vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, name.1))]);
    }
    let now = Clock::start().now();
    let model = Model::new(config, names, now)?;
    let mut found = answer(model.snapshot(), None, now, &query)?;
    let unresolved = missing.iter().map(|(host, port)| format!("{host}:{port}"));
    found.reasoning.extend(unresolved.map(|name| format!("{name} could not be resolved here; it counts as usable")));
    Ok(found)
}

/// Asks a running proxy.
fn ask(admin: &str, options: &Options) -> anyhow::Result<Answer> {
    let ip = options.ip.to_string();
    let parameters = [
        ("ip", Some(&ip)),
        ("host", options.host.as_ref()),
        ("path", options.path.as_ref()),
        ("service", options.service.as_ref()),
        ("listener", options.listener.as_ref()),
        ("override", options.forced.as_ref()),
    ];
    let query: Vec<_> =
        parameters.iter().filter_map(|(name, value)| value.map(|v| format!("{name}={}", encode(v)))).collect();
    Ok(Client::new(admin, None)?.get(&format!("/api/v1/explain?{}", query.join("&")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_an_address_counts_as_usable() {
        let text = "
listeners: [{name: http, address: '127.0.0.1:0'}]
routes: [{service: hello}]
services:
- name: hello
  versions: [{name: stable, endpoints: ['nowhere.invalid:80']}]
";
        let config = config::parse(text, Path::new("/"), &|_| None).unwrap().config;

        let found = offline(config, Query { ip: Some([192, 0, 2, 1].into()), ..Query::default() }).unwrap();

        assert_eq!(found.endpoint.as_deref(), Some("nowhere.invalid:80"));
        assert!(found.reasoning.iter().any(|s| s.contains("could not be resolved")), "{found:?}");
    }
}
