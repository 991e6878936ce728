//! Frames of HTTP/2 (RFC 9113 sections 4.1 and 6): the head that each begins with, and the small ones that perch sends.

/// Bytes of a frame's head.
pub(super) const HEAD: usize = 9;
/// The longest payload that either side may send: SETTINGS_MAX_FRAME_SIZE's least value and default.
pub(super) const MOST: usize = 16_384;

/// Types.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// Flags.
pub(super) mod flag {
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Settings (section 6.5.2, RFC 8441 section 3).
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in super::super) const ENABLE_PUSH: u16 = 2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(in super::super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// `None`: not all of it is here.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s, t, u, v, ..] = *bytes else { return None };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The highest bit is reserved: ignored.
        let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
        Some(Self { length, kind, flags, stream })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a head. `length` is at most [`MOST`].
pub(super) fn head(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [.., a, b, c] = length.to_be_bytes();
    let [s, t, u, v] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, s, t, u, v]);
}

/// Appends a whole frame.
pub(super) fn whole(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    head(payload.len(), kind, flags, stream, out);
    out.extend_from_slice(payload);
}

/// Appends a block of fields in as many frames as it takes.
pub(super) fn headers(stream: u32, block: &[u8], ends_stream: bool, out: &mut Vec<u8>) {
    let mut flags = if ends_stream { flag::END_STREAM } else { 0 };
    let mut kind = kind::HEADERS;
    let mut rest = block;
    loop {
        let (part, more) = rest.split_at(rest.len().min(MOST));
        rest = more;
        if rest.is_empty() {
            flags |= flag::END_HEADERS;
        }
        whole(kind, flags, stream, part, out);
        if rest.is_empty() {
            return;
        }
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

/// Appends DATA in as many frames as it takes; one if there is none.
pub(super) fn data(stream: u32, bytes: &[u8], ends_stream: bool, out: &mut Vec<u8>) {
    let mut rest = bytes;
    loop {
        let (part, more) = rest.split_at(rest.len().min(MOST));
        rest = more;
        let is_last = rest.is_empty();
        whole(kind::DATA, if is_last && ends_stream { flag::END_STREAM } else { 0 }, stream, part, out);
        if is_last {
            return;
        }
    }
}

pub(super) fn reset(stream: u32, code: h2::Reason, out: &mut Vec<u8>) {
    whole(kind::RST_STREAM, 0, stream, &u32::from(code).to_be_bytes(), out);
}

pub(super) fn window_update(stream: u32, more: u32, out: &mut Vec<u8>) {
    whole(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes(), out);
}

pub(super) fn ping(flags: u8, payload: [u8; 8], out: &mut Vec<u8>) {
    whole(kind::PING, flags, 0, &payload, out);
}

pub(super) fn goaway(last: u32, code: h2::Reason, out: &mut Vec<u8>) {
    head(8, kind::GOAWAY, 0, 0, out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&u32::from(code).to_be_bytes());
}

/// The payload of SETTINGS.
pub(super) fn settings(list: &[(u16, u32)], out: &mut Vec<u8>) {
    head(list.len() * 6, kind::SETTINGS, 0, 0, out);
    for (name, value) in list {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let mut out = Vec::new();
        head(MOST, kind::DATA, flag::END_STREAM, 77, &mut out);

        let read = Head::read(&out).unwrap();

        assert_eq!(read, Head { length: MOST, kind: kind::DATA, flags: flag::END_STREAM, stream: 77 });
        assert_eq!(Head::read(&out[..8]), None);
    }

    #[test]
    fn a_large_block_goes_on_in_continuations() {
        let mut out = Vec::new();
        headers(1, &[7; 2 * MOST + 1], true, &mut out);

        let mut frames = Vec::new();
        let mut rest = &out[..];
        while let Some(head) = Head::read(rest) {
            frames.push((head.kind, head.flags, head.length));
            rest = &rest[HEAD + head.length..];
        }

        let last = (kind::CONTINUATION, flag::END_HEADERS, 1);
        assert_eq!(frames, [(kind::HEADERS, flag::END_STREAM, MOST), (kind::CONTINUATION, 0, MOST), last]);
    }
}
