//! What a client says, frame by frame: each is checked by RFC 9113 section 6 and changes the streams, or ends one of them
//! or the connection. New requests are left in `accepted` for the driver.

use std::collections::VecDeque;

use h2::Reason;

use super::block::Block;
use super::frame::{self, flag, kind, setting};
use super::head::{self, Head};
use super::hpack::{Decoder, Fields};
use super::order::Order;
use super::streams::Streams;
use crate::proxy::buffer::append;
use crate::{metrics, reason};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is known of the client's side of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Bytes of all fields of a head (SETTINGS_MAX_HEADER_LIST_SIZE), and streams at a time.
    head_bytes: usize,
    most_streams: usize,
    /// Bytes of the preface that are here.
    greeted: usize,
    order: Order,
    decoder: Decoder,
    /// The highest stream.
    pub(super) last: u32,
    /// Streams beyond this one are passed over: the client was told.
    pub(super) goaway: Option<u32>,
    /// Requests that have just come, and their slots.
    pub(super) accepted: Vec<(Head, usize)>,
    /// Answers to PINGs, the last few.
    pub(super) pongs: VecDeque<[u8; 8]>,
    /// The client begins no more streams.
    pub(super) is_leaving: bool,
}

impl Receiver {
    pub(super) fn new(head_bytes: usize, most_streams: usize) -> Self {
        Self {
            head_bytes,
            most_streams,
            greeted: 0,
            order: Order::new(head_bytes),
            decoder: Decoder::default(),
            last: 0,
            goaway: None,
            accepted: Vec::new(),
            pongs: VecDeque::new(),
            is_leaving: false,
        }
    }

    fn is_passed_over(&self, stream: u32) -> bool {
        self.goaway.is_some_and(|last| stream > last)
    }
}

impl Streams {
    /// Takes in whole frames; how many bytes that was. `written`: what went to the client so far. An error ends the
    /// connection.
    pub(super) fn receive(&mut self, bytes: &[u8], written: u64) -> Result<usize, Reason> {
        let mut used = 0;
        if let Some(missing) = PREFACE.get(self.receiver.greeted..).filter(|missing| !missing.is_empty()) {
            used = missing.len().min(bytes.len());
            if bytes.get(..used) != missing.get(..used) {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.receiver.greeted += used;
        }
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            let Some((head, payload)) = frame::next(rest)? else { return Ok(used) };
            used += frame::HEAD + head.length;
            self.frame(head, payload, written)?;
        }
    }

    fn frame(&mut self, head: frame::Head, payload: &[u8], written: u64) -> Result<(), Reason> {
        self.receiver.order.check(head, payload, written)?;
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS | kind::CONTINUATION => match self.receiver.order.blocks.receive(head, payload)? {
                Some(block) => self.block(&block),
                None => Ok(()),
            },
            kind::PRIORITY => frame::depends(head.stream, payload),
            kind::RST_STREAM => self.reset_stream(head.stream, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(Reason::PROTOCOL_ERROR),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY if payload.len() < 8 => Err(Reason::FRAME_SIZE_ERROR),
            kind::GOAWAY => {
                self.receiver.is_leaving = true;
                Ok(())
            }
            kind::WINDOW_UPDATE => self.window_update(head.stream, payload),
            // Of an extension (section 5.5).
            _ => Ok(()),
        }
    }

    fn data(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        self.arrived(payload.len())?;
        let data = frame::unpadded(head, payload)?;
        let Some(at) = self.find_or_pass(head.stream, payload.len())? else { return Ok(()) };
        let slot = self.slot(at);
        let is_last = head.has(flag::END_STREAM);
        slot.room -= i64::try_from(payload.len()).unwrap_or(i64::MAX);
        let left = slot.left.map(|left| left.checked_sub(data.len() as u64));
        let mistake = if slot.has_all {
            Some(Reason::STREAM_CLOSED)
        } else if slot.room < 0 {
            Some(Reason::FLOW_CONTROL_ERROR)
        } else if left == Some(None) || is_last && left.flatten().is_some_and(|left| left > 0) {
            // Not the length that was declared (section 8.1.1).
            Some(Reason::PROTOCOL_ERROR)
        } else {
            None
        };
        if let Some(code) = mistake {
            self.release(payload.len());
            return self.mistake(at, code);
        }
        slot.left = left.flatten();
        append(data, &mut slot.received);
        self.release_stream(at, payload.len() - data.len());
        if is_last {
            self.has_all(at, None);
        }
        self.slot(at).wake();
        Ok(())
    }

    /// An open stream's slot. `None`: what came is of no interest any more.
    fn find_or_pass(&mut self, stream: u32, came: usize) -> Result<Option<usize>, Reason> {
        if let Some(at) = self.find(stream) {
            return Ok(Some(at));
        }
        self.is_known(stream)?;
        self.release(came);
        if self.was_left_behind(stream) || self.receiver.is_passed_over(stream) {
            return Ok(None);
        }
        self.refuse(stream, Reason::STREAM_CLOSED).map(|()| None)
    }

    /// An error if the client never began this stream (section 5.1: idle).
    fn is_known(&self, stream: u32) -> Result<(), Reason> {
        if stream.is_multiple_of(2) || stream > self.receiver.last { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) }
    }

    /// A whole head, or trailers.
    fn block(&mut self, block: &Block<'_>) -> Result<(), Reason> {
        let Block { stream, is_last, .. } = *block;
        // Whatever becomes of it, the connection's table has to follow.
        let mut fields = Fields::new(self.scratch(), self.receiver.head_bytes);
        self.receiver.decoder.decode(&block.bytes, &mut fields).map_err(|_| Reason::COMPRESSION_ERROR)?;
        if let Some(at) = self.find(stream) {
            return self.trailers(at, is_last, fields);
        }
        if stream.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if stream <= self.receiver.last {
            let is_expected = self.was_left_behind(stream) || self.receiver.is_passed_over(stream);
            return if is_expected { Ok(()) } else { Err(Reason::STREAM_CLOSED) };
        }
        self.receiver.last = stream;
        if self.receiver.is_passed_over(stream) {
            return Ok(());
        }
        if self.open >= self.receiver.most_streams {
            return self.refuse(stream, Reason::REFUSED_STREAM);
        }
        let Ok(head) = Head::read(fields, is_last) else {
            metrics::rejected(reason::Reason::H2Malformed);
            return self.refuse(stream, Reason::PROTOCOL_ERROR);
        };
        self.receiver.order.chatter.asked();
        let at = self.begin(stream, is_last, head.length);
        self.receiver.accepted.push((head, at));
        Ok(())
    }

    fn trailers(&mut self, at: usize, is_last: bool, fields: Fields) -> Result<(), Reason> {
        let slot = self.slot(at);
        if slot.has_all {
            return self.mistake(at, Reason::STREAM_CLOSED);
        }
        let is_whole = is_last && slot.left.is_none_or(|left| left == 0);
        if !is_whole || fields.is_too_large() || !head::are_trailers(&fields) {
            return self.mistake(at, Reason::PROTOCOL_ERROR);
        }
        self.has_all(at, Some(fields));
        self.slot(at).wake();
        Ok(())
    }

    fn reset_stream(&mut self, stream: u32, payload: &[u8]) -> Result<(), Reason> {
        let code = frame::number(payload)?;
        self.is_known(stream)?;
        self.find(stream).map_or(Ok(()), |at| self.reset_by_client(at, code.into()))
    }

    fn settings(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        let Some(settings) = frame::settings_of(head, payload)? else { return Ok(()) };
        let mut window = None;
        for (name, value) in settings {
            match name {
                setting::HEADER_TABLE_SIZE => self.resizes |= value < 4_096,
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                // Of what perch does not send, or of extensions. Frames are never longer than what all have to take.
                _ => {}
            }
        }
        // Once for all that were said: each is a walk over the streams.
        if let Some(window) = window {
            self.resize_windows(window)?;
        }
        frame::whole(kind::SETTINGS, flag::ACK, 0, &[], self.out());
        Ok(())
    }

    fn ping(&mut self, head: frame::Head, payload: &[u8]) -> Result<(), Reason> {
        let payload = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
        if head.has(flag::ACK) {
            // Perch asks two things at most at a time.
            self.receiver.pongs.truncate(1);
            self.receiver.pongs.push_front(payload);
        } else {
            frame::ping(flag::ACK, payload, self.out());
        }
        Ok(())
    }

    fn window_update(&mut self, stream: u32, payload: &[u8]) -> Result<(), Reason> {
        let more = frame::number(payload)? & 0x7fff_ffff;
        if stream == 0 {
            return if more == 0 { Err(Reason::PROTOCOL_ERROR) } else { self.widen(more) };
        }
        self.is_known(stream)?;
        let Some(at) = self.find(stream) else { return Ok(()) };
        if more == 0 {
            return self.mistake(at, Reason::PROTOCOL_ERROR);
        }
        self.widen_stream(at, i64::from(more)).map_or_else(|| self.mistake(at, Reason::FLOW_CONTROL_ERROR), Ok)
    }
}
