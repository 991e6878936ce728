//! The streams of a connection to an endpoint: their windows, what has come for each and was not yet read, and the bytes
//! that go out next. A request works on its stream by a `Http2Stream` (`stream`); the connection's driver writes the bytes
//! (`driver`) and brings in what the endpoint says (`receive`). Nothing here waits by itself.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::receive::Receiver;
use super::slot::Slot;
use super::stream::StreamError;
use crate::proxy::buffer::Buffers;
use crate::proxy::http2::frame;
use crate::proxy::http2::hpack::encoder;
use crate::proxy::http2::parked::Parked;
use crate::proxy::http2::streams::{FIRST_WINDOW, room_in, widened};

/// Requests at once on a connection; what most servers allow.
pub(super) const STREAMS: usize = 100;
/// Bytes of a response that may wait for the client, per stream and per connection.
pub(super) const STREAM_WINDOW: i64 = 256 * 1024;
pub(super) const CONNECTION_WINDOW: i64 = 4 * 1024 * 1024;
/// The highest number of a stream (RFC 9113 section 5.1.1).
const LAST_ID: u32 = 0x7fff_ffff;

/// A connection's streams.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) buffers: Rc<Buffers>,
    /// Framed, and not yet written.
    pub(super) out: Vec<u8>,
    /// Of each slot while its stream is open, else 0.
    ids: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Streams that the endpoint counts, and those of them that have nothing but their end to come: nobody waits for them.
    open: usize,
    owed: VecDeque<u32>,
    next_id: u32,
    /// Streams at a time, as the endpoint has it (SETTINGS_MAX_CONCURRENT_STREAMS).
    most: usize,
    /// What may be sent on the connection, and on a new stream.
    window: i64,
    first_window: i64,
    /// What the endpoint may send on the connection, and what of it was read since it was told last.
    room: i64,
    read: i64,
    /// Slots that wait for room.
    starved: Vec<usize>,
    turns: u64,
    /// The endpoint made our encoder's table smaller, and is told in the next block that it is empty anyway.
    pub(super) resizes: bool,
    pub(super) receiver: Receiver,
    /// It has served a stream before: a failure may just mean that the endpoint was about to close it.
    pub(super) is_used: bool,
    /// The endpoint takes no more streams.
    pub(super) is_leaving: bool,
    /// Nobody will begin another stream: it ends with its last one.
    is_closing: bool,
    is_over: bool,
    pub(super) driver: Parked,
}

impl Streams {
    /// `most`: streams at a time until the endpoint has said how many.
    pub(super) fn new(buffers: Rc<Buffers>, most: usize) -> Self {
        Self {
            buffers,
            out: Vec::new(),
            ids: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            owed: VecDeque::new(),
            next_id: 1,
            most,
            window: FIRST_WINDOW,
            first_window: FIRST_WINDOW,
            room: CONNECTION_WINDOW,
            read: 0,
            starved: Vec::new(),
            turns: 0,
            resizes: false,
            receiver: Receiver::new(),
            is_used: false,
            is_leaving: false,
            is_closing: false,
            is_over: false,
            driver: Parked::default(),
        }
    }

    /// Whether a request may be put on it.
    pub(super) fn takes_streams(&self) -> bool {
        !self.is_over && !self.is_leaving && self.next_id <= LAST_ID
    }

    /// Requests that are on it, begun or not.
    pub(super) fn requests(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that it takes at a time.
    pub(super) fn most_requests(&self) -> usize {
        STREAMS.min(self.most)
    }

    /// Nobody will begin another stream: the connection ends with its last one.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
        self.driver.wake();
    }

    /// No stream is under way, and none comes.
    pub(super) fn is_done(&self) -> bool {
        self.requests() == 0 && (self.is_closing || self.is_leaving)
    }

    /// A place for a request.
    pub(super) fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.ids.push(0);
            self.slots.push(Slot::default());
            self.slots.len() - 1
        })
    }

    /// An open stream's slot.
    pub(super) fn find(&self, id: u32) -> Option<usize> {
        self.ids.iter().position(|known| *known == id).filter(|_| id != 0)
    }

    /// Whether perch has begun this stream at some time (section 5.1: not idle).
    pub(super) fn was_begun(&self, id: u32) -> bool {
        !id.is_multiple_of(2) && id < self.next_id
    }

    pub(super) fn slot(&mut self, at: usize) -> &mut Slot {
        self.slots.get_mut(at).expect("a slot is there for as long as its stream")
    }

    /// What goes out next; the driver will write it.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = self.buffers.large_scratch();
        }
        self.driver.wake();
        &mut self.out
    }

    /// Puts a slot into the line of those who wait for room.
    fn starve(&mut self, at: usize, cx: &Context<'_>) {
        let slot = self.slot(at);
        slot.wait(cx);
        if !std::mem::replace(&mut slot.is_starved, true) {
            self.starved.push(at);
        }
    }

    /// There may be room again, of whatever kind. Who was served longest ago is first.
    pub(super) fn feed(&mut self) {
        let mut starved = std::mem::take(&mut self.starved);
        starved.sort_by_key(|at| self.slot(*at).turn);
        for at in starved.drain(..) {
            let slot = self.slot(at);
            slot.is_starved = false;
            slot.wake();
        }
        // Nobody starves while others are woken: only the storage goes back.
        self.starved = starved;
    }

    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Whether a stream may be begun. Pending while the endpoint takes no more of them.
    pub(super) fn poll_turn(&mut self, at: usize, cx: &Context<'_>) -> Result<Poll<()>, StreamError> {
        // Nothing of it was sent.
        if !self.takes_streams() {
            return Err(StreamError::Refused);
        }
        while self.open >= self.most.max(1) && !self.owed.is_empty() {
            self.settle_oldest();
        }
        if self.open >= self.most || room_in(&self.out) == 0 {
            self.starve(at, cx);
            return Ok(Poll::Pending);
        }
        Ok(Poll::Ready(()))
    }

    /// What comes first in a block of fields that is sent next.
    pub(super) fn begin_block(&self, block: &mut Vec<u8>) {
        if self.resizes {
            // A dynamic table size update to 0 (RFC 7541 section 4.2).
            block.push(0x20);
        }
    }

    /// Begins a stream with a block of fields.
    pub(super) fn begin(&mut self, at: usize, block: &[u8], is_last: bool) {
        let (id, window) = (self.next_id, self.first_window);
        self.next_id += 2;
        self.open += 1;
        let turn = self.turn();
        let slot = self.slot(at);
        (slot.id, slot.window, slot.turn, slot.has_sent_all) = (id, window, turn, is_last);
        if let Some(known) = self.ids.get_mut(at) {
            *known = id;
        }
        frame::headers(id, block, is_last, self.out());
        self.resizes = false;
    }

    /// How many bytes of a body may be sent now. Pending: none.
    pub(super) fn poll_room(&mut self, at: usize, cx: &Context<'_>) -> Poll<usize> {
        let shared = self.window.min(room_in(&self.out));
        let room = usize::try_from(shared.min(self.slot(at).window)).unwrap_or_default();
        if room == 0 {
            self.starve(at, cx);
            return Poll::Pending;
        }
        Poll::Ready(room)
    }

    /// Sends of a body what there is room for, and its end.
    pub(super) fn send(&mut self, at: usize, bytes: &[u8], is_last: bool) {
        let n = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.window -= n;
        let turn = self.turn();
        let slot = self.slot(at);
        slot.window -= n;
        slot.turn = turn;
        let id = slot.id;
        frame::data(id, bytes, is_last, self.out());
        if is_last {
            self.sent_all(at);
        }
    }

    /// Ends a request with trailers, which are lines.
    pub(super) fn send_trailers(&mut self, at: usize, lines: &[u8]) {
        let mut block = self.buffers.scratch();
        self.begin_block(&mut block);
        encoder::lines(lines, &mut block);
        let id = self.slot(at).id;
        frame::headers(id, &block, true, self.out());
        self.resizes = false;
        self.buffers.recycle(block);
        self.sent_all(at);
    }

    fn sent_all(&mut self, at: usize) {
        let slot = self.slot(at);
        slot.has_sent_all = true;
        if slot.has_all {
            self.end(at);
        }
    }

    /// The answer is here to its end.
    pub(super) fn has_all(&mut self, at: usize) {
        let slot = self.slot(at);
        slot.has_all = true;
        slot.wake();
        if slot.has_sent_all {
            self.end(at);
        }
    }

    /// The stream is over for both sides.
    fn end(&mut self, at: usize) {
        if let Some(id) = self.ids.get_mut(at)
            && std::mem::take(id) != 0
        {
            self.open -= 1;
            self.feed();
        }
    }

    /// The stream has ended before its time.
    pub(super) fn fail(&mut self, at: usize, error: StreamError) {
        let slot = self.slot(at);
        slot.failed.get_or_insert(error);
        slot.wake();
        self.end(at);
    }

    /// Ends a stream.
    pub(super) fn reset(&mut self, at: usize, code: h2::Reason, error: StreamError) {
        let id = self.slot(at).id;
        if self.ids.get(at).is_some_and(|known| *known != 0) {
            frame::reset(id, code, self.out());
        }
        self.fail(at, error);
    }

    /// All streams beyond this one were not looked at by the endpoint (section 6.8).
    pub(super) fn leave(&mut self, last: u32) {
        self.is_leaving = true;
        for at in 0..self.slots.len() {
            if self.ids.get(at).is_some_and(|id| *id > last) {
                self.fail(at, StreamError::Refused);
            }
        }
        // Those that have not begun find out.
        self.feed();
        self.driver.wake();
    }

    /// The connection has ended, and all streams with it.
    pub(super) fn end_all(&mut self) {
        self.is_over = true;
        for at in 0..self.slots.len() {
            if self.ids.get(at).is_some_and(|id| *id != 0) {
                self.fail(at, StreamError::Lost);
            }
        }
        self.feed();
    }

    /// Gives a slot back: its request is over, whatever has become of it.
    pub(super) fn give(&mut self, at: usize) {
        let buffers = self.buffers.clone();
        let slot = self.slot(at);
        slot.waker = None;
        let unread = slot.unread();
        if slot.has_sent_all && slot.is_complete() {
            self.owe(at);
        } else {
            self.reset(at, h2::Reason::CANCEL, StreamError::Lost);
        }
        std::mem::take(self.slot(at)).recycle(&buffers);
        self.starved.retain(|starved| *starved != at);
        self.free.push(at);
        if !self.is_over {
            self.release(unread);
        }
        if self.is_done() {
            self.driver.wake();
        }
    }

    /// Nothing but the end of the stream is to come, which needs no reset; till then the endpoint counts it.
    fn owe(&mut self, at: usize) {
        let id = self.ids.get_mut(at).map(std::mem::take).unwrap_or_default();
        if id != 0 {
            self.owed.push_back(id);
            if self.owed.len() > STREAMS {
                self.settle_oldest();
            }
            // Its place can be had.
            self.feed();
        }
    }

    /// A stream that had only its end to come has ended, if it is one.
    pub(super) fn settle(&mut self, id: u32) {
        if let Some(at) = self.owed.iter().position(|owed| *owed == id) {
            self.owed.remove(at);
            self.open -= 1;
            self.feed();
        }
    }

    /// Ends the oldest of them: there is no more room for it.
    fn settle_oldest(&mut self) {
        if let Some(id) = self.owed.pop_front() {
            self.open -= 1;
            frame::reset(id, h2::Reason::CANCEL, self.out());
        }
    }

    /// The endpoint's setting for streams at a time.
    pub(super) fn allow(&mut self, most: u32) {
        self.most = usize::try_from(most).unwrap_or(usize::MAX);
        self.feed();
    }

    /// The endpoint's window for the connection has grown. `None`: beyond what a window can be.
    pub(super) fn widen(&mut self, more: u32) -> Option<()> {
        self.window = widened(self.window, i64::from(more))?;
        self.feed();
        Some(())
    }

    /// The endpoint's window for a stream has grown.
    pub(super) fn widen_stream(&mut self, at: usize, more: u32) -> Option<()> {
        let slot = self.slot(at);
        slot.window = widened(slot.window, i64::from(more))?;
        self.feed();
        Some(())
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE: for streams that are open, too (section 6.9.2).
    pub(super) fn resize_windows(&mut self, first: u32) -> Option<()> {
        let more = i64::from(first) - self.first_window;
        self.first_window = i64::from(first);
        for (slot, id) in self.slots.iter_mut().zip(&self.ids) {
            if *id != 0 {
                slot.window = widened(slot.window, more)?;
            }
        }
        self.feed();
        Some(())
    }

    /// So much has come on the connection. `None`: more than may.
    pub(super) fn arrived(&mut self, n: usize) -> Option<()> {
        self.room -= i64::try_from(n).unwrap_or(i64::MAX);
        (self.room >= 0).then_some(())
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
        if !slot.has_all && slot.failed.is_none() && slot.read >= STREAM_WINDOW / 2 {
            let more = u32::try_from(std::mem::take(&mut slot.read)).unwrap_or_default();
            slot.room += i64::from(more);
            let id = slot.id;
            frame::window_update(id, more, self.out());
        }
        self.release(n);
    }
}
