//! TLS as a client sees it: certificates by name, their replacement under way, and what is refused, with which words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use perch::decide::proxy_protocol::encode_v2;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::ServerName;

use crate::support::h2::H2;
use crate::support::{
    Certificate, Client, Launch, PATIENCE, TestBackend, TestPerch, connect_from, eventually, ok, tls_config,
    write_certificate,
};

/// A listener with the pairs NAME-cert.pem and NAME-key.pem of the test's folder. `more` is of the listener, `tls` of
/// its `tls`; each line with its indentation.
fn config(backend: &TestBackend, pairs: &[&str], tls: &str, more: &str) -> String {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|name| format!("{{certFile: '${{dir}}/{name}-cert.pem', keyFile: '${{dir}}/{name}-key.pem'}}"))
        .collect();
    format!(
        "workers: 2
admin: {{address: '127.0.0.1:0'}}
listeners:
  - name: https
    address: 127.0.0.1:0
    tls:
      certificates: [{}]
{tls}{more}routes:
  - service: hello
services:
  - name: hello
    versions:
      - {{name: stable, weight: 1, endpoints: ['{}']}}
",
        pairs.join(", "),
        backend.address()
    )
}

/// A perch that serves `a.example`, with its certificate.
fn perch(backend: &TestBackend, tls: &str, more: &str) -> (TestPerch, Certificate) {
    let launch = Launch::new(&config(backend, &["a"], tls, more));
    let certificate = write_certificate(launch.dir(), "a", &["a.example"]);
    (launch.start(), certificate)
}

fn presented(address: SocketAddr, server_name: &str) -> Vec<u8> {
    Client::tls(address, server_name).peer_certificate()
}

/// A handshake with a client of the test's own.
fn try_connect(address: SocketAddr, server_name: &str, config: Arc<ClientConfig>) -> std::io::Result<Client> {
    Client::try_tls(IpAddr::V4(Ipv4Addr::LOCALHOST), address, server_name, config)
}

/// The alert that ended a handshake.
#[track_caller]
fn alert(result: std::io::Result<Client>) -> rustls::AlertDescription {
    let error = result.unwrap_err();
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error:?}"),
    }
}

fn rejected(perch: &TestPerch, reason: &str) -> f64 {
    perch.metric(&format!("perch_rejected_total{{reason=\"{reason}\"}}")).unwrap_or(0.0)
}

#[test]
fn each_server_name_gets_its_own_certificate_and_an_unknown_one_the_first() {
    let backend = TestBackend::named("hello");
    let launch = Launch::new(&config(&backend, &["a", "b"], "", ""));
    let a = write_certificate(launch.dir(), "a", &["a.example"]);
    let b = write_certificate(launch.dir(), "b", &["b.example", "*.b.example"]);
    let perch = launch.start();
    let address = perch.address("https");

    for (name, certificate) in
        [("a.example", &a), ("B.Example", &b), ("x.b.example", &b), ("other.example", &a), ("127.0.0.1", &a)]
    {
        assert_eq!(presented(address, name), certificate.der, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_what_alpn_agrees_on() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");
    let address = perch.address("https");

    let mut h2 = H2::tls(address, "a.example").await;
    let response = h2.get("/").await;
    assert_eq!((response.head.status.as_u16(), &*response.body), (200, &b"hello"[..]));
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let mut client = try_connect(address, "a.example", tls_config(alpn)).unwrap();
        assert_eq!(client.get("a.example", "/").text(), "hello");
    }
}

#[test]
fn no_common_protocol_ends_the_handshake_with_an_alert() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");

    let refused = try_connect(perch.address("https"), "a.example", tls_config(&[b"smtp"]));

    assert_eq!(alert(refused), rustls::AlertDescription::NoApplicationProtocol);
    eventually(PATIENCE, || rejected(&perch, "tls-alpn") >= 1.0);
}

#[test]
fn strict_sni_refuses_an_unknown_name_with_an_alert() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "      strictSni: true\n", "");

    let refused = try_connect(perch.address("https"), "b.example", tls_config(&[b"http/1.1"]));
    let known = Client::tls(perch.address("https"), "a.example").get("a.example", "/");

    assert_eq!(alert(refused), rustls::AlertDescription::UnrecognisedName);
    assert_eq!(known.status, 200);
    eventually(PATIENCE, || rejected(&perch, "tls-sni") >= 1.0);
}

#[test]
fn a_client_below_the_least_version_is_refused_with_an_alert() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "      minVersion: \"1.3\"\n", "");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();

    let refused = try_connect(perch.address("https"), "a.example", Arc::new(old));

    assert_eq!(alert(refused), rustls::AlertDescription::ProtocolVersion);
    eventually(PATIENCE, || rejected(&perch, "tls-version") >= 1.0);
}

#[test]
fn plain_http_on_the_tls_port_gets_a_plain_answer() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");

    let response = Client::plain(perch.address("https")).get("a.example", "/");

    assert_eq!((response.status, response.header("perch-reason")), (400, Some("tls-not-tls")));
    assert_eq!(backend.count(), 0);
    eventually(PATIENCE, || rejected(&perch, "tls-not-tls") >= 1.0);
}

#[test]
fn a_handshake_that_stalls_is_closed_at_its_deadline() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "    timeouts: {tlsHandshake: 200ms}\n");

    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut client = Client::plain(perch.address("https"));
        client.send(sent);
        assert!(client.is_closed_within(PATIENCE), "{sent:?}");
    }
    eventually(PATIENCE, || rejected(&perch, "tls-timeout") >= 3.0);
}

/// The record that opens a handshake with `a.example`.
fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from("a.example").unwrap();
    let mut connection = ClientConnection::new(tls_config(&[b"http/1.1"]), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_server_name_that_is_none_is_refused_and_not_logged() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");
    let mut hello = client_hello();
    let at = hello.windows(9).position(|window| window == b"a.example").unwrap();

    for bad in [0, b' ', 0xff] {
        let before = rejected(&perch, "tls-sni");
        hello[at] = bad;
        let mut client = Client::plain(perch.address("https"));
        client.send(&hello);
        let alert = client.read_exact(7).unwrap();
        assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert");
        eventually(PATIENCE, || rejected(&perch, "tls-sni") > before);
    }

    assert!(!perch.stderr().contains("SNI"), "{}", perch.stderr());
}

#[test]
fn a_client_hello_in_one_byte_records_works() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");

    let mut client = Client::plain(perch.address("https"));
    for byte in &client_hello()[5..] {
        client.send([22, 3, 1, 0, 1, *byte]);
    }

    assert_eq!(client.read_exact(1).unwrap(), [22], "a ServerHello, not an alert");
}

#[test]
fn sessions_are_resumed_whichever_worker_answers() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");
    let mut client = Arc::unwrap_or_clone(tls_config(&[b"http/1.1"]));
    client.resumption = Resumption::in_memory_sessions(64);
    let client = Arc::new(client);

    let kinds: Vec<_> = (0..20)
        .map(|_| {
            let mut client = try_connect(perch.address("https"), "a.example", Arc::clone(&client)).unwrap();
            assert_eq!(client.get("a.example", "/").status, 200);
            client.tls_connection().handshake_kind().unwrap()
        })
        .collect();

    assert_eq!(kinds[0], HandshakeKind::Full);
    assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
}

#[test]
fn a_last_answer_of_any_size_ends_with_a_close_notify() {
    let backend = TestBackend::scripted(|seen| ok(seen, &"x".repeat(seen.target()[1..].parse().unwrap())));
    let (perch, _) = perch(&backend, "", "");

    for size in [0, 10, 4_000, 20_000, 300_000] {
        let mut client = Client::tls(perch.address("https"), "a.example");
        client.send(format!("GET /{size} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n"));
        let answer = client.response();
        assert_eq!((answer.body.len(), said_goodbye(&mut client)), (size, true));
    }
}

/// Reads to the end of the connection: with nothing before it but a close_notify, after which rustls wants no more.
fn said_goodbye(client: &mut Client) -> bool {
    client.read_to_end().unwrap().is_empty() && !client.tls_connection().wants_read()
}

#[test]
fn a_client_that_says_goodbye_hears_one() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");
    let mut client = Client::tls(perch.address("https"), "a.example");
    assert_eq!(client.get("a.example", "/").status, 200);

    client.half_close();

    assert!(said_goodbye(&mut client));
}

#[test]
fn a_replaced_certificate_is_served_and_open_connections_live_on() {
    let backend = TestBackend::named("hello");
    let (perch, old) = perch(&backend, "", "");
    let address = perch.address("https");
    let mut open = Client::tls(address, "a.example");
    assert_eq!(open.peer_certificate(), old.der);
    assert_eq!(open.get("a.example", "/").status, 200);

    let new = write_certificate(perch.dir(), "a", &["a.example"]);
    eventually(PATIENCE, || presented(address, "a.example") == new.der);

    assert_eq!(open.get("a.example", "/").status, 200);
}

#[test]
fn a_broken_pair_keeps_the_old_certificate_and_is_logged_with_its_key_path() {
    let backend = TestBackend::named("hello");
    let (perch, old) = perch(&backend, "", "");
    let address = perch.address("https");

    std::fs::write(&old.key_file, "garbage").unwrap();
    eventually(PATIENCE, || (perch.stdout() + &perch.stderr()).contains("listeners[0].tls.certificates[0].keyFile"));
    assert_eq!(presented(address, "a.example"), old.der);

    let new = write_certificate(perch.dir(), "a", &["a.example"]);
    eventually(PATIENCE, || presented(address, "a.example") == new.der);
}

#[test]
fn a_swapped_secret_is_followed() {
    let backend = TestBackend::named("hello");
    let config =
        config(&backend, &["a"], "", "").replace("a-cert.pem", "mount/tls.crt").replace("a-key.pem", "mount/tls.key");
    let launch = Launch::new(&config);
    let mount = launch.dir().join("mount");
    let old = version(&mount, "..2026_01");
    std::os::unix::fs::symlink("..2026_01", mount.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), mount.join(file)).unwrap();
    }
    let perch = launch.start();
    assert_eq!(presented(perch.address("https"), "a.example"), old);

    // As the kubelet does it: another directory, and one rename of the link.
    let new = version(&mount, "..2026_02");
    std::os::unix::fs::symlink("..2026_02", mount.join("..data_tmp")).unwrap();
    std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    std::fs::remove_dir_all(mount.join("..2026_01")).unwrap();

    eventually(PATIENCE, || presented(perch.address("https"), "a.example") == new);
}

/// A version of a mounted Secret; its certificate.
fn version(mount: &Path, name: &str) -> Vec<u8> {
    let dir = mount.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let certificate = write_certificate(&dir, "a", &["a.example"]);
    std::fs::rename(certificate.cert_file, dir.join("tls.crt")).unwrap();
    std::fs::rename(certificate.key_file, dir.join("tls.key")).unwrap();
    certificate.der
}

#[test]
fn replacing_certificates_under_load_fails_nobody() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");
    let address = perch.address("https");
    let stop = AtomicBool::new(false);

    let requests = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut requests = 0;
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(Client::tls(address, "a.example").get("a.example", "/").status, 200);
                        requests += 1;
                    }
                    requests
                })
            })
            .collect();
        for _ in 0..10 {
            let new = write_certificate(perch.dir(), "a", &["a.example"]);
            eventually(PATIENCE, || presented(address, "a.example") == new.der);
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u32>()
    });

    assert!(requests > 0);
    assert!(rejected(&perch, "tls-handshake") < 1.0);
}

#[test]
fn each_certificate_has_its_end_in_the_metrics() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "");

    let text = perch.admin_get("/metrics").text();

    let series = text.lines().find(|line| line.starts_with("perch_tls_certificate_not_after_seconds{")).unwrap();
    assert!(series.contains("\"a.example\""), "{series}");
    let end: f64 = series.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(end > 1.7e9, "{series}");
}

#[test]
fn a_host_that_is_neither_routed_nor_in_the_certificate_is_misdirected() {
    let backend = TestBackend::named("hello");
    let config =
        config(&backend, &["a"], "", "").replace("- service: hello", "- {service: hello, hostnames: [a.example]}");
    let launch = Launch::new(&config);
    write_certificate(launch.dir(), "a", &["a.example", "unrouted.example"]);
    let perch = launch.start();
    let mut client = Client::tls(perch.address("https"), "a.example");

    assert_eq!(client.get("a.example", "/").status, 200);
    assert_eq!(client.get("unrouted.example", "/").status, 404);
    assert_eq!(client.get("b.example", "/").status, 421);
}

#[test]
fn unusable_pairs_are_all_reported_and_nothing_is_served() {
    let backend = TestBackend::named("hello");
    let launch = Launch::new(&config(&backend, &["gone", "a", "b"], "", ""));
    write_certificate(launch.dir(), "a", &["a.example"]);
    let b = write_certificate(launch.dir(), "b", &["b.example"]);
    std::fs::copy(launch.dir().join("a-key.pem"), b.key_file).unwrap();

    let output = launch.output();

    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("listeners[0].tls.certificates[0].certFile"), "{text}");
    assert!(!text.contains("listeners[0].tls.certificates[1]"), "{text}");
    assert!(text.contains("listeners[0].tls.certificates[2].keyFile"), "{text}");
}

#[test]
fn a_proxy_header_and_the_client_hello_may_come_at_once() {
    let backend = TestBackend::named("hello");
    let (perch, _) = perch(&backend, "", "    proxyProtocol: {trusted: [127.0.0.0/8]}\n");
    let address = perch.address("https");
    let name = ServerName::try_from("a.example").unwrap();
    let mut connection = ClientConnection::new(tls_config(&[b"http/1.1"]), name).unwrap();
    let mut first = encode_v2("192.0.2.7:1234".parse().unwrap(), address);
    connection.write_tls(&mut first).unwrap();

    let mut socket = connect_from(IpAddr::V4(Ipv4Addr::LOCALHOST), address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut socket, &first).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).unwrap();
    }
    let mut stream = rustls::StreamOwned::new(connection, socket);
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();
    eventually(PATIENCE, || backend.count() == 1);

    assert_eq!(backend.last().header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
}
