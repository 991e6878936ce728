//! `perch promote --guarded --wait`: what its exit code says and what it tells, also over a restart of perch.

use std::net::SocketAddr;
use std::process::ExitStatus;

use super::{LONG, Ramp, Users, begin, ramp, service, share, text, until_some};
use crate::support::{Launch, PATIENCE, Process, TestBackend, TestPerch, eventually, response};

fn promote(admin: SocketAddr, more: &[&str]) -> Process {
    let admin = format!("http://{admin}");
    let arguments = ["promote", "app", "--guarded", "--wait", "--reason", "release 7", "--admin", &admin];
    Process::perch([&arguments[..], more].concat())
}

fn ended(mut process: Process) -> (ExitStatus, String) {
    let status = process.wait(LONG);
    (status, process.stderr())
}

/// A port that nobody else takes while perch is down.
fn held_address() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn who_waits_for_a_good_ramp_sees_its_steps_and_gets_0() {
    let test = Ramp::start(&service(&[("10%", 1.0), ("50%", 1.0)], ""));
    let _users = test.users();

    let (status, told) = ended(promote(test.perch.admin(), &[]));

    assert_eq!(status.code(), Some(0), "{told}");
    assert!(told.contains("step 1 of 3: running\n") && told.contains("step 2 of 3: running\n"), "{told}");
    assert!(told.ends_with("step 3 of 3: done: `canary` has passed every step\n"), "{told}");
    assert_eq!(share(&test.perch), 1.0);
}

#[test]
fn who_waits_for_a_ramp_that_is_aborted_gets_1_and_the_reason() {
    let test = Ramp::start(&service(&[("10%", 600.0)], ""));
    test.canary.script(|seen| vec![response(seen, "500 Oh no", "", "boom")]);
    let _users = test.users();

    let (status, told) = ended(promote(test.perch.admin(), &[]));

    assert_eq!(status.code(), Some(1), "{told}");
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("step 1 of 2: aborted: canary failed ") && last.contains("evidence "), "{told}");
}

#[test]
fn who_waits_long_enough_is_told_what_the_ramp_waits_for() {
    let test = Ramp::start(&service(&[("10%", 0.1)], ""));

    let (status, told) = ended(promote(test.perch.admin(), &["--timeout", "2s"]));

    assert_eq!(status.code(), Some(1), "{told}");
    assert!(
        told.contains("the ramp of app has not ended after ")
            && told.contains("holding: too few requests: canary 0, stable 0 of 50"),
        "{told}"
    );
    // It was not ended by that.
    assert_eq!(ramp(&test.perch)["state"], "holding");
}

#[test]
fn who_waits_waits_over_a_restart_of_perch() {
    let kept = tempfile::tempdir().unwrap();
    let (_held, admin) = held_address();
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let start = || {
        let config = text(&service(&[("10%", 3.0)], ""), &[stable.address()], &[canary.address()])
            .replace("admin: {address: \"127.0.0.1:0\"}", &format!("admin: {{address: \"{admin}\"}}"));
        Launch::new(&format!("stateDir: {}\n{config}", kept.path().display())).start()
    };
    // Some decisions before, so that generations begin anew while the ramp's own number does not.
    let mut perch: TestPerch = start();
    for _ in 0..3 {
        super::post(&perch, "pause", &serde_json::json!({}));
        super::post(&perch, "resume", &serde_json::json!({}));
    }
    let waiting = promote(admin, &[]);
    eventually(PATIENCE, || waiting.stderr().contains("step 1 of 2: running"));

    perch.signal("KILL");
    perch.wait(PATIENCE);
    eventually(PATIENCE, || waiting.stderr().contains("cannot be reached"));
    let perch = start();
    let _users = Users::of(&perch);

    let (status, told) = ended(waiting);
    assert_eq!(status.code(), Some(0), "{told}");
    assert!(told.contains("perch answers again\n") && told.ends_with("every step\n"), "{told}");
}

#[test]
fn a_ramp_that_a_restart_forgot_is_not_waited_for() {
    let (_held, admin) = held_address();
    let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
    let start = || {
        let config = text(&service(&[("10%", 600.0)], ""), &[stable.address()], &[canary.address()]);
        Launch::new(&config.replace("admin: {address: \"127.0.0.1:0\"}", &format!("admin: {{address: \"{admin}\"}}")))
            .start()
    };
    let mut perch = start();
    let waiting = promote(admin, &[]);
    eventually(PATIENCE, || waiting.stderr().contains("step 1 of 2: running"));

    perch.signal("KILL");
    perch.wait(PATIENCE);
    let perch = start();

    let (status, told) = ended(waiting);
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.ends_with("perch was restarted, and keeps nothing without a stateDir\n"), "{told}");
    assert!(ramp(&perch).is_null());
}

#[test]
fn a_second_ramp_is_refused_while_one_is_under_way() {
    let test = Ramp::start(&service(&[("10%", 600.0)], ""));
    begin(&test.perch);
    until_some(&test.perch, |ramp| ramp["state"] == "running");

    let (status, told) = ended(promote(test.perch.admin(), &[]));

    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("under way"), "{told}");
}
