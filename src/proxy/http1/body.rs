//! Bodies on the wire: reading the framing of one side, writing it for the other. Sans-io.
//!
//! Strict where others guess: exactly CRLF, hex digits only, bounded extensions and trailers (RFC 9112 section 7.1;
//! reliability.md B3 to B8). It does not know whose body it is.

use crate::decide::fields;
use crate::proxy::buffer::append;

/// How a message's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No body.
    Empty,
    Length(u64),
    Chunked,
    /// Until the connection ends: responses only.
    Close,
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadChunk;

/// Bytes of chunk extensions in one message.
const EXTENSION_BYTES: usize = 16 * 1024;
/// Bytes of trailers in one message, as hyper has it.
pub(crate) const TRAILER_BYTES: usize = 16 * 1024;
/// Fields in the trailers.
pub(crate) const TRAILER_FIELDS: usize = 100;

/// Reads one body.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    extension_bytes: usize,
    /// Trailer lines that may be passed on, each with its CRLF.
    trailers: Vec<u8>,
    trailer_bytes: usize,
    trailer_fields: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Close,
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    Trailer,
    Done,
    /// It was malformed, and stays so however often it is asked for.
    Bad,
}

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Skip the first, then the second many bytes are payload.
    Data { skip: usize, len: usize },
    /// All was looked at; this many bytes are used up and more are needed.
    More(usize),
    /// The body ends after this many bytes.
    End(usize),
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::Close => State::Close,
        };
        Self { state, extension_bytes: 0, trailers: Vec::new(), trailer_bytes: 0, trailer_fields: 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many bytes are still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Whether the end of the stream is the body's proper end.
    pub(crate) fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::Close)
    }

    /// The trailer fields that may be passed on, as lines.
    pub(crate) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Looks at the unread bytes. A `Data` answer counts as read: the caller consumes skip + len.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<Piece, BadChunk> {
        let piece = self.piece(bytes);
        if piece.is_err() {
            self.state = State::Bad;
        }
        piece
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<Piece, BadChunk> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok(Piece::End(at)),
                State::Bad => return Err(BadChunk),
                State::Length(left) | State::Data(left) => {
                    let here = bytes.len() - at;
                    if here == 0 {
                        return Ok(Piece::More(at));
                    }
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(here);
                    let left = left - len as u64;
                    self.state = match (self.state, left) {
                        (State::Length(_), 0) => State::Done,
                        (State::Length(_), left) => State::Length(left),
                        (_, 0) => State::DataCr,
                        (_, left) => State::Data(left),
                    };
                    return Ok(Piece::Data { skip: at, len });
                }
                State::Close => {
                    let len = bytes.len() - at;
                    return Ok(if len == 0 { Piece::More(at) } else { Piece::Data { skip: at, len } });
                }
                State::Trailer => return self.trailer_lines(bytes, at),
                _ => {
                    let Some(byte) = bytes.get(at) else { return Ok(Piece::More(at)) };
                    at += 1;
                    self.framing_byte(*byte)?;
                }
            }
        }
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.state = match self.state {
            State::Size { value, digits } => match (byte, char::from(byte).to_digit(16)) {
                // 15 digits: 2^60 bytes, no overflow further on.
                (_, Some(digit)) if digits < 15 => {
                    State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
                }
                (b'\r', _) if digits > 0 => State::SizeLf { value },
                (b';', _) if digits > 0 => State::Extension { value },
                _ => return Err(BadChunk),
            },
            State::Extension { value } => {
                self.extension_bytes += 1;
                match byte {
                    b'\r' => State::SizeLf { value },
                    b'\t' | b' '..=b'~' | 0x80.. if self.extension_bytes <= EXTENSION_BYTES => {
                        State::Extension { value }
                    }
                    _ => return Err(BadChunk),
                }
            }
            State::SizeLf { value } if byte == b'\n' => {
                if value == 0 {
                    State::Trailer
                } else {
                    State::Data(value)
                }
            }
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::Size { value: 0, digits: 0 },
            _ => return Err(BadChunk),
        };
        Ok(())
    }

    /// Whole lines only: an unfinished one stays unread.
    fn trailer_lines(&mut self, bytes: &[u8], mut at: usize) -> Result<Piece, BadChunk> {
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(lf) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > TRAILER_BYTES { Err(BadChunk) } else { Ok(Piece::More(at)) };
            };
            let line = rest.get(..lf).and_then(|l| l.strip_suffix(b"\r")).ok_or(BadChunk)?;
            at += lf + 1;
            if line.is_empty() {
                self.state = State::Done;
                return Ok(Piece::End(at));
            }
            self.trailer_bytes += lf + 1;
            self.trailer_fields += 1;
            if self.trailer_bytes > TRAILER_BYTES || self.trailer_fields > TRAILER_FIELDS {
                return Err(BadChunk);
            }
            let colon = memchr::memchr(b':', line).ok_or(BadChunk)?;
            let (name, value) = line.split_at_checked(colon).ok_or(BadChunk)?;
            if !is_token(name) || value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
                return Err(BadChunk);
            }
            if fields::may_be_trailer(name) {
                self.trailers.extend_from_slice(line);
                self.trailers.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// Whether a name is an RFC 9110 token.
pub(crate) fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// Writes a piece of a body. Empty pieces are left out: an empty chunk would end the body.
pub(crate) fn encode(framing: Framing, data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    if framing == Framing::Chunked {
        begin_chunk(data.len(), out);
        append(data, out);
        out.extend_from_slice(b"\r\n");
    } else {
        append(data, out);
    }
}

/// What comes before the data of a chunk.
pub(crate) fn begin_chunk(length: usize, out: &mut Vec<u8>) {
    write_hex(length, out);
    out.extend_from_slice(b"\r\n");
}

/// Ends a body; `trailers` are whole lines.
pub(crate) fn encode_end(framing: Framing, trailers: &[u8], out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        out.extend_from_slice(b"0\r\n");
        out.extend_from_slice(trailers);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_hex(n: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - n.leading_zeros()).div_ceil(4).max(1);
    for i in (0..digits).rev() {
        let nibble = u8::try_from((n >> (4 * i)) & 15).unwrap_or_default();
        out.push(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `step` bytes; the payload and the bytes left over, or an error.
    fn decode(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let mut decoder = Decoder::new(framing);
        let (mut buffer, mut payload, mut fed) = (Vec::new(), Vec::new(), 0);
        loop {
            match decoder.next(&buffer)? {
                Piece::Data { skip, len } => {
                    payload.extend_from_slice(&buffer[skip..skip + len]);
                    buffer.drain(..skip + len);
                }
                Piece::End(n) => return Ok((payload, wire.len() - fed + buffer.len() - n, true)),
                Piece::More(n) => {
                    buffer.drain(..n);
                    if fed == wire.len() {
                        return Ok((payload, buffer.len(), decoder.may_end_here()));
                    }
                    let end = (fed + step).min(wire.len());
                    buffer.extend_from_slice(&wire[fed..end]);
                    fed = end;
                }
            }
        }
    }

    #[test]
    fn any_split_of_the_wire_decodes_the_same() {
        let wire = b"5\r\nhello\r\n1;ext=\"a b\"\r\n!\r\n0\r\nGrpc-Status: 0\r\nHost: evil\r\n\r\nNEXT";

        for step in 1..=wire.len() {
            assert_eq!(decode(Framing::Chunked, wire, step), Ok((b"hello!".to_vec(), 4, true)), "step {step}");
        }
    }

    #[test]
    fn only_harmless_trailers_are_passed_on() {
        let mut decoder = Decoder::new(Framing::Chunked);

        decoder.next(b"0\r\nGrpc-Status: 0\r\nHost: evil\r\nContent-Length: 9\r\n\r\n").unwrap();

        assert_eq!(decoder.trailers(), b"Grpc-Status: 0\r\n");
    }

    #[test]
    fn sloppy_chunks_are_refused() {
        for wire in [
            "-1\r\n",
            "+1\r\nx",
            "0x1\r\nx",
            "1 \r\nx",
            "1\nx",
            "11111111111111111\r\n",
            "1\r\nxx\r\n",
            "1\r\nx\n",
            "_\r\n",
            "\r\n",
            ";a\r\n",
            "1;a\nb\r\nx\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\na: b\n\r\n",
            "0\r\n a: b\r\n\r\n",
            "1\r\nx\r\r\n",
        ] {
            assert_eq!(decode(Framing::Chunked, wire.as_bytes(), 1), Err(BadChunk), "{wire:?}");
        }
    }

    #[test]
    fn what_was_malformed_once_stays_so() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let wire = b"\n5\rXab\r\n0\r\n\r\n";
        assert_eq!(decoder.next(b"1\r\na\r"), Ok(Piece::Data { skip: 3, len: 1 }));
        assert_eq!(decoder.next(b"\r"), Ok(Piece::More(1)));
        assert_eq!(decoder.next(wire), Err(BadChunk));

        assert_eq!(decoder.next(wire), Err(BadChunk));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(EXTENSION_BYTES + 1));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILER_FIELDS + 1));

        assert_eq!(decode(Framing::Chunked, extension.as_bytes(), 999), Err(BadChunk));
        assert_eq!(decode(Framing::Chunked, trailers.as_bytes(), 999), Err(BadChunk));
    }

    #[test]
    fn a_short_body_does_not_end_properly() {
        assert_eq!(decode(Framing::Length(9), b"1234", 2), Ok((b"1234".to_vec(), 0, false)));
        assert_eq!(decode(Framing::Chunked, b"5\r\nhel", 2), Ok((b"hel".to_vec(), 0, false)));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8), step in 1_usize..50) {
            let mut wire = Vec::new();
            for piece in &pieces {
                encode(Framing::Chunked, piece, &mut wire);
            }
            encode_end(Framing::Chunked, b"", &mut wire);

            prop_assert_eq!(decode(Framing::Chunked, &wire, step), Ok((pieces.concat(), 0, true)));
        }

        #[test]
        fn no_bytes_panic(wire in prop::collection::vec(any::<u8>(), 0..300), step in 1_usize..20) {
            decode(Framing::Chunked, &wire, step).ok();
        }
    }
}
