//! The new perch, as the old one sees it: started, told, awaited, and ended when it does not get ready.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::frame::{self, Kind};
use super::{Hello, MARK};

/// From its start until it is ready. A cluster's first answer is in it.
const PATIENCE: Duration = Duration::from_secs(30);

/// From the end of its line to its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The new one did not take over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("it could not be started: {0}")]
    Start(io::Error),
    #[error("it was not ready within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("it ended before it was ready; its own words are above")]
    Ended,
    #[error("{0}")]
    Line(io::Error),
    #[error("{0}")]
    Control(#[from] crate::control::writer::ControlError),
    #[error("perch is to stop")]
    Unwanted,
    #[error("the thread that spoke to it died")]
    Panicked,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Slow,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Line(error),
        }
    }
}

/// A line to the perch that is to take over. Blocks: not for a thread that others wait for.
#[derive(Debug)]
pub(crate) struct Successor {
    line: UnixStream,
    until: Instant,
    pub(crate) pid: u32,
}

impl Successor {
    /// Starts the program that this process was started as, with the same arguments: what is in its place now.
    pub(crate) fn start() -> Result<(Self, Child), Failed> {
        let (ours, theirs) = UnixStream::pair().map_err(Failed::Start)?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let command = |program: &std::ffi::OsStr| {
            let stdin = theirs.try_clone()?;
            Command::new(program)
                .arg0(&name)
                .args(std::env::args_os().skip(1))
                .env(MARK, "1")
                .env_remove("LISTEN_FDS")
                .env_remove("LISTEN_PID")
                .env_remove("LISTEN_FDNAMES")
                .stdin(Stdio::from(OwnedFd::from(stdin)))
                .spawn()
        };
        // By the name it was called by, not by /proc/self/exe: that is the old program when it was replaced.
        let child = command(&name).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => command("/proc/self/exe".as_ref()),
            _ => Err(error),
        });
        let child = child.map_err(Failed::Start)?;
        Ok((Self { line: ours, until: Instant::now() + PATIENCE, pid: child.id() }, child))
    }

    /// Gives it the sockets; returns when it has prepared all that can fail.
    pub(crate) fn prepare(mut self, hello: &Hello, sockets: Vec<OwnedFd>) -> Result<Self, Failed> {
        self.within()?;
        frame::write(&mut self.line, Kind::Hello, &json(hello)?)?;
        frame::give(&self.line, &sockets)?;
        drop(sockets);
        frame::expect(&mut self.line, Kind::Prepared)?;
        Ok(self)
    }

    /// Gives it what this process knows; returns when it serves.
    pub(crate) fn serve(
        mut self,
        state: &impl serde::Serialize,
        pins: &[Vec<u8>],
        metrics: &str,
    ) -> Result<Self, Failed> {
        self.within()?;
        frame::write(&mut self.line, Kind::State, &json(state)?)?;
        for part in pins {
            frame::write(&mut self.line, Kind::Pins, part)?;
        }
        frame::write(&mut self.line, Kind::Metrics, metrics.as_bytes())?;
        frame::write(&mut self.line, Kind::Serve, &[])?;
        self.within()?;
        frame::expect(&mut self.line, Kind::Ready)?;
        Ok(self)
    }

    /// The same line, for a thread that may block.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Ok(Self { line: self.line.try_clone()?, until: self.until, pid: self.pid })
    }

    /// What `/metrics` says here.
    pub(crate) fn metrics(&mut self, text: &str) -> io::Result<()> {
        self.line.set_write_timeout(Some(LAST_WORDS))?;
        frame::write(&mut self.line, Kind::Metrics, text.as_bytes())
    }

    fn within(&self) -> Result<(), Failed> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failed::Slow);
        }
        self.line.set_read_timeout(Some(left))?;
        self.line.set_write_timeout(Some(left))?;
        Ok(())
    }
}

fn json(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// Passes an order to reload on, which came while the other one took over: it may have read the files before.
pub(crate) fn reload(successor: &Successor) {
    // It may have ended since.
    tell(successor.pid, Signal::HUP).ok();
}

/// Ends a successor that failed, and says how it ended where it did so itself.
pub(crate) async fn end(mut child: Child, failed: &Failed) -> Option<std::process::ExitStatus> {
    if matches!(failed, Failed::Unwanted) {
        // It may have begun to serve in this moment: then it drains, as this process does. Before that it just ends.
        terminate(&child).ok();
        return None;
    }
    let until = Instant::now() + LAST_WORDS;
    while matches!(failed, Failed::Ended) && Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It may have ended by itself since.
    child.kill().ok();
    child.wait().ok();
    None
}

fn terminate(child: &Child) -> io::Result<()> {
    tell(child.id(), Signal::TERM)
}

fn tell(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}
