//! WebSocket over HTTP/2 (RFC 8441): an extended CONNECT of the client, an upgrade at the HTTP/1 endpoint, and a tunnel
//! between the stream and the endpoint's connection once the endpoint has said 101.
//!
//! The stream is a tunnel only after that: what the client sends before waits in its window. A half-close is carried over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::super::buffer::Buffer;
use super::super::http1::tunnel;
use super::super::journal::Entry;
use super::super::upstream::{self, Link};
use super::super::watchdog::Watchdog;
use super::Session;
use super::streams::Handle;

/// A tunnel that the endpoint agreed to, and the client was told so.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) link: Link,
    pub(super) entry: Entry,
}

impl Tunnel {
    /// Runs to the end.
    pub(super) async fn run(mut self, session: &Session, stream: &Handle) {
        self.entry.status = 200;
        let buffers = &session.worker.buffers;
        let idle = session.connection.listener.config.timeouts.upgraded_idle;
        let mut io = Bytestream { stream, has_ended: false };
        let (mut buffer, mut dog) = (Buffer::default(), Watchdog::new(Instant::now() + idle));
        let moved = tunnel::run(&mut io, &mut buffer, &mut dog, &mut self.link, idle, buffers).await;
        buffer.clear(buffers);
        (self.entry.bytes_in, self.entry.bytes_out) = moved;
        upstream::discard(self.link, buffers);
        self.entry.finish(&session.worker, &session.connection);
    }
}

/// DATA of a stream, as bytes.
#[derive(Debug)]
struct Bytestream<'a> {
    stream: &'a Handle,
    has_ended: bool,
}

impl AsyncRead for Bytestream<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = |data: &[u8]| {
            let n = data.len().min(buf.remaining());
            buf.put_slice(data.get(..n).unwrap_or_default());
            (n, ())
        };
        ready!(self.stream.poll_read(cx, read)).transpose().map(drop).map_err(io::Error::other).into()
    }
}

impl AsyncWrite for Bytestream<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_sent(cx)).map_err(io::Error::other)?;
        Poll::Ready(self.stream.send(bytes, false).map(|()| bytes.len()).map_err(io::Error::other))
    }

    /// Asked before each wait: that is when a reset by the client must wake this task.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended && self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }

    /// What waits goes first.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            ready!(self.stream.poll_sent(cx)).map_err(io::Error::other)?;
            self.has_ended = true;
            self.stream.send(&[], true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
