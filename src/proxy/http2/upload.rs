//! An HTTP/2 request's body on its way to an HTTP/1 endpoint.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::RecvStream;
use tokio::io::AsyncWrite;

use super::super::attempts::Kept;
use super::super::awaited::{Broken, Progress, Upward};
use super::super::http1::body::{self, Framing};
use super::super::http1::exchange::WITH_HEAD;
use super::super::http1::response::line;
use super::super::upstream::Link;
use crate::decide::fields;
use crate::reason::Reason;

/// One request on its way.
#[derive(Debug)]
pub(super) struct Upload {
    framing: Framing,
    /// `None` for a request that has no body whatever comes.
    incoming: Option<RecvStream>,
    /// The head and the first of the body; kept until the answer begins, so that it can be sent again.
    first: Vec<u8>,
    first_sent: usize,
    pending: Vec<u8>,
    pending_sent: usize,
    ended: bool,
    is_streamed: bool,
    is_broken: bool,
    pub(super) bytes: u64,
}

impl Upload {
    pub(super) fn new(head: Vec<u8>, framing: Framing, incoming: Option<RecvStream>) -> Self {
        let ended = incoming.as_ref().is_none_or(RecvStream::is_end_stream);
        Self {
            framing,
            incoming,
            first: head,
            first_sent: 0,
            pending: Vec::new(),
            pending_sent: 0,
            ended,
            is_streamed: false,
            is_broken: false,
            bytes: 0,
        }
    }

    pub(super) fn into_head(self) -> Vec<u8> {
        self.first
    }

    /// All is read and sent, or the endpoint reads no more.
    pub(super) fn is_done(&self) -> bool {
        self.is_broken || self.is_complete()
    }

    /// All is read and sent.
    pub(super) fn is_complete(&self) -> bool {
        self.ended && self.first_sent == self.first.len() && self.pending_sent == self.pending.len()
    }

    /// What can be sent again.
    pub(super) fn kept(&self) -> Kept {
        match (self.is_streamed, self.ended) {
            (true, _) => Kept::Partly,
            (false, false) => Kept::SoFar,
            (false, true) => Kept::Whole,
        }
    }

    pub(super) fn rewind(&mut self) {
        self.first_sent = 0;
        self.is_broken = false;
    }

    fn end(&mut self, trailers: &http::HeaderMap) {
        if self.ended {
            return;
        }
        let mut lines = Vec::new();
        for (name, value) in trailers {
            if fields::may_be_trailer(name.as_str().as_bytes()) {
                line(name.as_str().as_bytes(), value.as_bytes(), &mut lines);
            }
        }
        let out = if self.is_streamed { &mut self.pending } else { &mut self.first };
        body::encode_end(self.framing, &lines, out);
        self.ended = true;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<std::io::Result<()>> {
        while let Some(rest) = self.first.get(self.first_sent..).filter(|r| !r.is_empty()) {
            self.first_sent += ready!(Pin::new(&mut link.io).poll_write(cx, rest))?;
        }
        while let Some(rest) = self.pending.get(self.pending_sent..).filter(|r| !r.is_empty()) {
            self.pending_sent += ready!(Pin::new(&mut link.io).poll_write(cx, rest))?;
        }
        self.pending.clear();
        self.pending_sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl Upward for Upload {
    fn poll(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Broken>> {
        loop {
            // Its answer may be on the way even if it reads no more.
            if ready!(self.poll_send(cx, link)).is_err() {
                self.is_broken = true;
            }
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            let Some(incoming) = &mut self.incoming else {
                self.end(&http::HeaderMap::new());
                continue;
            };
            match ready!(incoming.poll_data(cx)) {
                Some(Ok(data)) => {
                    // As it is read here, there is room for as much again. An error: the stream is over, which is read next.
                    incoming.flow_control().release_capacity(data.len()).ok();
                    self.bytes += data.len() as u64;
                    // As much of a body as may be sent again stays with the head: all of most gRPC calls.
                    self.is_streamed |= self.first.len() + data.len() > WITH_HEAD;
                    let out = if self.is_streamed { &mut self.pending } else { &mut self.first };
                    body::encode(self.framing, &data, out);
                }
                None => match ready!(incoming.poll_trailers(cx)) {
                    Ok(trailers) => self.end(&trailers.unwrap_or_default()),
                    Err(_) => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
                },
                // However the client put it: what was cut must not look whole to the endpoint.
                Some(Err(_)) => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
            }
        }
    }

    fn progress(&self) -> Progress {
        let is_sent = self.first_sent == self.first.len() && self.pending.is_empty();
        Progress {
            bytes: self.bytes,
            is_done: self.is_done(),
            waits_for_client: is_sent && !self.ended && !self.is_broken,
            // Nothing is held back: the client's window is open, and the endpoint gets no expectation.
            is_gated: false,
        }
    }
}
