//! The head that an endpoint gets: what of the client's passes, and what perch says itself (who asks, for which host, over
//! what, with which certificate). Nothing that a client sent stands where perch's word is expected.

use std::ops::Range;

use super::connection::Connection;
use super::http1::body::Framing;
use super::http1::response::{length_line, line};
use super::request::{Facts, Line, Plan, of};
use super::worker::Worker;
use crate::decide::fields::{self, Field};

/// Everything the endpoint's head is made of.
pub(super) struct Forward<'a> {
    pub(super) connection: &'a Connection,
    pub(super) trusted: bool,
    pub(super) facts: &'a Facts<'a>,
    pub(super) authority: &'a str,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) is_websocket: bool,
}

impl Forward<'_> {
    /// Writes the head, and where its words stand into the plan.
    pub(super) fn write<'f>(
        &self,
        worker: &Worker,
        request: &Line<'_>,
        plan: &mut Plan,
        fields: impl Iterator<Item = (&'f [u8], &'f [u8])> + Clone,
        out: &mut Vec<u8>,
    ) {
        let spans = &mut plan.spans;
        spans.method = push(out, request.method.as_bytes());
        out.push(b' ');
        spans.path = push(out, self.path.as_bytes());
        if let Some(query) = self.query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        spans.host = push(out, self.authority.as_bytes());
        out.extend_from_slice(b"\r\n");
        self.passed_on(fields.clone(), out);
        self.cookies(fields.clone(), out);
        self.forwarded(fields, out);
        match plan.framing {
            Framing::Length(n) => length_line(n, out),
            Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Framing::Empty | Framing::Close => {}
        }
        if plan.is_upgrade {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            if request.is_websocket {
                self.websocket_key(worker, out);
            }
        } else if self.facts.accepts_trailers {
            out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
        }
        if plan.expects_continue {
            out.extend_from_slice(b"expect: 100-continue\r\n");
        }
        out.extend_from_slice(b"x-request-id: ");
        plan.spans.request_id = match self.facts.request_id {
            Some(id) => push(out, id),
            None => push(out, &worker.next_request_id()),
        };
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// What HTTP/1 wants of a WebSocket client and HTTP/2 has no use for: 16 bytes in base64, others each time (RFC 6455
    /// section 4.1). Hex digits are digits of base64 too; the last one has to have four low bits of zero.
    fn websocket_key(&self, worker: &Worker, out: &mut Vec<u8>) {
        out.extend_from_slice(b"sec-websocket-key: ");
        out.extend_from_slice(worker.next_request_id().get(11..).unwrap_or_default());
        out.extend_from_slice(b"A==\r\n");
    }

    /// The fields that are neither of this hop nor written anew.
    fn passed_on<'f>(&self, fields: impl Iterator<Item = (&'f [u8], &'f [u8])> + Clone, out: &mut Vec<u8>) {
        for (name, value) in fields.clone() {
            let passes = match fields::classify(name) {
                // Perch is the client of the endpoint's handshake, and has a key of its own.
                Field::Other if self.is_websocket && name.eq_ignore_ascii_case(b"sec-websocket-key") => false,
                Field::Other => !self.facts.tokens.nominates || !is_nominated(name, fields.clone()),
                Field::Forwarded => self.trusted,
                Field::XForwardedClientCert => self.trusted && !asks_for_certificates(self.connection),
                Field::Cookie => self.facts.cookies == 1,
                _ => false,
            };
            if passes {
                line(name, value, out);
            }
        }
    }

    /// Several cookie fields become one (RFC 9113 section 8.2.3).
    fn cookies<'f>(&self, fields: impl Iterator<Item = (&'f [u8], &'f [u8])>, out: &mut Vec<u8>) {
        if self.facts.cookies < 2 {
            return;
        }
        out.extend_from_slice(b"cookie: ");
        for (i, value) in of(fields, Field::Cookie).enumerate() {
            if i > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(value);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// `X-Forwarded-*`: kept and continued when a trusted proxy sent them, else made anew.
    fn forwarded<'f>(&self, fields: impl Iterator<Item = (&'f [u8], &'f [u8])> + Clone, out: &mut Vec<u8>) {
        out.extend_from_slice(b"x-forwarded-for: ");
        if self.trusted {
            for value in of(fields.clone(), Field::XForwardedFor) {
                out.extend_from_slice(value);
                out.extend_from_slice(b", ");
            }
        }
        out.extend_from_slice(&self.connection.client_text);
        out.extend_from_slice(b"\r\n");
        let given = |wanted| if self.trusted { of(fields.clone(), wanted).next() } else { None };
        let proto: &[u8] = if self.connection.is_tls { b"https" } else { b"http" };
        if let Some(identity) = &self.connection.client_identity {
            line(b"x-forwarded-client-cert", identity, out);
        }
        line(b"x-forwarded-proto", given(Field::XForwardedProto).unwrap_or(proto), out);
        line(b"x-forwarded-host", given(Field::XForwardedHost).unwrap_or(self.authority.as_bytes()), out);
    }
}

fn is_nominated<'f>(name: &[u8], fields: impl Iterator<Item = (&'f [u8], &'f [u8])>) -> bool {
    of(fields, Field::Connection).flat_map(fields::elements).any(|token| token.eq_ignore_ascii_case(name))
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    let start = out.len();
    out.extend_from_slice(bytes);
    start..out.len()
}

/// Whether the connection's listener verifies clients itself.
fn asks_for_certificates(connection: &Connection) -> bool {
    connection.listener.config.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some())
}
