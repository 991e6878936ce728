//! A request's head as HTTP/2 has it: pseudo fields first, then the others, in lower case and none of them of a
//! connection (RFC 9113 section 8). What breaks these rules is malformed and never becomes a request.

use super::hpack::Fields;
use crate::decide::fields::{self, Field};
use crate::proxy::http1::body::{TRAILER_BYTES, TRAILER_FIELDS, is_token};

/// A head that is well formed; what it asks for may still be refused.
#[derive(Debug)]
pub(super) struct Head {
    fields: Fields,
    pseudo: Pseudo,
    /// The only `content-length`, if it is one.
    pub(super) length: Option<u64>,
}

/// RFC 9113 section 8.1.1: the stream is reset with PROTOCOL_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Which fields they are, by their place.
#[derive(Debug, Default)]
struct Pseudo {
    count: usize,
    method: Option<usize>,
    scheme: Option<usize>,
    authority: Option<usize>,
    path: Option<usize>,
    protocol: Option<usize>,
}

impl Head {
    pub(super) fn read(fields: Fields, is_all: bool) -> Result<Self, Malformed> {
        let mut pseudo = Pseudo::default();
        let mut length = None;
        let (mut is_connect, mut has_path) = (false, false);
        for (at, (name, value)) in fields.iter().enumerate() {
            if !is_value(value) {
                return Err(Malformed);
            }
            let Some((b':', name)) = name.split_first().map(|(first, rest)| (*first, rest)) else {
                if is_refused(name, value) {
                    return Err(Malformed);
                }
                if name == b"content-length" {
                    // What is not one length is malformed here: whoever counts the body must not read it in another way
                    // than whoever plans the request.
                    let n = fields::content_length(value).ok_or(Malformed)?;
                    if length.replace(n).is_some() {
                        return Err(Malformed);
                    }
                }
                continue;
            };
            let known = match name {
                b"method" => {
                    is_connect = value == b"CONNECT";
                    is_token(value).then_some(&mut pseudo.method)
                }
                b"scheme" => Some(&mut pseudo.scheme),
                b"authority" => value.is_ascii().then_some(&mut pseudo.authority),
                b"path" => {
                    has_path = !value.is_empty() && value.is_ascii();
                    Some(&mut pseudo.path)
                }
                b"protocol" => Some(&mut pseudo.protocol),
                _ => None,
            };
            // Each once, and before all others.
            if pseudo.count != at || known.is_none_or(|known| known.replace(at).is_some()) {
                return Err(Malformed);
            }
            pseudo.count += 1;
        }
        let has_target = has_path && pseudo.scheme.is_some();
        let is_complete = match pseudo.protocol {
            Some(_) => is_connect && has_target,
            None => is_connect || has_target,
        };
        // A body that was declared and does not come must not look whole.
        let is_cut = is_all && length.is_some_and(|n| n > 0);
        if pseudo.method.is_none() || !is_complete || is_cut {
            return Err(Malformed);
        }
        Ok(Self { fields, pseudo, length })
    }

    fn pseudo(&self, at: Option<usize>) -> Option<&str> {
        let (_, value) = self.fields.iter().nth(at?)?;
        std::str::from_utf8(value).ok()
    }

    pub(super) fn method(&self) -> &str {
        self.pseudo(self.pseudo.method).unwrap_or_default()
    }

    /// Empty for a plain CONNECT.
    pub(super) fn path(&self) -> &str {
        self.pseudo(self.pseudo.path).unwrap_or_default()
    }

    pub(super) fn authority(&self) -> Option<&str> {
        self.pseudo(self.pseudo.authority)
    }

    /// An extended CONNECT for WebSocket (RFC 8441).
    pub(super) fn is_websocket(&self) -> bool {
        self.pseudo(self.pseudo.protocol).is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
    }

    /// The fields but the pseudo ones.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.fields.iter().skip(self.pseudo.count)
    }

    pub(super) fn field_count(&self) -> usize {
        self.fields.len() - self.pseudo.count
    }

    /// There were more bytes of fields than the listener takes: some are not here.
    pub(super) fn is_too_large(&self) -> bool {
        self.fields.is_too_large()
    }

    pub(super) fn into_storage(self) -> Vec<u8> {
        self.fields.into_storage()
    }
}

/// A field that HTTP/2 does not have.
pub(in crate::proxy) fn is_refused(name: &[u8], value: &[u8]) -> bool {
    if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
        return true;
    }
    match fields::classify(name) {
        Field::Connection | Field::TransferEncoding | Field::Upgrade => true,
        Field::HopByHop => name != b"trailer",
        Field::Te => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

/// Whether these may be trailers: no more of them than over HTTP/1, as which they may travel on.
pub(super) fn are_trailers(fields: &Fields) -> bool {
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len() + ": \r\n".len()).sum();
    fields.len() <= TRAILER_FIELDS
        && bytes <= TRAILER_BYTES
        && fields.iter().all(|(name, value)| !is_refused(name, value) && is_value(value))
}

/// No control characters, and no white space at the ends (RFC 9113 section 8.2.1), which readers trim or do not.
fn is_value(value: &[u8]) -> bool {
    let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    is_text(value) && !is_blank(value.first()) && !is_blank(value.last())
}

/// No control characters.
pub(in crate::proxy) fn is_text(value: &[u8]) -> bool {
    value.iter().all(|b| matches!(b, b'\t' | b' '..=b'~' | 0x80..))
}

#[cfg(test)]
mod tests {
    use super::super::hpack::{Decoder, encoder};
    use super::*;

    const GOOD: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/b?c")];

    fn read(list: &[(&str, &str)]) -> Result<Head, Malformed> {
        let mut block = Vec::new();
        for (name, value) in list {
            // Not by `field`, which writes lower case only.
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut fields = Fields::new(Vec::new(), 16_384);
        Decoder::default().decode(&block, &mut fields).unwrap();
        Head::read(fields, true)
    }

    #[test]
    fn a_head_says_who_asks_for_what() {
        let head = read(&[&GOOD[..], &[("x", "y"), ("te", "trailers"), ("trailer", "z")]].concat()).unwrap();

        assert_eq!((head.method(), head.path(), head.authority()), ("GET", "/b?c", Some("a")));
        assert_eq!((head.fields().next().unwrap(), head.field_count()), ((&b"x"[..], &b"y"[..]), 3));
        assert!(!head.is_websocket());
    }

    #[test]
    fn an_extended_connect_is_known() {
        let mut list = GOOD.to_vec();
        list[0].1 = "CONNECT";
        assert!(read(&[&list[..], &[(":protocol", "websocket")]].concat()).unwrap().is_websocket());
        assert_eq!(read(&[&GOOD[..], &[(":protocol", "websocket")]].concat()).unwrap_err(), Malformed);
        assert_eq!(read(&[(":method", "CONNECT"), (":authority", "a:1")]).unwrap().path(), "");
    }

    #[test]
    fn what_is_malformed_is_no_head() {
        for more in [
            (":path", "/"),
            (":status", "200"),
            ("X", "y"),
            ("", "y"),
            ("x y", "z"),
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("x", "a\nb"),
            ("x", "a\0"),
            ("content-length", "1"),
            ("content-length", "0 "),
            ("content-length", "\t0"),
            ("content-length", "+0"),
            ("content-length", ""),
            ("x", " y"),
            ("x", "y\t"),
        ] {
            assert!(read(&[&GOOD[..], &[more]].concat()).is_err(), "{more:?}");
        }
        assert!(read(&[&GOOD[..], &[("content-length", "0"), ("content-length", "0")]].concat()).is_err());
        for missing in [":method", ":scheme", ":path"] {
            let list: Vec<_> = GOOD.into_iter().filter(|(name, _)| *name != missing).collect();
            assert!(read(&list).is_err(), "{missing}");
        }
        assert!(read(&[("x", "y"), (":method", "GET"), (":scheme", "https"), (":path", "/")]).is_err());
    }

    #[test]
    fn what_perch_writes_is_well_formed() {
        let mut block = Vec::new();
        encoder::field(b"Content-Type", b"text/plain", &mut block);
        let mut fields = Fields::new(Vec::new(), 100);
        Decoder::default().decode(&block, &mut fields).unwrap();

        assert!(are_trailers(&fields));
    }

    #[test]
    fn trailers_are_as_many_as_over_http_1() {
        let these = |count: usize, length: usize| {
            let mut block = Vec::new();
            (0..count).for_each(|_| encoder::field(b"a", &vec![b'x'; length], &mut block));
            let mut fields = Fields::new(Vec::new(), 1 << 20);
            Decoder::default().decode(&block, &mut fields).unwrap();
            are_trailers(&fields)
        };

        assert!(these(TRAILER_FIELDS, 1) && !these(TRAILER_FIELDS + 1, 1));
        // With a name of one byte, a colon, a space and the end of the line.
        assert!(these(1, TRAILER_BYTES - 5) && !these(1, TRAILER_BYTES - 4));
    }
}
