//! What endpoints do wrong (rows G1 to G10): refuse, stall, reset, talk nonsense, say too much.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::front::{assert_refused, config, front, front_with, listener_of, whole};
use crate::support::{Act, Client, PATIENCE, Seen, TestBackend, TestPerch, eventually, ok, response};

fn raw(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

/// Addresses of many users.
pub(crate) fn users(count: u8) -> impl Iterator<Item = IpAddr> {
    (1..=count).map(|n| IpAddr::from([127, 0, 7, n]))
}

/// A port whose SYNs nobody answers: a backlog of one, taken by these connections.
struct Blackhole {
    address: SocketAddr,
    _listener: socket2::Socket,
    _held: Vec<TcpStream>,
}

impl Blackhole {
    fn open() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            held.push(stream);
            assert!(held.len() < 64, "this system lets everybody in");
        }
        Self { address, _listener: listener, _held: held }
    }
}

/// perch before two endpoints of one version.
fn pair(service: &str, first: SocketAddr, second: SocketAddr) -> TestPerch {
    TestPerch::start(&config("", service, &[first, second]))
}

#[test]
fn a_refused_connection_goes_to_another_endpoint_whatever_the_method() {
    let (down, up) = (TestBackend::refusing(), TestBackend::named("up"));
    let service = "ejection: {consecutiveFailures: 0}\nretries: {minPerSecond: 1000}";
    let perch = pair(service, down.address(), up.address());

    for user in users(20) {
        let mut client = Client::plain_from(user, perch.address("http"));
        assert_eq!(client.request("POST / HTTP/1.1\r\nhost: a", b"body").text(), "up");
    }

    assert!(up.seen().iter().all(|seen| seen.body == b"body"));
    assert!(perch.metric("perch_retries_total{service=\"app\",version=\"stable\"}").unwrap() > 0.0);
}

#[test]
fn refused_by_all_is_a_bad_gateway_and_the_connection_lives_on() {
    let front = front();
    front.backend.refuse();
    let mut client = front.client();

    assert_refused(&client.get("a", "/"), 502, "connect-refused");
    // The request by its version, its reason, and the attempt: three series, one word.
    let series = "perch_rejected_total{reason=\"connect-refused\"}";
    eventually(PATIENCE, || front.perch.metric(series) == Some(1.0));
    front.backend.accept_again();

    assert_eq!(client.get("a", "/").text(), "stable");
}

#[test]
fn an_endpoint_that_answers_no_syn_costs_the_connect_timeout() {
    let hole = Blackhole::open();
    let perch = TestPerch::start(&config("", "timeouts: {connect: 300ms}", &[hole.address]));
    assert_refused(&Client::plain(perch.address("http")).get("a", "/"), 504, "connect-timeout");

    let up = TestBackend::named("up");
    let perch = pair("timeouts: {connect: 300ms}", hole.address, up.address());
    for user in users(8) {
        assert_eq!(Client::plain_from(user, perch.address("http")).get("a", "/").text(), "up");
    }
}

#[test]
fn an_endpoint_that_never_answers_is_a_gateway_timeout_and_is_not_asked_twice() {
    let front = front_with("", "timeouts: {responseHead: 500ms}");
    front.backend.script(|_| vec![Act::Stall]);
    let mut client = front.client();

    assert_refused(&client.get("a", "/"), 504, "response-timeout");

    assert_eq!(front.backend.count(), 1);
    eventually(PATIENCE, || front.backend.open_connections() == 0);
    front.backend.script(|seen: &Seen| ok(seen, "awake"));
    assert_eq!(client.get("a", "/").text(), "awake");
}

/// Answers the first request of each connection and ends the connection at the second one.
fn once_per_connection(end: Act) -> impl Fn(&Seen) -> Vec<Act> {
    move |seen| if seen.on_connection == 0 { ok(seen, "fresh") } else { vec![end.clone()] }
}

#[test]
fn a_kept_connection_that_ends_is_replaced_for_what_may_be_sent_twice() {
    for end in [Act::Reset, Act::Close] {
        let front = front();
        front.backend.script(once_per_connection(end.clone()));
        let mut client = front.client();

        for method in ["GET", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "GET"] {
            client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
            let is_head = method == "HEAD";
            let answer = if is_head { client.try_head_response() } else { client.try_response() };
            assert_eq!(answer.unwrap().status, 200, "{method} after {end:?}");
        }
    }
}

#[test]
fn a_post_on_a_kept_connection_that_ends_is_not_sent_twice() {
    for end in [Act::Reset, Act::Close] {
        let front = front();
        front.backend.script(once_per_connection(end));
        let mut client = front.client();

        assert_eq!(client.request("POST / HTTP/1.1\r\nhost: a", b"1").status, 200);
        assert_refused(&client.request("POST / HTTP/1.1\r\nhost: a", b"2"), 502, "reset-on-reuse");
        assert_eq!(client.request("POST / HTTP/1.1\r\nhost: a", b"3").status, 200);

        assert_eq!(front.backend.seen().iter().filter(|seen| seen.head_text().starts_with("POST")).count(), 3);
    }
}

#[test]
fn a_reset_before_the_answer_goes_to_another_endpoint_only_for_what_may_be_sent_twice() {
    let (bad, good) = (TestBackend::scripted(|_| vec![Act::Reset]), TestBackend::named("good"));
    let service = "ejection: {consecutiveFailures: 0}\nretries: {minPerSecond: 1000}";
    let perch = pair(service, bad.address(), good.address());
    let mut refused = 0;

    for user in users(20) {
        let mut client = Client::plain_from(user, perch.address("http"));
        assert_eq!(client.get("a", "/").text(), "good");
        let answer = client.request("POST / HTTP/1.1\r\nhost: a", b"x");
        match answer.status {
            200 => {}
            _ => {
                assert_refused(&answer, 502, "reset");
                refused += 1;
            }
        }
    }

    // Each POST that met the bad endpoint was seen once, by it alone.
    let posts = bad.seen().iter().filter(|seen| seen.method() == "POST").count();
    assert!(posts > 0 && posts == refused, "{posts} {refused}");
}

#[test]
fn an_answer_that_is_cut_is_never_a_clean_end() {
    let front = front();
    let halves = [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf",
    ];
    for half in halves {
        for end in [Act::Close, Act::Reset] {
            for version in ["1.1", "1.0"] {
                front.backend.script({
                    let end = end.clone();
                    move |_| vec![raw(half), Act::Gate, end.clone()]
                });
                let mut client = front.client();
                client.send(format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n"));
                assert_eq!(client.try_response_head().unwrap().status, 200);
                front.backend.open_gate();

                let rest = client.read_to_end();

                let has_length = half.contains("content-length");
                match rest {
                    // HTTP/1.0 without a length: only a reset tells.
                    Ok(rest) if version == "1.0" && !has_length => panic!("a clean end after {rest:?}"),
                    Ok(rest) => assert!(!rest.ends_with(b"0\r\n\r\n"), "{half:?} {rest:?}"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
                }
            }
        }
    }
    front.logged("upstream-truncated");
}

#[test]
fn an_answer_that_stalls_is_cut() {
    let front = front_with("", "timeouts: {body: 500ms}");
    front.backend.script(|_| vec![raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"), Act::Stall]);
    let mut client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    assert_eq!(client.try_response_head().unwrap().status, 200);
    assert_eq!(client.read_to_end().unwrap(), b"half");
    front.logged("upstream-stalled");
}

#[test]
fn nonsense_is_a_bad_gateway() {
    let front = front_with("", "ejection: {consecutiveFailures: 0}");
    let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(200_000));
    for nonsense in [
        "garbage\r\n\r\n",
        "\x16\x03\x01\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "HTTP/1.1 1000 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        "HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 O",
        &long,
    ] {
        let shown = nonsense.to_owned();
        front.backend.script({
            let text = nonsense.to_owned();
            move |_| vec![raw(&text), Act::HalfClose, Act::Stall]
        });
        let mut client = front.client();

        let answer = client.get("a", "/");

        assert_eq!(
            (answer.status, answer.header("perch-reason")),
            (502, Some("bad-response")),
            "{}",
            &shown[..20.min(shown.len())]
        );
        eventually(PATIENCE, || front.backend.open_connections() == 0);
    }
}

#[test]
fn an_answer_with_length_and_chunks_is_chunks_and_the_last_on_its_connection() {
    let front = front();
    front.backend.script(|_| {
        vec![raw("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")]
    });
    let mut client = front.client();

    let answer = client.get("a", "/");

    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("hi", None));
    client.get("a", "/");
    assert_eq!(front.backend.connections(), 2);
}

#[test]
fn bytes_after_an_answer_never_reach_the_next_client() {
    let front = front();
    let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
    for (answer, expected) in [
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi{evil}"), "hi"),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi-and-more{evil}"), "hi"),
        (format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n{evil}"), "hi"),
        (format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n{evil}"), ""),
    ] {
        front.backend.script(move |_| vec![raw(&answer)]);
        assert_eq!(front.client().get("a", "/").text(), expected);
        front.backend.script(|seen: &Seen| ok(seen, "mine"));
        assert_eq!(front.client().get("a", "/").text(), "mine");
        front.backend.close_connections();
    }
}

#[test]
fn a_second_answer_on_an_unused_connection_never_reaches_the_next_client() {
    let front = front_with("", "timeouts: {idle: 30s}");
    let late = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
    front.backend.script(move |seen: &Seen| [ok(seen, "first"), vec![Act::Gate, raw(late), Act::Stall]].concat());

    assert_eq!(front.client().get("a", "/").text(), "first");
    front.backend.open_gate();
    // perch notices the bytes and gives the connection up.
    eventually(PATIENCE, || front.backend.open_connections() == 0);
    front.backend.script(|seen: &Seen| ok(seen, "mine"));

    assert_eq!(front.client().get("a", "/").text(), "mine");
}

#[test]
fn a_whole_early_answer_is_good_even_if_the_endpoint_then_closes() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![response(seen, "413 Content Too Large", "", "too large"), Act::Close]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000000\r\n\r\n");
    // It may stop listening at any time.
    for _ in 0..5 {
        if client.try_send(vec![b'x'; 1_000_000]).is_err() {
            break;
        }
    }

    // After too much of an unread body the connection is reset, and the answer may go with it (row B9).
    if let Ok(answer) = client.try_response() {
        assert_eq!((answer.status, answer.text().as_str()), (413, "too large"));
    }
    eventually(PATIENCE, || front.log().iter().any(|line| line["status"] == 413));
}

#[test]
fn retries_stay_inside_the_version() {
    let (canary, stable) = (TestBackend::refusing(), TestBackend::named("stable"));
    let versions: [(&str, u32, &[SocketAddr]); 2] =
        [("stable", 0, &[stable.address()]), ("canary", 1, &[canary.address()])];
    let perch = TestPerch::start(&whole(&listener_of("http", ""), "", &versions));

    for user in users(20) {
        let answer = Client::plain_from(user, perch.address("http")).get("a", "/");
        assert_refused(&answer, 502, "connect-refused");
    }

    assert_eq!(stable.count(), 0);
}

#[test]
fn retries_end_with_their_budget() {
    let (down, up) = (TestBackend::refusing(), TestBackend::named("up"));
    let service = "ejection: {consecutiveFailures: 0}\nretries: {budgetPercent: 0, minPerSecond: 0}";
    let perch = pair(service, down.address(), up.address());
    let mut refused = 0;

    for user in users(20) {
        let answer = Client::plain_from(user, perch.address("http")).get("a", "/");
        if answer.status != 200 {
            assert_refused(&answer, 503, "retry-budget");
            refused += 1;
        }
    }

    assert!((1..20).contains(&refused), "{refused}");
    assert!(
        perch.metric("perch_retries_total{service=\"app\",version=\"stable\"}").is_none_or(|retries| retries < 1.0)
    );
}
