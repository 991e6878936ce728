//! Who the client is, when proxies in front say so: `X-Forwarded-For` through trusted networks.
//!
//! Each proxy appends the address it was called from, so only what stands to the right of the first untrusted hop is
//! known; anything left of it may be invented (reliability.md F1, F2). It does not know what the address is used for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Elements that are looked at, from the right. Chains of proxies are shorter than ten; a list of thousands is an attack.
const MAX_HOPS: usize = 64;

/// Walks all `X-Forwarded-For` lines from the right past `trusted` networks. `peer` is the socket's (or PROXY
/// protocol's) address; the lines count only when it is trusted. Garbage stops the walk at the last good hop.
/// IPv4-mapped IPv6 addresses come out as IPv4.
pub fn client_address<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> IpAddr {
    let mut client = peer.to_canonical();
    let hops = forwarded_for.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    for hop in hops.take(MAX_HOPS) {
        if !trusted.iter().any(|network| network.contains(&client)) {
            break;
        }
        let hop = hop.trim_ascii();
        // Empty elements of a list mean nothing (RFC 9110 section 5.6.1.2).
        if hop.is_empty() {
            continue;
        }
        let Some(address) = parse_hop(hop) else {
            break;
        };
        client = address;
    }
    client
}

/// `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`. Zone ids mean nothing on another
/// machine and are garbage.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    if hop.contains('%') {
        return None;
    }
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let address = hop
        .parse::<IpAddr>()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|network| network.parse().expect("a network")).collect();
        let peer = peer.parse().expect("an address");
        client_address(peer, &trusted, lines.iter().map(|line| line.as_bytes())).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
    }

    #[test]
    fn a_trusted_peer_without_a_list_is_the_client() {
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[" , "]), "10.0.0.1");
    }

    #[test]
    fn the_walk_stops_at_the_first_untrusted_hop_from_the_right() {
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.0.0.2"]), "198.51.100.7");
    }

    #[test]
    fn several_lines_are_one_list_in_order() {
        assert_eq!(client("10.0.0.1", &["6.6.6.6", "198.51.100.7", "10.0.0.3, 10.0.0.2"]), "198.51.100.7");
    }

    #[test]
    fn when_everyone_is_trusted_the_leftmost_hop_is_the_client() {
        assert_eq!(client("10.0.0.1", &["10.0.0.3,10.0.0.2"]), "10.0.0.3");
    }

    #[test]
    fn garbage_stops_the_walk_at_the_last_good_hop() {
        for garbage in
            ["unknown", "_hidden", "1.2.3", "1.2.3.4:x", "\"[::1]\"", "fe80::1%eth0", "[fe80::1%1]:80", "1.2.3.4 x"]
        {
            let line = format!("198.51.100.7, {garbage}, 10.0.0.2");
            assert_eq!(client("10.0.0.1", &[&line]), "10.0.0.2", "{garbage}");
        }
    }

    #[test]
    fn ports_and_brackets_are_cut_off() {
        for (hop, address) in [
            ("198.51.100.7:567", "198.51.100.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:198.51.100.7", "198.51.100.7"),
        ] {
            assert_eq!(client("10.0.0.1", &[hop]), address);
        }
    }

    #[test]
    fn a_mapped_peer_is_trusted_as_the_v4_address_it_is() {
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("::ffff:192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
    }

    #[test]
    fn the_walk_is_bounded() {
        let line = format!("198.51.100.7{}", ", 10.0.0.2".repeat(1000));

        assert_eq!(client("10.0.0.1", &[&line]), "10.0.0.2");
    }

    proptest! {
        #[test]
        fn nothing_to_the_left_of_an_untrusted_hop_matters(left in ".{0,40}", right in "(, ?10\\.0\\.0\\.[1-9]){0,5}") {
            let known = format!("198.51.100.7{right}");
            let spoofed = format!("{left},{known}");
            prop_assert_eq!(client("10.0.0.1", &[&known]), "198.51.100.7");
            prop_assert_eq!(client("10.0.0.1", &[&spoofed]), "198.51.100.7");
            prop_assert_eq!(client("10.0.0.1", &[&left, &known]), "198.51.100.7");
        }
    }
}
