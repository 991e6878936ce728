//! A connection to an endpoint, driven to its end: its bytes in and out, and its pings. What the requests put together goes
//! out in one write: the driver is woken behind all tasks that can go on.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::receive::ARE_YOU_THERE;
use super::streams::{CONNECTION_WINDOW, STREAM_WINDOW, Streams};
use crate::proxy::buffer::{Buffer, Size};
use crate::proxy::http1::response::HEAD_BYTES;
use crate::proxy::http2::frame::{self, setting};

/// What a client says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An endpoint with requests that says nothing is asked whether it is still there: less and less often, since gRPC servers end
/// connections on which nothing but PINGs comes (grpc-go: at the third within five minutes, by gRFC A8).
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_LESS: u32 = 4;
const PING_RARELY: Duration = Duration::from_secs(320);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing more is read while so much waits to be written: what came would have to be answered too.
const STUCK: usize = 128 * 1024;

/// One connection.
pub(super) struct Driver<T> {
    io: T,
    buffer: Buffer,
    streams: Rc<RefCell<Streams>>,
    /// What of the streams' bytes was written, and whether they have to be flushed.
    sent: usize,
    is_due: bool,
    /// Bytes that went to the endpoint so far.
    written: u64,
    /// Why no more can be written. What has come is read all the same: answers, and which streams were not looked at.
    deaf: Option<io::Error>,
    timer: Pin<Box<Sleep>>,
    every: Duration,
    is_asked: bool,
    is_ending: bool,
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the endpoint broke HTTP/2: {0}")]
    Endpoint(Reason),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer to a PING, or no end")]
    Silent,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(io: T, streams: Rc<RefCell<Streams>>) -> Self {
        let size = |n: i64| u32::try_from(n).unwrap_or_default();
        let settings = [
            (setting::ENABLE_PUSH, 0),
            (setting::INITIAL_WINDOW_SIZE, size(STREAM_WINDOW)),
            (setting::MAX_HEADER_LIST_SIZE, u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX)),
        ];
        {
            let mut streams = streams.borrow_mut();
            let out = streams.out();
            out.extend_from_slice(PREFACE);
            frame::settings(&settings, out);
            frame::window_update(0, size(CONNECTION_WINDOW) - 65_535, out);
        }
        Self {
            io,
            buffer: Buffer::default(),
            streams,
            sent: 0,
            is_due: false,
            written: 0,
            deaf: None,
            timer: Box::pin(sleep(PING_EVERY)),
            every: PING_EVERY,
            is_asked: false,
            is_ending: false,
        }
    }

    /// Ready at the connection's end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.streams.borrow_mut().driver.unpark();
        // First what is there, together: what is read now is answered later anyway.
        let _all_or_not = self.flush(cx);
        if self.poll_receive(cx)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.ping(cx)?;
        if self.streams.borrow().is_done() && !std::mem::replace(&mut self.is_ending, true) {
            frame::goaway(0, Reason::NO_ERROR, self.streams.borrow_mut().out());
            self.timer.as_mut().reset(Instant::now() + PING_TIMEOUT);
            self.ping(cx)?;
        }
        let flushed = self.flush(cx);
        if let Some(error) = self.deaf.take() {
            return Poll::Ready(Err(error.into()));
        }
        if flushed.is_ready() && self.is_ending {
            return Pin::new(&mut self.io).poll_shutdown(cx).map_err(Broken::Io);
        }
        self.streams.borrow_mut().driver.park(cx);
        Poll::Pending
    }

    /// Ready when all has gone out that can.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.deaf.is_none() {
            self.deaf = ready!(self.poll_flush(cx)).err();
        }
        Poll::Ready(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut streams = self.streams.borrow_mut();
        while let Some(rest) = streams.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
            self.written += n as u64;
            self.is_due = true;
        }
        if std::mem::take(&mut self.sent) > 0 {
            // An idle connection keeps nothing.
            let storage = std::mem::take(&mut streams.out);
            streams.buffers.recycle(storage);
            streams.feed();
        }
        if self.is_due {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_due = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in what the endpoint sends. Ready at its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        let buffers = self.streams.borrow().buffers.clone();
        loop {
            let stuck = self.streams.borrow().out.len() - self.sent >= STUCK;
            if stuck && self.flush(cx).is_pending() {
                return Ok(Poll::Pending);
            }
            let n = match self.buffer.poll_fill(cx, &mut self.io, Size::Body, &buffers) {
                Poll::Ready(n) => n?,
                Poll::Pending => return Ok(Poll::Pending),
            };
            if n == 0 {
                return Ok(Poll::Ready(()));
            }
            let received = self.streams.borrow_mut().receive(self.buffer.unread(), self.written);
            match received {
                Ok(used) => self.buffer.consume(used, &buffers),
                Err(code) => {
                    frame::goaway(0, code, self.streams.borrow_mut().out());
                    // As far as it goes: who does not take it is not waited for.
                    let _all_or_not = self.flush(cx);
                    return Err(Broken::Endpoint(code));
                }
            }
        }
    }

    /// Asks an endpoint that has requests and says nothing whether it is still there.
    fn ping(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let mut streams = self.streams.borrow_mut();
        let has_ponged = std::mem::take(&mut streams.receiver.is_ponged);
        if self.is_asked && has_ponged && !self.is_ending {
            self.is_asked = false;
            self.every = PING_RARELY.min(self.every * PING_LESS);
            self.timer.as_mut().reset(Instant::now() + self.every);
        }
        if streams.receiver.has_answered && !self.is_asked && !self.is_ending && self.every > PING_EVERY {
            // It may be asked soon again: to those servers an answer makes up for it.
            self.every = PING_EVERY;
            self.timer.as_mut().reset(Instant::now() + self.every);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            // What it had begun to say may stand before its answer to a PING.
            let has_answered = std::mem::take(&mut streams.receiver.has_answered);
            if self.is_asked && !has_answered || self.is_ending {
                return Err(Broken::Silent);
            }
            self.is_asked = !has_answered && streams.requests() > 0;
            let after = if self.is_asked {
                frame::ping(0, ARE_YOU_THERE, streams.out());
                PING_TIMEOUT
            } else {
                self.every = PING_EVERY;
                PING_EVERY
            };
            self.timer.as_mut().reset(Instant::now() + after);
        }
        Ok(())
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        let mut streams = self.streams.borrow_mut();
        streams.end_all();
        let out = std::mem::take(&mut streams.out);
        streams.buffers.recycle(out);
        self.buffer.clear(&streams.buffers);
    }
}
