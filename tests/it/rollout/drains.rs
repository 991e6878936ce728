//! Drains: who is there stays, who is new does not come.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::json;

use super::{KEPT, Lab, of, users};
use crate::support::{PATIENCE, Seen, eventually, ok, response};

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
    assert_eq!((lab.flips("unexplained"), lab.flips("drain-deadline") > 0.0), (0.0, true));
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

/// What perch says before they have asked it.
fn explained(lab: &Lab, users: &[IpAddr]) -> BTreeMap<IpAddr, String> {
    let explain = |user: &IpAddr| lab.perch.admin_json(&format!("/api/v1/explain?service=app&ip={user}"));
    users.iter().map(|user| (*user, explain(user)["version"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn a_killed_perch_keeps_users_on_the_draining_version_until_the_deadline() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let users = users(60);
    let before = lab.answers(&users);
    let on_canary = of(&before, "canary");
    assert!(on_canary.len() > 10);

    lab.done("drain", json!({"version": "canary", "deadline": "10s"}));
    let lab = lab.killed_and_restarted("", KEPT);
    let told = lab.perch.admin_json(&format!("/api/v1/explain?service=app&ip={}", on_canary[0]));
    let explained = explained(&lab, &users);
    let during = (lab.answers(&users), lab.answers(&users));
    let drains = lab.service()["rollout"]["drains"].clone();
    eventually(PATIENCE, || lab.service()["rollout"]["drains"] == json!([]));
    let after = lab.answers(&users);

    assert_eq!(drains[0]["version"], "canary", "the machine is too slow for this deadline");
    assert_eq!(during, (before.clone(), before.clone()));
    assert_eq!((explained, &told["why"]), (before, &json!("drain-pin")));
    let reasoning = told["reasoning"].to_string();
    assert!(reasoning.contains("started after the drain began: before, the split gave it to canary"), "{reasoning}");
    assert_eq!(drains[0]["clientsLeft"], on_canary.len());
    assert!(of(&after, "canary").is_empty());
    let flips = ["drain-deadline", "weight-change", "unexplained"].map(|reason| lab.flips(reason));
    assert_eq!(flips, [on_canary.len() as f64, 0.0, 0.0]);
}

#[test]
fn users_of_a_draining_version_return_to_it_when_its_endpoints_do() {
    let lab = Lab::with("health: {path: /ready, interval: 50ms, timeout: 2s, rise: 1, fall: 1}", "");
    let canary = |status: &'static str| {
        lab.canary.script(move |seen: &Seen| match seen.target().as_str() {
            "/ready" => vec![response(seen, status, "", "")],
            _ => ok(seen, "canary"),
        });
    };
    let is_usable = || lab.service()["versions"][1]["endpoints"][0]["state"] == "ready";
    canary("200 OK");
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let users = users(60);
    let before = lab.answers(&users);
    lab.done("drain", json!({"version": "canary", "deadline": "1h"}));
    let on_canary = of(&before, "canary");

    canary("503 Service Unavailable");
    eventually(PATIENCE, || !is_usable());
    let without = lab.answers(&users);
    let told = lab.perch.admin_json(&format!("/api/v1/explain?service=app&ip={}", on_canary[0]));
    let left = lab.service()["rollout"]["drains"][0]["clientsLeft"].clone();
    canary("200 OK");
    eventually(PATIENCE, is_usable);
    let again = lab.answers(&users);

    assert!(of(&without, "canary").is_empty());
    let reasoning = told["reasoning"].to_string();
    assert!(reasoning.contains("it was last served by stable and belongs to canary"), "{reasoning}");
    assert_eq!((again, left), (before, json!(on_canary.len())));
    let moved = 2.0 * on_canary.len() as f64;
    assert_eq!((lab.flips("when-empty"), lab.flips("unexplained")), (moved, 0.0));
}
