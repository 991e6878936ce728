//! Which fields pass through perch, which end there, and which it makes itself.

use crate::front::{assert_refused, front, front_tls, front_with};
use crate::support::{Client, Seen, response};

#[test]
fn hop_by_hop_and_nominated_fields_end_here() {
    let front = front();

    front.send(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, X-Hop\r\nx-hop: 1\r\nkeep-alive: 5\r\nproxy-connection: x\r\n\
         te: gzip\r\ntrailer: x\r\nx-stays: 1",
    );

    let seen = front.backend.last();
    for gone in ["connection", "x-hop", "keep-alive", "proxy-connection", "te", "trailer"] {
        assert_eq!(seen.header(gone), None, "{gone} went through");
    }
    assert_eq!(seen.header("x-stays").as_deref(), Some("1"));
}

#[test]
fn hop_by_hop_fields_of_an_answer_end_here() {
    let front = front();
    front.backend.script(|seen: &Seen| {
        let fields = "connection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: x\r\nupgrade: h2c\r\nx-stays: 1\r\n";
        vec![response(seen, "200 Fine", fields, "")]
    });

    let answer = front.client().get("a", "/");

    for gone in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(answer.header(gone), None, "{gone} went through");
    }
    assert_eq!(answer.header("x-stays"), Some("1"));
}

#[test]
fn te_trailers_is_passed_on() {
    let front = front();

    front.send("GET / HTTP/1.1\r\nhost: a\r\nte: trailers, deflate;q=0.5");

    assert_eq!(front.backend.last().headers("te"), ["trailers"]);
    assert_eq!(front.backend.last().headers("connection"), ["te"]);
}

#[test]
fn forwarded_fields_of_strangers_are_made_anew() {
    let front = front();

    front.send(
        "GET / HTTP/1.1\r\nhost: shop.test:99\r\nx-forwarded-for: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: evil\r\nx-forwarded-port: 1\r\nforwarded: for=1.2.3.4\r\nx-real-ip: 1.2.3.4",
    );

    let seen = front.backend.last();
    assert_eq!(seen.headers("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.headers("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.headers("x-forwarded-host"), ["shop.test:99"]);
    for gone in ["x-forwarded-port", "forwarded", "x-real-ip"] {
        assert_eq!(seen.header(gone), None, "{gone} went through");
    }
}

#[test]
fn forwarded_fields_of_trusted_proxies_are_continued() {
    let front = front_with("trustedProxies: [127.0.0.0/8]", "");

    front.send(
        "GET / HTTP/1.1\r\nhost: inner\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 127.9.9.9\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: shop.test\r\nx-forwarded-port: 443",
    );

    let seen = front.backend.last();
    assert_eq!(seen.headers("x-forwarded-for").join(", "), "1.2.3.4, 127.9.9.9, 127.0.0.1");
    assert_eq!(seen.headers("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.headers("x-forwarded-host"), ["shop.test"]);
    assert_eq!(seen.headers("x-forwarded-port"), ["443"]);
}

#[test]
fn a_tls_client_is_forwarded_as_https() {
    let front = front_tls("", "");

    Client::tls(front.perch.address("https"), "localhost").get("localhost", "/");

    assert_eq!(front.backend.last().headers("x-forwarded-proto"), ["https"]);
}

#[test]
fn a_good_request_id_is_kept_and_others_are_replaced() {
    let front = front();

    front.send("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: abc-123");
    assert_eq!(front.backend.last().headers("x-request-id"), ["abc-123"]);

    let mut made = Vec::new();
    for head in ["GET / HTTP/1.1\r\nhost: a", "GET / HTTP/1.1\r\nhost: a\r\nx-request-id: no good\"id"] {
        front.send(head);
        made.extend(front.backend.last().headers("x-request-id"));
    }
    assert!(made.len() == 2 && made[0] != made[1], "{made:?}");
    assert!(made.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{made:?}");
}

#[test]
fn trace_context_and_host_pass_unchanged() {
    let front = front();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    front.send(&format!("GET / HTTP/1.1\r\nHost: Shop.Test:8080\r\ntraceparent: {trace}\r\ntracestate: a=b"));

    let seen = front.backend.last();
    assert_eq!(seen.headers("traceparent"), [trace]);
    assert_eq!(seen.headers("tracestate"), ["a=b"]);
    assert_eq!(seen.headers("host"), ["Shop.Test:8080"]);
}

#[test]
fn the_version_is_told_only_when_asked_for() {
    assert_eq!(front().client().get("a", "/").header("perch-version"), None);

    let front = front_with("", "versionHeader: true");

    assert_eq!(front.client().get("a", "/").header("perch-version"), Some("stable"));
}

#[test]
fn an_absolute_target_goes_up_in_origin_form() {
    let front = front();

    let answer = front.send("GET http://shop.test/a?b=/../c HTTP/1.1\r\nhost: shop.test");

    assert_eq!(answer.status, 200);
    assert_eq!(front.backend.last().start_line(), "GET /a?b=/../c HTTP/1.1");
    assert_eq!(front.backend.last().headers("host"), ["shop.test"]);
}

#[test]
fn options_for_the_server_passes() {
    let front = front();

    assert_eq!(front.send("OPTIONS * HTTP/1.1\r\nhost: a").status, 200);

    assert_eq!(front.backend.last().start_line(), "OPTIONS * HTTP/1.1");
}

#[test]
fn several_cookie_fields_become_one() {
    let front = front();

    front.send("GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1\r\ncookie: b=2");

    assert_eq!(front.backend.last().headers("cookie"), ["a=1; b=2"]);
}

#[test]
fn a_redirecting_listener_answers_everything_with_the_https_address() {
    let front = front_with("redirectToHttps: {port: 8443}", "");

    let answer = front.client().get("shop.test:80", "/a/../b?c=d");

    assert_eq!((answer.status, answer.header("location")), (308, Some("https://shop.test:8443/b?c=d")));
    assert_refused(&front.send("GET / HTTP/1.1\r\nhost: a/b"), 400, "host");
    assert_eq!(front.backend.count(), 0);
}
