//! How a run is going, while it goes: a bar on a terminal, a line now and then elsewhere. On stderr: stdout is for the
//! result.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::engine::Shared;
use super::verdict::{grouped, percent};

/// Shows a run until it is dropped.
#[derive(Debug)]
pub struct Progress {
    over: Arc<AtomicBool>,
    shown: Option<JoinHandle<()>>,
}

/// How the length of a run is known.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Requests(u64),
    Time(Duration),
}

const REDRAW: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(5);

impl Progress {
    /// Begins to show `shared`; `watched` is the version that its counts are about.
    #[must_use]
    pub fn new(shared: Arc<Shared>, length: Length, watched: Option<String>, quiet: bool) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let shown = (!quiet)
            .then(|| {
                let over = Arc::clone(&over);
                std::thread::Builder::new().name("load-progress".to_owned()).spawn(move || {
                    if std::io::stderr().is_terminal() {
                        bar(&shared, length, watched.as_deref(), &over);
                    } else {
                        lines(&shared, watched.as_deref(), &over);
                    }
                })
            })
            .and_then(Result::ok);
        Self { over, shown }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(shown) = self.shown.take() {
            shown.thread().unpark();
            shown.join().ok();
        }
    }
}

fn bar(shared: &Shared, length: Length, watched: Option<&str>, over: &AtomicBool) {
    let whole = match length {
        Length::Requests(count) => count,
        Length::Time(time) => millis(time),
    };
    let bar = ProgressBar::with_draw_target(Some(whole), ProgressDrawTarget::stderr());
    // The template is a constant: a wrong one would show in every run.
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3} % {elapsed} {msg}") {
        bar.set_style(style);
    }
    while !over.load(Ordering::Relaxed) {
        bar.set_position(match length {
            Length::Requests(_) => shared.live.requests.load(Ordering::Relaxed),
            Length::Time(_) => millis(shared.epoch.elapsed()),
        });
        bar.set_message(message(shared, watched));
        std::thread::park_timeout(REDRAW);
    }
    bar.finish_and_clear();
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn lines(shared: &Shared, watched: Option<&str>, over: &AtomicBool) {
    let mut next = Instant::now() + LINE;
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
        if Instant::now() >= next {
            next += LINE;
            eprintln!("{:>4.0} s  {}", shared.epoch.elapsed().as_secs_f64(), message(shared, watched));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn message(shared: &Shared, watched: Option<&str>) -> String {
    let live = &shared.live;
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let mut text = format!("{} requests", grouped(load(&live.requests)));
    if let Some(percent) = shared.step() {
        text.push_str(&format!(", step {percent} %"));
    }
    let visits = load(&live.visits);
    if let (Some(watched), 1..) = (watched, visits) {
        text.push_str(&format!(", {watched} {}", percent(load(&live.hits) as f64 / visits as f64)));
    }
    text.push_str(&format!(", {} flips, {} errors", grouped(load(&live.flips)), grouped(load(&live.errors))));
    text
}
