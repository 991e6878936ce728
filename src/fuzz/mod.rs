//! What must hold for any bytes, one function per part that reads what strangers send.
//!
//! The bodies of the fuzzers (`fuzz/`, cargo-fuzz) and of the property tests (`tests`), which also replay the corpus in
//! `fuzz/seeds`. Each compares with a plain model ([`naive`]) or an independent parser ([`strict`]) where there is one,
//! and panics where perch is wrong. Not in what ships: it is compiled for tests and fuzzers only.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a panic is how these fail, and clippy takes only what is cfg(test) alone for a test"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::IpNet;

use crate::config;
use crate::control::kubernetes::objects;
use crate::decide::client_address::client_address;
use crate::decide::fields::{self, Field};
use crate::decide::proxy_protocol::{self, Parsed};
use crate::decide::route::{Hostname, PathMatch, RouteTable};
use crate::decide::slices::{self, Chosen, Port, Reading};
use crate::decide::target::{self, Authority};

mod front;
mod naive;
mod strict;
#[cfg(test)]
mod tests;

/// A target's name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; `fuzz/targets` has a file for each.
pub const TARGETS: [Target; 7] = [
    ("config", config),
    ("proxy_header", proxy_header),
    ("forwarded", forwarded),
    ("path", path),
    ("host", host),
    ("slices", slices),
    ("front", front),
];

/// A configuration is read without a fall, and what is read is written so that it reads the same.
pub fn config(bytes: &[u8]) {
    let env = |name: &str| (name == "SET").then(|| "7".to_owned());
    // A folder that is not there: no file of this machine is read.
    let folder = Path::new("/nowhere/at/all");
    // A token's file would be.
    if bytes.windows(9).any(|window| window == b"tokenFile") {
        return;
    }
    match config::parse_bytes(bytes, folder, &env) {
        Err(invalid) => {
            assert!(!invalid.problems.is_empty(), "invalid without a problem");
            let lines = 1 + bytes.iter().filter(|b| matches!(b, b'\n' | b'\r')).count();
            for problem in &invalid.problems {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?} of {lines} lines");
                assert!(!problem.message.contains(['\n', '\r', '\x1b']), "more than a line: {problem:?}");
            }
        }
        Ok(loaded) => {
            let dumped = config::dump(&loaded.config);
            let text = dumped.to_string();
            if text.contains(config::REDACTED) || text.contains("${") {
                return;
            }
            let again = config::parse(&text, folder, &env).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(config::dump(&again.config), dumped);
        }
    }
}

/// A PROXY header ends where it says, asks for no byte past its end, and is read the same whatever follows.
pub fn proxy_header(bytes: &[u8]) {
    match proxy_protocol::parse(bytes) {
        Parsed::Complete(header) => {
            assert!(header.length <= bytes.len());
            assert_eq!(proxy_protocol::parse(&bytes[..header.length]), Parsed::Complete(header));
            for cut in 0..header.length {
                let Parsed::Partial(needed) = proxy_protocol::parse(&bytes[..cut]) else { panic!("no front at {cut}") };
                assert!((cut + 1..=header.length).contains(&needed), "{needed} bytes at {cut} of {}", header.length);
            }
            let Some((source, destination)) = header.addresses else { return };
            let written = if bytes.starts_with(b"PROXY") {
                proxy_protocol::encode_v1(source, destination)
            } else {
                proxy_protocol::encode_v2(source, destination)
            };
            let Parsed::Complete(again) = proxy_protocol::parse(&written) else { panic!("{written:?}") };
            assert_eq!(again.addresses, header.addresses);
        }
        Parsed::Partial(needed) => assert!(needed > bytes.len()),
        Parsed::Missing => assert!(!bytes.starts_with(b"PROXY ")),
        Parsed::Malformed(_) => {}
    }
}

/// Who the client is: a trusted peer's word, hop by hop; the first line says who the peer is, the others are fields.
pub fn forwarded(bytes: &[u8]) {
    let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8", "127.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let mut lines = bytes.split(|b| *b == b'\n');
    let first = lines.next().and_then(|line| std::str::from_utf8(line).ok()).and_then(|line| line.parse().ok());
    let peer: IpAddr = first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let lines: Vec<&[u8]> = lines.collect();

    let client = client_address(peer, &trusted, lines.iter().copied());

    assert_eq!(client, naive::client(peer, &trusted, &lines.join(&b","[..])));
    assert_eq!(client, client.to_canonical());
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    if !is_trusted(client) {
        // Whoever spoke to the first trusted hop may have written anything to the left of its own address.
        let spoofed = [&[&b"8.8.8.8, 10.0.0.1"[..]], &lines[..]].concat();
        assert_eq!(client_address(peer, &trusted, spoofed.into_iter()), client);
    }
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        assert_eq!(fields::classify(name), fields::classify(&name.to_ascii_uppercase()));
        let dashed: Vec<u8> = name.iter().map(|b| if *b == b'_' { b'-' } else { *b }).collect();
        let means_ours = fields::classify(&dashed) != Field::Other;
        let expected = if dashed != name && means_ours { Field::UnderscoreAlias } else { fields::classify(&dashed) };
        assert_eq!(fields::classify(name), expected, "{}", name.escape_ascii());
        assert_eq!(fields::trim(fields::trim(value)), fields::trim(value));
        assert!(fields::elements(value).all(|element| !element.is_empty() && !element.contains(&b',')));
        if let Some(length) = fields::content_length(value) {
            assert_eq!(length.to_string().as_bytes(), value);
        }
    }
}

/// One cleaning of the path, the one of RFC 3986, and nothing in it that is read as `..` later.
pub fn path(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = target::split_query(text);
    let cleaned = target::normalise(path).ok();
    assert_eq!(cleaned.as_deref(), naive::clean_path(path).as_deref(), "{path:?}");
    if let Some(clean) = cleaned {
        assert_eq!(target::normalise(&clean).as_deref(), Ok(&*clean), "cleaned twice");
        assert!(clean.len() <= path.len());
    }
    let is_good = query.is_none_or(|query| query.bytes().all(|b| b.is_ascii_graphic() && b != b'#'));
    assert_eq!(query.is_none_or(|query| target::check_query(query).is_ok()), is_good);
}

/// The route table finds what a walk over all rules finds. The first line is asked for, `host path`; the others are
/// rules, of the same form, a path with a `=` in front being exact.
pub fn host(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let asked = lines.next().unwrap_or_default();
    let (host, path) = asked.split_once(' ').unwrap_or((asked, "/"));
    // What the request's and the configuration's readers let through.
    let authority = Authority::parse(host);
    if let Ok(authority) = authority {
        assert!(!authority.host.is_empty() && !authority.host.contains(['@', '/', ' ', '%', ',', '\\']));
        assert_eq!(Authority::parse(authority.host).map(|a| (a.host, a.port)), Ok((authority.host, None)));
    }
    let (Ok(authority), Ok(path)) = (authority, target::normalise(path)) else { return };
    let rules: Vec<(Option<Hostname>, PathMatch)> = lines.take(50).filter_map(rule).collect();
    let owned: Vec<(Vec<Hostname>, Vec<PathMatch>)> =
        rules.iter().map(|(host, path)| (host.iter().cloned().collect(), vec![path.clone()])).collect();
    let table = RouteTable::new(owned.iter().enumerate().map(|(at, (hosts, paths))| (&hosts[..], &paths[..], at)));

    assert_eq!(table.find(authority.host, &path), naive::route(&rules, authority.host, &path), "{rules:?}");
}

fn rule(line: &str) -> Option<(Option<Hostname>, PathMatch)> {
    let (host, path) = line.split_once(' ')?;
    let name = |text: &str| Some(Authority::parse(text).ok().filter(|a| a.port.is_none())?.host.to_ascii_lowercase());
    let host = match host.strip_prefix("*.") {
        _ if host.is_empty() => None,
        Some(suffix) => Some(Hostname::Wildcard(name(suffix)?)),
        None => Some(Hostname::Exact(name(host)?)),
    };
    let path = match path.strip_prefix('=') {
        Some(exact) => PathMatch::Exact(target::normalise(exact).ok()?.into_owned()),
        None => PathMatch::Prefix(target::normalise(path).ok()?.trim_end_matches('/').to_owned()),
    };
    Some((host, path))
}

/// What EndpointSlices say depends on the set of them, not on their order or on how often they came. A line is an event
/// of a watch or a slice by itself.
pub fn slices(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let slices = objects::slices_of_watch(text);
    let choose = |pod: Option<&slices::Pod>| match pod.map(|pod| pod.uid.len() % 3) {
        None | Some(1) => Chosen::Yes,
        Some(2) => Chosen::No,
        Some(_) => Chosen::Unknown,
    };
    for port in [Port::Number(80), Port::Name("http".into()), Port::Name(String::new())] {
        let reading = slices::read(&slices, &port, choose);

        let others: Vec<_> = slices.iter().rev().chain(&slices).collect();
        let again = slices::read(others, &port, choose);
        let without_order = |reading: &Reading| {
            let mut awaited = reading.awaited.clone();
            awaited.sort();
            awaited.dedup();
            (reading.usable.clone(), reading.ending.clone(), reading.unready.clone(), reading.named.clone(), awaited)
        };
        assert_eq!(without_order(&reading), without_order(&again), "{port}");
        let addresses: Vec<_> = reading.usable.iter().map(|d| d.address).collect();
        assert!(addresses.is_sorted() && addresses.windows(2).all(|two| two[0] != two[1]), "{addresses:?}");
        assert!(addresses.iter().all(|address| reading.named.contains(address)));
        assert!(reading.unready.iter().all(|a| reading.named.contains(a) && !addresses.contains(a)));
        assert!(reading.ending.iter().all(|address| addresses.contains(address)));
        let all_draining = !reading.usable.is_empty() && reading.usable.iter().all(|d| d.is_draining);
        assert!(!all_draining, "nothing left to send new users to");
    }
}

/// Any bytes through the real proxy, see [`front`](self::front).
pub fn front(bytes: &[u8]) {
    front::run(bytes);
}
