//! TLS below HTTP (row E6): records that are too long, empty or endless, keys changed all the time, ends without a word.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::front::{Front, front_tls};
use crate::support::{Authority, Certificate, Client, Launch, PATIENCE, connect_from, tls_config};

fn tls_address(front: &Front) -> SocketAddr {
    front.perch.address("https")
}

fn is_served(front: &Front) -> bool {
    Client::tls(tls_address(front), "localhost").get("localhost", "/").status == 200
}

fn resident_kib(front: &Front) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", front.perch.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends this again and again until the other side has had enough; true when that was before `limit` bytes and in time.
fn is_stopped(socket: &mut TcpStream, bytes: &[u8], limit: usize) -> bool {
    let (block, end) = (bytes.repeat(1 + 16_384 / bytes.len()), Instant::now() + PATIENCE);
    let mut sent = 0;
    while sent < limit && Instant::now() < end {
        if socket.write_all(&block).is_err() {
            return true;
        }
        sent += block.len();
    }
    // What was sent may all be in buffers: the end comes then.
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

#[test]
fn a_record_longer_than_tls_allows_ends_the_connection() {
    let front = front_tls("", "");
    for kind in [22, 23] {
        let mut socket = connect_from([127, 0, 0, 1].into(), tls_address(&front)).unwrap();
        // A handshake and a data record of 2^14 + 257 bytes.
        let mut record = vec![kind, 3, 3, 0x41, 0x01];
        record.resize(5 + 0x4101, 1);

        assert!(is_stopped(&mut socket, &record, record.len()));
    }
    assert!(is_served(&front));
}

#[test]
fn a_flood_of_empty_records_ends_the_connection() {
    let front = front_tls("timeouts: {tlsHandshake: 2s}", "");
    let before = resident_kib(&front);
    let mut socket = connect_from([127, 0, 0, 1].into(), tls_address(&front)).unwrap();

    // Empty handshake records, some 13 million of them.
    assert!(is_stopped(&mut socket, &[22, 3, 3, 0, 0], 64 << 20));

    assert!(is_served(&front));
    let grown = resident_kib(&front).saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB");
}

#[test]
fn keys_changed_all_the_time_cost_no_memory_and_nobody_else() {
    let front = front_tls("", "");
    let mut socket = connect_from([127, 0, 0, 1].into(), tls_address(&front)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(tls_config(&[b"http/1.1"]), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).unwrap();
    }
    assert!(is_served(&front));
    let before = resident_kib(&front);

    socket.set_nonblocking(false).unwrap();
    for _ in 0..20_000 {
        // Nothing is read: the answers to it must not pile up in perch.
        if connection.refresh_traffic_keys().is_err() || connection.write_tls(&mut socket).is_err() {
            break;
        }
    }

    assert!(is_served(&front));
    let grown = resident_kib(&front).saturating_sub(before);
    assert!(grown < 20_000, "{grown} KiB");
}

/// An endpoint with TLS that answers one request per connection by a body that ends with the connection: by
/// `close_notify`, or by a bare end of TCP.
fn endpoint(certificate: &Certificate, says_goodbye: bool) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(&certificate.cert_file).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&certificate.key_file).unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket);
            let mut head = [0; 4096];
            if tls.read(&mut head).is_ok() {
                tls.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nto the end").unwrap();
                if says_goodbye {
                    tls.conn.send_close_notify();
                }
                tls.flush().ok();
            }
        }
    });
    address
}

#[test]
fn a_body_that_ends_without_close_notify_is_cut_not_whole() {
    for says_goodbye in [true, false] {
        let launch = Launch::new("");
        let ca = Authority::new(launch.dir(), "ca");
        let endpoint = endpoint(&ca.issue(launch.dir(), "app", &["app.internal"]), says_goodbye);
        let text = format!(
            "admin: {{address: '127.0.0.1:0'}}\nlisteners: [{{name: http, address: '127.0.0.1:0'}}]\n\
             routes: [{{service: app}}]\nservices:\n  - name: app\n    versions: [{{name: v, endpoints: ['{endpoint}']}}]\n    \
             tls: {{validation: {{caCertificates: [ca.pem], hostname: app.internal}}}}\n"
        );
        let perch = launch.config(&text).start();
        let mut client = Client::plain(perch.address("http")).deadline(Duration::from_secs(10));
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

        let answer = client.try_response();

        match answer {
            Ok(answer) => assert!(says_goodbye && answer.text() == "to the end", "{answer:?}"),
            Err(error) => assert!(!says_goodbye && error.kind() == std::io::ErrorKind::UnexpectedEof, "{error:?}"),
        }
    }
}
