//! HPACK, the compression of HTTP/2's fields (RFC 7541): a decoder with its table, and an encoder that keeps no table, so
//! that a head can be encoded wherever it is known. It knows nothing of streams or of HTTP.

mod decoder;
pub(in crate::proxy) mod encoder;
mod huffman;

pub(in crate::proxy) use decoder::{Decoder, Fields};

/// A block that cannot be decoded: the connection's table is lost with it (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct BadBlock;

/// The static table (RFC 7541 appendix A); its first entry has index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Vec<String> {
        let mut fields = Fields::new(Vec::new(), 16_384);
        decoder.decode(block, &mut fields).unwrap();
        fields.iter().map(|(n, v)| format!("{}: {}", n.escape_ascii(), v.escape_ascii())).collect()
    }

    #[test]
    fn the_requests_of_rfc_7541_c_3_are_read() {
        let mut decoder = Decoder::default();
        let get = |path: &str, scheme: &str| {
            vec![
                ":method: GET".to_owned(),
                format!(":scheme: {scheme}"),
                format!(":path: {path}"),
                ":authority: www.example.com".to_owned(),
            ]
        };

        let first = decode(&mut decoder, &hex("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d"));
        let second = decode(&mut decoder, &hex("8286 84be 5808 6e6f 2d63 6163 6865"));
        let third = hex("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65");
        let third = decode(&mut decoder, &third);

        assert_eq!(first, get("/", "http"));
        assert_eq!(second, [get("/", "http"), vec!["cache-control: no-cache".to_owned()]].concat());
        assert_eq!(third, [get("/index.html", "https"), vec!["custom-key: custom-value".to_owned()]].concat());
    }

    #[test]
    fn the_requests_of_rfc_7541_c_4_are_read_from_huffman() {
        let mut decoder = Decoder::default();

        let first = decode(&mut decoder, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"));
        let second = decode(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf"));
        let third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        let third = decode(&mut decoder, &third);

        assert_eq!(first.last().unwrap(), ":authority: www.example.com");
        assert_eq!(second.last().unwrap(), "cache-control: no-cache");
        assert_eq!(third.last().unwrap(), "custom-key: custom-value");
    }

    #[test]
    fn a_table_that_shrinks_forgets_its_oldest() {
        let mut decoder = Decoder::default();
        let custom = hex("4001 6101 62 4001 6301 64");
        assert_eq!(decode(&mut decoder, &custom), ["a: b", "c: d"]);

        // To 40 bytes: one entry of 34.
        assert_eq!(decode(&mut decoder, &hex("3f09 be")), ["c: d"]);

        let mut fields = Fields::new(Vec::new(), 100);
        assert_eq!(decoder.decode(&hex("bf"), &mut fields), Err(BadBlock));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for bad in [
            "80",               // index 0
            "be",               // an empty table
            "ff ffffffffff 01", // an index beyond 32 bits
            "41",               // cut after the name
            "4105 6162",        // cut within the value
            "4182 ffff",        // padding of a byte and more
            "4181 00",          // padding that is not all ones
            "3fe21f",           // a table of 4,097 bytes
            "82 20",            // a size update after a field
            "4184 ffffffff",    // the end-of-string symbol
        ] {
            let mut fields = Fields::new(Vec::new(), 1_000);
            assert_eq!(Decoder::default().decode(&hex(bad), &mut fields), Err(BadBlock), "{bad}");
        }
    }

    #[test]
    fn fields_beyond_the_limit_are_dropped_and_the_table_is_kept() {
        let mut decoder = Decoder::default();
        let mut fields = Fields::new(Vec::new(), 70);
        // Three entries of 34 bytes; the third is too much.
        decoder.decode(&hex("4001 6101 62 4001 6301 64 4001 6501 66"), &mut fields).unwrap();

        assert!(fields.is_too_large());
        assert_eq!(fields.iter().count(), 2);
        assert_eq!(decode(&mut decoder, &hex("be")), ["e: f"]);
    }

    proptest::proptest! {
        #[test]
        fn what_the_encoder_writes_the_decoder_reads(
            fields in proptest::collection::vec(("[A-Za-z-]{1,30}", "[ -~]{0,200}"), 0..20),
        ) {
            let mut block = Vec::new();
            for (name, value) in &fields {
                encoder::field(name.as_bytes(), value.as_bytes(), &mut block);
            }

            let read = decode(&mut Decoder::default(), &block);

            let written: Vec<_> = fields
                .iter()
                .map(|(n, v)| format!("{}: {}", n.to_ascii_lowercase(), v.as_bytes().escape_ascii()))
                .collect();
            proptest::prop_assert_eq!(read, written);
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(blocks in proptest::collection::vec(proptest::collection::vec(0_u8.., 0..200), 0..10)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let mut fields = Fields::new(Vec::new(), 500);
                decoder.decode(&block, &mut fields).ok();
                proptest::prop_assert!(fields.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() <= 500);
                proptest::prop_assert!(decoder.table_bytes() <= 4_096);
            }
        }
    }
}
