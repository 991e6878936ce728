//! `stateDir`: what was acknowledged is there after whatever happened.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use super::{KEPT, Lab, launch, users};
use crate::support::{PATIENCE, eventually};

#[test]
fn a_killed_perch_comes_back_with_weights_pause_history_and_the_same_users() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "40%"}, "reason": "half way", "who": "ann"}));
    lab.done("pause", json!({"reason": "lunch"}));
    let users = users(60);
    let before = (lab.answers(&users), lab.service()["rollout"].clone());
    let history = lab.perch.admin_json("/api/v1/services/app/history");

    let lab = lab.killed_and_restarted("", KEPT);

    assert_eq!((lab.answers(&users), lab.service()["rollout"].clone()), before);
    assert_eq!(lab.perch.admin_json("/api/v1/services/app/history"), history);
    assert_eq!(lab.flips("unexplained"), 0.0);
    assert_eq!(lab.post("weights", &json!({"weights": {"canary": 1}})).status, 409);
    let resumed = lab.done("resume", json!({}));
    assert_eq!(resumed["revision"], 4);
}

#[test]
fn a_drain_keeps_its_deadline_over_a_restart() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    lab.done("drain", json!({"version": "canary", "deadline": "1h"}));

    let lab = lab.killed_and_restarted("", KEPT);
    let drain = lab.service()["rollout"]["drains"][0].clone();

    assert_eq!(drain["version"], "canary");
    assert!((3500..=3600).contains(&drain["deadlineSeconds"].as_u64().unwrap()), "{drain}");
    assert_eq!(lab.flips("unexplained"), 0.0);
}

/// The status of a `POST`; `None` when perch died meanwhile.
fn try_post(admin: SocketAddr, percent: f64) -> Option<u16> {
    let body = json!({"weights": {"canary": format!("{percent}%")}}).to_string();
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(
        stream,
        "POST /api/v1/services/app/weights HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    // What was acknowledged is what arrived whole.
    stream.read_to_string(&mut answer).ok()?;
    answer.ends_with("}\n").then(|| answer.split(' ').nth(1).unwrap().parse().unwrap())
}

/// A kill between any two instructions: of many, at moments that nobody chose.
#[test]
fn whenever_it_is_killed_the_state_is_the_last_acknowledged_or_the_one_under_way() {
    const KILLS: u32 = 12;
    let mut lab = Lab::with("", KEPT);
    let (mut acknowledged, mut tried) = (10.0, 10.0);
    for kill in 0..KILLS {
        let admin = lab.perch.admin();
        let moment =
            Duration::from_micros(std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), kill) % 60_000);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let (mut acknowledged, mut percent) = (acknowledged, tried);
                loop {
                    percent = if percent > 90.0 { 1.0 } else { percent + 0.25 };
                    match try_post(admin, percent) {
                        Some(200) => acknowledged = percent,
                        Some(status) => panic!("{status}"),
                        None => return (acknowledged, percent),
                    }
                }
            });
            std::thread::sleep(moment);
            lab.perch.signal("KILL");
            (acknowledged, tried) = writer.join().unwrap();
        });
        lab.perch.wait(PATIENCE);
        lab = lab.restarted("", KEPT);

        let share = lab.share(1) * 100.0;
        let is = |percent: f64| (share - percent).abs() < 1e-6;
        assert!(is(acknowledged) || is(tried), "{share} after {acknowledged} and {tried}, killed after {moment:?}");
        assert!(!lab.perch.stderr().contains("can't be read"), "never corrupt");
        (acknowledged, tried) = (share, share);
    }
}

#[test]
fn a_corrupt_state_is_kept_aside_and_the_file_holds() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "40%"}}));
    let state = lab.state.path().join("rollouts");
    let text = std::fs::read_to_string(state.join("rollouts.json")).unwrap();
    std::fs::write(state.join("rollouts.json"), &text[..text.len() / 2]).unwrap();

    let lab = lab.killed_and_restarted("", KEPT);

    assert_eq!(lab.share(1), 0.1);
    assert_eq!(std::fs::read_to_string(state.join("rollouts.json.corrupt-1")).unwrap(), text[..text.len() / 2]);
    eventually(PATIENCE, || {
        lab.perch.stderr().contains("rollouts.json.corrupt-1. Starting with the configuration's weights.")
    });
    lab.done("weights", json!({"weights": {"canary": "30%"}}));
    assert!((lab.killed_and_restarted("", KEPT).share(1) - 0.3).abs() < 1e-6);
}

#[test]
fn a_state_of_a_newer_perch_is_refused_and_left_alone() {
    let Lab { perch, stable, canary, state } = Lab::with("", KEPT);
    drop(perch);
    let file = state.path().join("rollouts/rollouts.json");
    std::fs::write(&file, r#"{"version": 7, "news": []}"#).unwrap();

    let output = launch(&stable, &canary, state.path(), "", KEPT).output();

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("was written by a newer perch (document version 7, this one reads up to 1)"), "{said}");
    assert!(file.exists());
}

#[test]
fn a_file_that_changed_while_perch_was_away_wins() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "40%"}}));
    let text = std::fs::read_to_string(lab.perch.config_file()).unwrap().replace("weight: 10", "weight: 30");

    let Lab { perch, stable, canary, state } = lab;
    drop(perch);
    let perch = launch(&stable, &canary, state.path(), "", KEPT).config(&text).start();
    let lab = Lab { perch, stable, canary, state };

    assert_eq!((lab.share(1), lab.service()["rollout"]["source"].as_str()), (0.25, Some("file")));
    assert_eq!(lab.perch.admin_json("/api/v1/services/app/history")[0]["verb"], "file");
}

#[test]
fn verbs_win_until_the_files_weights_change_and_a_pause_makes_them_wait() {
    let lab = Lab::start();
    let file = lab.perch.config_file();
    let text = std::fs::read_to_string(&file).unwrap();
    let reload = |text: &str| {
        let before = lab.perch.metric("perch_config_generation").unwrap();
        lab.perch.rewrite_config(text);
        eventually(PATIENCE, || lab.perch.metric("perch_config_generation").unwrap() > before);
    };
    lab.done("weights", json!({"weights": {"canary": "40%"}}));

    reload(&format!("{text}limits: {{maxConnections: 1234}}\n"));
    let rollout = lab.service()["rollout"].clone();
    assert_eq!(
        (lab.share(1), &rollout["source"], &rollout["fileWeights"]["canary"]),
        (0.4, &json!("verbs"), &json!(10))
    );

    lab.done("pause", json!({}));
    reload(&text.replace("weight: 10", "weight: 30"));
    assert_eq!((lab.share(1), &lab.service()["rollout"]["waiting"]), (0.4, &json!({"stable": 90, "canary": 30})));
    lab.done("resume", json!({}));
    assert_eq!((lab.share(1), &lab.service()["rollout"]["waiting"]), (0.25, &json!(null)));
    assert_eq!(lab.service()["rollout"]["source"], "file");
}
