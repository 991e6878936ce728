//! The document in `stateDir`: written beside, synced, renamed, and the folder synced, so that a reader finds the old one
//! or the new one whole, at whatever instant perch or the machine dies.
//!
//! A file that can't be read as a document is kept aside, and perch starts from its configuration: traffic matters more.
//! One of a newer perch is not touched, and perch does not start: it would forget what that one knew.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, info};

use super::{Document, StoreError};
use crate::decide::rollout::{Rollouts, VERSION};

/// The document's name in its folder.
const NAME: &str = "rollouts.json";
/// Held by the one perch that writes.
const LOCK: &str = "lock";

/// A document of a newer perch.
#[derive(Debug, thiserror::Error)]
#[error(
    "stateDir: {path} was written by a newer perch (document version {version}, this one reads up to {VERSION}); start the newer one, or move the file away to begin with the configuration's weights"
)]
pub struct OpenError {
    path: String,
    version: u32,
}

/// A folder with the document.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
    /// The lock once it is ours. Whoever holds the mutex writes: one that was given up on must not come after the next.
    lock: Arc<Mutex<Option<File>>>,
}

fn keep_aside(path: &Path, problem: &str) -> Rollouts {
    let free = (1..1000).map(|n| path.with_file_name(format!("{NAME}.corrupt-{n}"))).find(|aside| !aside.exists());
    let moved = match &free {
        None => Err(io::Error::other("there are a thousand of them")),
        Some(aside) => fs::rename(path, aside),
    };
    let (file, aside) = (path.display(), free.unwrap_or_default());
    match moved {
        Ok(()) => error!(
            "The state file {file} can't be read ({problem}); it is kept as {}. Starting with the configuration's weights.",
            aside.display()
        ),
        Err(error) => error!(
            "The state file {file} can't be read ({problem}), nor kept aside ({error}). Starting with the configuration's weights."
        ),
    }
    Rollouts::default()
}

impl FileStore {
    /// Opens a folder, made if it isn't there, and reads what it has.
    pub(super) fn open(folder: &Path) -> Result<(Self, Rollouts), OpenError> {
        let store = Self { folder: folder.to_owned(), lock: Arc::default() };
        let writable = fs::create_dir_all(folder).and_then(|()| hold(folder, &mut guard(&store.lock)));
        if let Err(problem) = writable {
            error!("stateDir {}: {problem}; verbs are refused until it can be written.", folder.display());
        }
        let path = folder.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => Some(text),
            Err(missing) if missing.kind() == ErrorKind::NotFound => None,
            Err(problem) => return Ok((store, keep_aside(&path, &problem.to_string()))),
        };
        let rollouts = match Document::read(text.as_deref()) {
            Document::Good(rollouts) => {
                info!(file = %path.display(), sequence = rollouts.sequence, "Read the rollouts.");
                rollouts
            }
            Document::Missing => Rollouts::default(),
            Document::Corrupt(problem) => keep_aside(&path, &problem),
            Document::Newer(version) => return Err(OpenError { path: path.display().to_string(), version }),
        };
        Ok((store, rollouts))
    }

    pub(super) fn let_go(&self) {
        *guard(&self.lock) = None;
    }

    pub(super) async fn save(&self, rollouts: &Rollouts) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(rollouts).map_err(|error| StoreError::Unwritable(error.to_string()))?;
        let (folder, lock) = (self.folder.clone(), self.lock.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut lock = guard(&lock);
            hold(&folder, &mut lock)?;
            replace(&folder, &text)
        });
        let told = |what: String| StoreError::Unwritable(format!("stateDir {}: {what}", self.folder.display()));
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(problem)) => Err(told(problem.to_string())),
            Err(problem) => Err(told(problem.to_string())),
        }
    }
}

/// Nothing is ever half done under it.
fn guard(lock: &Mutex<Option<File>>) -> std::sync::MutexGuard<'_, Option<File>> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the lock, unless it is ours already.
fn hold(folder: &Path, lock: &mut Option<File>) -> io::Result<()> {
    if lock.is_some() {
        return Ok(());
    }
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => {
            *lock = Some(file);
            Ok(())
        }
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another perch uses this folder; give each its own")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn replace(folder: &Path, text: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!("{NAME}.new"));
    let mut file = File::create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store::Store;
    use crate::decide::rollout::{Context, OnDecrease, Rollout, Side};
    use crate::decide::split::Weight;

    fn open(folder: &Path) -> Result<(Store, Rollouts), OpenError> {
        crate::control::store::open(Some(folder))
    }

    fn some(sequence: u64) -> Rollouts {
        let sides = [Side { name: "stable", configured: Weight::ONE, usable: 1 }];
        let cx = Context {
            at: 0,
            who: "test",
            reason: None,
            sides: &sides,
            rule: OnDecrease::Evict,
            min_ready: 1,
            plan: None,
        };
        Rollouts { sequence, ..Rollouts::default() }.with("hello", Rollout::start(&cx))
    }

    async fn save(store: &mut Store, rollouts: &Rollouts) -> Result<(), String> {
        store.save(rollouts).await.map_err(|e| e.to_string())
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_was_saved_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        let (mut store, nothing) = open(&deep).unwrap();
        assert_eq!(nothing, Rollouts::default());

        save(&mut store, &some(1)).await.unwrap();
        save(&mut store, &some(2)).await.unwrap();
        drop(store);

        assert_eq!(open(&deep).unwrap().1, some(2));
        assert_eq!(files(&deep), ["lock", "rollouts.json"]);
    }

    #[tokio::test]
    async fn a_corrupt_file_is_kept_aside_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let whole = serde_json::to_string(&some(1)).unwrap();
        let broken = ["", "{", "[]", "null", "{\"version\":1}", "{\"version\":-1}", whole.trim_end_matches('}')];

        for (n, text) in (1..).zip(broken) {
            fs::write(folder.path().join(NAME), text).unwrap();
            assert_eq!(open(folder.path()).unwrap().1, Rollouts::default(), "{text}");
            let aside = folder.path().join(format!("rollouts.json.corrupt-{n}"));
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
        assert!(!folder.path().join(NAME).exists());
    }

    #[test]
    fn a_file_of_a_newer_perch_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        fs::write(&path, r#"{"version":2,"sequence":{"new":"shape"}}"#).unwrap();

        let refused = open(folder.path()).unwrap_err().to_string();

        assert!(refused.contains("rollouts.json was written by a newer perch (document version 2"), "{refused}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_refuses_to_save_until_it_can() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        // A file in its place: it stops even root.
        fs::write(&folder, "").unwrap();
        let (mut store, nothing) = open(&folder).unwrap();

        let refused = save(&mut store, &some(1)).await.unwrap_err();
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();

        assert_eq!(nothing, Rollouts::default());
        assert!(refused.starts_with(&format!("stateDir {}: ", folder.display())), "{refused}");
        save(&mut store, &some(2)).await.unwrap();
    }

    #[tokio::test]
    async fn only_one_perch_writes() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, _) = open(folder.path()).unwrap();
        let (mut other, _) = open(folder.path()).unwrap();

        let refused = save(&mut other, &some(1)).await.unwrap_err();
        save(&mut one, &some(2)).await.unwrap();
        drop(one);

        assert!(refused.contains("another perch uses this folder"), "{refused}");
        save(&mut other, &some(3)).await.unwrap();
    }
}
