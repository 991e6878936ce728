//! A stream as its task sees it.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use h2::Reason;

use super::super::hpack::Fields;
use super::{Gone, Streams};

/// A stream, for the task that answers it. Dropped before its answer has been sent: the stream is reset.
#[derive(Debug)]
pub(in super::super) struct Handle {
    streams: Rc<RefCell<Streams>>,
    at: usize,
}

impl Handle {
    pub(in super::super) fn new(streams: Rc<RefCell<Streams>>, at: usize) -> Self {
        Self { streams, at }
    }

    /// Whether nothing follows the head.
    pub(in super::super) fn has_all(&self) -> bool {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.slot(self.at);
        slot.has_all && slot.received.is_empty() && slot.trailers.is_none()
    }

    /// Whether the stream has ended before its time.
    pub(in super::super) fn is_reset(&self) -> bool {
        self.streams.borrow_mut().slot(self.at).reset.is_some()
    }

    /// Ready when the stream has ended before its time.
    pub(in super::super) fn poll_reset(&self, cx: &Context<'_>) -> Poll<Reason> {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.slot(self.at);
        if let Some(code) = slot.reset {
            return Poll::Ready(code);
        }
        slot.wait(cx);
        Poll::Pending
    }

    /// Hands over what has come of the body; `read` says how much of it it took. `None` at its end.
    pub(in super::super) fn poll_read<T>(
        &self,
        cx: &Context<'_>,
        read: impl FnOnce(&[u8]) -> (usize, T),
    ) -> Poll<Option<Result<T, Gone>>> {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.slot(self.at);
        if slot.reset.is_some() && !slot.has_all {
            return Poll::Ready(Some(Err(Gone)));
        }
        if slot.received.is_empty() {
            if slot.has_all {
                return Poll::Ready(None);
            }
            slot.wait(cx);
            return Poll::Pending;
        }
        let (taken, result) = read(&slot.received);
        if taken == slot.received.len() {
            slot.received.clear();
        } else {
            slot.received.drain(..taken);
        }
        streams.release_stream(self.at, taken);
        Poll::Ready(Some(Ok(result)))
    }

    /// What came after the body.
    pub(in super::super) fn take_trailers(&self) -> Option<Fields> {
        self.streams.borrow_mut().slot(self.at).trailers.take()
    }

    /// Sends a head, interim or final.
    pub(in super::super) fn send_head(&self, block: &[u8], is_last: bool) -> Result<(), Gone> {
        self.streams.borrow_mut().send_head(self.at, block, is_last)
    }

    /// Sends a piece of the body. Only when the one before has gone: see [`Handle::poll_sent`].
    pub(in super::super) fn send(&self, bytes: &[u8], is_last: bool) -> Result<(), Gone> {
        self.streams.borrow_mut().send(self.at, bytes, is_last)
    }

    /// Ready when nothing of the body waits for its window.
    pub(in super::super) fn poll_sent(&self, cx: &Context<'_>) -> Poll<Result<(), Gone>> {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.slot(self.at);
        if slot.reset.is_some() {
            return Poll::Ready(Err(Gone));
        }
        if !slot.is_waiting() {
            return Poll::Ready(Ok(()));
        }
        slot.wait(cx);
        Poll::Pending
    }

    /// Whether all of the answer is on its way.
    pub(in super::super) fn is_answered(&self) -> bool {
        self.streams.borrow_mut().slot(self.at).is_answered
    }

    /// Ends the stream.
    pub(in super::super) fn reset(&self, code: Reason) {
        self.streams.borrow_mut().reset(self.at, code);
    }

    /// An empty vector for composing a head.
    pub(in super::super) fn scratch(&self) -> Vec<u8> {
        self.streams.borrow().scratch()
    }

    pub(in super::super) fn recycle(&self, storage: Vec<u8>) {
        self.streams.borrow().recycle(storage);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.slot(self.at);
        // All was answered: the rest of the request is not needed (RFC 9113 section 8.1).
        let code = if slot.is_answered { Reason::NO_ERROR } else { Reason::CANCEL };
        let unread = slot.received.len();
        slot.waker = None;
        streams.reset(self.at, code);
        let is_over = streams.is_over;
        let slot = std::mem::take(streams.slot(self.at));
        if slot.is_queued {
            let at = self.at;
            streams.queue.retain(|queued| *queued != at);
        }
        if !is_over {
            streams.release(unread);
        }
        streams.free.push(self.at);
    }
}
