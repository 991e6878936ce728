//! The fuzzers' bodies as property tests on stable: made from words that matter to each part, and the seeds replayed.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Words of one target, and any bytes, in any order.
fn jumble(words: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..4);
    prop::collection::vec(prop_oneof![20 => word, 1 => noise], 0..most).prop_map(|parts| parts.concat())
}

const CONFIG: &[&str] = &[
    "listeners:\n",
    "routes:\n",
    "services:\n",
    "  - ",
    "    ",
    "name: ",
    "address: ",
    "127.0.0.1:0",
    "weight: ",
    "1",
    "-1",
    "1e9",
    "versions:\n",
    "endpoints: [",
    "]",
    "{",
    "}",
    ", ",
    "\n",
    "a",
    "\"",
    "'",
    "&x ",
    "*x",
    "<<: ",
    "!!str ",
    "${SET}",
    "${NO:-x}",
    "$${",
    "admin:\n",
    "timeouts: ",
    "10s",
    "matches:\n",
    "path: ",
    "value: /",
    "? ",
    "# ",
    "|\n",
    "---\n",
    "...\n",
    "\t",
    "tls: ",
    "salt: ",
    "affinity: ",
    "rollout: ",
    "drain: ",
    "service: ",
];
const PROXY: &[&str] = &[
    "PROXY ",
    "TCP4 ",
    "TCP6 ",
    "UNKNOWN",
    "1.2.3.4 ",
    "::1 ",
    "1 ",
    "65535",
    "0",
    "65536",
    " ",
    "\r\n",
    "\r",
    "\n",
    "\r\n\r\n\0\r\nQUIT\n",
    "\x21",
    "\x20",
    "\x11",
    "\x12",
    "\x00\x0c",
    "\x00",
    "\x04",
    "\x03\x00\x04",
    "\x01\x00\x00",
    "abcdefghijkl",
];
const FORWARDED: &[&str] = &[
    "10.0.0.1",
    "127.0.0.1",
    "8.8.8.8",
    "fd00::1",
    "::ffff:10.0.0.2",
    "[fd00::2]",
    ":80",
    ", ",
    ",",
    "\n",
    " ",
    "\t",
    "unknown",
    "%eth0",
    "[",
    "]",
    "x-forwarded-for:",
    "X_Forwarded_For:",
    "content-length:",
    "12",
    "007",
    "te:",
    "x-forwarded_client-cert:",
    "transfer_encoding:",
    ";",
    "\"",
];
const PATH: &[&str] = &[
    "/", "/", "..", ".", "%2e", "%2E", "%2f", "%5C", ";", "%3b", "a", "%00", "%zz", "%", "#", "?", "\\", "*", "%c0%af",
    "é", " ",
];
const HOST: &[&str] = &[
    "a",
    "b",
    ".",
    ".test",
    "*.",
    ":80",
    " ",
    " /",
    "/",
    "\n",
    "\n ",
    "=",
    "a.test",
    "*.test",
    "*.a.test /",
    "/a",
    "/a/b",
    "/a-b",
    "A",
    "[::1]",
    "_",
    "-",
    "\na.test /a\n*.test /\n /",
    "\n =/a",
];
const SLICES: &[&str] = &[
    r#"{"type":"ADDED","object":"#,
    r#"{"metadata":{"name":"a","labels":{"kubernetes.io/service-name":"s"}},"#,
    "}",
    "]",
    r#""addressType":"IPv4","#,
    r#""addressType":"IPv6","#,
    r#""ports":[{"name":"http","port":80}],"#,
    "null",
    "\n",
    ",",
    r#""ports":[{"port":80,"protocol":"UDP"}],"#,
    r#""ports":[{"name":"http"},{"name":"","port":81}],"#,
    r#""endpoints":["#,
    r#"{"addresses":["10.0.0.1"]}"#,
    r#"{"addresses":["10.0.0.2","x"],"conditions":{"ready":false}}"#,
    r#"{"addresses":["fd00::1"],"conditions":{"ready":false,"serving":true,"terminating":true}}"#,
    r#"{"addresses":["10.0.0.1"],"targetRef":{"kind":"Pod","uid":"u"},"conditions":{"terminating":true}}"#,
    r#"{"addresses":["fd00::1"],"targetRef":{"kind":"Pod","uid":"u"}}"#,
    r#"{"addresses":["10.0.0.3"],"targetRef":{"kind":"Pod","uid":"uuu"}}"#,
];
/// Lines of fields, good ones first.
const FIELDS: &[&str] = &[
    "x: y",
    "Cookie: a=1",
    "cookie: b=2",
    "te: trailers",
    "connection: x",
    "Connection: keep-alive, x-hop",
    "x-hop: 1",
    "x-forwarded-for: 8.8.8.8",
    "forwarded: for=8.8.8.8",
    "x-real-ip: 8.8.8.8",
    "keep-alive: 1",
    "trailer: x",
    "x-request-id: id",
    "accept: a,\tb ",
    "x:",
    "X-Y:\t z\t",
    "my_own: 1",
    "proxy-connection: close",
    "upgrade: h2c",
    "x: \u{e9}",
    "content-encoding: gzip",
    "host: a",
    "expect: nothing",
    "x_forwarded_for: 1",
    "connection: host",
    "a : b",
    " folded: x",
    "x",
    "x: a\0b",
    "x: a\rb",
    "x: a\nb",
    ": x",
    "transfer-encoding: x",
    "content-length: +1",
    "connection: close",
    "connection: upgrade\r\nupgrade: websocket",
    "x: y\nx: z",
    "\tx: y",
    "transfer_encoding: chunked",
];
const TARGETS_OF_REQUESTS: &[&str] = &[
    "/",
    "/a?b=c",
    "/a/../b",
    "/a/%2e%2e/b",
    "/a%2fb",
    "/..%2fb",
    "/..;/b",
    "//a//",
    "http://a/x",
    "http://a",
    "http://b/",
    "/a?x=/../",
    "/a#b",
    "/%00",
    "*",
    "a",
    "/../..",
    "https://a?x",
    "/\u{e9}",
];
const CHUNKS: &[&str] = &[
    "1\r\nx\r\n",
    "3;a=\"b\"\r\nabc\r\n",
    "0a\r\n0123456789\r\n",
    "0\r\nx-t: 1\r\n\r\n",
    "0\r\nhost: b\r\n\r\n",
    "0\r\n\r\n",
    "1\nx\n",
    "1 \r\nx\r\n",
    "-1\r\n",
    "ffffffffffffffff1\r\n",
    "2\r\nx\r\n",
    "0\r\n",
    "0x1\r\nx\r\n",
    "1\r\nx\n",
    "\r\n",
];

/// A request, good in most parts.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(&["GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "G(T", "x"][..]);
    let version =
        prop_oneof![12 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0"), 1 => Just("HTTP/2.0"), 1 => Just("http/1.1")];
    let gap = prop_oneof![30 => Just(" "), 1 => Just("  "), 1 => Just("\t")];
    let end = prop_oneof![60 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\n ")];
    let field = prop_oneof![6 => prop::sample::select(&FIELDS[..21]), 1 => prop::sample::select(FIELDS)];
    let fields = prop::collection::vec((field, end.clone()), 0..5);
    let target = prop_oneof![2 => prop::sample::select(&TARGETS_OF_REQUESTS[..6]), 1 => prop::sample::select(TARGETS_OF_REQUESTS)];
    let host =
        prop_oneof![12 => Just("host: a\r\n"), 1 => Just(""), 1 => Just("Host:a:80 \r\n"), 1 => Just("host: a/b\r\n")];
    let chunks = prop::collection::vec(
        prop_oneof![8 => prop::sample::select(&CHUNKS[..3]), 1 => prop::sample::select(CHUNKS)],
        0..4,
    );
    let body = prop_oneof![
        4 => Just(String::from("\r\n")),
        3 => (0_usize..40, 0_usize..44).prop_map(|(said, sent)| {
            format!("content-length: {said}\r\n\r\n{}", "b".repeat(if sent > 40 { sent - 40 } else { said }))
        }),
        4 => chunks.clone().prop_map(|c| format!("transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", c.concat())),
        1 => chunks.prop_map(|c| format!("Transfer-Encoding: chunked\r\nexpect: 100-continue\r\n\r\n{}0\r\n\r\n", c.concat())),
        1 => Just(String::from("content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        1 => Just(String::from("content-length: 3\r\ncontent-length: 3\r\n\r\nabc")),
        1 => Just(String::from("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        1 => Just(String::from("transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n")),
    ];
    (method, gap, target, version, end, host, fields, body).prop_map(
        |(method, gap, target, version, end, host, fields, body)| {
            let fields: String = fields.iter().map(|(field, end)| format!("{field}{end}")).collect();
            format!("{method}{gap}{target} {version}{end}{host}{fields}{body}").into_bytes()
        },
    )
}

/// Some requests on one connection; in some a few bytes are others.
fn connection() -> impl Strategy<Value = Vec<u8>> {
    let requests = prop::collection::vec(request(), 1..4).prop_map(|requests| requests.concat());
    let odd = prop::sample::select(&b"\r\n\0 \t:;,%/.#0\x0b\x85\xff-_"[..]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), odd, any::<bool>()), 0..3);
    (requests, changes, 0_u8..4).prop_map(|(mut bytes, changes, dice)| {
        for (at, byte, replaces) in changes.iter().filter(|_| dice == 0) {
            let at = at.index(bytes.len());
            if *replaces { bytes[at] = *byte } else { bytes.insert(at, *byte) }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_configuration_of_any_words_is_read_or_refused(bytes in jumble(CONFIG, 40)) {
        config(&bytes);
    }

    #[test]
    fn a_proxy_header_of_any_words_ends_where_it_says(bytes in jumble(PROXY, 12)) {
        proxy_header(&bytes);
    }

    #[test]
    fn forwarded_fields_of_any_words_name_who_the_model_names(bytes in jumble(FORWARDED, 20)) {
        forwarded(&bytes);
    }

    #[test]
    fn a_path_of_any_words_is_cleaned_as_the_rfc_says(bytes in jumble(PATH, 14)) {
        path(&[b"/", &bytes[..]].concat());
        path(&bytes);
    }

    #[test]
    fn any_rules_find_what_a_walk_over_them_finds(bytes in jumble(HOST, 25)) {
        host(&bytes);
    }

    #[test]
    fn slices_of_any_words_say_the_same_in_any_order(bytes in jumble(SLICES, 25)) {
        slices(&bytes);
    }
}

proptest! {
    // Each is some connections over loopback.
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_reaches_an_endpoint_is_what_the_client_strictly_said(bytes in connection()) {
        front(&bytes);
    }
}

#[test]
fn the_seeds_of_all_fuzzers_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, body) in TARGETS {
        assert!(root.join("targets").join(name).with_extension("rs").exists(), "no fuzzer for {name}");
        let seeds = std::fs::read_dir(root.join("seeds").join(name)).unwrap();
        let count = seeds.map(|seed| body(&std::fs::read(seed.unwrap().path()).unwrap())).count();
        assert!(count > 0, "no seeds of {name}");
    }
}

#[test]
fn the_strict_parser_reads_what_is_right_and_nothing_else() {
    let good = b"\r\nPOST /a HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: Chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let (messages, wrong) = strict::read_all(good);
    assert_eq!((messages.len(), wrong), (2, None));
    assert_eq!((&messages[0].body[..], messages[0].trailers.len(), messages[0].is_whole), (&b"abc"[..], 1, true));

    for bad in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nx: \rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1,1\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert!(strict::read(bad.as_bytes()).is_err(), "{bad:?}");
    }
    for body in ["3\r\nab\r\n0\r\n\r\n", "1\nx\n0\n\n", "0x1\r\nx\r\n0\r\n\r\n", "1\r\nx\r\n0\r\n", "-1\r\n"] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        assert!(!strict::read(request.as_bytes()).unwrap().unwrap().0.is_whole, "{body:?}");
    }
}
