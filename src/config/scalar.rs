//! Small texts to values: `${VAR}`, durations, addresses, networks, names. Pure; knows nothing of YAML.
//!
//! An error is what is wrong, in words that read on after the key path; the caller adds what to write instead.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::model::EndpointAddress;
use crate::decide::route::Hostname;

/// Text as it may be shown on a terminal: quoted, escaped, cut.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// Replaces `${NAME}` and `${NAME:-default}`; `$${` is a literal `${`. As in a shell, `:-` also covers an empty one.
pub(super) fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((inside, tail)) = after.split_once('}') else {
            return Err(format!("{} has a ${{ without a }}; write ${{NAME}}, or $${{ for a plain ${{", shown(text)));
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("{} is not a variable's name; write ${{NAME}} or ${{NAME:-default}}", shown(name)));
        }
        if default.is_some_and(|d| d.contains("${")) {
            return Err(format!("the default of ${{{name}}} has a variable in it; write a plain default"));
        }
        match (env(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
                ));
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// `10s`, `500ms`, `5m`, `1h`, `1h30m` (the shape of Gateway API's GEP-2257).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let not = || format!("{} is not a duration", shown(text));
    if text.parse::<f64>().is_ok() {
        return Err(format!("{} has no unit", shown(text)));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut last = u64::MAX;
    while !rest.is_empty() || last == u64::MAX {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(not)?;
        let (number, tail) = rest.split_at(digits);
        let units = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(units);
        let millis = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(not()),
        };
        // Large units first, each once: 1h30m, not 30m1h.
        if millis >= last || number.len() > 9 {
            return Err(not());
        }
        last = millis;
        let number: u64 = number.parse().map_err(|_| not())?;
        total += Duration::from_millis(number.saturating_mul(millis));
        rest = tail;
    }
    Ok(total)
}

/// A duration as it is written in the file: the inverse of [`duration`].
pub(super) fn duration_text(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= length {
            text.push_str(&format!("{}{unit}", millis / length));
            millis %= length;
        }
    }
    text
}

/// Units of sizes; Kubernetes leaves the B out.
const SIZES: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// `512MiB`, `2GiB`, `512Mi`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let not = || format!("{} is not a size", shown(text));
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("{} has no unit", shown(text)));
    }
    let is_unit = |name: &str| name == unit || name.strip_suffix('B') == Some(unit);
    let (_, bits) = SIZES.into_iter().find(|(name, _)| is_unit(name)).ok_or_else(not)?;
    let number: u64 = number.parse().map_err(|_| not())?;
    number.checked_mul(1 << bits).ok_or_else(|| format!("{text} is too large"))
}

/// In the largest unit that keeps it whole.
pub(super) fn size_text(bytes: u64) -> String {
    let whole = SIZES.into_iter().find(|(_, bits)| bytes.is_multiple_of(1 << bits));
    whole.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

/// A network, or one address. An IPv4-mapped one becomes the IPv4 network, as clients' addresses do.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let net = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => net,
        (_, Ok(address)) => IpNet::from(address),
        _ => return Err(format!("{} is not a network", shown(text))),
    };
    if net.trunc() != net {
        return Err(format!("{net} has bits set behind its prefix (the network is {})", net.trunc()));
    }
    Ok(match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(prefix)) => Ipv4Net::new(v4, prefix).map_or(net, IpNet::V4),
            _ => net,
        },
        IpNet::V4(_) => net,
    })
}

/// Where to listen; port 0 lets the system choose.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) if text.parse::<IpAddr>().is_ok() => Err(format!("{} has no port", shown(text))),
        Err(_) if text.starts_with(':') => Err(format!("{} has no address in front of the port", shown(text))),
        Err(_) => Err(format!("{} is not an address with a port", shown(text))),
    }
}

/// `ip:port`, `name:port`, or either as an `http://` URL without a path.
pub(super) fn endpoint(text: &str) -> Result<EndpointAddress, String> {
    if text.starts_with("https://") {
        return Err(format!("{} asks for TLS, which perch does not speak to endpoints", shown(text)));
    }
    let address = match text.strip_prefix("http://") {
        Some(url) => url.strip_suffix('/').unwrap_or(url),
        None => text,
    };
    if let Ok(address) = address.parse::<SocketAddr>() {
        return match address.ip() {
            _ if address.port() == 0 => Err(format!("{} has port 0, which nobody can connect to", shown(text))),
            ip if ip.is_unspecified() || ip.is_multicast() => {
                Err(format!("{ip} is not an address that can be connected to"))
            }
            _ => Ok(EndpointAddress::Ip(address)),
        };
    }
    if address.parse::<IpAddr>().is_ok() {
        return Err(format!("{} has no port", shown(text)));
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(format!("{} has no port", shown(text)));
    };
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => return Err(format!("{} is not a port from 1 to 65535", shown(port))),
    };
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    dns_name(&host, "_")?;
    Ok(EndpointAddress::Name { host, port })
}

/// `shop.example.com`, `*.example.com`, or an IPv4 address (for tests by address).
pub(super) fn hostname(text: &str) -> Result<Hostname, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name == "*" {
        return Err("\"*\" is no host name (without hostnames, a route holds for any host)".into());
    }
    if name.contains("://") || name.contains('/') {
        return Err(format!("{} is a URL, not a host name", shown(text)));
    }
    if name.contains(':') {
        return Err(format!("{} has a port or is an IPv6 address; a host name has neither", shown(text)));
    }
    if name.parse::<IpAddr>().is_ok() {
        return Ok(Hostname::Exact(name));
    }
    match name.strip_prefix("*.") {
        Some(parent) => dns_name(parent, "").map(|()| Hostname::Wildcard(parent.to_owned())),
        None if name.contains('*') => Err(format!("{} has a * that is not its whole first label", shown(text))),
        None => dns_name(&name, "").map(|()| Hostname::Exact(name)),
    }
}

/// RFC 1123; a last label of digits is a mistyped address (WHATWG URL, "ends in a number").
fn dns_name(name: &str, also: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || also.contains(c);
    if !name.is_ascii() {
        return Err(format!("{} is not in ASCII (its xn-- form is)", shown(name)));
    }
    let label =
        |l: &str| !l.is_empty() && l.len() <= 63 && l.chars().all(letter) && !l.starts_with('-') && !l.ends_with('-');
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("{} is not a host name", shown(name)));
    }
    match name.rsplit('.').next() {
        Some(last) if last.chars().all(|c| c.is_ascii_digit()) => {
            Err(format!("{} is neither a host name nor an address", shown(name)))
        }
        _ => Ok(()),
    }
}

/// The name of a listener, route, service or version: what may stand in a metric's label, a header and a URL as it is.
pub(super) fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() <= 63 && text.chars().all(good) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not a name", shown(text)))
    }
}
