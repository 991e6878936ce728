//! Connections to endpoints: one worker's own pool, connecting, and what can go wrong on the way.
//!
//! A connection belongs to an endpoint by its id, which is never used twice, so an address that another pod took over
//! never meets an old connection. It is taken out of the pool for one exchange and comes back only clean.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::buffer::{Buffer, Buffers};
use super::multiplex::Turn;
use super::wire::{Settings, Tls, Wire};
use super::worker::Worker;
use crate::config::{EndpointProtocol, ServiceTimeouts};
use crate::endpoint_tls::EndpointsTls;
use crate::reason::Reason;
use crate::state::snapshot::{Endpoint, EndpointId, Version};

/// A connection to an endpoint, with the bytes read from it and not yet used.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) io: Wire,
    pub(crate) buffer: Buffer,
    pub(crate) endpoint: Arc<Endpoint>,
    /// It has served a request before: a failure may just mean that the endpoint was about to close it.
    pub(crate) is_reused: bool,
    /// Set while it serves a request.
    in_flight: Option<InFlight>,
    idle_since: u64,
    /// Milliseconds it may stay unused.
    idle_timeout: u64,
}

impl Link {
    fn new(io: Wire, endpoint: &Arc<Endpoint>, timeouts: &ServiceTimeouts, in_flight: InFlight) -> Self {
        Self {
            io,
            buffer: Buffer::default(),
            endpoint: endpoint.clone(),
            is_reused: false,
            in_flight: Some(in_flight),
            idle_since: 0,
            idle_timeout: u64::try_from(timeouts.idle.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Whether it may serve another request.
    fn is_quiet(&mut self) -> bool {
        self.buffer.is_empty() && self.io.is_quiet()
    }
}

/// Unused connections of one endpoint that a worker keeps at most; the oldest goes.
const KEPT_PER_ENDPOINT: usize = 256;

/// One worker's unused connections, the latest used last.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<HashMap<EndpointId, Vec<Link>>>);

impl Pool {
    /// The connection used last, if one is open and quiet.
    pub(crate) fn checkout(&self, endpoint: EndpointId, now: u64) -> Option<Link> {
        let mut pool = self.0.borrow_mut();
        let links = pool.get_mut(&endpoint)?;
        while let Some(mut link) = links.pop() {
            // Readable while unused means closed, or an answer nobody asked for: not to be used again. The age too: the
            // sweep comes once a second, and the endpoint's own limit may be just above ours.
            if now.saturating_sub(link.idle_since) < link.idle_timeout && link.is_quiet() {
                link.is_reused = true;
                link.in_flight = Some(InFlight::new(&link.endpoint));
                return Some(link);
            }
            link.io.say_goodbye();
        }
        None
    }

    /// Takes back a connection whose exchange has ended cleanly.
    pub(crate) fn checkin(&self, mut link: Link, now: u64) {
        // A stream is over; its connection is in no link.
        if !link.buffer.is_empty() || link.endpoint.health.is_gone() || matches!(link.io, Wire::Http2(_)) {
            return;
        }
        link.idle_since = now;
        link.in_flight = None;
        let mut pool = self.0.borrow_mut();
        let links = pool.entry(link.endpoint.id).or_default();
        if links.len() >= KEPT_PER_ENDPOINT {
            links.remove(0);
        }
        links.push(link);
    }

    /// Closes what was unused for too long, was closed by the endpoint, or belongs to an endpoint that is gone.
    pub(crate) fn sweep(&self, now: u64) {
        self.0.borrow_mut().retain(|_, links| {
            links.retain_mut(|link| {
                let stays = now.saturating_sub(link.idle_since) < link.idle_timeout
                    && !link.endpoint.health.is_gone()
                    && link.is_quiet();
                if !stays {
                    link.io.say_goodbye();
                }
                stays
            });
            !links.is_empty()
        });
    }
}

/// What a request needs of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// A kept one has just failed.
    pub(crate) is_fresh: bool,
    /// It asks for an upgrade, which is a matter of HTTP/1.
    pub(crate) is_upgrade: bool,
}

/// A connection to an endpoint, or a stream of one, kept or new.
pub(crate) async fn link(
    worker: &Worker,
    timeouts: &ServiceTimeouts,
    version: &Version,
    endpoint: &Arc<Endpoint>,
    wanted: Wanted,
    now: u64,
) -> Result<Link, Reason> {
    let Wanted { is_fresh, is_upgrade } = wanted;
    if !is_fresh && let Some(link) = worker.pool.checkout(endpoint.id, now) {
        return Ok(link);
    }
    match endpoint.transport.protocol {
        EndpointProtocol::Http1 => {
            let in_flight = InFlight::new(endpoint);
            // Boxed: most requests find a kept connection, and their tasks are small.
            let io = Box::pin(open(worker, timeouts, version, endpoint, false)).await?;
            Ok(Link::new(io, endpoint, timeouts, in_flight))
        }
        // A connection of its own, which is not for other requests in any case.
        EndpointProtocol::Auto if is_upgrade => {
            let in_flight = InFlight::new(endpoint);
            let io = Box::pin(open(worker, timeouts, version, endpoint, true)).await?;
            Ok(Link::new(io, endpoint, timeouts, in_flight))
        }
        EndpointProtocol::H2c | EndpointProtocol::H2 | EndpointProtocol::Auto => {
            Box::pin(multiplexed(worker, timeouts, version, endpoint, is_fresh)).await
        }
    }
}

/// A stream; or a connection, if the endpoint chooses HTTP/1.
async fn multiplexed(
    worker: &Worker,
    timeouts: &ServiceTimeouts,
    version: &Version,
    endpoint: &Arc<Endpoint>,
    mut is_fresh: bool,
) -> Result<Link, Reason> {
    let in_flight = InFlight::new(endpoint);
    let opener = loop {
        if !is_fresh && let Some((stream, is_used)) = worker.multiplexed.stream(endpoint.id) {
            let io = Wire::Http2(Box::new(stream));
            return Ok(Link { is_reused: is_used, ..Link::new(io, endpoint, timeouts, in_flight) });
        }
        // What is opened from now on is fresh enough.
        is_fresh = false;
        match worker.multiplexed.turn(endpoint) {
            Turn::Wait(opening) => opening.ended().await?,
            Turn::Open(opener) => break Some(opener),
            Turn::Alone => break None,
        }
    };
    match open(worker, timeouts, version, endpoint, false).await {
        Ok(io) if endpoint.transport.protocol == EndpointProtocol::Auto && !io.is_http2() => {
            worker.multiplexed.speaks_http1(endpoint.id);
            Ok(Link::new(io, endpoint, timeouts, in_flight))
        }
        Ok(io) => {
            let stream = worker.multiplexed.start(io, endpoint, timeouts.idle, &worker.buffers);
            Ok(Link::new(Wire::Http2(Box::new(stream)), endpoint, timeouts, in_flight))
        }
        Err(reason) => {
            if let Some(opener) = opener {
                opener.failed(reason);
            }
            Err(reason)
        }
    }
}

/// Opens a connection, with TLS where the endpoint has it.
async fn open(
    worker: &Worker,
    timeouts: &ServiceTimeouts,
    version: &Version,
    endpoint: &Arc<Endpoint>,
    is_http1: bool,
) -> Result<Wire, Reason> {
    let started = Instant::now();
    // One deadline for all of it.
    let opened = tokio::time::timeout(timeouts.connect, async {
        let tcp = TcpStream::connect(endpoint.address).await.map_err(|error| connect_reason(&error))?;
        // Best effort: without it small writes wait for acknowledgements, but work.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "No TCP_NODELAY on an endpoint connection.");
        }
        match endpoint.transport.tls {
            None => Ok(Wire::Plain(tcp)),
            Some(_) => shake_hands(&worker.shared.endpoints_tls, version, endpoint, tcp, is_http1).await,
        }
    });
    let io = opened.await.map_err(|_| Reason::ConnectTimeout)??;
    version.metrics.connect(started.elapsed().as_secs_f64());
    Ok(io)
}

async fn shake_hands(
    endpoints_tls: &EndpointsTls,
    version: &Version,
    endpoint: &Endpoint,
    tcp: TcpStream,
    is_http1: bool,
) -> Result<Wire, Reason> {
    let client = endpoints_tls.client(&endpoint.transport).ok_or(Reason::Internal)?;
    let settings = Settings::now(client.clone());
    let shaken = match is_http1 {
        true => client.connect_http1(tcp, &endpoint.name).await,
        false => client.connect(tcp, &endpoint.name).await,
    };
    match shaken {
        Ok(stream) => Ok(Wire::Tls(Box::new(Tls { stream, settings }))),
        Err(error) => {
            if client.may_tell() {
                tracing::warn!(
                    version = %version.name, endpoint = %endpoint.name, %error,
                    "No TLS with an endpoint; told at most every ten seconds."
                );
            }
            Err(Reason::UpstreamTls)
        }
    }
}

fn connect_reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        // No free port towards this endpoint, or no free file descriptor: ours, not the endpoint's fault.
        io::ErrorKind::AddrNotAvailable => Reason::LocalPorts,
        _ => match error.raw_os_error() {
            Some(EMFILE | ENFILE) => Reason::LocalPorts,
            _ => Reason::ConnectFailed,
        },
    }
}

/// Linux errno values (asm-generic/errno-base.h), which std does not name.
pub(crate) const EMFILE: i32 = 24;
pub(crate) const ENFILE: i32 = 23;

/// Counts a request in flight on an endpoint as long as it lives.
#[derive(Debug)]
struct InFlight(Arc<Endpoint>);

impl InFlight {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drops a connection and gives its buffer back. No goodbye: what was not sent whole must not look as if it was.
pub(crate) fn discard(mut link: Link, buffers: &Buffers) {
    link.buffer.clear(buffers);
}
