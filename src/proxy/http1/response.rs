//! An endpoint's response head: strict reading, and writing it for an HTTP/1 client.

use std::mem::MaybeUninit;

use super::body::Framing;
use super::head::{MAX_FIELDS, has_odd_lines};
use crate::decide::fields::{self, ConnectionTokens, Field};

/// Bytes of a response head.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;

/// What an endpoint's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The connection may serve another request after this response.
    pub(crate) keeps_alive: bool,
    /// 101 with `Upgrade: websocket` and `Connection: upgrade`.
    pub(crate) is_websocket: bool,
}

/// The endpoint's answer cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadResponse;

/// A parsed head.
#[derive(Debug)]
pub(crate) struct Response<'r, 'b> {
    pub(crate) head: ResponseHead,
    phrase: &'b str,
    headers: &'r [httparse::Header<'b>],
    /// What each of them is: classified once.
    kinds: &'r [Field],
    /// A `Connection` field names others.
    nominates: bool,
}

/// Parses a complete head and hands it to `then`. `is_head` tells that the request was HEAD.
pub(crate) fn parse<T>(
    bytes: &[u8],
    is_head: bool,
    then: impl FnOnce(&Response<'_, '_>) -> T,
) -> Result<T, BadResponse> {
    if has_odd_lines(bytes) {
        return Err(BadResponse);
    }
    let mut slots = [MaybeUninit::uninit(); MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, bytes, &mut slots) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        _ => return Err(BadResponse),
    }
    let (Some(status @ 100..=599), Some(minor)) = (response.code, response.version) else { return Err(BadResponse) };
    let mut kinds = [Field::Other; MAX_FIELDS];
    for (kind, header) in kinds.iter_mut().zip(response.headers.iter()) {
        *kind = fields::classify(header.name.as_bytes());
    }
    let (head, tokens) = read(status, minor == 0, is_head, response.headers, &kinds)?;
    Ok(then(&Response {
        head,
        phrase: response.reason.unwrap_or_default(),
        headers: response.headers,
        kinds: &kinds,
        nominates: tokens.nominates,
    }))
}

fn read(
    status: u16,
    is_http10: bool,
    is_head: bool,
    headers: &[httparse::Header<'_>],
    kinds: &[Field],
) -> Result<(ResponseHead, ConnectionTokens), BadResponse> {
    let mut length = None;
    let mut chunked = false;
    let mut tokens = ConnectionTokens::default();
    let mut upgrades = false;
    for (header, kind) in headers.iter().zip(kinds) {
        match kind {
            Field::ContentLength => {
                let value = fields::content_length(fields::trim(header.value)).ok_or(BadResponse)?;
                if length.is_some_and(|l| l != value) {
                    return Err(BadResponse);
                }
                length = Some(value);
            }
            Field::TransferEncoding => {
                // Exactly one coding, chunked; anything else could be read in two ways (RFC 9112 section 6.3).
                if chunked || is_http10 || !fields::trim(header.value).eq_ignore_ascii_case(b"chunked") {
                    return Err(BadResponse);
                }
                chunked = true;
            }
            Field::Connection => tokens.read(header.value),
            Field::Upgrade => upgrades |= fields::trim(header.value).eq_ignore_ascii_case(b"websocket"),
            _ => {}
        }
    }
    let framing = match status {
        100..=199 | 204 | 304 => Framing::Empty,
        _ if is_head => Framing::Empty,
        _ if chunked => Framing::Chunked,
        _ => length.map_or(Framing::Close, Framing::Length),
    };
    // With both, the coding wins and the connection is done with: an endpoint that sends both may disagree with itself.
    let ambiguous = chunked && length.is_some();
    let keeps_alive =
        framing != Framing::Close && !tokens.close && !ambiguous && (!is_http10 || tokens.keep_alive) && status != 101;
    let is_websocket = status == 101 && upgrades && tokens.upgrade;
    Ok((ResponseHead { status, framing, keeps_alive, is_websocket }, tokens))
}

/// How the client is told where the response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientSide {
    pub(crate) framing: Framing,
    pub(crate) closes: bool,
    pub(crate) is_http10: bool,
}

/// Whether a response field goes on to the client: not of this hop, and not framing, which is written anew.
pub(crate) fn passes(name: &[u8]) -> bool {
    goes_on(fields::classify(name))
}

const fn goes_on(kind: Field) -> bool {
    !matches!(
        kind,
        Field::Connection | Field::HopByHop | Field::TransferEncoding | Field::ContentLength | Field::Upgrade
    )
}

impl<'b> Response<'_, 'b> {
    /// The fields that go on to the client.
    pub(crate) fn passing(&self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        // Empty, and so without an allocation, for all but the rarest endpoints.
        let nominated = if self.nominates { nominated(self.headers) } else { Vec::new() };
        self.headers.iter().zip(self.kinds).filter_map(move |(header, kind)| {
            let name = header.name.as_bytes();
            let passes = goes_on(*kind) && !nominated.iter().any(|n| n.eq_ignore_ascii_case(name));
            passes.then_some((name, header.value))
        })
    }

    /// The length that a bodyless response declares for its representation.
    pub(crate) fn declared_length(&self) -> Option<u64> {
        // Not on 1xx and 204 (RFC 9110 section 8.6).
        if self.head.status < 200 || self.head.status == 204 {
            return None;
        }
        let (header, _) = self.headers.iter().zip(self.kinds).find(|(_, kind)| **kind == Field::ContentLength)?;
        fields::content_length(fields::trim(header.value))
    }
}

/// Writes the head for an HTTP/1 client. `extra` adds whole lines of ours.
pub(crate) fn write(
    response: &Response<'_, '_>,
    side: ClientSide,
    extra: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    let head = response.head;
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(u64::from(head.status), out);
    out.push(b' ');
    out.extend_from_slice(response.phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.passing() {
        line(name, value, out);
    }
    extra(out);
    match side.framing {
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(n) => length_line(n, out),
        // HEAD and 304 keep the length that the endpoint gave (RFC 9110 section 8.6).
        Framing::Empty => {
            if let Some(length) = response.declared_length() {
                length_line(length, out);
            }
        }
        Framing::Close => {}
    }
    if head.is_websocket {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    } else if side.closes {
        out.extend_from_slice(b"connection: close\r\n");
    } else if side.is_http10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Fields that a `Connection` field takes with it.
fn nominated<'h>(headers: &[httparse::Header<'h>]) -> Vec<&'h [u8]> {
    headers
        .iter()
        .filter(|h| fields::classify(h.name.as_bytes()) == Field::Connection)
        .flat_map(|h| fields::elements(h.value))
        .filter(|t| fields::classify(t) == Field::Other && !is_standard_token(t))
        .collect()
}

fn is_standard_token(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive")
}

/// Writes one field line.
pub(crate) fn line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn length_line(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    push_number(n, out);
    out.extend_from_slice(b"\r\n");
}

/// Decimal digits without an allocation.
pub(crate) fn push_number(mut n: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        out.push(b'0' + u8::try_from(n % 10).unwrap_or_default());
        n /= 10;
        if n == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<ResponseHead, BadResponse> {
        parse(text.as_bytes(), false, |response| response.head)
    }

    #[test]
    fn framing_follows_rfc_9112() {
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap().framing, Framing::Length(5));
        assert_eq!(head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().framing, Framing::Chunked);
        assert_eq!(head("HTTP/1.1 200 OK\r\n\r\n").unwrap().framing, Framing::Close);
        assert_eq!(head("HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n").unwrap().framing, Framing::Empty);
        assert_eq!(head("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n").unwrap().framing, Framing::Empty);
    }

    #[test]
    fn an_ambiguous_answer_is_never_followed_by_another_on_its_connection() {
        let both = head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();

        assert_eq!(both.framing, Framing::Chunked);
        assert!(!both.keeps_alive);
    }

    #[test]
    fn answers_that_can_be_read_in_two_ways_are_bad() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert_eq!(head(text), Err(BadResponse), "{text:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let text = "HTTP/1.1 200 OK\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nA: b\r\nContent-Length: 2\r\n\r\n";
        let mut out = Vec::new();
        let side = ClientSide { framing: Framing::Length(2), closes: false, is_http10: false };

        parse(text.as_bytes(), false, |response| write(response, side, |_| {}, &mut out)).unwrap();

        assert_eq!(String::from_utf8(out).unwrap(), "HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 2\r\n\r\n");
    }

    #[test]
    fn a_head_request_keeps_the_declared_length() {
        let mut out = Vec::new();
        let side = ClientSide { framing: Framing::Empty, closes: false, is_http10: false };

        parse(b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", true, |response| {
            assert_eq!(response.head.framing, Framing::Empty);
            write(response, side, |_| {}, &mut out);
        })
        .unwrap();

        assert!(String::from_utf8(out).unwrap().contains("content-length: 77\r\n"));
    }
}
