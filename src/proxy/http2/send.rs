//! An answer on its way to the client: in one go where the windows have room for it, piece by piece otherwise.
//!
//! A piece is asked for before there is room for it, and room is asked for only then: to hold room for a body that says
//! nothing would keep it from other streams.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::Response;
use http::header::CONTENT_LENGTH;

use super::pace::{Pace, Wait};
use super::relay::{Next, Relay};
use crate::reason::Reason;

/// Sends a head. `None`: there is no stream any more, or the head cannot be said in HTTP/2.
pub(super) fn head(respond: &mut SendResponse<Bytes>, head: Response<()>, is_whole: bool) -> Option<SendStream<Bytes>> {
    match respond.send_response(head, is_whole) {
        Ok(out) => Some(out),
        Err(error) => {
            tracing::debug!(%error, "An answer that could not be sent.");
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// Sends an answer that is all here.
pub(super) async fn whole(
    respond: &mut SendResponse<Bytes>,
    mut response: Response<Bytes>,
    pace: &Pace,
    write: Duration,
) {
    let body = std::mem::take(response.body_mut());
    let mut response = response.map(|_| ());
    if body.is_empty() {
        head(respond, response, true);
        return;
    }
    response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| body.len().into());
    let Some(mut out) = head(respond, response, false) else { return };
    out.reserve_capacity(body.len());
    if out.capacity() >= body.len() {
        // An error: the client gave it up.
        out.send_data(body, true).ok();
        return;
    }
    pieces(out, Some((body, true)), None, pace, write).await;
}

/// Sends the body of an endpoint's answer to its end, or as far as the client takes it.
pub(super) async fn relayed(out: SendStream<Bytes>, relay: Box<Relay>, pace: &Pace, write: Duration) {
    pieces(out, None, Some(relay), pace, write).await;
}

/// A piece, and whether it is the last.
type Piece = (Bytes, bool);

async fn pieces(
    mut out: SendStream<Bytes>,
    mut piece: Option<Piece>,
    mut relay: Option<Box<Relay>>,
    pace: &Pace,
    write: Duration,
) {
    // Made when a piece first waits: most never do.
    let mut wait: Option<Wait> = None;
    let mut is_waiting = false;
    poll_fn(|cx| {
        loop {
            // Asked each time, so that a reset by the client wakes this task.
            if out.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            if piece.is_some() {
                match poll_room(&mut out, cx) {
                    Poll::Ready(true) => {
                        is_waiting = false;
                        match piece.take().map(|(data, is_last)| (out.send_data(data, is_last), is_last)) {
                            Some((Ok(()), false)) => continue,
                            _ => return Poll::Ready(()),
                        }
                    }
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
                let wait = wait.get_or_insert_with(|| Wait::new(pace, write));
                if !std::mem::replace(&mut is_waiting, true) {
                    wait.restart(pace);
                }
                ready!(wait.poll(cx, pace));
                if let Some(relay) = &mut relay {
                    relay.end(Some(Reason::WriteTimeout));
                }
                out.send_reset(h2::Reason::CANCEL);
                return Poll::Ready(());
            }
            let Some(relay) = &mut relay else { return Poll::Ready(()) };
            // Errors of the last frame: the client gave it up.
            match ready!(relay.poll_next(cx)) {
                Ok(Next::Data(data, is_last)) => {
                    // As little as there can be: `h2` asks for the rest when it has the piece.
                    out.reserve_capacity(1);
                    piece = Some((data, is_last));
                    continue;
                }
                Ok(Next::Trailers(trailers)) => {
                    out.reserve_capacity(0);
                    out.send_trailers(trailers).ok();
                }
                Ok(Next::End) => out.send_data(Bytes::new(), true).ok().unwrap_or_default(),
                Err(reason) => out.send_reset(relay.cut(reason)),
            }
            return Poll::Ready(());
        }
    })
    .await;
}

/// Ready(false): the stream is over.
fn poll_room(out: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    while out.capacity() == 0 {
        match ready!(out.poll_capacity(cx)) {
            // It may say so and have none.
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(false),
        }
    }
    Poll::Ready(true)
}
