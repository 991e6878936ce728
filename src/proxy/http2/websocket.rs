//! WebSocket over HTTP/2 (RFC 8441): an extended CONNECT of the client, an upgrade at the HTTP/1 endpoint, and a tunnel
//! between the stream and the endpoint's connection once the endpoint has said 101.
//!
//! The stream is a tunnel only after that: what the client sends before waits in its window. A half-close is carried over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::super::buffer::Buffer;
use super::super::http1::tunnel;
use super::super::journal::Entry;
use super::super::upstream::{self, Link};
use super::super::watchdog::Watchdog;
use super::{Session, send};
use crate::reason::Reason;

/// Whether a request asks for a tunnel of this kind.
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<h2::ext::Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|p| p.as_str().eq_ignore_ascii_case("websocket"))
}

/// A tunnel that the endpoint agreed to.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) incoming: RecvStream,
    pub(super) link: Link,
    pub(super) entry: Entry,
}

impl Tunnel {
    /// Tells the client, and runs to the end.
    pub(super) async fn run(
        mut self,
        session: &Session,
        respond: &mut SendResponse<Bytes>,
        mut response: Response<()>,
    ) {
        *response.status_mut() = StatusCode::OK;
        // Of the handshake in HTTP/1 (RFC 8441 section 5).
        response.headers_mut().remove("sec-websocket-accept");
        self.entry.status = 200;
        let buffers = &session.worker.buffers;
        let idle = session.connection.listener.config.timeouts.upgraded_idle;
        match send::head(respond, response, false) {
            Some(out) => {
                let mut io = Bytestream { incoming: self.incoming, unread: Bytes::new(), out, has_ended: false };
                let (mut buffer, mut dog) = (Buffer::default(), Watchdog::new(Instant::now() + idle));
                let moved = tunnel::run(&mut io, &mut buffer, &mut dog, &mut self.link, idle, buffers).await;
                buffer.clear(buffers);
                (self.entry.bytes_in, self.entry.bytes_out) = moved;
            }
            None => self.entry.reason = Some(Reason::ClientAbort),
        }
        upstream::discard(self.link, buffers);
        self.entry.finish(&session.worker, &session.connection);
    }
}

/// DATA of a stream, as bytes.
#[derive(Debug)]
struct Bytestream {
    incoming: RecvStream,
    unread: Bytes,
    out: SendStream<Bytes>,
    has_ended: bool,
}

/// Bytes of one write: they are copied.
const PIECE: usize = 16 * 1024;

impl AsyncRead for Bytestream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(self.unread.get(..n).unwrap_or_default());
        self.unread.advance(n);
        self.incoming.flow_control().release_capacity(n).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wanted = bytes.len().min(PIECE);
        self.out.reserve_capacity(wanted);
        while self.out.capacity() == 0 && wanted > 0 {
            match ready!(self.out.poll_capacity(cx)) {
                // It may say so and have none.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = self.out.capacity().min(wanted);
        let piece = Bytes::copy_from_slice(bytes.get(..n).unwrap_or_default());
        Poll::Ready(self.out.send_data(piece, false).map(|()| n).map_err(io::Error::other))
    }

    /// All has gone to `h2`. Asked before each wait: that is when a reset by the client must wake this task.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended && self.out.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.out.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
