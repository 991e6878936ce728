//! The codec frame by frame, without a socket: windows, turns, and whatever a client may send.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use proptest::prelude::*;

use super::frame::{self, Head, flag, kind, setting};
use super::hpack::encoder;
use super::receive::Receiver;
use super::streams::{Gone, Handle, STREAM_WINDOW, Streams};
use crate::proxy::buffer::Buffers;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection, and what its client has seen.
struct Peer {
    streams: Rc<RefCell<Streams>>,
    handles: BTreeMap<u32, Handle>,
}

impl Peer {
    fn new() -> Self {
        let streams = Streams::new(Rc::<Buffers>::default(), Receiver::new(16_384, 10));
        let mut peer = Self { streams: Rc::new(RefCell::new(streams)), handles: BTreeMap::new() };
        let mut greeting = PREFACE.to_vec();
        frame::settings(&[], &mut greeting);
        peer.hear(&greeting).unwrap();
        assert_eq!(peer.kinds(), [(kind::SETTINGS, 0)], "an acknowledgement");
        peer
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let mut streams = self.streams.borrow_mut();
        let heard = streams.receive(bytes, 0);
        let accepted = std::mem::take(&mut streams.receiver.accepted);
        for (_, at) in accepted {
            let handle = Handle::new(self.streams.clone(), at);
            self.handles.insert(streams.slot(at).id, handle);
        }
        heard.map(drop)
    }

    fn begin(&mut self, stream: u32, flags: u8) {
        self.hear(&request(stream, flags)).unwrap();
    }

    /// The frames that perch writes, until it has no more.
    fn frames(&self) -> Vec<(Head, Vec<u8>)> {
        let mut streams = self.streams.borrow_mut();
        let mut frames = Vec::new();
        loop {
            streams.pump();
            let out = std::mem::take(&mut streams.out);
            if out.is_empty() {
                return frames;
            }
            let mut rest = &out[..];
            while let Some(head) = Head::read(rest) {
                frames.push((head, rest[frame::HEAD..][..head.length].to_vec()));
                rest = &rest[frame::HEAD + head.length..];
            }
            assert!(rest.is_empty());
        }
    }

    fn kinds(&self) -> Vec<(u8, u32)> {
        self.frames().iter().map(|(head, _)| (head.kind, head.stream)).collect()
    }
}

fn request(stream: u32, flags: u8) -> Vec<u8> {
    // GET, https, /.
    let mut out = Vec::new();
    frame::whole(kind::HEADERS, flag::END_HEADERS | flags, stream, &[0x82, 0x87, 0x84], &mut out);
    out
}

fn post(stream: u32, length: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x87, 0x84];
    encoder::field(b"content-length", length.as_bytes(), &mut block);
    let mut out = Vec::new();
    frame::whole(kind::HEADERS, flag::END_HEADERS, stream, &block, &mut out);
    out
}

fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::whole(kind::DATA, flags, stream, bytes, &mut out);
    out
}

fn update(stream: u32, more: u32) -> Vec<u8> {
    let mut out = Vec::new();
    frame::window_update(stream, more, &mut out);
    out
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[test]
fn a_body_waits_for_its_window_and_goes_on() {
    let mut peer = Peer::new();
    peer.begin(1, flag::END_STREAM);
    peer.handles[&1].send_head(&[0x88], false).unwrap();

    peer.handles[&1].send(&[7; 70_000], true).unwrap();
    let first: usize = peer.frames().iter().filter(|(head, _)| head.kind == kind::DATA).map(|(_, p)| p.len()).sum();
    assert_eq!(first, 65_535, "the window of a stream that nothing was said about");
    assert!(peer.handles[&1].poll_sent(&cx()).is_pending());

    peer.hear(&[update(0, 10_000), update(1, 4_000)].concat()).unwrap();
    assert_eq!(peer.kinds(), [(kind::DATA, 1)]);
    assert!(!peer.handles[&1].is_answered());
    peer.hear(&update(1, 4_000)).unwrap();

    let last = peer.frames();
    assert_eq!((last.len(), last[0].1.len(), last[0].0.flags), (1, 465, flag::END_STREAM));
    assert!(peer.handles[&1].is_answered());
}

#[test]
fn streams_that_wait_take_turns() {
    let mut peer = Peer::new();
    let mut settings = Vec::new();
    frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)], &mut settings);
    peer.hear(&settings).unwrap();
    for stream in [1, 3, 5] {
        peer.begin(stream, flag::END_STREAM);
        peer.handles[&stream].send(&[7; 65_535], true).unwrap();
    }
    peer.frames();

    peer.hear(&update(0, 40_000)).unwrap();

    let turns: Vec<u32> = peer.kinds().iter().map(|(_, stream)| *stream).collect();
    assert_eq!(turns, [3, 5, 3], "a frame each; the first stream has gone already");
}

#[test]
fn what_is_read_makes_room_for_as_much() {
    let mut peer = Peer::new();
    peer.begin(1, 0);
    peer.hear(&data(1, 0, &[7; 16_384]).repeat(2)).unwrap();
    assert_eq!(peer.kinds(), [], "nothing was read");

    let read = peer.handles[&1].poll_read(&cx(), |bytes| (bytes.len(), bytes.len()));

    assert_eq!(read, Poll::Ready(Some(Ok(32_768))));
    let told = peer.frames();
    assert_eq!((told[0].0.kind, told[0].0.stream, &told[0].1[..]), (kind::WINDOW_UPDATE, 1, &[0, 0, 0x80, 0][..]));
}

#[test]
fn more_than_the_window_resets_the_stream() {
    let mut peer = Peer::new();
    peer.begin(1, 0);
    let whole = usize::try_from(STREAM_WINDOW).unwrap() / 16_384;
    peer.hear(&data(1, 0, &[7; 16_384]).repeat(whole)).unwrap();

    peer.hear(&data(1, 0, b"x")).unwrap();

    let frames = peer.frames();
    assert_eq!((frames[0].0.kind, &frames[0].1[..]), (kind::RST_STREAM, &[0, 0, 0, 3][..]), "FLOW_CONTROL_ERROR");
    assert_eq!(peer.handles[&1].poll_read(&cx(), |bytes| (bytes.len(), ())), Poll::Ready(Some(Err(Gone))));
}

#[test]
fn a_body_of_another_length_than_declared_never_looks_whole() {
    for (sent, ends) in [(4, true), (6, false)] {
        let mut peer = Peer::new();
        peer.hear(&post(1, "5")).unwrap();
        peer.hear(&data(1, if ends { flag::END_STREAM } else { 0 }, &[7; 10][..sent])).unwrap();

        assert_eq!(peer.kinds(), [(kind::RST_STREAM, 1)]);
        assert_eq!(peer.handles[&1].poll_read(&cx(), |bytes| (bytes.len(), ())), Poll::Ready(Some(Err(Gone))));
    }
}

#[test]
fn a_handle_dropped_early_resets_its_stream_and_what_still_comes_is_passed_over() {
    let mut peer = Peer::new();
    peer.begin(1, 0);
    peer.handles.remove(&1);
    assert_eq!(peer.kinds(), [(kind::RST_STREAM, 1)]);

    peer.hear(&[data(1, 0, b"late"), data(1, flag::END_STREAM, b"later")].concat()).unwrap();

    assert_eq!(peer.kinds(), []);
    assert_eq!(peer.streams.borrow().open, 0);
}

#[test]
fn streams_over_the_limit_are_refused() {
    let mut peer = Peer::new();
    for n in 0..11 {
        peer.begin(2 * n + 1, flag::END_STREAM);
    }

    let frames = peer.frames();

    assert_eq!(peer.handles.len(), 10);
    assert_eq!((frames.len(), frames[0].0.stream, &frames[0].1[..]), (1, 21, &[0, 0, 0, 7][..]), "REFUSED_STREAM");
}

#[test]
fn a_smaller_table_of_the_client_is_answered_with_an_empty_one() {
    let mut peer = Peer::new();
    let mut settings = Vec::new();
    frame::settings(&[(setting::HEADER_TABLE_SIZE, 0)], &mut settings);
    peer.hear(&settings).unwrap();
    peer.frames();
    for (stream, block) in [(1, &[0x20, 0x88][..]), (3, &[0x88])] {
        peer.begin(stream, flag::END_STREAM);
        peer.handles[&stream].send_head(&[0x88], true).unwrap();
        assert_eq!(peer.frames()[0].1, block);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Send { stream: u32, bytes: usize },
    Update { stream: u32, more: u32 },
    Window(u32),
    Reset(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = (0_u32..8).prop_map(|n| 2 * n + 1);
    prop_oneof![
        2 => Just(Step::Begin),
        4 => (stream.clone(), 1..100_000_usize).prop_map(|(stream, bytes)| Step::Send { stream, bytes }),
        4 => (prop_oneof![Just(0), stream.clone()], 1..50_000_u32).prop_map(|(stream, more)| Step::Update { stream, more }),
        1 => (0..100_000_u32).prop_map(Step::Window),
        1 => stream.prop_map(Step::Reset),
    ]
}

proptest! {
    /// The client's books: no stream gets more than its windows, and each gets its bytes in order and whole.
    #[test]
    fn windows_are_kept_and_every_byte_arrives(steps in prop::collection::vec(step(), 1..60)) {
        let mut peer = Peer::new();
        let (mut next, mut first, mut connection) = (1_u32, 65_535_i64, 65_535_i64);
        // Of each stream: its window, the bytes that were sent to it, and those that came.
        let mut books: BTreeMap<u32, (i64, usize, usize)> = BTreeMap::new();
        let mut steps = steps.into_iter();
        loop {
            // At last all windows are opened.
            let step = steps.next();
            let is_end = step.is_none();
            match step {
                Some(Step::Begin) if next < 16 => {
                    peer.begin(next, flag::END_STREAM);
                    books.insert(next, (first, 0, 0));
                    next += 2;
                }
                Some(Step::Send { stream, bytes }) => {
                    if let Some(handle) = peer.handles.get(&stream)
                        && handle.poll_sent(&cx()) == Poll::Ready(Ok(()))
                    {
                        let book = books.get_mut(&stream).unwrap();
                        let text: Vec<u8> = (book.1..book.1 + bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
                        handle.send(&text, false).unwrap();
                        book.1 += bytes;
                    }
                }
                Some(Step::Update { stream: 0, more }) => {
                    connection += i64::from(more);
                    peer.hear(&update(0, more)).unwrap();
                }
                Some(Step::Update { stream, more }) if books.contains_key(&stream) => {
                    books.get_mut(&stream).unwrap().0 += i64::from(more);
                    peer.hear(&update(stream, more)).unwrap();
                }
                Some(Step::Window(size)) => {
                    let mut settings = Vec::new();
                    frame::settings(&[(setting::INITIAL_WINDOW_SIZE, size)], &mut settings);
                    peer.hear(&settings).unwrap();
                    books.values_mut().for_each(|book| book.0 += i64::from(size) - first);
                    first = i64::from(size);
                }
                Some(Step::Reset(stream)) if peer.handles.remove(&stream).is_some() => {
                    // Those of its bytes that are framed already still come.
                    for (head, payload) in peer.frames() {
                        account(head, &payload, &mut books, &mut connection);
                    }
                    books.remove(&stream);
                }
                Some(_) => {}
                None => {
                    connection += 100_000_000;
                    peer.hear(&update(0, 100_000_000)).unwrap();
                    for (stream, book) in &mut books {
                        book.0 += 100_000_000;
                        peer.hear(&update(*stream, 100_000_000)).unwrap();
                    }
                }
            }
            loop {
                            let frames = peer.frames();
                if frames.is_empty() {
                    break;
                }
                for (head, payload) in frames {
                    account(head, &payload, &mut books, &mut connection);
                }
            }
            if is_end {
                break;
            }
        }
        for (stream, (_, sent, came)) in &books {
            prop_assert_eq!(sent, came, "stream {}", stream);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_write_without_end(
        frames in prop::collection::vec((0_u8..11, 0_u8.., 0_u32..12, prop::collection::vec(0_u8.., 0..60)), 0..80),
    ) {
        let mut peer = Peer::new();
        let mut taken = 0;
        for (kind, flags, stream, payload) in frames {
            let mut bytes = Vec::new();
            frame::whole(kind, flags, stream, &payload, &mut bytes);
            taken += 1;
            if peer.hear(&bytes).is_err() {
                break;
            }
        }
        prop_assert!(peer.frames().len() <= 2 * taken);
        peer.handles.clear();
        prop_assert_eq!(peer.streams.borrow().open, 0);
    }
}

fn account(head: Head, payload: &[u8], books: &mut BTreeMap<u32, (i64, usize, usize)>, connection: &mut i64) {
    if head.kind != kind::DATA {
        return;
    }
    let book = books.get_mut(&head.stream).expect("a stream that was begun");
    for byte in payload {
        assert_eq!(usize::from(*byte), book.2 % 251, "out of order");
        book.2 += 1;
    }
    let length = i64::try_from(payload.len()).unwrap();
    book.0 -= length;
    *connection -= length;
    assert!(book.0 >= 0 && *connection >= 0, "beyond the window: {book:?}, {connection}");
}
