//! An endpoint's answer as the body of an HTTP/2 response.
//!
//! Owns the endpoint's connection until the body ends; a clean end gives it back, anything else (the client resets the
//! stream, the endpoint stops) closes it. Every way out is one journal entry.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::super::awaited::{Broken, Deadlines, Upward};
use super::super::buffer::Size;
use super::super::http1::body::{Decoder, Framing, Piece};
use super::super::http1::response::ResponseHead;
use super::super::journal::Entry;
use super::super::stream_to_endpoint::StreamError;
use super::super::upstream::{self, Link};
use super::super::watchdog::Watchdog;
use super::upload::Upload;
use super::{ActiveStream, Session};
use crate::reason::Reason;

/// The body of any response.
pub(super) enum Answer {
    Own(Bytes, Rc<Session>),
    Endpoint(Box<Relay>),
}

/// A body on its way from an endpoint.
pub(super) struct Relay {
    session: Rc<Session>,
    _stream: ActiveStream,
    decoder: Decoder,
    /// Bytes left of a body of known length.
    left: Option<u64>,
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

/// Why a body ended early; hyper resets the stream with the code of the source, or INTERNAL_ERROR.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Cut {
    reason: Reason,
    /// What the endpoint reset its stream with.
    source: Option<h2::Error>,
}

impl Relay {
    pub(super) fn new(
        session: Rc<Session>,
        stream: ActiveStream,
        entry: Entry,
        link: Link,
        head: ResponseHead,
        upload: Upload,
        deadlines: Deadlines,
    ) -> Self {
        let mut relay = Self {
            session,
            _stream: stream,
            decoder: Decoder::new(head.framing),
            left: match head.framing {
                Framing::Length(n) => Some(n),
                Framing::Empty => Some(0),
                Framing::Chunked | Framing::Close => None,
            },
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

    /// The one way out.
    fn end(&mut self, reason: Option<Reason>) {
        let Some(Live { link, upload, mut entry }) = self.live.take() else { return };
        let (worker, connection) = (&self.session.worker, &self.session.connection);
        entry.bytes_in = upload.bytes;
        entry.reason = entry.reason.or(reason);
        let is_clean = reason.is_none() && self.keeps_alive && upload.is_complete() && link.buffer.is_empty();
        worker.buffers.recycle(upload.into_head());
        if is_clean {
            worker.pool.checkin(link, worker.now_millis());
        } else {
            upstream::discard(link, &worker.buffers);
        }
        entry.finish(worker, connection);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Reason>> {
        self.session.pace.asked();
        let Some(Live { link, upload, entry }) = &mut self.live else { return Poll::Ready(Ok(None)) };
        let buffers = &self.session.worker.buffers;
        if !upload.is_done()
            && let Poll::Ready(Err(Broken::Client(reason) | Broken::Endpoint(reason))) = upload.poll(cx, link)
        {
            return Poll::Ready(Err(reason));
        }
        loop {
            match self.decoder.next(link.buffer.unread()).map_err(|_| Reason::BadResponse)? {
                Piece::Data { skip, len } => {
                    let data = link.buffer.unread().get(skip..skip + len).unwrap_or_default();
                    let data = Bytes::copy_from_slice(data);
                    link.buffer.consume(skip + len, buffers);
                    entry.bytes_out += len as u64;
                    self.left = self.left.map(|left| left.saturating_sub(len as u64));
                    if let Some(dog) = &mut self.dog {
                        dog.set(Instant::now() + self.deadlines.response_body);
                    }
                    if self.decoder.is_done() && self.decoder.trailers().is_empty() {
                        self.end(None);
                    } else {
                        self.session.pace.handed();
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Piece::End(n) => {
                    link.buffer.consume(n, buffers);
                    let trailers = trailer_map(self.decoder.trailers());
                    self.end(None);
                    return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                }
                Piece::More(n) => link.buffer.consume(n, buffers),
            }
            match link.buffer.poll_fill(cx, &mut link.io, Size::Body, buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(Ok(_)) if self.decoder.may_end_here() => {
                    self.end(None);
                    return Poll::Ready(Ok(None));
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
                    return dog.poll(cx).map(|()| Err(Reason::UpstreamStalled));
                }
            }
        }
    }
}

impl Drop for Relay {
    /// Dropped before its end: the client reset the stream, went away, or stopped reading.
    fn drop(&mut self) {
        let is_slow = self.session.pace.is_cutting();
        self.end(Some(if is_slow { Reason::WriteTimeout } else { Reason::ClientAbort }));
    }
}

fn trailer_map(lines: &[u8]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for line in lines.split(|b| *b == b'\n') {
        let Some((name, value)) = line.iter().position(|b| *b == b':').and_then(|at| line.split_at_checked(at)) else {
            continue;
        };
        let value = crate::decide::fields::trim(value.get(1..).unwrap_or_default().trim_ascii_end());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    (!map.is_empty()).then_some(map)
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Own(bytes, _) if bytes.is_empty() => Poll::Ready(None),
            Self::Own(bytes, session) => {
                session.pace.handed();
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Endpoint(relay) => relay.poll_next(cx).map(|next| match next {
                Ok(frame) => frame.map(Ok),
                Err(reason) => {
                    relay.end(Some(reason));
                    Some(Err(Cut { reason, source: relay.reset.map(h2::Error::from) }))
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes, _) => bytes.is_empty(),
            Self::Endpoint(relay) => relay.live.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Endpoint(relay) => relay.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
