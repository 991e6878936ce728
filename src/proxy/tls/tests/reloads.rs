//! Files that change, and files that are wrong.

use super::*;

async fn served(tls: &Tls, name: &str) -> CertificateDer<'static> {
    connect(tls, client(TlsVersion::V1_3, |_| ()), name).await.unwrap().leaf
}

#[tokio::test]
async fn a_replaced_pair_is_served_after_a_reload() {
    let dir = Dir::new();
    let (a, b) = (dir.pair("a", &["a.example"]), dir.pair("b", &["b.example"]));
    let tls = listener(&settings(vec![a.clone(), b.clone()]));

    dir.pair("b", &["b.example", "c.example"]);
    let reload = tls.reload();

    assert_eq!(reload.replaced, [Arc::from("b.example")]);
    assert_eq!((reload.kept, reload.warnings), (vec![], vec![]));
    assert_eq!(served(&tls, "a.example").await, leaf(&a.cert_file));
    assert_eq!(served(&tls, "b.example").await, leaf(&b.cert_file));
    assert_eq!(served(&tls, "c.example").await, leaf(&b.cert_file));
}

#[tokio::test]
async fn an_unchanged_pair_is_not_replaced() {
    let dir = Dir::new();
    let tls = listener(&settings(vec![dir.pair("a", &["a.example"])]));
    let before = tls.certificates();

    let reload = tls.reload();

    assert!(reload.replaced.is_empty());
    assert!(Arc::ptr_eq(&before[0], &tls.certificates()[0]));
}

#[tokio::test]
async fn a_broken_pair_keeps_its_old_certificate_and_is_reported() {
    /// What it is, how it is done, the key that is blamed, and a part of the message.
    type Damage = (&'static str, fn(&CertificateFiles), &'static str, &'static str);
    let breaks: [Damage; 8] = [
        ("certificate gone", |files| std::fs::remove_file(&files.cert_file).unwrap(), "certFile", "cannot be read"),
        ("key gone", |files| std::fs::remove_file(&files.key_file).unwrap(), "keyFile", "cannot be read"),
        (
            "certificate empty",
            |files| std::fs::write(&files.cert_file, "").unwrap(),
            "certFile",
            "holds no certificate",
        ),
        ("key garbage", |files| std::fs::write(&files.key_file, "garbage").unwrap(), "keyFile", "holds no private key"),
        (
            "half a certificate",
            |files| {
                let whole = std::fs::read(&files.cert_file).unwrap();
                std::fs::write(&files.cert_file, &whole[..whole.len() / 2]).unwrap();
            },
            "certFile",
            "is not PEM",
        ),
        (
            "another key",
            |files| std::fs::write(&files.key_file, self_signed(&["a.example"]).unwrap().1).unwrap(),
            "keyFile",
            "is not the key of",
        ),
        (
            "PEM around garbage",
            |files| {
                let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                std::fs::write(&files.cert_file, text).unwrap();
            },
            "certFile",
            "holds a broken certificate",
        ),
        (
            "a directory",
            |files| {
                std::fs::remove_file(&files.cert_file).unwrap();
                std::fs::create_dir(&files.cert_file).unwrap();
            },
            "certFile",
            "is not a file",
        ),
    ];
    for (what, damage, key, message) in breaks {
        let dir = Dir::new();
        let (a, b) = (dir.pair("a", &["a.example"]), dir.pair("b", &["b.example"]));
        let tls = listener(&settings(vec![a.clone(), b.clone()]));
        let old = leaf(&a.cert_file);

        damage(&a);
        dir.pair("b", &["b.example"]);
        let reload = tls.reload();

        assert_eq!(reload.kept.len(), 1, "{what}");
        assert_eq!(reload.kept[0].path, format!("listeners[0].tls.certificates[0].{key}"), "{what}");
        assert!(reload.kept[0].message.contains(message), "{what}: {}", reload.kept[0]);
        assert!(reload.kept[0].message.contains("; write "), "{what}: {}", reload.kept[0]);
        assert_eq!(served(&tls, "a.example").await, old, "{what}");
        assert_eq!(served(&tls, "b.example").await, leaf(&b.cert_file), "{what}");
    }
}

#[tokio::test]
async fn a_swapped_symlink_is_followed() {
    // Kubernetes mounts tls.crt -> ..data/tls.crt, and swaps ..data to another directory.
    let dir = Dir::new();
    for version in ["v1", "v2"] {
        std::fs::create_dir(dir.0.join(version)).unwrap();
        dir.pair(&format!("{version}/tls"), &["a.example"]);
    }
    let data = dir.0.join("..data");
    std::os::unix::fs::symlink("v1", &data).unwrap();
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), dir.0.join(file)).unwrap();
    }
    let files = CertificateFiles { cert_file: dir.0.join("tls.crt"), key_file: dir.0.join("tls.key") };
    let tls = listener(&settings(vec![files]));
    assert_eq!(served(&tls, "a.example").await, leaf(&dir.0.join("v1/tls.crt")));

    let next = dir.0.join("..data_tmp");
    std::os::unix::fs::symlink("v2", &next).unwrap();
    std::fs::rename(&next, &data).unwrap();
    let reload = tls.reload();

    assert_eq!(reload.replaced.len(), 1);
    assert_eq!(served(&tls, "a.example").await, leaf(&dir.0.join("v2/tls.crt")));
}

#[tokio::test]
async fn sessions_live_on_over_reloads_and_changes_of_the_listener() {
    let dir = Dir::new();
    let before = settings(vec![dir.pair("a", &["a.example"])]);
    let tls = listener(&before);
    let config = client(TlsVersion::V1_3, |config| config.resumption = Resumption::in_memory_sessions(8));
    connect(&tls, Arc::clone(&config), "a.example").await.unwrap();

    dir.pair("a", &["a.example"]);
    assert_eq!(tls.reload().replaced.len(), 1);
    let reloaded = connect(&tls, Arc::clone(&config), "a.example").await.unwrap();
    let after = config::Tls { strict_sni: true, ..before };
    let (changed, _) = Tls::new("listeners[0].tls", &after, Some(&tls)).unwrap();
    let changed = connect(&changed, config, "a.example").await.unwrap();

    assert_eq!((reloaded.kind, changed.kind), (HandshakeKind::Resumed, HandshakeKind::Resumed));
}

#[tokio::test]
async fn a_changed_listener_keeps_the_old_certificate_of_a_pair_that_broke() {
    let dir = Dir::new();
    let files = dir.pair("a", &["a.example"]);
    let old = leaf(&files.cert_file);
    let settings = settings(vec![files.clone()]);
    let tls = listener(&settings);

    std::fs::write(&files.cert_file, "").unwrap();
    let (changed, warnings) = Tls::new("listeners[0].tls", &settings, Some(&tls)).unwrap();

    assert_eq!(warnings.len(), 1);
    assert_eq!(served(&changed, "a.example").await, old);
}

#[test]
fn every_broken_pair_is_reported_at_once() {
    let dir = Dir::new();
    let gone = |name: &str| CertificateFiles { cert_file: dir.0.join(name), key_file: dir.0.join("x") };

    let settings = settings(vec![gone("a"), dir.pair("good", &["a.example"]), gone("b")]);
    let problems = Tls::new("listeners[1].tls", &settings, None).unwrap_err();

    let paths: Vec<_> = problems.iter().map(|problem| &*problem.path).collect();
    assert_eq!(paths, ["listeners[1].tls.certificates[0].certFile", "listeners[1].tls.certificates[2].certFile"]);
}

#[test]
fn an_encrypted_key_is_called_one() {
    let dir = Dir::new();
    let (certificate, _) = self_signed(&["a.example"]).unwrap();
    let key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";

    let settings = settings(vec![dir.write("a", &certificate, key)]);
    let problems = Tls::new("listeners[0].tls", &settings, None).unwrap_err();

    assert!(problems[0].message.contains("only an encrypted key"), "{}", problems[0]);
}

#[tokio::test]
async fn an_untimely_certificate_is_served_with_a_warning() {
    for (from, until, word) in [(1990, 2000, "expired"), (2200, 2201, "is not valid before")] {
        let dir = Dir::new();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let files = dir.write("a", &params.self_signed(&key).unwrap().pem(), &key.serialize_pem());

        let (tls, warnings) = Tls::new("listeners[0].tls", &settings(vec![files.clone()]), None).unwrap();

        assert_eq!(warnings[0].path, "listeners[0].tls.certificates[0]");
        assert!(warnings[0].message.contains(word), "{}", warnings[0]);
        assert_eq!(tls.certificates()[0].not_after, rcgen::date_time_ymd(until, 1, 1).unix_timestamp());
        assert_eq!(served(&tls, "a.example").await, leaf(&files.cert_file));
    }
}

#[test]
fn a_certificate_covers_its_names_and_addresses() {
    let dir = Dir::new();
    let files = dir.pair("a", &["a.example", "*.b.example", "127.0.0.1", "::1"]);
    let certificate = &listener(&settings(vec![files])).certificates()[0];

    for host in ["a.example", "A.Example", "x.b.example", "127.0.0.1", "[::1]"] {
        assert!(certificate.covers(host), "{host}");
    }
    for host in ["b.example", "x.y.b.example", "x.a.example", "127.0.0.2", "[::2]", "", "."] {
        assert!(!certificate.covers(host), "{host}");
    }
    assert_eq!(&*certificate.label, "a.example");
}

#[test]
fn a_self_signed_certificate_lives_a_year() {
    let dir = Dir::new();
    let certificate = &listener(&settings(vec![dir.pair("a", &["localhost", "127.0.0.1"])])).certificates()[0];

    let days = (certificate.not_after - certificate.not_before) / 86_400;

    assert!((360..=366).contains(&days), "{days}");
}
