//! Whose turn it is while a request goes up and no answer has begun: the same deadlines for HTTP/1 and HTTP/2 clients.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame};

use crate::front::{assert_closed, assert_refused, front_tls, front_with};
use crate::support::h2::{H2, full, whole};
use crate::support::{Act, PATIENCE, Seen};

/// More than the kernel's buffers between perch and an endpoint take.
const LARGE: usize = 32 << 20;

/// A body of which nothing comes.
struct Silent;

impl Body for Silent {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

/// A client that was told to go on, and then sends nothing.
#[test]
fn a_body_that_does_not_come_after_100_has_the_bodys_deadline() {
    let front = front_with("timeouts: {body: 500ms}", "timeouts: {responseHead: 1h}");
    front.backend.script(|_: &Seen| vec![Act::Continue, Act::ReadBody]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.try_response_head().unwrap().status, 100);

    assert_refused(&client.response(), 408, "body-timeout");
    assert_closed(&mut client);
}

#[test]
fn an_endpoint_that_stops_reading_has_the_response_heads_deadline() {
    let front = front_with("timeouts: {body: 1h}", "timeouts: {responseHead: 500ms}");
    front.backend.script(|_: &Seen| vec![Act::Gate]);
    let mut client = front.client();
    let start = Instant::now();

    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n");
    let mut socket = client.socket().try_clone().unwrap();
    client.send(head);
    let upload = std::thread::spawn(move || std::io::Write::write_all(&mut socket, &vec![b'u'; LARGE]).is_ok());

    assert_refused(&client.response(), 504, "response-timeout");
    assert!(start.elapsed() < PATIENCE);
    assert!(!upload.join().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_stops_reading_has_the_same_deadline_for_http2() {
    let front = front_tls("timeouts: {body: 1h}", "timeouts: {responseHead: 500ms}");
    front.backend.script(|_: &Seen| vec![Act::Gate]);
    let mut client = H2::tls(front.perch.address("https"), "localhost").await;

    let request = client.request("POST", "/").body(full(vec![b'u'; LARGE])).unwrap();
    let answer = tokio::time::timeout(PATIENCE, client.send(request)).await.expect("in time").unwrap();

    assert_eq!(answer.headers()["perch-reason"], "response-timeout");
    assert_eq!(whole(answer).await.unwrap().status(), 504);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_over_http2_has_the_bodys_deadline() {
    let front = front_tls("timeouts: {body: 500ms}", "timeouts: {responseHead: 1h}");
    front.backend.script(|_: &Seen| vec![Act::ReadBody]);
    let mut client = H2::tls(front.perch.address("https"), "localhost").await;

    let request = client.request("POST", "/").body(http_body_util::BodyExt::boxed(Silent)).unwrap();
    let answer = tokio::time::timeout(PATIENCE, client.send(request)).await.expect("in time").unwrap();

    assert_eq!((answer.status().as_u16(), &answer.headers()["perch-reason"]), (408, &"body-timeout".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_http2_that_stops_behind_an_answer_that_has_begun_is_the_clients_fault() {
    let front = front_tls("timeouts: {body: 1h}", "timeouts: {body: 500ms}");
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    front.backend.script(|_: &Seen| vec![Act::Send(half.to_vec()), Act::Stall]);
    let mut client = H2::tls(front.perch.address("https"), "localhost").await;

    let request = client.request("POST", "/").body(http_body_util::BodyExt::boxed(Silent)).unwrap();
    let answer = tokio::time::timeout(PATIENCE, client.send(request)).await.expect("in time").unwrap();

    assert_eq!(answer.status(), 200);
    assert!(whole(answer).await.is_err(), "it was cut");
    front.logged("body-timeout");
}
