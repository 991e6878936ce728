//! The write deadline of a stream: a client that stops taking a response is not waited for without end.
//!
//! hyper asks a body for its next piece only when the client has room for it, so the body itself cannot notice that
//! nobody asks. The stream's task is wrapped instead: what the body last did tells whose turn it is. A stream that is
//! slow only because it shares a slow connection with others gets ten times as long.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::watchdog::Watchdog;

/// What a connection's streams share: they are polled one at a time.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Cell<Step>,
    /// A stream is being given up for being read too slowly.
    is_cutting: Cell<bool>,
    /// Bytes that went out to the client, of all streams.
    pub(super) written: Cell<u64>,
}

/// What a body did last while its task was polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Nothing,
    /// It was asked for its next piece.
    Asked,
    /// It handed out a piece; the next one waits for the client.
    Handed,
}

impl Pace {
    pub(super) fn asked(&self) {
        self.last.set(Step::Asked);
    }

    pub(super) fn handed(&self) {
        self.last.set(Step::Handed);
    }

    /// Whether what is dropped now is dropped for being read too slowly.
    pub(super) fn is_cutting(&self) -> bool {
        self.is_cutting.get()
    }
}

/// How much longer a stream may wait while its connection moves.
const SHARED: u32 = 10;

/// Runs a stream's task, and drops it when its client takes nothing for `write`.
pub(super) async fn paced<F: Future>(task: F, pace: Rc<Pace>, write: Duration) {
    let mut task = pin!(Some(task));
    // Since when it waits for the client, and what had gone out then.
    let mut waits: Option<(Instant, u64)> = None;
    // Made when a stream first waits: most responses never do.
    let mut dog: Option<Watchdog> = None;
    poll_fn(|cx| {
        pace.last.set(Step::Nothing);
        if task.as_mut().as_pin_mut().is_none_or(|task| task.poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        match pace.last.get() {
            Step::Nothing => {}
            Step::Asked => waits = None,
            Step::Handed => {
                let now = Instant::now();
                waits = Some((now, pace.written.get()));
                dog.get_or_insert_with(|| Watchdog::new(now + write)).set(now + write);
            }
        }
        while let (Some((since, written)), Some(dog)) = (&mut waits, &mut dog) {
            if dog.poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if pace.written.get() == *written || now >= *since + write * SHARED {
                pace.is_cutting.set(true);
                // Dropping hyper's stream resets it.
                task.set(None);
                pace.is_cutting.set(false);
                return Poll::Ready(());
            }
            *written = pace.written.get();
            dog.set(now + write);
        }
        Poll::Pending
    })
    .await;
}
