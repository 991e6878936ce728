//! Every error becomes a response here and nowhere else: a status, one plain sentence, and `perch-reason`.
//!
//! Addresses and causes go to the log only.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Response, StatusCode};

use super::http1::response::{length_line, line, push_number};
use super::request::Plan;
use crate::reason::Reason;

/// Reasons after which nothing on the connection can be trusted to be a request.
pub(crate) fn ends_connection(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::NoRoute
            | Reason::Misdirected
            | Reason::Closed
            | Reason::NoReadyEndpoint
            | Reason::ConnectRefused
            | Reason::ConnectTimeout
            | Reason::ConnectFailed
            | Reason::UpstreamTls
            | Reason::StreamRefused
            | Reason::LocalPorts
            | Reason::ResponseTimeout
            | Reason::Reset
            | Reason::ResetOnReuse
            | Reason::BadResponse
            | Reason::Bad101
            | Reason::RetryBudget
            | Reason::Overflow
    )
}

/// An HTTP/1 response of perch's own.
pub(crate) fn error(reason: Reason, is_head: bool, closes: bool, request_id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    status_line(reason.status(), &mut out);
    line(b"content-type", b"text/plain; charset=utf-8", &mut out);
    line(REASON.as_str().as_bytes(), reason.as_str().as_bytes(), &mut out);
    if let Some(id) = request_id {
        line(b"x-request-id", id.as_bytes(), &mut out);
    }
    if reason.status() == 503 {
        line(b"retry-after", b"1", &mut out);
    }
    if reason == Reason::Method {
        line(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", &mut out);
    }
    length_line(reason.text().len() as u64 + 1, &mut out);
    end(closes, &mut out);
    if !is_head {
        out.extend_from_slice(reason.text().as_bytes());
        out.push(b'\n');
    }
    out
}

/// A redirect for an HTTP/1 client.
pub(crate) fn redirect(status: u16, location: &str, closes: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    status_line(status, &mut out);
    line(b"location", location.as_bytes(), &mut out);
    length_line(0, &mut out);
    end(closes, &mut out);
    out
}

fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(u64::from(status), out);
    out.push(b' ');
    let phrase = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or_default();
    out.extend_from_slice(phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn end(closes: bool, out: &mut Vec<u8>) {
    if closes {
        line(b"connection", b"close", out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Why perch answered itself.
pub(crate) const REASON: HeaderName = HeaderName::from_static("perch-reason");
/// Which version answered.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("perch-version");

/// The same for HTTP/2, body included.
pub(crate) fn error_h2(reason: Reason, request_id: Option<&str>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{}\n", reason.text())));
    *response.status_mut() = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if let Some(id) = request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert("x-request-id", id);
    }
    if reason.status() == 503 {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A redirect for an HTTP/2 client.
pub(crate) fn redirect_h2(status: u16, location: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::PERMANENT_REDIRECT);
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Lines of ours on an endpoint's response.
pub(crate) fn extra(plan: &Plan, out: &mut Vec<u8>) {
    if plan.service.config.version_header
        && let Some(version) = plan.service.versions.get(plan.decision.version)
    {
        line(VERSION.as_str().as_bytes(), version.name.as_bytes(), out);
    }
}
