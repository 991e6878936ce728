//! What may go wrong around a real upgrade: one of the two is killed, or told something else meanwhile.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use super::{Upgraded, has_ended, launch, signal};
use crate::front;
use crate::support::{Act, Client, Launch, PATIENCE, Process, Seen, TestBackend, eventually, eventually_some, ok};

/// Of `open(2)` on Linux: whoever opens a pipe that nobody reads is told so.
const O_NONBLOCK: i32 = 0o4000;

/// Puts this shell script where the program was.
fn replace_program(dir: &Path, script: &str) {
    let beside = dir.join("perch.new");
    std::fs::write(&beside, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&beside, dir.join("perch")).unwrap();
}

/// A program that never says a word, and tells its id and when it is asked to end.
fn silent(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "sleep 300 & trap 'kill $!; touch {dir}/asked; exit 0' TERM
         echo $$ > {dir}/started.new; mv {dir}/started.new {dir}/started; wait"
    )
}

fn started(dir: &Path) -> u64 {
    eventually_some(PATIENCE, || std::fs::read_to_string(dir.join("started")).ok()?.trim().parse().ok())
}

#[test]
fn an_old_perch_that_is_killed_half_way_is_taken_over() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend).by_link());
    let (dir, text) = (perch.dir().to_owned(), std::fs::read_to_string(perch.config_file()).unwrap());
    // The new one has its sockets, and reads its configuration from a pipe for as long as the test likes.
    let next = dir.join("next.yaml");
    assert!(Command::new("mkfifo").arg(&next).status().unwrap().success());
    replace_program(
        &dir,
        &format!(
            "exec {} serve --config {} --announce {}/announce.json",
            env!("CARGO_BIN_EXE_perch"),
            next.display(),
            dir.display()
        ),
    );
    perch.signal("USR2");
    let mut pipe =
        eventually_some(PATIENCE, || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&next).ok());
    std::fs::write(dir.join("a-file"), &text).unwrap();
    std::fs::rename(dir.join("a-file"), &next).unwrap();

    perch.signal("KILL");
    perch.perch.wait(PATIENCE);
    let mut waiting = Client::plain(perch.address("http"));
    waiting.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    pipe.write_all(text.as_bytes()).unwrap();
    drop(pipe);

    let first = perch.pids[0];
    eventually(PATIENCE, || perch.announced() != first);
    perch.pids.push(perch.announced());
    assert_eq!(waiting.response().text(), "stable");
    for _ in 0..10 {
        assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
    }
    assert_eq!(perch.admin_get("/readyz").status, 200);
}

/// A perch whose `/slow` waits for the backend's gate, and a client that waits for it while another perch has taken over.
fn drains(backend: &TestBackend) -> (Upgraded, Client) {
    backend.script(|seen: &Seen| {
        if seen.target() == "/slow" { [vec![Act::Gate], ok(seen, "late")].concat() } else { ok(seen, "now") }
    });
    let mut perch = Upgraded::start(launch(backend));
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "now");
    let mut slow = Client::plain(perch.address("http"));
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || backend.count() == 2);
    perch.upgrade();
    eventually(PATIENCE, || perch.stderr().contains("Another perch has taken over; draining."));
    (perch, slow)
}

#[test]
fn an_old_perch_that_is_killed_while_it_drains_costs_its_own_requests_only() {
    let backend = TestBackend::named("stable");
    let (mut perch, mut slow) = drains(&backend);

    signal("KILL", perch.pids[0]);

    assert!(slow.try_response().is_err());
    eventually(PATIENCE, || perch.stderr().contains("The old perch has ended."));
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "now");
    // What it had counted before is still known.
    let series = r#"perch_requests_total{service="app",version="stable",method="GET",code="200"}"#;
    eventually(PATIENCE, || perch.metric(series) == Some(2.0));
    perch.upgrade();
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "now");
    perch.others_end();
    eventually(PATIENCE, || perch.metric(series) == Some(3.0));
}

#[test]
fn signals_to_one_that_drains_for_another_cut_nothing() {
    let backend = TestBackend::named("stable");
    let (mut perch, mut slow) = drains(&backend);
    let old = perch.pids[0];

    signal("USR2", old);
    eventually(PATIENCE, || perch.stderr().contains("it is the one to upgrade now"));
    signal("TERM", old);
    eventually(PATIENCE, || perch.stderr().contains("Draining already; another signal ends at once."));
    backend.open_gate();

    assert_eq!(slow.response().text(), "late");
    assert_eq!(perch.perch.wait(PATIENCE).code(), Some(0));
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "now");
}

#[test]
fn a_second_upgrade_is_one_too_many_and_a_drain_ends_the_first() {
    let backend = TestBackend::named("stable");
    let mut perch = Upgraded::start(launch(&backend).by_link());
    let dir = perch.dir().to_owned();
    replace_program(&dir, &silent(&dir));
    perch.signal("USR2");
    let new = started(&dir);
    perch.pids.push(new);
    std::fs::remove_file(dir.join("started")).unwrap();

    signal("USR2", perch.pids[0]);
    eventually(PATIENCE, || perch.stderr().contains("An upgrade is under way already."));

    assert!(!dir.join("started").exists());
    assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
    perch.perch.terminate();
    assert_eq!(perch.perch.wait(PATIENCE).code(), Some(0));
    // Asked to end, not killed: it may have begun to serve in that moment.
    eventually(PATIENCE, || dir.join("asked").exists() && has_ended(new));
    // The whole of it: it has ended.
    let said = perch.stderr();
    assert!(said.contains("perch is to stop") && said.contains("Drained."), "{said}");
}

#[test]
fn process_1_refuses_to_upgrade_and_goes_on() {
    let options = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !crate::hostile::may_unshare(&options) {
        return;
    }
    let backend = TestBackend::named("stable");
    let launch = Launch::new(&front::config("", "", &[backend.address()]));
    let dir = launch.dir().to_owned();
    let mut command = Command::new("unshare");
    command.args(options).arg(env!("CARGO_BIN_EXE_perch")).arg("serve");
    command.arg("--config").arg(dir.join("perch.yaml")).arg("--announce").arg(dir.join("announce.json"));
    let mut process = Process::start(&mut command);
    eventually(PATIENCE, || dir.join("announce.json").exists() || process.try_wait().is_some());
    let text = std::fs::read_to_string(dir.join("announce.json")).unwrap();
    let announced: serde_json::Value = serde_json::from_str(&text).unwrap();
    let http = announced["listeners"]["http"].as_str().unwrap().parse().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid())).unwrap();
    assert_eq!(announced["pid"], 1);

    signal("USR2", children.trim().parse().unwrap());

    eventually(PATIENCE, || process.stderr().contains("process 1"));
    assert_eq!(Client::plain(http).get("a", "/").text(), "stable");
    assert!(!process.stderr().contains("Started another perch"), "{}", process.stderr());
}
