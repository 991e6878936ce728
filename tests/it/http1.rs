//! HTTP/1 through perch: framing, pipelining, trailers, interim answers, expectations, streaming.

use std::time::{Duration, Instant};

use crate::front::{assert_closed, assert_refused, front};
use crate::support::{Act, Client, PATIENCE, Seen, eventually, ok, response};

fn raw(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

#[test]
fn a_connection_is_kept_on_both_sides() {
    let front = front();
    let mut client = front.client();

    for n in 0..5 {
        assert_eq!(client.get("a.test", &format!("/{n}")).text(), "stable");
    }

    assert_eq!((front.backend.connections(), front.backend.last().on_connection), (1, 4));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let front = front();
    front.backend.script(|seen: &Seen| ok(seen, &seen.target()));
    let mut client = front.client();

    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhiGET /3 HTTP/1.1\r\nhost: a\r\n\r\n");

    for expected in ["/1", "/2", "/3"] {
        assert_eq!(client.response().text(), expected);
    }
}

#[test]
fn a_bad_pipelined_request_ends_the_connection_after_the_good_one() {
    let front = front();
    let mut client = front.client();

    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n");

    assert_eq!(client.response().text(), "stable");
    assert_refused(&client.response(), 400, "host");
    assert_closed(&mut client);
    assert_eq!(front.backend.count(), 1);
}

#[test]
fn head_gets_the_length_and_no_body() {
    let front = front();
    let mut client = front.client();

    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n");
    front.backend.script(|_| vec![raw("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")]);
    let answer = client.try_head_response().unwrap();

    assert_eq!(answer.status, 200);
    assert!(answer.header("content-length").is_some());
    front.backend.script(|seen: &Seen| ok(seen, "after"));
    assert_eq!(client.get("a", "/").text(), "after");
}

#[test]
fn no_content_and_not_modified_have_no_body() {
    let front = front();
    let mut client = front.client();

    front.backend.script(|_| vec![raw("HTTP/1.1 204 No Content\r\n\r\n")]);
    assert_eq!(client.get("a", "/").status, 204);
    front.backend.script(|_| vec![raw("HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 99\r\n\r\n")]);
    let answer = client.get("a", "/");
    assert_eq!((answer.status, answer.header("content-length")), (304, Some("99")));
    front.backend.script(|seen: &Seen| ok(seen, "after"));

    assert_eq!(client.get("a", "/").text(), "after");
    assert_eq!(front.backend.connections(), 1);
}

#[test]
fn a_body_that_no_head_204_or_304_may_have_never_reaches_the_next_client() {
    let front = front();
    let mut client = front.client();
    let evil = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
    front.backend.script(move |_| vec![raw(evil)]);

    assert_eq!(client.get("a", "/").status, 204);
    front.backend.script(|seen: &Seen| ok(seen, "mine"));

    assert_eq!(client.get("a", "/").text(), "mine");
    assert_eq!(front.backend.last().on_connection, 0, "the connection with bytes left over was used again");
}

#[test]
fn chunks_and_trailers_go_up() {
    let front = front();
    let mut client = front.client();

    client.send(
        "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\nte: trailers\r\ntrailer: x-sum\r\n\r\n\
         5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 7\r\nhost: evil\r\ncontent-length: 3\r\nauthorization: x\r\nx-forwarded-for: 6.6.6.6\r\n\r\n",
    );

    assert_eq!(client.response().status, 200);
    let seen = front.backend.last();
    assert_eq!(seen.body, b"hello world");
    assert_eq!(seen.headers("transfer-encoding"), ["chunked"]);
    assert_eq!(seen.headers("content-length"), [""; 0]);
    assert!(String::from_utf8_lossy(&seen.raw_body).ends_with("0\r\nx-sum: 7\r\n\r\n"), "{seen:?}");
}

#[test]
fn chunks_and_trailers_come_down() {
    let front = front();
    let mut client = front.client();
    front.backend.script(|_| {
        vec![raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 7\r\ncontent-length: 1\r\n\r\n",
        )]
    });

    let answer = client.get("a", "/");

    assert_eq!(answer.text(), "hello world");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    assert_eq!(client.get("a", "/").text(), "hello world");
    assert_eq!(front.backend.connections(), 1);
}

#[test]
fn a_length_is_kept_both_ways() {
    let front = front();
    let body = vec![b'x'; 300_000];
    front.backend.script(|seen: &Seen| vec![Act::ReadBody, response(seen, "200 OK", "", &"y".repeat(200_000))]);

    let answer = front.client().request("PUT /file HTTP/1.1\r\nhost: a", &body);

    assert_eq!((answer.body.len(), answer.header("content-length")), (200_000, Some("200000")));
    let seen = front.backend.last();
    assert_eq!((seen.body.len(), seen.headers("content-length")), (300_000, vec!["300000".to_owned()]));
}

#[test]
fn a_response_that_ends_with_its_connection_is_chunked_for_the_client() {
    let front = front();
    front.backend.script(|_| vec![raw("HTTP/1.0 200 OK\r\n\r\nuntil the end"), Act::Close]);
    let mut client = front.client();

    let answer = client.get("a", "/");

    assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("until the end", Some("chunked")));
    assert_eq!(client.get("a", "/").text(), "until the end");
}

#[test]
fn an_old_client_gets_no_chunks_and_a_closed_connection() {
    let front = front();
    front.backend.script(|_| vec![raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")]);
    let mut client = front.client();

    client.send("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
    let answer = client.response();

    assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("hi", None));
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn an_old_client_may_keep_its_connection() {
    let front = front();
    let mut client = front.client();

    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.text().as_str(), answer.header("connection")), ("stable", Some("keep-alive")));
    }
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().header("connection"), Some("close"));
    assert_closed(&mut client);
}

#[test]
fn interim_answers_are_passed_on_but_not_to_old_clients() {
    let front = front();
    front.backend.script(|seen: &Seen| {
        vec![
            raw("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"),
            raw("HTTP/1.1 100 Continue\r\n\r\n"),
            response(seen, "200 OK", "", "done"),
        ]
    });
    let mut client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.try_response_head().unwrap().status, 102);
    let hints = client.try_response_head().unwrap();
    assert_eq!((hints.status, hints.header("link")), (103, Some("</a.css>")));
    // Nobody asked for the 100.
    assert_eq!(client.response().text(), "done");

    let mut old = front.client();
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.try_response_head().unwrap().status, 200);
}

#[test]
fn endless_interim_answers_are_a_bad_response() {
    let front = front();
    front.backend.script(|_| vec![raw(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40)), Act::Stall]);
    let mut client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    assert_refused(&client.response(), 502, "bad-response");
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";

#[test]
fn the_body_waits_for_the_endpoints_100() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![Act::Gate, Act::Continue, Act::ReadBody, response(seen, "200 OK", "", "")]);
    let mut client = front.client();

    client.send(EXPECTING);
    eventually(PATIENCE, || front.backend.count() == 1);
    front.backend.open_gate();

    assert_eq!(client.try_response_head().unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.response().status, 200);
    assert_eq!(front.backend.last().body, b"hello");
    front.backend.open_gate();
    assert_eq!(client.get("a", "/").status, 200);
}

#[test]
fn a_refusal_instead_of_the_100_arrives_and_ends_the_connection() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![response(seen, "403 Forbidden", "", "no")]);
    let mut client = front.client();

    client.send(EXPECTING);

    let answer = client.try_response_head().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
    assert_closed(&mut client);
    front.backend.script(|seen: &Seen| ok(seen, "next"));
    assert_eq!(front.client().get("a", "/").text(), "next");
    assert_eq!(front.backend.last().on_connection, 0, "a connection that still expects a body was used again");
}

#[test]
fn a_silent_endpoint_gets_the_body_after_a_second() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![Act::ReadBody, response(seen, "200 OK", "", "")]);
    let mut client = front.client();
    let start = Instant::now();

    client.send(EXPECTING);

    assert_eq!(client.try_response_head().unwrap().status, 100);
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    client.send("hello");
    assert_eq!(client.response().status, 200);
}

#[test]
fn a_body_sent_at_once_does_not_wait() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![Act::ReadBody, response(seen, "200 OK", "", "")]);
    let mut client = front.client();
    let start = Instant::now();

    client.send(format!("{EXPECTING}hello"));

    assert_eq!(client.response().status, 200);
    // The body came with the head or right after it; either way nobody waited for the one second.
    assert_eq!(front.backend.last().body, b"hello");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn other_expectations_are_not_met() {
    let front = front();

    let answer = front.send("GET / HTTP/1.1\r\nhost: a\r\nexpect: 200-maybe");

    assert_refused(&answer, 417, "expect");
    assert_eq!(front.backend.count(), 0);
}

#[test]
fn an_early_answer_arrives_while_the_body_is_still_coming() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![response(seen, "413 Content Too Large", "", "too large"), Act::Stall]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nsome");
    let answer = client.response();

    assert_eq!((answer.status, answer.text().as_str()), (413, "too large"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_closed(&mut client);
}

#[test]
fn after_an_early_answer_the_little_that_is_left_of_a_body_is_sent_and_both_connections_go_on() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![response(seen, "200 OK", "", "early"), Act::ReadBody]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\nsome");
    let answer = client.response();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("early", None));
    client.send(vec![b'x'; 59_996]);

    assert_eq!(client.get("a", "/next").text(), "early");
    let seen = front.backend.seen();
    assert_eq!((seen[0].body.len(), seen[0].is_whole, seen[1].on_connection), (60_000, true, 1));
}

#[test]
fn after_an_early_answer_the_rest_of_a_body_is_not_waited_for_long() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![response(seen, "200 OK", "", "early"), Act::ReadBody]);
    let mut client = front.client();

    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nsome");

    assert_eq!(client.response().text(), "early");
    assert_closed(&mut client);
    eventually(PATIENCE, || front.backend.open_connections() == 0);
    assert!(!front.backend.last().is_whole);
}

#[test]
fn the_rest_of_a_body_that_an_endpoint_did_not_take_is_never_read_as_a_request() {
    let front = front();
    front.backend.script(|seen: &Seen| match seen.method().as_str() {
        // As servers do that drop what they do not read.
        "POST" => vec![response(seen, "200 OK", "", "early"), Act::Close],
        _ => ok(seen, "smuggled"),
    });
    let rest = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

    for _ in 0..10 {
        let mut client = front.client();
        let length = 4 + 1000 + rest.len();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nsome"));
        assert_eq!(client.response().text(), "early");
        let taken = client.try_send(vec![b'x'; 1000]).and_then(|()| client.try_send(rest));

        // Its connection ends, or goes on behind the body.
        if taken.is_ok() && client.try_send("GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").is_ok() {
            client.try_response().ok();
        }
    }

    assert!(front.backend.seen().iter().all(|seen| seen.target() != "/smuggled"));
}

#[test]
fn a_client_that_goes_away_leaves_no_whole_request_behind() {
    let front = front();
    for (framing, part) in [("content-length: 100", "half"), ("transfer-encoding: chunked", "4\r\nhalf\r\n")] {
        let mut client = front.client();
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n{part}"));
        eventually(PATIENCE, || front.backend.seen().last().is_some_and(|seen| seen.body == b"half"));
        client.half_close();
        assert_closed(&mut client);
        eventually(PATIENCE, || front.backend.open_connections() == 0);
        assert!(!front.backend.last().is_whole);
    }
    front.logged("client-abort");
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    let front = front();
    front.backend.script(|seen: &Seen| vec![Act::Gate, response(seen, "200 OK", "", "late")]);
    let mut client: Client = front.client();

    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    client.half_close();
    front.backend.open_gate();

    assert_eq!(client.response().text(), "late");
}
