//! The whole listener over loopback, with a real writer behind it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::config;
use crate::control::Writer;
use crate::decide::{ClientKey, KeyPrefix, Why};
use crate::state::decision::{Client, decide, look};
use crate::state::pins::Pin;

mod live;

const CONFIG: &str = "
listeners:
- {name: http, address: '127.0.0.1:0'}
routes:
- name: hello
  hostnames: [hello.example]
  service: hello
- name: auth
  hostnames: [hello.example]
  matches: [{path: {type: PathPrefix, value: /login}}]
  service: auth
services:
- name: hello
  slowStart: 1h
  versions:
  - {name: stable, weight: 90, endpoints: ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:7']}
  - {name: canary, weight: 10, endpoints: ['127.0.0.1:3']}
- name: auth
  affinity: {type: None}
  versions:
  - {name: stable, endpoints: ['127.0.0.1:4']}
";

/// Another service, behind [`CONFIG`].
const RAMPED: &str = "
- name: ramped
  rollout: {steps: [{weight: 5%, hold: 10m}, {weight: 100%}]}
  versions:
  - {name: stable, weight: 1, endpoints: ['127.0.0.1:5']}
  - {name: canary, weight: 0, endpoints: ['127.0.0.1:6']}
";

struct Admin {
    address: SocketAddr,
    state: AdminState,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

impl Admin {
    fn start(extra: &str) -> Self {
        let config = config::parse(&format!("{CONFIG}{extra}"), Path::new("/"), &|_| None).unwrap().config;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (send, receive) = std::sync::mpsc::channel();
        let (readiness, stopped) = (Readiness::new(), stop.clone());
        readiness.reload_succeeded(std::time::SystemTime::now());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (clock, pins) = (Clock::start(), Arc::new(Pins::new(1000)));
                let (writer, control) = Writer::start(config, clock, pins.clone()).await.unwrap();
                tokio::spawn(writer.run());
                let published = control.published().clone();
                let state = AdminState {
                    published,
                    pins,
                    clock,
                    readiness,
                    control,
                    heartbeats: Heartbeats::default(),
                    pressure: Pressure::default(),
                    live: Live::default(),
                };
                send.send(state.clone()).unwrap();
                serve(listener, state, stopped).await.unwrap();
            });
        });
        Self { address, state: receive.recv().unwrap(), stop, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn send(&self, request: &str) -> Response {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Response { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn request(&self, method: &str, path: &str, fields: &str, body: &str) -> Response {
        let host = if fields.to_ascii_lowercase().contains("host:") { "" } else { "host: localhost\r\n" };
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\n{host}{fields}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    fn get(&self, path: &str) -> Response {
        self.request("GET", path, "", "")
    }

    fn post(&self, body: &str) -> Response {
        self.request("POST", "/api/v1/services/hello/weights", "content-type: application/json\r\n", body)
    }
}

#[test]
fn services_are_shown_as_they_are() {
    let admin = Admin::start("");

    let services = admin.get("/api/v1/services").json();

    let quiet = serde_json::json!({
        "requestsPerSecond": 0.0, "errorRatio": null, "p50Seconds": null, "p99Seconds": null,
    });
    let flips = serde_json::json!({
        "weight-change": 0, "abort": 0, "drain-deadline": 0, "override": 0, "when-empty": 0, "unexplained": 0,
    });
    let nobody = serde_json::json!({
        "clients": 0.0, "clientsLow": 0.0, "clientsHigh": 1.0, "requests": 0.0, "requestsLow": 0.0, "requestsHigh": 1.0,
    });
    let expected = serde_json::json!({
        "name": "hello", "affinity": {"type": "ClientIP", "timeoutSeconds": 10800}, "whenEmpty": "fallback",
        "clients": 0, "flips": flips, "versions": [
            {"name": "stable", "weight": 90.0, "share": 0.9, "clients": 0, "observed": nobody,
             "recent": quiet, "endpointsReady": 3, "isPanicking": false, "endpointsTotal": 3, "endpoints": [
                {"address": "127.0.0.1:1", "name": "127.0.0.1:1", "state": "ready", "inFlight": 0},
                {"address": "127.0.0.1:2", "name": "127.0.0.1:2", "state": "ready", "inFlight": 0},
                {"address": "127.0.0.1:7", "name": "127.0.0.1:7", "state": "ready", "inFlight": 0},
            ]},
            {"name": "canary", "weight": 10.0, "share": 0.1, "clients": 0, "observed": nobody,
             "recent": quiet, "endpointsReady": 1, "isPanicking": false, "endpointsTotal": 1, "endpoints": [
                {"address": "127.0.0.1:3", "name": "127.0.0.1:3", "state": "ready", "inFlight": 0},
            ]},
        ],
        "rollout": {
            "revision": 1, "sequence": 1, "paused": null, "stable": "stable", "source": "file",
            "fileWeights": {"stable": 90, "canary": 10}, "waiting": null, "drains": [],
            "ramp": null,
        },
    });
    assert_eq!(services["generation"], 1);
    assert_eq!(services["services"][0], expected);
    assert_eq!(services["services"][1]["affinity"], serde_json::json!({"type": "None"}));
    assert_eq!(admin.get("/api/v1/services/hello").json(), expected);
    assert_eq!(admin.get("/api/v1/services/nobody").status, 404);
}

#[test]
fn a_ramp_is_shown_with_its_steps_and_the_guards_numbers() {
    let admin = Admin::start(RAMPED);

    let begun = admin.request("POST", "/api/v1/services/ramped/promote", "", r#"{"guarded":true}"#);

    let share = begun.json()["shares"]["canary"].as_f64().unwrap_or(f64::NAN);
    assert!((share - 0.05).abs() < 1e-6, "{begun:?}");
    let ramp = &admin.get("/api/v1/services/ramped").json()["rollout"]["ramp"];
    assert_eq!((&ramp["state"], &ramp["step"]), (&Value::from("running"), &Value::from(0)));
    assert_eq!(ramp["steps"][0], serde_json::json!({"weight": "5%", "share": 0.05, "holdSeconds": 600.0}));
    assert_eq!(ramp["guard"]["verdict"], "too-few-requests");
    assert_eq!(ramp["guard"]["requests"], serde_json::json!({"stable": 0, "canary": 0}));
    let without_steps = admin.request("POST", "/api/v1/services/hello/promote", "", r#"{"guarded":true}"#);
    assert_eq!(without_steps.status, 409);
    let twice = admin.request("POST", "/api/v1/services/ramped/promote", "", r#"{"guarded":true}"#);
    assert!(twice.status == 409 && twice.body.contains("step 1 of 2"), "{twice:?}");
}

#[test]
fn set_weights_are_in_force_with_the_answer() {
    let admin = Admin::start("");

    let set = admin.post(r#"{"weights":{"canary":"20%"},"generation":1,"reason":"looks good"}"#);

    let expected = serde_json::json!({
        "service": "hello", "verb": "set-weight", "dryRun": false, "changed": true, "generation": 2, "revision": 2,
        "before": [{"name": "stable", "weight": 90.0, "share": 0.9}, {"name": "canary", "weight": 10.0, "share": 0.1}],
        "after": [{"name": "stable", "weight": 90.0, "share": 0.8}, {"name": "canary", "weight": 22.5, "share": 0.2}],
        "moves": {"clients": 0, "ofClients": 0, "requestsPerSecond": 0.0, "between": []},
        "weights": {"stable": 90.0, "canary": 22.5}, "shares": {"stable": 0.8, "canary": 0.2},
    });
    assert_eq!((set.status, set.json()), (200, expected));
    assert_eq!(admin.state.published.load().generation, 2);
    assert_eq!(admin.get("/api/v1/services/hello").json()["versions"][1]["share"], 0.2);
}

#[test]
fn a_write_that_looked_at_old_weights_is_refused() {
    let admin = Admin::start("");
    admin.post(r#"{"weights":{"canary":20}}"#);

    let late = admin.post(r#"{"weights":{"canary":30},"generation":1}"#);

    assert_eq!((late.status, &late.json()["generation"]), (409, &Value::from(2)));
    assert_eq!(admin.state.published.load().generation, 2);
}

#[test]
fn bad_weights_change_nothing_and_name_the_key() {
    let admin = Admin::start("");

    for (body, says) in [
        ("", "empty"),
        ("{", "not as expected"),
        (r#"{"weights":{}}"#, "weights: "),
        (r#"{"weights":{"canary":-3}}"#, "weights.canary: -3"),
        (r#"{"weights":{"canary":"140%"}}"#, "weights.canary: "),
        (r#"{"weights":{"stable":0,"canary":0}}"#, "weights: all weights would be 0"),
        (r#"{"weights":{"canary":1},"oops":1}"#, "oops"),
    ] {
        let refused = admin.post(body);

        assert_eq!(refused.status, 400, "{body}");
        assert!(refused.json()["error"].as_str().unwrap().contains(says), "{body}: {refused:?}");
    }
    assert_eq!(admin.state.published.load().generation, 1);
}

#[test]
fn who_may_not_write_is_told_why() {
    let admin = Admin::start("");
    let write = |fields: &str| {
        admin.request("POST", "/api/v1/services/hello/weights", fields, r#"{"weights":{"canary":20}}"#).status
    };

    assert_eq!(write("host: evil.example\r\n"), 421);
    assert_eq!(write("origin: http://evil.example\r\n"), 403);
    assert_eq!(write("content-type: text/plain\r\n"), 415);
    assert_eq!(admin.request("POST", "/api/v1/services/nobody/weights", "", r#"{"weights":{"a":1}}"#).status, 404);
    assert_eq!(admin.state.published.load().generation, 1);
}

#[test]
fn a_configured_token_guards_writes_and_nothing_else() {
    let admin = Admin::start("admin: {token: s3cret}\n");
    let write =
        |fields: &str| admin.request("POST", "/api/v1/services/hello/weights", fields, r#"{"weights":{"canary":20}}"#);

    let without = write("");

    assert_eq!(without.status, 401);
    assert!(without.head.contains("www-authenticate: bearer"), "{without:?}");
    assert_eq!(write("authorization: Bearer guess\r\n").status, 403);
    assert_eq!(write("authorization: Bearer s3cret\r\n").status, 200);
    assert_eq!(admin.get("/api/v1/services").status, 200);
    assert!(!admin.get("/config").body.contains("s3cret"));
}

#[test]
fn a_wrong_method_learns_the_right_one() {
    let admin = Admin::start("");

    let posted = admin.request("POST", "/metrics", "", "");
    let gotten = admin.get("/api/v1/services/hello/weights");

    assert_eq!((posted.status, gotten.status), (405, 405));
    assert!(posted.head.contains("allow: get, head") && gotten.head.contains("allow: post"));
}

#[test]
fn a_large_body_is_refused_before_it_is_read() {
    let admin = Admin::start("");

    let announced = admin.send(
        "POST /api/v1/services/hello/weights HTTP/1.1\r\nhost: localhost\r\ncontent-length: 104857600\r\n\r\n{\"weights\":",
    );
    let chunk = format!("11000\r\n{}\r\n", " ".repeat(0x11000));
    let streamed = admin.send(&format!(
        "POST /api/v1/services/hello/weights HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunk}",
    ));

    assert_eq!((announced.status, streamed.status), (413, 413));
}

#[test]
fn a_foreign_host_gets_nothing() {
    let admin = Admin::start("");

    for path in ["/", "/metrics", "/config", "/api/v1/services", "/nowhere"] {
        assert_eq!(admin.request("GET", path, "host: rebound.example\r\n", "").status, 421, "{path}");
    }
}

#[test]
fn readiness_follows_its_tasks_and_tells_of_reloads() {
    let admin = Admin::start("");
    let task = admin.state.readiness.wait_for("listeners");

    let waiting = admin.get("/readyz");
    drop(task);
    admin.state.readiness.reload_refused("routes[0]: bad");
    let refused = admin.get("/readyz");
    admin.state.readiness.drain();
    let draining = admin.get("/readyz");

    assert_eq!((waiting.status, refused.status, draining.status), (503, 200, 503));
    assert!(waiting.body.starts_with("waiting for: listeners\n"));
    assert_eq!(
        refused.body,
        "ready\ngeneration: 1\nlast reload: refused, the configuration before stays in force\nroutes[0]: bad\n"
    );
    assert!(draining.body.starts_with("draining\n"));
    assert_eq!(admin.get("/livez").status, 200);
    assert!(admin.get("/metrics").body.contains("\nperch_config_last_reload_successful 0\n"));
}

#[test]
fn explain_takes_the_route_the_pin_and_the_split_into_account() {
    let admin = Admin::start("");
    let snapshot = admin.state.published.load();
    let hello = &snapshot.services[0];
    let ip = std::net::IpAddr::from([192, 0, 2, 7]);
    let key = ClientKey::new(ip, KeyPrefix::default());
    let (version, endpoint) = (&hello.versions[0], &hello.versions[0].endpoints[1]);
    let own = hello.policy.split.version_of(key).unwrap();

    let (version, endpoint) = (version.id, endpoint.clone());
    let pin = Pin { version, home: Some(version), endpoint, epoch: 1, why: Why::Cohort };
    admin.state.pins.keep(hello.id, key, pin, admin.state.clock.now());
    let answer = admin.get("/api/v1/explain?host=hello.example&path=/version&ip=192.0.2.7").json();

    assert_eq!(answer["route"], "hello");
    assert_eq!(answer["version"], &*hello.versions[own].name);
    assert_eq!(answer["pin"]["endpoint"], "127.0.0.1:2");
    if own == 0 {
        assert_eq!(answer["endpoint"], "127.0.0.1:2");
    }
    assert_eq!(answer["routes"][1]["note"], "no path matches \"/version\"");
    assert_eq!(answer["generation"], 1);
}

#[test]
fn explain_says_what_the_data_path_decides() {
    let admin = Admin::start("");
    admin.post(r#"{"weights":{"canary":"40%"}}"#);
    let snapshot = admin.state.published.load();
    let hello = &snapshot.services[0];
    // One endpoint is out, one has just come back, and every third client is remembered.
    hello.versions[0].endpoints[0].health.set_healthy(false, 0);
    for is_healthy in [false, true] {
        hello.versions[0].endpoints[1].health.set_healthy(is_healthy, admin.state.clock.now());
    }
    let clients: Vec<std::net::IpAddr> = (0..60).map(|n| [10, 0, n, 7].into()).collect();
    for address in clients.iter().step_by(3) {
        let client = Client { address: *address, roll: 0, forced: None };
        decide(hello, &admin.state.pins, client, admin.state.clock.now()).unwrap();
    }

    for address in clients {
        let now = admin.state.clock.now();
        let pin = admin.state.pins.peek(hello.id, ClientKey::new(address, KeyPrefix::default()), now, Duration::MAX);
        let decided = look(hello, pin.as_ref(), Client { address, roll: 0, forced: None }, now).unwrap();
        let explained = admin.get(&format!("/api/v1/explain?service=hello&ip={address}")).json();

        assert_eq!(explained["version"], *hello.versions[decided.version].name, "{address}");
        assert_eq!(explained["endpoint"], decided.endpoint.address.to_string(), "{address}");
        assert_eq!(explained["why"], decided.why.as_str(), "{address}");
        assert_eq!(explained["pin"].is_null(), pin.is_none(), "{address}");
    }
}

#[test]
fn explain_refuses_what_it_cannot_answer() {
    let admin = Admin::start("");

    for (query, status) in [
        ("", 400),
        ("ip=nowhere", 400),
        ("ip=192.0.2.7&service=nobody", 404),
        ("ip=192.0.2.7&listener=nobody", 404),
        ("ip=192.0.2.7&host=a%20b", 400),
        ("ip=192.0.2.7&path=/../..", 400),
        ("ip=192.0.2.7&service=hello&override=always", 400),
        ("ip=192.0.2.7&nonsense=1", 400),
    ] {
        let answer = admin.get(&format!("/api/v1/explain?{query}"));

        assert_eq!(answer.status, status, "{query}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(admin.get("/api/v1/explain?ip=192.0.2.7&host=other.example").json()["reason"], "no-route");
}

#[test]
fn observed_shares_are_those_of_the_remembered_clients() {
    let admin = Admin::start("");
    let snapshot = admin.state.published.load();
    let hello = &snapshot.services[0];
    for (n, version) in [(1, 0), (2, 0), (3, 0), (4, 1)] {
        let version = &hello.versions[version];
        let key = ClientKey::new([192, 0, 2, n].into(), KeyPrefix::default());
        let endpoint = version.endpoints[0].clone();
        let pin = Pin { version: version.id, home: Some(version.id), endpoint, epoch: 1, why: Why::Cohort };
        admin.state.pins.keep(hello.id, key, pin, admin.state.clock.now());
        version.metrics.request("GET", 200, 0.001);
    }

    let shown = admin.get("/api/v1/services/hello").json();
    let metrics = admin.get("/metrics").body;

    assert_eq!(shown["clients"], 4);
    let canary = &shown["versions"][1];
    assert_eq!((&canary["clients"], &canary["observed"]["clients"]), (&Value::from(1), &Value::from(0.25)));
    let (low, high) = (&canary["observed"]["clientsLow"], &canary["observed"]["clientsHigh"]);
    assert!(low.as_f64().unwrap() < 0.05 && high.as_f64().unwrap() > 0.69, "{canary}");
    let line = "perch_split_observed_ratio{service=\"hello\",version=\"stable\",unit=\"clients\"} 0.75\n";
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains("perch_split_clients{service=\"hello\",version=\"stable\"} 3\n"));
    assert!(metrics.contains("perch_affinity_entries 4\n"));
}

#[test]
fn a_slow_head_loses_its_place() {
    let admin = Admin::start("");
    let mut slow = admin.connect();

    slow.write_all(b"GET / HTTP/1.1\r\nhost: local").unwrap();
    let mut rest = Vec::new();
    let ended = slow.read_to_end(&mut rest);

    assert!(ended.is_ok(), "the connection ends by itself: {ended:?}");
}

#[test]
fn metrics_satisfy_promtool() {
    let admin = Admin::start(RAMPED);
    let begun = admin.request("POST", "/api/v1/services/ramped/promote", "", r#"{"guarded":true}"#);
    assert_eq!(begun.status, 200, "{begun:?}");
    metrics::rollout_start("ramped");
    let snapshot = admin.state.published.load();
    let version = &snapshot.services[0].versions[0];
    version.metrics.request("GET", 200, 0.001);
    version.metrics.connect(0.001);
    version.metrics.upstream_failure(crate::reason::Reason::ConnectRefused);
    version.metrics.retry();
    metrics::start();
    metrics::certificates("https", [("hello \"quoted\" \\ name".to_owned(), 1_900_000_000)]);
    let listener = metrics::ListenerMetrics::new("https");
    let _open = listener.opened();
    metrics::kubernetes_start();
    metrics::kubernetes_leader(true);
    admin.state.pressure.set(crate::decide::shedding::Shedding::Nothing, Some((1 << 20, 2 << 20)));
    metrics::kubernetes_event_age("endpointslices", Duration::from_secs(1));

    let text = admin.get("/metrics").body;

    let promtool = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("skipped: promtool is not installed (Debian: prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
    for metric in metrics::ALL {
        assert!(text.contains(&format!("# TYPE {} ", metric.name)), "{} is missing", metric.name);
    }
}
