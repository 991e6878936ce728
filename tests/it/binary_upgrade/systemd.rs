//! What systemd hears in NOTIFY_SOCKET (Type=notify and notify-reload), and in which order.

use std::os::unix::net::UnixDatagram;

use super::{Upgraded, has_ended, launch};
use crate::support::{PATIENCE, TestBackend, eventually};

/// Waits for the next word.
#[track_caller]
fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// RELOADING with the time of its clock, then READY.
#[track_caller]
fn reloaded(socket: &UnixDatagram) {
    let word = heard(socket);
    let time = word.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{word}"));
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let seconds = time.parse::<u64>().unwrap() as f64 / 1e6;
    // The clock of the uptime also counts while the machine sleeps.
    assert!(seconds > 0.0 && seconds <= uptime + 1.0, "{seconds} of {uptime}");
    assert_eq!(heard(socket), "READY=1");
}

#[test]
fn systemd_is_told_of_starts_reloads_upgrades_and_the_end_in_order() {
    let backend = TestBackend::named("stable");
    let launch = launch(&backend);
    let path = launch.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut perch = Upgraded::start(launch.env("NOTIFY_SOCKET", path.to_str().unwrap()));
    assert_eq!(heard(&socket), "READY=1");

    perch.signal("HUP");
    reloaded(&socket);
    // A refused one is over as well: the last good one serves.
    let good = std::fs::read_to_string(perch.config_file()).unwrap();
    perch.rewrite_config("listeners: no\n");
    reloaded(&socket);
    perch.rewrite_config(&good);
    reloaded(&socket);

    perch.upgrade();
    // The new one serves before systemd is told whom to follow; the old one, which drains, does not say that it stops.
    assert_eq!(heard(&socket), "READY=1");
    assert_eq!(heard(&socket), format!("MAINPID={}", perch.pids[1]));
    perch.others_end();
    perch.signal("TERM");
    assert_eq!(heard(&socket), "STOPPING=1");
    eventually(PATIENCE, || has_ended(perch.pids[1]));
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 8]).is_err());
}
