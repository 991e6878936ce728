//! The verbs on the command line: what they print, and their exit codes.

use serde_json::{Value, json};

use super::{Lab, users};
use crate::support::{PATIENCE, Process, TestBackend, eventually, response, run_perch};

#[test]
fn a_change_prints_what_changed_who_moves_and_the_generation() {
    let lab = Lab::start();
    lab.answers(&users(40));

    let dry = lab.cli_done(&["set-weight", "app", "canary=50%", "--dry-run"]);
    let done = lab.cli_done(&["set-weight", "app", "canary=50%", "--reason", "half", "--wait"]);

    let moved = |text: &str| text.lines().find(|l| l.contains("recently seen clients")).unwrap().to_owned();
    assert!(dry.starts_with("app: set-weight would do this (dry run)\n  VERSION  WEIGHT    SHARE\n"), "{dry}");
    assert!(
        dry.contains("  canary   10 -> 90  10% -> 50%\n") && dry.contains("  stable   90        90% -> 50%\n"),
        "{dry}"
    );
    assert!(moved(&dry).contains(" of 40 recently seen clients would move (about "), "{dry}");
    assert!(moved(&done).ends_with(" from stable to canary"), "{done}");
    assert!(done.ends_with("generation 2, revision 2\n"), "{done}");
    assert_eq!(lab.share(1), 0.5);
}

#[test]
fn each_verb_does_what_it_says() {
    let lab = Lab::start();

    for (arguments, share) in [
        (&["set-weight", "app", "canary=20%"][..], 0.2),
        (&["pause", "app", "--reason", "lunch"], 0.2),
        (&["resume", "app"], 0.2),
        (&["promote", "app"], 1.0),
        (&["undo", "app"], 0.2),
        (&["undo", "app", "--to-revision", "1"], 0.1),
        (&["switch", "app", "canary", "--existing", "drain", "--deadline", "10m"], 1.0),
        (&["abort", "app"], 0.0),
        (&["set-weight", "app", "canary=30%"], 0.3),
        (&["drain", "app", "canary", "--deadline", "10m"], 0.0),
    ] {
        lab.cli_done(arguments);
        assert!((lab.share(1) - share).abs() < 1e-6, "{arguments:?}: {}", lab.share(1));
    }
    let history = lab.cli_done(&["history", "app"]);
    let verbs: Vec<&str> = history.lines().filter_map(|l| l[12..].split_whitespace().find(|w| w.len() > 3)).collect();
    assert_eq!(history.lines().count(), 12, "{history}");
    assert!(history.lines().nth(1).unwrap().trim_start().starts_with("11 *"), "{history}");
    assert!(verbs.contains(&"switch") && history.contains("lunch"), "{history}");
}

#[test]
fn status_shows_the_picture_and_what_would_be() {
    let lab = Lab::start();
    lab.answers(&users(40));
    lab.cli_done(&["set-weight", "app", "canary=50%", "--who", "ann"]);
    lab.answers(&users(40));
    lab.cli_done(&["drain", "app", "canary", "--deadline", "10m"]);
    lab.cli_done(&["pause", "app", "--reason", "lunch", "--who", "ann"]);

    let status = lab.cli_done(&["status"]);
    let what_if = lab.cli_done(&["status", "app", "--what-if", "canary=25%"]);

    assert!(
        status.starts_with("app: generation 4, revision 4; weights set by verbs, the file has canary=10 stable=90\n")
    );
    assert!(status.contains("  PAUSED by ann (127.0.0.1:") && status.contains(" ago: lunch\n"), "{status}");
    assert!(status.contains("  VERSION  WEIGHT  SHARE  CLIENTS"), "{status}");
    let canary = status.lines().find(|l| l.starts_with("  canary")).unwrap();
    assert!(canary.contains("draining: ") && canary.contains("1/1"), "{status}");
    assert!(what_if.contains("would do this (dry run)") && what_if.contains("0% -> 25%"), "{what_if}");
    let one: Value = serde_json::from_str(&lab.cli_done(&["status", "app", "-o", "json"])).unwrap();
    assert_eq!(one["services"][0]["rollout"]["paused"]["reason"], "lunch");
}

#[test]
fn status_watches() {
    let lab = Lab::start();
    let admin = format!("http://{}", lab.perch.admin());
    let watching = Process::perch(["status", "--admin", &admin, "-w"]);

    eventually(PATIENCE, || watching.stdout().matches("app: generation 1").count() >= 2);
    lab.cli_done(&["pause", "app"]);
    eventually(PATIENCE, || watching.stdout().contains("PAUSED"));
}

#[test]
fn status_goes_on_watching_when_perch_comes_back() {
    let lab = Lab::start();
    // In its place something that can be away and keeps its address.
    let picture = lab.perch.admin_get("/api/v1/services").text();
    let perch = TestBackend::scripted(move |seen| vec![response(seen, "200 OK", "", &picture)]);
    let watching = Process::perch(["status", "--admin", &format!("http://{}", perch.address()), "-w"]);
    let pictures = || watching.stdout().matches("app: generation 1").count();
    eventually(PATIENCE, || pictures() >= 2);

    perch.refuse();
    eventually(PATIENCE, || watching.stderr().contains("is perch running there?; asking again each second"));
    let before = pictures();
    perch.accept_again();

    eventually(PATIENCE, || watching.stderr().ends_with("perch answers again\n") && pictures() > before);
    assert_eq!(watching.stderr().lines().count(), 2, "{}", watching.stderr());
}

#[test]
fn json_is_the_answer_of_the_api() {
    let lab = Lab::start();

    let done: Value = serde_json::from_str(&lab.cli_done(&["promote", "app", "-o", "json"])).unwrap();
    let history: Value = serde_json::from_str(&lab.cli_done(&["history", "app", "-o", "json"])).unwrap();
    let refused = lab.cli(&["undo", "app", "--to-revision", "9", "-o", "json"]);

    assert_eq!((&done["verb"], &done["shares"]["canary"]), (&json!("promote"), &json!(1.0)));
    assert_eq!(history[0]["verb"], "promote");
    assert_eq!(refused.status.code(), Some(1));
    let refused: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("no revision 9"), "{refused}");
}

#[test]
fn a_refusal_is_exit_code_1_and_wrong_usage_2() {
    let lab = Lab::with("", "admin: {address: '127.0.0.1:0', token: s3cret}");
    let said = |arguments: &[&str], code: i32, says: &str| {
        let output = lab.cli(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    };
    let token = ["--token", "s3cret"];
    let with = |arguments: &[&'static str]| [arguments, &token].concat();

    said(&["pause", "app"], 1, "send the token as");
    said(&["pause", "app", "--token", "guess"], 1, "this is not the token");
    said(&with(&["pause", "nobody"]), 1, "there is no service `nobody`; the services are `app`");
    said(&with(&["promote", "app", "green"]), 1, "there is no version `green`");
    said(&with(&["undo", "app"]), 1, "there is nothing to undo");
    said(
        &with(&["set-weight", "app", "canary=20%", "--generation", "9"]),
        1,
        "`perch status app` shows what there is now",
    );
    said(&["set-weight", "app", "canary=140%"], 2, "more than 100%");
    said(&["set-weight", "app", "canary"], 2, "such as canary=20%");
    said(&["set-weight", "app"], 2, "VERSION=AMOUNT");
    said(&["status", "--what-if", "canary=1%"], 2, "<SERVICE>");
    said(&["status", "nobody"], 1, "there is no service `nobody`");
    assert_eq!(lab.perch.metric("perch_config_generation"), Some(1.0));
    let nowhere = run_perch(["status", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("is perch running there?"), "{nowhere:?}");
}

#[test]
fn every_verb_teaches_by_its_help() {
    for verb in ["status", "set-weight", "pause", "resume", "promote", "abort", "undo", "switch", "drain"] {
        let output = run_perch([verb, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("Example") && text.contains(&format!("perch {verb} hello")),
            "{text}"
        );
    }
}
