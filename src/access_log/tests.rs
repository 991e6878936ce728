use std::sync::{Arc, Mutex};

use super::*;

const ALL: config::AccessLog = config::AccessLog { format: LogFormat::Json, sample: 1.0 };

fn line() -> Line<'static> {
    Line {
        time: UNIX_EPOCH + Duration::from_millis(1_709_210_096_789),
        listener: "https",
        peer: "10.0.0.1:4711".parse().unwrap(),
        client: "192.0.2.7".parse().unwrap(),
        method: "GET",
        host: "hello.example",
        path: "/version",
        status: 200,
        reason: None,
        service: Some("hello"),
        version: Some("canary"),
        why: Some(Why::Cohort),
        endpoint: Some("10.0.0.9:80"),
        attempts: 1,
        bytes_in: 0,
        bytes_out: 19,
        duration: Duration::from_micros(1234),
        upstream: Some(Duration::from_micros(987)),
        request_id: Some("abc"),
        protocol: "HTTP/1.1",
        tls: Some("TLSv1.3"),
    }
}

/// Takes what fits, then fails.
#[derive(Clone)]
struct Disk {
    written: Arc<Mutex<Vec<u8>>>,
    room: Arc<Mutex<usize>>,
}

impl Disk {
    fn new(room: usize) -> Self {
        Self { written: Arc::default(), room: Arc::new(Mutex::new(room)) }
    }

    fn text(&self) -> String {
        String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        let n = bytes.len().min(*room);
        *room -= n;
        if n == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.lock().unwrap().extend(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dropped() -> u64 {
    let text = metrics::handle().render();
    text.lines().find_map(|l| l.strip_prefix("perch_access_log_dropped_total ")?.parse().ok()).unwrap_or_default()
}

/// `perch_access_log_dropped_total` is one for the process: tests that count drops take turns.
static TURN: Mutex<()> = Mutex::new(());

fn json_of(line: &Line<'_>) -> serde_json::Value {
    let mut text = String::new();
    json(&mut text, line).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_json_line_has_every_field() {
    let expected = serde_json::json!({
        "time": "2024-02-29T12:34:56.789Z", "listener": "https", "peer": "10.0.0.1:4711", "client": "192.0.2.7",
        "method": "GET", "host": "hello.example", "path": "/version", "status": 200, "service": "hello",
        "version": "canary", "why": "cohort", "endpoint": "10.0.0.9:80", "attempts": 1, "bytes_in": 0, "bytes_out": 19,
        "duration_ms": 1.234, "upstream_ms": 0.987, "request_id": "abc", "protocol": "HTTP/1.1", "tls": "TLSv1.3",
    });

    assert_eq!(json_of(&line()), expected);
}

#[test]
fn a_refused_request_leaves_out_what_was_never_known() {
    let refused = Line {
        status: 404,
        reason: Some(Reason::NoRoute),
        service: None,
        version: None,
        why: None,
        endpoint: None,
        upstream: None,
        ..line()
    };

    let json = json_of(&refused);

    assert_eq!(json["reason"], "no-route");
    assert!(["service", "version", "why", "endpoint", "upstream_ms"].iter().all(|name| json.get(name).is_none()));
}

#[test]
fn bytes_of_a_client_never_leave_their_line() {
    let path = "/a\"b\\c\r\nd\u{1b}[31m\u{85}\u{2028}\u{202e}é\0";
    let hostile = Line { path, ..line() };
    let mut text = String::new();

    json(&mut text, &hostile).unwrap();
    plain(&mut text, &hostile).unwrap();

    assert!(!text.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)), "{text:?}");
    assert_eq!(json_of(&hostile)["path"], path);
}

#[test]
fn a_text_line_reads_like_a_request() {
    let mut text = String::new();

    plain(&mut text, &line()).unwrap();

    assert_eq!(
        text,
        "2024-02-29T12:34:56.789Z https 192.0.2.7 \"GET hello.example/version HTTP/1.1\" 200 service=hello \
         version=canary why=cohort endpoint=10.0.0.9:80 request_id=abc tls=TLSv1.3 peer=10.0.0.1:4711 attempts=1 \
         bytes_in=0 bytes_out=19 duration_ms=1.234 upstream_ms=0.987"
    );
}

#[test]
fn a_sample_keeps_its_share_and_every_failure() {
    let disk = Disk::new(usize::MAX);
    let log = AccessLog::new(disk.clone()).unwrap();
    let tenth = config::AccessLog { sample: 0.1, ..ALL };

    (0..1000).for_each(|roll| log.log(&tenth, roll, &line()));
    (0..50).for_each(|roll| log.log(&tenth, roll, &Line { status: 503, ..line() }));
    log.flush(Duration::from_secs(10));

    let text = disk.text();
    assert_eq!(text.matches("\"status\":503").count(), 50);
    let sampled = text.matches("\"status\":200").count();
    // Golden-ratio rolls are spread evenly: far better than the binomial bound.
    assert!((95..=105).contains(&sampled), "{sampled}");
}

#[test]
fn nothing_is_written_when_it_is_off() {
    let disk = Disk::new(usize::MAX);
    let log = AccessLog::new(disk.clone()).unwrap();

    log.log(&config::AccessLog { format: LogFormat::Off, ..ALL }, 0, &Line { status: 500, ..line() });
    log.flush(Duration::from_secs(10));

    assert_eq!(disk.text(), "");
}

#[test]
fn a_full_disk_costs_lines_and_never_cuts_a_later_one() {
    let _turn = TURN.lock().unwrap();
    let disk = Disk::new(1000);
    let log = AccessLog::new(disk.clone()).unwrap();
    let before = dropped();

    // Two batches: the second one meets a disk that was full before.
    for _ in 0..2 {
        (0..50).for_each(|_| log.log(&ALL, 0, &line()));
        log.flush(Duration::from_secs(10));
    }
    *disk.room.lock().unwrap() = usize::MAX;
    log.log(&ALL, 0, &Line { path: "/later", ..line() });
    log.flush(Duration::from_secs(10));

    let text = disk.text();
    let whole = text.lines().filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()).count() as u64;
    assert!(text.lines().last().unwrap().contains("/later"));
    assert_eq!(whole + dropped() - before, 101);
}

#[test]
fn a_reader_that_stalls_costs_lines_and_no_time() {
    /// Blocks until it is told to go on.
    struct Stalled(Receiver<()>);
    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let _turn = TURN.lock().unwrap();
    let (_go_on, stalled) = sync_channel(0);
    let log = AccessLog::new(Stalled(stalled)).unwrap();
    let before = dropped();

    (0..3 * CAPACITY).for_each(|_| log.log(&ALL, 0, &line()));
    log.flush(Duration::from_millis(20));

    assert!(dropped() - before >= CAPACITY as u64 - 1);
}
