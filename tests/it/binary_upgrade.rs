//! Restart and upgrade with nothing lost: sockets that systemd gives (LISTEN_FDS), and a new perch that takes over from
//! the one that runs (SIGUSR2) (row J4).

use std::net::{IpAddr, TcpListener};
use std::ops::Deref;
use std::process::Command;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use self::load::{Kind, Load};
use crate::front;
use crate::support::{Act, Client, Launch, PATIENCE, Seen, TestBackend, TestPerch, eventually, ok};

mod faults;
mod load;
mod old;
mod systemd;

/// A perch that is taken over from, again and again. Dropped: all of them are killed.
struct Upgraded {
    perch: TestPerch,
    /// The first one's, and those of the ones that took over.
    pids: Vec<u64>,
}

impl Upgraded {
    fn start(launch: Launch) -> Self {
        let perch = launch.start();
        Self { pids: vec![u64::from(perch.pid())], perch }
    }

    fn signal(&self, name: &str) {
        signal(name, *self.pids.last().unwrap());
    }

    /// Another perch takes over.
    #[track_caller]
    fn upgrade(&mut self) {
        let before = *self.pids.last().unwrap();
        self.signal("USR2");
        eventually(PATIENCE, || self.announced() != before);
        self.pids.push(self.announced());
    }

    fn announced(&self) -> u64 {
        let text = std::fs::read_to_string(self.perch.dir().join("announce.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["pid"].as_u64().unwrap()
    }

    /// Until all but the last have ended.
    #[track_caller]
    fn others_end(&self) {
        let (_, others) = self.pids.split_last().unwrap();
        eventually(PATIENCE, || others.iter().all(|pid| has_ended(*pid)));
    }
}

impl Deref for Upgraded {
    type Target = TestPerch;

    fn deref(&self) -> &TestPerch {
        &self.perch
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        for pid in self.pids.iter().skip(1).filter(|pid| !has_ended(**pid)) {
            signal("KILL", *pid);
        }
    }
}

fn signal(name: &str, pid: u64) {
    // It may just have ended.
    Command::new("sh").arg("-c").arg(format!("kill -{name} {pid} 2> /dev/null")).status().unwrap();
}

/// Gone, or a zombie that its parent has not asked for.
fn has_ended(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// A plain and a TLS listener in front of this backend.
fn launch(backend: &TestBackend) -> Launch {
    let launch = Launch::new(&front::tls_config("", "", &[backend.address()]));
    crate::support::write_certificate(launch.dir(), "localhost", &["localhost"]);
    launch
}

#[test]
fn upgrades_under_load_lose_no_request_and_no_count() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend));
    let (http, https) = (perch.address("http"), perch.address("https"));
    let loads = [
        Load::start(Kind::Kept, 4, http),
        Load::start(Kind::New, 4, http),
        Load::start(Kind::Tls, 2, https),
        Load::start(Kind::Http2, 2, https),
    ];
    let each_has = |more: u64| {
        let before: Vec<u64> = loads.iter().map(|load| load.served.load(Ordering::SeqCst)).collect();
        eventually(PATIENCE, || {
            loads.iter().zip(&before).all(|(load, before)| load.served.load(Ordering::SeqCst) > before + more)
        });
    };

    for _ in 0..4 {
        each_has(50);
        perch.upgrade();
    }
    each_has(50);
    let ended: Vec<_> = loads.into_iter().map(Load::end).collect();

    for (failures, _) in &ended {
        assert_eq!(*failures, [""; 0]);
    }
    perch.others_end();
    let served: u64 = ended.iter().map(|(_, served)| served).sum();
    let series = r#"perch_requests_total{service="app",version="stable",method="GET",code="200"}"#;
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let served = served as f64;
    eventually(PATIENCE, || perch.metric(series) == Some(served));
    // Counted a moment after the other.
    let series = r#"perch_request_duration_seconds_count{service="app",version="stable"}"#;
    eventually(PATIENCE, || perch.metric(series) == Some(served));
}

#[test]
fn a_request_under_way_finishes_in_the_old_perch() {
    let backend = TestBackend::named("stable");
    backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "late")].concat() } else { ok(seen, "now") }
    });
    // One worker, and each connection is told at once: what one of them saw of the drain holds for the other.
    let text = front::config("", "", &[backend.address()]);
    let mut perch = Upgraded::start(Launch::new(&text.replace("workers: 2", "workers: 1").replace("200ms", "0s")));
    let mut slow = Client::plain(perch.address("http"));
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || backend.count() == 1);
    let mut idle = Client::plain(perch.address("http"));
    assert_eq!(idle.get("a", "/").text(), "now");

    perch.upgrade();
    assert!(idle.is_closed_within(PATIENCE));
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "now");
    assert!(!has_ended(perch.pids[0]));
    backend.open_gate();

    let answer = slow.response();
    assert_eq!((answer.text(), answer.header("connection")), ("late".to_owned(), Some("close")));
    perch.others_end();
}

#[test]
fn a_new_perch_that_cannot_start_leaves_the_old_one_serving() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend));
    let good = std::fs::read_to_string(perch.config_file()).unwrap();
    let mut kept = Client::plain(perch.address("http"));
    assert_eq!(kept.get("a", "/").text(), "stable");
    perch.rewrite_config("listeners: no\n");

    perch.signal("USR2");
    eventually(PATIENCE, || perch.stderr().contains("No other perch takes over; this one goes on."));

    assert!(perch.stderr().contains("exit status: 3"), "{}", perch.stderr());
    assert_eq!(kept.get("a", "/").text(), "stable");
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
    perch.rewrite_config(&good);
    perch.upgrade();
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
}

#[test]
fn a_listener_that_the_new_configuration_adds_moves_or_drops_is_its_own() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend));
    let (http, https) = (perch.address("http"), perch.address("https"));
    let moved = front::config("", "", &[backend.address()]).replace("name: http", "name: other");

    // The old one reloads it too, or not before it is taken over.
    perch.rewrite_config(&moved.replace("workers: 2", "workers: 3"));
    perch.upgrade();
    perch.others_end();

    for gone in [http, https] {
        assert!(crate::support::connect_from([127, 0, 0, 1].into(), gone).is_err());
    }
    let text = std::fs::read_to_string(perch.dir().join("announce.json")).unwrap();
    let other = serde_json::from_str::<Value>(&text).unwrap()["listeners"]["other"].as_str().unwrap().parse().unwrap();
    for _ in 0..20 {
        assert_eq!(Client::plain(other).get("a", "/").text(), "stable");
    }
}

#[test]
fn more_and_fewer_workers_lose_nobody() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend));
    let text = std::fs::read_to_string(perch.config_file()).unwrap();

    for workers in ["workers: 4", "workers: 1", "workers: 3"] {
        perch.rewrite_config(&text.replace("workers: 2", workers));
        perch.upgrade();
        perch.others_end();
        for _ in 0..40 {
            assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
        }
    }
}

#[test]
fn verbs_drains_pins_and_generations_go_on() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let versions = [("stable", 1, &[stable.address()][..]), ("canary", 1, &[canary.address()][..])];
    let text = front::whole(&front::listener_of("http", ""), "onDecrease: drain", &versions);
    let mut perch = Upgraded::start(Launch::new(&format!("stateDir: ${{dir}}/state\n{text}")));
    let users: Vec<IpAddr> = (1..=40).map(|n| IpAddr::from([127, 0, 7, n])).collect();
    let answers = |perch: &Upgraded, users: &[IpAddr]| -> Vec<String> {
        users.iter().map(|user| Client::plain_from(*user, perch.address("http")).get("a", "/").text()).collect()
    };
    let before = answers(&perch, &users);
    assert!(before.contains(&"stable".to_owned()) && before.contains(&"canary".to_owned()));
    let set = |perch: &Upgraded, body: Value| perch.admin_post("/api/v1/services/app/weights", &body);
    assert_eq!(set(&perch, json!({"weights": {"canary": 0, "stable": 1}})).status, 200);
    let generation = perch.metric("perch_config_generation").unwrap();
    assert_eq!(answers(&perch, &users), before);

    for _ in 0..2 {
        perch.upgrade();
        // Who came before stays where the drain holds them, who is new does not get there.
        assert_eq!(answers(&perch, &users), before);
        let others: Vec<IpAddr> = (1..=40).map(|n| IpAddr::from([127, 0, 8, n])).collect();
        assert_eq!(answers(&perch, &others), ["stable"; 40]);
    }

    assert!(perch.metric("perch_config_generation").unwrap() > generation);
    let unexplained = r#"perch_version_flips_total{service="app",reason="unexplained"}"#;
    assert_eq!(perch.metric(unexplained), Some(0.0));
    // The folder of the state is the new one's. The old one's admin listener may still have taken who came before.
    perch.others_end();
    let done = set(&perch, json!({"weights": {"canary": 1, "stable": 3}}));
    assert_eq!(done.status, 200, "{done:?}");
}

/// perch on a socket that is open already.
fn on(socket: &TcpListener, backend: &TestBackend) -> TestPerch {
    let address = socket.local_addr().unwrap();
    let text = front::config("", "", &[backend.address()]);
    let text =
        text.replace("  - name: http\n    address: 127.0.0.1:0", &format!("  - name: http\n    address: {address}"));
    Launch::new(&text).socket(socket.try_clone().unwrap()).start()
}

#[test]
fn a_given_socket_is_used_and_who_waits_in_it_is_served() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));
    let mut early = Client::plain(socket.local_addr().unwrap());
    early.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    let perch = on(&socket, &backend);

    assert_eq!(perch.address("http"), socket.local_addr().unwrap());
    assert_eq!(early.response().text(), "stable");
    for _ in 0..10 {
        assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
    }
}

#[test]
fn a_restart_on_a_given_socket_refuses_nobody() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));
    let mut before = on(&socket, &backend);
    before.terminate();
    assert_eq!(before.wait(PATIENCE).code(), Some(0), "{}", before.stderr());
    let mut between = Client::plain(socket.local_addr().unwrap());
    between.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    let _after = on(&socket, &backend);

    assert_eq!(between.response().text(), "stable");
}

#[test]
fn a_given_socket_that_no_listener_wants_is_told() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));

    let perch = Launch::new(&front::config("", "", &[backend.address()])).socket(socket).start();

    assert!(perch.stderr().contains("No listener has the address of this given socket"), "{}", perch.stderr());
}
