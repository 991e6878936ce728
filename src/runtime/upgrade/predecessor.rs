//! The old perch, as the new one sees it. Should the old one die half-way, the new one serves without what it knew, on
//! sockets of its own where it got none: whoever dies, one of the two serves.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use tracing::{info, warn};

use super::frame::{self, Kind};
use super::{Hello, MARK, PROTOCOL};
use crate::admin::Live;
use crate::runtime::given::Given;
use crate::state::clock::Clock;
use crate::state::inheritance::Inheritance;

/// A line to the perch that is to be taken over from.
#[derive(Debug)]
pub struct Predecessor {
    line: UnixStream,
    /// Goes on from its clock.
    pub(crate) clock: Clock,
}

/// What it left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) inheritance: Inheritance,
    pub(crate) pins: Vec<Vec<u8>>,
    pub(crate) metrics: String,
}

/// The line does not work.
#[derive(Debug, thiserror::Error)]
#[error("can't take over from the old perch: {0}; perch sets {MARK} itself when it gets SIGUSR2, unset it elsewhere")]
pub struct NoPredecessor(io::Error);

impl Predecessor {
    /// The one that started this process, if one did and it still lives, and its sockets.
    ///
    /// # Errors
    /// When it does not say what it should.
    pub fn meet() -> Result<Option<(Self, Given)>, NoPredecessor> {
        if std::env::var_os(MARK).is_none() {
            return Ok(None);
        }
        match hello() {
            Err(error) if is_end(&error) => {
                // Its sockets went with it: their addresses are free.
                warn!("The old perch has gone before it gave its sockets; starting without them.");
                Ok(None)
            }
            met => met.map(Some).map_err(NoPredecessor),
        }
    }

    /// Whether it has ended, and nobody accepts until this process does.
    pub(crate) fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.line, &mut [0; 1], flags) {
            Ok((read, _)) => read == 0,
            Err(error) => is_end(&error.into()),
        }
    }

    /// Says that everything that can fail has gone well, and learns what the old one leaves.
    pub(crate) fn prepared(&mut self) -> Left {
        self.left().unwrap_or_else(|error| {
            warn!(%error, "The old perch has gone; taking over without what it knew.");
            Left::default()
        })
    }

    fn left(&mut self) -> io::Result<Left> {
        frame::write(&mut self.line, Kind::Prepared, &[])?;
        let inheritance = serde_json::from_slice(&frame::expect(&mut self.line, Kind::State)?)?;
        let mut left = Left { inheritance, ..Left::default() };
        loop {
            match frame::read(&mut self.line)? {
                (Kind::Pins, part) => left.pins.push(part),
                (Kind::Metrics, text) => left.metrics = String::from_utf8_lossy(&text).into_owned(),
                (Kind::Serve, _) => return Ok(left),
                (kind, _) => return Err(io::Error::new(ErrorKind::InvalidData, format!("{kind:?}"))),
            }
        }
    }

    /// Says that this process serves. From then on what the old one still counts is added to this one's metrics, until
    /// it has drained. Returns when it has ended.
    pub(crate) fn ready(mut self, live: &Live) {
        if frame::write(&mut self.line, Kind::Ready, &[]).is_err() {
            return;
        }
        while let Ok((Kind::Metrics, text)) = frame::read(&mut self.line) {
            live.inherit(&String::from_utf8_lossy(&text));
        }
        info!("The old perch has ended.");
    }
}

/// Of the line: the other side is gone.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn hello() -> io::Result<(Predecessor, Given)> {
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // An end of some file is not the old one's.
    line.local_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let hello: Hello = serde_json::from_slice(&frame::expect(&mut line, Kind::Hello)?)?;
    if hello.protocol != PROTOCOL {
        let (theirs, ours) = (hello.protocol, PROTOCOL);
        return Err(io::Error::other(format!("it speaks version {theirs}, this one {ours}; restart perch instead")));
    }
    let clock = Clock::going_on(hello.clock);
    let sockets = frame::take(&line, hello.places.len())?;
    let mut given = Given::default();
    for (place, socket) in hello.places.into_iter().zip(sockets) {
        given.add(Some(place), TcpListener::from(socket))?;
    }
    Ok((Predecessor { line, clock }, given))
}
