//! Requests while the cluster changes: none may fail, and each meets the pod that it should. The double may name
//! loopback addresses, which a real API server refuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Endpoint, Slice, endpoints, wait_for};
use super::double::Double;
use crate::support::{Act, Client, PATIENCE, TestBackend, TestPerch, eventually, get, ok};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";
const NO_AFFINITY: &str = "    affinity: None\n";

/// One slice per backend, as each has its own port.
pub(super) fn slice(backend: &TestBackend, name: &str, pod: &str) -> Slice {
    Slice::of("hello", name, backend.address().port(), &[Endpoint::ready("127.0.0.1", pod)])
}

pub(super) fn publish(cluster: &Cluster, backends: &[(&TestBackend, &str)]) {
    for (backend, pod) in backends {
        cluster.slice(&slice(backend, &format!("hello-{pod}"), pod));
    }
}

/// Asks all the time; what was answered, in order. Anything but 200 ends it.
pub(super) struct Users {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<(Instant, String)>>>,
}

impl Users {
    pub(super) fn start(perch: &TestPerch) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let address = perch.address("http");
        let threads = (0..3).map(|_| {
            std::thread::spawn({
                let stop = stop.clone();
                move || use_it(address, &stop)
            })
        });
        Self { threads: threads.collect(), stop }
    }

    pub(super) fn finish(self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: Vec<_> = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        all.sort();
        all
    }
}

fn use_it(address: SocketAddr, stop: &AtomicBool) -> Vec<(Instant, String)> {
    let mut answers = Vec::new();
    let mut client = Client::plain(address);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let response = client.get("hello", "/");
        assert_eq!(response.status, 200, "{response:?}");
        answers.push((began, response.text()));
        std::thread::sleep(Duration::from_millis(1));
    }
    answers
}

pub(super) fn answers(all: &[(Instant, String)]) -> Vec<&str> {
    let mut seen: Vec<&str> = all.iter().map(|(_, text)| text.as_str()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

#[test]
fn a_blue_green_switch_loses_no_request() {
    let double = Double::start();
    let cluster = double.cluster();
    let (blue, green) = (TestBackend::named("blue"), TestBackend::named("green"));
    publish(&cluster, &[(&blue, "blue")]);
    let perch = cluster.perch(BY_SERVICE, NO_AFFINITY);
    let users = Users::start(&perch);
    eventually(PATIENCE, || blue.count() > 20);

    // Green comes up beside it, not ready; then the selector moves.
    let mut starting = slice(&green, "hello-green", "green");
    starting.endpoints[0].ready = Some(false);
    cluster.slice(&starting);
    publish(&cluster, &[(&green, "green")]);
    cluster.delete("endpointslices", "hello-blue");
    wait_for(&perch, "stable", &[&green.address().to_string()]);
    let switched = Instant::now();
    let before = green.count();
    eventually(PATIENCE, || green.count() > before + 20);

    let all = users.finish();
    assert_eq!(answers(&all), ["blue", "green"]);
    let after: Vec<_> = all.into_iter().filter(|(began, _)| *began > switched).collect();
    assert_eq!(answers(&after), ["green"]);
}

#[test]
fn a_rolling_update_and_flips_of_readiness_lose_no_request() {
    let double = Double::start();
    let cluster = double.cluster();
    let backends: Vec<TestBackend> = (0..4).map(|n| TestBackend::named(&format!("b{n}"))).collect();
    publish(&cluster, &[(&backends[0], "b0"), (&backends[1], "b1")]);
    let perch = cluster.perch(BY_SERVICE, NO_AFFINITY);
    let users = Users::start(&perch);

    for round in 0..6 {
        let (old, new) = (round % 4, (round + 2) % 4);
        publish(&cluster, &[(&backends[new], &format!("b{new}"))]);
        let mut leaving = slice(&backends[old], &format!("hello-b{old}"), &format!("b{old}"));
        leaving.endpoints[0] = leaving.endpoints[0].clone().terminating();
        cluster.slice(&leaving);
        eventually(PATIENCE, || endpoints(&perch, "stable").contains(&format!("{} draining", backends[old].address())));
        cluster.delete("endpointslices", &format!("hello-b{old}"));
        eventually(PATIENCE, || endpoints(&perch, "stable").len() == 2);
        let mut flips = slice(&backends[new], &format!("hello-b{new}"), &format!("b{new}"));
        flips.endpoints[0].ready = Some(false);
        cluster.slice(&flips);
        eventually(PATIENCE, || endpoints(&perch, "stable").len() == 1);
        publish(&cluster, &[(&backends[new], &format!("b{new}"))]);
        eventually(PATIENCE, || endpoints(&perch, "stable").len() == 2);
    }

    let all = users.finish();
    assert!(all.len() > 100 && answers(&all).len() >= 2, "{}", all.len());
}

#[test]
fn a_reload_to_other_versions_loses_no_request() {
    let double = Double::start();
    let cluster = double.cluster();
    let backend = TestBackend::named("hello");
    publish(&cluster, &[(&backend, "a")]);
    let perch = cluster.perch(BY_SERVICE, "");
    let users = Users::start(&perch);

    for round in 0..4 {
        // Another version, by another source: neither is known before.
        let version = format!("{{name: v{round}, kubernetes: {{service: hello, port: {}}}}}", backend.address().port());
        let source =
            if round % 2 == 0 { version } else { version.replace(&backend.address().port().to_string(), "http") };
        perch.rewrite_config(&super::cluster::config(&source, ""));
        let done = format!("v{round}");
        eventually(PATIENCE, || {
            perch.admin_json("/api/v1/services")["services"][0]["versions"][0]["name"] == done.as_str()
        });
    }

    assert_eq!(answers(&users.finish()), ["hello"]);
}

#[test]
fn an_outage_of_the_api_server_is_not_seen_by_users() {
    let double = Double::start();
    let cluster = double.cluster();
    let backend = TestBackend::named("hello");
    publish(&cluster, &[(&backend, "a")]);
    let perch = cluster.perch(BY_SERVICE, "");
    let users = Users::start(&perch);

    double.go_away();
    eventually(PATIENCE, || perch.metric("perch_kubernetes_sync_errors_total{reason=\"connect\"}").unwrap() >= 2.0);
    double.come_back();
    double.compact();
    eventually(PATIENCE, || perch.stderr().contains("Following the cluster again."));

    assert!(users.finish().len() > 20);
}

#[test]
fn an_address_that_another_pod_got_is_dialled_anew() {
    let double = Double::start();
    let cluster = double.cluster();
    let backend = TestBackend::named("hello");
    cluster.slice(&slice(&backend, "hello-1", "old"));
    let perch = cluster.perch(BY_SERVICE, "");
    let http = perch.address("http");
    assert_eq!(get(http, "/1").status, 200);
    assert_eq!(get(http, "/2").status, 200);
    assert_eq!(backend.last().connection, 0, "kept alive");
    let generation = perch.metric("perch_config_generation").unwrap();

    cluster.slice(&slice(&backend, "hello-1", "new"));
    eventually(PATIENCE, || perch.metric("perch_config_generation").unwrap() > generation);

    assert_eq!(get(http, "/3").status, 200);
    assert_eq!((backend.last().target(), backend.last().connection), ("/3".to_owned(), 1));
}

#[test]
fn a_request_on_a_draining_endpoint_finishes_and_new_ones_go_elsewhere() {
    let double = Double::start();
    let cluster = double.cluster();
    let leaving = TestBackend::scripted(|seen| {
        let mut acts = vec![Act::Gate];
        acts.extend(ok(seen, "leaving"));
        acts
    });
    let staying = TestBackend::named("staying");
    publish(&cluster, &[(&leaving, "a")]);
    let perch = cluster.perch(BY_SERVICE, "");
    let http = perch.address("http");
    let slow = std::thread::spawn(move || get(http, "/slow").text());
    eventually(PATIENCE, || leaving.count() == 1);

    publish(&cluster, &[(&staying, "b")]);
    let mut terminating = slice(&leaving, "hello-a", "a");
    terminating.endpoints[0] = terminating.endpoints[0].clone().terminating();
    cluster.slice(&terminating);
    eventually(PATIENCE, || endpoints(&perch, "stable").contains(&format!("{} draining", leaving.address())));

    // The same client, that was pinned to the one that leaves.
    assert_eq!(get(http, "/next").text(), "staying");
    leaving.open_gate();
    assert_eq!(slow.join().unwrap(), "leaving");
}

#[test]
fn news_reaches_the_data_path_within_a_tenth_of_a_second() {
    let double = Double::start();
    let cluster = double.cluster();
    let (a, b) = (TestBackend::named("a"), TestBackend::named("b"));
    publish(&cluster, &[(&a, "a")]);
    let perch = cluster.perch(BY_SERVICE, "");
    let http = perch.address("http");

    let mut times = Vec::new();
    for round in 0..20 {
        let (backend, name) = if round % 2 == 0 { (&b, "b") } else { (&a, "a") };
        // Calm between the rounds: a burst is paced.
        std::thread::sleep(Duration::from_millis(120));
        let began = Instant::now();
        cluster.slice(&Slice { name: "hello-a".into(), ..slice(backend, "hello-a", name) });
        eventually(PATIENCE, || get(http, "/").text() == name);
        times.push(began.elapsed());
    }

    times.sort_unstable();
    println!("news to data path: median {:?}, longest {:?}", times[10], times[19]);
    // The promise is 100 ms on an idle machine.
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
}
