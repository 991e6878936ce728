//! The bytes between perch and an endpoint: plain or TLS behind one type, so that the codec above is compiled once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::endpoint_tls::Client;

/// Plain or TLS.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    // Boxed: rustls' connection is about 1 KiB, and links are moved.
    Tls(Box<Tls>),
}

/// A TLS connection and the settings it was made with.
#[derive(Debug)]
pub(crate) struct Tls {
    stream: TlsStream<TcpStream>,
    client: Arc<Client>,
    generation: u64,
}

impl Tls {
    /// `generation` is that of `client` before the handshake.
    pub(crate) fn new(stream: TlsStream<TcpStream>, client: Arc<Client>, generation: u64) -> Self {
        Self { stream, client, generation }
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
                // Whom perch trusts, or who it is, may have changed since.
                tls.client.generation() == tls.generation
                    && Pin::new(&mut tls.stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
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
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}
