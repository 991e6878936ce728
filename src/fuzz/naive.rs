//! Plain models of what perch does fast: each says in a few lines what the answer should be, and nothing of how.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::decide::route::{Hostname, PathMatch};

/// RFC 3986 section 5.2.4 on whole segments, with `%2e` as a dot, for paths that may be forwarded; `None` for others.
pub(super) fn clean_path(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let is_good = |(at, byte): (usize, &u8)| match byte {
        b'%' => bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit) && hex != b"00"),
        byte => byte.is_ascii_graphic() && !b"#?\\".contains(byte),
    };
    if !bytes.iter().enumerate().all(is_good) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        let plain = decode(segment, &[("%2e", ".")]);
        match &*plain {
            "." => {}
            ".." => {
                kept.pop()?;
            }
            // Also where a `..` behind it would take it away again.
            _ if hides_dots(segment) => return None,
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            kept.push("");
        }
    }
    Some(format!("/{}", kept.join("/")))
}

/// Whether an endpoint that decodes slashes, or cuts parameters off, finds `..` in the segment.
fn hides_dots(segment: &str) -> bool {
    let plain = decode(segment, &[("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("%3b", ";")]);
    let parts: Vec<&str> = plain.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect();
    parts.contains(&"..")
}

fn decode(text: &str, escapes: &[(&str, &str)]) -> String {
    escapes.iter().fold(text.to_owned(), |text, (escape, plain)| {
        text.replace(escape, plain).replace(&escape.to_ascii_uppercase(), plain)
    })
}

/// The route that serves: the most specific host first, then the most specific path, then the first in the file.
pub(super) fn route(rules: &[(Option<Hostname>, PathMatch)], host: &str, path: &str) -> Option<usize> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let host_rank = |name: &Option<Hostname>| match name {
        None => Some((0, 0)),
        Some(Hostname::Exact(name)) => (*name == host).then_some((2, 0)),
        Some(Hostname::Wildcard(suffix)) => {
            let label = host.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
            let _: &str = label;
            Some((1, suffix.len()))
        }
    };
    let path_rank = |wanted: &PathMatch| match wanted {
        PathMatch::Exact(wanted) => (wanted == path).then_some((1, 0)),
        PathMatch::Prefix(prefix) => {
            let rest = path.strip_prefix(prefix.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((0, prefix.len()))
        }
    };
    let ranked = rules
        .iter()
        .enumerate()
        .filter_map(|(at, (name, wanted))| Some((host_rank(name)?, path_rank(wanted)?, std::cmp::Reverse(at))));
    ranked.max().map(|(_, _, at)| at.0)
}

/// The rightmost hop of one long list that is not trusted; the last good one where garbage stands.
pub(super) fn client(peer: IpAddr, trusted: &[IpNet], list: &[u8]) -> IpAddr {
    let mut known = peer.to_canonical();
    let hops: Vec<&[u8]> = list.split(|b| *b == b',').collect();
    // As many as perch looks at.
    for hop in hops.iter().rev().take(64) {
        if !trusted.iter().any(|net| net.contains(&known)) {
            return known;
        }
        let text = String::from_utf8_lossy(hop);
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
        if text.is_empty() {
            continue;
        }
        let plain: Option<IpAddr> = text.parse().ok();
        let with_port = text.parse::<SocketAddr>().ok().filter(|_| !text.contains('%')).map(|a| a.ip());
        let in_brackets =
            text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).and_then(|t| t.parse::<Ipv6Addr>().ok());
        match plain.or(with_port).or(in_brackets.map(IpAddr::V6)) {
            Some(address) => known = address.to_canonical(),
            None => return known,
        }
    }
    known
}
