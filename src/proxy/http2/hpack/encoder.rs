//! Writes fields as literals that no table keeps, names by the static table where it has them. Who receives them needs
//! nothing but the bytes, at the price of some dozens of them; HAProxy does the same. With a table for the requests to an
//! endpoint neither perch nor the endpoint took less CPU.

use crate::decide::fields;

/// `:status`, which comes first.
pub(in crate::proxy) fn status(code: u16, out: &mut Vec<u8>) {
    let indexed = match code {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            out.extend_from_slice(&[8, 3]);
            let digit = |n: u16| b'0' + u8::try_from(n % 10).unwrap_or_default();
            out.extend_from_slice(&[digit(code / 100), digit(code / 10), digit(code)]);
            return;
        }
    };
    out.push(0x80 | indexed);
}

/// `:method` and `:scheme` of a request (RFC 9113 section 8.3.1).
pub(in crate::proxy) fn request(method: &[u8], is_tls: bool, out: &mut Vec<u8>) {
    match method {
        b"GET" => out.push(0x82),
        b"POST" => out.push(0x83),
        other => field(b":method", other, out),
    }
    out.push(if is_tls { 0x87 } else { 0x86 });
}

/// A field whose name may have any case.
pub(in crate::proxy) fn field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    match static_index(name) {
        0 => {
            out.push(0);
            integer(name.len(), 7, out);
            out.extend(name.iter().map(u8::to_ascii_lowercase));
        }
        index => integer(index, 4, out),
    }
    integer(value.len(), 7, out);
    out.extend_from_slice(value);
}

/// Lines of trailers, each with its end.
pub(in crate::proxy) fn lines(lines: &[u8], out: &mut Vec<u8>) {
    for line in lines.split(|b| *b == b'\n') {
        if let Some((name, value)) = memchr::memchr(b':', line).and_then(|at| line.split_at_checked(at)) {
            field(name, fields::trim(value.get(1..).unwrap_or_default().trim_ascii_end()), out);
        }
    }
}

/// `content-length`.
pub(in crate::proxy) fn length(n: u64, out: &mut Vec<u8>) {
    integer(28, 4, out);
    let at = out.len();
    // At most 20 digits: their number is a byte.
    out.push(0);
    crate::proxy::http1::response::push_number(n, out);
    let digits = out.len() - at - 1;
    if let (Some(length), Ok(digits)) = (out.get_mut(at), u8::try_from(digits)) {
        *length = digits;
    }
}

/// An integer (RFC 7541 section 5.1) whose first byte has only zeros above.
fn integer(n: usize, bits: u32, out: &mut Vec<u8>) {
    let low = |n: usize| u8::try_from(n).unwrap_or_default();
    let most = (1 << bits) - 1;
    if n < most {
        return out.push(low(n));
    }
    out.push(low(most));
    let mut n = n - most;
    while n >= 128 {
        out.push(low(n & 127) | 128);
        n >>= 7;
    }
    out.push(low(n));
}

/// The static table's index of a field's name; 0: it has none, or is rare.
fn static_index(name: &[u8]) -> usize {
    let candidates: &[(&str, usize)] = match name.len() {
        3 => &[("age", 21), ("via", 60)],
        4 => &[("date", 33), ("etag", 34), ("vary", 59), ("link", 45)],
        5 => &[("allow", 22), ("range", 50), (":path", 4)],
        6 => &[("server", 54), ("accept", 19), ("cookie", 32)],
        7 => &[("expires", 36), ("referer", 51), (":method", 2)],
        8 => &[("location", 46)],
        10 => &[("set-cookie", 55), ("user-agent", 58), (":authority", 1)],
        11 => &[("retry-after", 53)],
        12 => &[("content-type", 31)],
        13 => &[
            ("cache-control", 24),
            ("last-modified", 44),
            ("accept-ranges", 18),
            ("content-range", 30),
            ("authorization", 23),
            ("if-none-match", 41),
        ],
        14 => &[("content-length", 28)],
        15 => &[("accept-encoding", 16), ("accept-language", 17)],
        16 => &[("content-encoding", 26), ("content-language", 27), ("www-authenticate", 61), ("content-location", 29)],
        17 => &[("if-modified-since", 40)],
        19 => &[("content-disposition", 25)],
        25 => &[("strict-transport-security", 56)],
        27 => &[("access-control-allow-origin", 20)],
        _ => &[],
    };
    candidates.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes())).map_or(0, |(_, index)| *index)
}

#[cfg(test)]
mod tests {
    use super::super::STATIC;
    use super::*;

    #[test]
    fn every_index_is_that_of_the_static_table() {
        for (at, (name, _)) in STATIC.iter().enumerate() {
            let index = static_index(name.as_bytes());
            // Of the same name the first.
            assert!(index == 0 || STATIC[index - 1].0 == *name && index <= at + 1, "{name}: {index}");
        }
        assert_eq!((static_index(b"Content-Type"), static_index(b"ETag"), static_index(b"x-a")), (31, 34, 0));
    }

    #[test]
    fn a_length_is_a_field_like_others() {
        for n in [0, 7, 1024, u64::MAX] {
            let (mut short, mut long) = (Vec::new(), Vec::new());
            length(n, &mut short);
            field(b"content-length", n.to_string().as_bytes(), &mut long);
            assert_eq!(short, long);
        }
    }

    #[test]
    fn every_status_is_written() {
        for (code, bytes) in [(200, &[0x88][..]), (304, &[0x8b]), (503, &[8, 3, b'5', b'0', b'3'])] {
            let mut out = Vec::new();
            status(code, &mut out);
            assert_eq!(out, bytes);
        }
    }
}
