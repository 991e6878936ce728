//! The certificates of one listener: read from files, chosen by server name, replaced while connections live.
//!
//! A pair that cannot be used (unreadable, garbage, another certificate's key) leaves the old one in place and is
//! reported as a [`Problem`], without file and line: the caller has them. An expired certificate is served, with a warning: clients refuse it
//! themselves, and no service is better for being gone. Names come from the subject alternative names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::config;
use crate::config::{CertificateFiles, Problem};
use crate::pem::{read_chain, read_key};

/// What came of reading the files again.
#[derive(Debug, Default)]
pub struct Reload {
    /// Labels of the certificates that are new.
    pub replaced: Vec<Arc<str>>,
    /// Pairs that could not be used; their old certificates are still served.
    pub kept: Vec<Problem>,
    /// Certificates that are served although their time is not now.
    pub warnings: Vec<Problem>,
}

/// One certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// Its first name, for metrics and logs.
    pub label: Arc<str>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// Lower case; `*.` in front of wildcards.
    dns_names: Vec<Box<str>>,
    addresses: Vec<IpAddr>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// A client that was shown this certificate may ask for `host` (any case, no port, IPv6 with or without brackets).
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if !self.addresses.is_empty()
            && let Ok(address) = bare.parse::<IpAddr>()
        {
            return self.addresses.contains(&address.to_canonical());
        }
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.dns_names.iter().any(|name| match name.strip_prefix("*.") {
            Some(suffix) => parent.is_some_and(|parent| parent.eq_ignore_ascii_case(suffix)),
            None => name.eq_ignore_ascii_case(host),
        })
    }

    /// Why an operator should look at it, at this second.
    fn untimely(&self, now: i64) -> Option<String> {
        let date =
            |second| ASN1Time::from_timestamp(second).map_or_else(|_| second.to_string(), |time| time.to_string());
        if now > self.not_after {
            return Some(format!("the certificate expired on {}; renew it", date(self.not_after)));
        }
        if now < self.not_before {
            let start = date(self.not_before);
            return Some(format!("the certificate is not valid before {start}; check the clock or the certificate"));
        }
        None
    }
}

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The key path of the listener's `tls`.
    path: Box<str>,
    strict_sni: bool,
    /// Handshakes read it for as long as a pointer takes to copy; a reload writes it for as long. Files are read and
    /// keys parsed outside. Not arc_swap: that is publish's, and handshakes are rare beside requests.
    served: RwLock<Arc<Served>>,
}

/// One state of the certificates.
#[derive(Debug)]
pub(super) struct Served {
    /// In the configuration's order; never empty.
    pairs: Vec<(CertificateFiles, Arc<Certificate>)>,
    /// Name (`*.` included) to numbers of pairs, in order: several when a name has an RSA and an ECDSA certificate.
    by_name: HashMap<Box<str>, Vec<usize>>,
}

impl Certificates {
    /// Reads all pairs; those that cannot be used are taken from `previous` if it has the same files.
    pub(super) fn read(
        path: &str,
        tls: &config::Tls,
        previous: Option<&Served>,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        if tls.certificates.is_empty() {
            let message = "there is none; write at least one pair of certFile and keyFile".to_owned();
            return Err(vec![Problem::new(format!("{path}.certificates"), message)]);
        }
        let mut pairs = Vec::with_capacity(tls.certificates.len());
        let mut broken = Vec::new();
        let mut warnings = Vec::new();
        for (number, files) in tls.certificates.iter().enumerate() {
            let path = format!("{path}.certificates[{number}]");
            let old = previous.and_then(|served| served.pairs.iter().find(|(known, _)| known == files));
            match (read_pair(&path, files), old) {
                (Ok(certificate), _) => {
                    warnings.extend(certificate.untimely(now()).map(|message| Problem::new(&path, message)));
                    pairs.push((files.clone(), Arc::new(certificate)));
                }
                (Err(problem), Some((_, old))) => {
                    warnings.push(problem);
                    pairs.push((files.clone(), Arc::clone(old)));
                }
                (Err(problem), None) => broken.push(problem),
            }
        }
        if !broken.is_empty() {
            return Err(broken);
        }
        let served = RwLock::new(Arc::new(Served::new(pairs)));
        Ok((Self { path: path.into(), strict_sni: tls.strict_sni, served }, warnings))
    }

    pub(super) fn reload(&self) -> Reload {
        let before = self.served();
        let mut reload = Reload::default();
        let mut pairs = Vec::with_capacity(before.pairs.len());
        for (number, (files, old)) in before.pairs.iter().enumerate() {
            let path = format!("{}.certificates[{number}]", self.path);
            let certificate = match read_pair(&path, files) {
                Ok(certificate) if certificate.key.cert == old.key.cert => Arc::clone(old),
                Ok(certificate) => {
                    reload.replaced.push(Arc::clone(&certificate.label));
                    Arc::new(certificate)
                }
                Err(problem) => {
                    reload.kept.push(problem);
                    Arc::clone(old)
                }
            };
            reload.warnings.extend(certificate.untimely(now()).map(|message| Problem::new(&path, message)));
            pairs.push((files.clone(), certificate));
        }
        if !reload.replaced.is_empty() {
            let after = Arc::new(Served::new(pairs));
            *self.served.write().unwrap_or_else(PoisonError::into_inner) = after;
        }
        reload
    }

    pub(super) fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The certificate for a client; `None` if it asks for a name that none has, and that is to be refused.
    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> Option<Arc<Certificate>> {
        let served = self.served();
        let named = hello.server_name().map(|name| served.named(name));
        let pairs = match named {
            Some([]) if self.strict_sni => return None,
            None | Some([]) => served.default(),
            Some(pairs) => pairs,
        };
        served.pick(pairs, hello.signature_schemes())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(&hello).map(|certificate| Arc::clone(&certificate.key))
    }
}

impl Served {
    fn new(pairs: Vec<(CertificateFiles, Arc<Certificate>)>) -> Self {
        let mut by_name: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        for (number, (_, certificate)) in pairs.iter().enumerate() {
            for name in &certificate.dns_names {
                let numbers = by_name.entry(name.clone()).or_default();
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        Self { pairs, by_name }
    }

    pub(super) fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.pairs.iter().map(|(_, certificate)| Arc::clone(certificate)).collect()
    }

    /// The pairs of a name: of those that have it, else of those with a wildcard for its last labels but one.
    fn named(&self, name: &str) -> &[usize] {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let wildcard = || self.by_name.get(&*format!("*.{}", name.split_once('.')?.1));
        self.by_name.get(&*name).or_else(wildcard).map_or(&[], Vec::as_slice)
    }

    /// The first pair, and those of its first name: its RSA or ECDSA sister.
    fn default(&self) -> &[usize] {
        let first_name = self.pairs.first().and_then(|(_, certificate)| certificate.dns_names.first());
        first_name.and_then(|name| self.by_name.get(name)).map_or(&[0], Vec::as_slice)
    }

    /// The first whose key the client can check; the very first if it can check none, for rustls to say so.
    fn pick(&self, pairs: &[usize], schemes: &[SignatureScheme]) -> Option<Arc<Certificate>> {
        let all = || pairs.iter().filter_map(|number| self.pairs.get(*number)).map(|(_, certificate)| certificate);
        let usable = |certificate: &&Arc<Certificate>| certificate.key.key.choose_scheme(schemes).is_some();
        if pairs.len() == 1 { all().next().cloned() } else { all().find(usable).or_else(|| all().next()).cloned() }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Why a pair cannot be used.
enum Broken {
    Certificate(String),
    Key(String),
    /// It may be read in the middle of its replacement.
    Mismatch,
}

/// `path` is the key path of the pair.
fn read_pair(path: &str, files: &CertificateFiles) -> Result<Certificate, Problem> {
    // Two files are not replaced at once: a mismatch may be an old one beside a new one.
    let read = match read_files(files) {
        Err(Broken::Mismatch) => read_files(files),
        read => read,
    };
    read.map_err(|broken| match broken {
        Broken::Certificate(message) => Problem::new(format!("{path}.certFile"), message),
        Broken::Key(message) => Problem::new(format!("{path}.keyFile"), message),
        Broken::Mismatch => {
            let (key, certificate) = (files.key_file.display(), files.cert_file.display());
            let message = format!("{key} is not the key of {certificate}; write the key that it was made for");
            Problem::new(format!("{path}.keyFile"), message)
        }
    })
}

fn read_files(files: &CertificateFiles) -> Result<Certificate, Broken> {
    let chain = read_chain(&files.cert_file).map_err(Broken::Certificate)?;
    let key = read_key(&files.key_file).map_err(Broken::Key)?;
    let broken_leaf = |cause: &dyn std::fmt::Display| {
        let file = files.cert_file.display();
        Broken::Certificate(format!("{file} holds a broken certificate ({cause}); write one in PEM, leaf first"))
    };

    let leaf = chain.first().ok_or_else(|| broken_leaf(&"none"))?.clone();
    let (_, leaf) = X509Certificate::from_der(&leaf).map_err(|cause| broken_leaf(&cause))?;
    let mut dns_names: Vec<Box<str>> = Vec::new();
    let mut addresses = Vec::new();
    for name in leaf.subject_alternative_name().ok().flatten().iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                dns_names.push(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into());
            }
            GeneralName::IPAddress(octets) => addresses.extend(address(octets)),
            _ => {}
        }
    }
    let common_name = || leaf.subject().iter_common_name().next()?.as_str().ok().map(Arc::from);
    let label = dns_names.first().map(|name| Arc::from(&**name));
    let label = label
        .or_else(|| addresses.first().map(|address| Arc::from(address.to_string())))
        .or_else(common_name)
        .unwrap_or_else(|| Arc::from("unnamed"));
    let validity = leaf.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());

    let key = certified(chain, key, files, &super::PROVIDER)?;
    Ok(Certificate { label, not_before, not_after, dns_names, addresses, key: Arc::new(key) })
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Broken> {
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Broken::Mismatch,
        error => {
            let file = files.key_file.display();
            Broken::Key(format!("{file} holds a key that cannot be used ({error}); write an RSA or ECDSA key"))
        }
    })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::from(octets).to_canonical()),
        _ => None,
    }
}
