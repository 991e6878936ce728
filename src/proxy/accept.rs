//! From a listening socket to a served connection: limits, PROXY protocol, TLS, and the choice of the protocol.
//!
//! Three deadlines are owned here or handed on: the PROXY header, the TLS handshake, the first byte. A connection over a
//! limit is closed at once and counted: it cannot wait in a queue that nobody sees.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::buffer::Buffer;
use super::connection::Connection;
use super::http1;
use super::http2;
use super::respond;
use super::stream::Stream;
use super::tls::{HandshakeError, Tls};
use super::upstream::{EMFILE, ENFILE};
use super::worker::Worker;
use super::workers::BACKLOG;
use crate::config;
use crate::decide::proxy_protocol::{self, Parsed};
use crate::decide::shedding::Shedding;
use crate::metrics::{self, ListenerMetrics, OpenConnection};
use crate::reason::Reason;
use crate::state::snapshot::Listener;

/// What the workers share of one listener.
#[derive(Debug)]
pub(super) struct Door {
    pub(crate) name: Arc<str>,
    open: AtomicUsize,
    /// Connections per client address, where that is limited. Held for one look-up at accept and at close: accepting
    /// workers wait for each other, requests never do.
    per_client: Mutex<HashMap<IpAddr, usize>>,
    metrics: ListenerMetrics,
}

impl Door {
    #[must_use]
    pub(super) fn new(name: &Arc<str>) -> Self {
        Self {
            name: name.clone(),
            open: AtomicUsize::new(0),
            per_client: Mutex::default(),
            metrics: ListenerMetrics::new(name),
        }
    }
}

/// Room for one connection, given back when dropped.
#[derive(Debug)]
struct Permit {
    worker: Rc<Worker>,
    door: Arc<Door>,
    counted: Option<IpAddr>,
    _open: OpenConnection,
}

impl Permit {
    fn take(
        worker: &Rc<Worker>,
        door: &Arc<Door>,
        listener: &config::Listener,
        peer: IpAddr,
        most: usize,
    ) -> Option<Self> {
        let limits = &listener.limits;
        let all = worker.shared.connections.fetch_add(1, Ordering::Relaxed);
        let here = door.open.fetch_add(1, Ordering::Relaxed);
        let mut permit =
            Self { worker: worker.clone(), door: door.clone(), counted: None, _open: door.metrics.opened() };
        // Behind PROXY protocol the peer is the load balancer; the client is known later.
        let fits = listener.proxy_protocol.is_some() || permit.count(peer, limits.connections_per_client);
        (fits && all < most && here < limits.connections).then_some(permit)
    }

    /// Counts the connection for its client; false when that would be one too many.
    fn count(&mut self, client: IpAddr, most: usize) -> bool {
        if most == 0 {
            return true;
        }
        let mut clients = self.door.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        let open = clients.entry(client).or_default();
        if *open >= most {
            return false;
        }
        *open += 1;
        self.counted = Some(client);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.worker.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.door.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(peer) = self.counted {
            let mut clients = self.door.per_client.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = clients.get_mut(&peer) {
                *open -= 1;
                if *open == 0 {
                    clients.remove(&peer);
                }
            }
        }
    }
}

/// A listener's TLS as one worker sees it; replaced when its configuration changes.
pub(crate) type SharedTls = Rc<RefCell<Option<Tls>>>;

/// How long accepting rests when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(50);

/// Accepts until the future is dropped.
pub(crate) async fn accept(worker: Rc<Worker>, door: Arc<Door>, socket: Rc<TcpListener>, tls: SharedTls) {
    let mut complained: Option<Instant> = None;
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => admit(&worker, &door, &tls, tcp, peer),
            Err(error) => {
                door.metrics.accept_error();
                if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
                    complained = Some(Instant::now());
                    let fix = match error.raw_os_error() {
                        Some(EMFILE | ENFILE) => {
                            "raise the limit of open files (ulimit -n) or lower limits.maxConnections"
                        }
                        _ => "see the error",
                    };
                    tracing::error!(listener = %door.name, %error, fix, "Cannot accept connections.");
                }
                // A connection that was gone before it was accepted is no reason to rest.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

/// Accepts what is in the backlog now, before the socket is closed: closing it would reset them. Bounded by the backlog:
/// under load there is always one more.
pub(crate) fn accept_rest(worker: &Rc<Worker>, door: &Arc<Door>, socket: &TcpListener, tls: &SharedTls) {
    // Asked directly: what the event loop knows may be older than the last connection.
    let socket = SockRef::from(socket);
    for _ in 0..BACKLOG {
        let Ok((accepted, peer)) = socket.accept() else { return };
        let tcp = accepted.set_nonblocking(true).and_then(|()| TcpStream::from_std(accepted.into()));
        if let (Ok(tcp), Some(peer)) = (tcp, peer.as_socket()) {
            admit(worker, door, tls, tcp, peer);
        }
    }
}

fn admit(worker: &Rc<Worker>, door: &Arc<Door>, tls: &SharedTls, tcp: TcpStream, peer: SocketAddr) {
    if worker.shared.pressure.shedding() >= Shedding::Connections {
        metrics::rejected(Reason::MemoryLimit);
        return;
    }
    let snapshot = worker.snapshot();
    let Some(listener) = snapshot.listeners.iter().find(|l| l.config.name == door.name) else { return };
    let address = peer.ip().to_canonical();
    let most = snapshot.config.max_connections;
    let Some(permit) = Permit::take(worker, door, &listener.config, address, most) else {
        metrics::rejected(Reason::ConnectionLimit);
        return;
    };
    let arrival =
        Arrival { worker: worker.clone(), listener: listener.clone(), tls: tls.borrow().clone(), peer, tcp, permit };
    // Boxed one after the other, so that an open connection holds only the stage it is in; the first before the task, which
    // would keep room for all that goes into it.
    let prepared = Box::pin(arrival.prepare());
    tokio::task::spawn_local(async move {
        match prepared.await {
            Ok((serving, _permit)) => serving.await,
            Err(Reason::ClientAbort) => {}
            Err(reason) => metrics::rejected(reason),
        }
    });
}

/// A connection that carries requests.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// A connection that was just accepted.
struct Arrival {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    tls: Option<Tls>,
    peer: SocketAddr,
    tcp: TcpStream,
    permit: Permit,
}

impl Arrival {
    async fn prepare(mut self) -> Result<(Serving, Permit), Reason> {
        let config = &self.listener.config;
        let (client, early) = match &config.proxy_protocol {
            None => (self.peer.ip(), Vec::new()),
            Some(rules) => proxy_header(&mut self.tcp, self.peer, rules).await?,
        };
        let client = client.to_canonical();
        if config.proxy_protocol.is_some() && !self.permit.count(client, config.limits.connections_per_client) {
            return Err(Reason::ConnectionLimit);
        }
        let mut connection = Connection {
            listener: self.listener.clone(),
            peer: self.peer,
            client,
            client_text: client.to_string().into_bytes(),
            is_tls: false,
            tls_version: None,
            certificate: None,
            client_identity: None,
            seat: self.worker.registry.seat(),
        };
        let Some(tls) = self.tls else {
            let stream = Stream::Plain(self.tcp);
            return Ok((http1::serve::serve(self.worker, stream, Buffer::from(early), connection), self.permit));
        };
        let done = timeout(config.timeouts.tls_handshake, tls.handshake(self.tcp, &early)).await;
        let shaken = match done.map_err(|_| Reason::TlsTimeout)? {
            Ok(shaken) => shaken,
            Err(error) => {
                let reason = error.reason();
                match error {
                    HandshakeError::NotTls(tcp) => answer_plain(tcp).await,
                    HandshakeError::Refused { cause, .. } => {
                        tracing::debug!(peer = %self.peer, listener = %config.name, %reason, %cause, "No TLS.");
                    }
                    HandshakeError::Closed => {}
                }
                return Err(reason);
            }
        };
        let session = shaken.stream.get_ref().1;
        let is_tls13 = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let is_resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        self.permit.door.metrics.handshake(is_tls13, is_resumed);
        connection.is_tls = true;
        connection.tls_version = Some(if is_tls13 { "TLSv1.3" } else { "TLSv1.2" });
        let is_http2 = shaken.is_http2();
        connection.client_identity = shaken.client_identity().map(Vec::into_boxed_slice);
        connection.certificate = Some(shaken.certificate);
        let stream = Stream::Tls(Box::new(shaken.stream));
        let serving: Serving = match is_http2 {
            true => Box::pin(http2::serve(self.worker, stream, connection)),
            false => http1::serve::serve(self.worker, stream, Buffer::default(), connection),
        };
        Ok((serving, self.permit))
    }
}

/// Reads the PROXY header; the client's address and what was read after it.
async fn proxy_header(
    tcp: &mut TcpStream,
    peer: SocketAddr,
    rules: &config::ProxyProtocol,
) -> Result<(IpAddr, Vec<u8>), Reason> {
    if !rules.trusted.iter().any(|n| n.contains(&peer.ip().to_canonical())) {
        return Err(Reason::ProxyUntrusted);
    }
    let read = async {
        let mut bytes = Vec::with_capacity(256);
        loop {
            match proxy_protocol::parse(&bytes) {
                Parsed::Complete(header) => {
                    let client = header.addresses.map_or(peer.ip(), |(source, _)| source.ip());
                    return Ok((client, bytes.split_off(header.length)));
                }
                Parsed::Missing => return Err(Reason::ProxyMissing),
                Parsed::Malformed(what) => {
                    tracing::debug!(%peer, what, "Malformed PROXY header.");
                    return Err(Reason::ProxyHeader);
                }
                Parsed::Partial(_) => match tcp.read_buf(&mut bytes).await {
                    Ok(n) if n > 0 => {}
                    // Connected and left, as a balancer's own health checks do.
                    _ if bytes.is_empty() => return Err(Reason::ClientAbort),
                    _ => return Err(Reason::ProxyHeader),
                },
            }
        }
    };
    timeout(rules.timeout, read).await.map_err(|_| Reason::ProxyTimeout)?
}

/// Tells a client that spoke plain HTTP to a TLS port what it did.
async fn answer_plain(mut tcp: TcpStream) {
    let answer = respond::error(Reason::TlsNotTls, false, true, None);
    let say = async {
        tcp.write_all(&answer).await?;
        tcp.shutdown().await?;
        // Read on, so that the client sees the answer and not a reset.
        let mut rest = [0; 1024];
        while tcp.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(Duration::from_secs(1), say).await.ok();
}
