//! Restart and upgrade with nothing lost: sockets that systemd gives (LISTEN_FDS), and a new perch that takes over from
//! the one that runs (SIGUSR2) (row J4).

use std::net::TcpListener;

use crate::front;
use crate::support::{Client, Launch, PATIENCE, TestBackend, TestPerch};

/// perch on a socket that is open already.
fn on(socket: &TcpListener, backend: &TestBackend) -> TestPerch {
    let address = socket.local_addr().unwrap();
    let text = front::config("", "", &[backend.address()]);
    let text =
        text.replace("  - name: http\n    address: 127.0.0.1:0", &format!("  - name: http\n    address: {address}"));
    Launch::new(&text).socket(socket.try_clone().unwrap()).start()
}

#[test]
fn a_given_socket_is_used_and_who_waits_in_it_is_served() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));
    let mut early = Client::plain(socket.local_addr().unwrap());
    early.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    let perch = on(&socket, &backend);

    assert_eq!(perch.address("http"), socket.local_addr().unwrap());
    assert_eq!(early.response().text(), "stable");
    for _ in 0..10 {
        assert_eq!(Client::plain(perch.address("http")).get("a", "/").text(), "stable");
    }
}

#[test]
fn a_restart_on_a_given_socket_refuses_nobody() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));
    let mut before = on(&socket, &backend);
    before.terminate();
    assert_eq!(before.wait(PATIENCE).code(), Some(0), "{}", before.stderr());
    let mut between = Client::plain(socket.local_addr().unwrap());
    between.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");

    let _after = on(&socket, &backend);

    assert_eq!(between.response().text(), "stable");
}

#[test]
fn a_given_socket_that_no_listener_wants_is_told() {
    let (socket, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), TestBackend::named("stable"));

    let perch = Launch::new(&front::config("", "", &[backend.address()])).socket(socket).start();

    assert!(perch.stderr().contains("No listener has the address of this given socket"), "{}", perch.stderr());
}
