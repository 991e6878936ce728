//! The built `perch`, run as a child of the test: config in a temporary folder, ports picked by the kernel and learned
//! from `--announce`, output captured, killed with the test.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Client, PATIENCE, Response, replace_file};

/// Runs `perch` to its end (`check`, `explain`, a refused `serve`, ...).
pub fn run_perch<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perch")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A `perch serve` to be.
#[derive(Debug)]
pub struct Launch {
    dir: tempfile::TempDir,
    command: Command,
}

/// A running `perch serve`. Dropped: killed.
#[derive(Debug)]
pub struct TestPerch {
    child: Child,
    dir: tempfile::TempDir,
    announced: Announced,
    stdout: Capture,
    stderr: Capture,
    status: Option<ExitStatus>,
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
        let launch = Self { dir, command };
        launch.write("perch.yaml", &launch.expand(config));
        launch
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

    /// Starts it and waits until it serves. Panics with its output when it ends or takes too long.
    #[track_caller]
    pub fn start(mut self) -> TestPerch {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let stdout = Capture::of(child.stdout.take().expect("piped"));
        let stderr = Capture::of(child.stderr.take().expect("piped"));
        let announce = self.dir.path().join("announce.json");
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(&announce) {
                let announced: Announced =
                    serde_json::from_str(&text).expect("the announcement is JSON, whole at once");
                assert_eq!(announced.pid, child.id());
                return TestPerch { child, dir: self.dir, announced, stdout, stderr, status: None };
            }
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > end {
                child.kill().ok();
                child.wait().unwrap();
                panic!("perch did not start ({ended:?})\n{}\n{}", stdout.to_end(), stderr.to_end());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
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

    pub fn pid(&self) -> u32 {
        self.child.id()
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

    /// Sends a signal by name: `TERM`, `INT`, `HUP`, `KILL`.
    pub fn signal(&self, name: &str) {
        // By the shell's own kill: without unsafe code there is no other, and it is on each machine.
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.pid())).status().unwrap();
        assert!(status.success());
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Waits for the end. Panics with the output when it still runs after `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "perch still runs after {deadline:?}\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.status = self.status.or_else(|| self.child.try_wait().unwrap());
        self.status
    }

    /// Standard output so far; all of it once [`Self::wait`] returned.
    pub fn stdout(&self) -> String {
        if self.status.is_some() { self.stdout.to_end() } else { self.stdout.so_far() }
    }

    /// Standard error so far; all of it once [`Self::wait`] returned.
    pub fn stderr(&self) -> String {
        if self.status.is_some() { self.stderr.to_end() } else { self.stderr.so_far() }
    }
}

impl Drop for TestPerch {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- perch's stdout\n{}\n--- perch's stderr\n{}", self.stdout(), self.stderr());
        }
    }
}

/// A pipe, read as it comes so that the child never waits for us.
#[derive(Debug)]
pub struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Capture {
    pub fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { bytes, reader: Mutex::new(Some(reader)) }
    }

    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the pipe's end: only for a child that ended.
    pub fn to_end(&self) -> String {
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}
