//! What stands between perch and an API server: TLS with a certificate that can be replaced, and connections that die
//! without a word, as when a machine loses its power or a firewall its memory.

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::support::{Certificate, write_certificate};

/// Running. Dropped: gone with its connections.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    acceptor: Arc<Mutex<Option<Tls>>>,
    fate: watch::Sender<Fate>,
    _runtime: Runtime,
}

/// What becomes of the connections that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    /// Open, but nothing goes through any more.
    Dead,
    Closed,
}

#[derive(Clone)]
struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Relay {
    pub(super) fn start(to: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Arc::new(Mutex::new(None::<Tls>));
        let (fate, _) = watch::channel(Fate::Lives);
        let (tls, fates) = (acceptor.clone(), fate.clone());
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let tls = tls.lock().unwrap().clone();
                // Those to come know nothing of what became of those before.
                let mut fate = fates.subscribe();
                fate.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    match tls {
                        None => forward(near, far, fate).await,
                        Some(Tls(acceptor)) => {
                            if let Ok(near) = acceptor.accept(near).await {
                                forward(near, far, fate).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, acceptor, fate, _runtime: runtime }
    }

    /// Speaks TLS from now on, with a new certificate, which is its own CA.
    pub(super) fn renew(&self, dir: &Path, name: &str) -> Certificate {
        let certificate = write_certificate(dir, name, &["localhost"]);
        let chain = CertificateDer::pem_file_iter(&certificate.cert_file).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificate.key_file).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        *self.acceptor.lock().unwrap() = Some(Tls(TlsAcceptor::from(Arc::new(config))));
        certificate
    }

    /// The connections that there are stay open, and nothing goes through them any more.
    pub(super) fn kill_silently(&self) {
        self.fate.send_replace(Fate::Dead);
    }

    /// The connections that there are are closed.
    pub(super) fn close(&self) {
        self.fate.send_replace(Fate::Closed);
    }
}

async fn forward(mut near: impl AsyncRead + AsyncWrite + Unpin, mut far: TcpStream, mut fate: watch::Receiver<Fate>) {
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        // The sender is dropped with the runtime only.
        _ = fate.changed() => if *fate.borrow() == Fate::Dead {
            pending::<()>().await;
        },
    }
}
