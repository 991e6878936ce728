//! Several replicas that share one ConfigMap and one Lease: what is done to one is in force in all, one of them leads,
//! and what becomes of it when the leader, the API server or the ConfigMap is gone.

use std::time::Instant;

use serde_json::{Value, json};

use super::cluster::{Cluster, config, is_ready};
use super::double::{Double, Fault};
use super::traffic::Users;
use crate::front::A_WHILE;
use crate::support::{Launch, PATIENCE, TestBackend, TestPerch, eventually, get};

const MORE: &str = "kubernetes: {state: {configMap: perch-state, lease: perch, leaseDuration: 2s}}\n";
const VERSIONS: &str =
    "{name: stable, weight: 90, endpoints: ['127.0.0.1:1']}, {name: canary, weight: 10, endpoints: ['127.0.0.1:2']}";

fn launch(cluster: &Cluster, name: &str, versions: &str) -> Launch {
    cluster.launch(versions, MORE).env("POD_NAME", name)
}

#[track_caller]
fn replica(cluster: &Cluster, name: &str) -> TestPerch {
    let perch = launch(cluster, name, VERSIONS).start();
    eventually(PATIENCE, || is_ready(&perch));
    perch
}

fn weight(perch: &TestPerch, version: &str) -> f64 {
    let service = perch.admin_json("/api/v1/services/hello");
    let versions = service["versions"].as_array().unwrap();
    versions.iter().find(|v| v["name"] == version).unwrap()["weight"].as_f64().unwrap()
}

fn has_weight(perch: &TestPerch, canary: f64) -> bool {
    (weight(perch, "canary") - canary).abs() < 0.001
}

fn sequence(perch: &TestPerch) -> u64 {
    perch.admin_json("/api/v1/services/hello")["rollout"]["sequence"].as_u64().unwrap()
}

fn set(perch: &TestPerch, canary: u32) -> u16 {
    let body = json!({"weights": {"stable": 100 - canary, "canary": canary}, "reason": "test"});
    perch.admin_post("/api/v1/services/hello/weights", &body).status
}

fn replicas(perch: &TestPerch) -> Vec<Value> {
    perch.admin_json("/api/v1/services")["replicas"].as_array().unwrap().clone()
}

fn leads(perch: &TestPerch) -> bool {
    perch.metric("perch_kubernetes_leader").is_some_and(|n| n > 0.5)
}

pub(super) fn replicas_agree(cluster: &Cluster) {
    let (a, b) = (replica(cluster, "perch-a"), replica(cluster, "perch-b"));

    let began = Instant::now();
    assert_eq!(set(&a, 20), 200);
    eventually(PATIENCE, || has_weight(&b, 20.0));
    println!("the other replica had it after {:?}", began.elapsed());
    assert_eq!(set(&b, 30), 200);
    eventually(PATIENCE, || has_weight(&a, 30.0));

    assert_eq!(sequence(&a), sequence(&b));
    let history = a.admin_json("/api/v1/services/hello/history").to_string();
    assert_eq!(history, b.admin_json("/api/v1/services/hello/history").to_string());
    // Both at once: each is worked out on the other's result, or told of the conflict.
    let (one, other) = std::thread::scope(|s| {
        let one = s.spawn(|| set(&a, 40));
        let other = set(&b, 50);
        (one.join().unwrap(), other)
    });
    assert_eq!((one, other), (200, 200));
    eventually(PATIENCE, || {
        sequence(&a) == sequence(&b) && (weight(&a, "canary") - weight(&b, "canary")).abs() < 0.001
    });
    // Each says of itself where it is.
    eventually(PATIENCE, || {
        let all = replicas(&a);
        let same = all.iter().all(|r| r["sequence"] == sequence(&a));
        all.len() == 2 && all[0]["name"] == "perch-a" && all[1]["name"] == "perch-b" && same
    });
    // One that comes later has it from its first moment.
    let c = replica(cluster, "perch-c");
    assert_eq!(sequence(&c), sequence(&a));
    assert!((weight(&c, "canary") - weight(&a, "canary")).abs() < 0.001);
}

pub(super) fn a_leader_that_dies_is_replaced(cluster: &Cluster) {
    let mut all = vec![replica(cluster, "perch-a"), replica(cluster, "perch-b")];
    eventually(PATIENCE, || all.iter().filter(|p| leads(p)).count() == 1);
    let leader = all.iter().position(leads).unwrap();

    all.remove(leader).signal("KILL");
    let left = all.remove(0);
    assert!(!leads(&left));
    eventually(PATIENCE, || leads(&left));
    eventually(PATIENCE, || replicas(&left).iter().any(|r| r["name"] == left_name(leader) && r["isLeader"] == true));

    // One that ends in good order gives the Lease back: the next need not wait for its end.
    let mut left = left;
    let next = replica(cluster, "perch-c");
    left.terminate();
    left.wait(PATIENCE);
    eventually(PATIENCE, || leads(&next));
}

fn left_name(dead: usize) -> &'static str {
    if dead == 0 { "perch-b" } else { "perch-a" }
}

/// Versions of some clients, as `explain` tells them.
fn explained(perch: &TestPerch) -> Vec<(Value, Value)> {
    let explain = |n| perch.admin_json(&format!("/api/v1/explain?service=hello&ip=192.0.2.{n}"));
    (0..40).map(explain).map(|told| (told["version"].clone(), told["why"].clone())).collect()
}

#[test]
fn a_replica_that_starts_during_a_drain_holds_whom_the_split_before_did() {
    let double = Double::start();
    let cluster = double.cluster();
    let a = replica(&cluster, "perch-a");
    assert_eq!(set(&a, 50), 200);
    let before = explained(&a);
    assert_eq!(
        a.admin_post("/api/v1/services/hello/drain", &json!({"version": "canary", "deadline": "1h"})).status,
        200
    );

    let b = replica(&cluster, "perch-b");

    let held = |(version, _): (Value, Value)| {
        let why = if version == "canary" { "drain-pin" } else { "cohort" };
        (version, why.into())
    };
    assert_eq!(explained(&b), before.into_iter().map(held).collect::<Vec<_>>());
    // Who was there when it began takes clients that it never saw for new.
    assert!(explained(&a).iter().all(|(version, _)| version == "stable"));
}

/// Two versions on one backend.
fn all_on_stable(backend: &TestBackend) -> String {
    format!(
        "{{name: stable, weight: 1, endpoints: ['{0}']}}, {{name: canary, weight: 0, endpoints: ['{0}']}}",
        backend.address()
    )
}

#[test]
fn a_ramp_goes_on_where_a_dead_leader_left_it() {
    let double = Double::start();
    let cluster = double.cluster();
    let backend = TestBackend::named("hello");
    let versions = all_on_stable(&backend);
    let more = format!(
        "    affinity: None\n    rollout: {{settle: 0s, steps: [{{weight: 40%, hold: 1s}}, {{weight: 60%, hold: 1s}}, {{weight: 100%}}], guard: {{minRequests: 50, latencyTolerance: 1000%}}}}\n{MORE}"
    );
    let start = |name: &str| {
        let perch = cluster.launch(&versions, &more).env("POD_NAME", name).start();
        eventually(PATIENCE, || is_ready(&perch));
        perch
    };
    let share = |perch: &TestPerch| {
        let service = perch.admin_json("/api/v1/services/hello");
        service["versions"].as_array().unwrap().iter().find(|v| v["name"] == "canary").unwrap()["share"]
            .as_f64()
            .unwrap()
    };
    let mut all = vec![start("perch-a"), start("perch-b")];
    eventually(PATIENCE, || all.iter().filter(|p| leads(p)).count() == 1);
    let leader = all.remove(all.iter().position(leads).unwrap());
    let left = all.remove(0);

    // Asked of the one that does not lead; the leader begins, and waits, as it sees no requests.
    let begun = left.admin_post("/api/v1/services/hello/promote", &json!({"guarded": true}));
    assert_eq!(begun.status, 200, "{begun:?}");
    eventually(PATIENCE, || [&leader, &left].iter().all(|p| (share(p) - 0.4).abs() < 0.001));
    let users = Users::start(&left);
    leader.signal("KILL");
    eventually(PATIENCE, || leads(&left));

    // From the first step on, not from the start: each step's weights came once.
    eventually(PATIENCE * 3, || (share(&left) - 1.0).abs() < 0.001);
    let history = left.admin_json("/api/v1/services/hello/history");
    let shares: Vec<f64> = history["revisions"]
        .as_array()
        .or(history.as_array())
        .unwrap()
        .iter()
        .filter(|r| r["verb"] != "file")
        .map(|r| {
            r["weights"]["canary"].as_f64().unwrap()
                / (r["weights"]["canary"].as_f64().unwrap() + r["weights"]["stable"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(shares.iter().filter(|s| (*s - 0.4).abs() < 0.001).count(), 1, "{history}");
    assert!(users.finish().len() > 100);
}

#[test]
fn without_the_api_server_verbs_are_refused_and_traffic_goes_on() {
    let double = Double::start();
    let cluster = double.cluster();
    let backend = TestBackend::named("hello");
    let versions = all_on_stable(&backend);
    let perch = launch(&cluster, "perch-a", &versions).start();
    eventually(PATIENCE, || is_ready(&perch) && leads(&perch));
    assert_eq!(set(&perch, 20), 200);

    double.go_away();
    let refused = perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"canary": 50}}));
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("ConfigMap perch-state"), "{refused:?}");
    assert!(has_weight(&perch, 20.0) && is_ready(&perch));
    assert_eq!(get(perch.address("http"), "/").text(), "hello");
    // Who can't renew does not lead.
    eventually(PATIENCE, || !leads(&perch));
    double.come_back();

    eventually(PATIENCE, || set(&perch, 30) == 200);
    eventually(PATIENCE, || leads(&perch));
}

#[test]
fn what_was_set_is_kept_over_a_restart_also_without_the_api_server() {
    let double = Double::start();
    let cluster = double.cluster();
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cluster.json");
    let cached = || launch(&cluster, "perch-a", VERSIONS).arg("--snapshot-cache").arg(cache.to_str().unwrap());
    let first = cached().start();
    eventually(PATIENCE, || is_ready(&first));
    assert_eq!(set(&first, 25), 200);
    eventually(PATIENCE, || folder.path().join("cluster.rollouts.json").exists());
    drop(first);

    let second = launch(&cluster, "perch-a", VERSIONS).start();
    assert!(has_weight(&second, 25.0), "from the ConfigMap");
    drop(second);
    double.go_away();
    let third = cached().start();
    assert!(has_weight(&third, 25.0), "from the disk");
    assert!(is_ready(&third));
    let fourth = launch(&cluster, "perch-a", VERSIONS).start();
    assert!(!is_ready(&fourth), "the file's weights may not be what the others have");
    double.come_back();

    eventually(PATIENCE, || is_ready(&fourth) && has_weight(&fourth, 25.0));
    assert_eq!(set(&third, 35), 200);
    eventually(PATIENCE, || has_weight(&fourth, 35.0));
}

#[test]
fn a_deleted_config_map_is_made_again() {
    let double = Double::start();
    let cluster = double.cluster();
    let (a, b) = (replica(&cluster, "perch-a"), replica(&cluster, "perch-b"));
    assert_eq!(set(&a, 20), 200);
    eventually(PATIENCE, || has_weight(&b, 20.0));

    cluster.delete("configmaps", "perch-state");
    let path = "/api/v1/namespaces/lab/configmaps/perch-state";
    eventually(PATIENCE, || cluster.request("GET", path, None).text().contains("\\\"canary\\\":20"));

    assert_eq!(set(&b, 30), 200);
    eventually(PATIENCE, || has_weight(&a, 30.0));
}

#[test]
fn a_document_that_cannot_be_read_is_kept_aside() {
    let double = Double::start();
    let cluster = double.cluster();
    let object = |text: &str| json!({"metadata": {"name": "perch-state"}, "data": {"rollouts.json": text}});
    cluster.put("configmaps", &object("{none of your business"));

    let perch = replica(&cluster, "perch-a");
    assert!(perch.stderr().contains("The rollouts can't be read"));
    assert!(has_weight(&perch, 10.0));
    assert_eq!(set(&perch, 20), 200);
    let stored = cluster.request("GET", "/api/v1/namespaces/lab/configmaps/perch-state", None).json();
    assert_eq!(stored["data"]["rollouts.json.corrupt"], "{none of your business");

    cluster.put("configmaps", &object("{\"version\": 99}"));
    let refused = launch(&cluster, "perch-b", VERSIONS).output();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("written by a newer perch (document version 99"));
}

#[test]
fn without_the_right_to_write_the_log_says_what_is_missing() {
    let double = Double::start();
    let cluster = double.cluster();
    double.script(|asked| (asked.method == "PATCH" || asked.method == "POST").then_some(Fault::Refuse(403, None)));
    let perch = replica(&cluster, "perch-a");

    let refused = perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"canary": 50}}));

    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("give perch's ServiceAccount get and patch"), "{refused:?}");
    eventually(PATIENCE, || perch.stderr().contains("It needs get and patch on leases"));
    assert!(!leads(&perch));
}

#[test]
fn another_file_wins_in_all_replicas() {
    let double = Double::start();
    let cluster = double.cluster();
    let (a, b) = (replica(&cluster, "perch-a"), replica(&cluster, "perch-b"));
    assert_eq!(set(&a, 50), 200);
    eventually(PATIENCE, || has_weight(&b, 50.0));

    // As a changed ConfigMap of the configuration: one replica sees it a while before the other.
    let changed = config(&VERSIONS.replace("weight: 10", "weight: 5"), MORE);
    a.rewrite_config(&changed);
    eventually(PATIENCE, || has_weight(&a, 5.0) && has_weight(&b, 5.0));
    b.rewrite_config(&changed);
    eventually(PATIENCE, || b.stderr().contains("Reloaded the configuration"));
    // In which nobody may write anything more.
    std::thread::sleep(A_WHILE);

    assert!(has_weight(&a, 5.0) && has_weight(&b, 5.0));
    assert_eq!(sequence(&a), sequence(&b));
}
