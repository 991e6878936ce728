//! `perch demo`: the main job on loopback, from nothing. Sample services, a certificate, and the real proxy in front,
//! through the real configuration loader. Leaves no file behind.

use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::serve;
use crate::config;
use crate::demo::fleet::{Addresses, Fleet};
use crate::demo::plan::{Affinity, Plan, free_port};
use crate::demo::view::{Picture, look};
use crate::proxy::tls::self_signed;
use crate::runtime;

/// See the main job on loopback: sample services, a certificate, the proxy
///
/// Starts hello (stable and canary) and auth, makes a self-signed certificate, and puts the proxy in front of them on
/// 127.0.0.1. Prints the configuration it runs and commands to try, then a live view until Ctrl-C. Needs no file, no
/// root and no network, and leaves nothing behind.
#[derive(Debug, Args)]
pub struct Options {
    /// Percent of the users that get the canary
    #[arg(long, default_value = "10", value_parser = percent, env = "PERCH_DEMO_CANARY", value_name = "PERCENT")]
    canary: f64,

    /// Who keeps a version: each client address, or nobody
    #[arg(long, value_enum, default_value = "clientip", env = "PERCH_DEMO_AFFINITY", ignore_case = true)]
    affinity: Affinity,

    /// Instances of the stable hello
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u8).range(1..=200), env = "PERCH_DEMO_BACKENDS", value_name = "N")]
    backends: u8,

    /// Port of the proxy; the next free one when it is taken, any for 0
    #[arg(long, default_value = "8443", env = "PERCH_DEMO_PORT")]
    port: u16,

    /// Port of the admin listener, likewise
    #[arg(long, default_value = "9900", env = "PERCH_DEMO_ADMIN_PORT", value_name = "PORT")]
    admin_port: u16,

    /// End by itself after so many seconds
    #[arg(long, env = "PERCH_DEMO_DURATION", value_name = "SECONDS")]
    duration: Option<u32>,

    /// Print the configuration and end
    #[arg(long)]
    print_config: bool,
}
/// How often a terminal is refreshed, and how often a line is printed elsewhere if there is something new.
const TERMINAL_REFRESH: Duration = Duration::from_millis(500);
const LINE_REFRESH: Duration = Duration::from_secs(2);

/// Runs it until SIGTERM, SIGINT or the end of `--duration`.
///
/// # Errors
/// When it could not be done; the message is for the person at the terminal.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    if options.print_config {
        let plan = plan(&options, options.port, options.admin_port, Addresses::nominal(options.backends));
        let printed = std::io::stdout().write_all(plan.config().as_bytes());
        return unless_gone(printed);
    }
    start_log();
    serve::raise_open_files();
    let signal_runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on an early Ctrl-C waits for the view, and everything below is dropped in order.
    let mut signals = signal_runtime.block_on(async { Signals::new() })?;

    let fleet = Fleet::start(options.backends)?;
    let folder = tempfile::Builder::new().prefix("perch-demo-").tempdir().context("cannot make a temporary folder")?;
    let (cert, key) = self_signed(&["localhost", "127.0.0.1"]).context("cannot make a certificate")?;
    std::fs::write(folder.path().join("cert.pem"), cert).context("cannot keep the certificate")?;
    std::fs::write(folder.path().join("key.pem"), key).context("cannot keep the key")?;

    let https = free_port(options.port, None).context("--port")?;
    let admin = free_port(options.admin_port, Some(https)).context("--admin-port")?;
    let plan = plan(&options, https, admin, fleet.addresses.clone());
    let text = plan.config();
    let loaded = config::parse(&text, folder.path(), &|_| None).map_err(|invalid| anyhow::anyhow!("{invalid}"))?;
    let proxy = runtime::start(loaded, None)?;

    if let Err(error) = introduce(&options, &plan, &text) {
        return unless_gone(Err(error));
    }
    let shown = signal_runtime.block_on(async {
        let shown = tokio::select! {
            () = signals.next() => Ok(()),
            () = pass(options.duration) => Ok(()),
            shown = show(proxy.admin) => shown,
        };
        tokio::select! {
            _ = proxy.drain(false) => {}
            () = signals.next() => {}
        }
        shown
    });
    unless_gone(shown)
}

/// A reader that has seen enough (`perch demo | head`) ends the demo, and that is no failure.
fn unless_gone(printed: std::io::Result<()>) -> anyhow::Result<ExitCode> {
    match printed {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

async fn pass(seconds: Option<u32>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
        None => std::future::pending().await,
    }
}

/// Only what a person should know: the view has the rest.
fn start_log() {
    let colours = Paint::of(&std::io::stderr()).0;
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colours)
        .init();
}

fn plan(options: &Options, https: u16, admin: u16, addresses: Addresses) -> Plan {
    Plan { https, admin, canary_percent: options.canary, affinity: options.affinity, addresses }
}

fn introduce(options: &Options, plan: &Plan, text: &str) -> std::io::Result<()> {
    let paint = Paint::of(&std::io::stdout());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", paint.dim(text.trim_end()))?;
    for (name, wanted, got) in [("port", options.port, plan.https), ("admin port", options.admin_port, plan.admin)] {
        if wanted != 0 && wanted != got {
            writeln!(out, "\nThe {name} {wanted} is taken: this is {got}.")?;
        }
    }
    writeln!(
        out,
        "\n{} (Ctrl-C ends the demo; --interface 127.0.0.2 is another user)",
        paint.bold("Try, in another terminal")
    )?;
    for command in plan.commands() {
        writeln!(out, "  {command}")?;
    }
    let perch = std::env::args().next().unwrap_or_else(|| "perch".into());
    if let Some(proof) = plan.proof() {
        writeln!(out, "{}\n  {perch} {proof}", paint.bold("Prove the split"))?;
    }
    writeln!(out, "{} (with users to judge by, each line in a terminal of its own)", paint.bold("Roll out"))?;
    for arguments in plan.rollout() {
        writeln!(out, "  {perch} {arguments}")?;
    }
    writeln!(out, "{} in a browser\n  {}", paint.bold("Watch it, and do the same"), plan.dashboard())?;
    writeln!(out)?;
    out.flush()
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse() {
        Ok(percent @ 0.0..=100.0) => Ok(percent),
        _ => Err("write a number from 0 to 100".into()),
    }
}

/// Whatever ends a demo; the terminal's end too, or its files would stay.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Shows the live view until it is dropped, or nobody reads it any more.
async fn show(admin: SocketAddr) -> std::io::Result<()> {
    let mut screen = Screen::of_stdout();
    let mut ticks = tokio::time::interval(screen.refresh());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        match look(admin).await {
            Ok(picture) => screen.show(picture)?,
            Err(error) => tracing::debug!(%error, "Nothing to see."),
        }
    }
}

/// Where the view goes: onto a terminal, refreshed in place, or a line each time something changed.
struct Screen {
    terminal: Option<ProgressBar>,
    last: Picture,
}

impl Screen {
    fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}").expect("a constant");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
        });
        Self { terminal, last: Picture::default() }
    }

    fn refresh(&self) -> Duration {
        if self.terminal.is_some() { TERMINAL_REFRESH } else { LINE_REFRESH }
    }

    fn show(&mut self, picture: Picture) -> std::io::Result<()> {
        if picture == self.last {
            return Ok(());
        }
        match &self.terminal {
            Some(bar) => bar.set_message(picture.table().join("\n")),
            None => writeln!(std::io::stdout(), "{}", picture.line())?,
        }
        self.last = picture;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The last picture stays, and the shell's prompt comes below it.
        if let Some(bar) = &self.terminal {
            bar.abandon();
            writeln!(std::io::stdout()).ok();
        }
    }
}

/// Colours, where somebody can see them and wants them (no-color.org).
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of(stream: &impl IsTerminal) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self(wanted && stream.is_terminal())
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
