//! What holds against any API server, told by perch's own view of its endpoints. Each case has a namespace of its own.
use serde_json::json;

use super::cluster::{Cluster, Endpoint, Slice, endpoints, wait_for};
use super::double::Double;
use super::{handover, replicas};
use crate::support::{PATIENCE, TestPerch, eventually};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";
const BY_LABELS: &str = "{name: stable, weight: 90, kubernetes: {service: hello, port: http, podLabels: {track: stable}}}, \
     {name: canary, weight: 10, kubernetes: {service: hello, port: http, podLabels: {track: canary}}}";

/// A case: its name and what it does.
pub(super) type Case = (&'static str, fn(&Cluster));

/// All of them.
pub(super) const ALL: &[Case] = &[
    ("several slices are one set", several_slices_are_one_set),
    ("one service and pod labels make two versions", one_service_and_pod_labels_make_two_versions),
    ("affinity follows the service", affinity_follows_the_service),
    ("a switch of the selector is one snapshot", a_switch_of_the_selector_is_one_snapshot),
    ("a switch before the new ones are ready waits for them", handover::a_switch_before_they_are_ready),
    ("so does one by pod labels", handover::a_switch_before_they_are_ready_by_labels),
    ("what is not ready or deleted leaves at once", handover::what_is_not_ready_or_deleted_leaves_at_once),
    ("a reload to a service that is not ready yet", handover::a_reload_to_a_service_that_is_not_ready_yet),
    ("what is not ready is counted and never used", what_is_not_ready_is_counted_and_never_used),
    ("terminating endpoints drain", terminating_endpoints_drain),
    ("both address families are read", both_address_families_are_read),
    ("a service that comes later is found", a_service_that_comes_later_is_found),
    ("replicas agree", replicas::replicas_agree),
    ("a leader that dies is replaced", replicas::a_leader_that_dies_is_replaced),
];

#[test]
fn every_case_holds_against_the_double() {
    for (name, case) in ALL {
        println!("case: {name}");
        case(&Double::start().cluster());
    }
}

fn several_slices_are_one_set(cluster: &Cluster) {
    let [a, b, c] = [("10.1.0.1", "a"), ("10.1.0.2", "b"), ("10.1.0.3", "c")].map(|(ip, pod)| Endpoint::ready(ip, pod));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a.clone(), b.clone()]));
    cluster.slice(&Slice::of("hello", "hello-2", 80, &[b.clone(), c.clone()]));
    cluster.slice(&Slice::of("hello", "hello-3", 80, &[]));
    cluster.slice(&Slice::of("other", "other-1", 80, &[Endpoint::ready("10.1.0.9", "z")]));
    let perch = cluster.perch(BY_SERVICE, "");
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"]);

    cluster.delete("endpointslices", "hello-2");
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a.clone(), b.clone().unready()]));
    wait_for(&perch, "stable", &["10.1.0.1:80"]);
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a, b]));
    wait_for(&perch, "stable", &["10.1.0.1:80", "10.1.0.2:80"]);
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[]));
    wait_for(&perch, "stable", &[]);
}

fn one_service_and_pod_labels_make_two_versions(cluster: &Cluster) {
    let pods = [("s1", "stable"), ("s2", "stable"), ("c1", "canary")];
    let mut all = Vec::new();
    for (number, (name, track)) in pods.iter().enumerate() {
        let uid = cluster.pod(name, &[("app", "hello"), ("track", track)]);
        all.push(Endpoint::ready(&format!("10.1.0.{}", number + 1), name).uid(&uid));
    }
    cluster.slice(&Slice::of("hello", "hello-1", 8080, &all));
    let perch = cluster.perch(BY_LABELS, "");
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(endpoints(&perch, "canary"), ["10.1.0.3:8080"]);

    cluster.pod("s2", &[("app", "hello"), ("track", "canary")]);
    wait_for(&perch, "canary", &["10.1.0.2:8080", "10.1.0.3:8080"]);
    wait_for(&perch, "stable", &["10.1.0.1:8080"]);
    cluster.pod("c1", &[("app", "hello")]);
    wait_for(&perch, "canary", &["10.1.0.2:8080"]);
    cluster.delete("pods", "s1");
    wait_for(&perch, "stable", &[]);
}

fn affinity_follows_the_service(cluster: &Cluster) {
    let client_ip = |seconds: u64| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    cluster.service("hello", &client_ip(600));
    cluster.service("other", &json!({"sessionAffinity": "None"}));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "a")]));
    let perch = cluster.perch(BY_SERVICE, "    affinity: {from: service}\n");
    let affinity = |perch: &TestPerch| perch.admin_json("/api/v1/services")["services"][0]["affinity"].clone();
    assert_eq!(affinity(&perch), json!({"type": "ClientIP", "timeoutSeconds": 600}));

    cluster.service("hello", &json!({"sessionAffinity": "None"}));
    eventually(PATIENCE, || affinity(&perch) == json!({"type": "None"}));
    cluster.service("hello", &client_ip(60));
    eventually(PATIENCE, || affinity(&perch) == json!({"type": "ClientIP", "timeoutSeconds": 60}));
}

fn a_switch_of_the_selector_is_one_snapshot(cluster: &Cluster) {
    let pods = |name: &str, first: u8| {
        (0..3).map(|n| Endpoint::ready(&format!("10.1.0.{}", first + n), &format!("{name}{n}"))).collect::<Vec<_>>()
    };
    cluster.slice(&Slice::of("hello", "hello-1", 80, &pods("blue", 1)));
    let perch = cluster.perch(BY_SERVICE, "");
    let before = generation(&perch);

    // What the endpoint slice controller does when green is up: one slice with the others.
    cluster.slice(&Slice::of("hello", "hello-1", 80, &pods("green", 11)));

    wait_for(&perch, "stable", &["10.1.0.11:80", "10.1.0.12:80", "10.1.0.13:80"]);
    assert!((generation(&perch) - before - 1.0).abs() < 0.5, "one snapshot");
}

fn terminating_endpoints_drain(cluster: &Cluster) {
    let [a, b] = [("10.1.0.1", "a"), ("10.1.0.2", "b")].map(|(ip, pod)| Endpoint::ready(ip, pod));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a.clone(), b.clone()]));
    let perch = cluster.perch(BY_SERVICE, "");

    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a.clone().terminating(), b.clone()]));
    wait_for(&perch, "stable", &["10.1.0.1:80 draining", "10.1.0.2:80"]);
    // Nothing else is left.
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[a.terminating(), b.clone().unready()]));
    wait_for(&perch, "stable", &["10.1.0.1:80"]);
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[b]));
    wait_for(&perch, "stable", &["10.1.0.2:80"]);
}

fn what_is_not_ready_is_counted_and_never_used(cluster: &Cluster) {
    let all: Vec<_> = (1..=4).map(|n| Endpoint::ready(&format!("10.1.0.{n}"), &format!("p{n}"))).collect();
    cluster.slice(&Slice::of("hello", "hello-1", 80, &all[..3]));
    let perch = cluster.perch(BY_SERVICE, "");
    let version = || perch.admin_json("/api/v1/services")["services"][0]["versions"][0].clone();
    let counts = || (version()["endpointsReady"].as_u64().unwrap(), version()["endpointsTotal"].as_u64().unwrap());
    let metric =
        |state| perch.metric(&format!("perch_endpoints{{service=\"hello\",version=\"stable\",state=\"{state}\"}}"));
    assert_eq!(counts(), (3, 3));

    // A Deployment of three that surges by one; the new pod is in two slices, as while the cluster moves it.
    let new = all[3].clone().unready();
    cluster.slice(&Slice::of("hello", "hello-2", 80, std::slice::from_ref(&new)));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[&all[..3], &[new]].concat()));

    eventually(PATIENCE, || counts() == (3, 4));
    let shown = |e: &serde_json::Value| format!("{} {}", e["address"].as_str().unwrap(), e["state"].as_str().unwrap());
    assert_eq!(shown(&version()["endpoints"][3]), "10.1.0.4:80 not-ready");
    assert_eq!((metric("ready"), metric("not-ready")), (Some(3.0), Some(1.0)));
    let explained = perch.admin_json("/api/v1/explain?service=hello&ip=192.0.2.1");
    assert!(!explained.to_string().contains("10.1.0.4"), "{explained}");
    assert!(explained.to_string().contains("\"usableEndpoints\":3"), "{explained}");
    cluster.slice(&Slice::of("hello", "hello-1", 80, &all));
    cluster.delete("endpointslices", "hello-2");
    eventually(PATIENCE, || counts() == (4, 4));
    assert_eq!(metric("not-ready"), Some(0.0));
}

fn both_address_families_are_read(cluster: &Cluster) {
    cluster.slice(&Slice::of("hello", "hello-4", 80, &[Endpoint::ready("10.1.0.1", "a")]));
    cluster.slice(&Slice::of(
        "hello",
        "hello-6",
        80,
        &[Endpoint::ready("2001:db8::1", "a"), Endpoint::ready("2001:db8::2", "b")],
    ));

    let perch = cluster.perch(BY_SERVICE, "");

    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80", "[2001:db8::2]:80"]);
}

fn a_service_that_comes_later_is_found(cluster: &Cluster) {
    let perch = cluster.perch(BY_SERVICE, "");
    assert!(endpoints(&perch, "stable").is_empty());

    cluster.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "a")]));

    wait_for(&perch, "stable", &["10.1.0.1:80"]);
}

pub(super) fn generation(perch: &TestPerch) -> f64 {
    perch.metric("perch_config_generation").unwrap()
}

#[test]
fn replicas_agree_whatever_they_saw() {
    let double = Double::start();
    let cluster = double.cluster();
    let change = |round: u8| {
        for slice in 0..3u8 {
            let all: Vec<_> = (0..(round + slice) % 5)
                .map(|n| {
                    let pod = format!("p{round}-{slice}-{n}");
                    let uid = cluster.pod(&pod, &[("track", if n % 2 == 0 { "stable" } else { "canary" })]);
                    Endpoint::ready(&format!("10.1.{slice}.{n}"), &pod).uid(&uid)
                })
                .collect();
            cluster.slice(&Slice::of("hello", &format!("hello-{slice}"), 80, &all));
        }
    };
    let mut perches = vec![cluster.perch(BY_LABELS, "")];

    for round in 0..8 {
        change(round);
        match round {
            2 => perches.push(cluster.perch(BY_LABELS, "")),
            3 => double.cut(),
            5 => {
                double.compact();
                double.cut();
                perches.push(cluster.perch(BY_LABELS, ""));
            }
            _ => {}
        }
    }

    let newcomer = cluster.perch(BY_LABELS, "");
    for version in ["stable", "canary"] {
        let expected = endpoints(&newcomer, version);
        assert!(!expected.is_empty());
        for perch in &perches {
            wait_for(perch, version, &expected.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

#[test]
fn only_what_is_needed_is_asked_for() {
    let double = Double::start();
    let cluster = double.cluster();
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "a")]));
    let written = double.asked().len();

    let by_service = cluster.perch(BY_SERVICE, "");
    eventually(PATIENCE, || double.asked().iter().any(|a| a.is_watch()));
    drop(by_service);
    let by_service = double.asked().split_off(written);
    let before = double.asked().len();
    let by_labels = cluster.perch(BY_LABELS, "");
    eventually(PATIENCE, || double.asked()[before..].iter().filter(|a| a.is_watch()).count() >= 2);
    drop(by_labels);
    let by_labels = double.asked().split_off(before);

    assert!(by_service.iter().all(|a| a.kind == "endpointslices" && (a.is_list() || a.is_watch())), "{by_service:?}");
    assert!(by_service.iter().all(|a| a.query["labelSelector"] == "kubernetes.io/service-name in (hello)"));
    let pods: Vec<_> = by_labels.iter().filter(|a| a.kind == "pods").collect();
    assert!(!pods.is_empty() && pods.iter().all(|a| a.accept.contains("PartialObjectMetadata")), "{pods:?}");
    assert!(pods.iter().all(|a| a.query["labelSelector"] == "track in (canary,stable)"));
    assert!(by_labels.iter().all(|a| a.kind != "services" && a.method == "GET"));
}

#[test]
fn a_reload_to_another_service_keeps_the_endpoints_until_it_is_read() {
    let double = Double::start();
    let cluster = double.cluster();
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[Endpoint::ready("10.1.0.1", "a")]));
    cluster.slice(&Slice::of("two", "two-1", 80, &[Endpoint::ready("10.1.0.2", "b")]));
    let perch = cluster.perch(BY_SERVICE, "");
    double.script(|asked| {
        (asked.query.get("labelSelector").is_some_and(|l| l.contains("two")))
            .then_some(super::double::Fault::Refuse(500, None))
    });

    perch.rewrite_config(&super::cluster::config(&BY_SERVICE.replace("hello", "two"), ""));
    eventually(PATIENCE, || perch.stderr().contains("Reloaded the configuration"));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    double.script(|_| None);

    wait_for(&perch, "stable", &["10.1.0.2:80"]);
}
