//! Frames that cost an answer and bring nothing: SETTINGS, PING, PRIORITY and such (RFC 9113 section 10.5). A client may
//! send a thousand of them, ten more for each request and each second; then its connection ends, so that a flood costs
//! its sender a handshake now and then. Frame heads are read as they pass, since `h2` counts none of these.

use tokio::time::Instant;

/// What a connection may send of them at once.
const MOST: u64 = 1_000;
const PER_REQUEST: u64 = 10;
const PER_SECOND: u64 = 10;
/// A PING for every so many bytes of answers is free: clients measure their windows so.
const FREE_PING: u64 = 1_024;

const PREFACE: usize = 24;
const HEAD: usize = 9;

/// What one client has said.
#[derive(Debug)]
pub(super) struct Chatter {
    /// Bytes until the next frame's head.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of it that are here.
    have: usize,
    left: u64,
    /// When `left` last grew by time.
    since: Instant,
    /// What had been written at the last PING.
    written: u64,
}

impl Chatter {
    /// Of a connection that is about to begin with the preface.
    pub(super) fn new() -> Self {
        Self { skip: PREFACE, head: [0; HEAD], have: 0, left: MOST, since: Instant::now(), written: 0 }
    }

    /// Whether it has said too much with these bytes. `written`: the bytes that went to it so far.
    pub(super) fn is_too_much(&mut self, mut bytes: &[u8], written: u64) -> bool {
        loop {
            let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
            self.skip -= skipped.len();
            let (part, rest) = rest.split_at((HEAD - self.have).min(rest.len()));
            for (to, from) in self.head.iter_mut().skip(self.have).zip(part) {
                *to = *from;
            }
            self.have += part.len();
            if self.have < HEAD {
                return false;
            }
            self.have = 0;
            let [a, b, c, kind, ..] = self.head;
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if !self.may(kind, written) {
                return true;
            }
            bytes = rest;
        }
    }

    fn may(&mut self, kind: u8, written: u64) -> bool {
        match kind {
            // HEADERS.
            1 => self.left = MOST.min(self.left + PER_REQUEST),
            // DATA, RST_STREAM, WINDOW_UPDATE and CONTINUATION have bounds of their own.
            0 | 3 | 8 | 9 => {}
            6 if written - self.written >= FREE_PING => self.written = written,
            _ => {
                if self.left == 0 {
                    // The clock is asked only now: hardly anybody comes here.
                    let seconds = self.since.elapsed().as_secs();
                    self.left = MOST.min(seconds.saturating_mul(PER_SECOND));
                    self.since = Instant::now();
                }
                let Some(left) = self.left.checked_sub(1) else { return false };
                self.left = left;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], &vec![0; payload]].concat()
    }

    fn greeted() -> Chatter {
        let mut chatter = Chatter::new();
        assert!(!chatter.is_too_much(&[7; PREFACE], 0));
        chatter
    }

    /// How many of these it takes until it is too much, up to 100,000.
    fn endured(chatter: &mut Chatter, bytes: &[u8]) -> usize {
        (0..100_000).take_while(|_| !chatter.is_too_much(bytes, 0)).count()
    }

    #[tokio::test]
    async fn a_thousand_settings_are_endured() {
        assert_eq!(endured(&mut greeted(), &frame(SETTINGS, 6)), 1_000);
    }

    #[tokio::test]
    async fn frames_are_found_however_they_are_cut() {
        let mut chatter = greeted();
        let stream = frame(SETTINGS, 30).repeat(1_001);

        let endured = stream.iter().take_while(|b| !chatter.is_too_much(std::slice::from_ref(b), 0)).count();

        assert_eq!(endured, 39 * 1_000 + HEAD - 1, "the head of the last one is too much");
    }

    #[tokio::test]
    async fn requests_and_bodies_are_never_too_much() {
        let mut chatter = greeted();
        let asked = [frame(1, 40), frame(0, 1_000), frame(8, 4), frame(PING, 8)].concat();

        assert_eq!(endured(&mut chatter, &asked), 100_000);
    }

    #[tokio::test]
    async fn a_client_that_measures_its_window_may_ping_for_ever() {
        let mut chatter = greeted();

        let told = (1..=5_000).find(|n| chatter.is_too_much(&frame(PING, 8), n * FREE_PING));

        assert_eq!(told, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_pings_each_second_may_do_so_for_ever() {
        let mut chatter = greeted();

        for _ in 0..5_000 {
            assert!(!chatter.is_too_much(&frame(PING, 8), 0));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
