//! What a verb refuses: the list of bad input. Each refusal says what to do, and changes nothing.

use serde_json::{Value, json};

use super::{KEPT, Lab};
use crate::support::{Client, PATIENCE, eventually};

#[test]
fn what_is_unknown_or_makes_no_sense_is_named() {
    let lab = Lab::start();

    for (path, body, status, says) in [
        (
            "app/weights",
            json!({"weights": {"green": "10%"}}),
            404,
            "there is no version `green`; the versions are `stable`, `canary`",
        ),
        ("app/weights", json!({"weights": {"canary": "140%"}}), 400, "140% is more than 100%"),
        ("app/weights", json!({"weights": {"canary": "60%", "stable": "60%"}}), 400, "add up to 120%"),
        ("app/weights", json!({"weights": {"canary": 0, "stable": 0}}), 400, "all weights would be 0"),
        ("app/weights", json!({"weights": {}}), 400, "no version is named"),
        ("app/promote", json!({"version": "green"}), 404, "there is no version `green`"),
        ("app/switch", json!({"version": "green"}), 404, "there is no version `green`"),
        ("app/drain", json!({"version": "green"}), 404, "there is no version `green`"),
        ("app/undo", json!({"toRevision": 9}), 404, "there is no revision 9; the history goes from 1 to 1"),
        ("app/undo", json!({}), 409, "there is nothing to undo"),
        ("app/resume", json!({"skip": true}), 409, "there is no ramp"),
        ("app/promote", json!({"guarded": true}), 409, "rollout.steps"),
        ("nobody/pause", json!({}), 404, "there is no service `nobody`; the services are `app`"),
        ("app/pause", json!({"weight": 1}), 400, "unknown field `weight`"),
        ("app/pause", json!({"version": "canary"}), 400, "version: no key of pause"),
    ] {
        let refused = lab.perch.admin_post(&format!("/api/v1/services/{path}"), &body);
        let told = refused.json();
        assert_eq!(refused.status, status, "{path} {body}: {told}");
        assert!(told["error"].as_str().unwrap().contains(says), "{path} {body}: {told}");
    }
    assert_eq!(lab.perch.metric("perch_config_generation"), Some(1.0));
    assert_eq!(lab.perch.admin_get("/api/v1/services/nobody/history").status, 404);
    assert_eq!(lab.perch.admin_get("/api/v1/services/app/explode").status, 404);
}

#[test]
fn nobody_is_sent_to_a_version_without_endpoints() {
    let lab = Lab::with("health: {path: /, interval: 100ms, timeout: 100ms, rise: 1, fall: 1}", "");
    let Lab { perch, canary, .. } = &lab;
    canary.refuse();
    eventually(PATIENCE, || perch.admin_json("/api/v1/services/app")["versions"][1]["endpointsReady"] == json!(0));
    let post = |verb: &str, body: Value| perch.admin_post(&format!("/api/v1/services/app/{verb}"), &body);

    let refused = [post("switch", json!({"version": "canary"})), post("promote", json!({}))];
    for refused in refused {
        let told = refused.json();
        assert_eq!(refused.status, 409, "{told}");
        assert!(told["error"].as_str().unwrap().contains("`canary` has 0 usable endpoints and needs 1"), "{told}");
        assert_eq!(told["current"]["versions"][1]["endpointsTotal"], 1);
    }
    assert_eq!(post("switch", json!({"version": "canary", "force": true})).status, 200);
}

#[test]
fn of_two_people_at_once_one_is_told_what_there_is_now() {
    let lab = Lab::start();
    let verbs =
        [("weights", json!({"weights": {"canary": "20%"}, "generation": 1})), ("pause", json!({"generation": 1}))];
    let mut answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let asked: Vec<_> = verbs
            .iter()
            .map(|(verb, body)| {
                let lab = &lab;
                scope.spawn(move || {
                    let answer = lab.post(verb, body);
                    (answer.status, answer.json())
                })
            })
            .collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    answers.sort_by_key(|(status, _)| *status);

    let [(200, won), (409, lost)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!((&won["generation"], &lost["generation"]), (&json!(2), &json!(2)));
    assert_eq!(lost["current"]["rollout"]["revision"], 2);
    assert!(lost["error"].as_str().unwrap().contains("the current generation is 2, look again"), "{lost}");
}

#[test]
fn every_verb_is_guarded() {
    let lab = Lab::with("", "admin: {address: '127.0.0.1:0', token: s3cret}");
    let admin = lab.perch.admin();
    let write = |verb: &str, fields: &str| {
        let host = if fields.contains("host:") { String::new() } else { format!("host: {admin}\r\n") };
        let mut client = Client::plain(admin);
        client
            .send(format!("POST /api/v1/services/app/{verb} HTTP/1.1\r\n{host}{fields}content-length: 2\r\n\r\n{{}}"));
        client.response().status
    };

    for verb in ["weights", "pause", "resume", "promote", "abort", "undo", "switch", "drain"] {
        assert_eq!(write(verb, ""), 401, "{verb}");
        assert_eq!(write(verb, "authorization: Bearer guess\r\n"), 403, "{verb}");
        assert_eq!(write(verb, "host: evil.example\r\nauthorization: Bearer s3cret\r\n"), 421, "{verb}");
        let foreign = "origin: http://evil.example\r\nauthorization: Bearer s3cret\r\n";
        assert_eq!(write(verb, foreign), 403, "{verb}");
        let plain = "content-type: text/plain\r\nauthorization: Bearer s3cret\r\n";
        assert_eq!(write(verb, plain), 415, "{verb}");
    }
    assert_eq!(lab.perch.metric("perch_config_generation"), Some(1.0));
    assert_eq!(write("pause", "authorization: Bearer s3cret\r\n"), 200);
    eventually(PATIENCE, || {
        let log = lab.perch.stderr();
        let refused = log.lines().filter(|l| l.contains("audit") && l.contains("Refused a change"));
        refused.count() >= 8 * 4
    });
}

#[test]
fn a_state_that_cannot_be_written_refuses_the_verbs_while_traffic_goes_on() {
    let lab = Lab::with("", KEPT);
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let folder = lab.state.path().join("rollouts");
    std::fs::rename(&folder, lab.state.path().join("away")).unwrap();
    // A file in its place: it stops even root.
    std::fs::write(&folder, "").unwrap();

    let refused = lab.post("weights", &json!({"weights": {"canary": "60%"}}));
    let dry = lab.post("weights", &json!({"weights": {"canary": "60%"}, "dryRun": true}));

    assert_eq!(refused.status, 503);
    let told = refused.json();
    assert!(told["error"].as_str().unwrap().starts_with("this can't be kept, so it was not done: stateDir "), "{told}");
    assert_eq!((dry.status, lab.share(1)), (200, 0.5));
    assert!(["stable", "canary"].contains(&&*lab.ask([127, 9, 1, 1].into())));
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(lab.state.path().join("away"), &folder).unwrap();
    lab.done("weights", json!({"weights": {"canary": "60%"}}));
}
