//! A server with two versions and perch's admin interface, right or wrong as the test wants it.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use perch::decide::{ClientKey, KeyPrefix, Salt, Split, Weight, proxy_protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::write_certificate;

/// How the server splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Right,
    /// No affinity.
    PerRequest,
    /// One client gets the other version once.
    OneFlip,
    /// The right share, and other clients after each change.
    NewSaltPerChange,
    /// At 0 % some clients stay.
    NeverEmpties,
    CanaryFails,
    /// The first [`COLD`] requests after a run's probe take [`COLD_FOR`].
    StartsCold,
    /// Answers the first request and no other.
    Stalls,
}

/// See [`Behaviour::StartsCold`].
pub(super) const COLD: usize = 20;
pub(super) const COLD_FOR: Duration = Duration::from_secs(3);

/// The running server; it ends with the test.
pub(super) struct SplitServer {
    state: Arc<State>,
    plain: SocketAddr,
    proxied: SocketAddr,
    secure: SocketAddr,
    folder: tempfile::TempDir,
    certificate: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

struct State {
    behaviour: Behaviour,
    percent: Mutex<f64>,
    generation: AtomicU64,
    requests: AtomicUsize,
    seen: Mutex<HashSet<ClientKey>>,
}

impl SplitServer {
    /// With the canary at `percent`.
    pub(super) fn start(behaviour: Behaviour, percent: f64) -> Self {
        let state = Arc::new(State {
            behaviour,
            percent: Mutex::new(percent),
            generation: AtomicU64::new(1),
            requests: AtomicUsize::new(0),
            seen: Mutex::default(),
        });
        let folder = tempfile::tempdir().unwrap();
        let certificate = write_certificate(folder.path(), "load", &["localhost", "127.0.0.1"]);
        let tls = Arc::new(server_config(&certificate.cert_file, &certificate.key_file));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (plain, proxied, secure) = runtime.block_on(async {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            (
                accept(Arc::clone(&state), |state, peer, tcp| serve(state, peer, tcp, false)).await,
                accept(Arc::clone(&state), behind_proxy).await,
                accept(Arc::clone(&state), move |state, peer, tcp| {
                    let acceptor = acceptor.clone();
                    async move {
                        if let Ok(stream) = acceptor.accept(tcp).await {
                            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            serve(state, peer, stream, http2).await;
                        }
                    }
                })
                .await,
            )
        });
        let certificate = certificate.cert_file;
        Self { state, plain, proxied, secure, folder, certificate, _runtime: runtime }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/version", self.plain)
    }

    /// Where a PROXY header is expected.
    pub(super) fn proxy_url(&self) -> String {
        format!("http://{}/version", self.proxied)
    }

    pub(super) fn tls_url(&self) -> String {
        format!("https://{}/version", self.secure)
    }

    pub(super) fn admin_url(&self) -> String {
        format!("http://{}", self.plain)
    }

    pub(super) fn certificate(&self) -> &Path {
        assert!(self.certificate.starts_with(self.folder.path()));
        &self.certificate
    }

    pub(super) fn clients_seen(&self) -> usize {
        self.state.seen.lock().unwrap().len()
    }

    pub(super) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }
}

fn server_config(cert: &Path, key: &Path) -> rustls::ServerConfig {
    use rustls_pki_types::pem::PemObject;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = rustls_pki_types::CertificateDer::from_pem_file(cert).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    state: Arc<State>,
    connection: impl Fn(Arc<State>, IpAddr, TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            tokio::spawn(connection(Arc::clone(&state), peer.ip(), tcp));
        }
    });
    address
}

async fn behind_proxy(state: Arc<State>, _peer: IpAddr, mut tcp: TcpStream) {
    let mut bytes = Vec::new();
    let header = loop {
        match proxy_protocol::parse(&bytes) {
            proxy_protocol::Parsed::Complete(header) => break header,
            proxy_protocol::Parsed::Partial(_) if bytes.len() < 600 => match tcp.read_u8().await {
                Ok(byte) => bytes.push(byte),
                Err(_) => return,
            },
            _ => return,
        }
    };
    assert_eq!(header.length, bytes.len());
    let (client, _) = header.addresses.unwrap();
    serve(state, client.ip(), tcp, false).await;
}

async fn serve<S>(state: Arc<State>, peer: IpAddr, stream: S, http2: bool)
where
    S: tokio::io::AsyncRead + AsyncWriteExt + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(|request| answer(Arc::clone(&state), peer, request));
    // A client that hangs up is no error.
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(stream), service).await.ok();
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
    }
}

async fn answer(
    state: Arc<State>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path().starts_with("/api/") {
        return Ok(admin(&state, request).await);
    }
    let number = state.requests.fetch_add(1, Ordering::Relaxed);
    if state.behaviour == Behaviour::Stalls && number > 0 {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    if state.behaviour == Behaviour::StartsCold && (1..=COLD).contains(&number) {
        tokio::time::sleep(COLD_FOR).await;
    }
    let forwarded = request.headers().get("x-forwarded-for").map(|v| v.to_str().unwrap().parse().unwrap());
    let key = ClientKey::new(forwarded.unwrap_or(peer), KeyPrefix::default());
    state.seen.lock().unwrap().insert(key);
    let canary = state.is_canary(key, number);
    let version = if canary { "canary" } else { "stable" };
    let failed = canary && state.behaviour == Behaviour::CanaryFails;
    let response = Response::builder().status(if failed { 503 } else { 200 }).header("perch-version", version);
    Ok(response.body(Full::from(format!("{{\"version\":\"{version}\"}}"))).unwrap())
}

async fn admin(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() == http::Method::POST {
        if request.uri().path() != "/api/v1/services/hello/weights" {
            return Response::builder().status(404).body(Full::from("no service nope; there are hello")).unwrap();
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["reason"], "perch load ramp");
        let percent = body["weights"]["canary"].as_str().unwrap().strip_suffix('%').unwrap().parse().unwrap();
        *state.percent.lock().unwrap() = percent;
        let generation = state.generation.fetch_add(1, Ordering::Relaxed) + 1;
        return Response::new(Full::from(serde_json::json!({ "generation": generation }).to_string()));
    }
    let canary = *state.percent.lock().unwrap() / 100.0;
    let generation = state.generation.load(Ordering::Relaxed);
    let version = |name: &str, share: f64| serde_json::json!({ "name": name, "weight": share * 100.0, "share": share });
    let versions = [version("stable", 1.0 - canary), version("canary", canary)];
    let services = serde_json::json!([{ "name": "hello", "versions": versions }]);
    Response::new(Full::from(serde_json::json!({ "generation": generation, "services": services }).to_string()))
}

impl State {
    fn is_canary(&self, key: ClientKey, number: usize) -> bool {
        let percent = *self.percent.lock().unwrap();
        let generation = self.generation.load(Ordering::Relaxed);
        let salt = match self.behaviour {
            Behaviour::NewSaltPerChange => format!("hello {generation}"),
            Behaviour::PerRequest => format!("hello {number}"),
            Behaviour::Right
            | Behaviour::OneFlip
            | Behaviour::NeverEmpties
            | Behaviour::CanaryFails
            | Behaviour::StartsCold
            | Behaviour::Stalls => "hello".to_owned(),
        };
        // The first change of a ramp is to 0, too.
        let floor = if self.behaviour == Behaviour::NeverEmpties && generation > 2 { 2.0 } else { 0.0 };
        let canary = percent.max(floor);
        let weights = [("stable", 100.0 - canary), ("canary", canary)].map(|(n, w)| (n, Weight::new(w).unwrap()));
        let split = Split::new(Salt::new(&salt, ""), weights);
        let flip = self.behaviour == Behaviour::OneFlip && number == 777;
        (split.version_of(key) == Some(1)) != flip
    }
}
