//! A new perch takes over from the one that runs (SIGUSR2), and nothing is lost.
//!
//! The old one starts the new one with one end of a socket pair as its standard input, and gives it the very listening
//! sockets that it accepts from: a connection that waits in one of them is accepted by whoever comes first, and nobody is
//! refused at any time. Only when the new one is ready does the old one stop accepting and drain. Whatever fails before
//! that leaves the old one as it was.
//!
//! ```text
//! old                                     new
//!  | -- Hello, sockets ------------------> |  reads the configuration, takes its sockets
//!  | <------------------------- Prepared - |
//!  | -- State, Pins..., Serve -----------> |  first snapshot, endpoints known, accepts
//!  | <---------------------------- Ready - |
//!  | -- Metrics... (while it drains) ----> |
//! ```

mod frame;
mod handing;
mod predecessor;
mod successor;

pub use self::predecessor::{NoPredecessor, Predecessor};

/// Set for the new perch: its standard input is a line to the old one.
const MARK: &str = "PERCH_TAKES_OVER";

/// Of the messages; a perch that does not know it does not take over.
const PROTOCOL: u32 = 1;

/// How far this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Another one accepts; this one drains.
    TakenOver,
    Left(super::Drained),
}

/// What the old perch says first; a socket follows for each place.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    /// [`crate::state::clock::Clock::now`], which goes on.
    pub(super) clock: u64,
    pub(super) places: Vec<super::given::Place>,
}

impl Hello {
    pub(super) const fn new(clock: u64, places: Vec<super::given::Place>) -> Self {
        Self { protocol: PROTOCOL, clock, places }
    }
}
