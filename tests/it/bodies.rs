//! Bodies of any size, framing and segmentation, both ways at once, on kept connections: what arrives is what was sent.

use crate::front::{front, front_tls};
use crate::support::{Act, Client, Seen, TestBackend};

/// A sequence that is the same in each run (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % most
    }

    /// Mostly small, sometimes beyond every buffer; the sizes of the buffers among them.
    fn size(&mut self) -> usize {
        match self.below(5) {
            0 => self.below(4),
            1 => self.below(2000),
            2 => [2047, 2048, 2049, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537][self.below(9)],
            3 => self.below(70_000),
            _ => self.below(300_000),
        }
    }

    fn bytes(&self, size: usize) -> Vec<u8> {
        (0..size)
            .map(|n| u8::try_from((self.0 >> 40) % 26).unwrap().wrapping_add(u8::try_from(n % 97).unwrap()))
            .collect()
    }

    /// The body as chunks of random sizes, some with extensions.
    fn chunked(&mut self, body: &[u8]) -> Vec<u8> {
        let (mut wire, mut rest) = (Vec::new(), body);
        while !rest.is_empty() {
            let most = if self.below(3) == 0 { 5 } else { 20_000 };
            let (chunk, more) = rest.split_at((1 + self.below(most)).min(rest.len()));
            let extension = if self.below(4) == 0 { ";a=b" } else { "" };
            wire.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
            rest = more;
            // Tiny chunks of a large body would take minutes.
            if wire.len() > 4 * body.len() + 20_000 {
                wire.extend_from_slice(format!("{:x}\r\n", rest.len()).as_bytes());
                wire.extend_from_slice(rest);
                wire.extend_from_slice(b"\r\n");
                break;
            }
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    }

    /// One message: head without framing, then framing and body.
    fn message(&mut self, head: &str, body: &[u8]) -> Vec<u8> {
        let (framing, wire) = match self.below(2) {
            0 => (format!("content-length: {}", body.len()), body.to_vec()),
            _ => ("transfer-encoding: chunked".to_owned(), self.chunked(body)),
        };
        [format!("{head}\r\n{framing}\r\n\r\n").into_bytes(), wire].concat()
    }

    /// Cut into pieces at random places.
    fn cut(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let most = if self.below(3) == 0 { 100 } else { 100_000 };
            let (piece, more) = rest.split_at((1 + self.below(most)).min(rest.len()));
            pieces.push(piece.to_vec());
            // A few cuts are enough to find a seam.
            rest = if pieces.len() < 20 {
                more
            } else {
                pieces.push(more.to_vec());
                &[]
            };
        }
        pieces
    }
}

/// What the backend answers to the request with this number.
fn answer(number: u64) -> Vec<u8> {
    let mut random = Random(number ^ 0xa5a5);
    let size = random.size();
    random.bytes(size)
}

fn answering(backend: &TestBackend) {
    backend.script(|seen: &Seen| {
        let number: u64 = seen.target().trim_start_matches('/').parse().unwrap();
        let mut random = Random(number);
        // Announced: a close that comes as a surprise may meet a body too large to be sent twice, and that is a 502.
        let closes = random.below(8) == 0;
        let head = if closes { "HTTP/1.1 200 OK\r\nconnection: close" } else { "HTTP/1.1 200 OK" };
        let message = random.message(head, &answer(number));
        // Before or after the body: both happen.
        let first = [vec![Act::ReadBody], random.cut(&message).into_iter().map(Act::Send).collect()].concat();
        if closes { [first, vec![Act::Close]].concat() } else { first }
    });
}

fn exchange(client: &mut Client, backend: &TestBackend, rounds: std::ops::Range<u64>) {
    for number in rounds {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9));
        let size = random.size();
        let body = random.bytes(size);
        let message = random.message(&format!("PUT /{number} HTTP/1.1\r\nhost: localhost"), &body);

        for piece in random.cut(&message) {
            client.send(&piece);
        }
        let got = client.try_response().unwrap_or_else(|error| panic!("{number}: {error}"));

        assert_eq!(got.status, 200, "{number}: {got:?}");
        assert!(got.body == answer(number), "{number}: {} of {} bytes came down", got.body.len(), answer(number).len());
        let seen = backend.last();
        assert!(seen.is_whole && seen.body == body, "{number}: {} of {size} bytes went up", seen.body.len());
    }
}

#[test]
fn bodies_arrive_as_they_were_sent() {
    let front = front();
    answering(&front.backend);

    exchange(&mut front.client(), &front.backend, 0..150);
}

#[test]
fn bodies_arrive_as_they_were_sent_over_tls() {
    let front = front_tls("", "");
    answering(&front.backend);

    let mut client = Client::tls(front.perch.address("https"), "localhost");

    exchange(&mut client, &front.backend, 1000..1100);
}

#[test]
fn pipelined_bodies_arrive_as_they_were_sent() {
    let front = front();
    answering(&front.backend);
    let mut random = Random(7);
    let mut wire = Vec::new();
    let numbers: Vec<u64> = (2000..2040).collect();
    for number in &numbers {
        let size = random.below(3000);
        let body = random.bytes(size);
        wire.extend(random.message(&format!("PUT /{number} HTTP/1.1\r\nhost: a"), &body));
    }
    let mut client = front.client();
    let mut socket = client.socket().try_clone().unwrap();

    let pieces = random.cut(&wire);
    let sender = std::thread::spawn(move || {
        for piece in pieces {
            std::io::Write::write_all(&mut socket, &piece).unwrap();
        }
    });

    for number in numbers {
        assert!(client.response().body == answer(number), "{number}");
    }
    sender.join().unwrap();
}
