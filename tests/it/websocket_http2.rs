//! WebSocket over HTTP/2 (RFC 8441, row C14): an extended CONNECT becomes an upgrade at the endpoint, and a tunnel only
//! after its 101.

use http::{Method, Request};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::front::{Front, front_tls};
use crate::support::h2::{Body, H2, empty, whole};
use crate::support::{Act, PATIENCE, Seen, eventually, ok, response};

const SWITCHES: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s\r\nsec-websocket-protocol: chat\r\n\r\n";

fn echoing(front: &Front) {
    front.backend.script(|seen: &Seen| match seen.target().as_str() {
        "/ws" => vec![Act::Send(SWITCHES.as_bytes().to_vec()), Act::Echo],
        "/no" => vec![response(seen, "403 Forbidden", "", "no")],
        _ => ok(seen, "plain"),
    });
}

fn asks(path: &str, protocol: &'static str) -> Request<Body> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://localhost{path}"))
        .extension(Protocol::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "client")
        .body(empty())
        .unwrap()
}

/// A client that knows that perch takes extended CONNECTs.
async fn client(front: &Front) -> H2 {
    let mut client = H2::tls(front.perch.address("https"), "localhost").await;
    assert_eq!(client.get("/").await.status(), 200);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_over_http2_carries_bytes_both_ways() {
    let front = front_tls("", "");
    echoing(&front);
    let mut client = client(&front).await;

    let answer = client.send(asks("/ws", "websocket")).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"]),
        (200, &"chat".parse().unwrap())
    );
    for absent in ["sec-websocket-accept", "upgrade", "connection", "content-length"] {
        assert!(!answer.headers().contains_key(absent), "{absent}");
    }
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    for size in [1, 100, 100_000] {
        let sent = vec![b'w'; size];
        let mut received = vec![0; size];
        tunnel.write_all(&sent).await.unwrap();
        tunnel.flush().await.unwrap();
        tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut received)).await.expect("in time").unwrap();
        assert!(received == sent);
    }
    // Other streams of the connection go on beside it.
    assert_eq!(client.get("/").await.status(), 200);
    tunnel.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, tunnel.read_to_end(&mut rest)).await.expect("in time").unwrap();

    assert_eq!(rest, b"");
    let seen = front.backend.seen().into_iter().find(|s| s.target() == "/ws").unwrap();
    assert_eq!(
        (seen.method(), seen.headers("upgrade"), seen.headers("connection")),
        ("GET".into(), vec!["websocket".into()], vec!["upgrade".into()])
    );
    let keys = seen.headers("sec-websocket-key");
    assert!(keys.len() == 1 && keys[0].len() == 24 && keys[0].ends_with("A=="), "{keys:?}");
    eventually(PATIENCE, || front.log().iter().any(|line| line["path"] == "/ws" && line["bytes_in"] == 100_101));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_does_not_switch_answers() {
    let front = front_tls("", "");
    echoing(&front);
    let mut client = client(&front).await;

    let answer = client.send(asks("/no", "websocket")).await.unwrap();
    let answer = whole(answer).await.unwrap();
    assert_eq!((answer.status(), &answer.body[..]), (403, &b"no"[..]));
    assert_eq!(client.get("/").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_200_without_switching_makes_no_tunnel() {
    let front = front_tls("", "");
    echoing(&front);
    let mut client = client(&front).await;

    let answer = client.send(asks("/plain", "websocket")).await.unwrap();

    assert_eq!((answer.status().as_u16(), &answer.headers()["perch-reason"]), (502, &"bad-response".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_connects_are_refused() {
    let front = front_tls("", "");
    echoing(&front);
    let mut client = client(&front).await;

    let answer = client.send(asks("/ws", "connect-udp")).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["perch-reason"]), (405, &"method".parse().unwrap()));
    let plain = Request::builder().method(Method::CONNECT).uri("localhost:443").body(empty()).unwrap();
    assert_eq!(client.send(plain).await.unwrap().status(), 405);

    assert_eq!(front.backend.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_whose_client_resets_it_ends_at_the_endpoint() {
    let front = front_tls("", "");
    echoing(&front);
    let mut client = client(&front).await;

    let answer = client.send(asks("/ws", "websocket")).await.unwrap();
    let tunnel = hyper::upgrade::on(answer).await.unwrap();
    eventually(PATIENCE, || front.backend.open_connections() >= 1);
    drop(tunnel);
    drop(client);

    // What is left is the kept connection of the plain request, at most.
    eventually(PATIENCE, || front.log().iter().any(|line| line["path"] == "/ws"));
    eventually(PATIENCE, || front.backend.open_connections() <= 1);
}
