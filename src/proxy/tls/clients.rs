//! Certificates that clients show: who may issue them, and what an endpoint is told of them.
//!
//! No session is resumed where certificates are asked for: each connection is verified, by what is trusted now. What a
//! certificate says is the issuer's word, so it is escaped like anything else that comes over the wire.

use std::fmt::Write;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, SupportedCipherSuite};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{ClientCertificateMode, ClientCertificates, Problem};
use crate::pem::read_chain;

/// What decides about the certificates of a listener's clients.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The trusted certificates, to see whether they changed.
    pub(super) read: Vec<CertificateDer<'static>>,
}

impl Clients {
    /// `path` is the key path of the listener's `tls`.
    pub(super) fn read(
        path: &str,
        settings: &ClientCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Vec<Problem>> {
        let (mut roots, mut read, mut problems) = (RootCertStore::empty(), Vec::new(), Vec::new());
        for (number, file) in settings.ca_files.iter().enumerate() {
            let mut problem = |message| {
                problems.push(Problem::new(format!("{path}.clientCertificates.caCertificates[{number}]"), message));
            };
            match read_chain(file) {
                Err(message) => problem(message),
                Ok(chain) => {
                    for certificate in chain {
                        match roots.add(certificate.clone()) {
                            Ok(()) => read.push(certificate),
                            Err(error) => problem(format!(
                                "{} holds a certificate that is no trust anchor ({error}); write CA certificates",
                                file.display()
                            )),
                        }
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = match settings.mode {
            ClientCertificateMode::Required => builder,
            ClientCertificateMode::Optional => builder.allow_unauthenticated(),
        };
        let verifier = builder.build().map_err(|error| {
            let message = format!("no client can be verified by these files ({error}); write CA certificates");
            vec![Problem::new(format!("{path}.clientCertificates.caCertificates"), message)]
        })?;
        Ok(Self { verifier, read })
    }
}

/// What `x-forwarded-client-cert` says of a verified certificate, in Envoy's form: its SHA-256, its subject and its names;
/// the first alone when the others are too long for a field.
pub(super) fn identity(leaf: &CertificateDer<'_>) -> Vec<u8> {
    let mut text = String::with_capacity(256);
    text.push_str("Hash=");
    for byte in sha256(leaf) {
        // Writing to a string does not fail.
        let _written = write!(text, "{byte:02x}");
    }
    let short = text.len();
    if let Ok((_, certificate)) = X509Certificate::from_der(leaf) {
        push_names(&certificate, &mut text);
    }
    if text.len() > MOST {
        text.truncate(short);
    }
    text.into_bytes()
}

fn push_names(certificate: &X509Certificate<'_>, text: &mut String) {
    text.push_str(";Subject=\"");
    push_escaped(&certificate.subject().to_string(), text);
    text.push('"');
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let (key, value) = match name {
            GeneralName::URI(uri) => (";URI=\"", *uri),
            GeneralName::DNSName(name) => (";DNS=\"", *name),
            _ => continue,
        };
        text.push_str(key);
        push_escaped(value, text);
        text.push('"');
    }
}

/// Bytes of the field's value.
const MOST: usize = 8 * 1024;

/// Inside quotes: a quote and a backslash get a backslash, what is not printable ASCII is percent-encoded.
fn push_escaped(value: &str, out: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                let _written = write!(out, "%{byte:02X}");
            }
        }
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    match TLS13_AES_128_GCM_SHA256 {
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.hash(bytes).as_ref().to_vec(),
        SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider.hash(bytes).as_ref().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        let mut out = String::new();

        push_escaped("a\";By=x\\ é\r\n\0%20", &mut out);

        assert_eq!(out, "a\\\";By=x\\\\ %C3%A9%0D%0A%00%2520");
    }

    #[test]
    fn an_identity_has_hash_subject_and_names() {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a, \"b\"");
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://x/y".try_into().unwrap()));
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();

        let text = String::from_utf8(identity(made.der())).unwrap();

        let (hash, rest) = text.strip_prefix("Hash=").unwrap().split_once(';').unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
        assert!(rest.starts_with("Subject=\"") && rest.contains("\\\"b\\\""), "{rest}");
        assert!(rest.ends_with("\";DNS=\"a.example\";URI=\"spiffe://x/y\""), "{rest}");
    }
}
