//! The admin listener of the built `perch`: metrics, explain against the live answers, weights, and the access log.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Launch, PATIENCE, TestBackend, TestPerch, eventually, run_perch};

fn config(stable: &[&TestBackend], canary: &[&TestBackend], extra: &str) -> String {
    let addresses = |backends: &[&TestBackend]| {
        backends.iter().map(|b| format!("'{}'", b.address())).collect::<Vec<_>>().join(", ")
    };
    format!(
        "
admin: {{address: '127.0.0.1:0'}}
listeners:
- {{name: http, address: '127.0.0.1:0'}}
routes:
- name: hello
  hostnames: [hello.example]
  service: hello
services:
- name: hello
  versions:
  - {{name: stable, weight: 70, endpoints: [{}]}}
  - {{name: canary, weight: 30, endpoints: [{}]}}
{extra}
",
        addresses(stable),
        addresses(canary)
    )
}

/// Addresses of many users, all on loopback.
fn users(count: u8) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|n| IpAddr::from([127, 1, n, 7]))
}

/// The body that a user gets: the backend's name.
fn answer(perch: &TestPerch, user: IpAddr) -> String {
    Client::plain_from(user, perch.address("http")).get("hello.example", "/version").text()
}

fn promtool(text: &str) -> Option<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}\n{text}");
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn metrics_of_a_used_perch_satisfy_promtool() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let dead = TestBackend::refusing();
    let perch = TestPerch::start(&config(&[&stable, &dead], &[&canary], ""));
    for user in users(30) {
        answer(&perch, user);
    }
    Client::plain(perch.address("http")).get("other.example", "/");

    let text = perch.admin_get("/metrics").text();

    match promtool(&text) {
        Some(said) => assert_eq!(said.trim(), "", "{text}"),
        None => eprintln!("skipped: promtool is not installed (Debian: prometheus)"),
    }
    assert_eq!(perch.metric("perch_rejected_total{reason=\"no-route\"}"), Some(1.0));
    assert_eq!(perch.metric("perch_affinity_entries"), Some(30.0));
    assert!(
        text.contains("perch_upstream_failures_total{service=\"hello\",version=\"stable\",reason=\"connect-refused\"}")
    );
    assert!(text.contains("perch_request_duration_seconds_bucket{service=\"hello\",version=\"canary\",le=\"0.0005\"}"));
    assert!(!text.contains("127.1."), "no client address is a label");
}

#[test]
fn requests_are_counted_by_version_method_and_code() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));
    let mut sent = BTreeMap::new();
    for user in users(40) {
        *sent.entry(answer(&perch, user)).or_insert(0.0) += 1.0;
    }

    for (version, count) in sent {
        let series =
            format!("perch_requests_total{{service=\"hello\",version=\"{version}\",method=\"GET\",code=\"200\"}}");
        // A request is counted at the end of its response, which the client may see a moment before.
        eventually(PATIENCE, || perch.metric(&series) == Some(count));
    }
    assert_eq!(perch.metric("perch_version_flips_total{service=\"hello\",reason=\"unexplained\"}"), Some(0.0));
}

#[test]
fn explain_is_the_live_answer_for_every_user() {
    let stable = [TestBackend::named("stable-0"), TestBackend::named("stable-1"), TestBackend::named("stable-2")];
    let canary = [TestBackend::named("canary-0"), TestBackend::named("canary-1")];
    let perch = TestPerch::start(&config(&stable.each_ref(), &canary.each_ref(), ""));
    let names: BTreeMap<String, &str> = std::iter::zip(
        stable.iter().chain(&canary).map(|b| b.address().to_string()),
        ["stable-0", "stable-1", "stable-2", "canary-0", "canary-1"],
    )
    .collect();
    let explain =
        |user: IpAddr| perch.admin_json(&format!("/api/v1/explain?host=hello.example&path=/version&ip={user}"));

    for user in users(60) {
        let before = explain(user);
        let got = answer(&perch, user);
        let after = explain(user);

        assert_eq!(names[before["endpoint"].as_str().unwrap()], got, "{before}");
        assert!(got.starts_with(before["version"].as_str().unwrap()), "{before}");
        assert!(before["pin"].is_null() && !after["pin"].is_null(), "{after}");
        assert_eq!((&after["version"], &after["endpoint"]), (&before["version"], &before["endpoint"]));
    }
}

#[test]
fn explain_from_the_file_is_the_answer_of_the_proxy() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));
    let file = perch.config_file();
    let (file, url) = (file.to_str().unwrap(), format!("http://{}", perch.admin()));

    for user in users(8) {
        let asked = |from: [&str; 2]| -> Value {
            let rest = ["--ip", &user.to_string(), "--host", "hello.example", "-o", "json"].map(str::to_owned);
            let arguments = ["explain".to_owned(), from[0].to_owned(), from[1].to_owned()].into_iter().chain(rest);
            serde_json::from_slice(&run_perch(arguments).stdout).unwrap()
        };
        let (offline, live) = (asked(["--config", file]), asked(["--admin", &url]));

        assert_eq!(offline["version"], answer(&perch, user), "{offline}");
        for key in ["version", "endpoint", "why", "versions", "reasoning", "routes", "client"] {
            assert_eq!(offline[key], live[key], "{key}");
        }
    }
}

#[test]
fn explain_prints_words_for_people() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));
    let file = perch.config_file();
    let explain =
        |arguments: &[&str]| run_perch([&["explain", "--config", file.to_str().unwrap()], arguments].concat());

    let found = explain(&["--ip", "192.0.2.7", "--service", "hello"]);
    let nowhere = explain(&["--ip", "192.0.2.7", "--host", "other.example"]);
    let unknown = explain(&["--ip", "192.0.2.7", "--service", "green"]);

    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.success());
    assert!(text.contains("version     ") && text.contains("or more") && text.contains("\nwhy\n"), "{text}");
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stdout).contains("no hostname matches \"other.example\""));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no `green`; the services are `hello`"));
}

#[test]
fn raised_weights_move_users_only_to_the_canary() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));
    let before: Vec<String> = users(100).map(|user| answer(&perch, user)).collect();

    let set =
        perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"canary": "60%"}, "generation": 1}));
    let after: Vec<String> = users(100).map(|user| answer(&perch, user)).collect();
    let late = perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"canary": 0}, "generation": 1}));

    assert_eq!((set.status, set.json()["shares"]["canary"].as_f64()), (200, Some(0.6)), "{set:?}");
    assert!(std::iter::zip(&before, &after).all(|(b, a)| a == b || a == "canary"));
    let moved = std::iter::zip(&before, &after).filter(|(b, a)| a != b).count();
    assert!(moved > 0);
    let series = "perch_version_flips_total{service=\"hello\",reason=\"weight-change\"}";
    assert_eq!(perch.metric(series), Some(moved as f64));
    assert_eq!(perch.metric("perch_version_flips_total{service=\"hello\",reason=\"unexplained\"}"), Some(0.0));
    assert_eq!((late.status, late.json()["generation"].as_u64()), (409, Some(2)), "{late:?}");
}

#[test]
fn a_write_leaves_a_line_that_says_who_and_why() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));

    perch.admin_post("/api/v1/services/hello/weights", &json!({"weights": {"canary": 40}, "reason": "looks good"}));

    eventually(PATIENCE, || {
        let log = perch.stderr() + &perch.stdout();
        log.lines().any(|l| {
            l.contains("Changed a rollout")
                && l.contains("set-weight")
                && l.contains("127.0.0.1:")
                && l.contains("looks good")
        })
    });
}

#[test]
fn a_crowd_at_the_admin_door_keeps_nobody_from_being_served() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], ""));
    let crowd: Vec<Client> = (0..600)
        .map(|_| {
            let mut client = Client::plain(perch.admin());
            client.send("GET /metrics HTTP/1.1\r\nhost: local");
            client
        })
        .collect();

    for user in users(20) {
        assert!(["stable", "canary"].contains(&answer(&perch, user).as_str()));
    }
    // The crowd loses its places by itself.
    assert_eq!(perch.admin_get("/livez").status, 200);
    drop(crowd);
}

#[test]
fn the_access_log_tells_what_became_of_each_request() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let perch = TestPerch::start(&config(&[&stable], &[&canary], "accessLog: {format: json}"));
    let user = IpAddr::from([127, 1, 2, 3]);

    let version = answer(&perch, user);
    Client::plain_from(user, perch.address("http")).get("other.example", "/a%0ab");

    let lines =
        || -> Vec<Value> { perch.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    eventually(PATIENCE, || lines().len() >= 2);
    let of = |status: u16| lines().into_iter().find(|line| line["status"] == status).unwrap();
    let (served, refused) = (of(200), of(404));
    assert_eq!(served["version"], version);
    assert_eq!((&served["client"], &served["why"]), (&json!("127.1.2.3"), &json!("cohort")));
    assert_eq!(
        (&served["path"], &served["service"], &served["attempts"]),
        (&json!("/version"), &json!("hello"), &json!(1))
    );
    assert_eq!((&refused["path"], &refused["reason"]), (&json!("/a%0ab"), &json!("no-route")));
    assert_eq!(refused["host"], "other.example");
}

#[test]
fn a_closed_log_pipe_ends_neither_perch_nor_a_request() {
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let launch = Launch::new(&config(&[&stable], &[&canary], "accessLog: {format: json}"));
    let announce = launch.dir().join("announce.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_perch"))
        .arg("serve")
        .arg("--config")
        .arg(launch.dir().join("perch.yaml"))
        .arg("--announce")
        .arg(&announce)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    eventually(PATIENCE, || announce.exists());
    let announced: Value = serde_json::from_str(&std::fs::read_to_string(&announce).unwrap()).unwrap();
    let address = |place: &Value| -> SocketAddr { place.as_str().unwrap().parse().unwrap() };
    let (http, admin) = (address(&announced["listeners"]["http"]), address(&announced["admin"]));

    for _ in 0..20 {
        assert_eq!(Client::plain(http).get("hello.example", "/").status, 200);
    }

    eventually(Duration::from_secs(10), || {
        let text = crate::support::get(admin, "/metrics").text();
        text.lines().any(|l| l == "perch_access_log_dropped_total 20")
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
