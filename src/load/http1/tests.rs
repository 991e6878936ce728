use std::cell::RefCell;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::either::Either;

use super::*;
use crate::load::version::AllNames;

/// A server that answers each request with `answer`, sent in pieces of `piece` bytes, and then closes.
async fn against(answer: &'static [u8], piece: usize, from: &str) -> Result<(Answer, Option<String>), Fault> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut request = [0; 1024];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        for bytes in answer.chunks(piece) {
            if socket.write_all(bytes).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let all = AllNames::default();
    let names = RefCell::new(Names::new(all.clone()));
    let version_from = from.parse().unwrap();
    let mut stream = Either::Left(TcpStream::connect(address).await.unwrap());
    let answer = exchange(
        &mut stream,
        false,
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        Instant::now(),
        Reading { version_from: &version_from, head_only: false },
        &mut Room::new(Duration::from_secs(5)),
        &names,
    )
    .await;
    server.await.unwrap();
    answer.map(|a| {
        let name = a.version.map(|v| all.list()[v.index()].to_string());
        (a, name)
    })
}

const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nPerch-Version: canary\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
    7;x=y\r\n{\"v\":\"2\r\n4\r\n.0\"}\r\n0\r\ntrailer: x\r\n\r\n";
const INTERIM: &[u8] =
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nperch-version: b\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn an_answer_reads_the_same_in_one_piece_and_byte_by_byte() {
    for piece in [1, 2, 7, 4096] {
        let (answer, version) = against(PLAIN, piece, "header:perch-version").await.unwrap();

        assert_eq!((answer.status, version.as_deref(), answer.reusable), (200, Some("canary"), true));
        assert_eq!(answer.received, PLAIN.len() as u64);
    }
}

#[tokio::test]
async fn a_chunked_body_is_put_together_for_a_json_pointer() {
    for piece in [1, 3, 4096] {
        let (answer, version) = against(CHUNKED, piece, "json:/v").await.unwrap();

        assert_eq!((version.as_deref(), answer.received), (Some("2.0"), CHUNKED.len() as u64));
    }
}

#[tokio::test]
async fn interim_answers_are_skipped() {
    for piece in [1, 4096] {
        let (answer, version) = against(INTERIM, piece, "header:perch-version").await.unwrap();

        assert_eq!((answer.status, version.as_deref()), (200, Some("b")));
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_the_connection() {
    let (answer, version) = against(b"HTTP/1.0 200 OK\r\n\r\nversion 7 ", 4096, "regex:version (\\d)").await.unwrap();

    assert_eq!((version.as_deref(), answer.reusable), (Some("7"), false));
}

#[tokio::test]
async fn an_answer_without_a_version_shows_what_came() {
    let (answer, _) =
        against(b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: 2\r\n\r\nhi", 99, "header:v").await.unwrap();

    let instead = answer.instead.unwrap();
    assert!(instead.contains("HTTP/1.1 200 OK") && instead.contains("server: x"), "{instead}");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_of_its_kind() {
    let kind = async |answer| against(answer, 4096, "status").await.unwrap_err().kind;

    assert_eq!(kind(b"").await, Kind::Closed);
    assert_eq!(kind(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").await, Kind::Closed);
    assert_eq!(kind(b"\x15\x03\x01\0\x02\x02\x46").await, Kind::Protocol);
    assert_eq!(kind(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nhello").await, Kind::Protocol);
    assert_eq!(kind(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n").await, Kind::Protocol);
}
