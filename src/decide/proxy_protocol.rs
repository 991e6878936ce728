//! The PROXY protocol, versions 1 and 2, read from bytes (haproxy `doc/proxy-protocol.txt`).
//!
//! Strict where the specification is (reliability.md F3, F4): what a sender that is trusted with addresses gets wrong
//! closes the connection, nothing is guessed. Own code because the `ppp` crate checks neither the CRC32C nor that the
//! TLVs end with the header, and refuses a LOCAL header of a family it does not know, which the specification says to
//! ignore. The CRC is 10 lines, less than a dependency. It does not know who may send a header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes to skip.
    pub length: usize,
    /// Source and destination; `None` for LOCAL, UNKNOWN, unix sockets and datagrams: use the socket's own address.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Complete(Header),
    /// More bytes are needed, this many at least in all. Reading no more than that never reads past the header.
    Partial(usize),
    /// Not a PROXY header.
    Missing,
    /// A broken one; what is wrong with it.
    Malformed(&'static str),
}

const V1_PREFIX: &[u8] = b"PROXY ";
/// `PROXY UNKNOWN\r\n`.
const V1_SHORTEST: usize = 15;
/// The specification's worst case, with the final CRLF.
const V1_LONGEST: usize = 107;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEAD: usize = 16;
const TLV_CRC32C: u8 = 0x03;

/// Reads a header from the start of `bytes`. A header of version 2 has at most 65,551 bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    if starts_alike(bytes, V1_PREFIX) {
        return parse_v1(bytes);
    }
    if starts_alike(bytes, &V2_SIGNATURE) {
        return parse_v2(bytes);
    }
    Parsed::Missing
}

/// As far as both go.
fn starts_alike(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(a, b)| a == b)
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let window = bytes.get(..V1_LONGEST).unwrap_or(bytes);
    let Some(end) = window.iter().position(|byte| !(b' '..=b'~').contains(byte)) else {
        if window.len() == V1_LONGEST {
            return Parsed::Malformed("no end of line within 107 bytes");
        }
        return Parsed::Partial(V1_SHORTEST.max(bytes.len() + 2).min(V1_LONGEST));
    };
    let line = match window.split_at_checked(end) {
        Some((line, [b'\r', b'\n', ..])) => line,
        Some((_, [b'\r'])) if window.len() < V1_LONGEST => return Parsed::Partial(V1_SHORTEST.max(bytes.len() + 1)),
        Some((_, [b'\r'])) => return Parsed::Malformed("no end of line within 107 bytes"),
        _ => return Parsed::Malformed("a byte that no line has"),
    };
    match v1_addresses(line) {
        Ok(addresses) => Parsed::Complete(Header { length: line.len() + 2, addresses }),
        Err(wrong) => Parsed::Malformed(wrong),
    }
}

fn v1_addresses(line: &[u8]) -> Result<Option<(SocketAddr, SocketAddr)>, &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "a byte that no line has")?;
    let mut words = line.split(' ').skip(1);
    let version_4 = match words.next() {
        // The rest of the line is to be ignored.
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err("neither TCP4, TCP6 nor UNKNOWN"),
    };
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        // std refuses leading zeroes in IPv4 and zone ids in IPv6, as the specification does.
        if version_4 { word.parse().ok().map(IpAddr::V4) } else { word.parse().ok().map(IpAddr::V6) }
    };
    let (source, destination) = (address(), address());
    let (source, destination) = source.zip(destination).ok_or("not two addresses of the family")?;
    let mut port = || words.next().and_then(v1_port).ok_or("not two ports from 0 to 65535");
    let addresses = (SocketAddr::new(source, port()?), SocketAddr::new(destination, port()?));
    if words.next().is_some() {
        return Err("more than six words");
    }
    Ok(Some(addresses))
}

/// No sign, no leading zeroes.
fn v1_port(word: &str) -> Option<u16> {
    let plain = word == "0" || word.starts_with(|first: char| ('1'..='9').contains(&first));
    if plain { word.parse().ok() } else { None }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD>() else {
        return match bytes.get(V2_SIGNATURE.len()) {
            Some(version) if version >> 4 != 2 => Parsed::Malformed("a version other than 2"),
            _ => Parsed::Partial(V2_HEAD),
        };
    };
    let [.., command, family, high, low] = *head;
    let size = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_HEAD + size;
    let (local, address_size) = match (command, family) {
        (0x20, _) => (true, 0),
        (0x21, 0x00) => (false, 0),
        (0x21, 0x11 | 0x12) => (false, 12),
        (0x21, 0x21 | 0x22) => (false, 36),
        (0x21, 0x31 | 0x32) => (false, 216),
        (0x21, _) => return Parsed::Malformed("an unknown address family or protocol"),
        (0x22..=0x2f, _) => return Parsed::Malformed("an unknown command"),
        _ => return Parsed::Malformed("a version other than 2"),
    };
    if size < address_size {
        return Parsed::Malformed("a length that has no room for the addresses");
    }
    let Some((payload, _)) = rest.split_at_checked(size) else {
        return Parsed::Partial(length);
    };
    // "The receiver must discard the protocol block, including the family."
    if local {
        return Parsed::Complete(Header { length, addresses: None });
    }
    let Some((addresses, tlvs)) = payload.split_at_checked(address_size) else {
        return Parsed::Malformed("a length that has no room for the addresses");
    };
    if let Err(wrong) = check_tlvs(head, addresses, tlvs) {
        return Parsed::Malformed(wrong);
    }
    Parsed::Complete(Header { length, addresses: v2_addresses(family, addresses) })
}

fn v2_addresses(family: u8, block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match family {
        0x11 => {
            let (source, rest) = block.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            with_ports(Ipv4Addr::from(*source), Ipv4Addr::from(*destination), ports)
        }
        0x21 => {
            let (source, rest) = block.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            with_ports(Ipv6Addr::from(*source), Ipv6Addr::from(*destination), ports)
        }
        // Unspecified, unix sockets, and datagrams, which a TCP connection does not carry.
        _ => None,
    }
}

fn with_ports<A: Into<IpAddr>>(source: A, destination: A, ports: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let [a, b, c, d] = *ports else {
        return None;
    };
    let source = SocketAddr::new(source.into(), u16::from_be_bytes([a, b]));
    Some((source, SocketAddr::new(destination.into(), u16::from_be_bytes([c, d]))))
}

/// The TLVs fill their space to the last byte, and the checksum over the whole header holds if there is one.
fn check_tlvs(head: &[u8], addresses: &[u8], tlvs: &[u8]) -> Result<(), &'static str> {
    const OVERRUN: &str = "a TLV that does not end with the header";
    let mut rest = tlvs;
    let mut checksum = None;
    while let Some((&kind, after)) = rest.split_first() {
        let (size, after) = after.split_first_chunk::<2>().ok_or(OVERRUN)?;
        let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*size))).ok_or(OVERRUN)?;
        if kind == TLV_CRC32C {
            let sent: [u8; 4] = value.try_into().map_err(|_| "a CRC32C of other than 4 bytes")?;
            let before = tlvs.len() - after.len() - value.len();
            if checksum.replace((u32::from_be_bytes(sent), before, after)).is_some() {
                return Err("two CRC32C");
            }
        }
        rest = after;
    }
    let Some((sent, before, after)) = checksum else {
        return Ok(());
    };
    let before = tlvs.get(..before).ok_or(OVERRUN)?;
    // Its own field counts as zeroes.
    let parts = [head, addresses, before, &[0; 4], after];
    if crc32c(parts.into_iter().flatten().copied()) == sent { Ok(()) } else { Err("a wrong CRC32C") }
}

/// Castagnoli's, bit by bit: one header per connection, and only if the sender adds it.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let register = bytes.fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(byte), |bits, _| (bits >> 1) ^ if bits & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    !register
}

/// The text header for a connection from `source` to `destination`; IPv6 as soon as one of them is.
#[must_use]
pub fn encode_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ("TCP4", from.to_string(), to.to_string()),
        (from, to) => ("TCP6", as_v6(from).to_string(), as_v6(to).to_string()),
    };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// The binary header for a connection from `source` to `destination`; IPv6 as soon as one of them is.
#[must_use]
pub fn encode_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([0x21, 0x11, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            header.extend([0x21, 0x21, 0, 36]);
            header.extend(as_v6(from).octets());
            header.extend(as_v6(to).octets());
        }
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests;
