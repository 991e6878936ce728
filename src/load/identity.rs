//! Who the clients are: N addresses out of ranges, and how the server gets to see them.
//!
//! An identity is only its index: the address is computed when a connection is made, so 100,000 clients cost nothing.
//! Neighbouring indexes are neighbouring addresses, the hardest case for a weak hash.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How a client's address reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Identity {
    /// The connection comes from the client's address
    Source,
    /// A PROXY protocol header, version 2, in front of the connection
    ProxyV2,
    /// A PROXY protocol header, version 1 (text)
    ProxyV1,
    /// An X-Forwarded-For field in each request
    Xff,
    /// All clients look the same
    None,
}

impl Identity {
    /// A connection belongs to one client.
    #[must_use]
    pub const fn owns_connections(self) -> bool {
        matches!(self, Self::Source | Self::ProxyV2 | Self::ProxyV1)
    }

    /// As on the command line.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::ProxyV2 => "proxy-v2",
            Self::ProxyV1 => "proxy-v1",
            Self::Xff => "xff",
            Self::None => "none",
        }
    }
}

/// Ranges that the clients' addresses come from, in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<IpNet>);

impl Ranges {
    /// Room for `clients` addresses in `ranges`; the message says which range is too small.
    ///
    /// # Errors
    /// When there is no range, or one of them cannot give its part of the clients.
    pub fn new(ranges: Vec<IpNet>, clients: u32) -> Result<Self, String> {
        let each = u128::from(clients).div_ceil(ranges.len().max(1) as u128);
        for range in &ranges {
            let room = capacity(range);
            if room < each {
                return Err(format!(
                    "--from {range}: has room for {room} clients, and {each} of the {clients} would come from it; \
                     give a wider range, another range, or fewer --clients"
                ));
            }
        }
        if ranges.is_empty() { Err("--from: give at least one range".to_owned()) } else { Ok(Self(ranges)) }
    }

    /// The address of client `index`.
    #[must_use]
    pub fn address(&self, index: u32) -> IpAddr {
        let count = u32::try_from(self.0.len()).unwrap_or(1).max(1);
        let within = index / count;
        match self.0.get((index % count) as usize) {
            Some(IpNet::V4(range)) => IpAddr::V4(v4_at(range, within)),
            Some(IpNet::V6(range)) => IpAddr::V6(v6_at(range, within)),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }

    /// The ranges themselves.
    #[must_use]
    pub fn nets(&self) -> &[IpNet] {
        &self.0
    }
}

/// Hosts that end in .0 or .255 are left out of ranges of /24 and wider: some systems take them for networks.
const HOSTS_OF_24: u32 = 254;

fn capacity(range: &IpNet) -> u128 {
    match range {
        IpNet::V4(r) if r.prefix_len() <= 24 => (1 << (24 - r.prefix_len())) * u128::from(HOSTS_OF_24),
        IpNet::V4(r) if r.prefix_len() >= 31 => 1 << (32 - r.prefix_len()),
        IpNet::V4(r) => (1 << (32 - r.prefix_len())) - 2,
        // One client per /64 where the range holds several: servers take a /64 for one user.
        IpNet::V6(r) if r.prefix_len() < 64 => 1 << (64 - r.prefix_len()),
        IpNet::V6(r) if r.prefix_len() >= 127 => 1 << (128 - r.prefix_len()),
        IpNet::V6(r) => (1 << (128 - r.prefix_len())) - 1,
    }
}

fn v4_at(range: &Ipv4Net, within: u32) -> Ipv4Addr {
    let offset = match range.prefix_len() {
        ..=24 => within / HOSTS_OF_24 * 256 + 1 + within % HOSTS_OF_24,
        31.. => within,
        _ => within + 1,
    };
    Ipv4Addr::from_bits(range.network().to_bits().wrapping_add(offset))
}

fn v6_at(range: &Ipv6Net, within: u32) -> Ipv6Addr {
    let offset = match range.prefix_len() {
        ..64 => (u128::from(within) << 64) + 1,
        127.. => u128::from(within),
        _ => u128::from(within) + 1,
    };
    Ipv6Addr::from_bits(range.network().to_bits().wrapping_add(offset))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ranges(texts: &[&str], clients: u32) -> Result<Ranges, String> {
        Ranges::new(texts.iter().map(|t| t.parse().unwrap()).collect(), clients)
    }

    #[test]
    fn every_client_has_an_address_of_its_own() {
        let ranges = ranges(&["127.0.0.0/8", "10.0.0.0/16", "fd00::/48"], 100_000).unwrap();

        let addresses: HashSet<IpAddr> = (0..100_000).map(|i| ranges.address(i)).collect();

        assert_eq!(addresses.len(), 100_000);
        assert!(addresses.iter().all(|a| ranges.nets().iter().any(|n| n.contains(a))));
    }

    #[test]
    fn network_and_broadcast_addresses_are_left_out() {
        let ranges = ranges(&["127.0.0.0/8"], 1000).unwrap();

        assert_eq!(ranges.address(0).to_string(), "127.0.0.1");
        assert_eq!(ranges.address(253).to_string(), "127.0.0.254");
        assert_eq!(ranges.address(254).to_string(), "127.0.1.1");
    }

    #[test]
    fn the_clients_of_an_ipv6_range_are_in_different_64s() {
        let ranges = ranges(&["fd00:1::/48"], 3).unwrap();

        assert_eq!(ranges.address(2).to_string(), "fd00:1:0:2::1");
    }

    #[test]
    fn a_range_that_is_too_small_is_refused_with_its_room() {
        let refused = ranges(&["192.0.2.0/30"], 3).unwrap_err();

        assert!(refused.starts_with("--from 192.0.2.0/30: has room for 2 clients, and 3 of the 3"), "{refused}");
        assert!(ranges(&["192.0.2.0/30"], 2).is_ok());
        assert!(ranges(&["192.0.2.7/32", "::1/128"], 2).is_ok());
    }

    #[test]
    fn the_last_client_of_a_full_range_is_inside_it() {
        for text in
            ["192.0.2.0/24", "192.0.2.0/29", "192.0.2.0/31", "192.0.2.0/32", "fd00::/120", "fd00::/127", "::1/128"]
        {
            let net: IpNet = text.parse().unwrap();
            let room = u32::try_from(capacity(&net)).unwrap();

            let ranges = ranges(&[text], room).unwrap();

            assert!(net.contains(&ranges.address(room - 1)), "{text}");
        }
    }
}
