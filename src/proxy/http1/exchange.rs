//! One exchange with an endpoint for an HTTP/1 client: the request's body up and the response down, both at once, driven
//! by the client's own task (no channel, no second wake-up).
//!
//! Back-pressure comes from reading one side only once the other has taken what was read. It does not choose endpoints
//! and does not retry: it says what happened and whether the request may be sent again.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::body::{self, Decoder, Framing, Piece};
use super::upload::{Upload, Upwards};
use crate::proxy::awaited::{Broken, Deadlines, HeadWait, Pace, Upward};
use crate::proxy::buffer::{Buffer, Buffers, Size};
use crate::proxy::linger::LINGER;
use crate::proxy::stream::Stream;
use crate::proxy::upstream::Link;
use crate::proxy::watchdog::Watchdog;
use crate::reason::Reason;

/// The client's side of a connection.
#[derive(Debug)]
pub(crate) struct ClientSide {
    pub(crate) stream: Stream,
    pub(crate) buffer: Buffer,
    pub(crate) dog: Watchdog,
}

/// Payload that is put together before it is written: one TLS record, one system call.
pub(crate) const WITH_HEAD: usize = 16 * 1024;
/// Payload that is copied behind the head: cheaper than writing from two places.
const COPIED: usize = 4 * 1024;

/// What ended the wait for a head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// A complete head of this many bytes is in the link's buffer.
    Head(usize),
    /// The endpoint said nothing to `Expect: 100-continue`: say 100 in its place.
    NoContinue,
}

/// Sends the request and waits for a response head.
pub(crate) async fn await_head(
    client: &mut ClientSide,
    link: &mut Link,
    upload: &mut Upload,
    deadlines: Deadlines,
    buffers: &Buffers,
) -> Result<Waited, Broken> {
    let ClientSide { stream, buffer, dog } = client;
    let mut upload = Upwards { upload, stream, buffer, buffers };
    let mut wait = HeadWait::default();
    poll_fn(|cx| {
        if let Poll::Ready(head) = wait.poll(cx, &mut upload, link, buffers) {
            return Poll::Ready(head.map(Waited::Head));
        }
        let now = upload.progress();
        if let Some(deadline) = wait.pace.rearm(now, &deadlines) {
            dog.set(deadline);
        }
        dog.poll(cx).map(|()| if now.is_gated { Ok(Waited::NoContinue) } else { Err(now.late()) })
    })
    .await
}

/// A response on its way to the client.
#[derive(Debug)]
pub(crate) struct Download {
    decoder: Decoder,
    /// How the client is told where it ends.
    framing: Framing,
    out: Vec<u8>,
    sent: usize,
    /// Bytes at the front of the link's buffer that go out as they are.
    direct: usize,
    ended: bool,
    /// The connection ends with it.
    closes: bool,
    /// Something reached the client's connection: it is too late for another answer.
    pub(crate) has_begun: bool,
    /// Of the body.
    pub(crate) bytes: u64,
}

impl Download {
    /// `head` is the client's head.
    pub(crate) fn new(head: Vec<u8>, endpoint: Framing, client: Framing, closes: bool) -> Self {
        Self {
            decoder: Decoder::new(endpoint),
            framing: client,
            out: head,
            sent: 0,
            direct: 0,
            ended: false,
            closes,
            has_begun: false,
            bytes: 0,
        }
    }

    pub(crate) fn into_scratch(self) -> Vec<u8> {
        self.out
    }

    /// Ready once the whole response is with the client's kernel.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        link: &mut Link,
        buffers: &Buffers,
    ) -> Poll<Result<(), Broken>> {
        loop {
            self.read_ahead(link, buffers)?;
            let had_some = !self.out.is_empty() || self.direct > 0;
            if self.ended && self.closes {
                client.hold();
            }
            if ready!(self.poll_send(cx, client, link, buffers)).is_err() {
                return Poll::Ready(Err(Broken::Client(Reason::ClientAbort)));
            }
            if self.ended {
                let flushed =
                    ready!(if self.closes { client.poll_last(cx) } else { Pin::new(&mut *client).poll_flush(cx) });
                return Poll::Ready(flushed.map_err(|_| Broken::Client(Reason::ClientAbort)));
            }
            if had_some {
                continue;
            }
            match link.buffer.poll_fill(cx, &mut link.io, Size::Body, buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(Ok(_)) if self.decoder.may_end_here() => self.end(),
                Poll::Ready(_) => return Poll::Ready(Err(Broken::Endpoint(Reason::UpstreamTruncated))),
                // What is in the TLS session must not wait for the endpoint's next bytes.
                Poll::Pending => match ready!(Pin::new(&mut *client).poll_flush(cx)) {
                    Ok(()) => return Poll::Pending,
                    Err(_) => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
                },
            }
        }
    }

    /// Moves what was read into `out`, or marks it to go out as it is.
    fn read_ahead(&mut self, link: &mut Link, buffers: &Buffers) -> Result<(), Broken> {
        while !self.ended && self.direct == 0 && self.out.len() < WITH_HEAD {
            let bad = |_| Broken::Endpoint(Reason::BadResponse);
            match self.decoder.next(link.buffer.unread()).map_err(bad)? {
                Piece::Data { skip, len } => {
                    self.bytes += len as u64;
                    // Chunks are written anew; plain bytes are copied only when they are few and the head goes out with
                    // them, and else go straight from the endpoint's buffer to the client.
                    let copied = match self.framing {
                        Framing::Chunked => len,
                        _ if self.out.is_empty() || len > COPIED => 0,
                        _ => len,
                    };
                    let data = link.buffer.unread().get(skip..skip + copied).unwrap_or_default();
                    body::encode(self.framing, data, &mut self.out);
                    link.buffer.consume(skip + copied, buffers);
                    self.direct = len - copied;
                    if self.decoder.is_done() && self.framing != Framing::Chunked {
                        self.ended = true;
                    }
                }
                Piece::More(n) => {
                    link.buffer.consume(n, buffers);
                    return Ok(());
                }
                Piece::End(n) => {
                    link.buffer.consume(n, buffers);
                    self.end();
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        body::encode_end(self.framing, self.decoder.trailers(), &mut self.out);
        self.ended = true;
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        link: &mut Link,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() || self.direct > 0 {
            let out = self.out.get(self.sent..).unwrap_or_default();
            let direct = link.buffer.unread().get(..self.direct).unwrap_or_default();
            let n = ready!(match (out, direct) {
                ([], bytes) | (bytes, []) => Pin::new(&mut *client).poll_write(cx, bytes),
                _ => Pin::new(&mut *client).poll_write_vectored(cx, &[IoSlice::new(out), IoSlice::new(direct)]),
            })?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.has_begun = true;
            let of_out = n.min(out.len());
            self.sent += of_out;
            self.direct -= n - of_out;
            link.buffer.consume(n - of_out, buffers);
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn progress(&self) -> (u64, usize, usize) {
        (self.bytes, self.sent, self.direct)
    }

    /// Who has to move next.
    fn turn(&self, upload: &Upload) -> Turn {
        // Also when the endpoint has said all and TLS still holds the last of it.
        if self.ended || self.sent < self.out.len() || self.direct > 0 {
            Turn::Reader
        } else if upload.progress().waits_for_client {
            Turn::Writer
        } else {
            Turn::Endpoint
        }
    }
}

/// Whose silence it is when nothing moves between the head of a response and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client takes nothing.
    Reader,
    /// The client sends no more of its body, and the endpoint may well wait for that.
    Writer,
    Endpoint,
}

/// Relays a response while the rest of the request may still go up.
pub(crate) async fn relay(
    client: &mut ClientSide,
    link: &mut Link,
    upload: &mut Upload,
    download: &mut Download,
    deadlines: Deadlines,
    buffers: &Buffers,
) -> Result<(), Broken> {
    let ClientSide { stream, buffer, dog } = client;
    let (mut pace, mut downward) = (Pace::default(), None);
    poll_fn(|cx| {
        if let Poll::Ready(done) = download.poll(cx, stream, link, buffers) {
            return Poll::Ready(done);
        }
        if !upload.is_done()
            && let Poll::Ready(Err(broken)) = upload.poll(cx, stream, buffer, link, buffers)
        {
            return Poll::Ready(Err(broken));
        }
        let turn = download.turn(upload);
        let moved = downward.replace((download.progress(), turn)) != Some((download.progress(), turn));
        let upward = if upload.is_done() { None } else { pace.rearm(upload.progress(), &deadlines) };
        match (turn, upward) {
            // What goes up is no reason to wait longer for a client that takes nothing, and a client that drips is none to
            // wait longer for its body.
            (Turn::Reader, _) if moved => dog.set(Instant::now() + deadlines.write),
            (Turn::Writer, Some(deadline)) => dog.set(deadline),
            (Turn::Writer, None) if moved => dog.set(Instant::now() + deadlines.request_body),
            (Turn::Endpoint, upward) if moved || upward.is_some() => dog.set(Instant::now() + deadlines.response_body),
            _ => {}
        }
        dog.poll(cx).map(|()| match turn {
            Turn::Reader => Err(Broken::Client(Reason::WriteTimeout)),
            Turn::Writer => Err(Broken::Client(Reason::BodyTimeout)),
            Turn::Endpoint => Err(Broken::Endpoint(Reason::UpstreamStalled)),
        })
    })
    .await
}

/// Sees a request to its end whose answer is through: what is left of it, if it comes soon ([`Upload::may_end_late`]), and
/// what the endpoint's connection still holds, which no wait for an answer will flush. True when all is with the kernel.
pub(crate) async fn end(client: &mut ClientSide, link: &mut Link, upload: &mut Upload, buffers: &Buffers) -> bool {
    let ClientSide { stream, buffer, dog } = client;
    let mut is_late = false;
    poll_fn(|cx| {
        if !upload.is_done() {
            match upload.poll(cx, stream, buffer, link, buffers) {
                Poll::Ready(Ok(())) if upload.is_done() => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => {}
            }
        }
        if upload.is_done()
            && let Poll::Ready(flushed) = Pin::new(&mut link.io).poll_flush(cx)
        {
            return Poll::Ready(flushed.is_ok());
        }
        if !std::mem::replace(&mut is_late, true) {
            dog.set(Instant::now() + LINGER);
        }
        dog.poll(cx).map(|()| false)
    })
    .await
}

/// Writes all of `bytes` to the client within the write deadline.
pub(crate) async fn write_all(client: &mut ClientSide, bytes: &[u8], within: Duration) -> Result<(), Broken> {
    let ClientSide { stream, dog, .. } = client;
    let mut sent = 0;
    dog.set(Instant::now() + within);
    poll_fn(|cx| {
        while let Some(rest) = bytes.get(sent..).filter(|r| !r.is_empty()) {
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
                Poll::Pending => return dog.poll(cx).map(|()| Err(Broken::Client(Reason::WriteTimeout))),
            }
        }
        match Pin::new(&mut *stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
            Poll::Pending => dog.poll(cx).map(|()| Err(Broken::Client(Reason::WriteTimeout))),
        }
    })
    .await
}
