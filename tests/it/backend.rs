//! The sample services, as processes: what the lab expects of `hello` and `auth`.

use std::net::SocketAddr;

use crate::support::{Client, PATIENCE, Process, Response, eventually, eventually_some, get, run_perch};

struct Sample {
    process: Process,
    address: SocketAddr,
    health: SocketAddr,
}

impl Sample {
    fn start(arguments: &[&str]) -> Self {
        let process = Process::perch([&["backend"], arguments].concat());
        // hello 1.0.0 on http://127.0.0.1:1, health on http://127.0.0.1:2
        let line = eventually_some(PATIENCE, || process.stdout().lines().next().map(str::to_owned));
        let mut addresses =
            line.split("http://").skip(1).map(|text| text.trim_end_matches(", health on ").parse().unwrap());
        let (address, health) = (addresses.next().unwrap(), addresses.next().unwrap());
        Self { process, address, health }
    }

    fn request(&self, head: &str) -> Response {
        let mut client = Client::plain(self.address);
        client.send(format!("{head}\r\nhost: x\r\n\r\n"));
        client.response()
    }

    fn readiness(&self) -> u16 {
        get(self.health, "/readiness").status
    }
}

fn token(auth: &Sample) -> String {
    let answer = auth.request("GET /login HTTP/1.1\r\nauthorization: Basic dXNlcjpwYXNzd29yZA==");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().unwrap().to_owned()
}

#[test]
fn hello_says_hello_and_its_version() {
    let hello = Sample::start(&["hello", "--version", "2.0.0"]);

    assert_eq!(get(hello.address, "/").text(), r#"{"message":"Hello"}"#);
    assert_eq!(get(hello.address, "/version").text(), r#"{"version":"2.0.0"}"#);
}

#[test]
fn a_token_of_auth_opens_secure() {
    let auth = Sample::start(&["auth", "--jwt-secret", "of the lab"]);
    let hello = Sample::start(&["hello", "--jwt-secret", "of the lab"]);

    let token = token(&auth);

    let answer = hello.request(&format!("GET /secure HTTP/1.1\r\nauthorization: Bearer {token}"));
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"message":"Hello"}"#));
}

#[test]
fn secure_is_closed_without_a_good_token() {
    let auth = Sample::start(&["auth", "--jwt-secret", "another"]);
    let hello = Sample::start(&["hello"]);

    let foreign = token(&auth);

    assert_eq!(hello.request("GET /secure HTTP/1.1").status, 401);
    assert_eq!(hello.request(&format!("GET /secure HTTP/1.1\r\nauthorization: Bearer {foreign}")).status, 401);
    assert_eq!(hello.request(&format!("GET /secure HTTP/1.1\r\nauthorization: Basic {foreign}")).status, 401);
}

#[test]
fn login_needs_user_and_password() {
    let auth = Sample::start(&["auth"]);

    let wrong = auth.request("GET /login HTTP/1.1\r\nauthorization: Basic dXNlcjp3cm9uZw==");

    assert_eq!((wrong.status, wrong.header("www-authenticate")), (401, Some("Basic realm=\"auth\"")));
    assert_eq!(get(auth.address, "/login").status, 401);
}

#[test]
fn what_a_service_does_not_have_is_404_or_405() {
    let auth = Sample::start(&["auth"]);

    assert_eq!(get(auth.address, "/").status, 404);
    let answer = auth.request("DELETE /version HTTP/1.1");
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}

#[test]
fn head_has_the_length_and_no_body() {
    let hello = Sample::start(&["hello"]);
    let mut client = Client::plain(hello.address);

    client.send("HEAD / HTTP/1.1\r\nhost: x\r\n\r\n");
    let head = client.try_head_response().unwrap();

    assert_eq!((head.status, head.header("content-length")), (200, Some("19")));
    assert_eq!(client.get("x", "/").text(), r#"{"message":"Hello"}"#);
}

#[test]
fn the_status_paths_switch_the_health_answers() {
    let hello = Sample::start(&["hello"]);
    assert_eq!((get(hello.health, "/healthz").status, hello.readiness()), (200, 200));

    get(hello.health, "/readiness/status");
    assert_eq!((get(hello.health, "/healthz").status, hello.readiness()), (200, 503));

    get(hello.health, "/healthz/status");
    get(hello.health, "/readiness/status");
    assert_eq!((get(hello.health, "/healthz").status, hello.readiness()), (503, 200));
}

#[test]
fn sigterm_turns_readiness_off_and_requests_in_flight_finish() {
    // The delay keeps the request in flight; the grace period keeps the health port there to be asked.
    let mut hello = Sample::start(&["hello", "--delay", "1s", "--grace", "2s"]);
    let mut client = Client::plain(hello.address);
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");

    hello.process.terminate();

    eventually(PATIENCE, || hello.readiness() == 503);
    assert_eq!(client.response().status, 200);
    assert!(hello.process.wait(PATIENCE).success());
}

#[test]
fn sigterm_ends_idle_connections() {
    let mut hello = Sample::start(&["hello"]);
    let mut used = Client::plain(hello.address);
    used.get("x", "/");
    let mut unused = Client::plain(hello.address);

    hello.process.terminate();

    assert!(used.is_closed_within(PATIENCE) && unused.is_closed_within(PATIENCE));
    assert!(hello.process.wait(PATIENCE).success());
}

#[test]
fn a_fail_rate_of_one_fails_every_request() {
    let hello = Sample::start(&["hello", "--fail-rate", "1"]);

    assert!((0..20).all(|_| get(hello.address, "/").status == 500));
}

#[test]
fn a_port_in_use_is_named() {
    let hello = Sample::start(&["hello"]);
    let address = hello.address.to_string();

    let output = run_perch(["backend", "hello", "--listen", &address]);

    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.starts_with(&format!("perch: cannot listen: {address}: ")), "{message}");
}

#[test]
fn a_fail_rate_over_one_is_a_usage_error() {
    let output = run_perch(["backend", "hello", "--fail-rate", "2"]);

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("write a number from 0 to 1"));
}
