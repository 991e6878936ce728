//! `perch backend`: one sample service as a process of its own, for the lab's manifests, experiments and benchmarks.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::backend::{self, Kind};
use crate::config;

/// Run a sample service (hello or auth)
///
/// `hello` answers `/`, `/version` and, with a token, `/secure`; `auth` gives the token at `/login` for user:password.
/// Both have `/healthz` and `/readiness` on a port of their own, switched by `/healthz/status` and `/readiness/status`.
/// On SIGTERM readiness turns 503 and the requests in flight finish.
#[derive(Debug, Args)]
pub struct Options {
    /// Which service
    #[arg(value_enum)]
    kind: Kind,

    /// The version it says it is
    #[arg(long, default_value = "1.0.0", env = "PERCH_BACKEND_VERSION")]
    version: String,

    /// Where to serve; port 0 is any free one
    #[arg(long, default_value = "127.0.0.1:0", env = "PERCH_BACKEND_LISTEN", value_name = "IP:PORT")]
    listen: SocketAddr,

    /// Where to answer health checks
    #[arg(long, default_value = "127.0.0.1:0", env = "PERCH_BACKEND_HEALTH_LISTEN", value_name = "IP:PORT")]
    health_listen: SocketAddr,

    /// Signs and checks the tokens; hello and auth need the same. The default is for the lab only
    #[arg(long, default_value = "secret", env = "PERCH_JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    jwt_secret: String,

    /// Wait before each answer, e.g. 10ms
    #[arg(long, default_value = "0s", value_parser = duration, env = "PERCH_BACKEND_DELAY", value_name = "DURATION")]
    delay: Duration,

    /// Answer this share of requests with 500, 0 to 1
    #[arg(long, default_value = "0", value_parser = share, env = "PERCH_BACKEND_FAIL_RATE", value_name = "SHARE")]
    fail_rate: f64,

    /// On SIGTERM, go on accepting for so long while not ready: time for those in front to notice
    #[arg(long, default_value = "0s", value_parser = duration, env = "PERCH_BACKEND_GRACE", value_name = "DURATION")]
    grace: Duration,
}

/// Runs it until SIGTERM or SIGINT.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    // One thread: the sample must not take the cores that are measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let Options { kind, version, listen, health_listen, jwt_secret, delay, fail_rate, grace } = options;
        let line = format!("{} {version}", kind.name());
        let options = backend::Options { version, listen, health_listen, secret: jwt_secret, delay, fail_rate, grace };
        let running = backend::start(kind, options).await.context("cannot listen")?;
        println!("{line} on http://{}, health on http://{}", running.address, running.health_address);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            () = running.stop() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).map_err(|problem| format!("{problem}; write a number with its unit, such as 10ms or 2s"))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share @ 0.0..=1.0) => Ok(share),
        _ => Err("write a number from 0 to 1".into()),
    }
}
