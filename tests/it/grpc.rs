//! gRPC's ways (row C15): errors it can read, streams that are silent for long, deadlines. `tests/suites/grpc` has real
//! clients and servers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;

use crate::endpoint_http2::{http2, perch};
use crate::support::PATIENCE;
use crate::support::h2::{H2, full};
use crate::support::h2_backend::{H2Backend, read, send};

/// Status, `grpc-status` of the head, body, trailers.
async fn call(client: &mut H2, path: &str, timeout: Option<&str>) -> (u16, HeaderMap, Bytes, HeaderMap) {
    let request = client.request("POST", path).header("content-type", "application/grpc").header("te", "trailers");
    let request = timeout.into_iter().fold(request, |request, timeout| request.header("grpc-timeout", timeout));
    let answer = client.send(request.body(full(&b"\0\0\0\0\x01x"[..])).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("in time").unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    (head.status.as_u16(), head.headers, body.to_bytes(), trailers)
}

fn echo() -> H2Backend {
    H2Backend::start(|mut asked| async move {
        let (body, _) = read(&mut asked.body).await.unwrap();
        if let Some(wait) = asked.head.headers.get("x-wait") {
            tokio::time::sleep(Duration::from_millis(wait.to_str().unwrap().parse().unwrap())).await;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let head = Response::builder().header("content-type", "application/grpc");
        match asked.head.uri.path() {
            "/only" => {
                let head = head.header("grpc-status", "5").body(()).unwrap();
                asked.respond.send_response(head, true).unwrap();
            }
            "/late" => std::future::pending().await,
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                let mut stream = asked.respond.send_response(head.body(()).unwrap(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(1500)).await;
                send(&mut stream, body.into(), false).await;
                stream.send_trailers(trailers).unwrap();
            }
            _ => {
                let mut stream = asked.respond.send_response(head.body(()).unwrap(), false).unwrap();
                send(&mut stream, body.into(), false).await;
                stream.send_trailers(trailers).unwrap();
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_have_their_messages_and_their_status() {
    let backend = echo();
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http2(&perch).await;

    let (status, head, body, trailers) = call(&mut client, "/hello.Hello/Say", None).await;
    assert_eq!((status, &body[..], &trailers["grpc-status"]), (200, &b"\0\0\0\0\x01x"[..], &"0".parse().unwrap()));
    assert!(!head.contains_key("content-length"));
    assert_eq!(backend.heads()[0].headers["te"], "trailers");
    let (status, head, body, _) = call(&mut client, "/only", None).await;

    assert_eq!((status, head["grpc-status"].as_bytes(), body.len()), (200, &b"5"[..], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_perch_are_errors_of_grpc() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let perch = perch(gone, "protocol: h2c");
    let mut client = http2(&perch).await;

    let (status, head, body, _) = call(&mut client, "/a", None).await;

    assert_eq!((status, head["grpc-status"].as_bytes(), body.len()), (200, &b"14"[..], 0));
    assert_eq!(
        (&head["content-type"], &head["perch-reason"]),
        (&"application/grpc".parse().unwrap(), &"connect-refused".parse().unwrap())
    );
    let (_, head, _, _) = call(&mut client, "/..%2f/../..", None).await;
    assert_eq!(head["grpc-status"], "13");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_call_is_not_cut_before_its_deadline() {
    let backend = echo();
    let perch = perch(backend.address, "protocol: h2c\ntimeouts: {responseHead: 300ms, body: 300ms}");
    let mut client = http2(&perch).await;

    for timeout in [None, Some("10S")] {
        let (status, _, body, trailers) = call(&mut client, "/slow", timeout).await;
        assert_eq!((status, body.len(), &trailers["grpc-status"]), (200, 6, &"0".parse().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_over_its_deadline_ends() {
    let backend = echo();
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http2(&perch).await;
    let start = Instant::now();

    let (status, head, _, _) = call(&mut client, "/late", Some("200m")).await;

    assert_eq!((status, head["grpc-status"].as_bytes()), (200, &b"4"[..]));
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}
