//! The built `perch`, run as a child of the test: config in a temporary folder, ports picked by the kernel and learned
//! from `--announce`, output captured, killed with the test.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;

use super::{Client, PATIENCE, Process, Response, eventually, replace_file};

/// A `perch serve` to be.
#[derive(Debug)]
pub struct Launch {
    dir: tempfile::TempDir,
    command: Command,
    stdin: Option<OwnedFd>,
}

/// A running `perch serve`. Dropped: killed.
#[derive(Debug)]
pub struct TestPerch {
    // Before the folder: it is killed before its files go.
    process: Process,
    dir: tempfile::TempDir,
    announced: Announced,
}

/// What `--announce` writes once perch serves.
#[derive(Debug, Deserialize)]
struct Announced {
    listeners: BTreeMap<String, SocketAddr>,
    admin: SocketAddr,
    pid: u32,
}

impl Launch {
    /// `${dir}` in the config stands for the test's temporary folder.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_perch"));
        command.arg("serve").arg("--config").arg(dir.path().join("perch.yaml"));
        command.arg("--announce").arg(dir.path().join("announce.json"));
        let launch = Self { dir, command, stdin: None };
        launch.write("perch.yaml", &launch.expand(config));
        launch
    }

    /// Another config: for one that names files in [`Launch::dir`] or ports that were not known before.
    #[must_use]
    pub fn config(self, config: &str) -> Self {
        self.write("perch.yaml", &self.expand(config));
        self
    }

    /// The folder that the config's `${dir}` stands for: put certificates here before the start.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Run by another program, which gets perch's command line as its last arguments.
    #[must_use]
    pub fn under(mut self, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.command.get_program()).args(self.command.get_args());
        self.command = command;
        self
    }

    /// With a listening socket, given in the way of systemd.
    #[must_use]
    pub fn socket(mut self, socket: TcpListener) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@" 3<&0 </dev/null"#);
        shell.arg(self.command.get_program()).args(self.command.get_args());
        shell.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = shell;
        self.stdin = Some(OwnedFd::from(socket));
        self
    }

    /// With this as its standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Started by a link in [`Launch::dir`], `perch`, where a test can put another program for an upgrade.
    #[must_use]
    pub fn by_link(mut self) -> Self {
        let link = self.dir.path().join("perch");
        std::os::unix::fs::symlink(self.command.get_program(), &link).unwrap();
        let mut command = Command::new(link);
        command.args(self.command.get_args());
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = command;
        self
    }

    /// Starts it and waits until it serves. Panics with its output when it ends or takes too long.
    #[track_caller]
    pub fn start(mut self) -> TestPerch {
        let stdin = self.stdin.take().map_or_else(Stdio::null, Stdio::from);
        let mut process = Process::start_with(&mut self.command, stdin);
        let announce = self.dir.path().join("announce.json");
        eventually(PATIENCE, || announce.exists() || process.try_wait().is_some());
        let Ok(text) = std::fs::read_to_string(&announce) else { panic!("perch did not start") };
        let announced: Announced = serde_json::from_str(&text).expect("the announcement is JSON, whole at once");
        assert_eq!(announced.pid, process.pid());
        TestPerch { process, dir: self.dir, announced }
    }

    /// Runs it to its end: for a config that is refused.
    pub fn output(mut self) -> Output {
        self.command.stdin(Stdio::null()).output().unwrap()
    }

    fn expand(&self, text: &str) -> String {
        text.replace("${dir}", self.dir.path().to_str().expect("a temporary folder has a plain name"))
    }

    fn write(&self, name: &str, text: &str) {
        replace_file(&self.dir.path().join(name), text);
    }
}

impl TestPerch {
    /// Serves `config`; its addresses should have port 0.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        Launch::new(config).start()
    }

    /// Where the listener of this name is bound.
    #[track_caller]
    pub fn address(&self, listener: &str) -> SocketAddr {
        *self.announced.listeners.get(listener).unwrap_or_else(|| panic!("no listener {listener}: {self:?}"))
    }

    pub fn admin(&self) -> SocketAddr {
        self.announced.admin
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("perch.yaml")
    }

    /// Replaces the config file at once (rename). `${dir}` as in [`Launch::new`].
    pub fn rewrite_config(&self, config: &str) {
        let dir = self.dir.path().to_str().expect("a temporary folder has a plain name");
        replace_file(&self.config_file(), &config.replace("${dir}", dir));
    }

    /// `GET` on the admin listener.
    #[track_caller]
    pub fn admin_get(&self, target: &str) -> Response {
        super::get(self.admin(), target)
    }

    /// `GET` on the admin listener, parsed.
    #[track_caller]
    pub fn admin_json(&self, target: &str) -> serde_json::Value {
        let response = self.admin_get(target);
        serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {response:?}"))
    }

    /// `POST` of a JSON body on the admin listener.
    #[track_caller]
    pub fn admin_post(&self, target: &str, body: &serde_json::Value) -> Response {
        let (host, body) = (self.admin(), body.to_string());
        let mut client = Client::plain(host);
        client.send(format!(
            "POST {target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        client.response()
    }

    /// The value of one series of `/metrics`, named as it is printed: `perch_config_generation` or
    /// `perch_requests_total{service="hello",...}`. `None` when it is not there.
    #[track_caller]
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.admin_get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(line.trim().parse().unwrap())
    }
}

impl Deref for TestPerch {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for TestPerch {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
