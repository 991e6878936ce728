//! An upgraded connection: bytes both ways until both sides have ended, or nothing has moved for too long.
//!
//! A half-close is carried over. The endpoint's connection never goes back to a pool.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::proxy::buffer::{Buffer, Buffers, Size};
use crate::proxy::upstream::Link;
use crate::proxy::watchdog::Watchdog;

/// Runs a tunnel to its end; the bytes that went up and down.
pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    buffer: &mut Buffer,
    dog: &mut Watchdog,
    link: &mut Link,
    idle: Duration,
    buffers: &Buffers,
) -> (u64, u64) {
    let (mut up, mut down) = (Pipe::default(), Pipe::default());
    let mut moved = (0, 0);
    dog.set(Instant::now() + idle);
    poll_fn(|cx| {
        let sent = up.poll(cx, stream, buffer, &mut link.io, buffers);
        let received = down.poll(cx, &mut link.io, &mut link.buffer, stream, buffers);
        match (sent, received) {
            (Poll::Ready(true), Poll::Ready(true)) => return Poll::Ready(()),
            (Poll::Ready(false), _) | (_, Poll::Ready(false)) => return Poll::Ready(()),
            _ => {}
        }
        if (up.bytes, down.bytes) != moved {
            moved = (up.bytes, down.bytes);
            dog.set(Instant::now() + idle);
        }
        dog.poll(cx)
    })
    .await;
    (up.bytes, down.bytes)
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    bytes: u64,
    ended: bool,
    shut: bool,
}

impl Pipe {
    /// Ready(true) once the end was carried over; Ready(false) on an error.
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        buffer: &mut Buffer,
        to: &mut W,
        buffers: &Buffers,
    ) -> Poll<bool> {
        loop {
            while !buffer.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, buffer.unread())) {
                    Ok(n) if n > 0 => {
                        self.bytes += n as u64;
                        buffer.consume(n, buffers);
                    }
                    _ => return Poll::Ready(false),
                }
            }
            if self.shut {
                return Poll::Ready(true);
            }
            if self.ended {
                self.shut = ready!(Pin::new(&mut *to).poll_shutdown(cx)).is_ok();
                return Poll::Ready(self.shut);
            }
            match buffer.poll_fill(cx, from, Size::Body, buffers) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                // What a TLS session holds must go out before this side waits.
                Poll::Pending => {
                    return match ready!(Pin::new(&mut *to).poll_flush(cx)) {
                        Ok(()) => Poll::Pending,
                        Err(_) => Poll::Ready(false),
                    };
                }
            }
        }
    }
}
