use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("perch-file-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

async fn changed(watch: &mut FileWatch) -> PathBuf {
    let told = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
    the_one(told.expect("told by an event, before the poll"))
}

fn the_one(mut told: Vec<PathBuf>) -> PathBuf {
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}

/// Nothing is told, although everything there was to tell has been seen: a later change of `witness` comes alone.
async fn tells_only(watch: &mut FileWatch, witness: &PathBuf) {
    fs::write(witness, "witness").unwrap();
    assert_eq!(changed(watch).await, *witness);
}

#[tokio::test]
async fn a_written_file_is_told() {
    let folder = Folder::new();
    let file = folder.file("perch.yaml", "a");
    let mut watch = FileWatch::new([file.clone()]);

    fs::write(&file, "b").unwrap();

    assert_eq!(changed(&mut watch).await, file);
}

#[tokio::test]
async fn a_file_replaced_by_a_rename_is_told() {
    let folder = Folder::new();
    let file = folder.file("perch.yaml", "a");
    let mut watch = FileWatch::new([file.clone()]);

    for content in ["b", "c"] {
        fs::rename(folder.file("new", content), &file).unwrap();
        assert_eq!(changed(&mut watch).await, file);
    }
}

#[tokio::test]
async fn the_same_content_again_is_not_told() {
    let folder = Folder::new();
    let (file, witness) = (folder.file("perch.yaml", "a"), folder.file("witness", ""));
    let mut watch = FileWatch::new([file.clone(), witness.clone()]);

    fs::write(&file, "a").unwrap();
    fs::rename(folder.file("new", "a"), &file).unwrap();

    tells_only(&mut watch, &witness).await;
}

#[tokio::test]
async fn the_swap_of_a_config_map_is_told_every_time() {
    let folder = Folder::new();
    let generation = |n: u32| {
        let name = format!("..{n}");
        fs::create_dir(folder.0.join(&name)).unwrap();
        folder.file(&format!("{name}/perch.yaml"), &n.to_string());
        symlink(&name, folder.0.join("..data_tmp")).unwrap();
        fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
        if n > 0 {
            fs::remove_dir_all(folder.0.join(format!("..{}", n - 1))).unwrap();
        }
    };
    generation(0);
    let file = folder.0.join("perch.yaml");
    symlink("..data/perch.yaml", &file).unwrap();
    let mut watch = FileWatch::new([file.clone()]);

    for n in 1..4 {
        generation(n);
        assert_eq!(changed(&mut watch).await, file);
    }
}

#[tokio::test]
async fn a_file_that_goes_and_comes_is_told_both_times() {
    let folder = Folder::new();
    let file = folder.file("perch.yaml", "a");
    let mut watch = FileWatch::new([file.clone()]);

    fs::remove_file(&file).unwrap();
    assert_eq!(changed(&mut watch).await, file);
    fs::write(&file, "a").unwrap();
    assert_eq!(changed(&mut watch).await, file);
}

#[tokio::test]
async fn what_happens_while_nobody_waits_is_told_later() {
    let folder = Folder::new();
    let file = folder.file("perch.yaml", "a");
    let mut watch = FileWatch::new([file.clone()]);

    fs::write(&file, "b").unwrap();
    // Dropped in the midst of its wait, as `select!` does; on a busy machine it may be told then already.
    let mut told = None;
    for _ in 0..5 {
        told = told.or(tokio::time::timeout(Duration::from_millis(10), watch.changed()).await.ok());
    }

    let told = match told {
        Some(told) => the_one(told),
        None => changed(&mut watch).await,
    };
    assert_eq!(told, file);
}

#[tokio::test]
async fn files_can_be_exchanged_for_others() {
    let (folder, other) = (Folder::new(), Folder::new());
    let (old, new, witness) = (folder.file("a", ""), other.file("b", ""), other.file("witness", ""));
    let mut watch = FileWatch::new([old.clone()]);

    watch.set_files([new.clone(), witness.clone()]);
    fs::write(&new, "x").unwrap();
    assert_eq!(changed(&mut watch).await, new);

    fs::write(&old, "x").unwrap();
    tells_only(&mut watch, &witness).await;
}

#[tokio::test]
async fn the_poll_finds_what_no_event_tells() {
    let folder = Folder::new();
    let file = folder.0.join("later/perch.yaml");
    let mut watch = FileWatch::new([file.clone()]);
    watch.poll = Duration::from_millis(20);
    watch.next_poll = Instant::now();

    fs::create_dir(folder.0.join("later")).unwrap();
    folder.file("later/perch.yaml", "a");

    assert_eq!(changed(&mut watch).await, file);
}
