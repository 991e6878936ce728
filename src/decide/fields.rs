//! Header rules: which fields perch reads, drops, rebuilds or refuses. Pure; one classification for HTTP/1 and HTTP/2.

/// The fields that mean something to perch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Connection,
    ContentLength,
    Cookie,
    Expect,
    /// `Forwarded`, `X-Real-IP`, `X-Forwarded-Port`: believed from trusted proxies, else dropped.
    Forwarded,
    Host,
    /// `Keep-Alive`, `Proxy-Connection`, `Trailer`: of this hop only (RFC 9110 section 7.6.1).
    HopByHop,
    Te,
    TransferEncoding,
    /// A name that becomes one of ours where `_` and `-` are the same (CGI, WSGI): refused.
    UnderscoreAlias,
    Upgrade,
    /// Who the client is by its certificate: from trusted proxies, unless perch asks for certificates itself.
    XForwardedClientCert,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
    Other,
}

/// Classifies a field name of any case. Most names are ruled out by length and first letter.
#[must_use]
pub fn classify(name: &[u8]) -> Field {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    let first = name.first().map_or(0, u8::to_ascii_lowercase);
    match (name.len(), first) {
        (2, b't') if is("te") => Field::Te,
        (4, b'h') if is("host") => Field::Host,
        (6, b'c') if is("cookie") => Field::Cookie,
        (6, b'e') if is("expect") => Field::Expect,
        (7, b't') if is("trailer") => Field::HopByHop,
        (7, b'u') if is("upgrade") => Field::Upgrade,
        (9, b'f') if is("forwarded") => Field::Forwarded,
        (9, b'x') if is("x-real-ip") => Field::Forwarded,
        (10, b'c') if is("connection") => Field::Connection,
        (10, b'k') if is("keep-alive") => Field::HopByHop,
        (12, b'x') if is("x-request-id") => Field::XRequestId,
        (14, b'c') if is("content-length") => Field::ContentLength,
        (15, b'x') if is("x-forwarded-for") => Field::XForwardedFor,
        (16, b'p') if is("proxy-connection") => Field::HopByHop,
        (16, b'x') if is("x-forwarded-host") => Field::XForwardedHost,
        (16, b'x') if is("x-forwarded-port") => Field::Forwarded,
        (17, b'x') if is("x-forwarded-proto") => Field::XForwardedProto,
        (17, b't') if is("transfer-encoding") => Field::TransferEncoding,
        (23, b'x') if is("x-forwarded-client-cert") => Field::XForwardedClientCert,
        (9 | 12 | 14..=17 | 23, b'c' | b't' | b'x') if name.contains(&b'_') && is_alias(name) => Field::UnderscoreAlias,
        _ => Field::Other,
    }
}

fn is_alias(name: &[u8]) -> bool {
    let dashed: Vec<u8> = name.iter().map(|b| if *b == b'_' { b'-' } else { *b }).collect();
    !matches!(classify(&dashed), Field::Other)
}

/// The value without the optional white space around it (RFC 9110 section 5.5).
#[must_use]
pub fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |e| e + 1);
    value.get(start..end).unwrap_or_default()
}

/// The comma-separated elements of a list, trimmed, empty ones left out (RFC 9110 section 5.6.1).
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|e| !e.is_empty())
}

/// What a `Connection` field asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionTokens {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Names other fields, which are then of this hop only.
    pub nominates: bool,
    /// Names a field that a client must not make us drop (reliability.md A17).
    pub protected: bool,
}

impl ConnectionTokens {
    /// Adds one field line.
    pub fn read(&mut self, value: &[u8]) {
        for token in elements(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.nominates = true;
                self.protected |= is_protected(token);
            }
        }
    }
}

/// Fields whose removal would change who the client is, where the message ends, or what it is allowed to do.
fn is_protected(name: &[u8]) -> bool {
    match classify(name) {
        Field::ContentLength
        | Field::Cookie
        | Field::Expect
        | Field::Forwarded
        | Field::Host
        | Field::UnderscoreAlias
        | Field::XForwardedClientCert
        | Field::XForwardedFor
        | Field::XForwardedHost
        | Field::XForwardedProto
        | Field::XRequestId => true,
        Field::Connection | Field::HopByHop | Field::Te | Field::TransferEncoding | Field::Upgrade => false,
        Field::Other => name.eq_ignore_ascii_case(b"authorization") || name.eq_ignore_ascii_case(b"traceparent"),
    }
}

/// A `Content-Length` value: digits only, at most 18 of them (RFC 9110 section 8.6; no sign, no list, no leading plus).
#[must_use]
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || (value.len() > 1 && value.first() == Some(&b'0')) {
        return None;
    }
    value.iter().try_fold(0_u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

/// Whether a trailer field may be passed on: not one of framing, routing, authentication or ours (RFC 9110 6.5.1).
#[must_use]
pub fn may_be_trailer(name: &[u8]) -> bool {
    matches!(classify(name), Field::Other)
        && ![
            b"authorization".as_slice(),
            b"content-encoding",
            b"content-type",
            b"content-range",
            b"set-cookie",
            b"cache-control",
            b"max-forwards",
        ]
        .iter()
        .any(|n| name.eq_ignore_ascii_case(n))
}

/// The value of a cookie in one `Cookie` field line (RFC 6265 section 4.2.1).
#[must_use]
pub fn cookie<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.split(|b| *b == b';').map(trim).find_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        (pair.get(..at)? == name.as_bytes()).then(|| pair.get(at + 1..))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified_in_any_case() {
        assert_eq!(classify(b"CONTENT-length"), Field::ContentLength);
        assert_eq!(classify(b"x-forwarded-FOR"), Field::XForwardedFor);
        assert_eq!(classify(b"x-forwarded-foo"), Field::Other);
    }

    #[test]
    fn underscores_do_not_smuggle_our_own_names() {
        assert_eq!(classify(b"X_Forwarded_For"), Field::UnderscoreAlias);
        assert_eq!(classify(b"content_length"), Field::UnderscoreAlias);
        assert_eq!(classify(b"X-Forwarded_Client-Cert"), Field::UnderscoreAlias);
        assert_eq!(classify(b"my_header"), Field::Other);
    }

    #[test]
    fn a_content_length_is_digits_and_nothing_else() {
        for bad in ["", "+5", "-1", "0x5", "5 5", "5,5", "005", "12345678901234567890", "5a"] {
            assert_eq!(content_length(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(content_length(b"0"), Some(0));
        assert_eq!(content_length(b"1073741824"), Some(1 << 30));
    }

    #[test]
    fn a_connection_field_cannot_nominate_who_the_client_is() {
        let mut tokens = ConnectionTokens::default();

        tokens.read(b"close, X-Forwarded-For");

        assert!(tokens.close && tokens.protected);
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        assert_eq!(cookie(b"xcanary=1; canary=always; b=2", "canary"), Some(b"always".as_slice()));
        assert_eq!(cookie(b"canarys=1", "canary"), None);
    }

    #[test]
    fn trailers_never_carry_framing_or_identity() {
        for bad in ["Content-Length", "Host", "Authorization", "X-Forwarded-For"] {
            assert!(!may_be_trailer(bad.as_bytes()), "{bad}");
        }
        assert!(may_be_trailer(b"grpc-status"));
    }
}
