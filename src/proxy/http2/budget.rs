//! What a client may do that costs perch more than it brings (RFC 9113 section 10.5): so many at once, and so many more
//! for what it has earned and each second. Beyond that its connection ends, so that a flood costs its sender a handshake
//! now and then.

use tokio::time::Instant;

use super::frame::kind;

/// So many of something.
#[derive(Debug)]
struct Budget {
    left: u64,
    most: u64,
    per_second: u64,
    /// When `left` last grew by time.
    since: Instant,
}

impl Budget {
    fn new(most: u64, per_second: u64) -> Self {
        Self { left: most, most, per_second, since: Instant::now() }
    }

    fn earn(&mut self, more: u64) {
        self.left = self.most.min(self.left + more);
    }

    /// Whether there was one left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            // The clock is asked only now: hardly anybody comes here.
            let seconds = self.since.elapsed().as_secs();
            self.left = self.most.min(seconds.saturating_mul(self.per_second));
            self.since = Instant::now();
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

/// A PING is free when more than the answer to the one before has gone to the client since: gRPC clients measure their
/// windows so, with a PING for a message, however small.
const FREE_PING: u64 = 24;
/// What a request earns of frames that bring nothing.
const PER_REQUEST: u64 = 10;

/// Frames that cost an answer and bring nothing: SETTINGS, PING, PRIORITY, DATA without data, and such.
#[derive(Debug)]
pub(in crate::proxy) struct Chatter {
    budget: Budget,
    /// What had been written at the last PING.
    written: u64,
}

impl Chatter {
    pub(in crate::proxy) fn new() -> Self {
        Self { budget: Budget::new(1_000, 10), written: 0 }
    }

    /// A request has begun.
    pub(in crate::proxy) fn asked(&mut self) {
        // And one for its own head.
        self.budget.earn(PER_REQUEST + 1);
    }

    /// Whether this frame may come, too. `written`: the bytes that went to the client so far.
    pub(in crate::proxy) fn may(&mut self, of: u8, is_empty: bool, written: u64) -> bool {
        match of {
            // Windows and resets have bounds of their own.
            kind::RST_STREAM | kind::WINDOW_UPDATE => {}
            kind::DATA | kind::CONTINUATION if !is_empty => {}
            kind::PING => {
                let is_free = written - std::mem::replace(&mut self.written, written) >= FREE_PING;
                return is_free || self.budget.spend();
            }
            _ => return self.budget.spend(),
        }
        true
    }
}

/// Streams that end before their answer, by the client's reset or by its mistake (CVE-2023-44487, CVE-2025-8671): each of
/// them may have cost an endpoint the whole work.
#[derive(Debug)]
pub(super) struct Broken(Budget);

impl Broken {
    pub(super) fn new() -> Self {
        Self(Budget::new(200, 20))
    }

    /// One ended with its answer.
    pub(super) fn answered(&mut self) {
        self.0.earn(1);
    }

    /// Whether one more may end so.
    pub(super) fn may(&mut self) -> bool {
        self.0.spend()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many of these it takes until it is too much, up to 100,000.
    fn endured(chatter: &mut Chatter, kinds: &[u8]) -> usize {
        let ask = |chatter: &mut Chatter, kind: &u8| {
            let may = chatter.may(*kind, false, 0);
            if *kind == kind::HEADERS {
                chatter.asked();
            }
            may
        };
        (0..100_000).take_while(|_| kinds.iter().all(|kind| ask(chatter, kind))).count()
    }

    #[tokio::test]
    async fn a_thousand_settings_are_endured() {
        assert_eq!(endured(&mut Chatter::new(), &[kind::SETTINGS]), 1_000);
    }

    #[tokio::test]
    async fn data_without_data_is_chatter() {
        let mut chatter = Chatter::new();
        assert_eq!((0..2_000).take_while(|_| chatter.may(kind::DATA, true, 0)).count(), 1_000);
    }

    #[tokio::test]
    async fn requests_and_bodies_are_never_too_much() {
        let asked = [kind::HEADERS, kind::DATA, kind::WINDOW_UPDATE, kind::PING];
        assert_eq!(endured(&mut Chatter::new(), &asked), 100_000);
    }

    #[tokio::test]
    async fn heads_that_begin_nothing_are_chatter() {
        let mut chatter = Chatter::new();
        assert_eq!((0..2_000).take_while(|_| chatter.may(kind::HEADERS, false, 0)).count(), 1_000);
    }

    #[tokio::test]
    async fn a_client_that_measures_its_window_may_ping_for_ever() {
        let mut chatter = Chatter::new();

        let told = (1..=5_000).find(|n| !chatter.may(kind::PING, false, n * FREE_PING));

        assert_eq!(told, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_pings_each_second_may_do_so_for_ever() {
        let mut chatter = Chatter::new();

        for _ in 0..5_000 {
            assert!(chatter.may(kind::PING, false, 0));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test]
    async fn who_breaks_off_every_stream_is_stopped() {
        let mut broken = Broken::new();
        assert_eq!((0..10_000).take_while(|_| broken.may()).count(), 200);
    }

    #[tokio::test]
    async fn who_breaks_off_every_second_stream_is_not() {
        let mut broken = Broken::new();
        for _ in 0..10_000 {
            assert!(broken.may());
            broken.answered();
        }
    }
}
