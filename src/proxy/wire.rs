//! The bytes between perch and an endpoint: plain or TLS behind one type, so that the codec above is compiled once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::multiplex::Http2Stream;
use crate::endpoint_tls::{Client, is_http2};

/// Plain or TLS.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    // Boxed: rustls' connection is about 1 KiB, and links are moved.
    Tls(Box<Tls>),
    /// One of many on an HTTP/2 connection.
    Http2(Box<Http2Stream>),
}

/// A TLS connection and the settings it was made with.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) settings: Settings,
}

/// TLS settings as they were before a handshake.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    client: Arc<Client>,
    generation: u64,
}

impl Settings {
    pub(crate) fn now(client: Arc<Client>) -> Self {
        Self { generation: client.generation(), client }
    }

    /// Whom perch trusts, and who it is, has not changed since.
    pub(crate) fn are_current(&self) -> bool {
        self.client.generation() == self.generation
    }
}

impl Wire {
    /// Whether it is still open with nothing to read. Costs no system call: readiness is known from the event loop.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(&mut cx).is_pending(),
            // Session tickets come after the handshake and are no answer: rustls has to look at what is there.
            Self::Tls(tls) => {
                let mut byte = [0];
                tls.settings.are_current()
                    && Pin::new(&mut tls.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
            // A stream serves one request.
            Self::Http2(_) => false,
        }
    }

    /// Whether all that was written is with the kernel, as far as that takes no waiting.
    pub(crate) fn is_flushed(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(Pin::new(self).poll_flush(&mut cx), Poll::Ready(Ok(())))
    }

    /// What its TLS was made with.
    pub(crate) fn settings(&self) -> Option<Settings> {
        match self {
            Self::Tls(tls) => Some(tls.settings.clone()),
            Self::Plain(_) | Self::Http2(_) => None,
        }
    }

    /// HTTP/2 was agreed on in the TLS handshake.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Tls(tls) if is_http2(&tls.stream))
    }

    /// Says goodbye as far as that takes no waiting: an endpoint that is told of the end logs no truncated session.
    pub(crate) fn say_goodbye(&mut self) {
        if let Self::Tls(tls) = self {
            let mut cx = Context::from_waker(Waker::noop());
            // It is dropped next, whether or not that was heard.
            let _heard = Pin::new(&mut tls.stream).poll_shutdown(&mut cx);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => {
                // What the session still holds of the request goes out before its answer is waited for: writers need not
                // flush. A failure shows in the read.
                if let Poll::Ready(Err(error)) = Pin::new(&mut tls.stream).poll_flush(cx) {
                    tracing::trace!(%error, "A flush towards an endpoint.");
                }
                Pin::new(&mut tls.stream).poll_read(cx, buf)
            }
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, buf),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write_vectored(cx, bufs),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
