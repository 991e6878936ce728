//! Real handshakes with a rustls client, or bytes by hand where rustls would not send them.

use super::*;

#[tokio::test]
async fn each_name_gets_its_own_certificate_in_any_case() {
    let dir = Dir::new();
    let hello = dir.pair("hello", &["hello.example"]);
    let auth = dir.pair("auth", &["auth.example", "*.auth.example"]);
    let tls = listener(&settings(vec![hello.clone(), auth.clone()]));

    for (name, files) in [("hello.example", &hello), ("AUTH.Example", &auth), ("a.auth.example", &auth)] {
        for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
            let seen = connect(&tls, client(version, |_| ()), name).await.unwrap();
            assert_eq!(seen.leaf, leaf(&files.cert_file), "{name}");
        }
    }
}

#[tokio::test]
async fn an_unknown_or_missing_name_gets_the_first_certificate() {
    let dir = Dir::new();
    let first = dir.pair("first", &["first.example"]);
    let tls = listener(&settings(vec![first.clone(), dir.pair("second", &["*.second.example"])]));

    // An address is never sent as SNI. A wildcard stands for one label.
    for name in ["other.example", "127.0.0.1", "a.b.second.example", "second.example"] {
        let seen = connect(&tls, client(TlsVersion::V1_3, |_| ()), name).await.unwrap();
        assert_eq!(seen.leaf, leaf(&first.cert_file), "{name}");
        assert_eq!(&*seen.label, "first.example");
    }
}

#[tokio::test]
async fn an_exact_name_wins_over_a_wildcard_that_comes_first() {
    let dir = Dir::new();
    let exact = dir.pair("exact", &["a.example"]);
    let tls = listener(&settings(vec![dir.pair("wild", &["*.example"]), exact.clone()]));

    let seen = connect(&tls, client(TlsVersion::V1_3, |_| ()), "a.example").await.unwrap();

    assert_eq!(seen.leaf, leaf(&exact.cert_file));
}

#[tokio::test]
async fn strict_sni_refuses_an_unknown_name_but_serves_clients_without_one() {
    let dir = Dir::new();
    let tls = listener(&config::Tls { strict_sni: true, ..settings(vec![dir.pair("a", &["a.example"])]) });

    let (reason, error) = connect(&tls, client(TlsVersion::V1_3, |_| ()), "b.example").await.unwrap_err();
    let unnamed = connect(&tls, client(TlsVersion::V1_3, |_| ()), "127.0.0.1").await;

    assert_eq!(reason.as_str(), "tls-sni");
    assert_eq!(alert(&error), rustls::AlertDescription::UnrecognisedName);
    assert!(unnamed.is_ok());
}

#[tokio::test]
async fn a_client_that_knows_no_ecdsa_gets_the_rsa_certificate_of_the_name() {
    let dir = Dir::new();
    let ecdsa = dir.pair("ecdsa", &["a.example"]);
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let certificate = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let rsa = dir.write("rsa", &certificate.pem(), &key.serialize_pem());
    let tls = listener(&settings(vec![ecdsa.clone(), rsa.clone()]));
    let suite = aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;
    let old = || CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };

    for name in ["a.example", "unknown.example"] {
        let seen = connect(&tls, client_with(old(), TlsVersion::V1_2, |_| ()), name).await.unwrap();
        assert_eq!(seen.leaf, leaf(&rsa.cert_file), "{name}");
        let seen = connect(&tls, client(TlsVersion::V1_2, |_| ()), name).await.unwrap();
        assert_eq!(seen.leaf, leaf(&ecdsa.cert_file), "{name}");
    }
}

#[tokio::test]
async fn alpn_chooses_http2_where_it_is_offered() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for (offered, http2) in [(vec!["h2", "http/1.1"], true), (vec!["http/1.1"], false), (vec![], false)] {
        let offer = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let config = client(TlsVersion::V1_3, |config| config.alpn_protocols = offer);
        assert_eq!(connect(&tls, config, "a.example").await.unwrap().http2, http2, "{offered:?}");
    }
}

#[tokio::test]
async fn no_common_protocol_ends_the_handshake() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let config = client(TlsVersion::V1_3, |config| config.alpn_protocols = vec![b"smtp".to_vec()]);

    let (reason, error) = connect(&tls, config, "a.example").await.unwrap_err();

    assert_eq!(reason.as_str(), "tls-alpn");
    assert_eq!(alert(&error), rustls::AlertDescription::NoApplicationProtocol);
}

#[tokio::test]
async fn a_client_below_the_least_version_is_refused() {
    let dir = Dir::new();
    let files = vec![dir.pair("a", &["a.example"])];
    let tls = listener(&config::Tls { min_version: TlsVersion::V1_3, ..settings(files) });

    let (reason, error) = connect(&tls, client(TlsVersion::V1_2, |_| ()), "a.example").await.unwrap_err();

    assert_eq!(reason.as_str(), "tls-version");
    assert_eq!(alert(&error), rustls::AlertDescription::ProtocolVersion);
}

#[tokio::test]
async fn sessions_are_resumed_in_both_versions() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let config = client(version, |config| config.resumption = Resumption::in_memory_sessions(8));
        let first = connect(&tls, Arc::clone(&config), "a.example").await.unwrap();
        let second = connect(&tls, config, "a.example").await.unwrap();
        assert_eq!((first.kind, second.kind), (HandshakeKind::Full, HandshakeKind::Resumed));
    }
}

#[tokio::test]
async fn a_session_is_not_resumed_by_another_listener() {
    let dir = Dir::new();
    let settings = settings(vec![dir.pair("a", &["a.example"])]);
    let (one, other) = (listener(&settings), listener(&settings));

    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let config = client(version, |config| config.resumption = Resumption::in_memory_sessions(8));
        connect(&one, Arc::clone(&config), "a.example").await.unwrap();
        let crossed = connect(&other, config, "a.example").await.unwrap();
        assert_eq!(crossed.kind, HandshakeKind::Full);
    }
}

#[tokio::test]
async fn keys_are_exchanged_without_a_second_round_trip() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let hybrid = CryptoProvider { kx_groups: PROVIDER.kx_groups.clone(), ..aws_lc_rs::default_provider() };

    let classic = connect(&tls, client(TlsVersion::V1_3, |_| ()), "a.example").await.unwrap();
    let modern = connect(&tls, client_with(hybrid, TlsVersion::V1_3, |_| ()), "a.example").await.unwrap();

    assert_eq!((classic.kind, classic.group), (HandshakeKind::Full, Some(rustls::NamedGroup::X25519)));
    assert_eq!((modern.kind, modern.group), (HandshakeKind::Full, Some(rustls::NamedGroup::X25519MLKEM768)));
}

#[tokio::test]
async fn the_cheapest_aes_is_taken_unless_the_client_prefers_chacha20() {
    use aws_lc_rs::cipher_suite as suite;
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (aes128, aes256) = (suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384);
    let chacha = suite::TLS13_CHACHA20_POLY1305_SHA256;
    let (old128, old256) =
        (suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
    let old_chacha = suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;

    for (version, offered, taken) in [
        (TlsVersion::V1_3, vec![aes256, aes128, chacha], aes128),
        (TlsVersion::V1_3, vec![aes256, chacha], aes256),
        (TlsVersion::V1_3, vec![chacha, aes128, aes256], chacha),
        (TlsVersion::V1_2, vec![old256, old128, old_chacha], old128),
        (TlsVersion::V1_2, vec![old_chacha, old256, old128], old_chacha),
    ] {
        let provider = CryptoProvider { cipher_suites: offered, ..aws_lc_rs::default_provider() };
        let seen = connect(&tls, client_with(provider, version, |_| ()), "a.example").await.unwrap();
        assert_eq!(seen.suite, taken.suite());
    }
}

#[tokio::test]
async fn tickets_wait_for_the_first_answer_but_not_for_ever() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (mut near, far) = duplex(1 << 16);
    let name = ServerName::try_from("a.example").unwrap();
    let mut client = ClientConnection::new(client(TlsVersion::V1_3, |_| ()), name).unwrap();

    let handshake = async {
        while client.is_handshaking() {
            exchange(&mut client, &mut near).await;
        }
        exchange(&mut client, &mut near).await;
    };
    let (handshaken, ()) = tokio::join!(tls.handshake(far, &[]), handshake);
    let mut stream = Stream::Tls(Box::new(handshaken.unwrap().stream));
    // What has come so far, if anything.
    let mut chunk = vec![0; 1 << 16];
    if let Ok(length) = tokio::time::timeout(std::time::Duration::from_millis(10), near.read(&mut chunk)).await {
        client.read_tls(&mut &chunk[..length.unwrap()]).unwrap();
        client.process_new_packets().unwrap();
    }
    let before = client.tls13_tickets_received();
    // Waits for a request that does not come.
    let idle = tokio::time::timeout(std::time::Duration::from_millis(10), stream.read_u8()).await;
    exchange(&mut client, &mut near).await;

    assert!(idle.is_err());
    assert_eq!((before, client.tls13_tickets_received()), (0, 2));
}

/// Sends what the client has to say, and gives it what has come.
async fn exchange(client: &mut ClientConnection, near: &mut DuplexStream) {
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    near.write_all(&bytes).await.unwrap();
    let mut chunk = vec![0; 1 << 16];
    if client.is_handshaking() || bytes.is_empty() {
        let length = near.read(&mut chunk).await.unwrap();
        client.read_tls(&mut &chunk[..length]).unwrap();
        client.process_new_packets().unwrap();
    }
}

/// A TLS 1.1 ClientHello: no extensions, AES-CBC suites.
fn tls_1_1_hello() -> Vec<u8> {
    let head = [22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 2];
    let random = [7; 32];
    let tail = [0, 0, 4, 0xc0, 0x14, 0, 0x2f, 1, 0];
    [&head[..], &random, &tail].concat()
}

#[tokio::test]
async fn tls_1_1_is_refused_with_an_alert() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (mut near, far) = duplex(1 << 16);
    near.write_all(&tls_1_1_hello()).await.unwrap();

    let error = tls.handshake(far, &[]).await.unwrap_err();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();

    assert_eq!(error.reason().as_str(), "tls-version");
    assert_eq!((answer.len(), answer[0], answer[5]), (7, 21, 2), "a fatal alert: {answer:?}");
}

#[tokio::test]
async fn plain_http_is_told_apart_and_can_still_be_answered() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    let Err(HandshakeError::NotTls(mut stream)) = tls.handshake(far, &[]).await else {
        panic!("this is not TLS");
    };
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    drop(stream);
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();

    assert_eq!(answer, "HTTP/1.1 400 Bad Request\r\n\r\n");
}

#[tokio::test]
async fn random_bytes_and_ssl_2_are_not_tls() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for bytes in [&b"\x80\x2e\x01\x00\x02"[..], b"\0\0\0", b"\xff"] {
        let (mut near, far) = duplex(1 << 16);
        near.write_all(bytes).await.unwrap();
        assert_eq!(tls.handshake(far, &[]).await.unwrap_err().reason().as_str(), "tls-not-tls");
    }
}

#[tokio::test]
async fn a_client_that_leaves_without_a_byte_is_no_failed_handshake() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (near, far) = duplex(1 << 16);
    drop(near);

    assert!(matches!(tls.handshake(far, &[]).await, Err(HandshakeError::Closed)));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_one() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for length in [1, 5, 20] {
        let (mut near, far) = duplex(1 << 16);
        near.write_all(&tls_1_1_hello()[..length]).await.unwrap();
        drop(near);
        assert_eq!(tls.handshake(far, &[]).await.unwrap_err().reason().as_str(), "tls-handshake");
    }
}

/// The server's answer to a ClientHello in records of `size` bytes, of which `already_read` bytes were read before.
async fn answer_to_hello_in_records_of(tls: &Tls, size: usize, already_read: usize) -> u8 {
    let name = ServerName::try_from("a.example").unwrap();
    let mut connection = ClientConnection::new(client(TlsVersion::V1_3, |_| ()), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut records = Vec::new();
    for fragment in hello[5..].chunks(size) {
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend(fragment);
    }
    let (mut near, far) = duplex(1 << 16);
    near.write_all(&records[already_read..]).await.unwrap();
    let mut first = [0];
    tokio::select! {
        handshake = tls.handshake(far, &records[..already_read]) => panic!("{handshake:?}"),
        read = near.read_exact(&mut first) => read.unwrap(),
    };
    first[0]
}

#[tokio::test]
async fn a_fragmented_client_hello_works() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for size in [1, 2, 7, 300] {
        assert_eq!(answer_to_hello_in_records_of(&tls, size, 0).await, 22, "{size}");
    }
}

#[tokio::test]
async fn bytes_that_the_caller_has_read_count() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));

    for already_read in [1, 5, 100] {
        assert_eq!(answer_to_hello_in_records_of(&tls, 1000, already_read).await, 22, "{already_read}");
    }
}

#[tokio::test]
async fn a_waiting_handshake_stays_small() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let (_near, far) = duplex(64);

    // It is a part of the connection's task, which keeps its largest size until the connection ends.
    let size = size_of_val(&tls.handshake(far, &[]));

    assert!(size < 2048, "{size}");
}
