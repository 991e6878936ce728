//! Reload by SIGHUP and by a changed file: all or nothing, and what is open lives on.

use std::net::{SocketAddr, TcpListener};

use crate::front::{Front, assert_refused, config, front, front_tls, listener_of, tls_config, whole};
use crate::support::{Act, Client, PATIENCE, Seen, TestBackend, TestPerch, eventually, ok, write_certificate};

fn generation(perch: &TestPerch) -> f64 {
    perch.metric("perch_config_generation").unwrap()
}

/// Writes a configuration and waits until it is in force.
#[track_caller]
fn take_over(perch: &TestPerch, text: &str) {
    let before = generation(perch);
    perch.rewrite_config(text);
    eventually(PATIENCE, || generation(perch) > before);
    // The listeners follow the snapshot; then it is said.
    let said = format!("Reloaded the configuration. generation={}", generation(perch));
    eventually(PATIENCE, || perch.stderr().contains(&said));
}

/// Writes a configuration and waits until it was refused; what `/readyz` says.
#[track_caller]
fn refuse(perch: &TestPerch, text: &str) -> String {
    perch.rewrite_config(text);
    eventually(PATIENCE, || perch.metric("perch_config_last_reload_successful") == Some(0.0));
    perch.admin_get("/readyz").text()
}

/// The address where a listener was bound after the start.
#[track_caller]
fn new_address(perch: &TestPerch, listener: &str) -> SocketAddr {
    let mark = format!("listener={listener} address=");
    crate::support::eventually_some(PATIENCE, || {
        let log = perch.stderr();
        let line = log
            .lines()
            .filter(|line| line.contains("Listening."))
            .filter_map(|line| line.split_once(&mark))
            .next_back()?;
        line.1.split(' ').next()?.parse().ok()
    })
}

#[test]
fn a_hangup_takes_the_file_over_and_connections_live_on() {
    let front = front();
    let mut client = front.client();
    assert_eq!(client.get("a", "/").text(), "stable");
    let other = TestBackend::named("other");

    // In place, not renamed: both ways of writing must work. The signal or the watch, whichever comes first.
    std::fs::write(front.perch.config_file(), config("", "", &[other.address()])).unwrap();
    front.perch.signal("HUP");

    eventually(PATIENCE, || client.get("a", "/").text() == "other");
}

#[test]
fn a_request_under_way_is_not_touched_by_a_reload() {
    let front = front();
    front.backend.script(|seen: &Seen| [vec![Act::Gate], ok(seen, "late")].concat());
    let mut client = front.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(PATIENCE, || front.backend.count() == 1);

    take_over(&front.perch, &config("", "versionHeader: true", &[front.backend.address()]));
    front.backend.open_gate();

    assert_eq!(client.response().text(), "late");
}

#[test]
fn an_invalid_file_keeps_the_old_routes_and_says_so() {
    let front = front();
    let good = config("", "", &[front.backend.address()]);

    let said = refuse(&front.perch, &good.replace("service: app", "service: nobody"));

    assert!(said.contains("routes[0].service"), "{said}");
    assert_eq!(front.perch.admin_get("/readyz").status, 200);
    assert_eq!(generation(&front.perch).to_string(), "1");
    assert_eq!(front.client().get("a", "/").text(), "stable");
    eventually(PATIENCE, || front.perch.stderr().contains("routes[0].service"));

    take_over(&front.perch, &good.replace("accessLog", "affinity: {maxPins: 1000}\naccessLog"));
    assert_eq!(front.perch.metric("perch_config_last_reload_successful"), Some(1.0));
}

#[test]
fn a_file_that_is_gone_or_cut_keeps_the_old_routes() {
    let front = front();

    std::fs::remove_file(front.perch.config_file()).unwrap();
    front.perch.signal("HUP");
    eventually(PATIENCE, || front.perch.metric("perch_config_last_reload_successful") == Some(0.0));

    assert_eq!(front.client().get("a", "/").text(), "stable");
    take_over(&front.perch, &config("", "versionHeader: true", &[front.backend.address()]));
    let said = refuse(&front.perch, "listeners: [");
    assert!(said.contains("perch.yaml") || said.contains("line"), "{said}");
    assert_eq!(front.client().get("a", "/").text(), "stable");
}

#[test]
fn a_listener_is_added_and_removed() {
    let front = front();
    let mut old = front.client();
    assert_eq!(old.get("a", "/").text(), "stable");
    let stable: [SocketAddr; 1] = [front.backend.address()];
    let versions: [(&str, u32, &[SocketAddr]); 1] = [("stable", 1, &stable)];

    take_over(&front.perch, &whole(&(listener_of("http", "") + &listener_of("more", "")), "", &versions));
    let more = new_address(&front.perch, "more");
    assert_eq!(Client::plain(more).get("a", "/").text(), "stable");
    assert_eq!(old.get("a", "/").text(), "stable");

    take_over(&front.perch, &whole(&listener_of("more", ""), "", &versions));
    eventually(PATIENCE, || crate::support::connect_from([127, 0, 0, 1].into(), front.address()).is_err());
    assert_eq!(Client::plain(more).get("a", "/").text(), "stable");
    // Its connection is still there, and knows no route any more: the client is to come by another one.
    assert_refused(&old.get("a", "/"), 421, "misdirected");
}

#[test]
fn a_listener_that_moves_keeps_its_connections() {
    let front = front();
    let mut old = front.client();
    assert_eq!(old.get("a", "/").text(), "stable");
    let text = config("", "", &[front.backend.address()]).replace("127.0.0.1:0\n", "127.0.0.2:0\n");

    take_over(&front.perch, &text);

    let moved = new_address(&front.perch, "http");
    assert_eq!(moved.ip().to_string(), "127.0.0.2");
    eventually(PATIENCE, || crate::support::connect_from([127, 0, 0, 1].into(), front.address()).is_err());
    assert_eq!(Client::plain(moved).get("a", "/").text(), "stable");
    assert_eq!(old.get("a", "/").text(), "stable");
}

#[test]
fn a_listener_may_be_renamed_in_place() {
    let front = front();
    let mut old = front.client();
    assert_eq!(old.get("a", "/").text(), "stable");
    let text = config("", "", &[front.backend.address()])
        .replace("name: http\n", "name: web\n")
        .replace("127.0.0.1:0\n", &format!("{}\n", front.address()));

    take_over(&front.perch, &text);

    assert_eq!(front.client().get("a", "/").text(), "stable");
}

#[test]
fn a_port_in_use_is_refused_by_its_key_and_nothing_changes() {
    let front = front();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let stable: [SocketAddr; 1] = [front.backend.address()];
    let more = format!("  - name: more\n    address: {}\n", taken.local_addr().unwrap());
    let text = whole(&(listener_of("http", "") + &more), "versionHeader: true", &[("stable", 1, &stable)]);

    let said = refuse(&front.perch, &text);

    assert!(said.contains("listeners[1].address") && said.contains("in use"), "{said}");
    let answer = front.client().get("a", "/");
    assert_eq!((answer.text().as_str(), answer.header("perch-version")), ("stable", None));
}

#[test]
fn a_port_in_use_is_refused_at_the_start_too() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = config("", "", &[([127, 0, 0, 1], 9).into()])
        .replace("127.0.0.1:0\n", &format!("{}\n", taken.local_addr().unwrap()));

    let output = crate::support::Launch::new(&text).output();

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("listeners[0].address") && said.contains("in use"), "{said}");
}

#[test]
fn certificates_are_replaced_under_open_connections() {
    let front: Front = front_tls("", "");
    let address = front.perch.address("https");
    let mut old = Client::tls(address, "localhost");
    let before = old.peer_certificate();

    let new = write_certificate(front.perch.dir(), "localhost", &["localhost"]);

    eventually(PATIENCE, || Client::tls(address, "localhost").peer_certificate() == new.der);
    assert_ne!(before, new.der);
    assert_eq!(old.get("localhost", "/").text(), "stable");
}

#[test]
fn tls_may_be_switched_on_by_a_reload() {
    let front = front();
    write_certificate(front.perch.dir(), "localhost", &["localhost"]);
    let mut plain = front.client();
    assert_eq!(plain.get("a", "/").text(), "stable");

    let text = tls_config("", "", &[front.backend.address()]);
    take_over(&front.perch, &text);
    let https = new_address(&front.perch, "https");

    assert_eq!(Client::tls(https, "localhost").get("localhost", "/").text(), "stable");
    assert_eq!(plain.get("a", "/").text(), "stable");
}

#[test]
fn reloads_under_load_lose_nothing() {
    let front = front();
    let address = front.address();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut client = Client::plain(address);
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    assert_eq!(client.get("a", "/").status, 200);
                    // And on a new connection.
                    assert_eq!(Client::plain(address).get("a", "/").status, 200);
                }
            })
        })
        .collect();

    for n in 0..20 {
        let service = if n % 2 == 0 { "versionHeader: true" } else { "" };
        take_over(&front.perch, &config("", service, &[front.backend.address()]));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);

    load.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_refused_reload_is_tried_again_when_its_certificate_arrives() {
    let front = front();
    refuse(&front.perch, &tls_config("", "", &[front.backend.address()]));

    write_certificate(front.perch.dir(), "localhost", &["localhost"]);
    eventually(PATIENCE, || front.perch.metric("perch_config_last_reload_successful") == Some(1.0));

    let https = new_address(&front.perch, "https");
    assert_eq!(Client::tls(https, "localhost").get("localhost", "/").text(), "stable");
}
