//! Reads blocks of fields. All of a block's fields lie in one buffer, whether they came as text or from a table.

use std::collections::VecDeque;

use super::{BadBlock, STATIC, huffman};

/// The table that the other side may fill (SETTINGS_HEADER_TABLE_SIZE's default), bytes by RFC 7541 section 4.1.
const TABLE: usize = 4_096;
/// What an entry counts beside its text.
const OVERHEAD: usize = 32;

/// The dynamic table of one connection.
#[derive(Debug)]
pub(in crate::proxy) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
}

#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    /// Of which the name.
    name: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: TABLE }
    }
}

/// The fields of one block, in their order.
#[derive(Debug)]
pub(in crate::proxy) struct Fields {
    text: Vec<u8>,
    spans: Vec<Span>,
    /// Bytes by RFC 9113's count (section 6.5.2), and their limit.
    size: usize,
    limit: usize,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    /// Where the name ends and the value begins.
    middle: usize,
    end: usize,
}

impl Fields {
    /// None yet, of at most `limit` bytes; their text goes to `storage`.
    pub(in crate::proxy) fn new(storage: Vec<u8>, limit: usize) -> Self {
        Self { text: storage, spans: Vec::with_capacity(16), size: 0, limit }
    }

    /// There were more than the limit allows; the last ones are not here.
    pub(in crate::proxy) fn is_too_large(&self) -> bool {
        self.size > self.limit
    }

    pub(in crate::proxy) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Names and values.
    pub(in crate::proxy) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.spans.iter().map(|span| (self.part(span.start, span.middle), self.part(span.middle, span.end)))
    }

    fn part(&self, from: usize, to: usize) -> &[u8] {
        self.text.get(from..to).unwrap_or_default()
    }

    pub(in crate::proxy) fn into_storage(self) -> Vec<u8> {
        self.text
    }

    /// What was written since `start` is a field, if there is room for it.
    fn push(&mut self, start: usize, middle: usize) {
        self.size = self.size.saturating_add(self.text.len() - start + OVERHEAD);
        if self.is_too_large() {
            self.text.truncate(start);
        } else {
            self.spans.push(Span { start, middle, end: self.text.len() });
        }
    }
}

impl Decoder {
    /// Reads a whole block. After an error the connection cannot go on.
    pub(in crate::proxy) fn decode(&mut self, block: &[u8], into: &mut Fields) -> Result<(), BadBlock> {
        let mut block = Reader(block);
        let mut may_resize = true;
        while let Some(first) = block.peek() {
            if first & 0xe0 == 0x20 {
                let size = block.integer(5)?;
                if size > TABLE || !may_resize {
                    return Err(BadBlock);
                }
                self.most = size;
                self.evict(0);
                continue;
            }
            may_resize = false;
            let start = into.text.len();
            if first & 0x80 != 0 {
                let (name, value) = self.entry(block.integer(7)?)?;
                if into.is_too_large() {
                    // A byte each could have kilobytes copied.
                    continue;
                }
                into.text.extend_from_slice(name);
                into.text.extend_from_slice(value);
                into.push(start, start + name.len());
                continue;
            }
            let is_kept = first & 0x40 != 0;
            match block.integer(if is_kept { 6 } else { 4 })? {
                0 => block.string(&mut into.text)?,
                index => {
                    let (name, _) = self.entry(index)?;
                    // Three bytes each could have kilobytes copied.
                    if is_kept || !into.is_too_large() {
                        into.text.extend_from_slice(name);
                    }
                }
            }
            let middle = into.text.len();
            block.string(&mut into.text)?;
            if is_kept {
                self.insert(into.text.get(start..).unwrap_or_default(), middle - start);
            }
            into.push(start, middle);
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), BadBlock> {
        let at = index.checked_sub(1).ok_or(BadBlock)?;
        if let Some((name, value)) = STATIC.get(at) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(at - STATIC.len()).ok_or(BadBlock)?;
        entry.text.split_at_checked(entry.name).ok_or(BadBlock)
    }

    fn insert(&mut self, text: &[u8], name: usize) {
        let size = text.len() + OVERHEAD;
        self.evict(size);
        // One that is larger than the table leaves it empty (section 4.4).
        if size <= self.most {
            self.size += size;
            self.entries.push_front(Entry { text: text.into(), name });
        }
    }

    /// Makes room for so much.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.most {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.text.len() + OVERHEAD;
        }
    }

    #[cfg(test)]
    pub(super) fn table_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.text.len() + OVERHEAD).sum()
    }
}

/// The rest of a block.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], BadBlock> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(BadBlock)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<usize, BadBlock> {
        self.take(1).map(|taken| taken.iter().copied().map(usize::from).sum())
    }

    /// An integer that begins in the low bits of the next byte (section 5.1); up to 28 bits more, which is more than
    /// any block has.
    fn integer(&mut self, bits: u32) -> Result<usize, BadBlock> {
        let most = (1 << bits) - 1;
        let mut n = self.byte()? & most;
        if n < most {
            return Ok(n);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            n += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(BadBlock)
    }

    /// Appends a string (section 5.2).
    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), BadBlock> {
        let is_coded = self.peek().ok_or(BadBlock)? & 0x80 != 0;
        let length = self.integer(7)?;
        let text = self.take(length)?;
        if is_coded {
            return huffman::decode(text, out);
        }
        out.extend_from_slice(text);
        Ok(())
    }
}
