//! HTTP/2 floods: cheap frames that are meant to cost perch more than their sender (rows C6 to C9). Each is bounded in
//! what it makes perch hold, and nobody else notices.

use crate::frames::{
    DATA, END_HEADERS, END_STREAM, GOOD, HEADERS, Outcome, PREFACE, RST_STREAM, SETTINGS, ask, connect, fields, frame,
};
use crate::front::{Front, assert_closed, front_tls};
use crate::support::Client;

const PRIORITY: u8 = 2;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A connection on which the settings were sent.
fn greeted(front: &Front) -> Client {
    let mut client = connect(front);
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    client
}

/// Sends `count` of these, as far as perch takes them.
fn flood(client: &mut Client, count: u32, bytes: impl Fn(u32) -> Vec<u8>) {
    // Many at a time, so that the flood is cheap for its sender.
    for batch in 0..count / 100 {
        let frames: Vec<u8> = (0..100).flat_map(|n| bytes(batch * 100 + n)).collect();
        if client.try_send(frames).is_err() {
            return;
        }
    }
}

/// Others are served, and perch holds little more than before.
#[track_caller]
fn assert_unharmed(front: &Front, memory_before: f64) {
    assert_eq!(ask(front, &GOOD, None), Outcome::Answer(0x88));
    let grown = (memory(front) - memory_before) / f64::from(1 << 20);
    assert!(grown < 32.0, "{grown:.1} MiB more");
}

fn memory(front: &Front) -> f64 {
    front.perch.metric("process_resident_memory_bytes").unwrap()
}

fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &fields(&GOOD))
}

#[test]
fn a_flood_of_resets_ends_the_connection() {
    let front = front_tls("", "");
    let before = memory(&front);
    let mut client = greeted(&front);

    flood(&mut client, 20_000, |n| {
        let stream = 2 * n + 1;
        [request(stream, END_STREAM), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });

    assert_closed(&mut client);
    assert_unharmed(&front, before);
}

#[test]
fn a_flood_of_mistakes_that_make_perch_reset_ends_the_connection() {
    let front = front_tls("", "");
    let before = memory(&front);
    let mut client = greeted(&front);

    // MadeYouReset (CVE-2025-8671): the server resets the stream, and the endpoint goes on working.
    flood(&mut client, 20_000, |n| {
        let stream = 2 * n + 1;
        [request(stream, END_STREAM), frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes())].concat()
    });

    assert_closed(&mut client);
    assert_unharmed(&front, before);
}

#[test]
fn endless_continuations_end_the_connection() {
    let front = front_tls("", "");
    let before = memory(&front);

    for block in [&b""[..], &[0x10, 1, b'x', 1, b'y'].repeat(100)] {
        let mut client = greeted(&front);
        client.send(frame(HEADERS, END_STREAM, 1, &fields(&GOOD)));
        flood(&mut client, 100_000, |_| frame(CONTINUATION, 0, 1, block));
        assert_closed(&mut client);
    }

    assert_unharmed(&front, before);
    assert_eq!(front.backend.count(), 1, "that was the one good request");
}

#[test]
fn a_small_block_that_unpacks_to_megabytes_is_refused() {
    let front = front_tls("", "");
    let before = memory(&front);
    let mut client = greeted(&front);
    // One field of 4,000 bytes into the table (RFC 7541 section 6.2.1), then 1,000 times one byte that repeats it.
    let mut block = fields(&GOOD);
    block.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    block.extend(std::iter::repeat_n(b'y', 4_000));
    block.extend(std::iter::repeat_n(0xbe, 1_000));

    client.try_send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).ok();

    assert_ne!(crate::frames::outcome(&mut client), Outcome::Answer(0x88));
    assert_eq!(front.backend.count(), 0);
    assert_unharmed(&front, before);
}

#[test]
fn floods_of_control_frames_are_answered_within_bounds() {
    let front = front_tls("", "");
    let before = memory(&front);

    let floods: [&dyn Fn(u32) -> Vec<u8>; 4] = [
        &|n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()),
        &|_| frame(SETTINGS, 0, 0, &[]),
        &|n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1]),
        &|_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
    ];
    for bytes in floods {
        let mut client = greeted(&front);
        // Its answers are never read.
        flood(&mut client, 200_000, bytes);
        assert_unharmed(&front, before);
    }
}

#[test]
fn a_flood_of_settings_or_pings_ends_the_connection() {
    let front = front_tls("", "");

    for bytes in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let mut client = greeted(&front);
        flood(&mut client, 20_000, |_| bytes.clone());
        assert_closed(&mut client);
    }

    assert_eq!(ask(&front, &GOOD, None), Outcome::Answer(0x88));
}

#[test]
fn a_flood_of_empty_data_is_bounded() {
    let front = front_tls("", "");
    let before = memory(&front);
    let mut client = greeted(&front);

    client.send(request(1, 0));
    flood(&mut client, 200_000, |_| frame(DATA, 0, 1, &[]));

    assert_closed(&mut client);
    assert_unharmed(&front, before);
}
