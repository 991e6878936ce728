//! The client key: what identifies a user to the split and to affinity.
//!
//! An address cut to a prefix. An IPv4-mapped IPv6 address is the IPv4 address (RFC 4291 section 2.5.5.2), so a client
//! is the same user through a dual-stack socket and through an IPv4 one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many leading bits of an address tell two users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPrefix {
    v4: u8,
    v6: u8,
}

impl KeyPrefix {
    /// `v4` in bits from 0 to 32, `v6` in bits from 0 to 128. `None` when out of range.
    #[must_use]
    pub const fn new(v4: u8, v6: u8) -> Option<Self> {
        if v4 > 32 || v6 > 128 { None } else { Some(Self { v4, v6 }) }
    }

    /// Bits of an IPv4 address that count.
    #[must_use]
    pub const fn v4(self) -> u8 {
        self.v4
    }

    /// Bits of an IPv6 address that count.
    #[must_use]
    pub const fn v6(self) -> u8 {
        self.v6
    }
}

impl Default for KeyPrefix {
    /// /32 and /64. /64 and not /128: a host changes its low bits daily (RFC 8981).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// A client's address cut to its prefix: 128 bits, IPv4 in its mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(u128);

/// Bits in front of the IPv4 part of an IPv4-mapped address.
const MAPPED_BITS: u8 = 96;

impl ClientKey {
    /// The key of `address` under `prefix`.
    #[must_use]
    pub const fn new(address: IpAddr, prefix: KeyPrefix) -> Self {
        let (bits, keep) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), MAPPED_BITS + prefix.v4),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(_) => (v6.to_bits(), MAPPED_BITS + prefix.v4),
                None => (v6.to_bits(), prefix.v6),
            },
        };
        Self(match keep {
            0 => 0,
            keep => bits & (u128::MAX << (128 - keep)),
        })
    }

    /// The 16 bytes that are hashed, in network order.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The key that [`Self::bytes`] told.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The key as an address, low bits zero; IPv4 is shown as IPv4.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        let v6 = Ipv6Addr::from_bits(self.0);
        match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(v6),
        }
    }

    /// The neighbourhood that shares a fate in a flood: the IPv4 /16 or the IPv6 /32 (what a registry hands to one
    /// network), so that one network's addresses compete with each other for room in the pin table.
    #[must_use]
    pub const fn neighbourhood(self) -> u64 {
        match self.address() {
            IpAddr::V4(v4) => 1 << 32 | (Ipv4Addr::to_bits(v4) >> 16) as u64,
            IpAddr::V6(v6) => (v6.to_bits() >> 96) as u64,
        }
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(address: &str) -> ClientKey {
        ClientKey::new(address.parse().unwrap(), KeyPrefix::default())
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_client() {
        assert_eq!(key("::ffff:192.0.2.7"), key("192.0.2.7"));
    }

    #[test]
    fn addresses_of_one_64_are_one_client() {
        assert_eq!(key("2001:db8::1"), key("2001:db8::dead:beef:1:2"));
    }

    #[test]
    fn neighbouring_64s_are_two_clients() {
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
    }

    #[test]
    fn a_prefix_of_zero_makes_everyone_one_client() {
        let all = KeyPrefix::new(0, 0).unwrap();

        assert_eq!(
            ClientKey::new("2001:db8::1".parse().unwrap(), all),
            ClientKey::new("fe80::1".parse().unwrap(), all)
        );
    }

    proptest! {
        #[test]
        fn bytes_tell_the_whole_key(bits: u128, v4 in 0u8..=32, v6 in 0u8..=128) {
            let key = ClientKey::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), KeyPrefix::new(v4, v6).unwrap());

            prop_assert_eq!(ClientKey::from_bytes(key.bytes()), key);
        }

        #[test]
        fn addresses_are_one_client_if_they_share_the_prefix_and_only_then(a: u32, flip in 0u8..32, keep in 0u8..=32) {
            let prefix = KeyPrefix::new(keep, 64).unwrap();
            let key = |bits| ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(bits)), prefix);

            prop_assert_eq!(key(a) == key(a ^ (1 << (31 - flip))), flip >= keep);
        }

        #[test]
        fn the_same_holds_for_ipv6(a: u128, flip in 0u8..128, keep in 0u8..=128) {
            let prefix = KeyPrefix::new(32, keep).unwrap();
            let key = |bits| ClientKey::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix);
            let mapped = |bits| Ipv6Addr::from_bits(bits).to_ipv4_mapped().is_some();
            let b = a ^ (1 << (127 - flip));
            prop_assume!(!mapped(a) && !mapped(b));

            prop_assert_eq!(key(a) == key(b), flip >= keep);
        }
    }

    #[test]
    fn a_prefix_longer_than_an_address_is_none() {
        assert!(KeyPrefix::new(33, 64).is_none() && KeyPrefix::new(32, 129).is_none());
    }

    #[test]
    fn a_key_prints_as_its_network_address() {
        assert_eq!(key("192.0.2.7").to_string(), "192.0.2.7");
        assert_eq!(key("2001:db8:0:5:1::9").to_string(), "2001:db8:0:5::");
    }
}
