//! A running `perch`, whatever its subcommand: output captured as it comes, signals, an end with a deadline. Dropped:
//! killed.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Runs `perch` to its end (`check`, `explain`, a refused `serve`, ...).
pub fn run_perch<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perch")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A child of the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Capture,
    stderr: Capture,
    status: Option<ExitStatus>,
}

impl Process {
    /// `perch` with these arguments.
    pub fn perch<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::start(Command::new(env!("CARGO_BIN_EXE_perch")).args(arguments))
    }

    /// Any command.
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Any command, with this as its standard input.
    pub fn start_with(command: &mut Command, stdin: Stdio) -> Self {
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = Capture::of(child.stdout.take().expect("piped"));
        let stderr = Capture::of(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
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

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            // The end of it: the access log of a whole load would bury the message.
            let last = |text: String| text.lines().rev().take(30).map(|line| format!("{line}\n")).collect::<Vec<_>>();
            let shown = |text| last(text).into_iter().rev().collect::<String>();
            eprintln!("--- perch's stdout\n{}--- perch's stderr\n{}", shown(self.stdout()), shown(self.stderr()));
        }
    }
}

/// A pipe, read as it comes so that the child never waits for us.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
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

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the pipe's end: only for a child that ended.
    fn to_end(&self) -> String {
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}
