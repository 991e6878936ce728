//! One timer per connection for all of its deadlines.
//!
//! Deadlines move with almost every request, and re-arming a timer each time costs more than the check. So the timer is
//! moved only when a deadline comes before the time it is armed for; when it fires too early it is armed again for the
//! deadline of then. It does not know what the deadline means.
//!
//! One that fires much too late says that this process did not run (SIGSTOP, a CPU quota, a laptop asleep), not that the
//! other side was slow: what came in meanwhile is looked at first.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is later than this was not late because of other tasks.
const LATE: Duration = Duration::from_millis(500);

/// For what the kernel has kept meanwhile; on loopback and from its buffers it takes microseconds.
const GRACE: Duration = Duration::from_millis(100);

/// A deadline that is cheap to move.
#[derive(Debug)]
pub(crate) struct Watchdog {
    deadline: Instant,
    /// The deadline is that of the grace.
    has_grace: bool,
    timer: Pin<Box<Sleep>>,
}

impl Watchdog {
    pub(crate) fn new(deadline: Instant) -> Self {
        Self { deadline, has_grace: false, timer: Box::pin(sleep_until(deadline)) }
    }

    /// Moves the deadline.
    pub(crate) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.has_grace = false;
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Ready once the deadline has passed. Must be polled by a task that waits on it.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.timer.deadline() >= self.deadline {
                let now = Instant::now();
                if self.has_grace || now.saturating_duration_since(self.deadline) < LATE {
                    return Poll::Ready(());
                }
                self.has_grace = true;
                self.deadline = now + GRACE;
            }
            let deadline = self.deadline;
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// A worker's watchdogs that nobody uses now. One that is taken again is mostly armed already, for an earlier time than
/// needed: that costs a wake-up a minute instead of a timer per request.
#[derive(Debug, Default)]
pub(crate) struct Kennel(RefCell<Vec<Watchdog>>);

/// How many a worker keeps.
const KEPT: usize = 256;

impl Kennel {
    pub(crate) fn take(&self, deadline: Instant) -> Watchdog {
        match self.0.borrow_mut().pop() {
            Some(mut dog) => {
                dog.set(deadline);
                dog
            }
            None => Watchdog::new(deadline),
        }
    }

    pub(crate) fn give(&self, dog: Watchdog) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(dog);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_last_deadline_set() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start + Duration::from_secs(1));

        dog.set(start + Duration::from_secs(5));
        poll_fn(|cx| dog.poll(cx)).await;

        assert_eq!(Instant::now() - start, Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_stop_of_the_process_there_is_a_moment_for_what_came_in() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start + Duration::from_secs(1));

        tokio::time::advance(Duration::from_secs(60)).await;
        poll_fn(|cx| dog.poll(cx)).await;

        assert_eq!(Instant::now() - start, Duration::from_secs(60) + GRACE, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_moved_closer_fires_sooner() {
        let start = Instant::now();
        let mut dog = Watchdog::new(start + Duration::from_secs(60));

        dog.set(start + Duration::from_secs(2));
        poll_fn(|cx| dog.poll(cx)).await;

        assert_eq!(Instant::now() - start, Duration::from_secs(2));
    }
}
