//! Whether this process should get traffic: named tasks that must be done first, and the drain.
//!
//! Each part that must come up takes a [`Block`] and drops it when it is done; the process is ready when none is left
//! and no drain has begun. A reload that was refused does not make it unready: the last good configuration serves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Task -> how many hold it. Taken for a moment at start and by probes, never across anything.
    waiting: Mutex<BTreeMap<&'static str, usize>>,
    is_draining: AtomicBool,
    /// Written by a reload, read by probes and scrapes.
    reload: Mutex<LastReload>,
}

/// How the last attempt to take over a configuration ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastReload {
    /// When one was last taken over.
    pub succeeded_at: Option<SystemTime>,
    /// What was wrong with the last one; `None` when it was taken over.
    pub error: Option<String>,
}

/// A task that must be done before the process is ready. Dropping it says that it is.
#[derive(Debug)]
#[must_use = "dropping it at once makes the process ready too early"]
pub struct Block {
    readiness: Readiness,
    task: &'static str,
}

impl Readiness {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The process is not ready until the block is dropped.
    pub fn wait_for(&self, task: &'static str) -> Block {
        *self.waiting().entry(task).or_default() += 1;
        Block { readiness: self.clone(), task }
    }

    /// From now on it is not ready, whatever else happens.
    pub fn drain(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.is_draining.load(Ordering::Relaxed)
    }

    /// Nothing is waited for and no drain has begun.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.waiting().is_empty()
    }

    /// The tasks that are not done.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.waiting().keys().copied().collect()
    }

    /// A configuration, the first included, was taken over.
    pub fn reload_succeeded(&self, at: SystemTime) {
        *self.reload() = LastReload { succeeded_at: Some(at), error: None };
    }

    /// A configuration was refused; the one before stays in force.
    pub fn reload_refused(&self, error: impl Into<String>) {
        self.reload().error = Some(error.into());
    }

    /// How the last attempt ended.
    #[must_use]
    pub fn last_reload(&self) -> LastReload {
        self.reload().clone()
    }

    fn reload(&self) -> std::sync::MutexGuard<'_, LastReload> {
        self.0.reload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut waiting = self.readiness.waiting();
        if let Some(holders) = waiting.get_mut(self.task) {
            *holders -= 1;
            if *holders == 0 {
                waiting.remove(self.task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_the_last_task_is_done() {
        let readiness = Readiness::new();
        let config = readiness.wait_for("config");
        let first = readiness.wait_for("listeners");
        let second = readiness.wait_for("listeners");

        drop(config);
        drop(first);

        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["listeners"]);
        drop(second);
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_refused_reload_keeps_it_ready_and_the_time_of_the_last_good_one() {
        let readiness = Readiness::new();
        readiness.reload_succeeded(SystemTime::UNIX_EPOCH);

        readiness.reload_refused("routes[0]: bad");

        let last = readiness.last_reload();
        assert!(readiness.is_ready());
        assert_eq!(last.succeeded_at, Some(SystemTime::UNIX_EPOCH));
        assert_eq!(last.error.as_deref(), Some("routes[0]: bad"));
    }

    #[test]
    fn a_drain_ends_it_for_good() {
        let readiness = Readiness::new();

        readiness.clone().drain();

        assert!(!readiness.is_ready() && readiness.is_draining());
    }
}
