use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use h2::Reason as Code;
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;
use crate::proxy::http2::frame::{self, flag, kind, setting};
use crate::proxy::http2::hpack::{Decoder, Fields, encoder};

mod driven;
mod windows;

const GET: &str = "GET /a HTTP/1.1\r\nHost: e\r\n\r\n";
const POST: &str = "POST /a HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n";

type Shared = Rc<RefCell<Streams>>;
/// Something that an endpoint says.
type Says = Box<dyn FnOnce(&mut Vec<u8>)>;

/// A connection whose endpoint has said its settings.
fn connection(settings: &[(u16, u32)]) -> Shared {
    let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), streams::STREAMS)));
    said(&streams, |out| frame::settings(settings, out)).unwrap();
    streams.borrow_mut().out.clear();
    streams
}

/// The endpoint says something.
fn said(streams: &Shared, what: impl FnOnce(&mut Vec<u8>)) -> Result<(), Code> {
    let mut bytes = Vec::new();
    what(&mut bytes);
    let used = streams.borrow_mut().receive(&bytes, 0)?;
    assert_eq!(used, bytes.len());
    Ok(())
}

fn headers(stream: u32, fields: &[(&str, &str)], is_last: bool) -> impl FnOnce(&mut Vec<u8>) + use<> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // Not by `field`, which writes lower case only.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    move |out| frame::headers(stream, &block, is_last, out)
}

fn data(stream: u32, bytes: &[u8], is_last: bool) -> impl FnOnce(&mut Vec<u8>) {
    move |out| frame::data(stream, bytes, is_last, out)
}

fn write(stream: &mut Http2Stream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream).poll_write(&mut cx, bytes)
}

/// Sends all of a request.
fn ask(streams: &Shared, text: &str) -> Http2Stream {
    let mut stream = Http2Stream::new(streams.clone(), false);
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let Poll::Ready(n) = write(&mut stream, rest) else { panic!("no room for {rest:?}") };
        rest = &rest[n.unwrap()..];
    }
    stream
}

/// Reads what is there, so many bytes at a time.
fn read_by(stream: &mut Http2Stream, step: usize) -> (String, Option<StreamError>) {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut all, mut space) = (Vec::new(), vec![0; step]);
    loop {
        let mut buf = ReadBuf::new(&mut space);
        let error = match Pin::new(&mut *stream).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                all.extend_from_slice(buf.filled());
                continue;
            }
            Poll::Ready(Err(error)) => StreamError::of(&error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        return (String::from_utf8(all).unwrap(), error);
    }
}

fn read(stream: &mut Http2Stream) -> String {
    let (text, error) = read_by(stream, 4_096);
    assert_eq!(error, None, "after {text:?}");
    text
}

/// The frames that perch has put together, and takes them away.
fn frames(streams: &Shared) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let out = std::mem::take(&mut streams.borrow_mut().out);
    let (mut rest, mut frames) = (&out[..], Vec::new());
    while let Some((head, payload)) = frame::next(rest).unwrap() {
        frames.push((head.kind, head.flags, head.stream, payload.to_vec()));
        rest = &rest[frame::HEAD + head.length..];
    }
    frames
}

fn decoded(block: &[u8]) -> Vec<String> {
    let mut fields = Fields::new(Vec::new(), 65_536);
    Decoder::default().decode(block, &mut fields).unwrap();
    fields.iter().map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii())).collect()
}

#[test]
fn a_request_becomes_a_block_without_what_is_of_its_connection() {
    let streams = connection(&[]);

    let head = "PUT /a?b HTTP/1.1\r\nHost: e:1\r\nUser-Agent: x\r\nX-Odd:  y \r\nTE: trailers\r\nConnection: x\r\nContent-Length: 3\r\n\r\nabc";
    let _stream = ask(&streams, head);

    let sent = frames(&streams);
    assert_eq!(sent[0].1, flag::END_HEADERS);
    let pseudo = [":method: PUT", ":scheme: http", ":authority: e:1", ":path: /a?b"];
    let fields = ["user-agent: x", "x-odd: y", "te: trailers", "content-length: 3"];
    assert_eq!(decoded(&sent[0].3), [pseudo, fields].concat());
    assert_eq!(sent[1..], [(kind::DATA, flag::END_STREAM, 1, b"abc".to_vec())]);
}

#[test]
fn the_end_of_a_body_goes_out_with_its_last_bytes() {
    let streams = connection(&[]);

    let _stream = ask(&streams, &format!("{POST}5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"));

    let sent = frames(&streams);
    assert_eq!(sent[1], (kind::DATA, 0, 1, b"hello".to_vec()));
    assert_eq!(sent[2..], [(kind::DATA, flag::END_STREAM, 1, b"!".to_vec())]);
}

#[test]
fn trailers_end_a_request_and_an_answer() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, &format!("{POST}1\r\n!\r\n0\r\nX-Sum: 7\r\n\r\n"));

    let sent = frames(&streams);
    said(
        &streams,
        headers(1, &[(":status", "200"), ("content-type", "application/grpc"), ("content-length", "2")], false),
    )
    .unwrap();
    said(&streams, data(1, b"ok", false)).unwrap();
    said(&streams, headers(1, &[("grpc-status", "0"), ("host", "evil")], true)).unwrap();

    assert_eq!((sent[2].0, sent[2].1, decoded(&sent[2].3)), (kind::HEADERS, 5, vec!["x-sum: 7".to_owned()]));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(read(&mut stream), format!("{head}2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n"));
    assert_eq!(streams.borrow().find(1), None, "it is over for both");
}

#[test]
fn a_request_that_comes_byte_by_byte_is_the_same() {
    let (whole, pieces) = (connection(&[]), connection(&[]));
    let text = format!("{POST}5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n");

    let _stream = ask(&whole, &text);
    let mut stream = Http2Stream::new(pieces.clone(), false);
    for byte in text.as_bytes() {
        assert!(matches!(write(&mut stream, &[*byte]), Poll::Ready(Ok(1))));
    }

    let body = |streams| {
        let sent = frames(streams);
        let body: Vec<u8> = sent.iter().filter(|f| f.0 == kind::DATA).flat_map(|f| f.3.clone()).collect();
        (body, sent.first().map(|f| f.3.clone()), sent.last().map(|f| (f.0, f.1, f.3.clone())))
    };
    assert_eq!(body(&whole), body(&pieces));
}

#[test]
fn an_answer_is_read_the_same_however_little_is_read_at_a_time() {
    for step in 1..60 {
        let streams = connection(&[]);
        let mut stream = ask(&streams, GET);
        said(&streams, headers(1, &[(":status", "103"), ("link", "x")], false)).unwrap();
        said(&streams, headers(1, &[(":status", "200"), ("a", "b")], false)).unwrap();
        said(&streams, data(1, &[b'x'; 17], true)).unwrap();

        let (text, error) = read_by(&mut stream, step);

        assert_eq!(error, None);
        let body = "11\r\nxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(text, format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{head}{body}"), "step {step}");
    }
}

#[test]
fn answers_without_a_body_say_so() {
    for (request, fields, head) in [
        (GET, vec![(":status", "204")], "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            GET,
            vec![(":status", "304"), ("content-length", "9")],
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
        ),
        (GET, vec![(":status", "299")], "HTTP/1.1 299 \r\ncontent-length: 0\r\n\r\n"),
        (
            "HEAD / HTTP/1.1\r\nHost: e\r\n\r\n",
            vec![(":status", "200"), ("content-length", "9")],
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        ),
    ] {
        let streams = connection(&[]);
        let mut stream = ask(&streams, request);

        said(&streams, headers(1, &fields, true)).unwrap();

        assert_eq!(read(&mut stream), head);
    }
}

#[test]
fn a_malformed_answer_ends_its_stream_only() {
    let ok: &[(&str, &str)] = &[(":status", "200"), ("content-length", "2")];
    let bad: [(&str, Vec<Says>); 15] = [
        ("no status", vec![Box::new(headers(1, &[("a", "b")], false))]),
        ("a status too late", vec![Box::new(headers(1, &[("a", "b"), (":status", "200")], false))]),
        ("two of them", vec![Box::new(headers(1, &[(":status", "200"), (":status", "200")], false))]),
        ("no number", vec![Box::new(headers(1, &[(":status", "2x0")], false))]),
        ("a switch of protocols", vec![Box::new(headers(1, &[(":status", "101")], false))]),
        ("a last interim one", vec![Box::new(headers(1, &[(":status", "100")], true))]),
        ("a request's field", vec![Box::new(headers(1, &[(":status", "200"), (":path", "/")], false))]),
        ("upper case", vec![Box::new(headers(1, &[(":status", "200"), ("A", "b")], false))]),
        ("a line in a value", vec![Box::new(headers(1, &[(":status", "200"), ("a", "b\r\nc: d")], false))]),
        ("a connection's field", vec![Box::new(headers(1, &[(":status", "200"), ("connection", "close")], false))]),
        ("two lengths", vec![Box::new(headers(1, &[ok, &[("content-length", "3")]].concat(), false))]),
        ("no body though a length", vec![Box::new(headers(1, ok, true))]),
        ("a body before its head", vec![Box::new(data(1, b"x", false))]),
        ("too much", vec![Box::new(headers(1, ok, false)), Box::new(data(1, b"xxx", false))]),
        ("too little", vec![Box::new(headers(1, ok, false)), Box::new(data(1, b"x", true))]),
    ];
    for (what, says) in bad {
        let streams = connection(&[]);
        let (mut stream, mut other) = (ask(&streams, GET), ask(&streams, GET));
        frames(&streams);

        says.into_iter().for_each(|say| said(&streams, say).unwrap());
        said(&streams, headers(3, &[(":status", "200")], true)).unwrap();

        let (_, error) = read_by(&mut stream, 4_096);
        assert_eq!(error, Some(StreamError::Malformed), "{what}");
        let code = u32::from(Code::PROTOCOL_ERROR).to_be_bytes().to_vec();
        assert_eq!(frames(&streams), [(kind::RST_STREAM, 0, 1, code)], "{what}");
        assert!(read(&mut other).starts_with("HTTP/1.1 200"), "{what}");
    }
}

#[test]
fn what_breaks_the_connection_is_refused_with_its_code() {
    let whole = |kind, flags, stream, payload: &'static [u8]| {
        move |out: &mut Vec<u8>| frame::whole(kind, flags, stream, payload, out)
    };
    let cases: [(&str, Code, Says); 11] = [
        ("a push", Code::PROTOCOL_ERROR, Box::new(whole(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]))),
        ("an idle stream", Code::PROTOCOL_ERROR, Box::new(data(3, b"x", false))),
        ("an even stream", Code::PROTOCOL_ERROR, Box::new(data(2, b"x", false))),
        ("data on 0", Code::PROTOCOL_ERROR, Box::new(data(0, b"x", false))),
        ("a short ping", Code::FRAME_SIZE_ERROR, Box::new(whole(kind::PING, 0, 0, b"short"))),
        ("a short goodbye", Code::FRAME_SIZE_ERROR, Box::new(whole(kind::GOAWAY, 0, 0, b"short"))),
        ("no window at all", Code::PROTOCOL_ERROR, Box::new(whole(kind::WINDOW_UPDATE, 0, 0, &[0; 4]))),
        (
            "a window too large",
            Code::FLOW_CONTROL_ERROR,
            Box::new(whole(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255])),
        ),
        ("a bad block", Code::COMPRESSION_ERROR, Box::new(whole(kind::HEADERS, 4, 1, &[0xff; 9]))),
        (
            "no continuation",
            Code::PROTOCOL_ERROR,
            Box::new(|out: &mut Vec<u8>| {
                frame::whole(kind::HEADERS, 0, 1, &[0x88], out);
                frame::whole(kind::PING, 0, 0, &[0; 8], out);
            }),
        ),
        ("a frame too long", Code::FRAME_SIZE_ERROR, Box::new(|out: &mut Vec<u8>| frame::head(16_385, 0, 0, 1, out))),
    ];
    for (what, code, say) in cases {
        let streams = connection(&[]);
        let _stream = ask(&streams, GET);
        assert_eq!(said(&streams, say), Err(code), "{what}");
    }
}

#[test]
fn an_endpoint_speaks_its_settings_first() {
    let streams = Rc::new(RefCell::new(Streams::new(Rc::default(), 100)));

    assert_eq!(said(&streams, |out| frame::ping(0, [0; 8], out)), Err(Code::PROTOCOL_ERROR));
}

#[test]
fn an_endpoint_that_only_chatters_is_left() {
    let streams = connection(&[]);
    let _stream = ask(&streams, GET);

    let after = (0..100_000).find(|_| said(&streams, data(1, b"", false)).is_err());

    assert!(after.is_some_and(|n| (500..5_000).contains(&n)), "{after:?}");
}

proptest! {
    #[test]
    fn no_bytes_panic_and_no_answer_looks_whole_by_chance(
        wire in prop::collection::vec(any::<u8>(), 0..300),
        kinds in prop::collection::vec((0_u8..10, 0_u8..64, 0_u32..5, 0_usize..40), 0..20),
    ) {
        let streams = connection(&[]);
        let mut stream = ask(&streams, GET);
        let mut bytes = Vec::new();
        for (at, (kind, flags, id, length)) in kinds.into_iter().enumerate() {
            frame::whole(kind, flags, id, wire.get(at..at + length).unwrap_or_default(), &mut bytes);
        }
        bytes.extend_from_slice(&wire);
        streams.borrow_mut().receive(&bytes, 0).ok();

        let (text, _) = read_by(&mut stream, 99);

        prop_assert!(text.is_empty() || text.starts_with("HTTP/1.1 "));
    }

    #[test]
    fn any_split_of_the_wire_is_the_same(step in 1_usize..40, body in prop::collection::vec(any::<u8>(), 0..100)) {
        let body: String = body.iter().map(|b| char::from(b'a' + b % 26)).collect();
        let mut wire = Vec::new();
        let mut block = Vec::new();
        encoder::status(200, &mut block);
        encoder::field(b"a", b"b", &mut block);
        frame::headers(1, &block, false, &mut wire);
        frame::data(1, body.as_bytes(), true, &mut wire);
        let streams = connection(&[]);
        let mut stream = ask(&streams, GET);

        let mut pending = Vec::new();
        for piece in wire.chunks(step) {
            pending.extend_from_slice(piece);
            let used = streams.borrow_mut().receive(&pending, 0).unwrap();
            pending.drain(..used);
        }

        let text = read(&mut stream);
        prop_assert!(text.starts_with("HTTP/1.1 200 OK\r\na: b\r\n"));
        prop_assert!(text.contains(&body) && text.ends_with("0\r\n\r\n"));
    }
}
