//! WebSocket and other upgrades: only the endpoint's 101 opens a tunnel (rows B11 to B15).

use std::time::Duration;

use crate::front::{A_WHILE, Front, assert_closed, assert_refused, front, front_with};
use crate::support::{Act, Client, PATIENCE, Seen, eventually, ok, response};

const ASKS: &str =
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-key: k\r\n\r\n";
const SWITCHES: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s\r\n\r\n";

fn switches() -> Act {
    Act::Send(SWITCHES.as_bytes().to_vec())
}

fn echoing(front: &Front) {
    front
        .backend
        .script(|seen: &Seen| if seen.target() == "/ws" { vec![switches(), Act::Echo] } else { ok(seen, "plain") });
}

/// A tunnel that is open.
fn tunnel(front: &Front) -> Client {
    let mut client = front.client();
    client.send(ASKS);
    let answer = client.try_response_head().unwrap();
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    client
}

#[test]
fn a_websocket_carries_bytes_both_ways() {
    let front = front();
    echoing(&front);
    let mut client = tunnel(&front);

    for size in [1, 100, 100_000] {
        let sent = vec![b'w'; size];
        client.send(&sent);
        assert!(client.read_exact(size).unwrap() == sent);
    }

    let seen = front.backend.last();
    assert_eq!(
        (seen.headers("upgrade"), seen.headers("connection")),
        (vec!["websocket".into()], vec!["upgrade".into()])
    );
    assert_eq!(seen.header("sec-websocket-key").as_deref(), Some("k"));
    client.half_close();
    assert_closed(&mut client);
    eventually(PATIENCE, || front.log().iter().any(|line| line["status"] == 101 && line["bytes_in"] == 100_101));
    // The endpoint's connection is not used for anything else.
    assert_eq!(front.client().get("a", "/").text(), "plain");
    assert_eq!(front.backend.last().on_connection, 0);
}

#[test]
fn bytes_before_the_101_wait_for_it() {
    let front = front();
    front.backend.script(|_| vec![Act::Gate, switches(), Act::Echo]);
    let mut client = front.client();

    client.send(format!("{ASKS}early"));
    eventually(PATIENCE, || front.backend.count() == 1);
    std::thread::sleep(A_WHILE);
    assert_eq!(front.backend.last().head_text().matches("early").count(), 0);
    front.backend.open_gate();

    assert_eq!(client.try_response_head().unwrap().status, 101);
    assert_eq!(client.read_exact(5).unwrap(), b"early");
}

#[test]
fn bytes_after_a_refused_upgrade_are_the_next_request_and_nothing_else() {
    let front = front();
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/ws" { vec![response(seen, "403 Forbidden", "", "no")] } else { ok(seen, "next") }
    });
    let mut client = front.client();

    client.send(format!("{ASKS}GET /next HTTP/1.1\r\nhost: a\r\n\r\n\u{81}\x05hello\r\n\r\n"));

    let answer = client.response();
    assert_eq!((answer.status, answer.header("upgrade")), (403, None));
    assert_eq!(client.response().text(), "next");
    assert_eq!(client.try_response().unwrap().status, 400);
    assert_closed(&mut client);
    assert_eq!(front.backend.count(), 2);
}

#[test]
fn a_200_is_no_tunnel() {
    let front = front();
    front
        .backend
        .script(|seen: &Seen| vec![response(seen, "200 OK", "connection: upgrade\r\nupgrade: websocket\r\n", "hi")]);
    let mut client = front.client();

    client.send(ASKS);
    let answer = client.response();

    assert_eq!((answer.status, answer.text().as_str(), answer.header("upgrade")), (200, "hi", None));
    assert_eq!(client.get("a", "/").text(), "hi");
}

#[test]
fn a_101_that_nobody_asked_for_is_bad() {
    let front = front();
    front.backend.script(|_| vec![switches(), Act::Stall]);
    assert_refused(&front.client().get("a", "/"), 502, "bad-101");

    front.backend.script(|_| {
        vec![Act::Send(b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n".to_vec()), Act::Stall]
    });
    let mut client = front.client();
    client.send(ASKS);
    assert_refused(&client.response(), 502, "bad-101");
    eventually(PATIENCE, || front.backend.open_connections() == 0);
}

#[test]
fn other_upgrades_are_not_offered_to_the_endpoint() {
    let front = front();
    for fields in [
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
        "connection: upgrade\r\nupgrade: websocket, h2c",
        "connection: upgrade\r\nupgrade: TLS/1.0",
        // Without the Connection field it is no upgrade.
        "upgrade: websocket",
    ] {
        let answer = front.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}"));
        assert_eq!(answer.status, 200, "{fields}");
        let seen = front.backend.last();
        for gone in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(seen.header(gone), None, "{gone} of {fields}");
        }
    }
    let answer = front.send("GET / HTTP/1.0\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket");
    assert_eq!((answer.status, front.backend.last().header("upgrade")), (200, None));
    let answer = front.client().request("POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket", b"");
    assert_eq!((answer.status, front.backend.last().header("upgrade")), (200, None));
}

#[test]
fn the_clients_half_close_is_carried_over() {
    let front = front();
    echoing(&front);
    let mut client = tunnel(&front);

    client.send("bye");
    client.half_close();

    // The echo ends only when the endpoint has seen the FIN.
    assert_eq!(client.read_to_end().unwrap(), b"bye");
}

#[test]
fn the_endpoints_half_close_is_carried_over() {
    let front = front();
    front.backend.script(|_| vec![switches(), Act::Send(b"bye".to_vec()), Act::HalfClose, Act::Stall]);
    let mut client = tunnel(&front);

    assert_eq!(client.read_to_end().unwrap(), b"bye");
    // This way is still open.
    client.send("more");
    assert_eq!(front.backend.open_connections(), 1);
    client.half_close();
    eventually(PATIENCE, || front.backend.open_connections() == 0);
}

#[test]
fn a_reset_ends_the_tunnel_on_the_other_side() {
    let front = front();
    echoing(&front);

    tunnel(&front).reset();

    eventually(PATIENCE, || front.backend.open_connections() == 0);
}

#[test]
fn an_idle_tunnel_ends_at_its_own_limit() {
    let front = front_with("timeouts: {upgradedIdle: 1s, idle: 10s}", "");
    echoing(&front);
    let mut client = tunnel(&front);

    // Traffic keeps it open past the limit.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(200));
        client.send("x");
        assert_eq!(client.read_exact(1).unwrap(), b"x");
    }
    assert_closed(&mut client);
    eventually(PATIENCE, || front.backend.open_connections() == 0);
}
