//! An HTTP/2 request's body on its way to an HTTP/1 endpoint.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::super::attempts::Kept;
use super::super::awaited::{Broken, Progress, Upward};
use super::super::http1::body::{self, Framing};
use super::super::http1::exchange::WITH_HEAD;
use super::super::http1::response::line;
use super::super::upstream::Link;
use super::hpack::Fields;
use super::streams::Handle;
use crate::decide::fields;
use crate::reason::Reason;

/// One request on its way.
#[derive(Debug)]
pub(super) struct Upload {
    framing: Framing,
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
    /// `has_body`: more of the request is to come.
    pub(super) fn new(head: Vec<u8>, framing: Framing, has_body: bool) -> Self {
        Self {
            framing,
            first: head,
            first_sent: 0,
            pending: Vec::new(),
            pending_sent: 0,
            ended: !has_body,
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

    fn end(&mut self, trailers: Option<&Fields>) {
        if self.ended {
            return;
        }
        let mut lines = Vec::new();
        for (name, value) in trailers.iter().flat_map(|trailers| trailers.iter()) {
            if fields::may_be_trailer(name) {
                line(name, value, &mut lines);
            }
        }
        let out = if self.is_streamed { &mut self.pending } else { &mut self.first };
        body::encode_end(self.framing, &lines, out);
        self.ended = true;
    }

    fn is_beyond(&self) -> bool {
        matches!(self.framing, Framing::Length(n) if self.bytes > n)
    }

    fn is_short(&self) -> bool {
        matches!(self.framing, Framing::Length(n) if self.bytes < n)
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

/// An upload with the stream that it comes from.
pub(super) struct Sent<'a> {
    pub(super) upload: &'a mut Upload,
    pub(super) stream: &'a Handle,
}

impl Upward for Sent<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Broken>> {
        let Self { upload, stream } = self;
        loop {
            // Its answer may be on the way even if it reads no more.
            if ready!(upload.poll_send(cx, link)).is_err() {
                upload.is_broken = true;
            }
            if upload.is_done() {
                return Poll::Ready(Ok(()));
            }
            let read = |data: &[u8]| {
                upload.bytes += data.len() as u64;
                if upload.is_beyond() {
                    return (data.len(), ());
                }
                // As much of a body as may be sent again stays with the head: all of most gRPC calls.
                upload.is_streamed |= upload.first.len() + data.len() > WITH_HEAD;
                let out = if upload.is_streamed { &mut upload.pending } else { &mut upload.first };
                body::encode(upload.framing, data, out);
                (data.len(), ())
            };
            match ready!(stream.poll_read(cx, read)) {
                // A length that was promised is kept, whoever counted the frames before: what is beyond it would be a request.
                Some(Ok(())) if upload.is_beyond() => return Poll::Ready(Err(Broken::Client(Reason::ContentLength))),
                Some(Ok(())) => {}
                None if upload.is_short() => return Poll::Ready(Err(Broken::Client(Reason::ContentLength))),
                None => upload.end(stream.take_trailers().as_ref()),
                // However the client put it: what was cut must not look whole to the endpoint.
                Some(Err(_)) => return Poll::Ready(Err(Broken::Client(Reason::ClientAbort))),
            }
        }
    }

    fn progress(&self) -> Progress {
        self.upload.progress()
    }
}

impl Upload {
    /// Where it stands.
    pub(super) fn progress(&self) -> Progress {
        let is_sent = self.first_sent == self.first.len() && self.pending.is_empty();
        Progress {
            bytes: self.bytes,
            unsent: self.pending.len() - self.pending_sent,
            is_done: self.is_done(),
            waits_for_client: is_sent && !self.ended && !self.is_broken,
            // Nothing is held back: the client's window is open, and the endpoint gets no expectation.
            is_gated: false,
        }
    }
}
