//! Any bytes into the real proxy, over loopback; what reaches the endpoint is judged by [`strict`](super::strict).
//!
//! Holds: each request at the endpoint is one that the client's bytes strictly say, in their order, with the same method,
//! path, host, fields and body, whole only if it was whole; nothing else arrives; every answer is the asker's own, in
//! order; the connection ends soon after the client's FIN. Each run has a client address of its own, by which what comes
//! late is told apart.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use super::naive;
use super::strict::{self, Message};

/// Longer than anything that perch may do after a FIN: the wait for a 100, the lingering.
const PATIENCE: Duration = Duration::from_secs(20);

/// perch and the endpoint behind it, one for the process.
struct Front {
    address: SocketAddr,
    recorder: Arc<Recorder>,
    clients: AtomicU32,
}

/// What the endpoint saw, by the client that perch names.
#[derive(Default)]
struct Recorder {
    seen: Mutex<HashMap<String, Vec<Message>>>,
    /// Bytes that are no request, and why.
    wrong: Mutex<Vec<String>>,
}

static FRONT: LazyLock<Front> = LazyLock::new(|| {
    let endpoint = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = endpoint.local_addr().expect("it is bound");
    let recorder = Arc::new(Recorder::default());
    let shared = recorder.clone();
    std::thread::spawn(move || {
        for socket in endpoint.incoming().flatten() {
            let shared = shared.clone();
            std::thread::spawn(move || shared.serve(socket));
        }
    });
    let config = format!(
        "{{workers: 1, admin: {{address: '127.0.0.1:0'}}, accessLog: {{format: 'off'}}, affinity: {{maxPins: 1000}},
          listeners: [{{name: http, address: '127.0.0.1:0'}}], routes: [{{service: app}}],
          services: [{{name: app, versions: [{{name: stable, weight: 1, endpoints: ['{address}']}}]}}]}}"
    );
    let loaded = crate::config::parse(&config, "/".as_ref(), &|_| None).expect("the config is valid");
    let running = crate::runtime::start(loaded, None).expect("loopback has room");
    let address = running.listeners.first().expect("there is one").1;
    // Runs until the process ends.
    std::mem::forget(running);
    Front { address, recorder, clients: AtomicU32::new(1) }
});

/// One run.
pub(super) fn run(bytes: &[u8]) {
    let front = &*FRONT;
    let client = front.next_client();
    let answers = front.talk(client, bytes);
    let seen = front.recorder.take(client);
    let (meant, _) = strict::read_all(bytes);

    let said = bytes.escape_ascii();
    let wrong = std::mem::take(&mut *front.recorder.wrong.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(wrong.is_empty(), "the endpoint got what it never may: {wrong:#?}\n(now, or late from before: {said})");
    let mut rest = meant.iter();
    for got in &seen {
        let found = rest.any(|m| difference(m, got, client).is_none());
        let nearest = meant.iter().map(|m| difference(m, got, client)).collect::<Vec<_>>();
        assert!(found, "not what the client said: {got:?}\nclient: {said}\nread as: {meant:?}\nbecause: {nearest:?}");
    }
    for (at, mine) in answers.iter().enumerate() {
        assert_eq!(*mine, format!("{client}/{at}"), "somebody else's answer: {answers:?}\nclient: {said}");
    }
    let whole = seen.iter().filter(|m| m.is_whole).count();
    assert!(answers.len() <= whole, "{} answers to {whole} requests: {answers:?}\nclient: {said}", answers.len());
}

/// Whatever the fuzzer's own timer (SIGALRM) breaks off is begun again.
fn read(socket: &mut TcpStream, chunk: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match socket.read(chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Front {
    /// 127.1.0.0 and up.
    fn next_client(&self) -> Ipv4Addr {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        Ipv4Addr::from(0x7f01_0000 + number % 0x00fd_ffff)
    }

    /// Sends, says that this was all, and reads to the end: the marks of the endpoint's answers, in order.
    fn talk(&self, client: Ipv4Addr, bytes: &[u8]) -> Vec<String> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(IpAddr::V4(client), 0).into()).expect("a loopback address");
        socket.connect(&self.address.into()).expect("perch accepts");
        let mut socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(PATIENCE)).expect("more than zero");
        // perch may have refused and gone before all of it is sent.
        socket.write_all(bytes).ok();
        socket.shutdown(Shutdown::Write).ok();
        let mut answer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            match read(&mut socket, &mut chunk) {
                Ok(n) if n > 0 => answer.extend_from_slice(&chunk[..n]),
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("held for {PATIENCE:?} ({error}): {}", bytes.escape_ascii()),
            }
        }
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("perch-reason: internal"), "perch fell: {}", bytes.escape_ascii());
        text.lines().filter_map(|line| Some(line.strip_prefix("x-mark: ")?.to_owned())).collect()
    }
}

impl Recorder {
    fn serve(&self, mut socket: TcpStream) {
        let mut bytes = Vec::new();
        let mut chunk = [0; 16 * 1024];
        let mut is_told = false;
        loop {
            match strict::read(&bytes) {
                Ok(Some((message, used))) if message.is_whole => {
                    bytes.drain(..used);
                    is_told = false;
                    let mark = self.push(message);
                    let answer = format!("HTTP/1.1 200 OK\r\nx-mark: {mark}\r\ncontent-length: 0\r\n\r\n");
                    if socket.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                    continue;
                }
                Ok(Some((message, _))) if message.one("expect").is_some() && !is_told => {
                    is_told = true;
                    socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok();
                }
                Ok(_) => {}
                Err(wrong) => {
                    self.wrong(format!("{wrong}: {}", bytes.escape_ascii()));
                    return;
                }
            }
            match read(&mut socket, &mut chunk) {
                Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
                _ => {
                    // The half of a request that perch gave up.
                    if let Ok(Some((message, _))) = strict::read(&bytes) {
                        self.push(message);
                    }
                    return;
                }
            }
        }
    }

    /// Keeps it; its client and number.
    fn push(&self, message: Message) -> String {
        if let Some(wrong) = never_sent(&message) {
            self.wrong(format!("{wrong}: {message:?}"));
        }
        let client = String::from_utf8_lossy(message.one("x-forwarded-for").unwrap_or_default()).into_owned();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // What came late of runs that are over is of no use; the newest are judged.
        if seen.len() > 1000 {
            seen.clear();
        }
        let own = seen.entry(client.clone()).or_default();
        let number = own.len();
        own.push(message);
        format!("{client}/{number}")
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn take(&self, client: Ipv4Addr) -> Vec<Message> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(&client.to_string()).unwrap_or_default()
    }
}

/// What no endpoint ever gets, whatever the client said.
fn never_sent(got: &Message) -> Option<&'static str> {
    let path = got.target.split('?').next().unwrap_or_default();
    let once = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "host"];
    if got.is_http10 {
        Some("an old version")
    } else if matches!(&*got.method, "CONNECT" | "TRACE") || got.method.bytes().any(|b| b.is_ascii_lowercase()) {
        Some("a method that is off")
    } else if path == "*" && got.method != "OPTIONS" || path != "*" && naive::clean_path(path).as_deref() != Some(path)
    {
        Some("a path that is not clean")
    } else if got.target.contains('#') {
        Some("a fragment")
    } else if once.iter().any(|name| got.all(name).len() != 1) {
        Some("perch's own fields not once")
    } else if got.one("x-forwarded-proto") != Some(b"http") || got.one("x-forwarded-host") != got.one("host") {
        Some("perch's own fields not its own")
    } else if got.all("connection").iter().any(|value| !matches!(*value, b"te" | b"upgrade")) {
        Some("a connection field of the client's")
    } else if got.all("te").iter().any(|value| *value != b"trailers") {
        Some("te of the client's")
    } else if got.all("upgrade").iter().any(|value| *value != b"websocket") {
        Some("another upgrade")
    } else {
        None
    }
}

/// How what the endpoint got differs from what the client said.
fn difference(meant: &Message, got: &Message, client: Ipv4Addr) -> Option<&'static str> {
    let (authority, target) = match meant.target.split_once("://") {
        Some((_, rest)) if !meant.target.starts_with('/') => {
            let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (authority.as_bytes(), if target.is_empty() { "/" } else { target })
        }
        _ => (meant.one("host").unwrap_or(b"localhost"), &*meant.target),
    };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = if path == "*" { Some(path.to_owned()) } else { naive::clean_path(path) };
    let target = path.map(|path| query.map_or_else(|| path.clone(), |query| format!("{path}?{query}")));
    if meant.method != got.method {
        return Some("the method");
    }
    if target.as_ref() != Some(&got.target) {
        return Some("the target");
    }
    if got.one("host") != Some(authority) {
        return Some("the host");
    }
    if got.one("x-forwarded-for") != Some(client.to_string().as_bytes()) {
        return Some("who asks");
    }
    if got.is_whole && (!meant.is_whole || meant.body != got.body) || !meant.body.starts_with(&got.body) {
        return Some("the body");
    }
    if own_fields(meant) != own_fields(got) {
        return Some("the fields");
    }
    if got.trailers.iter().any(|trailer| !meant.trailers.contains(trailer)) {
        return Some("the trailers");
    }
    None
}

/// The fields that are between client and endpoint only, in order; cookies as one.
fn own_fields(message: &Message) -> Vec<(&str, Vec<u8>)> {
    const NOT_THEIRS: [&str; 19] = [
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "cookie",
    ];
    let nominated: Vec<String> = message
        .all("connection")
        .iter()
        .flat_map(|value| value.split(|b| *b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .collect();
    let is_own = |name: &str| !NOT_THEIRS.contains(&name) && !nominated.iter().any(|n| n == name);
    let fields = message.fields.iter().filter(|(name, _)| is_own(name));
    let mut fields: Vec<_> = fields.map(|(name, value)| (&**name, value.clone())).collect();
    let cookies = message.all("cookie");
    if !cookies.is_empty() {
        fields.push(("cookie", cookies.join(&b"; "[..])));
    }
    fields
}
