//! perch in front of a [`TestBackend`], with as little configuration as the test at hand needs.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{Client, Launch, Response, TestBackend, TestPerch, eventually, write_certificate};

/// perch and the one endpoint behind it.
pub struct Front {
    pub perch: TestPerch,
    pub backend: TestBackend,
}

/// perch with default settings; the backend answers `stable`.
#[track_caller]
pub fn front() -> Front {
    front_with("", "")
}

/// More keys for the listener and for the service, one line of YAML each.
#[track_caller]
pub fn front_with(listener: &str, service: &str) -> Front {
    let backend = TestBackend::named("stable");
    let perch = TestPerch::start(&config(listener, service, &[backend.address()]));
    Front { perch, backend }
}

/// The same with TLS on a listener named `https`, for `localhost`.
#[track_caller]
pub fn front_tls(listener: &str, service: &str) -> Front {
    let backend = TestBackend::named("stable");
    let launch = Launch::new(&tls_config(listener, service, &[backend.address()]));
    write_certificate(launch.dir(), "localhost", &["localhost"]);
    Front { perch: launch.start(), backend }
}

/// A plain listener `http`, one service `app` with one version `stable`.
pub fn config(listener: &str, service: &str, endpoints: &[SocketAddr]) -> String {
    whole(&listener_of("http", listener), service, &[("stable", 1, endpoints)])
}

/// A TLS listener `https` beside the plain one.
pub fn tls_config(listener: &str, service: &str, endpoints: &[SocketAddr]) -> String {
    let tls = "tls: {certificates: [{certFile: localhost-cert.pem, keyFile: localhost-key.pem}]}";
    let https = listener_of("https", listener) + &format!("    {tls}\n");
    whole(&(listener_of("http", listener) + &https), service, &[("stable", 1, endpoints)])
}

pub fn listener_of(name: &str, more: &str) -> String {
    format!("  - name: {name}\n    address: 127.0.0.1:0\n{}", lines(more))
}

/// One service `app` with these versions behind all listeners.
pub fn whole(listeners: &str, service: &str, versions: &[(&str, u32, &[SocketAddr])]) -> String {
    let mut text = String::from("workers: 2\nadmin: {address: \"127.0.0.1:0\"}\naccessLog: {format: json}\n");
    text += "drain: {delay: 0s, spread: 200ms, deadline: 20s}\n";
    text += &format!("listeners:\n{listeners}routes:\n  - service: app\nservices:\n  - name: app\n{}", lines(service));
    text += "    versions:\n";
    for (name, weight, endpoints) in versions {
        text += &format!("      - {{name: {name}, weight: {weight}, endpoints: {endpoints:?}}}\n");
    }
    text
}

fn lines(keys: &str) -> String {
    keys.lines().map(|line| format!("    {line}\n")).collect()
}

impl Front {
    pub fn address(&self) -> SocketAddr {
        self.perch.address("http")
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        Client::plain(self.address())
    }

    /// One request on a connection of its own; `head` without the empty line.
    #[track_caller]
    pub fn send(&self, head: &str) -> Response {
        let mut client = self.client();
        client.send(format!("{head}\r\n\r\n"));
        client.response()
    }

    /// The access log's lines so far.
    pub fn log(&self) -> Vec<serde_json::Value> {
        self.perch.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until some line of the access log has this reason.
    #[track_caller]
    pub fn logged(&self, reason: &str) {
        eventually(crate::support::PATIENCE, || self.log().iter().any(|line| line["reason"] == reason));
    }
}

/// Whether the answer is perch's own, with this reason.
#[track_caller]
pub fn assert_refused(answer: &Response, status: u16, reason: &str) {
    assert_eq!((answer.status, answer.header("perch-reason")), (status, Some(reason)), "{answer:?}");
}

/// Whether the other side ended the connection soon.
#[track_caller]
pub fn assert_closed(client: &mut Client) {
    assert!(client.is_closed_within(crate::support::PATIENCE), "the connection is still open");
}

/// Longer than anything that happens at once, short enough to wait for nothing.
pub const A_WHILE: Duration = Duration::from_millis(300);
