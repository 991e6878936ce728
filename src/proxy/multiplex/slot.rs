//! One stream: what has come of its answer, read as the bytes of an HTTP/1 answer.

use std::task::{Context, Waker};

use tokio::io::ReadBuf;

use super::answer::Answer;
use super::stream::StreamError;
use super::streams::STREAM_WINDOW;
use crate::proxy::buffer::{Buffers, append};
use crate::proxy::http1::body::{self, Framing};
use crate::proxy::http1::response::HEAD_BYTES;
use crate::proxy::http2::hpack::Fields;

/// A stream, or a request that has not begun its own yet.
#[derive(Debug)]
pub(super) struct Slot {
    /// 0: not begun.
    pub(super) id: u32,
    pub(super) is_head_request: bool,
    /// What may be sent.
    pub(super) window: i64,
    pub(super) has_sent_all: bool,
    /// All of the answer has come.
    pub(super) has_all: bool,
    /// Why the stream ended before its time.
    pub(super) failed: Option<StreamError>,
    /// What the endpoint may send, and what was read since it was told last.
    pub(super) room: i64,
    pub(super) read: i64,
    pub(super) waker: Option<Waker>,
    /// It waits for room, and when it had some last.
    pub(super) is_starved: bool,
    pub(super) turn: u64,
    /// Of the final head.
    framing: Option<Framing>,
    /// What is still to come by its `content-length`.
    left: Option<u64>,
    /// Heads, the framing of chunks, trailers: what is read before `body`.
    text: Vec<u8>,
    text_read: usize,
    body: Vec<u8>,
    body_read: usize,
    /// What of `body` is in the chunk that has begun.
    chunk: usize,
    trailers: Vec<u8>,
    /// The end was put into `text`.
    is_ended: bool,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            id: 0,
            is_head_request: false,
            window: 0,
            has_sent_all: false,
            has_all: false,
            failed: None,
            room: STREAM_WINDOW,
            read: 0,
            waker: None,
            is_starved: false,
            turn: 0,
            framing: None,
            left: None,
            text: Vec::new(),
            text_read: 0,
            body: Vec::new(),
            body_read: 0,
            chunk: 0,
            trailers: Vec::new(),
            is_ended: false,
        }
    }
}

/// The stream broke a rule of HTTP (RFC 9113 section 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Slot {
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// Nothing of the answer is to come, but perhaps the word that it has ended.
    pub(super) fn is_complete(&self) -> bool {
        self.has_all || self.left == Some(0)
    }

    /// Whether its final head has come.
    pub(super) fn has_head(&self) -> bool {
        self.framing.is_some()
    }

    /// Bytes of the body that have come and were not read.
    pub(super) fn unread(&self) -> usize {
        self.body.len() - self.body_read
    }

    /// A head has come.
    pub(super) fn head(&mut self, fields: &Fields, is_last: bool, buffers: &Buffers) -> Result<(), Malformed> {
        let answer = Answer::read(fields)?;
        let framing = (!answer.is_interim()).then(|| answer.framing(is_last, self.is_head_request));
        match framing {
            // Nothing follows that could be what was promised, or is the final head.
            None if is_last => return Err(Malformed),
            Some(Framing::Length(0)) if answer.length.is_some_and(|n| n > 0) => return Err(Malformed),
            _ => {}
        }
        if self.text.capacity() == 0 {
            self.text = buffers.scratch();
        }
        let before = self.text.len();
        answer.write(fields, framing, &mut self.text);
        // One head, or interim ones that nobody reads.
        if (self.text.len() - before).max(before - self.text_read) > HEAD_BYTES {
            self.text.truncate(before);
            return Err(Malformed);
        }
        self.framing = framing;
        self.left = match framing {
            Some(Framing::Empty) => Some(0),
            Some(_) => answer.length,
            None => None,
        };
        Ok(())
    }

    /// A piece of the body has come.
    pub(super) fn data(&mut self, data: &[u8], is_last: bool, buffers: &Buffers) -> Result<(), Malformed> {
        if !self.has_head() {
            return Err(Malformed);
        }
        let left = self.left.map(|left| left.checked_sub(data.len() as u64).ok_or(Malformed)).transpose()?;
        if is_last && left.is_some_and(|left| left > 0) {
            return Err(Malformed);
        }
        self.left = left;
        if self.body.capacity() == 0 {
            self.body = if data.len() > 2_048 { buffers.large_scratch() } else { buffers.scratch() };
        }
        // Rather than let it grow.
        if self.body.capacity() - self.body.len() < data.len() {
            self.body.drain(..std::mem::take(&mut self.body_read));
        }
        append(data, &mut self.body);
        Ok(())
    }

    /// Trailers have come, as lines.
    pub(super) fn trailers(&mut self, lines: Vec<u8>) -> Result<(), Malformed> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(Malformed);
        }
        self.trailers = lines;
        Ok(())
    }

    /// Puts what is there into `buf`; how many bytes of it are of the body.
    pub(super) fn read_into(&mut self, buf: &mut ReadBuf<'_>, buffers: &Buffers) -> usize {
        let mut taken = 0;
        let framing = self.framing.unwrap_or(Framing::Empty);
        let is_chunked = framing == Framing::Chunked;
        loop {
            self.text_read += put(self.text.get(self.text_read..).unwrap_or_default(), buf);
            if self.text_read < self.text.len() {
                return taken;
            }
            self.text.clear();
            self.text_read = 0;
            if self.chunk > 0 {
                let end = self.body_read + self.chunk;
                let n = put(self.body.get(self.body_read..end).unwrap_or_default(), buf);
                taken += n;
                self.body_read += n;
                self.chunk -= n;
                if self.chunk > 0 {
                    return taken;
                }
                if is_chunked {
                    self.text.extend_from_slice(b"\r\n");
                }
            } else if self.unread() > 0 {
                self.chunk = self.unread();
                if is_chunked {
                    body::begin_chunk(self.chunk, &mut self.text);
                }
            } else if self.has_all && !self.is_ended {
                self.is_ended = true;
                body::encode_end(framing, &self.trailers, &mut self.text);
            } else {
                // Who waits holds no buffer.
                self.body_read = 0;
                buffers.recycle(std::mem::take(&mut self.body));
                buffers.recycle(std::mem::take(&mut self.text));
                return taken;
            }
        }
    }

    /// Whether all of the answer was read.
    pub(super) fn is_read(&self) -> bool {
        self.is_ended && self.text.is_empty()
    }

    /// Gives its buffers back.
    pub(super) fn recycle(self, buffers: &Buffers) {
        buffers.recycle(self.text);
        buffers.recycle(self.body);
    }
}

/// As much of `bytes` as there is room for.
fn put(bytes: &[u8], buf: &mut ReadBuf<'_>) -> usize {
    let n = bytes.len().min(buf.remaining());
    buf.put_slice(bytes.get(..n).unwrap_or_default());
    n
}
