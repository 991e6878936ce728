//! An endpoint's answer in HTTP/2, checked and written as the head of an HTTP/1 answer.

use http::StatusCode;

use super::slot::Malformed;
use crate::decide::fields;
use crate::proxy::http1::body::Framing;
use crate::proxy::http1::response::{length_line, line, passes, push_number};
use crate::proxy::http2::head::{is_refused, is_text};
use crate::proxy::http2::hpack::Fields;

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u16,
    /// Its `content-length`.
    pub(super) length: Option<u64>,
    is_grpc: bool,
}

impl Answer {
    /// `:status` first and alone, then fields that HTTP/2 has (RFC 9113 sections 8.2 and 8.3.2).
    pub(super) fn read(all: &Fields) -> Result<Self, Malformed> {
        if all.is_too_large() {
            return Err(Malformed);
        }
        let mut rest = all.iter();
        let Some((b":status", &[a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'])) = rest.next() else {
            return Err(Malformed);
        };
        let status = [a, b, c].iter().fold(0, |n, digit| 10 * n + u16::from(digit - b'0'));
        // To switch protocols is not in HTTP/2 (section 8.6).
        if status == 101 {
            return Err(Malformed);
        }
        let (mut length, mut is_grpc) = (None, false);
        for (name, value) in rest {
            // A pseudo field is no token.
            if is_refused(name, value) || !is_text(value) {
                return Err(Malformed);
            }
            match name {
                b"content-length" => {
                    let n = fields::content_length(fields::trim(value)).ok_or(Malformed)?;
                    if length.replace(n).is_some_and(|before| before != n) {
                        return Err(Malformed);
                    }
                }
                b"content-type" => is_grpc |= value.starts_with(b"application/grpc"),
                _ => {}
            }
        }
        Ok(Self { status, length, is_grpc })
    }

    /// The final head comes later.
    pub(super) fn is_interim(self) -> bool {
        self.status < 200
    }

    /// `is_last`: nothing follows the head.
    pub(super) fn framing(self, is_last: bool, is_head_request: bool) -> Framing {
        match (is_head_request || matches!(self.status, 204 | 304), is_last) {
            (true, _) => Framing::Empty,
            (false, true) => Framing::Length(0),
            // gRPC's answer is in the trailers, which a body of known length has no place for.
            (false, false) if self.is_grpc => Framing::Chunked,
            (false, false) => self.length.map_or(Framing::Chunked, Framing::Length),
        }
    }

    /// `framing` is `None` for an interim answer.
    pub(super) fn write(self, all: &Fields, framing: Option<Framing>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(u64::from(self.status), out);
        out.push(b' ');
        let phrase = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        out.extend_from_slice(phrase.unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in all.iter().skip(1).filter(|(name, _)| passes(name)) {
            line(name, value, out);
        }
        match framing {
            Some(Framing::Chunked | Framing::Close) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Some(Framing::Length(n)) => length_line(n, out),
            // What HEAD and 304 say about the body that they do not have.
            Some(Framing::Empty) => self.length.into_iter().for_each(|n| length_line(n, out)),
            None => {}
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Trailers as lines, without those that may not be passed on.
pub(super) fn trailers(all: &Fields) -> Result<Vec<u8>, Malformed> {
    let mut lines = Vec::new();
    for (name, value) in all.iter() {
        if is_refused(name, value) || !is_text(value) {
            return Err(Malformed);
        }
        if fields::may_be_trailer(name) {
            line(name, value, &mut lines);
        }
    }
    if all.is_too_large() { Err(Malformed) } else { Ok(lines) }
}
