//! HTTP/2 frame by frame: what no client library would send (rows C1 to C3, D1).

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::front::{Front, assert_closed, front_tls};
use crate::support::{Act, Client, PATIENCE, Seen, eventually, h2, response};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn connect(front: &Front) -> Client {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Client::try_tls(localhost, front.perch.address("https"), "localhost", h2::tls_config(&[b"h2"])).unwrap()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without tables and Huffman: a literal, never indexed (RFC 7541 section 6.2.3).
pub(crate) fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0x10);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// What came of stream 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its response's first HPACK byte: 0x88 is 200.
    Answer(u8),
    Reset(u32),
    Goaway(u32),
}

pub(crate) fn outcome(client: &mut Client) -> Outcome {
    loop {
        let head = client.read_exact(9).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = client.read_exact(length).unwrap();
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            HEADERS if stream == 1 => return Outcome::Answer(payload[0]),
            RST_STREAM if stream == 1 => return Outcome::Reset(code(0)),
            GOAWAY => return Outcome::Goaway(code(4)),
            _ => {}
        }
    }
}

pub(crate) const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")];

/// Sends one request of these fields, and DATA if there is any.
pub(crate) fn ask(front: &Front, list: &[(&str, &str)], data: Option<&[u8]>) -> Outcome {
    let mut client = connect(front);
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    let ends = if data.is_none() { END_STREAM } else { 0 };
    client.send(frame(HEADERS, END_HEADERS | ends, 1, &fields(list)));
    if let Some(data) = data {
        client.send(frame(DATA, END_STREAM, 1, data));
    }
    outcome(&mut client)
}

fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&GOOD[..], more].concat()
}

fn without(name: &str) -> Vec<(&'static str, &'static str)> {
    GOOD.into_iter().filter(|(n, _)| *n != name).collect()
}

fn replaced(name: &str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    GOOD.into_iter().map(|(n, v)| (n, if n == name { value } else { v })).collect()
}

#[test]
fn a_good_request_is_answered() {
    let front = front_tls("", "");

    assert_eq!(ask(&front, &GOOD, None), Outcome::Answer(0x88));
    assert_eq!(ask(&front, &with(&[("content-length", "2")]), Some(b"hi")), Outcome::Answer(0x88));

    assert_eq!(front.backend.last().body, b"hi");
}

#[test]
fn malformed_fields_never_reach_an_endpoint() {
    let front = front_tls("", "");
    let mut late = with(&[("x", "y")]);
    late.rotate_left(1);
    let tables = [
        without(":method"),
        without(":path"),
        without(":scheme"),
        without(":authority"),
        with(&[(":method", "GET")]),
        with(&[(":path", "/b")]),
        with(&[(":authority", "other")]),
        with(&[(":what", "x")]),
        late,
        replaced(":path", ""),
        replaced(":path", "a"),
        replaced(":path", "/a b"),
        replaced(":path", "/a\r\nx: y"),
        replaced(":method", "GE T"),
        replaced(":method", "GET / HTTP/1.1\r\nx:"),
        replaced(":authority", "user@localhost"),
        replaced(":authority", "localhost\r\nx: y"),
        replaced(":authority", "a/b"),
        with(&[("X-Upper", "1")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("x", "a\r\nb: c")]),
        with(&[("x", "a\nb")]),
        with(&[("x", "a\0b")]),
        with(&[("x y", "a")]),
        with(&[("x:y", "a")]),
        with(&[("x\r\ny", "a")]),
        with(&[("", "a")]),
        with(&[("host", "other.test")]),
        with(&[("x_forwarded_for", "1.2.3.4")]),
        with(&[("content-length", "+1")]),
        with(&[("content-length", "5 ")]),
        with(&[("content-length", "\t5")]),
        with(&[("content-length", "0"), ("content-length", "0")]),
        with(&[("x", " y")]),
    ];

    for table in tables {
        let outcome = ask(&front, &table, None);
        assert_ne!(outcome, Outcome::Answer(0x88), "{table:?}");
        assert_eq!(front.backend.count(), 0, "{table:?}: {:?}", front.backend.last());
    }
}

#[test]
fn a_fragment_is_refused_as_in_http1() {
    let front = front_tls("", "");

    // 0x8c is 400. Cut off here and not there it would be read in two ways (CVE-2023-45539).
    assert_eq!(ask(&front, &replaced(":path", "/a#/b"), None), Outcome::Answer(0x8c));

    assert_eq!(front.backend.count(), 0);
}

#[test]
fn a_length_that_is_not_the_body_never_becomes_a_whole_request() {
    let front = front_tls("", "");

    for data in [None, Some(&b"abc"[..]), Some(b"abcdefgh"), Some(b"")] {
        let outcome = ask(&front, &with(&[("content-length", "5")]), data);
        assert_ne!(outcome, Outcome::Answer(0x88), "{data:?}");
        eventually(PATIENCE, || front.backend.open_connections() == 0);
        assert!(front.backend.seen().iter().all(|seen| !seen.is_whole), "{data:?}: {:?}", front.backend.seen());
    }
}

#[test]
fn white_space_around_a_length_hides_no_request_in_a_body() {
    let front = front_tls("", "");
    let body = b"AAAAAGET /hidden HTTP/1.1\r\nhost: a\r\n\r\n";

    for length in ["5 ", " 5", "5\t"] {
        assert_ne!(ask(&front, &with(&[("content-length", length)]), Some(body)), Outcome::Answer(0x88));
    }

    assert_eq!(front.backend.count(), 0);
}

#[test]
fn a_body_that_ends_at_once_in_a_frame_of_its_own_is_whole() {
    let front = front_tls("", "");
    front.backend.script(|seen: &Seen| vec![Act::ReadBody, response(seen, "200 OK", "", "all")]);

    for _ in 0..5 {
        let mut client = connect(&front);
        let request = [frame(HEADERS, END_HEADERS, 1, &fields(&GOOD)), frame(DATA, END_STREAM, 1, &[])].concat();
        client.send([PREFACE, &frame(SETTINGS, 0, 0, &[]), &request].concat());
        assert_eq!(outcome(&mut client), Outcome::Answer(0x88));
    }

    assert!(front.backend.seen().iter().all(|seen| seen.is_whole && seen.body.is_empty()));
    // One for each worker: nothing is left of any of them on an endpoint's connection.
    assert!(front.backend.connections() <= 2);
}

#[test]
fn half_a_preface_is_closed_at_the_first_bytes_deadline() {
    let front = front_tls("timeouts: {firstByte: 500ms, idle: 60s}", "");
    let start = Instant::now();
    for sent in [&PREFACE[..3], &PREFACE[..20], PREFACE] {
        let mut client = connect(&front);
        client.send(sent);
        assert_closed(&mut client);
    }
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}
