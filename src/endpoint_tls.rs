//! TLS towards endpoints, for requests and for health checks: trusted certificates, the name to expect, a certificate of
//! our own, and the live reload of their files.
//!
//! Nothing weakens the verification: an endpoint without a certificate that holds is not spoken to. TLS 1.2 and 1.3. Who
//! connects looks settings up here by what the configuration says of them. After a change, connections made before it
//! finish what they are at and serve nothing else.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Config, EndpointProtocol, EndpointTls, Problem, Transport};
use crate::pem::{read_chain, read_key};

/// The settings in use. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct EndpointsTls(Arc<RwLock<Clients>>);

/// Settings by what the configuration says.
type Clients = HashMap<Arc<Transport>, Arc<Client>>;

/// Settings that were read and are not in use yet.
#[derive(Debug)]
pub struct Prepared(Clients);

/// One kind of endpoints.
#[derive(Debug)]
pub struct Client {
    settings: EndpointTls,
    protocol: EndpointProtocol,
    /// A handshake reads it for as long as a pointer takes to copy; a reload writes it for as long.
    current: RwLock<Current>,
    /// Grows with each change of `current`.
    generation: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` when the last failure was told, and one more; 0: none was.
    told: AtomicU64,
}

#[derive(Clone, Debug)]
struct Current {
    config: Arc<ClientConfig>,
    /// The same, offering HTTP/1 only.
    http1: Arc<ClientConfig>,
    /// Everything that was read, to see whether it changed.
    read: Arc<Vec<CertificateDer<'static>>>,
}

impl EndpointsTls {
    /// Reads the files that a configuration names; those that cannot be read now keep what they were, if they are in use.
    /// The second value lists those.
    ///
    /// # Errors
    /// With every file that cannot be used.
    pub fn prepare(&self, config: &Config) -> Result<(Prepared, Vec<Problem>), Vec<Problem>> {
        let before = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut clients, mut problems, mut warnings) = (Clients::new(), Vec::new(), Vec::new());
        for (service, (number, version)) in
            config.services.iter().enumerate().flat_map(|(n, s)| s.versions.iter().enumerate().map(move |v| (n, v)))
        {
            let Some(settings) = &version.transport.tls else { continue };
            if clients.contains_key(&version.transport) {
                continue;
            }
            let path = format!("services[{service}].versions[{number}].tls");
            match (Client::read(settings, version.transport.protocol), before.get(&version.transport)) {
                (Ok(current), Some(old)) => {
                    old.replace(current);
                    clients.insert(version.transport.clone(), old.clone());
                }
                (Ok(current), None) => {
                    let client = Client::new(settings.clone(), version.transport.protocol, current);
                    clients.insert(version.transport.clone(), Arc::new(client));
                }
                (Err(message), Some(old)) => {
                    warnings.push(Problem::new(path, message));
                    clients.insert(version.transport.clone(), old.clone());
                }
                (Err(message), None) => problems.push(Problem::new(path, message)),
            }
        }
        if problems.is_empty() { Ok((Prepared(clients), warnings)) } else { Err(problems) }
    }

    /// To be found beside those in use: before the configuration that they are of takes force.
    pub fn add(&self, prepared: &Prepared) {
        let more = prepared.0.iter().map(|(transport, client)| (transport.clone(), client.clone()));
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(more);
    }

    /// Only these from now on.
    pub fn keep(&self, prepared: Prepared) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = prepared.0;
    }

    /// Reads the files again. What cannot be used is told, and what it was stays in use. The number of those that changed.
    #[must_use]
    pub fn reload(&self) -> (usize, Vec<String>) {
        let clients: Vec<_> = self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let (mut changed, mut problems) = (0, Vec::new());
        for client in clients {
            match Client::read(&client.settings, client.protocol) {
                Ok(current) => changed += usize::from(client.replace(current)),
                Err(problem) => problems.push(problem),
            }
        }
        (changed, problems)
    }

    /// What endpoints of this transport are reached with.
    #[must_use]
    pub fn client(&self, transport: &Transport) -> Option<Arc<Client>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(transport).cloned()
    }
}

/// The files of a configuration's endpoints, to be watched.
pub fn files(config: &Config) -> impl Iterator<Item = PathBuf> {
    let tls = config.services.iter().flat_map(|s| &s.versions).filter_map(|v| v.transport.tls.as_ref());
    tls.flat_map(|tls| {
        let pair = tls.client_certificate.iter().flat_map(|c| [&c.cert_file, &c.key_file]);
        tls.ca_files.iter().chain(pair).cloned()
    })
}

impl Client {
    fn new(settings: EndpointTls, protocol: EndpointProtocol, current: Current) -> Self {
        Self {
            settings,
            protocol,
            current: RwLock::new(current),
            generation: AtomicU64::new(0),
            started: Instant::now(),
            told: AtomicU64::new(0),
        }
    }

    fn read(settings: &EndpointTls, protocol: EndpointProtocol) -> Result<Current, String> {
        let mut read = Vec::new();
        let mut roots = RootCertStore::empty();
        if settings.ca_files.is_empty() {
            read = rustls_native_certs::load_native_certs().certs;
            // Some systems ship certificates that no verifier takes.
            let (good, _) = roots.add_parsable_certificates(read.iter().cloned());
            if good == 0 {
                let message = "this system trusts no CA certificates; install ca-certificates, set SSL_CERT_FILE, or write validation.caCertificates";
                return Err(message.to_owned());
            }
        }
        for file in &settings.ca_files {
            for certificate in read_chain(file)? {
                roots.add(certificate.clone()).map_err(|error| {
                    let file = file.display();
                    format!("{file} holds a certificate that is no trust anchor ({error}); write CA certificates")
                })?;
                read.push(certificate);
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("the TLS library refuses to start ({error}); report this as a bug"))?
            .with_root_certificates(roots);
        let mut config = match &settings.client_certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = read_chain(&files.cert_file)?;
                let key = read_key(&files.key_file)?;
                read.extend(chain.iter().cloned());
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let (certificate, key) = (files.cert_file.display(), files.key_file.display());
                    format!(
                        "{certificate} and {key} cannot be used together ({error}); write a certificate and its key"
                    )
                })?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = match protocol {
            EndpointProtocol::Http1 | EndpointProtocol::H2c => vec![b"http/1.1".to_vec()],
            EndpointProtocol::H2 => vec![b"h2".to_vec()],
            EndpointProtocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(Current { config: Arc::new(config), http1, read: Arc::new(read) })
    }

    /// True when it is another one. Sessions are resumed only within one: what is no longer trusted is verified anew.
    fn replace(&self, new: Current) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changes = current.read != new.read;
        if changes {
            *current = new;
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        changes
    }

    /// Which of the settings that came one after the other are in use.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The handshake with an endpoint that the configuration calls `name` (`host:port` or `address:port`).
    ///
    /// # Errors
    /// Of the connection, or of rustls inside [`io::Error`]: no TLS, a certificate that does not hold.
    pub async fn connect(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone();
        self.shake_hands(config, stream, name).await
    }

    /// The same for what only HTTP/1 can do, where the endpoint has the choice: an upgrade.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_http1(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).http1.clone();
        self.shake_hands(config, stream, name).await
    }

    async fn shake_hands(
        &self,
        config: Arc<ClientConfig>,
        stream: TcpStream,
        name: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let host = self.settings.hostname.as_deref().unwrap_or_else(|| host_of(name));
        let server = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {error}")))?;
        // Boxed: its kilobytes go with the handshake.
        let stream = Box::pin(TlsConnector::from(config).connect(server, stream)).await?;
        if self.protocol == EndpointProtocol::H2 && !is_http2(&stream) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the endpoint does not offer h2 by ALPN"));
        }
        Ok(stream)
    }

    /// Whether a failure should be logged now: about one in ten seconds, so that a broken endpoint does not fill the log.
    pub fn may_tell(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let told = self.told.load(Ordering::Relaxed);
        let is_due = told == 0 || now.saturating_sub(told) >= TELL_EVERY;
        is_due && self.told.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Milliseconds between two log lines about one kind of endpoints.
const TELL_EVERY: u64 = 10_000;

/// Whether HTTP/2 was agreed on.
#[must_use]
pub fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}

fn host_of(name: &str) -> &str {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_stands_before_the_port() {
        assert_eq!(host_of("hello.example:80"), "hello.example");
        assert_eq!(host_of("10.0.0.1:80"), "10.0.0.1");
        assert_eq!(host_of("[2001:db8::1]:80"), "2001:db8::1");
    }

    #[test]
    fn one_failure_in_a_while_is_told() {
        let settings = EndpointTls { hostname: None, ca_files: Vec::new(), client_certificate: None };
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let config = Arc::new(config);
        let current = Current { http1: config.clone(), config, read: Arc::default() };
        let client = Client::new(settings, EndpointProtocol::Http1, current);

        assert!(client.may_tell());
        assert!(!client.may_tell());
    }
}
