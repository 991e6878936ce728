//! The admin listener: health, metrics, the configuration in force, the services, explain, and setting weights.
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
use crate::state::pins::Pins;
use crate::state::publish::Published;

mod api;
pub mod explain;
mod exposition;
mod guard;
mod query;
mod services;
mod weights;

/// What the admin listener looks at and asks.
#[derive(Clone, Debug)]
pub struct AdminState {
    pub published: Published,
    pub pins: Arc<Pins>,
    pub clock: Clock,
    pub readiness: Readiness,
    pub control: Control,
}

/// A few scrapers, probes and people, with room for a burst; the rest waits in the backlog.
const MAX_CONNECTIONS: usize = 512;
/// For the head of a request, the next one on a kept connection included: a slow sender holds a place this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection is asked to end after this time and cut [`GRACE`] later: a slow reader holds a place this long.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);
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
    let state = Arc::new(state);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let upkeep = tokio::spawn(upkeep());
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
    upkeep.abort();
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    is_loopback: bool,
    state: Arc<AdminState>,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request| {
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
        () = async { tokio::select! { () = shutdown.cancelled() => (), () = tokio::time::sleep(CONNECTION_TIME) => () } } => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, %peer, "Admin connection ended.");
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
