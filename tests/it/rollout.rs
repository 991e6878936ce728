//! Rollouts on the built `perch`: the verbs over HTTP and on the command line, what survives a restart, drains.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::front::{listener_of, whole};
use crate::support::{Client, Launch, Response, TestBackend, TestPerch, run_perch};

mod bad;
mod cli;
mod drains;
mod kept;
mod verbs;

/// Two versions behind perch, 90 to 10.
struct Lab {
    perch: TestPerch,
    stable: TestBackend,
    canary: TestBackend,
    /// For `stateDir`, over restarts.
    state: tempfile::TempDir,
}

impl Lab {
    fn start() -> Self {
        Self::with("", "")
    }

    /// With more keys of the service, and top-level ones.
    fn with(service: &str, top: &str) -> Self {
        let (stable, canary) = (TestBackend::named("stable"), TestBackend::named("canary"));
        let state = tempfile::tempdir().unwrap();
        let perch = launch(&stable, &canary, state.path(), service, top).start();
        Self { perch, stable, canary, state }
    }

    /// Killed without a word, and started anew on what it left behind.
    fn killed_and_restarted(mut self, service: &str, top: &str) -> Self {
        self.perch.signal("KILL");
        self.perch.wait(crate::support::PATIENCE);
        self.restarted(service, top)
    }

    fn restarted(self, service: &str, top: &str) -> Self {
        let perch = launch(&self.stable, &self.canary, self.state.path(), service, top).start();
        Self { perch, ..self }
    }

    fn post(&self, verb: &str, body: &Value) -> Response {
        self.perch.admin_post(&format!("/api/v1/services/app/{verb}"), body)
    }

    /// A verb that must be done.
    #[track_caller]
    fn done(&self, verb: &str, body: Value) -> Value {
        let answer = self.post(verb, &body);
        assert_eq!(answer.status, 200, "{verb} {body}: {answer:?}");
        answer.json()
    }

    fn service(&self) -> Value {
        self.perch.admin_json("/api/v1/services/app")
    }

    fn share(&self, version: usize) -> f64 {
        self.service()["versions"][version]["share"].as_f64().unwrap()
    }

    fn flips(&self, reason: &str) -> f64 {
        self.perch.metric(&format!("perch_version_flips_total{{service=\"app\",reason=\"{reason}\"}}")).unwrap()
    }

    fn ask(&self, user: IpAddr) -> String {
        Client::plain_from(user, self.perch.address("http")).get("a", "/").text()
    }

    fn answers(&self, users: &[IpAddr]) -> BTreeMap<IpAddr, String> {
        users.iter().map(|user| (*user, self.ask(*user))).collect()
    }

    /// `perch VERB app ...`, asking this perch.
    fn cli(&self, arguments: &[&str]) -> Output {
        let admin = format!("http://{}", self.perch.admin());
        let (verb, rest) = arguments.split_first().unwrap();
        run_perch([&[*verb, "--admin", &admin], rest].concat())
    }

    #[track_caller]
    fn cli_done(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn launch(stable: &TestBackend, canary: &TestBackend, state: &Path, service: &str, top: &str) -> Launch {
    let top = top.replace("${state}", state.to_str().unwrap());
    let versions = [("stable", 90, &[stable.address()][..]), ("canary", 10, &[canary.address()][..])];
    let mut text = whole(&listener_of("http", ""), service, &versions);
    if top.starts_with("admin:") {
        text = text.replace("admin: {address: \"127.0.0.1:0\"}\n", "");
    }
    Launch::new(&format!("{text}{top}\n"))
}

const KEPT: &str = "stateDir: '${state}/rollouts'";

fn users(count: u8) -> Vec<IpAddr> {
    (0..count).map(|n| IpAddr::from([127, 9, n, 7])).collect()
}

fn of(answers: &BTreeMap<IpAddr, String>, version: &str) -> Vec<IpAddr> {
    answers.iter().filter(|(_, v)| *v == version).map(|(user, _)| *user).collect()
}
