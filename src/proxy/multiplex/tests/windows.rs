//! How much goes out and comes in, and how streams end.

use super::*;

#[test]
fn a_body_waits_for_its_window_and_its_end_does_not() {
    let streams = connection(&[(setting::INITIAL_WINDOW_SIZE, 4)]);
    let mut stream = Http2Stream::new(streams.clone(), false);
    let sent =
        |streams: &Shared| -> Vec<Vec<u8>> { frames(streams).into_iter().filter(|f| f.0 == 0).map(|f| f.3).collect() };

    let rest = "5\r\nhello\r\n0\r\n\r\n";
    let mut text = format!("{POST}{rest}").into_bytes();
    while let Poll::Ready(n) = write(&mut stream, &text) {
        text.drain(..n.unwrap());
    }
    assert_eq!((sent(&streams), text.len()), (vec![b"hell".to_vec()], rest.len() - 7));

    said(&streams, |out| frame::window_update(1, 1, out)).unwrap();
    while !text.is_empty() {
        let Poll::Ready(n) = write(&mut stream, &text) else { panic!("there is room for all of it") };
        text.drain(..n.unwrap());
    }
    assert_eq!(sent(&streams), [b"o".to_vec()]);
    assert!(streams.borrow_mut().slot(0).has_sent_all);
}

#[test]
fn a_window_that_shrinks_below_nothing_is_waited_for() {
    let streams = connection(&[(setting::INITIAL_WINDOW_SIZE, 4)]);
    let mut stream = ask(&streams, &format!("{POST}4\r\nhell\r\n"));

    said(&streams, |out| frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 2)], out)).unwrap();
    // As much as what was taken away.
    said(&streams, |out| frame::window_update(1, 2, out)).unwrap();

    let mut next = &b"1\r\no\r\n"[..];
    while let Poll::Ready(n) = write(&mut stream, next) {
        next = &next[n.unwrap()..];
    }
    assert_eq!(next, b"o\r\n");
}

#[test]
fn streams_beyond_what_the_endpoint_takes_wait_for_one_to_end() {
    let streams = connection(&[(setting::MAX_CONCURRENT_STREAMS, 1)]);
    let first = ask(&streams, GET);
    let mut second = Http2Stream::new(streams.clone(), false);
    assert!(write(&mut second, GET.as_bytes()).is_pending());

    drop(first);

    assert!(matches!(write(&mut second, GET.as_bytes()), Poll::Ready(Ok(_))));
    let kinds: Vec<_> = frames(&streams).into_iter().map(|f| (f.0, f.2)).collect();
    assert_eq!(kinds, [(kind::HEADERS, 1), (kind::RST_STREAM, 1), (kind::HEADERS, 3)]);
}

#[test]
fn streams_that_have_only_their_end_to_come_count_until_then_or_give_way() {
    let streams = connection(&[(setting::MAX_CONCURRENT_STREAMS, 2)]);
    for id in [1, 3] {
        let mut stream = ask(&streams, GET);
        said(&streams, headers(id, &[(":status", "200"), ("content-length", "2")], false)).unwrap();
        said(&streams, data(id, b"ok", false)).unwrap();
        read(&mut stream);
    }
    let seen = |streams: &Shared| -> Vec<_> { frames(streams).into_iter().map(|f| (f.0, f.2)).collect() };
    assert_eq!(seen(&streams), [(kind::HEADERS, 1), (kind::HEADERS, 3)]);

    said(&streams, data(1, b"", true)).unwrap();
    let _third = ask(&streams, GET);
    assert_eq!(seen(&streams), [(kind::HEADERS, 5)], "the first has ended");

    let _fourth = ask(&streams, GET);
    assert_eq!(seen(&streams), [(kind::RST_STREAM, 3), (kind::HEADERS, 7)]);
}

#[test]
fn one_that_waits_takes_the_place_of_those_that_have_only_their_end_to_come() {
    let streams = connection(&[]);
    let mut all: Vec<_> = (0..3).map(|_| ask(&streams, GET)).collect();
    let mut waiting = Http2Stream::new(streams.clone(), false);
    said(&streams, |out| frame::settings(&[(setting::MAX_CONCURRENT_STREAMS, 1)], out)).unwrap();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    assert!(Pin::new(&mut waiting).poll_write(&mut Context::from_waker(&waker), GET.as_bytes()).is_pending());
    for (id, stream) in [1, 3, 5].into_iter().zip(&mut all) {
        said(&streams, headers(id, &[(":status", "200"), ("content-length", "2")], false)).unwrap();
        said(&streams, data(id, b"ok", false)).unwrap();
        read(stream);
    }
    frames(&streams);

    all.clear();

    assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
    assert!(matches!(write(&mut waiting, GET.as_bytes()), Poll::Ready(Ok(_))));
    let seen: Vec<_> = frames(&streams).into_iter().map(|f| (f.0, f.2)).collect();
    let resets = [(kind::RST_STREAM, 1), (kind::RST_STREAM, 3), (kind::RST_STREAM, 5)];
    assert_eq!(seen, [&resets[..], &[(kind::HEADERS, 7)]].concat());
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn who_does_not_read_does_not_stop_the_others_before_the_window_is_full() {
    let streams = connection(&[]);
    let silent = 9;
    let mut all: Vec<_> = (0..=silent).map(|_| ask(&streams, GET)).collect();
    for id in (1..).step_by(2).take(all.len()) {
        said(&streams, headers(id, &[(":status", "200")], false)).unwrap();
    }
    for id in (1..).step_by(2).take(silent) {
        for _ in 0..streams::STREAM_WINDOW / 16_384 {
            said(&streams, data(id, &[b'x'; 16_384], false)).unwrap();
        }
    }

    // As much as an endpoint that minds its windows would send.
    let (mut room, mut own) = (streams::CONNECTION_WINDOW - 9 * streams::STREAM_WINDOW, streams::STREAM_WINDOW);
    for n in 0..1_000 {
        assert!(room >= 16_384 && own >= 16_384, "after {n}: {room} {own}");
        said(&streams, data(19, &[b'x'; 16_384], false)).unwrap();
        (room, own) = (room - 16_384, own - 16_384);
        read(&mut all[silent]);
        for (kind, _, id, more) in frames(&streams) {
            let more = i64::from(u32::from_be_bytes(more.try_into().unwrap_or_default()));
            match (kind, id) {
                (kind::WINDOW_UPDATE, 0) => room += more,
                (kind::WINDOW_UPDATE, 19) => own += more,
                _ => {}
            }
        }
    }
}

#[test]
fn an_answer_that_has_only_its_end_to_say_is_not_reset() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, GET);
    said(&streams, headers(1, &[(":status", "200"), ("content-length", "2")], false)).unwrap();
    said(&streams, data(1, b"ok", false)).unwrap();
    assert!(read(&mut stream).ends_with("\r\n\r\nok"));
    frames(&streams);

    drop(stream);
    said(&streams, data(1, b"", true)).unwrap();

    assert_eq!(frames(&streams), []);
    assert_eq!(streams.borrow().requests(), 0);
}

#[test]
fn what_comes_for_a_stream_that_is_over_is_passed_over_and_given_back() {
    let streams = connection(&[]);
    drop(ask(&streams, GET));
    frames(&streams);

    for _ in 0..(streams::CONNECTION_WINDOW / 16_384) * 2 {
        said(&streams, data(1, &[0; 16_384], false)).unwrap();
    }
    said(&streams, headers(1, &[(":status", "200")], true)).unwrap();

    assert!(frames(&streams).iter().all(|f| (f.0, f.2) == (kind::WINDOW_UPDATE, 0)));
}

#[test]
fn more_than_the_window_is_refused() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, GET);
    said(&streams, headers(1, &[(":status", "200")], false)).unwrap();
    frames(&streams);

    for _ in 0..streams::STREAM_WINDOW / 16_384 {
        said(&streams, data(1, &[b'x'; 16_384], false)).unwrap();
    }
    said(&streams, data(1, b"x", false)).unwrap();

    let code = u32::from(Code::FLOW_CONTROL_ERROR).to_be_bytes().to_vec();
    assert_eq!(frames(&streams), [(kind::RST_STREAM, 0, 1, code)]);
    assert_eq!(read_by(&mut stream, 65_536).1, Some(StreamError::Malformed));
}

#[test]
fn a_window_opens_as_the_answer_is_read() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, GET);
    said(&streams, headers(1, &[(":status", "200")], false)).unwrap();

    for _ in 0..10 * streams::STREAM_WINDOW / 16_384 {
        said(&streams, data(1, &[b'x'; 16_384], false)).unwrap();
        read(&mut stream);
    }

    assert!(frames(&streams).iter().any(|f| (f.0, f.2) == (kind::WINDOW_UPDATE, 1)));
}

#[test]
fn a_goodbye_refuses_what_the_endpoint_has_not_looked_at() {
    let streams = connection(&[]);
    let (mut first, mut second) = (ask(&streams, GET), ask(&streams, GET));
    let mut third = Http2Stream::new(streams.clone(), false);

    said(&streams, |out| frame::goaway(1, Code::NO_ERROR, out)).unwrap();
    said(&streams, headers(1, &[(":status", "200")], true)).unwrap();

    assert!(read(&mut first).starts_with("HTTP/1.1 200"));
    assert_eq!(read_by(&mut second, 99).1, Some(StreamError::Refused));
    let Poll::Ready(Err(error)) = write(&mut third, GET.as_bytes()) else { panic!("it takes no more") };
    assert_eq!(StreamError::of(&error), Some(StreamError::Refused));
    assert!(!streams.borrow().takes_streams());
}

#[test]
fn the_code_of_a_reset_is_known_and_what_came_before_is_read() {
    for (code, error) in
        [(Code::REFUSED_STREAM, StreamError::Refused), (Code::INTERNAL_ERROR, StreamError::Reset(Code::INTERNAL_ERROR))]
    {
        let streams = connection(&[]);
        let mut stream = ask(&streams, GET);
        said(&streams, headers(1, &[(":status", "200")], false)).unwrap();
        said(&streams, data(1, b"some", false)).unwrap();

        said(&streams, |out| frame::reset(1, code, out)).unwrap();

        let (text, ended) = read_by(&mut stream, 4_096);
        assert!(text.ends_with("4\r\nsome\r\n"), "{text}");
        assert_eq!(ended, Some(error));
    }
}

#[test]
fn an_answer_that_is_whole_stays_so_whatever_follows() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, &format!("{POST}4\r\nhalf\r\n"));
    said(&streams, headers(1, &[(":status", "413")], true)).unwrap();
    said(&streams, |out| frame::reset(1, Code::NO_ERROR, out)).unwrap();

    assert!(read(&mut stream).starts_with("HTTP/1.1 413"));
    assert!(matches!(write(&mut stream, b"1\r\nx\r\n"), Poll::Ready(Err(_))));
}

#[test]
fn a_table_that_the_endpoint_makes_smaller_is_emptied_in_the_next_block() {
    let streams = connection(&[(setting::HEADER_TABLE_SIZE, 0)]);

    let _streams = (ask(&streams, GET), ask(&streams, GET));

    let firsts: Vec<u8> = frames(&streams).iter().map(|f| f.3[0]).collect();
    assert_eq!(firsts, [0x20, 0x82]);
}

#[test]
fn that_block_may_be_one_of_trailers() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, POST);
    said(&streams, |out| frame::settings(&[(setting::HEADER_TABLE_SIZE, 0)], out)).unwrap();
    frames(&streams);

    assert!(matches!(write(&mut stream, b"0\r\nX-Sum: 7\r\n\r\n"), Poll::Ready(Ok(15))));

    assert_eq!(frames(&streams).last().map(|f| (f.0, f.3[0])), Some((kind::HEADERS, 0x20)));
}

#[test]
fn a_body_that_cannot_be_sent_ends_its_stream() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, POST);
    frames(&streams);

    assert!(matches!(write(&mut stream, b"no size\r\n"), Poll::Ready(Err(_))));

    assert_eq!(frames(&streams).iter().map(|f| (f.0, f.2)).collect::<Vec<_>>(), [(kind::RST_STREAM, 1)]);
    assert_eq!(read_by(&mut stream, 99).1, Some(StreamError::Unsendable));
}

#[test]
fn a_head_that_is_too_large_is_not_read_at_all() {
    let streams = connection(&[]);
    let mut stream = ask(&streams, "HEAD / HTTP/1.1\r\nHost: e\r\n\r\n");
    let mut block = Vec::new();
    encoder::status(200, &mut block);
    (0..70).for_each(|_| encoder::field(b"a", &[b'x'; 1_000], &mut block));

    said(&streams, |out| frame::headers(1, &block, true, out)).unwrap();

    assert_eq!(read_by(&mut stream, 99), (String::new(), Some(StreamError::Malformed)));
}

#[test]
fn who_was_served_longest_ago_is_first_when_there_is_room_again() {
    let streams = connection(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]);
    let mut all: Vec<_> = (0..3).map(|_| ask(&streams, &POST.replace("/a", "/b"))).collect();
    frames(&streams);
    let mut order = Vec::new();
    let piece = [b"4000\r\n".to_vec(), vec![b'x'; 16_384], b"\r\n".to_vec()].concat();
    let mut rest: Vec<Vec<u8>> = all.iter().map(|_| piece.repeat(8)).collect();

    for _ in 0..12 {
        // As their tasks are woken: by the time of their last turn.
        let mut turns: Vec<_> = (0..3).map(|at| (streams.borrow_mut().slot(at).turn, at)).collect();
        turns.sort_unstable();
        for (_, at) in turns {
            while let Poll::Ready(n) = write(&mut all[at], &rest[at]) {
                rest[at].drain(..n.unwrap());
            }
        }
        order.extend(frames(&streams).iter().map(|f| f.2));
        said(&streams, |out| frame::window_update(0, 16_384, out)).unwrap();
    }

    order.dedup();
    assert!(order.windows(3).skip(3).all(|w| w[0] != w[2]), "{order:?}");
}
