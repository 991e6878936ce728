//! The last moment of a connection that perch ends: to close a socket with unread bytes resets it, and the reset can
//! overtake the last answer (RFC 9112 section 9.6). So what still comes is read and thrown away, for a little while.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::buffer::{Buffer, Buffers, Size};
use super::stream::Stream;
use super::watchdog::Watchdog;

/// How long and how much is read on after the last answer, as reliability.md has it.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
pub(crate) const LINGER_BYTES: usize = 64 * 1024;

/// Says the end and waits for the client's, or until it has had its time.
pub(crate) async fn linger(stream: &mut Stream, buffer: &mut Buffer, dog: &mut Watchdog, buffers: &Buffers) {
    tokio::time::timeout(LINGER, stream.shutdown()).await.ok();
    dog.set(Instant::now() + LINGER);
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        loop {
            buffer.clear(buffers);
            match buffer.poll_fill(cx, stream, Size::Head, buffers) {
                Poll::Ready(Ok(n)) if n > 0 && left > 0 => left = left.saturating_sub(n),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return dog.poll(cx),
            }
        }
    })
    .await;
}
