//! The memory ceiling (row J7): what is given up at each step, what goes on, and how it ends. Memory is held by clients
//! that stop in the middle of large heads; the ceiling comes down to it, and then they leave.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::front::{assert_closed, assert_refused, tls_config};
use crate::support::h2::H2;
use crate::support::{Act, Client, Launch, PATIENCE, Seen, TestBackend, TestPerch, eventually, ok, write_certificate};

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// A megabyte of a head, and a minute for the rest.
const LISTENER: &str = "limits: {headBytes: 1048576}\ntimeouts: {head: 60s}";

fn config(memory: &str, endpoint: SocketAddr) -> String {
    format!("limits: {{memory: {memory}}}\n{}", tls_config(LISTENER, "", &[endpoint]))
}

fn start(memory: &str, backend: &TestBackend) -> TestPerch {
    let launch = Launch::new(&config(memory, backend.address()));
    write_certificate(launch.dir(), "localhost", &["localhost"]);
    launch.start()
}

fn value(perch: &TestPerch, name: &str) -> f64 {
    perch.metric(name).unwrap()
}

fn shedding(perch: &TestPerch) -> f64 {
    value(perch, "perch_memory_shedding")
}

/// Holds about a megabyte until it is dropped.
fn hold(perch: &TestPerch) -> Client {
    let mut client = Client::plain(perch.address("http"));
    client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "x".repeat(1_000_000)));
    client
}

/// Sets the ceiling so that what is in use is this part of it; the rest of the configuration stays.
fn squeeze(perch: &TestPerch, backend: &TestBackend, part: f64) {
    let ceiling = (value(perch, "process_resident_memory_bytes") / part / KIB).round();
    perch.rewrite_config(&config(&format!("{ceiling}KiB"), backend.address()));
    eventually(PATIENCE, || perch.metric("perch_memory_ceiling_bytes") == Some(ceiling * KIB));
}

/// Squeezes until so much is given up, as perch may find more that it can give back.
fn shed(perch: &TestPerch, backend: &TestBackend, part: f64, step: f64) {
    eventually(PATIENCE, || {
        if shedding(perch) != step {
            squeeze(perch, backend, part);
        }
        shedding(perch) == step
    });
}

/// Until perch takes no more and gives no more back by itself.
fn settle(perch: &TestPerch) {
    let resident = || value(perch, "process_resident_memory_bytes") / MIB;
    let (mut last, mut since) = (resident(), Instant::now());
    eventually(PATIENCE, || {
        let now = resident();
        if (now - last).abs() > 0.5 {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    });
}

#[test]
fn short_of_memory_perch_sheds_by_steps_and_recovers() {
    let backend = TestBackend::named("here");
    backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "slow")].concat() } else { ok(seen, "here") }
    });
    let perch = start("none", &backend);
    assert_eq!((perch.metric("perch_memory_ceiling_bytes"), shedding(&perch)), (None, 0.0));
    let new = || Client::plain(perch.address("http"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let h2 = || async { H2::tls(perch.address("https"), "localhost").await };
    let mut idle_h2 = runtime.block_on(h2());
    assert_eq!(runtime.block_on(idle_h2.get("/")).status(), 200);
    let (mut idle, mut slow) = (new(), new());
    assert_eq!(idle.get("a", "/").text(), "here");
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || backend.count() == 3);
    let held: Vec<Client> = (0..80).map(|_| hold(&perch)).collect();
    settle(&perch);
    squeeze(&perch, &backend, 0.77);
    settle(&perch);

    shed(&perch, &backend, 0.85, 1.0);
    assert_closed(&mut idle);
    eventually(PATIENCE, || idle_h2.connection.is_finished());
    let mut served = new();
    assert_eq!(served.get("a", "/").text(), "here");
    assert_closed(&mut served);

    shed(&perch, &backend, 0.925, 2.0);
    let mut refused = new();
    let answer = refused.get("a", "/");
    assert_refused(&answer, 503, "memory-limit");
    assert_eq!((answer.header("connection"), answer.header("retry-after")), (Some("close"), Some("1")));
    assert_closed(&mut refused);
    let answer = runtime.block_on(async { h2().await.get("/").await });
    assert_eq!((answer.status(), answer.header("perch-reason")), (503, Some("memory-limit")));
    assert_eq!(perch.admin_get("/readyz").status, 200);

    shed(&perch, &backend, 0.98, 3.0);
    let mut closed = new();
    assert_eq!(closed.read_to_end().unwrap_or_default(), b"");
    let rejected = value(&perch, "perch_rejected_total{reason=\"memory-limit\"}");
    assert!(rejected >= 3.0, "{rejected}");

    // What was under way is not cut.
    backend.open_gate();
    assert_eq!(slow.response().text(), "slow");

    // Nobody asks for anything, not even for metrics: what was freed still goes back to the system.
    let again = || perch.stderr().matches("There is memory again.").count();
    let before = again();
    drop(held);
    eventually(PATIENCE, || again() > before);
    assert_eq!(shedding(&perch), 0.0);
    let mut kept = new();
    (0..3).for_each(|_| assert_eq!(kept.get("a", "/").text(), "here"));
    let log = perch.stderr();
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    for step in ["idle connections are closed", "new requests are refused", "new connections are closed"] {
        assert!((1..4).contains(&told(step)), "one line per change: {log}");
    }
    assert!((1..4).contains(&told("There is memory again.")), "{log}");
}
