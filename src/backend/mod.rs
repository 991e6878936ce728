//! The sample services of the lab, `hello` and `auth`: what the demo, the tests, the manifests and the benchmarks put
//! behind perch.
//!
//! Each has a service port and a health port whose answers can be switched off. Stopping one turns its readiness off
//! first, goes on for a grace period, then lets the requests in flight finish. They know nothing of perch.

mod routes;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use routes::{Health, Service};

/// From the end of the grace period to the end, whatever is still running: Kubernetes' own 30 s, less the time for
/// perch's load balancers to notice.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// How long a connection that never sent a request may still send one: it may already be on its way.
const UNUSED_DEADLINE: Duration = Duration::from_millis(200);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `/`, `/version`, and `/secure` for those with a token
    Hello,
    /// `/login` gives a token for user:password; `/version`
    Auth,
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Auth => "auth",
        }
    }
}

/// How it behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub version: String,
    pub listen: SocketAddr,
    pub health_listen: SocketAddr,
    /// Signs and checks the tokens: `hello` and `auth` need the same.
    pub secret: String,
    /// Before each answer.
    pub delay: Duration,
    /// Share of requests answered with 500, 0 to 1.
    pub fail_rate: f64,
    /// Between "not ready" and the end of accepting, when it stops.
    pub grace: Duration,
}

/// A running sample service. Dropped: it goes on until its runtime ends.
#[derive(Debug)]
pub struct Running {
    pub address: SocketAddr,
    pub health_address: SocketAddr,
    stop: watch::Sender<bool>,
    done: JoinHandle<()>,
}

/// Binds both ports and serves on the current runtime.
///
/// # Errors
/// When a port cannot be bound; the message has the address.
pub async fn start(kind: Kind, options: Options) -> std::io::Result<Running> {
    let listener = bind(options.listen).await?;
    let health_listener = bind(options.health_listen).await?;
    let (address, health_address) = (listener.local_addr()?, health_listener.local_addr()?);
    let grace = options.grace;
    let health = Arc::new(Health::default());
    let service = Arc::new(Service::new(kind, options));
    let (stop, stopping) = watch::channel(false);
    let done = tokio::spawn(async move {
        let checks = tokio::spawn(serve_health(health_listener, health.clone()));
        serve(listener, service, stopping, &health, grace).await;
        checks.abort();
    });
    Ok(Running { address, health_address, stop, done })
}

impl Running {
    /// Not ready; after the grace period no new connections; returns once the requests in flight are answered.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.done.await {
            tracing::error!(%error, "A sample service ended badly.");
        }
    }
}

async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| std::io::Error::new(error.kind(), format!("{address}: {error}")))
}

async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    stopping: watch::Receiver<bool>,
    health: &Health,
    grace: Duration,
) {
    let (drain, draining) = watch::channel(false);
    let mut connections = JoinSet::new();
    let stopped = async {
        stopped(stopping).await;
        health.stop();
        sleep(grace).await;
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => break,
            socket = accept(&listener) => {
                connections.spawn(connection(socket, service.clone(), draining.clone()));
            }
            // Takes the ended ones out of the set, or it would grow.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drain.send_replace(true);
    if timeout(DRAIN_DEADLINE, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(open = connections.len(), "Some requests did not finish in time.");
    }
}

async fn connection(socket: TcpStream, service: Arc<Service>, draining: watch::Receiver<bool>) {
    let is_used = std::sync::atomic::AtomicBool::new(false);
    let answer = service_fn(|request| {
        is_used.store(true, std::sync::atomic::Ordering::Relaxed);
        service.answer(request)
    });
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(draining) => {
            connection.as_mut().graceful_shutdown();
            let unused = !is_used.load(std::sync::atomic::Ordering::Relaxed);
            let patience = if unused { UNUSED_DEADLINE } else { DRAIN_DEADLINE };
            timeout(patience, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection broke.");
    }
}

async fn serve_health(listener: TcpListener, health: Arc<Health>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            socket = accept(&listener) => {
                let health = health.clone();
                connections.spawn(async move {
                    let answer = service_fn(move |request| std::future::ready(health.answer(&request)));
                    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await {
                        tracing::debug!(%error, "A health connection broke.");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Small answers must not wait for the other side's delayed ACK.
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "A connection ended at once.");
                }
                return socket;
            }
            // Out of descriptors: they come back when connections end.
            Err(error) => {
                tracing::warn!(%error, "Cannot accept.");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits for `true`, or for the sender's end: nobody can say stop any more then, and nobody did.
async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
