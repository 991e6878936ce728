//! From blue to green by a Service's selector, as the lab does it: the old endpoints vanish from the slices while the new
//! ones aren't ready. They are used until one is; what leaves otherwise leaves at once. The cases hold against any API
//! server, the traffic against the double.

use std::time::Instant;

use super::cases::generation;
use super::cluster::{Cluster, Endpoint, Slice, config, endpoints, wait_for};
use super::double::Double;
use super::traffic::{Users, answers, publish, slice};
use crate::support::{Act, PATIENCE, TestBackend, TestPerch, eventually, get, ok};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";
const BY_LABELS: &str = "{name: stable, kubernetes: {service: hello, port: http, podLabels: {app: hello}}}";
const NO_AFFINITY: &str = "    affinity: None\n";

fn pods(name: &str, first: u8) -> Vec<Endpoint> {
    (0..2).map(|n| Endpoint::ready(&format!("10.1.0.{}", first + n), &format!("{name}{n}"))).collect()
}

fn unready(endpoints: &[Endpoint]) -> Vec<Endpoint> {
    endpoints.iter().cloned().map(Endpoint::unready).collect()
}

/// One slice with all, as the slices' controller writes it.
fn show(cluster: &Cluster, endpoints: &[Endpoint]) {
    cluster.slice(&Slice::of("hello", "hello-1", 80, endpoints));
}

/// Perch has seen that the old ones are no longer named.
fn holds(perch: &TestPerch) -> bool {
    perch.stderr().contains("using the ones before until one is")
}

/// Perch shows so many that are there and not ready: a snapshot of its own, or one with the change before, as they come.
fn shows_unready(perch: &TestPerch, count: f64) -> bool {
    perch.metric("perch_endpoints{service=\"hello\",version=\"stable\",state=\"not-ready\"}") == Some(count)
}

pub(super) fn a_switch_before_they_are_ready(cluster: &Cluster) {
    let (blue, green) = (pods("blue", 1), pods("green", 11));
    show(cluster, &blue);
    let perch = cluster.perch(BY_SERVICE, "");

    show(cluster, &unready(&green));
    eventually(PATIENCE, || holds(&perch) && shows_unready(&perch, 2.0));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "10.1.0.2:80"]);
    let before = generation(&perch);
    show(cluster, &green);

    wait_for(&perch, "stable", &["10.1.0.11:80", "10.1.0.12:80"]);
    assert!((generation(&perch) - before - 1.0).abs() < 0.5, "one snapshot");
}

pub(super) fn a_switch_before_they_are_ready_by_labels(cluster: &Cluster) {
    let real = |endpoints: Vec<Endpoint>, version: &str| -> Vec<Endpoint> {
        let uid = |e: &Endpoint| cluster.pod(&e.pod, &[("app", "hello"), ("version", version)]);
        endpoints.into_iter().map(|e| e.clone().uid(&uid(&e))).collect()
    };
    let blue = real(pods("blue", 1), "1.0.0");
    show(cluster, &blue);
    let perch = cluster.perch(BY_LABELS, "");
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);

    // The new pods have no address yet, so no slice names any.
    let green = real(pods("green", 11), "2.0.0");
    show(cluster, &[]);
    eventually(PATIENCE, || holds(&perch));
    show(cluster, &unready(&green));
    eventually(PATIENCE, || shows_unready(&perch, 2.0));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "10.1.0.2:80"]);
    let before = generation(&perch);
    // A pod that is deleted is not waited for.
    cluster.delete("pods", "blue0");
    wait_for(&perch, "stable", &["10.1.0.2:80"]);
    let during = generation(&perch);
    show(cluster, &green);

    wait_for(&perch, "stable", &["10.1.0.11:80", "10.1.0.12:80"]);
    assert!((during - before - 1.0).abs() < 0.5, "the deleted pod alone");
    assert!((generation(&perch) - during - 1.0).abs() < 0.5, "one snapshot");
}

pub(super) fn what_is_not_ready_or_deleted_leaves_at_once(cluster: &Cluster) {
    let (blue, green) = (pods("blue", 1), pods("green", 11));
    let perch = cluster.perch(BY_SERVICE, "");
    let both = |one: &[Endpoint], other: &[Endpoint]| [one, other].concat();
    show(cluster, &blue);
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);

    // All flip, whether others start or not.
    show(cluster, &both(&unready(&blue), &unready(&green)));
    wait_for(&perch, "stable", &[]);
    show(cluster, &blue);
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);
    // Scale to zero.
    show(cluster, &[]);
    wait_for(&perch, "stable", &[]);
    show(cluster, &blue);
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);
    // They end, and then are gone.
    let ending: Vec<Endpoint> = blue.iter().cloned().map(Endpoint::terminating).collect();
    let last = Endpoint::ready("10.1.0.9", "last");
    show(cluster, &both(&ending, std::slice::from_ref(&last)));
    wait_for(&perch, "stable", &["10.1.0.1:80 draining", "10.1.0.2:80 draining", "10.1.0.9:80"]);
    show(cluster, &both(&ending, &unready(&[last])));
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);
    show(cluster, &unready(&green));
    wait_for(&perch, "stable", &[]);
    assert!(!holds(&perch), "{}", perch.stderr());
}

pub(super) fn a_reload_to_a_service_that_is_not_ready_yet(cluster: &Cluster) {
    let (blue, green) = (pods("blue", 1), pods("green", 11));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &blue));
    cluster.slice(&Slice::of("green", "green-1", 80, &unready(&green)));
    let perch = cluster.perch(BY_SERVICE, "");

    perch.rewrite_config(&config(&BY_SERVICE.replace("hello", "green"), ""));
    eventually(PATIENCE, || perch.stderr().contains("Reloaded the configuration"));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "10.1.0.2:80"]);
    cluster.slice(&Slice::of("green", "green-1", 80, &green));

    wait_for(&perch, "stable", &["10.1.0.11:80", "10.1.0.12:80"]);
}

#[test]
fn a_switch_before_green_is_ready_loses_no_request() {
    let double = Double::start();
    let cluster = double.cluster();
    let blue = TestBackend::scripted(|seen| {
        let mut acts = if seen.target() == "/slow" { vec![Act::Gate] } else { vec![] };
        acts.extend(ok(seen, "blue"));
        acts
    });
    let green = TestBackend::named("green");
    publish(&cluster, &[(&blue, "blue")]);
    let perch = cluster.perch(BY_SERVICE, NO_AFFINITY);
    let http = perch.address("http");
    let users = Users::start(&perch);
    let slow = std::thread::spawn(move || get(http, "/slow").text());
    eventually(PATIENCE, || blue.count() > 20 && blue.seen().iter().any(|seen| seen.target() == "/slow"));

    // The selector moves: blue is no longer named, green is not up.
    let mut starting = slice(&green, "hello-1", "green");
    starting.endpoints[0].ready = Some(false);
    cluster.slice(&starting);
    cluster.delete("endpointslices", "hello-blue");
    eventually(PATIENCE, || holds(&perch));
    let held = blue.count();
    eventually(PATIENCE, || blue.count() > held + 20);
    assert_eq!(green.count(), 0);
    cluster.slice(&slice(&green, "hello-1", "green"));
    wait_for(&perch, "stable", &[&green.address().to_string()]);
    let switched = Instant::now();
    eventually(PATIENCE, || green.count() > 20);

    blue.open_gate();
    assert_eq!(slow.join().unwrap(), "blue", "what was under way finishes");
    let all = users.finish();
    assert_eq!(answers(&all), ["blue", "green"]);
    let after: Vec<_> = all.into_iter().filter(|(began, _)| *began > switched).collect();
    assert_eq!(answers(&after), ["green"]);
}

#[test]
fn a_start_in_the_middle_of_a_switch_uses_what_the_cache_knows() {
    let double = Double::start();
    let cluster = double.cluster();
    let (blue, green) = (pods("blue", 1), pods("green", 11));
    show(&cluster, &blue);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cluster.json");
    let launch = || cluster.launch(BY_SERVICE, "").arg("--snapshot-cache").arg(cache.to_str().unwrap());
    let mut first = launch().start();
    eventually(PATIENCE, || cache.exists());
    first.terminate();
    first.wait(PATIENCE);

    show(&cluster, &unready(&green));
    let perch = launch().start();
    eventually(PATIENCE, || holds(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "10.1.0.2:80"]);
    show(&cluster, &green);

    wait_for(&perch, "stable", &["10.1.0.11:80", "10.1.0.12:80"]);
}
