//! From a request's head to a plan: who asks, for what, who serves it, and the head that goes to the endpoint.
//!
//! One function for HTTP/1 and HTTP/2, so that what is routed is what is logged and forwarded. Pure of sockets: it reads
//! the snapshot and the pins, and writes the endpoint's head into a buffer.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use http::header::HeaderName;
use ipnet::IpNet;

use super::connection::Connection;
use super::forward::Forward;
use super::grpc;
use super::http1::body::Framing;
use super::worker::Worker;
use crate::config::{ClientCertificateMode, Overrides};
use crate::decide::client_address::client_address;
use crate::decide::fields::{self, ConnectionTokens, Field};
use crate::decide::shedding::Shedding;
use crate::decide::target::{self, Authority};
use crate::decide::{Forced, NoVersion};
use crate::reason::Reason;
use crate::state::decision::{self, Client, Decision};
use crate::state::snapshot::{Listener, Service};

/// A request's line, whichever protocol brought it.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) method: &'a str,
    /// `:path`, or the target in origin, absolute or asterisk form.
    pub(crate) target: &'a str,
    /// `:authority`.
    pub(crate) authority: Option<&'a str>,
    pub(crate) protocol: Protocol,
    /// HTTP/2: DATA frames follow, whether or not a length was given.
    pub(crate) has_data: bool,
    /// HTTP/2: an extended CONNECT for WebSocket, which is an upgrade to the endpoint (RFC 8441).
    pub(crate) is_websocket: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// What is to be done with a request.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) service: Arc<Service>,
    pub(crate) decision: Decision,
    /// How the request's body is framed, on both sides.
    pub(crate) framing: Framing,
    pub(crate) is_head: bool,
    /// Sending it twice does no harm (RFC 9110 section 9.2.2).
    pub(crate) is_idempotent: bool,
    pub(crate) expects_continue: bool,
    pub(crate) is_upgrade: bool,
    pub(crate) grpc: Option<grpc::Call>,
    /// The client wants its connection closed afterwards.
    pub(crate) closes: bool,
    pub(crate) protocol: Protocol,
    pub(crate) client: IpAddr,
    pub(crate) spans: Spans,
}

/// Where the words for the log stand in the endpoint's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans {
    pub(crate) method: Range<usize>,
    pub(crate) path: Range<usize>,
    pub(crate) host: Range<usize>,
    pub(crate) request_id: Range<usize>,
}

/// An answer of perch's own instead of an endpoint's.
#[derive(Debug)]
pub(crate) enum Instead {
    Refuse(Reason),
    Redirect { status: u16, location: String },
}

impl From<Reason> for Instead {
    fn from(reason: Reason) -> Self {
        Self::Refuse(reason)
    }
}

/// Decides on a request and writes the endpoint's head into `out`. On a refusal `spans` holds what was understood so far.
pub(crate) fn plan<'a>(
    worker: &Worker,
    connection: &Connection,
    request: Line<'a>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    now: u64,
    out: &mut Vec<u8>,
) -> Result<Plan, Instead> {
    // For the log, if it ends here.
    out.extend_from_slice(request.method.as_bytes());
    if worker.shared.pressure.shedding() >= Shedding::Requests {
        return Err(Reason::MemoryLimit.into());
    }
    // First: CONNECT's target is not one that the rest understands.
    if matches!(request.method, "CONNECT" | "TRACE") {
        return Err(Reason::Method.into());
    }
    // Methods are case-sensitive and every registered one is upper case, but some servers read `head` as HEAD, and then
    // there is no body where perch waits for one. nginx refuses them too.
    if request.method.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(Reason::Method.into());
    }
    let facts = Facts::read(fields.clone(), request.protocol)?;
    let is_upgrade = facts.upgrade(&request)?;
    let (authority, target) = authority_and_target(&request, &facts)?;
    let (path, query) = target::split_query(target);
    let host = Authority::parse(authority).map_err(|_| Reason::Host)?;
    let path = match path {
        "*" if request.method == "OPTIONS" => Cow::Borrowed("*"),
        path if path.starts_with('/') => target::normalise(path).map_err(|_| Reason::Path)?,
        _ => return Err(Reason::Target.into()),
    };
    if let Some(query) = query {
        target::check_query(query).map_err(|_| Reason::Target)?;
    }
    let trusted = is_trusted(connection.client, &connection.listener.config.trusted_proxies);
    let client = if trusted {
        let lines: Vec<&[u8]> = of(fields.clone(), Field::XForwardedFor).collect();
        client_address(connection.client, &connection.listener.config.trusted_proxies, lines.into_iter())
    } else {
        connection.client
    };

    if let Some(redirect) = connection.listener.config.redirect_to_https {
        let location = location(host.host, redirect.port, &path, query);
        return Err(Instead::Redirect { status: redirect.status, location });
    }

    let snapshot = worker.snapshot();
    // A reload has taken the listener away and its connection is still here: the client may come by another one.
    let listener = snapshot.listeners.iter().find(|l| l.config.name == connection.listener.config.name);
    let listener = listener.ok_or(Reason::Misdirected)?;
    if lacks_certificate(connection, listener) {
        return Err(Reason::Misdirected.into());
    }
    // `OPTIONS *` asks about the server: whoever serves the host's root answers.
    let routed = if path == "*" { "/" } else { &*path };
    let service = listener
        .routes
        .find(host.host, routed)
        .and_then(|route| snapshot.config.routes.get(route))
        .and_then(|route| snapshot.services.get(route.service))
        .ok_or_else(|| match &connection.certificate {
            // A host that is served nowhere and was not promised by the certificate (RFC 9110 section 7.4).
            Some(certificate) if !certificate.covers(host.host) => Reason::Misdirected,
            _ => Reason::NoRoute,
        })?
        .clone();
    let forced = service.config.overrides.as_ref().and_then(|o| forced(o, client, &service, fields.clone()));
    let asker = Client { address: client, roll: worker.next_roll(), forced };
    let decision = decision::decide(&service, &worker.shared.pins, asker, now).map_err(|none| match none {
        NoVersion::Closed => Reason::Closed,
        NoVersion::NoEndpoint(_) => Reason::NoReadyEndpoint,
    })?;

    let mut plan = Plan {
        service,
        decision,
        framing: match facts.framing {
            Framing::Empty if request.has_data => Framing::Chunked,
            framing => framing,
        },
        is_head: request.method == "HEAD",
        is_idempotent: matches!(request.method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE"),
        expects_continue: facts.expects_continue && facts.framing != Framing::Empty,
        is_upgrade,
        grpc: (request.method == "POST").then(|| grpc::Call::of(fields.clone())).flatten(),
        closes: facts.tokens.close || (request.protocol == Protocol::Http10 && !facts.tokens.keep_alive),
        protocol: request.protocol,
        client,
        spans: Spans::default(),
    };
    out.clear();
    let forward = Forward {
        connection,
        trusted,
        facts: &facts,
        authority,
        path: &path,
        query,
        is_websocket: request.is_websocket,
    };
    forward.write(worker, &request, &mut plan, fields, out);
    Ok(plan)
}

/// What the fields say, read once.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) framing: Framing,
    pub(super) tokens: ConnectionTokens,
    pub(super) upgrade: Option<&'a [u8]>,
    pub(super) expects_continue: bool,
    pub(super) accepts_trailers: bool,
    pub(super) request_id: Option<&'a [u8]>,
    pub(super) cookies: usize,
}

impl<'a> Facts<'a> {
    fn read(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, protocol: Protocol) -> Result<Self, Reason> {
        let mut facts = Self {
            host: None,
            framing: Framing::Empty,
            tokens: ConnectionTokens::default(),
            upgrade: None,
            expects_continue: false,
            accepts_trailers: false,
            request_id: None,
            cookies: 0,
        };
        let mut length = None;
        let mut chunked = false;
        for (name, value) in fields {
            match fields::classify(name) {
                Field::Host if facts.host.replace(fields::trim(value)).is_some() => return Err(Reason::Host),
                Field::ContentLength => {
                    // A second one is refused even when equal: two parsers need not agree on "equal".
                    let value = fields::content_length(fields::trim(value)).ok_or(Reason::ContentLength)?;
                    if length.replace(value).is_some() {
                        return Err(Reason::ContentLength);
                    }
                }
                Field::TransferEncoding => {
                    if chunked || !fields::trim(value).eq_ignore_ascii_case(b"chunked") {
                        return Err(Reason::TransferEncoding);
                    }
                    chunked = true;
                }
                Field::Connection => facts.tokens.read(value),
                Field::Upgrade => facts.upgrade = Some(fields::trim(value)),
                Field::Expect => {
                    if !fields::trim(value).eq_ignore_ascii_case(b"100-continue") {
                        return Err(Reason::Expect);
                    }
                    facts.expects_continue = protocol == Protocol::Http11;
                }
                Field::Te => {
                    facts.accepts_trailers |= fields::elements(value).any(|e| e.eq_ignore_ascii_case(b"trailers"));
                }
                Field::XRequestId if is_request_id(value) => facts.request_id = Some(value),
                Field::Cookie => facts.cookies += 1,
                Field::UnderscoreAlias => return Err(Reason::Underscore),
                _ => {}
            }
        }
        if facts.tokens.protected {
            return Err(Reason::ConnectionToken);
        }
        facts.framing = match (chunked, length) {
            (true, Some(_)) => return Err(Reason::LengthAndEncoding),
            (true, None) if protocol == Protocol::Http10 => return Err(Reason::TransferEncoding),
            (true, None) => Framing::Chunked,
            (false, Some(0) | None) => Framing::Empty,
            (false, Some(n)) => Framing::Length(n),
        };
        if length == Some(0) {
            facts.framing = Framing::Length(0);
        }
        Ok(facts)
    }

    /// Whether this is a WebSocket upgrade. Other upgrades are not offered to the endpoint: the request is served as it
    /// is (RFC 9110 section 7.8 lets a server ignore them).
    fn upgrade(&self, request: &Line<'_>) -> Result<bool, Reason> {
        let asks = self.tokens.upgrade && self.upgrade.is_some_and(|u| u.eq_ignore_ascii_case(b"websocket"));
        let asks = asks && request.protocol == Protocol::Http11 && request.method == "GET";
        if !asks && !request.is_websocket {
            return Ok(false);
        }
        // With a body, bytes after the head could be read as tunnel or as body (CVE-2026-2833's kind).
        if matches!(self.framing, Framing::Empty | Framing::Length(0)) { Ok(true) } else { Err(Reason::Upgrade) }
    }
}

/// An identifier is passed on when it is short and harmless to logs; otherwise a new one is made.
fn is_request_id(value: &[u8]) -> bool {
    (1..=128).contains(&value.len()) && value.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:=/+".contains(b))
}

pub(super) fn of<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    wanted: Field,
) -> impl Iterator<Item = &'a [u8]> {
    fields.filter(move |(name, _)| fields::classify(name) == wanted).map(|(_, value)| value)
}

/// The authority that routes, and the target in origin form.
fn authority_and_target<'a>(request: &Line<'a>, facts: &Facts<'a>) -> Result<(&'a str, &'a str), Reason> {
    let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| Reason::Host);
    let host = facts.host.map(text).transpose()?;
    if request.protocol == Protocol::Http2 {
        return match (request.authority, host) {
            (Some(a), Some(h)) if !a.eq_ignore_ascii_case(h) => Err(Reason::HostMismatch),
            (Some(a), _) | (None, Some(a)) => Ok((a, request.target)),
            (None, None) => Err(Reason::Host),
        };
    }
    if request.target.starts_with('/') || request.target == "*" {
        // HTTP/1.0 may leave it out; then only routes for any host match.
        return match host {
            Some(host) => Ok((host, request.target)),
            None if request.protocol == Protocol::Http10 => Ok(("localhost", request.target)),
            None => Err(Reason::Host),
        };
    }
    // Absolute form: its authority wins, and Host has to say the same (RFC 9112 section 3.2.2).
    let (scheme, rest) = request.target.split_once("://").ok_or(Reason::Target)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Reason::Target);
    }
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(at).ok_or(Reason::Target)?;
    match host {
        Some(host) if !host.eq_ignore_ascii_case(authority) => Err(Reason::HostMismatch),
        None if request.protocol != Protocol::Http10 => Err(Reason::Host),
        _ if target.is_empty() => Ok((authority, "/")),
        _ if target.starts_with('/') => Ok((authority, target)),
        _ => Err(Reason::Target),
    }
}

fn is_trusted(peer: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|n| n.contains(&peer.to_canonical()))
}

fn location(host: &str, port: u16, path: &str, query: Option<&str>) -> String {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    format!("https://{host}{port}{path}{query}")
}

/// What an allowed header or cookie asks for; the header comes first.
fn forced<'a>(
    rules: &Overrides,
    client: IpAddr,
    service: &Service,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) -> Option<Forced> {
    if !is_trusted(client, &rules.trusted) {
        return None;
    }
    let meaning = |value: &[u8]| match value {
        b"always" => Some(Forced::To(rules.version)),
        b"never" => Some(Forced::Except(rules.version)),
        name => service.versions.iter().position(|v| v.name.as_bytes() == name).map(Forced::To),
    };
    let named = |name: &HeaderName| {
        let name = name.as_str().as_bytes();
        fields.clone().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| fields::trim(v))
    };
    let by_header = rules.header.as_ref().and_then(named).and_then(meaning);
    by_header.or_else(|| {
        let name = rules.cookie.as_deref()?;
        of(fields.clone(), Field::Cookie).find_map(|line| fields::cookie(line, name)).and_then(meaning)
    })
}

/// Whether a certificate is needed now that the connection does not have: it is older than the demand.
fn lacks_certificate(connection: &Connection, listener: &Listener) -> bool {
    let clients = listener.config.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
    connection.client_identity.is_none() && clients.is_some_and(|c| c.mode == ClientCertificateMode::Required)
}
