//! What a run is to do, parsed: every value in here is valid.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use tokio_rustls::TlsConnector;

use super::identity::{Identity, Ranges};
use super::version::VersionFrom;
use crate::decide::{Salt, Split, Weight};

/// A whole run, or each step of a ramp.
#[derive(Debug)]
pub struct Plan {
    pub target: Target,
    pub clients: u32,
    pub identity: Identity,
    /// Where the addresses come from; `None` only with [`Identity::None`].
    pub ranges: Option<Ranges>,
    pub version_from: VersionFrom,
    pub requests: u32,
    /// How often each client comes back with a new connection; its requests are spread over these visits.
    pub visits: u32,
    /// Begin again when every client has sent its requests, until the time is up.
    pub repeat: bool,
    pub duration: Option<Duration>,
    /// What begins in this time, or is due in it, is not in the latencies.
    pub warm_up: Duration,
    pub pace: Pace,
    pub concurrency: usize,
    pub threads: usize,
    pub keepalive: bool,
    pub protocol: Protocol,
    pub timeout: Duration,
}

/// When the next request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When an answer has come.
    Closed,
    /// This many per second, whether answers come or not.
    Open { rate: f64 },
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Where requests go and what they look like.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
    /// As given, for the report.
    pub urls: Vec<String>,
    pub calls: Vec<Call>,
    /// Which of the calls is next; one call needs no choice.
    pub choice: Split,
    pub head_only: bool,
}

/// How to talk TLS.
#[derive(Clone)]
pub struct Tls {
    pub connector: TlsConnector,
    pub name: rustls_pki_types::ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.name)
    }
}

/// One request in both codecs, but for the client's own field.
#[derive(Debug)]
pub struct Call {
    /// Up to and without the empty line.
    pub head: Vec<u8>,
    pub body: Bytes,
    pub request: http::request::Parts,
}

/// A request as the command line gives it.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub method: http::Method,
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub body: Bytes,
    /// Instead of the authority of the URL.
    pub host: Option<String>,
}

impl Target {
    /// From URLs that share scheme, host and port, with their weights.
    ///
    /// # Errors
    /// When a URL is wrong, the URLs differ in more than path and query, or the host has no address.
    pub fn new(
        urls: &[String],
        weights: &[f64],
        shape: &Shape,
        tls: impl FnOnce(&str) -> Result<Tls, String>,
        near: Option<&Ranges>,
    ) -> Result<Self, String> {
        let parsed: Vec<http::Uri> = urls.iter().map(|u| parse(u)).collect::<Result<_, _>>()?;
        let first = parsed.first().ok_or("give a URL")?;
        if let Some(other) = parsed.iter().find(|u| u.scheme() != first.scheme() || u.authority() != first.authority())
        {
            return Err(format!(
                "{other}: its scheme, host or port differs from {first}; the URLs of one run share them, because a \
                 client's requests share its connection"
            ));
        }
        let https = first.scheme() == Some(&http::uri::Scheme::HTTPS);
        let authority = first.authority().ok_or("give a URL with a host")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let seen_host = shape.host.clone().unwrap_or_else(|| authority.as_str().to_owned());
        let address = resolve(host, port, near)?;
        let server_name = shape.host.as_deref().map_or(host, |h| h.rsplit_once(':').map_or(h, |(name, _)| name));
        let calls = parsed.iter().map(|u| Call::new(u, &seen_host, shape)).collect::<Result<_, _>>()?;
        Ok(Self {
            address,
            tls: if https { Some(tls(server_name)?) } else { None },
            urls: urls.to_vec(),
            calls,
            choice: choice(urls, weights)?,
            head_only: shape.method == http::Method::HEAD,
        })
    }
}

fn parse(url: &str) -> Result<http::Uri, String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{url}: not a URL ({e}); write http://HOST:PORT/PATH"))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.authority().is_some_and(|a| !a.as_str().contains('@')) => Ok(uri),
        _ => Err(format!("{url}: write http://HOST:PORT/PATH or https://HOST:PORT/PATH")),
    }
}

fn choice(urls: &[String], weights: &[f64]) -> Result<Split, String> {
    if !weights.is_empty() && weights.len() != urls.len() {
        return Err(format!("--url-weights: {} weights for {} URLs; give one each", weights.len(), urls.len()));
    }
    let each = urls.iter().enumerate().map(|(at, url)| {
        let weight = weights.get(at).copied().unwrap_or(1.0);
        let weight = Weight::new(weight).ok_or_else(|| format!("--url-weights: {weight} is not 0 or more"))?;
        Ok((url.as_str(), weight))
    });
    let split = Split::new(Salt::new("load", ""), each.collect::<Result<Vec<_>, String>>()?);
    if split.weights().iter().all(|w| w.is_zero()) {
        return Err("--url-weights: all are 0; give one URL a weight".to_owned());
    }
    Ok(split)
}

/// An address of the family that the clients' ranges have, if there is one.
fn resolve(host: &str, port: u16, near: Option<&Ranges>) -> Result<SocketAddr, String> {
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|e| format!("{host}: no address ({e}); check the name, or give an address and --host {host}"))?
        .collect();
    let wanted = near.and_then(|r| r.nets().first()).map(|n| n.addr().is_ipv4());
    let fits = |a: &&SocketAddr| wanted.is_none_or(|v4| a.is_ipv4() == v4);
    let address = found.iter().find(fits).or(found.first()).ok_or_else(|| format!("{host}: no address"))?;
    if let Some(v4) = wanted
        && address.is_ipv4() != v4
    {
        return Err(format!(
            "--from: an {} client cannot connect to {address}; give a range of the same family",
            if v4 { "IPv4" } else { "IPv6" }
        ));
    }
    Ok(*address)
}

/// Whether connections to `address` stay on this machine.
#[must_use]
pub const fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

impl Call {
    fn new(uri: &http::Uri, host: &str, shape: &Shape) -> Result<Self, String> {
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut head = format!("{} {path} HTTP/1.1\r\nhost: {host}\r\n", shape.method).into_bytes();
        let full = http::Uri::builder()
            .scheme(uri.scheme_str().unwrap_or("http"))
            .authority(host)
            .path_and_query(path)
            .build()
            .map_err(|e| format!("--host {host}: {e}; write a host name, with :PORT if needed"))?;
        let mut request = http::Request::builder().method(shape.method.clone()).uri(full);
        let given = |name: &http::HeaderName| shape.headers.iter().any(|(n, _)| n == name);
        let mut fields = shape.headers.clone();
        if !given(&http::header::USER_AGENT) {
            fields.push((http::header::USER_AGENT, http::HeaderValue::from_static("perch-load")));
        }
        if !shape.body.is_empty() && !given(&http::header::CONTENT_LENGTH) {
            fields.push((http::header::CONTENT_LENGTH, http::HeaderValue::from(shape.body.len())));
        }
        for (name, value) in fields {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
            request = request.header(name, value);
        }
        let (request, ()) = request.body(()).map_err(|e| format!("{uri}: {e}"))?.into_parts();
        Ok(Self { head, body: shape.body.clone(), request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(urls: &[&str], weights: &[f64]) -> Result<Target, String> {
        let urls: Vec<String> = urls.iter().map(|u| (*u).to_owned()).collect();
        Target::new(&urls, weights, &Shape::default(), |_| Err("no TLS".to_owned()), None)
    }

    #[test]
    fn a_call_is_a_complete_request_but_for_the_empty_line() {
        let target = target(&["http://127.0.0.1:81/a?b=c"], &[]).unwrap();

        assert_eq!(
            String::from_utf8_lossy(&target.calls[0].head),
            "GET /a?b=c HTTP/1.1\r\nhost: 127.0.0.1:81\r\nuser-agent: perch-load\r\n"
        );
    }

    #[test]
    fn urls_of_two_hosts_are_refused() {
        let refused = target(&["http://127.0.0.1:81/a", "http://127.0.0.1:82/a"], &[]).unwrap_err();

        assert!(refused.contains("share its connection"), "{refused}");
    }

    #[test]
    fn each_url_needs_a_weight_or_none_does() {
        assert!(target(&["http://127.0.0.1/a", "http://127.0.0.1/b"], &[3.0, 1.0]).is_ok());
        assert!(target(&["http://127.0.0.1/a", "http://127.0.0.1/b"], &[3.0]).unwrap_err().contains("give one each"));
        assert!(target(&["http://127.0.0.1/a"], &[0.0]).unwrap_err().contains("all are 0"));
    }

    #[test]
    fn a_url_that_is_none_says_what_to_write() {
        for url in ["127.0.0.1/a", "ftp://127.0.0.1/", "http://user@127.0.0.1/"] {
            assert!(target(&[url], &[]).unwrap_err().contains("write http://HOST:PORT/PATH"), "{url}");
        }
    }
}
