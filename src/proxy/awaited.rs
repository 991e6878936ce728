//! The wait for an endpoint's response head while the request still goes up: what is read, which deadline holds, and who
//! is to blame when it passes. One for all clients, whatever they speak.
//!
//! It owns no timer: the caller arms its own, and only when there is something to wait for.

use std::task::{Context, Poll};
use std::time::Duration;

use super::buffer::{Buffers, Size};
use super::connection::Connection;
use super::http1::head::find_end;
use super::http1::response::HEAD_BYTES;
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
    /// Without the client taking anything.
    pub(crate) write: Duration,
}

impl Deadlines {
    pub(crate) fn of(connection: &Connection, plan: &Plan) -> Self {
        let (client, endpoint) = (&connection.listener.config.timeouts, &plan.service.config.timeouts);
        Self {
            response_head: endpoint.response_head,
            response_body: endpoint.body,
            request_body: client.body,
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
    /// All is read and sent, or the endpoint reads no more: there is nothing left to poll.
    pub(crate) is_done: bool,
    /// All that the client sent has gone out, and there is more to come.
    pub(crate) waits_for_client: bool,
    /// Held back until the endpoint says 100 (RFC 9110 section 10.1.1).
    pub(crate) is_gated: bool,
}

/// How long a body is held back for a 100 that does not come (reliability.md B10).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The wait for one head.
#[derive(Debug, Default)]
pub(crate) struct HeadWait {
    /// Bytes searched without finding its end.
    seen: usize,
    /// When the deadline was last set.
    moved: Option<Progress>,
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
                Poll::Ready(_) => {
                    let reason = if self.seen == 0 { Reason::Reset } else { Reason::BadResponse };
                    return Poll::Ready(Err(Broken::Endpoint(reason)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The time from now on, if something has moved since it was last asked for.
    pub(crate) fn rearm(&mut self, now: Progress, deadlines: &Deadlines) -> Option<Duration> {
        if self.moved.replace(now) == Some(now) {
            return None;
        }
        // Whoever's turn it is: an endpoint that reads nothing has no more time than one that says nothing.
        Some(match now {
            Progress { is_gated: true, .. } => CONTINUE_WAIT,
            Progress { waits_for_client: true, .. } => deadlines.request_body,
            _ => deadlines.response_head,
        })
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
