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
    let mut kinds = [Field::Other; MAX_FIELDS + 16];
    let (mut host, mut framing) = (None, Framing::Empty);
    for (header, kind) in parsed.headers.iter_mut().zip(&mut kinds) {
        header.value = fields::trim(header.value);
        *kind = fields::classify(header.name.as_bytes());
        match kind {
            Field::Host => host = Some(header.value),
            Field::TransferEncoding => framing = Framing::Chunked,
            Field::ContentLength => framing = Framing::Length(fields::content_length(header.value)?),
            _ => {}
        }
    }
    let host = host.filter(|host| is_visible(host) && is_visible(path.as_bytes()))?;
    encoder::request(method.as_bytes(), is_tls, out);
    encoder::field(b":authority", host, out);
    encoder::field(b":path", path.as_bytes(), out);
    for (header, kind) in parsed.headers.iter().zip(kinds) {
        let is_of_connection = matches!(
            kind,
            Field::Host | Field::TransferEncoding | Field::Connection | Field::HopByHop | Field::Upgrade
        );
        if !is_of_connection {
            encoder::field(header.name.as_bytes(), header.value, out);
        }
    }
    Some(Encoded { framing, is_head: method == "HEAD" })
}

fn is_visible(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_graphic)
}
