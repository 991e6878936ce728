//! HTTP/2 from clients to HTTP/1 endpoints: streams, trailers, windows, resets, what is malformed.

use bytes::Bytes;
use futures_body::Pieces;
use http_body_util::BodyExt;
use hyper::body::Frame;

use crate::front::{A_WHILE, Front, front_tls};
use crate::support::h2::{Body, H2, empty, full, whole};
use crate::support::{Act, PATIENCE, Seen, eventually, ok, response};

/// A body that the test feeds piece by piece.
mod futures_body {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use hyper::body::Frame;
    use tokio::sync::mpsc;

    type Error = Box<dyn std::error::Error + Send + Sync>;

    pub(super) struct Pieces(mpsc::UnboundedReceiver<Frame<Bytes>>);

    impl Pieces {
        pub(super) fn new() -> (mpsc::UnboundedSender<Frame<Bytes>>, Self) {
            let (sender, receiver) = mpsc::unbounded_channel();
            (sender, Self(receiver))
        }
    }

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }
}

async fn client(front: &Front) -> H2 {
    H2::tls(front.perch.address("https"), "localhost").await
}

fn raw(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

#[tokio::test]
async fn requests_become_http1_and_answers_come_back() {
    let front = front_tls("", "versionHeader: true");
    front.backend.script(|seen: &Seen| {
        vec![Act::ReadBody, response(seen, "201 Created", "x-a: b\r\nconnection: x-hop\r\nx-hop: 1\r\n", "made")]
    });
    let mut client = client(&front).await;

    let request = client.request("POST", "/a/../b?c").header("x-up", "1").header("te", "trailers");
    let answer = whole(client.send(request.body(full("body")).unwrap()).await.unwrap()).await.unwrap();

    assert_eq!((answer.status(), &answer.body[..]), (201, &b"made"[..]));
    assert_eq!((answer.header("x-a"), answer.header("x-hop"), answer.header("connection")), (Some("b"), None, None));
    assert_eq!((answer.header("perch-version"), answer.header("content-length")), (Some("stable"), Some("4")));
    let seen = front.backend.last();
    assert_eq!(seen.start_line(), "POST /b?c HTTP/1.1");
    assert_eq!((seen.headers("host"), seen.headers("te")), (vec!["localhost".into()], vec!["trailers".into()]));
    assert_eq!((seen.body.as_slice(), seen.headers("x-forwarded-proto")), (&b"body"[..], vec!["https".to_owned()]));
    assert_eq!(client.get("/").await.status(), 201);
    assert_eq!(front.backend.connections(), 1);
}

#[tokio::test]
async fn head_204_and_304_have_no_body() {
    let front = front_tls("", "");
    let mut client = client(&front).await;

    front.backend.script(|_| vec![raw("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n")]);
    let request = client.request("HEAD", "/").body(empty()).unwrap();
    let answer = whole(client.send(request).await.unwrap()).await.unwrap();
    assert_eq!((answer.status(), answer.header("content-length"), answer.body.len()), (200, Some("99"), 0));
    front.backend.script(|_| vec![raw("HTTP/1.1 204 No Content\r\n\r\n")]);
    assert_eq!(client.get("/").await.status(), 204);
    front.backend.script(|_| vec![raw("HTTP/1.1 304 Not Modified\r\n\r\n")]);
    assert_eq!(client.get("/").await.status(), 304);

    assert_eq!(front.backend.connections(), 1);
}

#[tokio::test]
async fn bodies_stream_up_and_down_at_once() {
    let front = front_tls("", "");
    front.backend.script(|_| {
        vec![
            raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"),
            Act::ReadBody,
            raw("4\r\nlast\r\n0\r\n\r\n"),
        ]
    });
    let mut client = client(&front).await;
    let (feed, pieces) = Pieces::new();

    let request = client.request("POST", "/").body(BodyExt::boxed(pieces)).unwrap();
    let mut answer = client.send(request).await.unwrap().into_body();
    let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
    feed.send(Frame::data(Bytes::from_static(b"one"))).unwrap();
    feed.send(Frame::data(Bytes::from_static(b"two"))).unwrap();
    drop(feed);
    let last = answer.frame().await.unwrap().unwrap().into_data().unwrap();

    assert_eq!((&first[..], &last[..]), (&b"first"[..], &b"last"[..]));
    assert_eq!(front.backend.last().body, b"onetwo");
}

#[tokio::test]
async fn trailers_go_both_ways_filtered() {
    let front = front_tls("", "");
    front.backend.script(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = "3\r\nabc\r\n0\r\ngrpc-status: 0\r\ngrpc-message: ok\r\ncontent-length: 3\r\n\r\n";
        vec![Act::ReadBody, raw(head), raw(body)]
    });
    let mut client = client(&front).await;
    let (feed, pieces) = Pieces::new();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    trailers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
    feed.send(Frame::data(Bytes::from_static(b"up"))).unwrap();
    feed.send(Frame::trailers(trailers)).unwrap();
    drop(feed);

    let request = client.request("POST", "/svc/Call").header("te", "trailers").body(BodyExt::boxed(pieces)).unwrap();
    let answer = client.send(request).await.unwrap().into_body().collect().await.unwrap();

    let got = answer.trailers().unwrap();
    assert!(got["grpc-status"] == "0" && got["grpc-message"] == "ok", "{got:?}");
    assert_eq!(got.get("content-length"), None);
    let seen = front.backend.last();
    assert!(String::from_utf8_lossy(&seen.raw_body).ends_with("0\r\nx-sum: 7\r\n\r\n"), "{seen:?}");
}

#[tokio::test]
async fn an_authority_that_differs_from_host_is_refused() {
    let front = front_tls("", "");
    let mut client = client(&front).await;

    let request = client.request("GET", "/").header("host", "other.test").body(empty()).unwrap();
    let answer = whole(client.send(request).await.unwrap()).await.unwrap();

    assert_eq!((answer.status(), answer.header("perch-reason")), (400, Some("host-mismatch")));
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(front.backend.count(), 1);
}

#[tokio::test]
async fn refusals_are_responses_and_other_streams_live_on() {
    let front = front_tls("limits: {targetBytes: 1000}", "");
    let mut client = client(&front).await;

    for (method, path, status, reason) in
        [("GET", "/../x", 400, "path"), ("TRACE", "/", 405, "method"), ("GET", "/%00", 400, "path")]
    {
        let request = client.request(method, path).body(empty()).unwrap();
        let answer = whole(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!((answer.status(), answer.header("perch-reason")), (status, Some(reason)), "{method} {path}");
    }
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(front.backend.count(), 1);
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_and_its_connection_lives_on() {
    let front = front_tls("limits: {headBytes: 8192, targetBytes: 4096}", "");
    let mut client = client(&front).await;

    let large = client.request("GET", "/").header("x-large", "y".repeat(9_000)).body(empty()).unwrap();
    let answer = whole(client.send(large).await.unwrap()).await.unwrap();
    assert_eq!((answer.status(), answer.header("perch-reason")), (431, Some("head-size")));
    let long = client.request("GET", &format!("/{}", "y".repeat(4_096))).body(empty()).unwrap();
    let answer = whole(client.send(long).await.unwrap()).await.unwrap();
    assert_eq!((answer.status(), answer.header("perch-reason")), (414, Some("target-length")));

    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(front.backend.count(), 1);
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let front = front_tls("", "");
    front.backend.script(|seen: &Seen| ok(seen, &seen.target()));
    let client = client(&front).await;

    let streams: Vec<_> = (0..300)
        .map(|n| {
            let mut sender = client.sender.clone();
            let request = client.request("GET", &format!("/{n}")).body(empty()).unwrap();
            tokio::spawn(async move {
                sender.ready().await.unwrap();
                whole(sender.send_request(request).await.unwrap()).await.unwrap()
            })
        })
        .collect();

    for (n, stream) in streams.into_iter().enumerate() {
        assert_eq!(stream.await.unwrap().body, format!("/{n}"));
    }
}

#[tokio::test]
async fn streams_over_the_limit_wait_for_their_turn() {
    let front = front_tls("limits: {streams: 2}", "");
    front.backend.script(|seen: &Seen| [vec![Act::Gate], ok(seen, "done")].concat());
    let mut client = client(&front).await;
    // With the first answer the limit has arrived too: it is in the server's SETTINGS.
    front.backend.open_gate();
    assert_eq!(client.get("/").await.status(), 200);

    let streams: Vec<_> = (0..3)
        .map(|_| {
            let mut sender = client.sender.clone();
            let request = client.request("GET", "/").body(empty()).unwrap();
            tokio::spawn(async move { whole(sender.send_request(request).await.unwrap()).await.unwrap() })
        })
        .collect();
    let (front, waiting) = tokio::task::spawn_blocking(move || {
        eventually(PATIENCE, || front.backend.count() == 3);
        std::thread::sleep(A_WHILE);
        let waiting = front.backend.count();
        (0..3).for_each(|_| front.backend.open_gate());
        (front, waiting)
    })
    .await
    .unwrap();

    assert_eq!(waiting, 3);
    for stream in streams {
        assert_eq!(stream.await.unwrap().status(), 200);
    }
    drop(front);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_client_gives_up_ends_at_the_endpoint_and_in_the_log() {
    let front = front_tls("", "");
    front.backend.script(|seen: &Seen| match seen.target().as_str() {
        "/head" => vec![Act::Stall],
        "/body" => vec![raw("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf"), Act::Stall],
        _ => ok(seen, "fine"),
    });
    let mut client = client(&front).await;

    for (n, path) in ["/head", "/body"].into_iter().enumerate() {
        let mut sender = client.sender.clone();
        let request = client.request("GET", path).body(empty()).unwrap();
        let stream = tokio::spawn(async move {
            let answer = sender.send_request(request).await.unwrap();
            answer.into_body().collect().await.map(drop)
        });
        eventually(PATIENCE, || front.backend.seen().iter().any(|seen| seen.target() == path));
        stream.abort();
        eventually(PATIENCE, || front.backend.open_connections() == 0);
        eventually(PATIENCE, || front.log().iter().filter(|line| line["reason"] == "client-abort").count() == n + 1);
    }
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cancelled_never_looks_whole() {
    let front = front_tls("", "");
    front.backend.script(|_| vec![Act::ReadBody]);
    let mut client = client(&front).await;

    // More than once: the reset and the last of the body come at the same moment.
    for n in 0..20 {
        let (feed, pieces) = Pieces::new();
        feed.send(Frame::data(Bytes::from_static(b"half of it"))).unwrap();
        let request = client.request("POST", &format!("/{n}")).body(BodyExt::boxed(pieces)).unwrap();
        let mut sender = client.sender.clone();
        let stream = tokio::spawn(async move { sender.send_request(request).await });
        eventually(PATIENCE, || front.backend.seen().len() > n && front.backend.last().body.len() == 10);
        // RST_STREAM with CANCEL.
        stream.abort();
        eventually(PATIENCE, || front.backend.open_connections() == 0);
        drop(feed);
    }

    assert!(front.backend.seen().iter().all(|seen| !seen.is_whole), "{:?}", front.backend.last());
    front.backend.script(|seen| ok(seen, "fine"));
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_is_cut_resets_its_stream_only() {
    let front = front_tls("", "");
    front.backend.script(|seen: &Seen| match seen.target().as_str() {
        "/cut" => vec![raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"), Act::Close],
        _ => ok(seen, "fine"),
    });
    let mut client = client(&front).await;

    let request = client.request("GET", "/cut").body(empty()).unwrap();
    // The reset may overtake the head.
    let cut = match client.send(request).await {
        Ok(answer) => answer.into_body().collect().await.map(drop),
        Err(error) => Err(error),
    };

    assert!(cut.is_err(), "a clean end: {cut:?}");
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_large_body_each_way_arrives_whole() {
    const SIZE: usize = 8 << 20;
    let front = front_tls("", "");
    front.backend.script(|_| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        vec![Act::ReadBody, Act::Send(head.into_bytes()), Act::Send(vec![b'd'; SIZE])]
    });
    let mut client = client(&front).await;

    let request = client.request("POST", "/").body(full(vec![b'u'; SIZE])).unwrap();
    let answer = whole(client.send(request).await.unwrap()).await.unwrap();

    assert_eq!((answer.body.len(), front.backend.last().body.len()), (SIZE, SIZE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_is_given_up_and_others_live_on() {
    let front = front_tls("timeouts: {write: 1s}", "");
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/large" {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n".to_vec();
            std::iter::once(Act::Send(head)).chain((0..100).map(|_| Act::Send(vec![b'x'; 1_000_000]))).collect()
        } else {
            ok(seen, "fine")
        }
    });
    let mut client = client(&front).await;

    let request = client.request("GET", "/large").body(empty()).unwrap();
    let unread = client.send(request).await.unwrap();

    eventually(PATIENCE, || front.log().iter().any(|line| line["reason"] == "write-timeout"));
    eventually(PATIENCE, || front.backend.open_connections() == 0);
    assert!(unread.into_body().collect().await.is_err());
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_streams_is_closed_at_the_idle_limit() {
    let front = front_tls("timeouts: {idle: 500ms}", "");
    let mut client = client(&front).await;

    assert_eq!(client.get("/").await.status(), 200);

    let ended = tokio::time::timeout(PATIENCE, client.connection).await;
    assert!(ended.expect("still open").unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_of_unknown_length_is_chunked() {
    let front = front_tls("", "");
    let mut client = client(&front).await;
    let (feed, pieces) = Pieces::new();
    feed.send(Frame::data(Bytes::from_static(b"some"))).unwrap();
    drop(feed);

    let body: Body = BodyExt::boxed(pieces);
    let request = client.request("POST", "/").body(body).unwrap();

    assert_eq!(client.send(request).await.unwrap().status(), 200);
    let seen = front.backend.last();
    assert_eq!((seen.body.as_slice(), seen.headers("transfer-encoding")), (&b"some"[..], vec!["chunked".to_owned()]));
}

#[tokio::test]
async fn interim_answers_reach_clients_of_http2() {
    let front = front_tls("", "");
    front.backend.script(|seen: &Seen| {
        vec![
            raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nconnection: x\r\nx: y\r\n\r\n"),
            response(seen, "200 OK", "", "done"),
        ]
    });
    let stream = H2::stream(front.perch.address("https"), "localhost").await;
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);

    let request = http::Request::get("https://localhost/").body(()).unwrap();
    let (mut answer, _) = sender.send_request(request, true).unwrap();
    let mut interim = Vec::new();
    while let Some(head) = std::future::poll_fn(|cx| answer.poll_informational(cx)).await {
        interim.push(head.unwrap());
    }
    let answer = answer.await.unwrap();

    // Nobody asked for the 100.
    let told: Vec<_> =
        interim.iter().map(|i| (i.status().as_u16(), i.headers().len(), i.headers().get("link"))).collect();
    assert_eq!(told, [(103, 1, Some(&"</a.css>".parse().unwrap()))]);
    assert_eq!(answer.status(), 200);
}
