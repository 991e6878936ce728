//! Files that may change: the configuration, certificates. Their *folders* are watched, since a ConfigMap or Secret
//! changes by a swap of its `..data` symlink, which no event of the file itself tells. On any event the contents are
//! compared; a poll every ten seconds catches what the system doesn't tell (NFS, a folder that was not there).
//! Nobody is told of a file whose content is the same.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use siphasher::sip128::SipHasher24;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, warn};

/// Without a further event for so long, the files are read: editors and Kubernetes write in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// So long after the first event they are read in any case.
const SETTLE_AT_MOST: Duration = Duration::from_millis(500);

/// The net below the events.
const POLL: Duration = Duration::from_secs(10);

/// Watches files for whoever awaits [`FileWatch::changed`].
#[derive(Debug)]
pub struct FileWatch {
    /// What was last told of each.
    files: BTreeMap<PathBuf, Content>,
    /// `None` where the system has no watches left; polling goes on.
    watcher: Option<RecommendedWatcher>,
    folders: HashSet<PathBuf>,
    events: mpsc::Receiver<()>,
    /// Events of folders that are watched no more go nowhere; this end keeps the channel open without a watcher.
    _sender: mpsc::Sender<()>,
    /// An event came that nothing was compared for yet.
    is_due: bool,
    poll: Duration,
    next_poll: Instant,
}

/// Enough of a file to see that it changed; no secret is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Digest(u128),
    Unreadable(io::ErrorKind),
}

impl FileWatch {
    /// Watches from now on. To miss nothing, start it before reading the files.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let (sender, events) = mpsc::channel(1);
        let tell = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|e| is_change(e.kind)) {
                // Full: one is waiting already, which is as good as two.
                tell.try_send(()).ok();
            }
        });
        let mut this = Self {
            files: BTreeMap::new(),
            watcher: watcher.inspect_err(|error| warn!(%error, "No file events; polling instead.")).ok(),
            folders: HashSet::new(),
            events,
            _sender: sender,
            is_due: false,
            poll: POLL,
            next_poll: Instant::now() + POLL,
        };
        this.set_files(files);
        this
    }

    /// These files instead. To miss nothing, call it before reading those that are new.
    pub fn set_files(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut before = std::mem::take(&mut self.files);
        let keep = |file: PathBuf| {
            let content = before.remove(&file).unwrap_or_else(|| Content::of(&file));
            (file, content)
        };
        self.files = files.into_iter().map(keep).collect();
        self.watch_folders();
    }

    /// Waits until a file's content is another than what was last told (or found by [`Self::new`] and
    /// [`Self::set_files`]), and tells which. Can be dropped and called again at any time.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            if !self.is_due {
                tokio::select! {
                    // Never closed: we hold an end.
                    _ = self.events.recv() => self.is_due = true,
                    () = sleep_until(self.next_poll) => {}
                }
            }
            if self.is_due {
                self.settle().await;
                self.is_due = false;
            }
            self.next_poll = Instant::now() + self.poll;
            // A folder may be there now, or a symlink lead elsewhere.
            self.watch_folders();
            let changed = self.compare();
            if !changed.is_empty() {
                debug!(?changed, "Files changed.");
                return changed;
            }
        }
    }

    async fn settle(&mut self) {
        let end = Instant::now() + SETTLE_AT_MOST;
        while let Ok(Some(())) = timeout_at((Instant::now() + SETTLE).min(end), self.events.recv()).await {
            if Instant::now() >= end {
                return;
            }
            // The channel holds one: a busy folder would wake us for each event.
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn compare(&mut self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (file, content) in &mut self.files {
            let now = Content::of(file);
            if *content != now {
                *content = now;
                changed.push(file.clone());
            }
        }
        changed
    }

    /// The folders of the files, and of what they lead to by symlinks.
    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let real = |file: &PathBuf| file.canonicalize().ok();
        let wanted: HashSet<PathBuf> =
            self.files.keys().flat_map(|f| [Some(f.clone()), real(f)]).flatten().filter_map(|f| folder(&f)).collect();
        for left in self.folders.difference(&wanted) {
            // It may be gone, and its watch with it.
            if let Err(error) = watcher.unwatch(left) {
                debug!(folder = %left.display(), %error, "No watch to end.");
            }
        }
        self.folders.retain(|f| wanted.contains(f));
        for folder in wanted {
            // Again for those that are watched: one that was replaced has a new inode, and the old watch is dead.
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.folders.insert(folder)),
                Err(error) => debug!(folder = %folder.display(), %error, "Could not watch a folder; polling instead."),
            }
        }
    }
}

impl Content {
    fn of(file: &Path) -> Self {
        match std::fs::read(file) {
            Ok(bytes) => Self::Digest(SipHasher24::new().hash(&bytes).as_u128()),
            Err(error) => Self::Unreadable(error.kind()),
        }
    }
}

fn folder(file: &Path) -> Option<PathBuf> {
    let parent = file.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}

/// Our own reading makes events too.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other | EventKind::Remove(_) => true,
    }
}

#[cfg(test)]
mod tests;
