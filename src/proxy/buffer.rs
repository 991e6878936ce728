//! Read buffers that exist only while there are bytes in them.
//!
//! A connection that waits holds no buffer: one is taken from the worker's pool when the socket is readable and goes
//! back once all of it is consumed. That is what keeps an idle connection small. It does not know what the bytes mean.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// What a buffer is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Request heads: most fit 2 KiB, and a slow sender holds no more than that.
    Head,
    /// Bodies and responses: fewer, larger reads (5 syscalls for 100 KiB instead of 20).
    Body,
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            Self::Head => 2 * 1024,
            Self::Body => 64 * 1024,
        }
    }
}

/// The C library copies more than this with an instruction (`rep movsb`) that takes several times as long on many processors.
pub(crate) const PIECE: usize = 2 * 1024;

/// Appends bytes of a body, piece by piece.
pub(crate) fn append(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len());
    bytes.chunks(PIECE).for_each(|piece| out.extend_from_slice(piece));
}

/// How many free buffers of each size a worker keeps; more are given back to the allocator.
const KEPT: usize = 64;

/// A worker's free buffers.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    head: RefCell<Vec<Vec<u8>>>,
    body: RefCell<Vec<Vec<u8>>>,
    /// Memory is short: none is kept.
    is_saving: Cell<bool>,
}

impl Buffers {
    fn shelf(&self, size: Size) -> &RefCell<Vec<Vec<u8>>> {
        match size {
            Size::Head => &self.head,
            Size::Body => &self.body,
        }
    }

    fn take(&self, size: Size) -> Vec<u8> {
        self.shelf(size).borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    fn give(&self, mut data: Vec<u8>) {
        data.clear();
        // One that had to grow is not kept for those who need less.
        let fits = |size: Size| (size.bytes()..2 * size.bytes()).contains(&data.capacity());
        let Some(shelf) = [Size::Head, Size::Body].into_iter().find(|size| fits(*size)) else { return };
        let shelf = self.shelf(shelf);
        let mut shelf = shelf.borrow_mut();
        if shelf.len() < KEPT && !self.is_saving.get() {
            shelf.push(data);
        }
    }

    /// Gives the free ones back and keeps none, or keeps some again.
    pub(crate) fn save(&self, on: bool) {
        self.is_saving.set(on);
        if on {
            [&self.head, &self.body].into_iter().for_each(|shelf| drop(shelf.take()));
        }
    }

    /// An empty vector for composing output.
    pub(crate) fn scratch(&self) -> Vec<u8> {
        self.take(Size::Head)
    }

    /// An empty vector for putting many writes together.
    pub(crate) fn large_scratch(&self) -> Vec<u8> {
        self.take(Size::Body)
    }

    /// Takes a scratch vector back.
    pub(crate) fn recycle(&self, data: Vec<u8>) {
        self.give(data);
    }
}

/// Bytes read and not yet consumed.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
}

impl From<Vec<u8>> for Buffer {
    fn from(data: Vec<u8>) -> Self {
        Self { data, start: 0 }
    }
}

impl Buffer {
    pub(crate) fn unread(&self) -> &[u8] {
        self.data.get(self.start..).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start >= self.data.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.data.len() - self.start
    }

    /// Whether a read would neither move what is unread nor make the storage grow.
    pub(crate) fn has_room(&self) -> bool {
        self.data.capacity() == 0 || self.data.len() < self.data.capacity()
    }

    /// Marks `n` bytes as used; the storage goes back to the pool with the last one.
    pub(crate) fn consume(&mut self, n: usize, pool: &Buffers) {
        self.start = (self.start + n).min(self.data.len());
        if self.start == self.data.len() {
            self.clear(pool);
        }
    }

    pub(crate) fn clear(&mut self, pool: &Buffers) {
        self.start = 0;
        if self.data.capacity() > 0 {
            pool.give(std::mem::take(&mut self.data));
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream. While nothing is there an empty buffer holds no storage.
    pub(crate) fn poll_fill<I: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut I,
        size: Size,
        pool: &Buffers,
    ) -> Poll<io::Result<usize>> {
        if self.data.capacity() == 0 {
            self.data = pool.take(size);
        } else if self.data.len() == self.data.capacity() {
            if self.start > 0 {
                self.data.drain(..self.start);
                self.start = 0;
            } else {
                self.data.reserve(self.data.capacity());
            }
        }
        let read = poll_read_buf(Pin::new(io), cx, &mut self.data);
        if self.is_empty() {
            self.clear(pool);
        }
        read
    }
}
