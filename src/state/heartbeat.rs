//! Signs of life of the workers. A worker beats about once a second in between its requests; whoever looks once a second
//! counts the looks in a row without a beat. Looks are counted, not time: after the whole process was stopped (SIGSTOP, a
//! CPU quota) nobody has missed more than the looker itself.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A worker that missed so many looks in a row is blocked: a worker's tick is a second, and what takes longer is a bug.
pub const BLOCKED: u32 = 3;

/// Liveness fails from here on: enough for a debugger's short stop, not for users to wait on.
pub const DEAD: u32 = 10;

/// Of all workers. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Taken when a worker starts, and once a second for a moment.
    hearts: Mutex<Vec<Looked>>,
    /// Workers that are blocked now, and the looks that the worst of them missed.
    blocked: AtomicU32,
    missed: AtomicU32,
}

#[derive(Debug)]
struct Looked {
    heart: Arc<Heart>,
    last: u64,
    missed: u32,
}

/// One worker's.
#[derive(Debug, Default)]
pub struct Heart(AtomicU64);

impl Heart {
    /// A sign of life.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Heartbeats {
    /// Of one more worker.
    #[must_use]
    pub fn join(&self) -> Arc<Heart> {
        let heart = Arc::<Heart>::default();
        self.hearts().push(Looked { heart: heart.clone(), last: 0, missed: 0 });
        heart
    }

    /// To be called once a second by one thread. Returns the workers that became blocked at this look, and those that
    /// came back.
    pub fn look(&self) -> (Vec<usize>, Vec<usize>) {
        let (mut lost, mut found) = (Vec::new(), Vec::new());
        let mut hearts = self.hearts();
        for (worker, looked) in hearts.iter_mut().enumerate() {
            let now = looked.heart.0.load(Ordering::Relaxed);
            let before = looked.missed;
            looked.missed = if now == looked.last { before.saturating_add(1) } else { 0 };
            looked.last = now;
            if looked.missed == BLOCKED {
                lost.push(worker);
            } else if looked.missed == 0 && before >= BLOCKED {
                found.push(worker);
            }
        }
        let blocked = hearts.iter().filter(|looked| looked.missed >= BLOCKED).count();
        self.0.blocked.store(u32::try_from(blocked).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.0.missed.store(hearts.iter().map(|looked| looked.missed).max().unwrap_or(0), Ordering::Relaxed);
        (lost, found)
    }

    /// Workers that gave no sign of life for some seconds.
    #[must_use]
    pub fn blocked(&self) -> u32 {
        self.0.blocked.load(Ordering::Relaxed)
    }

    /// No worker is given up yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.missed.load(Ordering::Relaxed) < DEAD
    }

    fn hearts(&self) -> std::sync::MutexGuard<'_, Vec<Looked>> {
        self.0.hearts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(hearts: &Heartbeats, beating: &[&Arc<Heart>], count: u32) -> Vec<(Vec<usize>, Vec<usize>)> {
        (0..count)
            .map(|_| {
                beating.iter().for_each(|heart| heart.beat());
                hearts.look()
            })
            .collect()
    }

    #[test]
    fn a_worker_that_stops_is_told_once_and_again_when_it_is_back() {
        let hearts = Heartbeats::default();
        let (a, b) = (hearts.join(), hearts.join());

        looks(&hearts, &[&a, &b], 5);
        assert_eq!((hearts.blocked(), hearts.is_alive()), (0, true));

        let told = looks(&hearts, &[&a], DEAD);
        assert_eq!(told.iter().filter(|(lost, _)| *lost == [1]).count(), 1);
        assert_eq!((hearts.blocked(), hearts.is_alive()), (1, false));

        assert_eq!(looks(&hearts, &[&a, &b], 1), [(vec![], vec![1])]);
        assert_eq!((hearts.blocked(), hearts.is_alive()), (0, true));
    }

    #[test]
    fn without_workers_there_is_none_to_miss() {
        let hearts = Heartbeats::default();

        hearts.look();

        assert!(hearts.is_alive());
    }
}
