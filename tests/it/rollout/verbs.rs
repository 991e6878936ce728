//! The verbs over HTTP.

use serde_json::json;

use super::{Lab, of, users};

#[test]
fn a_verb_tells_what_it_changed_and_who_moves() {
    let lab = Lab::start();
    let users = users(60);
    let before = lab.answers(&users);

    let dry = lab.done("weights", json!({"weights": {"canary": "50%"}, "dryRun": true}));
    assert_eq!((lab.share(1), dry["generation"].as_u64()), (0.1, Some(1)), "nothing has changed");
    let done = lab.done("weights", json!({"weights": {"canary": "50%"}, "generation": 1}));
    let after = lab.answers(&users);

    let moved = of(&before, "stable").iter().filter(|user| after[user] == "canary").count();
    let between = json!([{"from": "stable", "to": "canary", "clients": moved}]);
    assert!(moved > 0);
    assert_eq!((&dry["moves"]["between"], &done["moves"]["between"]), (&between, &between));
    assert_eq!((&dry["moves"]["clients"], &dry["moves"]["ofClients"]), (&json!(moved), &json!(60)));
    assert_eq!((&dry["dryRun"], &dry["changed"], &done["dryRun"]), (&json!(true), &json!(true), &json!(false)));
    assert_eq!((&done["generation"], &done["revision"]), (&json!(2), &json!(2)));
    assert_eq!(done["before"][1], json!({"name": "canary", "weight": 10.0, "share": 0.1}));
    assert_eq!(done["after"][1]["share"], 0.5);
    assert_eq!((lab.flips("weight-change"), lab.flips("unexplained")), (moved as f64, 0.0));
}

#[test]
fn what_if_is_the_dry_run_of_weights_and_goes_while_paused() {
    let lab = Lab::with("", "admin: {address: '127.0.0.1:0', token: s3cret}");
    lab.answers(&users(40));

    let asked = lab.perch.admin_json("/api/v1/services/app/what-if?canary=25%25");
    let wrong = lab.perch.admin_get("/api/v1/services/app/what-if?canary=140%25");
    let nobody = lab.perch.admin_get("/api/v1/services/app/what-if?green=10%25");

    assert_eq!((&asked["after"][1]["share"], &asked["moves"]["ofClients"]), (&json!(0.25), &json!(40)));
    assert_eq!((wrong.status, nobody.status, lab.share(1)), (400, 404, 0.1));
}

#[test]
fn an_aborted_canary_loses_everyone_with_reason_abort() {
    let lab = Lab::with("onDecrease: {type: drain, deadline: 1h}", "");
    lab.done("weights", json!({"weights": {"canary": "50%"}}));
    let users = users(60);
    let before = lab.answers(&users);

    let aborted = lab.done("abort", json!({"reason": "500s"}));
    let after = lab.answers(&users);

    let moved = of(&before, "canary").len();
    assert!(of(&after, "canary").is_empty() && moved > 0);
    assert_eq!(aborted["moves"]["clients"], json!(moved));
    assert_eq!((lab.flips("abort"), lab.flips("weight-change"), lab.flips("unexplained")), (moved as f64, 0.0, 0.0));
}

#[test]
fn promote_undo_and_history_tell_one_story() {
    let lab = Lab::start();

    lab.done("promote", json!({"reason": "all is well", "who": "ann"}));
    assert_eq!((lab.share(1), &lab.service()["rollout"]["stable"]), (1.0, &json!("canary")));
    lab.done("undo", json!({}));
    assert_eq!((lab.share(1), &lab.service()["rollout"]["stable"]), (0.1, &json!("stable")));
    let history = lab.perch.admin_json("/api/v1/services/app/history");

    let verbs: Vec<&str> = history.as_array().unwrap().iter().map(|r| r["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["undo", "promote", "file"]);
    assert_eq!((&history[0]["current"], &history[1]["current"]), (&json!(true), &json!(false)));
    assert_eq!((&history[1]["reason"], &history[1]["weights"]["stable"]), (&json!("all is well"), &json!(0.0)));
    assert!(history[1]["who"].as_str().unwrap().starts_with("ann (127.0.0.1:"), "{history}");
    assert!(history[2]["at"].as_u64().unwrap() > 1_700_000_000);
}

#[test]
fn a_pause_holds_everything_but_abort() {
    let lab = Lab::start();
    lab.done("weights", json!({"weights": {"canary": "50%"}}));

    lab.done("pause", json!({"reason": "lunch", "who": "ann"}));
    for (verb, body) in [
        ("weights", json!({"weights": {"canary": "60%"}})),
        ("promote", json!({})),
        ("undo", json!({})),
        ("switch", json!({"version": "canary"})),
        ("drain", json!({"version": "canary"})),
    ] {
        let refused = lab.post(verb, &body);
        let told = refused.json();
        assert_eq!(refused.status, 409, "{verb}: {told}");
        assert!(told["error"].as_str().unwrap().contains("paused by ann ("), "{told}");
        assert_eq!(told["current"]["rollout"]["paused"]["reason"], "lunch");
    }
    lab.done("abort", json!({}));
    assert_eq!(lab.share(1), 0.0);
    lab.done("resume", json!({}));
    lab.done("weights", json!({"weights": {"canary": "60%"}}));
}

#[test]
fn a_switch_goes_and_abort_comes_back() {
    let lab = Lab::start();

    lab.done("switch", json!({"version": "canary"}));
    assert_eq!((lab.share(1), &lab.service()["rollout"]["stable"]), (1.0, &json!("stable")));
    lab.done("abort", json!({}));

    assert_eq!(lab.share(1), 0.0);
}

#[test]
fn a_verb_with_nothing_to_do_makes_no_generation() {
    let lab = Lab::start();

    for (verb, body) in
        [("resume", json!({})), ("weights", json!({"weights": {"canary": 10}})), ("undo", json!({"toRevision": 1}))]
    {
        let done = lab.done(verb, body);
        assert_eq!((&done["changed"], &done["generation"]), (&json!(false), &json!(1)), "{verb}");
    }
}
