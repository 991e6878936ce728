//! Large bodies: streamed both ways with back-pressure, in flat memory.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::front::{Front, front};
use crate::support::{Act, PATIENCE, Seen, eventually, response};

/// Large enough that holding it would show, small enough for a debug build on a small machine.
const LARGE: usize = if cfg!(debug_assertions) { 64 << 20 } else { 256 << 20 };
/// A connection may hold a few buffers; a quarter of [`LARGE`] is far beyond that and far below all of it.
const FLAT: usize = 16 << 20;

/// perch's resident memory.
fn resident(front: &Front) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/statm", front.perch.pid())).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// The same once it grows no more.
fn resident_at_rest(front: &Front) -> usize {
    let mut last = resident(front);
    eventually(PATIENCE, || {
        // Between two looks; the looks decide.
        std::thread::sleep(Duration::from_millis(100));
        let now = resident(front);
        std::mem::replace(&mut last, now) >= now
    });
    last
}

fn download(length: usize) -> impl Fn(&Seen) -> Vec<Act> {
    move |_| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let mut acts = vec![Act::Send(head.into_bytes())];
        acts.extend((0..length >> 20).map(|_| Act::Send(vec![b'x'; 1 << 20])));
        acts
    }
}

fn read(socket: &mut TcpStream, mut left: usize) {
    let mut chunk = vec![0; 1 << 16];
    while left > 0 {
        let most = left.min(chunk.len());
        let n = socket.read(&mut chunk[..most]).unwrap();
        assert!(n > 0, "ended with {left} bytes to come");
        left -= n;
    }
}

#[test]
fn a_large_download_to_a_slow_reader_stays_out_of_memory() {
    let front = front();
    front.client().get("a", "/");
    let before = resident(&front);
    front.backend.script(download(LARGE));
    let mut client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.try_response_head().unwrap();
    // Not read: everything that has room is full now, and the endpoint has to wait.
    let held = resident_at_rest(&front);
    let rest = client.read_exact(1).unwrap();

    assert!(held < before + FLAT, "{before} -> {held} bytes while the client does not read");
    assert_eq!((head.status, rest.len()), (200, 1));
    let buffered = client.take_buffered();
    read(&mut client.socket().try_clone().unwrap(), LARGE - 1 - buffered);
    let after = resident(&front);
    assert!(after < before + FLAT, "{before} -> {after} bytes");
}

#[test]
fn a_large_upload_to_a_slow_endpoint_stays_out_of_memory() {
    let front = front();
    front.client().get("a", "/");
    let before = resident(&front);
    front.backend.script(|seen: &Seen| vec![Act::Gate, Act::ReadBody, response(seen, "200 OK", "", "all")]);
    let mut client = front.client();
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n"));
    let mut socket = client.socket().try_clone().unwrap();

    let sender = std::thread::spawn(move || {
        for _ in 0..LARGE >> 20 {
            socket.write_all(&[b'x'; 1 << 20]).unwrap();
        }
    });
    eventually(PATIENCE, || front.backend.count() == 2);
    let held = resident_at_rest(&front);
    assert!(!sender.is_finished(), "the client could send everything although the endpoint reads nothing");
    front.backend.open_gate();
    let answer = client.response();
    sender.join().unwrap();

    assert!(held < before + FLAT, "{before} -> {held} bytes while the endpoint does not read");
    assert_eq!(answer.text(), "all");
    assert_eq!(front.backend.last().body.len(), LARGE);
    let after = resident(&front);
    assert!(after < before + FLAT, "{before} -> {after} bytes");
}

#[test]
fn bytes_go_on_as_they_come() {
    let front = front();
    front.backend.script(|_| {
        vec![
            Act::Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n".to_vec()),
            Act::Gate,
            Act::Send(b"6\r\nsecond\r\n0\r\n\r\n".to_vec()),
        ]
    });
    let mut client = front.client();

    client.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.try_response_head().unwrap().status, 200);
    assert_eq!(client.read_exact(10).unwrap(), b"5\r\nfirst\r\n");
    front.backend.open_gate();

    assert_eq!(client.read_exact(16).unwrap(), b"6\r\nsecond\r\n0\r\n\r\n"[..16]);
}
