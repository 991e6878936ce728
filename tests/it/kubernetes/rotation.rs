//! What changes under perch's feet while it follows a cluster: tokens, the CA, and connections that die without a word.

use std::time::Duration;

use super::cluster::{Cluster, Endpoint, Slice, endpoints, is_ready, wait_for};
use super::double::{Double, Fault};
use super::relay::Relay;
use crate::support::{Certificate, PATIENCE, TestPerch, eventually, replace_file};

const BY_SERVICE: &str = "{name: stable, kubernetes: {service: hello, port: http}}";

fn hello(cluster: &Cluster, host: u8) {
    let endpoint = Endpoint::ready(&format!("10.1.0.{host}"), &format!("p{host}"));
    cluster.slice(&Slice::of("hello", "hello-1", 80, &[endpoint]));
}

fn errors(perch: &TestPerch, reason: &str) -> f64 {
    perch.metric(&format!("perch_kubernetes_sync_errors_total{{reason=\"{reason}\"}}")).unwrap()
}

#[track_caller]
fn follows(cluster: &Cluster, perch: &TestPerch, host: u8) {
    hello(cluster, host);
    wait_for(perch, "stable", &[&format!("10.1.0.{host}:80")]);
}

fn only(double: &Double, token: &'static str) {
    let token = format!("Bearer {token}");
    double.script(move |asked| {
        let is_perch = asked.method == "GET" && asked.name.is_empty();
        (is_perch && asked.token != token).then_some(Fault::Refuse(401, None))
    });
    double.cut();
}

#[test]
fn a_token_in_a_file_is_read_again_when_it_is_refused() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    // As the kubelet mounts it: the kubeconfig stays, the file with the token changes.
    let launch = cluster.launch(BY_SERVICE, "");
    let (kubeconfig, token) = (launch.dir().join("kubeconfig"), launch.dir().join("token"));
    replace_file(&token, "first");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    replace_file(&kubeconfig, &text.replace("token: secret", &format!("tokenFile: '{}'", token.display())));
    only(&double, "first");
    let perch = launch.start();
    eventually(PATIENCE, || is_ready(&perch));

    only(&double, "second");
    eventually(PATIENCE, || errors(&perch, "unauthorized") >= 1.0);
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    replace_file(&token, "second");

    follows(&cluster, &perch, 2);
}

#[test]
fn another_ca_is_picked_up() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let relay = Relay::start(cluster.address);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let trust =
        |certificate: &Certificate| replace_file(&ca, &std::fs::read_to_string(&certificate.cert_file).unwrap());
    trust(&relay.renew(folder.path(), "first"));
    let through = Cluster {
        address: relay.address,
        ca: Some(format!("certificate-authority: '{}'", ca.display())),
        ..cluster.clone()
    };
    let perch = through.perch(BY_SERVICE, "");

    // The server has a certificate of another CA before perch is told of that.
    let second = relay.renew(folder.path(), "second");
    relay.close();
    eventually(PATIENCE, || errors(&perch, "connect") >= 1.0);
    assert!(is_ready(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    trust(&second);

    follows(&cluster, &perch, 2);
}

#[test]
fn a_connection_that_died_without_a_word_is_left() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let relay = Relay::start(cluster.address);
    let perch = Cluster { address: relay.address, ..cluster.clone() }.perch(BY_SERVICE, "");
    follows(&cluster, &perch, 2);

    relay.kill_silently();
    hello(&cluster, 3);

    wait_for(&perch, "stable", &["10.1.0.3:80"]);
    assert!(errors(&perch, "stalled") >= 1.0);
    // The age told of it: nothing was heard.
    follows(&cluster, &perch, 4);
}

#[test]
fn what_changed_in_a_long_outage_is_taken_over_in_one_step() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let own = Cluster { perch_token: "perch".into(), ..cluster.clone() };
    let perch = own.perch(BY_SERVICE, "");
    let generation = || perch.metric("perch_config_generation").unwrap();
    let before = generation();

    // Away for perch only, through many attempts; meanwhile everything is replaced, more than once.
    double.script(|asked| (asked.token == "Bearer perch").then_some(Fault::Refuse(503, None)));
    double.cut();
    for round in 0..20 {
        for slice in 0..3 {
            let endpoint = Endpoint::ready(&format!("10.{}.0.{round}", slice + 2), &format!("p{round}-{slice}"));
            cluster.slice(&Slice::of("hello", &format!("hello-{slice}"), 80, &[endpoint]));
        }
    }
    double.compact();
    eventually(PATIENCE, || errors(&perch, "server-error") >= 5.0);
    assert!(is_ready(&perch));
    assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
    double.script(|_| None);

    wait_for(&perch, "stable", &["10.2.0.19:80", "10.3.0.19:80", "10.4.0.19:80"]);
    assert!((generation() - before - 1.0).abs() < 0.5, "one snapshot");
}

#[test]
fn a_list_that_never_ends_or_makes_no_sense_empties_nothing() {
    for (fault, reason) in
        [(Fault::Garbage, "garbage"), (Fault::Cut, "cut"), (Fault::Refuse(429, Some(1)), "throttled")]
    {
        let double = Double::start();
        let cluster = double.cluster();
        hello(&cluster, 1);
        let perch = cluster.perch(BY_SERVICE, "");

        // Every list fails, and each watch is told that it must list.
        double.script(
            move |asked| {
                if asked.is_watch() { Some(Fault::GoneEvent) } else { asked.is_list().then_some(fault.clone()) }
            },
        );
        double.cut();
        eventually(PATIENCE, || errors(&perch, reason) >= 2.0);
        assert_eq!(endpoints(&perch, "stable"), ["10.1.0.1:80"]);
        double.script(|_| None);

        follows(&cluster, &perch, 2);
    }
}

/// Longer than any watch lasts here.
#[test]
fn a_quiet_cluster_is_not_taken_for_a_dead_one() {
    let double = Double::start();
    let cluster = double.cluster();
    hello(&cluster, 1);
    let perch = cluster.perch(BY_SERVICE, "");
    let watches = || double.asked().iter().filter(|a| a.is_watch()).count();

    eventually(PATIENCE.max(Duration::from_secs(20)), || watches() >= 4);

    let failed: f64 =
        ["connect", "cut", "stalled", "garbage", "gone", "server-error"].map(|r| errors(&perch, r)).iter().sum();
    assert!(failed < 0.5, "{failed}");
    assert_eq!(double.asked().iter().filter(|a| a.is_list()).count(), 1, "listed once");
}
