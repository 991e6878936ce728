//! A request on its way from an HTTP/1 client to an endpoint: its head, what goes with it, and the rest of its body.
//!
//! Keeps the head (and a small body) until the answer begins, so that it can be sent again where that does no harm.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::body::{self, Decoder, Framing, Piece};
use super::exchange::WITH_HEAD;
use crate::proxy::attempts::Kept;
use crate::proxy::awaited::{Broken, Progress, Upward};
use crate::proxy::buffer::{Buffer, Buffers, Size};
use crate::proxy::linger::LINGER_BYTES;
use crate::proxy::stream::Stream;
use crate::proxy::upstream::Link;
use crate::reason::Reason;

/// A request together with where its body comes from.
pub(super) struct Upwards<'a> {
    pub(super) upload: &'a mut Upload,
    pub(super) stream: &'a mut Stream,
    pub(super) buffer: &'a mut Buffer,
    pub(super) buffers: &'a Buffers,
}

impl Upward for Upwards<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Broken>> {
        self.upload.poll(cx, self.stream, self.buffer, link, self.buffers)
    }

    fn progress(&self) -> Progress {
        self.upload.progress()
    }
}

/// A request on its way to an endpoint.
#[derive(Debug)]
pub(crate) struct Upload {
    framing: Framing,
    decoder: Decoder,
    /// The head and what goes with it; kept until the response begins, so that it can be sent again.
    first: Vec<u8>,
    first_sent: usize,
    /// Encoded bytes after that.
    pending: Vec<u8>,
    pending_sent: usize,
    /// Bytes at the front of the client's buffer that go out as they are.
    direct: usize,
    /// Held back until the endpoint says 100 (RFC 9110 section 10.1.1).
    pub(crate) is_gated: bool,
    ended: bool,
    /// More than `first` was sent: it cannot be sent again.
    is_streamed: bool,
    /// The endpoint stopped reading; its answer may still come.
    is_broken: bool,
    pub(crate) bytes: u64,
}

impl Upload {
    /// `head` is the endpoint's head; body bytes already read go with it.
    pub(crate) fn new(head: Vec<u8>, framing: Framing, is_gated: bool) -> Self {
        Self {
            framing,
            decoder: Decoder::new(framing),
            first: head,
            first_sent: 0,
            pending: Vec::new(),
            pending_sent: 0,
            direct: 0,
            is_gated: is_gated && !Decoder::new(framing).is_done(),
            ended: matches!(framing, Framing::Empty | Framing::Length(0)),
            is_streamed: false,
            is_broken: false,
            bytes: 0,
        }
    }

    /// The endpoint's head, for the log and for another attempt.
    pub(crate) fn head(&self) -> &[u8] {
        &self.first
    }

    pub(crate) fn into_head(self) -> Vec<u8> {
        self.first
    }

    /// The whole body is read and sent.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.first_sent == self.first.len() && self.pending_sent == self.pending.len() && self.direct == 0
    }

    /// Nothing of the body is left in the client's connection: what is read there next is the next request.
    pub(crate) fn is_read(&self) -> bool {
        self.ended && self.direct == 0
    }

    /// So little is left of it that its connection is worth waiting for the end after an early answer: to close it in
    /// order takes reading as much (reliability.md B9).
    pub(crate) fn may_end_late(&self) -> bool {
        let is_little = self.decoder.left().is_some_and(|left| left <= LINGER_BYTES as u64);
        is_little && !self.is_gated && !self.is_broken
    }

    /// What can be sent again.
    pub(crate) fn kept(&self) -> Kept {
        match (self.is_streamed, self.ended) {
            (true, _) => Kept::Partly,
            (false, false) => Kept::SoFar,
            (false, true) => Kept::Whole,
        }
    }

    /// Starts again on another connection.
    pub(crate) fn rewind(&mut self) {
        self.first_sent = 0;
        self.is_broken = false;
    }

    /// Takes body bytes that are here already into the first write, if they are few: with them the request can be sent
    /// again.
    pub(crate) fn absorb(&mut self, client: &mut Buffer, buffers: &Buffers) -> Result<(), Reason> {
        if self.is_gated && client.is_empty() {
            return Ok(());
        }
        // A body that was sent at once did not wait for the 100.
        self.is_gated = false;
        while !self.ended && self.first.len() + client.len() < WITH_HEAD {
            match self.decoder.next(client.unread()).map_err(|_| Reason::Chunk)? {
                Piece::Data { skip, len } => {
                    let data = client.unread().get(skip..skip + len).unwrap_or_default();
                    body::encode(self.framing, data, &mut self.first);
                    self.bytes += len as u64;
                    client.consume(skip + len, buffers);
                    if self.decoder.is_done() && self.framing != Framing::Chunked {
                        self.ended = true;
                    }
                }
                Piece::More(n) => {
                    client.consume(n, buffers);
                    return Ok(());
                }
                Piece::End(n) => {
                    client.consume(n, buffers);
                    body::encode_end(self.framing, self.decoder.trailers(), &mut self.first);
                    self.ended = true;
                }
            }
        }
        Ok(())
    }

    /// Sends and reads as much as both sides take. Ready when done, or when the endpoint reads no more.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        buffer: &mut Buffer,
        link: &mut Link,
        buffers: &Buffers,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.is_broken {
                return Poll::Ready(Ok(()));
            }
            // All that is here goes out together: a write for each piece would make few bytes of a client expensive. But what
            // an endpoint has not taken waits for it alone: a client that drips must not look like progress.
            let is_blocked = self.direct > 0 || !self.pending.is_empty();
            let here = if is_blocked { Poll::Ready(Ok(())) } else { self.gather(cx, client, buffer, buffers) };
            if ready!(self.poll_send(cx, buffer, link, buffers)).is_err() {
                // Its answer may be on the way: "413" and a closed connection is legitimate (RFC 9112 section 9.5).
                self.is_broken = true;
                continue;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(here)?;
        }
    }

    /// Reads and decodes until there is enough to send, the body ends, or the client has sent no more, which is pending.
    fn gather(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        buffer: &mut Buffer,
        buffers: &Buffers,
    ) -> Poll<Result<(), Broken>> {
        loop {
            self.decode(buffer, buffers)?;
            let is_enough = match self.direct {
                0 => self.pending.len() >= WITH_HEAD,
                _ => !buffer.has_room(),
            };
            if self.ended || is_enough {
                return Poll::Ready(Ok(()));
            }
            if self.is_gated {
                return Poll::Pending;
            }
            match ready!(buffer.poll_fill(cx, client, Size::Body, buffers)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
            }
        }
    }

    /// Marks what was read to go out as it is, or writes it anew as chunks.
    fn decode(&mut self, buffer: &mut Buffer, buffers: &Buffers) -> Result<(), Broken> {
        while !self.ended && self.pending.len() < WITH_HEAD {
            let new = buffer.unread().get(self.direct..).unwrap_or_default();
            match self.decoder.next(new).map_err(|_| Broken::Client(Reason::Chunk))? {
                Piece::Data { skip, len } if self.framing == Framing::Chunked => {
                    self.bytes += len as u64;
                    body::encode(self.framing, new.get(skip..skip + len).unwrap_or_default(), &mut self.pending);
                    buffer.consume(skip + len, buffers);
                }
                Piece::Data { len, .. } => {
                    self.bytes += len as u64;
                    self.direct += len;
                    self.ended = self.decoder.is_done();
                }
                Piece::End(n) => {
                    buffer.consume(n, buffers);
                    body::encode_end(self.framing, self.decoder.trailers(), &mut self.pending);
                    self.ended = true;
                }
                Piece::More(n) => {
                    buffer.consume(n, buffers);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Buffer,
        link: &mut Link,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        loop {
            let first = self.first.get(self.first_sent..).unwrap_or_default();
            // A body is one or the other: as it came, or in chunks.
            let body = match self.direct {
                0 => self.pending.get(self.pending_sent..).unwrap_or_default(),
                direct => buffer.unread().get(..direct).unwrap_or_default(),
            };
            let sent = ready!(match (first, body) {
                ([], []) => break,
                ([], bytes) | (bytes, []) => Pin::new(&mut link.io).poll_write(cx, bytes),
                _ => Pin::new(&mut link.io).poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(body)]),
            })?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_first = sent.min(first.len());
            self.first_sent += of_first;
            let of_body = sent - of_first;
            self.is_streamed |= of_body > 0;
            if self.direct > 0 {
                self.direct -= of_body;
                buffer.consume(of_body, buffers);
            } else {
                self.pending_sent += of_body;
            }
        }
        self.pending.clear();
        self.pending_sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Where it stands.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            bytes: self.bytes,
            unsent: self.direct + self.pending.len() - self.pending_sent,
            is_done: self.is_done(),
            waits_for_client: self.waits_for_client(),
            is_gated: self.is_gated,
        }
    }

    /// Whose turn it is when nothing moves.
    fn waits_for_client(&self) -> bool {
        let is_sent = self.first_sent == self.first.len() && self.pending.is_empty() && self.direct == 0;
        is_sent && !self.ended && !self.is_gated && !self.is_broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_to_be_sent_of_a_body_is_not_the_next_request() {
        let (mut upload, buffers) = (Upload::new(b"POST".to_vec(), Framing::Length(4), false), Buffers::default());
        let mut buffer = Buffer::from(b"bodyGET /".to_vec());

        upload.decode(&mut buffer, &buffers).unwrap();

        assert_eq!((upload.ended, upload.direct, upload.is_read()), (true, 4, false));
    }

    #[test]
    fn only_little_that_is_left_may_end_late() {
        let left = |length| Upload::new(Vec::new(), Framing::Length(length), false).may_end_late();

        assert!(left(LINGER_BYTES as u64));
        assert!(!left(LINGER_BYTES as u64 + 1));
        assert!(!Upload::new(Vec::new(), Framing::Chunked, false).may_end_late(), "nobody knows how much");
        assert!(!Upload::new(Vec::new(), Framing::Length(4), true).may_end_late(), "it was not asked for");
    }
}
