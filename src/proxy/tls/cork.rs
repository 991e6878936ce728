//! What a TLS session writes to and reads from: a stream that can hold small writes back, so that several of them leave as
//! one (a system call and a packet less each), and reads ahead where much comes.
//!
//! What is held goes out with the next write that is not held, and with a flush. While writes are held it also goes out
//! when a read has to wait: whoever waits for the other side has said everything. Later it does not: a TLS session that
//! has data for its reader looks whether there is more. So its owner drains it when it waits ([`Corked::poll_drain`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::read_ahead::ReadAhead;

/// Larger writes are not worth a copy.
const MOST: usize = 4 * 1024;

/// A stream and what was written to it, but has not gone out.
#[derive(Debug)]
pub struct Corked<S> {
    inner: S,
    ahead: ReadAhead,
    /// Allocated only while there is something in it.
    held: Vec<u8>,
    is_holding: bool,
}

impl<S> Corked<S> {
    /// Holds nothing yet.
    pub fn new(inner: S) -> Self {
        Self { inner, ahead: ReadAhead::default(), held: Vec::new(), is_holding: false }
    }

    /// From now on small writes are held; flushes do nothing.
    pub fn hold(&mut self) {
        self.is_holding = true;
    }

    /// From now on writes go out, with what is held in front.
    pub fn release(&mut self) {
        self.is_holding = false;
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Ready when nothing is held.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
        }
        if self.held.capacity() > 0 {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = this.ahead.poll_read(&mut this.inner, cx, buf);
        if read.is_pending()
            && this.is_holding
            && let Poll::Ready(Err(error)) = this.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_holding || !self.held.is_empty() {
            let length = slices.iter().map(|slice| slice.len()).sum::<usize>();
            if self.held.len() + length <= MOST {
                self.held.reserve_exact(length);
                slices.iter().for_each(|slice| self.held.extend_from_slice(slice));
                // What does not go out now is held on.
                if !self.is_holding
                    && let Poll::Ready(Err(error)) = self.poll_drain(cx)
                {
                    return Poll::Ready(Err(error));
                }
                return Poll::Ready(Ok(length));
            }
            ready!(self.poll_drain(cx))?;
        }
        match slices {
            // The kernel takes one slice faster when it comes alone.
            [slice] => Pin::new(&mut self.inner).poll_write(cx, slice),
            slices => Pin::new(&mut self.inner).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_holding {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_holding = false;
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What has arrived; waits for nothing.
    async fn arrived(near: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let length = tokio::select! {
            biased;
            read = near.read(&mut bytes) => read.unwrap(),
            () = std::future::ready(()) => 0,
        };
        bytes.truncate(length);
        bytes
    }

    #[tokio::test]
    async fn what_is_held_goes_out_in_front_of_the_next_write() {
        let (mut near, far) = duplex(1 << 16);
        let mut corked = Corked::new(far);
        corked.hold();
        corked.write_all(b"one ").await.unwrap();
        corked.flush().await.unwrap();
        let early = arrived(&mut near).await;

        corked.release();
        corked.write_all(b"two").await.unwrap();

        assert_eq!((early, arrived(&mut near).await), (Vec::new(), b"one two".to_vec()));
        assert_eq!(corked.held.capacity(), 0, "no memory is kept");
    }

    #[tokio::test]
    async fn who_waits_for_the_other_side_has_said_everything() {
        let (mut near, far) = duplex(1 << 16);
        let mut corked = Corked::new(far);
        corked.hold();
        corked.write_all(b"question").await.unwrap();

        let (answer, question) = tokio::join!(corked.read_u8(), async {
            let mut question = [0; 8];
            near.read_exact(&mut question).await.unwrap();
            near.write_all(b"!").await.unwrap();
            question
        });

        assert_eq!((answer.unwrap(), &question), (b'!', b"question"));
    }

    #[tokio::test]
    async fn large_writes_are_not_held_and_keep_their_order() {
        let (mut near, far) = duplex(1 << 16);
        let mut corked = Corked::new(far);
        corked.hold();
        corked.write_all(b"small").await.unwrap();

        corked.write_all(&[b'x'; MOST]).await.unwrap();

        let mut bytes = Vec::new();
        while bytes.len() < 5 + MOST {
            bytes.extend(arrived(&mut near).await);
        }
        assert!(bytes.starts_with(b"smallx") && bytes.len() == 5 + MOST);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_of_it() {
        let (mut near, far) = duplex(7);
        let mut corked = Corked::new(far);
        let text = b"more than the pipe takes at once, and then some";
        corked.hold();
        corked.write_all(&text[..20]).await.unwrap();
        corked.release();

        let (written, read) = tokio::join!(
            async {
                corked.write_all(&text[20..]).await?;
                corked.shutdown().await
            },
            async {
                let mut bytes = Vec::new();
                near.read_to_end(&mut bytes).await.unwrap();
                bytes
            }
        );

        assert_eq!((written.unwrap(), read), ((), text.to_vec()));
    }
}
