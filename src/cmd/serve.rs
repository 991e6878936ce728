//! `perch serve`: the proxy, its signals and its exit codes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::INVALID_CONFIG;
use crate::config;
use crate::control::kubernetes;
use crate::runtime::{self, Given, Origin, Predecessor, Running, StartError, notify};

/// Run the proxy
///
/// Signals: TERM drains (not ready at once, still accepting for drain.delay, then connections end as their requests do,
/// at most drain.deadline); INT drains without the delay; a second TERM or INT ends at once; HUP reloads the file.
/// A changed file or certificate is taken over by itself; a bad one keeps what serves.
///
/// USR2 upgrades: the program that is at this one's path now is started with the same arguments, gets the listening
/// sockets, counters, the state of rollouts and who is pinned where, and once it serves this one drains and ends. When
/// it does not get ready within 30s, it is ended and this one goes on. Refused as process 1: replace the container.
/// NOTIFY_SOCKET (systemd, Type=notify or notify-reload) is told READY, RELOADING, MAINPID and STOPPING.
///
/// A listener whose address a socket of LISTEN_FDS has (systemd's ListenStream=) uses that socket: it stays open when
/// perch is restarted, and who connects meanwhile waits instead of being refused.
///
/// Exit codes: 0 drained (after an upgrade too), 1 failed or cut by the drain's deadline, 2 usage, 3 invalid configuration, 130 ended at once.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration; `config/perch.yaml` in the repository shows every key
    #[arg(short, long, env = "PERCH_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Once everything listens, write addresses and pid to this file as JSON
    #[arg(long, env = "PERCH_ANNOUNCE", value_name = "FILE")]
    announce: Option<PathBuf>,

    /// The cluster to follow, where the configuration says `kubernetes`; default: KUBECONFIG, ~/.kube/config, or the
    /// pod's ServiceAccount
    #[arg(long, env = "PERCH_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Keep the cluster's last known endpoints in this file, to start with while the API server is away
    #[arg(long, env = "PERCH_SNAPSHOT_CACHE", value_name = "FILE")]
    snapshot_cache: Option<PathBuf>,

    /// How long a watch of the cluster lasts; a server that falls silent is noticed 10 s after that
    #[arg(long, env = "PERCH_WATCH_TIMEOUT", value_name = "DURATION", value_parser = watch_timeout, default_value = "60s")]
    watch_timeout: Duration,

    /// How perch's own log looks (standard error); requests are logged to standard output as accessLog says
    #[arg(long, env = "PERCH_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or tracing's filter words
    #[arg(long, env = "PERCH_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Ended by a second signal, as a shell reports SIGINT.
const AT_ONCE: u8 = 130;

/// Runs it.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    start_log(&options)?;
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let early = {
        let _entered = signals.enter();
        Early::new()?
    };
    raise_open_files();
    crate::metrics::count_panics();
    let (given, predecessor) = match Predecessor::meet()? {
        Some((predecessor, given)) => (given, Some(predecessor)),
        None => (Given::from_environment()?, None),
    };
    let loaded = match config::load(&options.config) {
        Ok(loaded) => loaded,
        Err(invalid) => return Ok(refuse(&invalid)),
    };
    let cluster = kubernetes::Options {
        kubeconfig: options.kubeconfig.clone(),
        cache: options.snapshot_cache.clone(),
        watch: options.watch_timeout,
    };
    let origin = Origin { cluster, given, predecessor };
    let running = match runtime::start_with(loaded, Some(options.config.clone()), origin) {
        Ok(running) => running,
        Err(StartError::Invalid(invalid)) => return Ok(refuse(&invalid)),
        Err(error) => return Err(error.into()),
    };
    tracing::info!(address = %running.admin, "Admin listening.");
    signals.block_on(async {
        // Before anyone is told that perch is here: a signal must not meet the default action.
        let signals = Signals::new(early)?;
        if let Some(file) = &options.announce {
            announce(&running, file).with_context(|| format!("--announce {}: can't be written", file.display()))?;
        }
        // Before the old perch, if there is one, says which process it is now.
        notify::tell(notify::READY);
        running.ready()?;
        follow(&running, signals).await
    })
}

/// The API server counts it in whole seconds, and caps it at an hour or so.
fn watch_timeout(text: &str) -> Result<Duration, String> {
    match config::duration(text)? {
        duration if (1..=3_600).contains(&duration.as_secs()) => Ok(duration),
        _ => Err("not from 1s to 1h".into()),
    }
}

fn refuse(invalid: &config::Invalid) -> ExitCode {
    eprintln!("{invalid}");
    ExitCode::from(INVALID_CONFIG)
}

fn start_log(options: &Options) -> anyhow::Result<()> {
    // rustls warns of what a client sends: strangers must not fill the log. Who wants to see it names it.
    let quiet = if options.log.contains("rustls") { "" } else { ",rustls=error" };
    let filter = tracing_subscriber::EnvFilter::try_new(options.log.clone() + quiet)
        .with_context(|| format!("--log {}: not a filter; write a level such as info", options.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match options.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => {
            let colours =
                std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            log.with_ansi(colours).init();
        }
    }
    Ok(())
}

/// As many files as this process may open: a connection takes two. Shells start programs with 1,024.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "Cannot raise the limit of open files.");
    }
}

/// Whole at once: written beside and renamed.
fn announce(running: &Running, file: &std::path::Path) -> std::io::Result<()> {
    let listeners: serde_json::Map<_, _> =
        running.listeners.iter().map(|(name, address)| (name.to_string(), json!(address))).collect();
    let text = json!({"listeners": listeners, "admin": running.admin, "pid": std::process::id()}).to_string();
    let beside = file.with_extension("tmp");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}

/// Signals that would end a perch that starts, which is not what they ask for. They wait until it serves: whoever reloads
/// every perch there is may meet one that is taking over.
struct Early {
    hup: Signal,
    usr2: Signal,
    /// For process 1 the kernel drops a signal that nobody waits for: it would miss its end.
    ends: Option<(Signal, Signal)>,
}

impl Early {
    fn new() -> std::io::Result<Self> {
        let ends = (std::process::id() == 1).then(Self::ends).transpose()?;
        Ok(Self { hup: signal(SignalKind::hangup())?, usr2: signal(SignalKind::user_defined2())?, ends })
    }

    /// TERM and INT.
    fn ends() -> std::io::Result<(Signal, Signal)> {
        Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }
}

/// The signals that perch knows.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr2: Signal,
}

impl Signals {
    fn new(Early { hup, usr2, ends }: Early) -> std::io::Result<Self> {
        let (term, int) = ends.map_or_else(Early::ends, Ok)?;
        Ok(Self { term, int, hup, usr2 })
    }

    /// The next one that ends perch; true for TERM. Reloads in between.
    async fn ending(&mut self, running: &Running) -> bool {
        loop {
            tokio::select! {
                _ = self.term.recv() => return true,
                _ = self.int.recv() => return false,
                _ = self.hup.recv() => running.reload(),
                _ = self.usr2.recv() => running.upgrade(),
            }
        }
    }
}

async fn follow(running: &Running, mut signals: Signals) -> anyhow::Result<ExitCode> {
    let ends = tokio::select! {
        with_delay = signals.ending(running) => Some(with_delay),
        () = running.is_taken_over() => None,
    };
    let drain = async {
        match ends {
            Some(with_delay) => running.drain(with_delay).await,
            None => running.left().await,
        }
    };
    let again = async {
        if ends.is_none() {
            // The first one that this process gets, and what it asks for is under way.
            signals.ending(running).await;
            tracing::info!("Draining already; another signal ends at once.");
        }
        signals.ending(running).await
    };
    tokio::select! {
        drained = drain => {
            Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        _ = again => {
            let cut = running.state.control.snapshot().listeners.len();
            tracing::warn!(listeners = cut, "Second signal; ending at once.");
            Ok(ExitCode::from(AT_ONCE))
        }
    }
}
