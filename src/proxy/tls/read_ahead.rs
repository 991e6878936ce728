//! Reads for a TLS session that asks for little at a time: rustls reads 4 KiB, and then the rest of one record, so that
//! an upload costs a system call for every few KiB. Once a read was filled to the brim, the next asks for many records at
//! once, and the session is served from there. Who sends little, as most requests are, never gets here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes of one large read: four records of 8 KiB, or two of the largest (RFC 8446 section 5.1).
const LARGE: usize = 33 * 1024;

/// What was read and not yet asked for. Small: every connection has one.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Only while there is something in it.
    here: Option<Box<Bytes>>,
    /// The last read was filled: there is probably more.
    was_filled: bool,
}

#[derive(Debug)]
struct Bytes {
    data: Vec<u8>,
    start: usize,
}

impl ReadAhead {
    /// Reads from `inner`, or what was read from it before.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.here.is_none() {
            if !self.was_filled {
                let room = buf.remaining();
                ready!(Pin::new(inner).poll_read(cx, buf))?;
                self.was_filled = room > 0 && buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            let mut data = Vec::with_capacity(LARGE);
            let read = ready!(poll_read_buf(Pin::new(inner), cx, &mut data))?;
            self.was_filled = read == LARGE;
            self.here = (read > 0).then(|| Box::new(Bytes { data, start: 0 }));
        }
        if let Some(Bytes { data, start }) = self.here.as_deref_mut() {
            let ahead = data.get(*start..).unwrap_or_default();
            let taken = ahead.len().min(buf.remaining());
            buf.put_slice(ahead.get(..taken).unwrap_or_default());
            *start += taken;
            if *start == data.len() {
                self.here = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A reader that counts how often it is asked.
    struct Counting<S>(S, usize);

    impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    /// Reads `length` bytes, 4 KiB at a time; the bytes and how many reads they took below.
    async fn read(sent: &[u8], then_closes: bool, length: usize) -> (Vec<u8>, usize, ReadAhead) {
        let (mut near, far) = duplex(1 << 20);
        near.write_all(sent).await.unwrap();
        let open = (!then_closes).then_some(near);
        let (mut inner, mut ahead, mut got) = (Counting(far, 0), ReadAhead::default(), Vec::new());
        while got.len() < length {
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            std::future::poll_fn(|cx| ahead.poll_read(&mut inner, cx, &mut chunk)).await.unwrap();
            if chunk.filled().is_empty() {
                break;
            }
            got.extend_from_slice(chunk.filled());
        }
        drop(open);
        (got, inner.1, ahead)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| u8::try_from(n % 251).unwrap_or_default()).collect()
    }

    #[tokio::test]
    async fn what_is_small_is_read_as_it_is_asked_for() {
        let (got, reads, ahead) = read(&bytes(4095), false, 4095).await;

        assert_eq!((got, reads), (bytes(4095), 1));
        assert_eq!((ahead.here.is_none(), ahead.was_filled), (true, false));
    }

    #[tokio::test]
    async fn what_is_large_takes_few_reads_and_keeps_no_memory() {
        let (got, reads, ahead) = read(&bytes(100_000), true, usize::MAX).await;

        assert_eq!(got, bytes(100_000));
        // 4 KiB, 33 KiB twice, the rest, the end.
        assert_eq!((reads, ahead.here.is_none()), (5, true));
    }

    #[tokio::test]
    async fn what_was_read_ahead_of_the_end_is_not_lost() {
        let (mut near, far) = duplex(1 << 20);
        near.write_all(&bytes(10_000)).await.unwrap();
        drop(near);
        let mut corked = super::super::Corked::new(far);

        let mut got = Vec::new();
        corked.read_to_end(&mut got).await.unwrap();

        assert_eq!(got, bytes(10_000));
    }
}
