use proptest::prelude::*;

use super::*;

fn addresses(source: &str, destination: &str) -> Option<(SocketAddr, SocketAddr)> {
    Some((source.parse().expect("an address"), destination.parse().expect("an address")))
}

#[track_caller]
fn malformed(bytes: &[u8]) {
    assert!(matches!(parse(bytes), Parsed::Malformed(_)), "{:?} {:?}", bytes.escape_ascii().to_string(), parse(bytes));
}

/// A v2 header with this command, family and payload, and a true length.
fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = V2_SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    header.extend(payload);
    header
}

const V4_BLOCK: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x34, 0x01, 0xbb];

#[test]
fn a_text_header_gives_source_and_destination() {
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.7 4660 443\r\nGET / HTTP/1.1\r\n";
    let six = b"PROXY TCP6 2001:db8::1 ::1 1 0\r\n";

    assert_eq!(
        parse(line),
        Parsed::Complete(Header { length: 44, addresses: addresses("192.0.2.1:4660", "198.51.100.7:443") })
    );
    assert_eq!(
        parse(six),
        Parsed::Complete(Header { length: six.len(), addresses: addresses("[2001:db8::1]:1", "[::1]:0") })
    );
}

#[test]
fn unknown_means_the_sockets_own_address() {
    for line in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff:f...f 1 whatever\r\n"] {
        assert_eq!(parse(line), Parsed::Complete(Header { length: line.len(), addresses: None }));
    }
}

#[test]
fn a_text_header_that_bends_the_rules_is_malformed() {
    for line in [
        "PROXY TCP4 192.0.2.1 198.51.100.7 4660\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 4660 443 1\r\n",
        "PROXY TCP4 192.0.2.1  198.51.100.7 4660 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 4660 443 \r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.7 4660 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 04660 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 65536\r\n",
        "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n",
        "PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.7 1 2\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 2\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 2\rx",
        "PROXY UNKNOWN \u{1}\r\n",
    ] {
        malformed(line.as_bytes());
    }
}

#[test]
fn a_text_header_ends_within_107_bytes() {
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16)).into_bytes();

    assert!(matches!(parse(&line(107)), Parsed::Complete(_)));
    malformed(&line(108));
    malformed(&[&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat());
}

#[test]
fn a_binary_header_gives_source_and_destination() {
    let header = v2(0x21, 0x11, &V4_BLOCK);

    assert_eq!(
        parse(&header),
        Parsed::Complete(Header { length: 28, addresses: addresses("192.0.2.1:4660", "198.51.100.7:443") })
    );
}

#[test]
fn local_means_the_sockets_own_address_whatever_follows() {
    for (family, payload) in [(0x00, &[][..]), (0x11, &V4_BLOCK), (0xff, b"\x03\x00")] {
        let header = v2(0x20, family, payload);
        assert_eq!(parse(&header), Parsed::Complete(Header { length: header.len(), addresses: None }));
    }
}

#[test]
fn other_families_mean_the_sockets_own_address() {
    for header in [v2(0x21, 0x00, &[]), v2(0x21, 0x31, &[b'a'; 216]), v2(0x21, 0x12, &V4_BLOCK)] {
        assert_eq!(parse(&header), Parsed::Complete(Header { length: header.len(), addresses: None }));
    }
}

#[test]
fn a_binary_header_that_bends_the_rules_is_malformed() {
    malformed(&v2(0x11, 0x11, &V4_BLOCK));
    malformed(&v2(0x22, 0x11, &V4_BLOCK));
    malformed(&v2(0x21, 0x10, &V4_BLOCK));
    malformed(&v2(0x21, 0x41, &V4_BLOCK));
    malformed(&v2(0x21, 0x13, &V4_BLOCK));
    malformed(&v2(0x21, 0x11, &V4_BLOCK[..11]));
    malformed(&v2(0x21, 0x21, &V4_BLOCK));
    malformed(&v2(0x21, 0x31, &V4_BLOCK));
    malformed(&[&V2_SIGNATURE[..], &[0x31]].concat());
}

#[test]
fn tlvs_end_with_the_header() {
    let with = |tlvs: &[u8]| v2(0x21, 0x11, &[&V4_BLOCK[..], tlvs].concat());

    assert!(matches!(parse(&with(&[0x04, 0, 0, 0xee, 0, 2, 1, 2])), Parsed::Complete(_)));
    malformed(&with(&[0x04]));
    malformed(&with(&[0x04, 0]));
    malformed(&with(&[0x04, 0, 1]));
    malformed(&with(&[0x04, 0, 0, 0x04, 0xff, 0xff, 1]));
}

fn with_crc(tlvs_before: &[u8], tlvs_after: &[u8]) -> Vec<u8> {
    let payload = [&V4_BLOCK[..], tlvs_before, &[TLV_CRC32C, 0, 4, 0, 0, 0, 0], tlvs_after].concat();
    let mut header = v2(0x21, 0x11, &payload);
    let sum = crc32c(header.iter().copied());
    let at = V2_HEAD + V4_BLOCK.len() + tlvs_before.len() + 3;
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    header
}

#[test]
fn the_crc_is_castagnolis() {
    // RFC 3720 appendix B.4, and the usual check value.
    assert_eq!(crc32c([0; 32].into_iter()), 0x8a91_36aa);
    assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
}

#[test]
fn a_crc_that_is_wrong_doubled_or_of_another_size_is_malformed() {
    let header = with_crc(&[0x04, 0, 1, 9], &[0xee, 0, 0]);
    assert!(matches!(parse(&header), Parsed::Complete(_)));

    for at in [16, 31, 36, 38] {
        let mut changed = header.clone();
        changed[at] ^= 1;
        malformed(&changed);
    }
    malformed(&v2(0x21, 0x11, &[&V4_BLOCK[..], &[TLV_CRC32C, 0, 2, 0, 0]].concat()));
    malformed(&with_crc(&[TLV_CRC32C, 0, 4, 0, 0, 0, 0], &[]));
}

#[test]
fn anything_else_is_missing_at_its_first_wrong_byte() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PROXX", b"proxy ", b"\x16\x03\x01", b"\r\n\r\n\r\n", b"P\r"] {
        assert_eq!(parse(bytes), Parsed::Missing, "{:?}", bytes.escape_ascii().to_string());
    }
}

fn some_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::V4), any::<Ipv6Addr>().prop_map(IpAddr::V6)];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_encoded_is_read_back(source in some_address(), destination in some_address()) {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        for header in [encode_v1(source, destination), encode_v2(source, destination)] {
            let Parsed::Complete(Header { length, addresses: Some((from, to)) }) = parse(&header) else {
                panic!("{:?}", parse(&header));
            };
            prop_assert_eq!(length, header.len());
            prop_assert_eq!((canonical(from), canonical(to)), (canonical(source), canonical(destination)));
        }
    }

    #[test]
    fn the_front_of_a_header_is_partial_and_asks_for_no_byte_past_it(
        source in some_address(), destination in some_address(), tlv in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let tlv = [&[0xee, 0, u8::try_from(tlv.len()).expect("short")][..], &tlv].concat();
        let headers = [encode_v1(source, destination), encode_v2(source, destination), with_crc(&tlv, &tlv),
            b"PROXY UNKNOWN\r\n".to_vec(), b"PROXY UNKNOWN x\r\n".to_vec()];
        for header in headers {
            for length in 0..header.len() {
                let Parsed::Partial(needed) = parse(&header[..length]) else {
                    panic!("{length} of {:?}: {:?}", header.escape_ascii().to_string(), parse(&header[..length]));
                };
                prop_assert!(needed > length && needed <= header.len(), "{} of {} at {}", needed, header.len(), length);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tail in "[A-Z0-9:. \r\n]{0,120}") {
        for front in [&[][..], V1_PREFIX, &V2_SIGNATURE, &[&V2_SIGNATURE[..], &[0x21, 0x11, 0]].concat()] {
            for rest in [&bytes[..], tail.as_bytes()] {
                if let Parsed::Complete(header) = parse(&[front, rest].concat()) {
                    prop_assert!(header.length <= front.len() + rest.len());
                }
            }
        }
    }
}
