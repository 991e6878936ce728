//! How many requests a pin has seen, in 16 bits: exact up to 4,095, from there on to within about 2 %.
//!
//! A small floating-point number: 12 bits of count, 4 bits that say how many requests one step of it stands for. Steps
//! beyond one request are taken by chance (Morris 1978), so that the expected value is the count. Adding is a relaxed
//! load and store beside the time of the last use: no lock and no locked instruction. Two workers that serve one client
//! in the same nanoseconds may count it once.

use std::cell::Cell;
use std::sync::atomic::{AtomicU16, Ordering};

const MANTISSA_BITS: u32 = 12;
const MANTISSA: u16 = (1 << MANTISSA_BITS) - 1;

/// 2 bytes.
#[derive(Debug)]
pub(super) struct Tally(AtomicU16);

impl Tally {
    /// Of a client that has just come.
    pub(super) fn first() -> Self {
        Self(AtomicU16::new(1))
    }

    /// As it is stored.
    pub(super) fn bits(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn from_bits(bits: u16) -> Self {
        Self(AtomicU16::new(bits))
    }

    /// One more request.
    pub(super) fn add(&self) {
        let now = self.0.load(Ordering::Relaxed);
        let halvings = now >> MANTISSA_BITS;
        if now < u16::MAX && (halvings == 0 || chance() >> (64 - u32::from(halvings)) == 0) {
            // From a full mantissa the carry goes to the exponent and leaves 0: half of what it stood for is lost, so
            // the upper half is set again.
            let next = now + 1;
            let is_carried = next & MANTISSA == 0;
            self.0.store(if is_carried { next | 1 << (MANTISSA_BITS - 1) } else { next }, Ordering::Relaxed);
        }
    }

    /// About how many.
    pub(super) fn count(&self) -> u64 {
        let now = self.0.load(Ordering::Relaxed);
        u64::from(now & MANTISSA) << (now >> MANTISSA_BITS)
    }
}

/// 64 random bits (xorshift64*, Vigna 2016), good enough to count with; a worker has its own.
fn chance() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(n: u64) -> u64 {
        let tally = Tally::first();
        (1..n).for_each(|_| tally.add());
        tally.count()
    }

    #[test]
    fn a_few_thousand_are_counted_exactly() {
        for n in [1, 2, 1_000, 4_095, 4_096] {
            assert_eq!(counted(n), n);
        }
    }

    #[test]
    fn many_are_counted_to_a_few_percent() {
        for n in [10_000, 100_000, 1_000_000] {
            let seen = counted(n);

            assert!(seen.abs_diff(n) * 100 < n * 10, "{seen} instead of {n}");
        }
    }

    #[test]
    fn it_stops_at_its_end() {
        let tally = Tally(AtomicU16::new(u16::MAX));

        (0..100_000).for_each(|_| tally.add());

        assert_eq!(tally.count(), 4_095 << 15);
    }
}
