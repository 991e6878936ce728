//! What may come when, whoever sends it: SETTINGS first, blocks of fields without anything between, streams and the
//! connection told apart, and no more of what brings nothing than there is patience for.

use h2::Reason;

use super::block::Blocks;
use super::budget::Chatter;
use super::frame::{self, flag, kind};

/// One side's frames so far.
#[derive(Debug)]
pub(in crate::proxy) struct Order {
    is_set: bool,
    pub(in crate::proxy) blocks: Blocks,
    pub(in crate::proxy) chatter: Chatter,
}

impl Order {
    /// Of a side whose heads have at most so many bytes.
    pub(in crate::proxy) fn new(head_bytes: usize) -> Self {
        Self { is_set: false, blocks: Blocks::new(head_bytes), chatter: Chatter::new() }
    }

    /// An error if this frame may not come now; it ends the connection. `written`: the bytes that went to the sender so far.
    pub(in crate::proxy) fn check(&mut self, head: frame::Head, payload: &[u8], written: u64) -> Result<(), Reason> {
        // The preface is, or ends with, SETTINGS (section 3.4).
        if !self.is_set && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.is_set = true;
        let brings = if head.kind == kind::DATA { frame::unpadded(head, payload)? } else { payload };
        let is_empty = brings.is_empty() && !(head.kind == kind::DATA && head.has(flag::END_STREAM));
        if !self.chatter.may(head.kind, is_empty, written) {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if !self.blocks.may_come(head) || head.is_misplaced() {
            return Err(Reason::PROTOCOL_ERROR);
        }
        Ok(())
    }
}
