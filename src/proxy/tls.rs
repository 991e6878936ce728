//! TLS of a listener: the rustls configuration, the handshake, certificates by SNI and their reload.
//!
//! Mozilla's "intermediate" settings, with no weaker knob: TLS 1.2 and 1.3, ECDHE and AEAD only, no early data; among the
//! suites with AES the cheapest, whichever of them a client names first. Session
//! tickets belong to one listener: shared by its workers, kept when certificates are reloaded, unknown to every other
//! listener, so a session never crosses from one to another. The provider is always given, never the process's default.
//! It does not know HTTP beyond the two ALPN names, and keeps no deadline: the caller does.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::task::ready;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{Accepted, Acceptor, ClientHello, NoServerSessionStorage, ProducesTickets};
use rustls::{CipherSuite, InvalidMessage, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::{StartHandshake, TlsStream};

use crate::config;
pub use crate::config::Problem;
use crate::config::TlsVersion;
use crate::reason::Reason;

mod certificates;
mod clients;
mod cork;
mod read_ahead;
mod self_signed;

use certificates::Certificates;
pub use certificates::{Certificate, Reload};
use clients::Clients;
pub use cork::Corked;
pub use self_signed::self_signed;

/// What a listener with TLS needs. Cheap to clone; the clones share certificates and tickets.
#[derive(Clone, Debug)]
pub struct Tls {
    /// A handshake reads it for as long as a pointer takes to copy; a reload of the clients' CA writes it for as long.
    config: Arc<RwLock<Arc<Orders>>>,
    certificates: Arc<Certificates>,
    tickets: Arc<dyn ProducesTickets>,
    /// Of the listener's `tls`.
    path: Arc<str>,
    settings: Arc<config::Tls>,
    clients: Arc<Mutex<Option<Clients>>>,
}

impl Tls {
    /// Reads the certificates. `path` is the key path of the listener's `tls`, for the messages. With `previous` (the
    /// same listener before a change of its configuration) the tickets live on, and so does the old certificate of a
    /// pair that cannot be read now. The second value lists what an operator should look at.
    ///
    /// # Errors
    /// Every pair that cannot be used, in the words of the configuration.
    pub fn new(path: &str, tls: &config::Tls, previous: Option<&Self>) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let previous_pairs = previous.map(|previous| previous.certificates.served());
        let (certificates, warnings) = Certificates::read(path, tls, previous_pairs.as_deref())?;
        let certificates = Arc::new(certificates);
        let tickets = match previous {
            Some(previous) => Arc::clone(&previous.tickets),
            // Keys rotate every six hours, tickets live for twelve.
            None => aws_lc_rs::Ticketer::new().map_err(|error| vec![Problem::new(path, no_provider(&error))])?,
        };
        let clients = match &tls.client_certificates {
            None => None,
            Some(settings) => Some(Clients::read(path, settings, &PROVIDER)?),
        };
        let config = Self::config(path, tls, &certificates, clients.as_ref(), &tickets)?;
        let this = Self {
            config: Arc::new(RwLock::new(config)),
            certificates,
            tickets,
            path: path.into(),
            settings: Arc::new(tls.clone()),
            clients: Arc::new(Mutex::new(clients)),
        };
        Ok((this, warnings))
    }

    fn config(
        path: &str,
        tls: &config::Tls,
        certificates: &Arc<Certificates>,
        clients: Option<&Clients>,
        tickets: &Arc<dyn ProducesTickets>,
    ) -> Result<Arc<Orders>, Vec<Problem>> {
        let versions: &[_] = match tls.min_version {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(versions)
            .map_err(|error| vec![Problem::new(path, no_provider(&error))])?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.verifier)),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(certificates) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Early data can be replayed (RFC 8446 section 8).
        config.max_early_data_size = 0;
        // Tickets hold the sessions of both versions: nothing is kept per client.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if clients.is_none() {
            config.ticketer = Arc::clone(tickets);
        } else {
            // A resumed session is not verified again: it would outlive its certificate, and the CA's removal.
            config.send_tls13_tickets = 0;
        }
        let of_client = Arc::new(config.clone());
        config.ignore_client_order = true;
        Ok(Arc::new(Orders { of_client, of_server: Arc::new(config) }))
    }

    /// Reads the clients' CA certificates again. True when they are others; problems leave what was.
    fn reload_clients(&self) -> Result<bool, Vec<Problem>> {
        let Some(settings) = &self.settings.client_certificates else { return Ok(false) };
        let new = Clients::read(&self.path, settings, &PROVIDER)?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.as_ref().is_some_and(|old| old.read == new.read) {
            return Ok(false);
        }
        let config = Self::config(&self.path, &self.settings, &self.certificates, Some(&new), &self.tickets)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        *clients = Some(new);
        Ok(true)
    }

    /// Reads the files again. A pair that cannot be used keeps its old certificate. Connections live on.
    #[must_use]
    pub fn reload(&self) -> Reload {
        let mut reload = self.certificates.reload();
        match self.reload_clients() {
            Ok(true) => reload.replaced.push("CA certificates of clients".into()),
            Ok(false) => {}
            Err(problems) => reload.kept.extend(problems),
        }
        reload
    }

    fn current(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        Arc::clone(self.config.read().unwrap_or_else(PoisonError::into_inner).for_client(hello))
    }

    /// The certificates now in use, in the configuration's order.
    #[must_use]
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.certificates.served().certificates()
    }

    /// The handshake. `already_read` is what the caller has read of the stream (behind a PROXY header); mostly nothing.
    ///
    /// # Errors
    /// See [`HandshakeError`]. Where TLS was spoken, the alert has been sent.
    pub async fn handshake<S>(&self, stream: S, already_read: &[u8]) -> Result<Handshaken<S>, HandshakeError<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // Boxed: its 5 KiB go with the handshake, and do not stay in the task of an idle connection.
        Box::pin(self.shake_hands(stream, already_read)).await
    }

    async fn shake_hands<S>(&self, mut stream: S, already_read: &[u8]) -> Result<Handshaken<S>, HandshakeError<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = match client_hello(&mut stream, already_read).await {
            Ok(accepted) => accepted,
            Err(Hello::NotTls) => return Err(HandshakeError::NotTls(stream)),
            Err(Hello::Closed) => return Err(HandshakeError::Closed),
            Err(Hello::Broken(cause, alert)) => {
                send_alert(stream, &alert).await;
                return Err(HandshakeError::refused(cause));
            }
        };
        let Some(certificate) = self.certificates.choose(&accepted.client_hello()) else {
            send_alert(stream, &UNRECOGNIZED_NAME).await;
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "no certificate for this server name");
            return Err(HandshakeError::Refused { reason: Reason::TlsSni, cause });
        };
        let config = self.current(&accepted.client_hello());
        // The tickets then go out with the first answer, if the request is here by the end of the handshake.
        let mut corked = Corked::new(stream);
        corked.hold();
        match StartHandshake::from_parts(accepted, corked).into_stream(config).into_fallible().await {
            Ok(mut stream) => {
                let (corked, session) = stream.get_mut();
                corked.release();
                // Before TLS 1.3 the last word of the handshake is the server's, and clients wait for it.
                if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
                    stream.flush().await.map_err(HandshakeError::refused)?;
                }
                Ok(Handshaken { stream, certificate })
            }
            Err((cause, stream)) => {
                send_alert(stream, &[]).await;
                Err(HandshakeError::refused(cause))
            }
        }
    }
}

/// One configuration of TLS, with each of the two orders of preference among cipher suites.
#[derive(Debug)]
struct Orders {
    of_client: Arc<ServerConfig>,
    of_server: Arc<ServerConfig>,
}

impl Orders {
    /// A client that names ChaCha20 first has no instructions for AES, and gets what it names. Of the others many name
    /// AES-256 with SHA-384 first (OpenSSL's and rustls' order) where AES-128 with SHA-256 is as good for longer than any
    /// certificate lives, and what browsers name first: with it a handshake costs a sixth less here.
    fn for_client(&self, hello: &ClientHello<'_>) -> &Arc<ServerConfig> {
        let first =
            hello.cipher_suites().iter().find(|offered| PROVIDER.cipher_suites.iter().any(|s| s.suite() == **offered));
        match first {
            Some(
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ) => &self.of_client,
            _ => &self.of_server,
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Handshaken<S> {
    /// May hold tickets that have not gone out.
    pub stream: TlsStream<Corked<S>>,
    /// What the client was shown: a Host that it does not cover is misdirected (RFC 9110 section 7.4). A resumed
    /// session is shown none, and gets the one it would have been shown.
    pub certificate: Arc<Certificate>,
}

impl<S> Handshaken<S> {
    /// What endpoints are told of the certificate that the client showed and perch verified.
    #[must_use]
    pub fn client_identity(&self) -> Option<Vec<u8>> {
        Some(clients::identity(self.stream.get_ref().1.peer_certificates()?.first()?))
    }

    /// The protocol agreed on is HTTP/2. Without ALPN it is HTTP/1.1.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(b"h2")
    }
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum HandshakeError<S> {
    /// The first byte is not of TLS. Nothing was written: the stream can still carry an answer in plain text.
    NotTls(S),
    /// The client left without a byte, as health checks do.
    Closed,
    Refused {
        /// One of `tls-sni`, `tls-alpn`, `tls-version`, `tls-client-certificate`, `tls-handshake`.
        reason: Reason,
        cause: io::Error,
    },
}

impl<S> HandshakeError<S> {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotTls(_) => Reason::TlsNotTls,
            Self::Closed => Reason::ClientAbort,
            Self::Refused { reason, .. } => *reason,
        }
    }

    fn refused(cause: io::Error) -> Self {
        use PeerIncompatible as Peer;
        let reason = match cause.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::NoApplicationProtocol) => Reason::TlsAlpn,
            Some(rustls::Error::PeerIncompatible(
                Peer::ServerDoesNotSupportTls12Or13
                | Peer::ServerTlsVersionIsDisabledByOurConfig
                | Peer::SupportedVersionsExtensionRequired
                | Peer::Tls12NotOffered
                | Peer::Tls12NotOfferedOrEnabled
                // Every client since TLS 1.2 sends it: this one is older.
                | Peer::SignatureAlgorithmsExtensionRequired,
            )) => Reason::TlsVersion,
            // Only clients' certificates are verified here.
            Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
                Reason::TlsClientCertificate
            }
            Some(
                rustls::Error::PeerMisbehaved(rustls::PeerMisbehaved::ServerNameMustContainOneHostName)
                | rustls::Error::InvalidMessage(InvalidMessage::InvalidServerName),
            ) => Reason::TlsSni,
            _ => Reason::TlsHandshake,
        };
        Self::Refused { reason, cause }
    }
}

/// A fatal alert as a plaintext record. rustls would send `access_denied`, which clients do not understand as well.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The first byte of a TLS handshake record.
const HANDSHAKE: u8 = 22;

/// What stands in the way of a ClientHello.
enum Hello {
    NotTls,
    Closed,
    /// With the alert to send.
    Broken(io::Error, Vec<u8>),
}

/// Reads the ClientHello. Own loop rather than tokio-rustls' acceptor, because that one answers plain text with a TLS
/// alert, and the first byte is gone by then.
async fn client_hello(stream: &mut (impl AsyncRead + Unpin), already_read: &[u8]) -> Result<Accepted, Hello> {
    let mut acceptor = None;
    if let Some(accepted) = feed(&mut acceptor, already_read)? {
        return Ok(accepted);
    }
    poll_fn(|context| {
        loop {
            // On the stack of the poll, not in the future: thousands of handshakes may wait here.
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            let silent = acceptor.is_none();
            let broken = |cause| Hello::Broken(cause, Vec::new());
            ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk)).map_err(broken)?;
            if chunk.filled().is_empty() {
                let error = if silent { Hello::Closed } else { broken(io::ErrorKind::UnexpectedEof.into()) };
                return Err(error).into();
            }
            if let Some(accepted) = feed(&mut acceptor, chunk.filled())? {
                return Ok(accepted).into();
            }
        }
    })
    .await
}

/// Gives bytes to the acceptor, which is made for the first of them: a silent connection costs no buffers.
fn feed(acceptor: &mut Option<Acceptor>, mut bytes: &[u8]) -> Result<Option<Accepted>, Hello> {
    let Some(first) = bytes.first() else {
        return Ok(None);
    };
    if acceptor.is_none() && *first != HANDSHAKE {
        return Err(Hello::NotTls);
    }
    let acceptor = acceptor.get_or_insert_default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).map_err(|cause| Hello::Broken(cause, Vec::new()))?;
    }
    acceptor.accept().map_err(|(error, mut alert)| {
        let mut record = Vec::new();
        // Writing to a Vec does not fail.
        let _written = alert.write_all(&mut record);
        Hello::Broken(io::Error::new(io::ErrorKind::InvalidData, error), record)
    })
}

/// Sends what is left to say and closes the sending side. Whether the client hears it changes nothing.
async fn send_alert(mut stream: impl AsyncWrite + Unpin, alert: &[u8]) {
    let _heard = stream.write_all(alert).await;
    let _heard = stream.shutdown().await;
}

/// Mozilla's "intermediate" without its DHE suites, which rustls does not have. Who chooses among them: [`Orders`].
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite as suite;
    use aws_lc_rs::kx_group as group;
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        // The hybrid first: what is recorded today stays closed to tomorrow's quantum computers.
        kx_groups: vec![group::X25519MLKEM768, group::X25519, group::SECP256R1, group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
});

fn no_provider(error: &rustls::Error) -> String {
    format!("the TLS library refuses to start ({error}); report this as a bug")
}

#[cfg(test)]
mod tests;
