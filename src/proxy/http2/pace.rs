//! The write deadline of a stream: a client that stops taking a response is not waited for without end. A stream that is
//! slow only because it shares a slow connection with others gets ten times as long.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::watchdog::Watchdog;

/// What has gone over a client's connection, of all its streams.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pub(super) written: Cell<u64>,
    pub(super) read: Cell<u64>,
    /// Of `written` and what is about to be: bodies. What perch says to a connection on its own is no progress.
    pub(super) answered: Cell<u64>,
}

/// How much longer a stream may wait while its connection moves.
const SHARED: u32 = 10;

/// A wait of a stream for its client.
#[derive(Debug)]
pub(super) struct Wait {
    write: Duration,
    since: Instant,
    /// What of bodies had gone out then, or when it was last looked at.
    answered: u64,
    dog: Watchdog,
}

impl Wait {
    pub(super) fn new(pace: &Pace, write: Duration) -> Self {
        let since = Instant::now();
        Self { write, since, answered: pace.answered.get(), dog: Watchdog::new(since + write) }
    }

    /// The wait for the next piece.
    pub(super) fn restart(&mut self, pace: &Pace) {
        self.since = Instant::now();
        self.answered = pace.answered.get();
        self.dog.set(self.since + self.write);
    }

    /// Ready when the client has had its time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, pace: &Pace) -> Poll<()> {
        while self.dog.poll(cx).is_ready() {
            let now = Instant::now();
            if pace.answered.get() == self.answered || now >= self.since + self.write * SHARED {
                return Poll::Ready(());
            }
            self.answered = pace.answered.get();
            self.dog.set(now + self.write);
        }
        Poll::Pending
    }
}
