//! An HTTP/2 upstream by the h2 crate: a test's handler has the stream itself, so that it can send any frame in any order.
//! It counts connections and streams, and can tell clients to go away.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Response};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Certificate;

/// A request.
pub struct Asked {
    pub head: http::request::Parts,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
    /// From 0, over all connections.
    pub number: usize,
    /// From 0, on its connection.
    pub on_connection: usize,
}

type Handler = Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The running upstream. Dropped: stopped.
pub struct H2Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// There until it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

struct Shared {
    handler: Handler,
    builder: Builder,
    connections: AtomicUsize,
    ended: AtomicUsize,
    streams: AtomicUsize,
    heads: Mutex<Vec<http::request::Parts>>,
    farewell: watch::Sender<usize>,
}

impl H2Backend {
    /// Speaks HTTP/2 without TLS.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        handler: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::with(Builder::new(), None, handler)
    }

    /// With settings of its own; with a certificate over TLS, by ALPN.
    pub fn with<F: Future<Output = ()> + Send + 'static>(
        builder: Builder,
        tls: Option<&Certificate>,
        handler: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self {
        let tls = tls.map(|certificate| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let chain = CertificateDer::pem_file_iter(&certificate.cert_file).unwrap().map(Result::unwrap).collect();
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, PrivateKeyDer::from_pem_file(&certificate.key_file).unwrap())
                .unwrap();
            config.alpn_protocols = vec![b"h2".to_vec()];
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            handler: Arc::new(move |asked| Box::pin(handler(asked))),
            builder,
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            heads: Mutex::default(),
            farewell: watch::channel(0).0,
        });
        let accepting = shared.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).ok();
                let (shared, tls) = (accepting.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(tcp, &shared).await,
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => serve(stream, &shared).await,
                            Err(_) => return,
                        },
                    }
                    shared.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn open_connections(&self) -> usize {
        self.connections() - self.shared.ended.load(Ordering::SeqCst)
    }

    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<http::request::Parts> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Says GOAWAY on all connections, as a server does that is to be replaced.
    pub fn go_away(&self) {
        self.shared.farewell.send_modify(|n| *n += 1);
    }
}

impl Drop for H2Backend {
    fn drop(&mut self) {
        // Tests drop it inside a runtime of their own, which must not be blocked.
        self.runtime.take().expect("it is dropped once").shutdown_background();
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shared: &Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let Ok(mut connection) = shared.builder.handshake::<S, Bytes>(stream).await else { return };
    let mut farewell = shared.farewell.subscribe();
    let mut on_connection = 0;
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            Ok(()) = farewell.changed() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = next else { return };
        let (head, body) = request.into_parts();
        shared.heads.lock().unwrap().push(head.clone());
        let number = shared.streams.fetch_add(1, Ordering::SeqCst);
        let asked = Asked { head, body, respond, number, on_connection };
        on_connection += 1;
        tokio::spawn((shared.handler)(asked));
    }
}

/// Reads a body to its end, giving the window back; `None` when it was cut.
pub async fn read(body: &mut RecvStream) -> Option<(Vec<u8>, HeaderMap)> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        all.extend_from_slice(&data);
    }
    Some((all, body.trailers().await.ok()?.unwrap_or_default()))
}

/// Sends as the window allows; false when the stream ended.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, ends: bool) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return false };
        let piece = data.split_to(room.min(data.len()));
        if stream.send_data(piece, ends && data.is_empty()).is_err() {
            return false;
        }
    }
    true
}

/// 200 with this body.
pub async fn ok(mut asked: Asked, body: &str) {
    read(&mut asked.body).await;
    let Ok(mut stream) = asked.respond.send_response(Response::new(()), body.is_empty()) else { return };
    if !body.is_empty() {
        send(&mut stream, Bytes::copy_from_slice(body.as_bytes()), true).await;
    }
}
