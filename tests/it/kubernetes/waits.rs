//! Who waits for a change or a ramp, where several replicas share one ConfigMap: the command returns when all have it,
//! whichever replica was asked, and from then on all answer the same users alike.

use std::net::IpAddr;
use std::process::{ExitStatus, Output};
use std::time::Duration;

use super::cluster::{Cluster, config, is_ready};
use super::double::Double;
use crate::ramp::Users;
use crate::support::{Client, PATIENCE, Process, TestBackend, TestPerch, eventually, response, run_perch};

const STATE: &str = "kubernetes: {state: {configMap: perch-state, lease: perch, leaseDuration: 2s}}\n";

/// A ramp has seconds of holds in it, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(60);

/// Two versions, and two replicas of perch in front of them.
struct Two {
    _double: Double,
    canary: TestBackend,
    _stable: TestBackend,
    a: TestPerch,
    b: TestPerch,
}

impl Two {
    fn start(weights: [u32; 2], rollout: &str) -> Self {
        let double = Double::start();
        let cluster = double.cluster();
        let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
        let versions = format!(
            "{{name: stable, weight: {}, endpoints: ['{}']}}, {{name: canary, weight: {}, endpoints: ['{}']}}",
            weights[0],
            stable.address(),
            weights[1],
            canary.address()
        );
        let (a, b) =
            (replica(&cluster, "perch-a", &versions, rollout), replica(&cluster, "perch-b", &versions, rollout));
        eventually(PATIENCE, || [&a, &b].iter().filter(|p| leads(p)).count() == 1);
        Self { _double: double, canary, _stable: stable, a, b }
    }

    /// The one that runs the ramps, and the other.
    fn by_role(&self) -> (&TestPerch, &TestPerch) {
        if leads(&self.a) { (&self.a, &self.b) } else { (&self.b, &self.a) }
    }
}

fn replica(cluster: &Cluster, name: &str, versions: &str, rollout: &str) -> TestPerch {
    let text = config(versions, &format!("{rollout}{STATE}"))
        .replace("name: http,", "name: http, trustedProxies: [127.0.0.0/8],");
    let perch = cluster.launch(versions, "").config(&text).env("POD_NAME", name).start();
    eventually(PATIENCE, || is_ready(&perch));
    perch
}

fn leads(perch: &TestPerch) -> bool {
    perch.metric("perch_kubernetes_leader").is_some_and(|n| n > 0.5)
}

fn share(perch: &TestPerch) -> f64 {
    perch.admin_json("/api/v1/services/hello")["versions"][1]["share"].as_f64().unwrap()
}

fn unexplained(perch: &TestPerch) -> f64 {
    perch.metric("perch_version_flips_total{service=\"hello\",reason=\"unexplained\"}").unwrap()
}

fn asked_of(perch: &TestPerch, arguments: &[&str]) -> Vec<String> {
    let admin = format!("http://{}", perch.admin());
    [arguments, &["--admin", &admin]].concat().into_iter().map(str::to_owned).collect()
}

fn cli(perch: &TestPerch, arguments: &[&str]) -> Output {
    run_perch(asked_of(perch, arguments))
}

/// `promote --guarded --wait`, asked of this replica, until it ends.
fn ramped(perch: &TestPerch) -> (ExitStatus, String) {
    let mut waiting = Process::perch(asked_of(perch, &["promote", "hello", "--guarded", "--wait"]));
    let status = waiting.wait(LONG);
    (status, waiting.stderr())
}

fn ramp_of(first_hold: &str) -> String {
    format!(
        "    rollout: {{settle: 0s, steps: [{{weight: 30%, hold: {first_hold}}}, {{weight: 60%, hold: 1s}}, {{weight: 100%}}], guard: {{minRequests: 50, latencyTolerance: 1000%}}}}\n"
    )
}

#[test]
fn a_verb_that_waits_returns_when_every_replica_answers_alike() {
    let two = Two::start([90, 10], "");

    let done = cli(&two.a, &["set-weight", "hello", "canary=40%", "--wait"]);

    assert!(done.status.success(), "{done:?}");
    assert!((share(&two.b) - 0.4).abs() < 1e-6, "at once, not a moment later: {}", share(&two.b));
    let answers = |perch: &TestPerch| -> Vec<String> {
        let users = (0..60u8).map(|n| IpAddr::from([127, 9, n, 7]));
        users.map(|user| Client::plain_from(user, perch.address("http")).get("a", "/").text()).collect()
    };
    assert_eq!(answers(&two.a), answers(&two.b));
    let status = String::from_utf8(cli(&two.b, &["status", "hello"]).stdout).unwrap();
    let line =
        |name: &str| status.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{status}"));
    assert!(line("REPLICA").contains("GENERATION"), "{status}");
    assert_eq!(["perch-a", "perch-b"].iter().filter(|name| line(name).ends_with("leader")).count(), 1, "{status}");
}

#[test]
fn a_replica_that_does_not_follow_is_named() {
    let two = Two::start([90, 10], "");
    // Until each knows of the other.
    eventually(PATIENCE, || two.a.admin_json("/api/v1/services")["replicas"].as_array().unwrap().len() == 2);

    two.b.signal("STOP");
    let behind = cli(&two.a, &["set-weight", "hello", "canary=40%", "--wait", "--timeout", "2s"]);
    two.b.signal("CONT");

    assert_eq!(behind.status.code(), Some(1), "{behind:?}");
    let told = String::from_utf8(behind.stderr).unwrap();
    assert!(told.contains("not in force everywhere after 2s, behind: perch-b; `perch status hello` shows"), "{told}");
    let done = cli(&two.a, &["set-weight", "hello", "canary=50%", "--wait"]);
    assert!(done.status.success(), "{done:?}");
    assert!((share(&two.b) - 0.5).abs() < 1e-6, "{}", share(&two.b));
}

#[test]
fn a_good_ramp_asked_of_the_other_replica_ends_in_all_of_them() {
    let two = Two::start([1, 0], &ramp_of("1s"));
    let (leader, other) = two.by_role();
    let _users = (Users::of(leader), Users::of(other));

    let (status, told) = ramped(other);

    assert_eq!(status.code(), Some(0), "{told}");
    assert!(told.ends_with("step 3 of 3: done: `canary` has passed every step\n"), "{told}");
    assert_eq!([share(leader), share(other)], [1.0, 1.0]);
    assert_eq!([unexplained(leader), unexplained(other)], [0.0, 0.0]);
}

#[test]
fn a_bad_ramp_asked_of_the_other_replica_is_aborted_in_all_of_them() {
    let two = Two::start([1, 0], &ramp_of("600s"));
    two.canary.script(|seen| vec![response(seen, "500 Oh no", "", "boom")]);
    let (leader, other) = two.by_role();
    let _users = (Users::of(leader), Users::of(other));

    let (status, told) = ramped(other);

    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.lines().last().unwrap().starts_with("step 1 of 3: aborted: canary failed "), "{told}");
    assert_eq!([share(leader), share(other)], [0.0, 0.0]);
    assert_eq!([unexplained(leader), unexplained(other)], [0.0, 0.0]);
}
