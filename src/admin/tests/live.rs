//! The dashboard, its events, and what else is told of clients and of the last minutes.

use std::io::{BufRead, BufReader};

use super::*;

/// An open stream of events.
struct Listening(BufReader<TcpStream>);

impl Admin {
    fn listen(&self) -> Listening {
        let mut stream = self.connect();
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        Listening(reader)
    }
}

impl Listening {
    /// The data of the next event of this name.
    fn next(&mut self, name: &str) -> Value {
        let mut is_it = false;
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream has ended");
            if let Some(event) = line.strip_prefix("event: ") {
                is_it = event.trim() == name;
            } else if let (true, Some(data)) = (is_it, line.strip_prefix("data: ")) {
                return serde_json::from_str(data).unwrap();
            }
        }
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_stream_begins_with_all_services_and_their_courses() {
    let admin = Admin::start("");
    let mut stream = admin.listen();

    let (status, recent) = (stream.next("status"), stream.next("recent"));

    let mut listed = admin.get("/api/v1/services").json();
    listed["process"] = status["process"].clone();
    assert_eq!(status["services"], listed["services"]);
    assert_eq!(status["process"]["writes"], "open");
    assert!(recent["services"]["hello"]["canary"]["p99Seconds"].is_array(), "{recent}");
}

#[test]
fn a_new_weight_is_told_at_once_and_time_goes_on() {
    let admin = Admin::start("");
    let mut stream = admin.listen();
    stream.next("status");

    admin.post(r#"{"weights":{"canary":"20%"}}"#);

    let told = (0..100).map(|_| stream.next("status")).find(|s| s["generation"] == 2).unwrap();
    assert_eq!(told["services"][0]["versions"][1]["share"], 0.2);
    assert_eq!(stream.next("status")["generation"], 2);
}

#[test]
fn streams_are_bounded_and_their_places_come_back() {
    let admin = Admin::start("");
    let mut streams: Vec<_> = (0..32).map(|_| admin.listen()).collect();

    let one_more = admin.get("/api/v1/events");
    streams.pop();

    assert_eq!(one_more.status, 503);
    assert!(one_more.json()["error"].as_str().unwrap().contains("event streams"));
    eventually("a place comes back", || admin.state.live.events.open_streams() == 31);
    admin.listen().next("status");
}

#[test]
fn without_a_stream_nothing_is_computed_or_kept() {
    let admin = Admin::start("");
    assert!(admin.state.live.events.is_idle());
    let mut stream = admin.listen();
    stream.next("status");

    drop(stream);

    eventually("it is idle again", || admin.state.live.events.is_idle());
}

#[test]
fn streams_end_whole_with_the_listener() {
    let admin = Admin::start("");
    let mut stream = admin.listen();
    stream.next("status");

    admin.stop.cancel();
    let mut rest = Vec::new();
    stream.0.read_to_end(&mut rest).unwrap();

    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn a_browser_gets_the_page_and_curl_the_text() {
    let admin = Admin::start("");

    let page = admin.request("GET", "/", "accept: text/html,*/*;q=0.8\r\n", "");
    let text = admin.request("GET", "/", "accept: */*\r\n", "");

    assert!(page.head.contains("content-type: text/html") && page.body.starts_with("<!doctype html>"), "{page:?}");
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'nonce-"));
    assert!(text.head.contains("content-type: text/plain") && text.body.starts_with("perch admin"));
    assert!(page.head.contains("vary: accept") && text.head.contains("vary: accept"));
}

#[test]
fn the_heaviest_clients_are_told_with_their_share() {
    let admin = Admin::start("");
    let snapshot = admin.state.published.load();
    for (n, requests) in [(1, 6), (2, 3), (3, 1)] {
        let client = Client { address: [192, 0, 2, n].into(), roll: 0, forced: None };
        for _ in 0..requests {
            decide(&snapshot.services[0], &admin.state.pins, client, admin.state.clock.now()).unwrap();
        }
    }

    let told = admin.get("/api/v1/services/hello/heavy-clients").json();

    assert_eq!((&told["clients"], &told["requests"]), (&Value::from(3), &Value::from(10)));
    assert_eq!((&told["heaviest"][0]["key"], &told["heaviest"][0]["share"]), (&"192.0.2.1/32".into(), &0.6.into()));
    assert_eq!(told["heaviest"].as_array().unwrap().len(), 3);
    assert_eq!(admin.get("/api/v1/services/auth/heavy-clients").json()["remembers"], false);
    assert_eq!(admin.get("/api/v1/services/nobody/heavy-clients").status, 404);
}

#[test]
fn the_last_minute_tells_rates_errors_and_latency() {
    let admin = Admin::start("");
    let snapshot = admin.state.published.load();
    let (hello, canary) = (&snapshot.services[0], &snapshot.services[0].versions[1]);
    let (recent, now) = (Recent::default(), admin.state.clock.now());
    recent.take(&snapshot, now);

    for n in 0..100 {
        canary.metrics.outcome(Duration::from_millis(if n < 60 { 10 } else { 200 }), n < 5);
    }
    recent.take(&snapshot, now + 5_000);

    let minute = serde_json::to_value(recent.last_minute(canary, now + 10_000)).unwrap();
    assert_eq!((&minute["requestsPerSecond"], &minute["errorRatio"]), (&10.0.into(), &0.05.into()));
    for (quantile, seconds) in [("p50Seconds", 0.01), ("p99Seconds", 0.2)] {
        assert!((minute[quantile].as_f64().unwrap() / seconds - 1.0).abs() < 0.04, "{minute}");
    }
    let course = serde_json::to_value(recent.shape_of([&**hello])).unwrap()["services"]["hello"].take();
    assert_eq!(course["canary"]["requestsPerSecond"], serde_json::json!([20.0]));
    assert_eq!(course["stable"]["p50Seconds"], serde_json::json!([null]));
    let told = admin.get("/api/v1/services/hello/recent").json();
    assert_eq!(told["stepSeconds"], 5);
}

#[test]
fn the_last_minute_forgets_what_was_before_it() {
    let admin = Admin::start("");
    let snapshot = admin.state.published.load();
    let canary = &snapshot.services[0].versions[1];
    let recent = Recent::default();
    recent.take(&snapshot, 0);
    (0..100).for_each(|_| canary.metrics.outcome(Duration::from_millis(1), true));

    (1..=15).for_each(|step| recent.take(&snapshot, step * 5_000));

    let minute = serde_json::to_value(recent.last_minute(canary, 75_000)).unwrap();
    assert_eq!((&minute["requestsPerSecond"], &minute["errorRatio"]), (&0.0.into(), &Value::Null));
}
