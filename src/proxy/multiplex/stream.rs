//! One HTTP/2 stream to an endpoint, as the bytes of an HTTP/1 exchange.
//!
//! Everything above (uploads, relays, deadlines, retries, interim answers) knows one wire format; here a request written
//! in it becomes HEADERS, DATA and trailers, and the answer is read in it. Lossless for what HTTP defines: bodies without
//! a length and trailers travel in chunked coding. Flow control is that of the stream: what its window does not take is
//! not accepted, and the endpoint's window opens as its bytes are read.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::request;
use super::streams::Streams;
use crate::proxy::http1::body::{Decoder, Piece};
use crate::proxy::http1::head::find_end;

/// Bytes of an unfinished line, or head, that wait for the rest.
const STAGED: usize = 64 * 1024;

/// Why a stream ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// The endpoint did nothing with it (REFUSED_STREAM, or GOAWAY with a lower stream): it may be sent again, whatever
    /// it is (RFC 9113 section 8.7).
    #[error("the endpoint refused the stream")]
    Refused,
    #[error("the endpoint reset the stream: {0}")]
    Reset(h2::Reason),
    #[error("the endpoint's answer is malformed")]
    Malformed,
    #[error("the connection of the stream ended")]
    Lost,
    /// This request cannot be said in HTTP/2.
    #[error("the request cannot be sent over HTTP/2")]
    Unsendable,
}

impl StreamError {
    /// What is inside an error that this stream gave.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::other(error)
    }
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Http2Stream {
    streams: Rc<RefCell<Streams>>,
    at: usize,
    is_tls: bool,
    up: Up,
    /// Accepted, and too little to be looked at.
    staged: Vec<u8>,
    /// Why there is no stream.
    failed: Option<StreamError>,
}

/// How far the request has come.
#[derive(Debug)]
enum Up {
    Head,
    /// `owed`: bytes of the payload that are next.
    Body {
        decoder: Decoder,
        owed: usize,
    },
    Ended,
}

/// What became of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pushed {
    /// So many were used, and more may be.
    Some(usize),
    /// They are the beginning of something.
    TooFew,
    /// There is no room for any.
    NoRoom,
}

impl Http2Stream {
    pub(super) fn new(streams: Rc<RefCell<Streams>>, is_tls: bool) -> Self {
        let at = streams.borrow_mut().take();
        Self { streams, at, is_tls, up: Up::Head, staged: Vec::new(), failed: None }
    }

    /// Sends of these bytes what can be sent now.
    fn push(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Result<Pushed, StreamError> {
        let mut streams = self.streams.borrow_mut();
        if let Some(error) = streams.slot(self.at).failed {
            return Err(error);
        }
        match &mut self.up {
            Up::Head => {
                drop(streams);
                let begun = self.begin(cx, bytes);
                // There is no stream whose answer could say so.
                self.failed = begun.err();
                begun
            }
            Up::Body { decoder, owed } => {
                let mut used = 0;
                let mut data: &[u8] = &[];
                if *owed > 0 {
                    let Poll::Ready(room) = streams.poll_room(self.at, cx) else { return Ok(Pushed::NoRoom) };
                    used = room.min(*owed).min(bytes.len());
                    data = bytes.get(..used).unwrap_or_default();
                    *owed -= used;
                }
                // What follows: the end of a body goes out with its last bytes. Framing takes no room in the window: an end
                // must not wait for one that is full.
                let mut is_last = false;
                if *owed == 0 {
                    let Ok(piece) = decoder.next(bytes.get(used..).unwrap_or_default()) else {
                        // Nobody would end it.
                        streams.reset(self.at, h2::Reason::CANCEL, StreamError::Unsendable);
                        return Err(StreamError::Unsendable);
                    };
                    match piece {
                        Piece::Data { skip, len } => (used, *owed) = (used + skip, len),
                        Piece::More(0) if used == 0 => return Ok(Pushed::TooFew),
                        Piece::More(n) => used += n,
                        Piece::End(n) => (used, is_last) = (used + n, true),
                    }
                }
                let ends = is_last && decoder.trailers().is_empty();
                if !data.is_empty() || ends {
                    streams.send(self.at, data, ends);
                }
                if is_last && !ends {
                    streams.send_trailers(self.at, decoder.trailers());
                }
                if is_last {
                    self.up = Up::Ended;
                }
                Ok(Pushed::Some(used))
            }
            // Nothing may follow.
            Up::Ended => Err(StreamError::Unsendable),
        }
    }

    fn begin(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Result<Pushed, StreamError> {
        let Some(end) = find_end(bytes, 0) else { return Ok(Pushed::TooFew) };
        let mut streams = self.streams.borrow_mut();
        if streams.poll_turn(self.at, cx)?.is_pending() {
            return Ok(Pushed::NoRoom);
        }
        let mut block = streams.buffers.scratch();
        let head = bytes.get(..end).unwrap_or_default();
        streams.begin_block(&mut block);
        let request = request::encode(head, self.is_tls, &mut block).ok_or(StreamError::Unsendable)?;
        let decoder = Decoder::new(request.framing);
        streams.begin(self.at, &block, decoder.is_done());
        streams.buffers.recycle(block);
        streams.slot(self.at).is_head_request = request.is_head;
        self.up = if decoder.is_done() { Up::Ended } else { Up::Body { decoder, owed: 0 } };
        Ok(Pushed::Some(end))
    }

    /// Sends as much of these bytes as can be sent now; how many that was. Pending: none.
    fn poll_push(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        let mut used = 0;
        while used < bytes.len() {
            match self.push(cx, bytes.get(used..).unwrap_or_default())? {
                Pushed::Some(n) => used += n,
                Pushed::TooFew => break,
                Pushed::NoRoom if used == 0 => return Poll::Pending,
                Pushed::NoRoom => break,
            }
        }
        Poll::Ready(Ok(used))
    }

    /// Sends what is staged. Ready when all of it, or all but an unfinished line, is gone.
    fn poll_drain(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.staged.is_empty() {
            let staged = std::mem::take(&mut self.staged);
            let pushed = self.poll_push(cx, &staged);
            self.staged = staged;
            match ready!(pushed)? {
                0 => break,
                n => drop(self.staged.drain(..n)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_accept(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<Result<usize, StreamError>> {
        if self.staged.is_empty() {
            match ready!(self.poll_push(cx, bytes))? {
                0 => {}
                n => return Poll::Ready(Ok(n)),
            }
        } else if self.staged.len() >= STAGED {
            ready!(self.poll_drain(cx))?;
        }
        let take = bytes.len().min(STAGED);
        self.staged.extend_from_slice(bytes.get(..take).unwrap_or_default());
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(take)),
        }
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // The last of a request goes out while its answer is waited for. A failure shows in the answer, which may be
        // there in spite of it.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            tracing::trace!(%error, "The rest of a request.");
        }
        if let Some(error) = this.failed {
            return Poll::Ready(Err(error.into()));
        }
        let before = buf.filled().len();
        let mut streams = this.streams.borrow_mut();
        let buffers = streams.buffers.clone();
        let slot = streams.slot(this.at);
        let taken = slot.read_into(buf, &buffers);
        let is_over = slot.is_read();
        let ended = if buf.filled().len() > before || is_over {
            Poll::Ready(Ok(()))
        } else if let Some(error) = slot.failed {
            Poll::Ready(Err(error.into()))
        } else {
            slot.wait(cx);
            Poll::Pending
        };
        // As it is read here, there is room for as much again.
        streams.release_stream(this.at, taken);
        ended
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_accept(cx, bytes).map_err(io::Error::from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx).map_err(io::Error::from)
    }

    /// A request's end is in its framing.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.streams.borrow_mut().give(self.at);
    }
}
