//! How short of memory perch is, as requests and scrapes read it; one thread writes it. It does not know how that is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::decide::shedding::Shedding;

/// Of the process. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    shedding: AtomicU8,
    /// In bytes; 0: not known.
    used: AtomicU64,
    /// In bytes; 0: there is none.
    ceiling: AtomicU64,
}

impl Pressure {
    /// What is given up now.
    #[must_use]
    pub fn shedding(&self) -> Shedding {
        match self.0.shedding.load(Ordering::Relaxed) {
            0 => Shedding::Nothing,
            1 => Shedding::KeepAlive,
            2 => Shedding::Requests,
            _ => Shedding::Connections,
        }
    }

    /// Bytes in use, and the most that may be; `None` without a ceiling.
    #[must_use]
    pub fn memory(&self) -> Option<(u64, u64)> {
        let ceiling = self.0.ceiling.load(Ordering::Relaxed);
        (ceiling > 0).then(|| (self.0.used.load(Ordering::Relaxed), ceiling))
    }

    /// By the one that measures.
    pub fn set(&self, shedding: Shedding, memory: Option<(u64, u64)>) {
        let (used, ceiling) = memory.unwrap_or_default();
        self.0.used.store(used, Ordering::Relaxed);
        self.0.ceiling.store(ceiling, Ordering::Relaxed);
        // A load first: in the usual case nobody writes to a line that every worker reads.
        if self.shedding() != shedding {
            self.0.shedding.store(shedding as u8, Ordering::Relaxed);
        }
    }
}
