//! The end: SIGTERM under load loses nothing, readiness goes first, a second signal and the deadline cut.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::front::{Front, front_tls, front_with};
use crate::support::{Act, Client, Launch, PATIENCE, Seen, TestBackend, TestPerch, eventually, h2, ok, response};

/// A front whose drain takes this long; TLS and plain.
fn draining(drain: &str) -> Front {
    let backend = TestBackend::named("stable");
    let text = crate::front::tls_config("", "", &[backend.address()]);
    let line = text.lines().find(|line| line.starts_with("drain:")).unwrap();
    let launch = Launch::new(&text.replace(line, &format!("drain: {{{drain}}}")));
    crate::support::write_certificate(launch.dir(), "localhost", &["localhost"]);
    Front { perch: launch.start(), backend }
}

/// Clients in closed loops, each on a kept connection that it opens anew when it was told that it ends.
struct Load {
    served: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(clients: u8, connect: impl Fn(IpAddr) -> std::io::Result<Client> + Clone + Send + 'static) -> Self {
        let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (1..=clients)
            .map(|n| {
                let (served, stop, connect) = (served.clone(), stop.clone(), connect.clone());
                std::thread::spawn(move || run(IpAddr::from([127, 0, 3, n]), &connect, &served, &stop))
            })
            .collect();
        Self { served, stop, threads }
    }

    /// What went wrong.
    fn failures(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// Ends when perch takes no new connections.
fn run(
    user: IpAddr,
    connect: &impl Fn(IpAddr) -> std::io::Result<Client>,
    served: &AtomicUsize,
    stop: &AtomicBool,
) -> Vec<String> {
    let mut failures = Vec::new();
    while let Ok(mut client) = connect(user) {
        loop {
            if stop.load(Ordering::SeqCst) {
                return failures;
            }
            let sent = client.try_send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
            match sent.and_then(|()| client.try_response()) {
                Ok(answer) if answer.status == 200 => {
                    served.fetch_add(1, Ordering::SeqCst);
                    if answer.header("connection") == Some("close") {
                        break;
                    }
                }
                Ok(answer) => failures.push(format!("{answer:?}")),
                Err(error) => {
                    failures.push(error.to_string());
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    failures
}

fn plain(address: SocketAddr) -> impl Fn(IpAddr) -> std::io::Result<Client> + Clone + Send + 'static {
    move |user| crate::support::connect_from(user, address).map(Client::over_tcp)
}

fn tls(address: SocketAddr) -> impl Fn(IpAddr) -> std::io::Result<Client> + Clone + Send + 'static {
    move |user| Client::try_tls(user, address, "localhost", h2::tls_config(&[b"http/1.1"]))
}

#[test]
fn a_drain_under_load_loses_no_request() {
    let mut front = draining("delay: 300ms, spread: 1s, deadline: 20s");
    let loads = [Load::start(8, plain(front.address())), Load::start(4, tls(front.perch.address("https")))];
    eventually(PATIENCE, || loads.iter().all(|load| load.served.load(Ordering::SeqCst) > 200));

    front.perch.terminate();
    let status = front.perch.wait(PATIENCE);

    assert_eq!(status.code(), Some(0), "{}", front.perch.stderr());
    for load in loads {
        assert_eq!(load.failures(), [""; 0]);
    }
}

#[test]
fn readiness_goes_before_the_listeners() {
    let mut front = draining("delay: 5s, spread: 0s, deadline: 20s");
    assert_eq!(front.perch.admin_get("/readyz").status, 200);

    front.perch.terminate();

    eventually(PATIENCE, || front.perch.admin_get("/readyz").status == 503);
    assert_eq!(front.client().get("a", "/").text(), "stable");
    assert_eq!(front.perch.admin_get("/livez").status, 200);
    front.perch.signal("TERM");
    assert_eq!(front.perch.wait(PATIENCE).code(), Some(130));
}

#[test]
fn what_is_under_way_finishes() {
    let mut front = draining("delay: 0s, spread: 100ms, deadline: 25s");
    front.backend.script(|seen: &Seen| match seen.target().as_str() {
        "/ws" => {
            let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            vec![Act::Send(head.into()), Act::Echo]
        }
        "/slow" => vec![Act::Gate, Act::ReadBody, response(seen, "200 OK", "", "late")],
        _ => vec![Act::ReadBody, response(seen, "200 OK", "", "all")],
    });
    let mut slow = front.client();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut upload = front.client();
    upload.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345");
    let mut websocket = front.client();
    websocket.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(websocket.try_response_head().unwrap().status, 101);
    eventually(PATIENCE, || front.backend.count() == 3);
    let mut idle = front.client();
    assert_eq!(idle.get("a", "/").status, 200);

    front.perch.terminate();
    assert!(idle.is_closed_within(PATIENCE));
    eventually(PATIENCE, || crate::support::connect_from([127, 0, 0, 1].into(), front.address()).is_err());

    front.backend.open_gate();
    let answer = slow.response();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("late", Some("close")));
    upload.send("67890");
    assert_eq!(upload.response().text(), "all");
    websocket.send("still here");
    assert_eq!(websocket.read_exact(10).unwrap(), b"still here");
    websocket.half_close();
    assert_eq!(front.perch.wait(PATIENCE).code(), Some(0), "{}", front.perch.stderr());
}

#[test]
fn the_deadline_cuts_and_says_so() {
    let mut front = draining("delay: 0s, spread: 0s, deadline: 1s");
    front.backend.script(|_| vec![Act::Stall]);
    let mut client = front.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || front.backend.count() == 1);
    let start = Instant::now();

    front.perch.terminate();
    let status = front.perch.wait(PATIENCE);

    assert_eq!(status.code(), Some(1));
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert!(front.perch.stderr().contains("cut=1"), "{}", front.perch.stderr());
    assert!(client.is_closed_within(PATIENCE));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut front = draining("delay: 20s, spread: 0s, deadline: 60s");
    front.perch.terminate();
    eventually(PATIENCE, || front.perch.stderr().contains("Draining."));

    front.perch.signal("INT");

    assert_eq!(front.perch.wait(PATIENCE).code(), Some(130));
}

#[test]
fn an_interrupt_drains_without_the_delay() {
    let mut front = draining("delay: 25s, spread: 1s, deadline: 60s");
    let mut idle = front.client();
    idle.get("a", "/");

    front.perch.signal("INT");

    assert_eq!(front.perch.wait(PATIENCE / 2).code(), Some(0));
}

#[test]
fn http2_is_told_to_go_and_its_streams_finish() {
    let mut front = draining("delay: 0s, spread: 300ms, deadline: 25s");
    front.backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "late")].concat() } else { ok(seen, "now") }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = front.perch.address("https");
    let mut client = runtime.block_on(h2::H2::tls(address, "localhost"));
    assert_eq!(runtime.block_on(client.get("/")).status(), 200);
    let request = client.request("GET", "/slow").body(h2::empty()).unwrap();
    let slow = runtime.spawn(client.sender.send_request(request));
    eventually(PATIENCE, || front.backend.count() == 2);

    front.perch.terminate();
    eventually(PATIENCE, || crate::support::connect_from([127, 0, 0, 1].into(), address).is_err());
    front.backend.open_gate();

    let answer = runtime.block_on(async { h2::whole(slow.await.unwrap().unwrap()).await.unwrap() });
    assert_eq!((answer.status(), &answer.body[..]), (200, &b"late"[..]));
    assert!(runtime.block_on(client.connection).unwrap().is_ok());
    assert_eq!(front.perch.wait(PATIENCE).code(), Some(0), "{}", front.perch.stderr());
}

#[test]
fn http2_under_load_loses_no_request_in_a_drain() {
    let mut front = draining("delay: 200ms, spread: 1s, deadline: 20s");
    let address = front.perch.address("https");
    let served = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let served = served.clone();
            let mut client = runtime.block_on(h2::H2::tls(address, "localhost"));
            runtime.spawn(async move {
                let mut failures = Vec::new();
                // A client that was told to go would open a new connection; here it ends.
                while let Some(answer) = client.try_get().await {
                    match answer {
                        Ok(()) => drop(served.fetch_add(1, Ordering::SeqCst)),
                        Err(failure) => failures.push(failure),
                    }
                }
                failures
            })
        })
        .collect();
    eventually(PATIENCE, || served.load(Ordering::SeqCst) > 200);

    front.perch.terminate();

    for client in clients {
        assert_eq!(runtime.block_on(client).unwrap(), [""; 0]);
    }
    // What was not answered has not been at an endpoint, either.
    assert_eq!(front.backend.count(), served.load(Ordering::SeqCst));
    assert_eq!(front.perch.wait(PATIENCE).code(), Some(0), "{}", front.perch.stderr());
}

#[test]
fn an_upload_under_way_is_not_cut_by_the_spread() {
    let mut front = front_with("", "");
    let mut client = front.client();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20\r\n\r\n");
    eventually(PATIENCE, || front.backend.count() == 1);
    front.perch.terminate();
    eventually(PATIENCE, || front.perch.stderr().contains("Draining."));

    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        client.socket().write_all(b"x").unwrap();
    }

    assert_eq!(client.response().status, 200);
    assert_eq!(front.perch.wait(PATIENCE).code(), Some(0));
}

#[test]
fn it_starts_again_on_the_same_port_while_old_connections_linger() {
    let mut front = front_tls("", "");
    let text = std::fs::read_to_string(front.perch.config_file()).unwrap();
    let address = front.address();
    front.client().get("a", "/");
    front.perch.terminate();
    front.perch.wait(PATIENCE);

    let again = Launch::new(&text.replacen("127.0.0.1:0\n", &format!("{address}\n"), 1));
    crate::support::write_certificate(again.dir(), "localhost", &["localhost"]);
    let again: TestPerch = again.start();

    assert_eq!(again.address("http"), address);
    assert_eq!(Client::plain(address).get("a", "/").text(), "stable");
}

/// Its time to close passes while nothing runs; the deadline of the drain is not waited for.
#[test]
fn a_stop_of_the_process_in_a_drain_keeps_no_idle_connection_open() {
    let front = draining("delay: 0s, spread: 0s, deadline: 2m");
    let mut idle = front.client();
    assert_eq!(idle.get("a", "/").status, 200);

    front.perch.terminate();
    eventually(PATIENCE, || front.perch.stderr().contains("Draining."));
    front.perch.signal("STOP");
    std::thread::sleep(Duration::from_millis(2500));
    front.perch.signal("CONT");

    crate::front::assert_closed(&mut idle);
}
