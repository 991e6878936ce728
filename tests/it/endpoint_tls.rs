//! TLS towards endpoints (row E11): whom perch trusts, the name it expects, its own certificate, reloads of all of them.

use std::net::SocketAddr;

use crate::front::assert_refused;
use crate::support::{
    Authority, Client, Launch, PATIENCE, TestBackend, TestPerch, TlsRelay, eventually, replace_file, write_certificate,
};

/// One endpoint, with these keys of the service.
fn config(endpoint: &str, service: &str) -> String {
    format!(
        "workers: 1\nadmin: {{address: \"127.0.0.1:0\"}}\naccessLog: {{format: json}}\n\
         listeners: [{{name: http, address: \"127.0.0.1:0\"}}]\nroutes: [{{service: app}}]\n\
         services:\n  - name: app\n    versions: [{{name: stable, endpoints: [\"{endpoint}\"]}}]\n{}",
        service.lines().map(|line| format!("    {line}\n")).collect::<String>()
    )
}

fn client(perch: &TestPerch) -> Client {
    Client::plain(perch.address("http"))
}

const TRUSTED: &str = "tls: {validation: {caCertificates: [ca.pem], hostname: app.internal}}";

/// A relay with a certificate for `names`, and a perch before it that is still to be started.
fn behind_tls(names: &[&str], service: &str) -> (Launch, Authority, TlsRelay, TestBackend) {
    let backend = TestBackend::named("over tls");
    let placeholder = Launch::new("");
    let ca = Authority::new(placeholder.dir(), "ca");
    let relay = TlsRelay::start(backend.address(), &ca.issue(placeholder.dir(), "app", names), &["http/1.1"], None);
    let launch = placeholder.config(&config(&relay.address.to_string(), service));
    (launch, ca, relay, backend)
}

#[test]
fn requests_go_over_tls_to_the_name_that_is_configured() {
    let (launch, _ca, relay, backend) = behind_tls(&["app.internal"], TRUSTED);
    let perch = launch.start();
    let mut client = client(&perch);

    for _ in 0..3 {
        assert_eq!(client.get("a", "/").text(), "over tls");
    }
    let answer = client.request("POST / HTTP/1.1\r\nhost: a", &vec![b'x'; 300_000]);

    assert_eq!((answer.status, backend.last().body.len()), (200, 300_000));
    // One connection for all of them: what comes after a handshake is no answer.
    let handshakes = relay.handshakes();
    assert_eq!(handshakes.len(), 1, "{handshakes:?}");
    assert_eq!(handshakes[0].server_name.as_deref(), Some("app.internal"));
    assert_eq!(handshakes[0].alpn.as_deref(), Some("http/1.1"));
}

#[test]
fn without_a_hostname_the_endpoints_own_name_or_address_is_expected() {
    let by_address = "tls: {validation: {caCertificates: [ca.pem]}}";
    let (launch, ca, _relay, backend) = behind_tls(&["127.0.0.1"], by_address);
    let dir = launch.dir().to_owned();
    let perch = launch.start();
    assert_eq!(client(&perch).get("a", "/").text(), "over tls");

    let by_name = TlsRelay::start(backend.address(), &ca.issue(&dir, "local", &["localhost"]), &[], None);
    perch.rewrite_config(&config(&format!("localhost:{}", by_name.address.port()), by_address));

    eventually(PATIENCE, || client(&perch).get("a", "/").status == 200 && !by_name.handshakes().is_empty());
    assert_eq!(by_name.handshakes()[0].server_name.as_deref(), Some("localhost"));
}

#[test]
fn an_endpoint_that_cannot_prove_its_name_gets_no_request() {
    let backend = TestBackend::named("never");
    let launch = Launch::new("");
    let ca = Authority::new(launch.dir(), "ca");
    let stranger = Authority::new(launch.dir(), "stranger");
    let dir = launch.dir().to_owned();
    let relay = |certificate| TlsRelay::start(backend.address(), certificate, &[], None);
    let bad = [
        relay(&ca.issue(&dir, "other", &["other.internal"])),
        relay(&stranger.issue(&dir, "strange", &["app.internal"])),
        relay(&ca.issue_until(&dir, "expired", &["app.internal"], 2020)),
        relay(&write_certificate(&dir, "self", &["app.internal"])),
    ];
    let perch = launch.config(&config(&bad[0].address.to_string(), TRUSTED)).start();

    let mut generation = perch.metric("perch_config_generation");
    for relay in &bad {
        assert_refused(&client(&perch).get("a", "/"), 502, "upstream-tls");
        assert_eq!(relay.handshakes().len(), 0);
        let next = bad.iter().skip_while(|r| r.address != relay.address).nth(1);
        let Some(next) = next else { break };
        perch.rewrite_config(&config(&next.address.to_string(), TRUSTED));
        eventually(PATIENCE, || perch.metric("perch_config_generation") > generation);
        generation = perch.metric("perch_config_generation");
    }

    // Plain text where TLS is expected: nothing of the request goes out.
    perch.rewrite_config(&config(&backend.address().to_string(), TRUSTED));
    eventually(PATIENCE, || perch.metric("perch_config_generation") > generation);
    let answer = client(&perch).get("a", "/");
    assert!(answer.status >= 500, "{answer:?}");
    assert_eq!(backend.count(), 0);
    let series = "perch_upstream_failures_total{service=\"app\",version=\"stable\",reason=\"upstream-tls\"}";
    assert!(perch.metric(series) >= Some(4.0));
}

#[test]
fn perch_shows_its_own_certificate_and_takes_a_new_one_live() {
    let backend = TestBackend::named("mutual");
    let launch = Launch::new("");
    let dir = launch.dir().to_owned();
    let ca = Authority::new(&dir, "ca");
    let first = ca.issue(&dir, "perch", &["perch.internal"]);
    let certificate = ca.issue(&dir, "app", &["app.internal"]);
    let relay = TlsRelay::start(backend.address(), &certificate, &[], Some(&ca.ca_file));
    let keys = "timeouts: {idle: 1h}\ntls:\n  validation: {caCertificates: [ca.pem], hostname: app.internal}\n  \
                clientCertificate: {certFile: perch-cert.pem, keyFile: perch-key.pem}";
    let perch = launch.config(&config(&relay.address.to_string(), keys)).start();

    assert_eq!(client(&perch).get("a", "/").text(), "mutual");
    assert_eq!(relay.handshakes()[0].client_certificate, Some(first.der));

    let second = ca.issue(&dir, "perch", &["perch.internal"]);
    eventually(PATIENCE, || {
        assert_eq!(client(&perch).get("a", "/").status, 200);
        relay.handshakes().last().unwrap().client_certificate == Some(second.der.clone())
    });
}

#[test]
fn a_new_ca_is_trusted_live_and_a_broken_file_changes_nothing() {
    let (launch, _old, _relay, backend) = behind_tls(&["app.internal"], TRUSTED);
    let dir = launch.dir().to_owned();
    let new_dir = tempfile::tempdir().unwrap();
    let new = Authority::new(new_dir.path(), "ca");
    let relay = TlsRelay::start(backend.address(), &new.issue(&dir, "new", &["app.internal"]), &[], None);
    let perch = launch.config(&config(&relay.address.to_string(), TRUSTED)).start();
    assert_refused(&client(&perch).get("a", "/"), 502, "upstream-tls");

    replace_file(&dir.join("ca.pem"), &std::fs::read_to_string(&new.ca_file).unwrap());
    eventually(PATIENCE, || client(&perch).get("a", "/").status == 200);
    replace_file(&dir.join("ca.pem"), "no certificate");
    eventually(PATIENCE, || {
        perch.stderr().contains("holds no certificate") || perch.stdout().contains("holds no certificate")
    });

    assert_eq!(client(&perch).get("a", "/").status, 200);
}

#[test]
fn a_change_of_tls_leaves_no_old_connection_in_use() {
    let backend = TestBackend::named("plain");
    let launch = Launch::new("");
    let dir = launch.dir().to_owned();
    Authority::new(&dir, "ca");
    let perch = launch.config(&config(&backend.address().to_string(), "timeouts: {idle: 1h}")).start();
    assert_eq!(client(&perch).get("a", "/").text(), "plain");
    let generation = perch.metric("perch_config_generation");

    perch.rewrite_config(&config(&backend.address().to_string(), &format!("timeouts: {{idle: 1h}}\n{TRUSTED}")));
    eventually(PATIENCE, || perch.metric("perch_config_generation") > generation);

    let answer = client(&perch).get("a", "/");
    assert!(answer.status >= 500, "{answer:?}");
    assert_eq!(backend.count(), 1);
}

#[test]
fn health_checks_go_over_the_same_tls() {
    let service = format!("{TRUSTED}\nhealth: {{path: /ok, interval: 20ms, timeout: 5s}}");
    let (launch, _ca, relay, backend) = behind_tls(&["app.internal"], &service);
    let perch = launch.start();

    eventually(PATIENCE, || backend.seen().iter().any(|seen| seen.target() == "/ok"));

    assert_eq!(client(&perch).get("a", "/").status, 200);
    assert!(relay.handshakes().iter().all(|h| h.server_name.as_deref() == Some("app.internal")));
}

#[test]
fn files_that_cannot_be_used_stop_the_start_with_their_key_path() {
    let endpoint: SocketAddr = ([127, 0, 0, 1], 9).into();

    let output = Launch::new(&config(&endpoint.to_string(), TRUSTED)).output();

    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("services[0].versions[0].tls") && text.contains("ca.pem"), "{text}");
}
