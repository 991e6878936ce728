//! An API server that is away, slow, silent, wrong or not willing: perch is never worse than its last good state.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Endpoint, Slice, endpoints, is_ready, wait_for};
use super::double::{Double, Fault};
use crate::support::{PATIENCE, TestPerch, eventually};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";
const ONE_OF_EACH: &str = "{name: stable, weight: 90, kubernetes: {service: hello, port: http}}, \
     {name: canary, weight: 10, kubernetes: {service: hello, port: http, podLabels: {track: canary}}}";

fn hello(cluster: &Cluster, host: u8) {
    cluster.slice(&Slice::of(
        "hello",
        "hello-1",
        80,
        &[Endpoint::ready(&format!("10.1.0.{host}"), &format!("p{host}"))],
    ));
}

fn started() -> (Double, Cluster, TestPerch) {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let perch = cluster.perch(BY_SERVICE, "");
    wait_for(&perch, "stable", &["10.1.0.1:80"]);
    (double, cluster, perch)
}

fn errors(perch: &TestPerch, reason: &str) -> f64 {
    perch.metric(&format!("perch_kubernetes_sync_errors_total{{reason=\"{reason}\"}}")).unwrap()
}

/// Perch sees a change that is made now.
#[track_caller]
fn follows(cluster: &Cluster, perch: &TestPerch, host: u8) {
    hello(cluster, host);
    wait_for(perch, "stable", &[&format!("10.1.0.{host}:80")]);
}

#[test]
fn an_outage_changes_nothing_and_ends_by_itself() {
    let (double, cluster, perch) = started();

    double.go_away();
    eventually(PATIENCE, || errors(&perch, "connect") >= 2.0);

    assert!(is_ready(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    eventually(PATIENCE, || {
        perch.metric("perch_kubernetes_last_event_age_seconds{resource=\"endpointslices\"}").unwrap() > 1.0
    });
    double.come_back();
    follows(&cluster, &perch, 2);
    eventually(PATIENCE, || perch.stderr().contains("Following the cluster again."));
}

#[test]
fn without_the_api_server_a_start_is_not_ready_until_it_is_there() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    double.go_away();

    let perch = cluster.launch(BY_SERVICE, "").start();
    eventually(PATIENCE, || perch.stderr().contains("Cannot follow the cluster"));
    let ready = perch.admin_get("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("kubernetes"), "{ready:?}");
    double.come_back();

    eventually(PATIENCE, || is_ready(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
}

#[test]
fn the_snapshot_cache_serves_while_the_api_server_is_away() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cluster.json");
    let launch = || cluster.launch(BY_SERVICE, "").arg("--snapshot-cache").arg(cache.to_str().unwrap());
    let mut first = launch().start();
    eventually(PATIENCE, || cache.exists());
    first.terminate();
    first.wait(PATIENCE);
    double.go_away();

    let perch = launch().start();
    assert!(is_ready(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    double.come_back();

    follows(&cluster, &perch, 2);
}

#[test]
fn a_forgotten_version_is_listed_anew_without_a_gap() {
    for as_event in [false, true] {
        let (double, cluster, perch) = started();
        let lists = |double: &Double| double.asked().iter().filter(|a| a.is_list()).count();
        let before = lists(&double);

        if as_event {
            double.script(|asked| asked.is_watch().then_some(Fault::GoneEvent));
        } else {
            double.compact();
        }
        double.cut();
        eventually(PATIENCE, || {
            assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"], "never emptied");
            errors(&perch, "gone") >= 1.0 && lists(&double) > before
        });
        double.script(|_| None);

        follows(&cluster, &perch, 2);
    }
}

#[test]
fn a_watch_that_falls_silent_is_left() {
    let (double, cluster, perch) = started();
    double.script(|asked| asked.is_watch().then_some(Fault::Silent));
    double.cut();

    eventually(PATIENCE, || errors(&perch, "stalled") >= 1.0);
    double.script(|_| None);

    follows(&cluster, &perch, 2);
}

#[test]
fn what_breaks_off_or_makes_no_sense_is_tried_again() {
    for (fault, reason) in [
        (Fault::Cut, "cut"),
        (Fault::Garbage, "garbage"),
        (Fault::Refuse(500, None), "server-error"),
        (Fault::Refuse(404, None), "refused"),
    ] {
        let (double, cluster, perch) = started();

        double.script(move |asked| asked.is_watch().then_some(fault.clone()));
        double.cut();
        eventually(PATIENCE, || errors(&perch, reason) >= 1.0);
        assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
        double.script(|_| None);

        follows(&cluster, &perch, 2);
    }
}

#[test]
fn an_object_that_cannot_be_read_hides_no_other() {
    let (_double, cluster, perch) = started();
    let mut bad = Slice::of("hello", "bad", 80, &[]).json();
    bad["endpoints"] = "none of your business".into();

    cluster.put("endpointslices", &bad);
    follows(&cluster, &perch, 2);

    assert!(errors(&perch, "garbage") >= 1.0);
    // In a list, too.
    let other = cluster.perch(BY_SERVICE, "");
    assert_eq!(endpoints(&other, "stable"), ["10.1.0.2:80"]);
}

#[test]
fn a_list_that_comes_slowly_and_in_pages_is_one_list() {
    let double = Double::start();
    let cluster = double.cluster();
    for n in 0..7 {
        let endpoint = Endpoint::ready(&format!("10.1.0.{n}"), &format!("p{n}"));
        cluster.slice(&Slice::of("hello", &format!("hello-{n}"), 80, &[endpoint]));
    }
    double.script(|asked| asked.is_list().then_some(Fault::Slow(Duration::from_millis(30))));

    let perch = cluster.perch(BY_SERVICE, "");

    assert_eq!(endpoints(&perch, "stable").len(), 7);
    assert_eq!(double.asked().iter().filter(|a| a.is_list()).count(), 4);
}

#[test]
fn what_is_forbidden_stops_nothing_else_and_is_said_clearly() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    double.script(|asked| {
        (asked.kind == "pods" && asked.method == "GET" && asked.name.is_empty()).then_some(Fault::Refuse(403, None))
    });

    let perch = cluster.launch(ONE_OF_EACH, "").start();
    follows(&cluster, &perch, 2);
    follows(&cluster, &perch, 3);

    assert!(!is_ready(&perch), "the first picture is not complete");
    assert!(errors(&perch, "forbidden") >= 1.0);
    let log = perch.stderr();
    assert!(log.contains("resource=\"pods\"") && log.contains("Role with list and watch"), "{log}");
    double.script(|_| None);
    let uid = cluster.pod("p9", &[("track", "canary")]);
    cluster.slice(&Slice::of("hello", "hello-2", 80, &[Endpoint::ready("10.1.0.9", "p9").uid(&uid)]));
    // The pause of what is refused is long.
    eventually(PATIENCE * 2, || is_ready(&perch));
    wait_for(&perch, "canary", &["10.1.0.9:80"]);
}

#[test]
fn a_server_that_says_when_to_come_back_is_obeyed() {
    let (double, cluster, perch) = started();
    let refused = |asked: &super::query::Asked| asked.is_watch().then_some(Fault::Refuse(429, Some(2)));
    double.script(refused);
    let before = double.asked().len();
    double.cut();

    eventually(PATIENCE, || double.asked()[before..].iter().filter(|a| a.is_watch()).count() >= 2);

    let watches: Vec<Instant> = double.asked()[before..].iter().filter(|a| a.is_watch()).map(|a| a.at).collect();
    assert!(watches[1] - watches[0] >= Duration::from_secs(2), "{:?}", watches[1] - watches[0]);
    assert!(errors(&perch, "throttled") >= 1.0);
    double.script(|_| None);
    follows(&cluster, &perch, 2);
}

#[test]
fn another_token_is_picked_up() {
    let (double, cluster, perch) = started();
    double.script(|asked| {
        (asked.method == "GET" && asked.name.is_empty() && asked.token != "Bearer new")
            .then_some(Fault::Refuse(401, None))
    });
    double.cut();
    eventually(PATIENCE, || errors(&perch, "unauthorized") >= 1.0);

    let renewed = Cluster { perch_token: "new".into(), ..cluster };
    renewed.write_kubeconfig(&perch.dir().join("kubeconfig"));

    follows(&renewed, &perch, 2);
}
