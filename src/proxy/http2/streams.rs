//! The streams of a connection: what each has received and not yet read, what waits for a window, and the bytes that go
//! out next. A stream's task works on it by its [`Handle`]; the connection's driver writes the bytes (`driver`) and brings
//! in what the client says (`receive`).
//!
//! Answers are framed straight into the connection's buffer as long as the windows and the buffer have room; what has
//! none waits with its stream, and streams that wait take turns of a frame each. Nothing here waits by itself.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use h2::Reason;

use super::budget;
use super::frame;
use super::hpack::Fields;
use super::parked::Parked;
use super::receive::Receiver;
use crate::proxy::buffer::Buffers;

mod handle;

pub(super) use handle::Handle;

/// Answers beyond this wait with their streams, so that a connection holds no more: with some frames' heads it is what a
/// large buffer of the pool has.
const MOST: usize = 60 * 1024;

/// The windows of streams and connections before anything is said (RFC 9113 section 6.9.2).
pub(in crate::proxy) const FIRST_WINDOW: i64 = 65_535;
/// What a client may send of a body before it is read, as Envoy's advice for the edge has it.
pub(super) const STREAM_WINDOW: i64 = 64 * 1024;
pub(super) const CONNECTION_WINDOW: i64 = 1024 * 1024;

/// Streams that perch ended last; what still comes for them is passed over.
const LEFT_BEHIND: usize = 256;

/// The stream has ended: by the client, by perch, or with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended")]
pub(super) struct Gone;

/// A connection's streams.
#[derive(Debug)]
pub(super) struct Streams {
    buffers: Rc<Buffers>,
    /// Framed, and not yet written.
    pub(super) out: Vec<u8>,
    /// Bytes of bodies that were framed so far.
    pub(super) framed: u64,
    /// Of each slot while its stream is open, else 0.
    ids: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    pub(super) open: usize,
    /// Slots whose answers wait for the connection's window or buffer.
    queue: VecDeque<usize>,
    /// What may be sent on the connection, and on a new stream.
    window: i64,
    first_window: i64,
    /// What the client may send on the connection, and what of it was read since it was told last.
    room: i64,
    read: i64,
    left_behind: VecDeque<u32>,
    /// The client made our encoder's table smaller, and is told in the next head that it is empty anyway.
    pub(super) resizes: bool,
    pub(super) broken: budget::Broken,
    pub(super) receiver: Receiver,
    pub(super) driver: Parked,
    is_over: bool,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) id: u32,
    pub(super) is_open: bool,
    /// All of the request has come.
    pub(super) has_all: bool,
    pub(super) received: Vec<u8>,
    pub(super) trailers: Option<Fields>,
    /// What is still to come by the request's `content-length`.
    pub(super) left: Option<u64>,
    /// What the client may send, and what was read since it was told last.
    pub(super) room: i64,
    read: i64,
    /// All of the answer has been framed.
    is_answered: bool,
    window: i64,
    waiting: Vec<u8>,
    /// What of `waiting` was framed.
    framed: usize,
    /// Nothing follows what is waiting.
    is_last: bool,
    is_queued: bool,
    reset: Option<Reason>,
    waker: Option<Waker>,
}

impl Slot {
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_waiting(&self) -> bool {
        self.framed < self.waiting.len()
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}

impl Streams {
    pub(super) fn new(buffers: Rc<Buffers>, receiver: Receiver) -> Self {
        Self {
            buffers,
            out: Vec::new(),
            framed: 0,
            ids: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            queue: VecDeque::new(),
            window: FIRST_WINDOW,
            first_window: FIRST_WINDOW,
            room: CONNECTION_WINDOW,
            read: 0,
            left_behind: VecDeque::new(),
            resizes: false,
            broken: budget::Broken::new(),
            receiver,
            driver: Parked::default(),
            is_over: false,
        }
    }

    /// An open stream's slot.
    pub(super) fn find(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|known| *known == id).filter(|_| id != 0)
    }

    pub(super) fn slot(&mut self, at: usize) -> &mut Slot {
        self.slots.get_mut(at).expect("a slot is there for as long as its handle")
    }

    /// A slot for a new stream.
    pub(super) fn begin(&mut self, id: u32, has_all: bool, left: Option<u64>) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.ids.push(0);
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let window = self.first_window;
        *self.slot(at) = Slot { id, is_open: true, has_all, left, room: STREAM_WINDOW, window, ..Slot::default() };
        if let Some(known) = self.ids.get_mut(at) {
            *known = id;
        }
        self.open += 1;
        at
    }

    /// The stream takes no more frames.
    fn close(&mut self, at: usize) {
        let slot = self.slot(at);
        if std::mem::replace(&mut slot.is_open, false) {
            slot.waiting = Vec::new();
            slot.framed = 0;
            self.open -= 1;
            if let Some(known) = self.ids.get_mut(at) {
                *known = 0;
            }
        }
    }

    /// What goes out next; the driver will write it.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = self.buffers.large_scratch();
        }
        self.driver.wake();
        &mut self.out
    }

    pub(super) fn scratch(&self) -> Vec<u8> {
        self.buffers.scratch()
    }

    pub(super) fn recycle(&self, storage: Vec<u8>) {
        self.buffers.recycle(storage);
    }

    fn send_head(&mut self, at: usize, block: &[u8], is_last: bool) -> Result<(), Gone> {
        let slot = self.slot(at);
        if slot.reset.is_some() || slot.is_answered {
            return Err(Gone);
        }
        let id = slot.id;
        if std::mem::take(&mut self.resizes) {
            // A dynamic table size update to 0 (RFC 7541 section 4.2).
            frame::headers(id, &[&[0x20], block].concat(), is_last, self.out());
        } else {
            frame::headers(id, block, is_last, self.out());
        }
        if is_last {
            self.answered(at);
        }
        Ok(())
    }

    /// The request is here to its end.
    pub(super) fn has_all(&mut self, at: usize, trailers: Option<Fields>) {
        let slot = self.slot(at);
        slot.has_all = true;
        slot.trailers = trailers;
        if slot.is_answered {
            self.close(at);
        }
    }

    fn answered(&mut self, at: usize) {
        let slot = self.slot(at);
        slot.is_answered = true;
        if slot.has_all {
            self.close(at);
        }
        self.broken.answered();
    }

    /// Frames as much of an answer's body as there is room for; the rest waits with the stream.
    fn send(&mut self, at: usize, bytes: &[u8], is_last: bool) -> Result<(), Gone> {
        // Behind those that wait already.
        let shared = if self.queue.is_empty() { self.window.min(room_in(&self.out)) } else { 0 };
        let slot = self.slot(at);
        if slot.reset.is_some() || slot.is_answered {
            return Err(Gone);
        }
        let now = usize::try_from(shared.min(slot.window)).unwrap_or_default().min(bytes.len());
        let (now, later) = bytes.split_at_checked(now).unwrap_or_default();
        slot.window -= length(now);
        if !later.is_empty() {
            slot.waiting.extend_from_slice(later);
            slot.is_last = is_last;
        }
        let (id, may_queue) = (slot.id, !later.is_empty() && slot.window > 0);
        slot.is_queued |= may_queue;
        self.window -= length(now);
        self.framed += now.len() as u64;
        let ends = is_last && later.is_empty();
        if !now.is_empty() || ends {
            frame::data(id, now, ends, self.out());
        }
        if may_queue {
            self.queue.push_back(at);
            self.driver.wake();
        }
        if ends {
            self.answered(at);
        }
        Ok(())
    }

    /// Frames what waits, as far as there is room now.
    pub(super) fn pump(&mut self) {
        while let Some(room) = usize::try_from(self.window.min(room_in(&self.out))).ok().filter(|room| *room > 0) {
            let Some(at) = self.queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(at) else { continue };
            slot.is_queued = false;
            let room = room.min(frame::MOST).min(usize::try_from(slot.window).unwrap_or_default());
            let rest = slot.waiting.get(slot.framed..).unwrap_or_default();
            let (now, later) = rest.split_at(room.min(rest.len()));
            if now.is_empty() {
                continue;
            }
            let ends = slot.is_last && later.is_empty();
            if self.out.capacity() == 0 {
                self.out = self.buffers.large_scratch();
            }
            frame::data(slot.id, now, ends, &mut self.out);
            self.window -= length(now);
            self.framed += now.len() as u64;
            slot.window -= length(now);
            slot.framed += now.len();
            if !slot.is_waiting() {
                slot.waiting.clear();
                slot.framed = 0;
                slot.wake();
            } else if slot.window > 0 {
                slot.is_queued = true;
                self.queue.push_back(at);
            }
            if ends {
                self.answered(at);
            }
        }
    }

    /// The client's window for the connection has grown.
    pub(super) fn widen(&mut self, more: u32) -> Result<(), Reason> {
        self.window = widened(self.window, i64::from(more)).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        Ok(())
    }

    /// The client's window for a stream has grown, or shrunk by a setting. `None`: beyond what a window can be.
    pub(super) fn widen_stream(&mut self, at: usize, more: i64) -> Option<()> {
        let slot = self.slot(at);
        slot.window = widened(slot.window, more)?;
        if slot.is_waiting() && slot.window > 0 && !std::mem::replace(&mut slot.is_queued, true) {
            self.queue.push_back(at);
        }
        Some(())
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE: for streams that are open, too (section 6.9.2).
    pub(super) fn resize_windows(&mut self, first: u32) -> Result<(), Reason> {
        let more = i64::from(first) - self.first_window;
        self.first_window = i64::from(first);
        for at in 0..self.slots.len() {
            if self.slot(at).is_open {
                self.widen_stream(at, more).ok_or(Reason::FLOW_CONTROL_ERROR)?;
            }
        }
        Ok(())
    }

    /// So much has come on the connection. An error: more than it may.
    pub(super) fn arrived(&mut self, n: usize) -> Result<(), Reason> {
        self.room -= i64::try_from(n).unwrap_or(i64::MAX);
        if self.room < 0 { Err(Reason::FLOW_CONTROL_ERROR) } else { Ok(()) }
    }

    /// So much of what came was read, or thrown away: there is room for as much again. Told in large steps.
    pub(super) fn release(&mut self, n: usize) {
        self.read += i64::try_from(n).unwrap_or_default();
        // Earlier when little is left: others may keep the rest unread for long.
        if self.read > 0 && self.read >= self.room.min(CONNECTION_WINDOW / 2) {
            let more = u32::try_from(std::mem::take(&mut self.read)).unwrap_or_default();
            self.room += i64::from(more);
            frame::window_update(0, more, self.out());
        }
    }

    /// The same for a stream that goes on.
    pub(super) fn release_stream(&mut self, at: usize, n: usize) {
        let slot = self.slot(at);
        slot.read += i64::try_from(n).unwrap_or_default();
        if slot.is_open && !slot.has_all && slot.read >= STREAM_WINDOW / 2 {
            let more = u32::try_from(std::mem::take(&mut slot.read)).unwrap_or_default();
            slot.room += i64::from(more);
            let id = slot.id;
            frame::window_update(id, more, self.out());
        }
        self.release(n);
    }

    /// The client has ended the stream. An error: it does so all the time.
    pub(super) fn reset_by_client(&mut self, at: usize, code: Reason) -> Result<(), Reason> {
        self.end(at, code);
        if self.broken.may() { Ok(()) } else { Err(Reason::ENHANCE_YOUR_CALM) }
    }

    /// The client has made a mistake that ends the stream. An error: it does so all the time.
    pub(super) fn mistake(&mut self, at: usize, code: Reason) -> Result<(), Reason> {
        self.reset(at, code);
        if self.broken.may() { Ok(()) } else { Err(Reason::ENHANCE_YOUR_CALM) }
    }

    /// The same of a stream that has no slot.
    pub(super) fn refuse(&mut self, id: u32, code: Reason) -> Result<(), Reason> {
        frame::reset(id, code, self.out());
        self.leave_behind(id);
        if self.broken.may() { Ok(()) } else { Err(Reason::ENHANCE_YOUR_CALM) }
    }

    /// Whether perch has ended this one not long ago.
    pub(super) fn was_left_behind(&self, id: u32) -> bool {
        self.left_behind.contains(&id)
    }

    fn leave_behind(&mut self, id: u32) {
        if self.left_behind.len() == LEFT_BEHIND {
            self.left_behind.pop_front();
        }
        self.left_behind.push_back(id);
    }

    fn reset(&mut self, at: usize, code: Reason) {
        let slot = self.slot(at);
        if !slot.is_open {
            return;
        }
        let id = slot.id;
        frame::reset(id, code, self.out());
        self.leave_behind(id);
        self.end(at, code);
    }

    fn end(&mut self, at: usize, code: Reason) {
        let slot = self.slot(at);
        slot.reset.get_or_insert(code);
        slot.wake();
        self.close(at);
    }

    /// The connection has ended, and all streams with it.
    pub(super) fn end_all(&mut self) {
        self.is_over = true;
        for at in 0..self.slots.len() {
            if self.slot(at).is_open {
                self.end(at, Reason::CANCEL);
            }
        }
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

/// How much of bodies may be framed behind what is there.
pub(in crate::proxy) fn room_in(out: &[u8]) -> i64 {
    i64::try_from(MOST.saturating_sub(out.len())).unwrap_or_default()
}

/// A window is at most 2^31-1 (section 6.9.1).
pub(in crate::proxy) fn widened(window: i64, more: i64) -> Option<i64> {
    Some(window + more).filter(|sum| *sum <= i64::from(i32::MAX))
}
