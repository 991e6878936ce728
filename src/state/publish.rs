//! Publication of snapshots: the only user of arc-swap. And their end: what is no longer published is kept by the writer
//! until no worker reads it. A service that was replaced lives as long as its last request, which frees it.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::snapshot::Snapshot;

/// Where readers find the current snapshot. Only the writer stores into it.
#[derive(Clone, Debug)]
pub struct Published(Arc<ArcSwap<Snapshot>>);

/// A reader of its own thread: a load costs one atomic read while nothing changes.
#[derive(Clone, Debug)]
pub struct Reader(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

/// Snapshots that are no longer published, while somebody may still read them. Without it, the last reader would free
/// what is not in the next one, in the middle of a request: a service of 10,000 endpoints is as many counts to lower.
#[derive(Debug, Default)]
pub struct Retired(Vec<Arc<Snapshot>>);

impl Retired {
    pub fn put(&mut self, before: Arc<Snapshot>) {
        self.0.push(before);
    }

    /// Frees those that nobody reads any more. No new reader can come: they are not published.
    pub fn sweep(&mut self) {
        self.0.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

impl Published {
    #[must_use]
    pub fn new(first: impl Into<Arc<Snapshot>>) -> Self {
        Self(Arc::new(ArcSwap::new(first.into())))
    }

    /// Swaps the whole picture. The one before is for [`Retired`].
    pub fn store(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        self.0.swap(next)
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

#[cfg(test)]
mod tests {
    use crate::state::fixtures::{config, hello};
    use crate::state::model::{Model, Names};

    use super::*;

    #[test]
    fn who_reads_the_next_snapshot_does_not_free_the_one_before() {
        let mut model = Model::new(config(vec![hello(90.0, 10.0)]), Names::new(), 0).unwrap();
        let published = Published::new(model.snapshot().clone());
        let (mut reader, mut retired) = (published.reader(), Retired::default());
        let before = Arc::downgrade(reader.load());

        model.rebuild(0).unwrap();
        retired.put(published.store(model.snapshot().clone()));
        retired.sweep();
        let is_kept_while_read = before.upgrade().is_some();
        reader.load();
        let is_kept_after = before.upgrade().is_some();
        retired.sweep();

        assert!(is_kept_while_read && is_kept_after);
        assert!(before.upgrade().is_none());
    }
}
