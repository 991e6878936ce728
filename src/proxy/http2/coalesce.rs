//! Puts a connection's writes together. The h2 crate writes and flushes after each DATA frame; here a flush only asks for
//! the task to be polled again, and the bytes go out then, with whatever other streams added in the meantime: one TLS
//! record and one system call for many responses.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::worker::Worker;
use super::chatter::Chatter;
use super::pace::Pace;

/// Written at once beyond this, so that one connection holds no more.
const MOST: usize = 64 * 1024;

/// A stream whose small writes wait for each other.
#[derive(Debug)]
pub(super) struct Coalesce<S> {
    inner: S,
    worker: Rc<Worker>,
    waiting: Vec<u8>,
    sent: usize,
    /// A flush was asked for and not yet done.
    is_due: bool,
    /// Told how much comes in and goes out.
    pace: Rc<Pace>,
    chatter: Chatter,
}

impl<S: AsyncWrite + Unpin> Coalesce<S> {
    pub(super) fn new(inner: S, worker: Rc<Worker>, pace: Rc<Pace>) -> Self {
        Self { inner, worker, waiting: Vec::new(), sent: 0, is_due: false, pace, chatter: Chatter::new() }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.sent..).filter(|r| !r.is_empty()) {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
            self.pace.written.set(self.pace.written.get() + n as u64);
        }
        // An idle connection keeps nothing.
        self.worker.buffers.recycle(std::mem::take(&mut self.waiting));
        self.sent = 0;
        if self.is_due {
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            self.is_due = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for one more write.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.len() >= MOST {
            ready!(self.poll_drain(cx))?;
        }
        if self.waiting.capacity() == 0 {
            self.waiting = self.worker.buffers.large_scratch();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesce<S> {
    /// Every poll of the connection begins with a read: that is when what was put together goes out.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_due
            && let Poll::Ready(Err(error)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let this = &mut *self;
        let new = buf.filled().get(before..).unwrap_or_default();
        this.pace.read.set(this.pace.read.get() + new.len() as u64);
        if this.chatter.is_too_much(new, this.pace.written.get()) {
            return Poll::Ready(Err(io::Error::other("too many frames that ask for nothing")));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Coalesce<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        for slice in slices {
            self.waiting.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|s| s.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Answers at once; the task is woken to do it.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_due && !self.waiting.is_empty() {
            self.is_due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_due = true;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
