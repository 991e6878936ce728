//! `GET /api/v1/events`: server-sent events. `status` is the JSON of `GET /api/v1/services`, at once, when something was
//! published, and each second; `recent` is the last minutes of every version ([`super::recent`]), at once and with each
//! of its steps.
//!
//! One task computes each event once, for all streams, on a thread beside; without a stream it sleeps. The number of
//! streams is bounded. A stream never waits for a reader: it skips what the reader had no room for, and one that takes
//! nothing for [`SLOW`] is cut. Streams go on in a drain, whose progress they show, and end with the listener.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{AdminState, services};

/// Pages and scripts of a team, with room. Each holds a connection and at most a few events.
const MAX_STREAMS: usize = 32;
/// Between two events of a stream on which nothing was published.
const TICK: Duration = Duration::from_secs(1);
/// How soon a publication is seen.
const LOOK: Duration = Duration::from_millis(100);
/// Computing may take this part of the time: with a million clients to count (50 ms) an event a second is just right.
const SHARE: u32 = 20;
/// For a reader to make room for one event.
const SLOW: Duration = Duration::from_secs(10);
/// In milliseconds: how soon a browser comes back.
const RETRY: &str = "retry: 1000\n\n";

/// The events and those who listen.
#[derive(Debug)]
pub(super) struct Events {
    latest: watch::Sender<Latest>,
    wanted: Notify,
    places: Arc<Semaphore>,
}

/// The newest events, as they are sent.
#[derive(Clone, Debug, Default)]
struct Latest {
    status: Bytes,
    recent: Bytes,
    /// Of `recent`.
    step: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            latest: watch::Sender::new(Latest::default()),
            wanted: Notify::new(),
            places: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// What a connection and the stream on it tell each other. Shared by their tasks.
#[derive(Debug)]
pub(super) struct Line {
    /// A stream was opened: the connection lives as long as it does.
    streams: AtomicBool,
    /// The reader is too slow.
    pub cut: CancellationToken,
    /// The listener ends.
    pub shutdown: CancellationToken,
}

impl Line {
    pub(super) fn new(shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { streams: AtomicBool::new(false), cut: CancellationToken::new(), shutdown })
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.streams.load(Ordering::Relaxed)
    }
}

impl Events {
    /// A stream on this connection; `None` when there are enough.
    pub(super) fn open(&self, line: Arc<Line>) -> Option<Stream> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        line.streams.store(true, Ordering::Relaxed);
        // One event waits for the reader; what is newer replaces nothing, it is taken when that one is gone.
        let (sender, events) = mpsc::channel(1);
        let latest = self.latest.subscribe();
        self.wanted.notify_one();
        tokio::spawn(feed(latest, sender, line, place));
        Some(Stream { events })
    }

    /// Nobody listens, and nothing is kept for the next one.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.latest.receiver_count() == 0 && self.latest.borrow().status.is_empty()
    }

    /// How many streams are open.
    #[cfg(test)]
    pub(super) fn open_streams(&self) -> usize {
        MAX_STREAMS - self.places.available_permits()
    }
}

/// Carries events to a stream, until its reader, the listener or our patience ends.
async fn feed(
    mut latest: watch::Receiver<Latest>,
    to: mpsc::Sender<Bytes>,
    line: Arc<Line>,
    _place: OwnedSemaphorePermit,
) {
    let mut step = None;
    let mut greeting = Some(Bytes::from_static(RETRY.as_bytes()));
    latest.mark_changed();
    loop {
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            () = to.closed() => return,
            () = line.shutdown.cancelled() => return,
        }
        let Latest { status, recent, step: newest } = latest.borrow_and_update().clone();
        if status.is_empty() {
            // Nobody listened a moment ago: the first event is being made.
            continue;
        }
        let recent = (step != Some(newest)).then_some(recent);
        step = Some(newest);
        for event in greeting.take().into_iter().chain([status]).chain(recent) {
            match to.send_timeout(event, SLOW).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    debug!("Cut an event stream whose reader is too slow.");
                    line.cut.cancel();
                    return;
                }
            }
        }
    }
}

/// The body of a stream's response.
#[derive(Debug)]
pub(super) struct Stream {
    events: mpsc::Receiver<Bytes>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

/// Makes the events while somebody listens.
pub(super) async fn publish(state: Arc<AdminState>) {
    let events = &state.live.events;
    loop {
        while events.latest.receiver_count() == 0 {
            // The next one to come must not be told what was true long ago.
            events.latest.send_replace(Latest::default());
            events.wanted.notified().await;
        }
        let began = Instant::now();
        let (shown, of) = (state.clone(), state.published.load().generation);
        let known = events.latest.borrow().step;
        let made = tokio::task::spawn_blocking(move || {
            let step = shown.live.recent.step();
            let recent = (step != known || step == 0).then(|| event("recent", &shown.live.recent.shape(&shown)));
            (event("status", &services::all(&shown)), recent, step)
        });
        let Ok((status, recent, step)) = made.await else {
            // It panicked, and said so. Perhaps the next picture is a better one.
            tokio::time::sleep(TICK).await;
            continue;
        };
        events.latest.send_modify(|latest| {
            latest.status = status;
            latest.step = step;
            if let Some(recent) = recent {
                latest.recent = recent;
            }
        });
        let next = began + TICK.max(began.elapsed() * SHARE);
        let earliest = Instant::now() + began.elapsed();
        while Instant::now() < next {
            tokio::time::sleep(LOOK).await;
            if state.published.load().generation != of && Instant::now() >= earliest {
                break;
            }
        }
    }
}

/// `event: status`, and its data: JSON has no line breaks of its own.
fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {name}\ndata: ");
    match serde_json::to_string(data) {
        Ok(json) => text.push_str(&json),
        Err(problem) => write!(text, "{{\"error\":\"{problem}\"}}").expect("a String takes everything"),
    }
    text.push_str("\n\n");
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_cut() {
        let (events, line) = (Events::default(), Line::new(CancellationToken::new()));
        let stream = events.open(line.clone()).unwrap();

        for step in 0..3 {
            events.latest.send_replace(Latest { status: "event: status\n\n".into(), recent: Bytes::new(), step });
        }

        line.cut.cancelled().await;
        assert!(line.is_streaming());
        drop(stream);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_skips_to_the_newest() {
        let (events, line) = (Events::default(), Line::new(CancellationToken::new()));
        let mut stream = events.open(line).unwrap();

        let mut read = Vec::new();
        for step in 0..100 {
            let status = Bytes::from(format!("{step}"));
            events.latest.send_replace(Latest { status, recent: "r".into(), step: 7 });
        }
        for _ in 0..3 {
            read.push(stream.events.recv().await.unwrap());
        }

        assert_eq!(read, [RETRY.as_bytes(), b"99", b"r"]);
    }
}
