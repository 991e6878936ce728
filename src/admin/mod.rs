//! The admin listener: health, metrics, the configuration in force, the services, explain, the verbs of a rollout, and
//! the dashboard with its events.
//!
//! It runs beside the controller, on a thread that no request uses, and has a connection budget of its own: a scrape or
//! a slow reader never delays a request, and a flood of requests never hides the metrics. It reads snapshots and asks
//! `control` for changes; it changes nothing itself and knows nothing of the data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::control::Control;
use crate::metrics;
use crate::readiness::Readiness;
use crate::state::clock::Clock;
use crate::state::heartbeat::Heartbeats;
use crate::state::pins::Pins;
use crate::state::pressure::Pressure;
use crate::state::publish::Published;

mod api;
mod events;
pub mod explain;
mod exposition;
mod guard;
mod heavy;
mod inherited;
mod page;
mod process;
mod query;
mod recent;
mod rollout;
mod services;

use self::events::{Events, Line};
use self::inherited::Inherited;
use self::process::IsLoopback;
use self::recent::Recent;

/// What the admin listener looks at and asks.
#[derive(Clone, Debug)]
pub struct AdminState {
    pub published: Published,
    pub pins: Arc<Pins>,
    pub clock: Clock,
    pub readiness: Readiness,
    pub control: Control,
    pub heartbeats: Heartbeats,
    pub pressure: Pressure,
    pub live: Live,
}

/// What the admin listener itself keeps. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Live {
    recent: Arc<Recent>,
    events: Arc<Events>,
    is_loopback: Arc<IsLoopback>,
    inherited: Arc<Inherited>,
}

impl Live {
    /// What the perch that this one took over from counted, as its `/metrics` says it: added to this one's counters.
    pub fn inherit(&self, metrics: &str) {
        self.inherited.set(metrics);
    }
}

/// What `/metrics` says.
#[must_use]
pub fn metrics_text(state: &AdminState) -> String {
    exposition::render(state)
}

/// A few scrapers, probes and people, with room for a burst; the rest waits in the backlog.
const MAX_CONNECTIONS: u32 = 512;
/// For the head of a request, the next one on a kept connection included: a slow sender holds a place this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is asked to end after this time and cut [`GRACE`] later: a slow reader holds a place this long.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);
/// A peer that acknowledges nothing for so long is gone: a laptop that was closed with the page open.
const PEER_SILENCE: Duration = Duration::from_secs(20);
/// For streams to say goodbye when the listener ends.
const GOODBYE: Duration = Duration::from_millis(250);
/// After an error of accept(), such as no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often recorded samples are folded into their buckets; at 100,000 requests per second 1.6 MB wait until then.
const UPKEEP: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, which should come last of all: probes and scrapes go on during a drain.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(listener: std::net::TcpListener, state: AdminState, shutdown: CancellationToken) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let is_loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    state.live.is_loopback.set(is_loopback);
    let state = Arc::new(state);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let tasks =
        [tokio::spawn(upkeep()), tokio::spawn(readings(state.clone())), tokio::spawn(events::publish(state.clone()))];
    let accept = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let connection = connection(stream, peer, is_loopback, state.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "Admin listener could not accept.");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accept).await;
    // Open connections end by themselves now; what has not within a moment ends with the process.
    tokio::time::timeout(GOODBYE, places.acquire_many(MAX_CONNECTIONS)).await.ok();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    is_loopback: bool,
    state: Arc<AdminState>,
    shutdown: CancellationToken,
) {
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(PEER_SILENCE)).ok();
    let line = Line::new(shutdown.clone());
    let on_line = line.clone();
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(on_line.clone());
        let state = state.clone();
        async move { Ok::<_, std::convert::Infallible>(api::answer(&state, peer, is_loopback, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = over(&line) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, %peer, "Admin connection ended.");
    }
}

/// When a connection is to end: with the listener, when its reader is too slow, or after its time, unless events are
/// streamed on it.
async fn over(line: &Line) {
    let time = async {
        tokio::time::sleep(CONNECTION_TIME).await;
        if line.is_streaming() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = line.shutdown.cancelled() => (),
        () = line.cut.cancelled() => (),
        () = time => (),
    }
}

/// Takes a point of every version's course every few seconds.
async fn readings(state: Arc<AdminState>) {
    let mut steps = tokio::time::interval(recent::STEP);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        steps.tick().await;
        state.live.recent.take(&state.published.load(), state.clock.now());
    }
}

/// Keeps what is recorded small while nobody scrapes.
async fn upkeep() {
    let recorded = metrics::handle();
    let mut seconds = tokio::time::interval(UPKEEP);
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        recorded.run_upkeep();
    }
}

#[cfg(test)]
mod tests;
