//! The process itself: what it does when the system gives it no more.

use std::fs::OpenOptions;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use crate::front::{Front, front};
use crate::support::{PATIENCE, connect_from, eventually, eventually_some};

/// Of Linux.
const O_NONBLOCK: i32 = 0o4000;

/// Changes the limit of open files of the running perch; false where there is no prlimit.
fn limit_files(front: &Front, files: usize) -> bool {
    let pid = front.perch.pid().to_string();
    // The soft limit only: it may be raised again.
    Command::new("prlimit").arg(format!("--nofile={files}:")).arg("--pid").arg(pid).status().is_ok_and(|s| s.success())
}

/// User and system time so far, in clock ticks.
fn ticks(front: &Front) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", front.perch.pid())).unwrap();
    let rest = stat.rsplit(')').next().unwrap();
    rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

#[test]
fn without_free_descriptors_accepting_rests_and_recovers() {
    let front = front();
    let mut open = front.client();
    assert_eq!(open.get("a", "/").text(), "stable");
    let used = std::fs::read_dir(format!("/proc/{}/fd", front.perch.pid())).unwrap().count();
    if !limit_files(&front, used + 2) {
        eprintln!("no prlimit here");
        return;
    }

    let crowd: Vec<TcpStream> =
        (0..20).map(|_| connect_from([127, 0, 0, 1].into(), front.address()).unwrap()).collect();
    eventually(PATIENCE, || front.perch.stderr().contains("Cannot accept connections."));
    // Those who are in are served.
    assert_eq!(open.get("a", "/").text(), "stable");
    let (before, start) = (ticks(&front), std::time::Instant::now());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let spent = ticks(&front) - before;

    // 100 ticks a second: a loop that spins on the error would take all of them, on both workers.
    assert!(spent < 50 * start.elapsed().as_secs().max(1), "{spent} ticks");
    let lines = front.perch.stderr().matches("Cannot accept connections.").count();
    assert!(lines < 20, "{lines} lines");
    assert!(limit_files(&front, 1024));
    drop(crowd);
    eventually(PATIENCE, || {
        let mut client = front.client();
        client.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok()
            && client.try_response().is_ok_and(|a| a.status == 200)
    });
    assert!(front.perch.metric("perch_accept_errors_total{listener=\"http\"}").unwrap() > 0.0);
}

#[test]
fn a_reload_while_it_starts_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let (config, announced) = (folder.path().join("perch.yaml"), folder.path().join("announce.json"));
    // It starts for as long as nobody writes its configuration.
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    let mut perch = Command::new(env!("CARGO_BIN_EXE_perch"))
        .arg("serve")
        .args(["--config", config.to_str().unwrap(), "--announce", announced.to_str().unwrap()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", perch.id());
    let catches_hangups = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim().to_owned();
        u64::from_str_radix(&caught, 16).is_ok_and(|caught| caught & 1 == 1)
    };
    eventually(PATIENCE, catches_hangups);

    let hangup = Command::new("kill").args(["-HUP", &perch.id().to_string()]).status().unwrap();
    // Read again later, it is a file like others.
    let text = crate::front::config("", "", &["127.0.0.1:9".parse().unwrap()]);
    let beside = folder.path().join("beside");
    std::fs::write(&beside, &text).unwrap();
    // Not to be opened for writing unless somebody reads.
    let open = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&config).ok();
    let mut awaited = eventually_some(PATIENCE, open);
    std::fs::rename(&beside, &config).unwrap();
    std::io::Write::write_all(&mut awaited, text.as_bytes()).unwrap();
    drop(awaited);

    assert!(hangup.success());
    eventually(PATIENCE, || announced.exists());
    perch.kill().unwrap();
    perch.wait().unwrap();
}
