//! A guarded ramp while the Deployment behind the canary rolls: it waits, and the picture counts the endpoints.

use serde_json::json;

use super::cluster::{Endpoint, Slice, config, is_ready};
use super::double::Double;
use crate::ramp::Users;
use crate::support::{PATIENCE, TestBackend, TestPerch, eventually, run_perch};

const VERSIONS: &str = "{name: stable, weight: 1, kubernetes: {service: hello-stable, port: http}}, {name: canary, weight: 0, kubernetes: {service: hello-canary, port: http}}";
const RAMP: &str = "    rollout: {settle: 3s, steps: [{weight: 30%, hold: 600s}, {weight: 100%}], guard: {minRequests: 50, latencyTolerance: 1000%}}\n";

/// One slice per pod, as each has its own port.
fn slice(service: &str, pod: &str, backend: &TestBackend, endpoint: Endpoint) -> Slice {
    Slice::of(service, &format!("{service}-{pod}"), backend.address().port(), &[endpoint])
}

fn status(perch: &TestPerch) -> String {
    let output = run_perch(["status", "hello", "--admin", &format!("http://{}", perch.admin())]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the canary's line has these endpoints.
#[track_caller]
fn until_canary_has(perch: &TestPerch, endpoints: &str) {
    eventually(PATIENCE, || status(perch).lines().any(|l| l.starts_with("  canary ") && l.contains(endpoints)));
}

#[test]
fn while_a_deployment_rolls_the_ramp_waits_and_its_endpoints_are_counted() {
    let double = Double::start();
    let cluster = double.cluster();
    let (stable, old, new) = (TestBackend::named("stable"), TestBackend::named("canary"), TestBackend::named("canary"));
    cluster.slice(&slice("hello-stable", "s", &stable, Endpoint::ready("127.0.0.1", "s")));
    cluster.slice(&slice("hello-canary", "old", &old, Endpoint::ready("127.0.0.1", "old")));
    let text = config(VERSIONS, RAMP).replace("name: http,", "name: http, trustedProxies: [127.0.0.0/8],");
    let perch = cluster.launch("", "").config(&text).start();
    eventually(PATIENCE, || is_ready(&perch));
    let _users = Users::of(&perch);
    let ramp = || perch.admin_json("/api/v1/services/hello")["rollout"]["ramp"].clone();
    let begun = || perch.admin_post("/api/v1/services/hello/promote", &json!({"guarded": true})).status == 200;
    eventually(PATIENCE, begun);
    eventually(PATIENCE, || ramp()["state"] == "running" && ramp()["guard"]["requests"]["canary"].as_u64() > Some(0));
    until_canary_has(&perch, " 1/1");

    // A pod that is not ready is counted and takes nothing; one that ends is none to count on any more.
    cluster.slice(&slice("hello-canary", "new", &new, Endpoint::ready("127.0.0.1", "new").unready()));
    until_canary_has(&perch, " 1/2");
    eventually(PATIENCE, || ramp()["state"] == "waiting");
    assert_eq!(new.count(), 0);
    cluster.slice(&slice("hello-canary", "new", &new, Endpoint::ready("127.0.0.1", "new")));
    until_canary_has(&perch, " 2/2");
    eventually(PATIENCE, || ramp()["state"] == "waiting");
    assert!(ramp()["why"].as_str().unwrap().starts_with("endpoints changed "), "{}", ramp());
    cluster.slice(&slice("hello-canary", "old", &old, Endpoint::ready("127.0.0.1", "old").terminating()));
    until_canary_has(&perch, " 1/2");
    cluster.delete("endpointslices", "hello-canary-old");
    until_canary_has(&perch, " 1/1");
    let left = ramp()["holdLeftSeconds"].as_f64().unwrap();

    eventually(PATIENCE, || ramp()["state"] == "running");
    assert!(ramp()["holdLeftSeconds"].as_f64().unwrap() > left - 1.0, "no time passed while it waited");
    eventually(PATIENCE, || new.count() > 0);
    assert_eq!(ramp()["step"], 0);
}
