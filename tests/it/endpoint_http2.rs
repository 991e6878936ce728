//! HTTP/2 to endpoints (row G18): from HTTP/1 and HTTP/2 clients, many requests on one connection, what goes away, what
//! is refused, windows both ways.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use tokio::sync::{Barrier, Notify};

use crate::support::h2::{H2, empty, full, whole};
use crate::support::h2_backend::{H2Backend, ok, read, send};
use crate::support::{
    Authority, Client, Launch, PATIENCE, TestBackend, TestPerch, TlsRelay, eventually, write_certificate,
};

/// Listeners `http` and `https`; one worker, so that "one connection" can be said.
pub(crate) fn config(endpoint: SocketAddr, service: &str) -> String {
    format!(
        "workers: 1\nadmin: {{address: \"127.0.0.1:0\"}}\naccessLog: {{format: json}}\nlisteners:\n  \
         - {{name: http, address: \"127.0.0.1:0\"}}\n  \
         - {{name: https, address: \"127.0.0.1:0\", timeouts: {{upgradedIdle: 20s}}, tls: {{certificates: [{{certFile: localhost-cert.pem, keyFile: localhost-key.pem}}]}}}}\n\
         routes: [{{service: app}}]\nservices:\n  - name: app\n    versions: [{{name: stable, endpoints: [\"{endpoint}\"]}}]\n{}",
        service.lines().map(|line| format!("    {line}\n")).collect::<String>()
    )
}

pub(crate) fn perch(endpoint: SocketAddr, service: &str) -> TestPerch {
    let launch = Launch::new("");
    write_certificate(launch.dir(), "localhost", &["localhost"]);
    launch.config(&config(endpoint, service)).start()
}

fn http1(perch: &TestPerch) -> Client {
    Client::plain(perch.address("http"))
}

pub(crate) async fn http2(perch: &TestPerch) -> H2 {
    H2::tls(perch.address("https"), "localhost").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_both_protocols_share_one_connection() {
    let backend = H2Backend::start(|mut asked| async move {
        let (body, _) = read(&mut asked.body).await.unwrap();
        let head = Response::builder().status(201).header("x-a", "b").body(()).unwrap();
        let mut stream = asked.respond.send_response(head, false).unwrap();
        send(&mut stream, Bytes::from(format!("{} {}", asked.head.method, body.len())), true).await;
    });
    let perch = perch(backend.address, "protocol: h2c");

    let mut old = http1(&perch);
    let answer = old.request("POST /a/../b?c HTTP/1.1\r\nhost: shop\r\nx-up: 1", b"four");
    assert_eq!((answer.status, answer.text().as_str(), answer.header("x-a")), (201, "POST 4", Some("b")));
    let chunked = "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    old.send(chunked);
    assert_eq!(old.response().text(), "PUT 5");
    let mut new = http2(&perch).await;
    let request = new.request("POST", "/").body(full(vec![b'x'; 300_000])).unwrap();
    let answer = whole(new.send(request).await.unwrap()).await.unwrap();
    assert_eq!((answer.status(), &answer.body[..]), (201, &b"POST 300000"[..]));

    assert_eq!((backend.connections(), backend.streams()), (1, 3));
    let head = &backend.heads()[0];
    assert_eq!((head.uri.to_string().as_str(), head.headers["x-up"].as_bytes()), ("http://shop/b?c", &b"1"[..]));
    assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
    assert!(!head.headers.contains_key("connection") && !head.headers.contains_key("host"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_request_reaches_an_endpoint_that_has_answered_already() {
    let got = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(Notify::new());
    let (seen, goes_on) = (got.clone(), answered.clone());
    let backend = H2Backend::start(move |mut asked| {
        let (seen, goes_on) = (seen.clone(), goes_on.clone());
        async move {
            asked.respond.send_response(Response::new(()), true).unwrap();
            goes_on.notified().await;
            let (body, _) = read(&mut asked.body).await.unwrap();
            seen.store(body.len(), Ordering::Relaxed);
        }
    });
    let perch = perch(backend.address, "protocol: h2c");

    // More than the stream's first window.
    let answer = http1(&perch).request("POST / HTTP/1.1\r\nhost: a", &[b'x'; 67_400]);
    answered.notify_one();

    assert_eq!(answer.status, 200);
    eventually(PATIENCE, || got.load(Ordering::Relaxed) == 67_400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_under_way_at_once_on_one_connection() {
    let barrier = Arc::new(Barrier::new(50));
    let backend = H2Backend::start(move |asked| {
        let barrier = barrier.clone();
        async move {
            barrier.wait().await;
            ok(asked, "together").await;
        }
    });
    let perch = perch(backend.address, "protocol: h2c");
    let client = http2(&perch).await;

    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let mut client = H2Handle::of(&client);
            tokio::spawn(async move { client.get().await })
        })
        .collect();

    for task in tasks {
        assert_eq!(tokio::time::timeout(PATIENCE, task).await.expect("in time").unwrap(), (200, "together".to_owned()));
    }
    assert_eq!(backend.connections(), 1);
}

/// A clone of a client for a task of its own.
struct H2Handle(hyper::client::conn::http2::SendRequest<crate::support::h2::Body>);

impl H2Handle {
    fn of(client: &H2) -> Self {
        Self(client.sender.clone())
    }

    async fn get(&mut self) -> (u16, String) {
        self.0.ready().await.unwrap();
        let request = http::Request::get("https://localhost/").body(empty()).unwrap();
        let answer = whole(self.0.send_request(request).await.unwrap()).await.unwrap();
        (answer.status(), String::from_utf8_lossy(&answer.body).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_one_stream_at_a_time_gets_more_connections() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let barrier = Arc::new(Barrier::new(3));
    let backend = H2Backend::with(builder, None, move |asked| {
        let barrier = barrier.clone();
        async move {
            if asked.head.uri.path() == "/" {
                barrier.wait().await;
            }
            ok(asked, "one").await;
        }
    });
    let perch = perch(backend.address, "protocol: h2c");
    // So that its settings are known.
    assert_eq!(http1(&perch).get("a", "/first").status, 200);

    let client = http2(&perch).await;
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let mut client = H2Handle::of(&client);
            tokio::spawn(async move { client.get().await })
        })
        .collect();

    for task in tasks {
        assert_eq!(tokio::time::timeout(PATIENCE, task).await.expect("in time").unwrap().0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_connections_are_told_to_go_away() {
    let backend = Arc::new(H2Backend::start(|asked| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        ok(asked, "fine").await;
    }));
    let perch = perch(backend.address, "protocol: h2c");
    let client = http2(&perch).await;

    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let mut client = H2Handle::of(&client);
            tokio::spawn(async move {
                for _ in 0..50 {
                    assert_eq!(client.get().await.0, 200);
                }
            })
        })
        .collect();
    let goodbye = backend.clone();
    let farewells = tokio::spawn(async move {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            goodbye.go_away();
        }
    });

    for task in tasks {
        tokio::time::timeout(PATIENCE, task).await.expect("in time").unwrap();
    }
    farewells.await.unwrap();
    assert!(backend.connections() > 1);
    eventually(PATIENCE, || backend.open_connections() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_sent_again_whatever_it_is() {
    let backend = H2Backend::start(|mut asked| async move {
        if asked.number == 0 {
            asked.respond.send_reset(h2::Reason::REFUSED_STREAM);
        } else {
            let (body, _) = read(&mut asked.body).await.unwrap();
            let mut stream = asked.respond.send_response(Response::new(()), false).unwrap();
            send(&mut stream, body.into(), true).await;
        }
    });
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http2(&perch).await;

    let request = client.request("POST", "/").body(full("once")).unwrap();
    let answer = whole(client.send(request).await.unwrap()).await.unwrap();

    assert_eq!((answer.status(), &answer.body[..]), (200, &b"once"[..]));
    assert_eq!(backend.streams(), 2);
}

#[test]
fn an_endpoint_that_refuses_everything_is_said_so() {
    let backend = H2Backend::start(|mut asked| async move { asked.respond.send_reset(h2::Reason::REFUSED_STREAM) });
    let perch = perch(backend.address, "protocol: h2c");

    let answer = http1(&perch).get("a", "/");

    assert_eq!((answer.status, answer.header("perch-reason")), (503, Some("stream-refused")));
    assert_eq!(backend.streams(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_go_both_ways() {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let kept = seen.clone();
    let backend = H2Backend::start(move |mut asked| {
        let kept = kept.clone();
        async move {
            *kept.lock().unwrap() = read(&mut asked.body).await.unwrap().1;
            let mut stream = asked.respond.send_response(Response::new(()), false).unwrap();
            send(&mut stream, Bytes::from_static(b"abc"), false).await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    });
    let perch = perch(backend.address, "protocol: h2c");

    let mut old = http1(&perch);
    old.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\nx-more: 8\r\n\r\n");
    let answer = old.response();

    assert_eq!((answer.text().as_str(), answer.trailers), ("abc", vec![("grpc-status".to_owned(), "0".to_owned())]));
    let seen = seen.lock().unwrap().clone();
    assert_eq!((seen["x-sum"].as_bytes(), seen.len()), (&b"7"[..], 2));
    let mut new = http2(&perch).await;
    let request = new.request("GET", "/").body(empty()).unwrap();
    let collected = new.send(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_resets_in_the_middle_is_no_end() {
    // A reset takes with it what is not out yet: it waits until the client has some of it.
    let has_some = Arc::new(Notify::new());
    let waiting = has_some.clone();
    let backend = H2Backend::start(move |mut asked| {
        let has_some = waiting.clone();
        async move {
            let mut stream = asked.respond.send_response(Response::new(()), false).unwrap();
            send(&mut stream, Bytes::from_static(b"some"), false).await;
            has_some.notified().await;
            stream.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
        }
    });
    let perch = perch(backend.address, "protocol: h2c");

    let mut old = http1(&perch);
    old.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || {
        let mut seen = [0; 1_024];
        let length = old.socket().peek(&mut seen).unwrap();
        seen[..length].windows(4).any(|w| w == b"some")
    });
    has_some.notify_one();
    assert!(old.try_response().is_err());
    let mut client = http2(&perch).await;
    let request = client.request("GET", "/").body(empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    has_some.notify_one();
    let error = body.collect().await.unwrap_err();

    let cause = std::error::Error::source(&error).unwrap().downcast_ref::<h2::Error>().unwrap();
    assert_eq!(cause.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert_eq!(backend.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_the_endpoint_and_its_reset_ends_it() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let ended = Arc::new(AtomicUsize::new(0));
    let told = ended.clone();
    let backend = H2Backend::start(move |mut asked| {
        let (sent, ended) = (counted.clone(), told.clone());
        async move {
            if asked.head.uri.path() == "/fast" {
                return ok(asked, "fast").await;
            }
            let mut stream = asked.respond.send_response(Response::new(()), false).unwrap();
            while send(&mut stream, Bytes::from_static(&[b'x'; 16_384]), false).await {
                sent.fetch_add(16_384, Ordering::SeqCst);
            }
            ended.fetch_add(1, Ordering::SeqCst);
        }
    });
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http2(&perch).await;

    let request = client.request("GET", "/large").body(empty()).unwrap();
    let unread = client.send(request).await.unwrap();
    let mut last = 0;
    eventually(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = sent.load(Ordering::SeqCst);
        std::mem::replace(&mut last, now) == now && now > 0
    });

    // The client's own window is 2 MiB.
    assert!(last < 4 << 20, "{last} bytes are somewhere");
    assert_eq!(&client.get("/fast").await.body[..], b"fast");
    drop(unread);
    eventually(PATIENCE, || ended.load(Ordering::SeqCst) == 1);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_endpoint_that_does_not_read_stops_the_client() {
    let backend = H2Backend::start(|asked| async move {
        let _kept = asked;
        std::future::pending::<()>().await;
    });
    let perch = perch(backend.address, "protocol: h2c\ntimeouts: {responseHead: 1s}");
    let mut client = http1(&perch);

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n");
    let mut socket = client.socket().try_clone().unwrap();
    let upload = std::thread::spawn(move || {
        (0..1000).take_while(|_| std::io::Write::write_all(&mut socket, &[b'u'; 100_000]).is_ok()).count()
    });
    let answer = client.response();

    assert_eq!((answer.status, answer.header("perch-reason")), (504, Some("response-timeout")));
    assert!(upload.join().unwrap() < 500);
}

#[test]
fn the_end_of_a_body_does_not_wait_for_a_window_that_is_full() {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(5);
    let backend = H2Backend::with(builder, None, |mut asked| async move {
        // Nothing is given back before the end.
        let mut length = 0;
        while let Some(data) = asked.body.data().await {
            length += data.unwrap().len();
        }
        assert_eq!(length, 5);
        ok(asked, "whole").await;
    });
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http1(&perch);
    // So that its settings are known.
    assert_eq!(client.request("POST / HTTP/1.1\r\nhost: a", b"hello").text(), "whole");

    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");

    assert_eq!(client.response().text(), "whole");
}

#[test]
fn answers_without_a_body_and_interim_ones() {
    let backend = H2Backend::start(|mut asked| async move {
        let head = Response::builder();
        match asked.head.uri.path() {
            "/204" => drop(asked.respond.send_response(head.status(204).body(()).unwrap(), true).unwrap()),
            "/304" => drop(asked.respond.send_response(head.status(304).body(()).unwrap(), true).unwrap()),
            "/head" => {
                let head = head.header("content-length", "99").body(()).unwrap();
                asked.respond.send_response(head, true).unwrap();
            }
            "/empty" => drop(asked.respond.send_response(head.body(()).unwrap(), true).unwrap()),
            _ => {
                let hints = Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
                asked.respond.send_informational(hints).unwrap();
                ok(asked, "after").await;
            }
        }
    });
    let perch = perch(backend.address, "protocol: h2c");
    let mut client = http1(&perch);

    assert_eq!(client.get("a", "/204").status, 204);
    assert_eq!(client.get("a", "/304").status, 304);
    client.send("HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n");
    let head = client.try_head_response().unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("99")));
    assert_eq!(client.get("a", "/empty").header("content-length"), Some("0"));
    client.send("GET /hints HTTP/1.1\r\nhost: a\r\n\r\n");
    let hints = client.try_response_head().unwrap();
    assert_eq!((hints.status, hints.header("link")), (103, Some("</a.css>")));
    assert_eq!(client.response().text(), "after");
}

#[test]
fn over_tls_the_protocol_is_agreed_on() {
    let launch = Launch::new("");
    let dir = launch.dir().to_owned();
    write_certificate(&dir, "localhost", &["localhost"]);
    let ca = Authority::new(&dir, "ca");
    let certificate = ca.issue(&dir, "app", &["app.internal"]);
    let new = H2Backend::with(h2::server::Builder::new(), Some(&certificate), |asked| ok(asked, "new"));
    let plain = TestBackend::named("old");
    let old = TlsRelay::start(plain.address(), &certificate, &["http/1.1"], None);
    let keys = |protocol| {
        format!("protocol: {protocol}\ntls: {{validation: {{caCertificates: [ca.pem], hostname: app.internal}}}}")
    };

    let perch = launch.config(&config(new.address, &keys("h2"))).start();
    assert_eq!(http1(&perch).get("a", "/").text(), "new");
    assert_eq!(new.heads()[0].uri.scheme_str(), Some("https"));
    for (protocol, endpoint, expected) in [("auto", new.address, "new"), ("auto", old.address, "old")] {
        perch.rewrite_config(&config(endpoint, &keys(protocol)));
        eventually(PATIENCE, || {
            let answer = http1(&perch).get("a", "/");
            assert_eq!(answer.status, 200);
            answer.text() == expected && perch.stderr().contains("Reloaded")
        });
    }
    perch.rewrite_config(&config(old.address, &keys("h2")));
    eventually(PATIENCE, || http1(&perch).get("a", "/").header("perch-reason") == Some("upstream-tls"));
}

#[test]
fn an_unused_connection_is_closed_and_health_checks_speak_http2() {
    let backend = H2Backend::start(|asked| ok(asked, "well"));
    let perch = perch(
        backend.address,
        "protocol: h2c\ntimeouts: {idle: 500ms}\nhealth: {path: /healthz, interval: 50ms, timeout: 5s}",
    );

    eventually(PATIENCE, || backend.heads().iter().any(|h| h.uri.path() == "/healthz"));
    assert_eq!(http1(&perch).get("a", "/").text(), "well");
    let states = perch.admin_json("/api/v1/services")["services"][0]["versions"][0]["endpoints"][0]["state"].clone();
    assert_eq!(states, "ready");
    eventually(PATIENCE, || backend.open_connections() <= 1);
}

#[test]
fn an_endpoint_that_does_not_speak_http2_is_said_so() {
    let backend = TestBackend::named("old");
    let perch = perch(backend.address(), "protocol: h2c");

    for _ in 0..2 {
        let answer = http1(&perch).get("a", "/");
        assert_eq!((answer.status, answer.header("perch-reason")), (502, Some("reset")));
    }
}

/// An endpoint that prefers HTTP/2: an upgrade is offered to it over HTTP/1 all the same.
#[test]
fn an_upgrade_goes_over_http1_where_the_endpoint_has_the_choice() {
    let launch = Launch::new("");
    let dir = launch.dir().to_owned();
    write_certificate(&dir, "localhost", &["localhost"]);
    let certificate = Authority::new(&dir, "ca").issue(&dir, "app", &["app.internal"]);
    let plain = TestBackend::scripted(|_| {
        let switches = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        vec![crate::support::Act::Send(switches.as_bytes().to_vec()), crate::support::Act::Echo]
    });
    let relay = TlsRelay::start(plain.address(), &certificate, &["h2", "http/1.1"], None);
    let keys = "protocol: auto\ntls: {validation: {caCertificates: [ca.pem], hostname: app.internal}}";
    let perch = launch.config(&config(relay.address, keys)).start();
    let mut client = http1(&perch);

    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.try_response_head().unwrap().status, 101);
    client.send("ping");

    assert_eq!(client.read_exact(4).unwrap(), b"ping");
    assert_eq!(relay.handshakes()[0].alpn.as_deref(), Some("http/1.1"));
}
