//! Blocks of fields, put together from the frames that they come in (RFC 9113 sections 4.3, 6.2 and 6.10).

use std::borrow::Cow;

use h2::Reason;

use super::frame::{self, flag, kind};

/// Frames of one block beyond what its bytes need: who sends more sends hardly any bytes with each.
const SPARE_FRAMES: usize = 16;

/// The block that is being received.
#[derive(Debug)]
pub(in crate::proxy) struct Blocks {
    most: usize,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    stream: u32,
    is_last: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// A whole block.
#[derive(Debug)]
pub(in crate::proxy) struct Block<'b> {
    pub(in crate::proxy) stream: u32,
    /// Nothing of its stream follows.
    pub(in crate::proxy) is_last: bool,
    pub(in crate::proxy) bytes: Cow<'b, [u8]>,
}

impl Blocks {
    /// Of heads of at most so many bytes.
    pub(in crate::proxy) fn new(head_bytes: usize) -> Self {
        // Huffman makes text longer at most when it is not text.
        Self { most: 2 * head_bytes, begun: None }
    }

    /// Whether this frame may come now: within a block there is nothing else.
    pub(in crate::proxy) fn may_come(&self, head: frame::Head) -> bool {
        self.begun.as_ref().is_none_or(|begun| head.kind == kind::CONTINUATION && head.stream == begun.stream)
    }

    /// Takes in HEADERS or CONTINUATION. `None`: the block goes on.
    pub(in crate::proxy) fn receive<'b>(
        &mut self,
        head: frame::Head,
        payload: &'b [u8],
    ) -> Result<Option<Block<'b>>, Reason> {
        if head.kind == kind::CONTINUATION {
            return Ok(self.go_on(head, payload)?.map(|Begun { stream, is_last, bytes, .. }| Block {
                stream,
                is_last,
                bytes: bytes.into(),
            }));
        }
        let mut block = frame::unpadded(head, payload)?;
        if head.has(flag::PRIORITY) {
            let (priority, rest) = block.split_at_checked(5).ok_or(Reason::FRAME_SIZE_ERROR)?;
            frame::depends(head.stream, priority)?;
            block = rest;
        }
        let (stream, is_last) = (head.stream, head.has(flag::END_STREAM));
        if head.has(flag::END_HEADERS) {
            return Ok(Some(Block { stream, is_last, bytes: block.into() }));
        }
        self.begun = Some(Begun { stream, is_last, bytes: block.to_vec(), frames: 1 });
        Ok(None)
    }

    fn go_on(&mut self, head: frame::Head, payload: &[u8]) -> Result<Option<Begun>, Reason> {
        let Some(mut begun) = self.begun.take() else { return Err(Reason::PROTOCOL_ERROR) };
        begun.bytes.extend_from_slice(payload);
        begun.frames += 1;
        if begun.bytes.len() > self.most || begun.frames > self.most / frame::MOST + SPARE_FRAMES {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if head.has(flag::END_HEADERS) {
            return Ok(Some(begun));
        }
        self.begun = Some(begun);
        Ok(None)
    }
}
