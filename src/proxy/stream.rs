//! A client's byte stream: plain or TLS behind one type, so that the codec above is compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::buffer::PIECE;
use super::tls::Corked;

/// What a TLS session takes at once, in pieces, each of which it copies before it seals it.
const PIECES: usize = 32;

/// Plain or TLS.
#[derive(Debug)]
pub(crate) enum Stream<S = TcpStream> {
    Plain(S),
    // Boxed: rustls' connection is about 1 KiB, and the stream is moved between futures.
    Tls(Box<TlsStream<Corked<S>>>),
}

impl Stream {
    /// Ends the connection by a reset when it is dropped: for a body whose end is the connection's end.
    pub(crate) fn reset_at_end(&self) {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0.get_ref(),
        };
        // Without it the client sees a FIN, as with an HTTP/1.0 proxy of old: nothing better can be done.
        socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO)).ok();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// What is written from now on may wait for [`Self::poll_last`].
    pub(crate) fn hold(&mut self) {
        if let Self::Tls(tls) = self {
            tls.get_mut().0.hold();
        }
    }

    /// Says that nothing follows (TLS close_notify); ready once all of it is with the kernel. May be called again. The FIN
    /// follows when the stream is shut down or dropped.
    pub(crate) fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Tls(tls) = self {
            let (corked, session) = tls.get_mut();
            corked.release();
            session.send_close_notify();
        }
        Pin::new(self).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => {
                let read = Pin::new(tls.as_mut()).poll_read(cx, buf);
                // Tickets that found no answer to go out with.
                if read.is_pending()
                    && let Poll::Ready(Err(error)) = tls.get_mut().0.poll_drain(cx)
                {
                    return Poll::Ready(Err(error));
                }
                read
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) if buf.len() <= PIECE => Pin::new(tls.as_mut()).poll_write(cx, buf),
            Self::Tls(_) => self.poll_write_vectored(cx, &[IoSlice::new(buf)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) if bufs.iter().all(|buf| buf.len() <= PIECE) => {
                Pin::new(tls.as_mut()).poll_write_vectored(cx, bufs)
            }
            Self::Tls(tls) => {
                let mut pieces = [IoSlice::new(&[]); PIECES];
                let mut count = 0;
                for (to, from) in pieces.iter_mut().zip(bufs.iter().flat_map(|buf| buf.chunks(PIECE))) {
                    *to = IoSlice::new(from);
                    count += 1;
                }
                Pin::new(tls.as_mut()).poll_write_vectored(cx, pieces.get(..count).unwrap_or_default())
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}
