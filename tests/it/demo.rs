//! `perch demo`, driven as a person drives it: what it prints works, and it leaves nothing behind.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::support::{Client, PATIENCE, Process, eventually, eventually_some, get, run_perch};

struct Demo {
    process: Process,
    /// Its temporary folder.
    folder: tempfile::TempDir,
    https: SocketAddr,
    admin: SocketAddr,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_perch"));
        command.args(["demo", "--port", "0", "--admin-port", "0"]).args(arguments).env("TMPDIR", folder.path());
        let process = Process::start(&mut command);
        // The last of the commands to try.
        let printed = || process.stdout().contains("/metrics\n");
        eventually(PATIENCE, || printed() || !is_running(&process));
        let find = |scheme: &str| {
            let text = process.stdout();
            let (_, rest) = text.split_once(&format!("{scheme}://"))?;
            rest.split(['/', '\'']).next()?.parse().ok()
        };
        let (https, admin) = (find("https").unwrap(), find("http").unwrap());
        Self { process, folder, https, admin }
    }

    fn version_for(&self, source: &str) -> String {
        let mut client = Client::tls_from(source.parse().unwrap(), self.https, "localhost");
        client.get("localhost", "/version").json()["version"].as_str().unwrap().to_owned()
    }
}

fn is_running(process: &Process) -> bool {
    std::path::Path::new(&format!("/proc/{}/exe", process.pid())).exists()
}

#[test]
fn hello_login_and_secure_work_through_the_proxy() {
    let demo = Demo::start(&[]);
    let mut client = Client::tls(demo.https, "localhost");

    assert_eq!(client.get("localhost", "/").text(), r#"{"message":"Hello"}"#);
    client.send("GET /login HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic dXNlcjpwYXNzd29yZA==\r\n\r\n");
    let token = client.response().json()["token"].as_str().unwrap().to_owned();
    client.send(format!("GET /secure HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"));
    assert_eq!(client.response().status, 200);
    assert_eq!(client.get("localhost", "/secure").status, 401);
}

#[test]
fn one_user_always_gets_the_version_that_explain_names() {
    let demo = Demo::start(&["--canary", "50"]);

    for source in ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let version = demo.version_for(source);
        assert!((0..20).all(|_| demo.version_for(source) == version));

        let explained = get(demo.admin, &format!("/api/v1/explain?host=localhost&path=/&ip={source}")).text();
        let name = if version == "2.0.0" { "canary" } else { "stable" };
        assert!(explained.contains(&format!("\"version\":\"{name}\"")), "{version}: {explained}");
    }
}

#[test]
fn all_or_none_of_the_users_get_the_canary_as_asked() {
    let all = Demo::start(&["--canary", "100"]);
    let none = Demo::start(&["--canary", "0"]);

    for user in 1..=20 {
        let source = format!("127.0.0.{user}");
        assert_eq!((all.version_for(&source).as_str(), none.version_for(&source).as_str()), ("2.0.0", "1.0.0"));
    }
}

#[test]
fn without_affinity_one_user_sees_both_versions() {
    let demo = Demo::start(&["--canary", "50", "--affinity", "none"]);

    let mut client = Client::tls(demo.https, "localhost");
    let versions: Vec<String> = (0..40).map(|_| client.get("localhost", "/version").text()).collect();

    assert!(versions.iter().any(|v| v.contains("1.0.0")) && versions.iter().any(|v| v.contains("2.0.0")));
}

#[test]
fn sigterm_ends_it_quickly_and_leaves_no_file() {
    let mut demo = Demo::start(&[]);
    // An open connection must not hold it up.
    let mut client = Client::tls(demo.https, "localhost");
    client.get("localhost", "/");

    demo.process.terminate();

    // A drain of two seconds at most, on a machine that is busy with other tests.
    assert!(demo.process.wait(Duration::from_secs(10)).success());
    assert_eq!(std::fs::read_dir(demo.folder.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_a_word() {
    let output = Command::new("bash")
        .args(["-c", "set -o pipefail; \"$0\" demo --port 0 --admin-port 0 | head -n 1"])
        .arg(env!("CARGO_BIN_EXE_perch"))
        .output()
        .unwrap();

    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn off_a_terminal_requests_show_as_a_plain_line() {
    let demo = Demo::start(&[]);

    demo.version_for("127.0.0.1");

    let line = eventually_some(PATIENCE, || {
        let text = demo.process.stdout();
        text.lines().find(|line| line.contains("hello: 1 requests")).map(str::to_owned)
    });
    assert!(line.ends_with("flips 0, unexplained 0"), "{line}");
    assert!(!demo.process.stdout().contains('\x1b'));
}

#[test]
fn a_taken_port_is_said_and_another_one_used() {
    let first = Demo::start(&[]);
    let taken = first.https.port().to_string();

    let second = run_perch(["demo", "--port", &taken, "--admin-port", "0", "--duration", "0"]);

    let text = String::from_utf8(second.stdout).unwrap();
    assert!(second.status.success() && text.contains(&format!("The port {taken} is taken: this is ")), "{text}");
}

#[test]
fn print_config_prints_a_config_that_check_accepts() {
    let folder = tempfile::tempdir().unwrap();
    crate::support::write_certificate(folder.path(), "demo", &["localhost"]);
    let output = run_perch(["demo", "--print-config", "--backends", "5", "--canary", "10"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let file = folder.path().join("demo.yaml");
    std::fs::write(&file, text.replace("cert.pem", "demo-cert.pem").replace("key.pem", "demo-key.pem")).unwrap();

    let checked = run_perch([std::ffi::OsStr::new("check"), file.as_os_str()]);

    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(text.matches("          - 127.0.10.").count(), 7);
}
