//! An answer on its way to the client: in one go where the windows have room for it, piece by piece otherwise.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;

use super::hpack::encoder;
use super::pace::{Pace, Wait};
use super::relay::{Next, Relay};
use super::streams::{Gone, Handle};
use crate::reason::Reason;

/// Sends an answer of perch's own, all of it.
pub(super) fn own(stream: &Handle, response: &Response<Bytes>) {
    let mut block = stream.scratch();
    encoder::status(response.status().as_u16(), &mut block);
    for (name, value) in response.headers() {
        encoder::field(name.as_str().as_bytes(), value.as_bytes(), &mut block);
    }
    if !response.body().is_empty() && !response.headers().contains_key(CONTENT_LENGTH) {
        encoder::length(response.body().len() as u64, &mut block);
    }
    // An error: the client gave it up.
    whole(stream, &block, response.body()).ok();
    stream.recycle(block);
}

/// Sends an answer that is all here; what has no room yet waits with the stream.
pub(super) fn whole(stream: &Handle, block: &[u8], body: &[u8]) -> Result<(), Gone> {
    stream.send_head(block, body.is_empty())?;
    if body.is_empty() { Ok(()) } else { stream.send(body, true) }
}

/// Sends what is left of an answer to its end, or as far as the client takes it.
pub(super) async fn rest(stream: &Handle, mut relay: Option<Box<Relay>>, pace: &Pace, write: Duration) {
    // Made when a piece first waits: most never do.
    let mut wait: Option<Wait> = None;
    let mut is_waiting = false;
    poll_fn(|cx| {
        loop {
            // Asked each time, so that a reset by the client wakes this task.
            match stream.poll_sent(cx) {
                Poll::Ready(Ok(())) if !stream.is_answered() => is_waiting = false,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    if let Some(Poll::Ready(Err(reason))) = relay.as_mut().map(|relay| relay.poll_upload(cx, stream)) {
                        stream.reset(relay.as_mut().map_or(h2::Reason::CANCEL, |relay| relay.cut(reason)));
                        return Poll::Ready(());
                    }
                    let wait = wait.get_or_insert_with(|| Wait::new(pace, write));
                    if !std::mem::replace(&mut is_waiting, true) {
                        wait.restart(pace);
                    }
                    ready!(wait.poll(cx, pace));
                    if let Some(relay) = &mut relay {
                        relay.end(Some(Reason::WriteTimeout));
                    }
                    stream.reset(h2::Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
            let Some(relay) = &mut relay else { return Poll::Ready(()) };
            // A reset by the client must wake this task from here on, too.
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            // Errors of what is sent: the client gave it up, which is seen next.
            match ready!(relay.poll_next(cx, stream)) {
                Ok(Next::Data) => continue,
                Ok(Next::Trailers(block)) => stream.send_head(&block, true).ok().unwrap_or_default(),
                Ok(Next::End) => stream.send(&[], true).ok().unwrap_or_default(),
                Err(reason) => stream.reset(relay.cut(reason)),
            }
            return Poll::Ready(());
        }
    })
    .await;
}
