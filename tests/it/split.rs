//! The split as users see it: who gets which version, and that it stays so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::front::{assert_refused, listener_of, whole};
use crate::support::{Client, Launch, PATIENCE, TestBackend, TestPerch, eventually, h2, write_certificate};

/// Two versions behind perch.
struct Split {
    perch: TestPerch,
    stable: TestBackend,
    canary: TestBackend,
}

impl Split {
    fn start(listener: &str, service: &str, weights: (u32, u32)) -> Self {
        let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
        let perch = TestPerch::start(&text(listener, service, weights, stable.address(), canary.address()));
        Self { perch, stable, canary }
    }

    fn set_weights(&self, listener: &str, service: &str, weights: (u32, u32)) {
        let before = self.perch.metric("perch_config_generation").unwrap();
        self.perch.rewrite_config(&text(listener, service, weights, self.stable.address(), self.canary.address()));
        eventually(PATIENCE, || self.perch.metric("perch_config_generation").unwrap() > before);
    }

    fn ask(&self, user: IpAddr) -> String {
        ask(self.perch.address("http"), user)
    }

    /// Who gets what.
    fn answers(&self, users: &[IpAddr]) -> BTreeMap<IpAddr, String> {
        users.iter().map(|user| (*user, self.ask(*user))).collect()
    }

    /// Flips of this reason so far.
    fn flips(&self, reason: &str) -> f64 {
        self.perch.metric(&format!("perch_version_flips_total{{service=\"app\",reason=\"{reason}\"}}")).unwrap_or(0.0)
    }
}

fn text(listener: &str, service: &str, weights: (u32, u32), stable: SocketAddr, canary: SocketAddr) -> String {
    whole(
        &listener_of("http", listener),
        service,
        &[("stable", weights.0, &[stable]), ("canary", weights.1, &[canary])],
    )
}

#[track_caller]
fn ask(address: SocketAddr, user: IpAddr) -> String {
    let answer = Client::plain_from(user, address).get("a", "/");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text()
}

/// Addresses of users, in several networks.
fn users(count: usize) -> Vec<IpAddr> {
    let all = (1..=200u8).flat_map(|a| (1..=250u8).map(move |b| IpAddr::from([127, 5, a, b])));
    all.take(count).collect()
}

fn canaries(answers: &BTreeMap<IpAddr, String>) -> Vec<IpAddr> {
    answers.iter().filter(|(_, version)| *version == "canary").map(|(user, _)| *user).collect()
}

#[test]
fn a_client_stays_on_its_version_over_connections_protocols_and_restarts() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let tls = "tls: {certificates: [{certFile: localhost-cert.pem, keyFile: localhost-key.pem}]}";
    let listeners = listener_of("http", "") + &listener_of("https", tls);
    let start = || {
        let versions: [(&str, u32, &[SocketAddr]); 2] =
            [("stable", 50, &[stable.address()]), ("canary", 50, &[canary.address()])];
        let launch = Launch::new(&whole(&listeners, "", &versions));
        write_certificate(launch.dir(), "localhost", &["localhost"]);
        launch.start()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut expected: BTreeMap<IpAddr, String> = BTreeMap::new();

    for _ in 0..2 {
        let perch = start();
        for user in users(6) {
            let version = expected.entry(user).or_insert_with(|| ask(perch.address("http"), user)).clone();
            let mut kept = Client::plain_from(user, perch.address("http"));
            for _ in 0..100 {
                assert_eq!(kept.get("a", "/").text(), version);
            }
            for _ in 0..100 {
                assert_eq!(ask(perch.address("http"), user), version);
            }
            assert_eq!(Client::tls_from(user, perch.address("https"), "localhost").get("a", "/").text(), version);
            let over_h2 = runtime.block_on(async {
                h2::H2::tls_from(user, perch.address("https"), "localhost").await.get("/").await.body
            });
            assert_eq!(over_h2, version.as_bytes());
        }
        let unexplained = perch.metric("perch_version_flips_total{service=\"app\",reason=\"unexplained\"}");
        assert!(unexplained.is_none_or(|flips| flips < 1.0), "{unexplained:?}");
    }
}

#[test]
fn the_share_of_clients_is_the_weight_and_raising_it_moves_clients_only_to_the_canary() {
    const CLIENTS: usize = 5000;
    let split = Split::start("", "", (90, 10));
    let users = users(CLIENTS);

    let before = split.answers(&users);

    // Five standard deviations of a binomial: one run in two million fails by chance, and the hash is fixed anyway.
    let within = |share: f64, got: usize| {
        let n = CLIENTS as f64;
        assert!((got as f64 - n * share).abs() < 5.0 * (n * share * (1.0 - share)).sqrt(), "{got} of {n} at {share}");
    };
    within(0.10, canaries(&before).len());

    split.set_weights("", "", (75, 25));
    let some: Vec<IpAddr> = users.into_iter().take(2000).collect();
    let after = split.answers(&some);
    for user in &some {
        assert!(before[user] == after[user] || after[user] == "canary", "{user} left the canary");
    }
    let moved = canaries(&after).len() - some.iter().filter(|user| before[*user] == "canary").count();
    assert!(moved > 0);
    assert_eq!((split.flips("weight-change"), split.flips("unexplained")), (moved as f64, 0.0));
}

#[test]
fn a_version_without_weight_is_empty_at_once() {
    let split = Split::start("", "", (50, 50));
    let users = users(40);
    let first = canaries(&split.answers(&users));
    assert!(!first.is_empty());
    let mut kept = Client::plain_from(first[0], split.perch.address("http"));
    assert_eq!(kept.get("a", "/").text(), "canary");

    split.set_weights("", "", (50, 0));

    assert_eq!(kept.get("a", "/").text(), "stable");
    assert!(canaries(&split.answers(&users)).is_empty());
    split.set_weights("", "", (50, 50));
    assert_eq!(canaries(&split.answers(&users)), first);
}

#[test]
fn clients_of_an_empty_version_fall_back_and_return() {
    let health = "health: {path: /healthz, interval: 50ms, timeout: 2s, rise: 1, fall: 1}";
    let split = Split::start("", health, (50, 50));
    let users = users(30);
    let before = split.answers(&users);
    assert!(!canaries(&before).is_empty());

    split.canary.refuse();
    split.canary.close_connections();
    eventually(PATIENCE, || split.answers_or_errors(&users).values().all(|version| version == "stable"));

    split.canary.accept_again();
    eventually(PATIENCE, || split.answers_or_errors(&users) == before);
    assert!(split.flips("when-empty") > 0.0);
    assert!(split.flips("unexplained") == 0.0);
}

#[test]
fn clients_of_an_empty_version_may_be_made_to_fail() {
    let service = "whenEmpty: fail\nhealth: {path: /healthz, interval: 50ms, timeout: 2s, rise: 1, fall: 1}";
    let split = Split::start("", service, (50, 50));
    let users = users(30);
    let before = split.answers(&users);

    split.canary.refuse();
    split.canary.close_connections();

    let address = split.perch.address("http");
    for (user, version) in &before {
        if version == "canary" {
            eventually(PATIENCE, || Client::plain_from(*user, address).get("a", "/").status == 503);
            assert_refused(&Client::plain_from(*user, address).get("a", "/"), 503, "no-ready-endpoint");
        } else {
            assert_eq!(ask(address, *user), "stable");
        }
    }
}

impl Split {
    /// While endpoints come and go a request may fail.
    fn answers_or_errors(&self, users: &[IpAddr]) -> BTreeMap<IpAddr, String> {
        let address = self.perch.address("http");
        users.iter().map(|user| (*user, Client::plain_from(*user, address).get("a", "/").text())).collect()
    }
}

#[test]
fn only_trusted_clients_choose_their_version() {
    let service = "overrides: {header: x-canary, cookie: side, version: canary, trusted: [127.0.9.0/24]}";
    let split = Split::start("", service, (50, 50));
    let address = split.perch.address("http");
    let ask = |user: [u8; 4], fields: &str| {
        let mut client = Client::plain_from(user.into(), address);
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
        client.response().text()
    };

    for n in 1..20 {
        assert_eq!(ask([127, 0, 9, n], "x-canary: always\r\n"), "canary");
        assert_eq!(ask([127, 0, 9, n], "x-canary: never\r\n"), "stable");
        assert_eq!(ask([127, 0, 9, n], "x-canary: stable\r\n"), "stable");
        assert_eq!(ask([127, 0, 9, n], "cookie: a=b; side=always\r\n"), "canary");
        assert_eq!(ask([127, 0, 9, n], "x-canary: never\r\ncookie: side=always\r\n"), "stable");
        let own = ask([127, 0, 8, n], "");
        for fields in ["x-canary: always\r\n", "x-canary: never\r\n", "cookie: side=always\r\n", "x-canary: x\r\n"] {
            assert_eq!(ask([127, 0, 8, n], fields), own, "{fields}");
        }
        // A word that means nothing leaves everybody where they are.
        assert_eq!(ask([127, 0, 9, n], "x-canary: nonsense\r\n"), ask([127, 0, 9, n], ""));
    }
}

#[test]
fn without_affinity_the_share_of_requests_is_exact() {
    let split = Split::start("", "affinity: None", (90, 10));
    let mut client = Client::plain_from([127, 0, 0, 1].into(), split.perch.address("http"));

    let canary = (0..1000).filter(|_| client.get("a", "/").text() == "canary").count();

    // One worker serves the connection: a low-discrepancy sequence is off by a few, where chance would be off by 28.
    assert!((95..=105).contains(&canary), "{canary}");
}

#[test]
fn the_address_in_a_proxy_header_is_the_client() {
    let proxied = Split::start("proxyProtocol: {trusted: [127.0.0.0/8]}", "", (50, 50));
    let direct = Split::start("", "", (50, 50));
    let address = proxied.perch.address("http");

    for user in users(20) {
        let expected = direct.ask(user);
        let IpAddr::V4(v4) = user else { unreachable!() };
        let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        v2.extend_from_slice(&v4.octets());
        v2.extend_from_slice(&[127, 0, 0, 1, 0, 80, 0, 80]);
        for header in [format!("PROXY TCP4 {user} 127.0.0.1 1 80\r\n").into_bytes(), v2] {
            let mut client = Client::plain(address);
            client.send(&header);
            assert_eq!(client.get("a", "/").text(), expected);
        }
    }
    assert_eq!(proxied.stable.last().headers("x-forwarded-for").len(), 1);
}

#[test]
fn a_proxy_header_is_required_and_believed_only_from_trusted_senders() {
    let split = Split::start("proxyProtocol: {trusted: [127.0.0.1/32], timeout: 500ms}", "", (50, 50));
    let address = split.perch.address("http");
    let rejected =
        |reason: &str| split.perch.metric(&format!("perch_rejected_total{{reason=\"{reason}\"}}")).unwrap_or(0.0);

    for (user, sent, reason) in [
        ([127, 0, 0, 2], "PROXY TCP4 1.2.3.4 127.0.0.1 1 80\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", "proxy-untrusted"),
        ([127, 0, 0, 1], "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "proxy-missing"),
        ([127, 0, 0, 1], "PROXY TCP4 1.2.3.4 nonsense 1 80\r\n", "proxy-header"),
        ([127, 0, 0, 1], "PROXY TCP4 1.2.3.4 ", "proxy-timeout"),
    ] {
        let mut client = Client::plain_from(user.into(), address);
        client.try_send(sent).ok();
        assert!(client.is_closed_within(PATIENCE), "{sent:?}");
        eventually(PATIENCE, || rejected(reason) > 0.0);
    }
    assert_eq!(split.stable.count() + split.canary.count(), 0);
}

#[test]
fn the_forwarded_address_of_a_trusted_proxy_is_the_client() {
    let trusting = Split::start("trustedProxies: [127.0.0.1/32]", "", (50, 50));
    let direct = Split::start("", "", (50, 50));

    for user in users(20) {
        let expected = direct.ask(user);
        let mut client = Client::plain(trusting.perch.address("http"));
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 6.6.6.6, {user}\r\n\r\n"));
        assert_eq!(client.response().text(), expected, "{user}");
    }
}

#[test]
fn ipv6_clients_are_told_apart_by_their_64() {
    let split = Split::start("trustedProxies: [127.0.0.1/32]", "", (50, 50));
    let mut client = Client::plain(split.perch.address("http"));
    let mut ask = |address: String| {
        client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {address}\r\n\r\n"));
        client.response().text()
    };
    let mut versions = BTreeMap::new();

    for network in 0..20 {
        let version = ask(format!("2001:db8:0:{network:x}::1"));
        for host in 2..6 {
            assert_eq!(ask(format!("2001:db8:0:{network:x}:{host:x}{host:x}::{host:x}")), version);
        }
        *versions.entry(version).or_insert(0) += 1;
    }

    assert_eq!(versions.len(), 2, "{versions:?}");
}
