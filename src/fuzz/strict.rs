//! An independent reader of HTTP/1.1 requests, the oracle of [`front`](super::front).
//!
//! Written from RFC 9112 alone, by splitting bytes: it shares no code and no library with perch, so a mistake would have
//! to be made twice. Of two readings that the RFC leaves open it takes none: such bytes are wrong.

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) is_http10: bool,
    /// Names in lower case, values trimmed, in order.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, Vec<u8>)>,
    /// The body came to its end.
    pub(super) is_whole: bool,
}

impl Message {
    /// The values of all fields of this name.
    pub(super) fn all(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, value)| &**value).collect()
    }

    pub(super) fn one(&self, name: &str) -> Option<&[u8]> {
        self.all(name).first().copied()
    }
}

/// What is wrong with the bytes.
pub(super) type Wrong = &'static str;

/// How a body ends.
enum Framing {
    Length(usize),
    Chunked,
}

/// Everything that can be read, in order, and why it ends if that is a mistake. Bytes behind a mistake mean nothing.
pub(super) fn read_all(mut bytes: &[u8]) -> (Vec<Message>, Option<Wrong>) {
    let mut messages = Vec::new();
    loop {
        // RFC 9112 section 2.2; two, as perch has it.
        for _ in 0..2 {
            bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        }
        match read(bytes) {
            Ok(None) => return (messages, None),
            Err(wrong) => return (messages, Some(wrong)),
            Ok(Some((message, used))) => {
                let is_whole = message.is_whole;
                messages.push(message);
                if !is_whole {
                    return (messages, None);
                }
                bytes = &bytes[used..];
            }
        }
    }
}

/// The request at the start, and its length. `None`: its head is not complete. A body that is wrong makes the request
/// one that never becomes whole.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Message, usize)>, Wrong> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let mut lines = split_lines(&bytes[..end]);
    let mut message = request_line(lines.next().unwrap_or_default())?;
    for line in lines {
        message.fields.push(field(line)?);
    }
    let hosts = message.all("host").len();
    if hosts > 1 || (hosts == 0 && !message.is_http10) {
        return Err("not one Host");
    }
    let framing = framing(&message)?;

    let start = end + 4;
    let rest = &bytes[start..];
    let used = match framing {
        Framing::Length(length) => {
            let here = length.min(rest.len());
            message.body = rest[..here].to_vec();
            message.is_whole = here == length;
            here
        }
        Framing::Chunked => chunked(rest, &mut message),
    };
    Ok(Some((message, start + used)))
}

fn request_line(line: &[u8]) -> Result<Message, Wrong> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let [method, target, version] = words[..] else { return Err("not three words") };
    if !is_token(method) {
        return Err("the method is no token");
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err("a byte that no target has");
    }
    let is_http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err("another version"),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Message { method: text(method), target: text(target), is_http10, ..Message::default() })
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), Wrong> {
    let colon = line.iter().position(|b| *b == b':').ok_or("a line without a colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A folded line starts with a blank, which is no token either.
    if !is_token(name) {
        return Err("a name that is no token");
    }
    if value.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127)) {
        return Err("a control in a value");
    }
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let from = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let to = value.iter().rposition(|b| !blank(b)).map_or(from, |last| last + 1);
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value[from..to].to_vec()))
}

fn framing(message: &Message) -> Result<Framing, Wrong> {
    match (&message.all("content-length")[..], &message.all("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) => {
            let is_number = !length.is_empty() && length.len() < 19 && length.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(length).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
            number.map(Framing::Length).ok_or("a length that is no number")
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !message.is_http10 => Ok(Framing::Chunked),
        _ => Err("framing that can be read in two ways"),
    }
}

/// Reads as far as it is right; how many bytes a whole body takes.
fn chunked(bytes: &[u8], message: &mut Message) -> usize {
    let mut at = 0;
    loop {
        let Some(line) = line_at(bytes, at) else { return at };
        let digits = line.split(|b| *b == b';').next().unwrap_or_default();
        let is_number = (1..16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
        let size = std::str::from_utf8(digits).ok().filter(|_| is_number);
        let Some(size) = size.and_then(|text| usize::from_str_radix(text, 16).ok()) else { return at };
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        let here = size.min(bytes.len() - at);
        message.body.extend_from_slice(&bytes[at..at + here]);
        if here < size || !bytes[at + here..].starts_with(b"\r\n") {
            return at;
        }
        at += size + 2;
    }
    loop {
        let Some(line) = line_at(bytes, at) else { return at };
        at += line.len() + 2;
        if line.is_empty() {
            message.is_whole = true;
            return at;
        }
        let Ok(trailer) = field(line) else { return at };
        message.trailers.push(trailer);
    }
}

/// Up to the next CRLF, if nothing else ends or breaks the line.
fn line_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let line = &bytes[at..at + find(&bytes[at..], b"\r\n")?];
    let is_line = !line.iter().any(|b| matches!(b, 0..=8 | 10..=31 | 127));
    is_line.then_some(line)
}

/// A bare CR or LF stays inside its line, where it is wrong.
fn split_lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let line = match find(bytes, b"\r\n") {
            Some(at) => {
                let line = &bytes[..at];
                bytes = &bytes[at + 2..];
                line
            }
            None => {
                is_over = true;
                bytes
            }
        };
        Some(line)
    })
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn is_token(bytes: &[u8]) -> bool {
    let is_mark = |b: &u8| b"!#$%&'*+-.^_`|~".contains(b);
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || is_mark(b))
}
