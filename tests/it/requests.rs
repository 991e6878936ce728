//! Bad requests, by the rows A and B of the reliability list: the status, the reason, whether the connection ends, and
//! that the endpoint saw nothing of it.

use std::time::Duration;

use crate::front::{A_WHILE, Front, assert_closed, assert_refused, front, front_tls};
use crate::support::{Client, Seen, ok};

/// Sends `bytes`, expects one refusal and the end of the connection, and nothing at the endpoint.
#[track_caller]
fn refused(front: &Front, bytes: impl AsRef<[u8]>, status: u16, reason: &str) {
    let bytes = bytes.as_ref();
    let mut client = front.client();
    // perch may have answered and closed before all of it is sent.
    client.try_send(bytes).ok();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let is_head = bytes.starts_with(b"HEAD");
    let answer = if is_head { client.try_head_response() } else { client.try_response() };
    let answer = answer.unwrap_or_else(|error| panic!("{shown:?}: {error}"));

    assert_eq!((answer.status, answer.header("perch-reason")), (status, Some(reason)), "{shown:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{shown:?}");
    assert!(client.is_closed_within(Duration::from_secs(20)), "still open: {shown:?}");
    assert_eq!(front.backend.count(), 0, "the endpoint saw {shown:?}: {:?}", front.backend.seen());
}

/// A GET whose head has this in place of the Host field.
fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")
}

/// A POST with these framing fields and body.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}")
}

#[test]
fn what_is_not_http_is_refused() {
    let front = front();

    refused(&front, [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], 400, "tls-on-plain");
    refused(&front, b"\x00\x01\x02\xff\xfe\r\n\r\n", 400, "not-http");
    refused(&front, [0x80; 9000], 400, "not-http");
    refused(&front, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version");
}

#[test]
fn request_lines_are_read_strictly() {
    let front = front();

    for line in [
        "GET /",
        "GET",
        "GET / HTTP/1.1x",
        "GET / HTTP/1.1 x",
        "GET / x HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET  / HTTP/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        "GET / http/1.1",
        " GET / HTTP/1.1",
    ] {
        let mut client = front.client();
        client.send(format!("{line}\r\nhost: a\r\n\r\n"));
        let answer = client.response();
        let reason = answer.header("perch-reason").unwrap_or_default();
        assert!(
            matches!((answer.status, reason), (400, "request-line" | "not-http") | (505, "version")),
            "{line:?}: {answer:?}"
        );
        assert_closed(&mut client);
    }
    for version in ["HTTP/2.0", "HTTP/3.0"] {
        refused(&front, format!("GET / {version}\r\nhost: a\r\n\r\n"), 505, "version");
    }
    assert_eq!(front.backend.count(), 0);
}

#[test]
fn connect_and_trace_are_off() {
    let front = front();

    refused(&front, "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 405, "method");
    refused(&front, "TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method");
}

#[test]
fn methods_in_lower_case_are_refused() {
    let front = front();

    for method in ["get", "head", "Trace", "x-own"] {
        refused(&front, format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"), 405, "method");
    }
    assert_eq!(front.send("M-SEARCH / HTTP/1.1\r\nhost: a").status, 200);
}

#[test]
fn two_empty_lines_may_come_first_but_not_endlessly_many() {
    let front = front();

    assert_eq!(front.send("\r\n\r\nGET / HTTP/1.1\r\nhost: a").status, 200);
    let three = front.send("\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a");
    assert_refused(&three, 400, "request-line");

    let mut client = front.client();
    client.try_send("\r\n".repeat(40_000)).ok();
    client.try_response().ok();
    assert_closed(&mut client);
    assert_eq!(front.backend.count(), 1);
}

#[test]
fn heads_are_limited_while_they_are_read() {
    let front = front();

    refused(&front, format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(8192)), 414, "target-length");
    refused(&front, format!("GET /{}", "a".repeat(9000)), 414, "target-length");
    refused(&front, with(&format!("host: a\r\nb: {}", "b".repeat(33_000))), 431, "head-size");
    refused(&front, format!("GET / HTTP/1.1\r\n{}", "a".repeat(64 * 1024)), 431, "head-size");
    let fields = |n: usize| (0..n).map(|n| format!("\r\nf{n}: x")).collect::<String>();
    refused(&front, with(&format!("host: a{}", fields(100))), 431, "field-count");
    refused(&front, with(&format!("host: a{}", fields(1000))), 431, "field-count");
    assert_eq!(front.send(&format!("GET / HTTP/1.1\r\nhost: a{}", fields(99))).status, 200);
}

#[test]
fn field_names_and_values_are_read_strictly() {
    let front = front();

    for field in [": x", "a : x", "[a]: x", "a(: x", "no colon", "\u{e9}: x", "a\tb: x"] {
        refused(&front, with(&format!("host: a\r\n{field}")), 400, "field-name");
    }
    for value in ["b\0c", "b\rc", "b\x01c", "b\x7fc"] {
        refused(&front, with(&format!("host: a\r\na: {value}")), 400, "field-value");
    }
    refused(&front, with("host: a\r\na: b\r\n c"), 400, "obs-fold");
    refused(&front, with("host: a\r\na: b\r\n\tc"), 400, "obs-fold");
    // Folded at once.
    refused(&front, with(" a: b\r\nhost: a"), 400, "obs-fold");
}

#[test]
fn a_line_ends_in_cr_and_lf() {
    let front = front();

    for head in [
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
        "GET / HTTP/1.1\r\nhost: a\n\r\n",
        "GET / HTTP/1.1\nhost: a\r\n\r\n",
    ] {
        refused(&front, head, 400, "bare-lf");
    }
}

#[test]
fn there_is_exactly_one_host_and_it_is_a_host() {
    let front = front();

    for host in ["x: y", "host: a\r\nhost: a", "host: a\r\nhost: b", "host:", "host: u@a", "host: a/b", "host: a b"] {
        refused(&front, with(host), 400, "host");
    }
    for host in ["a:0", "a:99999", "a:-1", "a:x", "a:80:80", "[::1", "[::1]x", "a..b", ".a", "a%2eb", "a,b", "*"] {
        refused(&front, with(&format!("host: {host}")), 400, "host");
    }
    assert_eq!(front.send("GET / HTTP/1.1\r\nhost: [::1]:80").status, 200);
}

#[test]
fn an_unknown_host_keeps_its_connection() {
    let front = front();
    front.perch.rewrite_config(
        &crate::front::config("", "", &[front.backend.address()])
            .replace("  - service: app\n", "  - {service: app, hostnames: [known.test]}\n"),
    );
    crate::support::eventually(crate::support::PATIENCE, || front.perch.metric("perch_config_generation") == Some(2.0));
    let mut client = front.client();

    assert_refused(&client.get("unknown.test", "/"), 404, "no-route");
    client.send("GET / HTTP/1.1\r\nhost: unknown.test\r\nconnection: keep-alive\r\n\r\n");
    assert_refused(&client.response(), 404, "no-route");
    assert_eq!(client.get("KNOWN.test", "/").status, 200);
    // What follows might be a body.
    client.send("POST / HTTP/1.1\r\nhost: unknown.test\r\ncontent-length: 2\r\n\r\nhi");
    assert_eq!(client.response().header("connection"), Some("close"));
}

#[test]
fn a_host_that_the_certificate_does_not_name_is_misdirected() {
    let front = front_tls("", "");
    front.perch.rewrite_config(
        &crate::front::tls_config("", "", &[front.backend.address()])
            .replace("  - service: app\n", "  - {service: app, hostnames: [localhost]}\n"),
    );
    crate::support::eventually(crate::support::PATIENCE, || front.perch.metric("perch_config_generation") == Some(2.0));
    let mut client = Client::tls(front.perch.address("https"), "localhost");

    assert_refused(&client.get("other.test", "/"), 421, "misdirected");
    assert_eq!(client.get("localhost", "/").status, 200);
}

#[test]
fn targets_are_read_strictly() {
    let front = front();
    let target = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");

    for bad in
        ["/a#b", "/a%zz", "/a%0", "/%00", "/a\\b", "/..", "/a/../..", "/%2e%2E/x", "/a/..%2fb", "/..;/b", "/\u{e9}"]
    {
        refused(&front, target(bad), 400, "path");
    }
    for bad in ["*", "a", "a:80", "//", "ftp://a/", "http:/a", "?a", "/?a#b"].iter().filter(|t| **t != "//") {
        refused(&front, target(bad), 400, "target");
    }
    refused(&front, target("http://b/"), 400, "host-mismatch");
    refused(&front, target("http://u@a/"), 400, "host-mismatch");
    refused(&front, "GET http://a/ HTTP/1.1\r\n\r\n", 400, "host");
}

#[test]
fn paths_are_cleaned_in_one_way_before_anything_else() {
    let front = front();

    for (sent, got) in [
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/..", "/"),
        ("//a//b", "//a//b"),
        ("/a%2fb%5Cc", "/a%2fb%5Cc"),
        ("/%c0%af", "/%c0%af"),
        ("/a;b=..;/c", "/a;b=..;/c"),
        ("/a%2f..b", "/a%2f..b"),
        ("/a?x=/../%zz", "/a?x=/../%zz"),
        ("/...", "/..."),
    ] {
        assert_eq!(front.client().get("a", sent).status, 200, "{sent}");
        assert_eq!(front.backend.last().target(), got);
    }
}

#[test]
fn underscores_do_not_smuggle_our_own_fields() {
    let front = front();

    for name in ["X_Forwarded_For", "x-forwarded_for", "Content_Length", "Transfer_Encoding", "x_real_ip"] {
        refused(&front, with(&format!("host: a\r\n{name}: 1")), 400, "underscore");
    }
    assert_eq!(front.send("GET / HTTP/1.1\r\nhost: a\r\nmy_own: 1").status, 200);
    assert_eq!(front.backend.last().header("my_own").as_deref(), Some("1"));
}

#[test]
fn a_connection_field_cannot_take_protected_fields_away() {
    let front = front();

    for name in ["X-Forwarded-For", "Host", "Authorization", "Cookie", "Content-Length", "X-Request-Id"] {
        refused(&front, with(&format!("host: a\r\nconnection: close, {name}")), 400, "connection-token");
    }
}

#[test]
fn a_head_may_be_cut_anywhere() {
    let front = front();
    let head = "POST /a?b HTTP/1.1\r\nhost: a\r\nx: y\r\ncontent-length: 2\r\n\r\nhi";
    front
        .backend
        .script(|seen: &Seen| ok(seen, &format!("{} {}", seen.target(), seen.header("x").unwrap_or_default())));
    let mut client = front.client();

    for cut in 1..head.len() {
        client.send(&head[..cut]);
        // Two segments, not one: the first is read before the second is sent.
        std::thread::sleep(Duration::from_millis(2));
        client.send(&head[cut..]);
        assert_eq!(client.response().text(), "/a?b y", "cut at {cut}");
    }
    assert!(front.backend.seen().iter().all(|seen| seen.body == b"hi"));
    for byte in head.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().text(), "/a?b y");
}

#[test]
fn lengths_are_read_strictly() {
    let front = front();

    for length in ["5,5", "+5", "-1", "0x5", "5 5", "", "\u{665}", "12345678901234567890", "005", "5;", "5.0"] {
        refused(&front, post(&format!("content-length: {length}"), "hello"), 400, "content-length");
    }
    for (one, other) in [("5", "6"), ("5", "5"), ("0", "5")] {
        let fields = format!("content-length: {one}\r\ncontent-length: {other}");
        refused(&front, post(&fields, "hello"), 400, "content-length");
    }
    for fields in ["content-length: 5\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 5"]
    {
        refused(&front, post(fields, "0\r\n\r\n"), 400, "length-and-encoding");
    }
}

#[test]
fn the_only_coding_is_chunked() {
    let front = front();

    for coding in [
        "xchunked",
        "chunked, identity",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        ", chunked",
        "chunked;q=1",
        "",
        "chunked\r\ntransfer-encoding: chunked",
        "\"chunked\"",
    ] {
        refused(&front, post(&format!("transfer-encoding: {coding}"), "0\r\n\r\n"), 400, "transfer-encoding");
    }
    refused(&front, post("transfer-encoding: \x0bchunked", "0\r\n\r\n"), 400, "field-value");
    refused(
        &front,
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer-encoding",
    );
}

#[test]
fn a_body_without_a_length_is_empty_for_old_clients() {
    let front = front();

    let mut client = front.client();
    client.send("POST / HTTP/1.0\r\nhost: a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");

    assert_eq!(client.response().status, 200);
    assert_closed(&mut client);
    assert_eq!((front.backend.count(), front.backend.last().body.len()), (1, 0));
}

#[test]
fn chunks_are_read_strictly() {
    let front = front();
    let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(17 * 1024));
    let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(101));
    let bodies = [
        "-1\r\nx",
        "+1\r\nx",
        "0x1\r\nx",
        "1 \r\nx",
        "11111111111111111\r\n",
        "_\r\n",
        "1\r\nxx\r\n",
        "1\nx\n0\n\n",
        "1;a\nb\r\nx\r\n",
        "\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\n a: b\r\n\r\n",
        &long,
        &many,
    ];

    for body in bodies {
        refused_body(&front, body);
    }
}

/// The head may have gone up already, but never a complete message.
#[track_caller]
fn refused_body(front: &Front, body: &str) {
    let shown = &body[..body.len().min(40)];
    let mut client = front.client();
    client.try_send(post("transfer-encoding: chunked", "")).ok();
    client.try_send(body).ok();
    let answer = client.try_response().unwrap_or_else(|error| panic!("{shown:?}: {error}"));

    assert_refused(&answer, 400, "chunk");
    assert_closed(&mut client);
    crate::support::eventually(crate::support::PATIENCE, || front.backend.open_connections() == 0);
    assert!(front.backend.seen().iter().all(|seen| !seen.is_whole), "{shown:?}: {:?}", front.backend.seen());
}

#[test]
fn a_get_may_have_a_body() {
    let front = front();
    let mut client = front.client();

    for method in ["GET", "DELETE", "HEAD"] {
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"));
        let is_head = method == "HEAD";
        let answer = if is_head { client.try_head_response() } else { client.try_response() };
        assert_eq!(answer.unwrap().status, 200);
        assert_eq!(front.backend.last().body, b"hello", "{method}");
    }
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    let front = front();
    let upgrade = "host: a\r\nconnection: upgrade\r\nupgrade: websocket";

    refused(&front, format!("{}hello", with(&format!("{upgrade}\r\ncontent-length: 5"))), 400, "upgrade");
    refused(&front, with(&format!("{upgrade}\r\ntransfer-encoding: chunked")), 400, "upgrade");
}

#[test]
fn an_http2_preface_on_the_plain_port_is_refused() {
    let front = front();
    let mut client = front.client();

    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");

    assert_refused(&client.response(), 505, "version");
    assert_closed(&mut client);
    std::thread::sleep(A_WHILE);
    assert_eq!(front.backend.count(), 0);
}
