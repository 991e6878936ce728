//! What an endpoint says, frame by frame: each is checked by RFC 9113 section 6 and changes the streams, or ends one of
//! them or the connection. What comes for a stream that is over is counted and passed over.

use h2::Reason;

use super::answer;
use super::slot::Malformed;
use super::stream::StreamError;
use super::streams::Streams;
use crate::proxy::http1::response::HEAD_BYTES;
use crate::proxy::http2::block::Block;
use crate::proxy::http2::frame::{self, flag, kind, setting};
use crate::proxy::http2::hpack::{Decoder, Fields};
use crate::proxy::http2::order::Order;

/// What our PINGs say.
pub(super) const ARE_YOU_THERE: [u8; 8] = *b"perch?  ";

/// What is known of the endpoint's side of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    order: Order,
    decoder: Decoder,
    /// Something of an answer has come since this was last looked at.
    pub(super) has_answered: bool,
    /// Our PING was answered.
    pub(super) is_ponged: bool,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { order: Order::new(HEAD_BYTES), decoder: Decoder::default(), has_answered: false, is_ponged: false }
    }
}

impl Streams {
    /// Takes in whole frames; how many bytes that was. `written`: what went to the endpoint so far. An error ends the
    /// connection.
    pub(super) fn receive(&mut self, bytes: &[u8], written: u64) -> Result<usize, Reason> {
        let mut used = 0;
        while let Some((head, payload)) = frame::next(bytes.get(used..).unwrap_or_default())? {
            used += frame::HEAD + head.length;
            self.frame(head, payload, written)?;
        }
        Ok(used)
    }

    fn frame(&mut self, head: frame::Head, payload: &[u8], written: u64) -> Result<(), Reason> {
        self.receiver.order.check(head, payload, written)?;
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS | kind::CONTINUATION => match self.receiver.order.blocks.receive(head, payload)? {
                Some(block) => self.block(&block),
                None => Ok(()),
            },
            kind::RST_STREAM => self.reset_by_endpoint(head.stream, payload),
            kind::SETTINGS => self.settings(head, payload),
            // It was told not to (ENABLE_PUSH).
            kind::PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway(payload),
            kind::WINDOW_UPDATE => self.window_update(head.stream, payload),
            // Priorities are for servers (section 5.3.2); others are of extensions (section 5.5).
            _ => Ok(()),
        }
    }

    /// A stream's slot. `None`: it is over.
    fn find_or_pass(&self, stream: u32) -> Result<Option<usize>, Reason> {
        match self.find(stream) {
            None if !self.was_begun(stream) => Err(Reason::PROTOCOL_ERROR),
            at => Ok(at),
        }
    }

    fn data(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        self.arrived(payload.len()).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        let data = frame::unpadded(head, payload)?;
        let at = self.find_or_pass(head.stream)?.filter(|at| !self.slot(*at).has_all);
        let Some(at) = at else {
            self.release(payload.len());
            if head.has(flag::END_STREAM) {
                self.settle(head.stream);
            }
            return Ok(());
        };
        self.receiver.has_answered = true;
        let is_last = head.has(flag::END_STREAM);
        let buffers = self.buffers.clone();
        let slot = self.slot(at);
        slot.room -= i64::try_from(payload.len()).unwrap_or(i64::MAX);
        if slot.room < 0 {
            self.release(payload.len());
            self.reset(at, Reason::FLOW_CONTROL_ERROR, StreamError::Malformed);
            return Ok(());
        }
        if slot.data(data, is_last, &buffers).is_err() {
            self.release(payload.len());
            self.malformed(at);
            return Ok(());
        }
        slot.wake();
        self.release_stream(at, payload.len() - data.len());
        if is_last {
            self.has_all(at);
        }
        Ok(())
    }

    fn malformed(&mut self, at: usize) {
        self.reset(at, Reason::PROTOCOL_ERROR, StreamError::Malformed);
    }

    /// A whole head, or trailers.
    fn block(&mut self, block: &Block<'_>) -> Result<(), Reason> {
        // Whatever becomes of it, the connection's table has to follow.
        let mut fields = Fields::new(self.buffers.scratch(), HEAD_BYTES);
        self.receiver.decoder.decode(&block.bytes, &mut fields).map_err(|_| Reason::COMPRESSION_ERROR)?;
        let at = self.find_or_pass(block.stream)?.filter(|at| !self.slot(*at).has_all);
        if at.is_none() && block.is_last {
            self.settle(block.stream);
        }
        if let Some(at) = at {
            match self.fields(at, block.is_last, &fields) {
                Ok(()) if block.is_last => self.has_all(at),
                Ok(()) => self.slot(at).wake(),
                Err(Malformed) => self.malformed(at),
            }
        }
        self.buffers.recycle(fields.into_storage());
        Ok(())
    }

    fn fields(&mut self, at: usize, is_last: bool, fields: &Fields) -> Result<(), Malformed> {
        let buffers = self.buffers.clone();
        if self.slot(at).has_head() {
            return if is_last { self.slot(at).trailers(answer::trailers(fields)?) } else { Err(Malformed) };
        }
        self.receiver.order.chatter.asked();
        self.receiver.has_answered = true;
        self.slot(at).head(fields, is_last, &buffers)
    }

    fn reset_by_endpoint(&mut self, stream: u32, payload: &[u8]) -> Result<(), Reason> {
        let code = Reason::from(frame::number(payload)?);
        self.settle(stream);
        if let Some(at) = self.find_or_pass(stream)? {
            self.fail(at, if code == Reason::REFUSED_STREAM { StreamError::Refused } else { StreamError::Reset(code) });
        }
        Ok(())
    }

    fn settings(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        let Some(settings) = frame::settings_of(head, payload)? else { return Ok(()) };
        let mut window = None;
        for (name, value) in settings {
            match name {
                setting::HEADER_TABLE_SIZE => self.resizes |= value < 4_096,
                setting::MAX_CONCURRENT_STREAMS => self.allow(value),
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                // Of what perch does not send, or of extensions. Frames are never longer than what all have to take.
                _ => {}
            }
        }
        // Once for all that were said: each is a walk over the streams.
        if let Some(window) = window {
            self.resize_windows(window).ok_or(Reason::FLOW_CONTROL_ERROR)?;
        }
        frame::whole(kind::SETTINGS, flag::ACK, 0, &[], self.out());
        Ok(())
    }

    fn ping(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        let payload: [u8; 8] = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
        if head.has(flag::ACK) {
            self.receiver.is_ponged |= payload == ARE_YOU_THERE;
        } else {
            frame::ping(flag::ACK, payload, self.out());
        }
        Ok(())
    }

    fn goaway(&mut self, payload: &[u8]) -> Result<(), Reason> {
        let (last, _) =
            payload.split_first_chunk::<4>().filter(|_| payload.len() >= 8).ok_or(Reason::FRAME_SIZE_ERROR)?;
        self.leave(u32::from_be_bytes(*last) & 0x7fff_ffff);
        Ok(())
    }

    fn window_update(&mut self, stream: u32, payload: &[u8]) -> Result<(), Reason> {
        let more = frame::number(payload)? & 0x7fff_ffff;
        if stream == 0 {
            let widened = if more == 0 { Err(Reason::PROTOCOL_ERROR) } else { Ok(self.widen(more)) };
            return widened?.ok_or(Reason::FLOW_CONTROL_ERROR);
        }
        let Some(at) = self.find_or_pass(stream)? else { return Ok(()) };
        if more == 0 {
            self.malformed(at);
        } else if self.widen_stream(at, more).is_none() {
            self.reset(at, Reason::FLOW_CONTROL_ERROR, StreamError::Malformed);
        }
        Ok(())
    }
}
