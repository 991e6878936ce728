//! What is known of one request, from its first byte to its one entry in the metrics and in the access log.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::attempts::Attempts;
use super::connection::Connection;
use super::request::{Plan, Protocol, Spans};
use super::upstream::Link;
use super::worker::Worker;
use crate::access_log::Line;
use crate::config::LogFormat;
use crate::decide::Why;
use crate::metrics;
use crate::reason::Reason;
use crate::state::snapshot::{Endpoint, Service};

/// A request under way.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) started: Instant,
    /// The client had its answer; by itself when the entry is finished.
    pub(crate) ended: Option<Instant>,
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
    pub(crate) is_head: bool,
    is_upgrade: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    protocol: Protocol,
    method: &'static str,
    client: IpAddr,
    served_by: Option<ServedBy>,
    endpoint: Option<Arc<Endpoint>>,
    attempts: u32,
    /// An attempt before the last one failed.
    has_failed: bool,
    upstream: Option<Duration>,
    /// Only when lines are written at all.
    words: Option<Box<Words>>,
    is_logged: bool,
}

#[derive(Debug)]
struct ServedBy {
    service: Arc<Service>,
    version: usize,
    why: Why,
}

#[derive(Debug, Default)]
struct Words {
    method: String,
    host: String,
    path: String,
    request_id: String,
}

impl Entry {
    pub(crate) fn new(worker: &Worker, connection: &Connection, protocol: Protocol) -> Self {
        Self {
            started: Instant::now(),
            ended: None,
            status: 0,
            reason: None,
            is_head: false,
            is_upgrade: false,
            bytes_in: 0,
            bytes_out: 0,
            protocol,
            method: "other",
            client: connection.client,
            served_by: None,
            endpoint: None,
            attempts: 0,
            has_failed: false,
            upstream: None,
            words: None,
            is_logged: worker.access_log_config().format != LogFormat::Off,
        }
    }

    /// The request is understood and decided.
    pub(crate) fn planned(&mut self, plan: &Plan) {
        self.is_head = plan.is_head;
        self.is_upgrade = plan.is_upgrade;
        self.protocol = plan.protocol;
        self.client = plan.client;
        let (service, version, why) = (plan.service.clone(), plan.decision.version, plan.decision.why);
        self.served_by = Some(ServedBy { service, version, why });
    }

    /// The endpoint's head, which holds the request's words.
    pub(crate) fn head(&mut self, head: &[u8], spans: &Spans) {
        self.method = method_label(head.get(spans.method.clone()).unwrap_or_default());
        if self.is_logged {
            let text =
                |span: &Range<usize>| String::from_utf8_lossy(head.get(span.clone()).unwrap_or_default()).into_owned();
            self.words = Some(Box::new(Words {
                method: text(&spans.method),
                host: text(&spans.host),
                path: text(&spans.path),
                request_id: text(&spans.request_id),
            }));
        }
    }

    /// The client's head, when it got no further: as much of it as is worth a log line.
    pub(crate) fn raw_head(&mut self, head: &[u8]) {
        let mut lines = head.split(|b| *b == b'\r' || *b == b'\n');
        let mut words = lines.next().unwrap_or_default().split(|b| *b == b' ');
        let method = words.next().unwrap_or_default();
        let target = words.next().unwrap_or_default();
        self.is_head = method == b"HEAD";
        self.method = method_label(method);
        let is_host = |line: &&[u8]| line.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"host:"));
        let host = lines.find(is_host).and_then(|line| line.get(5..)).unwrap_or_default().trim_ascii();
        self.words_of(method, target, host);
    }

    /// Words of a refused request.
    pub(crate) fn words_of(&mut self, method: &[u8], target: &[u8], host: &[u8]) {
        self.method = method_label(method);
        if self.is_logged {
            let path = target.split(|b| *b == b'?').next().unwrap_or_default();
            // A log line is no place for a whole attack.
            let short = |b: &[u8]| String::from_utf8_lossy(b.get(..256).unwrap_or(b)).into_owned();
            let (method, host, path) = (short(method), short(host), short(path));
            self.words = Some(Box::new(Words { method, host, path, ..Words::default() }));
        }
    }

    pub(crate) fn request_id(&self) -> Option<&str> {
        self.words.as_ref().map(|w| w.request_id.as_str()).filter(|id| !id.is_empty())
    }

    /// An endpoint is being tried.
    pub(crate) fn attempt(&mut self, link: &Link, attempts: &Attempts<'_>) {
        self.endpoint = Some(link.endpoint.clone());
        self.attempts = attempts.count();
        self.has_failed = attempts.has_failed();
    }

    /// The endpoint's final head is here.
    pub(crate) fn upstream_began(&mut self) {
        if self.is_logged {
            self.upstream = Some(self.started.elapsed());
        }
    }

    /// Whether the version failed; `None` when the request says nothing about it.
    fn judge(&self) -> Option<bool> {
        match self.reason {
            // A tunnel lasts as long as its users like: 101, or 200 in HTTP/2 (RFC 8441).
            None if self.is_upgrade && self.status < 300 => None,
            None => Some(self.has_failed || self.status >= 500),
            Some(reason) if reason.blames_version() => Some(true),
            // The client's fault, perhaps after an answer had begun. Its time counts: clients give up on the slow.
            Some(reason) if reason.status() < 500 => {
                Some(self.has_failed || (self.status >= 500 && self.status != reason.status()))
            }
            Some(_) => None,
        }
    }

    /// Counts and logs.
    pub(crate) fn finish(self, worker: &Worker, connection: &Connection) {
        let duration = self.ended.unwrap_or_else(Instant::now) - self.started;
        let version = self.served_by.as_ref().and_then(|s| s.service.versions.get(s.version));
        if let Some(reason) = self.reason {
            metrics::rejected(reason);
        }
        if let Some(version) = version {
            version.metrics.request(self.method, self.status, duration.as_secs_f64());
            if let Some(has_failed) = self.judge() {
                version.metrics.outcome(duration, has_failed);
            }
        }
        if !self.is_logged {
            return;
        }
        let words = self.words.unwrap_or_default();
        let line = Line {
            time: SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            listener: &connection.listener.config.name,
            peer: connection.peer,
            client: self.client,
            method: &words.method,
            host: &words.host,
            path: &words.path,
            status: self.status,
            reason: self.reason,
            service: self.served_by.as_ref().map(|s| &*s.service.name),
            version: version.map(|v| &*v.name),
            why: self.served_by.as_ref().map(|s| s.why),
            endpoint: self.endpoint.as_ref().map(|e| &*e.name),
            attempts: self.attempts,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration,
            upstream: self.upstream,
            request_id: Some(words.request_id.as_str()).filter(|id| !id.is_empty()),
            protocol: self.protocol.as_str(),
            tls: connection.tls_version,
        };
        worker.shared.access_log.log(&worker.access_log_config(), worker.next_log_roll(), &line);
    }
}

/// Static, so that no request carries its own copy.
fn method_label(method: &[u8]) -> &'static str {
    match method {
        b"GET" => "GET",
        b"HEAD" => "HEAD",
        b"POST" => "POST",
        b"PUT" => "PUT",
        b"PATCH" => "PATCH",
        b"DELETE" => "DELETE",
        b"OPTIONS" => "OPTIONS",
        b"CONNECT" => "CONNECT",
        b"TRACE" => "TRACE",
        _ => "other",
    }
}
