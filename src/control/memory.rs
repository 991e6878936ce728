//! Watches how much memory perch uses against `limits.memory`, and says what is to be given up (`decide::shedding`).
//!
//! Counted are the process's resident memory and the socket buffers of its control group: what slow clients hold is partly
//! with the kernel. Not the group's `memory.current`: it has the page cache in it, and whoever else is in the group.
//! Without /proc there is nothing to watch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::writer::Control;
use crate::config::MemoryLimit;
use crate::decide::shedding::Shedding;
use crate::state::pressure::Pressure;

/// As Envoy's examples have it; some 50 us of reading /proc. At a gigabit a second some 30 MiB can come in between.
const TICK: Duration = Duration::from_millis(250);

/// A step lasts so long at least: workers look once a second, and what they free takes a second to go.
const LEAST: Duration = Duration::from_secs(2);

/// Of a control group's limit: the rest is for what is not counted (the kernel's part of each connection, page tables).
const PART_OF_GROUP: (u64, u64) = (9, 10);

/// The allocator keeps what was freed until some thread frees more (mimalloc's purge, a second later), which on a quiet
/// machine may be never. A block of this size goes straight back and takes the rest along; it is never touched.
const SHAKE: usize = 16 << 20;

/// Ends with the task.
pub async fn run(control: Control, pressure: Pressure) {
    let group = Group::find(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"));
    let mut is_told = false;
    let (mut shedding, mut since) = (Shedding::Nothing, Instant::now());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let ceiling = match control.snapshot().config.memory {
            MemoryLimit::Off => None,
            MemoryLimit::Bytes(bytes) => Some(bytes),
            MemoryLimit::Cgroup => group.as_ref().and_then(Group::limit).map(|b| b / PART_OF_GROUP.1 * PART_OF_GROUP.0),
        };
        let memory = ceiling.and_then(|ceiling| {
            let used = used(group.as_ref())?;
            if !Shedding::is_near(used, ceiling) {
                return Some((used, ceiling));
            }
            give_back();
            Some((self::used(group.as_ref())?, ceiling))
        });
        if ceiling.is_some() && memory.is_none() && !is_told {
            is_told = true;
            warn!("The memory in use cannot be read (no /proc); limits.memory has no effect.");
        }
        let next = memory.map_or(Shedding::Nothing, |(used, ceiling)| shedding.next(used, ceiling));
        let next = if since.elapsed() < LEAST { next.max(shedding) } else { next };
        pressure.set(next, memory);
        if next != shedding {
            tell(shedding, next, memory);
            (shedding, since) = (next, Instant::now());
        }
    }
}

fn tell(before: Shedding, now: Shedding, memory: Option<(u64, u64)>) {
    let (used, ceiling) = memory.unwrap_or_default();
    let (used_mib, ceiling_mib, sheds) = (used >> 20, ceiling >> 20, now.as_str());
    match now {
        Shedding::Nothing => info!(used_mib, ceiling_mib, sheds, "There is memory again."),
        _ if now < before => info!(used_mib, ceiling_mib, sheds, "Less short of memory."),
        Shedding::KeepAlive => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: idle connections are closed, others after their answer."
            );
        }
        Shedding::Requests => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: new requests are refused. Give perch more, or fewer clients."
            );
        }
        Shedding::Connections => {
            warn!(
                used_mib,
                ceiling_mib, sheds, "Short of memory: new connections are closed. Give perch more, or fewer clients."
            );
        }
    }
}

fn give_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(SHAKE)));
}

fn used(group: Option<&Group>) -> Option<u64> {
    let resident = number_after(&read("/proc/self/status"), "VmRSS:")? * 1024;
    Some(resident + group.and_then(Group::sockets).unwrap_or_default())
}

/// A control group of version 2 with a limit, or inside one.
#[derive(Debug)]
struct Group {
    /// Its own folder first, then those around it.
    folders: Vec<PathBuf>,
}

impl Group {
    /// The group that /proc/self/cgroup names. What is mounted at `root` may be the group itself (in a container).
    fn find(root: &Path, memberships: &str) -> Option<Self> {
        let own = memberships.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = root.join(own.trim_start_matches("../"));
        let folders: Vec<PathBuf> =
            own.ancestors().filter(|f| f.starts_with(root) && f.join(LIMIT).exists()).map(Path::to_owned).collect();
        (!folders.is_empty()).then_some(Self { folders })
    }

    /// The lowest that holds for it; it may change.
    fn limit(&self) -> Option<u64> {
        self.folders.iter().filter_map(|f| read(f.join(LIMIT)).trim().parse().ok()).min()
    }

    /// Bytes in socket buffers.
    fn sockets(&self) -> Option<u64> {
        number_after(&read(self.folders.first()?.join("memory.stat")), "sock ")
    }
}

/// Not there in the root of all groups; "max" where there is none.
const LIMIT: &str = "memory.max";

fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// What is not there is empty.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, limit: &str, sockets: u64) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(LIMIT), limit).unwrap();
        std::fs::write(folder.join("memory.stat"), format!("anon 5\nsock {sockets}\nsock_other 9\n")).unwrap();
    }

    #[test]
    fn the_lowest_limit_around_the_own_group_holds_and_its_own_sockets_count() {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("pods/perch"), "max\n", 7);
        write(&root.path().join("pods"), "1048576\n", 8);

        let group = Group::find(root.path(), "4:memory:/other\n0::/pods/perch\n").unwrap();

        assert_eq!((group.limit(), group.sockets()), (Some(1_048_576), Some(7)));
        write(&root.path().join("pods/perch"), "4096\n", 7);
        assert_eq!(group.limit(), Some(4_096), "it is read anew");
    }

    #[test]
    fn in_a_container_the_mounted_folder_is_the_group() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "2097152\n", 3);

        for memberships in ["0::/\n", "0::/docker/0123\n", "0::/../../docker\n"] {
            let group = Group::find(root.path(), memberships).unwrap();

            assert_eq!((group.limit(), group.sockets()), (Some(2_097_152), Some(3)), "{memberships}");
        }
    }

    #[test]
    fn without_a_group_or_a_limit_there_is_no_ceiling() {
        let root = tempfile::tempdir().unwrap();

        assert!(Group::find(root.path(), "0::/\n").is_none());
        assert!(Group::find(root.path(), "4:memory:/process\n").is_none());
        write(root.path(), "max\n", 3);
        assert_eq!(Group::find(root.path(), "0::/\n").unwrap().limit(), None);
    }

    #[test]
    fn the_memory_in_use_is_known() {
        assert!(used(None).is_some_and(|used| used > 1 << 20));
    }
}
