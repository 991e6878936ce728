//! The one normalisation of a request's path, and the strict reading of its authority: what is routed is what is
//! logged and forwarded (reliability.md A11, A14, A15).
//!
//! Dot segments are removed, everything else is kept as it came: `//`, `%2f`, `%5c` and `;` are never decoded, merged or
//! cut, so a route cannot be passed by writing its path in another way that an endpoint would read alike only after
//! decoding; `..` behind or before an escaped slash or a semicolon, which only leads out of a route, is refused. Nothing is allocated for a path that is clean. The query is never touched.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Why a path or query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// `..` above the root.
    AboveRoot,
    /// `%` without two hex digits, `%00`.
    BadEscape,
    /// `..` beside an escaped slash, or with a parameter: it leads upwards for an endpoint that decodes the one (nginx,
    /// Apache) or cuts the other off (Tomcat), past the route that was chosen here.
    HiddenDots,
    /// A byte that must not stand in a path: `#`, `\`, `?`, a space, a control, anything that is not ASCII. Or no `/`
    /// at the start.
    BadByte,
}

/// Cuts a target in origin-form at its first `?`.
#[must_use]
pub fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// Removes dot segments (RFC 3986 section 5.2.4; `%2e` counts as a dot). `%2f`, `%5c`, `//` and everything else stay.
/// Borrows when there is nothing to do. `path` starts with `/` and carries no query.
///
/// # Errors
/// See [`BadPath`].
pub fn normalise(path: &str) -> Result<Cow<'_, str>, BadPath> {
    let Some(relative) = path.strip_prefix('/') else {
        return Err(BadPath::BadByte);
    };
    let seen = scan(path.as_bytes())?;
    if seen.may_hide && relative.split('/').any(hides_dots) {
        return Err(BadPath::HiddenDots);
    }
    if !seen.may_have_dots {
        return Ok(Cow::Borrowed(path));
    }
    if !relative.split('/').any(|segment| dots(segment) > 0) {
        return Ok(Cow::Borrowed(path));
    }

    let mut clean = String::with_capacity(path.len());
    let mut segments = relative.split('/').peekable();
    while let Some(segment) = segments.next() {
        match dots(segment) {
            0 => {
                clean.push('/');
                clean.push_str(segment);
                continue;
            }
            1 => {}
            _ => {
                let parent = clean.rfind('/').ok_or(BadPath::AboveRoot)?;
                clean.truncate(parent);
            }
        }
        // `/a/.` and `/a/b/..` name the directory: `/a/`.
        if segments.peek().is_none() {
            clean.push('/');
        }
    }
    Ok(Cow::Owned(clean))
}

/// Refuses a query with bytes that no query may have (`#` among them, CVE-2023-45539). Escapes are not looked at.
///
/// # Errors
/// [`BadPath::BadByte`].
pub fn check_query(query: &str) -> Result<(), BadPath> {
    let clean = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if clean { Ok(()) } else { Err(BadPath::BadByte) }
}

/// What a path has that needs a second look.
#[derive(Default)]
struct Seen {
    /// An element begins with a dot or an escape, so that it may be a dot segment.
    may_have_dots: bool,
    /// There is an escaped slash, or a semicolon.
    may_hide: bool,
}

/// Checks every byte.
fn scan(path: &[u8]) -> Result<Seen, BadPath> {
    let mut seen = Seen::default();
    let mut before = 0;
    for (at, &byte) in path.iter().enumerate() {
        match byte {
            b'%' => {
                match path.get(at + 1..at + 3) {
                    Some([b'0', b'0']) => return Err(BadPath::BadEscape),
                    Some([b'2', b'f' | b'F'] | [b'5', b'c' | b'C'] | [b'3', b'b' | b'B']) => seen.may_hide = true,
                    Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => {}
                    _ => return Err(BadPath::BadEscape),
                }
                seen.may_have_dots |= before == b'/';
            }
            b'.' => seen.may_have_dots |= before == b'/',
            b';' => seen.may_hide = true,
            b'#' | b'\\' | b'?' => return Err(BadPath::BadByte),
            _ if !byte.is_ascii_graphic() => return Err(BadPath::BadByte),
            _ => {}
        }
        before = byte;
    }
    Ok(seen)
}

/// Whether a part of the segment, up to an escaped slash or a semicolon, is `..`. A segment that is nothing else is not
/// meant: that one is removed.
fn hides_dots(segment: &str) -> bool {
    let mut rest = segment.as_bytes();
    // Of this part: dots, or `None` once there was something else.
    let mut count = Some(0);
    let mut is_first = true;
    loop {
        let (unit, next) = match rest {
            [] => return count == Some(2) && !is_first,
            [b'%', b'2', b'e' | b'E', next @ ..] => (b'.', next),
            [b'%', b'2', b'f' | b'F', next @ ..] | [b'%', b'5', b'c' | b'C', next @ ..] => (b'/', next),
            [b'%', b'3', b'b' | b'B', next @ ..] => (b';', next),
            [byte, next @ ..] => (*byte, next),
        };
        rest = next;
        count = match (unit, count) {
            (b'/' | b';', Some(2)) => return true,
            (b'/', _) => {
                is_first = false;
                Some(0)
            }
            (b'.', Some(dots)) => Some(dots + 1),
            _ => None,
        };
    }
}

/// 1 for `.`, 2 for `..`, escaped or not; 0 for any other segment.
fn dots(segment: &str) -> usize {
    let mut rest = segment.as_bytes();
    for count in 0..=2 {
        rest = match rest {
            [] => return count,
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return 0,
        };
    }
    0
}

/// A Host field or an absolute target's authority: `host[:port]`, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// In the sender's case, without the trailing dot; IPv6 keeps its brackets.
    pub host: &'a str,
    /// As written; nobody connects to port 0.
    pub port: Option<u16>,
}

/// Why an authority is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAuthority {
    Empty,
    /// User information, a slash, a space, an escape, or anything else outside letters, digits, `-`, `_` and `.`;
    /// an empty label; more than 253 bytes; a broken IPv6 literal.
    BadHost,
    /// Not a number from 1 to 65535.
    BadPort,
}

impl<'a> Authority<'a> {
    /// Stricter than RFC 3986: escapes and sub-delims are legal in a reg-name there, but in no name that resolves, and
    /// proxies have been misled by each of them.
    ///
    /// # Errors
    /// See [`BadAuthority`].
    pub fn parse(text: &'a str) -> Result<Self, BadAuthority> {
        if text.is_empty() {
            return Err(BadAuthority::Empty);
        }
        if let Some(literal) = text.strip_prefix('[') {
            let (address, rest) = literal.split_once(']').ok_or(BadAuthority::BadHost)?;
            // std refuses zone ids here.
            address.parse::<Ipv6Addr>().map_err(|_| BadAuthority::BadHost)?;
            let host = text.get(..address.len() + 2).ok_or(BadAuthority::BadHost)?;
            let port = match rest.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if rest.is_empty() => None,
                None => return Err(BadAuthority::BadHost),
            };
            return Ok(Self { host, port });
        }

        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, parse_port(port)?),
            None => (text, None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() {
            return Err(BadAuthority::Empty);
        }
        // RFC 1035's limit for a name without its last dot.
        if host.len() > 253 {
            return Err(BadAuthority::BadHost);
        }
        let mut before = b'.';
        for byte in host.bytes() {
            let good = match byte {
                b'.' => before != b'.',
                b'-' | b'_' => true,
                _ => byte.is_ascii_alphanumeric(),
            };
            if !good {
                return Err(BadAuthority::BadHost);
            }
            before = byte;
        }
        if before == b'.' {
            return Err(BadAuthority::BadHost);
        }
        Ok(Self { host, port })
    }

    /// The same host, in any case.
    #[must_use]
    pub fn same_host(&self, other: &Authority<'_>) -> bool {
        self.host.eq_ignore_ascii_case(other.host)
    }
}

/// An empty port is legal (RFC 3986 section 3.2.3) and means none.
fn parse_port(digits: &str) -> Result<Option<u16>, BadAuthority> {
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadAuthority::BadPort);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(BadAuthority::BadPort),
        Ok(port) => Ok(Some(port)),
    }
}

#[cfg(test)]
mod tests;
