//! `perch load` against a server that splits by client as it is told: rightly, or wrongly in ways that must be caught.

mod split_server;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::{PATIENCE, Process, eventually, run_perch};
use split_server::{Behaviour, COLD_FOR, SplitServer};

fn load(arguments: &[&str]) -> Output {
    run_perch([["load", "--quiet"].as_slice(), arguments].concat())
}

/// Runs to the end and gives the exit code and the outcome.
fn outcome(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = load(&[arguments, &["-o", "json"]].concat());
    let parsed = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", text(&output.stdout), text(&output.stderr)));
    (output.status.code(), parsed)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The findings of one check: whether they hold.
fn holds(outcome: &Value, check: &str) -> Vec<bool> {
    let of = |findings: &Value| -> Vec<bool> {
        let all = findings.as_array().unwrap();
        all.iter().filter(|f| f["check"] == check).map(|f| f["holds"].as_bool().unwrap()).collect()
    };
    let mut found = of(&outcome["findings"]);
    found.extend(outcome["steps"].as_array().unwrap().iter().flat_map(|s| of(&s["findings"])));
    found
}

#[test]
fn a_right_split_passes() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "2000", "--expect", "canary=10%"]);

    assert_eq!((code, &outcome["verdict"]), (Some(0), &"holds".into()), "{outcome:#}");
    assert_eq!(outcome["total"]["requests"], 10_000);
    assert_eq!(outcome["total"]["connections"]["opened"], 4000);
}

#[test]
fn a_wrong_share_fails() {
    let server = SplitServer::start(Behaviour::Right, 20.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "1000", "--expect", "canary=10%"]);

    assert_eq!((code, &outcome["verdict"]), (Some(1), &"violated".into()));
    assert_eq!((holds(&outcome, "share"), holds(&outcome, "flips")), (vec![false], vec![true]));
}

#[test]
fn a_split_without_affinity_fails_with_its_first_flips() {
    let server = SplitServer::start(Behaviour::PerRequest, 10.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "300", "--expect", "canary=10%"]);

    let first = outcome["total"]["flips"]["first"].as_array().unwrap();
    assert_eq!((code, holds(&outcome, "flips"), first.len()), (Some(1), vec![false], 10));
    assert!(first[0]["address"].as_str().unwrap().starts_with("127."), "{}", first[0]);
    assert!(first[0]["from"] != first[0]["to"]);
}

#[test]
fn a_split_of_requests_may_flip() {
    let server = SplitServer::start(Behaviour::PerRequest, 10.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "300", "--unit", "requests", "--expect", "canary=10%"]);

    assert_eq!(code, Some(0), "{outcome:#}");
}

#[test]
fn one_flip_of_one_client_is_caught() {
    let server = SplitServer::start(Behaviour::OneFlip, 10.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "500"]);

    assert_eq!((code, &outcome["total"]["clients"]["flipped"]), (Some(1), &1.into()));
}

#[test]
fn every_identity_reaches_the_server() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    for (at, identity) in ["source", "proxy-v1", "proxy-v2", "xff"].into_iter().enumerate() {
        let url = if identity.starts_with("proxy") { server.proxy_url() } else { server.url() };
        let before = server.clients_seen();
        let range = format!("127.{}.0.0/16", at + 1);
        let (code, _) = outcome(&[&url, "--clients", "700", "--identity", identity, "--from", &range]);

        assert_eq!((code, server.clients_seen() - before), (Some(0), 700), "{identity}");
    }
}

#[test]
fn ipv6_clients_are_one_per_64() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let (code, _) =
        outcome(&[&server.proxy_url(), "--clients", "500", "--identity", "proxy-v2", "--from", "2001:db8::/48"]);

    assert_eq!((code, server.clients_seen()), (Some(0), 500));
}

#[test]
fn http_2_and_tls_and_json_versions_work_together() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    for protocol in ["--http1", "--http2"] {
        let source = ["--version-from", "json:/version"];
        let (code, outcome) = outcome(
            &[&[server.tls_url().as_str(), "--insecure", protocol, "--clients", "200"], source.as_slice()].concat(),
        );

        assert_eq!((code, &outcome["total"]["connections"]["tls_handshakes"]), (Some(0), &400.into()), "{protocol}");
        let versions = outcome["total"]["versions"].as_array().unwrap().iter();
        assert!(versions.map(|v| v["version"].as_str().unwrap()).any(|v| v == "canary"));
    }
}

#[test]
fn an_unknown_certificate_is_refused_with_the_way_out() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let refused = load(&[&server.tls_url(), "--clients", "10"]);
    let trusted = load(&[&server.tls_url(), "--clients", "10", "--cacert", server.certificate().to_str().unwrap()]);

    assert_eq!((refused.status.code(), trusted.status.code()), (Some(1), Some(0)), "{}", text(&trusted.stderr));
    assert!(text(&refused.stderr).contains("--cacert FILE or --insecure"), "{}", text(&refused.stderr));
}

#[test]
fn an_answer_without_a_version_is_shown_and_not_guessed() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let output = load(&[&server.url(), "--version-from", "header:no-such"]);

    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no version by header:no-such") && said.contains("HTTP/1.1 200 OK"), "{said}");
    assert!(said.contains("--version-from none"), "{said}");
}

#[test]
fn failing_requests_are_counted_by_kind_and_fail_the_run() {
    let server = SplitServer::start(Behaviour::CanaryFails, 50.0);

    let (strict, outcome_) = outcome(&[&server.url(), "--clients", "100"]);
    let (lenient, _) = outcome(&[&server.url(), "--clients", "100", "--max-errors", "80%"]);

    assert_eq!((strict, lenient), (Some(1), Some(0)));
    let errors = &outcome_["total"]["errors_by_kind"];
    assert!(errors["status-503"]["count"].as_u64().unwrap() > 0, "{errors}");
}

#[test]
fn a_whole_ramp_of_a_right_split_passes() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let (code, outcome) = ramp(&server, &[]);

    assert_eq!(code, Some(0), "{:#}", outcome["violations"]);
    let moved: Vec<u64> =
        outcome["steps"].as_array().unwrap().iter().filter_map(|s| s["moves"]["moved"].as_u64()).collect();
    assert_eq!((moved.len(), moved[5]), (6, 1000), "the last step moves everybody back");
    assert_eq!(holds(&outcome, "emptied"), [true, true]);
}

#[test]
fn a_ramp_that_moves_more_clients_than_needed_fails() {
    let server = SplitServer::start(Behaviour::NewSaltPerChange, 10.0);

    let (code, outcome) = ramp(&server, &[]);

    assert_eq!(code, Some(1));
    assert!(holds(&outcome, "direction").contains(&false) && holds(&outcome, "movement").contains(&false));
    assert!(holds(&outcome, "share").iter().all(|h| *h), "each step has the right share: {:#}", outcome["violations"]);
}

#[test]
fn a_ramp_that_does_not_empty_the_canary_fails() {
    let server = SplitServer::start(Behaviour::NeverEmpties, 10.0);

    let (code, outcome) = ramp(&server, &[]);

    assert_eq!((code, holds(&outcome, "emptied")), (Some(1), vec![true, false]));
}

#[test]
fn a_ramp_of_an_unknown_service_says_which_there_are() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let output = load(&[&server.url(), "--ramp", "0,5", "--admin", &server.admin_url(), "--service", "nope"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nope"), "{}", text(&output.stderr));
}

fn ramp(server: &SplitServer, more: &[&str]) -> (Option<i32>, Value) {
    let (url, admin) = (server.url(), server.admin_url());
    let own = ["--clients", "1000", "--ramp", "0,1,5,25,50,100,0", "--admin", &admin, "--service", "hello"];
    outcome(&[&[url.as_str()], own.as_slice(), more].concat())
}

#[test]
fn an_open_loop_sends_as_many_requests_as_its_schedule_has() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "100", "--rate", "500", "--duration", "1s"]);

    assert_eq!((code, &outcome["total"]["requests"]), (Some(0), &500.into()));
    assert!(outcome["total"]["schedule_lag_ms"]["p99"].is_number());
}

#[test]
fn what_begins_in_the_warm_up_is_counted_but_not_in_the_latencies() {
    let server = SplitServer::start(Behaviour::StartsCold, 0.0);
    let url = server.url();
    let own = [url.as_str(), "--clients", "100", "--rate", "200", "--duration", "2500ms", "--warm-up", "2s"];

    let (code, outcome) = outcome(&own);

    assert_eq!((code, &outcome["total"]["requests"]), (Some(0), &500.into()));
    let slowest = outcome["total"]["versions"][0]["latency_ms"]["max"].as_f64().unwrap();
    assert!(slowest < COLD_FOR.as_secs_f64() * 1000.0, "{outcome:#}");
    // That the cold ones were there.
    assert!(outcome["total"]["seconds"].as_f64().unwrap() >= COLD_FOR.as_secs_f64(), "{outcome:#}");
}

#[test]
fn latencies_of_which_none_was_measured_are_null_and_not_zero() {
    let server = SplitServer::start(Behaviour::Right, 0.0);

    let (code, outcome) = outcome(&[&server.url(), "--clients", "10", "--requests", "1", "--warm-up", "1m"]);

    assert_eq!((code, &outcome["total"]["requests"]), (Some(0), &10.into()));
    assert!(outcome["total"]["versions"][0]["latency_ms"].is_null(), "{outcome:#}");
}

#[test]
fn the_report_is_one_page_with_its_plots() {
    let server = SplitServer::start(Behaviour::Right, 10.0);
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("out.html");

    let (code, _) = ramp(&server, &["--report", page.to_str().unwrap()]);

    let html = std::fs::read_to_string(page).unwrap();
    assert_eq!((code, html.matches("<svg").count()), (Some(0), 4));
    assert!(html.contains("prefers-color-scheme: dark") && !html.contains("<script"), "{html}");
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("src="), "nothing is fetched");
}

#[test]
fn an_interrupt_prints_what_was_measured_so_far() {
    let server = SplitServer::start(Behaviour::Right, 10.0);
    let mut process = Process::perch(["load", "--quiet", &server.url(), "--clients", "100", "--duration", "1h"]);
    eventually(PATIENCE, || server.requests() > 1000);

    process.signal("INT");
    let status = process.wait(Duration::from_secs(20));

    assert_eq!(status.code(), Some(0), "{}", process.stderr());
    assert!(process.stdout().contains("interrupted: stopped by a signal"), "{}", process.stdout());
}

#[test]
fn running_out_of_descriptors_says_how_to_get_more() {
    let server = SplitServer::start(Behaviour::Stalls, 10.0);
    let command = format!(
        "ulimit -n 64; exec {} load --quiet {} --clients 500 --concurrency 500 --threads 1",
        env!("CARGO_BIN_EXE_perch"),
        server.url()
    );

    let output = std::process::Command::new("sh").arg("-c").arg(command).output().unwrap();

    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ulimit -n"), "{said}");
}

#[test]
fn an_address_that_is_not_ours_says_what_to_do() {
    let server = SplitServer::start(Behaviour::Right, 10.0);

    // TEST-NET-3 (RFC 5737) is no machine's own.
    let output = load(&[&server.url(), "--clients", "10", "--from", "203.0.113.0/24"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ip route add local"), "{}", text(&output.stderr));
}

#[test]
fn nothing_listening_is_said_before_thousands_of_clients_find_out() {
    let output = load(&["http://127.0.0.1:1/", "--clients", "1000"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing listens there"), "{}", text(&output.stderr));
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        ["http://127.0.0.1:1/", "--expect", "canary=10"].as_slice(),
        &["http://127.0.0.1:1/", "--expect", "a=60%,b=60%"],
        &["http://127.0.0.1:1/", "--from", "192.0.2.0/30"],
        &["http://127.0.0.1:1/", "--from", "fd00::/48"],
        &["http://127.0.0.1:1/", "--http1", "--http2"],
        &["http://127.0.0.1:1/", "--ramp", "0,5"],
        &["http://127.0.0.1:1/", "--duration", "1s", "--warm-up", "1s"],
        &["http://127.0.0.1:1/", "http://127.0.0.1:2/"],
        &["127.0.0.1:1"],
        &[],
    ] {
        let output = load(arguments);

        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}
