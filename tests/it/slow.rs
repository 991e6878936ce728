//! Slow and many (rows D1 to D6): each deadline, each connection limit.

use std::time::{Duration, Instant};

use crate::front::{A_WHILE, assert_closed, assert_refused, config, front_tls, front_with};
use crate::support::{Act, Client, PATIENCE, Seen, TestBackend, TestPerch, connect_from, eventually, ok};

#[test]
fn a_connection_without_a_first_byte_is_closed_without_a_word() {
    let front = front_tls("timeouts: {firstByte: 500ms, tlsHandshake: 600ms}", "");
    let start = Instant::now();

    let mut silent = front.client();
    let mut after_tls = Client::tls(front.perch.address("https"), "localhost");
    let mut no_tls = Client::plain(front.perch.address("https"));

    assert_eq!(silent.read_to_end().unwrap(), b"");
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(after_tls.read_to_end().unwrap(), b"");
    assert_closed(&mut no_tls);
    eventually(PATIENCE, || front.perch.metric("perch_rejected_total{reason=\"tls-timeout\"}") == Some(1.0));
}

#[test]
fn empty_lines_are_no_first_byte() {
    let front = front_with("timeouts: {firstByte: 500ms}", "");
    let mut client = front.client();

    client.send("\r\n");

    assert_closed(&mut client);
}

#[test]
fn a_head_must_be_whole_in_time_however_it_trickles() {
    let front = front_with("timeouts: {head: 1s, firstByte: 10s}", "");
    let mut client = front.client();
    let start = Instant::now();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n");
    let mut socket = client.socket().try_clone().unwrap();
    let trickle = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut socket, b"x: y\r\n").is_ok() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let answer = client.response();

    assert_refused(&answer, 408, "head-timeout");
    assert_eq!(answer.header("connection"), Some("close"));
    trickle.join().unwrap();
    assert!(start.elapsed() < PATIENCE / 2, "the connection was not closed");
    assert_eq!(front.backend.count(), 0);
}

#[test]
fn a_body_that_stops_is_given_up() {
    let front = front_with("timeouts: {body: 500ms}", "");
    for part in ["", "some"] {
        let mut client = front.client();

        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{part}"));

        assert_refused(&client.response(), 408, "body-timeout");
        assert_closed(&mut client);
        eventually(PATIENCE, || front.backend.open_connections() == 0);
        assert!(!front.backend.last().is_whole);
    }
}

#[test]
fn a_slow_body_that_moves_is_waited_for() {
    let front = front_with("timeouts: {body: 2s}", "");
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n");
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(250));
        client.send("x");
    }

    assert_eq!(client.response().status, 200);
}

/// Sends a body of which each byte comes soon, and still there are only ten a second; how long the connection took it.
fn drip(client: &mut Client) -> Duration {
    let start = Instant::now();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n");
    while start.elapsed() < Duration::from_secs(20) && client.try_send("x").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
    start.elapsed()
}

#[test]
fn a_body_slower_than_the_least_rate_is_given_up() {
    let front = front_with("limits: {bodyRate: 1000000}", "");
    let mut client = front.client();

    let took = drip(&mut client);

    front.logged("body-timeout");
    assert!((5..20).contains(&took.as_secs()), "{took:?}");
    assert!(front.backend.seen().iter().all(|seen| !seen.is_whole));
}

#[test]
fn a_body_that_stops_behind_an_answer_that_has_begun_is_the_clients_fault() {
    let front = front_with("timeouts: {body: 500ms}", "timeouts: {body: 1h}");
    front.backend.script(|_| vec![Act::Send(HALF.to_vec()), Act::Stall]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nsome");
    assert_eq!(client.try_response_head().unwrap().status, 200);

    front.logged("body-timeout");
    eventually(PATIENCE, || front.backend.open_connections() == 0);
}

#[test]
fn a_body_behind_an_answer_that_has_begun_has_the_least_rate_too() {
    let front = front_with("limits: {bodyRate: 1000000}", "timeouts: {body: 1h}");
    front.backend.script(|_| vec![Act::Send(HALF.to_vec()), Act::Stall]);
    let mut client = front.client();

    let took = drip(&mut client);

    front.logged("body-timeout");
    assert!((5..20).contains(&took.as_secs()), "{took:?}");
}

/// An answer whose rest does not come.
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";

#[test]
fn a_client_that_never_reads_is_given_up() {
    let front = front_with("timeouts: {write: 500ms}", "");
    front.backend.script(|_| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n".to_vec();
        std::iter::once(Act::Send(head)).chain((0..100).map(|_| Act::Send(vec![b'x'; 1_000_000]))).collect()
    });
    let mut client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    front.logged("write-timeout");
    eventually(PATIENCE, || front.backend.open_connections() == 0);
    drop(client);
}

#[test]
fn an_unused_connection_is_closed_at_the_idle_limit() {
    let front = front_with("timeouts: {idle: 700ms, firstByte: 20s}", "");
    let mut client = front.client();

    client.get("a", "/");
    let start = Instant::now();

    assert_closed(&mut client);
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn an_unused_endpoint_connection_is_closed_at_its_idle_limit() {
    let front = front_with("", "timeouts: {idle: 500ms}");

    front.client().get("a", "/");

    eventually(PATIENCE, || front.backend.open_connections() == 0);
    assert_eq!(front.client().get("a", "/").status, 200);
}

/// Requests over all of them at once still work.
fn fill(front_address: std::net::SocketAddr, sources: &[[u8; 4]]) -> Vec<Client> {
    let mut clients: Vec<Client> = sources.iter().map(|s| Client::plain_from((*s).into(), front_address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("a", "/").status, 200);
    }
    clients
}

#[test]
fn connections_over_the_listeners_limit_are_closed_at_once() {
    let front = front_with("limits: {connections: 2}", "");
    let held = fill(front.address(), &[[127, 0, 0, 1], [127, 0, 0, 2]]);

    let mut over = Client::plain_from([127, 0, 0, 3].into(), front.address());

    assert_closed(&mut over);
    eventually(PATIENCE, || front.perch.metric("perch_rejected_total{reason=\"connection-limit\"}") == Some(1.0));
    // The admin listener has room of its own, and so have those who leave.
    drop(held);
    eventually(PATIENCE, || {
        let mut client = front.client();
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok()
            && client.try_response().is_ok_and(|a| a.status == 200)
    });
}

#[test]
fn connections_over_a_clients_limit_do_not_hurt_others() {
    let front = front_with("limits: {connectionsPerClient: 2}", "");
    let _held = fill(front.address(), &[[127, 0, 0, 1], [127, 0, 0, 1]]);

    assert_closed(&mut Client::plain_from([127, 0, 0, 1].into(), front.address()));

    assert_eq!(Client::plain_from([127, 0, 0, 9].into(), front.address()).get("a", "/").status, 200);
}

#[test]
fn behind_proxy_protocol_a_clients_limit_counts_the_client() {
    let front = front_with("limits: {connectionsPerClient: 1}\nproxyProtocol: {trusted: [127.0.0.0/8]}", "");
    let connect = |client: &str| {
        let mut connection = front.client();
        connection.send(format!("PROXY TCP4 {client} 127.0.0.1 1000 80\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        connection
    };
    let mut one = connect("10.0.0.1");
    let mut other = connect("10.0.0.2");
    assert_eq!((one.response().status, other.response().status), (200, 200));

    assert_closed(&mut connect("10.0.0.1"));
}

#[test]
fn connections_over_the_limit_of_all_listeners_are_closed_at_once() {
    let backend = TestBackend::named("stable");
    let perch = TestPerch::start(&format!("limits: {{maxConnections: 1}}\n{}", config("", "", &[backend.address()])));
    let address = perch.address("http");
    let _held = fill(address, &[[127, 0, 0, 1]]);

    assert_closed(&mut Client::plain(address));
    assert_eq!(perch.admin_get("/livez").status, 200);
}

#[test]
fn a_silent_crowd_does_not_keep_others_out() {
    let front = front_with("timeouts: {firstByte: 20s}", "");
    let crowd: Vec<_> = (0..200).map(|_| connect_from([127, 0, 0, 1].into(), front.address()).unwrap()).collect();

    assert_eq!(front.client().get("a", "/").status, 200);

    drop(crowd);
}

#[test]
fn a_trickling_endpoint_is_passed_on_as_it_comes() {
    let front = front_with("", "timeouts: {body: 2s}");
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/slow" {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n".to_vec();
            vec![Act::Send(head), Act::Trickle(b"twelve bytes".to_vec(), Duration::from_millis(250))]
        } else {
            ok(seen, "fast")
        }
    });
    let mut client = front.client();

    assert_eq!(client.get("a", "/slow").text(), "twelve bytes");
    std::thread::sleep(A_WHILE);
    assert_eq!(client.get("a", "/").text(), "fast");
}
