//! How many pins each neighbourhood has: a count-min sketch of fixed size, so that counting a flood needs no memory.
//!
//! A count is never too low; it is too high only for a neighbourhood that shares both its cells with crowded ones,
//! which nobody outside can arrange: the hash is keyed at start.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

/// Cells in each of the two rows: 128 KiB together, and with 1,000 crowded neighbourhoods one other in 270 is misjudged.
const CELLS: usize = 1 << 14;

#[derive(Debug)]
pub(super) struct Crowds {
    hash: RandomState,
    rows: [Box<[AtomicU32]>; 2],
}

impl Crowds {
    pub(super) fn new() -> Self {
        let row = || (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        Self { hash: RandomState::new(), rows: [row(), row()] }
    }

    pub(super) fn add(&self, neighbourhood: u64) {
        self.cells(neighbourhood).for_each(|cell| {
            cell.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Of one that was added.
    pub(super) fn remove(&self, neighbourhood: u64) {
        self.cells(neighbourhood).for_each(|cell| {
            cell.fetch_sub(1, Ordering::Relaxed);
        });
    }

    pub(super) fn count(&self, neighbourhood: u64) -> u32 {
        self.cells(neighbourhood).map(|cell| cell.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "bits are picked out of the hash")]
    fn cells(&self, neighbourhood: u64) -> impl Iterator<Item = &AtomicU32> {
        let hash = self.hash.hash_one(neighbourhood);
        let picks = [hash as usize, (hash >> 32) as usize];
        self.rows.iter().zip(picks).filter_map(|(row, pick)| row.get(pick % CELLS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_removed_is_not_counted() {
        let crowds = Crowds::new();

        (0..100).for_each(|n| crowds.add(n % 2));
        (0..50).for_each(|_| crowds.remove(0));

        assert_eq!((crowds.count(0), crowds.count(1)), (0, 50));
    }
}
