//! Certificates of clients on listeners: who gets in, what endpoints are told, what nobody can forge, and that neither
//! resumption nor an open connection is a way around.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::front::{assert_refused, listener_of, whole};
use crate::support::{
    Authority, Certificate, Client, Launch, PATIENCE, TestBackend, TestPerch, eventually, replace_file, tls_config,
    write_certificate,
};

const HEADER: &str = "x-forwarded-client-cert";

/// What a client shows.
fn showing(certificate: Option<&Certificate>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&tls_config(&[b"http/1.1"]));
    if let Some(certificate) = certificate {
        let chain = CertificateDer::pem_file_iter(&certificate.cert_file).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&certificate.key_file).unwrap();
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).unwrap();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
    }
    Arc::new(config)
}

/// One request; the error of handshake or request.
fn get(perch: &TestPerch, config: &Arc<ClientConfig>, head: &str) -> std::io::Result<u16> {
    let mut client = connect(perch, config)?;
    client.try_send(format!("GET / HTTP/1.1\r\nhost: localhost\r\n{head}\r\n"))?;
    Ok(client.try_response()?.status)
}

fn connect(perch: &TestPerch, config: &Arc<ClientConfig>) -> std::io::Result<Client> {
    Client::try_tls(IpAddr::V4(Ipv4Addr::LOCALHOST), perch.address("https"), "localhost", config.clone())
}

fn config(backend: &TestBackend, more: &str) -> String {
    let tls = format!("tls: {{certificates: [{{certFile: localhost-cert.pem, keyFile: localhost-key.pem}}]{more}}}");
    let listeners = listener_of("http", "trustedProxies: [127.0.0.9]") + &listener_of("https", &tls);
    whole(&listeners, "", &[("stable", 1, &[backend.address()])])
}

const REQUIRED: &str = ", clientCertificates: {mode: required, caCertificates: [clients.pem]}";
const OPTIONAL: &str = ", clientCertificates: {mode: optional, caCertificates: [clients.pem]}";

struct Setup {
    perch: TestPerch,
    backend: TestBackend,
    ca: Authority,
}

impl Setup {
    fn new(more: &str) -> Self {
        let backend = TestBackend::named("in");
        let launch = Launch::new("");
        write_certificate(launch.dir(), "localhost", &["localhost"]);
        let ca = Authority::new(launch.dir(), "clients");
        Self { perch: launch.config(&config(&backend, more)).start(), backend, ca }
    }

    fn dir(&self) -> &Path {
        self.perch.dir()
    }
}

#[test]
fn only_clients_with_a_certificate_that_holds_get_in() {
    let setup = Setup::new(REQUIRED);
    let good = setup.ca.issue(setup.dir(), "alice", &["alice.example"]);
    let stranger = Authority::new(setup.dir(), "stranger").issue(setup.dir(), "mallory", &["alice.example"]);
    let expired = setup.ca.issue_until(setup.dir(), "old", &["alice.example"], 2020);

    for bad in [None, Some(&stranger), Some(&expired)] {
        assert!(get(&setup.perch, &showing(bad), "").is_err(), "{bad:?}");
    }
    assert_eq!(setup.backend.count(), 0);
    assert_eq!(get(&setup.perch, &showing(Some(&good)), "").unwrap(), 200);

    let identity = setup.backend.last().header(HEADER).unwrap();
    assert!(identity.starts_with("Hash=") && identity.contains("CN=alice"), "{identity}");
    assert!(identity.ends_with(";DNS=\"alice.example\""), "{identity}");
    let series = "perch_rejected_total{reason=\"tls-client-certificate\"}";
    eventually(PATIENCE, || setup.perch.metric(series) == Some(3.0));
}

#[test]
fn optional_is_none_or_one_that_holds() {
    let setup = Setup::new(OPTIONAL);
    let good = setup.ca.issue(setup.dir(), "alice", &["alice.example"]);
    let stranger = Authority::new(setup.dir(), "stranger").issue(setup.dir(), "mallory", &["alice.example"]);

    assert_eq!(get(&setup.perch, &showing(None), "").unwrap(), 200);
    assert_eq!(setup.backend.last().header(HEADER), None);
    assert!(get(&setup.perch, &showing(Some(&stranger)), "").is_err());
    assert_eq!(get(&setup.perch, &showing(Some(&good)), "").unwrap(), 200);
    assert!(setup.backend.last().header(HEADER).is_some());
}

#[test]
fn nobody_forges_who_they_are() {
    let setup = Setup::new(OPTIONAL);
    let good = setup.ca.issue(setup.dir(), "alice", &["alice.example"]);
    let forged = "X-Forwarded-Client-Cert: Hash=00;Subject=\"CN=root\"\r\n";

    assert_eq!(get(&setup.perch, &showing(None), forged).unwrap(), 200);
    assert_eq!(setup.backend.last().header(HEADER), None);
    assert_eq!(get(&setup.perch, &showing(Some(&good)), forged).unwrap(), 200);
    let seen = setup.backend.last().headers(HEADER);
    assert!(seen.len() == 1 && seen[0].contains("CN=alice"), "{seen:?}");
    let alias = forged.replace("Client-Cert", "Client_Cert");
    assert_eq!(get(&setup.perch, &showing(Some(&good)), &alias).unwrap(), 400);
    let nominated = "connection: x-forwarded-client-cert\r\n";
    assert_eq!(get(&setup.perch, &showing(Some(&good)), nominated).unwrap(), 400);

    // On a listener that asks for none: dropped too, unless a trusted proxy says it.
    let plain = |source: [u8; 4]| {
        let mut client = Client::plain_from(source.into(), setup.perch.address("http"));
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{forged}\r\n"));
        assert_eq!(client.response().status, 200);
        setup.backend.last().header(HEADER)
    };
    assert_eq!(plain([127, 0, 0, 1]), None);
    assert!(plain([127, 0, 0, 9]).unwrap().contains("CN=root"));
}

#[test]
fn no_session_is_resumed_where_certificates_are_asked_for() {
    let setup = Setup::new(REQUIRED);
    let good = setup.ca.issue(setup.dir(), "alice", &["alice.example"]);
    let config = showing(Some(&good));

    for _ in 0..3 {
        let mut client = connect(&setup.perch, &config).unwrap();
        assert_eq!(client.get("localhost", "/").status, 200);
        assert_ne!(client.tls_connection().handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(setup.backend.last().header(HEADER).is_some());
    }
}

#[test]
fn a_session_from_before_the_demand_is_no_way_in() {
    let setup = Setup::new("");
    let config = showing(None);
    let mut open = connect(&setup.perch, &config).unwrap();
    assert_eq!(open.get("localhost", "/").status, 200);
    let generation = setup.perch.metric("perch_config_generation");

    setup.perch.rewrite_config(&self::config(&setup.backend, REQUIRED));
    eventually(PATIENCE, || setup.perch.metric("perch_config_generation") > generation);

    assert_refused(&open.get("localhost", "/"), 421, "misdirected");
    eventually(PATIENCE, || get(&setup.perch, &config, "").is_err());
    assert_eq!(setup.backend.count(), 1);
}

#[test]
fn another_ca_counts_at_once_and_a_broken_file_changes_nothing() {
    let setup = Setup::new(REQUIRED);
    let alice = setup.ca.issue(setup.dir(), "alice", &["alice.example"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let new = Authority::new(elsewhere.path(), "clients");
    let bob = new.issue(setup.dir(), "bob", &["bob.example"]);
    assert_eq!(get(&setup.perch, &showing(Some(&alice)), "").unwrap(), 200);
    assert!(get(&setup.perch, &showing(Some(&bob)), "").is_err());

    replace_file(&setup.ca.ca_file, &std::fs::read_to_string(&new.ca_file).unwrap());
    eventually(PATIENCE, || get(&setup.perch, &showing(Some(&bob)), "").is_ok());
    assert!(get(&setup.perch, &showing(Some(&alice)), "").is_err());
    replace_file(&setup.ca.ca_file, "no certificate");
    eventually(PATIENCE, || {
        format!("{}{}", setup.perch.stdout(), setup.perch.stderr()).contains("holds no certificate")
    });

    assert_eq!(get(&setup.perch, &showing(Some(&bob)), "").unwrap(), 200);
    assert!(get(&setup.perch, &showing(None), "").is_err());
}
