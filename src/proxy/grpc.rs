//! What gRPC needs to know of perch: how long a call may be silent, and errors of perch's own as a client of gRPC reads
//! them ("gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC documentation).

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::respond::REASON;
use crate::decide::fields;
use crate::reason::Reason;

/// A gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The client's deadline.
    timeout: Option<Duration>,
}

/// The answer that a deadline ends with comes from the endpoint or the client; perch's own end comes after it.
const GRACE: Duration = Duration::from_secs(1);

impl Call {
    /// The call that these fields of a POST make.
    pub(crate) fn of<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Self> {
        let (mut is_grpc, mut timeout) = (false, None);
        for (name, value) in fields {
            match name.len() {
                12 if name.eq_ignore_ascii_case(CONTENT_TYPE.as_str().as_bytes()) => is_grpc = is_type(value),
                12 if name.eq_ignore_ascii_case(b"grpc-timeout") => timeout = parse_timeout(fields::trim(value)),
                _ => {}
            }
        }
        is_grpc.then_some(Self { timeout })
    }

    /// How long it may be silent, either way: until its deadline; without one, as long as a tunnel may.
    pub(crate) fn silence(self, tunnel: Duration) -> Duration {
        self.timeout.map_or(tunnel, |timeout| timeout.saturating_add(GRACE))
    }
}

/// `application/grpc`, `application/grpc+proto`, ...; not `application/grpc-web`, which is plain HTTP.
fn is_type(value: &[u8]) -> bool {
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Whether a request with these fields wants its errors in gRPC's form.
pub(crate) fn is_call<'a>(mut fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
    fields.find(|(name, _)| *name == CONTENT_TYPE.as_str().as_bytes()).is_some_and(|(_, value)| is_type(value))
}

/// At most eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n = digits.iter().try_fold(0_u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The gRPC status of a reason.
fn status(reason: Reason) -> &'static str {
    match (reason, reason.status()) {
        // DEADLINE_EXCEEDED: it was the call's own, or there was none and this is as long as perch waits.
        (Reason::ResponseTimeout | Reason::UpstreamStalled, _) => "4",
        // INTERNAL, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE, and UNKNOWN for the rest.
        (_, 400) => "13",
        (_, 401) => "16",
        (_, 403) => "7",
        (_, 404) => "12",
        (_, 429 | 502..=504) => "14",
        _ => "2",
    }
}

/// An error of perch's own: trailers only, which is a head that ends the stream.
pub(crate) fn error(reason: Reason, request_id: Option<&str>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status(reason)));
    // Percent-encoded by its rules; the sentences have nothing to encode.
    headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(reason.text()));
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if let Some(id) = request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert("x-request-id", id);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(kind: &str, timeout: Option<&str>) -> Option<Call> {
        let fields = [("content-type", Some(kind)), ("grpc-timeout", timeout)];
        Call::of(fields.iter().filter_map(|(n, v)| Some((n.as_bytes(), (*v)?.as_bytes()))))
    }

    #[test]
    fn a_call_is_known_by_its_type() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc; x=y"] {
            assert!(call(kind, None).is_some(), "{kind}");
        }
        for kind in ["application/grpc-web", "application/json", "application/grpcx", ""] {
            assert_eq!(call(kind, None), None, "{kind}");
        }
    }

    #[test]
    fn a_call_may_be_silent_until_its_deadline() {
        let silence = |timeout| call("application/grpc", timeout).unwrap().silence(Duration::from_secs(3600));

        assert_eq!(silence(Some("500m")), Duration::from_millis(1500));
        assert_eq!(silence(Some("2H")), Duration::from_secs(7201));
        for none in [None, Some("5"), Some("S"), Some("123456789S"), Some("-1S"), Some("1x")] {
            assert_eq!(silence(none), Duration::from_secs(3600), "{none:?}");
        }
    }

    #[test]
    fn no_sentence_needs_encoding() {
        assert!(Reason::ALL.iter().all(|r| r.text().bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'%')));
    }
}
