//! TLS in front of a [`super::TestBackend`]: takes TLS off and passes bytes on. It records each handshake.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};

use super::Certificate;

/// What a client said in its handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub server_name: Option<String>,
    pub alpn: Option<String>,
    /// The leaf's DER.
    pub client_certificate: Option<Vec<u8>>,
}

/// The running relay. Dropped: stopped.
pub struct TlsRelay {
    pub address: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
    /// There until it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl TlsRelay {
    /// Shows `certificate`, offers `alpn`; with `clients` (a CA's file) it insists on a client's certificate.
    pub fn start(to: SocketAddr, certificate: &Certificate, alpn: &[&str], clients: Option<&Path>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = CertificateDer::pem_file_iter(&certificate.cert_file).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificate.key_file).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let handshakes = Arc::<Mutex<Vec<Handshake>>>::default();
        runtime.spawn(accept(listener, to, Arc::new(config), handshakes.clone()));
        Self { address, handshakes, runtime: Some(runtime) }
    }

    /// All completed ones so far.
    pub fn handshakes(&self) -> Vec<Handshake> {
        self.handshakes.lock().unwrap().clone()
    }
}

impl Drop for TlsRelay {
    fn drop(&mut self) {
        // Tests drop it inside a runtime of their own, which must not be blocked.
        self.runtime.take().expect("it is dropped once").shutdown_background();
    }
}

async fn accept(
    listener: std::net::TcpListener,
    to: SocketAddr,
    config: Arc<ServerConfig>,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((tcp, _)) = listener.accept().await {
        let (config, handshakes) = (config.clone(), handshakes.clone());
        tokio::spawn(async move {
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await else { return };
            let session = stream.get_ref().1;
            handshakes.lock().unwrap().push(Handshake {
                server_name: session.server_name().map(str::to_owned),
                alpn: session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
                client_certificate: session.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec()),
            });
            if let Ok(mut backend) = TcpStream::connect(to).await {
                tokio::io::copy_bidirectional(&mut stream, &mut backend).await.ok();
            }
        });
    }
}
