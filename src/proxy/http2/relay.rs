//! An endpoint's answer as the body of an HTTP/2 response, piece by piece.
//!
//! Owns the endpoint's connection until the body ends; a clean end gives it back, anything else (the client resets the
//! stream, the endpoint stops) closes it. Every way out is one journal entry.

use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::super::awaited::{Broken, Deadlines, Upward};
use super::super::buffer::Size;
use super::super::http1::body::{Decoder, Piece};
use super::super::http1::response::ResponseHead;
use super::super::journal::Entry;
use super::super::multiplex::StreamError;
use super::super::upstream::{self, Link};
use super::super::watchdog::Watchdog;
use super::Session;
use super::hpack::encoder;
use super::streams::Handle;
use super::upload::{Sent, Upload};
use crate::reason::Reason;

/// What came next of a body.
pub(super) enum Next {
    /// A piece, which was sent.
    Data,
    /// The block to end the stream with.
    Trailers(Vec<u8>),
    End,
}

/// A body on its way from an endpoint.
pub(super) struct Relay {
    session: Rc<Session>,
    decoder: Decoder,
    keeps_alive: bool,
    deadlines: Deadlines,
    dog: Option<Watchdog>,
    /// The code that the endpoint ended its stream with.
    reset: Option<h2::Reason>,
    /// All of these until the end.
    live: Option<Live>,
}

struct Live {
    link: Link,
    upload: Upload,
    entry: Entry,
}

impl Relay {
    pub(super) fn new(
        session: Rc<Session>,
        entry: Entry,
        link: Link,
        head: ResponseHead,
        upload: Upload,
        deadlines: Deadlines,
    ) -> Self {
        let mut relay = Self {
            session,
            decoder: Decoder::new(head.framing),
            keeps_alive: head.keeps_alive,
            deadlines,
            dog: None,
            reset: None,
            live: Some(Live { link, upload, entry }),
        };
        if relay.decoder.is_done() {
            relay.end(None);
        }
        relay
    }

    /// Whether nothing comes any more.
    pub(super) fn is_over(&self) -> bool {
        self.live.is_none()
    }

    /// Ends it early; the code to reset the client's stream with: the endpoint's own, if it had one.
    pub(super) fn cut(&mut self, reason: Reason) -> h2::Reason {
        self.end(Some(reason));
        self.reset.unwrap_or(h2::Reason::INTERNAL_ERROR)
    }

    /// The one way out.
    pub(super) fn end(&mut self, reason: Option<Reason>) {
        let Some(Live { mut link, upload, mut entry }) = self.live.take() else { return };
        let (worker, connection) = (&self.session.worker, &self.session.connection);
        entry.bytes_in = upload.bytes;
        entry.reason = entry.reason.or(reason);
        let is_clean = reason.is_none() && self.keeps_alive && upload.is_complete() && link.buffer.is_empty();
        // What its connection still holds of an early answer's request would be held until the next one.
        let is_clean = is_clean && link.io.is_flushed();
        worker.buffers.recycle(upload.into_head());
        if is_clean {
            worker.pool.checkin(link, worker.now_millis());
        } else {
            upstream::discard(link, &worker.buffers);
        }
        entry.finish(worker, connection);
    }

    /// Goes on with the request while its answer waits for the client: who reads only when all is sent must get there.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>, stream: &Handle) -> Poll<Result<(), Reason>> {
        let Some(Live { link, upload, .. }) = &mut self.live else { return Poll::Pending };
        poll_upload(upload, cx, link, stream)
    }

    /// Sends the next piece, when the one before has gone; after an error it is for the caller to cut this.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, stream: &Handle) -> Poll<Result<Next, Reason>> {
        let Some(Live { link, upload, entry }) = &mut self.live else { return Poll::Ready(Ok(Next::End)) };
        let buffers = &self.session.worker.buffers;
        if let Poll::Ready(Err(reason)) = poll_upload(upload, cx, link, stream) {
            return Poll::Ready(Err(reason));
        }
        loop {
            match self.decoder.next(link.buffer.unread()).map_err(|_| Reason::BadResponse)? {
                Piece::Data { skip, len } => {
                    let is_last = self.decoder.is_done() && self.decoder.trailers().is_empty();
                    let data = link.buffer.unread().get(skip..skip + len).unwrap_or_default();
                    // An error: the client gave it up, which the caller sees.
                    stream.send(data, is_last).ok();
                    link.buffer.consume(skip + len, buffers);
                    entry.bytes_out += len as u64;
                    if let Some(dog) = &mut self.dog {
                        dog.set(Instant::now() + self.deadlines.response_body);
                    }
                    if is_last {
                        self.end(None);
                    }
                    return Poll::Ready(Ok(Next::Data));
                }
                Piece::End(n) => {
                    link.buffer.consume(n, buffers);
                    let mut trailers = Vec::new();
                    encoder::lines(self.decoder.trailers(), &mut trailers);
                    self.end(None);
                    return Poll::Ready(Ok(if trailers.is_empty() { Next::End } else { Next::Trailers(trailers) }));
                }
                Piece::More(n) => link.buffer.consume(n, buffers),
            }
            match link.buffer.poll_fill(cx, &mut link.io, Size::Body, buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(Ok(_)) if self.decoder.may_end_here() => {
                    self.end(None);
                    return Poll::Ready(Ok(Next::End));
                }
                Poll::Ready(ended) => {
                    if let Some(StreamError::Reset(code)) = ended.as_ref().err().and_then(StreamError::of) {
                        self.reset = Some(code);
                    }
                    return Poll::Ready(Err(Reason::UpstreamTruncated));
                }
                Poll::Pending => {
                    let wait = self.deadlines.response_body;
                    let dog = self.dog.get_or_insert_with(|| Watchdog::new(Instant::now() + wait));
                    // The endpoint may well wait for the rest of the client's body.
                    let is_clients = upload.progress().waits_for_client;
                    let late = if is_clients { Reason::BodyTimeout } else { Reason::UpstreamStalled };
                    return dog.poll(cx).map(|()| Err(late));
                }
            }
        }
    }
}

impl Drop for Relay {
    /// Dropped before its end: the client reset the stream, or went away.
    fn drop(&mut self) {
        self.end(Some(Reason::ClientAbort));
    }
}

fn poll_upload(
    upload: &mut Upload,
    cx: &mut Context<'_>,
    link: &mut Link,
    stream: &Handle,
) -> Poll<Result<(), Reason>> {
    if upload.is_done() {
        return Poll::Ready(Ok(()));
    }
    (Sent { upload, stream }).poll(cx, link).map_err(|(Broken::Client(reason) | Broken::Endpoint(reason))| reason)
}
