//! Publication of snapshots: the only user of arc-swap.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::snapshot::Snapshot;

/// Where readers find the current snapshot. Only the writer stores into it.
#[derive(Clone, Debug)]
pub struct Published(Arc<ArcSwap<Snapshot>>);

/// A reader of its own thread: a load costs one atomic read while nothing changes.
#[derive(Clone, Debug)]
pub struct Reader(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

impl Published {
    #[must_use]
    pub fn new(first: impl Into<Arc<Snapshot>>) -> Self {
        Self(Arc::new(ArcSwap::new(first.into())))
    }

    /// Swaps the whole picture.
    pub fn store(&self, next: Arc<Snapshot>) {
        self.0.store(next);
    }

    /// For the occasional reader (admin).
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader(Cache::new(self.0.clone()))
    }
}

impl Reader {
    /// The current snapshot.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.0.load()
    }
}
