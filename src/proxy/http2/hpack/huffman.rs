//! The Huffman code of HPACK's strings (RFC 7541 section 5.2 and appendix B). It is a canonical code: symbols of one
//! length have consecutive codes, so that the lengths alone say all of it.

use super::BadBlock;

/// Symbols: the bytes, and the end of a string, which no string may contain.
const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const LONGEST: usize = 30;
/// Codes up to this length (all of letters, digits and most of a URL) are looked up at once.
const SHORT: u32 = 9;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The first code, at the high end of 32 bits.
    first: u32,
    count: u32,
    /// Where its symbols begin in `BY_CODE`.
    symbols: u32,
}

struct Tables {
    rows: [Row; LONGEST + 1],
    by_code: [u16; SYMBOLS],
    /// For each beginning of a string: the symbol, and the length of its code; 0: it is longer.
    short: [(u8, u8); 1 << SHORT],
}

static TABLES: Tables = tables();

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "at compile time: a mistake does not build"
)]
const fn tables() -> Tables {
    let mut tables = Tables {
        rows: [Row { first: 0, count: 0, symbols: 0 }; LONGEST + 1],
        by_code: [0; SYMBOLS],
        short: [(0, 0); 1 << SHORT],
    };
    let (mut code, mut placed, mut length) = (0_u64, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        let mut row = Row { first: (code << (32 - length)) as u32, count: 0, symbols: placed as u32 };
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                tables.by_code[placed] = symbol as u16;
                placed += 1;
                row.count += 1;
                if length <= SHORT as usize {
                    let spare = SHORT as usize - length;
                    let mut rest = 0;
                    while rest < 1 << spare {
                        tables.short[((code as usize) << spare) + rest] = (symbol as u8, length as u8);
                        rest += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        tables.rows[length] = row;
        length += 1;
    }
    tables
}

/// Appends what `coded` says.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), BadBlock> {
    let mut bytes = coded.iter();
    // Not yet decoded, at the high end.
    let (mut bits, mut have) = (0_u64, 0_u32);
    loop {
        while have <= 56 {
            let Some(byte) = bytes.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        let beginning = usize::try_from(bits >> (64 - SHORT)).unwrap_or_default();
        let (symbol, length) = match TABLES.short.get(beginning) {
            Some((symbol, length)) if *length > 0 => (u16::from(*symbol), u32::from(*length)),
            _ => long(bits),
        };
        if length > have {
            break;
        }
        // The end-of-string symbol within a string is an error.
        out.push(u8::try_from(symbol).ok().filter(|_| symbol != EOS).ok_or(BadBlock)?);
        bits <<= length;
        have -= length;
    }
    // Up to seven ones fill the last byte.
    let is_padding = have < 8 && (have == 0 || bits >> (64 - have) == (1 << have) - 1);
    if is_padding { Ok(()) } else { Err(BadBlock) }
}

/// The symbol of a long code, and its length; longer than anything if there is none.
#[cold]
fn long(bits: u64) -> (u16, u32) {
    let code = u32::try_from(bits >> 32).unwrap_or_default();
    for (length, row) in (0_u32..).zip(&TABLES.rows).skip(SHORT as usize + 1) {
        let at = code.wrapping_sub(row.first) >> (32 - length);
        if code >= row.first && at < row.count {
            let symbol = usize::try_from(row.symbols + at).ok().and_then(|at| TABLES.by_code.get(at));
            return (symbol.copied().unwrap_or(EOS), length);
        }
    }
    (EOS, u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code by the definition, one bit at a time.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let row = TABLES.rows[length];
            let at = TABLES.by_code[row.symbols as usize..].iter().position(|s| *s == u16::from(*byte)).unwrap();
            let code = (row.first >> (32 - length)) + u32::try_from(at).unwrap();
            bits.extend((0..length).rev().map(|bit| code >> bit & 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(1);
        }
        bits.chunks(8).map(|byte| byte.iter().fold(0, |n, bit| n << 1 | u8::try_from(*bit).unwrap())).collect()
    }

    #[test]
    fn codes_of_the_appendix_are_as_printed() {
        assert_eq!(encode(b"0"), [0b0000_0111]);
        assert_eq!(encode(b"a"), [0b0001_1111]);
        assert_eq!(encode(b"!"), [0xfe, 0x3f]);
        assert_eq!(encode(&[0]), [0xff, 0xc7]);
        assert_eq!(encode(&[255]), [0xff, 0xff, 0xfb, 0xbf]);
        assert_eq!(encode(&[22]), [0xff, 0xff, 0xff, 0xfb]);
    }

    proptest::proptest! {
        #[test]
        fn every_string_is_read(text in proptest::collection::vec(0_u8.., 0..100)) {
            let mut out = Vec::new();
            decode(&encode(&text), &mut out).unwrap();
            proptest::prop_assert_eq!(out, text);
        }
    }
}
