//! Guarded ramps on the built binary, with short holds: to the end, aborted by themselves, held, waiting, killed and
//! gone on, and whatever a person does in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::front::{listener_of, whole};
use crate::support::{
    Act, Client, Launch, PATIENCE, Process, TestBackend, TestPerch, eventually, eventually_some, response,
};

mod waits;

/// A ramp has seconds of holds in it, on a machine that may be busy.
const LONG: Duration = Duration::from_secs(60);

/// Steps in seconds, and a guard that only errors concern: latencies of a busy test machine are nobody's fault.
fn service(steps: &[(&str, f64)], more: &str) -> String {
    let steps: Vec<String> =
        steps.iter().map(|(share, hold)| format!("{{weight: {share}, hold: {}ms}}", hold * 1000.0)).collect();
    format!(
        "rollout:\n  settle: 0s\n  steps: [{}, {{weight: 100%}}]\n  guard: {{minRequests: 50, latencyTolerance: 1000%}}\n{more}",
        steps.join(", ")
    )
}

fn text(service: &str, stable: &[SocketAddr], canary: &[SocketAddr]) -> String {
    let listener = listener_of("http", "trustedProxies: [127.0.0.0/8]");
    whole(&listener, service, &[("stable", 1, stable), ("canary", 0, canary)])
}

/// Two versions behind perch, and users.
struct Ramp {
    perch: TestPerch,
    stable: TestBackend,
    canary: TestBackend,
    service: String,
}

impl Ramp {
    fn start(service: &str) -> Self {
        let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
        let perch = TestPerch::start(&text(service, &[stable.address()], &[canary.address()]));
        Self { perch, stable, canary, service: service.to_owned() }
    }

    fn users(&self) -> Users {
        Users::of(&self.perch)
    }

    /// With another endpoint for the canary.
    fn reload_with(&self, more: SocketAddr) {
        let canary = [self.canary.address(), more];
        self.perch.rewrite_config(&text(&self.service, &[self.stable.address()], &canary));
    }
}

/// Five hundred users who ask in turn, until dropped.
pub(crate) struct Users {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Users {
    pub(crate) fn of(perch: &TestPerch) -> Self {
        let address = perch.address("http");
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2u8).map(|n| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut client = Client::plain(address);
                for user in (0..250u8).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let sent = client
                        .try_send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.7.{n}.{user}\r\n\r\n"));
                    // perch was killed.
                    if sent.and_then(|()| client.try_response()).is_err() {
                        return;
                    }
                    // Some hundred requests a second, whatever the machine.
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        });
        Self { threads: threads.collect(), stop }
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a user panicked");
        }
    }
}

#[track_caller]
fn post(perch: &TestPerch, verb: &str, body: &Value) -> Value {
    let answer = perch.admin_post(&format!("/api/v1/services/app/{verb}"), body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn begin(perch: &TestPerch) {
    post(perch, "promote", &json!({"guarded": true, "reason": "release 7"}));
}

fn app(perch: &TestPerch) -> Value {
    perch.admin_json("/api/v1/services/app")
}

fn ramp(perch: &TestPerch) -> Value {
    app(perch)["rollout"]["ramp"].clone()
}

fn share(perch: &TestPerch) -> f64 {
    app(perch)["versions"][1]["share"].as_f64().unwrap()
}

/// Waits for a state, and says the ramp then.
#[track_caller]
fn until(perch: &TestPerch, state: &str) -> Value {
    until_some(perch, |ramp| ramp["state"] == state)
}

#[track_caller]
fn until_some(perch: &TestPerch, is_it: impl Fn(&Value) -> bool) -> Value {
    eventually_some(LONG, || Some(ramp(perch)).filter(|ramp| is_it(ramp)))
}

fn flips(perch: &TestPerch, reason: &str) -> f64 {
    perch.metric(&format!("perch_version_flips_total{{service=\"app\",reason=\"{reason}\"}}")).unwrap()
}

/// Newest first: verb and who.
fn history(perch: &TestPerch) -> Vec<(String, String)> {
    let history = perch.admin_json("/api/v1/services/app/history");
    let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    history.as_array().unwrap().iter().map(|e| (word(e, "verb"), word(e, "who"))).collect()
}

#[test]
fn a_good_canary_takes_over_step_by_step() {
    let test = Ramp::start(&service(&[("10%", 1.0), ("50%", 1.0)], ""));
    let _users = test.users();

    begin(&test.perch);

    assert!((share(&test.perch) - 0.1).abs() < 1e-4);
    let done = until(&test.perch, "done");
    assert_eq!(done["why"], "`canary` has passed every step");
    assert_eq!((share(&test.perch), &app(&test.perch)["rollout"]["stable"]), (1.0, &json!("canary")));
    let verbs: Vec<String> = history(&test.perch).into_iter().map(|(verb, _)| verb).collect();
    assert_eq!(verbs, ["promote", "ramp", "ramp", "file"]);
    assert_eq!(flips(&test.perch, "unexplained"), 0.0);
}

#[test]
fn a_failing_canary_is_aborted_by_itself_and_a_webhook_told() {
    let (stable, hook) = (TestBackend::named("stable"), TestBackend::named("hook"));
    let backend = Process::perch(["backend", "hello", "--fail-rate", "0.3"]);
    let line = eventually_some(PATIENCE, || backend.stdout().lines().next().map(str::to_owned));
    let canary = line.split("http://").nth(1).unwrap().trim_end_matches(", health on ").parse().unwrap();
    let more = format!("  webhook: http://{}/ramp\n", hook.address());
    let perch = TestPerch::start(&text(&service(&[("10%", 600.0)], &more), &[stable.address()], &[canary]));
    let _users = Users::of(&perch);

    begin(&perch);

    let aborted = until(&perch, "aborted");
    let why = aborted["why"].as_str().unwrap();
    assert!(why.starts_with("canary failed ") && why.contains("in the same time; evidence "), "{why}");
    let served = aborted["guard"]["requests"]["canary"].as_u64().unwrap();
    assert!(served < 2_000, "{served}");
    // With the last numbers, a moment later.
    until_some(&perch, |ramp| ramp["guard"]["p99"]["canary"].is_number());
    assert_eq!(share(&perch), 0.0);
    assert_eq!(history(&perch)[0], ("abort".to_owned(), "ramp".to_owned()));
    assert_eq!(perch.metric("perch_rollout_aborts_total{service=\"app\",reason=\"errors\"}"), Some(1.0));
    assert_eq!(perch.metric("perch_rollout_step{service=\"app\"}"), Some(0.0));
    eventually(PATIENCE, || flips(&perch, "abort") > 0.0);
    assert_eq!(flips(&perch, "unexplained"), 0.0);
    eventually(PATIENCE, || hook.count() > 0);
    let told = hook.last();
    assert_eq!(told.start_line(), "POST /ramp HTTP/1.1");
    let told: Value = serde_json::from_slice(&told.body).unwrap();
    assert_eq!(
        (&told["event"], &told["service"], &told["canary"]),
        (&json!("aborted"), &json!("app"), &json!("canary"))
    );
    assert_eq!((&told["step"], &told["why"]), (&json!(0), &aborted["why"]));
    assert!(told["guard"]["errors"]["canary"].as_u64() > Some(0), "{told}");
    assert!(perch.stderr().contains("Aborted a ramp"), "the log says it, too: {}", perch.stderr());
}

#[test]
fn the_guard_aborts_although_nothing_can_be_stored() {
    let kept = tempfile::tempdir().unwrap();
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    canary.script(|seen| vec![response(seen, "500 Oh no", "", "boom")]);
    let config = text(&service(&[("10%", 600.0)], ""), &[stable.address()], &[canary.address()]);
    let perch = TestPerch::start(&format!("stateDir: {}\n{config}", kept.path().display()));
    begin(&perch);

    kept.close().unwrap();
    let _users = Users::of(&perch);

    until(&perch, "aborted");
    assert_eq!(share(&perch), 0.0);
    assert_eq!(perch.admin_post("/api/v1/services/app/pause", &json!({})).status, 503);
}

#[test]
fn killed_in_the_middle_it_goes_on_at_the_same_step() {
    let kept = tempfile::tempdir().unwrap();
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let service = service(&[("10%", 1.0), ("30%", 600.0)], "");
    let config = text(&service, &[stable.address()], &[canary.address()]);
    let config = format!("stateDir: {}\n{config}", kept.path().display());
    let mut perch = Launch::new(&config).start();
    let users = Users::of(&perch);
    begin(&perch);
    let before = until_some(&perch, |ramp| ramp["step"] == 1);
    // Long enough that the time of the hold was noted.
    let before = until_some(&perch, |ramp| {
        let left = |of: &Value| of["holdLeftSeconds"].as_f64().unwrap();
        left(ramp) < left(&before) - 6.0
    });

    perch.signal("KILL");
    perch.wait(PATIENCE);
    drop(users);
    let perch = Launch::new(&config).start();
    let _users = Users::of(&perch);

    let after = ramp(&perch);
    assert_eq!((&after["state"], &after["step"]), (&json!("running"), &json!(1)));
    let left = after["holdLeftSeconds"].as_f64().unwrap();
    assert!(left < 600.0 && left >= before["holdLeftSeconds"].as_f64().unwrap(), "{left} of {before}");
    assert!((share(&perch) - 0.3).abs() < 1e-4);
    let counted = |ramp: &Value| ramp["guard"]["requests"]["canary"].as_u64().unwrap();
    assert!(counted(&after) > 0, "the counts of the step are kept: {after}");
    until_some(&perch, |ramp| counted(ramp) > counted(&after));
    assert_eq!((flips(&perch, "unexplained"), flips(&perch, "weight-change")), (0.0, 0.0));
    let again = history(&perch);
    assert_eq!(again.iter().filter(|(verb, _)| verb == "ramp").count(), 2, "{again:?}");
}

/// A canary that does what the path says, each time on a connection of its own.
fn troubled(flaky: &Arc<AtomicBool>) -> TestBackend {
    let flaky = flaky.clone();
    TestBackend::scripted(move |seen| match seen.target().as_str() {
        "/boom" => vec![response(seen, "500 Oh no", "connection: close\r\n", "boom"), Act::Close],
        "/missing" => vec![response(seen, "404 Not Found", "connection: close\r\n", "none"), Act::Close],
        "/cut" => vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()), Act::Close],
        "/flaky" if flaky.swap(false, Ordering::Relaxed) => vec![Act::Close],
        _ => vec![response(seen, "200 OK", "connection: close\r\n", "canary"), Act::Close],
    })
}

#[test]
fn failures_are_5xx_broken_answers_and_failed_attempts_and_nothing_else() {
    // Two endpoints, so that there is another one to try; the first try fails, whichever it is.
    let flaky = Arc::new(AtomicBool::new(true));
    let (stable, canary, other) = (TestBackend::named("stable"), troubled(&flaky), troubled(&flaky));
    let perch = TestPerch::start(&text(
        &service(&[("50%", 600.0)], ""),
        &[stable.address()],
        &[canary.address(), other.address()],
    ));
    begin(&perch);
    let send = |user: u8, path: &str| {
        let mut client = Client::plain(perch.address("http"));
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.8.0.{user}\r\n\r\n"));
        client
    };
    // The first reading is the beginning of the window.
    until_some(&perch, |ramp| ramp["holdLeftSeconds"].as_f64() < Some(600.0));
    let user = (0..100).find(|user| send(*user, "/ok").response().text() == "canary").expect("half of them are");
    let counts =
        || (ramp(&perch)["guard"]["requests"]["canary"].clone(), ramp(&perch)["guard"]["errors"]["canary"].clone());
    eventually(PATIENCE, || counts() == (json!(1), json!(0)));

    for path in ["/ok", "/missing", "/ok"] {
        send(user, path).response();
    }
    eventually(PATIENCE, || counts() == (json!(4), json!(0)));
    assert_eq!(send(user, "/boom").response().status, 500);
    eventually(PATIENCE, || counts() == (json!(5), json!(1)));
    assert!(send(user, "/cut").try_response().is_err());
    eventually(PATIENCE, || counts() == (json!(6), json!(2)));
    assert_eq!(send(user, "/flaky").response().status, 200);
    eventually(PATIENCE, || counts() == (json!(7), json!(3)));
}

#[test]
fn a_person_pauses_skips_and_aborts() {
    let test = Ramp::start(&service(&[("10%", 600.0), ("30%", 600.0)], ""));
    let _users = test.users();
    begin(&test.perch);

    post(&test.perch, "pause", &json!({}));
    let paused = until(&test.perch, "paused");
    let left = |ramp: &Value| ramp["holdLeftSeconds"].as_f64().unwrap();
    until_some(&test.perch, |ramp| {
        ramp["guard"]["requests"]["canary"].as_u64() > paused["guard"]["requests"]["canary"].as_u64()
    });
    assert_eq!(left(&ramp(&test.perch)), left(&until(&test.perch, "paused")));
    post(&test.perch, "resume", &json!({"skip": true}));
    let skipped = until_some(&test.perch, |ramp| ramp["step"] == 1);
    assert_eq!(skipped["state"], "running");
    assert!((share(&test.perch) - 0.3).abs() < 1e-4);
    post(&test.perch, "abort", &json!({"reason": "enough"}));

    let aborted = ramp(&test.perch);
    assert_eq!(aborted["state"], "aborted");
    assert!(aborted["why"].as_str().unwrap().starts_with("ended by abort ("), "{aborted}");
    assert_eq!(share(&test.perch), 0.0);
}

#[test]
fn too_few_requests_hold_the_step() {
    let test = Ramp::start(&service(&[("10%", 0.1)], ""));
    begin(&test.perch);

    let held = until(&test.perch, "holding");

    assert_eq!(held["why"], "too few requests: canary 0, stable 0 of 50");
    assert!((share(&test.perch) - 0.1).abs() < 1e-4);
    let _users = test.users();
    until(&test.perch, "done");
}

#[test]
fn while_endpoints_change_it_waits() {
    let service = service(&[("10%", 600.0)], "").replace("settle: 0s", "settle: 2s");
    let test = Ramp::start(&service);
    let _users = test.users();
    begin(&test.perch);
    until_some(&test.perch, |ramp| ramp["guard"]["requests"]["canary"].as_u64() > Some(0));

    test.reload_with(TestBackend::named("canary").address());

    let waiting = until(&test.perch, "waiting");
    assert!(waiting["why"].as_str().unwrap().starts_with("endpoints changed "), "{waiting}");
    let running = until(&test.perch, "running");
    assert_eq!(running["step"], 0);
    assert!((share(&test.perch) - 0.1).abs() < 1e-4);
}

#[test]
fn a_start_in_the_configuration_begins_one_ramp_for_each_id() {
    let base = service(&[("10%", 600.0)], "");
    let test = Ramp::start(&base);
    let start = |id: &str| {
        let service = format!("{base}  start: {{version: canary, id: {id}}}\n");
        test.perch.rewrite_config(&text(&service, &[test.stable.address()], &[test.canary.address()]));
    };
    assert_eq!(ramp(&test.perch), Value::Null);

    start("r1");
    until(&test.perch, "running");
    post(&test.perch, "abort", &json!({}));
    let generation = test.perch.metric("perch_config_generation").unwrap();
    // A change of something else is no new start.
    test.perch.rewrite_config(&text(
        &format!("{base}  start: {{version: canary, id: r1}}\nversionHeader: true"),
        &[test.stable.address()],
        &[test.canary.address()],
    ));
    eventually(PATIENCE, || test.perch.metric("perch_config_generation").unwrap() > generation);
    // Two looks of the runner.
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(ramp(&test.perch)["state"], "aborted");
    start("r2");

    until(&test.perch, "running");
    let begun = history(&test.perch);
    assert_eq!(begun[0], ("ramp".to_owned(), "configuration".to_owned()));
}
