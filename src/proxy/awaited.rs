//! The wait for an endpoint's response head while the request still goes up: what is read, which deadline holds, and who
//! is to blame when it passes. One for all clients, whatever they speak.
//!
//! It owns no timer: the caller arms its own, and only when there is something to wait for.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::buffer::{Buffers, Size};
use super::connection::Connection;
use super::http1::head::find_end;
use super::http1::response::HEAD_BYTES;
use super::multiplex::StreamError;
use super::request::Plan;
use super::upstream::Link;
use crate::reason::Reason;

/// Why an upload or a response cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client sent nonsense, too slowly, or went away.
    Client(Reason),
    /// The endpoint failed.
    Endpoint(Reason),
}

/// Deadlines of an exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// From the request sent to the response's head.
    pub(crate) response_head: Duration,
    /// Without a byte of the response's body.
    pub(crate) response_body: Duration,
    /// Without a byte of the request's body.
    pub(crate) request_body: Duration,
    /// Bytes per second, at least, while a request's body is waited for; 0: any.
    pub(crate) body_rate: u32,
    /// Without the client taking anything.
    pub(crate) write: Duration,
}

impl Deadlines {
    /// How long a client may still be waited for that has sent `bytes` of a body and was waited for `waited` so far.
    fn patience(&self, bytes: u64, waited: Duration) -> Duration {
        match self.body_rate {
            0 => self.request_body,
            rate => {
                let earned = Duration::from_millis(bytes.saturating_mul(1_000) / u64::from(rate));
                self.request_body.min((RATE_GRACE + earned).saturating_sub(waited))
            }
        }
    }

    pub(crate) fn of(connection: &Connection, plan: &Plan) -> Self {
        let (client, endpoint) = (&connection.listener.config.timeouts, &plan.service.config.timeouts);
        if let Some(call) = plan.grpc {
            // A stream may be silent for long, both ways, and that says nothing about who is to blame.
            let silence = call.silence(client.upgraded_idle);
            return Self {
                response_head: silence,
                response_body: silence,
                request_body: silence,
                body_rate: 0,
                write: client.write,
            };
        }
        Self {
            response_head: endpoint.response_head,
            response_body: endpoint.body,
            request_body: client.body,
            body_rate: connection.listener.config.limits.body_rate,
            write: client.write,
        }
    }
}

/// A request on its way up.
pub(crate) trait Upward {
    /// Sends and reads as much as both sides take. Ready when done, or when the endpoint reads no more.
    fn poll(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Broken>>;

    /// Where it stands.
    fn progress(&self) -> Progress;
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Of the body, so far.
    pub(crate) bytes: u64,
    /// Of those, what the endpoint has not taken yet.
    pub(crate) unsent: usize,
    /// All is read and sent, or the endpoint reads no more: there is nothing left to poll.
    pub(crate) is_done: bool,
    /// All that the client sent has gone out, and there is more to come.
    pub(crate) waits_for_client: bool,
    /// Held back until the endpoint says 100 (RFC 9110 section 10.1.1).
    pub(crate) is_gated: bool,
}

/// A slow start is forgiven: round trips, a client that has to find its file (Kestrel's `MinRequestBodyDataRate` has
/// the same grace).
const RATE_GRACE: Duration = Duration::from_secs(5);

/// How long a body is held back for a 100 that does not come (reliability.md B10).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The wait for one head.
#[derive(Debug, Default)]
pub(crate) struct HeadWait {
    /// Bytes searched without finding its end.
    seen: usize,
    pub(crate) pace: Pace,
}

/// How a request moves.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the deadline was last set.
    moved: Option<Progress>,
    /// Since when the client is waited for, and for how long it was before. What the endpoint takes does not count.
    waits_since: Option<Instant>,
    waited: Duration,
}

impl HeadWait {
    /// Sends and reads. Ready with the length of a complete head in the link's buffer.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut impl Upward,
        link: &mut Link,
        buffers: &Buffers,
    ) -> Poll<Result<usize, Broken>> {
        if !upload.progress().is_done
            && let Poll::Ready(Err(broken)) = upload.poll(cx, link)
        {
            return Poll::Ready(Err(broken));
        }
        loop {
            if let Some(end) = find_end(link.buffer.unread(), self.seen) {
                return Poll::Ready(Ok(end));
            }
            self.seen = link.buffer.len();
            if self.seen > HEAD_BYTES {
                return Poll::Ready(Err(Broken::Endpoint(Reason::BadResponse)));
            }
            match link.buffer.poll_fill(cx, &mut link.io, Size::Body, buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(ended) => {
                    return Poll::Ready(Err(match ended.as_ref().err().and_then(StreamError::of) {
                        Some(StreamError::Refused) => Broken::Endpoint(Reason::StreamRefused),
                        Some(StreamError::Unsendable) => Broken::Client(Reason::Target),
                        Some(StreamError::Malformed) => Broken::Endpoint(Reason::BadResponse),
                        _ if self.seen == 0 => Broken::Endpoint(Reason::Reset),
                        _ => Broken::Endpoint(Reason::BadResponse),
                    }));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Pace {
    /// The deadline, if something has moved since it was last asked for.
    pub(crate) fn rearm(&mut self, now: Progress, deadlines: &Deadlines) -> Option<Instant> {
        if self.moved.replace(now) == Some(now) {
            return None;
        }
        let time = Instant::now();
        if let Some(since) = self.waits_since.take() {
            self.waited += time - since;
        }
        // Whoever's turn it is: an endpoint that reads nothing has no more time than one that says nothing.
        let after = match now {
            Progress { is_gated: true, .. } => CONTINUE_WAIT,
            Progress { waits_for_client: true, bytes, .. } => {
                self.waits_since = Some(time);
                deadlines.patience(bytes, self.waited)
            }
            _ => deadlines.response_head,
        };
        Some(time + after)
    }
}

impl Progress {
    /// What it means that the time is over.
    pub(crate) fn late(self) -> Broken {
        match self.waits_for_client {
            true => Broken::Client(Reason::BodyTimeout),
            false => Broken::Endpoint(Reason::ResponseTimeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadlines(body_rate: u32) -> Deadlines {
        let long = Duration::from_secs(60);
        let request_body = Duration::from_secs(30);
        Deadlines { response_head: long, response_body: long, request_body, body_rate, write: long }
    }

    #[test]
    fn patience_is_earned_by_bytes_and_used_up_by_waiting() {
        let rules = deadlines(240);
        let seconds = Duration::from_secs;

        assert_eq!(rules.patience(0, seconds(0)), seconds(5));
        assert_eq!(rules.patience(0, seconds(4)), seconds(1));
        assert_eq!(rules.patience(2_400, seconds(4)), seconds(11));
        assert_eq!(rules.patience(0, seconds(6)), seconds(0));
        assert_eq!(rules.patience(u64::MAX, seconds(6)), rules.request_body);
    }

    #[test]
    fn without_a_rate_only_the_silence_counts() {
        assert_eq!(deadlines(0).patience(0, Duration::from_secs(1_000)), Duration::from_secs(30));
    }
}
