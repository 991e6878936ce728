//! Frames of HTTP/2 (RFC 9113 sections 4.1 and 6): the head that each begins with, what of them is checked whoever sent
//! them, and how perch writes them.

use h2::Reason;

use crate::proxy::buffer::append;

/// Bytes of a frame's head.
pub(in crate::proxy) const HEAD: usize = 9;
/// The longest payload that either side may send: SETTINGS_MAX_FRAME_SIZE's least value and default.
pub(in crate::proxy) const MOST: usize = 16_384;

/// Types.
pub(in crate::proxy) mod kind {
    pub(in crate::proxy) const DATA: u8 = 0;
    pub(in crate::proxy) const HEADERS: u8 = 1;
    pub(in crate::proxy) const PRIORITY: u8 = 2;
    pub(in crate::proxy) const RST_STREAM: u8 = 3;
    pub(in crate::proxy) const SETTINGS: u8 = 4;
    pub(in crate::proxy) const PUSH_PROMISE: u8 = 5;
    pub(in crate::proxy) const PING: u8 = 6;
    pub(in crate::proxy) const GOAWAY: u8 = 7;
    pub(in crate::proxy) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::proxy) const CONTINUATION: u8 = 9;
}

/// Flags.
pub(in crate::proxy) mod flag {
    pub(in crate::proxy) const END_STREAM: u8 = 0x1;
    pub(in crate::proxy) const ACK: u8 = 0x1;
    pub(in crate::proxy) const END_HEADERS: u8 = 0x4;
    pub(in crate::proxy) const PADDED: u8 = 0x8;
    pub(in crate::proxy) const PRIORITY: u8 = 0x20;
}

/// Settings (section 6.5.2, RFC 8441 section 3).
pub(in crate::proxy) mod setting {
    pub(in crate::proxy) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in crate::proxy) const ENABLE_PUSH: u16 = 2;
    pub(in crate::proxy) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::proxy) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::proxy) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::proxy) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(in crate::proxy) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Head {
    pub(in crate::proxy) length: usize,
    pub(in crate::proxy) kind: u8,
    pub(in crate::proxy) flags: u8,
    pub(in crate::proxy) stream: u32,
}

impl Head {
    /// `None`: not all of it is here.
    pub(in crate::proxy) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s, t, u, v, ..] = *bytes else { return None };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The highest bit is reserved: ignored.
        let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
        Some(Self { length, kind, flags, stream })
    }

    pub(in crate::proxy) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// On stream 0 what is of a stream, or on a stream what is of the connection.
    pub(in crate::proxy) fn is_misplaced(&self) -> bool {
        match self.kind {
            kind::DATA
            | kind::HEADERS
            | kind::PRIORITY
            | kind::RST_STREAM
            | kind::PUSH_PROMISE
            | kind::CONTINUATION => self.stream == 0,
            kind::SETTINGS | kind::PING | kind::GOAWAY => self.stream != 0,
            _ => false,
        }
    }
}

/// The frame that `bytes` begin with. `None`: not all of it is here.
pub(in crate::proxy) fn next(bytes: &[u8]) -> Result<Option<(Head, &[u8])>, Reason> {
    let Some(head) = Head::read(bytes) else { return Ok(None) };
    if head.length > MOST {
        return Err(Reason::FRAME_SIZE_ERROR);
    }
    Ok(bytes.get(HEAD..HEAD + head.length).map(|payload| (head, payload)))
}

/// The payload without its padding (section 6.1).
pub(in crate::proxy) fn unpadded(head: Head, payload: &[u8]) -> Result<&[u8], Reason> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(Reason::FRAME_SIZE_ERROR)?;
    let kept = rest.len().checked_sub(usize::from(*padding)).ok_or(Reason::PROTOCOL_ERROR)?;
    Ok(rest.get(..kept).unwrap_or_default())
}

/// Priorities are passed over, but a stream cannot depend on itself (RFC 7540 section 5.3.1).
pub(in crate::proxy) fn depends(stream: u32, priority: &[u8]) -> Result<(), Reason> {
    let [a, b, c, d, _] = *priority else { return Err(Reason::FRAME_SIZE_ERROR) };
    let on = u32::from_be_bytes([a & 0x7f, b, c, d]);
    if on == stream { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) }
}

/// The only number of a payload: what RST_STREAM and WINDOW_UPDATE are about.
pub(in crate::proxy) fn number(payload: &[u8]) -> Result<u32, Reason> {
    Ok(u32::from_be_bytes(payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?))
}

/// What SETTINGS say, their values checked (section 6.5.2). `None`: it is an answer to ours.
pub(in crate::proxy) fn settings_of(
    head: Head,
    payload: &[u8],
) -> Result<Option<impl Iterator<Item = (u16, u32)> + '_>, Reason> {
    if head.has(flag::ACK) {
        return if payload.is_empty() { Ok(None) } else { Err(Reason::FRAME_SIZE_ERROR) };
    }
    if !payload.len().is_multiple_of(6) {
        return Err(Reason::FRAME_SIZE_ERROR);
    }
    let settings = payload.chunks_exact(6).filter_map(|entry| {
        let [a, b, c, d, e, f] = *entry else { return None };
        Some((u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
    });
    for (name, value) in settings.clone() {
        match name {
            setting::ENABLE_PUSH | setting::ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(Reason::PROTOCOL_ERROR),
            setting::INITIAL_WINDOW_SIZE if i32::try_from(value).is_err() => return Err(Reason::FLOW_CONTROL_ERROR),
            setting::MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => return Err(Reason::PROTOCOL_ERROR),
            _ => {}
        }
    }
    Ok(Some(settings))
}

/// Appends a head. `length` is at most [`MOST`].
pub(in crate::proxy) fn head(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [.., a, b, c] = length.to_be_bytes();
    let [s, t, u, v] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, s, t, u, v]);
}

/// Appends a whole frame.
pub(in crate::proxy) fn whole(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    head(payload.len(), kind, flags, stream, out);
    out.extend_from_slice(payload);
}

/// Appends a block of fields in as many frames as it takes.
pub(in crate::proxy) fn headers(stream: u32, block: &[u8], ends_stream: bool, out: &mut Vec<u8>) {
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
pub(in crate::proxy) fn data(stream: u32, bytes: &[u8], ends_stream: bool, out: &mut Vec<u8>) {
    let mut rest = bytes;
    loop {
        let (part, more) = rest.split_at(rest.len().min(MOST));
        rest = more;
        let is_last = rest.is_empty();
        head(part.len(), kind::DATA, if is_last && ends_stream { flag::END_STREAM } else { 0 }, stream, out);
        append(part, out);
        if is_last {
            return;
        }
    }
}

pub(in crate::proxy) fn reset(stream: u32, code: Reason, out: &mut Vec<u8>) {
    whole(kind::RST_STREAM, 0, stream, &u32::from(code).to_be_bytes(), out);
}

pub(in crate::proxy) fn window_update(stream: u32, more: u32, out: &mut Vec<u8>) {
    whole(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes(), out);
}

pub(in crate::proxy) fn ping(flags: u8, payload: [u8; 8], out: &mut Vec<u8>) {
    whole(kind::PING, flags, 0, &payload, out);
}

pub(in crate::proxy) fn goaway(last: u32, code: Reason, out: &mut Vec<u8>) {
    head(8, kind::GOAWAY, 0, 0, out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&u32::from(code).to_be_bytes());
}

/// The payload of SETTINGS.
pub(in crate::proxy) fn settings(list: &[(u16, u32)], out: &mut Vec<u8>) {
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
