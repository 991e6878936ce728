use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::client::{ClientConnection, Resumption};
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::CertificateFiles;
use crate::load::tls::AnyCertificate;
use crate::proxy::stream::Stream;

mod handshakes;
mod reloads;

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("perch-tls-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// Files `name.crt` and `name.key` with a fresh certificate for these names.
    fn pair(&self, name: &str, names: &[&str]) -> CertificateFiles {
        let (certificate, key) = self_signed(names).unwrap();
        self.write(name, &certificate, &key)
    }

    fn write(&self, name: &str, certificate: &str, key: &str) -> CertificateFiles {
        let cert_file = self.0.join(format!("{name}.crt"));
        let key_file = self.0.join(format!("{name}.key"));
        std::fs::write(&cert_file, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
        CertificateFiles { cert_file, key_file }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn settings(certificates: Vec<CertificateFiles>) -> config::Tls {
    config::Tls { certificates, min_version: TlsVersion::V1_2, strict_sni: false, client_certificates: None }
}

fn listener(settings: &config::Tls) -> Tls {
    let (tls, warnings) = Tls::new("listeners[0].tls", settings, None).unwrap();
    assert_eq!(warnings, []);
    tls
}

/// The leaf in a PEM file.
fn leaf(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// A client; `change` sets what a test is about.
fn client(version: TlsVersion, change: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    client_with(aws_lc_rs::default_provider(), version, change)
}

fn client_with(
    provider: CryptoProvider,
    version: TlsVersion,
    change: impl FnOnce(&mut ClientConfig),
) -> Arc<ClientConfig> {
    let version = match version {
        TlsVersion::V1_2 => &rustls::version::TLS12,
        TlsVersion::V1_3 => &rustls::version::TLS13,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&PROVIDER))))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    change(&mut config);
    Arc::new(config)
}

/// What a client saw.
#[derive(Debug)]
struct Seen {
    leaf: CertificateDer<'static>,
    kind: HandshakeKind,
    group: Option<rustls::NamedGroup>,
    http2: bool,
    suite: CipherSuite,
    label: Arc<str>,
}

/// One connection, until the server's first byte of data: by then tickets have come.
async fn connect(tls: &Tls, config: Arc<ClientConfig>, name: &str) -> Result<Seen, (Reason, io::Error)> {
    let (near, far) = duplex(1 << 16);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let server = async {
        let mut handshaken = tls.handshake(far, &[]).await?;
        // The client may be gone already, with what it came for.
        let _gone = handshaken.stream.write_all(b"!").await;
        let _gone = handshaken.stream.shutdown().await;
        Ok::<_, HandshakeError<DuplexStream>>((handshaken.is_http2(), Arc::clone(&handshaken.certificate.label)))
    };
    let client = async {
        let mut stream = TlsConnector::from(config).connect(name, near).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        assert_eq!(bytes, b"!");
        let connection = stream.get_ref().1;
        let leaf = connection.peer_certificates().unwrap()[0].clone().into_owned();
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        Ok::<_, io::Error>((leaf, connection.handshake_kind().unwrap(), group, suite))
    };
    match tokio::join!(Box::pin(server), Box::pin(client)) {
        (Ok((http2, label)), Ok((leaf, kind, group, suite))) => Ok(Seen { leaf, kind, group, http2, suite, label }),
        (Err(server), Err(client)) => Err((server.reason(), client)),
        (server, client) => panic!("server {server:?}, client {client:?}"),
    }
}

/// The alert that ended the client's handshake.
fn alert(error: &io::Error) -> rustls::AlertDescription {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?}"),
    }
}
