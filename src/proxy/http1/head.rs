//! HTTP/1 heads: where they end, and strict reading of a request's (RFC 9112 sections 2 to 5; reliability.md A).
//!
//! httparse does the parsing; what it lets pass and a proxy must not (a bare LF, obs-fold) is looked for first, and what
//! it refuses is named by a slow second look that only bad requests pay for.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use memchr::{memchr, memchr_iter, memmem};

use super::body::is_token;
use crate::config::ListenerLimits;
use crate::reason::Reason;

/// Most fields of a head, unless a listener's own limit is higher.
pub(crate) const MAX_FIELDS: usize = 256;

/// Bytes of empty lines that are skipped before a request: two lines (RFC 9112 section 2.2).
pub(crate) const MAX_BLANK: usize = 4;

/// A parsed request line with its fields.
#[derive(Debug)]
pub(crate) struct RequestLine<'b> {
    pub(crate) method: &'b str,
    pub(crate) target: &'b str,
    /// HTTP/1.0: no chunked coding, no 1xx, no keep-alive unless asked for.
    pub(crate) is_http10: bool,
}

/// The end of the head that starts at 0, if it is there: the position after its empty line. `seen` bytes were searched
/// before without finding it.
pub(crate) fn find_end(bytes: &[u8], seen: usize) -> Option<usize> {
    static END: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));
    let from = seen.saturating_sub(3);
    let tail = bytes.get(from..)?;
    if let Some(at) = END.find(tail) {
        return Some(from + at + 4);
    }
    // Or one that is refused later, for a bare LF, and must not be waited for until then.
    memchr_iter(b'\n', tail).find_map(|lf| match tail.get(lf + 1..) {
        Some([b'\n', ..]) => Some(from + lf + 2),
        Some([b'\r', b'\n', ..]) => Some(from + lf + 3),
        _ => None,
    })
}

/// Whether a line ends with a bare LF or goes on in the next one (obs-fold). Looks at each byte without a branch, which
/// costs a tenth of finding the lines one by one.
pub(crate) fn has_odd_lines(head: &[u8]) -> bool {
    let (Some(after_first), Some(after_second)) = (head.get(1..), head.get(2..)) else { return !head.is_empty() };
    let odd_inside = head.iter().zip(after_first).zip(after_second).fold(0, |odd, ((before, at), after)| {
        odd | u8::from(*at == b'\n')
            & (u8::from(*before != b'\r') | u8::from(*after == b' ') | u8::from(*after == b'\t'))
    });
    let odd_at_the_end = head.last() == Some(&b'\n') && !head.ends_with(b"\r\n");
    odd_inside != 0 || head.first() == Some(&b'\n') || odd_at_the_end
}

/// How many bytes of empty lines stand before a request (RFC 9112 section 2.2): at most two are skipped.
pub(crate) fn leading_blank(bytes: &[u8]) -> usize {
    [b"\r\n\r\n".as_slice(), b"\r\n"].iter().find(|p| bytes.starts_with(p)).map_or(0, |p| p.len())
}

/// Whether the bytes so far can still become a head within the limits.
pub(crate) fn may_grow(bytes: &[u8], limits: &ListenerLimits) -> Result<(), Reason> {
    // Told apart at once, before a whole head: TLS records start with 22, 3.
    if let [22, 3, ..] = bytes {
        return Err(Reason::TlsOnPlain);
    }
    let line = memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.target_bytes.saturating_add(64) {
        let is_line = bytes.iter().take(32).all(|b| (b' '..=b'~').contains(b));
        return Err(if is_line { Reason::TargetLength } else { Reason::NotHttp });
    }
    if bytes.len() > limits.head_bytes {
        return Err(Reason::HeadSize);
    }
    Ok(())
}

/// Parses a complete head (as [`find_end`] found it) and hands line and fields to `then`.
pub(crate) fn parse_request<T>(
    head: &[u8],
    limits: &ListenerLimits,
    then: impl FnOnce(RequestLine<'_>, &[httparse::Header<'_>]) -> Result<T, Reason>,
) -> Result<T, Reason> {
    may_grow(head, limits)?;
    // More empty lines than were skipped: httparse would pass over any number.
    if let [b'\r' | b'\n', ..] = head {
        return Err(Reason::RequestLine);
    }
    if has_odd_lines(head) {
        return Err(name_odd_line(head));
    }
    let mut slots = [MaybeUninit::uninit(); MAX_FIELDS];
    // Only where a listener was given more than is usual.
    let mut many = if limits.fields > MAX_FIELDS { vec![MaybeUninit::uninit(); limits.fields + 1] } else { Vec::new() };
    let slots: &mut [_] = if many.is_empty() { &mut slots } else { &mut many };
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, slots) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(Reason::RequestLine),
        Err(error) => return Err(name_error(head, error)),
    }
    if request.headers.len() > limits.fields {
        return Err(Reason::FieldCount);
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Reason::RequestLine);
    };
    if target.len() > limits.target_bytes {
        return Err(Reason::TargetLength);
    }
    then(RequestLine { method, target, is_http10: minor == 0 }, request.headers)
}

/// What is odd about the first odd line.
fn name_odd_line(head: &[u8]) -> Reason {
    let is_bare = |lf: usize| lf == 0 || head.get(lf - 1) != Some(&b'\r');
    let is_folded = |lf: usize| matches!(head.get(lf + 1), Some(b' ' | b'\t'));
    match memchr_iter(b'\n', head).find(|lf| is_bare(*lf) || is_folded(*lf)) {
        Some(lf) if !is_bare(lf) => Reason::ObsFold,
        _ => Reason::BareLf,
    }
}

/// Which rule a head breaks that httparse refused.
fn name_error(head: &[u8], error: httparse::Error) -> Reason {
    match error {
        httparse::Error::TooManyHeaders => return Reason::FieldCount,
        httparse::Error::HeaderValue => return Reason::FieldValue,
        httparse::Error::HeaderName => return Reason::FieldName,
        _ => {}
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    if !line.iter().all(|b| (b' '..=0xfe).contains(b) && *b != 0x7f) {
        return if line.contains(&b'\t') { Reason::RequestLine } else { Reason::NotHttp };
    }
    let mut words = line.split(|b| *b == b' ');
    let (method, version) = (words.next().unwrap_or_default(), words.next_back().unwrap_or_default());
    match version.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1' => {
            Reason::Version
        }
        Some(_) => Reason::RequestLine,
        None if is_token(method) => Reason::RequestLine,
        None => Reason::NotHttp,
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn limits() -> ListenerLimits {
        ListenerLimits { head_bytes: 4096, target_bytes: 100, fields: 5, ..ListenerLimits::default() }
    }

    fn reason(head: &[u8]) -> Option<Reason> {
        parse_request(head, &limits(), |_, _| Ok(())).err()
    }

    #[test]
    fn a_head_is_found_however_it_was_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";

        for cut in 0..head.len() {
            let first = find_end(&head[..cut], 0);
            let end = first.or_else(|| find_end(head, cut));
            assert_eq!(end, Some(head.len() - 4), "cut at {cut}");
        }
    }

    #[test]
    fn bad_heads_are_named() {
        for (head, expected) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Reason::BareLf),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Reason::BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", Reason::ObsFold),
            ("GET /\r\n\r\n", Reason::RequestLine),
            ("GET\t/ HTTP/1.1\r\n\r\n", Reason::RequestLine),
            ("GET / HTTP/1.1x\r\n\r\n", Reason::RequestLine),
            ("GET / x HTTP/1.1\r\n\r\n", Reason::RequestLine),
            ("GET / HTTP/2.0\r\n\r\n", Reason::Version),
            ("GET / HTTP/3.0\r\n\r\n", Reason::Version),
            ("\x01\x02\x03\r\n\r\n", Reason::NotHttp),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", Reason::FieldName),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Reason::FieldName),
            ("GET / HTTP/1.1\r\n[a]: b\r\n\r\n", Reason::FieldName),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Reason::FieldName),
            ("GET / HTTP/1.1\r\na: b\x00c\r\n\r\n", Reason::FieldValue),
            ("GET / HTTP/1.1\r\na: b\rc\r\n\r\n", Reason::FieldValue),
            ("GET / HTTP/1.1\r\na: b\x01\r\n\r\n", Reason::FieldValue),
            ("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\n\r\n", Reason::FieldCount),
        ] {
            assert_eq!(reason(head.as_bytes()), Some(expected), "{head:?}");
        }
        assert_eq!(reason(&[22, 3, 1, 0, 5, b'\r', b'\n', b'\r', b'\n']), Some(Reason::TlsOnPlain));
        assert_eq!(reason(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), None);
    }

    #[test]
    fn a_head_has_no_empty_lines_in_front() {
        assert_eq!(reason(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Reason::RequestLine));
        assert_eq!(reason(b"\r\n\r\n"), Some(Reason::RequestLine));
        assert_eq!(reason(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Reason::RequestLine));
    }

    #[test]
    fn limits_hit_while_reading() {
        let long_target = format!("GET /{}", "a".repeat(300));
        let long_field = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(5000));

        assert_eq!(may_grow(long_target.as_bytes(), &limits()), Err(Reason::TargetLength));
        assert_eq!(may_grow(long_field.as_bytes(), &limits()), Err(Reason::HeadSize));
        assert_eq!(may_grow(b"GET / HT", &limits()), Ok(()));
    }

    #[test]
    fn an_odd_line_is_seen_wherever_it_is() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nA-field-of-some-length: and a value that is longer still\r\n\r\n";
        assert!(!has_odd_lines(head));

        for cr in head.iter().enumerate().filter(|(_, byte)| **byte == b'\r').map(|(at, _)| at) {
            let mut bare = head.to_vec();
            bare.remove(cr);
            assert!(has_odd_lines(&bare), "no CR at {cr}");
            for blank in [b' ', b'\t'] {
                let mut folded = head.to_vec();
                folded.insert(cr + 2, blank);
                assert!(has_odd_lines(&folded), "folded at {cr}");
            }
        }
        for (bytes, expected) in [("", false), ("\n", true), ("\n\r\n", true), ("\r\n", false), ("a\n", true)] {
            assert_eq!(has_odd_lines(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn two_empty_lines_may_stand_before_a_request() {
        assert_eq!(leading_blank(b"\r\n\r\nGET"), 4);
        assert_eq!(leading_blank(b"\r\nGET"), 2);
        assert_eq!(leading_blank(b"GET"), 0);
    }
}
