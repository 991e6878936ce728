//! A request's head in HTTP/1, which perch wrote, as a block of fields for HTTP/2.

use crate::decide::fields::{self, Field};
use crate::proxy::http1::body::Framing;
use crate::proxy::http1::head::MAX_FIELDS;
use crate::proxy::http2::hpack::encoder;

/// What its head says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) framing: Framing,
    pub(super) is_head: bool,
}

/// Encodes a whole head. `None`: it cannot be said in HTTP/2.
pub(super) fn encode(head: &[u8], is_tls: bool, out: &mut Vec<u8>) -> Option<Encoded> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS + 16];
    let mut parsed = httparse::Request::new(&mut slots);
    parsed.parse(head).ok()?;
    let (method, path) = (parsed.method?, parsed.path?);
    let is_host = |header: &&httparse::Header<'_>| fields::classify(header.name.as_bytes()) == Field::Host;
    let host = fields::trim(parsed.headers.iter().find(is_host)?.value);
    if !is_visible(path.as_bytes()) || !is_visible(host) {
        return None;
    }
    encoder::request(method.as_bytes(), if is_tls { b"https" } else { b"http" }, host, path.as_bytes(), out);
    let mut framing = Framing::Empty;
    for header in parsed.headers.iter() {
        let (name, value) = (header.name.as_bytes(), fields::trim(header.value));
        match fields::classify(name) {
            Field::Host | Field::Connection | Field::HopByHop | Field::Upgrade => continue,
            Field::TransferEncoding => {
                framing = Framing::Chunked;
                continue;
            }
            Field::ContentLength => framing = Framing::Length(fields::content_length(value)?),
            _ => {}
        }
        encoder::field(name, value, out);
    }
    Some(Encoded { framing, is_head: method == "HEAD" })
}

fn is_visible(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_graphic)
}
