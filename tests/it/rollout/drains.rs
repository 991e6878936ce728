//! Drains: who is there stays, who is new does not come.

use serde_json::json;

use super::{Lab, of, users};
use crate::support::{PATIENCE, eventually};

#[test]
fn a_drained_version_keeps_its_users_and_gets_no_new_ones() {
    let lab = Lab::start();
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let users = users(80);
    let (old, new) = users.split_at(40);
    let before = lab.answers(old);
    let on_canary = of(&before, "canary").len();

    let drained = lab.done("drain", json!({"version": "canary", "deadline": "1h"}));

    assert_eq!(drained["moves"]["clients"], 0);
    assert_eq!(lab.answers(old), before);
    assert!(of(&lab.answers(new), "canary").is_empty());
    let drain = &lab.service()["rollout"]["drains"][0];
    assert_eq!((&drain["version"], &drain["clientsLeft"]), (&json!("canary"), &json!(on_canary)));
    let left = |version: &str| {
        lab.perch.metric(&format!("perch_split_clients_left{{service=\"app\",version=\"{version}\"}}")).unwrap()
    };
    assert_eq!((left("canary"), left("stable")), (on_canary as f64, 0.0));
    assert_eq!(lab.flips("unexplained"), 0.0);
}

#[test]
fn a_switch_with_drain_leaves_users_on_blue_until_the_deadline() {
    let lab = Lab::start();
    let users = users(40);
    let before = lab.answers(&users);

    lab.done("switch", json!({"version": "canary", "existing": "drain", "deadline": "2s"}));
    let during = lab.answers(&users);
    eventually(PATIENCE, || lab.service()["rollout"]["drains"] == json!([]));
    let after = lab.answers(&users);

    assert_eq!(during, before);
    assert_eq!(of(&after, "canary").len(), 40);
    assert_eq!((lab.flips("unexplained"), lab.flips("weight-change") > 0.0), (0.0, true));
}

#[test]
fn a_pause_stops_the_clock_of_a_drain() {
    let lab = Lab::start();
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let users = users(40);
    let before = lab.answers(&users);
    lab.done("drain", json!({"version": "canary", "deadline": "1s"}));

    lab.done("pause", json!({}));
    // Longer than the deadline.
    std::thread::sleep(std::time::Duration::from_millis(1_300));
    let paused = lab.answers(&users);
    let shown = lab.service()["rollout"]["drains"][0].clone();
    lab.done("resume", json!({}));
    eventually(PATIENCE, || lab.service()["rollout"]["drains"] == json!([]));

    assert_eq!(paused, before);
    assert_eq!((&shown["version"], &shown["deadlineSeconds"]), (&json!("canary"), &json!(null)));
    assert!(of(&lab.answers(&users), "canary").is_empty());
}
